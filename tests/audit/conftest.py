"""A finished simulation told as a deployed run, made once for all tests of the audit."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from deployed_run import Deployed, deploy
from helpers import run_small

from fedprune.errors import FederationError
from fedprune.federated import client
from fedprune.federated.answering import Outcome
from fedprune.federated.messages import Question
from fedprune.federated.report_answers import answer_report
from fedprune.federated.station import Station


@pytest.fixture(scope="session")
def deployed(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """Every client answered everything; tests must not change it."""
    return deploy(finished_run, tmp_path_factory.mktemp("deployed") / "run")


@pytest.fixture(scope="session")
def thinned(tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """Clients 40 and 41 never reported; tests must not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(client.ANSWERERS, "query.report", _without_40_and_41)
        out = tmp_path_factory.mktemp("thinned") / "finished"
        run_small(out, ["data.clients=42", "federation.quorum=0.9"])
    return deploy(out, out.with_name("run"))


def _without_40_and_41(
    station: Station, question: Question, clients: Sequence[int]
) -> list[Outcome]:
    there = [number for number in clients if number < 40]
    found = answer_report(station, question, there).outcomes(there)
    answers = dict(zip(there, found, strict=True))
    return [answers.get(number, FederationError("it is not there")) for number in clients]


@pytest.fixture
def run(deployed: Deployed, tmp_path: Path) -> Deployed:
    """A copy of the run folder to tamper with."""
    shutil.copytree(deployed.path, tmp_path / "run")
    return replace(deployed, path=tmp_path / "run", keys=dict(deployed.keys))
