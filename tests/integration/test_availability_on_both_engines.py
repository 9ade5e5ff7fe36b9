"""Absent, lost and late clients are the same ones on both engines, and so is the end."""

from __future__ import annotations

import json
from pathlib import Path

from helpers import small_config

from fedprune import audit
from fedprune.federated.simulate import simulate
from fedprune.progress import Quiet

LOSSY = (
    "data.clients=16",
    "train.rounds=2",
    "train.clients_per_round=8",
    "train.local_epochs=1",
    "evaluate.baselines=false",
    "federation.quorum=0.2",
    "availability.participation=0.9",
    "availability.dropout=0.2",
    "availability.delay_median_seconds=10",
    "availability.delay_sigma=0.5",
    "availability.deadline_seconds=15",
    "availability.pause_seconds=20",
)


def test_local_and_flower_lose_the_same_clients_and_end_the_same(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    lines = [f"{client},{30 * (client % 5 == 1)},{70 + client}" for client in range(1, 16)]
    trace.write_text("\n".join(["client,start,end", *lines]) + "\n")
    config = small_config(*LOSSY, f"availability.trace={trace}")
    told = {}
    for engine in ("local", "flower"):
        out = tmp_path / engine
        summary = simulate(config, out, Quiet(), engine)
        events = map(json.loads, (out / "events.jsonl").read_text().splitlines())
        rounds = [event["availability"] for event in events if "availability" in event]
        told[engine] = (rounds, summary["missing"], summary["availability"])
        assert audit.audit(out).holds
    assert told["local"] == told["flower"]
    assert told["local"][2]["dropped"] + told["local"][2]["late"] > 0
    for name in ("votes.safetensors", "model.safetensors"):
        first, second = (tmp_path / engine / name for engine in ("local", "flower"))
        assert first.read_bytes() == second.read_bytes()
