"""exemplars: the rows that pruning treats differently, for their owner's eyes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fedprune.cli.options import AsJson, RunArgument, show


class Split(StrEnum):
    """Which rows."""

    test = "test"
    train = "train"


def exemplars(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(help="CSV file to list the rows in.")] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder of the rows; by default the run's data.root.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Which rows.")] = Split.test,
    client: Annotated[int | None, typer.Option(help="One client's rows only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the rows on which the dense and the pruned model disagree, on the rows at hand.

    Counts by group are printed; the rows themselves are listed in --out alone, those first whose
    true class lost most probability. They are for the eyes of whoever holds the rows.
    """
    from fedprune.study import exemplars as study

    found = study.find_exemplars(run, root=root, split=split.value, client=client)
    counts = {
        name: {"agree": int(agree), "disagree": int(disagree)}
        for name, (agree, disagree) in zip(found.names, found.found.counts, strict=True)
        if agree + disagree
    }
    told: dict[str, Any] = {
        "rows": len(found.rows),
        "disagree": len(found.found.indices),
        "groups": counts,
        "out": None if out is None else str(out),
    }
    if out is not None:
        study.write(found, out)
    lines = [f"the models disagree on {told['disagree']} of {told['rows']} {split.value} rows"]
    lines += [
        f"  {name}: {count['disagree']} of {sum(count.values())}" for name, count in counts.items()
    ]
    show(told, [*lines, *([] if out is None else [f"listed in {out}"])], as_json)
