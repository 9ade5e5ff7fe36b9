"""What does one run give away? Canaries in a whole simulated run, and in DP-SGD.

Client level: beside its ordinary clients a simulated run has canary clients. By a coin each holds
one of two sets of rows that the run's network prunes differently. From the finished run's folder
the auditor reads every canary's report, computes both masks that it may have had and guesses
the coin. All canaries are independent, so one run gives a bound (Steinke, Nasr & Jagielski 2023).

Record level: a client trains by DP-SGD, the code of a client's private rounds; canary records are
among its rows by coins. Every canary lights an input that no other record lights, so that its
gradient has a direction of its own; the auditor sees the weights before and after, and guesses
from what the update has in common with that direction.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fedprune import config as configuration
from fedprune import data, pruning
from fedprune.config import Config
from fedprune.federated.per_record import per_record_gradients
from fedprune.federated.private_steps import (
    LEAST_NOISE_MULTIPLIER,
    PrivateTraining,
    train_privately,
)
from fedprune.federated.simulate import simulate
from fedprune.privacy import Ledger, Report, ThresholdResponse
from fedprune.privacy.budgets.composition import epsilon_of, noise_multiplier_for
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD, REPLACEMENT, SubsampledGaussianEvent
from fedprune.privacy.empirical import (
    EmpiricalAudit,
    Sampler,
    analytic_epsilon,
    guess_at_both_ends,
    guess_by_sign,
    log_ratios,
    table,
    two_worlds,
)
from fedprune.privacy.ledgers.chain import STORED
from fedprune.privacy.mechanisms.gaussian_noise import MEAN, SIGMA
from fedprune.privacy.mechanisms.record_scores import RecordScores
from fedprune.progress import Quiet
from fedprune.randomness import SimulationRandomness
from fedprune.runs import Architecture, RunFolder, load_weights_vector, weights_vector

JsonDict = dict[str, Any]
Bits = NDArray[np.bool_]

HONEST, CANARIES, ROWS, HELD_OUT = 100, 2_000, 3, 297
ALPHA, DELTA = 0.05, 1e-5


# Client level: a whole run.


def coins(seed: int) -> Bits:
    """Which of its two sets of rows each canary client holds: [CANARIES] bool."""
    generator = SimulationRandomness(seed, "canary clients").generator
    return np.asarray(generator.random(CANARIES) < 0.5, dtype=np.bool_)


def canary_rows(kind: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows of one kind of canary: images lit in the upper or in the lower half only."""
    images = np.zeros((ROWS, 1, 8, 8), dtype=np.float32)
    images[:, :, :4] = float(kind)
    images[:, :, 4:] = float(not kind)
    return images, np.full(ROWS, 7 if kind else 0, dtype=np.int64)


def digits_with_canaries(root: str | Path, *, seed: int) -> data.Dataset:  # noqa: ARG001
    """Digits of the ordinary clients 0 to HONEST - 1, then every canary client's rows."""
    bunch = load_digits()
    images = (bunch.images[:, None] / 16.0).astype(np.float32)
    kept, tested = slice(None, -HELD_OUT), slice(-HELD_OUT, None)
    owners = np.arange(len(images) - HELD_OUT) % HONEST
    parts = [canary_rows(bool(coin)) for coin in coins(seed)]
    inputs = np.concatenate([images[kept], *(part[0] for part in parts)])
    labels = np.concatenate([bunch.target[kept], *(part[1] for part in parts)])
    sites = np.concatenate([owners, np.repeat(np.arange(CANARIES) + HONEST, ROWS)])
    names = [f"client {number}" for number in range(HONEST + CANARIES)]
    return data.from_arrays(
        "digits with canaries",
        train=(inputs, labels),
        test=(images[tested], bunch.target[tested]),
        num_classes=10,
        sites=(sites, np.arange(HELD_OUT) % HONEST, names),
    )


def canary_run(epsilon: float, seed: int) -> Config:
    """Configuration of the run with canary clients."""
    return configuration.load(
        None,
        [
            "data.dataset=audit_canaries:digits_with_canaries",
            "data.partition=natural",
            f"data.clients={HONEST + CANARIES}",
            "model.name=mlp",
            f"privacy.epsilon={epsilon}",
            "train.rounds=5",
            "train.fine_tune_rounds=1",
            "train.clients_per_round=20",
            "evaluate.seeds=1",
            "evaluate.baselines=false",
            "evaluate.resamples=100",
            f"seed={seed}",
        ],
    )


def audit_run(path: Path) -> EmpiricalAudit:
    """Guess the canary clients' coins from a finished run's folder."""
    folder = RunFolder.open(path)
    truth, epsilon = coins(folder.config.seed), folder.config.privacy.epsilon
    masks = {kind: canary_mask(folder, kind) for kind in (True, False)}
    mechanism = ThresholdResponse(epsilon, len(masks[True]))
    sent = first_reports(folder)
    reports = [sent[HONEST + canary] for canary in range(CANARIES)]
    scores = log_ratios(mechanism, reports, masks[True], masks[False])
    guesses = guess_by_sign(scores, truth)
    apart = int((masks[True] != masks[False]).sum())
    return EmpiricalAudit.of(
        guesses,
        subject=f"whole run, canary clients ({apart} of {mechanism.num_units} mask bits differ)",
        claimed=epsilon,
        analytic=analytic_epsilon(mechanism),
        alpha=ALPHA,
        relation=REPLACEMENT,
        trust="local",
    )


def canary_mask(folder: RunFolder, kind: bool) -> Bits:
    """The mask that a canary client of one kind has before noise, from the run's dense model."""
    model, architecture = folder.load_dense()
    layout, prune = architecture.dense_layout, folder.config.prune
    inputs, labels = map(torch.from_numpy, canary_rows(kind))
    one = torch.zeros(ROWS, dtype=torch.int64)
    scores = pruning.score_clients(
        model, layout, inputs, labels, one, criterion=prune.criterion, seed=folder.config.seed
    )
    assert prune.keep_units is not None
    mask = pruning.select(scores[0], layout, keep_units=prune.keep_units, floor=prune.floor)
    return np.asarray(mask.numpy(), dtype=np.bool_)


def first_reports(folder: RunFolder) -> dict[int, Report]:
    """Every client's report of the first question, from the run's ledger."""
    with Ledger.open(folder.path / "ledger.sqlite", read_only=True) as ledger:
        return {
            int(entry.client): Report(entry.report)
            for entry in ledger.entries()
            if entry.stage == STORED and entry.round == "report-1"
        }


# Record level: a client's private training.

SHAPE, CLASSES, ORDINARY = (1, 24, 40), 10, 200
STEPS, RATE = 20, 0.5
ENDS = 16  # one guess in sixteen at each end; chosen on seed 4, reported on others
LIT = 50.0  # so bright that a canary's gradient lies in its own column of weights


def private_training(epsilon: float, steps: int, sample_rate: float) -> PrivateTraining:
    """Settings of DP-SGD whose rounds mean (epsilon, DELTA) for a record."""
    noise = noise_multiplier_for(epsilon, DELTA, steps=steps, sampling_rate=sample_rate)
    return PrivateTraining(
        steps=steps,
        sample_rate=sample_rate,
        noise_multiplier=noise,
        max_grad_norm=1.0,
        batch_size=ORDINARY,
        learning_rate=0.01,
    )


def audit_dp_sgd(
    epsilon: float, steps: int, sample_rate: float, seed: int, *, noiseless: bool = False
) -> EmpiricalAudit:
    """Train one client's model under DP-SGD with canary records in by coins, and guess them.

    `noiseless` plants a fault: the noise is left out (but for the least that can be asked for).
    """
    how = private_training(epsilon, steps, sample_rate)
    run = replace(how, noise_multiplier=LEAST_NOISE_MULTIPLIER) if noiseless else how
    rng = SimulationRandomness(seed, "canary records")
    canaries = SHAPE[1] * SHAPE[2] - 64  # ordinary records light the last 64 inputs only
    inside = np.asarray(rng.stream("coins").generator.random(canaries) < 0.5, dtype=np.bool_)
    inputs, labels = ordinary_records()
    lit = torch.zeros(canaries, SHAPE[1] * SHAPE[2])
    lit[torch.arange(canaries), torch.arange(canaries)] = LIT
    classes = torch.arange(canaries) % CLASSES
    rows = torch.cat([inputs, lit.reshape(-1, *SHAPE)[torch.from_numpy(inside)]])
    truth = torch.cat([labels, classes[torch.from_numpy(inside)]])
    architecture = Architecture.dense("mlp", CLASSES, SHAPE)
    start = weights_vector(architecture.build()[0])
    directions = gradient_directions(architecture, start, lit.reshape(-1, *SHAPE), classes)
    gradients = per_record_gradients(architecture, how.batch_size)
    load_weights_vector(gradients.model, start)
    train_privately(gradients, rows, truth, run, rng.stream("training"))
    update = (start - weights_vector(gradients.model)).double()
    ends = canaries // ENDS
    guesses = guess_at_both_ends((directions @ update).numpy(), inside, most=ends, least=ends)
    return EmpiricalAudit.of(
        guesses,
        subject=f"DP-SGD, {steps} steps at rate {sample_rate:g}" + " without noise" * noiseless,
        claimed=epsilon,
        analytic=epsilon_of([(how.event, 1)], DELTA, ADD_REMOVE_RECORD),
        alpha=ALPHA,
        delta=DELTA,
        relation=ADD_REMOVE_RECORD,
        trust="record",
    )


def ordinary_records() -> tuple[torch.Tensor, torch.Tensor]:
    """Digits in the last 64 inputs."""
    bunch = load_digits()
    rows = torch.zeros(ORDINARY, SHAPE[1] * SHAPE[2])
    rows[:, -64:] = torch.from_numpy(bunch.data[:ORDINARY] / 16.0).float()
    return rows.reshape(-1, *SHAPE), torch.from_numpy(bunch.target[:ORDINARY]).long()


def gradient_directions(
    architecture: Architecture, weights: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Each record's gradient at the first weights where no other has one: [records, size] float64.

    Every direction has length 1. What records share is left out: there an update says little
    about any one of them.
    """
    alone = per_record_gradients(architecture, len(labels))
    load_weights_vector(alone.model, weights)
    rows = torch.cat(list(alone.passes(inputs, labels))).double()
    own = rows.where((rows != 0).sum(dim=0) == 1, 0.0)
    return torch.nn.functional.normalize(own, dim=1)


# Record level: noised sums of record scores.


def audit_record_scores(epsilon: float, draws: int, seed: int) -> EmpiricalAudit:
    """Audit a client's noised score sum with and without one record, in two worlds."""
    mechanism = RecordScores(epsilon, DELTA, 8)
    record = mechanism.contributions(np.array([[1.0, 0, 0, 0, 0, 0, 0, 0]]))[0]
    length = float(np.linalg.norm(record))
    rng = SimulationRandomness(seed, "record scores")

    def sampler(total: NDArray[np.int64]) -> Sampler:
        def sample(count: int) -> NDArray[np.float64]:
            reports = [mechanism.randomize_sum(total, rng) for _ in range(count)]
            sums = mechanism.decode(reports) - MEAN - record / 2
            return np.asarray(sums @ record / length / SIGMA, dtype=np.float64)

        return sample

    nothing = np.zeros_like(record)
    counts = two_worlds(
        sampler(record), sampler(nothing), draws=draws, mirrored=True, alpha=ALPHA, delta=DELTA
    )
    exact = SubsampledGaussianEvent(SIGMA / mechanism.length_units, 1.0, 1)
    return EmpiricalAudit.of(
        counts,
        subject="record scores, a record in or out",
        claimed=epsilon,
        analytic=epsilon_of([(exact, 1)], DELTA, ADD_REMOVE_RECORD),
        alpha=ALPHA,
        delta=DELTA,
        relation=ADD_REMOVE_RECORD,
        trust="record",
    )


def audits(seed: int) -> list[EmpiricalAudit]:
    """All audits of this script."""
    found = []
    for epsilon in (1.0, 4.0, 8.0):
        with tempfile.TemporaryDirectory() as place:
            simulate(canary_run(epsilon, seed), Path(place) / "run", Quiet())
            found.append(audit_run(Path(place) / "run"))
    found += [audit_dp_sgd(epsilon, STEPS, RATE, seed) for epsilon in (1.0, 4.0, 8.0)]
    found.append(audit_record_scores(4.0, 50_000, seed))
    return found


def main() -> None:
    """Audit and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = audits(arguments.seed)
    for audit in found:
        print(audit.sentence())
    print(table(found))


if __name__ == "__main__":
    main()
