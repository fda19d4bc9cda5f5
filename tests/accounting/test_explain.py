"""What the error rates of an attacker say, against closed forms."""

import doctest
import math

import numpy as np
import pytest
from scipy.stats import norm

from accounting import explain
from accounting.explain import gaussian_dp, true_positive_rate
from accounting.mechanisms import (
    UnknownEvent,
    approximate_dp,
    dp_sgd,
    gaussian,
    laplace,
    non_private,
    randomized_response,
    repeated,
    zcdp,
)


def test_doctests_run() -> None:
    assert doctest.testmod(explain).failed == 0


@pytest.mark.parametrize("noise", [0.5, 2.0, 20.0])
@pytest.mark.parametrize(("neighbors", "times"), [("add-remove", 1), ("replace", 2)])
def test_a_gaussian_is_its_own_mu(noise: float, neighbors: explain.Neighbors, times: int) -> None:
    event, mu = gaussian(noise_multiplier=noise), times / noise
    found = gaussian_dp(event, neighbors=neighbors)
    assert mu <= found.mu <= mu * 1.0001
    assert found.fit_error < 1e-4
    for rate in (1e-3, 1e-2, 0.3):
        exact = norm.cdf(norm.ppf(rate) + mu)
        found_rate = true_positive_rate(event, false_positive_rate=rate, neighbors=neighbors)
        assert exact <= found_rate <= exact + 1e-4


def test_composed_gaussians_add_their_squares() -> None:
    assert gaussian_dp(repeated(gaussian(noise_multiplier=30.0), 1000)).mu == pytest.approx(
        math.sqrt(1000) / 30, rel=1e-4
    )


@pytest.mark.parametrize("rate", [0.0, 1e-3, 0.01, 0.2, 0.7, 1.0])
def test_pure_privacy_bounds_the_attacker_by_its_two_lines(rate: float) -> None:
    # epsilon-DP: TPR <= e^epsilon FPR, and 1 - TPR >= e^-epsilon (1 - FPR); randomized response attains both.
    exact = min(math.exp(1.0) * rate, 1 - math.exp(-1.0) * (1 - rate))
    response = randomized_response(randomize_probability=2 / (math.e + 1), categories=2)
    for event in (approximate_dp(epsilon=1.0, delta=0.0), response):
        found = true_positive_rate(
            event, false_positive_rate=rate, neighbors="replace-label" if event is response else "add-remove"
        )
        assert exact - 1e-12 <= found <= exact + 1e-4


def test_a_laplace_attacker_is_the_best_test() -> None:
    # The likelihood-ratio test between Laplace(0, 1) and Laplace(1, 1): reject above t; for t >= 1, FPR = e^-t / 2.
    for threshold in (1.0, 2.0, 5.0):
        rate = math.exp(-threshold) / 2
        exact = math.exp(1 - threshold) / 2
        found = true_positive_rate(laplace(noise_multiplier=1.0), false_positive_rate=rate)
        assert exact - 1e-12 <= found <= exact + 1e-4


def test_no_threshold_attack_on_one_sampled_step_beats_the_bound() -> None:
    event = dp_sgd(sampling_rate=0.2, noise_multiplier=0.7, steps=1)
    for threshold in np.linspace(-2, 4, 13):
        rate = float(norm.sf(threshold / 0.7))
        found = 0.8 * rate + 0.2 * float(norm.sf((threshold - 1) / 0.7))
        assert found <= true_positive_rate(event, false_positive_rate=rate) + 1e-12


def test_mu_loses_at_least_as_much_as_the_mechanism() -> None:
    event = dp_sgd(sampling_rate=0.05, noise_multiplier=0.8, steps=20)
    found = gaussian_dp(event)
    assert found.fit_error > 0.01  # a short sampled run is no Gaussian
    for rate in (1e-4, 1e-2, 0.3, 0.8):
        bound = float(norm.cdf(norm.ppf(rate) + found.mu))
        assert true_positive_rate(event, false_positive_rate=rate) <= bound + 1e-6


def test_a_larger_false_positive_rate_finds_more() -> None:
    event = dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=1000)
    found = [true_positive_rate(event, false_positive_rate=rate) for rate in (0.0, 1e-3, 1e-2, 0.1, 0.9, 1.0)]
    assert found == sorted(found)
    assert found[-1] == 1.0


@pytest.mark.parametrize(("noise", "count", "mu"), [(0.2, 200, 70.71), (0.2, 100, 50.0)])
def test_a_loss_beyond_the_largest_exponential_is_explained(noise: float, count: int, mu: float) -> None:
    """A fixed bug: where an epsilon has no exponential in floats, mu was 45, with a fit error of 0."""
    assert gaussian_dp(repeated(gaussian(noise_multiplier=noise), count)).mu == pytest.approx(mu, rel=0.01)
    assert true_positive_rate(repeated(gaussian(noise_multiplier=noise), count), false_positive_rate=0.0) <= 1.0


def test_without_privacy_everything_is_found() -> None:
    assert gaussian_dp(non_private()).mu == math.inf
    assert true_positive_rate(non_private(), false_positive_rate=0.0) == 1.0


def test_a_delta_that_never_vanishes_has_no_mu_but_a_rate() -> None:
    event = approximate_dp(epsilon=1.0, delta=1e-5)
    assert gaussian_dp(event).mu == math.inf
    assert true_positive_rate(event, false_positive_rate=1e-3) == pytest.approx(math.e * 1e-3 + 1e-5, rel=1e-3)


def test_what_has_no_distribution_of_losses_is_refused() -> None:
    with pytest.raises(UnknownEvent, match="no distribution"):
        gaussian_dp(zcdp(rho=0.1))


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_a_rate_outside_0_and_1_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="false_positive_rate"):
        true_positive_rate(gaussian(noise_multiplier=1.0), false_positive_rate=rate)
