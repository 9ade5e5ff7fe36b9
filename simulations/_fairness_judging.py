"""What the fairness study finds of a network: gaps with intervals, against dense and each other."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from _fairness_federation import Counts, Part, Problem
from torch import nn

from fedprune import fairness
from fedprune.randomness import SimulationRandomness

HARDEST = 0.1  # the keep fraction at which mitigations are compared

Summary = fairness.FairnessSummary


def tables(before: nn.Module, after: nn.Module, part: Part, one: Problem, grouping: str) -> Counts:
    """Count tables of every client."""
    truth = part.labels.numpy()
    return fairness.client_tables(
        one.known(before, part) == truth,
        one.known(after, part) == truth,
        part.groups[grouping],
        part.clients,
        one.settings.clients,
        len(one.names[grouping]),
    )


def judged(before: nn.Module, after: nn.Module, one: Problem, grouping: str) -> Summary:
    """Compare two networks on the test rows; the pair is chosen on held-out rows."""
    return fairness.summarize(
        tables(before, after, one.test, one, grouping),
        one.names[grouping],
        SimulationRandomness(one.seed, "resamples"),
        other=tables(before, after, one.held_out, one, grouping),
        other_name="held-out training rows",
        group=grouping,
        resamples=one.settings.resamples,
    )


def outcomes(after: nn.Module, one: Problem, grouping: str) -> dict[str, Any] | None:
    """Demographic parity and equalised odds, of two-class tasks."""
    if len(torch.unique(one.test.labels)) != 2:
        return None
    found = [
        fairness.client_outcome_tables(
            part.labels,
            one.known(one.dense, part),
            one.known(after, part),
            part.groups[grouping],
            part.clients,
            one.settings.clients,
            len(one.names[grouping]),
        )
        for part in (one.test, one.held_out)
    ]
    return fairness.summarize_outcomes(
        found[0],
        one.names[grouping],
        SimulationRandomness(one.seed, "outcomes"),
        other=found[1],
        other_name="held-out training rows",
        group=grouping,
        resamples=one.settings.resamples,
    ).to_json()


def short(found: Summary) -> dict[str, Any]:
    """The figures of a summary that a table shows."""
    whole = found.to_json()
    kept = ("gap_dense", "gap_pruned", "gap_change", "gap_change_interval", "worst_group",
            "accuracy", "pair", "gap_dense_by_chance", "gap_pruned_by_chance",
            "gap_dense_interval", "gap_pruned_interval", "resampled", "conditional_on")  # fmt: skip
    groups = ("name", "rows", "too_small", "accuracy_dense", "accuracy_pruned", "excess_loss",
              "excess_interval", "excess_simultaneous", "p_holm")  # fmt: skip
    shown = [{key: group[key] for key in groups} for group in whole["groups"]]
    return {key: whole[key] for key in kept} | {"groups": shown}


def mitigated(
    one: Problem, grouping: str, name: str, model: nn.Module, plain: nn.Module, keep: float
) -> dict[str, Any]:
    """One mitigation against the dense network, and against doing nothing on the same rows."""
    found, nothing = (judged(one.dense, after, one, grouping) for after in (model, plain))
    against = judged(plain, model, one, grouping)
    change, base = found.gap_change, nothing.gap_change
    surely = nothing.pair is not None and nothing.pair.interval.low > 0
    sure = surely and base is not None and base > 0
    return {
        "what": "mitigation",
        "grouping": grouping,
        "keep": keep,
        "mitigation": name,
        "summary": short(found),
        # The share of the gap's growth taken back; None where nothing had surely grown.
        "closed": None if change is None or not base or not sure else 1 - change / base,
        "gap_change_without": base,
        "accuracy_gained": against.accuracy.change,
        "accuracy_gained_interval": list(against.accuracy.change_interval),
    }


def chosen_keep(one: Problem, grouping: str, tuned: dict[float, nn.Module]) -> dict[str, Any]:
    """The smallest keep fraction whose gap surely grew by less than the tolerance."""
    tests = {
        keep: fairness.gap_test(
            tables(one.dense, model, one.held_out, one, grouping),
            one.names[grouping],
            SimulationRandomness(one.seed, "tolerance"),
            tolerance=2 * one.settings.tolerance,
            resamples=one.settings.resamples,
        )
        for keep, model in tuned.items()
    }
    choice = fairness.choose_keep(list(tests), [test.p_value for test in tests.values()])
    kept = 1.0 if choice.keep is None else choice.keep
    model = one.dense if choice.keep is None else tuned[choice.keep]
    row = mitigated(one, grouping, "chosen keep fraction", model, tuned[HARDEST], kept)
    return row | {
        "tolerance": 2 * one.settings.tolerance,
        "choice": asdict(choice),
        "tests": {f"{keep:g}": asdict(test) for keep, test in tests.items()},
    }


def over_seeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each mitigation over the seeds: growth of the gap and accuracy, against doing nothing."""
    keys = dict.fromkeys(
        (row["dataset"], row["grouping"], row["mitigation"])
        for row in rows
        if row["what"] == "mitigation" and row["summary"]["gap_change"] is not None
    )
    found = []
    for key in keys:
        own = [
            row
            for row in rows
            if row["what"] == "mitigation"
            and (row["dataset"], row["grouping"], row["mitigation"]) == key
        ]
        change = [row["summary"]["gap_change"] for row in own]
        without = [row["gap_change_without"] for row in own]
        gained = [row["accuracy_gained"] for row in own]
        mean_without = float(np.mean(without))
        growth = fairness.paired_difference(without, [0.0] * len(without))
        alone = own[0]["closed"] is not None  # of one seed only its own interval is known
        sure = alone if growth.low is None else growth.low > 0
        found.append(
            {
                "dataset": key[0],
                "grouping": key[1],
                "mitigation": key[2],
                "gap_change": float(np.mean(change)),
                "gap_change_without": mean_without,
                "gap_surely_grew": sure,
                "difference": fairness.paired_difference(change, without)._asdict(),
                "closed": 1 - float(np.mean(change)) / mean_without if sure else None,
                "accuracy_gained": fairness.paired_difference(
                    gained, [0.0] * len(gained)
                )._asdict(),
            }
        )
    return found
