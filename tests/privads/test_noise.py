"""Noise: its law, and that nothing repeats it."""

import numpy as np
import pytest
import torch
from scipy import stats

from privads.noise import Randomness

SAMPLES = 20_000  # a chi-square test at alpha 1e-6 then catches a 5 % error of the std with miss probability < 1e-6
ALPHA = 1e-6


def std_is(values: np.ndarray, noise_std: float) -> bool:
    statistic = (values**2).sum() / noise_std**2
    return bool(stats.chi2.ppf(ALPHA / 2, len(values)) < statistic < stats.chi2.isf(ALPHA / 2, len(values)))


@pytest.mark.parametrize("seed", [None, 3])
def test_noise_is_normal_with_the_stated_std(seed: int | None) -> None:
    values = Randomness(insecure_seed=seed).normal_like(torch.empty(SAMPLES), noise_std=2.5).numpy().astype(float)
    assert std_is(values, 2.5)
    assert abs(values.mean()) < 2.5 / SAMPLES**0.5 * stats.norm.isf(ALPHA / 2)
    assert stats.kstest(values / 2.5, "norm").pvalue > ALPHA


@pytest.mark.parametrize("wrong", [0.95, 1.05, 0.5])
def test_a_wrong_std_is_seen(wrong: float) -> None:
    values = Randomness().normal_like(torch.empty(SAMPLES), noise_std=2.5).numpy().astype(float)
    assert not std_is(values, 2.5 * wrong)


def test_cosine_and_sine_halves_are_uncorrelated() -> None:
    values = Randomness().normal_like(torch.empty(2 * SAMPLES), noise_std=1.0).numpy().astype(float)
    correlation = (values[:SAMPLES] * values[SAMPLES:]).mean() * SAMPLES**0.5
    assert abs(correlation) < stats.norm.isf(ALPHA / 2)


def test_shape_and_type_follow_the_reference() -> None:
    for shape in ((), (3,), (2, 5), (0, 4)):
        for dtype in (torch.float32, torch.float64):
            noise = Randomness().normal_like(torch.empty(shape, dtype=dtype), noise_std=1.0)
            assert noise.shape == shape
            assert noise.dtype == dtype
            assert torch.isfinite(noise).all()


def test_two_draws_and_two_sources_differ() -> None:
    source = Randomness()
    one, two = (source.normal_like(torch.empty(8), noise_std=1.0) for _ in range(2))
    three = Randomness().normal_like(torch.empty(8), noise_std=1.0)
    assert not torch.equal(one, two)
    assert not torch.equal(one, three)
    assert Randomness().generator.integers(2**60) != Randomness().generator.integers(2**60)


def test_torch_and_numpy_seeds_do_not_reach_the_noise() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        draws.append(Randomness().normal_like(torch.empty(8), noise_std=1.0))
    assert not torch.equal(*draws)


def test_an_insecure_seed_repeats_and_says_so() -> None:
    one, two = (Randomness(insecure_seed=5).normal_like(torch.empty(8), noise_std=1.0) for _ in range(2))
    assert torch.equal(one, two)
    assert "insecure_seed 5" in Randomness(insecure_seed=5).description
    assert "os.urandom" in Randomness().description
