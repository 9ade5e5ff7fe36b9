"""Which examples a model gets right: the fastest pass there is, with no gradient at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedprune.errors import ModelError
from fedprune.hardware.parallel import Spares, map_in_order
from fedprune.pruning.scores.clients import Source
from fedprune.pruning.scores.prepared import (
    choose_format,
    move,
    prepare,
    rows_a_pass,
    run,
    share_parameters,
    workers_on,
)
from fedprune.pruning.structure.layout import UnitLayout


def correct_predictions(model: nn.Module, layout: UnitLayout, source: Source) -> Tensor:
    """Evaluate a model on examples, with its batch norms folded away.

    Batches run side by side with one thread each, on as many threads as torch has.

    Args:
        model: The model; it is not changed.
        layout: Its units.
        source: The examples; there may be none.

    Returns:
        [num_examples] bool on the host, True where the largest score is the label's.

    Raises:
        LayoutMismatchError: if the model's layers are not the layout's.
        ModelError: if a score is not finite.
    """
    examples = len(source)
    if examples == 0:
        return torch.zeros(0, dtype=torch.bool)
    ready = prepare(model, layout)
    first = next(ready.parameters())
    device, dtype = first.device, first.dtype

    def moved(inputs: Tensor) -> Tensor:
        return move(inputs, device, dtype if inputs.is_floating_point() else None)

    laid_out = choose_format(ready, moved(source.batch(0, min(2, examples))[0]))
    modules = Spares(lambda: share_parameters(ready))

    def right(batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.inference_mode(), modules.borrow() as own:
            scores = run(own, moved(batch[0]).clone().contiguous(memory_format=laid_out))
            hit = (scores.argmax(dim=1) == move(batch[1], device)).to(torch.int8)
            return torch.where(scores.isfinite().flatten(1).all(1), hit, -1)

    workers = workers_on(device)
    size = rows_a_pass(layout, examples, workers)
    spans = [(start, min(start + size, examples)) for start in range(0, examples, size)]
    batches = (source.batch(*span) for span in spans)
    found = torch.cat(list(map_in_order(right, batches, min(workers, len(spans))))).cpu()
    if bool((found < 0).any()):
        raise ModelError(f"the scores of {layout.model_name} are not finite on a client's rows")
    return found == 1
