"""Whether who was unavailable, dropped out or came late is what a simulation's seed draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fedprune import runs
from fedprune.audit.evidence import Evidence
from fedprune.audit.findings import Finding, check, same
from fedprune.data.availability import AvailabilityTrace, read_availability
from fedprune.privacy import Ledger
from fedprune.privacy.ledgers.chain import RESERVED
from fedprune.runs import Fates
from fedprune.runs.availability import INPUT, KEYS, REVEAL, SHARES, described

JsonDict = dict[str, Any]


def check_availability(evidence: Evidence) -> Iterator[Finding]:
    """Draw every round's availability, dropouts and stragglers again, and look at who paid."""
    if not evidence.config.availability.configured or not evidence.simulated:
        return
    yield check(
        "privacy",
        "who was unavailable, dropped out or came late is what the seed draws",
        lambda: _drawn_otherwise(evidence),
        "every training and voting round drawn again",
    )
    yield check(
        "privacy",
        "nobody unavailable was charged, and every lost report was",
        lambda: _charged_otherwise(evidence),
        "the ledger's clients, round by round",
    )
    yield check(
        "privacy",
        "the summary's totals of availability are those of the rounds",
        lambda: same(
            "availability",
            evidence.summary["availability"],
            runs.availability_totals(evidence.config, evidence.folder.events()),
        ),
        "added up",
    )


def lost_answers(evidence: Evidence) -> dict[str, frozenset[int]]:
    """Whose answers were made and lost, by round of the private path.

    Raises:
        DataError: if the run folder's own trace cannot be read.
    """
    if not evidence.config.availability.configured or not evidence.simulated:
        return {}
    return {name: frozenset(_lost(clients, one)) for name, clients, one in _redrawn(evidence)}


def _redrawn(evidence: Evidence) -> Iterator[tuple[str, Sequence[int], Fates]]:
    """Give every round's name, the clients that it was for, and their fates, drawn again."""
    config, trace = evidence.config, _trace(evidence)
    heard: dict[str, Sequence[int]] = {}
    for name, told in runs.availability_rounds(evidence.folder.events()).items():
        summed = config.privacy.trust == "aggregate" and name.startswith("report-")
        clients = _meant(evidence, name, summed, heard)
        found = runs.fates(config, name, clients, float(told["begins"]), trace, summed=summed)
        heard[name] = [c for c, there in zip(clients, found.heard.tolist(), strict=True) if there]
        yield name, clients, found


def _trace(evidence: Evidence) -> AvailabilityTrace | None:
    if not evidence.config.availability.trace:
        return None
    return read_availability(evidence.folder.path / runs.TRACE, evidence.config.data.clients)


def _meant(
    evidence: Evidence, name: str, summed: bool, heard: dict[str, Sequence[int]]
) -> Sequence[int]:
    """Whom a round is for: participants, a step's clients, or who is left of them in a sum."""
    config = evidence.config
    if name.startswith(("train-", "tune-")):
        return runs.participants(config, name)
    base, _, stage = name.partition("/")
    _, step, *rest = base.split("-")  # report-STEP, report-STEP-PHASE or masks-STEP
    ranked = runs.ranked_clients(config)[int(step) - 1]
    if not summed or stage == KEYS:
        phase = int(rest[0]) if rest else 1
        units = int(evidence.results()[f"vote-{step}"]["of"])
        phased = config.privacy.trust == "local"
        cohort = runs.step_phases(config, units, ranked)[phase - 1][0] if phased else ranked
        return sorted(cohort)
    before = {SHARES: KEYS, INPUT: SHARES, REVEAL: INPUT}[stage]
    return heard[f"{base}/{before}" if before else base]


def _lost(clients: Sequence[int], found: Fates) -> Iterator[int]:
    gone = (found.dropped | found.late).tolist()
    return (client for client, lost in zip(clients, gone, strict=True) if lost)


def _drawn_otherwise(evidence: Evidence) -> str | None:
    config, trace = evidence.config, _trace(evidence)
    rounds = runs.availability_rounds(evidence.folder.events())
    silent = _silent(evidence, rounds)
    if silent:
        return f"round {silent} does not say who was available"
    before: tuple[str, JsonDict] | None = None
    for name, clients, found in _redrawn(evidence):
        told = rounds[name]
        begins = runs.next_begin(config, before, name, clients, trace)
        wrong = same(f"round {name}", told, described(found, begins))
        if wrong:
            return wrong
        unnamed = set(_lost(clients, found)) - set(evidence.missing.get(name, ()))
        if unnamed:
            return f"client {min(unnamed)} was lost in round {name} and is not named as missing"
        before = name, told
    return None


def _silent(evidence: Evidence, rounds: dict[str, JsonDict]) -> str | None:
    """Find a training or voting round that says nothing of who was available."""
    names = {phase for phase in evidence.results() if phase.startswith(("train-", "tune-"))}
    for step in range(1, evidence.config.prune.steps + 1):
        told = evidence.results()[f"vote-{step}"]
        names |= {phase["round"] for phase in told.get("phases", ())}
    return min(names - rounds.keys(), default=None)


def _charged_otherwise(evidence: Evidence) -> str | None:
    """Compare the clients that the ledger has in every round with those that were asked."""
    written: dict[str, set[int]] = {}
    with Ledger.open(evidence.folder.path / runs.LEDGER, read_only=True) as ledger:
        for entry in ledger.entries():
            if entry.stage != RESERVED:
                written.setdefault(entry.round, set()).add(int(entry.client))
    for name, clients, found in _redrawn(evidence):
        asked = {c for c, there in zip(clients, found.available.tolist(), strict=True) if there}
        own = written.get(name, set())
        if own - asked:
            return f"client {min(own - asked)} was not available in round {name}, and was charged"
        voting = name.startswith("report-") and "/" not in name
        if voting and asked - own:
            return f"client {min(asked - own)} was asked in round {name}, and was not charged"
    return None
