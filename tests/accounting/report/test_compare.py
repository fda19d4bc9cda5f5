"""What changed between two reports is said, and nothing else."""

import json
from typing import Any

import pytest

from accounting.report.compare import changes, differences, in_words, verdict
from accounting.report.guarantee import AfterSteps
from accounting.report.record import Report
from tests.accounting.report import sample
from tests.accounting.report.sample import ASSERTED, CHECKED, ENFORCED, audit, data, guarantee, report, run

LESS = guarantee(epsilon=1.5, profile=[])
TERMS = "(delta 1e-06, user, add/remove, final model)"


def test_two_runs_that_differ_in_nothing_but_who_they_are_do_not_differ() -> None:
    budget = sample.BLOCKS["budget"].model_copy(update={"entry": "13", "head": "a" * 64})
    again = report(run=run(id="again", created_at="2026-12-24T10:31:07Z", seconds=1.0), budget=budget)
    assert changes(report(), again) == []
    assert differences(report(), again) == []
    assert "both promise the same" in in_words(report(), again)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ({"guarantee": LESS}, f"  claim: epsilon <= 2.98 {TERMS} -> epsilon <= 1.50 {TERMS}"),
        ({"assumptions": [ENFORCED]}, f"- {CHECKED.text}: checked, by {CHECKED.by}"),
        ({"assumptions": [ENFORCED, CHECKED, ASSERTED]}, f"+ {ASSERTED.text}: asserted, by {ASSERTED.by}"),
        (
            {"assumptions": [ENFORCED.model_copy(update={"status": "violated"}), CHECKED]},
            f"  {ENFORCED.text}: enforced, by {ENFORCED.by} -> violated, by {ENFORCED.by}",
        ),
        (
            {"audit": [audit()]},
            "+ proved: epsilon >= 0.31 (delta 1e-06, user, add/remove, what the attacker saw) at 95 % confidence by "
            "one-run audit",
        ),
        ({"not_covered": ["x"]}, "+ x: not covered"),
        ({"covered": ["x."]}, "+ x: covered"),
        ({"budget": None}, "+ ledger: none was charged"),
        ({"metrics": [sample.BLOCKS["metrics"][0]]}, "- log loss: 0.00214 [0.00201, 0.00229]"),
        (
            {"mechanism": sample.BLOCKS["mechanism"].model_copy(update={"batch": 2048.0})},
            "  batch, expected units: 4,096 -> 2,048 (50.0 % less)",
        ),
        ({"data": data(population=50_000)}, "  population, declared: 40,000 -> 50,000 (25.0 % more)"),
        ({"justification": sample.STATED["justification"]}, "  chosen by: not stated -> the privacy board"),
    ],
)
def test_a_change_is_said_in_words_and_found_in_the_json(blocks: dict[str, Any], said: str) -> None:
    after = report(**blocks)
    assert said in in_words(report(), after).splitlines()
    found = differences(report(), after)
    (block,) = blocks
    assert found
    assert all(one.path.startswith(block) for one in found)


def test_points_of_a_plot_are_not_compared_one_by_one() -> None:
    before = guarantee(over_steps=[AfterSteps(steps=10, epsilon=1.9), AfterSteps(steps=40, epsilon=2.9714)])
    after = guarantee(over_steps=[AfterSteps(steps=20, epsilon=2.3), AfterSteps(steps=40, epsilon=2.9714)])
    assert changes(report(guarantee=before), report(guarantee=after)) == []


def test_every_figure_that_differs_is_among_the_differences() -> None:
    after = report(guarantee=LESS, mechanism=sample.BLOCKS["mechanism"].model_copy(update={"batch": 2048.0}))
    found = {one.path: (one.before, one.after) for one in differences(report(), after)}
    assert found["guarantee.epsilon"] == (2.9714, 1.5)
    assert found["mechanism.batch"] == (4096.0, 2048.0)
    assert found["guarantee.profile[1e-08].epsilon"] == (3.6901, None)


def test_an_item_of_a_list_is_compared_with_the_one_of_its_name_wherever_it_stands() -> None:
    turned = report(assumptions=[CHECKED, ENFORCED], metrics=report().metrics[::-1])
    assert differences(report(), turned) == []
    assert changes(report(), turned) == []


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (guarantee(), LESS, "the second run promises more: epsilon <= 2.98"),
        (LESS, guarantee(), "the second run promises less: epsilon <= 1.50"),
        (guarantee(), guarantee(), "both promise the same"),
        (guarantee(), guarantee(epsilon=2.9715), "both promise the same, but for digits that are not shown: epsilon"),
        (guarantee(), guarantee(delta=1e-7), "the promises cannot be compared: they differ in delta"),
        (guarantee(), guarantee(released="all rounds"), "cannot be compared: they differ in released"),
        (None, guarantee(), "the first run promises nothing"),
        (guarantee(), None, "the second run promises nothing"),
        (None, None, "neither run promises anything"),
    ],
)
def test_promises_are_compared_only_for_the_same_terms(first: Any, second: Any, said: str) -> None:
    before, after = (report(guarantee=one, budget=None) for one in (first, second))
    assert said in verdict(before, after)
    assert said in in_words(before, after)


def test_old_reports_and_new_ones_are_compared() -> None:
    fields = json.loads(report().to_json())
    for name in ("audit", "covered", "product", "setting", "security", "justification"):
        del fields[name]
    old = Report.from_json(json.dumps(fields))
    assert differences(old, report()) == []
