from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from fedprune import progress
from fedprune.progress import Follower, Lines, Relay, from_environment


class Recorder:
    """Remembers what a reporter is told, and how far each bar came."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.open = 0

    def say(self, text: str) -> None:
        self.told.append(text)

    def track(self, items: Iterable[int], label: str, total: int) -> Iterator[int]:
        self.open += 1
        done = 0
        try:
            for item in items:
                yield item
                done += 1
        finally:
            self.open -= 1
            self.told.append((label, done, total))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "progress.jsonl"


def test_what_a_relay_is_told_is_replayed_in_the_same_order(path: Path) -> None:
    direct, replayed = Recorder(), Recorder()
    follower = Follower(path, replayed)
    for reporter in (direct, Relay(path)):
        reporter.say("one\nline, and ünïcode")
        assert list(reporter.track(range(5), "all", 5)) == [0, 1, 2, 3, 4]
        assert list(reporter.track([], "none", 0)) == []
        for item in reporter.track(range(5), "half", 5):
            if item == 3:
                break
        gc.collect()
        reporter.say("end")
    follower.pump()
    assert replayed.told == direct.told
    assert replayed.open == 0


def test_a_failure_is_carried_over_and_not_taken_for_a_line(path: Path) -> None:
    recorder = Recorder()
    follower = Follower(path, recorder)
    assert follower.failure is None
    Relay(path).fail("data.root is missing")
    follower.pump()
    assert follower.failure == "data.root is missing"
    assert recorder.told == []


def test_a_follower_starts_where_the_file_ends_and_waits_for_whole_lines(path: Path) -> None:
    Relay(path).say("of an earlier run")
    recorder = Recorder()
    follower = Follower(path, recorder)
    line = json.dumps({"say": "whole"}) + "\n"
    with open(path, "a", encoding="utf-8") as file:
        file.write(line[:5])
        file.flush()
        follower.pump()
        assert recorder.told == []
        file.write(line[5:])
    follower.pump()
    follower.pump()
    assert recorder.told == ["whole"]


def test_a_bar_whose_process_died_is_taken_down(path: Path) -> None:
    recorder = Recorder()
    follower = Follower(path, recorder)
    begun = Relay(path).track(range(9), "rounds", 9)
    next(begun)
    follower.pump()
    assert recorder.open == 1
    follower.close()
    assert recorder.open == 0
    begun.close()


@pytest.mark.parametrize(("there", "total"), [(3, 5), (7, 5)])
def test_a_wrong_total_breaks_nothing(path: Path, there: int, total: int) -> None:
    recorder = Recorder()
    follower = Follower(path, recorder)
    assert len(list(Relay(path).track(range(there), "rounds", total))) == there
    follower.pump()
    assert recorder.told == [("rounds", min(there, total), total)]


def test_counts_arrive_while_the_work_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_RELAY_SECONDS", 0.0)
    relay = Relay(path)
    seen = [path.read_text().splitlines()[-1] for _ in relay.track(range(3), "rounds", 3)]
    assert [json.loads(event).get("done") for event in seen] == [None, 1, 2]


def test_what_was_written_last_is_not_lost_when_following_ends(path: Path) -> None:
    recorder = Recorder()
    follower = Follower(path, recorder)
    relay = Relay(path)
    assert list(relay.track(range(3), "rounds", 3)) == [0, 1, 2]
    relay.fail("no clients")
    follower.close()
    assert follower.failure == "no clients"
    assert recorder.told == [("rounds", 3, 3)]
    assert recorder.open == 0


def test_the_environment_decides_between_a_file_and_plain_lines(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(progress.PROGRESS_VARIABLE, raising=False)
    lines = from_environment()
    assert isinstance(lines, Lines)
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    lines.say("begin")
    assert list(lines.track("ab", "rounds", 2)) == ["a", "b"]
    lines.fail("no")
    assert capsys.readouterr().out.splitlines() == [
        "begin",
        "rounds 1/2",
        "rounds 2/2",
        "error: no",
    ]
    monkeypatch.setenv(progress.PROGRESS_VARIABLE, str(path))
    from_environment().say("into the file")
    assert json.loads(path.read_text()) == {"say": "into the file"}
