"""Scores of the latest model's clients, kept while they fit a fixed share of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_MOST_BYTES = 2**30
_FLOAT_BYTES = 4

Compute = Callable[[Sequence[int]], Tensor]


class KeptScores:
    """Rows of scores by client, for one model and criterion at a time.

    What is more than a gigabyte is not kept: whoever asks again has it computed again, so that
    memory does not grow with the number of clients.
    """

    def __init__(self, num_clients: int, most_bytes: int = _MOST_BYTES) -> None:
        """Keep the scores of so many clients, if they fit."""
        self._num_clients, self._most_bytes = num_clients, most_bytes
        self._key = ""
        self._rows = torch.empty(0, 0)
        self._row_of: dict[int, int] = {}

    def get(self, key: str, clients: Sequence[int], compute: Compute) -> Tensor:
        """Scores of clients, of which only those that are not kept are computed.

        Args:
            key: names all that scores depend on besides the client; another one than the last
                drops what is kept.
            clients: whose; each once, at least one.
            compute: gives [len(missing), num_units] float32 for clients in rising order.

        Returns:
            [len(clients), num_units] float32.
        """
        if key != self._key:
            self._key, self._rows, self._row_of = key, torch.empty(0, 0), {}
        missing = sorted(client for client in clients if client not in self._row_of)
        if not missing:
            return self._rows[[self._row_of[client] for client in clients]]
        found = compute(missing)
        if missing == list(clients):
            scores = found
        else:
            scores = torch.empty(len(clients), found.shape[1])
            fresh = dict(zip(missing, found, strict=True))
            for place, client in enumerate(clients):
                row = self._row_of.get(client)
                scores[place] = fresh[client] if row is None else self._rows[row]
        self._keep(missing, found)
        return scores

    def _keep(self, clients: Sequence[int], scores: Tensor) -> None:
        units = scores.shape[1]
        if not self._row_of:  # untouched rows take no memory
            fitting = self._most_bytes // (_FLOAT_BYTES * max(units, 1))
            self._rows = torch.empty(min(self._num_clients, fitting), units)
        used = len(self._row_of)
        room = len(self._rows) - used
        self._rows[used : used + len(clients)] = scores[:room]
        self._row_of.update(zip(clients[:room], range(used, used + room), strict=False))
