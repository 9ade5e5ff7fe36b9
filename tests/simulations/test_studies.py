from __future__ import annotations

import argparse
import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedprune import pruning

SIMULATIONS = Path(__file__).resolve().parent.parent.parent / "simulations"
STUDIES = (
    "prune_one_layer", "prune_without_tuning", "layer_ranks", "pruning_schedules",
    "lottery_tickets", "random_labels", "decay_and_dropout", "soft_thresholding",
    "support_recovery", "a_optimal", "magnitude_is_best", "filling_budgets",
)  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_tells_its_question_and_its_commands(study, name: str) -> None:
    doc = study(name).__doc__
    assert doc.splitlines()[0].endswith("?")
    assert f"python simulations/{name}.py --small --out OUT.json" in doc
    assert f"simulations/results/{name}.json" in doc


def test_a_study_runs_as_a_command_from_anywhere(tmp_path: Path) -> None:
    script = str(SIMULATIONS / "a_optimal.py")
    subprocess.run(
        [sys.executable, script, "--small", "--out", "new/a.json"],
        cwd=tmp_path, capture_output=True, check=True,
    )  # fmt: skip
    assert (tmp_path / "new" / "a.json").is_file()
    assert (tmp_path / "new" / "a.png").is_file()


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_explains_its_options_and_wants_a_place_for_its_results(
    study, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        study(name).main(["--help"])
    assert ended.value.code == 0
    assert "--small" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        study(name).main(["--small"])
    assert ended.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_results_say_what_ran_where_with_what(run_small) -> None:
    result = run_small("magnitude_is_best", draws=2, shape=(2, 4), kept=3)
    assert result["command"].startswith("python simulations/magnitude_is_best.py")
    for key in ("question", "date", "seed", "config", "versions", "machine", "seconds"):
        assert key in result
    assert result["config"]["draws"] == 2


def test_results_name_every_option_that_says_what_is_studied(study) -> None:
    options = argparse.Namespace(
        root="here", out="there", seed=3, small=True, side=28, keep=None, weights="a/b.pt", steps=9
    )
    assert study("_study_results")._named(options) == {
        "small": True, "side": 28, "weights": "b.pt", "steps": 9,
    }  # fmt: skip


def test_no_order_of_removal_beats_the_best_subset(run_small) -> None:
    result = run_small(
        "prune_one_layer", "--criteria", "taylor", "magnitude_l2", "random", "--rows", "200",
        seeds=1, epochs=2, score_rows=100, subsets=False,
    )  # fmt: skip
    assert result["units"] == 16
    curves = {name: [row["mean"] for row in rows] for name, rows in result["loss"].items()}
    assert set(curves) == {
        "oracle", "greedy oracle", "taylor, once", "taylor, again", "magnitude_l2, once",
        "random, once",
    }  # fmt: skip
    assert len({curve[0] for curve in curves.values()}) == 1  # the dense network's loss
    assert all(len(curve) == 16 for curve in curves.values())
    assert all(curve[1] >= curves["greedy oracle"][1] - 1e-9 for curve in curves.values())


def test_the_best_subsets_are_the_least_over_all_of_their_size(study) -> None:
    one_layer, shared = study("prune_one_layer"), study("_study")
    task = shared.problem("digits", "lenet", seed=1, rows=100)
    model = task.fresh(3)

    class Few(one_layer.Layer):
        """Only the first six units take part."""

    group = pruning.UnitGroup(task.layout.groups[0].name, 0, 6)
    layer = Few(task, model, group, 100)
    best = one_layer.best_subsets(layer)
    orders = [
        one_layer.single_oracle(layer),
        one_layer.greedy(layer, lambda removed, unit: len(removed) - unit),
    ]
    for order in orders:
        assert all(low <= loss + 1e-12 for low, loss in zip(best, layer.losses(order), strict=True))
    assert best[0] == pytest.approx(layer.loss(()))


def test_criteria_that_do_not_know_a_network_are_named_not_hidden(run_small) -> None:
    result = run_small(
        "prune_without_tuning", "--rows", "200", seeds=1, epochs=2, score_rows=100,
        keep_units=(1.0, 0.5),
    )  # fmt: skip
    told = {row["criterion"] for row in result["rows"]} | set(result["refused"])
    assert told == set(pruning.CRITERIA) - {"magnitude"}
    full = {row["accuracy"]["mean"] for row in result["rows"] if row["keep_units"] == 1}
    assert len(full) == 1


def test_ranks_of_a_whole_layer_set_average_to_a_half(run_small) -> None:
    result = run_small(
        "layer_ranks", "--rows", "200", seeds=1, epochs=2, tune_epochs=0.5, steps=2, score_rows=100
    )
    units = sum(row["units"] for row in result["rows"])
    before = sum(row["units"] * row["before"]["mean"] for row in result["rows"])
    assert before / units == pytest.approx(0.5)
    kept = [row["units"] * row["kept_share"]["mean"] for row in result["rows"]]
    after = sum(
        stays * row["after"]["mean"] for stays, row in zip(kept, result["rows"], strict=True)
    )
    assert after / sum(kept) == pytest.approx(0.5)
    assert sum(kept) == math.floor(0.4 * units)


def test_every_schedule_ends_at_the_same_size_within_the_same_work(study) -> None:
    schedules = study("pruning_schedules")
    for setting, minibatches in itertools.product(
        (schedules.Setting(), schedules.SMALL), (20, 180, 1001)
    ):
        plans = schedules.plans(setting, 112, minibatches)
        assert set(plans) == {"one-shot", "geometric", "cubic", "continuous"}
        for plan in plans.values():
            fractions = list(plan.keep_after.values())
            assert fractions == sorted(fractions, reverse=True)
            assert math.floor(fractions[-1] * 112 + 1e-9) == math.floor(setting.keep_units * 112)
            assert max(plan.keep_after) <= setting.pruning_share * minibatches


def test_schedules_run_under_every_learning_rate(run_small) -> None:
    result = run_small(
        "pruning_schedules", "--model", "mlp", "--rows", "300", seeds=1, epochs=3, tune_epochs=2,
        score_rows=100,
    )  # fmt: skip
    assert len(result["rows"]) == 4 * 3
    assert all(0 <= row["accuracy"]["mean"] <= 1 for row in result["rows"])


def test_tickets_of_every_kind_are_trained(run_small) -> None:
    result = run_small(
        "lottery_tickets", "--rows", "200", seeds=1, epochs=1, early_steps=3, rounds=2, clients=5,
        averaging_rounds=2, cohort=2, local_epochs=1.0,
    )  # fmt: skip
    found = {(row["setting"], row["start"]) for row in result["rows"]}
    starts = {"initialisation", "step k", "reinitialised"}
    assert found == {("units", start) for start in starts} | {
        (what, start)
        for what in ("weights", "federated weights")
        for start in (*starts, "shuffled")
    }


def test_an_average_is_weighted_by_rows(study) -> None:
    tickets = study("lottery_tickets")
    trained = [torch.nn.Linear(2, 1) for _ in range(3)]
    mean = tickets.average(trained, [1, 2, 5])
    expected = sum(
        share * one.weight.double()
        for share, one in zip((1 / 8, 2 / 8, 5 / 8), trained, strict=True)
    )
    assert torch.allclose(mean.weight.double(), expected, atol=1e-7)


def test_decay_and_dropout_are_told_for_every_way_to_train(run_small) -> None:
    result = run_small(
        "decay_and_dropout", "--model", "mlp", "--rows", "300", seeds=1, epochs=3, grid=6
    )
    assert [(row["weight_decay"], row["dropout"]) for row in result["rows"]] == [
        (0.0, 0.0), (1e-3, 0.0), (5e-3, 0.0), (0.0, 0.3),
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["accuracy_weights"][0]["mean"] == row["accuracy_units"][0]["mean"]
        assert 0.02 <= row["least_weights"]["mean"] <= 1


def test_dropout_is_gone_after_training(study) -> None:
    decay, shared = study("decay_and_dropout"), study("_study")
    task = shared.problem("digits", "mlp", seed=1, rows=60)
    model = decay.trained(decay.Setting(epochs=1), task, 0.0, 0.5, 1).train()
    assert torch.equal(model(task.inputs), model(task.inputs))


def test_the_least_fraction_is_the_last_before_accuracy_first_falls(study) -> None:
    least = study("decay_and_dropout").least_fraction
    assert least([1.0, 0.5, 0.2, 0.1], [0.9, 0.89, 0.5, 0.9]) == 0.5
    assert least([1.0, 0.5], [0.9, 0.9]) == 0.5


def test_soft_and_hard_networks_keep_as_many_weights(run_small) -> None:
    result = run_small(
        "soft_thresholding", "--model", "mlp", "--rows", "300", seeds=1, epochs=3, tune_epochs=1,
        draws=2000, penalties=(1e-4, 2e-3),
    )  # fmt: skip
    weak, strong = result["rows"]
    assert strong["kept"]["mean"] < weak["kept"]["mean"] < 1


def test_training_is_repeatable_changes_nothing_and_holds_masks(study) -> None:
    from fedprune.pruning import weights

    shared = study("_study")
    task = shared.problem("digits", "mlp", seed=1, rows=100)
    first = task.fresh(1)
    masks = weights.magnitude_masks(first, 0.3)
    before = pruning.snapshot(first)
    runs = [
        shared.train(first, task.inputs, task.labels, epochs=1.5, seed=4, masks=masks)
        for _ in range(2)
    ]
    assert all(torch.equal(before[name], value) for name, value in first.state_dict().items())
    states = [run.state_dict() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in before)
    for name, mask in masks.keep.items():
        assert bool((states[0][name][~mask] == 0).all())
        assert bool((states[0][name][mask] != 0).any())


def test_a_single_repetition_has_no_interval(study) -> None:
    shared = study("_study")
    alone = shared.spread([0.5])
    assert (alone["mean"], alone["repeats"]) == (0.5, 1)
    assert math.isnan(alone["low"])
    three = shared.spread([1.0, 2.0, 3.0])
    assert three["high"] - 2 == pytest.approx(4.302652729911275 / math.sqrt(3))


def test_a_result_names_no_place_on_the_machine_it_was_made_on() -> None:
    from _study_results import command

    argv = ["/home/me/simulations/x.py", "--root", "/home/me/data", "--weights", "/home/me/w/n.th",
            "--work", "/tmp/w", "--small", "--out", "/home/me/x.json"]  # fmt: skip
    assert command(argv) == (
        "python simulations/x.py --root DATA --weights DATA/weights/n.th --work WORK --small "
        "--out OUT.json"
    )


def test_filling_by_value_is_for_scores_in_units_of_loss(run_small) -> None:
    result = run_small(
        "filling_budgets", "--criteria", "linear_logits", "magnitude_l2",
        seeds=2, epochs=6, keep_macs=(0.35,),
    )  # fmt: skip
    gains = {row["criterion"]: row["gain"]["mean"] for row in result["rows"]}
    assert gains["linear_logits"] > gains["magnitude_l2"] + 0.02
    for row in result["rows"]:
        difference = row["value"]["mean"] - row["ranking"]["mean"]
        assert row["gain"]["mean"] == pytest.approx(difference)
