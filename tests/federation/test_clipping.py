"""Scales bound every update, and the clip norm moves towards the quantile it is to follow."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from federation.clipping import factors, next_clip_norm
from federation.plan import FederatedPlan
from privads.noise import Randomness
from privads.training.adaptive import RATE
from tests.federation.helpers import plan

SIX = 4.9  # standard deviations: two-sided 1e-6


def test_short_updates_stay_and_long_ones_are_as_long_as_the_clip_norm() -> None:
    norms = torch.tensor([0.0, 0.1, 0.49999, 0.50001, 3.0, 1e30], dtype=torch.float64)
    found = factors(norms, 0.5)
    assert found[:3].tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(found[3:] * norms[3:], torch.full((3,), 0.5, dtype=torch.float64))


def test_no_scaled_norm_is_above_the_clip_norm_in_exact_arithmetic() -> None:
    norms = torch.from_numpy(np.random.default_rng(0).lognormal(0, 3, 2000))
    norms = torch.cat(
        [
            norms,
            torch.nextafter(
                torch.tensor([0.3] * 2, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
            ),
        ]
    )
    for norm, factor in zip(norms.tolist(), factors(norms, 0.3).tolist(), strict=True):
        assert Fraction(norm) * Fraction(factor) <= Fraction(0.3)


def test_without_a_clip_norm_nothing_is_scaled_but_what_is_not_finite_is_dropped() -> None:
    norms = torch.tensor([0.0, 1e30, math.inf, math.nan], dtype=torch.float64)
    assert factors(norms, math.inf).tolist() == [1.0, 1.0, 0.0, 0.0]


def following(quantile: float = 0.5) -> FederatedPlan:
    return plan(clip_quantile=quantile, cohort=200)


def test_a_fixed_clip_norm_stays_and_draws_no_noise() -> None:
    randomness = Randomness(insecure_seed=0)
    assert next_clip_norm(plan(), 0.5, within=3, users=40, randomness=randomness) == 0.5
    untouched = Randomness(insecure_seed=0)
    assert randomness.normal(1, noise_std=1.0).tolist() == untouched.normal(1, noise_std=1.0).tolist()


@pytest.mark.parametrize("start", [0.1, 10.0])
def test_the_clip_norm_converges_to_the_median_norm_from_both_sides(start: float) -> None:
    """Flower moved away from it: from 0.1 and 10, where the median is 1, it came to 0.005 and 201 in 30 rounds."""
    rng, now, found = np.random.default_rng(0), start, following()
    randomness = Randomness(insecure_seed=0)
    for _ in range(60):
        norms = rng.lognormal(0.0, 0.5, 200)
        now = next_clip_norm(found, now, within=int((norms <= now).sum()), users=200, randomness=randomness)
    assert 0.6 < now < 1.6


def test_the_clip_norm_rises_while_most_updates_are_clipped() -> None:
    found, randomness = following(), Randomness(insecure_seed=0)
    assert next_clip_norm(found, 1.0, within=0, users=200, randomness=randomness) > 1.0
    assert next_clip_norm(found, 1.0, within=200, users=200, randomness=randomness) < 1.0


def test_the_count_has_the_noise_that_is_charged_for_and_is_divided_by_the_cohort() -> None:
    """log C moves by ``-RATE (b - quantile)``, b of std (count_noise_multiplier / 2) / cohort: chi-square over 20,000
    draws, at 1e-6, which misses an error of 5 % with a probability below 1e-6. Of 150 users who came 100 were within:
    the mean of b is 1/2 + 25 / 200.
    """
    found, randomness, draws = following(0.5), Randomness(insecure_seed=1), 20_000
    assert found.count_noise_multiplier is not None
    moved = [next_clip_norm(found, 1.0, within=100, users=150, randomness=randomness) for _ in range(draws)]
    share = 0.5 - np.log(moved) / RATE
    std = 0.5 * found.count_noise_multiplier / found.cohort
    assert abs(share.mean() - 0.625) < SIX * std / math.sqrt(draws)
    statistic = ((share - 0.625) ** 2).sum() / std**2
    assert stats.chi2.ppf(5e-7, draws) < statistic < stats.chi2.isf(5e-7, draws)
