"""A loss that trains for certificates: cross-entropy at the edge of a ball, from a cheap bound.

If every other logit j is raised by

    radius * ||w_y - w_j|| * L_body                                                      (1)

before the cross-entropy, an example is fitted only once its certified radius exceeds `radius`
(Tsuzuku et al., NeurIPS 2018; GloRo, Leino et al., ICML 2021, with the head's own pairs of rows in
place of one bound). L_body is the product bound of the part before the head, with the norm of each
layer followed by power iteration whose vectors are kept between steps: one convolution forward and
one back a layer and step, on a single example. It is differentiable in the weights, and lies below
the true product while the vectors still turn: fit for training, never for a certificate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune.copying import copy_model
from fedprune.errors import RobustnessError
from fedprune.robustness.affine import Affine
from fedprune.robustness.arguments import check_labels, check_radius, check_whole
from fedprune.robustness.branches import Extremum, Stack
from fedprune.robustness.live_layers import apply_live, head_rows, live_layers, scale_of
from fedprune.robustness.model_checks import check_module
from fedprune.robustness.network import Network, Std, input_scale
from fedprune.robustness.operations import Concatenation, Diagonal, Sum
from fedprune.robustness.tracer import lower

WARM_UP = 15
"""Power iterations before the first step."""


class MarginLoss:
    """Cross-entropy with every other logit raised to the edge of a ball; see equation (1).

    One object serves one model object through its training steps: it reads the live weights, with
    gradients, and keeps the vectors of the power iteration. It draws nothing at random and adds no
    parameter or hook to the model. After weights were loaded into the same model it goes on; for
    another model, such as a pruned one, make another.

        loss_of = MarginLoss(model, inputs[:1], radius=0.1)
        for inputs, labels in batches:
            loss = loss_of(model(inputs), labels)
            optimiser.zero_grad(); loss.backward(); optimiser.step()

    Batch norm counts with its running statistics, as it will be evaluated. A strong radius from
    the first step on can keep a network at chance: pass a smaller `radius` to the first calls.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor,
        radius: float,
        *,
        input_std: Std | None = None,
        iterations: int = 1,
    ) -> None:
        """Find the model's layers; the model may be in train mode and is not changed.

        Args:
            model: as for `lipschitz`; logits [n, classes].
            example_input: [1, ...], for its shape.
            radius: l2, in units of the unnormalised input; positive.
            input_std: [channels] of the normalisation in front of the model, or None.
            iterations: power iterations a layer and call, at least 1.

        Raises:
            RobustnessError: if the radius or iterations are out of range, or as for `lipschitz`.
            UnsupportedOpError: an operation without a rule.
        """
        check_module(model)
        self.radius = check_radius(radius)
        self._iterations = check_whole(iterations, "iterations", 1)
        if next(model.parameters(), None) is None:
            raise RobustnessError("the model has no parameters that a loss could train")
        network = lower(copy_model(model).eval(), example_input)
        shape = network.steps[network.output].shape if network.steps else network.input_shape
        if len(shape) != 2 or shape[1] < 2:
            raise RobustnessError(
                f"a margin needs logits [n, classes] with at least 2 classes, got {list(shape)}"
            )
        self._network, self._layers = network, live_layers(model, network)
        self._like = next(iter(model.parameters()))
        scale = input_scale(input_std, network.input_shape)
        self._input_bound = 1.0 if scale is None else float(scale.abs().max())
        self._head = network.head
        self._vectors: dict[str, Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Forget the vectors and find them anew for the present weights.

        What follows then depends on those weights alone, not on what was trained before.
        """
        self._vectors = {}
        with torch.no_grad():
            for _ in range(WARM_UP):
                self.body_bound()

    def bound_to(self, model: nn.Module) -> MarginLoss:
        """The same loss for another object of the same architecture, without tracing it again.

        Tracing may not run beside other threads' passes; this may.
        """
        made = copy.copy(self)
        made._layers = {name: layer.of_other(model) for name, layer in self._layers.items()}
        made._like, made._vectors = next(iter(model.parameters())), dict(self._vectors)
        return made

    @property
    def vectors(self) -> Mapping[str, Tensor]:
        """Where the power iteration stands; give it to `resume` to go on from there again."""
        return dict(self._vectors)

    def resume(self, vectors: Mapping[str, Tensor]) -> None:
        """Go on from where `vectors` was read, such as after weights were put back."""
        self._vectors = dict(vectors)

    def __call__(self, logits: Tensor, labels: Tensor, *, radius: float | None = None) -> Tensor:
        """Give the mean loss of a batch, to be minimised.

        Args:
            logits: [n, classes], of the model in its present state.
            labels: [n] integer classes.
            radius: another radius for this call, such as a part of the full one while training
                begins; 0 is plain cross-entropy.

        Raises:
            RobustnessError: if labels are not one class for each row of logits, or the radius is
                negative or not finite.
        """
        reach = self.radius if radius is None else check_radius(radius, may_be_zero=True)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise RobustnessError("logits must be a torch tensor [n, classes]")
        labels = check_labels(labels, *logits.shape)
        if reach == 0:
            return functional.cross_entropy(logits, labels)
        return functional.cross_entropy(logits + reach * self.gaps()[labels], labels)

    def gaps(self) -> Tensor:
        """How fast the difference of two logits can change: [classes, classes], differentiable."""
        bound = self.body_bound()
        if self._head is None:
            classes = self._network.steps[self._network.output].shape[1]
            return bound * math.sqrt(2) * (1 - torch.eye(classes, device=bound.device))
        weight = head_rows(self._layers[self._head])
        squares = torch.square(weight).sum(dim=1)
        apart = squares[:, None] + squares - 2 * weight @ weight.T
        # the square root has no slope at 0, where a row meets itself
        apart = apart.clamp_min(1e-12 * float(squares.detach().max()) + 1e-30)
        hidden = torch.eye(len(weight), device=weight.device, dtype=torch.bool)
        return bound * torch.sqrt(apart).masked_fill(hidden, 0.0)

    def body_bound(self) -> Tensor:
        """The product bound before the head (of all, without one) with live weights: a scalar."""
        network, end = self._network, self._network.output
        if self._head is not None:
            end = network.steps[self._head].inputs[0]
        one = torch.ones((), dtype=self._like.dtype, device=self._like.device)
        bounds: dict[str, Tensor] = {network.input: one * self._input_bound}
        for name in _before(network, end):
            step = network.steps[name]
            read = [bounds[source] for source in step.inputs]
            if name in self._layers:
                bounds[name] = read[0] * self._norm(name)
            elif isinstance(step.operation, Sum):
                weights = step.operation.weights
                parts = [abs(w) * bound for w, bound in zip(weights, read, strict=True)]
                bounds[name] = torch.stack(parts).sum()
            elif isinstance(step.operation, (Concatenation, Extremum, Stack)):
                bounds[name] = torch.linalg.vector_norm(torch.stack(read))
            else:
                bounds[name] = read[0] * step.operation.norm.value
        return bounds[end]

    def _norm(self, name: str) -> Tensor:
        """|A v| with v followed by power iteration: its gradient is that of the norm at v."""
        layer, step = self._layers[name], self._network.steps[name]
        operation, source = step.operation, step.inputs[0]
        if isinstance(operation, Diagonal):
            return scale_of(layer.module).abs().max()
        assert isinstance(operation, Affine)
        if name not in self._vectors:
            known = self._network.steps.get(source)
            shape = self._network.input_shape if known is None else known.shape
            self._vectors[name] = _first_vector(shape)
        vector = self._vectors[name].to(self._like)
        with torch.enable_grad():
            for _ in range(self._iterations):
                moving = vector.detach().requires_grad_(True)
                length = torch.linalg.vector_norm(apply_live(operation, layer, moving))
                (pulled,) = torch.autograd.grad(length, moving)
                size = torch.linalg.vector_norm(pulled)
                if not bool(size > 0):  # a layer of zeros, or a vector in its kernel
                    break
                vector = (pulled / size).detach()
        self._vectors[name] = vector
        norm: Tensor = torch.linalg.vector_norm(apply_live(operation, layer, vector))
        return norm


def _before(network: Network, end: str) -> list[str]:
    """Steps that a node needs, itself included, in order."""
    return list(replace(network, output=end).trimmed().steps)


def _first_vector(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(shape, generator=generator)
    vector /= torch.linalg.vector_norm(vector)
    return vector
