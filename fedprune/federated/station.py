"""What a client process has of its own: its rows, its ledger, its randomness.

In a simulation one station serves all clients of the process and shares one ledger file; a
deployed client has a station to itself, whose data path, ledger path and budget come from its
node's own configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprune import pruning, robustness
from fedprune.data import Dataset, Federation, Rows
from fedprune.errors import (
    FederationError,
    FedpruneError,
    LayoutMismatchError,
    RefusedInDeploymentError,
)
from fedprune.federated.group_scores import GroupScores
from fedprune.federated.kept import KeptOfRows, array_digest
from fedprune.federated.kept_scores import KeptScores
from fedprune.federated.messages import Question, model_digest
from fedprune.federated.node_settings import NodeSettings
from fedprune.named import is_reference
from fedprune.privacy import Ledger, SigningKey
from fedprune.randomness import Randomness, SecureRandomness, SimulationRandomness
from fedprune.runs import Architecture, load_weights_vector

Index = NDArray[np.int64]

_KEPT_MODELS = 4
_UNKNOWN = -1


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
    """The clients' side of one process; it keeps what is costly to make again.

    Attributes:
        ledger: where its clients' charges are written down.
        dataset: the rows that this process can see.
        federation: which of them are whose; None where all are the one client's own.
        node: the operator's settings of a deployed client; None in a simulation.
        signing_key: of a deployed client's receipts.
        deterministic: whether each client's scores are computed alone and on one thread.
        memory: what earlier runs of this process have computed from the same rows.
    """

    def __init__(
        self,
        ledger: Ledger,
        dataset: Dataset,
        federation: Federation | None,
        *,
        node: NodeSettings | None = None,
        signing_key: SigningKey | None = None,
        deterministic: bool = False,
        memory: KeptOfRows | None = None,
    ) -> None:
        """Take what this process's clients own."""
        self.ledger, self.dataset, self.federation = ledger, dataset, federation
        self.node, self.signing_key, self.deterministic = node, signing_key, deterministic
        self.memory = memory
        self._scores = KeptScores(1 if federation is None else federation.num_clients)
        self._correct: dict[tuple[str, str], NDArray[np.int8]] = {}
        self._certifiers: dict[str, robustness.Certifier] = {}
        self._local_certifiers: dict[str, robustness.LocalCertifier] = {}

    @property
    def simulated(self) -> bool:
        """Whether this station's clients are simulated; fixed when it was opened."""
        return self.node is None

    def simulation_only(self, what: str) -> None:
        """Let a request pass in simulation only.

        Raises:
            RefusedInDeploymentError: on a deployed client.
        """
        if not self.simulated:
            raise RefusedInDeploymentError(f"a deployed client refuses {what}")

    def admit(self, question: Question) -> None:
        """Refuse what a server may not ask of a deployed client.

        Raises:
            RefusedInDeploymentError: if the question is counterfactual, names a seed, or names
                code to import that the client's own operator did not name.
            FederationError: if the network is not for this client's data, or there is no such one.
        """
        if question.counterfactual:
            self.simulation_only("a counterfactual question")
        if question.seed is not None:
            self.simulation_only(
                f"a seed (the server named {question.seed}): it draws from its operating system"
            )
        model = question.architecture.model
        if self.node is not None and is_reference(model) and model != self.node.model:
            self.simulation_only(f"to import {model!r}, which its own node config does not name")
        self._check_architecture(question.architecture)

    def _check_architecture(self, architecture: Architecture) -> None:
        asked = (architecture.num_classes, architecture.input_shape)
        own = (self.dataset.num_classes, self.dataset.input_shape)
        if asked != own:
            raise FederationError(
                f"the server's network is for (classes, input shape) = {asked}, this client's data "
                f"have {own}"
            )
        try:
            _ = architecture.own_layout
        except LayoutMismatchError:
            raise
        except FedpruneError as error:
            raise FederationError(f"the server's network cannot be built: {error}") from None

    def randomness(self, question: Question, *labels: str | int) -> Randomness:
        """The source for a mechanism: the CSPRNG, or in simulation the labelled stream."""
        if not self.simulated:
            return SecureRandomness()
        return SimulationRandomness(_seed(question), *labels)

    def generator(self, question: Question, *labels: str | int) -> np.random.Generator:
        """A generator for what needs no privacy: the order of rows in training."""
        if not self.simulated:
            return np.random.default_rng()
        return SimulationRandomness(_seed(question), *labels).generator

    def rows(self, split: str) -> Rows:
        """All rows of "train" or "test" that this process can see."""
        return self.dataset.train if split == "train" else self.dataset.test

    def index(self, client: int, split: str) -> Index:
        """Places of one client's rows."""
        if self.federation is None:
            return np.arange(len(self.rows(split)), dtype=np.int64)
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
        how = (question.text("criterion"), self._precision(question), GroupScores.asked(question))
        key = f"{question.model_digest} {how}"
        return self._scores.get(key, clients, lambda missing: self._computed(question, missing))

    def _precision(self, question: Question) -> str:
        """What a simulation's server found good enough; a deployed client scores in float32."""
        if not self.simulated or self.deterministic:
            return "float32"
        return str(question.settings.get("precision", "float32"))

    def _computed(self, question: Question, clients: Sequence[int]) -> Tensor:
        parts = [[client] for client in clients] if self.deterministic else [clients]
        return torch.cat([self._score(question, part) for part in parts])

    def _score(self, question: Question, clients: Sequence[int]) -> Tensor:
        places, owners = self.cohort_index(clients, "train")
        ids, grouped = np.asarray(clients)[owners], GroupScores.asked(question)
        if grouped is not None:
            column = self.dataset.train.group(grouped.groups)
            ids = grouped.ids(ids, column.codes[places], len(column.names))
        count = 1 if self.deterministic else torch.get_num_threads()
        criterion, precision = question.text("criterion"), self._precision(question)

        def compute() -> Tensor:
            model, layout = question.architecture.build()
            load_weights_vector(model, question.weights)
            source = RowSource(self.dataset.train, places)
            with threads(count):
                scores = pruning.score_clients(
                    model,
                    layout,
                    source,
                    None,
                    torch.from_numpy(ids),
                    criterion=criterion,
                    seed=question.seed,
                    precision=precision,
                )
            if grouped is None:
                return scores
            return grouped.combine(scores, ids, len(column.names))

        if self.memory is None:
            return compute()
        batch = array_digest(places, ids, np.asarray(clients))
        how = (question.model_digest, criterion, question.seed, count, precision, grouped, batch)
        return self.memory.get(("scores", *how), compute, lambda found: found.nbytes)

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
            known[todo] = self._evaluate(key[0], architecture, weights, split, todo)
        while len(self._correct) > _KEPT_MODELS:
            self._correct.pop(next(iter(self._correct)))
        return np.asarray(known[places] == 1, dtype=np.bool_)

    def _evaluate(
        self, digest: str, architecture: Architecture, weights: Tensor, split: str, places: Index
    ) -> NDArray[np.int8]:
        def compute() -> NDArray[np.int8]:
            model, source = model_of(architecture, weights), RowSource(self.rows(split), places)
            return _right(model, architecture.own_layout, source)

        if self.memory is None:
            return compute()
        how = (digest, split, torch.get_num_threads(), array_digest(places))
        return self.memory.get(("right", *how), compute, lambda found: found.nbytes)

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

    def local_certifier(
        self, architecture: Architecture, weights: Tensor
    ) -> robustness.LocalCertifier:
        """The certifier of a model inside balls, made once; LipSDP, which is slow, is left out."""
        key = model_digest(architecture, weights)
        if key not in self._local_certifiers:
            self._local_certifiers[key] = robustness.LocalCertifier.of(
                model_of(architecture, weights),
                architecture.example_input,
                input_std=self.dataset.input_std,
                work=-1,
            )
        return self._local_certifiers[key]

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()


def model_of(architecture: Architecture, weights: Tensor) -> nn.Module:
    """Build a model of its own (eval mode) with the given state."""
    model, _ = architecture.build()
    load_weights_vector(model, weights)
    return model.eval()


def _right(model: nn.Module, layout: pruning.UnitLayout, source: RowSource) -> NDArray[np.int8]:
    """Evaluate in batches: 1 where the largest score is the label's."""
    return np.asarray(pruning.correct_predictions(model, layout, source).numpy(), dtype=np.int8)


def _seed(question: Question) -> int:
    if question.seed is None:
        raise FederationError("a simulated client needs the seed that the server draws with")
    return question.seed


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
