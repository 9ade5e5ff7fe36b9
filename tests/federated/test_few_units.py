"""Whole runs of networks with one, two or eight units, at the largest epsilon that is allowed."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest
from helpers import run_small
from torch import nn

from fedprune.audit import audit, empirical_checks

CENTRAL = "privacy.delta=1e-6"
SETTINGS = [
    *[[f"privacy.mechanism={name}"] for name in ("threshold", "warner", "k-ary", "duchi")],
    ["privacy.phases=2"],
    ["privacy.prior=none", "privacy.phases=2"],
    ["privacy.trust=shuffle", CENTRAL],
    ["privacy.trust=shuffle", "privacy.mechanism=duchi", CENTRAL],
    ["privacy.trust=aggregate", CENTRAL],
    ["privacy.trust=record", CENTRAL],
    ["privacy.trust=none"],
]
QUICK = (
    "data.clients=8",
    "train.rounds=1",
    "train.clients_per_round=2",
    "train.local_epochs=1",
    "evaluate.baselines=false",
    "evaluate.tables=off",
    "privacy.epsilon=64",
)


def network(widths: tuple[int, ...], inputs: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


def one(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return network((1,), prod(input_shape), num_classes)


def two(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return network((2,), prod(input_shape), num_classes)


def eight(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return network((5, 3), prod(input_shape), num_classes)


CASES = [
    *[(two, 1.0, settings) for settings in SETTINGS],
    *[(units, keep, SETTINGS[i]) for units, keep in ((one, 1.0), (eight, 0.5)) for i in (1, 4, 6)],
]


@pytest.mark.parametrize(("units", "keep", "settings"), CASES)
def test_a_run_with_few_units_and_a_large_epsilon_is_planned_done_and_audited(
    units: Callable[..., nn.Module],
    keep: float,
    settings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(empirical_checks, "DRAWS", 1000)
    own = [f"model.name={__name__}:{units.__name__}", f"prune.keep_units={keep}"]
    summary = run_small(tmp_path / "run", [*QUICK, *own, *settings])
    stated = summary["privacy"]["variance_per_vote"]
    assert stated > 0 or summary["privacy"]["trust"] == "none"
    found = audit(tmp_path / "run")
    assert found.holds, [finding for finding in found.findings if not finding.holds]
