"""Availability traces: who is there when, against a loop over the lines; and bad files."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.data.availability import parse_availability, read_availability
from fedprune.errors import DataError

Interval = tuple[int, float, float]
CLIENTS = 5


@st.composite
def traces(draw: st.DrawFn) -> list[Interval]:
    """Disjoint intervals, some of which touch, in any order."""
    found: list[Interval] = []
    for client in range(CLIENTS):
        cuts = sorted(draw(st.sets(st.integers(0, 40), max_size=8)))
        found += [(client, a, b) for a, b in pairwise(cuts) if draw(st.booleans())]
    return draw(st.permutations(found))


def text_of(intervals: list[Interval]) -> str:
    lines = [f"{client},{start},{end}" for client, start, end in intervals]
    return "\n".join(["client,start,end", *lines, ""])


def leaves_by_walking(intervals: list[Interval], client: int, time: int) -> float:
    """Walk second by second over the repeated trace until the client is not there."""
    period = max(end for _, _, end in intervals)
    own = [(a, b) for c, a, b in intervals if c == client]
    now = time
    while any(a <= now % period < b for a, b in own):
        now += 1
        if now > time + 3 * period:
            return math.inf
    return now if now > time else math.nan


@given(intervals=traces().filter(len), time=st.integers(0, 130))
def test_who_is_there_and_until_when_is_what_walking_through_the_lines_finds(
    intervals: list[Interval], time: int
) -> None:
    trace = parse_availability(text_of(intervals), "t.csv", CLIENTS)
    wanted = [leaves_by_walking(intervals, client, time) for client in range(CLIENTS)]
    np.testing.assert_array_equal(trace.until(float(time)), wanted)


@given(intervals=traces().filter(len), time=st.integers(0, 130), client=st.integers(0, CLIENTS - 1))
def test_the_next_arrival_is_the_first_second_at_which_a_client_is_there(
    intervals: list[Interval], time: int, client: int
) -> None:
    trace = parse_availability(text_of(intervals), "t.csv", CLIENTS)
    seconds = range(time, time + 2 * int(trace.period) + 1)
    there = (t for t in seconds if not math.isnan(trace.until(float(t))[client]))
    assert trace.next_arrival(float(time), [client]) == next(there, math.inf)


def test_the_share_is_the_part_of_the_time_that_named_clients_are_there() -> None:
    trace = parse_availability("client,start,end\n0,0,10\n2,5,20\n0,15,20\n", "t.csv", 9)
    assert trace.share == pytest.approx((10 + 5 + 15) / (2 * 20))


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("", r"t\.csv line 1: the header must be client,start,end, got ''"),
        ("id,from,to\n0,1,2", r"t\.csv line 1: the header must be client,start,end"),
        ("client,start,end\n", r"t\.csv has no interval"),
        ("client,start,end\n0,1,2\n\n0,5", r"t\.csv line 4: client,start,end are needed, got 2"),
        ("client,start,end\n0,1,2,3", r"t\.csv line 2: .* got 4 fields"),
        ("client,start,end\n0,one,2", r"t\.csv line 2: a whole number and two numbers .*0,one,2"),
        ("client,start,end\n0.5,1,2", r"t\.csv line 2: a whole number and two numbers"),
        ("client,start,end\n0,1,2\n5,1,2", r"t\.csv line 3: client must be one of 0 to 4 .*got 5"),
        ("client,start,end\n-1,1,2", r"t\.csv line 2: client must be one of 0 to 4"),
        ("client,start,end\n0,-1,2", r"t\.csv line 2: start must be at least 0 and below end"),
        ("client,start,end\n0,2,2", r"t\.csv line 2: start must be at least 0 and below end"),
        ("client,start,end\n0,3,2", r"t\.csv line 2: start must be at least 0 and below end"),
        ("client,start,end\n0,0,nan", r"t\.csv line 2: start must be at least 0 .* both finite"),
        ("client,start,end\n0,0,inf", r"t\.csv line 2: start must be at least 0 .* both finite"),
        (
            "client,start,end\n1,0,9\n0,5,9\n1,20,30\n0,1,6",
            r"t\.csv line 5: an interval of client 0 overlaps the one in line 3",
        ),
    ],
)
def test_a_malformed_trace_is_refused_in_one_sentence_with_file_and_line(
    lines: str, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(lines)
    with pytest.raises(DataError, match=sentence) as refused:
        read_availability(path, CLIENTS)
    assert "\n" not in str(refused.value)


def test_a_trace_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*gone\.csv"):
        read_availability(tmp_path / "gone.csv", CLIENTS)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00client")
    with pytest.raises(DataError, match=r"cannot read .*binary\.csv"):
        read_availability(tmp_path / "binary.csv", CLIENTS)


def test_a_byte_order_mark_windows_lines_and_spaces_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("\ufeffclient, start, end\r\n3, 1, 2.5\r\n".encode())
    trace = read_availability(path, CLIENTS)
    assert trace.until(1.0)[3] == 2.5
    assert np.isnan(trace.until(0.0)).all()
