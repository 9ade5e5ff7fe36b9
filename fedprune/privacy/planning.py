"""What a vote can be expected to find, before any budget is spent.

Model of the clients (stated wherever a prediction is shown): unit j has a true importance s_j,
standard normal over units; a client sees s_j plus its own standard normal deviation (lognormal
scores that differ by a factor of e) and keeps its own top fraction k. A unit's vote is then
p_j = Phi(s_j - t) with t = sqrt(2) * Phi^-1(1 - k); for k = 1/2, p is uniform on [0, 1].
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from fedprune.errors import PrivacyError

USEFUL_RECALL = 0.6
CLIENT_MODEL = (
    "units' importances lognormal, each client's deviation from them lognormal of the same spread"
)
_GRID = 2001
_SMALLEST_KEEP = 0.01


def predict_recall(variance: float, keep_units: float = 0.5) -> float:
    """Predict which share of the noise-free vote's kept units a noisy vote finds too.

    Args:
        variance: of one unit's vote (v in the text), at least 0.
        keep_units: fraction of the units that is kept, in (0, 1]; below 0.01 the prediction is
            the one for 0.01, which the grid still resolves.

    Returns:
        Expected recall in [keep_units, 1], without the magnitude prior's help.
    """
    if variance < 0 or not 0 < keep_units <= 1:
        raise PrivacyError(
            f"variance must be at least 0 and keep_units in (0, 1], got {variance!r} and "
            f"{keep_units!r}"
        )
    if keep_units == 1 or variance == 0:
        return 1.0
    keep_units = max(keep_units, _SMALLEST_KEEP)
    votes = norm.cdf(norm.ppf((np.arange(_GRID) + 0.5) / _GRID) - np.sqrt(2) * norm.isf(keep_units))
    spread = np.sqrt(variance)

    def kept(cut: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.asarray(norm.sf(cut, loc=votes, scale=spread))

    cut = brentq(lambda c: float(kept(c).mean()) - keep_units, -1 - 9 * spread, 2 + 9 * spread)
    truly_kept = np.arange(_GRID) >= (1 - keep_units) * _GRID
    return float(kept(cut)[truly_kept].mean())


def variance_for_recall(recall: float, keep_units: float = 0.5) -> float:
    """Invert `predict_recall`: the largest variance per vote that still gives this recall."""
    if not keep_units < recall < 1:
        raise PrivacyError(f"recall must be in (keep_units = {keep_units}, 1), got {recall!r}")
    return float(
        np.exp(brentq(lambda v: predict_recall(float(np.exp(v)), keep_units) - recall, -20.0, 20.0))
    )
