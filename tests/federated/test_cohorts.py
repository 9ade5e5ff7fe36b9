"""Clients that are answered for together: nothing but the time differs from one by one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from helpers import small_config

from fedprune import config as configuration
from fedprune import models
from fedprune.config import Config
from fedprune.errors import FederationError, FedpruneError
from fedprune.federated import conversation as conversation_module
from fedprune.federated.answering import Outcome
from fedprune.federated.answers import Answers, as_rows
from fedprune.federated.client import ANSWERERS
from fedprune.federated.client import app as our_app
from fedprune.federated.conversation import Conversation
from fedprune.federated.evaluation import ask_tables
from fedprune.federated.experiment import Experiment, Held
from fedprune.federated.introduction import introduction_question
from fedprune.federated.local_grid import LocalGrid
from fedprune.federated.local_votes import local_votes, shuffled_votes
from fedprune.federated.messages import Question, answer_content
from fedprune.federated.opening import close_stations
from fedprune.federated.report_answers import report_entry
from fedprune.federated.station import Station
from fedprune.federated.steps import Step, schedule
from fedprune.federated.voting import clean_votes, pooled_scores
from fedprune.privacy import Ledger
from fedprune.privacy.ledgers.chain import STORED
from fedprune.progress import Quiet
from fedprune.runs import Architecture, RunFolder, budgets, weights_vector

T = TypeVar("T")
CLIENTS = 40
KINDS = ("cohorts", "messages", "client app")
ARCHITECTURE = Architecture.dense("mlp", 10, (1, 8, 8))
WEIGHTS = weights_vector(models.load("mlp", num_classes=10, input_shape=(1, 8, 8), seed=1))


class MessageGrid(LocalGrid):
    """A grid that looks at every message."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        yield from super().send_and_receive(messages, timeout=timeout)


class Heard(Quiet):
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.counted: dict[str, tuple[int, int]] = {}

    def say(self, text: str) -> None:
        self.lines.append(text)

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        done = 0
        try:
            for item in items:
                yield item
                done += 1
        finally:
            self.counted[label] = (done, total)


@pytest.fixture(autouse=True)
def _no_open_stations() -> Iterator[None]:
    yield
    close_stations()


def singly() -> ClientApp:
    """A client app that is not fedprune's, but does what fedprune's does."""
    app = ClientApp()
    kinds = {"train": app.train, "evaluate": app.evaluate, "query": app.query}
    for kind in ("query.introduction", *ANSWERERS):
        category, _, action = kind.partition(".")
        kinds[category](action or "default")(lambda message, context: our_app(message, context))
    return app


def grid_of(kind: str, config: Config) -> LocalGrid:
    flat = configuration.to_flat(config)
    if kind == "client app":
        return LocalGrid(CLIENTS, flat, client_app=singly())
    return {"cohorts": LocalGrid, "messages": MessageGrid}[kind](CLIENTS, flat)


def start(
    folder: Path, *overrides: str, kind: str = "cohorts", reporter: Quiet | None = None
) -> Conversation:
    folder.mkdir(exist_ok=True)
    config = small_config(f"out={folder}", *overrides)
    return Conversation(grid_of(kind, config), CLIENTS, config.federation, reporter or Quiet())


def question(round_name: str = "report-1", **changes: object) -> Question:
    settings: dict[str, object] = {
        "criterion": "taylor",
        "fingerprint": ARCHITECTURE.dense_layout.fingerprint,
        "keep_units": 0.5,
        "floor": 1,
        "epsilon": 4.0,
        "block_units": 4,
        "threshold": 4,
        "units": "",
        "clients": CLIENTS,
        "ranks": "a public order",
        **changes,
    }
    return Question("run", round_name, ARCHITECTURE, WEIGHTS, settings, seed=1)  # type: ignore[arg-type]


def rows(answers: Answers) -> list[tuple[int, bytes]]:
    texts = [row.tobytes() for row in answers.rows("report", "report")]
    return list(zip(answers.clients.tolist(), texts, strict=True))


def reports(out: Path) -> dict[str, bytes]:
    with Ledger.open(out / "ledger.sqlite", read_only=True) as ledger:
        return {e.client: e.report for e in ledger.entries() if e.stage == STORED}


def test_cohorts_messages_and_single_calls_give_the_same_rounds(tmp_path: Path) -> None:
    """Each client's scores alone on one thread: then no bit of anything may differ."""
    found = []
    for kind in KINDS:
        experiment, held, step = experiment_on(tmp_path / kind, kind)
        local = local_votes(experiment, held, step)
        plain = clean_votes(experiment, held, replace(step, number=2), False)
        pooled = pooled_scores(experiment, held, replace(step, number=2), True)
        tables = ask_tables(experiment, held, held, "train", experiment.clients, "tables")
        found.append(
            {
                "mean": local.estimate.mean,
                "variance": local.estimate.variance,
                "clean": plain.score,
                "pooled": pooled.score,
                "tables": tables,
                "facts": repr(local.facts),
                "reports": repr(sorted(reports(tmp_path / kind).items())),
            }
        )
        close_stations()
    assert found[0]["tables"].shape[0] == CLIENTS
    assert len(reports(tmp_path / KINDS[0])) == CLIENTS
    for other in found[1:]:
        for name, value in found[0].items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_shuffled_reports_come_in_one_order_whoever_was_asked_how(tmp_path: Path) -> None:
    votes = []
    for kind in KINDS:
        wanted = ("privacy.trust=shuffle", "privacy.delta=1e-6")
        experiment, held, step = experiment_on(tmp_path / kind, kind, *wanted)
        found = shuffled_votes(experiment, held, step)
        votes.append((found.estimate.mean.tolist(), found.facts))
        close_stations()
    assert votes[0] == votes[1] == votes[2]


def experiment_on(folder: Path, kind: str, *overrides: str) -> tuple[Experiment, Held, Step]:
    """A run whose dense model is there and whose first step can be asked."""
    config = small_config(f"out={folder}", "engine.deterministic=true", *overrides)
    own = RunFolder.create(folder, config)
    talk = Conversation(grid_of(kind, config), CLIENTS, config.federation, Quiet())
    experiment = Experiment(config, own, talk, Quiet())
    experiment.phase("plan", lambda: {"run": experiment.run_id})
    held = Held.save(own, "dense", ARCHITECTURE, WEIGHTS)
    return experiment, held, replace(schedule(experiment)[0][0], keep_units=0.5)


def test_no_message_is_made_for_a_client_of_a_cohort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Message:
        raise AssertionError("a message was made")

    monkeypatch.setattr(conversation_module, "Message", refuse)
    talk = start(tmp_path)
    assert sorted(talk.introductions) == list(range(CLIENTS))
    heard = list(talk.ask_together("query.report", question(), range(CLIENTS), "", len))
    assert sum(heard) == CLIENTS


@pytest.mark.parametrize("kind", ["cohorts", "messages", "client app"])
def test_a_client_without_budget_is_named_and_the_others_go_on(tmp_path: Path, kind: str) -> None:
    config = small_config(f"out={tmp_path}", "federation.quorum=0.9")
    spent = replace(report_entry(question("earlier")), client="7")
    with Ledger.open(tmp_path / "ledger.sqlite", budget=budgets(config, 96)) as ledger:
        ledger.reserve(spent)
    reporter = Heard()
    talk = start(tmp_path, "federation.quorum=0.9", kind=kind, reporter=reporter)
    asked = talk.ask_together("query.report", question(), range(CLIENTS), "reports", rows)
    clients = [client for batch in asked for client, _ in batch]
    assert clients == [client for client in range(CLIENTS) if client != 7]
    assert list(talk.missing["report-1"]) == [7]
    reason = talk.missing["report-1"][7]
    assert reason.startswith("client 7 answered round report-1 with an error: BudgetExceededError")
    assert sum("goes on without client 7" in line for line in reporter.lines) == 1
    assert "7" not in reports(tmp_path)


@pytest.mark.parametrize("kind", ["cohorts", "messages"])
def test_an_answer_that_cannot_be_read_is_found_among_the_others(tmp_path: Path, kind: str) -> None:
    def read(answers: Answers) -> list[int]:
        if 5 in answers.clients or 11 in answers.clients:
            raise FederationError(f"client {answers.first} sent nonsense")
        return answers.clients.tolist()

    talk = start(tmp_path, "federation.quorum=0.9", kind=kind)
    asked = talk.ask_together("query.report", question(), range(CLIENTS), "", read)
    found = [client for part in asked for client in part]
    assert found == [client for client in range(CLIENTS) if client not in (5, 11)]
    assert talk.missing["report-1"] == {
        5: "client 5 sent nonsense",
        11: "client 11 sent nonsense",
    }


@pytest.mark.parametrize("kind", ["cohorts", "messages"])
def test_below_the_quorum_nothing_of_the_round_is_used(tmp_path: Path, kind: str) -> None:
    def read(answers: Answers) -> int:
        if 5 in answers.clients:
            raise FederationError(f"client {answers.first} sent nonsense")
        return len(answers)

    talk = start(tmp_path, kind=kind)
    with pytest.raises(FederationError, match=r"^client 5 sent nonsense$"):
        list(talk.ask_together("query.report", question(), range(CLIENTS), "", read))
    refused = question("report-2", epsilon=64.0)
    with pytest.raises(
        FederationError, match=r"^client 0 answered round report-2 .*BudgetExceeded"
    ):
        list(talk.ask_together("query.report", refused, range(CLIENTS), "", read))


def test_what_all_clients_refuse_is_said_as_each_would_say_it(tmp_path: Path) -> None:
    sentences = []
    for kind in ("cohorts", "messages"):
        talk = start(tmp_path / kind, kind=kind)
        asked = talk.ask_together("query.report", question(keep_units=7), [3], "", rows)
        with pytest.raises(FederationError) as refused:
            list(asked)
        sentences.append(str(refused.value))
        close_stations()
    assert sentences[0] == sentences[1]
    assert "keep_units = 7" in sentences[0]


@pytest.mark.parametrize("kind", ["cohorts", "messages"])
def test_what_is_told_to_one_client_alone_reaches_that_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def repeat(_: Station, asked: Question, clients: Sequence[int]) -> list[Outcome]:
        return [
            answer_content(c, {"report": asked.own.get(c, {}).get("word", b"?")}) for c in clients
        ]

    monkeypatch.setitem(ANSWERERS, "query.repeat", repeat)  # type: ignore[arg-type]
    talk = start(tmp_path, kind=kind)
    own = {client: {"word": b"%d" % client} for client in range(2, 9)}
    told = replace(question(), own=own)
    heard = [
        pair
        for part in talk.ask_together("query.repeat", told, range(10), "", rows)
        for pair in part
    ]
    assert heard == [(0, b"?"), (1, b"?"), *((c, b"%d" % c) for c in range(2, 9)), (9, b"?")]


@pytest.mark.parametrize("kind", ["cohorts", "messages"])
def test_progress_counts_clients(tmp_path: Path, kind: str) -> None:
    reporter = Heard()
    talk = start(tmp_path, kind=kind, reporter=reporter)
    list(talk.ask_together("query.report", question(), range(CLIENTS), "reports", rows))
    assert reporter.counted == {"reports": (CLIENTS, CLIENTS)}


def test_memory_holds_one_cohort_of_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedprune.federated import local_grid

    monkeypatch.setattr(local_grid, "COHORT", 8)
    alive: weakref.WeakSet[Answers] = weakref.WeakSet()
    most = 0

    def read(answers: Answers) -> int:
        nonlocal most
        alive.add(answers)
        gc.collect()
        most = max(most, sum(len(one) for one in alive))
        return len(answers)

    talk = start(tmp_path)
    heard = talk.ask_together("query.report", question(), range(CLIENTS), "", read)
    assert sum(heard) == CLIENTS
    assert most <= 2 * 8


def noop() -> ClientApp:
    app = ClientApp()

    @app.query()
    def nothing(message: Message, context: Context) -> Message:
        context.state["asked"] = message.content["question"]
        if context.node_config["partition-id"] == 3:
            raise ValueError("no answer from me")
        return Message(RecordDict(), reply_to=message)

    return app


def test_a_users_own_app_is_called_once_a_message_and_its_failure_is_one_reply() -> None:
    grid = LocalGrid(6, {"k": 1}, client_app=noop())
    content = introduction_question()
    content["question"] = content.pop("introduction")
    messages = [grid.create_message(content, "query", node, "") for node in grid.get_node_ids()]
    names = grid.push_messages(messages)
    replies = list(grid.pull_messages(names))
    assert [r.metadata.reply_to_message_id for r in replies] == list(names)
    assert [r.has_error() for r in replies] == [node == 3 for node in range(6)]
    assert "no answer from me" in str(replies[3].error.reason)
    assert replies[3].error.code == 2  # as Flower's engine says it


def test_messages_of_a_users_own_app_live_one_at_a_time() -> None:
    grid = LocalGrid(300, {}, client_app=noop())
    content = RecordDict({"question": introduction_question()["introduction"]})
    alive: weakref.WeakSet[Message] = weakref.WeakSet()

    def messages() -> Iterator[Message]:
        for node in grid.get_node_ids():
            message = grid.create_message(content, "query", node, "")
            alive.add(message)
            yield message

    most = 0
    for reply in grid.send_and_receive(messages()):
        alive.add(reply)
        del reply
        gc.collect(0)
        most = max(most, len(alive))
    assert most <= 6


def test_the_reporter_says_that_an_app_is_called_for_every_client(tmp_path: Path) -> None:
    for kind, times in (("client app", 1), ("cohorts", 0)):
        reporter = Heard()
        start(tmp_path / kind.replace(" ", "-"), kind=kind, reporter=reporter)
        assert sum("called once for every client" in line for line in reporter.lines) == times


def test_mixed_messages_are_answered_in_their_order(tmp_path: Path) -> None:
    config = small_config(f"out={tmp_path}")
    grid = grid_of("cohorts", config)
    hello, ask = introduction_question(), question().to_content()
    kinds = ["query.introduction", "query.report"] * 4 + ["query.report"] * 3
    messages = [
        grid.create_message(ask if kind == "query.report" else hello, kind, 2 + i, "")
        for i, kind in enumerate(kinds)
    ]
    replies = list(grid.send_and_receive(messages))
    records = [reply.content.config_records["answer"] for reply in replies]
    assert [record["client"] for record in records] == list(range(len(kinds)))
    assert ["report" in record for record in records] == [k == "query.report" for k in kinds]


def test_answers_survive_being_written_for_each_client() -> None:
    clients = [4, 7, 9]
    broken: dict[int, FedpruneError] = {7: FederationError("client 7 will not")}
    numbers = np.array([4, 9], dtype=np.int64)
    columns = {"report": as_rows([b"ab", b"cd"], 2), "rows": np.array([5, 6])}
    answers = Answers(numbers, columns, {"epsilon": 4.0, "receipt": ""}, broken)
    outcomes = answers.outcomes(clients)
    assert outcomes[1] is broken[7]
    again = Answers.of(clients, outcomes)
    assert again.clients.tolist() == [4, 9]
    assert again.failures == broken
    np.testing.assert_array_equal(again.rows("report", "report"), columns["report"])
    assert list(again.columns["rows"]) == [5, 6]
    assert (again.alike("epsilon"), answers.alike("epsilon")) == (4.0, 4.0)
    assert again.alike("rows") is None
    assert [one.first for one in answers.one_by_one()] == [4, 9]


def test_byte_strings_of_other_sizes_are_no_rows() -> None:
    answers = Answers(np.array([1, 2]), {"mask": [b"a", b"bc"], "word": ["x", "y"]})
    for name in ("mask", "word", "absent"):
        with pytest.raises(FederationError, match="client 1 sent no thing"):
            answers.rows(name, "thing")
    alone = [one.rows("mask", "mask").tobytes() for one in answers.one_by_one()]
    assert alone == [b"a", b"bc"]
