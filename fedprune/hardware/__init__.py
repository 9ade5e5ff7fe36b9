"""What a network costs: parameters, multiplications, bytes and measured time."""

from fedprune.hardware.comparison import Speed, compare
from fedprune.hardware.cost import Cost, cost
from fedprune.hardware.latency import Latency, latency
from fedprune.hardware.layers import Work, measure_forms, measure_layers
from fedprune.hardware.machine import Machine, machine
from fedprune.hardware.roofline import Roofline, roofline
from fedprune.hardware.variants import VARIANTS, Variants, fold_norms, variants

__all__ = [
    "VARIANTS",
    "Cost",
    "Latency",
    "Machine",
    "Roofline",
    "Speed",
    "Variants",
    "Work",
    "compare",
    "cost",
    "fold_norms",
    "latency",
    "machine",
    "measure_forms",
    "measure_layers",
    "roofline",
    "variants",
]
