"""A Flower Grid without network: it runs a ClientApp's answers in this process.

Messages that share a type and a content are answered as cohorts; a round in which nobody needs a
message of its own is not even cut into messages (`answers`). Replies stream: at most one cohort of
them is in memory, and whoever iterates sees progress. A user's own ClientApp knows no cohorts: it
is called once for every message.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedprune.config import Scalar
from fedprune.federated.answers import Answers
from fedprune.federated.client import answer_cohort, answer_together
from fedprune.federated.client import app as our_app
from fedprune.federated.flower_internals import empty_run, identify_server_task, name_message
from fedprune.federated.process import inside_simulation

COHORT = 4096  # messages answered at once
FEWEST_MODELS, MODEL_BYTES = 8, 128 * 2**20  # as many as fit where an answer carries a model
APP_ERROR = 2  # Flower's code for an app that raised
_FIRST_NODE = 2
_LOG = logging.getLogger(__name__)


class LocalGrid(Grid):
    """As many simulated nodes as there are partitions, in this process."""

    def __init__(
        self,
        num_nodes: int,
        run_config: Mapping[str, Scalar],
        run_id: int = 1,
        client_app: ClientApp = our_app,
    ) -> None:
        """Make nodes 2, 3, ... for partitions 0, 1, ...

        Args:
            num_nodes: how many.
            run_config: what every node's context says of the run.
            run_id: Flower's number of the run.
            client_app: what the nodes run; another one than fedprune's is called once a message.
        """
        identify_server_task(run_id)
        self._client_app = client_app
        self._num_nodes, self._run_config = num_nodes, dict(run_config)
        self._run = empty_run(run_id)
        self._contexts: dict[int, Context] = {}
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Set the run's record."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's record."""
        return self._run

    @property
    def foreign_app(self) -> bool:
        """Whether the client app is another one than fedprune's."""
        return self._client_app is not our_app

    @property
    def in_cohorts(self) -> bool:
        """Whether clients are answered for together, by fedprune's own client app.

        A grid that looks at the messages, as a subclass may, gets one for every client.
        """
        watched = type(self).send_and_receive is not LocalGrid.send_and_receive
        return not (self.foreign_app or watched)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; messages may share one content."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Give all node ids, in the order of their partitions."""
        return range(_FIRST_NODE, _FIRST_NODE + self._num_nodes)

    def node_of(self, client: int) -> int:
        """Give the id of the node that holds a client's partition."""
        return _FIRST_NODE + client

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer messages at once and keep the replies; give the messages' ids."""
        pushed = list(messages)
        for message in pushed:
            name_message(message)
        for reply in self.send_and_receive(pushed):
            self._replies[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Give the replies to pushed messages, each once."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Answer messages cohort by cohort; replies come in the messages' order."""
        del timeout  # nothing is waited for
        if self.foreign_app:
            yield from map(self._answer_alone, messages)
            return
        for cohort in _cohorts(messages):
            with inside_simulation():
                replies = answer_cohort(
                    cohort, [self._context(m.metadata.dst_node_id) for m in cohort]
                )
            yield from replies

    def answers(
        self, kind: str, contents: Iterable[RecordDict], nodes: Sequence[int]
    ) -> Iterator[Answers]:
        """Put a question to many nodes without a message for each; `in_cohorts` says if one may.

        Args:
            kind: of the question: a message's type.
            contents: what each node is asked, alike save what is told to one of them alone.
            nodes: their ids.

        Yields:
            The answers, cohort by cohort, in the order of the nodes.
        """
        asked, start = iter(contents), 0
        while start < len(nodes):
            first = next(asked)
            cohort = nodes[start : start + _most_at_once(kind, first)]
            clients = [node - _FIRST_NODE for node in cohort]
            told = [first, *islice(asked, len(cohort) - 1)]
            start += len(cohort)
            with inside_simulation():
                found = answer_together(kind, told, clients, self._context(cohort[0]))
            yield found

    def _answer_alone(self, message: Message) -> Message:
        """Call the client app as Flower would: what it raises is an error reply."""
        try:
            with inside_simulation():
                return self._client_app(message, self._context(message.metadata.dst_node_id))
        except Exception as error:
            _LOG.exception("node %d: the client app failed", message.metadata.dst_node_id)
            return Message(Error(APP_ERROR, f"{type(error).__name__}: {error}"), reply_to=message)

    def _context(self, node_id: int) -> Context:
        if node_id not in self._contexts:
            self._contexts[node_id] = Context(
                run_id=self._run.run_id,
                node_id=node_id,
                node_config={
                    "partition-id": node_id - _FIRST_NODE,
                    "num-partitions": self._num_nodes,
                },
                state=RecordDict(),
                run_config=self._run_config,
            )
        return self._contexts[node_id]


def _cohorts(messages: Iterable[Message]) -> Iterator[list[Message]]:
    """Cut a stream of messages into runs that ask the same, at most COHORT long."""
    stream = iter(messages)
    held = list(islice(stream, COHORT))
    while held:
        most = _most_at_once(held[0].metadata.message_type, held[0].content)
        alike = [message for message in held[:most] if _ask_the_same(held[0], message)]
        if held[: len(alike)] != alike:  # keep the order where kinds are mixed
            alike = held[:1]
        yield alike
        held = held[len(alike) :]
        held += islice(stream, COHORT - len(held))


def _most_at_once(kind: str, content: RecordDict) -> int:
    """How many are answered at once: training answers are about as large as its question."""
    if not kind.startswith("train"):
        return COHORT
    size = sum(record.count_bytes() for record in content.array_records.values())
    return min(max(MODEL_BYTES // max(size, 1), FEWEST_MODELS), COHORT)


def _ask_the_same(first: Message, other: Message) -> bool:
    """Whether two messages share type and records, save what is told to one client alone."""
    a, b = ({**message.content} for message in (first, other))
    a.pop("own", None)
    b.pop("own", None)
    return (
        first.metadata.message_type == other.metadata.message_type
        and a.keys() == b.keys()
        and all(a[name] is b[name] for name in a)
    )
