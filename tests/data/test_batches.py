from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedprune import data
from fedprune.data.batches import ADMITTED, read_batch
from fedprune.errors import DataError


def batch(count: int, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "data": generator.integers(256, size=(count, 3072), dtype=np.uint8),
        "labels": generator.integers(10, size=count).tolist(),
        "batch_label": "made up",
    }


def write(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
def test_a_batch_reads_as_it_was_written(tmp_path: Path, protocol: int) -> None:
    content = batch(5)
    pixels, labels = read_batch(write(tmp_path / "batch", content, protocol))
    assert np.array_equal(pixels.reshape(5, -1), content["data"])
    assert pixels.shape == (5, 3, 32, 32)
    assert labels.tolist() == content["labels"]
    assert labels.dtype == np.int64


def test_real_batches_read_as_an_unrestricted_reader_reads_them(data_root: Path) -> None:
    path = data_root / "cifar-10-batches-py" / "test_batch"
    with path.open("rb") as file:
        expected = pickle.load(file, encoding="latin1")
    pixels, labels = read_batch(path)
    assert np.array_equal(pixels.reshape(len(pixels), -1), expected["data"])
    assert labels.tolist() == expected["labels"]


class _Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile(witness: Path) -> dict[str, object]:
    return {
        "a function of the system": _Calls(os.mkdir, str(witness)),
        "evaluation": _Calls(eval, f"__import__('os').mkdir({str(witness)!r})"),
        "an attribute": _Calls(getattr, "", "join"),
        "another type of array": np.zeros(3, dtype=object),
        "an array of numbers": np.zeros(3),
        "a structured array": np.zeros(3, dtype=[("a", "u1")]),
        "a codec with effects": _Calls(__import__("_codecs").encode, "text", "zlib_codec"),
        "numpy's loader": _Calls(np.load, "file"),
    }


@pytest.mark.parametrize("name", hostile(Path()))
def test_a_hostile_batch_runs_nothing_and_is_refused(tmp_path: Path, name: str) -> None:
    witness = tmp_path / "it-ran"
    content = {**batch(2), "extra": hostile(witness)[name]}
    with pytest.raises(DataError, match="is not a CIFAR-10 batch"):
        read_batch(write(tmp_path / "batch", content))
    assert not witness.exists()


@pytest.mark.parametrize("name", sorted(ADMITTED))
def test_a_batch_cannot_change_what_it_may_name(tmp_path: Path, name: tuple[str, str]) -> None:
    module, attribute = name
    stand_in = ADMITTED[name]
    # GLOBAL name, then BUILD with (None, {"planted": 1}): sets an attribute on most objects.
    code = f"c{module}\n{attribute}\nN}}(U\x07plantedK\x01u\x86b.".encode("latin1")
    path = tmp_path / "batch"
    path.write_bytes(b"\x80\x02" + code)
    with pytest.raises(DataError, match="is not a CIFAR-10 batch"):
        read_batch(path)
    assert not hasattr(stand_in, "planted")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"\x80\x02.",
        b"\x80\x02}",
        b"\x80\x02cbuiltins\nexec\n.",
        b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b"short.",
        b"\x80\x02]q\x00h\x05.",
    ],
)
def test_a_damaged_batch_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "batch"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not a CIFAR-10 batch"):
        read_batch(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": [1, 2]}, r"no data \[n, 3072\]"),
        ({"data": np.zeros((3, 10), dtype=np.uint8)}, r"no data \[n, 3072\]"),
        ({"data": np.zeros((4, 3072), dtype=np.uint8).T}, "row by row"),
        ({"labels": [1, 2]}, "one label for each image"),
        ({"labels": [1, 2, 10]}, "labels must be in 0 to 9"),
        ({"labels": [1, 2, "3"]}, "labels must be in 0 to 9"),
    ],
)
def test_a_batch_of_other_things_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_batch(write(tmp_path / "batch", {**batch(3), **change}))


def test_cifar10_joins_its_batches_in_order_and_scales_by_public_constants(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    parts = [batch(count, seed=count) for count in range(2, 8)]
    for name, part in zip(names, parts, strict=True):
        write(folder / name, part)
    dataset = data.load("cifar10", tmp_path, seed=1)
    assert (len(dataset.train), len(dataset.test)) == (2 + 3 + 4 + 5 + 6, 7)
    assert dataset.train.stored.dtype == np.uint8
    pixel = parts[1]["data"][2].reshape(3, 32, 32)[1, 5, 7] / 255
    found = dataset.train.inputs(np.array([4]))[0, 1, 5, 7].item()
    assert found == pytest.approx((pixel - 0.456) / 0.224, abs=1e-6)
    assert dataset.input_std == (0.229, 0.224, 0.225)
    names_of = dataset.test.group("class")
    assert [names_of.names[code] for code in names_of.codes[:1]] == [
        ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"][
            parts[5]["labels"][0]
        ]
    ]


def test_cifar10_is_complete(data_root: Path) -> None:
    dataset = data.load("cifar10", data_root, seed=1)
    assert np.array_equal(np.bincount(dataset.train.labels), np.full(10, 5_000))
    assert np.array_equal(np.bincount(dataset.test.labels), np.full(10, 1_000))
