"""The rows on which the dense and the pruned model of a run disagree, on whoever's rows these are.

For the eyes of the rows' owner: what leaves a client of this are count tables alone, through a run.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedprune import fairness
from fedprune.errors import DataError, RunError
from fedprune.fairness import Disagreements
from fedprune.runs import RunFolder
from fedprune.study.clients import divide, load_dataset

COLUMNS = ("row", "label", "group", "dense", "pruned", "fall")


@dataclass(frozen=True, eq=False)
class Exemplars:
    """What `find_exemplars` found.

    Attributes:
        found: the disagreements; its indices count within `rows`.
        rows: [n] places of the rows that were looked at, in their split.
        labels: [n] their classes.
        groups: [n] their groups' names.
        names: [num_groups] of all groups.
    """

    found: Disagreements
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_]
    names: tuple[str, ...]

    def to_csv(self) -> str:
        """One line for each row in question, those first that lost most."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(COLUMNS)
        found = self.found
        for place, dense, pruned, fall in zip(
            found.indices, found.dense, found.pruned, found.severity, strict=True
        ):
            seen = (self.rows[place], self.labels[place], self.groups[place])
            lines.writerow([*seen, dense, pruned, f"{fall:.6f}"])
        return text.getvalue()


def find_exemplars(
    run: Path, *, root: Path | None = None, split: str = "test", client: int | None = None
) -> Exemplars:
    """Compare a run's two models row by row.

    Args:
        run: its folder.
        root: folder of the rows, if it is not the one that the run's configuration names.
        split: "test" or "train".
        client: look at the rows of this client of the run's division only.

    Raises:
        RunError: if there is no finished run.
        DataError: if there are no such rows, or no such client.
    """
    folder = RunFolder.open(run)
    dense, pruned = folder.load_dense()[0], folder.load_pruned()[0]
    config = folder.config
    if root is not None:
        own = config.data.model_copy(update={"root": str(root)})
        config = config.model_copy(update={"data": own})
    dataset = load_dataset(config)
    rows = dataset.train if split == "train" else dataset.test
    places = np.arange(len(rows), dtype=np.int64)
    if client is not None:
        if not 0 <= client < config.data.clients:
            raise DataError(f"client must be from 0 to {config.data.clients - 1}, got {client}")
        federation = divide(config, dataset)
        index = federation.train_index if split == "train" else federation.test_index
        places = np.asarray(index(client), dtype=np.int64)
    if not len(places):
        raise DataError(f"there are no {split} rows to compare the models on")
    column = rows.group(config.data.groups)
    labels = rows.targets(places)
    found = fairness.find_disagreements(
        dense,
        pruned,
        rows.inputs(places),
        labels,
        column.codes[places],
        num_groups=len(column.names),
    )
    return Exemplars(
        found,
        places,
        labels.numpy(),
        np.array(column.names)[column.codes[places]],
        column.names,
    )


def write(found: Exemplars, out: Path) -> None:
    """Write `to_csv`, all of it or nothing.

    Raises:
        RunError: if it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        RunFolder(out.parent).write_text(out.name, found.to_csv())
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}") from None
