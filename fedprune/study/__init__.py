"""Questions that need several sciences at once: planning, and who holds what."""

from fedprune.study.clients import divide, initial_model, load_dataset
from fedprune.study.options import WANTED_RECALL, Option
from fedprune.study.plan import Plan, plan

__all__ = ["WANTED_RECALL", "Option", "Plan", "divide", "initial_model", "load_dataset", "plan"]
