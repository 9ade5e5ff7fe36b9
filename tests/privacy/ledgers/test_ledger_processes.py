"""Several processes, kills, and files that fail: nothing is spent twice or half-written."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedprune.errors import LedgerError
from fedprune.privacy import Budget, Entry, Granted, Ledger, Memoised
from fedprune.privacy.budgets.events import REPLACEMENT
from fedprune.privacy.ledgers import ledger as ledger_module
from fedprune.privacy.ledgers.chain import RESERVED, STORED


def entry(round_: str = "r1", client: str = "0", epsilon: float = 1.0) -> Entry:
    return Entry(client, "run", round_, "mask-report", "q", REPLACEMENT, epsilon)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def answer_fully(ledger: Ledger, round_: str, report: bytes) -> None:
    if not isinstance(ledger.reserve(entry(round_)), Memoised):
        ledger.store(entry(round_), report)


def fill(ledger: Ledger, told: list[str]) -> None:
    for number in range(10_000):
        answer_fully(ledger, f"r{number}", b"x" * 1000)
        told.append(f"r{number}")


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_cannot_spend_one_budget_twice(path: Path) -> None:
    Ledger.open(path, budget=Budget(40.0)).close()
    script = textwrap.dedent(
        """
        import sys
        from fedprune.errors import BudgetExceededError
        from fedprune.privacy import Entry, Ledger
        granted = 0
        with Ledger.open(sys.argv[1]) as ledger:
            for i in range(30):
                try:
                    ledger.reserve(Entry("0", "run", f"{sys.argv[2]}-{i}", "mask-report", "q",
                                         "replacement", 1.0))
                    granted += 1
                except BudgetExceededError:
                    pass
        print(granted)
        """
    )
    processes = [start(script, path, name) for name in ("a", "b")]
    granted = [int(process.communicate()[0]) for process in processes]
    assert sum(granted) == 40
    with Ledger.open(path) as ledger:
        assert ledger.spent("0") == 40
        assert list(ledger.verify()) == []


def test_a_killed_process_leaves_a_ledger_that_counts_what_was_reserved(path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from fedprune.privacy import Budget, Entry, Ledger
        ledger = Ledger.open(sys.argv[1], budget=Budget(1000.0))
        for i in range(10000):
            e = Entry("0", "run", str(i), "mask-report", "q", "replacement", 0.5)
            ledger.reserve(e)
            print(i, flush=True)
            ledger.store(e, b"x")
        """
    )
    process = start(script, path)
    assert process.stdout is not None
    for _ in range(25):
        announced = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.communicate()
    with Ledger.open(path) as ledger:
        assert list(ledger.verify()) == []
        assert ledger.spent("0") >= (announced + 1) * 0.5


HAMMER = """
    import sys
    import numpy as np
    from fedprune.errors import LedgerError, PrivacyError
    from fedprune.privacy import Budget, Entry, Ledger, Memoised
    path, name = sys.argv[1], int(sys.argv[2])
    template = Entry("all", "run", "r", "mask-report", "q", "replacement", 1.0)
    rng = np.random.default_rng(name)
    with Ledger.open(path, budget=Budget(1.0)) as ledger:
        for i in range(40):
            clients = rng.choice(400, 30, replace=False)
            answer = ledger.reserve_cohort(template, clients)
            mine = clients[answer.granted]
            fresh = mine[~answer.resumed]
            report = np.full((len(fresh), 3), name, dtype=np.uint8)
            if i % 2:
                ledger.store_cohort(template, fresh, report)
            else:
                ledger.store_many([
                    (Entry(str(c), *template.key[1:], *template.asked[:4]), bytes(r))
                    for c, r in zip(fresh, report)
                ])
            for c, r in zip(fresh, report):
                print(c, bytes(r).hex())
"""


def test_processes_that_hammer_one_ledger_answer_every_client_once(path: Path) -> None:
    processes = [start(HAMMER, path, name) for name in range(3)]  # one of them makes the file
    drawn: dict[str, str] = {}
    for process in processes:
        told, failed = process.communicate()
        assert process.returncode == 0, failed
        for line in told.splitlines():
            client, report = line.split()
            assert client not in drawn
            drawn[client] = report
    with Ledger.open(path) as ledger:
        assert list(ledger.verify()) == []
        stored = {e.client: e.report.hex() for e in ledger.entries() if e.stage == STORED}
        reserved = [e.client for e in ledger.entries() if e.stage == RESERVED]
    assert stored == drawn
    assert sorted(reserved) == sorted(stored)
    assert len(stored) > 390


def test_what_another_process_wrote_is_seen_before_anything_is_decided(path: Path) -> None:
    template = entry(client="all")
    with Ledger.open(path, budget=Budget(1.0)) as one, Ledger.open(path) as two:
        assert one.reserve(entry(client="3")) == Granted()
        assert two.reserve(entry(client="3")) == Granted(resumed=True)
        two.store(entry(client="3"), b"ab")
        assert one.reserve(entry(client="3")) == Memoised(b"ab")
        with pytest.raises(LedgerError, match="can be stored once"):
            one.store(entry(client="3"), b"cd")
        answer = one.reserve_cohort(template, [1, 2, 3, 4])
        assert (answer.granted.tolist(), answer.reports) == ([0, 1, 3], (b"ab",))
        two.store_cohort(template, [4, 2], [b"44", b"22"])
        answer = one.reserve_cohort(template, [1, 2, 3, 4])
        assert answer.granted.tolist() == [0]
        assert answer.resumed.all()
        assert answer.reports == (b"22", b"ab", b"44")
        assert two.reserve(entry(client="2")) == Memoised(b"22")
        assert one.spent("2") == two.spent("2") == 1
        assert list(one.verify()) == []


def test_a_file_that_was_replaced_while_it_was_open_is_refused(path: Path) -> None:
    with Ledger.open(path, budget=Budget(9.0)) as ledger:
        ledger.reserve(entry("r1"))
        with sqlite3.connect(path) as raw:
            raw.execute("DELETE FROM entries")
        raw.close()
        with pytest.raises(LedgerError, match="changed while it was open"):
            ledger.reserve(entry("r2"))


def test_a_locked_ledger_is_refused_in_one_sentence(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_BUSY_SECONDS", 0.05)
    with Ledger.open(path, budget=Budget(9.0)) as ledger:
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="cannot be used: database is locked"):
            ledger.reserve(entry())
        blocker.execute("ROLLBACK")
        blocker.close()
        assert ledger.reserve(entry()) == Granted()


def test_a_full_disk_refuses_and_what_was_written_before_stands(path: Path) -> None:
    with Ledger.open(path, budget=Budget(1e6)) as ledger:
        ledger.reserve(entry("kept"))
        ledger.store(entry("kept"), b"k" * 1000)
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count = {pages + 3}")
        with pytest.raises(LedgerError, match="cannot be used: database or disk is full"):
            fill(ledger, told := [])
        stored = len(told)
        rows, spent = ledger.head[0], ledger.spent("0")
        assert rows - 2 in (2 * stored, 2 * stored + 1)
        assert spent >= stored + 1
        assert ledger.reserve(entry("kept")) == Memoised(b"k" * 1000)
        ledger._connection.execute("PRAGMA max_page_count = 1000000")
        answer = ledger.reserve(entry(f"r{stored}"))  # space was made: it goes on
        assert answer == Granted(resumed=bool(rows % 2))
        ledger.store(entry(f"r{stored}"), b"late")
        assert list(ledger.verify()) == []


def test_a_file_size_limit_of_the_operating_system_leaves_a_sound_ledger(path: Path) -> None:
    script = """
        import resource, signal, sys
        from fedprune.errors import LedgerError
        from fedprune.privacy import Budget, Entry, Ledger
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        ledger = Ledger.open(sys.argv[1], budget=Budget(1e6), head_copy=sys.argv[2])
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        for i in range(1000):
            e = Entry("0", "run", str(i), "mask-report", "q", "replacement", 1.0)
            try:
                ledger.reserve(e)
                ledger.store(e, b"x" * 5000)
            except LedgerError as error:
                print(error)
                break
            print("sent", i)
    """
    told, failed = start(script, path, path.with_name("head")).communicate()
    assert failed == ""
    lines = told.splitlines()
    assert "cannot be used" in lines[-1]
    sent = len(lines) - 1
    assert sent > 5
    with Ledger.open(path, head_copy=path.with_name("head")) as ledger:
        assert list(ledger.verify()) == []
        assert ledger.spent("0") >= sent
        for number in range(sent):
            assert ledger.reserve(entry(str(number))) == Memoised(b"x" * 5000)


def test_a_file_that_was_truncated_anywhere_never_spends(path: Path, tmp_path: Path) -> None:
    with Ledger.open(path, budget=Budget(1e6)) as ledger:
        for number in range(30):
            ledger.reserve(entry(str(number)))
            ledger.store(entry(str(number)), b"x" * 3000)
        head = ledger.head
    whole = path.read_bytes()
    refused = 0
    for size in np.linspace(0, len(whole) - 1, 40).astype(int).tolist():
        cut = tmp_path / "cut.sqlite"
        cut.write_bytes(whole[:size])
        try:
            with Ledger.open(cut) as ledger:
                sound = ledger.head == head and not list(ledger.verify())
                answer = ledger.reserve(entry("0"))
                assert sound
                assert answer == Memoised(b"x" * 3000)
        except LedgerError as error:
            refused += str(error).isprintable()
        for suffix in ("-wal", "-shm"):
            Path(f"{cut}{suffix}").unlink(missing_ok=True)
    assert refused >= 38


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that a user without rights can reach."""
    folder = Path(tempfile.mkdtemp(prefix="fedprune-"))
    folder.chmod(0o777)
    yield folder
    folder.chmod(0o777)
    shutil.rmtree(folder)


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Run without the administrator's rights, who may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.usefixtures("as_nobody")
def test_a_folder_that_cannot_be_written_is_refused_in_one_sentence(open_folder: Path) -> None:
    path, head = open_folder / "ledger.sqlite", open_folder / "head"
    with Ledger.open(path, budget=Budget(9.0), head_copy=head) as ledger:
        ledger.reserve(entry())
        ledger.store(entry(), b"kept")
    path.chmod(0o400)
    os.seteuid(os.getuid())
    open_folder.chmod(0o555)
    if os.getuid() == 0:
        os.seteuid(65534)
    with pytest.raises(LedgerError, match="cannot be used"), Ledger.open(path) as ledger:
        ledger.reserve(entry("r2"))
    with pytest.raises(LedgerError, match="cannot be used: unable to open"):
        Ledger.open(open_folder / "new.sqlite", budget=Budget(9.0))
    assert sorted(p.name for p in open_folder.iterdir()) == ["head", "ledger.sqlite"]
    with Ledger.open(path, read_only=True, head_copy=head) as ledger:
        assert list(ledger.verify()) == []


# The owner's copy of the head.


def spend(path: Path, rounds: range, head: Path | None = None) -> None:
    with Ledger.open(path, budget=Budget(9.0), head_copy=head) as ledger:
        for number in rounds:
            answer_fully(ledger, f"r{number}", b"report")


def restore(backup: Path, path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    shutil.copy(backup, path)


def test_a_restored_backup_is_refused_by_the_head_copy(path: Path, tmp_path: Path) -> None:
    head, backup = tmp_path / "elsewhere", tmp_path / "backup"
    spend(path, range(2), head)
    shutil.copy(path, backup)
    spend(path, range(2, 3), head)
    spend(path, range(2, 3), head)  # the present one is fine
    restore(backup, path)
    for options in ({"budget": Budget(9.0)}, {"read_only": True}, {}):
        with pytest.raises(
            LedgerError, match=r"is refused: row 6 is not in the ledger, which has 4: it was rolled"
        ):
            Ledger.open(path, head_copy=head, **options)
    with Ledger.open(path) as ledger:  # by itself it is fine: that is what the copy is for
        assert list(ledger.verify()) == []
        assert "rolled back" in str(ledger.rolled_back(head))
        ledger.reserve(entry("another"))
        ledger.reserve(entry("history"))
        assert "another hash: it was rewritten" in str(ledger.rolled_back(head))


def test_a_ledger_that_was_deleted_or_begun_anew_is_refused(path: Path, tmp_path: Path) -> None:
    head = tmp_path / "elsewhere"
    spend(path, range(1), head)
    path.unlink()
    with pytest.raises(LedgerError, match=r"names row 2: it was deleted or moved; restore it"):
        Ledger.open(path, budget=Budget(9.0), head_copy=head)
    assert not path.exists()
    spend(path, range(0))
    with pytest.raises(LedgerError, match="row 2 is not in the ledger, which has 0"):
        Ledger.open(path, budget=Budget(9.0), head_copy=head)
    path.unlink()
    Ledger.open(path, budget=Budget(8.0)).close()
    with pytest.raises(LedgerError, match="is of a ledger on other terms"):
        Ledger.open(path, budget=Budget(8.0), head_copy=head)


def test_a_crash_between_the_commit_and_the_copy_locks_nobody_out(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = tmp_path / "elsewhere"

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with Ledger.open(path, budget=Budget(9.0), head_copy=head) as ledger:
        ledger.reserve(entry())
        with monkeypatch.context() as patched:
            patched.setattr("fedprune.privacy.ledgers.ledger_writer.write_head", crash)
            with pytest.raises(KeyboardInterrupt):
                ledger.store(entry(), b"stored but not sent")
    before = head.read_bytes()
    with Ledger.open(path, budget=Budget(9.0), head_copy=head) as ledger:
        assert head.read_bytes() != before  # caught up before anything may be sent
        assert ledger.rolled_back(head) is None
        assert ledger.reserve(entry()) == Memoised(b"stored but not sent")


def test_what_may_be_sent_is_named_by_the_copy_when_the_call_returns(
    path: Path, tmp_path: Path
) -> None:
    head = tmp_path / "elsewhere"
    with (
        Ledger.open(path, budget=Budget(9.0), head_copy=head) as one,
        Ledger.open(path, head_copy=head) as two,
        Ledger.open(path) as careless,
    ):
        for round_, ledger in (("r1", one), ("r2", two), ("r3", one)):
            ledger.reserve(entry(round_))
            ledger.store(entry(round_), b"x")
            assert f'"hash": "{ledger.head[1]}"' in head.read_text()
        careless.reserve(entry("r4"))
        careless.store(entry("r4"), b"x")
        assert two.reserve(entry("r4")) == Memoised(b"x")
        assert f'"hash": "{two.head[1]}"' in head.read_text()
        one.record_unprotected([replace(entry("t"), relation="unprotected", epsilon=0.0, event="")])
        assert f'"hash": "{one.head[1]}"' in head.read_text()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"null", b"\xff", b'{"ledger": 1, "rows": 2, "hash": 3}', b"[" * 10_000]
)
def test_a_head_copy_that_cannot_be_read_is_refused_not_replaced(
    path: Path, tmp_path: Path, content: bytes
) -> None:
    head = tmp_path / "elsewhere"
    spend(path, range(1), head)
    head.write_bytes(content)
    with pytest.raises(LedgerError, match=r"the head copy .* is damaged"):
        Ledger.open(path, head_copy=head)
    assert head.read_bytes() == content


def test_a_head_copy_that_cannot_be_written_lets_nothing_be_sent(
    path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "share"
    folder.mkdir()
    with Ledger.open(path, budget=Budget(9.0), head_copy=folder / "head") as ledger:
        ledger.reserve(entry())
        shutil.rmtree(folder)  # the share went away
        with pytest.raises(LedgerError, match=r"cannot write the head copy .*; nothing is sent"):
            ledger.store(entry(), b"x")
        folder.mkdir()
        assert ledger.reserve(entry()) == Memoised(b"x")
        assert ledger.rolled_back(folder / "head") is None
