"""What a configuration asks for that its network or data cannot give, refused before a run."""

from __future__ import annotations

import torch
from torch import nn

from fedprune import fairness, robustness, runs
from fedprune.config import Config
from fedprune.data import Dataset, Schema
from fedprune.errors import ConfigError, PruningError
from fedprune.pruning import UnitLayout
from fedprune.study.availability import trace_of
from fedprune.study.clients import divide


def check_data(config: Config, schema: Schema, dataset: Dataset | None) -> None:
    """Refuse data that cannot be divided, no trace of these clients, and groups of no use.

    Where the rows are at hand and count tables are asked for, the test rows must be of at least
    two groups: what is measured on them at the end would be lost.

    Raises:
        FedpruneError: naming the first of them.
    """
    if dataset is not None:
        divide(config, dataset)
    trace_of(config)
    schema.group_names(config.data.groups)
    if dataset is not None and config.evaluate.tables != "off":
        groups = config.data.groups
        column = dataset.test.group(groups)
        fairness.check_groups(column.codes, column.names, group=groups)


def check_network(config: Config, schema: Schema, layout: UnitLayout, model: nn.Module) -> None:
    """Refuse what the network has no units, no margins, no statistics or no bound for.

    Raises:
        FedpruneError: naming the first of them.
    """
    _check_budget(config, layout)
    example = torch.zeros(1, *schema.input_shape)
    if config.train.margin_radius:
        robustness.MarginLoss(model, example, config.train.margin_radius)
    if config.train.recalibrate and not robustness.batch_norm_layers(model):
        raise ConfigError(
            f"train.recalibrate must be 0 for {config.model.name}, which has no batch norm with "
            f"running statistics, got {config.train.recalibrate}"
        )
    if config.prune.bound_slack:
        robustness.lipschitz(model, example, samples=0, tighten=False)
    if config.evaluate.local_certificates:
        local = robustness.LocalCertifier.of(model, example, work=-1)
        local.certified(
            example, torch.zeros(1, dtype=torch.int64), config.evaluate.certified_radius
        )


def _check_budget(config: Config, layout: UnitLayout) -> None:
    """Refuse a budget that not even one unit a layer fits into."""
    name, final = config.prune.budget
    floors = sum(min(config.prune.floor, len(group)) for group in layout.groups)
    if name == "keep_units" and int(final * len(layout) + 1e-9) < floors:
        raise PruningError(
            f"prune.keep_units = {final:g} keeps {int(final * len(layout) + 1e-9)} of "
            f"{len(layout)} units, but prune.floor = {config.prune.floor} needs {floors}"
        )
    if name != "keep_units" or config.prune.round_to > 1:
        times = runs.latency_table(config)
        runs.select_units(config, torch.zeros(len(layout)), layout, {name: final}, times)
