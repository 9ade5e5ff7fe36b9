"""What the checks of an audit read: a run folder, its configuration and its summary."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedprune.config import Config
from fedprune.errors import RunError
from fedprune.privacy import Receipt
from fedprune.runs import RunFolder, read_receipts

JsonDict = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What the checks read."""

    folder: RunFolder
    config: Config
    summary: JsonDict

    @property
    def simulated(self) -> bool:
        """Whether the summary says that all clients lived inside a simulation."""
        return self.summary.get("simulated", True) is not False

    @property
    def run(self) -> str:
        """The run's name in ledgers and receipts, from the first event."""
        return str(self.folder.events()[0]["result"]["run"])

    @property
    def missing(self) -> dict[str, list[int]]:
        """Clients without an answer that was used, by round.

        Raises:
            RunError: if the summary's `missing` is not such a table.
        """
        found = self.summary.get("missing") or {}
        lists = list(found.values()) if isinstance(found, dict) else [None]
        if not all(isinstance(gone, list) and all(map(_is_number, gone)) for gone in lists):
            path = self.folder.path / "summary.json"
            raise RunError(f"{path} is damaged: missing must list client numbers by round")
        return dict(found)

    @cached_property
    def num_units(self) -> int:
        """Units of the dense network."""
        return len(self.folder.load_dense()[1].dense_layout)

    @cached_property
    def num_classes(self) -> int:
        """Classes that the network tells apart."""
        return self.folder.load_dense()[1].num_classes

    @cached_property
    def receipts(self) -> list[Receipt]:
        """The distinct receipts of a deployed run."""
        return read_receipts(self.folder)

    def results(self) -> dict[str, JsonDict]:
        """What every finished phase said."""
        return {event["phase"]: event["result"] for event in self.folder.events()}

    def used_receipts(self, round_name: str) -> list[Receipt]:
        """Receipts of a round without those of clients that were missing in the end."""
        gone = {str(client) for client in self.missing.get(round_name, [])}
        return [
            receipt
            for receipt in self.receipts
            if receipt.round == round_name and receipt.client not in gone
        ]


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
