"""Which setting reaches a wanted recall, and what to say where none does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fedprune import privacy, runs
from fedprune.config import Config
from fedprune.errors import PrivacyError
from fedprune.privacy.budgets.guarantees import TRUST
from fedprune.privacy.votes.planning import RecallPrediction
from fedprune.study.answers import Answer, answer_of

WANTED_RECALL = 0.9
_USUAL_DELTA = 1e-6
_STRONGEST_EPSILON = 16.0
_MANY_CLIENTS = 10**9
_TRUSTS = ("local", "shuffle", "aggregate", "record")


@dataclass(frozen=True)
class Option:
    """What one trust setting would give at the configured epsilon.

    Attributes:
        unit, relation: of the guarantee.
        variance_per_vote, recall, low, high: predicted; None where they depend on the data, or
            where the guarantee cannot be met.
        trusted: who must be.
        reaches: whether the low end of the interval reaches the wanted recall.
        remark: why there is no prediction, if there is none.
    """

    trust: str
    epsilon: float
    delta: float
    unit: str
    relation: str
    variance_per_vote: float | None
    recall: float | None
    low: float | None
    high: float | None
    trusted: str
    reaches: bool
    remark: str = ""


def options(config: Config, num_units: int, keep: float, wanted: float) -> tuple[Option, ...]:
    """Predict what every trust setting would give at the configured epsilon."""
    if config.privacy.trust == "none":
        return ()
    return tuple(_option(config, trust, num_units, keep, wanted) for trust in _TRUSTS)


def _option(config: Config, trust: str, num_units: int, keep: float, wanted: float) -> Option:
    other = _under(config, trust)
    stated = runs.guarantee(other)
    said = (trust, stated.epsilon, stated.delta, stated.unit, stated.relation)
    try:
        answer = answer_of(other, num_units, keep)
    except PrivacyError as error:
        return Option(*said, None, None, None, None, TRUST[trust], False, f"{error}")
    found = answer.prediction(keep)
    if found is None:
        remark = "how well noisy scores rank units depends on the clients' records"
        return Option(*said, None, None, None, None, TRUST[trust], False, remark)
    figures = (answer.variance, found.expected, found.low, found.high)
    return Option(*said, *figures, TRUST[trust], found.low >= wanted)


def _under(config: Config, trust: str) -> Config:
    """The same configuration with another trust setting."""
    pure = trust in ("local", "none")
    delta = 0.0 if pure else config.privacy.delta or _USUAL_DELTA
    same = config.privacy.mechanism if trust in ("local", "shuffle") else "threshold"
    phases = config.privacy.phases if trust == "local" else 1
    change = {"trust": trust, "delta": delta, "mechanism": same, "phases": phases}
    return config.model_copy(update={"privacy": config.privacy.model_copy(update=change)})


def recommendation(config: Config, num_units: int, keep: float, wanted: float) -> str:
    """Name the setting that reaches a wanted recall with the least trust, or say that none does."""
    if config.privacy.trust == "none":
        return "votes without noise are what every recall is measured against"
    if not keep < wanted < 1:
        return f"a recall of {wanted:g} is no better than chance, or cannot be promised"
    for option in options(config, num_units, keep, wanted):
        if option.reaches:
            return (
                f"privacy.trust = {option.trust!r} reaches a recall of {wanted:g} at epsilon = "
                f"{option.epsilon:g}, delta = {option.delta:g} per {option.unit} (interval "
                f"{option.low:.2f} to {option.high:.2f}); must be trusted: {option.trusted}"
            )
    needs = "; ".join(_needs(config, num_units, keep, wanted))
    return (
        f"no trust setting is sure of a recall of {wanted:g} with {config.data.clients:,} clients "
        f"at epsilon = {config.privacy.epsilon:g}; {needs}"
    )


def advice(
    config: Config, num_units: int, keep: float, found: RecallPrediction | None, floor: float
) -> tuple[str, ...]:
    """Say that the mask would be useless, and which setting would do."""
    if found is None:
        return ()
    target = max(WANTED_RECALL, keep + 0.8 * (1 - keep))
    sentences = [
        f"the private mask would be nearly useless: predicted recall {found.expected:.2f}, chance "
        f"{keep:.2f}, useful from {floor:.2f}",
        *_needs(config, num_units, keep, target),
    ]
    if config.privacy.prior == "magnitude":
        sentences.append("what carries such a run is the magnitude prior")
    return tuple(sentences)


def _needs(config: Config, num_units: int, keep: float, target: float) -> Iterator[str]:
    """What it would take under the configured trust: clients, or epsilon."""
    reports = config.data.clients // config.prune.steps
    if not keep < target < 1 or config.privacy.trust == "record":
        return
    wanted = privacy.variance_for_recall(target, keep)
    variance = answer_of(config, num_units, keep).variance
    if variance is not None:
        clients = _clients_needed(config, num_units, keep, wanted)
        yield (
            f"at epsilon = {config.privacy.epsilon:g} a recall of {target:.2f} needs {clients} "
            "clients"
        )
    strongest = max(_STRONGEST_EPSILON, math.ceil(config.privacy.epsilon))
    for epsilon in range(math.ceil(config.privacy.epsilon), int(strongest) + 1):
        stronger = config.privacy.model_copy(update={"epsilon": float(epsilon)})
        found = _answer(config.model_copy(update={"privacy": stronger}), num_units, keep)
        if found is not None and found.variance is not None and found.variance <= wanted:
            yield f"with {reports} clients it needs epsilon = {epsilon:g}"
            return
    yield f"with {reports} clients a step no epsilon up to {strongest:g} reaches it"


def _answer(config: Config, num_units: int, keep: float) -> Answer | None:
    try:
        return answer_of(config, num_units, keep)
    except PrivacyError:
        return None


def _clients_needed(config: Config, num_units: int, keep: float, wanted: float) -> str:
    """The least number of clients, to two digits, by doubling and halving."""
    low, high = 1, 2 * config.data.clients
    while high < _MANY_CLIENTS and not _enough(config, high, num_units, keep, wanted):
        low, high = high, 2 * high
    if high >= _MANY_CLIENTS:
        return f"more than {_MANY_CLIENTS:,}"
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        enough = _enough(config, middle, num_units, keep, wanted)
        low, high = (low, middle) if enough else (middle, high)
    return f"about {high:,}"


def _enough(config: Config, clients: int, num_units: int, keep: float, wanted: float) -> bool:
    if clients < 2 * config.prune.steps:
        return False
    data = config.data.model_copy(update={"clients": clients})
    found = _answer(config.model_copy(update={"data": data}), num_units, keep)
    return found is not None and found.variance is not None and found.variance <= wanted
