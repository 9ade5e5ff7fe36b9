"""Residual blocks of convolutions, x + W2 phi(W1 x), bounded frequency by frequency."""

from __future__ import annotations

from dataclasses import dataclass

from fedprune.robustness.network import Network
from fedprune.robustness.spectral import Norm


@dataclass(frozen=True)
class ShortcutNorm:
    start: str
    end: str
    norm: Norm
    product: float


def shortcut_norms(network: Network) -> list[ShortcutNorm]:
    return []
