"""Gradients of single records, of a network in which records do not mix.

Batch norm would mix records: it is frozen, its running statistics are used and its scales and
shifts stay, so that a record has a gradient of its own and nothing but what is noised ever
changes. Dropout is off.

Where Opacus (Yousefpour et al. 2021) accepts every layer, several records go through the network
together and Opacus' rules take their gradients apart. A kernel may round a record's gradient
differently in a batch of another size, so every pass has one fixed, public size and is filled up
with zeros. Once for each network a check with public inputs compares the result with plain
automatic differentiation, and makes sure that a record's gradient does not depend, in a single
bit, on where it stands in a pass and what stands beside it. A network that fails the check, or
that Opacus refuses, is differentiated one record at a time: slower, and right by construction.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn

from fedprune.errors import ModelError
from fedprune.models.widened import widen
from fedprune.runs import Architecture

LARGEST_PASS = 32
_GRADIENT_NUMBERS = 1 << 25  # numbers of per-record gradients in memory at once
_TOLERANCE = 1e-3
_CHECKS = 4
_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_LOG = logging.getLogger(__name__)


class PerRecordGradients:
    """A network prepared for training under privacy, and the gradients of its loss per record.

    Attributes:
        model: the network, in evaluation mode.
        trainable: its parameters that are trained, in order.
        size: how many numbers they are.
        rows_per_pass: records that go through the network at once.
    """

    def __init__(self, model: nn.Module, name: str, num_classes: int, rows_per_pass: int) -> None:
        """Prepare `model`, which becomes this object's own.

        Args:
            model: it is changed: frozen, and where passes have several rows given Opacus' hooks.
            name: of the network, for complaints.
            num_classes: its outputs.
            rows_per_pass: 1 for plain automatic differentiation.

        Raises:
            ModelError: naming the batch norm that mixes records, or, for passes of several rows,
                the first module that Opacus refuses.
        """
        freeze(model, name)
        widen(model)
        self.model = model
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.size = sum(p.numel() for p in self.trainable)
        self.rows_per_pass = rows_per_pass
        self._num_classes = num_classes
        self._forward = _with_hooks(model, name) if rows_per_pass > 1 else model

    def passes(self, inputs: Tensor, labels: Tensor) -> Iterator[Tensor]:
        """Give the records' gradients, pass after pass.

        Args:
            inputs: [records, *input_shape] float32.
            labels: [records] int64.

        Yields:
            [up to rows_per_pass, size] float32. A record whose label is no class has a gradient
            of zero; one whose values are not finite may have one that is not finite.
        """
        for start in range(0, len(labels), self.rows_per_pass):
            part = slice(start, start + self.rows_per_pass)
            yield self._one_pass(inputs[part], labels[part])

    def _one_pass(self, inputs: Tensor, labels: Tensor) -> Tensor:
        known = (labels >= 0) & (labels < self._num_classes)
        rows, missing = len(labels), self.rows_per_pass - len(labels)
        filled = torch.cat([inputs, inputs.new_zeros(missing, *inputs.shape[1:])])
        classes = torch.cat([labels.where(known, 0), labels.new_zeros(missing)])
        take = self._together if self.rows_per_pass > 1 else self._alone
        with torch.enable_grad():
            gradients = take(filled, classes)[:rows]
        return gradients.where(known[:, None], 0.0)

    def _alone(self, inputs: Tensor, labels: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(self._forward(inputs), labels)
        # What the network does not use has a gradient of zero.
        parts = torch.autograd.grad(loss, self.trainable, allow_unused=True, materialize_grads=True)
        return torch.cat([part.reshape(1, -1) for part in parts], dim=1)

    def _together(self, inputs: Tensor, labels: Tensor) -> Tensor:
        for parameter in self.trainable:
            parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
        logits = self._forward(inputs.requires_grad_())  # without, a backward hook warns
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        return torch.cat([_per_record(p, len(labels)) for p in self.trainable], dim=1)


def freeze(model: nn.Module, name: str) -> None:
    """Put a network into evaluation mode and fix its batch norms; in place.

    Raises:
        ModelError: if a batch norm has no running statistics, or nothing is left to train.
    """
    model.eval()
    for path, module in model.named_modules():
        if isinstance(module, _BATCH_NORM):
            if module.running_mean is None or module.running_var is None:
                raise ModelError(
                    f"{name} cannot be trained under privacy: its batch norm {path!r} has no "
                    "running statistics, so that records mix"
                )
            module.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(f"{name} has no parameter to train outside its batch norms")


def trainable_places(model: nn.Module) -> Tensor:
    """Tell which numbers of `weights_vector(model)` are trained: [size] bool."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    parts = [
        torch.full((tensor.numel(),), name in trained)
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    ]
    return torch.cat(parts)


def per_record_gradients(architecture: Architecture, batch_size: int) -> PerRecordGradients:
    """Build a network and prepare it, with passes of a size that depends on public numbers only.

    Raises:
        ModelError: if records mix in this network.
    """
    return _prepared(architecture, _sound_rows(architecture, min(batch_size, LARGEST_PASS)))


def _prepared(architecture: Architecture, rows: int) -> PerRecordGradients:
    model, _ = architecture.build()
    return PerRecordGradients(model, architecture.model, architecture.num_classes, rows)


@lru_cache(maxsize=16)
def _sound_rows(architecture: Architecture, rows: int) -> int:
    """Check per-record gradients on public inputs; give the size of a pass that is sound."""
    alone = _prepared(architecture, 1)
    rows = min(rows, _GRADIENT_NUMBERS // alone.size)
    if rows < 2:
        return 1
    try:
        together = _prepared(architecture, rows)
    except ModelError as error:
        _LOG.info("%s; its records are trained on one at a time", error)
        return 1
    batches = [_public_batch(architecture, rows, seed) for seed in range(_CHECKS)]
    if _right(together, alone, *batches[0]) and all(_steady(together, *one) for one in batches):
        return rows
    _LOG.info("%s: records are trained on one at a time", architecture.model)
    return 1


def _public_batch(architecture: Architecture, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, *architecture.input_shape, generator=random)
    return inputs, (torch.arange(rows) + seed) % architecture.num_classes


def _right(
    together: PerRecordGradients, alone: PerRecordGradients, inputs: Tensor, labels: Tensor
) -> bool:
    """Compare the first and the last record of a pass with plain automatic differentiation."""
    found = next(together.passes(inputs, labels))[[0, -1]]
    wanted = torch.cat(list(alone.passes(inputs[[0, -1]], labels[[0, -1]])))
    return bool(((found - wanted).norm(dim=1) <= _TOLERANCE * wanted.norm(dim=1) + 1e-6).all())


def _steady(together: PerRecordGradients, inputs: Tensor, labels: Tensor) -> bool:
    """Tell whether no bit of a record's gradient depends on its place and on its neighbours."""
    found = next(together.passes(inputs, labels))
    moved = [
        next(together.passes(inputs.roll(by, 0), labels.roll(by, 0))).roll(-by, 0)
        for by in (1, len(labels) // 2)
    ]
    fewer = next(together.passes(inputs[:1], labels[:1]))
    return torch.equal(fewer, found[:1]) and all(torch.equal(one, found) for one in moved)


def _per_record(parameter: nn.Parameter, rows: int) -> Tensor:
    found = parameter.grad_sample  # type: ignore[attr-defined]
    if found is None:  # the network did not use it
        return torch.zeros(rows, parameter.numel())
    gradient: Tensor = found.reshape(rows, -1)
    return gradient


def _with_hooks(model: nn.Module, name: str) -> nn.Module:
    """Let Opacus check every layer and attach its rules.

    Raises:
        ModelError: naming the first module that it refuses.
    """
    # Opacus is slow to import, and its import sets up the root logger, which is ours to leave.
    root = logging.getLogger()
    handlers = list(root.handlers)
    from opacus.grad_sample import GradSampleModule
    from opacus.utils.module_utils import trainable_modules
    from opacus.validators import ModuleValidator

    root.handlers[:] = handlers
    for path, module in trainable_modules(model):
        check = ModuleValidator.VALIDATORS.get(type(module), lambda _: [])
        buffers = any(True for _ in module.buffers())
        if buffers or check(module):
            raise ModelError(
                f"{name}: Opacus has no per-record gradients for its {type(module).__name__} "
                f"{path!r}"
            )
    hooked: nn.Module = GradSampleModule(model, loss_reduction="sum")
    for module in model.modules():
        # Opacus' hooks work in training mode only; what has trained parameters of its own
        # computes the same in both modes, and its children stay in evaluation mode.
        module.training = any(p.requires_grad for p in module.parameters(recurse=False))
    return hooked
