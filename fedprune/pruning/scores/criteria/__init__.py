"""The criteria: how important each unit is. `CRITERIA` finds them by name.

A criterion is two functions, one for minibatches and one for clients. Both get a `Question` and
answer in float64; `scoring` checks and rounds what they say.
"""

from fedprune.pruning.scores.criteria.criterion import Batches, Criterion, Question
from fedprune.pruning.scores.criteria.derivatives import (
    fisher,
    taylor,
    taylor_second,
    taylor_second_full,
    taylor_separate,
)
from fedprune.pruning.scores.criteria.linear_logits import linear_logits
from fedprune.pruning.scores.criteria.of_weight_gradients import taylor_weights
from fedprune.pruning.scores.criteria.of_weights import bn_scale, magnitude, random
from fedprune.pruning.scores.criteria.removal import oracle

__all__ = ["CRITERIA", "Batches", "Criterion", "Question"]

CRITERIA: dict[str, Criterion] = {
    "random": random(),
    "magnitude": magnitude(2),
    "magnitude_l1": magnitude(1),
    "magnitude_l2": magnitude(2),
    "bn_scale": bn_scale(),
    "taylor": taylor(),
    "taylor_separate": taylor_separate(),
    "taylor_weights": taylor_weights(),
    "taylor_second": taylor_second(),
    "taylor_second_full": taylor_second_full(),
    "fisher": fisher(),
    "linear_logits": linear_logits(1),
    "linear_logits_signed": linear_logits(1, is_signed=True),
    "linear_logits_rest": linear_logits(0),
    "linear_logits_projected": linear_logits(1, projected=True),
    "linear_logits_all": linear_logits(None),
    "oracle": oracle(),
}
