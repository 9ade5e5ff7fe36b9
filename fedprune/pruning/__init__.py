"""From a model to a smaller one: units, scores, selection under a budget, surgery, schedules."""

from fedprune.pruning.clients import Source
from fedprune.pruning.criteria import CRITERIA
from fedprune.pruning.evaluating import correct_predictions
from fedprune.pruning.layout import UnitGroup, UnitLayout
from fedprune.pruning.precision import LEAST_KEPT, PrecisionCheck, check_precision
from fedprune.pruning.prepared import PRECISIONS
from fedprune.pruning.schedule import SCHEDULES, keep_fractions
from fedprune.pruning.scoring import score, score_clients
from fedprune.pruning.selection import expected_keep_units, select, select_many
from fedprune.pruning.surgery import compose_masks, mask_model, shrink

__all__ = [
    "CRITERIA",
    "LEAST_KEPT",
    "PRECISIONS",
    "SCHEDULES",
    "PrecisionCheck",
    "Source",
    "UnitGroup",
    "UnitLayout",
    "check_precision",
    "compose_masks",
    "correct_predictions",
    "expected_keep_units",
    "keep_fractions",
    "mask_model",
    "score",
    "score_clients",
    "select",
    "select_many",
    "shrink",
]
