"""The command line: thin, and quick to say its first line (heavy imports wait until then)."""

from __future__ import annotations

import signal
import sys

import typer

from fedprune.cli import choosing, deploying, examining, ledgers, results, running, sweeping, timing
from fedprune.errors import FedpruneError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Prune a neural network by the private votes of clients who will not share their data.",
)
app.command()(running.plan)
app.command()(timing.latency)
app.command()(running.simulate)
app.command()(sweeping.sweep)
app.command()(sweeping.resume)
app.command()(choosing.choose)
app.command()(results.audit)
app.command()(results.report)
app.command()(results.export)
app.command()(examining.exemplars)
app.add_typer(ledgers.app, name="ledger")
app.add_typer(deploying.app, name="deploy")


def main() -> None:
    """Run the command line; an error that a user can act on is one sentence and exit code 2."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what we started is stopped
    try:
        app()
    except FedpruneError as error:
        print(f"fedprune: {error}", file=sys.stderr)
        sys.exit(2)
