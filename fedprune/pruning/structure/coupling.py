"""Which channels are tied: torch-pruning's dependencies, followed channel by channel.

Every (operation, side, channel) is one element; what a dependency ties is merged with union-find.
Following whole layers with their index maps keeps the work linear in the number of channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from fedprune.errors import PruningError
from fedprune.pruning.structure.members import CONVOLUTIONS, Layer, has_channels, kind_of
from fedprune.pruning.structure.tracing import Trace, one_line

_MANY_CHANNELS = 2**13  # always followed; far more than the widest layer has are a wrong guess


class _Tied(NamedTuple):
    """A channel and the element it is tied to, as torch-pruning's index mappings expect it."""

    idx: int
    root_idx: int


@dataclass
class _Elements:
    """Union-find over (operation, side, channel)."""

    parents: list[int] = field(default_factory=list)
    of: dict[tuple[int, str], dict[int, int]] = field(default_factory=dict)

    def find(self, element: int) -> int:
        while self.parents[element] != element:
            self.parents[element] = self.parents[self.parents[element]]
            element = self.parents[element]
        return element

    def tie(self, state: tuple[int, str], channel: int, to: int | None) -> int | None:
        """Tie a channel to an element; return its own element if the channel is new."""
        channels = self.of.setdefault(state, {})
        known = channels.get(channel)
        element = len(self.parents) if known is None else known
        if known is None:
            self.parents.append(element)
            channels[channel] = element
        if to is not None:
            first, second = sorted((self.find(to), self.find(element)))
            self.parents[second] = first
        return element if known is None else None


class Coupling:
    """The classes of tied channels in one traced model, each named by a root element."""

    def __init__(self, trace: Trace) -> None:
        """Follow every dependency from the outputs of every layer that mixes channels.

        Where an operation repeats or multiplies channels in a way that cannot be followed, they
        are not followed further and `stuck` says so.

        Raises:
            PruningError: if torch-pruning's index mappings fail.
        """
        self._name = trace.name
        self._stuck: dict[int, str] = {}
        widths = [max(Layer.channels_of(module)) for module in trace.calls]
        self._limit = max(_MANY_CHANNELS, 4 * max(widths, default=0))
        self._node_of = {id(node.module): node for node in trace.graph.module2node.values()}
        self._elements = _Elements()
        self._cut: set[int] = set()
        try:
            self._propagate(list(trace.calls))
            self._cut = self._broadcasting()
            if self._cut:
                self._elements, self._stuck = _Elements(), {}
                self._propagate(list(trace.calls))
        except Exception as error:  # what an index mapping of a wrong guess raises has no list
            raise PruningError(
                f"{trace.name} cannot be traced by torch-pruning ({one_line(error)})"
            ) from error

    def node(self, module: nn.Module) -> Any:
        """The graph's node of a module, None if the output does not depend on it."""
        return self._node_of.get(id(module))

    def channels(self, node: Any, side: str) -> dict[int, int]:
        """Root of each tied channel on the `in` or `out` side of a node, none of no node."""
        if node is None:
            return {}
        state = (id(node), side if _mixes_channels(node) else "both")
        found = self._elements.of.get(state, {})
        return {channel: self._elements.find(found[channel]) for channel in sorted(found)}

    def roots(self, node: Any) -> set[int]:
        """Every class of channels that a node has a part in."""
        return {root for side in ("in", "out") for root in self.channels(node, side).values()}

    def stuck(self) -> dict[int, str]:
        """Roots of the classes that could not be followed to their end, and why."""
        return {self._elements.find(element): reason for element, reason in self._stuck.items()}

    def _broadcasting(self) -> set[int]:
        """Nodes whose one channel is spread over many, as a gate for all of them is.

        That one stays, whatever becomes of the many: it is tied to none of them.
        """
        return {
            id(node)
            for node in self._node_of.values()
            if has_channels(node.module)
            and Layer.channels_of(node.module)[1] == 1
            and max(self.channels(node, "out"), default=0) > 0
        }

    def _propagate(self, layers: list[nn.Module]) -> None:
        pending: list[tuple[Any, str, list[_Tied]]] = []
        for module in layers:
            node = self.node(module)
            if node is not None and _mixes_channels(node) and id(node) not in self._cut:
                pending.append((node, "out", self._all_outputs(node)))
        while pending:
            node, side, tied = pending.pop()
            for target, target_side, mapped in _tied_to(node, side, tied):
                if id(target) in self._cut and target_side != "in":
                    continue
                reason = self._cannot_follow(target, mapped)
                if reason:
                    self._stuck.update((one.root_idx, reason) for one in tied)
                    continue
                fresh = self._tie(target, target_side, mapped)
                if fresh:
                    pending.append((target, target_side, fresh))

    def _all_outputs(self, node: Any) -> list[_Tied]:
        channels = range(Layer.channels_of(node.module)[1])
        fresh = [(c, self._elements.tie((id(node), "out"), c, None)) for c in channels]
        return [_Tied(channel, element) for channel, element in fresh if element is not None]

    def _cannot_follow(self, node: Any, mapped: list[Any]) -> str:
        if len(mapped) > self._limit:
            # Sizes that an attention layer reshapes to are taken for channels, time after time.
            return (
                f"torch-pruning sees {len(mapped):,} channels at {node.name}, more than any of its "
                f"layers can have"
            )
        if any(tied.root_idx is None for tied in mapped):
            return f"it repeats channels at {node.name}, so they cannot be removed one by one"
        if any(tied.idx >= self._limit for tied in mapped):
            # Offsets that add up on the way round a cycle would never come to an end.
            return (
                f"torch-pruning sees channel {max(tied.idx for tied in mapped):,} at {node.name}, "
                f"more than any of its layers can have"
            )
        return ""

    def _tie(self, node: Any, side: str, mapped: list[Any]) -> list[_Tied]:
        fresh = []
        for tied in mapped:
            element = self._elements.tie((id(node), side), int(tied.idx), tied.root_idx)
            if element is not None:
                fresh.append(_Tied(int(tied.idx), element))
        return fresh


def _tied_to(node: Any, side: str, tied: list[_Tied]) -> Iterator[tuple[Any, str, list[Any]]]:
    mixes = _mixes_channels(node)
    upstream = len(node.inputs)  # torch-pruning lists the dependencies on a node's inputs first
    for position, dependency in enumerate(node.dependencies):
        goes_up = position < upstream
        if mixes and goes_up != (side == "in"):
            continue
        mapped: list[Any] = list(tied)
        for mapping in dependency.index_mapping:
            mapped = mapped if mapping is None else mapping(mapped)
        target = dependency.target
        target_side = ("out" if goes_up else "in") if _mixes_channels(target) else "both"
        yield target, target_side, mapped
    if mixes and getattr(node.module, "groups", 1) > 1:
        yield node, side, _in_every_group(node.module, side, tied)
    if isinstance(node.module, nn.GroupNorm):
        yield node, side, _in_the_same_group(node.module, tied)


def _in_every_group(module: Any, side: str, tied: list[_Tied]) -> list[_Tied]:
    """The same place in every group of a grouped convolution, so that the groups stay alike."""
    width = (module.in_channels if side == "in" else module.out_channels) // module.groups
    return [
        _Tied(group * width + channel % width, element)
        for channel, element in tied
        for group in range(module.groups)
    ]


def _in_the_same_group(module: nn.GroupNorm, tied: list[_Tied]) -> list[_Tied]:
    """All channels that are normalised together: without one the others' statistics change."""
    width = module.num_channels // module.num_groups
    firsts = {one.idx // width: one.root_idx for one in reversed(tied)}
    return [
        _Tied(channel, element)
        for group, element in firsts.items()
        for channel in range(group * width, (group + 1) * width)
    ] + [one for one in tied if firsts[one.idx // width] != one.root_idx]


def _mixes_channels(node: Any) -> bool:
    """Whether an operation's output channels are other channels than its inputs."""
    is_matrix = isinstance(node.module, (*CONVOLUTIONS, nn.Linear))
    return is_matrix and kind_of(node.module) in ("conv", "linear")
