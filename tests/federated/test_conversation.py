"""The server's end: what a faulty or hostile client sends ends in one sentence that names it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message
from helpers import run_small, small_config

from fedprune import config as configuration
from fedprune.errors import FederationError, FedpruneError, LedgerError, ReportError
from fedprune.federated import server
from fedprune.federated.local_grid import LocalGrid
from fedprune.federated.opening import close_stations
from fedprune.federated.simulate import resume
from fedprune.progress import Quiet
from fedprune.runs import RunFolder

Change = Callable[[ConfigRecord], None]


class TamperingGrid(LocalGrid):
    """A local grid on which one client changes its answers to one kind of question."""

    kind, change, drop = "", staticmethod(lambda _: None), False

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        for reply in super().send_and_receive(messages, timeout=timeout):
            if reply.metadata.message_type == self.kind and reply.metadata.src_node_id == 5:
                if self.drop:
                    continue
                self.change(reply.content.config_records["answer"])
            yield reply


def run_with(out: Path, kind: str, change: Change | None = None, drop: bool = False) -> None:
    config = small_config(f"out={out}", "train.clients_per_round=40")
    grid = TamperingGrid(40, configuration.to_flat(config))
    grid.kind, grid.drop = kind, drop
    grid.change = change or (lambda _: None)  # type: ignore[assignment]
    try:
        server.run(grid, RunFolder.create(out, config), Quiet())
    finally:
        close_stations()


def setter(**fields: object) -> Change:
    def change(record: ConfigRecord) -> None:
        for name, value in fields.items():
            record[name] = value  # type: ignore[assignment]

    return change


@pytest.mark.parametrize(
    ("kind", "change", "error", "sentence"),
    [
        ("query.report", setter(report=b"123"), ReportError, "client 3: .* must have 2 bytes"),
        ("query.report", setter(report=b"\xff\xff"), ReportError, "client 3: .*can send"),
        ("query.report", setter(client=9), FederationError, "client 9 answered .* client 3"),
        ("evaluate", setter(table=b"123"), FederationError, "client 3 sent a count table that"),
        ("evaluate", setter(table=b"\xff" * 320), FederationError, "client 3 sent a count table"),
        ("evaluate", setter(table=0), FederationError, "client 3 sent no count table"),
        ("train", setter(rows=-5), FederationError, "client 3 sent rows = -5"),
        ("train", setter(loss=float("nan")), FederationError, "client 3 sent loss = nan"),
        ("train", setter(rows="many"), FederationError, "client 3 sent rows = 'many'"),
        ("query.masks", setter(scores=b"1"), FederationError, "client 3 sent .* another length"),
        ("query.masks", setter(mask=1), FederationError, "client 3 sent no mask"),
        ("query.margins", setter(margins="x"), FederationError, "client 3 sent no margins"),
    ],
)
def test_a_malformed_answer_names_its_client_and_leaves_no_summary(
    tmp_path: Path, kind: str, change: Change, error: type[FedpruneError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        run_with(tmp_path / "run", kind, change)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_a_missing_answer_is_counted(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="client 3 gave no answer in time"):
        run_with(tmp_path / "run", "train", drop=True)


def test_fewer_nodes_than_clients_are_refused(tmp_path: Path) -> None:
    config = small_config(f"out={tmp_path / 'run'}")
    grid = LocalGrid(39, configuration.to_flat(config))
    with pytest.raises(FederationError, match=r"40 clients are needed .*, 39 are there"):
        server.run(grid, RunFolder.create(tmp_path / "run", config), Quiet())


def test_a_ledger_that_was_rolled_back_before_a_resume_is_noticed(
    finished_run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    (copy / "summary.json").unlink()
    with sqlite3.connect(copy / "ledger.sqlite") as raw:
        raw.execute("DELETE FROM entries WHERE seq > 4")
    raw.close()
    with pytest.raises(LedgerError, match="was rolled back: ledger row"):
        resume(copy, Quiet())
    for path in copy.glob("ledger.sqlite*"):
        path.unlink()
    with pytest.raises(LedgerError, match="there is no ledger"):
        resume(copy, Quiet())


def test_a_small_run_can_be_driven_twice_in_one_process(tmp_path: Path) -> None:
    first = run_small(tmp_path / "a", ["evaluate.baselines=false"])
    second = run_small(tmp_path / "b", ["evaluate.baselines=false"])
    assert first["accuracy"] == second["accuracy"]
