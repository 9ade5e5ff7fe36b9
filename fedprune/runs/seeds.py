"""Does the vote help? A paired comparison over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedprune import fairness

JsonDict = dict[str, Any]


def compare_over_seeds(summaries: Sequence[JsonDict], confidence: float) -> JsonDict | None:
    """Compare private votes with magnitude alone, seed by seed.

    Args:
        summaries: summary.json of runs that differ in their seed only.
        confidence: of the Student-t interval of the mean difference.

    Returns:
        Mean difference in accuracy after fine-tuning, private minus magnitude, its interval
        (null with one seed) and the figures of every seed; None where there are no baselines.
    """
    private = [summary["accuracy"]["pruned"] for summary in summaries]
    magnitude = [_magnitude(summary) for summary in summaries]
    if None in private or None in magnitude:
        return None
    found = fairness.paired_difference(private, magnitude, confidence)
    return {
        "name": "accuracy after fine-tuning, private minus magnitude",
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "seeds": len(summaries),
        "confidence": confidence,
        "by_seed": [_row(summary) for summary in summaries],
    }


def _magnitude(summary: JsonDict) -> Any:
    baselines = summary["baselines"]
    return baselines["magnitude"]["accuracy"] if baselines else None


def _row(summary: JsonDict) -> JsonDict:
    return {
        "seed": summary["seed"],
        "mask_recall": summary["mask_recall"],
        "mask_recall_without_prior": summary["mask_recall_without_prior"],
        "dense": summary["accuracy"]["dense"],
        "private": summary["accuracy"]["pruned"],
        **{name: parts["accuracy"] for name, parts in summary["baselines"].items()},
    }
