"""What any test can tell, against the Gaussian mechanism's closed form, randomized response and dp-accounting."""

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from scipy.stats import norm

from accounting import mechanisms
from accounting.tradeoff import Point, least_misses, profile_points, true_positive_rate

TRAINED = mechanisms.dp_sgd(sampling_rate=0.2, noise_multiplier=3.59, steps=300)


@pytest.mark.parametrize("mu", [0.1, 0.7, 1.0, 3.0])
def test_the_best_test_of_a_gaussian_mechanism_is_that_of_its_closed_form(mu: float) -> None:
    points = profile_points(mechanisms.gaussian(noise_multiplier=1 / mu), neighbors="add-remove", grid=None)
    for rate in (0.001, 0.01):
        exact = norm.cdf(norm.ppf(rate) + mu)  # Neyman-Pearson's test of N(0, 1) against N(mu, 1)
        assert exact <= true_positive_rate(points, false_positive_rate=rate) <= 1.1 * exact


def test_no_test_of_randomized_response_finds_more_than_the_likelihood_ratio_s() -> None:
    """Two answers, kept with probability e^e / (1 + e^e): at a false alarm a, exp(e) a presences, up to that answer."""
    kept = math.e / (1 + math.e)
    points = [Point(1.0, 0.0)]
    assert true_positive_rate(points, false_positive_rate=0.01) == pytest.approx(math.e * 0.01)
    assert true_positive_rate(points, false_positive_rate=1 - kept) == pytest.approx(kept)
    assert least_misses(points, np.array([0.0, 1.0])) == pytest.approx([1.0, 0.0])


def test_a_training_run_agrees_with_dp_accounting() -> None:
    pld = privacy_loss_distribution.from_gaussian_mechanism(3.59, sampling_prob=0.2).self_compose(300)
    points = profile_points(TRAINED, neighbors="add-remove", grid=5e-4)
    for epsilon, delta in points:
        assert delta >= pld.get_delta_for_epsilon(epsilon) * (1 - 1e-3) - 1e-12
        assert delta <= pld.get_delta_for_epsilon(epsilon - 0.01) * 1.001 + 1e-12


def test_without_privacy_a_test_may_find_all() -> None:
    assert profile_points(mechanisms.non_private(), neighbors="add-remove", grid=None) == []
    assert true_positive_rate([], false_positive_rate=0.01) == 1.0


def test_a_delta_that_no_epsilon_lowers_leaves_the_points_above_it() -> None:
    event = mechanisms.composed(mechanisms.approximate_dp(epsilon=0.1, delta=1e-7), TRAINED)
    points = profile_points(event, neighbors="add-remove", grid=None)
    assert all(math.isfinite(epsilon) and delta > 1e-7 for epsilon, delta in points)
    assert len(points) >= 8
