"""Reading the python batches of CIFAR without letting them run anything.

The batches are pickles, which can call any function when read. This reader admits three names
only, each replaced by an inert stand-in, so that not even numpy's own reconstruction of arrays
and types sees the file's content: what is left is tables, lists, text and arrays of bytes.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import DataError


class _ArrayName:
    """Stands for the name of numpy's array type."""

    def __setstate__(self, state: object) -> None:
        raise DataError("a name has no content")


class _Bytes:
    """Stands for the element type uint8, the only one admitted."""

    def __init__(self, code: str, align: object = 0, copy: object = 0) -> None:
        del align, copy
        if code not in ("u1", "|u1", "uint8"):
            raise DataError(f"elements must be uint8, got {code!r}")

    def __setstate__(self, state: object) -> None:
        pass  # byte order and alignment say nothing about single bytes


class _Array:
    """Stands for an array of bytes until it is checked."""

    def __init__(self, kind: object = None, shape: object = None, code: object = None) -> None:
        del kind, shape, code  # numpy writes an empty array first and its content after
        self.content: NDArray[np.uint8] | None = None

    def __setstate__(self, state: tuple[object, tuple[int, ...], object, bool, object]) -> None:
        _, shape, kind, by_column, content = state
        if isinstance(content, str):
            content = content.encode("latin-1")
        if not isinstance(kind, _Bytes) or by_column or not isinstance(content, bytes):
            raise DataError("arrays must hold bytes row by row")
        if math.prod(shape) != len(content):
            raise DataError(f"an array of shape {shape} holds {len(content)} bytes")
        self.content = np.frombuffer(content, dtype=np.uint8).reshape(shape)


class _Encoded:
    """Stands for the call that Python 3 writes for bytes in old formats; gives plain bytes."""

    def __new__(cls, text: str, encoding: str) -> bytes:  # type: ignore[misc]
        if encoding not in ("latin1", "latin-1"):
            raise DataError(f"bytes must be written as latin1, got {encoding!r}")
        return text.encode("latin-1")

    def __setstate__(self, state: object) -> None:
        raise DataError("bytes have no further content")


# All are classes with a __setstate__ of their own: a pickle can then set no attribute on them.
ADMITTED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _ArrayName,
    ("numpy", "dtype"): _Bytes,
    ("_codecs", "encode"): _Encoded,
}


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ADMITTED:
            raise DataError(f"it asks for {module}.{name}, which no image batch needs")
        return ADMITTED[module, name]


def read_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read one batch: pixels [n, 3, 32, 32] uint8 and labels [n] int64.

    Raises:
        DataError: if the file asks for anything but arrays of bytes, or is not such a batch.
    """
    try:
        with path.open("rb") as file:
            content = _InertUnpickler(file, encoding="latin1").load()
    except Exception as error:  # what a damaged pickle makes the parser raise cannot be listed
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is not a CIFAR-10 batch: {reason}") from error
    return _pixels_and_labels(content, path)


def _pixels_and_labels(content: object, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    table = content if isinstance(content, dict) else {}
    array, labels = table.get("data"), table.get("labels")
    pixels = array.content if isinstance(array, _Array) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise DataError(f"{path} is not a CIFAR-10 batch: it has no data [n, 3072]")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise DataError(f"{path} is not a CIFAR-10 batch: it has not one label for each image")
    if not all(type(label) is int and 0 <= label < 10 for label in labels):
        raise DataError(f"{path} is not a CIFAR-10 batch: labels must be in 0 to 9")
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)
