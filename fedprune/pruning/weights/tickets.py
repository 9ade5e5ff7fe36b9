"""Iterative magnitude pruning of single weights with rewinding: lottery tickets (study only)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fedprune.errors import PruningError
from fedprune.pruning.schedules.rewinding import with_state
from fedprune.pruning.weights.masks import StudyMasks, all_weights, apply_masks, magnitude_masks


@dataclass(frozen=True, eq=False)
class Ticket:
    """What iterative magnitude pruning leaves after one of its rounds.

    Attributes:
        masks: the weights that stay.
        trained: the model trained under the masks of the round before, from which they come.
        start: where training with these masks begins: rewound, or `trained` with them applied.
    """

    masks: StudyMasks
    trained: nn.Module
    start: nn.Module


def iterative_magnitude_pruning(
    model: nn.Module,
    train: Callable[[nn.Module, StudyMasks], nn.Module],
    keep_fractions: tuple[float, ...],
    *,
    rewind_to: Mapping[str, Tensor] | None = None,
    scope: str = "global",
) -> list[Ticket]:
    """Train, remove the smallest weights, rewind, and again (Frankle & Carbin 2019, strategy 1).

    Args:
        model: where training first begins; it is not changed.
        train: trains a copy of a model whose removed weights are zero and must stay so.
        keep_fractions: of all maskable weights after each round, falling: `keep_fractions`'s.
        rewind_to: state that kept weights go back to, at initialisation or step k; None: training
            goes on from where it is.
        scope: of `magnitude_masks`.

    Returns:
        One ticket for each round.

    Raises:
        PruningError: if `train` gives back a removed weight that is not zero, or fractions rise.
    """
    masks, start, tickets = all_weights(model), model, []
    for fraction in keep_fractions:
        trained = train(start, masks)
        _check_held(trained, masks)
        masks = magnitude_masks(trained, fraction, scope=scope, within=masks)
        begin = trained if rewind_to is None else with_state(model, rewind_to)
        start = apply_masks(begin, masks)
        tickets.append(Ticket(masks, trained, start))
    return tickets


def _check_held(model: nn.Module, masks: StudyMasks) -> None:
    named = dict(model.named_parameters())
    for name, mask in masks.keep.items():
        if bool((named[name][~mask] != 0).any()):
            raise PruningError(f"training under masks must hold removed weights at 0, {name} moved")
