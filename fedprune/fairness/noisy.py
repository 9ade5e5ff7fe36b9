"""What noisy tables of counts still say: which groups are large, who holds them, how sure we are.

Whole clients: a client's noisy table is its true table plus noise that is independent of every
other client's, so noisy tables are again independent and alike, with the same mean. Resampling
them as wholes therefore carries the noise along with the differences between clients, and nothing
has to be known of it: the bootstrap of ratios of sums stays what it was.

Records within clients: a noisy table cannot be drawn from (a count may be negative), and the noise
is no sampling. The total of all tables, negative counts cut off, gives the sampling part; noise is
drawn anew from its exact distribution, once for every cell of every client, and added. Drawing
from the total instead of within clients can only widen the intervals (collapsed strata).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import FairnessError
from fedprune.fairness.counting import Counts
from fedprune.fairness.noise import TableNoise
from fedprune.fairness.tables import CELLS

Floats = NDArray[np.float64]

# A ratio's interval from its variance needs a denominator that is known: its coefficient of
# variation should be under 0.1 (Cochran 1977, Sampling Techniques, section 6.8).
MOST_VARIATION = 0.1


def decided_groups(
    tables: Counts, min_group: int, confidence: float, noise: TableNoise
) -> NDArray[np.int64]:
    """Codes of the groups that hold at least `min_group` rows beyond what noise could pretend.

    A smaller group is let through with a chance of at most 1 - confidence. Groups whose number of
    rows is uncertain by more than a tenth are left out too: no ratio to it has a fair interval.

    Args:
        tables: [num_clients, num_groups, 2, 2] noisy counts.
        min_group: rows that a figure needs.
        confidence: of the decision on one group.
        noise: in every cell of every table.
    """
    rows = tables.sum(axis=(0, 2, 3))
    total = noise.times(len(tables) * CELLS)
    known = math.sqrt(total.variance) <= MOST_VARIATION * rows
    return np.flatnonzero((rows - total.quantile(confidence) >= min_group) & known)


def check_rows(tables: Counts, noise: TableNoise) -> None:
    """Refuse tables whose noise hides how many rows they count: no ratio to them has an interval.

    Raises:
        FairnessError: if the number of rows is uncertain by more than a tenth.
    """
    rows = int(tables.sum())
    deviation = math.sqrt(noise.times(tables.size).variance)
    if deviation > MOST_VARIATION * rows:
        raise FairnessError(
            f"noise hides the rows that the tables count: about {max(0, rows):,} with a standard "
            f"deviation of {deviation:,.0f}; figures need it to be at most a tenth of the rows"
        )


def effective_holders(tables: Counts, noise: TableNoise | None = None) -> Counts:
    """Give over how many clients each group's rows are in effect spread: [num_groups].

    Kish's effective number, (sum rows)^2 / sum rows^2: as many clients of equal size would say as
    much as these. Noise is taken out of the squares; who holds no row at all cannot be seen
    through it. At least 1, at most all clients.
    """
    rows = tables.sum(axis=(2, 3)).astype(np.float64)
    total = np.maximum(rows.sum(axis=0), 1.0)
    noise_squares = 0.0 if noise is None else len(rows) * noise.times(CELLS).variance
    squares = (rows**2).sum(axis=0) - noise_squares
    effective = np.rint(total**2 / np.maximum(squares, total))
    return np.asarray(np.clip(effective, 1, len(rows)), dtype=np.int64)


def resample_noisy_records(
    tables: Counts, resamples: int, noise: TableNoise, generator: np.random.Generator
) -> Floats:
    """Draw records from the total of all tables, and noise anew for every cell of every client.

    Returns:
        Totals of every resample, about the noisy total: [resamples, num_groups, 2, 2] float64.
    """
    total = tables.sum(axis=0).reshape(-1)
    fitted = np.maximum(total, 1)  # a cell that noise made empty may still vary
    drawn = generator.multinomial(fitted.sum(), fitted / fitted.sum(), size=resamples)
    again = noise.times(len(tables)).sample((resamples, len(total)), generator)
    around = np.asarray(total + (drawn - fitted) + again, dtype=np.float64)
    return around.reshape(resamples, *tables.shape[1:])
