from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from fedprune import data
from fedprune.data.groups import MAX_GROUPS
from fedprune.errors import DataError

NAMES = {"sex": ("female", "male"), "race": ("White", "Black", "Other"), "age": ("young", "old")}


def rows(count: int = 200) -> data.Rows:
    generator = np.random.default_rng(1)
    return data.Rows(
        stored=np.zeros((count, 1), dtype=np.float32),
        labels=np.zeros(count, dtype=np.int64),
        groups={
            name: data.GroupColumn(generator.integers(0, len(names), count), names)
            for name, names in NAMES.items()
        },
    )


@pytest.mark.parametrize("asked", [("sex", "race"), ("race", "sex"), ("age", "race", "sex")])
@pytest.mark.parametrize("between", [" x ", "*", " * ", ",", ", ", " , ", "  x  "])
def test_a_crossed_group_is_named_by_the_groups_that_the_row_is_in(
    asked: tuple[str, ...], between: str
) -> None:
    people = rows()
    column = people.group(between.join(asked))
    assert column.names == tuple(map(", ".join, itertools.product(*(NAMES[a] for a in asked))))
    assert column.codes.dtype == np.int64
    for row, code in enumerate(column.codes):
        alone = [people.groups[a].names[people.groups[a].codes[row]] for a in asked]
        assert column.names[code] == ", ".join(alone)


def test_crossings_without_rows_have_their_place() -> None:
    few = rows().take(np.array([0]))
    assert few.group("sex x race").names == rows().group("sex x race").names
    assert len(few.group("sex x race").names) == 6


def test_an_attribute_alone_is_its_own_column() -> None:
    people = rows()
    assert people.group("sex") is people.groups["sex"]


def test_an_attribute_whose_name_looks_like_a_crossing_is_found_first() -> None:
    codes = np.array([0, 1])
    odd = {
        name: data.GroupColumn(codes, ("a", "b")) for name in ("a x b", "a", "b", "x", "to, fro")
    }
    people = data.Rows(np.zeros((2, 1)), codes, groups=odd)
    assert people.group("a x b").names == ("a", "b")
    assert people.group("to, fro").names == ("a", "b")
    assert people.group("a*x").names == ("a, a", "a, b", "b, a", "b, b")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (
            "colour",
            r"must be one of sex, race, age or a crossing such as 'sex x race', got 'colour'$",
        ),
        ("sex x colour", r"one of sex, race, age .*, got 'colour' in 'sex x colour'$"),
        ("sex,", r"got '' in 'sex,'$"),
        ("", r"got ''$"),
        ("Sex", r"got 'Sex'$"),
        ("sexxrace", r"got 'sexxrace'$"),
        ("sex x sex", r"must not name sex twice, got 'sex x sex'$"),
    ],
)
def test_what_is_no_crossing_of_known_attributes_is_refused(question: str, message: str) -> None:
    people = rows()
    dataset = data.Dataset("made up", 1, (1,), people, people, "none")
    for ask in (people.group, dataset.schema.group_names):
        with pytest.raises(DataError, match=message):
            ask(question)


def test_rows_without_attributes_say_so() -> None:
    with pytest.raises(DataError, match="rows, which have none, got 'class'"):
        data.Rows(np.zeros((1, 1)), np.zeros(1, dtype=np.int64)).group("class")


def test_a_crossing_of_too_many_groups_is_refused() -> None:
    names = tuple(str(number) for number in range(40))
    columns = {name: data.GroupColumn(np.zeros(1, dtype=np.int64), names) for name in "abc"}
    people = data.Rows(np.zeros((1, 1)), np.zeros(1, dtype=np.int64), groups=columns)
    with pytest.raises(DataError, match=rf"'a x b x c' makes 64000 groups; at most {MAX_GROUPS}"):
        people.group("a x b x c")


def test_hospitals_cross_sex_with_age(data_root: Path) -> None:
    heart = data.load("heart", data_root, seed=1)
    column = heart.test.group("sex x age")
    assert column.names[0] == "female, under 50"
    assert column.names == heart.schema.group_names("sex*age")
    by_sex = np.bincount(column.codes, minlength=6).reshape(2, 3).sum(axis=1)
    assert by_sex.tolist() == np.bincount(heart.test.group("sex").codes).tolist()


def test_two_groups_of_one_name_are_refused_where_they_would_be_made() -> None:
    codes = np.array([0, 1])
    names = {"town": ("a", "a, b"), "street": ("b, c", "c")}
    columns = {name: data.GroupColumn(codes, words) for name, words in names.items()}
    people = data.Rows(np.zeros((2, 1)), codes, groups=columns)
    schema = data.Schema(2, (1,), "unit", groups=names)
    for make in (people.group, schema.group_names):
        with pytest.raises(
            DataError, match="both be called 'a, b, c': 'a' with 'b, c', and 'a, b' with 'c'"
        ):
            make("town x street")
        make("street x town")  # "b, c, a" and "c, a, b" differ
        make("town")


def test_groups_by_class_are_known_by_their_name_alone() -> None:
    assert data.names_classes("class")
    assert data.names_classes("sex x class")
    assert data.names_classes("class,sex")
    assert not data.names_classes("sex x race")
    assert not data.names_classes("social class")
