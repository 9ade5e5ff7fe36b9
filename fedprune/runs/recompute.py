"""Figures that follow from a run folder alone: the run writes them, an auditor repeats them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from fedprune import config as configuration
from fedprune.config import Config
from fedprune.privacy import Ledger
from fedprune.runs.availability import TRACE
from fedprune.runs.folder import RunFolder
from fedprune.runs.receipts import RECEIPTS, receipts_contradiction
from fedprune.runs.spending import LEDGER

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
    TRACE,
    RECEIPTS,
)


_NONCE = re.compile("-[0-9a-f]{8}")


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
