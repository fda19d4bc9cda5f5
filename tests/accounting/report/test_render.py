import math
import re
import sys
from functools import lru_cache
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from accounting.report.figures import interval
from accounting.report.guarantee import ProfilePoint
from accounting.report.page import MissingExtra
from accounting.report.phrase import round_up
from accounting.report.record import Report
from accounting.report.render import budget_bar, html, markdown
from accounting.report.scores import CurvePoint, Interval
from tests.accounting.report import sample
from tests.accounting.report.sample import (
    ASSERTED,
    CHECKED,
    ENFORCED,
    VIOLATED,
    WITHOUT_COST,
    data,
    guarantee,
    report,
    run,
    started_from,
)

HOSTILE = '<script>alert("x")</script>&amp;<img src=x onerror=y>|`*'
CURVE_OF_PROFILE = [ProfilePoint(delta=d, epsilon=e) for d, e in ((0.1, 0.6), (1e-2, 1.2), (1e-4, 2.2), (1e-9, 4.1))]
VARIANTS = {
    "private": report(),
    "asserted": report(assumptions=[ENFORCED, CHECKED, ASSERTED]),
    "violated and seeded": report(assumptions=[ENFORCED, VIOLATED], run=run(insecure_seed=3)),
    "without privacy": report(guarantee=None, budget=None, data=data(public=True)),
    "continued": report(
        run=run(
            started_from=[
                started_from(),
                started_from(run="b", same_ledger=False, verdict="conditional"),
                started_from(run="c", public=True, verdict="not private", same_ledger=False, **WITHOUT_COST),
            ]
        )
    ),
    "everything stated": report(
        audit=[sample.audit()],
        guarantee=guarantee(**{**sample.IN_OTHER_TERMS, "curve": CURVE_OF_PROFILE}),
        **sample.STATED,
    ),
    "contradicted by an audit": report(
        audit=[sample.audit(), sample.audit(epsilon_lower=3.4567, verdict="violation", canary_kind="user")]
    ),
    "little stated": report(
        guarantee=guarantee(epsilon_lower=None, epsilon_without_amplification=None, profile=[], unit_columns=[]),
        data=data(population=None, schema_sha256=None, split="not stated"),
        run=run(seconds=None, seed=None),
        budget=sample.BLOCKS["budget"].model_copy(update={"spent_before_delta": None, "this_run_delta": None}),
        assumptions=[],
        not_covered=[],
        metrics=[],
    ),
}
variants = pytest.mark.parametrize("made", VARIANTS.values(), ids=VARIANTS.keys())


class Page(HTMLParser):
    """Reads a page; `problems` holds tags that do not nest, `text` what a reader sees."""

    VOID = frozenset({"meta", "br", "img", "link", "hr", "input"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.headline = ""
        self.feed(source)
        self.close()
        self.problems += [f"{tag} is never closed" for tag in self.open]
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"{tag} is closed where it is not open")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "title" not in self.open:
            self.texts.append(data)
        if "h1" in self.open:
            self.headline += data


def plot_of(source: str, title: str) -> str:
    (found,) = (one for one in re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL) if f"<title>{title}" in one)
    assert 'role="img"' in found
    return str(found)


def markers(plot: str) -> list[tuple[float, float]]:
    """Returns where the points of a plot's own data are drawn."""
    found = re.findall(r'<use xlink:href="#[^"]*" x="([\d.]*)" y="([\d.]*)" style="fill: var\(--accent\)', plot)
    return [(float(x), float(y)) for x, y in found]


def page_of(made: Report) -> Page:
    return Page(page_source(made))


def page_source(made: Report) -> str:
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match=r'pip install "privads\[report\]"'):
            html(made)
        pytest.skip("the extra `report` is not installed")
    return rendered(made.to_json())


@lru_cache(maxsize=32)
def rendered(text: str) -> str:
    return html(Report.from_json(text))


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_without_the_extra_html_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "accounting.report.plot", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError) as caught:
        html(report())
    assert caught.type is MissingExtra
    assert 'pip install "privads[report]"' in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_extra_json_and_markdown_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "accounting.report.plot", raising=False)
    for missing in ("jinja2", "matplotlib"):
        monkeypatch.setitem(sys.modules, missing, None)
    assert report().headline in markdown(report())
    assert report().headline in report().to_json()


@variants
def test_html_is_well_formed(made: Report) -> None:
    source = page_source(made)
    page = Page(source)
    assert page.problems == []
    assert source.lstrip().startswith("<!DOCTYPE html>")
    assert [tag for tag, _ in page.tags].count("h1") == 1


@variants
def test_both_forms_hold_headline_assumptions_and_what_is_not_covered(made: Report) -> None:
    page, text = page_of(made), markdown(made)
    assert page.headline == made.headline
    assert f"**{made.headline}**" in text
    for line in (*made.not_covered, *(word for a in made.assumptions for word in (a.text, a.status, a.by))):
        assert line in page.text
        assert line in text


def test_the_answer_comes_before_the_details() -> None:
    made = VARIANTS["asserted"]
    for text in (page_of(made).text, markdown(made)):
        order = [
            made.headline,
            "Someone who sees",
            made.not_covered[0],
            ASSERTED.by,
            "sampling rate",
            "AUC",
            "torch",
        ]
        places = [text.index(part) for part in order]
        assert places == sorted(places)


@variants
def test_no_epsilon_is_printed_without_its_terms(made: Report) -> None:
    terms = r" \(delta ([\d.e-]+|not stated), user, add/remove, [\w ]+\)"
    figure = r"(epsilon|ε) *(<=|>=|≤|≥|=) *[\d.e-]+"
    lines = markdown(made).splitlines()
    for text in (*lines, page_of(made).text, made.headline):
        assert len(re.findall(figure, text)) == len(re.findall(figure + terms, text)), text
    claims = [line for line in lines if "epsilon <=" in line or "ε ≤" in line]
    assert bool(claims) == (made.guarantee is not None)
    for line in claims:
        assert "delta" in line
        assert "user" in line
        assert "add/remove" in line


def test_every_profile_point_and_the_figure_without_sampling_are_shown() -> None:
    made = report(guarantee=guarantee(epsilon_lower=2.9688))
    for text in (markdown(made), page_of(made).text):
        for figure in (
            "epsilon >= 2.96 (delta 1e-06, user",
            "epsilon <= 2.56 (delta 1e-05, user",
            "epsilon <= 3.35 (delta 1e-07, user",
            "epsilon <= 3.70 (delta 1e-08, user",
            "epsilon <= 41.19 (delta 1e-06, user",
        ):
            assert figure in text


@variants
def test_nothing_is_left_blank(made: Report) -> None:
    source = page_source(made)
    assert re.findall(r"<(?:dd|dt|td|th|li|p|h2|h3)(?: [^>]*)?>\s*</", source) == []
    assert [line for line in markdown(made).splitlines() if re.search(r"\|\s*\|", line)] == [
        line for line in markdown(made).splitlines() if line == "|  |  |" or line.startswith("|  | this model |")
    ]
    assert "None" not in source
    assert "None" not in markdown(made)


def test_what_is_missing_is_called_not_stated() -> None:
    made = VARIANTS["little stated"]
    for text in (markdown(made), page_of(made).text):
        for name in (
            "population, declared",
            "schema SHA-256",
            "split",
            "lower end",
            "without sampling",
            "time taken",
        ):
            assert re.search(rf"{name}( \| |\s?)not stated", text), name
        assert "delta not stated" in text


def test_hostile_values_stay_text_in_html() -> None:
    source = page_source(hostile())
    page = Page(source)
    assert page.problems == []
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert page.headline == hostile().headline
    assert page.text.count('<script>alert("x")</script>') >= 8


def test_hostile_values_stay_text_in_markdown() -> None:
    text = markdown(hostile())
    prose = re.sub(r"```json\n.*?\n```", "", text, flags=re.DOTALL)
    assert re.search(r"(?<!\\)<[a-zA-Z/]", prose) is None
    for table in re.findall(r"(?:^\|.*\n)+", prose, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def hostile() -> Report:
    task = sample.BLOCKS["metrics"][0]
    return report(
        data=data(dataset=HOSTILE, public=True, labels=[HOSTILE]),
        assumptions=[ASSERTED.model_copy(update={"text": HOSTILE, "by": HOSTILE})],
        not_covered=[HOSTILE],
        metrics=[
            task.model_copy(update={"task": HOSTILE, "reference": task.reference.model_copy(update={"name": HOSTILE})})
        ],
        run=run(config={HOSTILE: HOSTILE}),
        model=sample.BLOCKS["model"].model_copy(update={"name": HOSTILE, "settings": {HOSTILE: HOSTILE}}),
    )


@variants
def test_html_runs_nothing_and_loads_nothing(made: Report) -> None:
    source = page_source(made)
    page = Page(source)
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {name for name in attributes if name.startswith("on") or name == "src"}
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert re.findall(r"@import|url\((?!#)|https?:", source) == []


def test_html_has_a_dark_and_a_printed_form_and_the_plot_follows() -> None:
    source = page_source(report())
    assert "prefers-color-scheme: dark" in source
    assert "@media print" in source
    plots = re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL)
    assert len(plots) == 2
    for plot in plots:
        assert set(re.findall(r"#[0-9a-f]{6}\b", plot)) == set()
        assert "var(--accent)" in plot


def test_the_plots_of_loss_show_the_points_of_the_record() -> None:
    """Read off the plot by its axes: steps and epsilon, epsilon and the logarithm of delta."""
    promise = VARIANTS["everything stated"].guarantee
    assert promise is not None
    source = page_source(VARIANTS["everything stated"])
    points = [(at.steps, at.epsilon) for at in promise.over_steps]
    assert read_off(plot_of(source, "Epsilon over the steps")) == pytest.approx(np.array(points), rel=0.005)
    found = {(at.epsilon, math.log(at.delta)) for at in (*promise.profile, *promise.curve)}
    found.add((promise.epsilon, math.log(promise.delta)))
    shown = read_off(plot_of(source, "Privacy profile"), delta_is_log=True)
    assert shown == pytest.approx(np.array(sorted(found)), rel=0.005)


def read_off(plot: str, *, delta_is_log: bool = False) -> np.ndarray[Any, Any]:
    """Returns the points of a plot as its axes say: (points, 2)."""
    ticks = re.findall(
        r'<use xlink:href="#[^"]*" x="([\d.]*)" y="([\d.]*)" style="fill: currentColor[^>]*>'
        r"(?:(?!<use).)*?text-anchor: (middle|end)[^>]*>([^<]*)</text>",
        plot,
        flags=re.DOTALL,
    )
    places, found = markers(plot), []
    for axis, anchor in ((0, "middle"), (1, "end")):
        labels = [float(label.replace(",", "")) for *_, where, label in ticks if where == anchor]
        labels = list(map(math.log, labels)) if axis and delta_is_log else labels
        map_back = np.polyfit([float(tick[axis]) for tick in ticks if tick[2] == anchor], labels, 1)
        found.append(np.polyval(map_back, [place[axis] for place in places]))
    return np.stack(found, axis=1)


def test_a_report_without_such_points_has_no_such_plots() -> None:
    for made in (VARIANTS["little stated"], VARIANTS["without privacy"]):
        assert "Epsilon over the steps" not in page_source(made)
        assert "Privacy profile: delta" not in page_source(made)


def test_an_audit_is_shown_with_its_power_and_the_absence_of_one_is_said() -> None:
    made = VARIANTS["everything stated"]
    terms = "(delta 1e-06, user, add/remove, what the attacker saw)"
    for text in (markdown(made), page_of(made).text):
        assert f"epsilon >= 0.31 {terms} at 95 % confidence by one-run audit" in text
        assert f"each seen alone through one Gaussian, show on average epsilon >= 0.41 {terms}" in text
        assert "real ones show less" in text
        assert f"epsilon <= 9.12 {terms}: in more than one run of 20 even ideal canaries do not" in text
        assert "252 of 400 correct" in text
        assert "1,000, gradient: the model that is handed out has learned from them" in text
        assert "No gross error was found, which does not confirm the claim" in text
        assert "never audited" not in text
    for text in (markdown(report()), page_of(report()).text):
        assert "never audited: the claim rests on the assumptions alone" in text
    contradicted = VARIANTS["contradicted by an audit"]
    for text in (markdown(contradicted), page_of(contradicted).text):
        assert text.index("epsilon >= 3.45") < text.index("epsilon >= 0.31"), "the worst comes first"
        assert "Nothing is promised: an audit contradicts it." in text


def test_what_people_stated_is_shown() -> None:
    made = VARIANTS["everything stated"]
    for text in (markdown(made), page_of(made).text):
        for said in (
            "Training: 40 batches of the rows before 2026-11-15.",
            "ranking model of 2026",
            "Example Ads",
            "2026-12-01",
            "the privacy board",
            "half of what last year's model cost",
            "sees all rows; trusted with: to show nothing but the model",
            "30 days",
            "the population, as declared",
        ):
            assert said in text, said
        assert re.search(r"of a unit, unprotected( \| |\s?)none", text)


def test_the_same_loss_in_other_terms_names_unit_neighbors_and_release() -> None:
    about = "(user, add/remove, final model)"
    for text in (markdown(VARIANTS["everything stated"]), page_of(VARIANTS["everything stated"]).text):
        for said in (
            f"finds at most 4.90 % of those that took part {about}",
            "mu 0.67, at one share of false alarms its best test misses at most 0.004 less than the run's: to compare"
            f" runs by, no promise {about}",
            f"rho at most 16.53 {about}",
            f"order 2: at most 0.31; order 8: at most 1.93 {about}",
        ):
            assert said in text, said


def test_a_text_of_ten_million_characters_leaves_a_page_that_opens() -> None:
    long = HOSTILE + "x" * 10_000_000
    task = sample.BLOCKS["metrics"][0].model_copy(update={"task": long})
    made = report(data=data(dataset=long, public=True), metrics=[task])
    page_source(report())  # skips without the extra
    for source in (html(made), markdown(made)):
        assert len(source) < 1_000_000
        assert "(cut: 10,000,0" in source
    assert Page(html(made)).problems == []


def test_the_calibration_plot_has_a_title_and_a_point_for_every_bin() -> None:
    plot = plot_of(page_source(report()), "Calibration of click: observed rate against mean prediction")
    assert len(markers(plot)) == len(sample.CURVE)


@pytest.mark.parametrize("points", [[(0.0, 0.0)], [(0.01, 0.0), (0.4, 0.5)], [(0.2, 0.2)], [(1.0, 1.0)]])
def test_a_calibration_curve_may_hold_zeros_and_lack_intervals(points: list[tuple[float, float]]) -> None:
    curve = tuple(CurvePoint(mean_predicted=x, observed_rate=y, rows=5) for x, y in points)
    task = sample.BLOCKS["metrics"][0].model_copy(update={"curve": curve})
    assert "<svg" in page_source(report(metrics=[task]))


@variants
def test_the_same_report_gives_the_same_bytes(made: Report) -> None:
    assert page_source(made) == html(made)
    assert markdown(made) == markdown(Report.from_json(made.to_json()))


@pytest.mark.parametrize(
    ("of", "shown"),
    [
        (Interval(value=0.741, low=0.733, high=0.749), "0.741 [0.733, 0.749]"),
        (Interval(value=0.7414, low=0.7410, high=0.7419), "0.74140 [0.74100, 0.74190]"),
        (Interval(value=0.00214, low=0.00201, high=0.00229), "0.00214 [0.00201, 0.00229]"),
        (Interval(value=1.0, low=1.0, high=1.0), "1.000 [1.000, 1.000]"),
        (Interval(value=0.0, low=0.0, high=0.5), "0.000 [0.000, 0.500]"),
        (Interval(value=None), "not defined"),
        (Interval(value=0.741), "0.741 [not stated, not stated]"),
    ],
)
def test_metrics_are_shown_with_their_intervals(of: Interval, shown: str) -> None:
    assert interval(of) == shown


def test_the_reference_stands_beside_the_metric() -> None:
    assert "| AUC | 0.741 [0.733, 0.749] | 0.782 [0.774, 0.791] |" in markdown(report())
    assert "Bayes optimum" in markdown(report())
    assert re.search(r"AUC\s*0\.741 \[0\.733, 0\.749\]\s*0\.782 \[0\.774, 0\.791\]", page_of(report()).text)


def test_metrics_say_whether_epsilon_covers_them() -> None:
    released = sample.BLOCKS["metrics"][0].model_copy(update={"released": True})
    for render in (markdown, lambda made: page_of(made).text):
        assert "epsilon does not cover these figures" in render(report())
        assert "epsilon does not cover these figures" not in render(report(metrics=[released]))
        assert "epsilon covers these figures" in render(report(metrics=[released]))


def test_the_bar_shows_before_this_run_and_left() -> None:
    bar = budget_bar(sample.BLOCKS["budget"])  # limit 8: 2 before, 2.9714 now, 3.0286 left
    assert bar.before == 25.0
    assert bar.this_run == pytest.approx(37.14, abs=0.01)
    assert bar.words == "25% of the limit was spent before, 37% went to this run, 38% is left"
    overspent = sample.BLOCKS["budget"].model_copy(update={"spent_before_epsilon": 9.0, "left_epsilon": 0.0})
    assert budget_bar(overspent)[:2] == (100.0, 0.0)


def test_a_broken_promise_is_not_explained_as_if_it_held() -> None:
    for text in (markdown(VARIANTS["violated and seeded"]), page_of(VARIANTS["violated and seeded"]).text):
        assert "Nothing is promised: an assumption is violated." in text
        assert "Whoever knows the seed can compute the noise and subtract it." in text
    for text in (markdown(VARIANTS["without privacy"]), page_of(VARIANTS["without privacy"]).text):
        assert "It protects nobody" in text
        assert "% accuracy" not in text


def test_a_rule_that_does_not_add_epsilons_says_so() -> None:
    assert "losses add up" not in markdown(report())
    budget = sample.BLOCKS["budget"].model_copy(update={"rule": "rdp at order 4"})
    note = "rdp at order 4: losses add up, not epsilons, and the limit's delta is spent once"
    assert note in markdown(report(budget=budget))
    assert note in page_of(report(budget=budget)).text


def test_the_claims_own_delta_is_not_another_delta() -> None:
    own = guarantee()
    profile = (ProfilePoint(delta=own.delta, epsilon=own.epsilon), ProfilePoint(delta=1e-12, epsilon=9.0))
    text = markdown(report(guarantee=guarantee(profile=profile)))
    assert text.count("at another delta") == 1


def test_an_infinite_figure_is_said_in_words() -> None:
    assert round_up(math.inf) == "infinity"


def test_every_run_in_the_weights_is_shown_with_what_it_cost_and_where_it_was_charged() -> None:
    made = VARIANTS["continued"]
    printed = "epsilon <= 1.24 (delta 1e-07, user, add/remove, its final model)"
    for text in (markdown(made), page_of(made).text):
        assert (
            "run 2026-11-21T10-30-00-77aa, data set ads-2026q4 (private): "
            f"{printed}, charged as entry 9 of the same ledger" in text
        )
        assert f"(private on conditions): {printed}, charged as entry 9 of another ledger (head beefbeef" in text
        assert "run c, public data set ads-2026q4 (not private): no privacy, charged to no ledger" in text
        assert "whoever is in the data of both runs loses more" in text
        assert text.count("which had started from") == 2


def test_weights_that_had_cost_nobody_anything_need_no_warning() -> None:
    free = started_from(public=True, verdict="not private", same_ledger=False, **WITHOUT_COST)
    for text in (markdown(report(run=run(started_from=[free]))), markdown(report())):
        assert "loses more" not in text
    assert "weights that the report does not know" in markdown(report())
