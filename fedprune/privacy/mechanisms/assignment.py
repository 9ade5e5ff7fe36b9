"""Which client is asked about which block: a public, stratified assignment.

A label (say, the run and the round) names a permutation of the clients that anybody can recompute:
SHAKE-256 of the label gives every client a 64-bit key, and clients are ranked by key. Neither
server nor client chooses a block then: a client cannot pile its report onto one unit, and every
unit is asked about equally often, to within one report. The block is no secret: its report alone
carries the whole epsilon. Shuffling wants the opposite, blocks that clients draw themselves.

Given masks that do not depend on the label, the clients of a block are a simple random sample of
all clients, which is what the variances and intervals of `estimation` rest on.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedprune.errors import PrivacyError

_DOMAIN = b"fedprune public ranks 1"


@lru_cache(maxsize=16)
def public_ranks(num_clients: int, label: str) -> NDArray[np.int64]:
    """Rank all clients as the label says: [num_clients], a permutation; the array is read-only.

    Any contiguous range of ranks is a random cohort, and disjoint ranges are disjoint cohorts.

    Raises:
        PrivacyError: if `num_clients` is not a whole number of at least 1.
    """
    if isinstance(num_clients, bool) or num_clients != int(num_clients) or num_clients < 1:
        raise PrivacyError(f"num_clients must be a whole number of at least 1, got {num_clients!r}")
    text = b"\0".join((_DOMAIN, str(int(num_clients)).encode(), label.encode()))
    stream = hashlib.shake_256(text).digest(8 * int(num_clients))
    order = np.argsort(np.frombuffer(stream, dtype=">u8"), kind="stable")
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    ranks.flags.writeable = False
    return ranks


def assigned_blocks(ranks: ArrayLike, num_blocks: int) -> NDArray[np.int64]:
    """Give each client its block, rank modulo `num_blocks`: [num_clients] in [0, num_blocks).

    Clients of any contiguous range of ranks are spread evenly: two blocks never differ by more
    than one client.

    Raises:
        PrivacyError: if there is no block or a rank is not a whole number of at least 0.
    """
    array = np.asarray(ranks)
    if num_blocks < 1:
        raise PrivacyError(f"num_blocks must be at least 1, got {num_blocks!r}")
    if array.ndim != 1 or array.dtype.kind not in "iu" or (array.size and array.min() < 0):
        raise PrivacyError("ranks must be one row of whole numbers of at least 0")
    return array.astype(np.int64) % num_blocks
