"""One frozen, strict configuration, read from TOML, `--set` or Flower's flat run-config.

Every key has a default, so an empty file is a valid configuration. A key that is not known, a
value of the wrong type or out of range, and a contradiction between keys are refused in one
sentence that names the key, the value, what is allowed and where it was written.
"""

from fedprune.config.checks import MAY_BE_NEGATIVE
from fedprune.config.reading import from_flat, load, parse, to_flat, to_toml
from fedprune.config.tables import (
    KEEP_KEYS,
    LARGEST_NOISE_MULTIPLIER,
    LEAST_NOISE_MULTIPLIER,
    AvailabilityConfig,
    Config,
    DataConfig,
    EngineConfig,
    EvaluateConfig,
    FederationConfig,
    ModelConfig,
    PrivacyConfig,
    PruneConfig,
    Scalar,
    TrainConfig,
)
from fedprune.config.wording import known_keys

__all__ = [
    "KEEP_KEYS",
    "LARGEST_NOISE_MULTIPLIER",
    "LEAST_NOISE_MULTIPLIER",
    "MAY_BE_NEGATIVE",
    "AvailabilityConfig",
    "Config",
    "DataConfig",
    "EngineConfig",
    "EvaluateConfig",
    "FederationConfig",
    "ModelConfig",
    "PrivacyConfig",
    "PruneConfig",
    "Scalar",
    "TrainConfig",
    "from_flat",
    "known_keys",
    "load",
    "parse",
    "to_flat",
    "to_toml",
]
