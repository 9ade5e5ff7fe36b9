"""The configuration is strict, says where it is wrong, and has one meaning in all its forms."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import pytest

from fedprune import config as configuration
from fedprune.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("prune.keep_unit=0.3", r"unknown key prune\.keep_unit; did you mean prune\.keep_units\?"),
        ("nothing=1", "unknown key nothing"),
        ("prune.keep_units=1.3", r"prune\.keep_units must be a number in \(0, 1\], got 1\.3"),
        ("prune.keep_units=0", r"got 0"),
        ("prune.keep_units=half", r"must be a number in \(0, 1\], got 'half'"),
        ("privacy.epsilon=nan", r"privacy\.epsilon must be a number in \[1e-6, 64\], got nan"),
        ("privacy.epsilon=-1", r"privacy\.epsilon must be"),
        ("privacy.delta=1e-5", r"privacy\.delta must be 0 with privacy\.trust = 'local'"),
        ("privacy.delta=1", r"privacy\.delta must be a number in \[0, 0\.1\), got 1"),
        ("privacy.trust=shuffle", r"privacy\.delta must be above 0 with privacy\.trust = 'shuff"),
        ("privacy.trust=locl", "one of 'local', 'shuffle', .*got 'locl'"),
        ("privacy.phases=201", r"privacy\.phases must be a whole number in \[1, 16\]"),
        ("privacy.min_reports=201", r"privacy\.min_reports must be at most the 200 clients"),
        ("train.noise_multiplier=0.01", r"noise_multiplier must be 0 or in \[0\.015625, 65536\]"),
        ("privacy.colluding=2", r"privacy\.colluding must be 0 with privacy\.trust = 'local'"),
        ("train.sample_rate=0", r"train\.sample_rate must be a number in \(0, 1\]"),
        ("data.clients=1.5", r"data\.clients must be a whole number of at least 1, got 1\.5"),
        ("data.clients=true", "got True"),
        ("data.clients=0", "got 0"),
        ("evaluate.baselines=1", "must be true or false, got 1"),
        ("data=3", "data must be a table, got 3"),
        ("prune.steps=2", r"prune\.steps must be 1 with prune\.schedule = 'one-shot'"),
        ("train.learning_rate=inf", "a number above 0"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_its_range_and_its_place(
    override: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        configuration.load(None, [override])
    assert f"--set {override}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_named_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[prune]\nkeep_units = 1.3\n")
    with pytest.raises(ConfigError, match=r"got 1\.3 \(.*x\.toml\)"):
        configuration.load(path)
    path.write_text("[prune\n")
    with pytest.raises(ConfigError, match=r"x\.toml is not valid TOML"):
        configuration.load(path)
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        configuration.load(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="wants key=value"):
        configuration.load(None, ["prune.keep_units"])


def test_exactly_one_budget_is_set_and_a_later_source_replaces_it(tmp_path: Path) -> None:
    assert configuration.load(None, ["prune.keep_macs=0.4"]).prune.budget == ("keep_macs", 0.4)
    path = tmp_path / "x.toml"
    path.write_text("[prune]\nkeep_units = 0.3\nkeep_macs = 0.4\n")
    with pytest.raises(ConfigError, match=r"exactly one of .* got prune\.keep_units and"):
        configuration.load(path)


def test_every_form_of_a_configuration_means_the_same() -> None:
    config = configuration.load(None, ["prune.keep_params=0.25", "seed=7"])
    assert configuration.from_flat(configuration.to_flat(config)) == config
    written = tomllib.loads(configuration.to_toml(config))
    assert configuration.parse(written, "test") == config
    assert set(configuration.to_flat(config)) == set(configuration.known_keys())


def test_a_flat_configuration_with_a_wrong_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown key data\.client.*Flower's run-config"):
        configuration.from_flat({"data.client": 3})


def test_the_flower_app_of_this_repository_has_the_built_in_default() -> None:
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    flower = pyproject["tool"]["flwr"]["app"]["config"]
    flat = {
        (f"{table}.{key}" if isinstance(values, dict) else table): value
        for table, values in flower.items()
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
    default = configuration.load()
    assert configuration.from_flat(flat) == default
    assert flat == {**configuration.to_flat(default), "prune.keep_units": ""}  # unset: default's


@pytest.mark.parametrize("key", configuration.KEEP_KEYS)
def test_a_flat_configuration_may_choose_any_budget_or_none(key: str) -> None:
    flat = {**configuration.to_flat(configuration.load()), "prune.keep_units": ""}
    assert configuration.from_flat(flat).prune.budget == ("keep_units", 0.5)
    if key == "keep_latency":
        flat["prune.latency_table"] = "table.json"
    assert configuration.from_flat({**flat, f"prune.{key}": 0.3}).prune.budget == (key, 0.3)


def test_the_default_is_written_out_in_configs_and_all_configs_are_valid() -> None:
    shipped = resources.files("fedprune").joinpath("default.toml").read_text()
    digits = (REPOSITORY / "configs" / "digits.toml").read_text()
    assert tomllib.loads(shipped) == tomllib.loads(digits)
    for path in (REPOSITORY / "configs").glob("*.toml"):
        configuration.load(path)


@pytest.mark.parametrize("text", [".25", "0.25", "25e-2", "+.25"])
def test_a_number_may_be_written_as_people_write_it(text: str) -> None:
    config = configuration.load(None, [f"prune.keep_units={text}"])
    assert config.prune.keep_units == 0.25
