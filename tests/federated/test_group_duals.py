"""Fine-tuning under a tolerance for groups' excess losses: weights, duals, ledger, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_small, small_config

from fedprune import fairness, models
from fedprune.audit import audit
from fedprune.errors import ConfigError, FederationError
from fedprune.federated.group_duals import excess_losses
from fedprune.federated.group_weights import read_weights, write_weights
from fedprune.federated.training import LocalTraining, Trainer
from fedprune.federated.trial import traits_of
from fedprune.privacy import Ledger
from fedprune.randomness import SimulationRandomness
from fedprune.runs import RunFolder, weights_vector

OPTIONS = [
    "evaluate.baselines=false", "evaluate.tables=unprotected", "train.fine_tune_rounds=3",
    "prune.keep_units=0.2",
]  # fmt: skip
HOW = LocalTraining(2, 8, 0.1, 0.9, 0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("duals") / "run"
    run_small(out, [*OPTIONS, "train.fairness_step=20", "train.fairness_tolerance=0.02"])
    return out


def rows(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (30,), generator=draw)
    return torch.randn(30, 1, 8, 8, generator=draw), labels


def trained(weights: torch.Tensor | None, changed: int = 30) -> torch.Tensor:
    """Train on the rows, labels from `changed` on being others."""
    model = models.load("lenet", num_classes=10, input_shape=(1, 8, 8), seed=1)
    trainer = Trainer(model, traits_of(model, (1, 8, 8)))
    inputs, labels = rows(1)
    labels[changed:] = (labels[changed:] + 3) % 10
    start, order = weights_vector(model), np.random.default_rng(1)
    trainer.train(start, inputs, labels, HOW, order, None, weights)
    return trainer.read()


def test_equal_weights_change_nothing_and_a_weight_of_none_leaves_a_row_out() -> None:
    plain = trained(None)
    torch.testing.assert_close(trained(torch.ones(30)), plain, rtol=1e-5, atol=1e-6)
    half = torch.ones(30)
    half[15:] = 0
    assert torch.equal(trained(half), trained(half, changed=15))
    assert not torch.allclose(trained(half), plain, atol=1e-3)


def test_excess_losses_are_those_of_the_analysis() -> None:
    random = np.random.default_rng(3)
    tables = random.integers(20, 60, (1, 4, 2, 2))
    found = excess_losses(tables[0])
    names = ["a", "b", "c", "d"]
    wanted = fairness.summarize(tables, names, SimulationRandomness(1, "x"), resamples=100)
    assert [group.excess_loss for group in wanted.groups] == pytest.approx(found.tolist())
    tables[0, 2] = 0
    assert np.isnan(excess_losses(tables[0])[2])


def test_a_group_of_few_rows_moves_no_dual() -> None:
    counts = np.array([[[40, 0], [0, 60]], [[0, 0], [15, 14]], [[0, 0], [15, 15]]])  # 29, 30 rows
    found = excess_losses(counts)
    everybody = 30 / counts.sum()
    assert np.isnan(found[1])
    assert found[[0, 2]].tolist() == pytest.approx([0 - everybody, 0.5 - everybody])
    duals = fairness.dual_step([0.5, 0.5, 0.5], found, tolerance=0.01, step=1, largest=10)
    assert duals[1] == 0.5
    assert duals[2] > 0.5 > duals[0]


def test_weights_pass_through_a_question_and_nothing_else_does() -> None:
    weights = np.array([0.25, 1.0, 3.125])
    assert read_weights(write_weights(weights), 3).tolist() == weights.tolist()
    for wrong in ("", "1 2", "1 2 x", "1 2 nan", "1 2 -1", "1 2 inf"):
        with pytest.raises(FederationError, match="group weights must be 3"):
            read_weights(wrong, 3)


def test_duals_move_by_their_rule_from_round_to_round(run: Path) -> None:
    told = {e["phase"]: e["result"] for e in RunFolder.open(run).events()}
    duals = np.zeros(10)
    for number in (1, 2, 3):
        found = told[f"tune-1-{number}"]
        excess = [np.nan if one is None else one for one in found["excess_losses"]]
        duals = fairness.dual_step(duals, excess, tolerance=0.02, step=20, largest=10)
        assert found["duals"] == pytest.approx(duals.tolist())
        assert max(found["duals"]) > 0
    assert "duals" not in told["train-1"]


def test_every_table_is_in_the_ledger_and_the_audit_holds(run: Path) -> None:
    with Ledger.open(run / "ledger.sqlite", read_only=True) as ledger:
        written = {entry.round for entry in ledger.entries() if entry.kind == "count-table"}
    assert {f"tune-1-{number}-groups" for number in (1, 2, 3)} <= written
    assert audit(run).holds


def test_weights_make_another_model(run: Path, tmp_path: Path) -> None:
    run_small(tmp_path / "plain", OPTIONS)
    plain, weighted = (RunFolder.open(p).load_pruned()[0] for p in (tmp_path / "plain", run))
    assert not torch.allclose(weights_vector(plain), weights_vector(weighted), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["evaluate.tables=simulation-only"], r"evaluate\.tables must be 'unprotected'"),
        (["train.margin_radius=0.1"], r"train\.fairness_step must be 0"),
        (["train.private=all"], r"train\.fairness_step must be 0"),
    ],
)
def test_what_has_no_weights_is_refused(options: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        small_config("evaluate.tables=unprotected", "train.fairness_step=1", *options)
