"""Sums of a long computation in a file: written atomically, and read only for the same question."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedprune.errors import PruningError

_FORMAT = "fedprune oracle 1"


class SumsFile:
    """Where the sums over the batches so far are kept."""

    def __init__(self, path: Path, digest: str) -> None:
        """Name the file and all that the sums depend on; nothing is touched yet."""
        self._path, self._digest = path, digest

    def load(self, empty: Tensor) -> tuple[Tensor, int]:
        """Read the sums and the number of batches in them; `empty` and 0 where there is no file.

        Raises:
            PruningError: if the file is damaged or answers another question.
        """
        if not self._path.exists():
            return empty, 0
        try:
            with safe_open(self._path, "pt") as file:
                about = file.metadata() or {}
                sums, done = file.get_tensor("sums"), int(about.get("batches", ""))
        except (SafetensorError, OSError, ValueError) as error:
            raise PruningError(
                f"{self._path} is no state of an oracle or damaged ({error}); remove it to start "
                f"anew"
            ) from error
        known = about.get("format") == _FORMAT and about.get("digest") == self._digest
        if not known or sums.shape != empty.shape or sums.dtype != empty.dtype:
            raise PruningError(
                f"{self._path} holds the oracle of another network, other units or other examples; "
                f"name another file or remove it"
            )
        return sums, done

    def store(self, sums: Tensor, batches: int) -> None:
        """Write the sums over so many batches in one step: a reader finds the old or the new."""
        about = {"format": _FORMAT, "digest": self._digest, "batches": str(batches)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        with temporary.open("wb") as file:
            file.write(save({"sums": sums.contiguous()}, about))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)
