"""Memory that processes share, without a name that could outlive them."""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Block:
    """A piece of shared memory, known by a file descriptor only.

    When no process holds the descriptor or maps it any more, the system frees it.
    """

    def __init__(self, descriptor: int, size: int, *, writable: bool = True) -> None:
        """Map `size` bytes of an open file, whose descriptor is the block's from now on."""
        self.descriptor, self.size = descriptor, size
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._map = mmap.mmap(descriptor, max(1, size), access=access)

    @staticmethod
    def create(size: int) -> Block:
        """Make a block of zeros."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("fedprune")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, max(1, size))
        return Block(descriptor, size)

    def array(self, dtype: DTypeLike, shape: tuple[int, ...], offset: int = 0) -> NDArray[Any]:
        """See a part of the block as an array; it keeps the memory alive."""
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._map, dtype, count, offset).reshape(shape)

    def close(self) -> None:
        """Let go of the descriptor; arrays stay usable while anybody has them."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@dataclass(frozen=True)
class SharedArray:
    """An array that other processes can map.

    Attributes:
        descriptor: of the file that it lies in.
        description: type, shape and place in it, as plain data.
    """

    descriptor: int
    description: dict[str, Any]

    @staticmethod
    def of(array: NDArray[Any]) -> SharedArray:
        """Share an array: the file that it is mapped from, or else one copy in memory."""
        behind = _file_behind(array)
        if behind is not None:
            descriptor, offset = behind
        else:
            block = Block.create(array.nbytes)
            block.array(array.dtype, array.shape)[...] = array
            descriptor, offset = os.dup(block.descriptor), 0
            block.close()
        described = {"dtype": array.dtype.str, "shape": list(array.shape), "offset": offset}
        return SharedArray(descriptor, described)

    def close(self) -> None:
        """Close the descriptor; who has mapped the array keeps it."""
        os.close(self.descriptor)


def open_shared(descriptor: int, description: dict[str, Any]) -> NDArray[Any]:
    """Map what `SharedArray` describes, to read; the descriptor is closed."""
    dtype, shape = np.dtype(description["dtype"]), tuple(description["shape"])
    offset = int(description["offset"])
    size = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    block = Block(descriptor, size, writable=False)
    block.close()
    return block.array(dtype, shape, offset)


def _file_behind(array: NDArray[Any]) -> tuple[int, int] | None:
    """Open the file that a read-only array is mapped from: descriptor and offset; None if none."""
    root: Any = array
    while isinstance(root, np.ndarray) and isinstance(root.base, np.ndarray):
        root = root.base
    mapped = isinstance(root, np.memmap) and root.filename and root.mode == "r"
    if not mapped or not array.flags.c_contiguous or not array.size:
        return None
    # A slice of a mapped array says its parent's offset: the address tells the truth.
    offset = root.offset + array.ctypes.data - root.ctypes.data
    try:
        descriptor = os.open(root.filename, os.O_RDONLY)
    except OSError:
        return None
    if os.fstat(descriptor).st_size < offset + array.nbytes:
        os.close(descriptor)
        return None
    return descriptor, int(offset)
