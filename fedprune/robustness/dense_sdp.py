"""LipSDP: the Lipschitz bound of linear maps joined by activations with slopes in [0, 1].

Let v = (x, h) be a change of the input and of all activations, p = A v the change before them and
y = C v the change of the output. A slope between 0 and 1 means h_i (p_i - h_i) >= 0. For any
multipliers lambda_i >= 0 and F > 0, if the symmetric matrix of the form

    |x|^2 - F |C v|^2 - sum_i lambda_i h_i (p_i - h_i)                                     (1)

is positive definite, then |y|^2 <= |x|^2 / F: the Lipschitz constant is at most 1 / sqrt(F)
(Fazlyab et al., NeurIPS 2019, theorem 1, neuron by neuron). Layers that follow each other make (1)
block tridiagonal and its Cholesky factorisation is the recursion of ECLipsE (Xu & Sivaranjani,
NeurIPS 2024); written this way, skip connections fit as well. The multipliers begin where
ECLipsE-Fast has them, lambda = 2 / |A M^-1 A^T| layer by layer, and are improved by a primal-dual
interior-point method, see `primal_dual`, to a relative 1e-7 of the best F where the work that is
allowed suffices for it.

No number of the search is trusted. A bound is accepted only if (1), built in float64 with a bound
on the error of every entry, has a Cholesky factor after everything that could be wrong is taken off
its diagonal: the entries' error in norm, and 8 (n + 8) eps times the trace for the factorisation
itself (Higham, "Accuracy and Stability of Numerical Algorithms", theorem 10.3; Rump, BIT 2006).
"""

from __future__ import annotations

import math

from fedprune.errors import RobustnessError
from fedprune.robustness.arguments import as_number
from fedprune.robustness.rounding import TINY, Floats
from fedprune.robustness.sdp_certificate import verified_bound
from fedprune.robustness.sdp_search import MultiplierSearch
from fedprune.robustness.slope_systems import SlopeSystem, chain, without_constants
from fedprune.robustness.spectral import Norm

MAX_STEPS = 80
"""Interior-point steps at most; 10 to 30 are usual."""

STEP_WORK = 18.0
"""Floating point operations of a step, over the cube of the number of variables."""

DEFAULT_WORK = 6e10
"""Floating point operations that a search may take, about; fewer steps for larger systems."""


def chain_bound(weights: list[Floats], *, work: float = DEFAULT_WORK) -> Norm:
    """Bound the Lipschitz constant of a multilayer perceptron; see `chain` and `slope_bound`."""
    return slope_bound(chain(weights), work=work)


def slope_bound(system: SlopeSystem, *, work: float = DEFAULT_WORK) -> Norm:
    """Bound the Lipschitz constant of a system rigorously.

    Args:
        system: linear maps and activations.
        work: floating point operations for the search; 0 keeps the ECLipsE-Fast multipliers.

    Returns:
        The bound and its name; infinite where no multipliers were found.
    """
    if not 0 <= as_number(work) < math.inf:
        raise RobustnessError(f"work must be at least 0 and finite, got {work!r:.60}")
    system = without_constants(system)
    name = "LipSDP" if len(system.inner) else "explicit"
    if not system.outer.any() and not system.outer_error.any():
        return Norm(TINY, name)
    search = MultiplierSearch.of(system)
    multipliers = search.start()
    if multipliers is None:
        return Norm(math.inf, name)
    steps = min(MAX_STEPS, int(work / (STEP_WORK * search.variables**3 + 1.0)))
    if len(multipliers):
        multipliers = search.improve(multipliers, steps)
    return Norm(verified_bound(system, multipliers * search.unscale), name)
