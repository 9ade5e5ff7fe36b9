"""The command line: thin, and quick to say its first line (heavy imports wait until then)."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fedprune import __version__
from fedprune import config as configuration
from fedprune.config import Config
from fedprune.errors import FedpruneError
from fedprune.progress import Quiet, Reporter, Terminal

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Prune a neural network by the private votes of clients who will not share their data.",
)

ConfigFile = Annotated[
    Path | None, typer.Argument(help="TOML file; without it the built-in digits example.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as prune.keep_units=0.3."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Only JSON on standard output, no progress.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit 1 if the mask would be useless.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]


class Engine(StrEnum):
    """What carries the messages."""

    local = "local"


class Part(StrEnum):
    """What an audit looks at."""

    privacy = "privacy"
    fairness = "fairness"
    robustness = "robustness"
    model = "model"
    record = "record"
    all = "all"


class Format(StrEnum):
    """What a model can be exported to."""

    safetensors = "safetensors"


def main() -> None:
    """Run the command line; an error that a user can act on is one sentence and exit code 2."""
    try:
        app()
    except FedpruneError as error:
        print(f"fedprune: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def plan(
    config: ConfigFile = None,
    set_: Sets = None,
    as_json: AsJson = False,
    strict: Strict = False,
) -> None:
    """Predict recall, bytes and time before any client spends anything."""
    settings = configuration.load(config, set_ or ())
    found = _plan(settings, _reporter(as_json))
    print(json.dumps(found, indent=1)) if as_json else _show_plan(found)
    _stop_if_useless(found, strict)


@app.command()
def simulate(
    config: ConfigFile = None,
    set_: Sets = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make.")] = None,
    engine: Annotated[Engine, typer.Option(help="local: in this process.")] = Engine.local,
    as_json: AsJson = False,
    strict: Strict = False,
) -> None:
    """Train, vote, prune, shrink, fine-tune and evaluate with simulated clients."""
    del engine  # there is one so far
    settings = configuration.load(config, set_ or ())
    reporter = _reporter(as_json)
    reporter.say(
        f"fedprune {__version__}: {settings.model.name} on {settings.data.dataset}, "
        f"{settings.data.clients} clients, seed {settings.seed}"
    )
    from fedprune.federated import simulate as simulation

    found = _plan(settings, reporter)
    _warn_if_useless(found, reporter)
    _stop_if_useless(found, strict)
    folder = out or (Path(settings.out) if settings.out else simulation.default_folder(settings))
    summary = simulation.simulate(settings, folder, reporter)
    _finish(folder, summary, as_json)


@app.command()
def resume(run: RunArgument, as_json: AsJson = False) -> None:
    """Continue a run from its last finished phase."""
    from fedprune.federated import simulate as simulation

    summary = simulation.resume(run, _reporter(as_json))
    _finish(run, summary, as_json)


@app.command()
def audit(
    run: RunArgument,
    part: Annotated[Part, typer.Argument(help="What to check.")] = Part.all,
    as_json: AsJson = False,
) -> None:
    """Check a run's claims from its folder alone; exit 1 if one does not hold."""
    from fedprune import audit as auditing

    found = auditing.audit(run, part.value)
    if part is Part.all:
        auditing.write_audit(run, found)  # for the report; an audit of a read-only copy goes on
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        for line in found.lines():
            print(line)
    if not found.holds:
        raise typer.Exit(1)


@app.command()
def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(help="HTML file; RUN/report.html by default.")] = None,
) -> None:
    """Write one self-contained HTML page about a run."""
    from fedprune import audit as auditing

    print(auditing.write_report(run, out))


@app.command()
def export(
    run: RunArgument,
    format_: Annotated[Format, typer.Option("--format", help="File format.")] = Format.safetensors,
    out: Annotated[Path | None, typer.Option(help="Folder; RUN/export by default.")] = None,
) -> None:
    """Write the pruned model for use elsewhere: weights and architecture.json."""
    del format_
    from fedprune.runs import RunFolder

    print(RunFolder.open(run).export_safetensors(out))


def _reporter(as_json: bool) -> Reporter:
    return Quiet() if as_json else Terminal()


def _plan(settings: Config, reporter: Reporter) -> dict[str, Any]:
    from fedprune import study

    if settings.data.clients > 1 and settings.evaluate.tables == "off":
        reporter.say("evaluate.tables = 'off': accuracy and fairness will not be known")
    return study.plan(settings, study.load_dataset(settings)).to_json()


def _warn_if_useless(found: dict[str, Any], reporter: Reporter) -> None:
    for sentence in found["advice"]:
        reporter.say(f"warning: {sentence}")


def _stop_if_useless(found: dict[str, Any], strict: bool) -> None:
    if strict and not found["useful"]:
        print("fedprune: --strict: nothing was spent", file=sys.stderr)
        raise typer.Exit(1)


def _show_plan(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = {
        "units to vote on": f"{found['num_units']:,}",
        "parameters, MACs": f"{found['params']:,}, {found['macs']:,}",
        "clients vote to keep": f"{found['keep_units']:.3f} of the units",
        "reports": f"{found['reports_per_step']:,} in each of {found['steps']} step(s)",
        "mechanism": found["mechanism"] or "none",
        "guarantee": found["guarantee"],
        "variance per vote": f"{found['variance_per_vote']:.4g}",
        "predicted recall": f"{found['predicted_recall']:.3f} without the prior's help, "
        f"if {found['client_model']}",
        "bytes per client": f"{found['up_bytes_per_client']:,} up, "
        f"{found['down_bytes_per_client']:,} down; dense weights "
        f"{found['dense_upload_bytes']:,}",
        "time": f"roughly {found['seconds']:.0f} s for the whole run on this machine",
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    for sentence in found["advice"]:
        console.print(f"warning: {sentence}", markup=False)


def _finish(folder: Path, summary: dict[str, Any], as_json: bool) -> None:
    from fedprune import audit as auditing

    auditing.write_report(folder)
    if as_json:
        print(json.dumps(summary))
        return
    for line in auditing.headlines(summary):
        print(line)
    print(f"run folder: {folder} (report.html, summary.json)")
