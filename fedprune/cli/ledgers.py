"""ledger show, ledger verify: at a client, with its own ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedprune.cli.options import AsJson, show

app = typer.Typer(
    no_args_is_help=True, help="Look at a client's own ledger: what was spent, and is it intact?"
)

LedgerFile = Annotated[Path, typer.Argument(metavar="LEDGER", help="The ledger's SQLite file.")]


@app.command(name="show")
def show_ledger(ledger: LedgerFile, as_json: AsJson = False) -> None:
    """Show a ledger's terms, what each client spent and has left, and every event."""
    from fedprune.audit import client_ledger

    found = client_ledger.describe(ledger)
    show(found.to_json(), list(found.lines()), as_json)


@app.command()
def verify(
    ledger: LedgerFile,
    receipts: Annotated[
        Path | None, typer.Option(help="receipts.jsonl of a run: does the ledger confirm them?")
    ] = None,
    head_copy: Annotated[
        Path | None, typer.Option(help="The owner's copy of the ledger's last row.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute a ledger's chain and promises; exit 1 if something does not hold."""
    from fedprune.audit import client_ledger

    found = client_ledger.verify(ledger, receipts, head_copy)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        show({}, list(found.lines()), as_json=False)
    if not found.holds:
        raise typer.Exit(1)
