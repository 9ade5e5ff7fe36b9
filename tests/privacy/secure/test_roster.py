"""Rosters: what is read, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedprune.errors import PrivacyError
from fedprune.privacy.ledgers.keys import SigningKey
from fedprune.privacy.secure.roster import read_roster

KEY, OTHER = "ab" * 32, "cd" * 32


def test_a_roster_gives_every_client_its_public_key(tmp_path: Path) -> None:
    keys = {str(c): SigningKey.open(tmp_path / f"{c}.key").public for c in (0, 7)}
    (tmp_path / "roster.json").write_text(json.dumps(keys))
    assert read_roster(tmp_path / "roster.json") == {0: keys["0"], 7: keys["7"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no JSON table"),
        ("[]", "no JSON table"),
        ("{}", "no JSON table"),
        ("[" * 100_000, "no JSON table"),
        (json.dumps({"0": KEY.upper()}), "64 lower-case"),
        (json.dumps({"0": KEY[:-1]}), "64 lower-case"),
        (json.dumps({"0": 5}), "64 lower-case"),
        (json.dumps({"-1": KEY}), "64 lower-case"),
        (json.dumps({"01": KEY}), "64 lower-case"),
        (json.dumps({"²": KEY}), "64 lower-case"),
        (json.dumps({"one": KEY, "2": OTHER}), "'one'"),
        (json.dumps({"0": KEY, "1": KEY}), "two clients the same key"),
    ],
)
def test_a_file_that_is_no_roster_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "roster.json"
    path.write_text(content)
    with pytest.raises(PrivacyError, match=message):
        read_roster(path)


def test_a_missing_roster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="cannot read the roster"):
        read_roster(tmp_path / "nowhere.json")
