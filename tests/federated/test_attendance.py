"""Whole runs in which not everybody always answers, and what their audit says."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import run_small, small_config
from safetensors.torch import load_file

from fedprune import privacy, runs
from fedprune.audit import audit, write_report
from fedprune.data.availability import read_availability
from fedprune.errors import DataError, FederationError
from fedprune.federated import server
from fedprune.federated.conversation import Conversation
from fedprune.federated.simulate import resume
from fedprune.privacy import Ledger, Report
from fedprune.privacy.ledgers.chain import SENT, STORED
from fedprune.progress import Quiet

FAST = (
    "evaluate.baselines=false",
    "evaluate.certified_rows=10",
    "train.rounds=1",
    "data.clients=60",
)
LOSSY = (
    "federation.quorum=0.3",
    "availability.participation=0.7",
    "availability.dropout=0.2",
    "availability.delay_median_seconds=10",
    "availability.delay_sigma=0.5",
    "availability.speed_sigma=0.5",
    "availability.deadline_seconds=20",
    "availability.pause_seconds=5",
)
SUMMED = ("privacy.trust=aggregate", "privacy.delta=1e-6")
OTHERS: dict[str, Sequence[str]] = {
    "phases in steps": ["privacy.phases=2", "prune.schedule=geometric", "prune.steps=2"],
    "shuffle": [
        "privacy.trust=shuffle",
        "privacy.delta=1e-6",
        "privacy.epsilon=10",
        "data.clients=300",
    ],
    "aggregate": SUMMED,
    "record": ["privacy.trust=record", "privacy.delta=1e-5"],
    "none": ["privacy.trust=none"],
    "dp-sgd": ["train.private=all", "train.dp_epsilon=10", "train.sample_rate=0.5"],
}


@pytest.fixture(scope="module")
def lossy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests must not change it (copy it first)."""
    out = tmp_path_factory.mktemp("lossy") / "run"
    run_small(out, [*FAST, *LOSSY, "evaluate.baselines=true"])
    return out


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def events_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def rounds_of(run: Path) -> dict[str, dict[str, Any]]:
    return {k: v for e in events_of(run) for k, v in e.get("availability", {}).items()}


def ledger_of(run: Path, round_name: str, *stages: str) -> dict[int, bytes]:
    with Ledger.open(run / "ledger.sqlite", read_only=True) as ledger:
        return {
            int(entry.client): entry.report
            for entry in ledger.entries()
            if entry.round == round_name and entry.stage in stages
        }


def broken(run: Path, part: str = "all") -> list[str]:
    return [finding.detail for finding in audit(run, part).findings if not finding.holds]


def test_a_run_with_absent_lost_and_late_clients_ends_and_its_audit_holds(lossy_run: Path) -> None:
    assert broken(lossy_run) == []
    totals = summary_of(lossy_run)["availability"]
    assert min(totals[key] for key in ("unavailable", "dropped", "late")) > 0
    assert "not everybody always answers" in write_report(lossy_run).read_text()


def test_who_was_lost_is_in_the_ledger_and_not_in_the_votes_who_was_away_is_in_neither(
    lossy_run: Path,
) -> None:
    config = small_config(*FAST, *LOSSY, "evaluate.baselines=true")
    told = rounds_of(lossy_run)["report-1"]
    drawn = runs.fates(config, "report-1", range(60), told["begins"])
    reports = ledger_of(lossy_run, "report-1", STORED)
    assert sorted(reports) == np.flatnonzero(drawn.available).tolist()
    missing = np.flatnonzero(drawn.available & ~drawn.heard).tolist()
    assert summary_of(lossy_run)["missing"]["report-1"] == missing
    assert len(missing) == told["dropped"] + told["late"] > 0

    heard = np.flatnonzero(drawn.heard)
    votes = load_file(lossy_run / "votes.safetensors")
    mechanism = runs.report_mechanism(config, len(votes["step1.mean"]), 60)
    blocks = privacy.assigned_blocks(
        privacy.public_ranks(60, runs.ranks_label(config)), mechanism.num_blocks
    )

    def mean_of(clients: Sequence[int]) -> np.ndarray:
        sums = mechanism.add(
            mechanism.new_sums(), [Report(reports[c]) for c in clients], blocks=blocks[clients]
        )
        return mechanism.estimate_sums(sums, counts="assigned").mean

    np.testing.assert_allclose(votes["step1.mean"].numpy(), mean_of(heard), atol=1e-9)
    with_lost = mean_of(np.flatnonzero(drawn.available))
    assert not np.allclose(votes["step1.mean"].numpy(), with_lost)


def test_a_training_round_asks_those_of_its_participants_that_are_available(
    lossy_run: Path,
) -> None:
    config = small_config(*FAST, *LOSSY, "evaluate.baselines=true")
    chosen = runs.participants(config, "train-1")
    drawn = runs.fates(config, "train-1", chosen, 0.0)
    asked = {c for c, there in zip(chosen, drawn.available, strict=True) if there}
    assert set(ledger_of(lossy_run, "train-1", SENT)) == asked
    used = next(e["result"]["clients"] for e in events_of(lossy_run) if e["phase"] == "train-1")
    assert used == drawn.heard.sum() < len(asked) < len(chosen)


def test_baselines_are_tuned_by_the_same_clients_and_measured_by_all(lossy_run: Path) -> None:
    events = {event["phase"]: event for event in events_of(lossy_run)}
    own = events["tune-1-1"]
    for name in ("magnitude", "random", "pooled", "votes_without_noise"):
        again = events[f"{name}/tune-1-1"]
        assert again["availability"] == own["availability"]
        assert again["result"]["clients"] == own["result"]["clients"]
    assert events["votes_without_noise/vote-1"]["result"]["reports"] == 60
    measured = [e for e in events.values() if "evaluate" in e["phase"] or e["phase"] == "fairness"]
    assert measured
    assert not any("availability" in event for event in measured)


def test_the_simulated_clock_adds_rounds_and_pauses_up(lossy_run: Path) -> None:
    rounds = [told for name, told in rounds_of(lossy_run).items()]
    assert [one["begins"] for one in rounds] == pytest.approx(
        np.cumsum([0, *[one["seconds"] + 5 for one in rounds[:-1]]])
    )
    assert all(0 < one["seconds"] <= 20 for one in rounds)
    totals = summary_of(lossy_run)["availability"]
    assert totals["simulated_seconds"] == rounds[-1]["begins"] + rounds[-1]["seconds"]
    counted = Counter[str]()
    for one in rounds:
        counted.update({key: one[key] for key in ("clients", "unavailable", "dropped", "late")})
    assert {key: totals[key] for key in counted} == counted


def test_the_same_seed_loses_the_same_clients_again(lossy_run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    run_small(again, [*FAST, *LOSSY, "evaluate.baselines=true"])
    assert rounds_of(again) == rounds_of(lossy_run)
    for name in ("votes.safetensors", "model.safetensors"):
        assert (again / name).read_bytes() == (lossy_run / name).read_bytes()


@pytest.mark.parametrize("name", OTHERS)
def test_a_lossy_run_under_any_trust_setting_ends_and_its_audit_holds(
    name: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    summary = run_small(run, [*FAST, *LOSSY, *OTHERS[name]])
    assert summary["availability"]["dropped"] > 0
    assert broken(run) == []


def test_a_sum_without_its_protocol_loses_whom_the_protocol_loses(tmp_path: Path) -> None:
    masked, plain = tmp_path / "masked", tmp_path / "plain"
    run_small(masked, [*FAST, *LOSSY, *SUMMED])
    run_small(plain, [*FAST, *LOSSY, *SUMMED, "privacy.masking=false"])
    for name in ("votes.safetensors", "model.safetensors"):
        assert (masked / name).read_bytes() == (plain / name).read_bytes()
    assert rounds_of(masked) == rounds_of(plain)
    assert summary_of(masked)["missing"] == summary_of(plain)["missing"]
    stages = {name for name, told in rounds_of(masked).items() if told["dropped"]}
    assert {"report-1/keys", "report-1/shares", "report-1"} & stages


def test_a_client_lost_over_its_keys_is_not_charged_and_one_lost_later_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_small(run, [*FAST, *LOSSY, *SUMMED])
    missing = summary_of(run)["missing"]
    charged = set(ledger_of(run, "report-1", STORED))
    early = set(missing.get("report-1/keys", [])) | set(missing.get("report-1/shares", []))
    assert early
    assert not early & charged
    assert set(missing["report-1"]) <= charged


def test_too_many_lost_answers_stop_the_run_with_the_quorum_s_sentence(tmp_path: Path) -> None:
    settings = [*FAST, "federation.quorum=0.95", "availability.dropout=0.5"]
    with pytest.raises(FederationError) as refused:
        run_small(tmp_path / "run", settings)
    assert "gave no usable answer in round train-1" in str(refused.value)
    assert "federation.quorum = 0.95" in str(refused.value)
    assert "its answer was lost (availability.dropout)" in str(refused.value)


def test_a_round_that_reaches_nobody_is_said_in_a_sentence(tmp_path: Path) -> None:
    settings = [*FAST, "availability.participation=0.0001"]
    with pytest.raises(FederationError, match="none of the 10 clients asked in round train-1 is"):
        run_small(tmp_path / "run", settings)


def test_the_quorum_is_of_the_clients_that_are_available(tmp_path: Path) -> None:
    summary = run_small(tmp_path / "run", [*FAST, "availability.participation=0.5"])  # quorum 1
    assert summary["availability"]["unavailable"] > 0
    assert summary["missing"] == {}


def test_without_the_table_nothing_is_said_and_nothing_is_drawn(finished_run: Path) -> None:
    assert summary_of(finished_run)["availability"] is None
    assert rounds_of(finished_run) == {}
    assert not (finished_run / runs.TRACE).exists()


# Traces, and resumption.


def write_trace(path: Path, clients: int = 60) -> Path:
    generator = np.random.default_rng(3)
    lines = ["client,start,end"]
    for client in range(clients):
        time = generator.uniform(0, 30)
        while time < 200:
            end = time + generator.uniform(20, 60)
            lines.append(f"{client},{time:.3f},{end:.3f}")
            time = end + generator.uniform(5, 30)
    path.write_text("\n".join(lines) + "\n")
    return path


Ask = Callable[..., Iterator[Any]]


def stop_in(round_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process die once the answers of a round have begun to come."""

    def wrapped(ask: Ask) -> Ask:
        def dying(self: Conversation, kind: str, question: Any, *rest: Any) -> Iterator[Any]:
            for found in ask(self, kind, question, *rest):
                if question.round == round_name:
                    raise KeyboardInterrupt
                yield found

        return dying

    for name in ("ask", "ask_together"):
        monkeypatch.setattr(Conversation, name, wrapped(getattr(Conversation, name)))


@pytest.mark.parametrize("round_name", ["report-1-2", "tune-1-1"])
def test_an_interrupted_run_with_a_trace_goes_on_to_the_identical_end(
    round_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = write_trace(tmp_path / "trace.csv")
    settings = [*FAST, *LOSSY, f"availability.trace={trace}", "privacy.phases=2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_small(whole, settings)
    with monkeypatch.context() as patched:
        stop_in(round_name, patched)
        with pytest.raises(KeyboardInterrupt):
            run_small(cut, settings)
    trace.unlink()  # the run has its own copy
    resume(cut, Quiet())
    assert rounds_of(cut) == rounds_of(whole)
    assert summary_of(cut)["missing"] == summary_of(whole)["missing"]
    for name in ("votes.safetensors", "model.safetensors", runs.TRACE):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert broken(cut) == broken(whole) == []


def test_whom_the_trace_does_not_have_there_is_not_asked(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace.csv")
    run = tmp_path / "run"
    settings = ["federation.quorum=0.3", f"availability.trace={trace}"]
    run_small(run, [*FAST, *settings, "availability.pause_seconds=30"])
    begins = rounds_of(run)["report-1"]["begins"]
    there = np.flatnonzero(~np.isnan(read_availability(trace, 60).until(begins)))
    assert sorted(ledger_of(run, "report-1", STORED)) == there.tolist()
    assert 0 < len(there) < 60


def test_a_bad_trace_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("client,start,end\n0,0,10\n99,0,10\n")
    settings = [*FAST, f"availability.trace={trace}", "availability.pause_seconds=1"]
    with pytest.raises(DataError, match=r"trace\.csv line 3: client must be one of 0 to 59"):
        run_small(tmp_path / "run", settings)
    assert not (tmp_path / "run" / "ledger.sqlite").exists() or not (
        ledger_of(tmp_path / "run", "train-1", SENT)
    )


# What an auditor notices, and what a deployment refuses.


def change_rounds(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    events = events_of(run)
    for event in events:
        if "report-1" in event.get("availability", {}):
            change(event)
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def hide_a_loss(event: dict[str, Any]) -> None:
    event["availability"]["report-1"]["dropped"] -= 1


def move_the_clock(event: dict[str, Any]) -> None:
    event["availability"]["report-1"]["begins"] += 1


def forget(event: dict[str, Any]) -> None:
    del event["availability"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (hide_a_loss, "round report-1.dropped is stated as"),
        (move_the_clock, "round report-1.begins is stated as"),
        (forget, "round report-1 does not say who was available"),
    ],
)
def test_an_audit_draws_who_was_lost_again(
    change: Callable[[dict[str, Any]], None], sentence: str, lossy_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(lossy_run, tmp_path / "run"))
    change_rounds(run, change)
    assert any(sentence in words for words in broken(run, "privacy"))


def test_an_audit_notices_a_vote_that_was_called_missing(lossy_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lossy_run, tmp_path / "run"))
    summary = summary_of(run)
    summary["missing"]["report-1"] = summary["missing"]["report-1"][1:]
    (run / "summary.json").write_text(json.dumps(summary))
    assert any("is not named as missing" in words for words in broken(run))


def test_deployed_clients_come_and_go_by_themselves() -> None:
    experiment: Any = SimpleNamespace(simulated=False, config=small_config(*LOSSY))
    with pytest.raises(FederationError, match="availability exists in simulation only"):
        server._check_trust(experiment)
