"""Questions that need several sciences at once: planning, and who holds what."""

from fedprune.study.clients import divide, initial_model, load_dataset
from fedprune.study.plan import Plan, plan

__all__ = ["Plan", "divide", "initial_model", "load_dataset", "plan"]
