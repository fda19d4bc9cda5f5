"""A run's loss in other terms: by the central limit, by closed forms, and where no privacy losses are known."""

import math

import pytest
from scipy.stats import norm

from accounting import mechanisms
from accounting.report import terms
from accounting.tradeoff import Point


def test_a_long_run_is_nearly_the_gaussian_of_the_central_limit() -> None:
    """mu -> q sqrt(T (exp(z^-2) - 1)) (Bu, Dong, Long, Su 2020, corollary 4); the least that is enough is more."""
    rate, noise, steps = 0.2, 3.59, 300
    limit = rate * math.sqrt(steps * math.expm1(noise**-2))
    found = terms.gaussian(
        mechanisms.dp_sgd(sampling_rate=rate, noise_multiplier=noise, steps=steps), neighbors="add-remove"
    )
    assert found is not None
    assert limit < found.mu < 1.05 * limit
    assert 0 < found.error < 0.03


def test_detection_is_that_of_the_likelihood_ratio_test() -> None:
    found = terms.detection(mechanisms.gaussian(noise_multiplier=0.5), neighbors="add-remove", found=[])
    for one in found:
        exact = norm.cdf(norm.ppf(one.false_positive_rate) + 2.0)
        assert exact <= one.true_positive_rate <= exact + 1e-4


def test_without_known_losses_the_profile_s_points_bound_a_test_and_no_gaussian_is_fitted() -> None:
    event, points = mechanisms.zcdp(rho=0.1), [Point(1.0, 0.0)]
    assert terms.gaussian(event, neighbors="add-remove") is None
    found = terms.detection(event, neighbors="add-remove", found=points)
    assert [one.true_positive_rate for one in found] == pytest.approx([math.e * 0.001, math.e * 0.01])


def test_no_gaussian_loses_as_much_as_what_may_fail_outright() -> None:
    assert terms.gaussian(mechanisms.approximate_dp(epsilon=1.0, delta=1e-5), neighbors="add-remove") is None
    assert terms.gaussian(mechanisms.non_private(), neighbors="add-remove") is None
