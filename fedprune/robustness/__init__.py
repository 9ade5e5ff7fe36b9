"""Rigorous Lipschitz bounds, certificates that follow from them, and attacks that test them."""

from fedprune.robustness.attack import AttackResult, direct_search, pgd
from fedprune.robustness.attack_distance import attack_distances
from fedprune.robustness.cache import NORMS, NormCache
from fedprune.robustness.certificates import Certifier
from fedprune.robustness.certified_shares import (
    CertifiedCurve,
    certified_accuracy,
    certified_curve,
    certified_interval,
    certified_radii,
)
from fedprune.robustness.composition import BlockNorm
from fedprune.robustness.dense_sdp import chain_bound, slope_bound
from fedprune.robustness.geometry import Axis, Geometry
from fedprune.robustness.layer_norms import (
    convolution_norm,
    explicit_matrix,
    schur_norm,
    unfolding_norm,
)
from fedprune.robustness.lipschitz import LipschitzBound, NamedBound, OpNorm, lipschitz
from fedprune.robustness.local import LocalBounds, LocalCertifier, local_lipschitz
from fedprune.robustness.margin_training import MarginLoss
from fedprune.robustness.preference import Preference, equally_good, prefer_smaller_bound
from fedprune.robustness.ranges import check_range
from fedprune.robustness.recalibration import (
    BatchNormSums,
    batch_norm_layers,
    batch_norm_sums,
    recalibrate,
)
from fedprune.robustness.slope_systems import SlopeSystem, chain
from fedprune.robustness.spectral import Norm
from fedprune.robustness.torus import gram_torus_norm, torus_norm

__all__ = [
    "NORMS",
    "AttackResult",
    "Axis",
    "BatchNormSums",
    "BlockNorm",
    "CertifiedCurve",
    "Certifier",
    "Geometry",
    "LipschitzBound",
    "LocalBounds",
    "LocalCertifier",
    "MarginLoss",
    "NamedBound",
    "Norm",
    "NormCache",
    "OpNorm",
    "Preference",
    "SlopeSystem",
    "attack_distances",
    "batch_norm_layers",
    "batch_norm_sums",
    "certified_accuracy",
    "certified_curve",
    "certified_interval",
    "certified_radii",
    "chain",
    "chain_bound",
    "check_range",
    "convolution_norm",
    "direct_search",
    "equally_good",
    "explicit_matrix",
    "gram_torus_norm",
    "lipschitz",
    "local_lipschitz",
    "pgd",
    "prefer_smaller_bound",
    "recalibrate",
    "schur_norm",
    "slope_bound",
    "torus_norm",
    "unfolding_norm",
]
