"""A deployed run's folder without a network: a finished simulation, told as if it were deployed.

Every client gets a private ledger and a key of its own and signs for what the simulation's ledger
says that it sent; what exists in simulation only is taken out.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedprune import config as configuration
from fedprune.config import Config
from fedprune.privacy import Budget, Entry, Ledger, Receipt, SigningKey, key_path
from fedprune.privacy.budgets.events import UNPROTECTED
from fedprune.privacy.ledgers.chain import RESERVED, SENT
from fedprune.runs import (
    RunFolder,
    privacy_figures,
    receipts_head,
    run_id,
    seal,
    seconds_by_phase,
)

JsonDict = dict[str, Any]
NONCE = "0123abcd"


@dataclass
class Deployed:
    """A run folder, and what the clients keep elsewhere."""

    path: Path
    own: Path
    run: str
    keys: dict[str, SigningKey] = field(default_factory=dict)

    def ledger_path(self, client: int | str) -> Path:
        return self.own / f"client-{client}.sqlite"

    def lines(self) -> list[str]:
        return (self.path / "receipts.jsonl").read_text().splitlines()

    def receipts(self) -> list[Receipt]:
        return [Receipt.from_line(line) for line in self.lines()]

    def write_lines(self, lines: list[str]) -> None:
        """Replace the receipts, with all hashes of the folder made to fit again."""
        (self.path / "receipts.jsonl").write_text("".join(line + "\n" for line in lines))
        self.seal_again()

    def seal_again(self) -> None:
        folder = RunFolder(self.path)
        events = folder.events()
        head = receipts_head(folder)
        known = self.lines()
        for event in events:
            if event["receipt_lines"] > len(known) or event["phase"] in ("seal", "robustness"):
                event.update(head)
            else:
                event.update(_head_of(known[: event["receipt_lines"]]))
        events[-1].update(head)
        events[-1]["result"] = seal(folder)
        _write_events(self.path, events)

    def change_summary(self, change: Callable[[JsonDict], object]) -> None:
        summary = json.loads((self.path / "summary.json").read_text())
        change(summary)
        (self.path / "summary.json").write_text(json.dumps(summary))

    def change_events(self, change: Callable[[JsonDict], object]) -> None:
        events = RunFolder(self.path).events()
        for event in events:
            change(event)
        _write_events(self.path, events)

    def sign(self, entry: Entry, *, row: int, previous: str = "0" * 64, key: str = "") -> Receipt:
        return Receipt.sign(entry, row=row, previous=previous, key=self.keys[key or entry.client])


def deploy(finished: Path, target: Path, *, tables: bool = False) -> Deployed:
    """Tell a finished simulation as a deployed run.

    Args:
        finished: the simulation's folder.
        target: where to; the clients' own files come into "target-own".
        tables: whether count tables were collected unprotected.
    """
    shutil.copytree(finished, target)
    config = _deployed_config(RunFolder.open(target).config, tables)
    deployed = Deployed(target, target.with_name(f"{target.name}-own"), f"{run_id(config)}-{NONCE}")
    deployed.own.mkdir()
    lines_at = _sign_everything(deployed, config, tables)
    for name in ("ledger.sqlite", "margins.safetensors", "report.html", "audit.json"):
        (target / name).unlink(missing_ok=True)
    if not tables:
        (target / "tables.json").unlink()
    (target / "config.toml").write_text(configuration.to_toml(config))
    _rewrite_events(deployed, lines_at, tables)
    _rewrite_summary(deployed, config, tables)
    return deployed


def _deployed_config(config: Config, tables: bool) -> Config:
    policy = "unprotected" if tables else config.evaluate.tables
    return config.model_copy(
        update={"evaluate": config.evaluate.model_copy(update={"tables": policy})}
    )


def _sign_everything(deployed: Deployed, config: Config, tables: bool) -> list[int]:
    """Write every client's ledger and all receipts; how many receipts after each old row."""
    with Ledger.open(deployed.path / "ledger.sqlite", read_only=True) as old:
        rows = old.head[0]
        entries = [(seq, replace(entry, run=deployed.run)) for seq, entry in old.numbered_entries()]
    ledgers: dict[str, Ledger] = {}
    lines: list[str] = []
    lines_at = [0] * (rows + 1)
    for seq, entry in entries:
        ledger = ledgers.get(entry.client) or _new_ledger(deployed, config, entry.client)
        ledgers[entry.client] = ledger
        lines += [r.to_line() for r in _replay(ledger, entry, deployed.keys[entry.client])]
        lines_at[seq] = len(lines)
    for client in sorted(ledgers, key=int) if tables else ():
        for round_name in ("evaluate-dense", "evaluate-after", "tables"):
            sent = Entry(
                client, deployed.run, round_name, "count-table", "q", UNPROTECTED, stage=SENT
            )
            lines += [r.to_line() for r in _replay(ledgers[client], sent, deployed.keys[client])]
    lines_at[-1] = len(lines)
    for ledger in ledgers.values():
        ledger.close()
    (deployed.path / "receipts.jsonl").write_text("".join(line + "\n" for line in lines))
    return lines_at


def _new_ledger(deployed: Deployed, config: Config, client: str) -> Ledger:
    path = deployed.ledger_path(client)
    deployed.keys[client] = SigningKey.open(key_path(path))
    return Ledger.open(
        path,
        budget=Budget(config.privacy.epsilon),
        owner=f"client {client}",
        private=True,
        signing_key=deployed.keys[client].public,
    )


def _replay(ledger: Ledger, entry: Entry, key: SigningKey) -> list[Receipt]:
    if entry.stage == RESERVED:
        ledger.reserve(entry)
        return []
    if entry.stage == SENT:
        content = f"what client {entry.client} sent in {entry.round}"
        digest = hashlib.sha256(content.encode()).hexdigest()
        entry = replace(entry, content_hash=digest)
        ledger.record_unprotected([entry])
    else:
        ledger.store(replace(entry, stage=RESERVED, report=b""), entry.report)
    return [ledger.receipt(entry, key)]


def _rewrite_events(deployed: Deployed, lines_at: list[int], tables: bool) -> None:
    folder, known = RunFolder(deployed.path), deployed.lines()
    events = []
    for event in folder.events():
        name = event["phase"]
        if "/" in name or (name.startswith(("evaluate", "fairness")) and not tables):
            continue
        count = lines_at[event.pop("ledger_rows", 0)]
        event.pop("ledger_head", None)
        event |= _head_of(known[:count])
        events.append(event)
    events[0]["result"]["run"] = deployed.run
    _write_events(deployed.path, events)
    deployed.seal_again()


def _rewrite_summary(deployed: Deployed, config: Config, tables: bool) -> None:
    def change(summary: JsonDict) -> None:
        nothing = ("baselines", "mask_recall", "mask_recall_without_prior", "paired_difference")
        summary |= dict.fromkeys(nothing) | {"simulated": False}
        summary["config"] = config.model_dump()
        stated = summary["certified_accuracy"]
        summary["certified_accuracy"] = {
            "radius": stated["radius"], "unit": stated["unit"], "dense": None, "pruned": None,
        }  # fmt: skip
        summary["seconds"] = seconds_by_phase(RunFolder(deployed.path).events())
        summary["privacy"] |= privacy_figures(RunFolder(deployed.path), config, False)
        if not tables:
            summary["fairness"] = None
            summary["accuracy"] = dict.fromkeys(summary["accuracy"])

    deployed.change_summary(change)


def _head_of(lines: list[str]) -> JsonDict:

    content = "".join(line + "\n" for line in lines).encode()
    return {"receipt_lines": len(lines), "receipts_sha256": hashlib.sha256(content).hexdigest()}


def _write_events(path: Path, events: list[JsonDict]) -> None:
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
