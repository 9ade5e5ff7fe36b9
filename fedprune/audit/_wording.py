"""How the report writes numbers, and what it says where there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

UNKNOWN = "not known"
NARROW = "\N{NARROW NO-BREAK SPACE}"
PERCENT = f"{NARROW}%"  # a line must not end before the sign
MINUS = "\N{MINUS SIGN}"

Json = Mapping[str, Any]


def pick(content: object, path: str) -> Any:
    """Follow a dotted path through nested dicts; None where it ends early."""
    for key in path.split("."):
        if not isinstance(content, Mapping):
            return None
        content = content.get(key)
    return content


def table_of(content: object, path: str) -> Json:
    """Follow a dotted path to a dict; an empty one where there is none."""
    found = pick(content, path)
    return found if isinstance(found, Mapping) else {}


def list_of(content: object, path: str) -> list[Any]:
    found = pick(content, path)
    is_list = isinstance(found, Sequence) and not isinstance(found, str)
    return list(found) if is_list else []


def number(value: object) -> float | None:
    """A finite number, or None for whatever else was stored."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def ratio(top: object, bottom: object) -> float | None:
    above, below = number(top), number(bottom)
    return above / below if above is not None and below else None


def percent(value: object, digits: int = 2) -> str:
    found = number(value)
    return UNKNOWN if found is None else f"{100 * found:.{digits}f}{NARROW}%"


def points(value: object, digits: int = 2) -> str:
    """A signed difference of two accuracies, in percentage points."""
    found = number(value)
    if found is None:
        return UNKNOWN
    text = f"{abs(100 * found):.{digits}f}"
    sign = "" if float(text) == 0 else MINUS if found < 0 else "+"
    return f"{sign}{text}"


def percent_interval(value: object, digits: int = 1) -> str:
    low, high = _ends(value)
    if low is None or high is None:
        return UNKNOWN
    return f"{100 * low:.{digits}f} to {100 * high:.{digits}f}{NARROW}%"


def points_interval(value: object, digits: int = 2) -> str:
    low, high = _ends(value)
    if low is None or high is None:
        return UNKNOWN
    return f"{points(low, digits)} to {points(high, digits)}"


def count(value: object) -> str:
    found = number(value)
    return UNKNOWN if found is None else f"{round(found):,}".replace(",", NARROW)


def plain(value: object, digits: int = 3) -> str:
    """A number to a few significant digits, without an exponent where it reads well."""
    found = number(value)
    if found is None:
        return UNKNOWN
    if found == 0 or 1e-3 <= abs(found) < 0.999 * 10**digits:
        return f"{found:.{digits}g}".replace("-", MINUS)
    if 1 <= abs(found) < 1e9:
        return f"{found:,.0f}".replace(",", NARROW).replace("-", MINUS)
    mantissa, exponent = f"{found:.{digits - 1}e}".split("e")
    return f"{mantissa} × 10^{int(exponent)}".replace("-", MINUS)


def large(value: object) -> str:
    """A count of operations or parameters with a metric prefix."""
    found = number(value)
    if found is None:
        return UNKNOWN
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(found) >= size:
            return f"{plain(found / size)}{NARROW}{prefix}"
    return f"{found:.0f}"


def size(value: object) -> str:
    """Bytes with a decimal prefix."""
    found = number(value)
    if found is None:
        return UNKNOWN
    for unit_size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(found) >= unit_size:
            return f"{plain(found / unit_size)}{NARROW}{unit}"
    return f"{found:.0f}{NARROW}B"


def milliseconds(value: object) -> str:
    found = number(value)
    return UNKNOWN if found is None else f"{plain(found)}{NARROW}ms"


def seconds(value: object) -> str:
    found = number(value)
    if found is None:
        return UNKNOWN
    if found < 59.95:
        return f"{found:.1f}{NARROW}s"
    whole = round(found)
    if whole < 3600:
        return f"{whole // 60}{NARROW}min {whole % 60:02d}{NARROW}s"
    return f"{whole // 3600}{NARROW}h {whole % 3600 // 60:02d}{NARROW}min"


def p_value(value: object) -> str:
    found = number(value)
    if found is None:
        return UNKNOWN
    return f"<{NARROW}0.001" if found < 0.001 else f"{found:.3f}"


def times(value: float | None) -> str:
    """A ratio, as in 3.1×."""
    return UNKNOWN if value is None else f"{plain(value)}×"


def text(value: object) -> str:
    """Whatever was stored, as words; a missing or empty value is said to be unknown."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return plain(value, 6)
    if value is None or value == "":
        return UNKNOWN
    if isinstance(value, list | tuple):
        return ", ".join(text(inner) for inner in value)
    return str(value).replace(" %", PERCENT)


def sentence(value: object) -> str:
    """Words with a capital letter at the start and a full stop at the end."""
    words = text(value).strip()
    if words and words[-1] not in ".!?":
        words += "."
    return words[:1].upper() + words[1:]


def plural(found: int, noun: str) -> str:
    return f"{count(found)} {noun}" if found == 1 else f"{count(found)} {noun}s"


def _ends(value: object) -> tuple[float | None, float | None]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None, None
    return number(value[0]), number(value[1])
