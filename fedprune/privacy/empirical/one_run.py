"""A lower bound on epsilon from one run with many canaries (Steinke, Nasr & Jagielski 2023).

Each of m canaries is in the run, or in one of two versions, by its own fair coin. From what the
run puts out the auditor guesses at most r of the coins. If the run is (epsilon, delta)-
differentially private with respect to one canary, then (Theorem 3.1)
    P[at least v guesses are right] <= f(v) + 2 m delta max_{i >= 1} (f(v - i) - f(v)) / i
with f(v) = P[Bin(r, e^epsilon / (1 + e^epsilon)) >= v].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from fedprune.errors import PrivacyError
from fedprune.privacy.empirical.limits import check_level
from fedprune.privacy.empirical.outcome import TestOutcome

_LARGEST_EPSILON = 64.0
_STEPS = 50


@dataclass(frozen=True)
class CanaryGuesses:
    """What an auditor guessed in one run.

    Attributes:
        canaries: m, how many coins were thrown.
        guesses: r, the largest number of guesses that could have been made; the others abstain.
        correct: v, guesses that were right.
    """

    canaries: int
    guesses: int
    correct: int

    def __post_init__(self) -> None:
        """Refuse counts that are impossible."""
        if not 0 <= self.correct <= self.guesses <= self.canaries or self.canaries < 1:
            raise PrivacyError(
                "canaries >= guesses >= correct >= 0 must hold with a canary at least, got "
                f"{self.canaries!r}, {self.guesses!r}, {self.correct!r}"
            )

    @property
    def num_draws(self) -> int:
        """The canaries."""
        return self.canaries

    def p_value(self, epsilon: float, delta: float = 0.0) -> float:
        """Bound the probability of so many right guesses under (epsilon, delta).

        Raises:
            PrivacyError: if epsilon is negative or not finite, or delta is not in [0, 1).
        """
        check_level(0.5, delta)
        if not 0 <= epsilon < math.inf:
            raise PrivacyError(f"epsilon must be finite and not negative, got {epsilon!r}")
        right = 1.0 / (1.0 + math.exp(-epsilon))
        tail = float(stats.binom.sf(self.correct - 1, self.guesses, right))
        if delta > 0 and self.correct:
            fewer = np.arange(self.correct - 1, -1, -1)
            gained = np.cumsum(stats.binom.pmf(fewer, self.guesses, right))  # f(v - i) - f(v)
            tail += 2 * self.canaries * delta * float((gained / np.arange(1, len(fewer) + 1)).max())
        return min(1.0, tail)

    def epsilon_lower(self, *, alpha: float = 0.05, delta: float = 0.0) -> float:
        """Give the largest epsilon that is rejected at level alpha, rounded down; 0 if none is.

        Raises:
            PrivacyError: if alpha is not in (0, 1) or delta not in [0, 1).
        """
        check_level(alpha, delta)
        low, high = 0.0, _LARGEST_EPSILON
        if self.p_value(0.0, delta) >= alpha:
            return 0.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            rejected = self.p_value(middle, delta) < alpha
            low, high = (middle, high) if rejected else (low, middle)
        return low

    def test_claim(self, claimed: float, *, delta: float = 0.0) -> TestOutcome:
        """Test that (claimed, delta) holds; found is the epsilon at which v would be expected."""
        wrong = self.guesses - self.correct
        found = math.log(max(1.0, self.correct / wrong)) if wrong else math.inf
        return TestOutcome(
            test="one run",
            claim=f"epsilon is at most {claimed:g}",
            claimed=claimed,
            found=found,
            p_value=self.p_value(claimed, delta),
            draws=self.canaries,
            detail=f"{self.correct:,} of {self.guesses:,} guesses right",
        )


def guess_by_sign(scores: ArrayLike, coins: ArrayLike) -> CanaryGuesses:
    """Guess every canary whose score is not 0: True where it is above.

    For guesses about separate outputs, such as clients' local reports, with delta = 0: there the
    bound holds given which canaries were guessed at.

    Args:
        scores: [canaries] float, what speaks for the coin's True; 0 abstains.
        coins: [canaries] bool.

    Raises:
        PrivacyError: if the lengths differ or there is none.
    """
    evidence, truth = _paired(scores, coins)
    guessed = evidence != 0
    right = (evidence > 0) == truth
    return CanaryGuesses(len(truth), int(guessed.sum()), int((guessed & right).sum()))


def guess_at_both_ends(
    scores: ArrayLike, coins: ArrayLike, *, most: int, least: int
) -> CanaryGuesses:
    """Guess True for the `most` highest scores and False for the `least` lowest, fixed beforehand.

    Ties go to the canary with the lower number.

    Args:
        scores: [canaries] float.
        coins: [canaries] bool.
        most: guesses of True, at the upper end.
        least: guesses of False, at the lower end.

    Raises:
        PrivacyError: if there are fewer canaries than guesses, or a score is not a number.
    """
    evidence, truth = _paired(scores, coins)
    if most < 0 or least < 0 or most + least > len(truth):
        raise PrivacyError(f"{most!r} + {least!r} guesses about {len(truth)} canaries")
    if np.isnan(evidence).any():
        raise PrivacyError("a canary's score is not a number")
    order = np.argsort(-evidence, kind="stable")
    correct = int(truth[order[:most]].sum()) + int((~truth[order[len(truth) - least :]]).sum())
    return CanaryGuesses(len(truth), most + least, correct)


def _paired(scores: ArrayLike, coins: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    evidence, truth = np.asarray(scores, dtype=np.float64), np.asarray(coins)
    if truth.dtype != np.bool_ or evidence.shape != truth.shape or evidence.ndim != 1:
        raise PrivacyError(
            f"scores and boolean coins must have one length, got {evidence.shape} and "
            f"{truth.dtype} {truth.shape}"
        )
    return evidence, truth
