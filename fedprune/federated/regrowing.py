"""Steps that ask about removed units too, and let those come back that votes want back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune import pruning
from fedprune.federated.experiment import Experiment, Held, JsonDict, file_name
from fedprune.federated.steps import Step
from fedprune.federated.voting import Ranking
from fedprune.pruning import UnitLayout
from fedprune.runs import Architecture, weights_vector

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """What a step's clients are asked about.

    Attributes:
        held: the model that they score.
        pruned: the model whose units it still has, where it has removed ones too.
    """

    held: Held
    pruned: Held | None = None

    @property
    def kept(self) -> Tensor | None:
        """Which units are still there, [num_units] bool; None where all of them are.

        Read only where a step is really done: a finished one may have no model left to look at.
        """
        return None if self.pruned is None else self.pruned.architecture.mask


def asked_about(experiment: Experiment, held: Held, dense: Held, step: Step, prefix: str) -> Asked:
    """The pruned model; or, where units may come back, the dense one with its weights put in.

    A removed unit has the weights that it had when it was removed.
    """
    if not experiment.config.prune.regrow or step.number == 1:
        return Asked(held)
    earlier = Held(experiment.folder, file_name(f"{prefix}remember-{step.number - 1}"))
    before = dense if step.number == 2 else earlier

    def remember() -> tuple[Architecture, Tensor, JsonDict]:
        layout, mask = dense.layout(), held.architecture.mask
        whole = pruning.embed(held.model(), before.model(), layout, mask)
        return held.architecture.without_mask(), weights_vector(whole), {}

    phase = f"{prefix}remember-{step.number}"
    whole, _ = experiment.model_phase(phase, remember)
    if before is not dense:
        before.discard()
    return Asked(whole, held)


def exchange(
    experiment: Experiment, asked: Asked, ranking: Ranking, layout: UnitLayout, mask: Tensor
) -> tuple[Tensor, JsonDict]:
    """Let removed units come back for kept ones where the votes say so.

    A unit that goes in this very step may come back at once: it lost by the ranking, which has the
    magnitudes in it, not by the votes.

    Returns:
        The new mask with as many units, and what to say of it.
    """
    if asked.kept is None or ranking.mean is None or ranking.answers is None:
        return mask, {}
    share = np.clip(ranking.mean, 0.0, 1.0)
    noise = np.zeros_like(share) if ranking.variance is None else ranking.variance
    sampled = share * (1.0 - share) / ranking.answers  # other clients were asked before
    prune = experiment.config.prune
    widths_count = prune.keep_units is None or prune.scope != "global" or prune.round_to > 1
    found = pruning.propose_regrowth(
        mask,
        torch.from_numpy(np.array(ranking.mean)),
        torch.from_numpy(noise + sampled),
        layout,
        independent=False,  # units of one block share their clients' draws
        floor=prune.floor,
        within_groups=widths_count,
    )
    return found.mask, {"returned": list(found.returned), "went_for_them": list(found.removed)}
