"""The first screen of the report, for a reader who reads nothing else."""

from __future__ import annotations

from fedprune.audit import _wording as say
from fedprune.audit._deployed import Deployment, missing_sentence
from fedprune.audit._page import Opening, Tile
from fedprune.audit._privacy import guarantee
from fedprune.audit._wording import Json

FASTER = 1.05  # a measured ratio nearer to 1 than this is called no difference


def opening(summary: Json, deployment: Deployment | None = None) -> Opening:
    privacy = guarantee(say.table_of(summary, "privacy"))
    gaps = say.list_of(summary, "privacy.not_covered")
    sentences = [privacy]
    if gaps:
        words = "; ".join(say.text(gap).rstrip(".") for gap in gaps)
        sentences.append(f"This does not cover everything: {words}.")
    sentences += [*missing_sentence(summary), *availability_sentence(summary)]
    name, seed = summary.get("name"), summary.get("seed")
    parts = [say.text(name) if name else "unnamed run", f"seed {say.text(seed)}"]
    if deployment is not None:
        parts.append(deployment.words)
    return Opening(
        run=" · ".join(parts),
        headline=_headline(summary),
        sentences=tuple(sentences),
        tiles=tuple(_tiles(summary)),
    )


def availability_sentence(summary: Json) -> list[str]:
    """One sentence about simulated availability; none where everybody always answers."""
    found = say.table_of(summary, "availability")
    if not found:
        return []
    seconds = say.number(found.get("simulated_seconds")) or 0.0
    return [
        f"In this simulation not everybody always answers: in {say.count(found.get('rounds'))} "
        f"training and voting rounds clients were to be asked {say.count(found.get('clients'))} "
        f"times and were unavailable {say.count(found.get('unavailable'))} times; "
        f"{say.count(found.get('dropped'))} answers were lost and {say.count(found.get('late'))} "
        f"came too late, in {seconds:g} simulated seconds."
    ]


def latency_ratio(summary: Json) -> float | None:
    """How many times faster the pruned model was measured to be, turn by turn where known."""
    paired = say.number(say.pick(summary, "cost.latency.speedup"))
    if paired is not None:
        return paired
    return say.ratio(
        say.pick(summary, "cost.dense.latency_ms"), say.pick(summary, "cost.pruned.latency_ms")
    )


def speedup_interval(summary: Json) -> tuple[float, float] | None:
    """The 95 % interval of how many times faster the pruned model was measured to be."""
    ends = [say.number(end) for end in say.list_of(summary, "cost.latency.speedup_interval")]
    low, high = ends if len(ends) == 2 else (None, None)
    return None if low is None or high is None else (low, high)


def cost_ratio(summary: Json, name: str) -> float | None:
    """How many times smaller `params`, `macs` or `bytes` became."""
    return say.ratio(
        say.pick(summary, f"cost.dense.{name}"), say.pick(summary, f"cost.pruned.{name}")
    )


def _headline(summary: Json) -> str:
    subject = _subject(summary)
    dense = say.number(say.pick(summary, "accuracy.dense"))
    pruned = say.number(say.pick(summary, "accuracy.pruned"))
    if dense is None and pruned is None:
        accuracy = "its accuracy was not measured"
    else:
        accuracy = f"accuracy goes from {say.percent(dense, 1)} to {say.percent(pruned, 1)}"
    gains = [gain for gain in (_smaller(summary), _faster(summary)) if gain]
    return f"{subject}{' and is ' + ' and '.join(gains) if gains else ''}; {accuracy}."


def _subject(summary: Json) -> str:
    model = say.pick(summary, "config.model.name")
    dataset = say.pick(summary, "config.data.dataset")
    named = all(isinstance(name, str) and name for name in (model, dataset))
    who = f"{model} on {dataset}" if named else "The network"
    kept, of = say.number(say.pick(summary, "kept.units")), say.number(say.pick(summary, "kept.of"))
    if kept is None or not of:
        return f"{who} was pruned"
    return f"{who} keeps {say.count(kept)} of its {say.count(of)} units"


def _smaller(summary: Json) -> str:
    ratio = cost_ratio(summary, "params")
    return "" if ratio is None or ratio < FASTER else f"{say.times(ratio)} smaller"


def _faster(summary: Json) -> str:
    ratio = latency_ratio(summary)
    if ratio is None:
        return ""
    if ratio >= FASTER:
        return f"{say.times(ratio)} faster"
    return "no faster" if ratio > 1 / FASTER else f"{say.times(1 / ratio)} slower"


def _tiles(summary: Json) -> list[Tile]:
    return [_accuracy_tile(summary), _cost_tile(summary), _speed_tile(summary), _privacy(summary)]


def _accuracy_tile(summary: Json) -> Tile:
    dense, pruned = say.pick(summary, "accuracy.dense"), say.pick(summary, "accuracy.pruned")
    known = say.number(dense) is not None and say.number(pruned) is not None
    remark = f"dense {say.percent(dense, 1)}" if known else "the dense model is the reference"
    if known:
        remark += f", {say.points(float(pruned) - float(dense), 1)} points"
    return Tile("Accuracy after pruning", say.percent(pruned, 1), remark)


def _cost_tile(summary: Json) -> Tile:
    dense, pruned = say.pick(summary, "cost.dense.macs"), say.pick(summary, "cost.pruned.macs")
    share = say.ratio(pruned, dense)
    value = say.UNKNOWN if share is None else say.percent(share, 0)
    remark = f"{say.large(dense)} to {say.large(pruned)} MACs"
    return Tile("Operations left", value, remark if share is not None else "not measured")


def _speed_tile(summary: Json) -> Tile:
    dense = say.pick(summary, "cost.dense.latency_ms")
    pruned = say.pick(summary, "cost.pruned.latency_ms")
    ratio = latency_ratio(summary)
    remark = f"{say.milliseconds(dense)} to {say.milliseconds(pruned)}, measured"
    value = say.UNKNOWN if ratio is None else f"{ratio:.2f}×"
    return Tile("Speed-up", value, remark if ratio is not None else "not measured")


def _privacy(summary: Json) -> Tile:
    privacy = say.table_of(summary, "privacy")
    if privacy.get("trust") == "none":
        return Tile("Privacy of the votes", "none", "masks were sent as they are")
    epsilon = say.number(privacy.get("epsilon"))
    if epsilon is None:
        return Tile("Privacy of the votes", say.UNKNOWN, "no ε was recorded")
    unit = privacy.get("unit")
    per = f"per {unit}, for the mask's sake only" if unit else "for the mask's sake only"
    return Tile("Privacy of the votes", f"ε = {epsilon:g}", per)
