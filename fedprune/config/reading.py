"""From TOML, `--set` or Flower's flat run-config to a `Config`, and back."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from fedprune.config.checks import check_together
from fedprune.config.tables import KEEP_KEYS, UNSET_KEYS, Config, Scalar
from fedprune.config.wording import sentence
from fedprune.errors import ConfigError


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file over the built-in default, then `key.path=value` overrides over both.

    Raises:
        ConfigError: if the file cannot be read or any key or value is not allowed.
    """
    tables = _defaults()
    source = "built-in default"
    if path is not None:
        source = str(path)
        tables = _merge(tables, _read_toml(Path(path)))
    for override in overrides:
        tables = _merge(tables, _parse_override(override))
        source = f"{path or 'built-in default'} with --set {' --set '.join(overrides)}"
    return parse(tables, source)


def parse(tables: Mapping[str, Any], source: str) -> Config:
    """Validate nested tables into a `Config`; `source` is named in every complaint.

    Raises:
        ConfigError: naming the first key that is wrong.
    """
    try:
        config = Config.model_validate(dict(tables))
    except ValidationError as error:
        raise ConfigError(f"{sentence(error.errors()[0])} ({source})") from None
    check_together(config, source)
    return config


def to_flat(config: Config) -> dict[str, Scalar]:
    """Flatten to dotted keys and scalars as Flower's run-config wants them; unset becomes ""."""
    flat: dict[str, Scalar] = {}
    for key, value in config.model_dump().items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": _or_empty(v) for inner, v in value.items()})
        else:
            flat[key] = _or_empty(value)
    return flat


def from_flat(flat: Mapping[str, Scalar], source: str = "Flower's run-config") -> Config:
    """Read Flower's flat run-config back: "" means unset where a key may be unset.

    Where no `keep_*` is set, the built-in default's stands.

    Raises:
        ConfigError: naming the first key that is wrong.
    """
    tables: dict[str, Any] = {}
    if not any(flat.get(f"prune.{key}", "") != "" for key in KEEP_KEYS):
        tables = {"prune": _defaults()["prune"]}
    for dotted, value in flat.items():
        if value == "" and dotted.rpartition(".")[2] in UNSET_KEYS:
            continue
        tables = _merge(tables, _nest(dotted, value))
    return parse(tables, source)


def to_toml(config: Config) -> str:
    """Write every key out, defaults included; unset keys are left out."""
    return tomli_w.dumps(config.model_dump(exclude_none=True))


def _defaults() -> dict[str, Any]:
    text = resources.files("fedprune").joinpath("default.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _or_empty(value: Scalar | None) -> Scalar:
    return "" if value is None else value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _parse_override(override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set wants key=value, got {override!r}")
    return _nest(key.strip(), _value(text))


def _value(text: str) -> Any:
    """Read a value as TOML does, numbers like .5 and 1e-5 too, and anything else as text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _nest(dotted: str, value: Any) -> dict[str, Any]:
    nested: Any = value
    for part in reversed(dotted.split(".")):
        nested = {part: nested}
    return dict(nested)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    if any(key in over for key in KEEP_KEYS):  # a later source replaces the budget of an earlier
        merged = {key: value for key, value in merged.items() if key not in KEEP_KEYS}
    for key, value in over.items():
        inner = merged.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(inner, value)
        else:
            merged[key] = value
    return merged
