"""Questions that need several sciences at once: planning, comparison over seeds."""

from fedprune.study.clients import divide, load_dataset
from fedprune.study.plan import Plan, guarantee, plan
from fedprune.study.seeds import compare_over_seeds

__all__ = ["Plan", "compare_over_seeds", "divide", "guarantee", "load_dataset", "plan"]
