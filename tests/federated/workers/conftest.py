"""Pools for tests, and networks and rows that misbehave in them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedprune.federated.workers import Pool

BAD_NETWORK = '''
import os, signal, time
import numpy as np
from torch import nn
from fedprune import data, models


class Bad(nn.Module):
    """Misbehaves where it sees a marked row, in training and in a worker process only."""

    def __init__(self, input_shape, num_classes, how):
        super().__init__()
        self.inner = models.load("mlp", input_shape=input_shape, num_classes=num_classes)
        self.how = how

    def forward(self, images):
        if self.training and images.max() > 90 and str(os.getpid()) != os.environ["TEST_PARENT"]:
            self.how()
        return self.inner(images)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(3)


def hang():
    with open(__file__ + ".hanging", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


def complain():
    raise ValueError("no good")


def exhaust():
    raise MemoryError()


def dying(input_shape, num_classes):
    return Bad(input_shape, num_classes, die)


def leaving(input_shape, num_classes):
    return Bad(input_shape, num_classes, leave)


def hanging(input_shape, num_classes):
    return Bad(input_shape, num_classes, hang)


def complaining(input_shape, num_classes):
    return Bad(input_shape, num_classes, complain)


def exhausted(input_shape, num_classes):
    return Bad(input_shape, num_classes, exhaust)


def choosy(input_shape, num_classes):
    """Cannot be built in a worker."""
    if str(os.getpid()) != os.environ["TEST_PARENT"]:
        raise RuntimeError("not here")
    return models.load("mlp", input_shape=input_shape, num_classes=num_classes)


def crashing(input_shape, num_classes):
    """Ends every worker that builds it."""
    if str(os.getpid()) != os.environ["TEST_PARENT"]:
        os._exit(7)
    return models.load("mlp", input_shape=input_shape, num_classes=num_classes)


def rows(root, *, seed):
    """120 rows, of which one is marked."""
    random = np.random.default_rng(seed)
    train = random.random((120, 6)), random.integers(0, 3, 120)
    train[0][17] = 99.0
    test = random.random((30, 6)), random.integers(0, 3, 30)
    return data.from_arrays("marked", train=train, test=test, num_classes=3)
'''


@pytest.fixture(scope="session")
def bad_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of an importable module with networks that misbehave."""
    folder: Path = tmp_path_factory.mktemp("own")
    (folder / "misbehaving.py").write_text(BAD_NETWORK)
    os.environ["TEST_PARENT"] = str(os.getpid())
    sys.path.insert(0, str(folder))
    yield "misbehaving"
    sys.path.remove(str(folder))
    del os.environ["TEST_PARENT"]


@pytest.fixture(scope="package")
def pool(bad_module: str) -> Iterator[Pool]:
    """Two workers."""
    del bad_module  # what is in the environment when they start is in theirs
    with Pool(2) as found:
        assert found.ready(120.0)
        yield found
