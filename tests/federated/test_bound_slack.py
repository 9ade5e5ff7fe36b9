"""Masks that the votes cannot tell apart: the run takes the one with the smaller bound."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import run_small, small_config
from safetensors.torch import load_file, save_file

from fedprune import config as configuration
from fedprune import study
from fedprune.audit import audit
from fedprune.errors import ConfigError, UnsupportedOpError
from fedprune.runs import RunFolder

OPTIONS = ["evaluate.baselines=false", "privacy.epsilon=1", "prune.keep_units=0.4"]
UNBOUNDED = """
from torch import nn

class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.flatten, self.a, self.b, self.out = (
            nn.Flatten(), nn.Linear(64, 16), nn.Linear(64, 16), nn.Linear(16, 10))

    def forward(self, x):
        x = self.flatten(x)
        return self.out(self.a(x) * self.b(x).sigmoid())

def build(input_shape, num_classes):
    return Gated()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("slack") / "run"
    run_small(out, [*OPTIONS, "prune.bound_slack=2"])
    return out


def test_the_bound_falls_and_every_width_stays(run: Path, tmp_path: Path) -> None:
    plain = run_small(tmp_path / "plain", OPTIONS)
    told = {e["phase"]: e["result"] for e in RunFolder.open(run).events()}["vote-1"]["preferred"]
    assert told["bound"] < told["bound_before"]
    assert told["exchanges"] > 0
    assert told["votes_lost"] > 0
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["kept"] == plain["kept"]
    assert summary["privacy"] == plain["privacy"]
    masks = [
        load_file(out / "votes.safetensors")["step1.mask"] for out in (run, tmp_path / "plain")
    ]
    assert int((masks[0] & ~masks[1]).sum()) == told["exchanges"]


def test_the_audit_allows_such_exchanges_and_no_others(run: Path, tmp_path: Path) -> None:
    assert audit(run).holds
    other = tmp_path / "other"
    shutil.copytree(run, other)
    votes = load_file(other / "votes.safetensors")
    mask = votes["step1.mask"].clone()
    groups = RunFolder.open(other).load_dense()[1].dense_layout.group_of
    out, into = (mask & (groups == 0)).nonzero()[0], (~mask & (groups == 1)).nonzero()[0]
    mask[out], mask[into] = False, True  # a unit of one layer for one of another
    votes["step1.mask"] = mask
    save_file(votes, other / "votes.safetensors")
    broken = [finding for finding in audit(other).findings if not finding.holds]
    assert any("the units kept in step 1" in finding.detail for finding in broken)


def test_without_slack_only_the_selection_itself_passes(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    text = configuration.to_toml(configuration.load(other / "config.toml", ["prune.bound_slack=0"]))
    (other / "config.toml").write_text(text, encoding="utf-8")
    broken = [finding for finding in audit(other).findings if not finding.holds]
    assert any("the units kept in step 1" in finding.detail for finding in broken)


def test_a_network_without_a_bound_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gated_for_slack.py").write_text(UNBOUNDED, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = small_config("model.name=gated_for_slack:build", "prune.bound_slack=1")
    dataset = study.load_dataset(config)
    with pytest.raises(UnsupportedOpError, match="mul"):
        study.plan(config, dataset.schema, dataset)


def test_regrowing_has_no_such_exchanges() -> None:
    options = ["prune.regrow=true", "prune.schedule=geometric", "prune.steps=2"]
    with pytest.raises(ConfigError, match=r"prune\.bound_slack must be 0"):
        small_config(*options, "prune.bound_slack=1")
