"""Questions that need several sciences at once: planning, who holds what, what takes how long."""

from fedprune.study.clients import divide, initial_model, load_dataset
from fedprune.study.latency import measure_latency
from fedprune.study.options import WANTED_RECALL, Option
from fedprune.study.plan import Plan, plan

__all__ = [
    "WANTED_RECALL",
    "Option",
    "Plan",
    "divide",
    "initial_model",
    "load_dataset",
    "measure_latency",
    "plan",
]
