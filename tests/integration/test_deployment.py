"""Real clients on loopback: TLS, authentication, own ledgers, receipts; one dies on the way."""

from __future__ import annotations

import json
from pathlib import Path

from helpers import small_config

from fedprune import audit
from fedprune.audit import client_ledger
from fedprune.federated.loopback import loopback, own_settings, run_deployed
from fedprune.privacy import Ledger
from fedprune.progress import Quiet
from fedprune.runs import RunFolder

SETTINGS = (
    "data.clients=3",
    "train.rounds=2",
    "train.clients_per_round=3",
    "train.local_epochs=1",
    "train.fine_tune_rounds=1",
    "train.private=fine-tune",
    "train.dp_epsilon=12",
    "train.sample_rate=0.25",
    "evaluate.tables=unprotected",
    "federation.quorum=0.6",
    "federation.deadline_seconds=60.0",
    "federation.join_seconds=60.0",
)


def test_a_deployment_survives_a_killed_client_and_every_ledger_confirms_its_receipts(
    tmp_path: Path,
) -> None:
    config, out = small_config(*SETTINGS), tmp_path / "run"
    with loopback(tmp_path / "federation", own_settings(config, 3), Quiet()) as federation:
        doomed = federation.nodes["client-1"]

        def kill_after_the_first_round() -> None:
            events = out / "events.jsonl"
            if doomed.alive and events.is_file() and '"train-1"' in events.read_text():
                doomed.kill()

        run_deployed(federation, config, out, Quiet(), meanwhile=kill_after_the_first_round)
        pids = [federation.link.pid, *(node.pid for node in federation.nodes.values())]
        ledgers = [federation.ledger(name) for name in federation.nodes]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    summary = RunFolder.open(out).read_json("summary.json")
    assert summary["simulated"] is False
    assert summary["missing"]["report-1"] == [1]
    assert summary["privacy"]["reports"] == 2
    assert summary["baselines"] is None
    assert audit.audit(out).holds
    assert audit.write_report(out).is_file()
    for ledger in ledgers:
        assert client_ledger.verify(ledger, out / "receipts.jsonl").holds
    for client, ledger in enumerate(ledgers):
        with Ledger.open(ledger, read_only=True) as opened:
            assert float(opened.spent(str(client))) == (0.0 if client == 1 else 4.0)
    lines = (out / "receipts.jsonl").read_text().splitlines()
    kinds = {json.loads(line)["kind"] for line in lines}
    assert kinds == {"mask-report", "model-update", "count-table", "dp-update"}
    client, record = summary["privacy"]["totals"]
    assert (client["unit"], client["epsilon"], client["delta"]) == ("client", 4.0, 0.0)
    assert record["unit"] == "record"
    assert record["covers"] == ["dp-update", "mask-report"]
    assert 4.0 < record["epsilon"] <= 12.0
    assert "dp-update" not in client["covers"]  # an update says nothing of a client as a whole
    assert "per record: epsilon = " in record["sentence"]
