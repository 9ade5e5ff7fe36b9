"""No figure of summary.json can be changed, removed or added without the audit's noticing."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from deployed_run import Deployed
from helpers import run_small
from people import PEOPLE

from fedprune.audit import audit, privacy_checks
from fedprune.errors import RunError

Place = tuple[str | int, ...]
TABLES_OFF = ["evaluate.tables=off"]
NO_NOISE = ["privacy.trust=none", "evaluate.baselines=false", "evaluate.tables=off"]
TWO_CLASSES = [*PEOPLE, "evaluate.baselines=false", "evaluate.tables=noised",
               "evaluate.table_epsilon=20"]  # fmt: skip
OFTEN_AWAY = ["availability.participation=0.9", "availability.dropout=0.1", "federation.quorum=0.5"]

# The part of the audit that looks at a key; all other keys, those of later versions too, belong
# to the record.
PART = {"privacy": "privacy", "certified_accuracy": "robustness"}
# What the audit says that it cannot see; any other exception made here is a forged figure.
UNSEEN = {("versions",), ("config", "out")}


@dataclass
class Tampered:
    """A copy of a finished run whose summary is replaced again and again."""

    path: Path
    summary: dict[str, Any]

    def goes_unseen(self, summary: dict[str, Any], key: str) -> bool:
        (self.path / "summary.json").write_text(json.dumps(summary))
        try:
            return audit(self.path, PART.get(key, "record")).holds
        except RunError:  # refused altogether
            return False


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes longest and never looks at the summary."""
    monkeypatch.setattr(privacy_checks, "check_empirical", lambda _: iter(()))
    monkeypatch.setattr(privacy_checks, "selection_flaw", lambda _: None)


@pytest.fixture(scope="module")
def simulations(
    finished_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        if name == "whole":
            return finished_run
        overrides = {
            "tables off": TABLES_OFF,
            "no noise": NO_NOISE,
            "often away": OFTEN_AWAY,
            "two classes": TWO_CLASSES,
        }
        out = tmp_path_factory.mktemp("figures") / "run"
        run_small(out, overrides[name])
        return out

    return make


@pytest.fixture(params=["whole", "tables off", "no noise", "often away", "two classes", "deployed"])
def run(
    request: pytest.FixtureRequest,
    simulations: Callable[[str], Path],
    deployed: Deployed,
    tmp_path: Path,
) -> Tampered:
    source = deployed.path if request.param == "deployed" else simulations(request.param)
    path = Path(shutil.copytree(source, tmp_path / "run"))
    return Tampered(path, json.loads((path / "summary.json").read_text()))


def leaves(content: Any, place: Place = ()) -> Iterator[Place]:
    """Every place in a summary that holds no others; of a list the first and the last entry."""
    if isinstance(content, dict) and content:
        for key, value in content.items():
            yield from leaves(value, (*place, key))
    elif isinstance(content, list) and content:
        for number in sorted({0, len(content) - 1}):
            yield from leaves(content[number], (*place, number))
    else:
        yield place


def at(content: Any, place: Place) -> Any:
    for key in place:
        content = content[key]
    return content


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 1.5 + 1
    if isinstance(value, str):
        return value + "x"
    return 0.5 if value is None else ["forged"]


def unseen(place: Place) -> bool:
    return any(place[: len(known)] == known for known in UNSEEN)


def test_the_runs_are_in_order_before_anything_is_changed(run: Tampered) -> None:
    found = audit(run.path)
    assert found.holds, [finding for finding in found.findings if not finding.holds]


def test_every_figure_that_was_changed_is_found(run: Tampered) -> None:
    passed = []
    for place in leaves(run.summary):
        forged = copy.deepcopy(run.summary)
        at(forged, place[:-1])[place[-1]] = another(at(run.summary, place))
        if not unseen(place) and run.goes_unseen(forged, str(place[0])):
            passed.append(place)
    assert passed == []


def test_every_key_that_was_removed_or_added_is_found(run: Tampered) -> None:
    passed = []
    no_config = {key: value for key, value in run.summary.items() if key != "config"}
    tables = {place[:-1] for place in leaves(no_config) if isinstance(place[-1], str)}
    for place in tables:
        inside = str(place[0]) if place else "record"
        forged = copy.deepcopy(run.summary)
        at(forged, place)["gain"] = 0.5
        if not unseen(place) and run.goes_unseen(forged, inside):
            passed.append((*place, "gain"))
        for key in at(run.summary, place):
            forged = copy.deepcopy(run.summary)
            del at(forged, place)[key]
            if not unseen((*place, key)) and run.goes_unseen(forged, str((*place, key)[0])):
                passed.append((*place, key))
    assert passed == []


def test_what_is_not_looked_at_is_said_in_words(run: Tampered) -> None:
    words = " ".join(audit(run.path, "record").unseen)
    assert "versions of packages" in words
    assert "the folder in which the run began" in words
