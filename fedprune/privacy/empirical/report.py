"""Claimed, analytic and empirical epsilon side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedprune.errors import PrivacyError
from fedprune.privacy.empirical.limits import check_level
from fedprune.privacy.events import RELATIONS, UNIT_OF


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
        alpha: see there.
        delta: of all three.
        draws: reports, or canaries, that the bound rests on.
        statistic: which bound, with its counts.
        relation: a key of `RELATIONS`; it also gives the unit of protection.
        trust: who must be trusted, as in the configuration.
    """

    subject: str
    claimed: float
    analytic: float | None
    empirical: float
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

    @property
    def unit(self) -> str:
        """Unit of protection."""
        return UNIT_OF[self.relation]

    @property
    def holds(self) -> bool:
        """Whether neither the probabilities nor the draws contradict the claim."""
        return self.empirical <= self.claimed and (self.analytic or 0.0) <= self.claimed

    def sentence(self) -> str:
        """Say it for people, with unit, relation and trust."""
        exact = "" if self.analytic is None else f"its own probabilities give {self.analytic:.6g}, "
        verdict = "" if self.holds else "; THE CLAIM DOES NOT HOLD"
        return (
            f"{self.subject}: claimed epsilon = {self.claimed:g} at delta = {self.delta:g} per "
            f"{self.unit} ({RELATIONS[self.relation]}), trust = {self.trust}; {exact}"
            f"{self.draws:,} draws show at least {self.empirical:.4g}, an honest mechanism more than "
            f"it has with probability {self.alpha:g} at most ({self.statistic}){verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        """Say it for programs."""
        meaning = RELATIONS[self.relation]
        return asdict(self) | {"unit": self.unit, "meaning": meaning, "holds": self.holds}


def table(audits: Sequence[EmpiricalAudit]) -> str:
    """Set audits under each other, one line each, with a heading."""
    titles = ("subject", "unit", "trust", "claimed", "analytic", "at least", "alpha", "draws")
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
        f"{audit.empirical:.4f}" + ("" if audit.holds else " > CLAIM"),
        f"{audit.alpha:g}",
        f"{audit.draws:,}",
    )
