"""The report says what a run did, says what is unknown, and stands alone."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from fedprune import config, fairness
from fedprune.audit import _wording as say
from fedprune.audit.plots import Outcome, plot_accuracy, plot_groups
from fedprune.audit.report import render
from fedprune.audit.vote_plot import MAX_UNITS, plot_votes
from fedprune.randomness import SimulationRandomness

NUM_UNITS = 60
LAYOUT = {"groups": [["conv1", 0, 20], ["conv2", 20, 60]]}


class Page(HTMLParser):
    """Visible text, elements and attributes of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self._hidden = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._hidden += tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.texts.append(data)

    @property
    def text(self) -> str:
        joined = " ".join(" ".join(self.texts).split())
        return joined.replace(say.NARROW, " ")


def make_fairness() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    dense, groups = generator.random(2000) < 0.9, generator.integers(0, 3, 2000)
    pruned = dense & (generator.random(2000) > 0.05 * groups)
    tables = fairness.client_tables(dense, pruned, groups, np.arange(2000) // 20, None, 4)
    tables[0, 3, 1, 1] = 7
    names = ["north", "south", "east", "tiny"]
    rng = SimulationRandomness(1)
    return fairness.summarize(
        tables, names, rng, other=tables, other_name="validation rows", group="region"
    ).to_json()


FAIRNESS = make_fairness()


@pytest.fixture
def summary() -> dict[str, Any]:
    baselines = {
        name: {"accuracy": accuracy, "accuracy_before_fine_tuning": before, "mask_recall": recall}
        for name, accuracy, before, recall in (
            ("votes_without_noise", 0.885, 0.651, 1.0),
            ("votes_without_prior", 0.871, 0.58, 0.83),
            ("pooled", 0.886, 0.66, 0.95),
            ("magnitude", 0.861, 0.42, 0.64),
            ("random", 0.822, 0.18, 0.5),
        )
    }
    settings = config.load().model_dump()
    return {
        "name": "a-run",
        "seed": 7,
        "accuracy": {"dense": 0.917, "pruned": 0.8804, "pruned_before_fine_tuning": 0.6312},
        "baselines": baselines,
        "mask_recall": 0.912,
        "mask_recall_without_prior": 0.83,
        "paired_difference": {
            "name": "private minus magnitude",
            "mean": 0.0194,
            "low": 0.011,
            "high": 0.0278,
            "seeds": 3,
            "confidence": 0.95,
        },
        "cost": {
            "dense": {"params": 272474, "macs": 40813184, "bytes": 1089896, "latency_ms": 3.0},
            "pruned": {"params": 71290, "macs": 12413184, "bytes": 285160, "latency_ms": 1.0},
            "latency": {"batch_size": 1, "threads": 2, "repeats": 50},
        },
        "privacy": {
            "trust": "local",
            "unit": "client",
            "relation": "replacement",
            "epsilon": 4.0,
            "delta": 0.0,
            "mechanism": "threshold response",
            "variance_per_vote": 25.1,
            "reports": 10000,
            "max_epsilon_spent": 4.0,
            "overall_client_epsilon": None,
            "not_covered": ["model updates are sent unprotected"],
        },
        "fairness": copy.deepcopy(FAIRNESS),
        "robustness": {
            "upper_dense": 2.7e4,
            "upper_pruned": 2.8e4,
            "lower_dense": 30.0,
            "lower_pruned": 28.0,
            "method_dense": "product of layer norms",
            "method_pruned": "product of layer norms",
        },
        "certified_accuracy": {"radius": 0.1, "unit": "pixel units", "dense": 0.4, "pruned": 0.5},
        "traffic": {
            "up_bytes_per_client": 20,
            "down_bytes_per_client": 1_100_000,
            "dense_upload_bytes": 1_089_896,
        },
        "seconds": {"train": 41.2, "fine_tune": 222.3},
        "versions": {"fedprune": "0.1.0"},
        "plan": {"predicted_recall": 0.9, "useful": True, "advice": ""},
        "kept": {
            "units": 30,
            "of": NUM_UNITS,
            "by_group": [
                {"name": "conv1", "kept": 12, "of": 20},
                {"name": "conv2", "kept": 18, "of": 40},
            ],
        },
        "config": settings,
    }


@pytest.fixture
def votes() -> dict[str, np.ndarray]:
    return make_votes(NUM_UNITS)


def make_votes(units: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    mean = generator.normal(0.5, 0.2, units)
    posterior = 0.7 * mean + 0.15
    return {
        "mean": mean,
        "variance": np.full(units, 0.003),
        "posterior": posterior,
        "mask": posterior > np.median(posterior),
    }


def text_of(summary: dict[str, Any], **options: Any) -> str:
    return Page(render(summary, **options)).text


def svgs(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def test_the_first_lines_say_what_was_done_and_what_protects_it(summary, votes) -> None:
    text = text_of(summary, votes=votes, layout=LAYOUT)
    opening = text[: text.index("Accuracy, and whether")]
    for words in (
        "keeps 30 of its 60 units",
        "3.82× smaller",
        "3× faster",
        "from 91.7 % to 88.0 %",
        "ε = 4 and δ = 0 per client, under replacement",
        "any change of one client's whole data",
        "trusted: nobody",
        "model updates are sent unprotected",
    ):
        assert words in opening


def test_every_figure_of_the_summary_is_on_the_page(summary, votes) -> None:
    text = text_of(summary, votes=votes, layout=LAYOUT)
    for words in (
        "private votes (this run) 63.12 % 88.04 % 91.2 %",
        "magnitude of the weights 42.00 % 86.10 % 64.0 %",
        "+1.94 percentage points (95 % interval +1.10 to +2.78, over 3 seeds)",
        "Parameters 272 474 71 290 3.82×",
        "3 ms 1 ms 3×",
        "Variance of one unit's vote 25.1",
        "Reports received 10 000",
        "conv1 12 20 60 %",
        "dense 27 000 30 900× 40.00 %",
        "pruned 28 000 28 1 000× 50.00 %",
        "Mask report that a client sends 20 B",
        "fine tune 3 min 42 s",
        "fedprune 0.1.0",
        "privacy.epsilon 4",
    ):
        assert words in text, words


def test_the_page_loads_nothing_and_runs_nothing(summary, votes) -> None:
    html = render(summary, votes=votes, layout=LAYOUT)
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "img"} & set(page.elements)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("href", "src", "xlink:href"):
            assert value.startswith("#"), (tag, value)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in style
    assert "url(" not in style


def test_ids_are_unique_and_every_reference_has_its_target(summary, votes) -> None:
    page = Page(render(summary, votes=votes, layout=LAYOUT))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, name, value in page.attributes if name.endswith("href")}
    assert targets <= set(ids)


def test_every_plot_is_valid_and_has_a_title_and_a_description(summary, votes) -> None:
    drawn = svgs(render(summary, votes=votes, layout=LAYOUT))
    assert len(drawn) == 3
    for svg in drawn:
        assert svg.get("role") == "img"
        described = (svg.get("aria-labelledby") or "").split()
        texts = {element.get("id"): element.text for element in svg.iter()}
        assert all(texts[name] for name in described)


def test_the_same_run_gives_the_same_page(summary, votes) -> None:
    options = {"votes": votes, "layout": LAYOUT}
    assert render(summary, **options) == render(summary, **options)


def leaves(content: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in content.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


def blank(content: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for key in path[:-1]:
        inner = content.get(key)
        if not isinstance(inner, dict):
            return
        content = inner
    content[path[-1]] = value


@pytest.mark.parametrize("nothing", [None, float("nan")])
@pytest.mark.parametrize("trial", range(6))
def test_whatever_is_missing_is_said_in_words(summary, nothing, trial) -> None:
    generator = np.random.default_rng(trial)
    paths = [p for p in leaves(summary) if p[:2] != ("fairness", "groups")]
    share = [1.0, 0.5, 0.3, 0.2, 0.1, 0.05][trial]
    for path in paths:
        if generator.random() < share:
            leaf = not isinstance(say.pick(summary, ".".join(path)), dict)
            blank(summary, path, nothing if leaf else None)
    text = text_of(summary)
    assert not re.search(r"\b(None|nan|NaN|inf|null|undefined)\b", text)
    assert "not known" in text


def test_an_empty_summary_still_makes_a_page() -> None:
    text = text_of({})
    assert "its accuracy was not measured" in text
    assert "No privacy guarantee was recorded" in text


def test_a_deployed_run_says_why_there_are_no_baselines(summary, votes) -> None:
    summary["baselines"] = dict.fromkeys(summary["baselines"])
    summary["mask_recall"] = None
    text = text_of(summary, votes=votes)
    assert "exist only in simulation" in text
    assert "private votes (this run) 63.12 % 88.04 % not known" in text


def test_a_run_without_protection_says_so_first(summary) -> None:
    summary["privacy"] = {"trust": "none", "epsilon": None}
    text = text_of(summary)
    assert "Nothing protects the votes" in text
    assert "private votes" not in text
    assert "ε = not known" not in text


def test_unprotected_messages_leave_no_epsilon_for_the_whole_run(summary) -> None:
    words = "no client-level ε holds for all that a client sent"
    assert words in text_of(summary)
    summary["privacy"]["overall_client_epsilon"] = 4.0
    assert words not in text_of(summary)


def test_one_seed_gives_no_interval(summary) -> None:
    summary["paired_difference"].update(low=None, high=None, seeds=1)
    assert "one seed gives no interval" in text_of(summary)


def test_an_interval_around_zero_shows_no_difference(summary) -> None:
    summary["paired_difference"].update(low=-0.01)
    text = text_of(summary)
    assert "includes zero" in text
    assert "the vote helps" not in text


def test_fewer_operations_without_speed_are_called_out(summary) -> None:
    words = "brought no measured speed-up"
    assert words not in text_of(summary)
    summary["cost"]["pruned"]["latency_ms"] = 2.99
    text = text_of(summary)
    assert words in text
    assert "and no faster" in text
    summary["cost"]["pruned"]["latency_ms"] = 6.0
    assert "2× slower" in text_of(summary)


def test_a_speed_up_that_its_interval_does_not_show_is_no_speed_up(summary) -> None:
    summary["cost"]["latency"] |= {"speedup": 1.21, "speedup_interval": [1.1, 1.3]}
    assert "brought nothing that could be measured" not in text_of(summary)
    assert "95 % interval of the speed-up 1.10× to 1.30×" in text_of(summary)
    summary["cost"]["latency"]["speedup_interval"] = [0.93, 1.3]
    assert "brought nothing that could be measured" in text_of(summary)


def test_a_bound_that_shrinks_with_the_accuracy_is_called_out(summary) -> None:
    words = "certified accuracy is what matters"
    assert words not in text_of(summary)
    summary["robustness"]["upper_pruned"] = 2400.0
    assert words not in text_of(summary)
    summary["accuracy"]["pruned"] = 0.12
    opening = text_of(summary).split("Accuracy, and whether")[0]
    assert words in opening


def test_a_useless_plan_is_called_out_with_its_advice(summary) -> None:
    summary["plan"] = {"predicted_recall": 0.55, "useful": False, "advice": "use more clients"}
    text = text_of(summary)
    assert "mask of little use (predicted recall 55 %). Use more clients." in text


def test_a_small_group_is_shown_without_any_number(summary) -> None:
    text = text_of(summary)
    assert "tiny under 30 too small too small" in text
    drawn = plot_groups(summary["fairness"]["groups"], 0.95)
    assert drawn is not None
    assert "tiny" not in drawn.svg


def test_the_followed_pair_is_told_with_its_interval(summary) -> None:
    pair = summary["fairness"]["pair"]
    text = text_of(summary)
    assert f"{pair['best']} minus {pair['worst']} changed by" in text
    assert "chosen on validation rows" in text
    assert "biased upward" in text


def test_a_group_without_interval_or_accuracy_is_drawn_as_far_as_it_is_known() -> None:
    known = {"name": "a", "accuracy_dense": 0.9, "accuracy_pruned": 0.8}
    half = {"name": "b", "accuracy_dense": None, "accuracy_pruned": 0.8}
    plot = plot_groups([{**known, "interval_pruned": [None, 0.9]}, half], 0.95)
    assert plot is not None
    assert ">a<" in plot.svg
    assert ">b<" not in plot.svg


def test_counts_of_all_clients_are_added_up_and_shown(summary) -> None:
    one = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    tables = {"names": ["x", "y"], "test": [one, one]}
    assert "x 8 6 4 2 y 16 14 12 10" in text_of(summary, tables=tables)


def test_a_broken_claim_is_a_warning_and_the_unseen_is_told(summary) -> None:
    findings = [
        {"part": "privacy", "claim": "chain", "holds": True, "detail": ""},
        {"part": "model", "claim": "reload", "holds": True, "detail": "identical"},
    ]
    audit = {"holds": True, "findings": findings, "unseen": ["latency of other machines"]}
    text = text_of(summary, audit=audit)
    assert "Holds. 2 claims checked from the run's folder, none refuted." in text
    assert "Latency of other machines." in text
    findings[0]["holds"] = False
    text = text_of(summary, audit=audit)
    assert "Warning. Of 2 claims checked from the run's folder 1 does not hold" in text


def test_the_stages_of_a_baseline_are_one_line_of_time(summary) -> None:
    summary["seconds"] = {"vote": 1.0, "random/fine-tune": 2.0, "random/evaluate": 3.0}
    assert "vote 1.0 s random (baseline) 5.0 s together 6.0 s" in text_of(summary)


def test_events_are_listed(summary) -> None:
    events = [{"phase": "fine_tune", "finished": "2030-01-01T00:00:00Z", "seconds": 4000}]
    assert "fine tune 2030-01-01T00:00:00Z 1 h 06 min" in text_of(summary, events=events)


HOSTILE = '<script>alert("&")</script> $\\frac$ 猫'


def test_names_are_text_wherever_they_come_from(summary, votes) -> None:
    summary["name"] = summary["config"]["model"]["name"] = HOSTILE
    summary["privacy"]["mechanism"] = summary["fairness"]["group"] = HOSTILE
    summary["privacy"]["not_covered"] = [HOSTILE]
    summary["fairness"]["groups"][0]["name"] = HOSTILE
    summary["kept"]["by_group"][0]["name"] = HOSTILE
    layout = {"groups": [[HOSTILE, 0, 20], ["conv2", 20, 60]]}
    html = render(summary, votes=votes, layout=layout)
    assert "script" not in Page(html).elements
    assert len(svgs(html)) == 3
    assert '<script>alert("&")</script>' in Page(html).text


def markers(plot_svg: str) -> int:
    tree = ElementTree.fromstring(plot_svg)
    return sum(element.tag.endswith("}use") for element in tree.iter())


def test_every_unit_is_one_marker_in_the_plot_of_votes(votes) -> None:
    plot = plot_votes(votes, [("conv1", 20), ("conv2", 40)])
    assert plot is not None
    y_ticks = markers(plot_votes({**votes, "mask": votes["mask"] ^ True}, [("a", 60)]).svg)
    assert markers(plot.svg) >= NUM_UNITS + 2  # and one of each kind in the legend
    assert abs(markers(plot.svg) - y_ticks) <= 4  # ticks aside, the mask only colours
    assert "conv1" in plot.svg
    assert "var(--kept)" in plot.svg
    assert "var(--removed)" in plot.svg


def test_many_units_are_thinned_and_the_caption_says_so() -> None:
    plot = plot_votes(make_votes(5000), [("all", 5000)])
    assert plot is not None
    assert f"Of 5,000 units {5000 // 5:,} are drawn" in plot.caption
    assert markers(plot.svg) < MAX_UNITS + 100
    assert len(plot.svg) < 400_000


def test_layers_that_do_not_add_up_are_not_drawn(votes) -> None:
    plot = plot_votes(votes, [("conv1", 20)])
    assert plot is not None
    assert "all units" in plot.svg
    assert "conv1" not in plot.svg


def test_there_is_no_plot_without_anything_to_draw(votes) -> None:
    assert plot_votes({}, []) is None
    assert plot_votes({**votes, "mean": np.full(NUM_UNITS, np.nan)}, []) is None
    assert plot_accuracy([Outcome("a", None, None, own=True)], 0.9) is None
    assert plot_groups([{"name": "a", "too_small": True}], 0.95) is None


def test_a_plot_without_prior_draws_the_votes_themselves(votes) -> None:
    del votes["posterior"]
    plot = plot_votes(votes, [])
    assert plot is not None
    assert "Dot: the vote;" in plot.caption


def luminance(colour: str) -> float:
    colour = colour.lstrip("#")
    colour = "".join(2 * c for c in colour) if len(colour) == 3 else colour
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_in_light_dark_and_print() -> None:
    source = resources.files("fedprune.audit").joinpath("report.html.j2").read_text("utf-8")
    themes = re.findall(r":root \{(.*?)\}", source, re.DOTALL)
    assert len(themes) == 3
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", theme))
        for ink in ("ink", "muted", "kept", "removed", "good", "bad", "mind"):
            for ground in ("paper", "card"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground, theme)
        for kind in ("good", "bad", "mind"):
            assert contrast(colours["ink"], colours[f"{kind}-soft"]) >= 7
            assert contrast(colours[kind], colours[f"{kind}-soft"]) >= 4.5, (kind, theme)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (say.percent(0.91734), "91.73 %"),
        (say.points(-0.0312, 1), "−3.1"),
        (say.points(-0.0000001), "0.00"),
        (say.points_interval([-0.01, 0.02], 1), "−1.0 to +2.0"),
        (say.points_interval([None, 0.02]), "not known"),
        (say.large(40_813_184), "40.8 M"),
        (say.size(999), "999 B"),
        (say.size(1_089_896), "1.09 MB"),
        (say.count(10_000), "10 000"),
        (say.plain(0.0), "0"),
        (say.plain(1e-5), "1.00 × 10^−5"),
        (say.plain(28_000.0), "28 000"),
        (say.plain(1000.0), "1 000"),
        (say.plain(999.6), "1 000"),
        (say.times(None), "not known"),
        (say.times(865.4), "865×"),
        (say.seconds(59.94), "59.9 s"),
        (say.seconds(59.97), "1 min 00 s"),
        (say.seconds(3_599.7), "1 h 00 min"),
        (say.p_value(0.0002), "< 0.001"),
        (say.text(None), "not known"),
        (say.text(True), "yes"),
        (say.sentence("model updates are sent"), "Model updates are sent."),
    ],
)
def test_numbers_are_written_for_readers(written, expected) -> None:
    assert written.replace(say.NARROW, " ") == expected
