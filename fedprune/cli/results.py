"""audit, report, export: what is done with a finished run's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedprune.cli.options import AsJson, RunArgument, show


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
    pt2 = "pt2"


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
        show({}, list(found.lines()), as_json=False)
    if not found.holds:
        raise typer.Exit(1)


def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(help="HTML file; RUN/report.html by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page about a run."""
    from fedprune import audit as auditing

    written = str(auditing.write_report(run, out))
    show({"report": written}, [written], as_json)


def export(
    run: RunArgument,
    format_: Annotated[Format, typer.Option("--format", help="File format.")] = Format.safetensors,
    out: Annotated[
        Path | None, typer.Option(help="Folder (safetensors) or file (pt2); in RUN by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the pruned model for use elsewhere.

    safetensors: weights beside architecture.json. pt2: a graph of torch.export, which runs
    without fedprune.
    """
    written = str(_EXPORTERS[format_](run, out))
    show({"format": format_.value, "path": written}, [written], as_json)


def _export_safetensors(run: Path, out: Path | None) -> Path:
    from fedprune.runs import RunFolder

    return RunFolder.open(run).export_safetensors(out)


def _export_pt2(run: Path, out: Path | None) -> Path:
    from fedprune.runs import RunFolder
    from fedprune.runs.export import export_pt2

    model, architecture = RunFolder.open(run).load_pruned()
    return export_pt2(model, architecture.example_input, out or run / "export" / "model.pt2")


_EXPORTERS: Mapping[Format, Callable[[Path, Path | None], Path]] = {
    Format.safetensors: _export_safetensors,
    Format.pt2: _export_pt2,
}
