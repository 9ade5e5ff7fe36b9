"""Say in words how the intervals were made and for whom they speak."""

from __future__ import annotations

from collections.abc import Sequence

from fedprune.fairness.noise import TableNoise
from fedprune.fairness.noisy import MOST_VARIATION
from fedprune.fairness.sample import MIN_CLIENTS, MIN_HOLDERS, Sample
from fedprune.fairness.summary import PairChange


def describe_condition(sample: Sample) -> str:
    """Say for whom the intervals speak; empty where it is the population of clients."""
    if sample.whole_clients:
        return ""
    one = sample.clients == 1
    return "this one client" if one else f"these {sample.clients:,} clients"


def describe_resampled(sample: Sample) -> str:
    """Name what was resampled."""
    if sample.whole_clients:
        return "whole clients"
    return "records of all clients together" if sample.noise else "records within each client"


def describe_method(
    sample: Sample,
    resamples: int,
    min_group: int,
    pair: PairChange | None,
    names: Sequence[str],
) -> str:
    """Describe intervals, tests, bias and the choice of the pair, one sentence each."""
    tests = (
        "p-values of the excess loss are Student's t on the resamples, adjusted over the groups "
        "(Holm)"
    )
    if not sample.whole_clients and sample.noise is None:
        tests += "; rows within these clients are taken as independent, so McNemar's test is exact"
    sentences = [
        f"{100 * sample.confidence:g} % intervals of differences: {resamples:,} paired bootstrap "
        f"resamples of {_resampled(sample)}; expanded percentiles (Hesterberg 2015), never "
        "narrower than Wilson's limits for the rows that changed"
        f"{'' if sample.noise is not None else _effective(sample)}, added in squares "
        "(Zou & Donner 2008).",
        f"Intervals of accuracies: Wilson's{_effective(sample)}.",
        f"{tests[0].upper()}{tests[1:]}.",
        *_unchanged_sentence(sample),
        *_noise_sentences(sample, min_group),
        *_one_client_sentence(sample, names),
        _pair_sentence(len(sample.shown), min_group, pair),
    ]
    return " ".join(sentences)


def describe_noise(noise: TableNoise) -> str:
    """Say what was added to every count."""
    words = f"{noise.kind.replace('-', ' ')} noise of scale {noise.scale:g}"
    if noise.draws > 1:
        words += f", {noise.draws:,} draws together,"
    clipped = "" if noise.clipped_to is None else f" (tables cut down to {noise.clipped_to:,} rows)"
    return f"{words} in every count of every client{clipped}"


def _noise_sentences(sample: Sample, min_group: int) -> list[str]:
    if sample.noise is None:
        return []
    how = (
        "noisy tables of whole clients are resampled as they are, so the noise is in the intervals"
        if sample.whole_clients
        else "every resample draws the noise anew from its exact distribution"
    )
    return [
        f"Clients added {describe_noise(sample.noise)}: {how}.",
        f"A group gets figures where its noisy count proves {min_group} rows at "
        f"{100 * sample.confidence:g} % and the noise is at most {100 * MOST_VARIATION:g} % of it.",
    ]


def _unchanged_sentence(sample: Sample) -> list[str]:
    cells = sample.total[sample.shown]
    if not sample.whole_clients or bool(((cells[:, 0, 1] > 0) | (cells[:, 1, 0] > 0)).all()):
        return []
    return [
        "Where no row of a group changed, how changes come in clients cannot be seen: a client's "
        "rows are taken to be as alike in changing as they are in being right."
    ]


def _one_client_sentence(sample: Sample, names: Sequence[str]) -> list[str]:
    if sample.noise is not None or sample.clients < 2:
        return []
    alone = [str(names[int(code)]) for code in sample.shown if sample.holders[code] == 1]
    if not alone:
        return []
    return [f"On one client only, whose figures they therefore are: {', '.join(alone)}."]


def _resampled(sample: Sample) -> str:
    if sample.whole_clients:
        those = "" if sample.noise is not None else " with rows"
        return f"whole clients ({sample.clients:,}{those})"
    records = (
        f"{_records_of(sample)}, so the "
        f"conclusion holds for {describe_condition(sample)} only and not for others like them"
    )
    if sample.clients < MIN_CLIENTS:
        return f"{records}: fewer than {MIN_CLIENTS} clients cannot be resampled as wholes"
    few = int(sample.holders[sample.shown].min())
    return (
        f"{records}: one of the groups has rows on {_about(sample)}{few} clients, and fewer than "
        f"{MIN_HOLDERS} cannot be resampled as wholes"
    )


def _about(sample: Sample) -> str:
    return "" if sample.noise is None else "about "


def _records_of(sample: Sample) -> str:
    pooled = "" if sample.noise else " (clients under 30 rows drawn from together)"
    return f"{describe_resampled(sample)}{pooled}"


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
