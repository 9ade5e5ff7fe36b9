"""What an epsilon means in words: its unit, its relation, whom one must trust, what it leaves out.

An epsilon says nothing without its unit of protection, its neighbouring relation and whom one
must trust; `Guarantee.sentence` is the only way that fedprune prints one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedprune.errors import PrivacyError
from fedprune.privacy.budgets.events import CLIENT, RECORD, RELATIONS, UNIT_OF

TRUST: Mapping[str, str] = {
    "local": "nobody: each client randomises its own report",
    "shuffle": (
        "a shuffler outside the server, which hides who sent what, and the other clients, whose "
        "reports must be honest for one to hide among them"
    ),
    "aggregate": (
        "the server to follow the protocol, though not with any client's mask, and enough of the "
        "other clients to add their share of the noise and keep what they know of others' keys"
    ),
    "record": "the client that holds the record, and nobody outside it",
    "none": "the server and everybody who reads its messages",
}
COVERS: Mapping[str, str] = {
    "local": "the mask reports alone",
    "shuffle": "all mask reports together, as they leave the shuffler",
    "aggregate": "the sum of the clients' masks alone",
    "record": "one record's influence on the scores and on the mask made from them",
    "none": "nothing",
}
DP_UPDATES = "the updates of DP-SGD training alone"


@dataclass(frozen=True)
class Guarantee:
    """An (epsilon, delta) with everything that gives it a meaning."""

    epsilon: float
    delta: float
    unit: str
    relation: str
    trust: str
    covers: str = ""

    def __post_init__(self) -> None:
        """Refuse a trust setting or a relation that has no meaning in words.

        Raises:
            PrivacyError: if either is unknown, or the unit is not the relation's.
        """
        if self.trust not in TRUST:
            raise PrivacyError(f"trust must be one of {', '.join(TRUST)}, got {self.trust!r}")
        if UNIT_OF.get(self.relation, self.unit) != self.unit or self.relation not in RELATIONS:
            raise PrivacyError(
                f"a guarantee's unit and relation must belong together, got {self.unit!r} under "
                f"{self.relation!r}"
            )

    def sentence(self) -> str:
        """Say the guarantee in words that can stand alone."""
        if self.trust == "none":
            return "no privacy claim: masks are sent as they are, in simulation only"
        return (
            f"epsilon = {self.epsilon:g}, delta = {self.delta:g} for "
            f"{self.covers or COVERS[self.trust]}; unit of protection: one {self.unit}; "
            f"neighbouring relation: {self.relation} ({RELATIONS[self.relation]}); must be "
            f"trusted: {TRUST[self.trust]}"
        )


# Kinds of message that an epsilon of each unit of protection covers, and those it need not.
RECORD_ONLY = frozenset({"record-scores", "dp-update", "record-table"})
_OF_CLIENTS = frozenset({"mask-report", "aggregate-share", "client-table"})
COVERED: Mapping[str, frozenset[str]] = {
    CLIENT: _OF_CLIENTS,
    RECORD: _OF_CLIENTS | RECORD_ONLY,
}
HARMLESS = frozenset(
    {
        "count-table-simulation",
        "margins-simulation",
        "counterfactual",
        "secure-sum-keys",
        "secure-sum-shares",
        "secure-sum-consent",
        "secure-sum-unmask",
    }
)
_NOT_COVERED: Mapping[str, str] = {
    "model-update": "model updates of training and fine-tuning rounds are sent unprotected",
    "dp-update": (
        "updates of DP-SGD training protect single records only; they say nothing about a client "
        "as a whole"
    ),
    "record-scores": (
        "masks made from noisy scores protect single records only; they say nothing about a "
        "client as a whole"
    ),
    "record-table": (
        "noised count tables protect single records only; they say nothing about a client as a "
        "whole"
    ),
    "norm-statistics": (
        "statistics for batch norms, sums over a client's rows, are sent unprotected"
    ),
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


def not_covered(kinds: Iterable[str], unit: str = CLIENT) -> list[str]:
    """Say what the epsilon of a unit of protection does not cover, from the kinds sent.

    Args:
        kinds: of message, as ledgers name them, in any number.
        unit: "client" or "record"; DP-SGD's updates and noisy scores count for a record only.
    """
    left = set(kinds) - COVERED[unit]
    return [words for kind, words in _NOT_COVERED.items() if kind in left]


def overall_epsilon(epsilon: float, kinds_sent: Iterable[str], unit: str) -> float | None:
    """Return the run's epsilon for a unit, or None once any message was sent that it leaves out."""
    return epsilon if set(kinds_sent) <= COVERED[unit] | HARMLESS else None


def overall_client_epsilon(epsilon: float, kinds_sent: Iterable[str]) -> float | None:
    """Return the run's client-level epsilon, or None once any unprotected message was sent."""
    return overall_epsilon(epsilon, kinds_sent, CLIENT)
