from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedprune import data
from fedprune.errors import ConfigError, DataError

X = np.arange(12.0).reshape(6, 2) / 12
Y = np.array([0, 1, 0, 1, 0, 1])


def made_up(**changes: Any) -> data.Dataset:
    arguments: dict[str, Any] = {
        "train": (X, Y),
        "test": (X[:3], Y[:3]),
        "num_classes": 2,
        "groups": {"sex": (Y, Y[:3], ("female", "male"))},
    }
    return data.from_arrays("mine", **(arguments | changes))


def test_arrays_become_rows_with_their_labels_and_groups() -> None:
    found = made_up(class_names=("ill", "well"), input_unit="metre")
    assert np.allclose(found.train.inputs(slice(None)).numpy(), X)
    assert found.train.targets(slice(None)).tolist() == Y.tolist()
    assert found.input_shape == (2,)
    assert found.test.group("sex x class").names == (
        "female, ill",
        "female, well",
        "male, ill",
        "male, well",
    )
    assert found.test.group("sex x class").codes.tolist() == [0, 3, 0]
    assert found.schema.input_unit == "metre"


def test_lists_tensors_and_whole_floats_are_as_good_as_arrays() -> None:
    for inputs, labels in (
        (X.tolist(), Y.tolist()),
        (torch.tensor(X), torch.tensor(Y)),
        (X.astype(">f8"), Y.astype(float)),
        (X.astype(np.float16), Y.astype(bool)),
    ):
        found = made_up(train=(inputs, labels))
        assert np.allclose(found.train.inputs(slice(None)).numpy(), X, atol=1e-3)
        assert found.train.labels.tolist() == Y.tolist()


def test_bytes_are_kept_and_scaled_when_they_are_asked_for() -> None:
    pixels = np.arange(6 * 3 * 2 * 2, dtype=np.uint8).reshape(6, 3, 2, 2)
    scaling = data.Scaling(divisor=255.0, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    found = made_up(train=(pixels, Y), test=(pixels[:3], Y[:3]), scaling=scaling)
    assert found.train.stored.dtype == np.uint8
    assert found.input_std == (0.5, 0.6, 0.7)
    inputs = found.train.inputs(slice(None)).numpy()
    assert np.allclose(inputs[:, 2], (pixels[:, 2] / 255 - 0.3) / 0.7)


def test_sites_make_the_natural_partition_possible() -> None:
    who = np.array([0, 0, 1, 1, 1, 0])
    found = made_up(sites=(who, who[:3], ("north", "south")))
    federation = data.partition(found, "natural", clients=2, seed=1)
    assert sorted(federation.train_index(0).tolist()) == [0, 1, 5]


def test_what_the_caller_does_to_the_arrays_later_does_not_reach_the_rows() -> None:
    inputs, labels = X.astype(np.float32), Y.copy()
    found = made_up(train=(inputs, labels))
    inputs[:] = np.nan
    labels[:] = 9
    assert np.allclose(found.train.inputs(slice(None)).numpy(), X)
    assert found.train.labels.tolist() == Y.tolist()


NAN = np.where(np.arange(12).reshape(6, 2) == 7, np.nan, X)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": (NAN, Y)}, "train inputs of dataset 'mine' must be finite, got nan in row 3"),
        ({"train": (X * 1e300, Y)}, "train inputs .* must be finite, got inf in row 0"),
        ({"test": (NAN, Y)}, "test inputs of dataset 'mine' must be finite"),
        ({"train": (X.astype(str), Y)}, r"must be numbers \[n, \*input_shape\], got <U"),
        ({"train": (X + 1j, Y)}, r"must be numbers .* got complex128 \[6, 2\]"),
        ({"train": (Y, Y)}, r"must be numbers .* got int64 \[6\]"),
        ({"train": (X, Y[:5])}, r"train labels .* must be one for each of the 6 rows, got 5"),
        ({"train": (X, Y + 0.5)}, "train labels .* must be whole numbers, got 0.5 in row 0"),
        ({"train": (X, np.full(6, np.nan))}, "must be whole numbers, got nan in row 0"),
        ({"train": (X, ["a"] * 6)}, r"train labels .* must be whole numbers \[n\], got <U1"),
        ({"train": (X, Y[:, None])}, r"must be whole numbers \[n\], got int64 \[6, 1\]"),
        ({"train": (X, Y + 1)}, "train labels of dataset 'mine' must be in 0 to 1, got 2"),
        ({"train": (X, -Y)}, "train labels of dataset 'mine' must be in 0 to 1, got -1"),
        ({"train": (X[:0], Y[:0])}, "has no training rows"),
        ({"test": (X[:, :1], Y)}, r"test inputs .* have shape \[1\], not \[2\]"),
        ({"num_classes": 0}, "num_classes .* whole number in 1 to 10000, got 0"),
        ({"num_classes": "2"}, "num_classes .* whole number in 1 to 10000, got '2'"),
        ({"class_names": ("a",)}, "class_names .* must be 2 names, got 1"),
        ({"groups": {"sex": (Y, ("f", "m"))}}, r"group sex .* \(train codes, test codes, names\)"),
        ({"groups": {"sex": (Y, Y[:3], ("f",))}}, "train codes of group sex .* in 0 to 0, got 1"),
        (
            {"groups": {"sex": (Y, Y[:2], ("f", "m"))}},
            r"test codes of group sex .* one for each of the 3 rows, got 2",
        ),
        ({"groups": {"sex": (Y, Y[:3], ("f", "f"))}}, "groups of sex .* names that differ"),
        ({"groups": {"sex": (Y, Y[:3], (0, 1))}}, "a group of sex .* printable characters, got 0"),
        ({"sites": (Y, Y[:3], ("north",))}, "train sites .* must be in 0 to 0, got 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        made_up(**({"groups": None} | changes))


def test_a_thousand_classes_and_more_have_no_group_of_their_own() -> None:
    found = made_up(num_classes=5000)
    assert list(found.train.groups) == ["sex"]
    assert found.schema.num_classes == 5000


Write = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into the current folder; give the reference of its function `load`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(source: str) -> str:
        (tmp_path / "module_of_a_user.py").write_text(textwrap.dedent(source))
        return "module_of_a_user:load"

    yield write
    sys.modules.pop("module_of_a_user", None)


GOOD = """
import numpy as np
from fedprune import data

def load(root, *, seed):
    inputs = np.full((4, 1), float(seed)) + len(str(root))
    return data.from_arrays("mine", train=(inputs, [0, 1, 0, 1]), test=(inputs, [0, 1, 0, 1]),
                            num_classes=2)
"""


def test_a_users_function_is_called_with_root_and_seed(module: Write) -> None:
    reference = module(GOOD)
    for own in (False, True):
        found = data.load(reference, "root", seed=7, own=own)
        assert found.train.stored.tolist() == [[11.0]] * 4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def load(root, *, seed): return 3", "it must give a data.Dataset, got int"),
        ("def load(root): ...", r"must take \(root, \*, seed\): got an unexpected keyword"),
        ("def load(*, seed): ...", r"must take \(root, \*, seed\): too many positional"),
        (
            GOOD.replace("float(seed)", "np.nan"),
            "train inputs of dataset 'mine' must be finite, got nan in row 0",
        ),
        (GOOD.replace("[0, 1, 0, 1]", "[0, 1, 2, 1]"), "labels .* must be in 0 to 1, got 2"),
    ],
)
def test_what_is_wrong_comes_out_in_one_sentence_with_the_reference(
    module: Write, source: str, message: str
) -> None:
    reference = module(source)
    with pytest.raises(DataError, match=message) as refusal:
        data.load(reference, "", seed=1)
    assert str(refusal.value).startswith("data.dataset = 'module_of_a_user:load'")
    assert "\n" not in str(refusal.value)


RAW = """
import numpy as np
import torch
from fedprune import data

def load(root, *, seed):
    inputs, labels = np.zeros((2, 1), dtype=np.float32), np.zeros(2, dtype=np.int64)
    groups = {{"sex": data.GroupColumn(labels, ("f", "m"))}}
    {change}
    rows = data.Rows(inputs, labels, groups=groups)
    return data.Dataset("mine", 2, (1,), rows, rows, "none")
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("labels = labels.astype(np.int32)", "labels .* must be a numpy array of int64, got int32"),
        ("labels = labels * 1.0", "labels .* must be a numpy array of int64, got float64"),
        ("labels = torch.tensor(labels)", "labels .* must be a numpy array of int64, got Tensor"),
        ("inputs = torch.tensor(inputs)", "inputs .* must be a numpy array, got Tensor"),
        (
            "inputs = inputs.astype(object)",
            "inputs .* must be numbers of up to 64 bits, got object",
        ),
        ("inputs = inputs.astype('>f4')", "inputs .* must be numbers of up to 64 bits, got >f4"),
        ("inputs = inputs - np.inf", "inputs .* must be finite, got -inf in row 0"),
        ("inputs = inputs.astype(float) + 1e200", "inputs .* must be finite, got inf in row 0"),
        ("groups = {'sex': data.GroupColumn(labels + 2, ('f', 'm'))}", "sex .* 0 to 1, got 2"),
        ("groups = {'sex': data.GroupColumn(labels * 1.0, ('f',))}", "sex .* int64, got float64"),
        ("groups = {'sex': data.GroupColumn(labels, ())}", "group sex .* must be in 0 to -1"),
        ("groups = {'sex\\n': data.GroupColumn(labels, ('f',))}", "printable characters"),
    ],
)
def test_a_data_set_built_by_hand_is_checked_too(module: Write, change: str, message: str) -> None:
    reference = module(RAW.format(change=change))
    with pytest.raises(DataError, match=message):
        data.load(reference, "", seed=1)


def test_a_bug_in_the_users_function_keeps_its_traceback_and_says_whose_it_is(
    module: Write,
) -> None:
    reference = module("def load(root, *, seed): return {}['no such key']")
    with pytest.raises(KeyError) as bug:
        data.load(reference, "", seed=1)
    assert bug.value.__notes__ == ["raised by data.dataset = 'module_of_a_user:load'"]
    assert any(entry.name == "load" for entry in bug.traceback)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module_at_all:load", "cannot be imported"),
        ("fedprune.data:no_such", "has no function 'no_such'"),
        (":load", 'must look like "package.module:function"'),
    ],
)
def test_a_reference_to_nothing_is_refused(reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data.load(reference, "", seed=1)
