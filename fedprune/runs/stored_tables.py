"""What tables.json says: accuracies, gaps and, of two classes, rates of predicting one of them.

The run computes its figures from the stored counts when it ends, and an auditor does so again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedprune import fairness
from fedprune.errors import FairnessError
from fedprune.fairness import TableNoise
from fedprune.randomness import SimulationRandomness
from fedprune.runs.count_tables import OUTCOME_CELLS

JsonDict = dict[str, Any]
Counts = NDArray[np.int64]

BY_CLASS = (
    "the groups are divided by class: rates of predicting a class are compared between groups that "
    "hold rows of both"
)


@dataclass(frozen=True)
class CountedRows:
    """Count tables and the noise in each of their cells; None where counts are exact."""

    counts: Counts
    noise: TableNoise | None = None

    @property
    def has_outcomes(self) -> bool:
        """Whether label and predictions were counted: [tables, num_groups, 2, 2, 2]."""
        return self.counts.shape[-3:] == OUTCOME_CELLS and self.counts.ndim > len(OUTCOME_CELLS) + 1

    def plain(self) -> CountedRows:
        """Which models were right: [tables, num_groups, 2, 2].

        A plain cell is the sum of two cells of outcomes, those of either label, and holds the
        noise of both.

        Raises:
            FairnessError: if the counts are no tables.
        """
        if not self.has_outcomes:
            return CountedRows(
                fairness.stack_tables(self.counts, noisy=self.noise is not None), self.noise
            )
        counts = fairness.stack_outcomes(self.counts, noisy=self.noise is not None)
        rate, cells = "accuracy", fairness.RATES["accuracy"][1]
        noise = None if self.noise is None else self.noise.times(cells)
        return CountedRows(fairness.rate_tables(counts, rate), noise)


def stored_rows(stored: JsonDict) -> CountedRows:
    """Read the test rows' tables, one a client."""
    return _read(stored["test"], stored, "noise")


def _training_rows(stored: JsonDict) -> CountedRows:
    """Read the total over the training rows of those who were asked, as one table."""
    return _read([stored["train_total"]], stored, "train_noise")


def _read(counts: ArrayLike, stored: JsonDict, noise: str) -> CountedRows:
    described = TableNoise.from_json(stored[noise]) if noise in stored else None
    return CountedRows(np.array(counts, dtype=np.int64), described)


def fairness_of_tables(stored: JsonDict) -> JsonDict:
    """Compute the fairness summary from the content of tables.json.

    Where clients' noise hides even how many rows there are, or all rows are of one group, there
    is no figure, and `no_figure_because` says so. Of two classes `outcomes` says how often either
    model predicts the second of them in every group.

    Raises:
        FairnessError: if the tables are damaged.
    """
    test, training = stored_rows(stored), _training_rows(stored)
    plain, other = test.plain(), training.plain()
    try:
        found = fairness.summarize(
            plain.counts,
            stored["names"],
            _randomness(stored),
            other=other.counts,
            other_name="training rows",
            group=str(stored["group"]),
            confidence=float(stored["confidence"]),
            resamples=int(stored["resamples"]),
            noise=plain.noise,
            other_noise=other.noise,
        ).to_json()
    except FairnessError as error:
        if test.noise is None and _groups_with_rows(plain.counts) > 1:
            raise
        noise = {} if test.noise is None else {"noise": stored["noise"]}
        return {"no_figure_because": str(error), "accuracy": {}, **noise}
    if "classes" in stored:
        found["outcomes"] = _outcomes(stored, test, training)
    return found


def _outcomes(stored: JsonDict, test: CountedRows, training: CountedRows) -> JsonDict:
    """Rates of predicting the second class, or why there are none."""
    found: JsonDict = {"positive_class": str(stored["classes"][1])}
    if not test.has_outcomes:
        return found | {"no_figure_because": BY_CLASS}
    try:
        summary = fairness.summarize_outcomes(
            test.counts,
            stored["names"],
            _randomness(stored),
            other=training.counts,
            other_name="training rows",
            group=str(stored["group"]),
            confidence=float(stored["confidence"]),
            resamples=int(stored["resamples"]),
            noise=test.noise,
            other_noise=training.noise,
        )
    except FairnessError as error:
        return found | {"no_figure_because": str(error)}
    return found | summary.to_json()


def _randomness(stored: JsonDict) -> SimulationRandomness:
    return SimulationRandomness(int(stored["seed"]), "fairness")


def _groups_with_rows(counts: Counts) -> int:
    return int((counts.sum(axis=(0, 2, 3)) > 0).sum())
