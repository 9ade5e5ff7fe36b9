"""What was released (events), apart from what it costs.

An event is a value that says which mechanism ran with which parameters, as in dp-accounting's
`dp_event`. What it costs depends on the currency of the budget it is charged to (pure epsilon,
zero-concentrated rho, Renyi at one order); an event that a currency cannot express is refused,
never guessed. `Relation` names are the neighbouring relations that a charge is valid under.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from fedprune.errors import PrivacyError

CLIENT, RECORD = "client", "record"

REPLACEMENT = "replacement"
ADD_REMOVE_RECORD = "add-remove-record"
NO_CHARGE = "no-charge"
UNPROTECTED = "unprotected"

RELATIONS: Mapping[str, str] = {
    REPLACEMENT: "any change of one client's whole data",
    ADD_REMOVE_RECORD: "one record added to, or removed from, one client's data",
    NO_CHARGE: "says nothing about the data",
    UNPROTECTED: "no guarantee",
}
UNIT_OF: Mapping[str, str] = {REPLACEMENT: CLIENT, ADD_REMOVE_RECORD: RECORD}

# A guarantee under the first relation is one under those listed: a client-level report also
# counts at record level; a record-level event says nothing at client level.
COUNTS_UNDER: Mapping[str, tuple[str, ...]] = {
    REPLACEMENT: (REPLACEMENT, ADD_REMOVE_RECORD),
    ADD_REMOVE_RECORD: (ADD_REMOVE_RECORD,),
}


@dataclass(frozen=True)
class PureEvent:
    """A mechanism with pure epsilon-differential privacy (delta = 0)."""

    epsilon: float

    def __post_init__(self) -> None:
        """Refuse an epsilon that is not above 0 and finite."""
        _positive("epsilon", self.epsilon)


@dataclass(frozen=True)
class ZeroConcentratedEvent:
    """A mechanism with rho-zCDP (Bun & Steinke 2016), such as a Gaussian or discrete Gaussian.

    A Gaussian of standard deviation sigma on a query of l2 sensitivity s has rho = s^2/(2 sigma^2).
    """

    rho: float

    def __post_init__(self) -> None:
        """Refuse a rho that is not above 0 and finite."""
        _positive("rho", self.rho)


@dataclass(frozen=True)
class SubsampledGaussianEvent:
    """DP-SGD steps: each samples records by independent coins and adds Gaussian noise to a sum.

    Attributes:
        noise_multiplier: standard deviation of the noise over the clipping norm.
        sampling_rate: the coin's probability, in (0, 1].
        steps: how many of them.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        """Refuse parameters out of range."""
        _positive("noise_multiplier", self.noise_multiplier)
        if not 0 < self.sampling_rate <= 1:
            raise PrivacyError(f"sampling_rate must be in (0, 1], got {self.sampling_rate!r}")
        if isinstance(self.steps, bool) or self.steps != int(self.steps) or self.steps < 1:
            raise PrivacyError(f"steps must be a whole number of at least 1, got {self.steps!r}")


Event: TypeAlias = PureEvent | ZeroConcentratedEvent | SubsampledGaussianEvent

_UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,  # a number past the largest float
    RecursionError,
)
_NAMES: Mapping[str, type[Event]] = {
    "pure": PureEvent,
    "zcdp": ZeroConcentratedEvent,
    "subsampled-gaussian": SubsampledGaussianEvent,
}


def event_to_text(event: Event) -> str:
    """Write an event as canonical JSON, floats exactly (hexadecimal): one event, one text."""
    name = next(name for name, kind in _NAMES.items() if type(event) is kind)
    values = {key: v if isinstance(v, int) else float(v).hex() for key, v in vars(event).items()}
    return json.dumps({"event": name, **values}, sort_keys=True, separators=(",", ":"))


def event_from_text(text: str) -> Event:
    """Read what `event_to_text` wrote.

    Raises:
        PrivacyError: if the text is not exactly such an event; it is never guessed.
    """
    try:
        content: dict[str, Any] = json.loads(text)
        kind = _NAMES[content.pop("event")]
        values = {k: float.fromhex(v) if isinstance(v, str) else v for k, v in content.items()}
        event: Event = kind(**values)  # type: ignore[arg-type]  # the values decide
    except _UNREADABLE as error:
        raise PrivacyError(f"not an event that this accountant knows: {text[:120]!r}") from error
    if event_to_text(event) != text:
        raise PrivacyError(f"an event is not written as events are: {text[:120]!r}")
    return event


def _positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not (0 < value < math.inf):
        raise PrivacyError(f"{name} must be above 0 and finite, got {value!r}")
