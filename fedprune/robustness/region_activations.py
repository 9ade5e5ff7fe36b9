"""What ReLUs and maxima over windows make of a region, and what the ball decides of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.robustness.operations import Function
from fedprune.robustness.region import (
    FLOOR,
    SAFE,
    Region,
    higher,
    row_lengths,
    spectral_norms,
    spread_over,
    tightened,
    total_length,
)
from fedprune.robustness.rounding import EPSILON


@dataclass(frozen=True)
class Switches:
    """ReLUs that are always active and those that may be either, [n, ...] bool each."""

    active: Tensor
    undecided: Tensor


@dataclass(frozen=True)
class Races:
    """Maxima over windows: [outputs, members] places in the flattened map, -1 where fewer.

    Attributes:
        windows: what each window reads.
        chosen: [n, channels, outputs], the member that leads from below.
        rival: [n, channels, outputs, members] bool, members that may exceed it.
    """

    windows: Tensor
    chosen: Tensor
    rival: Tensor


Pattern = Switches | Races


def through_relu(operation: Function, read: Region, radii: Tensor) -> tuple[Region, Pattern]:
    """Dead: zero. Active: unchanged. Else: slope high / (high - low) and half a gap of rest."""
    del operation
    dead = read.high <= 0
    active = (read.low >= 0) & ~dead
    undecided = ~(dead | active)
    share = torch.where(
        undecided, read.high / (read.high - read.low).clamp_min(FLOOR), active.double()
    ).clamp(0.0, 1.0)
    gap = torch.maximum(-share * read.low, (1 - share) * read.high) * SAFE + FLOOR
    gap = torch.where(undecided, gap, torch.zeros_like(gap))
    reach = spread_over(radii, read.centre) * row_lengths(read.slope)
    wrong = 8 * EPSILON * (read.centre.abs() + reach + gap)
    centre = share * read.centre + gap / 2
    rest = torch.where(dead, 0.0, share * read.rest * SAFE + gap / 2 * SAFE)
    rest = torch.where(undecided, rest + wrong, rest)
    half = torch.where(undecided, 0.5, active.double())
    rows = torch.where(undecided, 0.5 * row_lengths(read.jacobian), 0.0)
    spreads = torch.where(dead, 0.0, read.spreads) + rows
    spread = read.spread + 0.5 * _norm_of_some(read.jacobian, undecided)
    region = Region(
        centre, read.slope * share[:, None], rest, read.low.clamp_min(0), read.high.clamp_min(0),
        read.jacobian * half[:, None], spread * SAFE, spreads * SAFE,
    )  # fmt: skip
    return tightened(region, radii), Switches(active, undecided)


def _norm_of_some(matrix: Tensor, chosen: Tensor) -> Tensor:
    """Bound the spectral norm of the chosen rows: matrix [n, directions, ...], chosen [n, ...]."""
    rows, mask = matrix.flatten(2), chosen.flatten(1)
    most = int(mask.sum(dim=1).max())
    if most == 0:
        return torch.zeros(len(matrix), dtype=matrix.dtype)
    order = mask.to(torch.int8).argsort(dim=1, descending=True)[:, :most]
    picked = torch.gather(rows, 2, order[:, None].expand(-1, rows.shape[1], -1))
    return spectral_norms(picked * torch.gather(mask, 1, order)[:, None])


def through_maximum(operation: Function, read: Region, radii: Tensor) -> tuple[Region, Pattern]:
    """Take the entry that is largest from below; the others may exceed it by a gap at most."""
    pool = _Pool.of(operation, read)
    low, high = pool.members(read.low, -torch.inf), pool.members(read.high, -torch.inf)
    centre, rest = pool.take(read.centre), pool.take(read.rest)
    reach = spread_over(radii, low)
    ahead = pool.members(read.centre) - centre[..., None] + reach * pool.apart(read.slope)
    ahead = ahead + pool.members(read.rest) + rest[..., None]
    size = centre.abs() + reach[..., 0] * pool.lengths(read.slope)
    ahead = higher(ahead + 1e-12 * size[..., None])
    ahead = torch.minimum(ahead, higher(high - pool.take(read.low)[..., None]))
    rival = pool.others & ~(ahead <= 0)  # NaN, where a ball is too large for floats, is a rival
    gap = torch.where(rival, ahead, 0.0).amax(dim=-1) * SAFE
    away = torch.where(rival, pool.apart(read.jacobian), 0.0).amax(dim=-1) * SAFE
    rows = torch.where(rival | pool.leader, pool.members(read.spreads), 0.0).amax(dim=-1)
    wrong = torch.where(gap > 0, 8 * EPSILON * (centre.abs() + gap), 0.0)
    spread = read.spread * operation.norm.value + total_length(away)
    region = Region(
        pool.shaped(centre + gap / 2), pool.shaped(pool.take(read.slope)),
        pool.shaped(rest + gap / 2 * SAFE + wrong), pool.shaped(low.amax(dim=-1)),
        pool.shaped(high.amax(dim=-1)), pool.shaped(pool.take(read.jacobian)), spread * SAFE,
        pool.shaped((rows + away) * SAFE),
    )  # fmt: skip
    return tightened(region, radii), Races(pool.windows, pool.chosen, rival)


@dataclass(frozen=True)
class _Pool:
    """The windows of a maximum: what each reads, and the member that leads from below.

    Attributes:
        windows: [outputs, members], places in the flattened map, -1 where a window has fewer.
        chosen: [n, channels, outputs], the leading member.
        leader, others: [n, channels, outputs, members] bool.
        sides: of the output's map.
    """

    windows: Tensor
    chosen: Tensor
    leader: Tensor
    others: Tensor
    sides: tuple[int, ...]

    @classmethod
    def of(cls, operation: Function, read: Region) -> _Pool:
        windows = _windows(operation, read.low)
        flat = read.low.flatten(2)[..., windows.clamp_min(0)]
        chosen = torch.where(windows >= 0, flat, -torch.inf).argmax(dim=-1)
        leader = torch.zeros_like(flat, dtype=torch.bool).scatter(-1, chosen[..., None], True)
        sides = tuple(operation.run(read.low).shape[2:])
        return cls(windows, chosen, leader, ~leader & (windows >= 0), sides)

    def members(self, values: Tensor, missing: float = 0.0) -> Tensor:
        """[n, (directions,) channels, *map] -> [..., outputs, members]."""
        lead = values.ndim - len(self.sides)
        found = values.flatten(lead)[..., self.windows.clamp_min(0)]
        return torch.where(self.windows >= 0, found, missing)

    def take(self, values: Tensor) -> Tensor:
        """The leading member of each window: [..., outputs]."""
        members = self.members(values)
        chosen = self.chosen if members.ndim == 4 else self.chosen[:, None]
        index = chosen[..., None].expand(*members.shape[:-1], 1)
        return torch.gather(members, -1, index)[..., 0]

    def apart(self, matrix: Tensor) -> Tensor:
        """How far each member's row lies from the leader's: [n, channels, outputs, members]."""
        return row_lengths(self.members(matrix) - self.take(matrix)[..., None])

    def lengths(self, matrix: Tensor) -> Tensor:
        """Largest length of a row read by each window: [n, channels, outputs]."""
        return row_lengths(self.members(matrix)).amax(dim=-1)

    def shaped(self, values: Tensor) -> Tensor:
        """Give the outputs their map back."""
        return values.reshape(*values.shape[:-1], *self.sides)


def _windows(operation: Function, like: Tensor) -> Tensor:
    """List the entries of each window by pooling unit vectors: [outputs, members]."""
    sides = like.shape[2:]
    size = sides.numel()
    inside = operation.run(torch.eye(size, dtype=like.dtype).reshape(size, 1, *sides)) > 0
    member = inside.flatten(1).T  # [outputs, size]
    most = int(member.sum(dim=1).max())
    order = member.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return torch.where(torch.gather(member, 1, order), order, -1)
