"""The model card's section: the claim never without its terms, its conditions and what it leaves out."""

import re

import pytest

from accounting.report.model_card import model_card
from accounting.report.record import Report
from tests.accounting.report.sample import ASSERTED, STATED, VIOLATED, audit, data, report, run
from tests.accounting.report.test_render import HOSTILE

VARIANTS = {
    "private": report(**STATED, audit=[audit()]),
    "doubtful": report(assumptions=[ASSERTED, VIOLATED], audit=[audit(epsilon_lower=3.5, verdict="violation")]),
    "without privacy": report(guarantee=None, budget=None, data=data(public=True)),
    "hostile": report(run=run(id=HOSTILE), not_covered=[HOSTILE], data=data(dataset=HOSTILE)),
}
variants = pytest.mark.parametrize("made", VARIANTS.values(), ids=VARIANTS.keys())


@variants
def test_it_is_one_section_that_begins_with_the_headline(made: Report) -> None:
    lines = model_card(made).splitlines()
    assert lines[0] == "## Privacy"
    assert not any(line.startswith("#") for line in lines[1:])
    assert lines[2].startswith("**")
    assert not re.search(r"(?<!\\)<[A-Za-z/]", model_card(made)), "a tag"
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") in (3, 4) for line in tables)


@variants
def test_every_epsilon_stands_with_its_terms(made: Report) -> None:
    for line in model_card(made).splitlines():
        for part in line.split("epsilon ")[1:]:
            if part[:2] in ("<=", ">=", "= "):
                assert "(delta 1e-06, user, add/remove, " in part or "(delta 8e-06, user, add/remove, " in part


def test_it_says_what_the_report_says() -> None:
    card = model_card(VARIANTS["private"])
    for said in (
        "2.98",
        "PLD, dp-accounting 0.6.0",
        "entry 12, head c0ffee",
        "ranking ads",
        "consistent: epsilon >= 0.31",
    ):
        assert said in card
    assert all(f"- {line}" in card for line in VARIANTS["private"].not_covered)
    assert "neither code nor a test" not in card
    doubtful = model_card(VARIANTS["doubtful"])
    assert doubtful.index(VIOLATED.by) < doubtful.index(ASSERTED.by)
    assert "violation: epsilon >= 3.50" in doubtful
    assert "NOT PRIVATE" in model_card(VARIANTS["without privacy"])
