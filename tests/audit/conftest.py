"""A finished simulation told as a deployed run, made once for all tests of the audit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from deployed_run import Deployed, deploy


@pytest.fixture(scope="session")
def deployed(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """Every client answered everything; tests must not change it."""
    return deploy(finished_run, tmp_path_factory.mktemp("deployed") / "run")


@pytest.fixture(scope="session")
def thinned(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """Clients 40 and 41 never answered; tests must not change it."""
    return deploy(finished_run, tmp_path_factory.mktemp("thinned") / "run", absent=2)


@pytest.fixture
def run(deployed: Deployed, tmp_path: Path) -> Deployed:
    """A copy of the run folder to tamper with."""
    shutil.copytree(deployed.path, tmp_path / "run")
    return replace(deployed, path=tmp_path / "run", keys=dict(deployed.keys))
