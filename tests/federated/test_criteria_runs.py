"""Every criterion that a configuration may name goes the whole way, and audits."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from helpers import run_small, small_config

from fedprune import pruning
from fedprune.audit import audit
from fedprune.config import PruneConfig
from fedprune.errors import ConfigError, FedpruneError
from fedprune.runs import RunFolder

SHORT = ("train.rounds=1", "data.clients=20", "evaluate.baselines=false", "privacy.epsilon=8")
CRITERIA = get_args(PruneConfig.model_fields["criterion"].annotation)


def test_a_configuration_may_name_every_criterion_by_one_name() -> None:
    assert set(CRITERIA) == set(pruning.CRITERIA) - {"magnitude"}  # which is magnitude_l2's alias


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "bn_scale"])
def test_clients_vote_by_every_criterion(tmp_path: Path, criterion: str) -> None:
    run_small(tmp_path / "run", [*SHORT, f"prune.criterion={criterion}"])
    votes = RunFolder.open(tmp_path / "run").read_tensors("votes.safetensors")
    assert votes["step1.mean"].std() > 0
    assert audit(tmp_path / "run").holds


def test_a_criterion_of_batch_norms_needs_a_network_that_has_them(tmp_path: Path) -> None:
    with pytest.raises(FedpruneError, match=r"bn_scale.*batch norm"):
        run_small(tmp_path / "run", [*SHORT, "prune.criterion=bn_scale"])


@pytest.mark.parametrize("criterion", ["random", "linear_logits_signed"])
def test_records_are_not_summed_by_a_criterion_that_has_no_bound(criterion: str) -> None:
    with pytest.raises(ConfigError, match=f"never negative with .*record.*got '{criterion}'"):
        small_config(f"prune.criterion={criterion}", "privacy.trust=record", "privacy.delta=1e-5")


@pytest.mark.parametrize("criterion", ["oracle", "taylor_weights"])
def test_what_is_computed_in_float32_only_says_so(criterion: str) -> None:
    with pytest.raises(ConfigError, match=r"engine\.precision must be 'float32' with prune\.crit"):
        small_config(f"prune.criterion={criterion}", "engine.precision=bfloat16")
