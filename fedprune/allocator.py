"""Keeping freed memory in the process, where the C library would hand it back to the system.

The GNU C library gives large freed blocks back and asks for them anew, and the system fills every
page with zeros when it is first touched again. Which blocks are large depends on what was freed
before (mallopt(3), "dynamic mmap threshold"), so that the same layer with the same input can take
several times as long in one process as in another. Allocators made for such work (jemalloc,
TCMalloc) keep what is freed for a while. Elsewhere than with that library nothing is changed.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

# Names of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
# Where glibc's own adjustment ends in a process that has freed a block of 32 MiB or more.
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_ADJUSTED = {
    _MMAP_THRESHOLD: _LARGEST_MMAP_THRESHOLD,
    _TRIM_THRESHOLD: 2 * _LARGEST_MMAP_THRESHOLD,
    _MMAP_MAX: 65_536,
}
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}  # no blocks of their own, nothing given back

_lock = threading.Lock()
_users = 0


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Keep what is freed inside, then give it back; may be nested and used by several threads.

    Afterwards the library's thresholds stand where its own adjustment ends at most (blocks up to
    32 MiB come from the heap, whose end is given back beyond 64 MiB), since that adjustment cannot
    be started again.

    Yields:
        Whether memory is kept: False with another C library than GNU's.
    """
    kept = keep_freed_memory()
    try:
        yield kept
    finally:
        if kept:
            _give_back()


def keep_freed_memory() -> bool:
    """Keep what is freed for the rest of this process and in those that it forks.

    Returns:
        Whether memory is kept: False with another C library than GNU's.
    """
    global _users
    library = _glibc()
    if library is None:
        return False
    with _lock:
        _users += 1
        _set(library, _KEEPING)
    return True


def _give_back() -> None:
    global _users
    library = _glibc()
    with _lock:
        _users -= 1
        if library is not None and _users == 0:
            _set(library, _ADJUSTED)
            library.malloc_trim(0)


def _set(library: Any, values: dict[int, int]) -> None:
    for name, value in values.items():
        library.mallopt(name, value)


@cache
def _glibc() -> Any | None:
    """The C library of this process where it is GNU's."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - only GNU's has it
        library.mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
        library.malloc_trim.argtypes = (ctypes.c_size_t,)
    except (OSError, AttributeError, TypeError):
        return None
    return library
