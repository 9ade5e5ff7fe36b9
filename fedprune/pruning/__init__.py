"""From a model to a smaller one: units, scores, selection under a budget, surgery, schedules."""

from fedprune.pruning.schedules.continuous import ContinuousPlan, SmoothedScores, removed_last
from fedprune.pruning.schedules.learning_rates import LEARNING_RATES, learning_rate
from fedprune.pruning.schedules.regrowth import Regrowth, propose_regrowth
from fedprune.pruning.schedules.rewinding import rewind, snapshot, with_state
from fedprune.pruning.schedules.schedule import SCHEDULES, keep_fractions
from fedprune.pruning.scores.clients import Source
from fedprune.pruning.scores.criteria import CRITERIA
from fedprune.pruning.scores.evaluating import correct_predictions
from fedprune.pruning.scores.exact import oracle, oracle_clients
from fedprune.pruning.scores.normalizing import NORMALIZATIONS, normalize
from fedprune.pruning.scores.precision import LEAST_KEPT, PrecisionCheck, check_precision
from fedprune.pruning.scores.prepared import PRECISIONS, has_instructions
from fedprune.pruning.scores.scoring import score, score_clients
from fedprune.pruning.scores.separate_gates import GateLayout, separate_gates
from fedprune.pruning.selecting.latency_table import LatencyTable
from fedprune.pruning.selecting.selection import FILLS, expected_keep_units, select, select_many
from fedprune.pruning.selecting.widths import SCOPES
from fedprune.pruning.structure.embedding import embed
from fedprune.pruning.structure.layout import UnitGroup, UnitLayout
from fedprune.pruning.structure.members import Frozen
from fedprune.pruning.structure.surgery import compose_masks, mask_model, shrink

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
    "has_instructions",
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
