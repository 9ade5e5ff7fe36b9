"""Opening the station of a client process: the simulation's shared one, or a node's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedprune import config as configuration
from fedprune import data, study
from fedprune.config import Config, Scalar
from fedprune.data import Dataset, Federation
from fedprune.errors import RefusedInDeploymentError
from fedprune.federated.kept import Kept
from fedprune.federated.node_settings import CLIENT_KEY, NodeSettings
from fedprune.federated.process import is_simulated
from fedprune.federated.station import Station
from fedprune.named import is_reference
from fedprune.privacy import Ledger, SigningKey
from fedprune.runs import Architecture, budgets

_STATIONS: dict[str, Station] = {}


def station_of(
    run_config: Mapping[str, Scalar], node_config: Mapping[str, Scalar], flower_run: int
) -> Station:
    """The station of this process for a run; made at the first question, then kept.

    Args:
        run_config: the run's configuration, flat.
        node_config: the node's own; a simulated client's number is all that is used of it.
        flower_run: Flower's number of the run.

    Raises:
        FedpruneError: if the configuration, the data or the ledger cannot be used.
    """
    simulated = is_simulated()
    key = _key(simulated, run_config, {} if simulated else node_config, flower_run)
    if key not in _STATIONS:
        close_stations()
        config = configuration.from_flat(run_config)
        _STATIONS[key] = (
            _simulated(config, flower_run, None) if simulated else _deployed(config, node_config)
        )
    return _STATIONS[key]


def open_simulation(run_config: Mapping[str, Scalar], flower_run: int, kept: Kept) -> None:
    """Open the station of a simulation in this process with what earlier runs have left.

    Args:
        run_config: the run's configuration, flat, as `station_of` will be asked with.
        flower_run: Flower's number of the run.
        kept: what the runs of this process share.

    Raises:
        FedpruneError: if the configuration, the data or the ledger cannot be used.
    """
    close_stations()
    station = _simulated(configuration.from_flat(run_config), flower_run, kept)
    _STATIONS[_key(True, run_config, {}, flower_run)] = station


def _key(
    simulated: bool,
    run_config: Mapping[str, Scalar],
    node_config: Mapping[str, Scalar],
    flower_run: int,
) -> str:
    own = sorted(node_config.items())
    return repr((simulated, flower_run, sorted(run_config.items()), own))


def close_stations() -> None:
    """Close what this process keeps open for its clients."""
    while _STATIONS:
        _STATIONS.popitem()[1].close()


def run_folder_path(config: Config, flower_run: int) -> Path:
    """Where a run's folder lies: as configured, else in the home folder under Flower's number."""
    if config.out:
        return Path(config.out)
    return Path.home() / "fedprune-runs" / str(flower_run)


def _simulated(config: Config, flower_run: int, kept: Kept | None) -> Station:
    if kept is None:
        dataset = study.load_dataset(config)
        federation = study.divide(config, dataset)
    else:
        dataset, federation = kept.dataset(config), kept.federation(config)
    ledger = Ledger.open(
        run_folder_path(config, flower_run) / "ledger.sqlite",
        budget=budgets(config, _num_units(config, dataset)),
    )
    deterministic = config.engine.deterministic
    memory = None if kept is None else kept.of_rows(config)
    return Station(ledger, dataset, federation, deterministic=deterministic, memory=memory)


def _num_units(config: Config, dataset: Dataset) -> int:
    schema = dataset.schema
    dense = Architecture.dense(config.model.name, schema.num_classes, schema.input_shape)
    return len(dense.dense_layout)


def _deployed(config: Config, node_config: Mapping[str, Scalar]) -> Station:
    node = NodeSettings.of(node_config)
    dataset = _own_rows(config, node)
    federation = _share(config, node, dataset)
    key = SigningKey.open(node.signing_key)
    ledger = Ledger.open(
        node.ledger,
        budget=node.budgets,
        head_copy=node.head_copy,
        owner=f"client {node.client}",
        private=True,
        signing_key=key.public,
    )
    return Station(ledger, dataset, federation, node=node, signing_key=key)


def _own_rows(config: Config, node: NodeSettings) -> Dataset:
    name = node.dataset or config.data.dataset
    if is_reference(name) and not node.dataset:
        raise RefusedInDeploymentError(
            f"a deployed client refuses to import {name!r}, which its own node config does not name"
        )
    dataset = data.load(name, node.data_root, seed=node.split_seed, own=True)
    if config.evaluate.split == "validation":
        return data.validation(dataset, seed=node.split_seed)
    return dataset


def _share(config: Config, node: NodeSettings, dataset: Dataset) -> Federation | None:
    if node.num_partitions is None:
        return None
    if node.client >= node.num_partitions:
        raise RefusedInDeploymentError(
            f"node config's {CLIENT_KEY} must be below num-partitions = {node.num_partitions}, "
            f"got {node.client}"
        )
    return data.partition(
        dataset,
        node.partition,
        clients=node.num_partitions,
        seed=node.split_seed,
        alpha=config.data.alpha,
        shards_per_client=config.data.shards_per_client,
    )
