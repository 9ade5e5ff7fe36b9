"""Molchanov's weight-wise criterion, which needs a backward pass of its own for every client."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune.copying import copy_model
from fedprune.errors import ModelError
from fedprune.hardware.parallel import Spares, map_in_order
from fedprune.pruning.scores.clients import Clients
from fedprune.pruning.scores.criteria.criterion import Batches, Criterion, Question, mean_over
from fedprune.pruning.scores.gates import check_labels
from fedprune.pruning.scores.prepared import (
    check_separable,
    move,
    rows_a_pass,
    run,
    share_parameters,
    workers_on,
)
from fedprune.pruning.structure.layout import UnitLayout

Gradients: TypeAlias = list[Tensor]


def taylor_weights() -> Criterion:
    """Σ (w·∂L/∂w)² over the weights, biases and norms that produce a unit, L a minibatch's loss.

    Molchanov et al. 2019, first order: the sum over a unit's weights of each one's own squared
    slope, as if they were removed one at a time. A weight's gradient cannot be told apart by
    example in a common pass, so every client has one of its own: slower than the criteria of gates,
    the more so the fewer examples a client has. Clients run side by side in threads.
    """

    def of_batches(question: Question, batches: Batches) -> Tensor:
        gradients = _WeightGradients.of(question)
        return mean_over(
            next(iter(gradients.of_clients(Clients.of_one(*batch)))) for batch in batches
        )

    def of_clients(question: Question, clients: Clients) -> Tensor:
        return torch.stack(list(_WeightGradients.of(question).of_clients(clients)))

    return Criterion(of_batches, of_clients, precisions=("float32",))


@dataclass(frozen=True)
class _Part:
    inputs: Tensor
    labels: Tensor
    examples: int  # of the client, in all its parts
    is_last: bool


@dataclass(frozen=True)
class _WeightGradients:
    """A copy of the model in evaluation mode whose producing layers' parameters have gradients."""

    layout: UnitLayout
    model: nn.Module
    units: dict[str, Tensor]  # by parameter, the unit of each output

    @classmethod
    def of(cls, question: Question) -> _WeightGradients:
        question.layout.check_model(question.model)
        check_separable(question.model, question.layout)
        model = copy_model(question.model).eval().requires_grad_(False)
        units = {}
        for layer in question.layout.layers:
            module = model.get_submodule(layer.name)
            if layer.is_selection or not (layer.out_units >= 0).any():
                continue
            for key, parameter in module.named_parameters(recurse=False):
                parameter.requires_grad_(True)
                units[f"{layer.name}.{key}"] = torch.from_numpy(layer.out_units)
        return cls(question.layout, model, units)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def of_clients(self, clients: Clients) -> Iterator[Tensor]:
        """Each client's scores [num_units] float64, in the order of the rows."""
        models = Spares(lambda: share_parameters(self.model))

        def gradients(part: _Part) -> Gradients:
            with models.borrow() as own:
                return self._gradients(own, part.inputs, part.labels)

        parts = self._parts(clients)
        ahead, behind = itertools.tee(parts)
        found = map_in_order(gradients, ahead, workers_on(self.device))
        done, sums = 0, None
        for part, one in zip(behind, found, strict=True):
            sums = one if sums is None else [a + b for a, b in zip(sums, one, strict=True)]
            done += len(part.labels)
            if clients.progress is not None:
                clients.progress(done, len(clients.source))
            if part.is_last:
                yield self._score(sums, part.examples)
                sums = None

    def _parts(self, clients: Clients) -> Iterator[_Part]:
        """Each client's examples, as many at a time as make a pass."""
        order = clients.rows.argsort(stable=True)
        for places in torch.split(order, clients.counts().tolist()):
            size = clients.batch_size or rows_a_pass(self.layout, len(places), 1)
            pieces = torch.split(places, size)
            for number, piece in enumerate(pieces, 1):
                yield _Part(*_read(clients, piece), len(places), number == len(pieces))

    def _gradients(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Gradients:
        """Gradients of the summed loss of some examples, one for each name, float64."""
        first = next(model.parameters())
        dtype = first.dtype if inputs.is_floating_point() else None
        with torch.enable_grad():
            logits = run(model, move(inputs, first.device, dtype))
            check_labels(labels, len(inputs), logits.shape[1])
            loss = functional.cross_entropy(
                logits, move(labels, first.device).long(), reduction="sum"
            )
            if first.device.type == "cpu" and not bool(loss.isfinite()):
                raise ModelError(
                    f"the loss of {self.layout.model_name} is {loss.item()} for an example; "
                    f"weights and inputs must be finite"
                )
            parameters = [model.get_parameter(name) for name in self.units]
            found = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return [gradient.double() for gradient in found]

    def _score(self, sums: Gradients, examples: int) -> Tensor:
        scores = torch.zeros(len(self.layout), dtype=torch.float64, device=self.device)
        for name, gradient in zip(self.units, sums, strict=True):
            parameter = self.model.get_parameter(name).detach().double()
            squares = _by_output(
                (parameter * gradient / examples).square_(),
                bool(
                    getattr(self.model.get_submodule(name.rpartition(".")[0]), "transposed", False)
                ),
            )
            units = self.units[name].to(self.device)
            scores.index_add_(0, units[units >= 0], squares[units >= 0])
        return scores


def _by_output(squares: Tensor, transposed: bool) -> Tensor:
    """Sum a parameter's squares over each of its layer's outputs."""
    turned = squares.transpose(0, 1) if transposed and squares.ndim > 1 else squares
    return turned.flatten(1).sum(1) if turned.ndim > 1 else turned


def _read(clients: Clients, places: Tensor) -> tuple[Tensor, Tensor]:
    """Read examples at rising places, neighbours together."""
    breaks = (places.diff() != 1).nonzero().flatten() + 1
    runs = places.tensor_split(breaks)
    read = [clients.source.batch(int(run[0]), int(run[-1]) + 1) for run in runs]
    return torch.cat([inputs for inputs, _ in read]), torch.cat([labels for _, labels in read])
