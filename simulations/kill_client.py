"""Kill a deployed client at random moments around its report, let it go on, and compare.

Question: can a crash make a client send two different reports for one question, or send one that
its budget does not know of? Claim: never. Every attempt is a process of its own that answers
through Flower's ClientApp, with its own ledger, key and the operating system's randomness; this
process plays the server, writes down every byte that reaches it and asks again after every kill.

    python simulations/kill_client.py --kills 200

Kills are `kill -9`. The moments between starting and sending last very differently, so a kill
first waits for the beginning of a moment (they take turns) and then for a random share of the time
that it usually takes. Once a round is answered it is asked again, which must give the same bytes,
and with another question, which must be refused. As a control the same is done to a client that
does not store what it sends: its second reports must be noticed. (What a power cut leaves of what
was not yet on the disk is for fsync; a kill of the process does not test that.)
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict

from fedprune import __version__, models
from fedprune import config as configuration
from fedprune.errors import LedgerError
from fedprune.federated.client import app
from fedprune.federated.flower_internals import identify_server_task
from fedprune.federated.messages import Question
from fedprune.privacy import Ledger, Receipt, ThresholdResponse, verify_receipts
from fedprune.privacy.ledgers.chain import STORED
from fedprune.runs import Architecture, weights_vector

CLIENT, EPSILON, ROUNDS_A_LEDGER = 3, 4.0, 10
SETTINGS = ("data.clients=40", "model.name=mlp")
MOMENTS = ("start", "reserving", "reserved", "drawn", "stored", "sending", "sent")
OUTCOMES = ("before reserve", "reserved", "drawn", "stored", "sending", "sent")
CHUNK, LINK_SECONDS = 32, 0.001  # a slow link: bytes that leave at once, and the time they take
IDLE_SECONDS = 0.03  # a client waits for the next question
PATIENCE = 60.0  # seconds for a client to start and answer


@dataclass
class Trail:
    """What reached the server from one attempt.

    Attributes:
        marks: when each moment began, in seconds.
        wire: answers, the last one perhaps torn.
    """

    marks: dict[str, float] = field(default_factory=dict)
    wire: bytes = b""


@dataclass
class Verdict:
    """What a kill left behind.

    Attributes:
        aimed: the moment in which the kill was meant to fall.
        found: the last thing that had happened, as ledger and wire show it.
        round: of the question.
        spent, sent: epsilon that the ledger counts, and that of all rounds of which any byte came.
    """

    aimed: str
    found: str
    round: str
    spent: float
    sent: float


# The client's process.


def client_process(
    folder: str, rounds: list[tuple[str, float]], trace: Connection, wire: Connection, stores: bool
) -> None:
    """Answer questions as a SuperNode's ClientApp does, telling when each moment begins."""

    def mark(moment: str) -> None:
        trace.send((moment, time.monotonic()))

    mark("start")
    watch(mark, stores)
    identify_server_task(1)
    context = client_context(Path(folder))
    for round_name, keep in rounds:
        reply = app(Message(question(round_name, keep).to_content(), 7, "query.report"), context)
        if reply.has_error():
            answer: dict[str, Any] = {"refused": str(reply.error.reason)}
        else:
            record = reply.content.config_records["answer"]
            answer = {"report": bytes(record["report"]).hex(), "receipt": record["receipt"]}
        mark("sending")
        line = json.dumps({"round": round_name, "keep": keep, **answer}).encode() + b"\n"
        for start in range(0, len(line), CHUNK):
            os.write(wire.fileno(), line[start : start + CHUNK])
            time.sleep(LINK_SECONDS)
        mark("sent")
        time.sleep(IDLE_SECONDS)
    mark("end")


def watch(mark: Any, stores: bool) -> None:
    """Tell of the moments of a report; what the client does stays as it is, unless it forgets."""
    reserve, draw, store = (
        Ledger.reserve_many,
        ThresholdResponse.randomize_rows,
        Ledger.store_many,
    )

    def reserve_many(*arguments: Any) -> Any:
        mark("reserving")
        answers = reserve(*arguments)
        mark("reserved")
        return answers

    def randomize_rows(*arguments: Any, **named: Any) -> Any:
        drawn = draw(*arguments, **named)
        mark("drawn")
        return drawn

    def store_many(*arguments: Any) -> None:
        if stores:
            store(*arguments)
        mark("stored")

    Ledger.reserve_many = reserve_many  # type: ignore[method-assign]
    ThresholdResponse.randomize_rows = randomize_rows  # type: ignore[method-assign]
    Ledger.store_many = store_many  # type: ignore[method-assign]
    if not stores:
        Ledger.receipt = lambda *_: Forgotten()  # type: ignore[assignment,method-assign]


class Forgotten:
    """What a client that stores nothing has in place of a receipt."""

    def to_line(self) -> str:
        """Nothing."""
        return ""


def client_context(folder: Path) -> Context:
    """What a SuperNode hands to its ClientApp."""
    node = {
        "partition-id": CLIENT,
        "data-root": str(folder),
        "ledger": str(ledger_path(folder)),
        "epsilon": EPSILON * ROUNDS_A_LEDGER,
    }
    run_config = configuration.to_flat(configuration.load(None, [*SETTINGS, f"out={folder}"]))
    return Context(run_id=1, node_id=7, node_config=node, state=RecordDict(), run_config=run_config)


def question(round_name: str, keep: float) -> Question:
    """What the server asks in a round."""
    architecture = Architecture.dense("mlp", 10, (1, 8, 8))
    weights = weights_vector(models.load("mlp", num_classes=10, input_shape=(1, 8, 8), seed=1))
    return Question(
        "run",
        round_name,
        architecture,
        weights,
        {
            "criterion": "taylor",
            "fingerprint": architecture.dense_layout.fingerprint,
            "keep_units": keep,
            "floor": 1,
            "mechanism": "threshold",
            "epsilon": EPSILON,
            "block_units": 4,
            "threshold": 4,
            "units": "",
            "clients": 40,
            "ranks": "",
        },
    )


def ledger_path(folder: Path) -> Path:
    """Where the client keeps its ledger."""
    return folder / "ledger.sqlite"


# The server.


class Server:
    """Asks, kills, and remembers every byte that came."""

    def __init__(self, folder: Path, generator: random.Random, *, stores: bool = True) -> None:
        """Play the server of clients in folders below `folder`."""
        self._folder, self._generator, self._stores = folder, generator, stores
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["fedprune.federated.client"])
        self.usual = dict.fromkeys(MOMENTS, 0.1)
        self.answers: dict[str, set[str]] = {}  # round -> different reports
        self.receipts: list[str] = []
        self.torn: dict[str, list[bytes]] = {}  # round -> beginnings of answers
        self.wrong: list[str] = []
        self.refused = 0

    def learn(self, times: int) -> None:
        """Let some clients answer undisturbed, to know how long the moments usually last."""
        lasted: dict[str, list[float]] = {moment: [] for moment in MOMENTS}
        for number in range(times):
            home = self._home(f"calm-{number}")
            trail = self._attempt(home, [(f"calm-{number}", 0.5)], None)
            self._read(f"calm-{number}", trail)
            begun = [trail.marks[name] for name in (*MOMENTS, "end")]
            for moment, start, end in zip(MOMENTS, begun[:-1], begun[1:], strict=True):
                lasted[moment].append(end - start)
        self.usual = {moment: statistics.median(found) for moment, found in lasted.items()}

    def torment(self, kills: int) -> list[Verdict]:
        """Kill clients until `kills` of them died in the middle of something; finish each round."""
        verdicts: list[Verdict] = []
        number = 0
        while len(verdicts) < kills:
            home = self._home(f"ledger-{number // ROUNDS_A_LEDGER}")
            round_name = f"report-{number}"
            for _ in range(1 + self._generator.randrange(3)):
                moment = MOMENTS[len(verdicts) % len(MOMENTS)]
                verdict = self._kill(home, round_name, moment)
                if verdict is not None and len(verdicts) < kills:
                    verdicts.append(verdict)
                    self._print(len(verdicts), verdict)
            self._finish(home, round_name)
            number += 1
        return verdicts

    def _kill(self, home: Path, round_name: str, moment: str) -> Verdict | None:
        """Kill one attempt around a moment; None if it was done before the kill came."""
        trail = self._attempt(home, [(round_name, 0.5)], moment)
        if "done" in trail.marks:
            self._read(round_name, trail)
            return None
        self._read(round_name, trail)
        reserved, stored = rows_of(home, round_name)
        found = "before reserve"
        if reserved:
            found = "drawn" if "drawn" in trail.marks else "reserved"
        if stored:
            found = "stored"
        if trail.wire:
            found = "sent" if trail.wire.endswith(b"\n") else "sending"
        sent = EPSILON * len(self._rounds_sent(home))
        return Verdict(moment, found, round_name, spent_of(home), sent)

    def _finish(self, home: Path, round_name: str) -> None:
        """Ask undisturbed, again, and another question: same bytes, same bytes, refusal."""
        trail = self._attempt(home, [(round_name, 0.5), (round_name, 0.5), (round_name, 0.3)], None)
        lines = [json.loads(line) for line in trail.wire.splitlines()]
        self._read(round_name, trail)
        if len(lines) != 3 or "report" not in lines[0]:
            self.wrong.append(f"{round_name} was never answered: {lines}")
        elif "QuestionChangedError" not in lines[2].get("refused", ""):
            self.wrong.append(f"{round_name} was answered with another question too")
        else:
            self.refused += 1
        if spent_of(home) < EPSILON * len(self._rounds_sent(home)):
            self.wrong.append(f"the ledger counts less than what was sent after {round_name}")

    def _attempt(self, home: Path, rounds: list[tuple[str, float]], moment: str | None) -> Trail:
        """Run a client until it is done, or is killed around a moment."""
        trace, own_trace = self._processes.Pipe(duplex=False)
        wire, own_wire = self._processes.Pipe(duplex=False)
        process = self._processes.Process(
            target=client_process, args=(str(home), rounds, own_trace, own_wire, self._stores)
        )
        process.start()
        own_trace.close()
        own_wire.close()
        trail, deadline = Trail(), None
        give_up = time.monotonic() + PATIENCE
        open_ends = [trace, wire]
        while open_ends:
            left = (give_up if deadline is None else deadline) - time.monotonic()
            if left <= 0:
                if process.pid is None or deadline is None:
                    raise SystemExit("a client did not answer in time")
                os.kill(process.pid, signal.SIGKILL)
                left, deadline, give_up = PATIENCE, None, time.monotonic() + PATIENCE
            for end in wait(open_ends, timeout=left):
                if not listen(end, trace, trail):
                    open_ends.remove(end)
            if moment in trail.marks and deadline is None and process.exitcode is None:
                share = self._generator.uniform(0, 1.2)
                deadline = trail.marks[str(moment)] + share * self.usual[str(moment)]
                moment = None
        process.join()
        if process.exitcode == 0:
            trail.marks["done"] = time.monotonic()
        elif process.exitcode != -signal.SIGKILL:
            raise SystemExit(f"a client ended by itself with code {process.exitcode}")
        return trail

    def _read(self, round_name: str, trail: Trail) -> None:
        """Write down what came, and compare it with what came before."""
        *whole, torn = trail.wire.split(b"\n")
        known = self.answers.setdefault(round_name, set())
        for line in map(json.loads, whole):
            if "report" in line:
                if line["keep"] != 0.5:
                    self.wrong.append(f"{round_name} was answered with another question")
                known.add(json.dumps([line["report"], line["receipt"]]))
                self.receipts += [line["receipt"]] if line["receipt"] else []
        if torn:
            self.torn.setdefault(round_name, []).append(torn)
        for beginning in self.torn.get(round_name, []):
            for report, receipt in map(json.loads, known):
                answer = {"round": round_name, "keep": 0.5, "report": report, "receipt": receipt}
                if not json.dumps(answer).encode().startswith(beginning):
                    known.add(json.dumps([beginning.decode(), "torn"]))
                    break

    def _rounds_sent(self, home: Path) -> set[str]:
        """Rounds of a ledger of which any byte came."""
        first = int(home.name.rpartition("-")[2]) * ROUNDS_A_LEDGER
        mine = {f"report-{number}" for number in range(first, first + ROUNDS_A_LEDGER)}
        return {name for name in mine if self.answers.get(name) or self.torn.get(name)}

    def _home(self, name: str) -> Path:
        home = self._folder / name
        home.mkdir(exist_ok=True)
        return home

    def _print(self, number: int, verdict: Verdict) -> None:
        print(
            f"kill {number:3d}: aimed at {verdict.aimed}, was {verdict.found}, "
            f"spent {verdict.spent:g}, sent {verdict.sent:g}",
            flush=True,
        )


def listen(end: Connection, trace: Connection, trail: Trail) -> bool:
    """Take what a client says; False once it says no more."""
    try:
        if end is trace:
            moment, when = end.recv()
            trail.marks.setdefault(moment, when)
            return True
        piece = os.read(end.fileno(), 1 << 16)
    except (EOFError, ConnectionResetError):
        return False
    trail.wire += piece
    return bool(piece)


def spent_of(home: Path) -> float:
    """Epsilon that the client's ledger counts; 0 where there is no ledger yet."""
    try:
        with Ledger.open(ledger_path(home), read_only=True) as ledger:
            return ledger.epsilon_spent(str(CLIENT))
    except LedgerError:
        return 0.0


def rows_of(home: Path, round_name: str) -> tuple[bool, bool]:
    """Whether a round is reserved, and stored, in the client's ledger."""
    try:
        with Ledger.open(ledger_path(home), read_only=True) as ledger:
            stages = {entry.stage for entry in ledger.entries() if entry.round == round_name}
    except LedgerError:
        return False, False
    return bool(stages), STORED in stages


def audit(folder: Path, server: Server) -> list[str]:
    """Check all ledgers and receipts once more at the end."""
    flaws = list(server.wrong)
    by_key: dict[str, list[Receipt]] = {}
    for line in server.receipts:
        receipt = Receipt.from_line(line)
        by_key.setdefault(receipt.public_key, []).append(receipt)
    for path in sorted(folder.glob("*/ledger.sqlite")):
        with Ledger.open(path) as ledger:
            flaws += list(ledger.verify())
            own = by_key.pop(str(ledger.signing_key), [])
            flaws += [denied for receipt in own if (denied := ledger.confirms(receipt))]
        lines = [receipt.to_line() for receipt in own]
        flaws += verify_receipts(lines, budget=EPSILON * ROUNDS_A_LEDGER)
    return flaws + [f"nobody's receipts: {key[:12]}" for key in by_key]


def second_reports(server: Server) -> list[str]:
    """Rounds in which two different answers, or beginnings of answers, came."""
    return [name for name, different in server.answers.items() if len(different) > 1]


def main() -> None:
    """Torment an honest client and a forgetful one; exit 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--control-kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="results JSON to write")
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        honest, forgetful = Path(scratch) / "honest", Path(scratch) / "forgetful"
        honest.mkdir()
        forgetful.mkdir()
        server = Server(honest, generator)
        server.learn(5)
        verdicts = server.torment(arguments.kills)
        flaws = audit(honest, server)
        control = Server(forgetful, generator, stores=False)
        control.usual = server.usual
        control.torment(arguments.control_kills)
    short = [v for v in verdicts if v.spent < v.sent]
    histogram = Counter(verdict.found for verdict in verdicts)
    result: dict[str, Any] = {
        "question": __doc__.splitlines()[0],
        "kills": len(verdicts),
        "rounds": len(server.answers),
        "second_different_reports": len(second_reports(server)),
        "spent_less_than_sent": len(short),
        "changed_questions_refused": server.refused,
        "flaws": flaws,
        "killed_when": {outcome: histogram[outcome] for outcome in OUTCOMES},
        "aimed_at": dict(Counter(verdict.aimed for verdict in verdicts)),
        "usual_seconds": server.usual,
        "control": {
            "what": "the same server and a client that does not store what it sends",
            "kills": arguments.control_kills,
            "rounds": len(control.answers),
            "second_different_reports": len(second_reports(control)),
        },
        "command": f"python simulations/kill_client.py --kills {arguments.kills}",
        "seed": arguments.seed,
        "date": date.today().isoformat(),
        "versions": {"fedprune": __version__, "python": sys.version.split()[0]},
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    held = not (second_reports(server) or short or flaws) and second_reports(control)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
