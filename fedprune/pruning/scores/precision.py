"""Is a lower precision good enough for the votes? Measured on some clients before all are scored.

Rounding the factors of every product to 8 bits moves each gate's gradient by about one percent.
That is far below what separates one client from the next, and the votes average over clients; but
it depends on the network and the data, so it is measured and not assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprune.errors import ModelError, PruningError
from fedprune.pruning.scores.clients import Source
from fedprune.pruning.scores.prepared import check_precision_name, has_instructions
from fedprune.pruning.scores.scoring import score_clients
from fedprune.pruning.selecting.selection import select, select_many
from fedprune.pruning.structure.layout import UnitLayout

LEAST_KEPT = 0.99


@dataclass(frozen=True, eq=False)
class PrecisionCheck:
    """What a lower precision does to the mask that some clients' votes choose.

    Attributes:
        asked: The precision that was asked for.
        used: The one to use: the same, or "float32" where it is not good enough.
        kept: Share of the units in the float32 votes' mask that are in the other one too; None
            where it was not measured, because the device has no instructions for that precision.
        clients: Clients it was measured on.
        sentence: All of it in words.
        scores: These clients' scores in the precision to use, [clients, num_units], as
            `score_clients` gives them: nobody has to compute them again.
    """

    asked: str
    used: str
    kept: float | None
    clients: int
    sentence: str
    scores: Tensor


def check_precision(
    model: nn.Module,
    layout: UnitLayout,
    inputs: Tensor | Source,
    labels: Tensor | None,
    client_ids: Tensor,
    precision: str,
    *,
    keep_units: float,
    floor: int = 1,
    criterion: str = "taylor",
    seed: int | None = None,
    least_kept: float = LEAST_KEPT,
) -> PrecisionCheck:
    """Score some clients in both precisions and compare the masks that their votes choose.

    A vote is the share of the clients that keep a unit; no noise is added. Few clients' votes lie
    closer together than those of many, so a sample keeps less than all clients would: the answer
    errs on the safe side. A model that does not run in the lower precision, or gives nothing finite
    there, keeps nothing. Nothing is tried where the device would be slower in it than in float32.

    Args:
        model: The model; it is not changed.
        layout: Its units.
        inputs: [num_examples, ...], or a `Source`: the examples of a sample of the clients.
        labels: [num_examples]; None takes the source's own.
        client_ids: Each example's client, [num_examples] integers.
        precision: What is asked for, a key of `PRECISIONS`.
        keep_units: Fraction of the units that every client and the votes keep, in (0, 1].
        floor: Units that stay in every group.
        criterion: A key of `CRITERIA`.
        seed: For a criterion that draws.
        least_kept: Below this share float32 is used instead.

    Raises:
        PruningError: if the precision or criterion is unknown, the criterion knows no such
            precision, or an argument is out of range.
        ModelError: if the model cannot be scored in float32.
    """
    check_precision_name(precision)
    if not 0 <= least_kept <= 1:
        raise PruningError(f"least_kept must be in [0, 1], got {least_kept}")

    def scores_in(one: str) -> Tensor:
        return score_clients(
            model, layout, inputs, labels, client_ids, criterion, seed=seed, precision=one
        )

    def mask_of(scores: Tensor) -> Tensor:
        votes = select_many(scores, layout, keep_units, floor).float().mean(0)
        return select(votes, layout, keep_units=keep_units, floor=floor)

    exact = scores_in("float32")
    if precision == "float32":
        sentence = "scores are in float32"
        return PrecisionCheck(precision, precision, 1.0, len(exact), sentence, exact)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if not has_instructions(precision, device):
        sentence = (
            f"this {'processor' if device.type == 'cpu' else 'device'} has no instructions for "
            f"{precision} and would take longer than in float32: scores are in float32"
        )
        return PrecisionCheck(precision, "float32", None, len(exact), sentence, exact)
    try:
        scores = scores_in(precision)
        kept = _share(mask_of(exact), mask_of(scores))
        why = f"keeps {kept:.2%} of the units that float32 keeps"
    except (ModelError, RuntimeError, ValueError) as error:
        kept, why, scores = 0.0, f"fails ({str(error).partition(chr(10))[0]})", exact
    good = kept >= least_kept
    used, wanted = (precision, "at least the") if good else ("float32", "less than the")
    sentence = (
        f"{precision} on a sample of {len(exact)} clients {why}, {wanted} {least_kept:.0%} "
        f"asked for: scores are in {used}"
    )
    return PrecisionCheck(precision, used, kept, len(exact), sentence, scores if good else exact)


def _share(wanted: Tensor, found: Tensor) -> float:
    return float((wanted & found).sum() / wanted.sum())
