"""Answers that protect records: charged before data are touched, repeated byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from torch import Tensor

from fedprune import data, models, pruning
from fedprune.data import Dataset, Federation
from fedprune.errors import (
    BudgetExceededError,
    FederationError,
    FedpruneError,
    LayoutMismatchError,
    LedgerError,
    PrivacyError,
    QuestionChangedError,
)
from fedprune.federated.messages import Question, answer_weights
from fedprune.federated.node_settings import NodeSettings
from fedprune.federated.per_record import freeze, trainable_places
from fedprune.federated.private_steps import PrivateTraining
from fedprune.federated.private_training import answer_train_private, training_settings
from fedprune.federated.record_answers import answer_record_scores, record_settings
from fedprune.federated.station import Station, model_of
from fedprune.privacy import Budget, Ledger, Report, SigningKey
from fedprune.privacy.budgets.events import ADD_REMOVE_RECORD, REPLACEMENT
from fedprune.privacy.budgets.filters import filter_of
from fedprune.privacy.mechanisms.record_scores import RecordScores
from fedprune.runs import Architecture, weights_vector

CLIENTS = 10
HOW = PrivateTraining(
    steps=4, sample_rate=0.1, noise_multiplier=1.2, max_grad_norm=0.5, batch_size=14,
    learning_rate=0.5,
)  # fmt: skip
MLP = Architecture.dense("mlp", 10, (1, 8, 8))
MLP_WEIGHTS = weights_vector(models.load("mlp", num_classes=10, input_shape=(1, 8, 8), seed=1))
SCORES = RecordScores(4.0, 1e-5, len(MLP.dense_layout))
Answer = Callable[[Station, Question, Sequence[int]], list[RecordDict | FedpruneError]]


@pytest.fixture(scope="module")
def digits() -> tuple[Dataset, Federation]:
    dataset = data.load("digits", "", seed=1)
    return dataset, data.partition(dataset, "iid", clients=CLIENTS, seed=1)


def budgets(epsilon: float = 8.0) -> list[Budget]:
    record = Budget.renyi(epsilon, 1e-5, ADD_REMOVE_RECORD, [HOW.event] * 5)
    return [Budget(4.0), record]


@pytest.fixture
def simulated(tmp_path: Path, digits: tuple[Dataset, Federation]) -> Iterator[Station]:
    with Ledger.open(tmp_path / "simulation.sqlite", budget=budgets()) as ledger:
        yield Station(ledger, *digits)


@pytest.fixture
def deployed(tmp_path: Path, digits: tuple[Dataset, Federation]) -> Iterator[Station]:
    key = SigningKey.open(tmp_path / "key")
    node = NodeSettings(3, "", tmp_path / "own.sqlite", 4.0, tmp_path / "key")
    with Ledger.open(
        node.ledger, budget=budgets(), owner="client 3", private=True, signing_key=key.public
    ) as ledger:
        yield Station(ledger, *digits, node=node, signing_key=key)


def training_question(
    station: Station, name: str = "tune-1", how: PrivateTraining = HOW, **changes: object
) -> Question:
    seed = 5 if station.simulated else None
    settings = training_settings(how) | changes
    return Question("run", name, MLP, MLP_WEIGHTS, settings, seed=seed)  # type: ignore[arg-type]


def score_question(station: Station, name: str = "scores-1", **changes: object) -> Question:
    seed = 5 if station.simulated else None
    settings = {
        "criterion": "taylor",
        "fingerprint": MLP.dense_layout.fingerprint,
        **record_settings(SCORES),
        **changes,
    }
    return Question("run", name, MLP, MLP_WEIGHTS, settings, seed=seed)  # type: ignore[arg-type]


KINDS: list[tuple[Answer, Callable[..., Question]]] = [
    (answer_train_private, training_question),
    (answer_record_scores, score_question),
]


def said(outcome: RecordDict | FedpruneError) -> bytes:
    """What an answer says about the data, as bytes."""
    assert isinstance(outcome, RecordDict), outcome
    if "arrays" in outcome.array_records:
        return answer_weights(outcome, len(MLP_WEIGHTS)).numpy().tobytes()
    report = outcome.config_records["answer"]["report"]
    assert isinstance(report, bytes)
    return report


def spent(station: Station, client: int = 3) -> float:
    return station.ledger.epsilon_spent(str(client), ADD_REMOVE_RECORD)


@pytest.fixture(params=["simulated", "deployed"])
def station(request: pytest.FixtureRequest) -> Station:
    found: Station = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize(("answer", "ask"), KINDS)
def test_a_retry_gets_the_same_bytes_and_costs_nothing_more(
    station: Station, answer: Answer, ask: Callable[..., Question]
) -> None:
    question = ask(station)
    first = said(answer(station, question, [3])[0])
    cost = spent(station)
    assert cost > 0
    assert said(answer(station, question, [3])[0]) == first
    assert spent(station) == cost
    assert station.ledger.spent("3", REPLACEMENT) == 0  # it says nothing about the client
    assert list(station.ledger.verify()) == []
    assert said(answer(station, ask(station, "another"), [3])[0]) != first
    assert spent(station) > cost


@pytest.mark.parametrize(("answer", "ask"), KINDS)
def test_what_is_sent_holds_nothing_that_no_noise_covers(
    station: Station, answer: Answer, ask: Callable[..., Question]
) -> None:
    (outcome,) = answer(station, ask(station), [3])
    assert isinstance(outcome, RecordDict)
    fields = set(outcome.config_records["answer"]) - {"schema", "package", "version", "client"}
    public = {"noise_multiplier", "receipt", "report", "epsilon", "delta", "fingerprint"}
    assert fields <= public
    assert bool(outcome.config_records["answer"]["receipt"]) is not station.simulated


@pytest.mark.parametrize(("answer", "ask"), KINDS)
def test_the_same_round_with_another_question_is_refused(
    station: Station, answer: Answer, ask: Callable[..., Question]
) -> None:
    question = ask(station)
    answer(station, question, [3])
    before = spent(station)
    (refused,) = answer(station, replace(question, weights=MLP_WEIGHTS * 2), [3])
    assert isinstance(refused, QuestionChangedError)
    assert spent(station) == before


def test_less_noise_than_the_budget_allows_is_refused_and_costs_nothing(station: Station) -> None:
    little = replace(HOW, noise_multiplier=0.2)
    (refused,) = answer_train_private(station, training_question(station, how=little), [3])
    assert isinstance(refused, BudgetExceededError)
    loud = score_question(station, epsilon=40.0)
    (refused,) = answer_record_scores(station, loud, [3])
    assert isinstance(refused, BudgetExceededError)
    assert spent(station) == 0


def test_rounds_are_answered_until_the_budget_is_used_up(simulated: Station) -> None:
    heavy = replace(HOW, steps=40)
    outcomes: list[object] = []
    while not outcomes or isinstance(outcomes[-1], RecordDict):
        question = training_question(simulated, f"tune-{len(outcomes)}", heavy)
        outcomes += answer_train_private(simulated, question, [3])
    assert isinstance(outcomes[-1], BudgetExceededError)
    assert 1 < len(outcomes) < 20
    assert spent(simulated) <= 8.0


@pytest.mark.parametrize(("answer", "ask"), KINDS)
def test_a_cohort_is_answered_as_its_clients_one_by_one(
    simulated: Station,
    answer: Answer,
    ask: Callable[..., Question],
    tmp_path: Path,
    digits: tuple[Dataset, Federation],
) -> None:
    together = [said(outcome) for outcome in answer(simulated, ask(simulated), range(CLIENTS))]
    with Ledger.open(tmp_path / "other.sqlite", budget=budgets()) as ledger:
        alone = Station(ledger, *digits)
        one_by_one = [said(answer(alone, ask(alone), [c])[0]) for c in range(CLIENTS)]
    assert together == one_by_one
    assert len(set(together)) == CLIENTS


def test_a_simulation_on_another_machine_that_repeats_other_bits_is_noticed(
    simulated: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = training_question(simulated)
    answer_train_private(simulated, question, [3])
    noise = "fedprune.federated.private_steps.gaussian_units"
    monkeypatch.setattr(noise, lambda count, _rng: np.ones(count, dtype=np.int64))
    with pytest.raises(LedgerError, match="client 3 gives another update in round tune-1"):
        answer_train_private(simulated, question, [3])


def test_a_counterfactual_round_leaves_the_ledger_alone(simulated: Station) -> None:
    question = replace(training_question(simulated), counterfactual=True)
    first = said(answer_train_private(simulated, question, [3])[0])
    assert spent(simulated) == 0
    assert said(answer_train_private(simulated, question, [3])[0]) == first


@pytest.mark.parametrize(("answer", "ask"), KINDS)
def test_a_deployed_client_that_fails_sends_noise_and_a_simulated_one_says_why(
    deployed: Station,
    simulated: Station,
    answer: Answer,
    ask: Callable[..., Question],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreadable(_rows: data.Rows, _index: object) -> Tensor:
        raise OSError("the disk is gone")

    good = said(answer(deployed, ask(deployed), [3])[0])
    monkeypatch.setattr(data.Rows, "inputs", unreadable)
    sent = said(answer(deployed, ask(deployed, "second"), [3])[0])
    assert len(sent) == len(good)
    assert sent != good
    with pytest.raises(OSError, match="the disk is gone"):
        answer(simulated, ask(simulated), [3])


@pytest.mark.parametrize(("answer", "ask"), KINDS)
def test_a_deployed_client_draws_what_nobody_can_repeat(
    tmp_path: Path,
    digits: tuple[Dataset, Federation],
    answer: Answer,
    ask: Callable[..., Question],
) -> None:
    sent = []
    for name in ("a", "b"):
        node = NodeSettings(3, "", tmp_path / f"{name}.sqlite", 4.0, tmp_path / "key")
        with Ledger.open(node.ledger, budget=budgets(), owner="client 3", private=True) as ledger:
            own = Station(ledger, *digits, node=node)
            sent.append(said(answer(own, ask(own), [3])[0]))
    assert sent[0] != sent[1]


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"noise_multiplier": 0.0}, PrivacyError), ({"noise_multiplier": "1"}, FederationError),
     ({"steps": 2.5}, FederationError), ({"sample_rate": 2.0}, PrivacyError),
     ({"max_grad_norm": float("inf")}, FederationError), ({"batch_size": 0}, FederationError)],
)  # fmt: skip
def test_settings_that_cannot_be_accounted_are_refused_and_nothing_is_spent(
    station: Station, changes: dict[str, object], error: type[FedpruneError]
) -> None:
    with pytest.raises(error):
        answer_train_private(station, training_question(station, **changes), [3])
    assert spent(station) == 0


def test_a_client_adds_the_noise_that_its_operator_wants_and_pays_for_no_less(
    deployed: Station,
) -> None:
    asked = training_question(deployed, how=replace(HOW, noise_multiplier=0.2))
    assert isinstance(answer_train_private(deployed, asked, [3])[0], BudgetExceededError)
    assert deployed.node is not None
    deployed.node = replace(deployed.node, least_noise_multiplier=1.2)
    (outcome,) = answer_train_private(deployed, asked, [3])
    assert isinstance(outcome, RecordDict)
    assert outcome.config_records["answer"]["noise_multiplier"] == 1.2
    alone = filter_of(budgets()[1])
    assert deployed.ledger.spent("3", ADD_REMOVE_RECORD) == alone.charge(HOW.event)


def test_questions_about_other_scores_are_refused_and_nothing_is_spent(station: Station) -> None:
    for changes, error in (
        ({"fingerprint": "0" * 64}, LayoutMismatchError),
        ({"criterion": "guess"}, FederationError),
        ({"epsilon": 0.0}, PrivacyError),
        ({"delta": 0.0}, PrivacyError),
    ):
        with pytest.raises(error):
            answer_record_scores(station, score_question(station, **changes), [3])
    assert spent(station) == 0


def test_batch_norms_come_back_bit_for_bit(simulated: Station) -> None:
    architecture = Architecture.dense("resnet20", 10, (1, 8, 8))
    model, _ = architecture.build()
    weights = weights_vector(model)
    how = replace(HOW, steps=1, batch_size=2, sample_rate=0.01)
    question = Question("run", "bn", architecture, weights, training_settings(how), seed=1)
    (outcome,) = answer_train_private(simulated, question, [0])
    assert isinstance(outcome, RecordDict)
    after = answer_weights(outcome, len(weights))
    freeze(model, "resnet20")
    trained = trainable_places(model)
    assert torch.equal(after[~trained], weights[~trained])
    assert (after[trained] != weights[trained]).float().mean() > 0.99


def test_private_fine_tuning_of_a_shrunk_network_makes_it_better(simulated: Station) -> None:
    dataset = simulated.dataset
    rows = np.arange(len(dataset.test))
    inputs, labels = dataset.test.inputs(rows), dataset.test.targets(rows)
    dense = models.load("lenet", num_classes=10, input_shape=(1, 8, 8), seed=1)
    _train_in_the_open(dense, dataset)
    layout = pruning.UnitLayout.of(dense, torch.zeros(1, 1, 8, 8))
    mask = pruning.select(pruning.score(dense, layout, [], "magnitude_l2"), layout, keep_units=0.3)
    weights = weights_vector(pruning.shrink(dense, layout, mask))
    architecture = Architecture.dense("lenet", 10, (1, 8, 8)).with_mask(mask)

    def accuracy(state: Tensor) -> float:
        predicted = model_of(architecture, state)(inputs).argmax(dim=1)
        return float((predicted == labels).float().mean())

    before = accuracy(weights)
    how = replace(HOW, steps=10, noise_multiplier=1.3)
    for number in range(4):
        settings = training_settings(how)
        question = Question("run", f"t-{number}", architecture, weights, settings, seed=1)
        answers = answer_train_private(simulated, question, range(CLIENTS))
        states = [
            answer_weights(one, len(weights)) for one in answers if isinstance(one, RecordDict)
        ]
        assert len(states) == CLIENTS
        weights = torch.stack(states).double().mean(dim=0).float()
    assert spent(simulated, 0) < 5.0
    assert accuracy(weights) > before + 0.03


def _train_in_the_open(model: torch.nn.Module, dataset: Dataset) -> None:
    places = np.arange(len(dataset.train))
    inputs, labels = dataset.train.inputs(places), dataset.train.targets(places)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    order = torch.Generator().manual_seed(1)
    for _ in range(6):
        for batch in torch.randperm(len(labels), generator=order).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()


def test_noised_record_scores_rank_units_as_the_scores_themselves_do(simulated: Station) -> None:
    model = models.load("mlp", num_classes=10, input_shape=(1, 8, 8), seed=1)
    _train_in_the_open(model, simulated.dataset)
    question = replace(score_question(simulated), weights=weights_vector(model))
    outcomes = answer_record_scores(simulated, question, range(CLIENTS))
    noised = SCORES.estimate([Report(said(outcome)) for outcome in outcomes]).mean
    masks = pruning.select_many(
        simulated.scores(question, range(CLIENTS)), MLP.dense_layout, keep_units=0.5
    )
    wanted = pruning.select(masks.double().mean(dim=0), MLP.dense_layout, keep_units=0.5)
    found = pruning.select(torch.from_numpy(noised), MLP.dense_layout, keep_units=0.5)
    assert int((found & wanted).sum()) / int(wanted.sum()) > 0.8


def test_a_record_moves_the_sum_before_noise_by_the_accounted_length_at_most(
    simulated: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums: list[np.ndarray] = []

    def keep(_self: RecordScores, total: np.ndarray, _rng: object) -> Report:
        sums.append(total)
        return Report(bytes(SCORES.report_bytes))

    monkeypatch.setattr(RecordScores, "randomize_sum", keep)
    places = simulated.index(3, "train")
    for number, index in enumerate([places, np.delete(places, 5), np.delete(places, 0)]):
        monkeypatch.setattr(
            simulated, "cohort_index", lambda *_, i=index: (i, np.zeros(len(i), int))
        )
        answer_record_scores(simulated, score_question(simulated, f"s-{number}"), [3])
    for changed in sums[1:]:
        assert 0 < sum(int(d) ** 2 for d in sums[0] - changed) <= SCORES.length_units**2
