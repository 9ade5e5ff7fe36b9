"""One self-contained HTML page that says what a run did, from what its folder holds.

The page loads nothing from elsewhere, runs no script, prints, and follows the reader's light or
dark setting. What the folder does not hold is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup
from numpy.typing import NDArray

from fedprune.audit import _wording as say
from fedprune.audit._deployed import Deployment
from fedprune.audit._evaluators import audit_section, fairness_section, robustness_section
from fedprune.audit._opening import opening
from fedprune.audit._outcomes import outcomes_section
from fedprune.audit._page import Note, Section
from fedprune.audit._privacy import privacy_section
from fedprune.audit._sections import (
    accuracy_section,
    cost_section,
    removed_section,
    run_section,
)


def render(
    summary: Mapping[str, Any],
    *,
    events: Sequence[Mapping[str, Any]] = (),
    votes: Mapping[str, NDArray[Any]] | None = None,
    tables: Mapping[str, Any] | None = None,
    audit: Mapping[str, Any] | None = None,
    layout: Mapping[str, Any] | None = None,
    deployment: Deployment | None = None,
) -> str:
    """Write a run's report.

    Args:
        summary: the content of `summary.json`; missing keys and nulls are said to be unknown.
        events: the lines of `events.jsonl`, each with `phase`, `finished` and `seconds`.
        votes: `mean`, `variance`, `mask` and, with a prior, `posterior`: [num_units] each.
        tables: the content of `tables.json`: `names` [num_groups] and `test`
            [num_clients, num_groups, 2, 2] counts, or [num_clients, num_groups, 2, 2, 2] outcomes.
        audit: the content of `audit.json`: `findings`, each {part, claim, holds, detail}, and
            sentences in `unseen`.
        layout: the content of `layout.json`; its `groups` name the layers in the plot of votes.
        deployment: what the receipts of a deployed run show.

    Returns:
        One HTML document.
    """
    checks, outcomes = audit_section(audit), outcomes_section(summary)
    sections = [
        accuracy_section(summary),
        removed_section(summary, votes, layout),
        cost_section(summary),
        privacy_section(summary, deployment),
        fairness_section(summary, tables),
        *([] if outcomes is None else [outcomes]),
        robustness_section(summary),
        *([] if checks is None else [checks]),
        run_section(summary, events),
    ]
    return _template().render(
        opening=opening(summary, deployment),
        sections=sections,
        alarms=_alarms(sections),
        svg=Markup,
    )


def _alarms(sections: Sequence[Section]) -> list[tuple[str, Note]]:
    """Notes that a reader in a hurry must see, with the section they come from."""
    return [(s.anchor, note) for s in sections for note in s.notes if note.kind == "bad"]


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["unknown"] = say.UNKNOWN
    source = resources.files("fedprune.audit").joinpath("report.html.j2")
    return environment.from_string(source.read_text(encoding="utf-8"))
