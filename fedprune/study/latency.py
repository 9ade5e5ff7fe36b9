"""How long the layers of the configured network take on this machine."""

from __future__ import annotations

import torch

from fedprune.config import Config
from fedprune.data import Schema
from fedprune.pruning import LatencyTable, UnitLayout
from fedprune.study.clients import initial_model


def measure_latency(
    config: Config, schema: Schema, *, batch_size: int = 1, threads: int = 1, repeats: int = 7
) -> LatencyTable:
    """Time every distinct layer of a configuration's network over its widths, on this machine.

    Args:
        config: which network.
        schema: what the clients' data look like.
        batch_size: examples a pass.
        threads: processor threads.
        repeats: timed turns of each point; medians count.

    Raises:
        FedpruneError: if the network cannot be built, or a count is out of range.
    """
    model = initial_model(config, schema)
    example = torch.zeros(1, *schema.input_shape)
    layout = UnitLayout.of(model, example)
    return LatencyTable.measure(
        model, layout, example, batch_size=batch_size, threads=threads, repeats=repeats
    )
