"""What the runs of a sweep would cost the same real clients, had they answered all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedprune import runs
from fedprune.privacy import Budget
from fedprune.privacy.budgets.accountant import Accountant
from fedprune.privacy.budgets.events import RELATIONS, UNIT_OF, PureEvent
from fedprune.runs import RunFolder

JsonDict = dict[str, Any]
_LARGE = 1e9  # an epsilon that no sweep reaches


def all_answered(folders: Sequence[RunFolder]) -> list[JsonDict]:
    """Compose what each run's worst client spent, relation by relation.

    The runs of a sweep are alternatives: a ledger of its own counts for each. Nobody may choose
    among them after having asked the same real clients all of the questions for the price of one.

    Args:
        folders: of finished runs.

    Returns:
        For every neighbouring relation its unit, the total epsilon at delta (the largest that a
        run states under the relation; 0 where everything is pure), and how many runs it covers.
    """
    found = []
    totals = [(runs.ledger_totals(folder).histories, _deltas(folder)) for folder in folders]
    for relation in UNIT_OF:
        told = [
            (_worst(histories, relation, deltas.get(relation, 0.0)), deltas)
            for histories, deltas in totals
            if any(relation in history.relations for history in histories)
        ]
        if not told:
            continue
        together = Accountant().compose(*(release for one, _ in told for release in one.history))
        pure = all(isinstance(event, PureEvent) for event, _ in together.events(relation))
        delta = 0.0 if pure else max(deltas.get(relation, 0.0) for _, deltas in told)
        found.append(
            {
                "relation": relation,
                "meaning": RELATIONS[relation],
                "unit": UNIT_OF[relation],
                "epsilon": _epsilon(together, relation, delta),
                "delta": delta,
                "runs": len(told),
            }
        )
    return found


def _epsilon(together: Accountant, relation: str, delta: float) -> float:
    if delta == 0:  # pure epsilons add up exactly
        return together.odometer(Budget(_LARGE, relation=relation))
    return together.epsilon(relation, delta)


def _worst(histories: Sequence[Accountant], relation: str, delta: float) -> Accountant:
    counted = [history for history in histories if relation in history.relations]
    if len(counted) == 1:
        return counted[0]
    return max(counted, key=lambda history: history.epsilon(relation, delta))


def _deltas(folder: RunFolder) -> dict[str, float]:
    """The delta that a run's summary states its totals at, by relation."""
    stated = folder.read_json("summary.json")["privacy"]["totals"]
    return {str(total["relation"]): float(total["delta"]) for total in stated}


def in_words(together: Sequence[JsonDict]) -> list[str]:
    """Say that the cells' epsilons are alternatives, and what they add up to otherwise."""
    if not together:
        return []
    totals = "; ".join(
        f"per {one['unit']} epsilon = {one['epsilon']:.6g}, delta = {one['delta']:g} "
        f"({one['relation']})"
        for one in together
    )
    return [
        "the epsilons of the cells are alternatives, each of a run with a ledger of its own; if "
        f"the same real clients answered all {max(one['runs'] for one in together)} runs, what "
        f"they spend would add up: {totals}"
    ]
