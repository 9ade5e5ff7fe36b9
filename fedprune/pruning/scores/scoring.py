"""Score a model's units, for one set of minibatches or for every client at once."""

from __future__ import annotations

from torch import Tensor, nn

from fedprune.errors import ModelError, PruningError
from fedprune.pruning.scores.clients import Clients, Progress, Source
from fedprune.pruning.scores.criteria import CRITERIA, Batches, Criterion, Question
from fedprune.pruning.scores.prepared import check_precision_name
from fedprune.pruning.structure.layout import UnitLayout


def score(
    model: nn.Module,
    layout: UnitLayout,
    batches: Batches,
    criterion: str = "taylor",
    *,
    seed: int | None = None,
) -> Tensor:
    """Score every unit on minibatches; higher = more important.

    Args:
        model: The model; it is not changed.
        layout: Its units.
        batches: Minibatches (inputs [batch, ...], labels [batch]); the score is their mean.
            Criteria that see no data ignore them.
        criterion: A key of `CRITERIA`.
        seed: For `random`, which needs one, and for criteria that draw for each example: None is
            a stream of its own to them.

    Returns:
        [num_units] float32.

    Raises:
        LayoutMismatchError: if the model's layers are not the layout's.
        PruningError: if the criterion is unknown, does not suit the network, or there is no
            minibatch.
        ModelError: if a label is no class, or a loss or score is not finite.
    """
    scores = _find(criterion).of_batches(Question(model, layout, seed), batches)
    return _finite(scores, criterion, layout)


def score_clients(
    model: nn.Module,
    layout: UnitLayout,
    inputs: Tensor | Source,
    labels: Tensor | None,
    client_ids: Tensor,
    criterion: str = "taylor",
    *,
    batch_size: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    precision: str = "float32",
) -> Tensor:
    """Score every unit for every client, in batched passes over all their examples.

    On a processor, batches run side by side with one thread each, on as many threads as torch has.

    A client's examples are one minibatch: its row is what `score` gives for
    `[(its inputs, its labels)]`, however the examples are ordered or batched here.

    Args:
        model: The model; it is not changed.
        layout: Its units.
        inputs: [num_examples, ...], or a `Source` that makes them as they are needed.
        labels: [num_examples]; None takes the source's own.
        client_ids: Each example's client, [num_examples] integers.
        criterion: A key of `CRITERIA`.
        batch_size: Examples in one pass, None for what the model runs fast with; it changes speed
            and memory, scores only by rounding.
        seed: As of `score`.
        progress: Called with the examples done and their number after each pass.
        precision: "float32", or "bfloat16" for faster passes whose scores are right to about two
            digits; `check_precision` says whether the votes' mask stands that. Criteria that need
            no pass do not mind.

    Returns:
        [num_clients, num_units] float32; row i belongs to the i-th smallest client id.

    Raises:
        LayoutMismatchError: if the model's layers are not the layout's.
        PruningError: if the criterion or precision is unknown, the criterion knows no such
            precision, or lengths do not fit.
        ModelError: if a label is no class, or a loss or score is not finite.
    """
    found = _find(criterion)
    check_precision_name(precision)
    if found.precisions is not None and precision not in found.precisions:
        raise PruningError(
            f"precision must be one of {', '.join(found.precisions)} with criterion {criterion}, "
            f"got {precision!r}"
        )
    clients = Clients.of(inputs, labels, client_ids, batch_size, progress)
    question = Question(model, layout, seed, precision)
    return _finite(found.of_clients(question, clients), criterion, layout)


def _find(criterion: str) -> Criterion:
    if criterion not in CRITERIA:
        raise PruningError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    return CRITERIA[criterion]


def _finite(scores: Tensor, criterion: str, layout: UnitLayout) -> Tensor:
    rounded = scores.float().cpu()
    finite = rounded.isfinite().reshape(-1, len(layout)).all(0)
    if not bool(finite.all()):
        unit = int((~finite).nonzero()[0])
        raise ModelError(
            f"the {criterion} score of unit {unit} of {layout.model_name} is not finite; weights "
            f"and inputs must be"
        )
    return rounded
