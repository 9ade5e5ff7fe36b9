"""Answers over a network: in any order, late, never, from nodes that come and go."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from helpers import run_small, small_config

from fedprune import config as configuration
from fedprune.errors import FederationError
from fedprune.federated import messages, server
from fedprune.federated.client import app
from fedprune.federated.conversation import needed
from fedprune.federated.exchange import exchange
from fedprune.federated.flower_internals import empty_run, identify_server_task, name_message
from fedprune.federated.opening import close_stations
from fedprune.federated.process import inside_simulation
from fedprune.progress import Quiet
from fedprune.runs import RunFolder

FEW = ("data.clients=6", "train.rounds=2", "train.clients_per_round=6", "evaluate.baselines=false")


class Nodes(Grid):
    """Clients behind node ids of their own, each answered for by the ClientApp, one at a time.

    Replies come in a shuffled order, some looks find nothing, and nodes can be unplugged.
    """

    def __init__(self, run_config: dict, clients: int, seed: int = 0) -> None:
        identify_server_task(1)
        self._random = np.random.default_rng(seed)
        ids = self._random.choice(10**6, clients, replace=False)
        self.nodes = {int(node): client for client, node in enumerate(ids)}
        self._run_config, self._run = run_config, empty_run(1)
        self._waiting: list[Message] = []
        self.unplugged: set[int] = set()
        self.silent: set[int] = set()
        self.asked: list[str] = []

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:  # type: ignore[no-untyped-def]
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        return [node for node, client in self.nodes.items() if client not in self.unplugged]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = list(messages)
        self.asked += [m.metadata.message_type for m in pushed]
        for message in pushed:
            name_message(message)
            if self.nodes[message.metadata.dst_node_id] not in self.silent:
                self._waiting.append(message)
        return [m.metadata.message_id for m in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        ready = [m for m in self._waiting if m.metadata.message_id in wanted]
        self._random.shuffle(ready)  # type: ignore[arg-type]
        some = ready[: int(self._random.integers(0, len(ready) + 1))]
        self._waiting = [m for m in self._waiting if m not in some]
        return [self._answer(message) for message in some]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        del messages, timeout
        raise AssertionError("the conversation pushes and pulls by itself")

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = Context(
            run_id=1,
            node_id=node,
            node_config={"partition-id": self.nodes[node], "num-partitions": len(self.nodes)},
            state=RecordDict(),
            run_config=self._run_config,
        )
        with inside_simulation():
            return app(message, context)


@pytest.fixture(autouse=True)
def _no_open_stations() -> Iterator[None]:
    yield
    close_stations()


def network(out: Path, *overrides: str) -> tuple[Nodes, RunFolder]:
    config = small_config(f"out={out}", *FEW, *overrides)
    folder = RunFolder.create(out, config)
    return Nodes(configuration.to_flat(config), config.data.clients), folder


def test_shuffled_nodes_give_the_local_engine_s_reports_and_models(tmp_path: Path) -> None:
    deterministic = "engine.deterministic=true"
    run_small(tmp_path / "local", [*FEW, deterministic])
    grid, folder = network(tmp_path / "network", deterministic)
    server.run(grid, folder, Quiet())
    for name in ("model.safetensors", "dense.safetensors", "votes.safetensors"):
        assert (tmp_path / "local" / name).read_bytes() == (folder.path / name).read_bytes()


def test_a_silent_client_is_named_and_the_quorum_goes_on(tmp_path: Path) -> None:
    grid, folder = network(
        tmp_path / "run", "federation.quorum=0.8", "federation.deadline_seconds=2.0"
    )
    grid.silent = set()

    def go_silent(*_: object) -> None:
        grid.silent = {2}

    say = Quiet()
    say.say = go_silent  # type: ignore[method-assign]  # from the first spoken line on
    summary = server.run(grid, folder, say)
    assert summary["missing"]["report-1"] == [2]
    assert summary["privacy"]["reports"] == 5
    vote = next(e["result"] for e in folder.events() if e["phase"] == "vote-1")
    assert (vote["asked"], vote["reports"]) == (6, 5)


def test_too_few_answers_end_in_a_sentence_that_names_the_clients(tmp_path: Path) -> None:
    grid, folder = network(
        tmp_path / "run", "federation.quorum=0.8", "federation.deadline_seconds=2.0"
    )
    grid.silent = set()
    meet = grid.push_messages

    def then_silent(messages: Iterable[Message]) -> Iterable[str]:
        pushed = meet(messages)
        grid.silent = {1, 4}
        return pushed

    grid.push_messages = then_silent  # type: ignore[method-assign]
    with pytest.raises(FederationError, match=r"2 of 6 .*at most 1 may .*client 1 .*client 4"):
        server.run(grid, folder, Quiet())
    assert not folder.has("summary.json")


def test_an_unplugged_client_is_not_asked_and_is_met_again_when_it_is_back(tmp_path: Path) -> None:
    grid, folder = network(tmp_path / "run", "federation.quorum=0.8")
    config = folder.config
    conversation = server.Conversation(grid, 6, config.federation, Quiet())
    experiment = server.Experiment(config, folder, conversation, Quiet())
    grid.unplugged = {3}
    experiment.phase("plan", lambda: {"run": experiment.run_id})
    dense = server.dense_model(experiment)
    missing = [e.get("missing") for e in folder.events() if e["phase"].startswith("train-")]
    assert missing == [{"train-1": [3]}, {"train-2": [3]}]
    node = next(n for n, client in grid.nodes.items() if client == 3)
    grid.nodes[node + 1] = grid.nodes.pop(node)  # it comes back under another id
    grid.unplugged = set()
    server.follow(experiment, dense, "private", server.private_votes)
    vote = next(e for e in folder.events() if e["phase"] == "vote-1")
    assert vote["result"]["reports"] == 6
    assert "missing" not in vote


@pytest.mark.parametrize(("asked", "quorum", "enough"), [(4, 0.75, 3), (10, 0.7, 7), (3, 0.1, 1)])
def test_a_quorum_is_rounded_up_but_not_by_rounding_errors(
    asked: int, quorum: float, enough: int
) -> None:
    assert needed(asked, quorum) == enough


def test_a_wait_ends_at_its_deadline(tmp_path: Path) -> None:
    grid, _ = network(tmp_path / "run")
    grid.silent = set(range(6))
    ticks = iter(range(100))
    message = Message(RecordDict(), next(iter(grid.nodes)), "train")
    heard = exchange(grid, [message], 3.0, clock=lambda: float(next(ticks)))
    assert list(heard) == []


def test_another_version_on_a_client_is_refused_before_anything_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, folder = network(tmp_path / "run")
    answer = grid._answer

    def other_version(message: Message) -> Message:
        with monkeypatch.context() as patch:
            if grid.nodes[message.metadata.dst_node_id] == 4:
                patch.setattr(messages, "package_hash", lambda: "f" * 64)
                patch.setattr(messages, "package_name", lambda: "9.9.9 (source ffffffff)")
            return answer(message)

    grid._answer = other_version  # type: ignore[method-assign]
    sentence = r"the server runs fedprune .*, this client runs 9\.9\.9.*same version.*nothing was"
    with pytest.raises(FederationError, match=sentence):
        server.run(grid, folder, Quiet())
    assert set(grid.asked) == {"query.introduction"}


def test_two_clients_of_one_number_and_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    grid, folder = network(tmp_path / "run")
    nodes = list(grid.nodes)
    grid.nodes[nodes[5]] = 2
    with pytest.raises(FederationError, match="two nodes say that they are client 2"):
        server.run(grid, folder, Quiet())
    grid.nodes[nodes[5]] = 6
    with pytest.raises(FederationError, match=r"number 6.*from 0 to 5|6 clients are needed"):
        server.run(grid, folder, Quiet())


def test_a_finished_phase_is_not_asked_again_after_the_server_comes_back(tmp_path: Path) -> None:
    grid, folder = network(tmp_path / "run")
    server.run(grid, folder, Quiet())
    (folder.path / "summary.json").unlink()
    grid.asked = []
    server.run(grid, folder, Quiet())
    assert set(grid.asked) == {"query.introduction"}
    assert json.loads((folder.path / "summary.json").read_text())["missing"] == {}
