"""From a model to a smaller one: units, scores, selection under a budget, surgery, schedules."""

from fedprune.pruning.clients import Source
from fedprune.pruning.continuous import ContinuousPlan, SmoothedScores, removed_last
from fedprune.pruning.criteria import CRITERIA
from fedprune.pruning.embedding import embed
from fedprune.pruning.evaluating import correct_predictions
from fedprune.pruning.exact import oracle, oracle_clients
from fedprune.pruning.latency_table import LatencyTable
from fedprune.pruning.layout import UnitGroup, UnitLayout
from fedprune.pruning.learning_rates import LEARNING_RATES, learning_rate
from fedprune.pruning.members import Frozen
from fedprune.pruning.normalizing import NORMALIZATIONS, normalize
from fedprune.pruning.precision import LEAST_KEPT, PrecisionCheck, check_precision
from fedprune.pruning.prepared import PRECISIONS
from fedprune.pruning.regrowth import Regrowth, propose_regrowth
from fedprune.pruning.rewinding import rewind, snapshot, with_state
from fedprune.pruning.schedule import SCHEDULES, keep_fractions
from fedprune.pruning.scoring import score, score_clients
from fedprune.pruning.selection import FILLS, expected_keep_units, select, select_many
from fedprune.pruning.separate_gates import GateLayout, separate_gates
from fedprune.pruning.surgery import compose_masks, mask_model, shrink
from fedprune.pruning.widths import SCOPES

__all__ = [
    "CRITERIA",
    "FILLS",
    "LEARNING_RATES",
    "LEAST_KEPT",
    "NORMALIZATIONS",
    "PRECISIONS",
    "SCHEDULES",
    "SCOPES",
    "ContinuousPlan",
    "Frozen",
    "GateLayout",
    "LatencyTable",
    "PrecisionCheck",
    "Regrowth",
    "SmoothedScores",
    "Source",
    "UnitGroup",
    "UnitLayout",
    "check_precision",
    "compose_masks",
    "correct_predictions",
    "embed",
    "expected_keep_units",
    "keep_fractions",
    "learning_rate",
    "mask_model",
    "normalize",
    "oracle",
    "oracle_clients",
    "propose_regrowth",
    "removed_last",
    "rewind",
    "score",
    "score_clients",
    "select",
    "select_many",
    "separate_gates",
    "shrink",
    "snapshot",
    "with_state",
]
