"""What an analysis must know of the noise that clients add to their count tables.

A description only: noise that protects is drawn elsewhere, from a source that nobody can repeat.
Every cell of every table gets independent integer noise, symmetric about zero, so noisy counts are
unbiased, may be negative, and still add up.

Sources: Ghosh, Roughgarden & Sundararajan 2009 (discrete Laplace, there "geometric"); Canonne,
Kamath & Steinke 2020 (discrete Gaussian).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedprune.errors import FairnessError
from fedprune.fairness.arguments import check_whole

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAX_DEVIATION = 1e5  # of sums whose distribution is tabulated, out to a dozen deviations
FEW_DRAWS = 16  # sums of fewer are tabulated however wide they are


def _laplace(values: Floats, scale: float) -> Floats:
    return np.exp(-np.abs(values) / scale)


def _gaussian(values: Floats, scale: float) -> Floats:
    return np.exp(-(values**2) / (2 * scale**2))


# Chances up to a common factor: [values] at integers, of this scale.
KINDS: dict[str, Callable[[Floats, float], Floats]] = {
    "discrete-laplace": _laplace,
    "discrete-gaussian": _gaussian,
}


@dataclass(frozen=True)
class TableNoise:
    """Independent integer noise in every cell of every client's table.

    Attributes:
        kind: "discrete-laplace", chances proportional to exp(-|k| / scale), or
            "discrete-gaussian", proportional to exp(-k^2 / (2 scale^2)).
        scale: of one draw.
        draws: independent draws that add up in each cell; more than 1 where each of several
            parties adds its part, or where cells were added up.
        clipped_to: rows that a client's table was cut down to (see `clip_table`); None where
            tables hold all rows.
    """

    kind: str
    scale: float
    draws: int = 1
    clipped_to: int | None = None

    def __post_init__(self) -> None:
        """Refuse what describes no noise.

        Raises:
            FairnessError: if the kind is unknown, a number is out of range, or draws or rows are
                not whole.
        """
        if self.kind not in KINDS:
            raise FairnessError(f"noise must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not isinstance(self.scale, Real) or not 0 < self.scale <= MAX_DEVIATION:
            raise FairnessError(
                f"the scale of noise must be in (0, {MAX_DEVIATION:g}], got {self.scale!r}"
            )
        check_whole(self.draws, "draws of noise", 1)
        if self.clipped_to is not None:
            check_whole(self.clipped_to, "clipped_to, in rows,", 1)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TableNoise:
        """Read back what `to_json` gave.

        Raises:
            FairnessError: if a key is missing or unknown, or a value is no noise.
        """
        unknown = set(stored) - {"kind", "scale", "draws", "clipped_to"}
        if unknown or not {"kind", "scale"} <= set(stored):
            raise FairnessError(f"noise needs a kind and a scale, got {sorted(stored)}")
        draws, clipped = stored.get("draws", 1), stored.get("clipped_to")
        return cls(str(stored["kind"]), stored["scale"], draws, clipped)

    def to_json(self) -> dict[str, Any]:
        """Give plain strings and numbers."""
        return asdict(self)

    @property
    def variance(self) -> float:
        """Variance of the noise in one cell."""
        first, chances = _one_draw(self.kind, self.scale)
        values = first + np.arange(len(chances))
        return self.draws * float(chances @ values**2)

    @property
    def _is_wide(self) -> bool:
        """Whether a sum of many draws is so wide that it is normal: tables would only be large."""
        return self.draws >= FEW_DRAWS and self.variance > MAX_DEVIATION**2

    def times(self, cells: int) -> TableNoise:
        """Describe the noise in the sum of `cells` cells."""
        return replace(self, draws=self.draws * cells)

    def quantile(self, chance: float) -> int:
        """Give the smallest k that the noise in one cell stays at or below with this chance.

        Raises:
            FairnessError: if the chance is not in (0, 1).
        """
        if not 0 < chance < 1:
            raise FairnessError(f"chance must be in (0, 1), got {chance}")
        if self._is_wide:
            return math.ceil(float(stats.norm.ppf(chance)) * math.sqrt(self.variance))
        first, cumulated = _sum_of_draws(self.kind, self.scale, self.draws)
        return first + int(np.searchsorted(cumulated, chance))

    def sample(self, shape: tuple[int, ...], generator: np.random.Generator) -> Integers:
        """Draw noise for an analysis or a simulation: [*shape] int64. It protects nobody."""
        if self._is_wide:
            drawn = generator.normal(0.0, math.sqrt(self.variance), shape)
            return np.rint(drawn).astype(np.int64)
        first, cumulated = _sum_of_draws(self.kind, self.scale, self.draws)
        places = np.searchsorted(cumulated, generator.random(shape), side="right")
        return first + np.minimum(places, len(cumulated) - 1).astype(np.int64)


def table_sensitivity(unit: str, relation: str, most_rows: int | None = None) -> int:
    """Give how far a count table can move in l1: what the scale of the noise is divided by.

    One record is in one cell: adding or removing it moves the table by 1, replacing it by 2. A
    client's whole table moves by the rows it may hold, `most_rows` (see `clip_table`), or twice.

    Args:
        unit: "record" or "client".
        relation: "add-or-remove" or "replacement".
        most_rows: for clients, the rows that tables are clipped to.

    Raises:
        FairnessError: if a word is unknown or clients' tables are not clipped to a whole number of
            rows.
    """
    moved = {"record": 1, "client": most_rows}
    factor = {"add-or-remove": 1, "replacement": 2}
    if unit not in moved or relation not in factor:
        raise FairnessError(
            f"sensitivity is known for {', '.join(moved)} under {', '.join(factor)}, got {unit!r} "
            f"under {relation!r}"
        )
    rows = check_whole(moved[unit], "most_rows of the tables of whole clients", 1)
    return factor[relation] * rows


@lru_cache(maxsize=64)
def _one_draw(kind: str, scale: float) -> tuple[int, Floats]:
    reach = math.ceil(45 * scale) + 2  # e^-45 is far below the rounding of a sum of chances
    chances = KINDS[kind](np.arange(-reach, reach + 1, dtype=np.float64), scale)
    return -reach, chances / chances.sum()


@lru_cache(maxsize=64)
def _sum_of_draws(kind: str, scale: float, draws: int) -> tuple[int, Floats]:
    """First value and cumulated chances of a sum of draws, by the Fourier transform."""
    first, chances = _one_draw(kind, scale)
    values = first + np.arange(len(chances))
    if draws == 1:
        return first, np.cumsum(chances)
    deviation = math.sqrt(draws * float(chances @ values**2))
    half = 2 ** math.ceil(math.log2(12 * deviation - first))
    wrapped = np.zeros(2 * half)
    wrapped[values % (2 * half)] = chances
    total = np.fft.irfft(np.fft.rfft(wrapped) ** draws, 2 * half)
    ordered = np.clip(np.roll(total, half), 0, None)
    return -half, np.cumsum(ordered / ordered.sum())
