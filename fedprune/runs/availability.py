"""Which simulated clients can be reached in a round, and whose answers arrive in time.

Everything here is a pure function of the seed, the configuration, the name of the round, the time
at which it begins and the client: the server that runs it, the plan that foresees it and the
auditor who repeats it agree by construction, and neither the order nor the company in which
clients are looked at matters.

A round of a secure sum has stages that belong together. Whether a client is available is drawn
once for all of them. A client that drops out does so at its keys, its shares or its masked input,
each as likely as the others, so that an input is lost with the same probability as any other
answer; a survivor's reveal is lost with that probability once more, which the sum must survive.
Making the masked input is what takes a client its time; the other stages take none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtr, ndtri

from fedprune.config import AvailabilityConfig, Config
from fedprune.data.availability import AvailabilityTrace
from fedprune.randomness import SimulationRandomness

TRACE = "availability.csv"  # the run folder's own copy of a trace
KEYS, SHARES, INPUT, REVEAL = "keys", "shares", "", "reveal"
BEFORE_REVEAL = (KEYS, SHARES, INPUT)  # stages of a secure sum at which an input can be lost
COUNTED = ("clients", "unavailable", "dropped", "late")
_RARE = 1e-3

JsonDict = dict[str, Any]

Flags = NDArray[np.bool_]
Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Fates:
    """What becomes of the clients that a round is for: [clients] each, in their order.

    Attributes:
        available: whether a client can be reached. One that cannot is not asked, draws nothing
            and is charged nothing.
        dropped: whether its answer is lost after it was made (and charged).
        late: whether its answer comes after the deadline.
        seconds: until its answer is there, or it is known that none comes: simulated.
        duration: seconds until the server goes on: when all answers are in, or at the deadline.
    """

    available: Flags
    dropped: Flags
    late: Flags
    seconds: Seconds
    duration: float

    @property
    def heard(self) -> Flags:
        """Whose answers are used."""
        return self.available & ~self.dropped & ~self.late


def fates(
    config: Config,
    round_name: str,
    clients: Sequence[int],
    begins: float,
    trace: AvailabilityTrace | None = None,
    *,
    summed: bool = False,
) -> Fates:
    """Decide what becomes of clients in one round.

    Args:
        config: its seed and its table `availability`.
        round_name: of the question; a stage of a secure sum is named SUM/STAGE.
        clients: whom the server means to ask.
        begins: when, in seconds on the simulated clock.
        trace: of the clients, where there is one.
        summed: whether the round is a stage of a secure sum.
    """
    settings, index = config.availability, np.asarray(clients, dtype=np.int64)
    name, _, stage = round_name.partition("/")
    available = _takes_part(config, name, index)
    seconds = np.zeros(len(index))
    if stage == INPUT:
        seconds = _delays(config.seed, settings, name, index)
    dropped = _drops(config.seed, settings, name, stage if summed else None, index)
    if trace is not None:
        stays = trace.until(begins)[index] - begins
        available &= ~np.isnan(stays)
        leaves = available & (stays < seconds)
        dropped |= leaves
        seconds = np.where(leaves, stays, seconds)
    dropped &= available
    deadline = settings.deadline_seconds or math.inf
    late = np.asarray(available & ~dropped & (seconds > deadline))
    ends = float(seconds[available].max(initial=0.0))
    if math.isfinite(deadline) and (dropped | late).any():
        ends = deadline  # before it nobody knows that an answer is lost
    return Fates(available, dropped, late, seconds, ends)


def _takes_part(config: Config, name: str, clients: NDArray[np.int64]) -> Flags:
    """Whose own draw lets them take part in a round or a sum, whatever a trace says."""
    drawn = _uniform(config.seed, clients, "participation", name)
    return np.asarray(drawn < config.availability.participation)


def _uniform(seed: int, clients: NDArray[np.int64], *labels: str) -> Seconds:
    """Numbers in (0, 1), one for each client: the n-th of the stream is client n's."""
    stream = SimulationRandomness(seed, "availability", *labels)
    words = stream.words(int(clients.max(initial=-1)) + 1)[clients]
    return np.asarray(((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


def _delays(
    seed: int, settings: AvailabilityConfig, name: str, clients: NDArray[np.int64]
) -> Seconds:
    delays = np.full(len(clients), settings.delay_median_seconds)
    if settings.delay_median_seconds == 0:
        return delays
    if settings.speed_sigma > 0:  # a client's own, the same in every round
        delays *= np.exp(settings.speed_sigma * ndtri(_uniform(seed, clients, "speed")))
    if settings.delay_sigma > 0:
        delays *= np.exp(settings.delay_sigma * ndtri(_uniform(seed, clients, "delay", name)))
    return delays


def _drops(
    seed: int,
    settings: AvailabilityConfig,
    name: str,
    stage: str | None,
    clients: NDArray[np.int64],
) -> Flags:
    if settings.dropout == 0:
        return np.zeros(len(clients), dtype=np.bool_)
    if stage not in (None, *BEFORE_REVEAL):
        return _uniform(seed, clients, "dropout", name, str(stage)) < settings.dropout
    drawn = _uniform(seed, clients, "dropout", name)
    dropped = np.asarray(drawn < settings.dropout)
    if stage is None:
        return dropped
    place = np.floor(drawn / settings.dropout * len(BEFORE_REVEAL))
    return np.asarray(dropped & (place == BEFORE_REVEAL.index(stage)))


# The simulated clock, and what a run's events say of it.


def next_begin(
    config: Config,
    before: tuple[str, JsonDict] | None,
    round_name: str,
    clients: Sequence[int],
    trace: AvailabilityTrace | None,
) -> float:
    """Say when a round begins, in seconds on the simulated clock.

    After the round before it and the pause between rounds, which stages of one sum do not have;
    and where there is a trace, not before one of the clients that take part is there, if any ever
    is.

    Args:
        config: the run's.
        before: name and description (`described`) of the round before; None for the first one.
        round_name: of the round.
        clients: whom it is for.
        trace: of the clients.
    """
    begins = 0.0
    if before is not None:
        name, told = before
        begins = float(told["begins"]) + float(told["seconds"])
        if name.partition("/")[0] != round_name.partition("/")[0]:
            begins += config.availability.pause_seconds
    if trace is None:
        return begins
    index = np.asarray(clients, dtype=np.int64)
    own = index[_takes_part(config, round_name.partition("/")[0], index)]
    arrives = trace.next_arrival(begins, own)
    return arrives if math.isfinite(arrives) else begins


def described(found: Fates, begins: float) -> JsonDict:
    """Write what a round was like, as an event says it."""
    return {
        "begins": begins,
        "seconds": found.duration,
        "clients": len(found.available),
        "unavailable": int((~found.available).sum()),
        "dropped": int(found.dropped.sum()),
        "late": int(found.late.sum()),
    }


def availability_rounds(events: Iterable[JsonDict]) -> dict[str, JsonDict]:
    """What the rounds of the private path were like, in their order, from a run's events.

    A baseline's rounds repeat those of the same name, and are left out.
    """
    rounds: dict[str, JsonDict] = {}
    for event in events:
        if "/" not in event["phase"]:
            rounds.update(event.get("availability", {}))
    return rounds


def availability_totals(config: Config, events: Iterable[JsonDict]) -> JsonDict | None:
    """Add up the rounds of the private path; None where everybody always answers.

    Returns:
        How many rounds were subject to it, how often a client was to be asked in them and was
        unavailable, dropped or late, and where the simulated clock stood at the end, in seconds.
    """
    if not config.availability.configured:
        return None
    rounds = list(availability_rounds(events).values())
    totals = {key: sum(one[key] for one in rounds) for key in COUNTED}
    ends = [one["begins"] + one["seconds"] for one in rounds]
    return {"rounds": len(rounds), **totals, "simulated_seconds": max(ends, default=0.0)}


# What to expect beforehand.


def on_time_share(settings: AvailabilityConfig) -> float:
    """The probability that an answer is there before the deadline."""
    median, deadline = settings.delay_median_seconds, settings.deadline_seconds
    if median == 0 or deadline == 0:
        return 1.0
    spread = math.hypot(settings.delay_sigma, settings.speed_sigma)
    if spread == 0:
        return float(median <= deadline)
    return float(ndtr(math.log(deadline / median) / spread))


def heard_share(settings: AvailabilityConfig) -> float:
    """The expected share of the available clients whose answers are used, without a trace."""
    return (1.0 - settings.dropout) * on_time_share(settings)


def expected_reports(config: Config, asked: int, there: float = 1.0) -> int:
    """How many reports are used of those of the clients that a round is for, on average.

    Args:
        config: the run's.
        asked: how many clients the round is for.
        there: the share of the clients that a trace has there.
    """
    settings = config.availability
    if not settings.configured:
        return asked
    return round(asked * there * settings.participation * heard_share(settings))


def least_available(config: Config, asked: int) -> int:
    """So many of the clients at least are available, save once in a thousand rounds."""
    return _quantile(asked, config.availability.participation, _RARE)


def most_available(config: Config, asked: int) -> int:
    """So many of the clients at most are available, save once in a thousand rounds."""
    return _quantile(asked, config.availability.participation, 1.0 - _RARE)


@lru_cache(maxsize=64)
def _quantile(count: int, probability: float, level: float) -> int:
    """The smallest k with at least `level` of a binomial distribution's mass up to it."""
    if probability == 1.0:
        return count
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        enough = bdtr(middle, count, probability) >= level
        low, high = (low, middle) if enough else (middle + 1, high)
    return low
