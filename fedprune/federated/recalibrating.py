"""Batch norms that fit the network that is left: new statistics from sums over clients.

A round asks its clients for the moments of what every batch norm receives (see
`fedprune.robustness.recalibration`). After n rounds the first n batch norms of any path hold what
one client with all of these rows would have found.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprune import robustness
from fedprune.errors import FederationError
from fedprune.federated.answers import Answers
from fedprune.federated.experiment import Experiment, Held, JsonDict
from fedprune.federated.norm_answers import KIND, unpacked
from fedprune.runs import Architecture, participants, weights_vector


def recalibrate_rounds(
    experiment: Experiment, start: Held, *, prefix: str, step: int, counterfactual: bool
) -> Held:
    """Do `train.recalibrate` rounds from a model; keep only the last one's checkpoint.

    Args:
        experiment: the run.
        start: a model that was just made smaller.
        prefix: names the path of pruning in phase names; "" for the private one.
        step: of the pruning schedule.
        counterfactual: whether the path exists in simulation only.
    """
    held = start
    for number in range(1, experiment.config.train.recalibrate + 1):
        before, name = held, f"norms-{step}-{number}"

        def action(
            model: Held = before, round_name: str = name
        ) -> tuple[Architecture, Tensor, JsonDict]:
            return _round(experiment, model, round_name, counterfactual)

        held, _ = experiment.model_phase(f"{prefix}{name}", action)
        if before is not start:
            before.discard()
    return held


def _round(
    experiment: Experiment, held: Held, round_name: str, counterfactual: bool
) -> tuple[Architecture, Tensor, JsonDict]:
    model = held.model()
    channels = norm_channels(model)
    size = sum(1 + 2 * width for width in channels.values())
    question = experiment.question(round_name, held, {}, counterfactual=counterfactual)

    def read(answers: Answers) -> NDArray[np.float64]:
        raw = answers.rows("sums", "batch-norm sums")
        sums = np.frombuffer(raw[:, : raw.shape[1] // 8 * 8].tobytes(), dtype="<f8")
        if raw.shape[1] != 8 * size or not np.isfinite(sums).all():
            raise FederationError(
                f"client {answers.first} sent batch-norm sums that are not {size} finite numbers "
                f"in round {round_name}"
            )
        return sums.reshape(len(answers), size)

    clients = participants(experiment.config, round_name)
    total, heard = np.zeros(size), 0
    for some in experiment.ask_together(KIND, question, clients, "", read):
        for own in some:  # client after client: every engine rounds alike
            total += own
            heard += 1
    found = unpacked(total, channels)
    told = {"clients": heard, "rows": found.examples}
    return held.architecture, weights_vector(robustness.recalibrate(model, found)), told


def norm_channels(model: nn.Module) -> dict[str, int]:
    """Channels of every batch norm with statistics, by name."""
    found = {}
    for name in robustness.batch_norm_layers(model):
        mean = model.get_submodule(name).running_mean
        assert isinstance(mean, Tensor)
        found[name] = len(mean)
    return found
