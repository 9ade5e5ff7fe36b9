from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision import datasets as torchvision_datasets

from fedprune import data
from fedprune.data.idx import read_idx
from fedprune.errors import DataError

Bytes = NDArray[np.uint8]
NAMES = {"mnist": ("mnist", "MNIST/raw"), "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw")}
OTHERS = {"mnist": torchvision_datasets.MNIST, "fashion-mnist": torchvision_datasets.FashionMNIST}


def idx(array: Bytes) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def examples(count: int, seed: int) -> tuple[Bytes, Bytes]:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return pixels, generator.integers(0, 10, count, dtype=np.uint8)


TRAIN, TEST = examples(30, 1), examples(10, 2)


def write(folder: Path, separator: str = "-", ending: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, (pixels, labels) in (("train", TRAIN), ("t10k", TEST)):
        for kind, array in (("images", pixels), ("labels", labels)):
            content = idx(array)
            path = folder / f"{part}-{kind}{separator}idx{array.ndim}-ubyte{ending}"
            path.write_bytes(gzip.compress(content) if ending else content)
    return folder


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist"])
def test_images_and_labels_come_back_from_every_layout(
    tmp_path: Path, dataset: str, place: int, separator: str, ending: str
) -> None:
    write(tmp_path / NAMES[dataset][place], separator, ending)
    loaded = data.load(dataset, tmp_path, seed=1)
    for rows, (pixels, labels) in ((loaded.train, TRAIN), (loaded.test, TEST)):
        assert rows.stored.dtype == np.uint8
        assert np.array_equal(rows.stored, pixels[:, None])
        assert np.array_equal(rows.labels, labels)
        assert np.array_equal(rows.group("class").codes, labels)
    assert (loaded.num_classes, loaded.input_shape) == (10, (1, 28, 28))


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist"])
def test_torchvision_reads_the_same_from_the_same_files(tmp_path: Path, dataset: str) -> None:
    write(tmp_path / NAMES[dataset][1])
    loaded = data.load(dataset, tmp_path, seed=1)
    for rows, train in ((loaded.train, True), (loaded.test, False)):
        other = OTHERS[dataset](tmp_path, train=train, download=False)
        assert torch.equal(torch.from_numpy(rows.stored[:, 0]), other.data)
        assert torch.equal(rows.targets(slice(None)), other.targets)
    assert list(loaded.train.group("class").names) in (
        [name.lower() for name in other.classes],
        [name if name == "T-shirt/top" else name.lower() for name in other.classes],
        [str(digit) for digit in range(10)],
    )


def test_inputs_are_scaled_by_public_constants_alone(tmp_path: Path) -> None:
    write(tmp_path / "mnist")
    loaded = data.load("mnist", tmp_path, seed=1)
    expected = (TEST[0][:, None] / 255 - 0.1307) / 0.3081
    assert np.allclose(loaded.test.inputs(slice(None)).numpy(), expected, atol=1e-5)
    assert loaded.input_std == (0.3081,)


def test_the_first_folder_that_has_all_four_files_is_read(tmp_path: Path) -> None:
    write(tmp_path / "MNIST/raw")
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist/train-images-idx3-ubyte").write_bytes(b"unfinished")
    assert len(data.load("mnist", tmp_path, seed=1).train) == 30


def test_missing_files_are_named_with_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs .* in mnist or MNIST/raw .* none of them; get"):
        data.load("mnist", tmp_path, seed=1)
    (write(tmp_path / "fashion-mnist") / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as refusal:
        data.load("fashion-mnist", tmp_path, seed=1)
    assert "there is fashion-mnist/train-images-idx3-ubyte" in str(refusal.value)
    assert "https://github.com/zalandoresearch/fashion-mnist" in str(refusal.value)


PIXELS = idx(TRAIN[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must begin with 00 00 08 03, .* got an empty file"),
        (b"\0\0", "must begin with 00 00 08 03, .* got 00 00"),
        (b"\0\0\x08\x01" + PIXELS[4:], "must begin with 00 00 08 03, .* got 00 00 08 01"),
        (b"\0\0\x0d\x03" + PIXELS[4:], "must begin with 00 00 08 03, .* got 00 00 0d 03"),
        (gzip.compress(PIXELS), "must begin with 00 00 08 03, .* got 1f 8b"),
        (PIXELS[:10], "ends within its header of 16 bytes"),
        (idx(np.zeros((2, 32, 32), dtype=np.uint8)), r"items \[28, 28\], got \[32, 32\]"),
        (PIXELS[:-1], r"announces 23520 bytes of elements \[30, 28, 28\], but holds 23519"),
        (PIXELS[:16], r"announces 23520 bytes of elements .* but holds 0"),
        (PIXELS + b"\0", "announces 23520 bytes of elements .* but holds more"),
        (
            b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 28, 28),
            f"announces {(2**32 - 1) * 784} bytes, at most 1073741824 are read",
        ),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_damaged_file_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes, message: str, ending: str
) -> None:
    path = tmp_path / f"train-images-idx3-ubyte{ending}"
    path.write_bytes(gzip.compress(content) if ending else content)
    with pytest.raises(DataError, match=message) as refusal:
        read_idx(path, (28, 28))
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-1],
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:5],
        lambda packed: flipped(packed, len(packed) - 6),  # the checksum
        lambda packed: flipped(packed, 12),
        lambda packed: packed + b"more",
        lambda packed: packed + packed,
        lambda packed: b"not gzip" + packed,
    ],
)
def test_damaged_gzip_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "labels.gz"
    path.write_bytes(damage(gzip.compress(idx(TRAIN[1]))))
    with pytest.raises(DataError, match=r"labels\.gz"):
        read_idx(path, ())


def test_no_more_is_unpacked_than_the_header_announces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = gzip.GzipFile.read

    def watched(file: gzip.GzipFile, size: int | None = -1) -> bytes:
        asked.append(-1 if size is None else size)
        return read(file, size)

    monkeypatch.setattr(gzip.GzipFile, "read", watched)
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(idx(TRAIN[1]) + bytes(50_000_000)))
    with pytest.raises(DataError, match=r"announces 30 bytes of elements .* but holds more"):
        read_idx(path, ())
    assert all(0 <= size <= 31 for size in asked)


def test_a_folder_or_a_missing_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gz"):
        with pytest.raises(DataError, match="cannot read"):
            read_idx(path, ())


def test_images_without_their_labels_and_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    labels = write(tmp_path / "mnist") / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(TRAIN[1][:-1]))
    with pytest.raises(DataError, match=r"holds 30 images, but .* holds 29 labels"):
        data.load("mnist", tmp_path, seed=1)
    labels.write_bytes(idx(np.where(np.arange(30) == 7, 10, TRAIN[1]).astype(np.uint8)))
    with pytest.raises(DataError, match=r"must be in 0 to 9, got 10 \(.*idx1-ubyte, label 7\)"):
        data.load("mnist", tmp_path, seed=1)
