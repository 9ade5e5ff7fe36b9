"""The audit of a run draws from the run's own mechanism."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from helpers import run_small

from fedprune import runs
from fedprune.audit.empirical_checks import check_empirical, empirical_audit
from fedprune.audit.evidence import Evidence
from fedprune.config import Config
from fedprune.privacy import ThresholdResponse
from fedprune.runs import RunFolder


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    path: Path = tmp_path_factory.mktemp("run") / "run"
    run_small(path, ["evaluate.baselines=false"])
    folder = RunFolder.open(path)
    return Evidence(folder, folder.config, folder.read_json("summary.json"))


def test_an_honest_run_s_mechanism_holds_and_says_all_three_epsilons(evidence: Evidence) -> None:
    (finding,) = check_empirical(evidence)
    assert finding.holds
    assert "claimed epsilon = 4" in finding.detail
    assert "its own probabilities give 4" in finding.detail
    assert "per client" in finding.detail
    assert 3.0 < empirical_audit(evidence).empirical <= 4.0
    assert empirical_audit(evidence) == empirical_audit(evidence)


def test_a_mechanism_that_draws_with_more_than_it_claims_is_a_broken_claim(
    evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ThresholdResponse(5.0, 96, block_units=4, threshold=4)

    class Overspending(ThresholdResponse):
        def randomize_many(self, masks, rngs, blocks=None):  # type: ignore[no-untyped-def]
            return real.randomize_many(masks, rngs, blocks)

    def overspending(config: Config, num_units: int, num_reports: int) -> ThresholdResponse:
        del num_reports
        return Overspending(config.privacy.epsilon, num_units)

    monkeypatch.setattr(runs, "report_mechanism", overspending)
    (finding,) = check_empirical(evidence)
    assert not finding.holds
    assert "THE CLAIM IS CONTRADICTED" in finding.detail


def test_damaged_votes_are_a_broken_claim_and_no_crash(evidence: Evidence) -> None:
    config = evidence.config
    broken = dataclasses.replace(evidence, folder=RunFolder(evidence.folder.path / "nothing"))
    object.__setattr__(broken, "config", config)
    (finding,) = check_empirical(broken)
    assert not finding.holds


def test_other_trust_settings_have_no_local_report_to_draw(evidence: Evidence) -> None:
    privacy = evidence.config.privacy.model_copy(update={"trust": "none"})
    other = dataclasses.replace(
        evidence, config=evidence.config.model_copy(update={"privacy": privacy})
    )
    assert list(check_empirical(other)) == []
