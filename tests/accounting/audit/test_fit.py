"""The normal fit: the mean and spread that were drawn, and what it must not say."""

import math

import numpy as np
import pytest

from accounting.audit import gaussian_fit
from accounting.audit.ideal import epsilon_of_mu
from tests.accounting.audit.games import DELTA, most_of, mu_of


def drawn(rng: np.random.Generator, epsilon: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(mu_of(epsilon), size=size), rng.normal(size=size)


@pytest.mark.parametrize(
    ("epsilon", "size", "measured"), [(1.99, 500, 0.94), (4.38, 500, 2.94), (4.38, 2500, 3.73), (10.0, 2500, 9.13)]
)
def test_the_estimate_nears_the_truth_from_below_and_is_what_power_says(
    epsilon: float, size: int, measured: float
) -> None:
    """``measured``: means of 10 of jax_privacy's fit, which goes by the best of all thresholds instead."""
    rng = np.random.default_rng(1)
    found = [gaussian_fit(*drawn(rng, epsilon, size), claimed_epsilon=epsilon, delta=DELTA) for _ in range(30)]
    mean = float(np.mean([each.lower for each in found]))
    assert measured < mean < epsilon
    assert mean == pytest.approx(found[0].power, rel=0.05)


@pytest.mark.parametrize("epsilon", [3.0, 20.0])
def test_the_lower_limit_is_above_the_truth_in_5_of_100_fits(epsilon: float) -> None:
    """Between 2 % and `most_of` 1,000: a rate of 5 % fails with 10^-6. A limit that knows s is above 20 in 16 %."""
    rng = np.random.default_rng(2)
    fits = (gaussian_fit(*drawn(rng, epsilon, 200), claimed_epsilon=1.0, delta=DELTA) for _ in range(1000))
    above = sum(fit.lower > epsilon for fit in fits)
    assert 20 < above <= most_of(1000, 0.05)


def test_an_estimate_above_the_claim_is_no_violation() -> None:
    rng = np.random.default_rng(3)
    found = gaussian_fit(*drawn(rng, 20.0, 500), claimed_epsilon=1.0, delta=DELTA)
    assert found.lower > 15
    assert found.kind == "estimate"
    assert found.verdict == "inconclusive"


def test_the_detectable_epsilon_is_seen_in_95_of_100_fits() -> None:
    """Between 90 and 99 % of 500: a rate of 95 % fails with 10^-5, one of 85 % passes with 0.001."""
    rng = np.random.default_rng(4)
    least = gaussian_fit(*drawn(rng, 2.0, 300), claimed_epsilon=2.0, delta=DELTA).detectable
    seen = [gaussian_fit(*drawn(rng, least, 300), claimed_epsilon=2.0, delta=DELTA).lower > 2.0 for _ in range(500)]
    assert 0.9 < np.mean(seen) < 0.99


def test_place_and_scale_of_the_scores_do_not_matter_but_their_direction_does() -> None:
    inside, outside = drawn(np.random.default_rng(5), 4.0, 400)
    found = gaussian_fit(inside, outside, claimed_epsilon=4.0, delta=DELTA)
    moved = gaussian_fit(100 + 7 * inside, 100 + 7 * outside, claimed_epsilon=4.0, delta=DELTA)
    assert moved.lower == pytest.approx(found.lower)
    assert moved.correct == found.correct
    turned = gaussian_fit(outside, inside, claimed_epsilon=4.0, delta=DELTA)
    assert (turned.lower, turned.detectable, turned.verdict) == (0.0, math.inf, "inconclusive")


def test_many_scores_leave_only_the_distance_of_the_means() -> None:
    rng = np.random.default_rng(6)
    found = gaussian_fit(
        rng.normal(5.0, 2.0, size=400_000), rng.normal(3.0, 2.0, size=100_000), claimed_epsilon=4.0, delta=DELTA
    )
    assert found.lower == pytest.approx(epsilon_of_mu(1.0, DELTA), rel=0.02)
    assert found.correct / found.guesses == pytest.approx(0.691, abs=0.005)  # Phi(1/2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scores_in": [1.0, math.nan]}, "scores_in must not be NaN, got 1 of 2"),
        ({"scores_out": []}, "scores_out must be one row of at least one number"),
        ({"scores_in": [1.0], "scores_out": [0.0, 1.0]}, "at least 4 numbers together, got 3"),
        ({"scores_in": [1.0, 1.0], "scores_out": [1.0, 1.0]}, "not each all the same, got variance 0.0"),
        ({"scores_in": [1.0, 1.0], "scores_out": [0.0, 0.0]}, "must be spread out"),
        ({"scores_in": [1.0, math.inf]}, "must be finite"),
        ({"delta": 0.0}, r"delta must be in \[1e-50, 1\), got 0.0"),
        ({"significance": 0.7}, "significance must be"),
    ],
)
def test_what_cannot_be_fitted_is_refused(changed: dict[str, object], message: str) -> None:
    given = {"scores_in": [1.0, 2.0], "scores_out": [0.0, 1.0], "claimed_epsilon": 1.0, "delta": DELTA}
    with pytest.raises(ValueError, match=message):
        gaussian_fit(**{**given, **changed})  # type: ignore[arg-type]
