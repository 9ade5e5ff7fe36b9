"""What the scripts of measured time say is consistent in itself; wrong options are one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fedprune import hardware

FIELDS = {"question", "command", "date", "seed", "config", "versions", "machine"}
Study = Callable[[str], ModuleType]


@pytest.fixture
def run(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[dict[str, Any], int]]:
    """Run a script's command; its results and its exit code."""

    def command(name: str, *options: str) -> tuple[dict[str, Any], int]:
        out, code = tmp_path / "new" / f"{name}.json", 0
        monkeypatch.setattr("sys.argv", [f"{name}.py", *options])
        try:
            study(name).main([*options, "--out", str(out)])
        except SystemExit as ended:
            code = int(ended.code or 0)
        assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        return json.loads(out.read_text(encoding="utf-8")), code

    return command


def test_speed_ups_lie_in_their_intervals_and_are_promised_by_what_is_kept(
    run: Callable[..., tuple[dict[str, Any], int]], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--models", "resnet20", "--batch-sizes", "1", "2", "--ways", "folded",
               "--repeats", "6")  # fmt: skip
    result, _ = run("pruned_speed", *options)
    assert result.keys() >= FIELDS
    assert [row["batch_size"] for row in result["rows"]] == [1, 2]
    for row in result["rows"]:
        runs = row["runs"]
        assert set(runs) == {"dense", "shrunk", "dense folded", "shrunk folded"}
        assert all(one["median_ms"] > 0 for one in runs.values())
        assert all(one["low"] <= one["speedup"] <= one["high"] for one in runs.values())
        assert runs["dense"]["speedup"] == runs["dense"]["low"] == runs["dense"]["high"] == 1
        assert row["kept"]["units"] == 0.5
        assert row["promised"] == pytest.approx(1 / row["kept"]["macs"])
        assert 3.8 < row["promised"] < 4.0  # half of inputs and outputs, but for the first layer
        nothing = runs["shrunk"]["low"] <= 1
        assert ("bring nothing" in row["says"]) is nothing
        if row["batch_size"] == 1:
            held = runs["shrunk"]["speedup"] >= row["claim"]["at_least"] == 1.6
            assert row["claim"]["held"] is held
        else:
            assert row["claim"] is None
    assert result["rows"][0]["says"] in capsys.readouterr().out


def test_work_of_a_roofline_is_the_layers_own_and_rates_are_its_quotients(
    run: Callable[..., tuple[dict[str, Any], int]],
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = study("roofline")
    quick = partial(hardware.roofline, repeats=1, numbers=2**14)
    monkeypatch.setattr(script.hardware, "roofline", quick)
    monkeypatch.setattr(script, "CONVOLUTIONS", ((8, 6, 3, 10),))
    monkeypatch.setattr(script, "LINEARS", ((32, 20),))
    result, _ = run("roofline", "--keep", "0.25", "1", "--batch-size", "2", "--repeats", "6")
    assert result.keys() >= FIELDS
    limits = result["roofline"]
    assert limits["ridge"] == pytest.approx(limits["gigaflops"] / limits["gigabytes_per_second"])
    for one in [*result["forms"], *result["network"]]:
        assert one["low_ms"] <= one["median_ms"] <= one["high_ms"]
        assert one["gigaflops"] == pytest.approx(one["flops"] / one["median_ms"] / 1e6)
        assert one["intensity"] == pytest.approx(one["flops"] / one["bytes"])
        roof = one["intensity"] * limits["gigabytes_per_second"]
        assert one["attainable"] == pytest.approx(min(limits["gigaflops"], roof))
    flops = {(o["layer"], o["keep"], o["form"]): o["flops"] for o in result["forms"]}
    conv, dense = "conv 3x3 8-6 at 10", 2 * 2 * 100 * 8 * 6 * 9
    assert flops[conv, 1.0, "dense"] == flops[conv, 1.0, "csr"] == dense
    assert flops[conv, 0.25, "csr"] == flops[conv, 0.25, "shrunk"] == dense / 4
    times = {(o["layer"], o["keep"], o["form"]): o for o in result["forms"]}
    for (layer, keep, _), one in times.items():
        whole = times[layer, keep, "dense"]["median_ms"]
        assert one["speedup"] == pytest.approx(whole / one["median_ms"])


def test_a_budget_study_fails_exactly_if_a_claim_does(
    run: Callable[..., tuple[dict[str, Any], int]],
) -> None:
    options = ("--model", "squeezenet1_1", "--side", "32", "--repeats", "6", "--round-to", "4")
    result, code = run("resnet101_budget", *options)
    assert result.keys() >= FIELDS
    found, claims = result["found"], result["claims"]
    del claims["under 30 s"]  # a machine may be busy
    assert all(claims.values())
    assert code == 0 or sum(found["seconds"].values()) >= 30
    assert found["units_kept"] == sum(kept for _, kept, _ in found["groups"])
    assert all(kept % 4 == 0 and 0 < kept <= units for _, kept, units in found["groups"])
    for cost in ("params", "macs"):
        said, counted = found["said"]["shrunk"][cost], found["counted"]["shrunk"][cost]
        assert said == counted
        assert found["kept"][cost] == pytest.approx(said / found["said"]["dense"][cost])
    middle, low, high = found["speedup"]
    assert low <= middle <= high


def test_budgets_of_time_and_of_operations_are_kept(
    run: Callable[..., tuple[dict[str, Any], int]], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--models", "resnet20", "--batch-sizes", "2", "--keeps", "0.8", "--repeats", "6")
    result, _ = run("latency_budget", *options)
    assert result.keys() >= FIELDS
    by_budget = {row["budget"]: row for row in result["networks"][0]["shares"]}
    assert by_budget["keep_macs"]["macs"] <= 0.8
    assert by_budget["keep_latency"]["predicted"] <= 0.8
    for row in by_budget.values():
        assert 0 < row["low"] <= row["measured"] <= row["high"]
        assert 0 < row["kept_score"] < 1
    said = capsys.readouterr().out
    assert all(f"predicted {row['predicted']:.3f}" in said for row in by_budget.values())
    assert result["networks"][0]["unmet"] == []


def test_a_share_that_no_mask_can_have_is_reported_beside_those_that_can(
    run: Callable[..., tuple[dict[str, Any], int]], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--models", "resnet20", "--batch-sizes", "2", "--keeps", "0.9", "0.0001")
    result, _ = run("latency_budget", *options, "--repeats", "6")
    found = result["networks"][0]
    assert {(row["budget"], row["asked"]) for row in found["shares"]} == {
        ("keep_macs", 0.9), ("keep_latency", 0.9),
    }  # fmt: skip
    assert {row["budget"]: row["asked"] for row in found["unmet"]} == {
        "keep_macs": 0.0001, "keep_latency": 0.0001,
    }  # fmt: skip
    said = capsys.readouterr().out
    assert all(f"out of reach: {row['reason']}" in said for row in found["unmet"])


WRONG = {
    "pruned_speed": {
        "--models": "resnet21", "--batch-sizes": "0", "--side": "-1", "--keep": "1.5",
        "--round-to": "0", "--ways": "magic", "--repeats": "5", "--threads": "0",
    },
    "roofline": {
        "--model": "resnet21", "--keep": "0", "--batch-size": "no", "--repeats": "2",
        "--threads": "0",
    },
    "resnet101_budget": {
        "--model": "resnet21", "--side": "0", "--keep-params": "nan", "--keep-macs": "2",
        "--scope": "each", "--round-to": "x", "--repeats": "1", "--threads": "-1",
    },
    "latency_budget": {
        "--models": "resnet21", "--batch-sizes": "0", "--keeps": "1.5", "--side": "-1",
        "--repeats": "5", "--threads": "0",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_option_is_one_sentence_and_leaves_nothing(
    name: str, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    for option, value in WRONG[name].items():
        small = ["--models", "resnet20", "--batch-sizes", "1"] if name == "pruned_speed" else []
        with pytest.raises(SystemExit) as stopped:
            study(name).main([*small, option, value, "--out", str(tmp_path / "out.json")])
        said = capsys.readouterr().err.splitlines()
        if isinstance(stopped.value.code, str):
            assert "\n" not in stopped.value.code
            assert value in stopped.value.code
        else:
            assert stopped.value.code == 2
            assert f"error: argument {option}" in said[-1]
            assert value in said[-1]
    assert list(tmp_path.iterdir()) == []
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", WRONG)
def test_a_place_where_nothing_can_be_written_is_refused_before_anything_is_measured(
    name: str, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "out.json"):
        with pytest.raises(SystemExit) as stopped:
            study(name).main(["--out", str(place)])
        assert stopped.value.code == 2
        assert f"{place}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", WRONG)
def test_help_names_every_option(
    name: str, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        study(name).main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in (*WRONG[name], "--seed", "--small", "--out"))
