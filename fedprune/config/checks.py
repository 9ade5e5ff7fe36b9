"""Contradictions between keys, each of which may well be right on its own."""

from __future__ import annotations

from fedprune.config.tables import (
    KEEP_KEYS,
    LARGEST_NOISE_MULTIPLIER,
    LEAST_NOISE_MULTIPLIER,
    Config,
    PrivacyConfig,
)
from fedprune.errors import ConfigError


def check_together(config: Config, source: str) -> None:
    """Refuse a configuration whose keys contradict each other.

    Raises:
        ConfigError: naming the keys, what they may be and the source.
    """
    _check_prune(config, source)
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
    if config.train.margin_radius and config.train.private != "off":
        raise ConfigError(
            "train.margin_radius must be 0 with DP-SGD, whose gradients are those of single "
            f"examples, got {config.train.margin_radius} with train.private = "
            f"{config.train.private!r} ({source})"
        )
    _check_fairness(config, source)
    if config.train.recalibrate and config.train.private != "off":
        raise ConfigError(
            "train.recalibrate must be 0 with DP-SGD, whose guarantee its sums would break, got "
            f"{config.train.recalibrate} with train.private = {config.train.private!r} ({source})"
        )
    noise = config.train.noise_multiplier
    if noise and not LEAST_NOISE_MULTIPLIER <= noise <= LARGEST_NOISE_MULTIPLIER:
        raise ConfigError(
            f"train.noise_multiplier must be 0 or in [{LEAST_NOISE_MULTIPLIER:g}, "
            f"{LARGEST_NOISE_MULTIPLIER:g}], got {noise!r} ({source})"
        )
    _check_criterion(config, source)
    _check_availability(config, source)


def _check_fairness(config: Config, source: str) -> None:
    """Refuse groups' weights where their count tables may not leave, or the loss is another."""
    train = config.train
    if not train.fairness_step:
        return
    if config.evaluate.tables != "unprotected":
        raise ConfigError(
            "evaluate.tables must be 'unprotected' with train.fairness_step, since every round of "
            f"fine-tuning asks for count tables, got {config.evaluate.tables!r} ({source})"
        )
    if train.margin_radius or train.private != "off":
        raise ConfigError(
            "train.fairness_step must be 0 with train.margin_radius or DP-SGD, whose losses have "
            f"no weights, got {train.fairness_step:g} ({source})"
        )


def _check_prune(config: Config, source: str) -> None:
    keeps = [f"prune.{key}" for key in KEEP_KEYS if getattr(config.prune, key) is not None]
    if len(keeps) != 1:
        found = " and ".join(keeps) if keeps else "none"
        raise ConfigError(
            f"exactly one of {', '.join(f'prune.{key}' for key in KEEP_KEYS)} must be set, got "
            f"{found} ({source})"
        )
    if (config.prune.keep_latency is None) != (config.prune.latency_table == ""):
        raise ConfigError(
            f"prune.keep_latency and prune.latency_table must be set both or neither, got "
            f"{config.prune.keep_latency} and {config.prune.latency_table!r} ({source}); "
            "`fedprune latency` measures a table"
        )
    if config.prune.fill == "value" and config.prune.scope != "global":
        raise ConfigError(
            f"prune.fill must not be 'value' with prune.scope = {config.prune.scope!r}, since it "
            f"weighs all layers ({source})"
        )
    if config.prune.schedule == "one-shot" and config.prune.steps != 1:
        raise ConfigError(
            f"prune.steps must be 1 with prune.schedule = 'one-shot', got {config.prune.steps} "
            f"({source})"
        )
    rewind = config.prune.rewind
    if rewind is not None and rewind > config.train.rounds:
        raise ConfigError(
            f"prune.rewind must be at most train.rounds = {config.train.rounds}, got {rewind} "
            f"({source})"
        )
    if config.prune.regrow and config.prune.bound_slack:
        raise ConfigError(
            "prune.bound_slack must be 0 with prune.regrow = true, whose masks are of removed "
            f"units too, got {config.prune.bound_slack:g} ({source})"
        )
    if config.prune.regrow and config.prune.steps == 1:
        raise ConfigError(
            f"prune.steps must be at least 2 with prune.regrow = true, got 1 ({source})"
        )


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


_WITHOUT_RECORDS = ("random", "linear_logits_signed")  # no bounded sum of records has them
MAY_BE_NEGATIVE = ("linear_logits_signed",)
_FLOAT32_ONLY = ("taylor_weights", "oracle")


def _check_criterion(config: Config, source: str) -> None:
    """Refuse a criterion that records cannot be summed by, or a precision that it does not have."""
    criterion = config.prune.criterion
    if config.privacy.trust == "record" and criterion in _WITHOUT_RECORDS:
        raise ConfigError(
            "prune.criterion must be one that looks at the rows and is never negative with "
            f"privacy.trust = 'record', got {criterion!r} ({source})"
        )
    if config.engine.precision != "float32" and criterion in _FLOAT32_ONLY:
        raise ConfigError(
            f"engine.precision must be 'float32' with prune.criterion = {criterion!r}, got "
            f"{config.engine.precision!r} ({source})"
        )
    if config.prune.group_scores == "off":
        return
    if config.privacy.trust == "record" or criterion in MAY_BE_NEGATIVE:
        raise ConfigError(
            "prune.group_scores must be 'off' with privacy.trust = 'record', whose sums are of "
            f"records, and with prune.criterion = {MAY_BE_NEGATIVE[0]!r}, which may be negative, "
            f"got {config.prune.group_scores!r} ({source})"
        )
    if config.engine.precision != "float32":
        raise ConfigError(
            "engine.precision must be 'float32' with prune.group_scores, got "
            f"{config.engine.precision!r} ({source})"
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
