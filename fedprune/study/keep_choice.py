"""How small may the model become before a group pays for it? Asked of a sweep's finished runs.

Of runs that differ in nothing but how much they keep, each is tested, from the one that keeps most
down, for "the gap between groups grew by the tolerance or more" (`fairness.gap_test`), and the
first that fails ends it (`fairness.choose_keep`). The order is fixed by the keep fractions alone,
so the chance to accept any run whose gap did grow by so much is at most the level, however many
runs there are. That is over rows and clients drawn anew; the trained models are taken as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedprune import fairness
from fedprune.config import Scalar
from fedprune.errors import ConfigError, FairnessError, RunError
from fedprune.randomness import SimulationRandomness
from fedprune.runs import RunFolder, stored_rows
from fedprune.study.grid import KEEPS, Cell, Grid

JsonDict = dict[str, Any]


@dataclass(frozen=True)
class Tested:
    """One run's test.

    Attributes:
        cell: name of its cell.
        keep: what it keeps.
        accepted: whether it and all before it passed.
        p_value: of "the gap grew by the tolerance or more"; None where it was not tested.
        upper_limit: one-sided limit of the gap's change at 1 - level; None likewise.
        left_out: groups with too few rows to be tested: nothing is known of them.
        reason: why there was no test; "" where there was.
    """

    cell: str
    keep: float
    accepted: bool
    p_value: float | None = None
    upper_limit: float | None = None
    left_out: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Choice:
    """What was chosen among runs that differ in what they keep alone.

    Attributes:
        settings: the other swept keys' values.
        seed: of the runs.
        keep: the smallest fraction that was accepted; None where none was.
        tested: the runs in order, down to the first that was not accepted.
        untested: fractions after that one.
    """

    settings: dict[str, Scalar]
    seed: int
    keep: float | None
    tested: tuple[Tested, ...]
    untested: tuple[float, ...]

    def to_json(self) -> JsonDict:
        """Give plain values."""
        return asdict(self)


def swept_keep(grid: Grid) -> str:
    """The `prune.keep_*` key that a sweep is over.

    Raises:
        ConfigError: if it is over none, or over several.
    """
    found = [axis.key for axis in grid.axes if axis.key in KEEPS]
    if len(found) != 1:
        raise ConfigError(
            f"a choice needs a sweep over one of {', '.join(KEEPS)}, got one over "
            f"{', '.join(axis.key for axis in grid.axes)}"
        )
    return found[0]


def choose_among(
    grid: Grid,
    runs: Sequence[tuple[Cell, int, RunFolder | None]],
    *,
    tolerance: float,
    level: float = 0.05,
) -> list[Choice]:
    """Choose for every combination of the other settings and every seed.

    Args:
        grid: of the sweep.
        runs: its cells' seeds, each with its run's folder, or None where that is not finished.
        tolerance: growth of the gap that is too much, in accuracy (0.02 = 2 points).
        level: chance of accepting any run beyond the tolerance.

    Raises:
        ConfigError: if the sweep is not over what is kept.
        FairnessError: if the tolerance or level is out of range.
        RunError: if a run has no count tables.
    """
    if not 0 <= tolerance <= 2 or not 0 < level < 0.5:
        raise FairnessError(
            f"tolerance must be in [0, 2] and level in (0, 0.5), got {tolerance} and {level}"
        )
    key = swept_keep(grid)
    series: dict[tuple[object, ...], list[tuple[Cell, int, RunFolder | None]]] = {}
    for cell, seed, run in runs:
        others = tuple((name, value) for name, value in cell.settings.items() if name != key)
        series.setdefault((*others, seed), []).append((cell, seed, run))
    return [_choose(key, members, tolerance, level) for members in series.values()]


def _choose(
    key: str,
    members: Sequence[tuple[Cell, int, RunFolder | None]],
    tolerance: float,
    level: float,
) -> Choice:
    ordered = sorted(members, key=lambda member: -float(member[0].settings[key]))
    keeps = [float(cell.settings[key]) for cell, _, _ in ordered]
    tested: list[Tested] = []
    for (cell, _, run), keep in zip(ordered, keeps, strict=True):
        tested.append(_test(cell, keep, run, tolerance, level))
        if not tested[-1].accepted:
            break
    p_values = [1.0 if one.p_value is None else one.p_value for one in tested]
    p_values += [math.nan] * (len(keeps) - len(tested))
    first, seed, _ = ordered[0]
    return Choice(
        {name: value for name, value in first.settings.items() if name != key},
        seed,
        fairness.choose_keep(keeps, p_values, level=level).keep,
        tuple(tested),
        tuple(keeps[len(tested) :]),
    )


def _test(cell: Cell, keep: float, run: RunFolder | None, tolerance: float, level: float) -> Tested:
    if run is None:
        return Tested(cell.name, keep, False, reason="the run is not finished")
    if not run.has("tables.json"):
        raise RunError(f"{run.path} has no count tables: it ran with evaluate.tables = 'off'")
    stored = run.read_json("tables.json")
    try:
        rows = stored_rows(stored).plain()
        found = fairness.gap_test(
            rows.counts,
            stored["names"],
            SimulationRandomness(int(stored["seed"]), "keep choice"),
            tolerance=tolerance,
            confidence=1 - level,
            resamples=int(stored["resamples"]),
            noise=rows.noise,
        )
    except FairnessError as error:
        return Tested(cell.name, keep, False, reason=str(error))
    accepted = found.p_value <= level
    return Tested(cell.name, keep, accepted, found.p_value, found.upper_limit, found.left_out)
