from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune import data
from fedprune.data import Schema
from fedprune.data.schema import MAX_JSON, MAX_NAME
from fedprune.errors import DataError

SCHEMA = Schema(
    num_classes=2,
    input_shape=(3, 8, 8),
    input_unit="pixel value in [0, 1]",
    input_std=(0.229, 0.224, 0.225),
    groups={"sex": ("female", "male"), "race": ("White", "Black", "Other")},
)


def changed(**values: Any) -> str:
    return json.dumps(json.loads(SCHEMA.to_json()) | values)


names = st.text(min_size=1, max_size=20).filter(str.isprintable)
schemas = st.integers(1, 4).flatmap(
    lambda channels: st.builds(
        Schema,
        num_classes=st.integers(1, 10_000),
        input_shape=st.lists(st.integers(1, 20), max_size=4).map(lambda s: (channels, *s)),
        input_unit=names,
        input_std=st.none()
        | st.tuples(
            *[st.floats(0, exclude_min=True, allow_infinity=False, allow_nan=False)] * channels
        ),
        groups=st.dictionaries(
            names, st.lists(names, min_size=1, max_size=5, unique=True).map(tuple), max_size=4
        ),
    )
)


@given(schemas)
def test_a_schema_comes_back_from_its_one_line(schema: Schema) -> None:
    text = schema.to_json()
    assert len(text.splitlines()) == 1
    assert Schema.from_json(text) == schema


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from(["num_classes", "input_shape", "input_unit", "input_std", "groups", "other"]),
)
def test_whatever_stands_in_a_field_gives_a_schema_or_a_data_error(value: Any, key: str) -> None:
    try:
        schema = Schema.from_json(changed(**{key: value}))
    except DataError:
        return  # whatever else is raised fails the test
    assert Schema.from_json(schema.to_json()) == schema


@given(st.text())
def test_any_text_gives_a_schema_or_a_data_error(text: str) -> None:
    with pytest.raises(DataError):
        Schema.from_json(text)


@pytest.mark.parametrize("dataset", ["digits", "heart", "adult", "cifar10"])
def test_the_schema_of_a_data_set_says_what_the_rows_say(
    dataset: str, request: pytest.FixtureRequest
) -> None:
    root = "" if dataset == "digits" else request.getfixturevalue("data_root")
    loaded = data.load(dataset, root, seed=1)
    schema = Schema.from_json(loaded.schema.to_json())
    assert schema.input_shape == tuple(loaded.test.inputs(slice(0, 2)).shape[1:])
    assert schema.num_classes == len(schema.groups["class"]) == loaded.num_classes
    assert schema.input_std == loaded.input_std
    assert schema.input_unit == loaded.input_unit
    for attribute, column in loaded.test.groups.items():
        assert schema.groups[attribute] == column.names
        assert schema.group_names(attribute) == column.names
        if attribute != "class":
            crossing = f"class x {attribute}"
            assert schema.group_names(crossing) == loaded.test.group(crossing).names


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_classes": 0}, "num_classes .* whole number in 1 to 10000, got 0"),
        ({"num_classes": 10_001}, "num_classes .* got 10001"),
        ({"num_classes": True}, "num_classes .* got True"),
        ({"num_classes": 2.0}, "num_classes .* got 2.0"),
        ({"input_shape": []}, r"input_shape .* got \(\)"),
        ({"input_shape": [3, 0]}, "input_shape .* at least 1"),
        ({"input_shape": [3, -1, -1]}, "input_shape"),
        ({"input_shape": [10**5, 10**5]}, "at most 100000000 together"),
        ({"input_shape": [1] * 9}, "input_shape"),
        ({"input_shape": "288"}, "input_shape"),
        ({"input_unit": ""}, "input_unit .* 1 to 200 printable characters"),
        ({"input_unit": "two\nlines"}, "input_unit"),
        ({"input_std": [0.2]}, r"input_std .* 3 numbers above 0, one a channel, or null"),
        ({"input_std": [0.2, 0, 0.2]}, "input_std"),
        ({"input_std": [0.2, math.nan, 0.2]}, "input_std"),
        ({"input_std": [0.2, math.inf, 0.2]}, "input_std"),
        ({"groups": ["sex"]}, "groups .* table of at most 50"),
        ({"groups": {f"g{i}": ["a"] for i in range(51)}}, "groups .* table of at most 50"),
        ({"groups": {"sex": []}}, "groups of sex .* 1 to 1000 names"),
        ({"groups": {"sex": [str(i) for i in range(1001)]}}, "groups of sex .* 1 to 1000 names"),
        ({"groups": {"sex": "fm"}}, "groups of sex"),
        ({"groups": {"sex": ["a", "a"]}}, "groups of sex .* names that differ"),
        ({"groups": {"sex": ["a", 1]}}, "a group of sex .* printable characters, got 1"),
        ({"groups": {"sex": ["a" * (MAX_NAME + 1)]}}, "a group of sex"),
        ({"groups": {"s" * (MAX_NAME + 1): ["a"]}}, "an attribute of groups"),
        ({"groups": {"sex": ["\ud800"]}}, "a group of sex"),
        ({"colour": 1}, "'colour' is unknown"),
    ],
)
def test_a_wrong_or_too_large_value_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Schema.from_json(changed(**values))


def without_a_key() -> str:
    table = json.loads(SCHEMA.to_json())
    del table["groups"]
    return json.dumps(table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lambda: "{", "must be a line of JSON"),
        (lambda: "[" * 200_000, "must be a line of JSON"),
        (lambda: "1" * 5000, "must be a line of JSON"),
        (lambda: "[]", r"must be a JSON object, got \[\]"),
        (lambda: " " * (MAX_JSON + 1), f"at most {MAX_JSON} characters"),
        (lambda: b"{}", "must be JSON text"),
        (without_a_key, "'groups' is missing"),
    ],
)
def test_text_that_is_no_schema_is_refused(text: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Schema.from_json(text())


def test_the_largest_schema_can_be_read_back() -> None:
    name = '"' * (MAX_NAME - 5)
    attributes = {f"{name}{i:05}": tuple(f"{name}{j:05}" for j in range(1000)) for i in range(50)}
    text = Schema(10_000, (1,), '"' * MAX_NAME, None, attributes).to_json()
    assert MAX_JSON - 2_000_000 < len(text) <= MAX_JSON
    assert Schema.from_json(text).groups == attributes


def test_a_crossing_of_too_many_groups_is_refused() -> None:
    many = tuple(str(number) for number in range(1000))
    schema = Schema(2, (1,), "none", None, {"a": many, "b": ("x", "y")})
    assert schema.group_names("a") == many
    with pytest.raises(DataError, match="'a x b' makes 2000 groups; at most 1000"):
        schema.group_names("a x b")
