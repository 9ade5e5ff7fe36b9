"""What does it cost to call a ClientApp that does nothing, once for every client?

    python simulations/benchmarks/noop.py --out simulations/results/noop.json

A user's own ClientApp knows no cohorts: the local grid calls it once a client, as Flower's engine
does. The same app and the same server loop (make the messages, send them, hear every reply) run on
the local grid and on Flower's simulation engine (Ray), turn after turn, each in a process of its
own; the first round is left out, so start-up is not counted. What Flower's own classes cost alone
(a message, the app's call and its reply, in a bare loop) is measured beside them: nothing that
calls a ClientApp can be faster. Wanted: less than 0.05 ms a client.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from _measuring import machine, spread, write
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedprune.federated.flower_internals import identify_server_task
from fedprune.federated.local_grid import LocalGrid

WANTED_MS = 0.05
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

app = ClientApp()


@app.query()
def nothing(message: Message, context: Context) -> Message:
    """Answer with an empty record."""
    del context
    return Message(RecordDict(), reply_to=message)


def rounds(grid: Grid, clients: int, count: int) -> list[float]:
    """Ask all clients `count` times and once before; milliseconds a client of every round."""
    end = time.monotonic() + 120.0
    while len(nodes := list(grid.get_node_ids())) < clients and time.monotonic() < end:
        time.sleep(0.1)
    content = RecordDict({"question": ConfigRecord({"nothing": True})})
    found = []
    for number in range(count + 1):
        begun = time.perf_counter()
        messages = (Message(content, node, "query", group_id=str(number)) for node in nodes)
        replies = grid.send_and_receive(messages)
        heard = sum(not reply.has_error() for reply in replies)
        found.append(1000 * (time.perf_counter() - begun) / clients)
        if heard != clients:
            raise SystemExit(f"{heard} of {clients} clients answered")
    return found[1:]


def on_local(clients: int, count: int) -> list[float]:
    """The rounds on the local grid."""
    return rounds(LocalGrid(clients, {}, client_app=app), clients, count)


def on_flower(clients: int, count: int) -> list[float]:
    """The rounds on Flower's simulation engine."""
    from flwr.simulation import run_simulation

    found: list[float] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        found.extend(rounds(grid, clients, count))

    run_simulation(server, app, clients)
    if not found:
        raise SystemExit("Flower's engine failed")
    return found


def bare(clients: int, count: int) -> list[float]:
    """Flower's own classes in a loop: no grid at all."""
    identify_server_task(1)
    content = RecordDict({"question": ConfigRecord({"nothing": True})})
    context = Context(1, 2, {}, RecordDict(), {})
    found = []
    for number in range(count + 1):
        begun = time.perf_counter()
        for node in range(clients):
            app(Message(content, node, "query", group_id=str(number)), context)
        found.append(1000 * (time.perf_counter() - begun) / clients)
    return found[1:]


ENGINES: dict[str, Callable[[int, int], list[float]]] = {
    "local": on_local,
    "flower": on_flower,
    "bare": bare,
}


def main() -> None:
    """Run the engines in turns and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of every turn")
    parser.add_argument("--without-flower", action="store_true", help="leave Ray out")
    parser.add_argument("--out", type=Path, help="results JSON to write")
    parser.add_argument("--child", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.turns, options.clients, options.rounds) < 1:
        parser.error("all counts must be at least 1")
    if options.child is not None:
        found = ENGINES[options.child](options.clients, options.rounds)
        options.out.write_text(json.dumps(found), encoding="utf-8")
        return
    engines = [name for name in ENGINES if name != "flower" or not options.without_flower]
    turns: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(options.turns):
        for name in engines:
            turns[name].append(statistics.median(one_process(name, options)))
        last = {name: round(values[-1], 4) for name, values in turns.items()}
        print(f"turn {turn + 1}: {last} ms a client", file=sys.stderr)
    result = summary(turns, options)
    print(table(result))
    write(options.out, result)


def one_process(name: str, options: argparse.Namespace) -> list[float]:
    """One engine's turn in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "found.json"
        command = [sys.executable, __file__, "--child", name, "--out", str(out)]
        command += ["--clients", str(options.clients), "--rounds", str(options.rounds)]
        home = {"FLWR_HOME": scratch}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(command, env={**os.environ, **QUIET, **home}, check=True, **quiet)
        found: list[float] = json.loads(out.read_text(encoding="utf-8"))
    return found


def summary(turns: dict[str, list[float]], options: argparse.Namespace) -> dict[str, Any]:
    """Spreads, and the ratio of every turn."""
    from fedprune.federated.summary import versions

    ratios = {
        f"{name}_over_local": [a / b for a, b in zip(values, turns["local"], strict=True)]
        for name, values in turns.items()
        if name != "local"
    }
    return {
        "question": (__doc__ or "").splitlines()[0],
        "command": f"python simulations/benchmarks/noop.py --turns {options.turns} "
        f"--clients {options.clients} --rounds {options.rounds}",
        "date": date.today().isoformat(),
        "versions": versions(),
        "machine": machine() | {"threads": os.environ.get("OMP_NUM_THREADS", "") or "not set"},
        "start_up_excluded": "the first round of every turn",
        "ms_a_client": {name: spread(values) for name, values in turns.items()},
        "ratios": {name: spread(values) for name, values in ratios.items()},
        "wanted_ms": WANTED_MS,
        "met": bool(statistics.median(turns["local"]) < WANTED_MS),
    }


def table(result: dict[str, Any]) -> str:
    """The result as lines for people: median (smallest to largest)."""
    rows = {**result["ms_a_client"], **result["ratios"]}
    return "\n".join(
        f"{name:20} {c['median']:.4g} ({c['min']:.4g} to {c['max']:.4g})"
        + (" ms a client" if name in result["ms_a_client"] else " times")
        for name, c in rows.items()
    )


if __name__ == "__main__":
    main()
