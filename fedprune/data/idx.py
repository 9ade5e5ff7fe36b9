"""Reading idx files, the format of MNIST (LeCun, Cortes & Burges 1998), plain or gzipped.

A file begins with two zero bytes, a code for the type of its elements (8 for unsigned bytes), its
number of dimensions, and each dimension's size as a 32-bit big-endian number. Elements follow.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import DataError

UNSIGNED_BYTES = 8
MAX_BYTES = 2**30


def read_idx(path: Path, item_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read the items of an idx file of unsigned bytes: [n, *item_shape] uint8.

    No more is read, or unpacked from a gzipped file, than the header announces and one byte.

    Args:
        path: ending in .gz where it is gzipped.
        item_shape: the shape that each item must have; () for labels.

    Raises:
        DataError: if the file cannot be read, is damaged, too short, too long, or announces
            another type, another shape or more than 1 GiB.
    """
    try:
        with _open(path) as file:
            return _read(file, path, item_shape)
    except (OSError, EOFError, zlib.error) as error:  # gzip raises all three for damaged files
        raise DataError(f"cannot read {path}: {error}") from None


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _read(file: IO[bytes], path: Path, item_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    shape = _read_shape(file, path, item_shape)
    size = math.prod(shape)
    content = file.read(size + 1)
    if len(content) != size:
        raise DataError(
            f"{path} announces {size} bytes of elements {list(shape)}, but holds "
            f"{'more' if len(content) > size else len(content)}"
        )
    return np.frombuffer(bytearray(content), dtype=np.uint8).reshape(shape)  # can be written to


def _read_shape(file: IO[bytes], path: Path, item_shape: tuple[int, ...]) -> tuple[int, ...]:
    dimensions = 1 + len(item_shape)
    magic = bytes([0, 0, UNSIGNED_BYTES, dimensions])
    found = file.read(4)
    if found != magic:
        raise DataError(
            f"{path} must begin with {magic.hex(' ')}, an idx file of unsigned bytes in "
            f"{dimensions} dimensions, got {found.hex(' ') or 'an empty file'}"
        )
    header = file.read(4 * dimensions)
    if len(header) != 4 * dimensions:
        raise DataError(f"{path} ends within its header of {4 + 4 * dimensions} bytes")
    shape = struct.unpack(f">{dimensions}I", header)
    if shape[1:] != item_shape:
        raise DataError(f"{path} must hold items {list(item_shape)}, got {list(shape[1:])}")
    if math.prod(shape) > MAX_BYTES:
        raise DataError(f"{path} announces {math.prod(shape)} bytes, at most {MAX_BYTES} are read")
    return shape
