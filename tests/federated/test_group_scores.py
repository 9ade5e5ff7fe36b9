"""Scores that count every group of a client's rows: what they are, and that all agree on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_small, small_config

from fedprune import audit, data, fairness, models, pruning
from fedprune.errors import ConfigError
from fedprune.federated.messages import Question
from fedprune.federated.station import Station
from fedprune.privacy import Budget, Ledger
from fedprune.runs import Architecture, weights_vector

ARCHITECTURE = Architecture.dense("lenet", 10, (1, 8, 8))
MODEL = models.load("lenet", num_classes=10, input_shape=(1, 8, 8), seed=1)
COMBINED = {"worst": fairness.worst_group, "share": fairness.importance_share}


def question(**settings: str) -> Question:
    known = {"criterion": "taylor", "groups": "class", **settings}
    return Question("run", "report-1", ARCHITECTURE, weights_vector(MODEL), known, seed=1)


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    dataset = data.load("digits", "", seed=1)
    federation = data.partition(dataset, "iid", clients=20, seed=1)
    with Ledger.open(tmp_path / "ledger.sqlite", budget=[Budget(8.0)]) as ledger:
        yield Station(ledger, dataset, federation)


@pytest.mark.parametrize("how", COMBINED)
def test_a_score_is_made_of_what_each_group_alone_would_say(station: Station, how: str) -> None:
    clients = [4, 0, 17]
    found = station.scores(question(group_scores=how), clients)
    rows, layout = station.dataset.train, ARCHITECTURE.own_layout
    for client, scores in zip(clients, found, strict=True):
        places = station.index(client, "train")
        codes = rows.group("class").codes[places]
        alone = [
            pruning.score(
                MODEL,
                layout,
                [(rows.inputs(places[codes == code]), rows.targets(places[codes == code]))],
                "taylor",
            )
            for code in np.unique(codes)
        ]
        assert len(alone) > 3
        wanted = COMBINED[how](torch.stack(alone).double().numpy())
        torch.testing.assert_close(scores.double(), torch.from_numpy(wanted), rtol=1e-4, atol=1e-7)


def test_scores_are_kept_apart_by_how_they_are_made(station: Station) -> None:
    plain, worst = question(), question(group_scores="worst")
    first = station.scores(plain, [2])
    assert not torch.equal(station.scores(worst, [2]), first)
    assert torch.equal(station.scores(plain, [2]), first)


def test_units_that_matter_to_nobody_have_no_share(station: Station) -> None:
    silent = torch.zeros_like(weights_vector(MODEL))
    asked = Question("run", "r", ARCHITECTURE, silent, question(group_scores="share").settings)
    assert not station.scores(asked, [1]).any()


def test_a_run_with_group_scores_is_the_same_in_cohorts_and_passes_its_audit(
    tmp_path: Path,
) -> None:
    options = ["evaluate.baselines=false", "prune.group_scores=share"]
    plain = run_small(tmp_path / "plain", options[:1])
    grouped = run_small(tmp_path / "grouped", options)
    alone = run_small(tmp_path / "alone", [*options, "engine.deterministic=true"])
    assert grouped["kept"] != plain["kept"]
    assert grouped["kept"] == alone["kept"]
    assert grouped["privacy"] == plain["privacy"]
    assert audit.audit(tmp_path / "grouped").holds


@pytest.mark.parametrize(
    "other",
    [
        ["privacy.trust=record", "privacy.delta=1e-6"],
        ["prune.criterion=linear_logits_signed"],
        ["engine.precision=bfloat16"],
    ],
)
def test_settings_that_cannot_be_scored_by_groups_are_refused(other: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"prune\.group_scores"):
        small_config("prune.group_scores=worst", *other)
