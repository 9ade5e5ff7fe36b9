"""Every figure of summary.json: against events and models here, or by a check of another part.

A figure that no check knows is a broken claim, so that nothing can be stated without a ground.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from fedprune import runs
from fedprune.audit.evidence import Evidence
from fedprune.audit.findings import Finding, check, same

JsonDict = dict[str, Any]
Figure = Callable[[Evidence], Any]

# Not looked at: other packages decide the versions, and `config.out` is where the run once lay.
UNSEEN = "versions of packages, and the folder in which the run began"
_NOT_COMPARED = frozenset({"versions"})


def check_summary(evidence: Evidence) -> Iterator[Finding]:
    """Set every figure beside the events and models that it repeats, and look for others."""
    for claim, figures in _CLAIMS.items():
        yield check("record", claim, partial(_other, evidence, figures), "compared")
    claim = "the summary states what a run's summary does, and nothing else"
    yield check("record", claim, partial(_odd, evidence), "every key is known to a check")


def _other(evidence: Evidence, figures: Mapping[str, Figure]) -> str | None:
    for name, found in figures.items():
        wrong = same(name, evidence.summary[name], found(evidence))
        if wrong:
            return wrong
    return None


def _odd(evidence: Evidence) -> str | None:
    known = {name for figures in _CLAIMS.values() for name in figures}
    known |= _BY_OTHER_CHECKS | _NOT_COMPARED
    stated = evidence.summary.keys()
    if stated - known:
        return f"summary.json states {min(stated - known)!r}, which no check knows"
    return f"summary.json does not state {min(known - stated)!r}" if known - stated else None


# The figures.


def _accuracy(evidence: Evidence) -> JsonDict:
    """Accuracies of the evaluation rounds; none where nobody was asked for count tables."""
    return runs.accuracies(evidence.config, evidence.simulated, evidence.results())


def _before(evidence: Evidence) -> str:
    return f"evaluate-{evidence.config.prune.steps}-before"


def _evaluated(evidence: Evidence, phase: str) -> float | None:
    if not runs.tables_wanted(evidence.config, evidence.simulated):
        return None
    accuracy: float | None = evidence.results().get(phase, {}).get("accuracy")
    return accuracy


def _recalls(evidence: Evidence) -> dict[str, float]:
    return runs.mask_recalls(evidence.results(), evidence.config.prune.steps)


def _baselines(evidence: Evidence) -> JsonDict | None:
    recalls = _recalls(evidence)
    if not evidence.simulated or not evidence.config.evaluate.baselines:
        return None
    return {
        name: {
            "accuracy": _evaluated(evidence, f"{name}/evaluate-after"),
            "accuracy_before_fine_tuning": _evaluated(evidence, f"{name}/{_before(evidence)}"),
            "mask_recall": recall,
        }
        for name, recall in recalls.items()
        if name not in ("private", "votes_without_prior")
    }


def _fairness(evidence: Evidence) -> JsonDict | None:
    if not runs.tables_wanted(evidence.config, evidence.simulated):
        return None
    return evidence.results().get("fairness")


def _kept(evidence: Evidence) -> JsonDict:
    return runs.kept_units(evidence.folder.load_pruned()[1])


def _traffic(evidence: Evidence) -> JsonDict:
    return runs.traffic(evidence.results()["plan"], evidence.folder.load_dense()[0])


_CLAIMS: Mapping[str, Mapping[str, Figure]] = {
    "the summary's name and seed are the configuration's": {
        "name": lambda evidence: runs.run_title(evidence.config),
        "seed": lambda evidence: evidence.config.seed,
        "simulated": lambda evidence: evidence.simulated,
    },
    "accuracies and their comparison are those of the evaluation rounds": {
        "accuracy": _accuracy,
        "mask_recall": lambda evidence: _recalls(evidence).get("private"),
        "mask_recall_without_prior": lambda e: _recalls(e).get("votes_without_prior"),
        "baselines": _baselines,
    },
    "the units kept are those of the stored model": {"kept": _kept},
    "cost, bounds and gaps are those that the run's phases ended with": {
        "cost": lambda evidence: evidence.results()["cost"],
        "robustness": lambda evidence: evidence.results()["robustness"],
        "fairness": _fairness,
    },
    "traffic and plan are those of the plan and the stored model": {
        "traffic": _traffic,
        "plan": lambda evidence: runs.planned_figures(evidence.results()["plan"]),
    },
    "who was missing, who was available and what took how long is as the events say": {
        "missing": lambda evidence: runs.missing_by_round(evidence.folder.events()),
        "availability": lambda evidence: runs.availability_totals(
            evidence.config, evidence.folder.events()
        ),
        "seconds": lambda evidence: runs.seconds_by_phase(evidence.folder.events()),
    },
}
_BY_OTHER_CHECKS = frozenset({"privacy", "certified_accuracy", "paired_difference", "config"})
