from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from fedprune import data
from fedprune.data import adult
from fedprune.errors import DataError

PERSON = (
    "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, "
    "2174, 0, 40, United-States, <=50K"
)
OTHER = "61, ?, 1, Doctorate, 16, Widowed, ?, Wife, Black, Female, 99999, 0, 99, ?, >50K"


def people(root: Path, *train: str, test: str = OTHER + ".") -> Path:
    folder = root / "adult"
    folder.mkdir()
    (folder / "adult.data").write_text("\n".join([*train, "", ""]))
    (folder / "adult.test").write_text("|1x3 Cross validator\n" + test + "\n")
    return root


def features(rows: data.Rows, row: int) -> dict[str, float]:
    return dict(zip(adult.FEATURE_NAMES, rows.stored[row].tolist(), strict=True))


def test_a_person_is_encoded_by_the_documented_constants(tmp_path: Path) -> None:
    loaded = data.load("adult", people(tmp_path, PERSON, OTHER), seed=1)
    person = features(loaded.train, 0)
    assert person["age"] == pytest.approx((39 - 17) / 73)
    assert person["level of education"] == pytest.approx(12 / 15)
    assert person["hours a week"] == pytest.approx(39 / 98)
    assert person["capital gain"] == pytest.approx(np.log(2175) / np.log(100_000))
    assert person["capital loss"] == 0
    assert {name for name, value in person.items() if value == 1} == {
        "work class State-gov",
        "education Bachelors",
        "marital status Never-married",
        "occupation Adm-clerical",
        "relationship Not-in-family",
        "race White",
        "sex Male",
        "native country United-States",
    }
    other = features(loaded.test, 0)
    assert {name for name, value in other.items() if value == 1} == {
        "level of education",
        "work class missing",
        "education Doctorate",
        "marital status Widowed",
        "occupation missing",
        "relationship Wife",
        "race Black",
        "sex Female",
        "capital gain",
        "hours a week",
        "native country missing",
    }
    assert loaded.train.labels.tolist() == [0, 1]
    assert loaded.test.group("sex x race").names[loaded.test.group("sex x race").codes[0]] == (
        "female, Black"
    )
    assert loaded.test.group("age").codes.tolist() == [3]


def test_the_weight_of_the_sample_is_no_feature(tmp_path: Path) -> None:
    heavier = PERSON.replace("77516", "999999")
    loaded = data.load("adult", people(tmp_path, PERSON, heavier), seed=1)
    assert np.array_equal(loaded.train.stored[0], loaded.train.stored[1])
    assert not any("wgt" in name or "weight" in name for name in adult.FEATURE_NAMES)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (PERSON.rpartition(",")[0], r"must have 15 values, got 14 \(.*adult.data, line 2\)"),
        (PERSON + ", more", r"must have 15 values, got 16 \(.*adult.data, line 2\)"),
        (PERSON.replace("39", "?", 1), r"age must be known \(years\), got '\?' \(.*line 2\)"),
        (PERSON.replace("39", "old", 1), r"age must be a number \(years\), got 'old' \(.*line 2\)"),
        (PERSON.replace("39", "nan", 1), r"age must be a number \(years\), got 'nan'"),
        (
            PERSON.replace("State-gov", "Pirate"),
            r"work class must be one of .*, got 'Pirate' \(.*2",
        ),
        (PERSON.replace("White", "?"), r"race must be one of White, .*, got '\?' \(.*line 2\)"),
        (PERSON.replace("Male", "male"), r"sex must be one of Female, Male, got 'male'"),
        (PERSON.replace("<=50K", "50K"), r"income must be <=50K or >50K, got '50K' \(.*line 2\)"),
    ],
)
def test_a_line_that_does_not_fit_is_refused_with_its_place(
    tmp_path: Path, line: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        data.load("adult", people(tmp_path, PERSON, line, PERSON), seed=1)


def test_a_file_without_people_or_that_is_not_text_is_refused(tmp_path: Path) -> None:
    root = people(tmp_path, PERSON, test="")
    with pytest.raises(DataError, match=r"adult.test holds no people"):
        data.load("adult", root, seed=1)
    (root / "adult/adult.test").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"cannot read .*adult.test"):
        data.load("adult", root, seed=1)


def test_missing_files_are_named_with_where_to_get_them(tmp_path: Path) -> None:
    (people(tmp_path, PERSON) / "adult/adult.test").unlink()
    with pytest.raises(DataError, match=r"adult/adult.test under data.root.*archive.ics.uci.edu"):
        data.load("adult", tmp_path, seed=1)


@pytest.fixture(scope="module")
def census(data_root: Path) -> data.Dataset:
    return data.load("adult", data_root, seed=1)


def test_the_split_is_the_official_one_and_every_input_lies_in_0_to_1(census: data.Dataset) -> None:
    assert (len(census.train), len(census.test)) == (32_561, 16_281)
    assert census.input_shape == (107,)
    for rows in (census.train, census.test):
        assert rows.stored.min() >= 0
        assert rows.stored.max() <= 1


def test_groups_and_labels_say_what_the_files_say(census: data.Dataset, data_root: Path) -> None:
    for rows, name in ((census.train, "adult.data"), (census.test, "adult.test")):
        with (data_root / "adult" / name).open() as file:
            raw = [r for r in csv.reader(file, skipinitialspace=True) if len(r) == 15]
        crossed = rows.group("sex x race")
        found = [crossed.names[code] for code in crossed.codes]
        assert found == [f"{row[9].lower()}, {row[8]}" for row in raw]
        assert rows.labels.tolist() == [int(row[14].startswith(">")) for row in raw]
        bands = [int(a >= 30) + int(a >= 45) + int(a >= 60) for a in (int(row[0]) for row in raw)]
        assert rows.group("age").codes.tolist() == bands


def test_nobody_holds_rows_by_nature(census: data.Dataset) -> None:
    with pytest.raises(DataError, match=r"dataset 'adult', which has no natural sites"):
        data.partition(census, "natural", clients=2, seed=1)
