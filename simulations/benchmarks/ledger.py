"""How fast is a ledger: a simulation's cohorts, and one deployed client's report with its fsyncs?

Cohorts of simulated clients reserve and store reports of 2 bytes (a block of 4 units) and of
57 bytes (448 units at once) in one shared file; at cohorts of 10,000 at least 100,000 clients a
second are wanted. A deployed client reserves and stores one report in its own file, with and
without the owner's copy of the head; under 20 ms without it is wanted. What two bare appends with
fsync cost on the same disk is measured in turns with the latter, since that is their floor.

    python simulations/benchmarks/ledger.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from _measuring import machine, spread

from fedprune import __version__
from fedprune.privacy import Budget, Entry, Ledger, SigningKey
from fedprune.privacy.budgets.events import REPLACEMENT, PureEvent
from fedprune.privacy.ledgers.chain import STORED

SIZES = (2, 57)
WANTED_CLIENTS_PER_SECOND, WANTED_SECONDS = 100_000, 0.020


def main() -> None:
    """Measure, print and, if asked, write; exit 1 where less than wanted is reached."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cohort", type=int, default=10_000, help="clients of a large cohort")
    parser.add_argument("--small-cohort", type=int, default=500)
    parser.add_argument("--cohorts", type=int, default=40, help="so many of each")
    parser.add_argument("--reports", type=int, default=200, help="of a deployed client")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary one else")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    if min(options.cohort, options.small_cohort, options.cohorts, options.reports) < 1:
        parser.error("all counts must be at least 1")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = measure(Path(folder), options)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    sys.exit(0 if figures["reached"] else 1)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Collect all figures."""
    large = {size: cohorts(folder, options.cohort, options.cohorts, size) for size in SIZES}
    small = {size: cohorts(folder, options.small_cohort, options.cohorts, size) for size in SIZES}
    single = deployed(folder, options.reports)
    reached = single["report_seconds"]["median"] < WANTED_SECONDS and all(
        found["clients_per_second"]["median"] >= WANTED_CLIENTS_PER_SECOND
        for found in large.values()
    )
    return {
        "reached": reached,
        "wanted": {
            "clients_per_second": WANTED_CLIENTS_PER_SECOND,
            "report_seconds": WANTED_SECONDS,
        },
        f"cohorts_of_{options.cohort}": {f"{size}_bytes": large[size] for size in SIZES},
        f"cohorts_of_{options.small_cohort}": {f"{size}_bytes": small[size] for size in SIZES},
        "one_by_one_in_a_batch": one_by_one(folder, min(options.cohort, 10_000)),
        "deployed": single,
        "command": f"python simulations/benchmarks/ledger.py --cohort {options.cohort} "
        f"--small-cohort {options.small_cohort} --cohorts {options.cohorts} "
        f"--reports {options.reports}",
        "date": date.today().isoformat(),
        "fedprune": __version__,
        "sqlite": sqlite3.sqlite_version,
        "python": platform.python_version(),
        "machine": machine(),
    }


def cohorts(folder: Path, clients: int, count: int, size: int) -> dict[str, Any]:
    """Reserve and store cohort after cohort; then read the file back as an auditor does."""
    path = folder / f"cohorts-{clients}-{size}.sqlite"
    packed = np.random.default_rng(0).integers(0, 256, (clients, size)).astype(np.uint8)
    reports = [row.tobytes() for row in packed]
    speeds = []
    with Ledger.open(path, budget=Budget(4.0)) as ledger:
        for number in range(count):
            asked = np.arange(number * clients, (number + 1) * clients)
            with stopwatch() as seconds:
                answer = ledger.reserve_cohort(entry("everybody", "report-1"), asked)
                ledger.store_cohort(entry("everybody", "report-1"), asked, reports)
            speeds.append(clients / seconds[0])
            if len(answer.granted) != clients:
                raise SystemExit("the ledger refused a client that has all of its budget")
    total = clients * count
    with Ledger.open(path, read_only=True) as ledger:
        with stopwatch() as verifying:
            sound = not list(ledger.verify())
        with stopwatch() as reading:
            stored = sum(entry.stage == STORED for entry in ledger.entries())
    if not sound or stored != total:
        raise SystemExit("the ledger does not hold what was stored")
    return {
        "clients_per_second": spread(speeds),
        "clients": total,
        "verified_clients_per_second": total / verifying[0],
        "read_clients_per_second": total / reading[0],
        "file_bytes_per_client": path.stat().st_size / total,
    }


def one_by_one(folder: Path, clients: int) -> dict[str, Any]:
    """The same with one row a client, as a mixed batch needs."""
    entries = [entry(str(client), "report-1") for client in range(clients)]
    with Ledger.open(folder / "single.sqlite", budget=Budget(4.0)) as ledger, stopwatch() as took:
        ledger.reserve_many(entries)
        ledger.store_many([(one, bytes(SIZES[-1])) for one in entries])
    return {"clients": clients, "clients_per_second": clients / took[0]}


def deployed(folder: Path, reports: int) -> dict[str, Any]:
    """One client's reports, one at a time, in turns with bare appends to a file."""
    key = SigningKey.open(folder / "key")
    terms = {"budget": Budget(1e6), "owner": "client 3", "private": True}
    plain = Ledger.open(folder / "own.sqlite", signing_key=key.public, **terms)
    copied = Ledger.open(
        folder / "copied.sqlite", signing_key=key.public, head_copy=folder / "head", **terms
    )
    seconds: dict[str, list[float]] = {"report": [], "report_with_head_copy": [], "fsyncs": []}
    with plain, copied, open(folder / "bare", "wb") as bare:
        for number in range(reports):
            asked = entry("3", f"report-{number}")
            for name, ledger in (("report", plain), ("report_with_head_copy", copied)):
                with stopwatch() as took:
                    ledger.reserve(asked)
                    ledger.store(asked, os.urandom(SIZES[-1]))
                seconds[name] += took
            with stopwatch() as took:
                for _ in range(2):
                    bare.write(bytes(4096))
                    bare.flush()
                    os.fsync(bare.fileno())
            seconds["fsyncs"] += took
    floor = statistics.median(seconds["fsyncs"])
    return {
        "report_seconds": spread(seconds["report"]),
        "report_with_head_copy_seconds": spread(seconds["report_with_head_copy"]),
        "two_bare_appends_with_fsync_seconds": spread(seconds["fsyncs"]),
        "ratio_to_the_bare_appends": statistics.median(seconds["report"]) / floor,
        "reports": reports,
    }


def entry(client: str, round_name: str) -> Entry:
    """A mask report's reservation."""
    return Entry.charged(
        client=client,
        run="benchmark",
        round=round_name,
        kind="mask-report",
        question="0" * 64,
        relation=REPLACEMENT,
        event=PureEvent(4.0),
    )


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """Measure the block: afterwards the list holds its seconds."""
    took: list[float] = []
    began = time.perf_counter()
    yield took
    took.append(time.perf_counter() - began)


if __name__ == "__main__":
    main()
