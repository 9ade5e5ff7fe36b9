from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedprune.errors import FederationError
from fedprune.federated import processes
from fedprune.federated.processes import (
    LOOPBACK,
    Process,
    free_port,
    listens,
    program,
    require_free_port,
    running,
    tail,
)

# A program whose children leave its session, ignore SIGTERM and are orphaned.
STUBBORN = """
echo $$ >> {pids}
setsid sh -c 'trap "" TERM; echo $$ >> {pids}; while :; do sleep 0.1; done' &
(setsid sh -c 'trap "" TERM INT HUP; echo $$ >> {pids}; while :; do sleep 0.1; done' &)
while :; do sleep 0.1; done
"""


def wait_until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def numbers(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def lives(pid: int) -> bool:
    """Whether a process runs; one that is dead and only waits for its parent does not."""
    shown = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return bool(shown.stdout.strip()) and not shown.stdout.strip().startswith("Z")


def stubborn(pids: Path) -> list[str]:
    return ["sh", "-c", STUBBORN.format(pids=pids)]


@pytest.fixture
def pids(tmp_path: Path):
    path = tmp_path / "pids"
    yield path
    for pid in numbers(path):
        if lives(pid):
            os.kill(pid, signal.SIGKILL)


def all_started(pids: Path) -> bool:
    return len(numbers(pids)) == 3 and all(lives(pid) for pid in numbers(pids))


def none_left(pids: Path) -> bool:
    return not any(lives(pid) for pid in numbers(pids))


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_leaving_the_block_ends_every_descendant_whatever_it_does_about_signals(
    pids: Path, tmp_path: Path, error: type[BaseException] | None
) -> None:
    def use() -> None:
        with running("x", stubborn(pids), log=tmp_path / "log", grace_seconds=0.3) as process:
            wait_until(lambda: all_started(pids))
            assert process.alive
            assert process.pid == numbers(pids)[0]
            if error is not None:
                raise error

    if error is None:
        use()
    else:
        with pytest.raises(error):
            use()
    assert none_left(pids)


OWNER = """
import sys, time
from pathlib import Path
from fedprune.federated.processes import running
with running("x", sys.argv[2:], log=Path(sys.argv[1]), grace_seconds=0.3):
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_the_owner_is_killed(pids: Path, tmp_path: Path, number: int) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "log"), *stubborn(pids)],
        env={**os.environ, "PYTHONPATH": str(Path(processes.__file__).parents[2])},
    )
    wait_until(lambda: all_started(pids))
    owner.send_signal(number)
    owner.wait()
    wait_until(lambda: none_left(pids))


def test_what_a_killed_program_started_ends_with_it(pids: Path, tmp_path: Path) -> None:
    with running("x", stubborn(pids), log=tmp_path / "log") as process:
        wait_until(lambda: all_started(pids))
        process.kill()
        assert not process.alive
        assert process.exit_code == 128 + signal.SIGKILL
        assert none_left(pids)


def test_a_program_that_ends_by_itself_takes_its_children_along(pids: Path, tmp_path: Path) -> None:
    end = STUBBORN.rpartition("while")[0] + "sleep 0.5; exit 7"
    with running("x", ["sh", "-c", end.format(pids=pids)], log=tmp_path / "log") as process:
        assert process.wait(20) == 7
        assert len(numbers(pids)) == 3
        assert none_left(pids)


def test_a_program_that_can_end_politely_is_given_the_time(tmp_path: Path) -> None:
    polite = "trap 'sleep 0.5; echo saved; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    with running("x", ["sh", "-c", polite], log=tmp_path / "log") as process:
        wait_until(lambda: "ready" in process.lines())
    assert process.lines()[-1] == "saved"
    assert process.exit_code == 0


def test_only_what_was_started_here_is_signalled(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "600"])
    try:
        with running("x", ["sleep", "600"], log=tmp_path / "log") as process:
            assert process.pid != other.pid
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_program_gets_its_environment_and_folder_and_no_input(tmp_path: Path) -> None:
    script = "echo $FOR_IT; pwd; read line || echo no input; echo wrong >&2"
    with running(
        "x",
        ["sh", "-c", script],
        log=tmp_path / "new" / "log",
        environment={"FOR_IT": "given"},
        cwd=tmp_path,
    ) as process:
        assert process.wait(20) == 0
    assert process.lines() == ["given", str(tmp_path.resolve()), "no input", "wrong"]


def test_an_early_end_is_told_with_the_last_words_of_this_start_only(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("ERROR: of an earlier start\n")
    red = r"printf '\033[91mERROR \033[0m:   disk full\n---\n\n'; exit 3"
    with (
        pytest.raises(FederationError, match=r"ended with exit code 3 before it was up: disk full"),
        running("the thing", ["sh", "-c", red], log=log) as process,
    ):
        process.wait_for(lambda: "earlier" in "".join(process.lines()), 20, "it was up")
    assert "earlier" in log.read_text()


def test_a_silent_program_that_is_never_ready_is_told_and_stopped(tmp_path: Path) -> None:
    with (
        pytest.raises(FederationError, match=r"not ready after 0.2 seconds.*it said nothing"),
        running("the thing", ["sleep", "600"], log=tmp_path / "log") as process,
    ):
        process.wait_for(lambda: False, 0.2, "it was up")
    assert not lives(process.pid)


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(FederationError, match=r"cannot be started: /no/such: No such file"),
        running("the thing", ["/no/such"], log=tmp_path / "log"),
    ):
        pass


def test_flowers_programs_are_found_beside_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert os.access(program("flower-superlink"), os.X_OK)
    with pytest.raises(FederationError, match="command flower-nothing is missing"):
        program("flower-nothing")


def test_a_free_port_can_be_used_and_a_taken_one_is_named() -> None:
    port = free_port()
    require_free_port(port)
    assert not listens(port)
    with socket.socket() as server:
        server.bind((LOOPBACK, port))
        server.listen()
        assert listens(port)
        with pytest.raises(FederationError, match=rf"cannot listen on 127.0.0.1:{port}: .*in use"):
            require_free_port(port)
    require_free_port(port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_an_impossible_port_is_named(port: int) -> None:
    with pytest.raises(FederationError, match=f"cannot listen on 127.0.0.1:{port}"):
        require_free_port(port)


def test_the_tail_of_a_long_log_is_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(50_000)))
    assert tail(log)[-1] == "line 49999"
    assert len(tail(log)) < 50_000
    assert tail(tmp_path / "none") == []


def test_a_process_is_told_apart_from_its_guard(tmp_path: Path) -> None:
    with running("x", ["sleep", "600"], log=tmp_path / "log") as process:
        assert isinstance(process, Process)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
