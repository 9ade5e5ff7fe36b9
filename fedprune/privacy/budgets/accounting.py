"""What a client allows: budgets, each under one neighbouring relation and in one currency.

What refuses is a budget's filter (`fedprune.privacy.budgets.filters`); what it means in words is a
guarantee (`fedprune.privacy.budgets.guarantees`, whose names can be imported from here too).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fedprune.errors import PrivacyError
from fedprune.privacy.budgets.events import (
    ADD_REMOVE_RECORD,
    CLIENT,
    NO_CHARGE,
    RECORD,
    RELATIONS,
    REPLACEMENT,
    UNIT_OF,
    UNPROTECTED,
    Event,
)
from fedprune.privacy.budgets.guarantees import (
    COVERED,
    COVERS,
    DP_UPDATES,
    HARMLESS,
    TRUST,
    Guarantee,
    not_covered,
    overall_client_epsilon,
    overall_epsilon,
)
from fedprune.privacy.budgets.renyi import ORDERS, check_order, renyi_capacity, renyi_of

__all__ = [
    "ADD_REMOVE_RECORD",
    "CLIENT",
    "COVERED",
    "COVERS",
    "DP_UPDATES",
    "HARMLESS",
    "NO_CHARGE",
    "RECORD",
    "RELATIONS",
    "REPLACEMENT",
    "TRUST",
    "UNPROTECTED",
    "Budget",
    "Guarantee",
    "compose_pure",
    "not_covered",
    "overall_client_epsilon",
    "overall_epsilon",
]

PURE, ZCDP, RENYI = "pure", "zcdp", "renyi"
COMPOSITIONS: Mapping[str, str] = {
    PURE: "the sum of pure epsilons",
    ZCDP: "the sum of zero-concentrated rhos",
    RENYI: "the sum of Renyi divergences of one order",
}


@dataclass(frozen=True)
class Budget:
    """What a client allows under one neighbouring relation, however its events are chosen.

    Attributes:
        epsilon, delta: what all of its events together may mean.
        unit: of protection; follows from the relation.
        relation: the neighbouring relation that it is counted under.
        composition: the currency that events are charged in: "pure" (if and only if delta = 0),
            "zcdp" or "renyi". All three stay valid when later events are chosen after seeing
            earlier answers.
        order: of the Renyi divergence, fixed when the budget is made; 0 for other currencies.
    """

    epsilon: float
    delta: float = 0.0
    unit: str = ""
    relation: str = REPLACEMENT
    composition: str = PURE
    order: float = 0.0

    def __post_init__(self) -> None:
        """Refuse budgets that promise nothing.

        Raises:
            PrivacyError: if a value is out of range or contradicts another.
        """
        if isinstance(self.epsilon, bool) or not 0 < self.epsilon < math.inf:
            raise PrivacyError(
                f"a budget's epsilon must be above 0 and finite, got {self.epsilon!r}"
            )
        if self.relation not in UNIT_OF:
            raise PrivacyError(
                f"a budget's relation must be one of {', '.join(UNIT_OF)}, got {self.relation!r}"
            )
        if not self.unit:
            object.__setattr__(self, "unit", UNIT_OF[self.relation])
        if self.unit != UNIT_OF[self.relation]:
            raise PrivacyError(
                f"the unit of {self.relation} is one {UNIT_OF[self.relation]}, got {self.unit!r}"
            )
        self._check_currency()

    def _check_currency(self) -> None:
        if self.composition not in COMPOSITIONS:
            raise PrivacyError(
                f"a budget's composition must be one of {', '.join(COMPOSITIONS)}, got "
                f"{self.composition!r}"
            )
        if self.composition == PURE and self.delta != 0:
            raise PrivacyError(
                f"this budget composes pure epsilon: delta must be 0, got {self.delta!r}"
            )
        if self.composition != PURE and not 0 < self.delta < 1:
            raise PrivacyError(
                f"a budget that composes {self.composition} must have delta in (0, 1), got "
                f"{self.delta!r}"
            )
        if self.composition != RENYI and self.order != 0:
            raise PrivacyError(
                f"only composition = 'renyi' has an order, got order = {self.order!r} with "
                f"{self.composition!r}"
            )
        if self.composition == RENYI:
            check_order(self.order)

    @classmethod
    def zcdp(cls, epsilon: float, delta: float, relation: str = REPLACEMENT) -> Budget:
        """Make a budget counted in zero-concentrated rho."""
        return cls(epsilon, delta, relation=relation, composition=ZCDP)

    @classmethod
    def renyi(
        cls,
        epsilon: float,
        delta: float,
        relation: str = REPLACEMENT,
        expected: Sequence[Event] = (),
    ) -> Budget:
        """Make a budget counted in Renyi divergence, at the order that suits it best.

        Args:
            epsilon: what all events may mean together.
            delta: in (0, 1).
            relation: the neighbouring relation.
            expected: events as they are likely to come; the order leaves most room for them
                (for Gaussian noise without sampling, if none are given). Any events may follow.

        Raises:
            PrivacyError: if no order can promise anything at this epsilon and delta.
        """
        usable = {order: renyi_capacity(epsilon, delta, order) for order in ORDERS}
        usable = {order: capacity for order, capacity in usable.items() if capacity > 0}
        if not usable:
            raise PrivacyError(
                f"no Renyi order can promise epsilon = {epsilon!r} at delta = {delta!r}"
            )

        def used(order: float) -> float:
            cost = sum(renyi_of(event, order) for event in expected) if expected else order
            return cost / usable[order]

        return cls(
            epsilon, delta, relation=relation, composition=RENYI, order=min(usable, key=used)
        )

    def to_text(self) -> str:
        """Write the budget as canonical JSON, floats exactly: one budget, one text."""
        values = {k: v if isinstance(v, str) else float(v).hex() for k, v in vars(self).items()}
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Budget:
        """Read what `to_text` wrote.

        Raises:
            PrivacyError: if the text is not exactly a budget.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            numbers = {name: float.fromhex(content.pop(name)) for name in _NUMBERS}
            budget = cls(**{**content, **numbers})
        except _UNREADABLE as error:
            raise PrivacyError(f"not a budget: {text[:120]!r}") from error
        if budget.to_text() != text:
            raise PrivacyError(f"a budget is not written as budgets are: {text[:120]!r}")
        return budget


_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
_NUMBERS = ("epsilon", "delta", "order")


def compose_pure(epsilons: Iterable[float]) -> Fraction:
    """Add pure epsilons exactly: basic composition, valid for adaptively chosen events.

    A filter must not be fooled by rounding, so the sum is a rational number (Dwork et al. 2006;
    a pure-epsilon sum is a valid privacy filter, Rogers et al. 2016).
    """
    return sum((Fraction(epsilon) for epsilon in epsilons), Fraction(0))
