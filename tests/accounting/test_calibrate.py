"""Calibration: the answer keeps the budget, and hardly less noise would."""

import doctest
import math

import pytest
from dp_accounting import dp_event

from accounting import calibrate
from accounting.accountant import LEAST_NOISE, epsilon
from accounting.budget import Budget
from accounting.calibrate import RELATIVE_TOLERANCE, noise_multiplier
from accounting.mechanisms import dp_sgd, non_private
from tests.accounting.test_accountant import gaussian_epsilon


def make(q: float, steps: int):
    return lambda noise: dp_sgd(sampling_rate=q, noise_multiplier=noise, steps=steps)


def budget(eps: float, delta: float = 1e-6) -> Budget:
    return Budget(epsilon=eps, delta=delta, unit="user")


def test_doctests_run() -> None:
    assert doctest.testmod(calibrate).failed == 0


def test_golden_noise_of_dp_sgd() -> None:
    noise = noise_multiplier(make(0.01, 10_000), budget(3.0))
    assert 1.7083 <= noise <= 1.7110
    assert epsilon(make(0.01, 10_000)(noise), delta=1e-6).upper <= 3.0


@pytest.mark.parametrize(
    ("eps", "q", "steps", "delta"),
    [
        (0.1, 0.05, 200, 1e-6),
        (1.0, 1.0, 1, 1e-7),
        (1.0, 0.01, 1000, 1e-6),
        (8.0, 1.0, 50, 1e-5),
        (3.0, 0.01, 300, 1e-9),
    ],
)
def test_noise_and_epsilon_are_an_inverse_pair_on_the_safe_side(eps: float, q: float, steps: int, delta: float) -> None:
    noise = noise_multiplier(make(q, steps), budget(eps, delta))
    assert epsilon(make(q, steps)(noise), delta=delta).upper <= eps
    less = noise / (1 + 2 * RELATIVE_TOLERANCE)
    assert epsilon(make(q, steps)(less), delta=delta).upper > eps


def test_a_single_release_gets_the_analytic_noise() -> None:
    noise = noise_multiplier(dp_event.GaussianDpEvent, budget(1.0, 1e-5))
    assert gaussian_epsilon(noise, 1e-5) <= 1.0
    assert gaussian_epsilon(noise / 1.002, 1e-5) > 1.0  # Balle and Wang 2018: no less noise is enough


def test_noise_falls_with_epsilon_and_rises_with_steps() -> None:
    by_epsilon = [noise_multiplier(make(0.05, 100), budget(eps)) for eps in (0.5, 1.0, 4.0)]
    by_steps = [noise_multiplier(make(0.05, steps), budget(1.0)) for steps in (10, 300)]
    assert by_epsilon == sorted(by_epsilon, reverse=True)
    assert by_steps == sorted(by_steps)


def test_a_budget_that_any_noise_keeps_gets_the_least_noise_that_is_accounted() -> None:
    """A fixed bug: the search raised NoBracketIntervalFoundError."""
    noise = noise_multiplier(dp_event.GaussianDpEvent, budget(1e6))
    assert LEAST_NOISE <= noise <= LEAST_NOISE * (1 + 2 * RELATIVE_TOLERANCE)


def test_more_steps_are_found_up_to_a_billion() -> None:
    """A fixed bug: the search jumped from 10^7 steps to more than it takes, and said that a billion keep the budget."""
    wanted = budget(3.0)
    found = calibrate.most_steps(make_steps(2e4), wanted)
    assert 1e8 < found < 1e9
    at, above = (epsilon(make_steps(2e4)(steps), delta=1e-6).upper for steps in (found, int(found * 1.001)))
    assert at <= 3.0 < above
    with pytest.raises(ValueError, match="more than 1000000000 steps"):
        calibrate.most_steps(make_steps(2e5), wanted)


def make_steps(noise: float):
    return lambda steps: dp_sgd(sampling_rate=1.0, noise_multiplier=noise, steps=steps)


def test_a_budget_that_no_noise_keeps_is_refused() -> None:
    with pytest.raises(ValueError, match="no noise keeps epsilon 1"):
        noise_multiplier(lambda _: non_private(), budget(1.0))
    assert math.isinf(epsilon(non_private(), delta=1e-6).upper)
