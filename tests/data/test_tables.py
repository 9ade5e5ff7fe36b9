from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedprune import data
from fedprune.data import heart
from fedprune.data.tables import Categorical, Numeric, encode_row, encode_rows, feature_names
from fedprune.errors import DataError

PATIENT = "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0"


def hospitals(root: Path, first_line: str = PATIENT) -> Path:
    folder = root / "heart"
    folder.mkdir()
    for hospital in heart.HOSPITALS:
        lines = [first_line, *[PATIENT] * 9, ""]
        (folder / f"processed.{hospital}.data").write_text("\n".join(lines))
    return root


def features_of(line: str) -> dict[str, float]:
    cells = [heart._canonical(cell, "here") for cell in line.split(",")[:13]]
    return dict(zip(heart.FEATURE_NAMES, encode_row(heart.COLUMNS, cells, "here"), strict=True))


def test_a_number_maps_its_public_range_to_the_unit_interval() -> None:
    column = Numeric("pressure", 80, 220, "mmHg", zero_is_missing=True)
    cells = ["80", "150", "220", "30", "999", "?", "0"]
    levels = [tuple(column.encode(cell)) for cell in cells]
    assert levels == [(0, 0), (0.5, 0), (1, 0), (0, 0), (1, 0), (0.5, 1), (0.5, 1)]


def test_a_logarithmic_number_maps_its_ends_to_0_and_1_and_grows_in_between() -> None:
    column = Numeric("gain", 5, 1004, "dollars", may_miss=False, logarithmic=True)
    levels = [column.encode(cell)[0] for cell in ("5", "6", "100", "1004", "5000", "-3")]
    assert levels[1] == pytest.approx(np.log(2) / np.log(1000))
    assert 0 == levels[0] == levels[5] < levels[1] < levels[2] < levels[3] == levels[4] == 1


def test_many_rows_are_encoded_as_each_alone() -> None:
    generator = np.random.default_rng(1)
    cells = [("20", "55", "91", "-7"), ("0", "1"), ("1", "4", "?"), ("0", "140", "?")]
    rows = [[str(generator.choice(choices)) for choices in cells] for _ in range(50)]
    columns = heart.COLUMNS[:4]
    found = encode_rows(columns, rows, ["here"] * 50)
    assert found.dtype == np.float32
    assert np.array_equal(
        found, np.array([encode_row(columns, row, "here") for row in rows], dtype=np.float32)
    )


def test_of_many_rows_the_first_wrong_cell_of_a_column_is_named() -> None:
    rows = [["30", "0"], ["40", "2"], ["50", "2"]]
    with pytest.raises(DataError, match=r"sex must be one of 0, 1, got '2' \(line 2\)"):
        encode_rows(heart.COLUMNS[:2], rows, ["line 1", "line 2", "line 3"])


def test_a_category_is_one_hot_with_a_place_for_missing() -> None:
    column = Categorical("pain", ("1", "2"))
    assert [column.encode(cell) for cell in ("1", "2", "?")] == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
    ]
    assert feature_names([column]) == ("pain 1", "pain 2", "pain missing")


@pytest.mark.parametrize("column", heart.COLUMNS, ids=lambda column: column.name)
def test_every_column_has_as_many_features_as_names(column: Numeric | Categorical) -> None:
    cell = column.codes[0] if isinstance(column, Categorical) else "1"
    assert len(column.encode(cell)) == len(column.features())


def test_a_patient_is_encoded_by_the_documented_constants() -> None:
    features = features_of(PATIENT)
    assert features["age"] == pytest.approx((63 - 20) / 70)
    assert features["cholesterol"] == pytest.approx((233 - 100) / 500)
    assert features["ST depression on exercise"] == pytest.approx((2.3 + 3) / 10)
    on = {name for name, value in features.items() if value == 1}
    assert on == {
        "sex 1",
        "chest pain 1",
        "fasting blood sugar over 120 mg/dl 1",
        "resting electrocardiogram 2",
        "angina on exercise 0",
        "slope of ST on exercise 3",
        "thallium scan 6",
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("63,1,1,145,233,1,2,150,0,2.3,3,0,6", r"14 values, got 13 \(.*cleveland.data, line 1\)"),
        (PATIENT.replace("63.0", "?"), r"age must be known \(years\), got '\?' \(.*line 1\)"),
        (PATIENT.replace("145.0", "high"), r"number or \?, got 'high' \(.*line 1\)"),
        (PATIENT.replace("145.0", "inf"), r"pressure must be a number \(mmHg\), got 'inf'"),
        (PATIENT.replace("6.0", "5"), r"thallium scan must be one of 3, 6, 7, got '5'"),
        (PATIENT.replace("63.0,1.0", "63.0,2"), r"sex must be one of 0, 1, got '2'"),
        (PATIENT[:-1] + "5", r"a diagnosis must be in 0 to 4, got '5'"),
        (PATIENT[:-1] + "?", r"a diagnosis must be in 0 to 4, got '\?'"),
    ],
)
def test_a_line_that_does_not_fit_is_refused_with_its_place(
    tmp_path: Path, line: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        data.load("heart", hospitals(tmp_path, line), seed=1)


def test_missing_files_are_named_with_where_to_get_them(tmp_path: Path) -> None:
    (hospitals(tmp_path) / "heart" / "processed.va.data").unlink()
    with pytest.raises(DataError) as refusal:
        data.load("heart", tmp_path, seed=1)
    sentence = str(refusal.value)
    assert "heart/processed.va.data under data.root" in sentence
    assert "cleveland" not in sentence
    assert "https://archive.ics.uci.edu" in sentence


def varied_hospitals(root: Path) -> Path:
    hospitals(root)
    for number, hospital in enumerate(heart.HOSPITALS):
        ages = range(20 + 10 * number, 20 + 10 * number + 12 + 3 * number)
        lines = [PATIENT.replace("63.0", str(age)) for age in ages]
        (root / f"heart/processed.{hospital}.data").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize("present", [(0,), (3,), (1, 2), (0, 2, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_hospital_holds_out_the_same_patients_alone_as_among_the_others(
    tmp_path: Path, present: tuple[int, ...], seed: int
) -> None:
    together = data.load("heart", varied_hospitals(tmp_path), seed=seed)
    for number, hospital in enumerate(heart.HOSPITALS):
        if number not in present:
            (tmp_path / f"heart/processed.{hospital}.data").unlink()
    alone = data.load("heart", tmp_path, seed=seed, own=True)
    assert alone.site_names == together.site_names
    assert alone.schema == together.schema
    for mine, all_four in ((alone.train, together.train), (alone.test, together.test)):
        assert mine.sites is not None
        assert all_four.sites is not None
        kept = np.flatnonzero(np.isin(all_four.sites, present))
        assert np.array_equal(mine.stored, all_four.stored[kept])
        assert np.array_equal(mine.sites, all_four.sites[kept])
        assert np.array_equal(mine.group("hospital").codes, all_four.sites[kept])
        assert set(mine.sites) == set(present)


def test_hospitals_and_seeds_hold_out_other_places(tmp_path: Path) -> None:
    hospitals(tmp_path)
    for hospital in heart.HOSPITALS:
        lines = [PATIENT.replace("63.0", str(age)) for age in range(20, 80)]
        (tmp_path / f"heart/processed.{hospital}.data").write_text("\n".join(lines))
    ages = [
        tuple(found.stored[found.sites == site, 0])
        for found in (data.load("heart", tmp_path, seed=seed).test for seed in (1, 2))
        for site in range(4)
    ]
    assert len(set(ages)) == 8


def test_a_client_without_any_hospital_is_told_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs one of heart/processed.cleveland.data, .*uci.edu"):
        data.load("heart", tmp_path, seed=1, own=True)
    (hospitals(tmp_path) / "heart/processed.va.data").unlink()
    with pytest.raises(DataError, match=r"needs heart/processed.va.data under"):
        data.load("heart", tmp_path, seed=1)


def test_a_hospital_of_one_patient_keeps_it_for_training(tmp_path: Path) -> None:
    (tmp_path / "heart").mkdir()
    (tmp_path / "heart/processed.va.data").write_text(PATIENT)
    alone = data.load("heart", tmp_path, seed=1, own=True)
    assert (len(alone.train), len(alone.test)) == (1, 0)


@pytest.mark.parametrize("dataset", ["digits"])
def test_other_data_sets_are_the_same_as_a_clients_own(dataset: str) -> None:
    first, own = (data.load(dataset, "", seed=3, own=own) for own in (False, True))
    assert np.array_equal(first.test.stored, own.test.stored)


@pytest.fixture(scope="module")
def patients(data_root: Path) -> data.Dataset:
    return data.load("heart", data_root, seed=1)


def test_every_feature_of_every_patient_lies_in_the_public_range(patients: data.Dataset) -> None:
    for rows in (patients.train, patients.test):
        inputs = rows.inputs(np.arange(len(rows)))
        assert inputs.shape[1:] == patients.input_shape == (36,)
        assert inputs.min() >= 0
        assert inputs.max() <= 1


def test_a_patients_features_do_not_depend_on_other_patients(patients: data.Dataset) -> None:
    first = "28,1,2,130,132,0,2,185,0,0,?,?,?,0"  # the first patient of the second hospital
    expected = np.array(list(features_of(first).values()), dtype=np.float32)
    found = [
        (rows.stored == expected).all(axis=1).any() for rows in (patients.train, patients.test)
    ]
    assert any(found)


def test_each_hospital_keeps_about_a_fifth_for_testing(patients: data.Dataset) -> None:
    assert patients.site_names == heart.HOSPITALS
    assert patients.train.sites is not None
    assert patients.test.sites is not None
    held_out = np.bincount(patients.test.sites)
    total = held_out + np.bincount(patients.train.sites)
    assert total.tolist() == [303, 294, 123, 200]
    assert (np.abs(held_out - total / 5) < 4 * np.sqrt(0.16 * total)).all()


def test_groups_say_what_the_files_say(patients: data.Dataset, data_root: Path) -> None:
    raw = [
        line.split(",")
        for hospital in heart.HOSPITALS
        for line in (data_root / f"heart/processed.{hospital}.data").read_text().split()
    ]
    ages = np.array([float(cells[0]) for cells in raw])
    expected = {
        "sex": [sum(float(cells[1]) == sex for cells in raw) for sex in (0, 1)],
        "age": [(ages < 50).sum(), ((ages >= 50) & (ages < 60)).sum(), (ages >= 60).sum()],
        "class": [sum(cells[13] == "0" for cells in raw), sum(cells[13] != "0" for cells in raw)],
        "hospital": [303, 294, 123, 200],
    }
    for name, numbers in expected.items():
        columns = [rows.group(name) for rows in (patients.train, patients.test)]
        found = sum(np.bincount(column.codes, minlength=len(column.names)) for column in columns)
        assert list(np.asarray(found)) == numbers, name
