"""Ideal canaries: drawn and counted, and the definitions of their curves."""

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant

from accounting.audit import ideal
from tests.accounting.audit.games import DELTA


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0.01, 1e-6), (1.0, 1e-5), (4.38, 1e-5), (50.0, 1e-9), (1e4, 0.1), (1e-9, 1e-12)]
)
def test_mu_is_the_gaussians_with_that_epsilon(epsilon: float, delta: float) -> None:
    assert ideal.epsilon_of_mu(ideal.gaussian_mu(epsilon, delta), delta) == pytest.approx(epsilon, rel=1e-6, abs=1e-8)


def test_mu_is_another_librarys() -> None:
    event = dp_event.GaussianDpEvent(1 / ideal.gaussian_mu(2.0, DELTA))
    assert PLDAccountant().compose(event).get_epsilon(DELTA) == pytest.approx(2.0, abs=2e-4)


def test_no_distance_no_epsilon() -> None:
    assert ideal.epsilon_of_mu(0.0, DELTA) == ideal.epsilon_of_mu(-1.0, DELTA) == 0.0


@pytest.mark.parametrize("share", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("delta", [DELTA, 0.0])
def test_precision_is_the_share_of_right_guesses_among_a_million_canaries(share: float, delta: float) -> None:
    """At least 10,000 guesses: the standard deviation of their share is below 0.004."""
    rng = np.random.default_rng(1)
    inside, outside = ideal.scores(rng, 500_000, 500_000, 3.0, delta)
    scores = np.concatenate((inside, outside)) + 1e-9 * rng.random(1_000_000)
    included = np.arange(1_000_000) < 500_000
    ranked = included[np.argsort(scores)]
    half = int(share * 500_000)
    right = ranked[-half:].sum() + (~ranked[:half]).sum()
    assert right / (2 * half) == pytest.approx(ideal.precision(3.0, delta, share), abs=0.012)


@pytest.mark.parametrize("delta", [DELTA, 0.0])
def test_the_epsilon_of_a_precision_is_its_inverse(delta: float) -> None:
    for share in (0.001, 0.3, 1.0):
        for epsilon in (0.05, 1.0, 6.0):
            right = ideal.precision(epsilon, delta, share)
            assert 0.5 < right < 1
            assert ideal.epsilon_of_precision(right, delta, share) == pytest.approx(epsilon, rel=1e-4)


def test_a_certain_guess_is_right_with_probability_1() -> None:
    assert ideal.precision(1e4, DELTA, 0.2) == pytest.approx(1.0, abs=1e-12)
    assert ideal.precision(1e4, 0.0, 0.2) == 1.0


def test_hits_are_the_most_that_the_claim_allows() -> None:
    """For delta 0: none above exp(e) a, nor 1 - exp(-e) (1 - a); for a Gaussian the profile at every epsilon."""
    rates = np.linspace(0.001, 0.999, 50)
    pure = ideal.hits(1.3, 0.0, rates)
    np.testing.assert_allclose(pure, np.minimum(math.exp(1.3) * rates, 1 - math.exp(-1.3) * (1 - rates)))
    found = ideal.hits(2.0, DELTA, rates)
    assert (found <= math.exp(2.0) * rates + DELTA + 1e-12).all()
    rare = np.geomspace(1e-9, 0.5, 4000)
    reached = ideal.hits(2.0, DELTA, rare) - math.exp(2.0) * rare
    assert reached.max() == pytest.approx(DELTA, rel=1e-3)


def test_the_least_detected_epsilon_is_found_to_a_thousandth() -> None:
    assert ideal.least_detected(lambda true: true >= 7.3, 2.0) == pytest.approx(7.3, rel=1e-3)
    assert ideal.least_detected(lambda true: True, 2.0) == pytest.approx(2.0, rel=1e-3)
    assert ideal.least_detected(lambda true: False, 2.0) == math.inf
