"""What one test of an implementation found."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TestOutcome:
    """One test of a privacy claim against the code that runs.

    Attributes:
        test: its name.
        claim: what should be so, in words.
        claimed: the figure that the claim gives.
        found: the figure that the draws give.
        p_value: how probable what was found, or worse, is at most if the claim is true.
        draws: how many reports (or pairs of them) it rests on.
        detail: how it was found, in words.
    """

    __test__ = False  # not a test case of pytest's

    test: str
    claim: str
    claimed: float
    found: float
    p_value: float
    draws: int
    detail: str

    def alarms(self, alpha: float = 0.01) -> bool:
        """Whether the claim is rejected at this level."""
        return self.p_value <= alpha

    def to_json(self) -> dict[str, Any]:
        """Say it for programs; what is not finite becomes None."""
        return {k: None if _infinite(v) else v for k, v in asdict(self).items()}

    def sentence(self) -> str:
        """Say it for people."""
        return (
            f"{self.test}: {self.claim}; claimed {self.claimed:.4g}, found {self.found:.4g}, "
            f"p = {self.p_value:.2g} over {self.draws:,} draws ({self.detail})"
        )


def _infinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
