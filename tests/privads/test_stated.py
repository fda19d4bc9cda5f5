"""What people state of a run reaches the report, and what they leave out is not stated."""

from datetime import date

import pytest

from privads.config import ConfigError
from privads.run_config import ReportTable
from privads.stated import stated

EVERYTHING = {
    "author": "Ada",
    "product": "clicks 2026",
    "description": "predicts clicks",
    "curators": ["Example Ads"],
    "intended_use": "ranking",
    "region": "EU",
    "sector": "Technology",
    "published": "2026-12-01",
    "epsilon_chosen_by": "the privacy board",
    "epsilon_reason": "half of last year's",
    "access": "the ranking team",
    "log_retention": "30 days",
}


def test_everything_that_is_stated_reaches_a_block() -> None:
    assert set(EVERYTHING) == set(ReportTable.model_fields)
    found = stated({"report": EVERYTHING})
    assert found.product is not None
    assert found.justification is not None
    blocks = (found.product, found.justification, found.security)
    said = {str(value) for block in blocks for value in dict(block).values()} | {found.author}
    for key, value in EVERYTHING.items():
        assert (str(tuple(value)) if isinstance(value, list) else value) in said, key
    assert found.product.published == date(2026, 12, 1)


def test_what_nobody_stated_is_not_stated() -> None:
    for config in ({}, {"report": None}, {"report": {}}):
        found = stated(config)
        assert (found.author, found.product, found.justification) == (None, None, None)
        assert found.security.access == "not stated"
    partly = stated({"report": {"product": "clicks", "epsilon_reason": "small"}})
    assert partly.product is not None
    assert partly.justification is not None
    assert (partly.product.intended_use, partly.justification.chosen_by) == ("not stated", "not stated")


@pytest.mark.parametrize("bad", [{"autor": "x"}, {"author": "two\nlines"}, {"product": ""}, {"published": "soon"}])
def test_what_a_report_could_not_hold_is_refused_before_the_run(bad: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        stated({"report": bad})
