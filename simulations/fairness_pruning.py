"""What does federated pruning do to groups of people and of classes, and what helps?

Adult (sex, race, sex x race; an MLP of 96 units) and CIFAR-10 by class (a trained ResNet-20), at
keep fractions 0.5, 0.3 and 0.1: gaps of accuracy, dense and pruned, with intervals; demographic
parity and equalised odds for Adult. Every client scores the units on its own rows and votes for
its own mask (without noise, to see pruning alone); the units with most votes stay; the smaller
network is fine-tuned by federated averaging, a plain loop over clients in this script. Adult's
dense network is trained on all training rows together, CIFAR-10's comes from a file. A fifth of
every client's training rows is held out: the pair of groups to follow, the dual variables and the
test that chooses a keep fraction are decided on them, all figures are those of the test rows.

At keep 0.1 each mitigation is compared with doing nothing, in the growth of the gap that it takes
back and the accuracy that it costs: a client's scores made group-aware (worst group; largest or
mean importance share), a dual variable a group in fine-tuning, both together, and the keep fraction
that fixed-sequence testing accepts. Claims to check: pruning hurts some groups more than others
(Hooker et al. 2019, 2020; Tran et al. 2022), and one of these takes back half of it.

    python simulations/fairness_pruning.py --root DATA --out results/fairness_pruning.json
    python simulations/fairness_pruning.py --root DATA --small --out small.json    # that it runs

The results file is written after every seed; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _fairness_federation import HELD_OUT, Settings, problem
from _fairness_judging import HARDEST, chosen_keep, judged, mitigated, outcomes, over_seeds, short
from _fairness_mitigations import COMBINE, MITIGATIONS, Importances, fine_tune, plain_scores, prune
from _fairness_pictures import draw, line

from fedprune import __version__
from fedprune.errors import FairnessError

KEEPS = (0.5, 0.3, 0.1)

FULL = (
    Settings("adult", ("sex", "race", "sex x race"), 50, 1.0, 0, 0, 10, 64, 0.05, 8, 0.005, 4.0),
    Settings("cifar10", ("class",), 10, 1.0, 10_000, 0, 20, 64, 0.05, 0, 0.02, 1.0),
)
SMALL = (
    replace(FULL[0], groupings=("sex", "sex x race"), train_rows=6000, rounds=2, dense_epochs=4,
            resamples=500),
    replace(FULL[1], clients=5, train_rows=1500, test_rows=600, rounds=1, resamples=500),
)  # fmt: skip


def run(settings: Settings, root: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Every grouping of one data set at every keep fraction, and the mitigations at 0.1."""
    one = problem(settings, root, seed)
    plain = plain_scores(one)
    cut = {keep: prune(one, plain, keep) for keep in KEEPS}
    tuned = {k: fine_tune(one, model, settings.groupings[0], False) for k, model in cut.items()}
    start = {"dataset": settings.dataset, "seed": seed}
    for grouping in settings.groupings:
        for keep in KEEPS:
            for stage, model in (("cut", cut[keep]), ("fine-tuned", tuned[keep])):
                row = {"what": "pruning", "grouping": grouping, "keep": keep, "stage": stage}
                yield (
                    start
                    | row
                    | {
                        "summary": short(judged(one.dense, model, one, grouping)),
                        "outcomes": outcomes(model, one, grouping) if stage != "cut" else None,
                    }
                )
        importances = Importances.of(one, grouping)
        cut_by = {
            name: prune(one, importances.scores(combine), HARDEST)
            for name, combine in COMBINE.items()
        } | {"plain": cut[HARDEST]}
        for name, (scores, duals) in MITIGATIONS.items():
            model = tuned[HARDEST]
            if name != "none":
                model = fine_tune(one, cut_by[scores], grouping, duals)
            yield start | mitigated(one, grouping, name, model, tuned[HARDEST], HARDEST)
        try:
            yield start | chosen_keep(one, grouping, tuned)
        except FairnessError as error:
            print(f"{settings.dataset} {grouping}: no keep fraction was chosen: {error}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prune, mitigate, print, write JSON and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions, the next seeds")
    parser.add_argument("--only", default="", help="adult or cifar10; both where empty")
    parser.add_argument("--rounds", type=int, help="rounds of fine-tuning")
    parser.add_argument(
        "--small",
        action="store_true",
        help="few rows and rounds, under two minutes: that it runs, not what is true",
    )
    parser.add_argument("--out", type=Path, required=True, help="results JSON to write")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or (options.rounds is not None and options.rounds < 1):
        parser.error("--seeds and --rounds must be at least 1")
    chosen = [one for one in (SMALL if options.small else FULL) if options.only in one.dataset]
    if not chosen:
        parser.error(f"--only must be adult or cifar10, got {options.only!r}")
    if options.rounds is not None:
        chosen = [replace(one, rounds=options.rounds) for one in chosen]
    seeds = (
        [options.seed] if options.small else list(range(options.seed, options.seed + options.seeds))
    )
    told = Told.begin(options, chosen)
    for settings in chosen:
        for seed in seeds:
            if told.has(settings.dataset, seed):
                continue
            begun, rows = time.perf_counter(), []
            for row in run(settings, options.root, seed):
                rows.append(row)
                print(line(row), flush=True)
            told.add(rows, time.perf_counter() - begun)
    told.write()
    draw(told.rows, options.seed, options.out.with_suffix(".png"))


class Told:
    """The results file: written after every seed, and gone on from."""

    def __init__(self, path: Path, known: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Use `begin`."""
        self._path, self._known, self.rows = path, known, rows

    @classmethod
    def begin(cls, options: argparse.Namespace, chosen: Sequence[Settings]) -> Told:
        """Take the rows of an earlier start with the same settings from the file, if any."""
        known = described(options, chosen)
        rows: list[dict[str, Any]] = []
        if options.out.is_file():
            before = json.loads(options.out.read_text(encoding="utf-8"))
            same = all(
                json.dumps(before.get(key)) == json.dumps(known[key]) for key in ("seed", "config")
            )
            if not same:
                raise SystemExit(f"{options.out} holds results of other settings: move it away")
            rows, known["seconds"] = rounded(before["rows"]), before["seconds"]
        return cls(options.out, known, rows)

    def has(self, dataset: str, seed: int) -> bool:
        """Whether a seed of a data set is done."""
        return any((row["dataset"], row["seed"]) == (dataset, seed) for row in self.rows)

    def add(self, rows: list[dict[str, Any]], seconds: float) -> None:
        """Write a finished seed; the file is replaced at once."""
        self.rows += [rounded(row) for row in rows]
        self._known["seconds"] = round(self._known["seconds"] + seconds, 1)
        self.write()

    def write(self) -> None:
        """Write all that is known, rows a line each, over what the file held."""
        whole = json.dumps(self._known | {"mitigations": over_seeds(self.rows)}, indent=1)
        rows = ",\n".join(json.dumps(row) for row in self.rows)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_text(f'{whole[:-2]},\n "rows": [\n{rows}\n]}}\n', encoding="utf-8")
        new.replace(self._path)


def rounded(value: Any) -> Any:
    """Figures to six decimals, however deep they lie."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner) for inner in value]
    return round(value, 6) if isinstance(value, float) else value


def described(options: argparse.Namespace, chosen: Sequence[Settings]) -> dict[str, Any]:
    """All that it takes to find the results again."""
    flags = "".join(
        (
            " --small" if options.small else f" --seeds {options.seeds}",
            f" --only {options.only}" if options.only else "",
            f" --rounds {options.rounds}" if options.rounds else "",
        )
    )
    return {
        "question": (__doc__ or "").splitlines()[0],
        "command": "python simulations/fairness_pruning.py --root DATA"
        f" --seed {options.seed}{flags} --out OUT",
        "date": date.today().isoformat(),
        "seed": options.seed,
        "config": {
            "settings": [asdict(one) for one in chosen],
            "keep_units": KEEPS,
            "criterion": "taylor",
            "held_out": HELD_OUT,
            "votes": "without noise, nothing is private: the question is what pruning does",
        },
        "versions": {
            "fedprune": __version__,
            "numpy": np.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "seconds": 0.0,
    }


if __name__ == "__main__":
    main()
