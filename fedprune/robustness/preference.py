"""Which of many equally good masks? The one whose network has the smaller certified bound.

Votes and scores are estimates: units whose values differ by less than the noise are as good as
each other. Among masks that keep as many units of every kind (units of one kind cost the same) and
that lose no more than a stated amount of value, a search exchanges kept and removed units of one
kind as long as a bound falls. It starts with the given mask and ends with one that is never worse
in the bound; every unit that left is matched with one within tolerance that took its place.

The bound comes as a function of the mask, so this knows nothing of models or of pruning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import RobustnessError

Mask = NDArray[np.bool_]
Vector = NDArray[np.float64]
BoundOf = Callable[[Mask], float]


@dataclass(frozen=True)
class Preference:
    """The mask that was preferred, and what it gives and takes.

    Attributes:
        mask: [units] bool, True = keep; as many units of every kind as the given one.
        bound: of the preferred mask.
        bound_before: of the given mask.
        value_lost: by how much the summed value of kept units fell.
        exchanges: units that are kept in place of others.
        evaluations: calls of the bound.
    """

    mask: Mask
    bound: float
    bound_before: float
    value_lost: float
    exchanges: int
    evaluations: int


def prefer_smaller_bound(
    mask: Mask,
    values: Vector,
    bound_of: BoundOf,
    *,
    kinds: NDArray[np.integer],
    tolerance: float | Vector = 0.0,
    total_loss: float = math.inf,
    influence: Vector | None = None,
    evaluations: int = 200,
) -> Preference:
    """Exchange units of equal value and cost for a smaller bound.

    First whole candidates: in every kind, units that are within tolerance of the threshold are
    kept in the order of their influence, smallest first. Then single exchanges, those that take
    most influence out first, each kept if the bound falls.

    Args:
        mask: [units] bool, True = keep, such as `pruning.select` gives.
        values: [units], votes or scores; higher is better.
        bound_of: certified bound of the network under a mask, such as
            `lambda mask: robustness.lipschitz(shrink(model, layout, mask), ...).upper`.
        kinds: [units] integers; units of one kind have equal cost and may replace each other.
        tolerance: a kept unit may be replaced by one whose value is less by at most this: 0 for
            ties only, about two standard deviations of a difference of votes for their noise;
            one number, or [units], of which the larger of the two counts.
        total_loss: the summed value may fall by at most this.
        influence: [units], a cheap guess at how much a unit adds to the bound, such as the norm of
            its weights; None tries exchanges in the order of values.
        evaluations: calls of `bound_of` at most, the first one included; at least 1.

    Raises:
        RobustnessError: shapes that do not match, values that are not finite, limits out of range,
            or a bound that is NaN.
    """
    slack = np.broadcast_to(np.asarray(tolerance, dtype=np.float64), values.shape)
    _check(mask, values, kinds, slack, total_loss, influence, evaluations)
    order = -values if influence is None else influence
    rules = _Rules(mask.copy(), values, kinds, slack, total_loss)
    search = _Search(rules, bound_of, evaluations)
    search.try_mask(_least_influence(mask, values, kinds, slack, order))
    moving = True
    while moving and search.evaluations < evaluations:
        moving = False
        for out, into in list(_exchanges(search.mask, values, kinds, slack, order)):
            if not search.mask[out] or search.mask[into]:
                continue  # an earlier exchange has taken one of them
            candidate = search.mask.copy()
            candidate[out], candidate[into] = False, True
            moving |= search.try_mask(candidate)
            if search.evaluations >= evaluations:
                break
    return search.result()


def equally_good(
    given: Mask,
    candidate: Mask,
    values: Vector,
    *,
    kinds: NDArray[np.integer],
    tolerance: float | Vector = 0.0,
    total_loss: float = math.inf,
) -> bool:
    """Whether `prefer_smaller_bound` may give a mask for `given`; no bound is looked at.

    Args:
        given: [units] bool, the mask that the search began with.
        candidate: [units] bool, the one that it ended with.
        values: As of `prefer_smaller_bound`.
        kinds: As of `prefer_smaller_bound`.
        tolerance: As of `prefer_smaller_bound`.
        total_loss: As of `prefer_smaller_bound`.

    Raises:
        RobustnessError: as `prefer_smaller_bound` for arguments that do not fit.
    """
    slack = np.broadcast_to(np.asarray(tolerance, dtype=np.float64), values.shape)
    _check(given, values, kinds, slack, total_loss, None, 1)
    if candidate.shape != given.shape or candidate.dtype != np.bool_:
        return False
    return _Rules(given, values, kinds, slack, total_loss).allow(candidate)


@dataclass(frozen=True)
class _Rules:
    """Which masks are as good as the given one."""

    given: Mask
    values: Vector
    kinds: NDArray[np.integer]
    slack: Vector
    total_loss: float

    def allow(self, candidate: Mask) -> bool:
        """Every unit that left can be matched with one of its kind that is within tolerance."""
        lost = float(self.values[self.given].sum() - self.values[candidate].sum())
        if lost > self.total_loss * (1 + 1e-12):
            return False
        left, entered = self.given & ~candidate, candidate & ~self.given
        return all(
            self._match(np.flatnonzero(left & same), np.flatnonzero(entered & same))
            for same in (self.kinds == kind for kind in np.unique(self.kinds[left | entered]))
        )

    def _match(self, left: NDArray[np.intp], entered: NDArray[np.intp]) -> bool:
        """In the order of values, which makes the largest difference as small as it can be."""
        if len(left) != len(entered):
            return False
        left = left[np.argsort(self.values[left], kind="stable")]
        entered = entered[np.argsort(self.values[entered], kind="stable")]
        lost = self.values[left] - self.values[entered]
        return bool((lost <= np.maximum(self.slack[left], self.slack[entered])).all())


class _Search:
    """The best mask so far and the calls spent on it."""

    def __init__(self, rules: _Rules, bound_of: BoundOf, limit: int) -> None:
        self.mask, self._rules, self._bound_of = rules.given, rules, bound_of
        self._limit, self.evaluations = limit, 0
        self.bound = self.before = self._evaluate(self.mask)

    def try_mask(self, candidate: Mask) -> bool:
        """Take a mask over if it is allowed and its bound is smaller."""
        known = bool((candidate == self.mask).all())
        if known or self.evaluations >= self._limit or not self._rules.allow(candidate):
            return False
        bound = self._evaluate(candidate)
        if bound >= self.bound:
            return False
        self.mask, self.bound = candidate, bound
        return True

    def result(self) -> Preference:
        """Tell what was found and what it cost."""
        given, values = self._rules.given, self._rules.values
        lost = float(values[given].sum() - values[self.mask].sum())
        exchanges = int((given & ~self.mask).sum())
        return Preference(self.mask, self.bound, self.before, lost, exchanges, self.evaluations)

    def _evaluate(self, mask: Mask) -> float:
        self.evaluations += 1
        bound = float(self._bound_of(mask.copy()))
        if math.isnan(bound):
            raise RobustnessError("the bound of a mask is NaN")
        return bound


def _least_influence(
    mask: Mask, values: Vector, kinds: NDArray[np.integer], slack: Vector, order: Vector
) -> Mask:
    """In every kind, keep the units of least influence among those near the threshold."""
    result = mask.copy()
    for kind in np.unique(kinds):
        units = np.flatnonzero(kinds == kind)
        kept, removed = units[mask[units]], units[~mask[units]]
        if not len(kept) or not len(removed):
            continue
        best_out, worst_in = values[removed].max(), values[kept].min()
        near_in = kept[values[kept] - best_out <= slack[kept]]
        near_out = removed[worst_in - values[removed] <= slack[removed]]
        near = np.concatenate([near_in, near_out])
        if not len(near_in) or not len(near_out):
            continue
        chosen = near[np.argsort(order[near], kind="stable")[: len(near_in)]]
        result[near], result[chosen] = False, True
    return result


def _exchanges(
    mask: Mask, values: Vector, kinds: NDArray[np.integer], slack: Vector, order: Vector
) -> Iterator[tuple[int, int]]:
    """Yield (out, into) pairs that the tolerance allows, the largest gain of influence first."""
    pairs = []
    for kind in np.unique(kinds):
        units = np.flatnonzero(kinds == kind)
        kept, removed = units[mask[units]], units[~mask[units]]
        lost = values[kept][:, None] - values[removed]
        allowed = lost <= np.maximum(slack[kept][:, None], slack[removed])
        gains = order[kept][:, None] - order[removed]
        for i, j in zip(*np.nonzero(allowed), strict=True):
            pairs.append((-float(gains[i, j]), int(kept[i]), int(removed[j])))
    yield from ((out, into) for _, out, into in sorted(pairs))


def _check(
    mask: Mask, values: Vector, kinds: NDArray[np.integer], slack: Vector, total_loss: float,
    influence: Vector | None, evaluations: int,
) -> None:  # fmt: skip
    given = [values, kinds, *([] if influence is None else [influence])]
    if mask.ndim != 1 or mask.dtype != np.bool_ or any(one.shape != mask.shape for one in given):
        raise RobustnessError(
            f"mask [units] bool, values, kinds and influence must have one shape, got "
            f"{mask.shape} {mask.dtype} and {[one.shape for one in given]}"
        )
    if not np.isfinite(values).all() or (influence is not None and np.isnan(influence).any()):
        raise RobustnessError("values and influence must be finite")
    if not (slack >= 0).all() or math.isnan(total_loss) or total_loss < 0 or evaluations < 1:
        raise RobustnessError(
            f"tolerance and total_loss must be at least 0 and evaluations at least 1, got "
            f"{float(np.min(slack))}, {total_loss} and {evaluations}"
        )
