"""What a network costs: parameters, multiplications, bytes and measured time."""

from fedprune.hardware.cost import Cost, cost
from fedprune.hardware.latency import Latency, latency

__all__ = ["Cost", "Latency", "cost", "latency"]
