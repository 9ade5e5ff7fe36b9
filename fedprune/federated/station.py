"""What a client process has of its own: its rows, its ledger, its randomness.

In a simulation one station serves all clients of the process and shares one ledger file; a
deployed client has a station to itself, whose data path, ledger path and budget come from its
node's own configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprune import config as configuration
from fedprune import pruning, robustness, study
from fedprune.config import Config, Scalar
from fedprune.data import Dataset, Rows
from fedprune.errors import FederationError, ModelError, RefusedInDeploymentError
from fedprune.federated.messages import Question, model_digest
from fedprune.federated.process import is_simulated
from fedprune.privacy import Budget, Ledger
from fedprune.randomness import Randomness, SecureRandomness, SimulationRandomness
from fedprune.runs import Architecture, load_weights_vector

Index = NDArray[np.int64]

_EVALUATION_BATCH = 250
_KEPT_MODELS = 4
_UNKNOWN = -1
_OWN_SETTINGS = ("data-root", "ledger", "epsilon", "tables", "partition-id")


class RowSource:
    """Rows at given places, read a batch at a time so that images stay compact."""

    def __init__(self, rows: Rows, index: Index) -> None:
        """Take rows and the places [n] to read, in order."""
        self._rows, self._index = rows, index

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._index)

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Read inputs [stop - start, *input_shape] float32 and labels [stop - start] int64."""
        places = self._index[start:stop]
        return self._rows.inputs(places), self._rows.targets(places)


class Station:
    """The clients' side of one process; it keeps what is costly to make again."""

    def __init__(self, config: Config, ledger: Ledger, dataset: Dataset) -> None:
        """Divide the data and take the ledger."""
        self.config, self.ledger, self.dataset = config, ledger, dataset
        self.simulated = is_simulated()  # the process's own word; worker threads inherit it
        self.federation = study.divide(config, dataset)
        self._scores: tuple[str, dict[int, Tensor]] = ("", {})
        self._correct: dict[tuple[str, str], NDArray[np.int8]] = {}
        self._certifiers: dict[str, robustness.Certifier] = {}

    def simulation_only(self, what: str) -> None:
        """Let a request pass in simulation only.

        Raises:
            RefusedInDeploymentError: on a deployed client.
        """
        if not self.simulated:
            raise RefusedInDeploymentError(f"a deployed client refuses {what}")

    def randomness(self, *labels: str | int) -> Randomness:
        """The source for a mechanism: the CSPRNG, or in simulation the labelled stream."""
        if not self.simulated:
            return SecureRandomness()
        return SimulationRandomness(self.config.seed, *labels)

    def generator(self, *labels: str | int) -> np.random.Generator:
        """A generator for what needs no privacy: the order of rows in training."""
        if not self.simulated:
            return np.random.default_rng()
        return SimulationRandomness(self.config.seed, *labels).generator

    def rows(self, split: str) -> Rows:
        """All rows of "train" or "test" that this process can see."""
        return self.dataset.train if split == "train" else self.dataset.test

    def index(self, client: int, split: str) -> Index:
        """Places of one client's rows."""
        if split == "train":
            return self.federation.train_index(client)
        return self.federation.test_index(client)

    def cohort_index(self, clients: Sequence[int], split: str) -> tuple[Index, Index]:
        """Places of several clients' rows, and for each row its position in `clients`."""
        parts = [self.index(client, split) for client in clients]
        owners = np.repeat(np.arange(len(clients)), [len(part) for part in parts])
        places = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        return places, owners

    def scores(self, question: Question, clients: Sequence[int]) -> Tensor:
        """Score all units on each client's own training rows: [clients, num_units] float32.

        Scores of the latest model are kept, so that baselines on the same model cost nothing.
        """
        key = f"{question.model_digest} {question.text('criterion')}"
        if self._scores[0] != key:
            self._scores = (key, {})
        known = self._scores[1]
        missing = sorted(client for client in clients if client not in known)
        if missing:
            for client, row in zip(missing, self._score(question, missing), strict=True):
                known[client] = row
        return torch.stack([known[client] for client in clients])

    def _score(self, question: Question, clients: Sequence[int]) -> Tensor:
        model, layout = question.architecture.build()
        load_weights_vector(model, question.weights)
        places, owners = self.cohort_index(clients, "train")
        return pruning.score_clients(
            model,
            layout,
            RowSource(self.dataset.train, places),
            None,
            torch.from_numpy(np.asarray(clients)[owners]),
            criterion=question.text("criterion"),
            seed=self.config.seed if self.simulated else None,
        )

    def correct(
        self, question: Question, dense: bool, split: str, places: Index
    ) -> NDArray[np.bool_]:
        """Whether a model is right on the rows at `places`: [len(places)] bool.

        Kept per row and model, so that a dense model compared with many pruned ones is
        evaluated once.
        """
        weights = question.reference if dense else question.weights
        if weights is None:
            raise FederationError("an evaluation question needs the dense model as its reference")
        architecture = question.architecture.without_mask() if dense else question.architecture
        key = (model_digest(architecture, weights), split)
        known = self._correct.setdefault(
            key, np.full(len(self.rows(split)), _UNKNOWN, dtype=np.int8)
        )
        todo = places[known[places] == _UNKNOWN]
        if len(todo):
            model = model_of(architecture, weights)
            known[todo] = _right(model, RowSource(self.rows(split), todo))
        while len(self._correct) > _KEPT_MODELS:
            self._correct.pop(next(iter(self._correct)))
        return np.asarray(known[places] == 1, dtype=np.bool_)

    def certifier(self, architecture: Architecture, weights: Tensor) -> robustness.Certifier:
        """The certifier of a model, made once."""
        key = model_digest(architecture, weights)
        if key not in self._certifiers:
            self._certifiers[key] = robustness.Certifier.of(
                model_of(architecture, weights),
                architecture.example_input,
                input_std=self.dataset.input_std,
            )
        return self._certifiers[key]

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()


def model_of(architecture: Architecture, weights: Tensor) -> nn.Module:
    """Build a model of its own (eval mode) with the given state."""
    model, _ = architecture.build()
    load_weights_vector(model, weights)
    return model.eval()


def _right(model: nn.Module, source: RowSource) -> NDArray[np.int8]:
    """Evaluate in batches: 1 where the largest score is the label's."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(source), _EVALUATION_BATCH):
            inputs, labels = source.batch(start, start + _EVALUATION_BATCH)
            scores = model(inputs)
            if not bool(torch.isfinite(scores).all()):
                raise ModelError("the model's scores are not finite on a client's rows")
            found.append((scores.argmax(dim=1) == labels).numpy())
    return np.concatenate(found).astype(np.int8)


_STATIONS: dict[str, Station] = {}


def station_of(run_config: Mapping[str, Scalar], node_config: Mapping[str, Scalar]) -> Station:
    """The station of this process for a run; made at the first question, then kept.

    Raises:
        FedpruneError: if the configuration, the data or the ledger cannot be used.
    """
    key = repr((is_simulated(), sorted(run_config.items()), _own_settings(node_config)))
    if key not in _STATIONS:
        close_stations()
        _STATIONS[key] = _open_station(configuration.from_flat(run_config), node_config)
    return _STATIONS[key]


def close_stations() -> None:
    """Close what this process keeps open for its clients."""
    while _STATIONS:
        _STATIONS.popitem()[1].close()


def _own_settings(node_config: Mapping[str, Scalar]) -> list[tuple[str, Scalar]]:
    return sorted((k, v) for k, v in node_config.items() if k in _OWN_SETTINGS)


def _open_station(config: Config, node_config: Mapping[str, Scalar]) -> Station:
    if is_simulated():
        ledger = Ledger.open(
            Path(config.out) / "ledger.sqlite", budget=Budget(config.privacy.epsilon)
        )
        return Station(config, ledger, study.load_dataset(config))
    missing = [name for name in ("data-root", "ledger", "epsilon") if name not in node_config]
    if missing:
        raise RefusedInDeploymentError(
            f"a deployed client needs {', '.join(missing)} in its own node config: its data, its "
            "ledger and its budget are never taken from a server"
        )
    tables = "unprotected" if node_config.get("tables") == "unprotected" else "off"
    own = config.model_copy(
        update={
            "data": config.data.model_copy(update={"root": str(node_config["data-root"])}),
            "evaluate": config.evaluate.model_copy(update={"tables": tables}),
        }
    )
    ledger = Ledger.open(
        str(node_config["ledger"]),
        budget=Budget(float(node_config["epsilon"])),
        owner=f"client {node_config.get('partition-id', '?')}",
        private=True,
    )
    return Station(own, ledger, study.load_dataset(own))
