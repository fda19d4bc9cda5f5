"""The clip norm follows the quantile it is told to, moves by noised counts, and pays for them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

from accounting.budget import Budget
from privads.noise import Randomness
from privads.training.adaptive import RATE, ClipNorm
from privads.training.plan import LEAST_CLIP_NORM, TrainPlan

PLAN = TrainPlan.for_budget(
    Budget(epsilon=8.0, delta=1e-5, unit="user"), population=10_000, batch=500, epochs=2, clip_quantile=0.6
)


class Silent(Randomness):
    """Draws zeros."""

    def normal_like(self, reference: torch.Tensor, *, noise_std: object) -> torch.Tensor:
        return torch.zeros_like(reference)


def test_a_plan_without_a_quantile_keeps_its_clip_norm() -> None:
    fixed = TrainPlan.for_budget(Budget(epsilon=8.0, delta=1e-5, unit="user"), population=10_000, batch=500, epochs=2)
    clip = ClipNorm(fixed, Randomness(insecure_seed=0))
    clip.follow(torch.zeros(500, dtype=torch.bool))
    assert clip.now == fixed.clip_norm


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_one_move_is_the_papers(share: float) -> None:
    # Andrew et al. 2021, algorithm 1: C exp(-eta (b - gamma)), b the share of units that were not clipped
    clip = ClipNorm(PLAN, Silent(insecure_seed=0))
    clip.follow(torch.arange(500) < 500 * share)
    assert clip.now == pytest.approx(PLAN.clip_norm * math.exp(-RATE * (share - 0.6)), rel=1e-6)


def test_more_clipping_than_wanted_raises_the_clip_norm_and_less_lowers_it() -> None:
    all_clipped, none_clipped = (ClipNorm(PLAN, Silent(insecure_seed=0)) for _ in range(2))
    all_clipped.follow(torch.zeros(500, dtype=torch.bool))
    none_clipped.follow(torch.ones(500, dtype=torch.bool))
    assert none_clipped.now < PLAN.clip_norm < all_clipped.now


def test_it_settles_at_the_quantile_of_the_norms() -> None:
    rng, clip = np.random.default_rng(0), ClipNorm(PLAN, Randomness(insecure_seed=0))
    for _ in range(300):
        norms = torch.from_numpy(rng.lognormal(1.0, 0.5, 500))
        clip.follow(norms <= clip.now)
    expected = math.exp(1.0 + 0.5 * stats.norm.ppf(0.6))
    assert clip.now == pytest.approx(expected, rel=0.15)


def test_the_number_of_units_drawn_does_not_enter_but_through_the_noised_count() -> None:
    # The divisor is public: with half of the units, half of them within, the sum and so the move are the same.
    one, two = (ClipNorm(PLAN, Silent(insecure_seed=0)) for _ in range(2))
    one.follow(torch.arange(400) < 200)
    two.follow(torch.arange(200) < 100)
    assert one.now == two.now
    empty = ClipNorm(PLAN, Silent(insecure_seed=0))
    empty.follow(torch.zeros(0, dtype=torch.bool))
    assert empty.now == pytest.approx(PLAN.clip_norm * math.exp(-RATE * (0.5 - 0.6)))


def moves(fault: float = 1.0) -> np.ndarray:
    """20,000 noised shares on nobody, at the plan's noise; any error of 5 % of their std is missed with probability
    below 1e-6 at alpha 1e-6."""
    randomness = Randomness(insecure_seed=1)
    found = []
    for _ in range(20_000):
        clip = ClipNorm(PLAN, randomness)
        clip.follow(torch.zeros(0, dtype=torch.bool))
        share = 0.6 - math.log(clip.now / PLAN.clip_norm) / RATE
        found.append((share - 0.5) * fault)
    return np.array(found)


@pytest.mark.parametrize(("fault", "right"), [(1.0, True), (0.5, False), (0.95, False)])
def test_the_count_has_the_noise_that_the_event_says(fault: float, right: bool) -> None:
    assert PLAN.count_noise_multiplier is not None
    noise_std = 0.5 * PLAN.count_noise_multiplier / PLAN.batch  # sensitivity 1/2, divided by the public batch
    values = moves(fault)
    statistic = (values**2).sum() / noise_std**2
    inside = stats.chi2.ppf(5e-7, len(values)) < statistic < stats.chi2.isf(5e-7, len(values))
    assert bool(inside) == right


def test_the_clip_norm_stays_where_norms_can_be_computed() -> None:
    clip = ClipNorm(dataclasses.replace(PLAN, clip_norm=LEAST_CLIP_NORM), Silent(insecure_seed=0))
    clip.follow(torch.ones(500, dtype=torch.bool))
    assert clip.now == LEAST_CLIP_NORM
