"""The server's end of the line: ask clients by number, hear them in the order of their numbers.

Nodes come and go in any order under ids of their own; who is which client is found out by asking
each of them for an introduction. A phase goes on when a quorum of the clients asked has given a
usable answer; who has not is remembered by name, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import TypeVar

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedprune.config import FederationConfig
from fedprune.errors import FederationError, FedpruneError
from fedprune.federated import introduction
from fedprune.federated.answers import Answers, ReadTogether, counted, read_together, singly
from fedprune.federated.exchange import exchange, wait_for_nodes
from fedprune.federated.introduction import Introduction, agreed, introduction_question
from fedprune.federated.local_grid import LocalGrid
from fedprune.federated.messages import Question, check_sender
from fedprune.progress import Reporter

T = TypeVar("T")
Read = Callable[[int, RecordDict], T]
_NAMED = 5  # clients that one sentence names


class _LostError(FederationError):
    """A simulation lost an answer, as it was configured to."""


class Conversation:
    """Questions to numbered clients over a Flower grid.

    Attributes:
        num_clients: clients are numbered 0 to num_clients - 1.
        introductions: what the clients that are there said of themselves.
        simulated, schema: what they agree on.
        missing: of every round, the clients without a usable answer, each with the reason.
    """

    def __init__(
        self, grid: Grid, num_clients: int, waits: FederationConfig, reporter: Reporter
    ) -> None:
        """Wait for the nodes and ask who they are.

        Raises:
            FederationError: if fewer clients than the quorum are there in time, two have one
                number, or they disagree about what they are.
        """
        self._grid, self._waits, self._reporter = grid, waits, reporter
        self._local = grid if isinstance(grid, LocalGrid) and grid.in_cohorts else None
        if isinstance(grid, LocalGrid) and grid.foreign_app:
            reporter.say("the client app is not fedprune's own: it is called once for every client")
        self.num_clients = num_clients
        self.introductions: dict[int, Introduction] = {}
        self.missing: dict[str, dict[int, str]] = {}
        self._nodes: dict[int, int] = {}
        self._refused: dict[int, str] = {}
        self._meet(wait_for_nodes(grid, num_clients, waits.join_seconds))
        self._check_enough()
        self.simulated, self.schema = agreed(self.introductions)

    def ask(
        self,
        kind: str,
        question: Question,
        clients: Sequence[int],
        label: str,
        read: Read[T],
        lost: Mapping[int, str] | None = None,
    ) -> Iterator[tuple[int, T]]:
        """Ask clients one question; yield (client, what `read` made of its answer).

        Answers are yielded in the order of `clients`, which rises. Progress is shown under
        `label`, if there is one. What the clients in `lost` answer is not looked at: a simulation
        loses it, for the reason given.

        Raises:
            FedpruneError: if too few of the clients give an answer that `read` accepts; where one
                client alone is to blame, its own error.
        """
        failures: dict[int, FedpruneError] = {}
        allowed = len(clients) - needed(len(clients), self._waits.quorum)
        held: dict[int, T] = {}
        position = 0
        for client, outcome in self._hear(kind, question, clients, label, read, lost or {}):
            if isinstance(outcome, FedpruneError):
                failures[client] = outcome
                if len(failures) > allowed:
                    break
            else:
                held[client] = outcome
            while position < len(clients):
                following = clients[position]
                if following in held:
                    yield following, held.pop(following)
                elif following not in failures:
                    break
                position += 1
        self._settle(question.round, clients, failures, allowed)

    def ask_together(
        self,
        kind: str,
        question: Question,
        clients: Sequence[int],
        label: str,
        read: ReadTogether[T],
        lost: Mapping[int, str] | None = None,
    ) -> Iterator[T]:
        """Ask as `ask` does; yield what `read` made of the answers of one or many clients each.

        The clients come in the order of `clients`, each with exactly one call of `read` that
        succeeds. An error about several answers is looked for in each of them alone, so `read`
        may blame the first.
        """
        if self._local is None:
            for _, found in self.ask(kind, question, clients, label, singly(read), lost):
                yield found
            return
        failures: dict[int, FedpruneError] = {}
        allowed = len(clients) - needed(len(clients), self._waits.quorum)
        reached = self._reached(clients, failures)
        nodes = [self._nodes[client] for client in reached]
        heard = self._local.answers(kind, question.to_contents(reached), nodes)
        for answers in counted(self._reporter, heard, label, len(reached)):
            for client, error in answers.failures.items():
                failures[client] = _refusal(client, question.round, str(error))
            arrived = _arrived(answers, lost or {}, failures)
            made = list(read_together(arrived, read, failures))
            if len(failures) > allowed:  # those at which `ask` would have stopped
                failures = dict(sorted(failures.items())[: allowed + 1])
                break
            yield from made
        self._settle(question.round, clients, failures, allowed)

    def _hear(
        self,
        kind: str,
        question: Question,
        clients: Sequence[int],
        label: str,
        read: Read[T],
        lost: Mapping[int, str],
    ) -> Iterator[tuple[int, T | FedpruneError]]:
        """Yield every client's outcome as it comes; those that stay silent come last."""
        absent: dict[int, FedpruneError] = {}
        reached = self._reached(clients, absent)
        yield from absent.items()
        messages = (
            Message(content, self._nodes[client], kind, group_id=question.round)
            for client, content in zip(reached, question.to_contents(reached), strict=True)
        )
        silent = dict.fromkeys(reached)
        heard = exchange(self._grid, messages, self._waits.deadline_seconds)
        for position, reply in self._reporter.track(heard, label, len(reached)) if label else heard:
            client = reached[position]
            silent.pop(client, None)
            if client in lost:
                yield client, _LostError(lost[client])
                continue
            try:
                answer = _answer_of(reply, client, question.round)
                found = read(client, answer)
            except FedpruneError as error:
                yield client, error
                continue
            yield client, found
        for client in silent:
            yield client, FederationError(f"client {client} gave no answer in time")

    def _settle(
        self,
        round_name: str,
        clients: Sequence[int],
        failures: dict[int, FedpruneError],
        allowed: int,
    ) -> None:
        """Remember who failed; stop where too few are left."""
        if len(failures) > allowed:
            first = next(iter(failures.values()))
            if len(failures) == 1 and not isinstance(first, _LostError):
                raise first
            raise FederationError(
                f"{len(failures)} of {len(clients)} clients gave no usable answer in round "
                f"{round_name}, at most {allowed} may (federation.quorum = "
                f"{self._waits.quorum:g}): {_sentences(failures)}"
            )
        if failures:
            known = self.missing.setdefault(round_name, {})
            known.update({client: str(error) for client, error in failures.items()})
            told = {c: e for c, e in failures.items() if not isinstance(e, _LostError)}
            if told:
                self._reporter.say(f"{round_name}: goes on without {_sentences(told)}")

    def _reached(self, clients: Sequence[int], absent: dict[int, FedpruneError]) -> list[int]:
        """Give the clients that are connected; the others are added to those absent."""
        there = self._connected(clients)
        for client in clients:
            if client not in there:
                absent[client] = FederationError(f"client {client} is not connected")
        return [client for client in clients if client in there]

    def _connected(self, clients: Sequence[int]) -> set[int]:
        """Which of the clients have a node that is connected; meets nodes that have come back."""
        online = set(self._grid.get_node_ids())
        if any(self._nodes.get(client) not in online for client in clients):
            known = set(self._nodes.values()) | set(self._refused)
            self._meet([node for node in online if node not in known])
        return {client for client, node in self._nodes.items() if node in online}

    def _meet(self, nodes: Sequence[int]) -> None:
        """Ask nodes who they are."""
        if not nodes:
            return
        if self._local is not None:
            self._meet_together(self._local, nodes)
            return
        content = introduction_question()
        messages = (Message(content, node, introduction.KIND, group_id="hello") for node in nodes)
        deadline = self._waits.deadline_seconds
        for position, reply in exchange(self._grid, messages, deadline):
            try:
                if reply.has_error():
                    raise FederationError(reply.error.reason)
                self._accept(nodes[position], Introduction.from_content(reply.content))
            except FedpruneError as error:
                self._refused[nodes[position]] = str(error)

    def _meet_together(self, grid: LocalGrid, nodes: Sequence[int]) -> None:
        """Ask simulated nodes who they are, without a message for each of them."""
        for answers in grid.answers(introduction.KIND, repeat(introduction_question()), nodes):
            for client, error in answers.failures.items():
                self._refused[grid.node_of(client)] = str(error)
            for found in introduction.read_together(answers) if len(answers) else ():
                self._accept(grid.node_of(found.client), found)

    def _accept(self, node: int, found: Introduction) -> None:
        if found.client >= self.num_clients:
            raise FederationError(
                f"a client says it is number {found.client}; numbers go from 0 to "
                f"{self.num_clients - 1} (data.clients = {self.num_clients})"
            )
        other = self._nodes.get(found.client)
        if other is not None and other in set(self._grid.get_node_ids()):
            raise FederationError(f"two nodes say that they are client {found.client}")
        known = self.introductions.get(found.client)
        if known is not None and known.public_key != found.public_key:
            raise FederationError(f"client {found.client} came back with another signing key")
        self.introductions[found.client] = found
        self._nodes[found.client] = node

    def _check_enough(self) -> None:
        enough = needed(self.num_clients, self._waits.quorum)
        if len(self.introductions) < enough:
            why = "".join(f"; {reason}" for reason in list(self._refused.values())[:_NAMED])
            raise FederationError(
                f"data.clients = {self.num_clients} clients are needed (at least {enough}: "
                f"federation.quorum = {self._waits.quorum:g}), {len(self.introductions)} are there"
                f"{why}"
            )
        for reason in self._refused.values():
            self._reporter.say(f"a node is left out: {reason}")


def needed(asked: int, quorum: float) -> int:
    """How many of the clients asked must answer: at least one."""
    return max(1, math.ceil(quorum * asked - 1e-9))


def _answer_of(reply: Message, client: int, round_name: str) -> RecordDict:
    if reply.has_error():
        raise _refusal(client, round_name, str(reply.error.reason))
    record = reply.content.config_records.get("answer", ConfigRecord())
    check_sender(record, f"client {client}", "the server")
    found = record.get("client")
    if found != client:
        raise FederationError(f"client {found!r} answered a question put to client {client}")
    return reply.content


def _refusal(client: int, round_name: str, reason: str) -> FederationError:
    return FederationError(f"client {client} answered round {round_name} with an error: {reason}")


def _arrived(
    answers: Answers, lost: Mapping[int, str], failures: dict[int, FedpruneError]
) -> Answers:
    """Take out the answers that a simulation loses; they are added to the failures."""
    asked = [*answers.clients.tolist(), *answers.failures] if lost else []
    gone = {client: _LostError(lost[client]) for client in asked if client in lost}
    failures.update(gone)
    return answers.without(gone) if gone else answers


def _sentences(failures: dict[int, FedpruneError]) -> str:
    named = [
        str(error) if f"client {client}" in str(error) else f"client {client}: {error}"
        for client, error in list(failures.items())[:_NAMED]
    ]
    more = len(failures) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more > 0 else "")
