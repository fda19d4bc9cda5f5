"""What an audit may conclude, from what it found and what it could have shown."""

import doctest
import importlib
import math
from dataclasses import replace

import pytest

from accounting import audit
from accounting.audit import Audit, Verdict
from accounting.audit.ideal import epsilon_of_mu, gaussian_mu
from accounting.audit.record import GROSS

FOUND = Audit(
    method="one-run",
    claimed_epsilon=2.0,
    delta=1e-5,
    significance=0.05,
    lower=0.6,
    kind="bound",
    canaries=1000,
    guesses=200,
    correct=144,
    power=0.61,
    ceiling=4.17,
    detectable=6.5,
)


@pytest.mark.parametrize("name", ["binomials", "fit", "guesses", "ideal", "laws", "ratios", "record", "thresholds"])
def test_doctests_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"accounting.audit.{name}")).failed == 0


@pytest.mark.parametrize(
    ("lower", "detectable", "bound", "estimate"),
    [
        (0.0, 6.5, "consistent", "consistent"),
        (2.0, 6.5, "consistent", "consistent"),  # at the claim is not above it
        (2.0, 10.0, "consistent", "consistent"),
        (2.0, 10.1, "inconclusive", "inconclusive"),
        (0.0, math.inf, "inconclusive", "inconclusive"),
        (2.0001, 6.5, "violation", "inconclusive"),
        (2.0001, math.inf, "violation", "inconclusive"),
    ],
)
def test_a_bound_above_the_claim_is_a_violation_and_an_estimate_never(
    lower: float, detectable: float, bound: Verdict, estimate: Verdict
) -> None:
    found = replace(FOUND, lower=lower, detectable=detectable)
    assert found.verdict == bound
    assert replace(found, kind="estimate").verdict == estimate


def test_a_gross_fault_is_about_a_quarter_of_the_noise() -> None:
    grown = [
        epsilon_of_mu(4 * gaussian_mu(claim, delta), delta) / claim
        for claim in (0.1, 1.0, 3.0, 10.0)
        for delta in (1e-5, 1e-7)
    ]
    assert 4.3 < min(grown) < GROSS < max(grown) < 6.6


def test_the_package_exports_what_it_names() -> None:
    for name in audit.__all__:
        assert getattr(audit, name) is not None
