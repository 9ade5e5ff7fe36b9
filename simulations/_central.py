"""Training at one place, for the studies that need a well-trained network: threads side by side.

On a processor every thread works on its share of a batch with modules of its own and shared
parameters, which keeps two cores busier than one pass on two threads; on an accelerator one thread
does it all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune import data

MARGIN = 4  # pixels by which an image is shifted at most, as in He et al. 2016
Batch = tuple[Tensor, Tensor, Tensor]  # inputs, shares of the classes, the teacher's logits


class Views:
    """A few fixed views of every image, shifted and mirrored, with what a teacher says of each.

    The teacher sees exactly what its student will see (Beyer et al. 2022, "A good teacher is
    patient and consistent"), but only once a view, not once an epoch: its part of the work does
    not grow with the number of epochs.

    A share of the views may be mixed with another image (mixup, Zhang et al. 2018): a teacher
    knows its training images by heart and says little of them beside their labels, but it has
    never seen a mixture.
    """

    def __init__(
        self,
        rows: data.Rows,
        count: int | None,
        views: int,
        seed: int,
        mixed: float = 0.0,
        cycle: int = 0,
    ) -> None:
        """Take the first `count` rows, or all; mix a share of the views, 0 to 1, with others.

        The image itself keeps a half to the whole of a mixture, uniformly drawn. Every `cycle`
        has views of its own.
        """
        count = len(rows) if count is None else min(count, len(rows))
        stored = torch.from_numpy(np.ascontiguousarray(rows.stored[:count]))
        padded = functional.pad(stored, (MARGIN,) * 4)
        self._height, self._width = stored.shape[2:]
        self._windows = padded.unfold(2, self._height, 1).unfold(3, self._width, 1)
        self._labels = rows.targets(slice(0, count))
        self._scaling = rows.scaling
        drawn = np.random.default_rng((seed, count, views, cycle))
        self._shifts = torch.from_numpy(drawn.integers(0, 2 * MARGIN + 1, (2, views, count)))
        self._mirrored = torch.from_numpy(drawn.random((views, count)) < 0.5)
        self._first = torch.from_numpy(drawn.integers(0, views, count))
        chosen, own = drawn.random((views, count)) < mixed, drawn.uniform(0.5, 1, (views, count))
        self._own = torch.from_numpy(np.where(chosen, own, 1).astype(np.float32))
        self._other = torch.from_numpy(drawn.integers(0, count, (views, count)))
        self.logits: list[Tensor] = []

    def __len__(self) -> int:
        """Number of images."""
        return len(self._labels)

    @property
    def count(self) -> int:
        """Views an image."""
        return len(self._mirrored)

    def inputs(self, places: Tensor, views: Tensor) -> Tensor:
        """Images [n, channels, height, width], scaled, each in the view that is named for it."""
        images = self.plain_inputs(places, views)
        own = self._own[views, places]
        mixed = torch.nonzero(own < 1).flatten()
        if len(mixed):
            others = self.plain_inputs(self._other[views, places][mixed], views[mixed])
            images[mixed] = torch.lerp(others, images[mixed], own[mixed][:, None, None, None])
        return images

    def targets(self, places: Tensor, views: Tensor, classes: int) -> Tensor:
        """Shares of the classes in each view, [n, classes]."""
        own = self._own[views, places][:, None]
        labels, others = (
            functional.one_hot(self._labels[rows], classes).to(own.dtype)
            for rows in (places, self._other[views, places])
        )
        return torch.lerp(others, labels, own)

    def plain_inputs(self, places: Tensor, views: Tensor) -> Tensor:
        """As `inputs`, but without mixing."""
        down, right = self._shifts[:, views, places]
        images = self._windows[places, :, down, right]
        turned = self._mirrored[views, places][:, None, None, None]
        return self._scaling.apply(torch.where(turned, images.flip(3), images))

    def ask(self, teacher: nn.Module, view: int, precision: Any, threads: int = 1) -> Tensor:
        """Logits of a teacher for all images in one view, [images, classes]."""
        device = next(teacher.parameters()).device
        at_once = threads if device.type == "cpu" else 1

        @torch.inference_mode()
        def answers(places: Tensor) -> Tensor:
            inputs = self.inputs(places, torch.full_like(places, view)).to(device)
            with precision():
                logits = teacher(inputs.contiguous(memory_format=torch.channels_last))
            return logits.float().cpu()

        each = 1 if device.type == "cpu" else 4
        with ThreadPoolExecutor(at_once, None, torch.set_num_threads, (each,)) as pool:
            return torch.cat(list(pool.map(answers, torch.arange(len(self)).split(250))))

    def first_views(
        self, size: int, random: np.random.Generator, *, mixed: bool
    ) -> Iterator[Tensor]:
        """Inputs of one pass in random order, each in its first view; whole batches.

        Mixed are those that are in training too, or none.
        """
        inputs = self.inputs if mixed else self.plain_inputs
        order = torch.from_numpy(random.permutation(len(self)))
        for start in range(0, len(self) - size + 1, size):
            places = order[start : start + size]
            yield inputs(places, self._first[places])

    def batches(self, size: int, epoch: int, random: np.random.Generator) -> Iterator[Batch]:
        """One pass over all images in random order, each in its view of this epoch.

        Whole batches only. `logits` must hold the teacher's for every view.
        """
        logits = torch.stack(self.logits)
        order = torch.from_numpy(random.permutation(len(self)))
        for start in range(0, len(self) - size + 1, size):
            places = order[start : start + size]
            views = (self._first[places] + epoch) % self.count
            targets = self.targets(places, views, logits.shape[-1])
            yield self.inputs(places, views), targets, logits[views, places]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        rate: largest learning rate; it rises over the first `warm_up` share and falls to zero
            along a half cosine.
        batch_size: images a step.
        momentum, weight_decay: of stochastic gradient descent (Nesterov).
        distill: weight of the teacher's Kullback-Leibler divergence in the loss, 0 to 1
            (Hinton et al. 2015).
        temperature: of the distillation.
        averaging: decay of the moving average of the weights, a step.
        warm_up: share of the steps.
    """

    rate: float = 0.02
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 2e-4
    distill: float = 0.7
    temperature: float = 3.0
    averaging: float = 0.999
    warm_up: float = 0.05

    def rate_at(self, share: float) -> float:
        """Learning rate when this share of the steps is done."""
        if share < self.warm_up:
            return self.rate * share / self.warm_up
        rest = (share - self.warm_up) / (1 - self.warm_up)
        return self.rate * 0.5 * (1 + float(np.cos(np.pi * rest)))


class Training:
    """A network in training, with a moving average of its weights."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        threads: int = 1,
        bfloat16: bool = False,
    ) -> None:
        """Take a network, which is trained in place."""
        self.recipe, self._bfloat16 = recipe, bfloat16
        self.device = next(model.parameters()).device
        on_host = self.device.type == "cpu"
        self.model = model.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model).eval()
        self._parameters = list(self.model.parameters())
        self._optimizer = torch.optim.SGD(
            [p for p in self._parameters if p.requires_grad],
            recipe.rate,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=True,
        )
        self._threads = threads if on_host else 1
        self._students = [self.model, *(_sharing(self.model) for _ in range(self._threads - 1))]
        self._pool = ThreadPoolExecutor(
            self._threads, initializer=torch.set_num_threads, initargs=(1 if on_host else 4,)
        )

    def step(self, batch: Batch, share: float) -> float:
        """Make one step on a batch; `share` of all steps is done. Gives the mean loss."""
        size = len(batch[1])
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.rate_at(share)
        parts = zip(*(whole.chunk(self._threads) for whole in batch), strict=True)
        work = [
            self._pool.submit(self._gradients, student, part, len(part[1]) / size)
            for student, part in zip(self._students, parts, strict=False)
        ]
        found = [one.result() for one in work]
        trained = [p for p in self._parameters if p.requires_grad]
        for parameter, *gradients in zip(trained, *(each for _, each in found), strict=True):
            parameter.grad = sum(gradients[1:], start=gradients[0])
        self._optimizer.step()
        self._follow()
        return sum(loss for loss, _ in found)

    def state(self) -> dict[str, Tensor]:
        """All that is needed to go on: weights, averages and momenta."""
        momenta = self._optimizer.state_dict()["state"]
        return {
            **{f"model.{name}": t for name, t in self.model.state_dict().items()},
            **{f"average.{name}": t for name, t in self.average.state_dict().items()},
            **{f"momentum.{i}": one["momentum_buffer"] for i, one in momenta.items()},
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        for module, prefix in ((self.model, "model."), (self.average, "average.")):
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )
        found: dict[str, Any] = self._optimizer.state_dict()
        found["state"] = {
            int(k.removeprefix("momentum.")): {"momentum_buffer": v.clone()}
            for k, v in state.items()
            if k.startswith("momentum.")
        }
        self._optimizer.load_state_dict(found)
        for student in self._students[1:]:
            _copy_buffers(self.model, student)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _gradients(
        self, student: nn.Module, batch: Batch, weight: float
    ) -> tuple[float, tuple[Tensor, ...]]:
        student.train()
        inputs, targets, wanted = (part.to(self.device) for part in batch)
        with self.precision():
            logits = student(inputs.contiguous(memory_format=torch.channels_last)).float()
        loss = weight * self._loss(logits, targets, wanted)
        parameters = [p for p in student.parameters() if p.requires_grad]
        return loss.item(), torch.autograd.grad(loss, parameters)

    def _loss(self, logits: Tensor, targets: Tensor, wanted: Tensor) -> Tensor:
        share, heat = self.recipe.distill, self.recipe.temperature
        divergence = functional.kl_div(
            functional.log_softmax(logits / heat, dim=1),
            functional.log_softmax(wanted / heat, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        labelled = functional.cross_entropy(logits, targets)
        return (1 - share) * labelled + share * heat**2 * divergence

    def precision(self) -> Any:
        """A context in which passes are computed as asked for."""
        if not self._bfloat16:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @torch.no_grad()
    def _follow(self) -> None:
        """Let the average follow; statistics are the first thread's."""
        decay = self.recipe.averaging
        followers = [p for p in self.average.parameters() if p.is_floating_point()]
        torch._foreach_lerp_(followers, self._parameters, 1 - decay)  # type: ignore[arg-type]
        for old, new in zip(self.average.buffers(), self.model.buffers(), strict=True):
            if old.is_floating_point():
                old.lerp_(new, 1 - decay)
            else:
                old.copy_(new)


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy whose batch norms hold the plain mean of the statistics of these inputs.

    An average of weights was never run in training: statistics averaged along with the weights
    are those of other networks (Izmailov et al. 2018, section 3.2).
    """
    made = copy.deepcopy(model)
    device = next(made.parameters()).device
    for module in made.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the cumulative mean
            module.train()
    for inputs in batches:
        made(inputs.to(device).contiguous(memory_format=torch.channels_last))
    return made.eval()


def _sharing(model: nn.Module) -> nn.Module:
    shared: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, shared)


def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    for new, old in zip(source.buffers(), target.buffers(), strict=True):
        old.copy_(new)
