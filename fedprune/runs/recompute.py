"""Figures that follow from a run folder alone: the run writes them, an auditor repeats them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedprune import config as configuration
from fedprune import fairness, privacy, robustness
from fedprune.config import Config
from fedprune.errors import UnsupportedOpError
from fedprune.privacy import Ledger
from fedprune.privacy.accounting import CLIENT, REPLACEMENT
from fedprune.privacy.chain import RESERVED, STORED
from fedprune.randomness import SimulationRandomness
from fedprune.runs.folder import RunFolder
from fedprune.runs.receipts import RECEIPTS, read_receipts, receipts_contradiction

JsonDict = dict[str, Any]

SEALED = (
    "config.toml",
    "dense.safetensors",
    "model.safetensors",
    "architecture.json",
    "layout.json",
    "votes.safetensors",
    "tables.json",
    "margins.safetensors",
    RECEIPTS,
)


LEDGER = "ledger.sqlite"
_NONCE = re.compile("-[0-9a-f]{8}")


@dataclass(frozen=True)
class LedgerTotals:
    """What a ledger, or the receipts of many, add up to.

    Attributes:
        kinds: of all messages in it.
        reserved, stored: events charged, and reports with their bytes; receipts are given for
            stored reports only, so there both are the same.
        max_epsilon_spent: largest sum of any client; None where nothing was charged.
        clients: how many clients have a row or a receipt.
    """

    kinds: frozenset[str]
    reserved: int
    stored: int
    max_epsilon_spent: float | None
    clients: int


def run_id(config: Config) -> str:
    """Name a run in ledgers: a digest of its configuration, wherever its folder lies.

    A deployed run adds "-" and a nonce of eight hexadecimal digits, since its clients' randomness
    is their own and no two runs are the same.
    """
    text = configuration.to_toml(config.model_copy(update={"out": ""}))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_run_of(name: object, config: Config, simulated: bool) -> bool:
    """Whether a run's name is one that this configuration gives."""
    stem = run_id(config)
    if simulated:
        return name == stem
    return isinstance(name, str) and name[:16] == stem and bool(_NONCE.fullmatch(name[16:]))


def seal(folder: RunFolder) -> dict[str, str]:
    """SHA-256 of every file of the run that its figures are computed from."""
    present = [name for name in SEALED if folder.has(name)]
    return {name: hashlib.sha256((folder.path / name).read_bytes()).hexdigest() for name in present}


def ledger_totals(folder: RunFolder) -> LedgerTotals:
    """Add up the ledger of a simulated run, or the receipts of a deployed one.

    Raises:
        LedgerError: if what is there cannot be read.
        RunError: if neither is there.
    """
    if folder.has(LEDGER):
        return _totals_of_ledger(folder)
    receipts = read_receipts(folder)
    spent = privacy.epsilon_of(receipts)
    charged = {receipt.entry.key for receipt in receipts if receipt.charged}
    return LedgerTotals(
        kinds=frozenset(receipt.kind for receipt in receipts),
        reserved=len(charged),
        stored=len(charged),
        max_epsilon_spent=max(map(float, spent.values()), default=None),
        clients=len({receipt.client for receipt in receipts}),
    )


def _totals_of_ledger(folder: RunFolder) -> LedgerTotals:
    kinds, clients, reserved, stored = set(), set(), 0, 0
    spent: dict[str, list[float]] = {}
    with Ledger.open(folder.path / LEDGER, read_only=True) as ledger:
        for entry in ledger.entries():
            kinds.add(entry.kind)
            clients.add(entry.client)
            stored += entry.stage == STORED
            if entry.stage == RESERVED:
                reserved += 1
                spent.setdefault(entry.client, []).append(entry.epsilon)
    largest = max((float(privacy.compose_pure(values)) for values in spent.values()), default=None)
    return LedgerTotals(frozenset(kinds), reserved, stored, largest, len(clients))


def privacy_figures(folder: RunFolder, config: Config, simulated: bool) -> JsonDict:
    """Say what the ledger adds up to: epsilon spent, reports, and what no epsilon covers.

    Of a deployed run the figures follow from the clients' receipts, and `basis` says so.

    Args:
        folder: of the run.
        config: its configuration.
        simulated: whether baselines and tables existed inside a simulation only.
    """
    totals = ledger_totals(folder)
    kinds, local = set(totals.kinds), config.privacy.trust == "local"
    guarantee = privacy.Guarantee(
        config.privacy.epsilon, config.privacy.delta, CLIENT, REPLACEMENT, config.privacy.trust
    )
    if simulated and config.evaluate.tables == "simulation-only":
        kinds.add("count-table-simulation")
    if simulated and config.evaluate.baselines:
        kinds.add("counterfactual")
    if simulated and folder.has("margins.safetensors"):
        kinds.add("margins-simulation")
    spent = totals.max_epsilon_spent
    return {
        "trust": guarantee.trust,
        "unit": guarantee.unit,
        "relation": guarantee.relation,
        "statement": guarantee.sentence(),
        "epsilon": config.privacy.epsilon if local else None,
        "delta": config.privacy.delta if local else None,
        "reports": totals.stored,
        "max_epsilon_spent": spent,
        "overall_client_epsilon": (
            None if spent is None else privacy.overall_client_epsilon(spent, kinds)
        ),
        "not_covered": privacy.not_covered(kinds),
        **({} if simulated else {"basis": _basis(totals)}),
    }


def _basis(totals: LedgerTotals) -> str:
    """Say what the figures of a deployed run rest on, and what the server cannot see."""
    return (
        f"signed receipts of {totals.clients} clients: each proves what the holder of a key "
        "stated about its own ledger for this run; what a client spent in other runs, or on "
        "reports that never arrived, stands in its own ledger only"
    )


def mask_recalls(results: Mapping[str, JsonDict], steps: int) -> dict[str, float]:
    """Recall of every mask against the one that the same clients would choose without noise.

    Args:
        results: of the run's finished phases, by name.
        steps: of the pruning schedule; masks are compared after the last one.

    Returns:
        The share of the noise-free mask's kept units that each mask keeps too; empty where there
        were no baselines.
    """
    last = f"vote-{steps}"
    masks = {
        name.removesuffix(f"/{last}"): result["mask"]
        for name, result in results.items()
        if name.endswith(f"/{last}")
    }
    if "votes_without_noise" not in masks:
        return {}
    masks["private"] = results[last]["mask"]
    if steps == 1:  # later steps start from models that the prior shaped
        own = results[last]
        masks["votes_without_prior"] = own.get("mask_without_prior", own["mask"])
    wanted = [i for i, bit in enumerate(masks["votes_without_noise"]) if bit == "1"]
    return {name: sum(mask[i] == "1" for i in wanted) / len(wanted) for name, mask in masks.items()}


def ledger_contradiction(folder: RunFolder) -> str | None:
    """Say where the ledger lacks a row that a finished phase ended with: a rollback.

    Of a deployed run it is the file of receipts that must begin as every phase left it.

    Returns:
        None where the ledger passed every point that the run's events name.
    """
    if not folder.has(LEDGER):
        broken = receipts_contradiction(folder)
        if broken:
            return broken
    named = [event for event in folder.events() if "ledger_rows" in event]
    if not named:
        return None
    with Ledger.open(folder.path / LEDGER, read_only=True) as ledger:
        for event in named:
            row = int(event["ledger_rows"])
            if ledger.hash_at(row) != event["ledger_head"]:
                return f"ledger row {row} is not the one that phase {event['phase']} ended with"
    return None


def fairness_of_tables(stored: JsonDict) -> JsonDict:
    """Compute the fairness summary from the content of tables.json."""
    return fairness.summarize(
        np.array(stored["test"], dtype=np.int64),
        stored["names"],
        SimulationRandomness(int(stored["seed"]), "fairness"),
        other=np.array([stored["train_total"]], dtype=np.int64),
        other_name="training rows",
        group=str(stored["group"]),
        confidence=float(stored["confidence"]),
        resamples=int(stored["resamples"]),
    ).to_json()


def lipschitz_bounds(folder: RunFolder, input_std: Sequence[float] | None) -> JsonDict:
    """Bound both stored models: upper and lower, dense and pruned, and the method.

    Where an operation of the network has no rigorous rule, all of them are None and
    `no_bound_because` names it.
    """
    names = [f"{side}_{model}" for model in ("dense", "pruned") for side in ("upper", "lower")]
    found: JsonDict = dict.fromkeys([*names, "method", "no_bound_because"])
    try:
        for name, (model, architecture) in _models(folder):
            bound = robustness.lipschitz(model, architecture.example_input, input_std=input_std)
            found[f"upper_{name}"], found[f"lower_{name}"] = bound.upper, bound.lower
            found["method"] = bound.method
    except UnsupportedOpError as error:
        return dict.fromkeys(found) | {"no_bound_because": str(error)}
    return found


def certified_accuracies(
    folder: RunFolder, radius: float, input_std: Sequence[float] | None
) -> JsonDict:
    """Compute both models' certified accuracy from stored margins and recomputed bounds.

    Args:
        folder: with both models and margins.safetensors.
        radius: l2, in the unit of the unnormalised input.
        input_std: [channels] of the normalisation, or None.

    Returns:
        Share of the rows with margins that is certified at `radius`, for "dense" and "pruned",
        each with its exact 95 % interval, and the number of rows.
    """
    margins = folder.read_tensors("margins.safetensors")
    found: JsonDict = {}
    for name, (model, architecture) in _models(folder):
        certifier = robustness.Certifier.of(model, architecture.example_input, input_std=input_std)
        radii = robustness.certified_radii(margins[name].numpy(), certifier.body_upper)
        found[name] = float(robustness.certified_accuracy(radii, radius))
        found[f"interval_{name}"] = list(robustness.certified_interval(radii, radius))
        found["rows"] = len(radii)
    return found


def _models(folder: RunFolder) -> Iterable[tuple[str, tuple[Any, Any]]]:
    return (("dense", folder.load_dense()), ("pruned", folder.load_pruned()))
