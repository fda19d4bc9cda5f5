"""What an audit may say, and what it does to a report's headline."""

from typing import Any

import pytest
from pydantic import ValidationError

from accounting.report.summary import summary
from tests.accounting.report.sample import audit, data, guarantee, report, run, started_from

CLAIM = "epsilon <= 2.98 (delta 1e-06, user, add/remove, final model)"
VIOLATION = {"epsilon_lower": 3.4567, "verdict": "violation", "in_model": False}


def test_an_audit_that_proves_more_than_the_claim_comes_first_in_the_headline() -> None:
    made = report(audit=[audit(in_model=False), audit(**VIOLATION)])
    proved = (
        "epsilon >= 3.45 (delta 1e-06, user, add/remove, what the attacker saw) at 95 % confidence by one-run audit"
    )
    assert made.headline == f"VIOLATED: {CLAIM} — an audit proves {proved}"
    assert made.verdict == "violated"


def test_an_audit_that_proves_less_leaves_the_headline() -> None:
    made = report(audit=[audit(in_model=False), audit(in_model=False, verdict="inconclusive", epsilon_lower=0.0)])
    assert (made.headline, made.verdict) == (CLAIM, "private")


def test_the_headline_says_that_the_model_has_learned_from_canaries() -> None:
    learned = "its model has learned from up to"
    assert report(audit=[audit()]).headline == f"{CLAIM} — {learned} 1,000 planted canaries"
    earlier = run(started_from=[started_from(canaries=300), started_from(canaries=20)])
    assert report(run=earlier).headline.endswith(f" — {learned} 320 planted canaries")
    assert report(run=earlier, audit=[audit()]).headline.endswith(f" — {learned} 1,320 planted canaries")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epsilon_lower": 3.0}, "the verdict cannot be 'consistent'"),
        ({"epsilon_lower": 2.9, "verdict": "violation"}, "the verdict cannot be 'violation'"),
        ({"epsilon_lower": 3.0, "verdict": "inconclusive"}, "the verdict cannot be 'inconclusive'"),
    ],
)
def test_a_verdict_that_the_bound_does_not_bear_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        report(audit=[audit(**fields)])


def test_what_was_never_claimed_cannot_be_contradicted() -> None:
    without = {"guarantee": None, "budget": None, "data": data(public=True)}
    assert report(audit=[audit(epsilon_lower=7.0)], **without).verdict == "not private"
    with pytest.raises(ValidationError, match="does not make"):
        report(audit=[audit(**VIOLATION)], **without)


def test_an_estimate_proves_nothing() -> None:
    estimate = audit(kind="estimate", epsilon_lower=3.4567, verdict="inconclusive")
    made = report(audit=[estimate])
    assert made.verdict == "private"
    assert made.proved(estimate).startswith("an estimate of epsilon = 3.45 (delta 1e-06, user, ")
    assert "confidence" not in made.proved(estimate)
    with pytest.raises(ValidationError, match="no bound"):
        audit(kind="estimate", verdict="violation")


@pytest.mark.parametrize("fields", [{"correct": None}, {"guesses": None}, {"guesses": 251}])
def test_guesses_and_correct_ones_are_stated_together_and_in_order(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="guesses cannot be correct"):
        audit(**fields)


def test_a_bound_at_another_delta_is_not_weighed_against_the_claim() -> None:
    assert report(audit=[audit(delta=1e-3, epsilon_lower=3.1)], guarantee=guarantee()).verdict == "private"


def test_a_terminal_reads_the_same_power_as_the_page() -> None:
    assert "ideal canaries show 0.41 of a correct run;" in summary(report(audit=[audit(power=0.4171)]))
