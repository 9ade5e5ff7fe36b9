"""The server's end of the line: ask clients by partition, hear them in partition order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedprune.errors import FederationError
from fedprune.federated.messages import Question, content_bytes
from fedprune.progress import Reporter


class Conversation:
    """Questions to numbered clients over a Flower grid; it counts the bytes of each kind."""

    def __init__(self, grid: Grid, num_clients: int, reporter: Reporter) -> None:
        """Take a grid whose nodes, in order, are the clients 0, 1, ...

        Raises:
            FederationError: if fewer nodes are there than clients are configured.
        """
        self._grid, self._reporter = grid, reporter
        self._nodes = list(grid.get_node_ids())
        if len(self._nodes) < num_clients:
            raise FederationError(
                f"data.clients = {num_clients} clients are needed, {len(self._nodes)} are there"
            )
        self.up_bytes: dict[str, int] = {}
        self.down_bytes: dict[str, int] = {}

    def ask(
        self, kind: str, question: Question, clients: Sequence[int], label: str
    ) -> Iterator[tuple[int, RecordDict]]:
        """Ask clients one question; yield (client, answer) in the order of `clients`.

        Progress is shown under `label`, if there is one.

        Raises:
            FederationError: with the client's own sentence, if one answers with an error or
                answers for another, or if answers are missing.
        """
        content = question.to_content()
        messages = (
            self._grid.create_message(content, kind, self._nodes[client], question.round)
            for client in clients
        )
        replies = iter(self._grid.send_and_receive(messages))
        heard = 0
        if label:
            replies = self._reporter.track(replies, label, len(clients))
        for reply in replies:
            if heard == len(clients):
                raise FederationError(f"more answers than questions came in round {question.round}")
            answer = self._read(reply, clients[heard], question.round)
            if heard == 0:
                self.down_bytes[kind] = content_bytes(content)
                self.up_bytes[kind] = content_bytes(answer)
            yield clients[heard], answer
            heard += 1
        if heard < len(clients):
            raise FederationError(
                f"{len(clients) - heard} of {len(clients)} clients gave no answer in round "
                f"{question.round}, the first of them client {clients[heard]}"
            )

    @staticmethod
    def _read(reply: Message, client: int, round_name: str) -> RecordDict:
        if reply.has_error():
            raise FederationError(
                f"client {client} answered round {round_name} with an error: {reply.error.reason}"
            )
        found = reply.content.config_records.get("answer", ConfigRecord()).get("client")
        if found != client:
            raise FederationError(f"client {found!r} answered a question put to client {client}")
        return reply.content
