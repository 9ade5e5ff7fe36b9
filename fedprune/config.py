"""One frozen, strict configuration, read from TOML, `--set` or Flower's flat run-config.

Every key has a default, so an empty file is a valid configuration. A key that is not known, a
value of the wrong type or out of range, and a contradiction between keys are refused in one
sentence that names the key, the value, what is allowed and where it was written.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from fedprune.errors import ConfigError

Scalar: TypeAlias = str | int | float | bool

Fraction01 = Annotated[float, Field(gt=0, le=1, description="a number in (0, 1]")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]
NonNegative = Annotated[
    float, Field(ge=0, allow_inf_nan=False, description="a number of at least 0")
]
Momentum = Annotated[float, Field(ge=0, lt=1, description="a number in [0, 1)")]
Spread = Annotated[float, Field(ge=0, le=10, description="a number in [0, 10]")]
Count = Annotated[int, Field(ge=0, description="a whole number of at least 0")]
PositiveCount = Annotated[int, Field(ge=1, description="a whole number of at least 1")]
Text = Annotated[str, Field(description="a string")]
Switch = Annotated[bool, Field(description="true or false")]

LEAST_NOISE_MULTIPLIER, LARGEST_NOISE_MULTIPLIER = 2.0**-6, 2.0**16  # what DP-SGD's grid holds
KEEP_KEYS = ("keep_units", "keep_macs", "keep_params")


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataConfig(_Table):
    """Which rows there are and who holds them."""

    dataset: Text = "digits"
    root: Text = ""
    partition: Literal["iid", "dirichlet", "shards", "natural"] = "iid"
    alpha: Positive = 0.3
    shards_per_client: PositiveCount = 2
    clients: PositiveCount = 200
    groups: Text = "class"


class ModelConfig(_Table):
    """Which network is pruned and where its weights start."""

    name: Text = "lenet"
    weights: Text = ""


class PruneConfig(_Table):
    """What is scored, how much stays and in how many steps."""

    criterion: Literal["random", "magnitude_l1", "magnitude_l2", "taylor"] = "taylor"
    keep_units: Fraction01 | None = None
    keep_macs: Fraction01 | None = None
    keep_params: Fraction01 | None = None
    floor: PositiveCount = 1
    schedule: Literal["one-shot", "geometric", "cubic"] = "one-shot"
    steps: PositiveCount = 1

    @property
    def budget(self) -> tuple[str, float]:
        """The one `keep_*` key that is set, and its value."""
        for name in KEEP_KEYS:
            value = getattr(self, name)
            if value is not None:
                return name, float(value)
        raise ConfigError("one of prune.keep_units, prune.keep_macs, prune.keep_params must be set")


class PrivacyConfig(_Table):
    """Who is trusted and how much each client may spend on its mask report.

    `epsilon` and `delta` are the guarantee under `trust`: of each report (local), of all reports
    together after a shuffler (shuffle), of the sum alone (aggregate), of one record (record).
    `mechanism` is threshold randomised response at its best block and threshold, or a special case.
    `phases` asks disjoint cohorts one after another, the later ones about undecided units only.
    `min_reports` is what shuffle and aggregate need at least; 0 means the quorum's. `colluding` is
    how many clients may help an aggregate's server against the others. Without
    `masking` a simulation adds an aggregate's numbers up in plain sight, which comes out the same.
    """

    trust: Literal["local", "shuffle", "aggregate", "record", "none"] = "local"
    epsilon: Annotated[float, Field(ge=1e-6, le=64, description="a number in [1e-6, 64]")] = 4.0
    delta: Annotated[float, Field(ge=0, lt=0.1, description="a number in [0, 0.1)")] = 0.0
    prior: Literal["magnitude", "none"] = "magnitude"
    mechanism: Literal["threshold", "warner", "k-ary", "duchi"] = "threshold"
    phases: Annotated[int, Field(ge=1, le=16, description="a whole number in [1, 16]")] = 1
    min_reports: Count = 0
    colluding: Count = 0
    masking: Switch = True


class TrainConfig(_Table):
    """Federated averaging: before pruning (`rounds`) and after each step (`fine_tune_rounds`).

    `private` says which of them use DP-SGD at record level: a target of (`dp_epsilon`, `dp_delta`)
    for a client that takes part in all of them, or a `noise_multiplier` of its own (0: from the
    target). Each step samples every record with probability `sample_rate`.
    """

    rounds: Count = 40
    fine_tune_rounds: Count = 10
    clients_per_round: PositiveCount = 50
    local_epochs: PositiveCount = 5
    batch_size: PositiveCount = 8
    learning_rate: Positive = 0.2
    fine_tune_learning_rate: Positive = 0.1
    momentum: Momentum = 0.9
    weight_decay: NonNegative = 0.0
    private: Literal["off", "fine-tune", "all"] = "off"
    dp_epsilon: Positive = 8.0
    dp_delta: Annotated[float, Field(gt=0, lt=0.1, description="a number in (0, 0.1)")] = 1e-5
    noise_multiplier: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    sample_rate: Fraction01 = 0.1


class EvaluateConfig(_Table):
    """What is measured, on which rows, and what may leave a client for it."""

    split: Literal["test", "validation"] = "test"
    tables: Literal["simulation-only", "unprotected", "off"] = "simulation-only"
    seeds: PositiveCount = 3
    baselines: Switch = True
    certified_radius: Positive = 0.1
    certified_rows: PositiveCount = 1000
    confidence: Annotated[
        float, Field(ge=0.5, le=0.9999, description="a number in [0.5, 0.9999]")
    ] = 0.95
    resamples: Annotated[int, Field(ge=100, description="a whole number of at least 100")] = 2000


class FederationConfig(_Table):
    """How long the server waits, and how many answers it needs to go on.

    `quorum` is the share of the clients asked that must answer in every phase; `deadline_seconds`
    ends the wait of a phase, `join_seconds` the wait for clients at the start.
    """

    quorum: Fraction01 = 1.0
    deadline_seconds: Positive = 600.0
    join_seconds: Positive = 60.0


class AvailabilityConfig(_Table):
    """Which simulated clients can be reached, and whose answers arrive in time.

    In simulation only; training and voting rounds are subject to it, introductions and evaluation
    are not. Of the clients asked in a round each is available with probability `participation`,
    drawn independently of all others, and, where there is a `trace` (a CSV file of intervals
    client,start,end in seconds, repeated after its last end), if the trace has it there when the
    round begins. Of those that are, each loses its answer with probability `dropout` after it was
    made and charged, and takes `delay_median_seconds` times a lognormal factor of its own, the
    same in all rounds (`speed_sigma`), times a lognormal factor of the round (`delay_sigma`).
    Answers that take longer than `deadline_seconds` are a straggler's and not used (0: there is
    no deadline). `pause_seconds` pass between a round's end and the next one's beginning. Seconds
    here are those of a simulated clock; nothing waits for them.
    """

    participation: Fraction01 = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="a number in [0, 1)")] = 0.0
    delay_median_seconds: NonNegative = 0.0
    delay_sigma: Spread = 0.0
    speed_sigma: Spread = 0.0
    deadline_seconds: NonNegative = 0.0
    pause_seconds: NonNegative = 0.0
    trace: Text = ""

    @property
    def configured(self) -> bool:
        """Whether any key differs from its default, under which everybody always answers."""
        return self != AvailabilityConfig()


class EngineConfig(_Table):
    """Where simulated clients run; Ray's keys are for `--engine flower`.

    `deterministic` scores one client at a time on one thread, so that every engine and cohort
    size gives the same bits. `precision` is that of the passes which score clients: bfloat16 is
    used where a sample of the clients shows that it keeps at least 0.99 of the votes' mask.
    `workers` are the processes that train the local engine's clients: 0 means as many as cores, 1
    means none. `actors` = 0 means as many as fit; `ray_address` names a running Ray cluster, ""
    starts one.
    """

    deterministic: Switch = False
    precision: Literal["float32", "bfloat16"] = "float32"
    workers: Count = 0
    cpus_per_client: PositiveCount = 1
    gpus_per_client: NonNegative = 0.0
    actors: Count = 0
    ray_address: Text = ""


class Config(_Table):
    """The whole experiment."""

    seed: Annotated[
        int, Field(ge=0, lt=2**62, description="a whole number of at least 0, below 2**62")
    ] = 1
    out: Text = ""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    prune: PruneConfig = PruneConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    federation: FederationConfig = FederationConfig()
    availability: AvailabilityConfig = AvailabilityConfig()
    engine: EngineConfig = EngineConfig()


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
        raise ConfigError(f"{_sentence(error.errors()[0])} ({source})") from None
    _check_together(config, source)
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
        if value == "" and dotted.rpartition(".")[2] in KEEP_KEYS:
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
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return _nest(key.strip(), value)


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


def _check_together(config: Config, source: str) -> None:
    keeps = [f"prune.{key}" for key in KEEP_KEYS if getattr(config.prune, key) is not None]
    if len(keeps) != 1:
        found = " and ".join(keeps) if keeps else "none"
        raise ConfigError(
            f"exactly one of prune.keep_units, prune.keep_macs, prune.keep_params must be set, "
            f"got {found} ({source})"
        )
    if config.prune.schedule == "one-shot" and config.prune.steps != 1:
        raise ConfigError(
            f"prune.steps must be 1 with prune.schedule = 'one-shot', got {config.prune.steps} "
            f"({source})"
        )
    asked = config.prune.steps * config.privacy.phases
    if asked > config.data.clients:
        raise ConfigError(
            f"prune.steps x privacy.phases must be at most data.clients = {config.data.clients}, "
            f"since every client answers once only, got {config.prune.steps} x "
            f"{config.privacy.phases} ({source})"
        )
    _check_trust(config.privacy, config.data.clients // asked, source)
    if config.engine.deterministic and config.engine.precision != "float32":
        raise ConfigError(
            "engine.precision must be 'float32' with engine.deterministic = true, got "
            f"{config.engine.precision!r} ({source})"
        )
    noise = config.train.noise_multiplier
    if noise and not LEAST_NOISE_MULTIPLIER <= noise <= LARGEST_NOISE_MULTIPLIER:
        raise ConfigError(
            f"train.noise_multiplier must be 0 or in [{LEAST_NOISE_MULTIPLIER:g}, "
            f"{LARGEST_NOISE_MULTIPLIER:g}], got {noise!r} ({source})"
        )
    if config.privacy.trust == "record" and config.prune.criterion == "random":
        raise ConfigError(
            "prune.criterion must be one that looks at the rows with privacy.trust = 'record', "
            f"got 'random' ({source})"
        )
    _check_availability(config, source)


def _check_trust(privacy: PrivacyConfig, cohort: int, source: str) -> None:
    """Refuse a delta, a mechanism or phases that the trust setting has no meaning for."""
    trust, needs_delta = privacy.trust, privacy.trust in ("shuffle", "aggregate", "record")
    if needs_delta and privacy.delta == 0:
        raise ConfigError(
            f"privacy.delta must be above 0 with privacy.trust = {trust!r}, got 0 ({source})"
        )
    if not needs_delta and privacy.delta != 0:
        raise ConfigError(
            f"privacy.delta must be 0 with privacy.trust = {trust!r}, which is pure, got "
            f"{privacy.delta:g} ({source})"
        )
    if privacy.phases > 1 and trust != "local":
        raise ConfigError(
            f"privacy.phases must be 1 with privacy.trust = {trust!r}, got {privacy.phases} "
            f"({source})"
        )
    if privacy.mechanism != "threshold" and trust not in ("local", "shuffle"):
        raise ConfigError(
            f"privacy.mechanism must be 'threshold' with privacy.trust = {trust!r}, got "
            f"{privacy.mechanism!r} ({source})"
        )
    if privacy.colluding > 0 and trust != "aggregate":
        raise ConfigError(
            f"privacy.colluding must be 0 with privacy.trust = {trust!r}, got {privacy.colluding} "
            f"({source})"
        )
    if privacy.min_reports > cohort:
        raise ConfigError(
            f"privacy.min_reports must be at most the {cohort} clients that are asked at once, got "
            f"{privacy.min_reports} ({source})"
        )


def _check_availability(config: Config, source: str) -> None:
    """Refuse lost answers where none may be missing, a clock that stands, an unknown minimum."""
    availability, trust = config.availability, config.privacy.trust
    if availability.dropout > 0 and config.federation.quorum == 1:
        raise ConfigError(
            f"federation.quorum must be below 1 with availability.dropout = "
            f"{availability.dropout:g}, which loses answers, got 1 ({source})"
        )
    if not availability.trace:
        return
    if availability.delay_median_seconds == 0 and availability.pause_seconds == 0:
        raise ConfigError(
            "one of availability.delay_median_seconds, availability.pause_seconds must be above 0 "
            f"with availability.trace, or the simulated clock never moves, got 0 and 0 ({source})"
        )
    if trust in ("shuffle", "aggregate") and config.privacy.min_reports == 0:
        raise ConfigError(
            f"privacy.min_reports must be set with privacy.trust = {trust!r} and "
            f"availability.trace, which may leave any number of clients, got 0 ({source})"
        )


def _sentence(error: ErrorDetails) -> str:
    path = [str(part) for part in error["loc"] if not _is_type_tag(part)]
    key, value = ".".join(path), error["input"]
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, known_keys(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"unknown key {key}{hint}"
    if isinstance(value, float) and math.isnan(value):
        return f"{key} must be {_allowed(path)}, got nan"
    return f"{key} must be {_allowed(path)}, got {value!r}"


def _is_type_tag(part: int | str) -> bool:
    return isinstance(part, str) and (part.startswith("constrained") or part in ("float", "none"))


def known_keys() -> list[str]:
    """List every dotted key of the configuration, in order."""
    return list(to_flat(Config()))


def _allowed(path: Iterable[str]) -> str:
    table: type[BaseModel] = Config
    described = "a table"
    for part in path:
        field = table.model_fields.get(part)
        if field is None:
            return described
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            table, described = field.annotation, "a table"
        else:
            described = field.description or _describe(field.annotation)
    return described


def _describe(annotation: Any) -> str:
    arguments = getattr(annotation, "__args__", ())
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    for argument in arguments:
        for extra in getattr(argument, "__metadata__", ()):
            if getattr(extra, "description", None):
                return str(extra.description)
    return "a value of the documented type"
