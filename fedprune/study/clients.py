"""What a configuration means: which rows, who holds them, which network to begin with."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from torch import nn

from fedprune import data, models
from fedprune.config import Config
from fedprune.data import Dataset, Federation, Schema


@lru_cache(maxsize=1)
def load_dataset(config: Config) -> Dataset:
    """Load the configured rows; under `evaluate.split = "validation"` test rows are not used.

    Raises:
        DataError: if files are missing or damaged.
    """
    dataset = data.load(config.data.dataset, config.data.root, seed=config.seed)
    if config.evaluate.split == "validation":
        return data.validation(dataset, seed=config.seed)
    return dataset


def divide(config: Config, dataset: Dataset) -> Federation:
    """Give every row to one client, as configured.

    Raises:
        DataError: if the rows cannot be divided so.
    """
    return data.partition(
        dataset,
        config.data.partition,
        clients=config.data.clients,
        seed=config.seed,
        alpha=config.data.alpha,
        shards_per_client=config.data.shards_per_client,
    )


def initial_model(config: Config, schema: Schema) -> nn.Module:
    """Build the dense network with its initial or given weights.

    `model.weights` is looked for as named, then under `data.root`.

    Raises:
        ModelError: if the network is unknown or the weights are missing or do not fit.
    """
    weights = config.model.weights
    under_root = Path(config.data.root) / weights
    if weights and not Path(weights).is_file() and under_root.is_file():
        weights = str(under_root)
    return models.load(
        config.model.name,
        weights=weights,
        num_classes=schema.num_classes,
        input_shape=schema.input_shape,
        seed=config.seed,
    )
