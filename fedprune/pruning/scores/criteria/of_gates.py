"""How a criterion of the units' gates is made: what each example is asked, and what of the means.

All clients' examples go through the network together; a client's row is made of the means over its
own examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedprune.pruning.scores.clients import Clients
from fedprune.pruning.scores.criteria.criterion import Batches, Criterion, Question, mean_over
from fedprune.pruning.scores.gates import GateGradients, Probe
from fedprune.pruning.scores.separate_gates import GateLayout
from fedprune.pruning.structure.layout import UnitLayout

_WORD_BYTES = 8

Finish = Callable[[UnitLayout, Tensor], Tensor]


@dataclass(frozen=True)
class GateValues:
    """A probe's values for each example, as `Clients` sums them.

    What a probe draws for an example is named by the example's own inputs: whoever holds it,
    in whichever batch and place, it is drawn alike.
    """

    gates: GateGradients
    probe: Probe
    seed: int | None

    @property
    def device(self) -> torch.device:
        """Where the values lie."""
        return self.gates.device

    @property
    def workers(self) -> int:
        """Batches that may be worked on at once."""
        return self.gates.workers

    @property
    def num_values(self) -> int:
        """Values of each example."""
        return self.probe.columns * self.gates.num_units

    def batch_size(self, examples: int) -> int:
        """Examples of a fast pass, where there are so many in all."""
        return self.gates.batch_size(examples)

    def of(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Values [batch, num_values] of one batch."""
        return self.gates.measure(
            inputs, labels, self.probe, lambda count: uniforms_of(inputs, count, self.seed)
        )


def uniforms_of(inputs: Tensor, count: int, seed: int | None) -> Tensor:
    """Draw numbers for examples that depend on nothing but each example's inputs and the seed.

    Args:
        inputs: [batch, ...].
        count: Numbers for each example.
        seed: None is a stream of its own.

    Returns:
        [batch, count] float64, uniform in [0, 1).
    """
    values = inputs.detach().cpu()
    rows = (values.float() if values.is_floating_point() else values).numpy()
    key = repr(("scores", "examples", seed)).encode()
    texts = (
        hashlib.shake_128(key + row.astype(row.dtype.newbyteorder("<")).tobytes())
        for row in rows.reshape(len(rows), -1)
    )
    words = b"".join(text.digest(_WORD_BYTES * count) for text in texts)
    drawn = np.frombuffer(words, dtype="<u8").reshape(len(rows), count) >> np.uint64(11)
    return torch.from_numpy(drawn.astype(np.float64) * 2.0**-53)


def of_gates(
    probe_of: Callable[[UnitLayout], Probe],
    finish: Finish,
    *,
    is_signed: bool = False,
    gated: Callable[[UnitLayout], UnitLayout] = lambda layout: layout,
    secants: bool = False,
) -> Criterion:
    """Make a criterion of a probe: scores are a function of the mean over a minibatch's examples.

    Args:
        probe_of: From the layout to what each example is asked.
        finish: From the layout and means [n, columns * num_gates] to scores [n, num_units].
        is_signed: Whether scores may fall below zero.
        gated: The layout whose units have a gate each, made of the one that is scored.
        secants: Whether separate gates, of a `GateLayout`, are closed exactly as far as the next
            activation.
    """

    def values_of(question: Question) -> GateValues:
        layout = gated(question.layout)
        exactly = secants and isinstance(layout, GateLayout)
        gates = GateGradients(question.model, layout, question.precision, secants=exactly)
        return GateValues(gates, probe_of(layout), question.seed)

    def of_batches(question: Question, batches: Batches) -> Tensor:
        values = values_of(question)
        means = (Clients.of_one(*batch).mean_rows(values) for batch in batches)
        return mean_over(finish(question.layout, mean)[0] for mean in means)

    def of_clients(question: Question, clients: Clients) -> Tensor:
        return finish(question.layout, clients.mean_rows(values_of(question)))

    return Criterion(of_batches, of_clients, is_signed=is_signed)


def as_they_are(_layout: UnitLayout, means: Tensor) -> Tensor:
    """Scores that are the means themselves."""
    return means
