"""Which rows a configuration means, and who holds them."""

from __future__ import annotations

from functools import lru_cache

from fedprune import data
from fedprune.config import Config
from fedprune.data import Dataset, Federation


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
