"""What an audit found: one claim a line, and whether it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fedprune.errors import FedpruneError


@dataclass(frozen=True)
class Finding:
    """One claim that was checked.

    Attributes:
        part: "privacy", "fairness", "robustness" or "model".
        claim: what should be so.
        holds: whether it is.
        detail: the figures, or where it fails.
    """

    part: str
    claim: str
    holds: bool
    detail: str


@dataclass(frozen=True)
class Audit:
    """All findings of one audit, and what it could not see."""

    findings: tuple[Finding, ...]
    unseen: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return all(finding.holds for finding in self.findings)

    def lines(self) -> Iterator[str]:
        """Say it for people."""
        for finding in self.findings:
            mark = "holds " if finding.holds else "BROKEN"
            yield f"{mark}  {finding.part}: {finding.claim} ({finding.detail})"
        for sentence in self.unseen:
            yield f"unseen  {sentence}"
        yield "every claim checked holds" if self.holds else "at least one claim does not hold"

    def to_json(self) -> dict[str, Any]:
        """Say it for programs."""
        return {
            "holds": self.holds,
            "findings": [asdict(finding) for finding in self.findings],
            "unseen": list(self.unseen),
        }


def check(part: str, claim: str, look: Callable[[], str | None], detail: str = "") -> Finding:
    """Make a finding: `look` returns None where the claim holds, else where it fails.

    What cannot be read at all is a broken claim, not a crash of the audit.
    """
    try:
        failure = look()
    except FedpruneError as error:
        failure = str(error)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        failure = f"the run's files are damaged: {error!r}"
    return Finding(part, claim, failure is None, detail if failure is None else failure)


def same(name: str, claimed: Any, found: Any, tolerance: float = 1e-9) -> str | None:
    """Compare two JSON values; None where they agree, else a sentence that says where not."""
    if isinstance(claimed, dict) and isinstance(found, dict):
        if claimed.keys() != found.keys():
            return f"{name} has the fields {sorted(claimed)}, not {sorted(found)}"
        pairs = [(f"{name}.{key}", claimed[key], found[key]) for key in claimed]
    elif isinstance(claimed, list) and isinstance(found, list):
        if len(claimed) != len(found):
            return f"{name} has {len(claimed)} entries, not {len(found)}"
        pairs = [
            (f"{name}[{i}]", a, b) for i, (a, b) in enumerate(zip(claimed, found, strict=True))
        ]
    elif _is_number(claimed) and _is_number(found):
        close = abs(claimed - found) <= tolerance * max(1.0, abs(found))
        return None if close else f"{name} is stated as {claimed!r}, recomputed as {found!r}"
    else:
        alike = claimed == found and isinstance(claimed, bool) == isinstance(found, bool)
        return None if alike else f"{name} is stated as {claimed!r}, found {found!r}"
    return next((w for w in (same(*pair, tolerance=tolerance) for pair in pairs) if w), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
