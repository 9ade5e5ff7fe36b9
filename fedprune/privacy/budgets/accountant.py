"""What was released, relation by relation, and what that means: totals for display.

Totals of different neighbouring relations are never added. A client-level report also counts at
record level (`COUNTS_UNDER`); a record-level event says nothing about the client.

An accountant displays; what refuses is a filter. `epsilon` composes tightly and holds for a
schedule fixed beforehand; `odometer` counts in a budget's own currency, in which a filter also
holds for events chosen after seeing earlier answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from fedprune.errors import PrivacyError
from fedprune.privacy.budgets._schedule import Events
from fedprune.privacy.budgets.accounting import Budget
from fedprune.privacy.budgets.composition import epsilon_of
from fedprune.privacy.budgets.events import COUNTS_UNDER, RECORD, RELATIONS, UNIT_OF, Event
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.budgets.guarantees import COVERED, RECORD_ONLY, TRUST, not_covered


@dataclass(frozen=True)
class Release:
    """Messages of one kind that were sent under one relation.

    Attributes:
        kind: of message, as ledgers name it.
        relation: the neighbouring relation of its guarantee; "unprotected" or "no-charge" for
            messages without one.
        event: what ran; None without a guarantee.
        count: how many times.
    """

    kind: str
    relation: str
    event: Event | None
    count: int = 1

    def __post_init__(self) -> None:
        """Refuse what has a guarantee without a relation, or the other way round.

        Raises:
            PrivacyError: if relation and event do not belong together, or the count is no count.
        """
        if self.relation not in RELATIONS or (self.relation in UNIT_OF) != (self.event is not None):
            raise PrivacyError(
                f"a release under {self.relation!r} cannot have the event {self.event!r}"
            )
        if isinstance(self.count, bool) or self.count != int(self.count) or self.count < 1:
            raise PrivacyError(f"a count must be a whole number of at least 1, got {self.count!r}")


@dataclass(frozen=True)
class Accountant:
    """A history of releases; `compose` returns a longer one."""

    history: tuple[Release, ...] = ()

    def compose(self, *releases: Release) -> Accountant:
        """Add releases."""
        return replace(self, history=(*self.history, *releases))

    @property
    def relations(self) -> tuple[str, ...]:
        """The relations under which anything counts."""
        own = {release.relation for release in self.history}
        return tuple(r for r in UNIT_OF if any(r in COUNTS_UNDER.get(name, ()) for name in own))

    def events(self, relation: str) -> Events:
        """What counts under a relation."""
        return [
            (release.event, release.count)
            for release in self.history
            if release.event is not None and relation in COUNTS_UNDER[release.relation]
        ]

    def kinds(self) -> frozenset[str]:
        """All kinds of message that were sent."""
        return frozenset(release.kind for release in self.history)

    def epsilon(self, relation: str, delta: float) -> float:
        """Compose tightly; valid where the schedule was fixed beforehand (see `epsilon_of`)."""
        return epsilon_of(self.events(relation), delta, relation)

    def spent(self, budget: Budget) -> Fraction:
        """Add up charges in a budget's currency, exactly.

        Raises:
            PrivacyError: if this currency cannot express an event.
        """
        kept = filter_of(budget)
        charges = (kept.charge(event) * count for event, count in self.events(budget.relation))
        return sum(charges, Fraction(0))

    def odometer(self, budget: Budget) -> float:
        """The epsilon that `spent` means at the budget's delta."""
        return filter_of(budget).epsilon_of(self.spent(budget))

    def sentences(self, deltas: Mapping[str, float], trust: str) -> list[str]:
        """Say one sentence per relation: the total, what it covers, and what it leaves out.

        Args:
            deltas: the delta at which each relation's epsilon is stated.
            trust: the trust setting of the mask reports.

        Raises:
            PrivacyError: if the trust setting is unknown or a relation has no delta.
        """
        if trust not in TRUST:
            raise PrivacyError(f"trust must be one of {', '.join(TRUST)}, got {trust!r}")
        missing = [relation for relation in self.relations if relation not in deltas]
        if missing:
            raise PrivacyError(f"no delta was given for {', '.join(missing)}")
        return [self._sentence(relation, deltas[relation], trust) for relation in self.relations]

    def _sentence(self, relation: str, delta: float, trust: str) -> str:
        unit = UNIT_OF[relation]
        covered = [kind for kind in sorted(COVERED[unit]) if kind in self.kinds()]
        left_out = not_covered(self.kinds(), unit)
        trusted = [TRUST[trust]]
        if unit == RECORD and trust != "record" and RECORD_ONLY & self.kinds():
            trusted.append(TRUST["record"])
        return (
            f"per {unit}: epsilon = {self.epsilon(relation, delta):.6g}, delta = {delta:g} in all; "
            f"neighbouring relation: {relation} ({RELATIONS[relation]}); covers: "
            f"{_listed(covered)}; does not cover: {_listed(left_out)}; must be trusted: "
            f"{'; '.join(trusted)}"
        )


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "nothing"
