"""What was sent (events) and what it means (guarantees), always with its three qualifiers.

An epsilon says nothing without its unit of protection, its neighbouring relation and whom one
must trust; `Guarantee.sentence` is the only way that fedprune prints one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from fedprune.errors import PrivacyError

CLIENT = "client"
REPLACEMENT = "replacement"
UNPROTECTED = "unprotected"

RELATIONS: Mapping[str, str] = {
    REPLACEMENT: "any change of one client's whole data",
    UNPROTECTED: "no guarantee",
}
TRUST: Mapping[str, str] = {
    "local": "nobody: each client randomises its own report",
    "none": "the server and everybody who reads its messages",
}


@dataclass(frozen=True)
class Budget:
    """What a client allows in one run: the sum of its events' epsilon may not exceed it."""

    epsilon: float
    delta: float = 0.0
    unit: str = CLIENT
    relation: str = REPLACEMENT

    def __post_init__(self) -> None:
        """Refuse budgets that promise nothing.

        Raises:
            PrivacyError: if epsilon is not positive and finite, or the rest is not supported.
        """
        if not 0 < self.epsilon < float("inf"):
            raise PrivacyError(f"a budget's epsilon must be above 0, got {self.epsilon!r}")
        if self.delta != 0:
            raise PrivacyError(
                f"this budget composes pure epsilon: delta must be 0, got {self.delta!r}"
            )
        if self.unit != CLIENT or self.relation != REPLACEMENT:
            raise PrivacyError(
                f"a budget must be per client under replacement, got {self.unit}/{self.relation}"
            )


@dataclass(frozen=True)
class Guarantee:
    """An (epsilon, delta) with everything that gives it a meaning."""

    epsilon: float
    delta: float
    unit: str
    relation: str
    trust: str

    def sentence(self) -> str:
        """Say the guarantee in words that can stand alone."""
        if self.trust == "none":
            return "no privacy claim: masks are sent as they are, in simulation only"
        return (
            f"epsilon = {self.epsilon:g}, delta = {self.delta:g} for the mask reports alone; "
            f"unit of protection: one {self.unit}; neighbouring relation: {self.relation} "
            f"({RELATIONS[self.relation]}); must be trusted: {TRUST[self.trust]}"
        )


def compose_pure(epsilons: Iterable[float]) -> Fraction:
    """Add pure epsilons exactly: basic composition, valid for adaptively chosen events.

    A filter must not be fooled by rounding, so the sum is a rational number (Dwork et al. 2006;
    a pure-epsilon sum is a valid privacy filter, Rogers et al. 2016).
    """
    return sum((Fraction(epsilon) for epsilon in epsilons), Fraction(0))


def not_covered(kinds: Iterable[str]) -> list[str]:
    """Say what the mask reports' epsilon does not cover, from the kinds of message sent."""
    sent = set(kinds)
    words = {
        "model-update": "model updates of training and fine-tuning rounds are sent unprotected",
        "count-table": "count tables of evaluation rounds are sent unprotected",
        "raw-mask": "masks are sent without noise",
        "count-table-simulation": (
            "count tables are computed inside this simulation only and leave no client"
        ),
        "margins-simulation": (
            "certificate margins of single examples are computed inside this simulation only and "
            "leave no client"
        ),
        "counterfactual": (
            "baselines (votes without noise, pooled scores, and their fine-tuning) exist inside "
            "this simulation only"
        ),
    }
    return [words[kind] for kind in words if kind in sent]


def overall_client_epsilon(epsilon: float, kinds_sent: Iterable[str]) -> float | None:
    """Return the run's client-level epsilon, or None once any unprotected message was sent."""
    protected = {"mask-report"}
    harmless = {"count-table-simulation", "margins-simulation", "counterfactual"}
    return epsilon if set(kinds_sent) <= protected | harmless else None
