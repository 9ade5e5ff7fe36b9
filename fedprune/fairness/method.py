"""Say in words how the intervals were made and for whom they speak."""

from __future__ import annotations

from fedprune.fairness.sample import MIN_CLIENTS, MIN_HOLDERS, Sample
from fedprune.fairness.summary import PairChange


def describe_condition(sample: Sample) -> str:
    """Say for whom the intervals speak; empty where it is the population of clients."""
    if sample.whole_clients:
        return ""
    one = sample.clients == 1
    return "this one client" if one else f"these {sample.clients:,} clients"


def describe_method(sample: Sample, resamples: int, min_group: int, pair: PairChange | None) -> str:
    """Describe intervals, tests, bias and the choice of the pair, one sentence each."""
    tests = (
        "p-values of the excess loss are Student's t on the resamples, adjusted over the groups "
        "(Holm)"
    )
    if not sample.whole_clients:
        tests += "; rows within these clients are taken as independent, so McNemar's test is exact"
    sentences = [
        f"{100 * sample.confidence:g} % intervals of differences: {resamples:,} paired bootstrap "
        f"resamples of {_resampled(sample)}; expanded percentiles (Hesterberg 2015).",
        f"Intervals of accuracies: Wilson's{_effective(sample)}.",
        f"{tests[0].upper()}{tests[1:]}.",
        _pair_sentence(len(sample.shown), min_group, pair),
    ]
    return " ".join(sentences)


def _resampled(sample: Sample) -> str:
    if sample.whole_clients:
        return f"whole clients ({sample.clients:,} with rows)"
    records = (
        "records within each client (clients under 30 rows drawn from together), so the "
        f"conclusion holds for {describe_condition(sample)} only and not for others like them"
    )
    if sample.clients < MIN_CLIENTS:
        return f"{records}: fewer than {MIN_CLIENTS} clients cannot be resampled as wholes"
    few = int(sample.holders[sample.shown].min())
    return (
        f"{records}: one of the groups has rows on {few} clients, and fewer than {MIN_HOLDERS} "
        f"cannot be resampled as wholes"
    )


def _effective(sample: Sample) -> str:
    return ", with the effective number of rows" if sample.whole_clients else ""


def _pair_sentence(shown: int, min_group: int, pair: PairChange | None) -> str:
    if pair is None:
        return (
            f"Only {shown} of the groups has the {min_group} rows that a figure needs, so there "
            f"is no gap to report."
            if shown == 1
            else f"None of the groups has the {min_group} rows that a figure needs, so there is "
            f"no gap to report."
        )
    bias = (
        "Best minus worst is biased upward, since chance alone sets groups apart, so the "
        "interval follows one fixed pair"
    )
    how = f"{pair.best} against {pair.worst}, best and worst after pruning on {pair.chosen_on}"
    return f"{bias}: {how}."
