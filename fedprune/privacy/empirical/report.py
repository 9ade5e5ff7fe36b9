"""Claimed, analytic and empirical epsilon side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from fedprune.errors import PrivacyError
from fedprune.privacy.budgets.events import RELATIONS, UNIT_OF
from fedprune.privacy.empirical.limits import check_level
from fedprune.privacy.empirical.outcome import TestOutcome


class Evidence(Protocol):
    """What a bound can be computed from: counts of two worlds, or guesses in one run."""

    @property
    def num_draws(self) -> int:
        """Reports, or canaries."""

    def epsilon_lower(self, *, alpha: float, delta: float) -> float:
        """Bound epsilon from below."""

    def test_claim(self, claimed: float, *, delta: float) -> TestOutcome:
        """Test that epsilon is at most `claimed`."""


@dataclass(frozen=True)
class EmpiricalAudit:
    """What is claimed of a mechanism, what its probabilities give, and what its draws show.

    Attributes:
        subject: what was audited: the mechanism, or the pipeline, and where its draws came from.
        claimed: epsilon as it is stated.
        analytic: epsilon computed from the mechanism's own probabilities, rounded up; None where
            there is nothing to compute it from but the claim.
        empirical: a lower bound on epsilon from draws; the true one lies below it with
            probability at most `alpha`.
        p_value: of the claim: the smallest alpha at which the bound passes it.
        alpha: error level of the bound.
        delta: of all three.
        draws: reports, or canaries, that the bound rests on.
        statistic: what was counted, in words.
        relation: a key of `RELATIONS`; it also gives the unit of protection.
        trust: who must be trusted, as in the configuration.
    """

    subject: str
    claimed: float
    analytic: float | None
    empirical: float
    p_value: float
    alpha: float
    delta: float
    draws: int
    statistic: str
    relation: str
    trust: str

    def __post_init__(self) -> None:
        """Refuse a relation that protects nothing, or a level out of range."""
        check_level(self.alpha, self.delta)
        if self.relation not in UNIT_OF:
            raise PrivacyError(
                f"relation must be one of {', '.join(UNIT_OF)}, got {self.relation!r}"
            )

    @staticmethod
    def of(
        evidence: Evidence,
        *,
        subject: str,
        claimed: float,
        analytic: float | None,
        relation: str,
        trust: str,
        alpha: float = 0.05,
        delta: float = 0.0,
    ) -> EmpiricalAudit:
        """Set what was counted beside a claim.

        Args:
            evidence: `EventCounts` or `CanaryGuesses`.
            subject: what was audited.
            claimed: epsilon as it is stated.
            analytic: epsilon from the mechanism's own probabilities, or None.
            relation: that all three are counted under.
            trust: as in the configuration.
            alpha: error level of the bound.
            delta: of all three.

        Raises:
            PrivacyError: if the relation protects nothing, or alpha or delta is out of range.
        """
        outcome = evidence.test_claim(claimed, delta=delta)
        return EmpiricalAudit(
            subject=subject,
            claimed=claimed,
            analytic=analytic,
            empirical=evidence.epsilon_lower(alpha=alpha, delta=delta),
            p_value=outcome.p_value,
            alpha=alpha,
            delta=delta,
            draws=evidence.num_draws,
            statistic=f"{outcome.test}: {outcome.detail}",
            relation=relation,
            trust=trust,
        )

    @property
    def unit(self) -> str:
        """Unit of protection."""
        return UNIT_OF[self.relation]

    @property
    def holds(self) -> bool:
        """Whether neither the probabilities nor, at level alpha, the draws contradict the claim."""
        return self.empirical <= self.claimed and (self.analytic or 0.0) <= self.claimed

    def sentence(self) -> str:
        """Say it for people, with unit, relation and trust."""
        exact = "" if self.analytic is None else f"its own probabilities give {self.analytic:.6g}, "
        verdict = "" if self.holds else "; THE CLAIM IS CONTRADICTED"
        return (
            f"{self.subject}: claimed epsilon = {self.claimed:g} at delta = {self.delta:g} per "
            f"{self.unit} ({RELATIONS[self.relation]}), trust = {self.trust}; {exact}"
            f"{self.draws:,} draws show at least {self.empirical:.4g}, wrong with probability "
            f"{self.alpha:g} at most ({self.statistic}; p = {self.p_value:.2g}){verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        """Say it for programs."""
        meaning = RELATIONS[self.relation]
        return asdict(self) | {"unit": self.unit, "meaning": meaning, "holds": self.holds}


def table(audits: Sequence[EmpiricalAudit]) -> str:
    """Set audits under each other, one line each, with a heading."""
    titles = ("subject", "unit", "trust", "claimed", "analytic", "at least", "alpha", "p", "draws")
    rows = [titles, *map(_cells, audits)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _cells(audit: EmpiricalAudit) -> tuple[str, ...]:
    return (
        audit.subject,
        f"{audit.unit} ({audit.relation})",
        audit.trust,
        f"{audit.claimed:g}",
        "-" if audit.analytic is None else f"{audit.analytic:.6g}",
        f"{audit.empirical:.4f}",
        f"{audit.alpha:g}",
        f"{audit.p_value:.2g}" + ("" if audit.holds else " contradicted"),
        f"{audit.draws:,}",
    )
