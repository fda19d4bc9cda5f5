"""Poisson sampling: the law of the batches, against its definition.

Each statistical test fails by chance with probability below 1e-6.
"""

import numpy as np
import pytest
from scipy import stats

from privads.training.sampling import PoissonSampler

ALPHA = 1e-6


def sampler(units: np.ndarray, rate: float, rows_per_unit: int = 1, seed: int = 0) -> PoissonSampler:
    return PoissonSampler(units, sampling_rate=rate, rows_per_unit=rows_per_unit, generator=np.random.default_rng(seed))


def inclusion_counts(draw_units: list[np.ndarray], population: int) -> np.ndarray:
    return np.bincount(np.concatenate(draw_units), minlength=population)


def is_poisson(sizes: np.ndarray, counts: np.ndarray, population: int, rate: float) -> bool:
    """Binomial batch sizes (mean and variance) and binomial inclusion counts, each at level ALPHA / 3.

    Power: with 4,000 batches of 50 units a fixed-size sampler has variance 0 and a rate 10 % off shifts the mean by
    over 30 standard errors; both are missed with probability below 1e-6.
    """
    steps = len(sizes)
    mean, variance = population * rate, population * rate * (1 - rate)
    z = (sizes.mean() - mean) / np.sqrt(variance / steps)
    spread = sizes.var() * steps / variance
    per_unit = ((counts - steps * rate) ** 2 / (steps * rate * (1 - rate))).sum()
    level = ALPHA / 6
    return bool(
        abs(z) < stats.norm.isf(level)
        and stats.chi2.ppf(level, steps - 1) < spread < stats.chi2.isf(level, steps - 1)
        and stats.chi2.ppf(level, population) * 0.9 < per_unit < stats.chi2.isf(level, population) * 1.1
    )


def drawn(source: PoissonSampler, units: np.ndarray, steps: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    draws = list(source.draws(steps))
    sizes = np.array([draw.units for draw in draws])
    return sizes, inclusion_counts([np.unique(units[draw.row_numbers]) for draw in draws], int(units.max()) + 1)


def test_every_unit_joins_every_batch_with_the_sampling_rate() -> None:
    units = np.arange(500)
    assert is_poisson(*drawn(sampler(units, 0.1), units), population=500, rate=0.1)


def test_the_test_of_the_law_sees_a_fixed_size_and_a_wrong_rate() -> None:
    units = np.arange(500)
    assert not is_poisson(*drawn(sampler(units, 0.11), units), population=500, rate=0.1)
    rng = np.random.default_rng(1)
    fixed = [rng.choice(500, 50, replace=False) for _ in range(4000)]
    assert not is_poisson(np.full(4000, 50), inclusion_counts(fixed, 500), population=500, rate=0.1)


def test_units_join_independently_of_each_other() -> None:
    # P(both of two units) = q^2; 20,000 draws, 45 pairs, each at level ALPHA / 45
    units = np.arange(10)
    source, joint = sampler(units, 0.3), np.zeros((10, 10))
    for draw in source.draws(20_000):
        joined = np.isin(units, units[draw.row_numbers]).astype(float)
        joint += np.outer(joined, joined)
    pairs = joint[np.triu_indices(10, 1)]
    z = (pairs - 20_000 * 0.09) / np.sqrt(20_000 * 0.09 * 0.91)
    assert np.abs(z).max() < stats.norm.isf(ALPHA / 90)


def test_a_unit_brings_all_its_rows_up_to_the_bound() -> None:
    units = np.repeat(np.arange(40), np.arange(1, 41))[np.random.default_rng(0).permutation(820)]
    for draw in sampler(units, 0.5, rows_per_unit=6).draws(50):
        owners = units[draw.row_numbers]
        for unit in np.unique(owners):
            assert (owners == unit).sum() == min(unit + 1, 6)
        assert len(np.unique(draw.row_numbers)) == len(draw.row_numbers)
        assert draw.units == len(np.unique(owners))
        assert (np.unique(owners, return_index=True)[1].argsort() >= 0).all()
        pairs = {(own, unit) for own, unit in zip(draw.owners, owners, strict=True)}
        assert len(pairs) == draw.units  # one owner number for each unit


def test_the_bounded_rows_are_a_fresh_uniform_choice() -> None:
    units = np.zeros(10, dtype=np.int64)
    seen = np.zeros(10)
    for draw in sampler(units, 1.0, rows_per_unit=3).draws(5000):
        seen[draw.row_numbers] += 1
    assert seen.sum() == 15_000
    assert ((seen - 1500) ** 2 / 1500).sum() < stats.chi2.isf(ALPHA, 9)


def test_an_empty_draw_is_a_draw() -> None:
    draws = list(sampler(np.arange(5), 1e-9).draws(20))
    assert [draw.units for draw in draws] == [0] * 20
    assert all(len(draw.row_numbers) == 0 for draw in draws)


def test_a_log_without_rows_gives_empty_draws() -> None:
    assert [draw.units for draw in sampler(np.zeros(0, dtype=np.int64), 0.5).draws(3)] == [0, 0, 0]


def test_a_rate_of_one_takes_everyone() -> None:
    assert all(draw.units == 7 for draw in sampler(np.arange(7), 1.0).draws(5))


@pytest.mark.parametrize("rows_per_unit", [1, 2])
def test_a_draw_costs_the_batch_and_not_the_population(rows_per_unit: int) -> None:
    source = sampler(np.arange(2_000_000) // 2, 1e-5, rows_per_unit=rows_per_unit)
    touched = sum(len(draw.row_numbers) for draw in source.draws(200))  # O(N) draws would take minutes
    assert 200 * 10 * rows_per_unit * 0.5 < touched < 200 * 10 * rows_per_unit * 2
