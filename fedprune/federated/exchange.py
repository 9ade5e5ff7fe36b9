"""Carrying messages over a grid: replies one by one as they come, and a wait that ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

from fedprune.federated.flower_internals import name_message
from fedprune.federated.local_grid import LocalGrid

Heard = tuple[int, Message]  # position of the message that is answered, and the reply

_FIRST_PAUSE = 0.02  # seconds between two looks for replies; it grows while nothing comes
_LONGEST_PAUSE = 1.0
_PAUSE_GROWTH = 1.5


def exchange(
    grid: Grid,
    messages: Iterable[Message],
    deadline_seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Heard]:
    """Send messages and yield (position, reply) in the order in which replies come.

    Over a network the wait ends after `deadline_seconds`; messages that were not answered by then
    are simply not yielded. In process nothing is waited for, and messages may be a generator.
    """
    if isinstance(grid, LocalGrid):
        return _in_process(grid, messages)
    return _over_network(grid, list(messages), deadline_seconds, clock)


def _in_process(grid: LocalGrid, messages: Iterable[Message]) -> Iterator[Heard]:
    positions: dict[str, int] = {}

    def named() -> Iterator[Message]:
        for position, message in enumerate(messages):
            positions[name_message(message)] = position
            yield message

    for reply in grid.send_and_receive(named()):
        yield positions.pop(reply.metadata.reply_to_message_id), reply


def _over_network(
    grid: Grid, messages: list[Message], deadline_seconds: float, clock: Callable[[], float]
) -> Iterator[Heard]:
    grid.push_messages(messages)
    waiting = {message.metadata.message_id: i for i, message in enumerate(messages)}
    end, pause = clock() + deadline_seconds, _FIRST_PAUSE
    while waiting and clock() < end:
        replies = list(grid.pull_messages(list(waiting)))
        for reply in replies:
            position = waiting.pop(reply.metadata.reply_to_message_id, None)
            if position is not None:
                yield position, reply
        if waiting and not replies:
            time.sleep(min(pause, max(0.0, end - clock())))
        pause = _FIRST_PAUSE if replies else min(_LONGEST_PAUSE, pause * _PAUSE_GROWTH)


def wait_for_nodes(
    grid: Grid, wanted: int, seconds: float, clock: Callable[[], float] = time.monotonic
) -> list[int]:
    """Give the ids of the nodes that are connected, once there are `wanted` or time is up."""
    end = clock() + seconds
    while True:
        nodes = list(grid.get_node_ids())
        if len(nodes) >= wanted or clock() >= end or isinstance(grid, LocalGrid):
            return nodes
        time.sleep(_LONGEST_PAUSE)
