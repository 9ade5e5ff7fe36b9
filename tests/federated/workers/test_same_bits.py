"""A client trained in a worker is the client trained here, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedprune.data import Rows, Scaling
from fedprune.federated.station import threads
from fedprune.federated.trainers import Trainers
from fedprune.federated.training import LocalTraining
from fedprune.federated.workers import Pool, Trained, Work, WorkersUnavailableError
from fedprune.randomness import SimulationRandomness
from fedprune.runs import Architecture, weights_vector

IMAGES = (3, 16, 16)


@pytest.fixture(scope="module", params=[1, 2], ids=["one-worker", "two-workers"])
def own_pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    with Pool(request.param) as found:
        assert found.ready(120.0)
        yield found


def work_of(name: str, batch_size: int, shape: tuple[int, ...] = IMAGES, keep: float = 1.0) -> Work:
    """Six clients of 1, 2, 5, 8, 9 and 13 rows, scattered over all rows."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (60, *shape)).astype(np.uint8)
    scaling = Scaling(255.0, (0.5,) * shape[0], (0.25,) * shape[0])
    architecture = Architecture.dense(name, 10, shape)
    if keep < 1:
        units = torch.zeros(len(architecture.dense_layout), dtype=torch.bool)
        units[:: round(1 / keep)] = True
        architecture = architecture.with_mask(units)
    model, _ = architecture.build()
    sizes = np.cumsum([1, 2, 5, 8, 9, 13])
    return Work(
        rows=Rows(pixels, random.integers(0, 10, 60), scaling),
        architecture=architecture,
        weights=weights_vector(model),
        how=LocalTraining(2, batch_size, 0.02, 0.9, 1e-4),
        seed=11,
        labels=("train", "train-4"),
        clients=[3, 8, 0, 40, 41, 7],
        places=np.split(random.permutation(60), sizes)[:6],
    )


def trained_here(work: Work) -> list[tuple[float, Tensor]]:
    trainers, found = Trainers(), []
    for client, places in zip(work.clients, work.places, strict=True):
        trainer = trainers.take(work.architecture)
        random = SimulationRandomness(work.seed, *work.labels, client).generator
        rows = work.rows.inputs(places), work.rows.targets(places)
        with threads(1):
            loss = trainer.train(work.weights, *rows, work.how, random)
        found.append((loss, trainer.read()))
        trainers.bring_back(work.architecture, trainer)
    return found


def trained_in(pool: Pool, work: Work) -> list[tuple[float, Tensor]]:
    found: dict[int, tuple[float, Tensor]] = {}
    for position, outcome in pool.train(work, 300.0):
        assert isinstance(outcome, Trained), outcome
        found[position] = outcome.loss, torch.from_numpy(outcome.weights.copy())
    return [found[position] for position in range(len(work.clients))]


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [("mlp", 4), ("lenet", 1), ("lenet", 4), ("lenet", 32), ("resnet20", 4), ("squeezenet1_1", 6)],
)
def test_workers_and_this_process_train_alike(own_pool: Pool, name: str, batch_size: int) -> None:
    shape = (3, 32, 32) if name == "squeezenet1_1" else IMAGES
    work = work_of(name, batch_size, shape)
    for here, there in zip(trained_here(work), trained_in(own_pool, work), strict=True):
        assert here[0] == there[0]
        assert torch.equal(here[1], there[1])


def test_pruned_networks_train_alike(own_pool: Pool) -> None:
    for keep in (0.5, 0.25):
        work = work_of("lenet", 4, keep=keep)
        for here, there in zip(trained_here(work), trained_in(own_pool, work), strict=True):
            assert torch.equal(here[1], there[1])


def test_rows_that_follow_others_are_the_ones_trained_on(own_pool: Pool) -> None:
    first, second = work_of("mlp", 4), work_of("mlp", 4, (1, 8, 8))
    for work in (first, second, first):
        there = trained_in(own_pool, work)
        assert all(torch.equal(a[1], b[1]) for a, b in zip(trained_here(work), there, strict=True))


def test_rows_mapped_from_a_file_need_no_copy_and_train_alike(
    own_pool: Pool, tmp_path: Path
) -> None:
    work = work_of("mlp", 4)
    path = tmp_path / "rows.npy"
    np.save(path, np.concatenate([np.zeros((3, *IMAGES), np.uint8), work.rows.stored]))
    mapped = np.load(path, mmap_mode="r")[3:]  # a slice says its parent's place in the file
    of_file = replace(work, rows=Rows(mapped, work.rows.labels, work.rows.scaling))
    for here, there in zip(trained_here(work), trained_in(own_pool, of_file), strict=True):
        assert torch.equal(here[1], there[1])


def test_rows_read_by_code_of_the_users_own_stay_in_this_process(own_pool: Pool) -> None:
    class Augmented(Rows):
        pass

    work = work_of("mlp", 4)
    own = Augmented(work.rows.stored, work.rows.labels, work.rows.scaling)
    with pytest.raises(WorkersUnavailableError, match="Augmented"):
        list(own_pool.train(replace(work, rows=own), 300.0))
    assert len(trained_in(own_pool, work)) == 6
