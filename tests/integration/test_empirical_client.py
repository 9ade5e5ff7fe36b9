"""The audit of a deployed client: two worlds of data through the real ClientApp."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fedprune.federated.flower_internals import identify_server_task
from fedprune.federated.opening import close_stations
from fedprune.federated.station import Station
from fedprune.privacy import ThresholdResponse
from fedprune.privacy.empirical import independence_test
from fedprune.randomness import SimulationRandomness

SIMULATIONS = Path(__file__).parents[2] / "simulations"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SIMULATIONS))
    identify_server_task(1)
    yield importlib.import_module("audit_client")
    close_stations()


def test_one_network_makes_a_client_s_true_masks_exact_opposites(client: ModuleType) -> None:
    assert np.array_equal(client.true_mask("left"), ~client.true_mask("right"))


@pytest.mark.parametrize(("epsilon", "reaches"), [(1.0, 0.7), (4.0, 3.2)])
def test_deployed_clients_come_close_to_their_epsilon_and_not_past_it(
    client: ModuleType, epsilon: float, reaches: float, tmp_path: Path
) -> None:
    counts = client.count_client(ThresholdResponse(epsilon, 96), 1000, tmp_path)
    assert counts.epsilon_lower(alpha=1e-6) <= epsilon
    assert counts.observed() > reaches


def test_asking_twice_gives_away_no_more_than_asking_once(
    client: ModuleType, tmp_path: Path
) -> None:
    mechanism = ThresholdResponse(4.0, 96)
    counts = client.count_client(mechanism, 500, tmp_path, again=True)
    assert counts.epsilon_lower(alpha=1e-6) <= 4.0
    assert client.repeats_of_nodes(mechanism, 3, tmp_path) == 0


def test_clients_that_drew_from_one_seed_would_be_seen(
    client: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mechanism, count = ThresholdResponse(4.0, 96), 1000
    mask = client.true_mask("left")
    honest, _ = client.DeployedWorld(_folder(tmp_path, "a"), "left", mechanism).cohort(count)
    assert not independence_test(mechanism, mask, honest).alarms(1e-6)
    close_stations()
    monkeypatch.setattr(
        Station, "randomness", lambda *labels: SimulationRandomness(1, int(labels[-1]) // 2)
    )
    shared, _ = client.DeployedWorld(_folder(tmp_path, "b"), "left", mechanism).cohort(count)
    assert independence_test(mechanism, mask, shared).alarms(1e-6)


def _folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name
