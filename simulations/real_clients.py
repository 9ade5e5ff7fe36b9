"""Do four hospitals, each with its own process, rows, keys and ledger, get a smaller network?

Brings up a SuperLink with TLS and node authentication and four SuperNodes on loopback. Each node
config names a folder with that hospital's patients alone, a ledger and a budget; nothing of that
comes from the server. The server app trains, asks for private votes, prunes, fine-tunes and
evaluates; then every hospital's ledger is verified against the receipts that the server holds.

    python simulations/real_clients.py --root DATA
    python simulations/real_clients.py --root DATA --kill va

`--kill NAME` ends that hospital's SuperNode by its process id in the midst of the second training
round; the run goes on with the other three (federation.quorum = 0.75) and names who is missing.
Whatever happens, everything that was started is stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from fedprune import audit
from fedprune import config as configuration
from fedprune.audit import client_ledger
from fedprune.config import Config, Scalar
from fedprune.federated.loopback import Loopback, loopback, run_deployed
from fedprune.federated.node_settings import budget_settings
from fedprune.progress import Terminal
from fedprune.runs import RunFolder

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "hospitals.toml"
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
KILLED_IN = "train-2"


def main() -> None:
    """Run, show, verify; exit 1 if a ledger or a claim of the run does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder with heart/")
    parser.add_argument("--run", type=Path, help="folder for the run; a temporary one by default")
    parser.add_argument("--kill", choices=HOSPITALS, help="end this SuperNode in mid-round")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--out", type=Path, help="results JSON to write")
    arguments = parser.parse_args()
    config = configuration.load(CONFIG, arguments.overrides)
    with tempfile.TemporaryDirectory() as scratch:
        place = (arguments.run or Path(scratch) / "hospitals").absolute()
        result = run(config, arguments.root, place, arguments.kill)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if result["ledgers_hold"] and result["audit_holds"] else 1)


def run(config: Config, root: Path, place: Path, kill: str | None) -> dict[str, Any]:
    """Bring the federation up, run on it, take it down, check everything."""
    begun, reporter = time.monotonic(), Terminal()
    out = place / "run"
    with loopback(place / "federation", node_configs(config, root, place), reporter) as federation:
        joined = time.monotonic() - begun
        killer = Killer(federation, out, kill)
        run_deployed(federation, config, out, reporter, meanwhile=killer.look)
        ledgers = {name: federation.ledger(name) for name in HOSPITALS}
    seconds = time.monotonic() - begun
    summary = RunFolder.open(out).read_json("summary.json")
    verdict = audit.audit(out)
    audit.write_audit(out, verdict)
    page = audit.write_report(out)
    for line in [*audit.headlines(summary), *verdict.lines()]:
        print(line)
    hold = [ledger_holds(name, path, out) for name, path in ledgers.items()]
    print(f"{seconds:.0f} s in all, {joined:.0f} s until all had joined; report: {page}")
    return {
        "question": (__doc__ or "").splitlines()[0],
        "command": "python simulations/real_clients.py --root DATA"
        + (f" --kill {kill}" if kill else ""),
        "date": date.today().isoformat(),
        "versions": summary["versions"],
        "config": config.model_dump(exclude={"out"}),
        "seconds": round(seconds, 1),
        "seconds_until_joined": round(joined, 1),
        "killed": None if kill is None else {"client": HOSPITALS.index(kill), "name": kill},
        "ledgers_hold": all(hold),
        "audit_holds": verdict.holds,
        "missing": summary["missing"],
        "accuracy": summary["accuracy"],
        "kept": {key: summary["kept"][key] for key in ("units", "of")},
        "cost": summary["cost"],
        "privacy": summary["privacy"],
    }


def node_configs(config: Config, root: Path, place: Path) -> dict[str, dict[str, Scalar]]:
    """Give every hospital a folder with its own patients and a node config that names it."""
    found: dict[str, dict[str, Scalar]] = {}
    for number, name in enumerate(HOSPITALS):
        own = place / "rows" / name
        (own / "heart").mkdir(parents=True)
        file = f"heart/processed.{name}.data"
        shutil.copyfile(root / file, own / file)
        found[name] = {
            "partition-id": number,
            "data-root": str(own),
            "dataset": "heart",
            "tables": "unprotected",
            **budget_settings(config),
        }
    return found


class Killer:
    """Ends one SuperNode shortly after the round before KILLED_IN has finished."""

    def __init__(self, federation: Loopback, out: Path, name: str | None) -> None:
        """Take the name of the client to end; None ends nobody."""
        self._federation, self._out, self._name = federation, out, name
        self._due: float | None = None

    def look(self) -> None:
        """Called some times a second while the run goes on."""
        if self._name is None:
            return
        if self._due is None:
            events = self._out / "events.jsonl"
            if events.is_file() and '"train-1"' in events.read_text():
                self._due = time.monotonic() + 1.0  # the next round's messages are on their way
        elif time.monotonic() > self._due:
            node = self._federation.nodes[self._name]
            print(f"killing {self._name} (process {node.pid}) in {KILLED_IN}", file=sys.stderr)
            node.kill()
            self._name = None


def ledger_holds(name: str, ledger: Path, out: Path) -> bool:
    """Verify one hospital's ledger as the hospital itself would."""
    found = client_ledger.verify(ledger, out / "receipts.jsonl")
    spent = client_ledger.describe(ledger)
    print(f"{name}: ledger {'holds' if found.holds else 'DOES NOT HOLD'}")
    for line in spent.lines():
        print(f"  {line}")
    return bool(found.holds)


if __name__ == "__main__":
    main()
