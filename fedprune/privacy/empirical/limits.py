"""Exact one-sided confidence limits of a probability (Clopper & Pearson 1934)."""

from __future__ import annotations

from scipy import stats

from fedprune.errors import PrivacyError

_OUTWARD = 1e-12  # relative; more than scipy's inverse of the beta distribution can be off by


def lower_limit(successes: int, trials: int, alpha: float) -> float:
    """Give the limit that lies above the true probability in at most a share `alpha` of cases.

    Raises:
        PrivacyError: if the counts are impossible or alpha is not in (0, 1).
    """
    _check(successes, trials, alpha)
    if successes == 0:
        return 0.0
    return float(stats.beta.ppf(alpha, successes, trials - successes + 1)) * (1 - _OUTWARD)


def upper_limit(successes: int, trials: int, alpha: float) -> float:
    """Give the limit that lies below the true probability in at most a share `alpha` of cases.

    Raises:
        PrivacyError: if the counts are impossible or alpha is not in (0, 1).
    """
    _check(successes, trials, alpha)
    if successes == trials:
        return 1.0
    limit = float(stats.beta.isf(alpha, successes + 1, trials - successes))
    return min(1.0, limit * (1 + _OUTWARD))


def check_level(alpha: float, delta: float = 0.0) -> None:
    """Refuse an error level outside (0, 1) or a delta outside [0, 1).

    Raises:
        PrivacyError: naming the value.
    """
    if not 0 < alpha < 1:
        raise PrivacyError(f"alpha must be in (0, 1), got {alpha!r}")
    if not 0 <= delta < 1:
        raise PrivacyError(f"delta must be in [0, 1), got {delta!r}")


def _check(successes: int, trials: int, alpha: float) -> None:
    check_level(alpha)
    if trials < 1 or not 0 <= successes <= trials:
        raise PrivacyError(f"{successes!r} successes in {trials!r} trials are impossible")
