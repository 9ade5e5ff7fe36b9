"""Secure sums through Flower's messages: simulated cohorts, and deployed clients with ledgers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from helpers import small_config
from hypothesis import given
from hypothesis import strategies as st

from fedprune import config as configuration
from fedprune import models
from fedprune.errors import FederationError, ReportError
from fedprune.federated import client as client_side
from fedprune.federated.client import app
from fedprune.federated.conversation import Conversation
from fedprune.federated.experiment import Experiment, Held
from fedprune.federated.local_grid import LocalGrid
from fedprune.federated.messages import Question
from fedprune.federated.opening import close_stations
from fedprune.federated.secure_questions import (
    CONSENT,
    INPUT,
    KEYS,
    REVEAL,
    SHARES,
    clients_to_text,
    name_of,
    text_to_clients,
)
from fedprune.federated.secure_rounds import RevealedSum, secure_sum
from fedprune.privacy import Ledger, SigningKey
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.mechanisms.aggregate import AggregateMechanism
from fedprune.progress import Quiet
from fedprune.runs import Architecture, RunFolder, weights_vector

ARCHITECTURE = Architecture.dense("mlp", 10, (1, 8, 8))
WEIGHTS = weights_vector(models.load("mlp", num_classes=10, input_shape=(1, 8, 8), seed=1))
UNITS = len(ARCHITECTURE.dense_layout)
TASK = {
    "criterion": "taylor",
    "fingerprint": ARCHITECTURE.dense_layout.fingerprint,
    "keep_units": 0.5,
    "floor": 1,
}
NAME = "report-1"
SHARED = ("privacy.trust=aggregate", "privacy.delta=1e-6", "federation.quorum=0.6")

Change = Callable[[Message, Message], bool]  # (question, reply): whether the reply arrives


@pytest.fixture(autouse=True)
def _no_open_stations() -> Iterator[None]:
    yield
    close_stations()


def mechanism(min_reports: int) -> AggregateMechanism:
    """Noise for half of the units being kept."""
    return AggregateMechanism(2.0, 1e-6, UNITS, min_reports, UNITS // 2)


def arrives(_question: Message, _reply: Message) -> bool:
    """Everything arrives."""
    return True


class WatchedGrid(LocalGrid):
    """A local grid that a test listens to, and on which it lets replies get lost."""

    change: Change = staticmethod(arrives)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        del timeout  # nothing is waited for
        asked: dict[str, Message] = {}

        def remembered() -> Iterator[Message]:
            for message in messages:
                asked[message.metadata.message_id] = message
                yield message

        for reply in self.answer(remembered()):
            if self.change(asked.pop(reply.metadata.reply_to_message_id), reply):
                yield reply

    def answer(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Answer as the local grid does."""
        return super().send_and_receive(messages)


class DeployedGrid(WatchedGrid):
    """Clients with data, ledger and key of their own; each message meets a fresh process."""

    nodes: Mapping[int, Mapping[str, str | float | int]] = {}

    def answer(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Answer one by one, as Flower does."""
        for message in messages:
            close_stations()
            context = Context(
                run_id=1,
                node_id=message.metadata.dst_node_id,
                node_config=dict(self.nodes[message.metadata.dst_node_id - 2]),
                state=RecordDict(),
                run_config=self._run_config,
            )
            yield app(message, context)


def experiment_on(grid: LocalGrid, folder: Path, clients: int) -> tuple[Experiment, Held]:
    """A run that has a model and nothing else."""
    config = run_config(folder, clients)
    run = RunFolder.create(folder, config)
    conversation = Conversation(grid, clients, config.federation, Quiet())
    experiment = Experiment(config, run, conversation, Quiet())
    experiment.phase("plan", lambda: {"run": experiment.run_id})
    return experiment, Held.save(run, "start", ARCHITECTURE, WEIGHTS)


def run_config(folder: Path, clients: int) -> configuration.Config:
    """A configuration for secure sums."""
    return small_config(f"out={folder}", f"data.clients={clients}", "privacy.epsilon=2.0", *SHARED)


def simulated_sum(
    folder: Path, clients: int, min_reports: int, change: Change = arrives, masked: bool = True
) -> RevealedSum:
    """One secure sum of simulated clients."""
    close_stations()
    grid = WatchedGrid(clients, configuration.to_flat(run_config(folder, clients)))
    grid.change = change  # type: ignore[method-assign]
    experiment, held = experiment_on(grid, folder, clients)
    everybody = range(clients)
    return secure_sum(
        experiment, held, TASK, NAME, everybody, mechanism(min_reports), masked=masked
    )


def losing(kind: str, *clients: int) -> Change:
    """Lose these clients from a stage on."""
    order = [KEYS, SHARES, INPUT, REVEAL]
    later = order[order.index(kind) :]
    return lambda question, _: (
        not (
            question.metadata.message_type in later and question.metadata.dst_node_id - 2 in clients
        )
    )


def both(*changes: Change) -> Change:
    """A reply arrives if all let it."""
    return lambda question, reply: all(change(question, reply) for change in changes)


def test_the_protocol_gives_the_very_sum_that_plain_sight_would(tmp_path: Path) -> None:
    hidden = simulated_sum(tmp_path / "a", 12, 9)
    plain = simulated_sum(tmp_path / "b", 12, 9, masked=False)
    assert np.array_equal(hidden.total, plain.total)
    assert hidden.survivors == plain.survivors == tuple(range(12))
    votes = mechanism(9).estimate(hidden.total, 12)
    assert abs(votes.mean.mean() - 0.5) < 5 * (votes.variance[0] / UNITS) ** 0.5


def test_the_survivors_of_every_stage_are_summed_exactly(tmp_path: Path) -> None:
    change = both(losing(KEYS, 3), losing(SHARES, 5), losing(INPUT, 0), losing(REVEAL, 7))
    hidden = simulated_sum(tmp_path / "a", 12, 8, change)
    assert hidden.survivors == (1, 2, 4, 6, 7, 8, 9, 10, 11)
    plain = simulated_sum(tmp_path / "b", 12, 8, losing(KEYS, 0, 3, 5), masked=False)
    assert plain.survivors == hidden.survivors
    assert np.array_equal(hidden.total, plain.total)


@pytest.mark.parametrize("kind", [KEYS, SHARES, INPUT, REVEAL])
def test_a_sum_ends_without_result_once_too_few_are_left(tmp_path: Path, kind: str) -> None:
    with pytest.raises(FederationError, match=r"11 clients are left .* min_reports = 12"):
        simulated_sum(tmp_path / "a", 12, 12, losing(kind, 4))


def test_the_ledger_is_charged_for_the_input_alone(tmp_path: Path) -> None:
    simulated_sum(tmp_path / "a", 5, 4)
    close_stations()
    with Ledger.open(tmp_path / "a" / "ledger.sqlite") as ledger:
        assert list(ledger.verify()) == []
        [budget] = ledger.budgets.values()
        charge = filter_of(budget).charge(mechanism(4).event)
        assert [ledger.spent(str(client)) for client in range(5)] == [charge] * 5
        kinds = {entry.kind: entry.relation for entry in ledger.entries()}
    assert kinds == {
        "secure-sum-keys": "no-charge",
        "secure-sum-shares": "no-charge",
        "aggregate-share": "replacement",
        "secure-sum-unmask": "no-charge",
    }


def test_clients_with_parts_of_their_own_are_still_answered_as_one_cohort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, list[int]] = {}

    def counted(kind: str) -> object:
        answer = client_side.ANSWERERS[kind]

        def counting(station: object, question: Question, clients: list[int]) -> object:
            sizes.setdefault(kind, []).append(len(clients))
            return answer(station, question, clients)  # type: ignore[arg-type]

        return counting

    kinds = {kind: counted(kind) for kind in client_side.ANSWERERS}
    monkeypatch.setattr(client_side, "ANSWERERS", kinds)
    simulated_sum(tmp_path / "a", 9, 7)
    assert sizes == {KEYS: [9], SHARES: [9], INPUT: [9], REVEAL: [9]}


@pytest.mark.parametrize("kind", [KEYS, SHARES, INPUT, REVEAL])
def test_an_answer_of_the_wrong_size_costs_the_round_its_sender(tmp_path: Path, kind: str) -> None:
    def change(question: Message, reply: Message) -> bool:
        if question.metadata.message_type == kind and question.metadata.dst_node_id == 4:
            reply.content.config_records["answer"]["report"] = b"123"
        return True

    found = simulated_sum(tmp_path / "a", 6, 4, change)
    assert found.survivors == (tuple(range(6)) if kind == REVEAL else (0, 1, 3, 4, 5))


# Deployed clients.


Nodes = dict[int, dict[str, str | float | int]]


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    """Five clients that know each other's public keys."""
    return five_nodes(tmp_path)


def five_nodes(tmp_path: Path) -> Nodes:
    """Write keys and a roster; give the clients' own settings."""
    found: Nodes = {}
    roster = {}
    for client in range(5):
        key = tmp_path / f"{client}.key"
        roster[str(client)] = SigningKey.open(key).public
        found[client] = {
            "partition-id": client,
            "num-partitions": 5,
            "data-root": str(tmp_path),
            "ledger": str(tmp_path / f"{client}.sqlite"),
            "signing-key": str(key),
            "epsilon": 2.0,
            "delta": 1e-6,
            "roster": str(tmp_path / "roster.json"),
        }
    (tmp_path / "roster.json").write_text(json.dumps(roster))
    return found


class Deployment:
    """Five deployed clients and a server that a test may corrupt."""

    def __init__(
        self, folder: Path, nodes: Mapping[int, Mapping[str, str | float | int]], change: Change
    ) -> None:
        self.folder, self.nodes = folder, nodes
        self.asked: dict[tuple[str, int], Message] = {}
        self.replies: dict[tuple[str, int], bytes] = {}

        def kept(question: Message, reply: Message) -> bool:
            key = (question.metadata.message_type, question.metadata.dst_node_id - 2)
            self.asked[key] = question
            if reply.has_content() and "report" in reply.content.config_records.get("answer", {}):
                self.replies[key] = reply.content.config_records["answer"]["report"]  # type: ignore[assignment]
            return change(question, reply)

        config = configuration.to_flat(run_config(folder / "run", 5))
        self.grid = DeployedGrid(5, config)
        self.grid.nodes = nodes
        self.grid.change = kept  # type: ignore[method-assign]
        self.experiment, self.held = experiment_on(self.grid, folder / "run", 5)

    def sum(self, min_reports: int = 4) -> RevealedSum:
        """A secure sum of all five."""
        noise = mechanism(min_reports)
        return secure_sum(self.experiment, self.held, TASK, NAME, range(5), noise)

    def ask_again(self, kind: str, client: int, change: Callable[[Question], Question]) -> Message:
        """Put a question to one client again, changed."""
        changed = change(Question.from_content(self.asked[kind, client].content))
        [content] = changed.to_contents([client])
        message = Message(content, client + 2, kind)
        [reply] = self.grid.answer([message])
        return reply

    def spent(self, client: int) -> Fraction:
        """What a client's ledger says."""
        close_stations()
        with Ledger.open(str(self.nodes[client]["ledger"])) as ledger:
            assert list(ledger.verify()) == []
            return ledger.spent(str(client))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployment, RevealedSum]:
    """A deployment after a sum from which client 2 was lost before its input arrived."""
    folder = tmp_path_factory.mktemp("finished")
    deployment = Deployment(folder, five_nodes(folder), losing(INPUT, 2))
    return deployment, deployment.sum()


def test_deployed_clients_sum_with_keys_consents_and_receipts(
    finished: tuple[Deployment, RevealedSum],
) -> None:
    deployment, found = finished
    assert found.survivors == (0, 1, 3, 4)
    votes = mechanism(4).estimate(found.total, 4)
    assert abs(votes.mean.mean() - 0.5) < 5 * (votes.variance[0] / UNITS) ** 0.5
    assert deployment.spent(0) == deployment.spent(2) > 0
    lines = (deployment.folder / "run" / "receipts.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert (CONSENT, 0) in deployment.asked


@pytest.mark.parametrize("kind", [KEYS, SHARES, INPUT, CONSENT, REVEAL])
def test_the_same_question_gets_the_same_bytes_and_costs_nothing_more(
    finished: tuple[Deployment, RevealedSum], kind: str
) -> None:
    deployment, _ = finished
    before = deployment.spent(1)
    reply = deployment.ask_again(kind, 1, lambda question: question)
    assert reply.content.config_records["answer"]["report"] == deployment.replies[kind, 1]
    assert deployment.spent(1) == before


def survivors_without(*clients: int) -> Callable[[Question], Question]:
    """Ask about other survivors."""
    left = clients_to_text(set(range(5)) - {*clients})
    return lambda q: replace(q, settings={**q.settings, "survivors": left})


@pytest.mark.parametrize("kind", [CONSENT, REVEAL])
def test_other_survivors_in_the_same_round_are_refused_by_name(
    finished: tuple[Deployment, RevealedSum], kind: str
) -> None:
    deployment, _ = finished
    reply = deployment.ask_again(kind, 1, survivors_without(3))
    assert reply.has_error()
    if kind == REVEAL:  # its neighbours never agreed to these
        assert "holders agreed to these survivors" in str(reply.error.reason)
    else:
        assert str(reply.error.reason).startswith("QuestionChangedError")


def test_other_survivors_are_refused_without_a_roster_too(tmp_path: Path, nodes: Nodes) -> None:
    alone = {c: {k: v for k, v in node.items() if k != "roster"} for c, node in nodes.items()}
    deployment = Deployment(tmp_path, alone, losing(INPUT, 2))
    deployment.sum()
    for change in (survivors_without(3), survivors_without(0, 2)):
        reply = deployment.ask_again(REVEAL, 1, change)
        assert reply.has_error()
    everybody = deployment.ask_again(REVEAL, 1, survivors_without())
    assert str(everybody.error.reason).startswith("QuestionChangedError: client 1 was asked")


def test_a_second_input_for_other_sharers_is_refused_and_costs_nothing(
    finished: tuple[Deployment, RevealedSum],
) -> None:
    deployment, _ = finished
    before = deployment.spent(1)
    fewer = clients_to_text({0, 1, 3, 4})
    reply = deployment.ask_again(
        INPUT, 1, lambda q: replace(q, settings={**q.settings, "sharers": fewer})
    )
    assert str(reply.error.reason).startswith("QuestionChangedError")
    assert deployment.spent(1) == before


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"masked": False}, "RefusedInDeploymentError: .* without the masks of a secure sum"),
        # Other terms draw another ring: keys stand in other slots, except in one of 24 rings.
        ({"min_reports": 3}, "keys announced for client|QuestionChangedError"),
        ({"min_reports": 2}, "more than half of them"),
        ({"epsilon": 1.0}, "QuestionChangedError"),
        ({"entries": 5}, "the noise is made for"),
        ({"modulus_bits": 64}, "the noise is made for"),
        ({"participants": "zz"}, "not hexadecimal digits"),
        ({"sharers": clients_to_text({1, 2, 3})}, "fewer than min_reports"),
        ({"sharers": clients_to_text({0, 2, 3, 4})}, "client 1 is not among"),
        ({"fingerprint": "0" * 64}, "LayoutMismatchError"),
    ],
)
def test_inputs_are_not_sent_on_other_terms(
    finished: tuple[Deployment, RevealedSum], settings: dict[str, object], sentence: str
) -> None:
    deployment, _ = finished
    before = deployment.spent(1)
    reply = deployment.ask_again(
        INPUT,
        1,
        lambda q: replace(q, settings={**q.settings, **settings}),  # type: ignore[arg-type]
    )
    assert reply.has_error()
    assert deployment.spent(1) == before
    assert re.search(sentence, str(reply.error.reason)), reply.error.reason


def test_keys_that_the_server_exchanged_are_refused(tmp_path: Path, nodes: Nodes) -> None:
    stranger = SigningKey.open(tmp_path / "stranger.key")
    roster = json.loads((tmp_path / "roster.json").read_text())
    roster["3"] = stranger.public
    (tmp_path / "other.json").write_text(json.dumps(roster))
    nodes[1]["roster"] = str(tmp_path / "other.json")
    deployment = Deployment(tmp_path, nodes, arrives)
    found = deployment.sum()
    assert 1 not in found.survivors
    assert (
        "client 3 in report-1 are not signed"
        in deployment.experiment.conversation.missing["report-1/shares"][1]
    )


def test_a_client_that_the_roster_lacks_is_refused(tmp_path: Path, nodes: Nodes) -> None:
    roster = json.loads((tmp_path / "roster.json").read_text())
    del roster["4"]
    (tmp_path / "roster.json").write_text(json.dumps(roster))
    deployment = Deployment(tmp_path, nodes, arrives)
    with pytest.raises(FederationError, match="client 4 of report-1 is not in this node's roster"):
        deployment.sum()


def test_changed_shares_are_refused_by_the_client_that_gets_them(
    tmp_path: Path, nodes: Nodes
) -> None:
    def change(question: Message, reply: Message) -> bool:
        if question.metadata.message_type == SHARES and question.metadata.dst_node_id == 2:
            record = reply.content.config_records["answer"]
            raw = bytes(record["report"])  # type: ignore[arg-type]
            record["report"] = bytes(byte ^ 1 for byte in raw)
        return True

    deployment = Deployment(tmp_path, nodes, change)
    with pytest.raises(FederationError, match=r"client 0 sent to client 1 .* was changed"):
        deployment.sum()


# What the questions say.


@given(st.sets(st.integers(0, 3000), max_size=50))
def test_sets_of_clients_survive_their_bitmap(clients: set[int]) -> None:
    assert text_to_clients(clients_to_text(clients)) == tuple(sorted(clients))


def test_bitmaps_that_are_none_are_refused() -> None:
    with pytest.raises(FederationError, match="not hexadecimal"):
        text_to_clients("0g")
    with pytest.raises(FederationError, match="at most"):
        text_to_clients("00" * (2**17 + 1))


@pytest.mark.parametrize(
    ("round_", "kind"), [("report-1", KEYS), ("report-1/keys", INPUT), ("/keys", KEYS), ("", INPUT)]
)
def test_a_stage_is_asked_in_its_own_round_only(round_: str, kind: str) -> None:
    question = Question("run", round_, ARCHITECTURE, WEIGHTS)
    with pytest.raises(FederationError, match="is not one of"):
        name_of(question, kind)


def test_what_a_question_has_for_one_client_is_part_of_its_digest() -> None:
    question = Question("run", NAME, ARCHITECTURE, WEIGHTS, own={1: {"a": b"x"}, 2: {"a": b"y"}})
    digests = {question.digest_for(client) for client in range(3)}
    assert len(digests) == 3
    assert question.digest_for(0) == question.digest


def test_a_wrong_answer_of_one_client_alone_is_its_own_error(tmp_path: Path) -> None:
    def change(question: Message, reply: Message) -> bool:
        if question.metadata.message_type == KEYS and question.metadata.dst_node_id == 2:
            reply.content.config_records["answer"]["report"] = b"123"
        return True

    config = run_config(tmp_path / "a", 2)
    grid = WatchedGrid(2, configuration.to_flat(config))
    grid.change = change  # type: ignore[method-assign]
    experiment, held = experiment_on(grid, tmp_path / "a", 2)
    with pytest.raises((ReportError, FederationError), match=r"client 0|1 clients are left"):
        secure_sum(experiment, held, TASK, NAME, range(2), mechanism(2))


def test_a_client_refuses_a_sum_that_counts_on_too_few_colluding_clients(
    tmp_path: Path, nodes: Nodes
) -> None:
    for node in nodes.values():
        node["least-colluding"] = 1
    deployment = Deployment(tmp_path, nodes, arrives)
    with pytest.raises(FederationError, match="counts on 0 colluding clients, this node's least"):
        deployment.sum()
    assert deployment.spent(0) == 0
