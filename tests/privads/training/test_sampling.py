"""Poisson sampling: the law of the batches, against its definition.

Each statistical test fails by chance with probability below 1e-6.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from accounting.budget import Budget
from privads.noise import Randomness
from privads.training import sampling
from privads.training.plan import TrainPlan
from privads.training.sampling import (
    BallsInBinsSampler,
    Draw,
    PoissonSampler,
    TruncatedPoissonSampler,
    at_most,
    kept_rows,
    sampler_for,
)

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


OWNED = np.repeat(np.arange(40), np.arange(1, 41))


def brings_its_rows(units: np.ndarray, bound: int, draws: Sequence[Draw]) -> bool:
    """Whether every drawn unit brings all of its rows, each once, or ``bound`` of them, under one owner number."""
    counts = np.bincount(units)
    for draw in draws:
        owners = units[draw.row_numbers]
        brought = np.bincount(owners, minlength=len(counts))
        pairs = set(zip(draw.owners.tolist(), owners.tolist(), strict=True))
        if len(pairs) != draw.units or sorted(number for number, _ in pairs) != list(range(draw.units)):
            return False
        if len(set(draw.row_numbers.tolist())) < len(draw.row_numbers):
            return False
        if not np.array_equal(brought[brought > 0], np.minimum(counts, bound)[brought > 0]):
            return False
    return True


@pytest.mark.parametrize("order", ["by unit", "mixed"])
@pytest.mark.parametrize("bound", [1, 6, 100])
def test_a_unit_brings_all_its_rows_up_to_the_bound(bound: int, order: str) -> None:
    units = OWNED if order == "by unit" else OWNED[np.random.default_rng(0).permutation(820)]
    assert brings_its_rows(units, bound, list(sampler(units, 0.5, rows_per_unit=bound).draws(50)))


def late(owned: object) -> None:
    owned._starts = owned._starts + 1  # type: ignore[attr-defined]
    owned._starts[-1] -= 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "plant",
    [
        lambda patch, source: late(source._owned),
        lambda patch, source: setattr(source, "rows_per_unit", 10**6),
        lambda patch, source: patch.setattr(source._owned, "_order", np.arange(820)),
        lambda patch, source: patch.setattr(sampling, "_subsets", lambda g, n, k: g.integers(0, n, (k, len(n))).T),
        lambda patch, source: patch.setattr(sampling, "_subset", lambda g, n, k: g.integers(0, n, k)),
    ],
    ids=["starts off by one", "rows_per_unit ignored", "rows taken as grouped", "rows twice", "units twice"],
)
def test_the_test_of_the_rows_sees_a_planted_fault(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch, PoissonSampler], None]
) -> None:
    units = OWNED[np.random.default_rng(0).permutation(820)]
    source = sampler(units, 0.5, rows_per_unit=6)
    plant(monkeypatch, source)
    assert not brings_its_rows(units, 6, list(source.draws(50)))


def test_the_bounded_rows_are_a_fresh_uniform_choice() -> None:
    units = np.zeros(10, dtype=np.int64)
    seen = np.zeros(10)
    for draw in sampler(units, 1.0, rows_per_unit=3).draws(5000):
        seen[draw.row_numbers] += 1
    assert seen.sum() == 15_000
    assert ((seen - 1500) ** 2 / 1500).sum() < stats.chi2.isf(ALPHA, 9)


@pytest.mark.parametrize(("population", "size"), [(5, 2), (5, 4), (6, 3)])
def test_every_subset_of_a_unit_s_rows_is_equally_likely(population: int, size: int) -> None:
    # Chi-square at ALPHA over 40,000 choices: a subset 15 % too likely is missed with probability below 1e-6.
    found = sampling._subsets(np.random.default_rng(0), np.full(40_000, population), size)
    assert equally_likely(map(tuple, found.tolist()), math.comb(population, size))
    assert (np.diff(found, axis=1) > 0).all()
    assert (found >= 0).all()
    assert (found < population).all()


def equally_likely(values: object, kinds: int) -> bool:
    counts = np.array(list(Counter(values).values()), dtype=float)  # type: ignore[call-overload]
    if len(counts) != kinds:
        return False
    expected = counts.sum() / kinds
    return bool(((counts - expected) ** 2 / expected).sum() < stats.chi2.isf(ALPHA, kinds - 1))


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


def test_a_sampler_that_shuffles_is_seen() -> None:
    # Each epoch a permutation, cut into batches: right rate, wrong law.
    rng = np.random.default_rng(1)
    batches = [batch for _ in range(400) for batch in np.split(rng.permutation(500), 10)]
    sizes = np.array([len(batch) for batch in batches])
    assert not is_poisson(sizes, inclusion_counts(batches, 500), population=500, rate=0.1)


# Cut to a largest batch


def truncated(
    units: np.ndarray, rate: float, largest: int, *, rows_per_unit: int = 1, among: np.ndarray | None = None
) -> TruncatedPoissonSampler:
    return TruncatedPoissonSampler(
        units,
        sampling_rate=rate,
        rows_per_unit=rows_per_unit,
        largest_batch=largest,
        among=among,
        generator=np.random.default_rng(0),
    )


def sizes_are_truncated_binomial(sizes: np.ndarray, population: int, rate: float, largest: int) -> bool:
    """Chi-square at ALPHA of min(Binomial(population, rate), largest); needs 5 expected in each cell."""
    law = stats.binom.pmf(np.arange(largest), population, rate)
    law = np.append(law, 1 - law.sum()) * len(sizes)
    usual = law >= 5
    counts = np.bincount(sizes, minlength=largest + 1)
    if len(counts) != largest + 1:
        return False
    expected = np.append(law[usual], law[~usual].sum())
    observed = np.append(counts[usual], counts[~usual].sum())
    statistic = ((observed - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    return bool(statistic < stats.chi2.isf(ALPHA, (expected > 0).sum() - 1))


def test_batch_sizes_are_binomial_cut_at_the_largest_batch() -> None:
    # 20,000 draws; a largest batch that is off by one, or no cut, moves thousands of them to another cell.
    sizes = np.array([len(draw.row_numbers) for draw in truncated(np.arange(40), 0.3, 14).draws(20_000)])
    assert sizes_are_truncated_binomial(sizes, 40, 0.3, 14)
    for wrong in (13, 15, 40):
        sizes = np.array([len(draw.row_numbers) for draw in truncated(np.arange(40), 0.3, wrong).draws(20_000)])
        assert not sizes_are_truncated_binomial(sizes, 40, 0.3, 14)


def test_a_cut_batch_is_a_uniform_subset() -> None:
    # P[S] depends on the size of S alone: chi-square over the 20 subsets of size 3 of 6 units, about 36,000 draws.
    draws = [tuple(draw.row_numbers.tolist()) for draw in truncated(np.arange(6), 0.6, 3).draws(45_000)]
    assert equally_likely([each for each in draws if len(each) == 3], math.comb(6, 3))
    first = [tuple(sorted(each)) for each in uncut(20_000)]
    assert not equally_likely([each for each in first if len(each) == 3], math.comb(6, 3))


def uncut(steps: int) -> list[np.ndarray]:
    """A faulty cut: the first three of a Poisson sample in rising order."""
    return [draw.row_numbers[:3] for draw in sampler(np.arange(6), 0.6).draws(steps)]


@pytest.mark.parametrize("rate", [0.0001, 0.1, 1.0])
def test_every_batch_has_the_same_shape(rate: float) -> None:
    counts = np.bincount(OWNED)
    for draw in truncated(OWNED, rate, 8, rows_per_unit=5).draws(100):
        assert draw.units == 8
        assert len(draw.row_numbers) + draw.padding == len(draw.owners) == 40
        assert (np.bincount(draw.owners) == 5).all()  # every place has its rows, or padding
        real = draw.owners[: len(draw.row_numbers)]
        for place in np.unique(real):
            (unit,) = np.unique(OWNED[draw.row_numbers[real == place]])
            assert (real == place).sum() == min(counts[unit], 5)


def test_only_the_units_that_are_used_are_drawn() -> None:
    among = np.array([3, 5, 21])
    seen = {int(row) for draw in truncated(np.arange(40), 0.5, 2, among=among).draws(200) for row in draw.row_numbers}
    assert seen == {3, 5, 21}
    nobody = truncated(np.arange(40), 1.0, 2, among=among[:0]).draw()
    assert (len(nobody.row_numbers), nobody.padding) == (0, 2)


# A public bound on the number of units


def used(most: int, units: int, randomness: Randomness, **price: float) -> int:
    found = at_most(most, units=units, randomness=randomness, **{"epsilon": 0.5, "delta": 1e-3, **price})
    return units if found is None else len(found)


def test_fewer_than_the_bound_are_used_however_many_there_are() -> None:
    # The bound holds by construction, not with high probability: 0 of 30,000 trials may break it.
    randomness = Randomness(insecure_seed=0)
    for units in (0, 1, 500, 970, 999, 1000, 1001, 1100, 5000, 10**6):
        assert max(used(1000, units, randomness) for _ in range(3000)) < 1000


def test_a_log_below_the_bound_by_twice_the_margin_is_used_whole() -> None:
    # Fails with probability below delta / 2 = 5e-10 at each of 1,000 trials.
    randomness = Randomness(insecure_seed=0)
    price = {"epsilon": 0.5, "delta": 1e-9}
    margin = sampling.count_margin(**price)
    assert margin == math.ceil(math.log(2e9) / 0.5)
    assert all(at_most(1000, units=999 - 2 * margin, randomness=randomness, **price) is None for _ in range(1000))


def test_a_log_above_the_bound_is_thinned_to_little_less_and_at_random() -> None:
    randomness = Randomness(insecure_seed=0)
    kept = [at_most(1000, units=4000, epsilon=0.5, delta=1e-3, randomness=randomness) for _ in range(2000)]
    sizes = np.array([len(one) for one in kept if one is not None])
    assert len(sizes) == 2000
    assert 800 < sizes.mean() < 1000
    counts = np.bincount(np.concatenate([one for one in kept if one is not None]), minlength=4000)
    # given the sizes, each unit is in a share of sizes.sum() / 4000 of the trials: chi-square, normal approximation
    share = sizes.mean() / 4000
    statistic = ((counts - 2000 * share) ** 2 / (2000 * share * (1 - share))).sum()
    assert abs(statistic - 3999) < stats.norm.isf(ALPHA / 2) * math.sqrt(2 * 3999)


def test_the_thinning_knows_the_released_count_alone() -> None:
    """Sizes average n E[p(n')]: z-test at ALPHA over 3,000 trials; p(n) would be 100 standard errors off."""
    epsilon, delta, units, most = 0.01, 1e-3, 4000, 1000
    randomness = Randomness(insecure_seed=0)
    sizes = np.array([used(most, units, randomness, epsilon=epsilon, delta=delta) for _ in range(3000)])
    noise = np.arange(-2500, 2501)
    law = np.tanh(epsilon / 2) * np.exp(-epsilon * np.abs(noise))
    released = units + noise + math.ceil(math.log(2 / delta) / epsilon)
    share = (most - 1 - math.sqrt(2 * most * math.log(2 / delta))) / released
    mean = units * (law * share).sum()
    variance = units * (law * share * (1 - share)).sum() + units**2 * (law * share**2).sum() - mean**2
    assert abs(sizes.mean() - mean) < stats.norm.isf(ALPHA / 2) * math.sqrt(variance / 3000)
    spread = sizes.var() / variance
    assert 0.8 < spread < 1.2  # without the count's noise it would be below 0.7


def flip_probability(most: int, units: int, *, epsilon: float, delta: float) -> float:
    """P[n' < n] + P[Binomial(n, p(n')) >= most], summed over the released count n', with its law as documented."""
    margin = sampling.count_margin(epsilon=epsilon, delta=delta)
    noise = np.arange(-4000, 4001)
    law = np.tanh(epsilon / 2) * np.exp(-epsilon * np.abs(noise))
    released = units + noise + margin
    slack = math.sqrt(2 * most * math.log(2 / delta))
    share = np.clip((most - 1 - slack) / np.maximum(released, 1), 0, 1)
    share = np.where(released < most, 1.0, share)
    low = released < units
    return float(law[low].sum() + (law * stats.binom.sf(most - 1, units, share))[~low].sum())


@pytest.mark.parametrize("units", [1000, 1001, 1010, 1050, 1200, 3000, 10**5])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_the_failure_that_delta_pays_for_is_below_delta(units: int, delta: float) -> None:
    """A fixed subset of the bound's size would make one unit replace another one with probability near 1."""
    assert flip_probability(1000, units, epsilon=0.1, delta=delta) <= delta


def test_the_count_s_noise_has_the_documented_law() -> None:
    """n' < M decides: P[n' < M] = P[Z < M - n - t], binomial test at ALPHA; a doubled or halved noise is far off."""
    margin, trials = sampling.count_margin(epsilon=0.1, delta=0.5), 20_000
    for offset in (-10, -5, 5, 10):
        randomness, units = Randomness(insecure_seed=offset + 99), 1000 - margin - 16
        most = units + margin + offset + 1  # all are used where Z <= offset
        whole = sum(
            at_most(most, units=units, epsilon=0.1, delta=0.5, randomness=randomness) is None for _ in range(trials)
        )
        for factor, right in ((1.0, True), (2.0, False), (0.5, False)):
            law = stats.dlaplace.cdf(offset, 0.1 * factor)
            agrees = stats.binomtest(whole, trials, law).pvalue > ALPHA
            assert agrees == right


def test_the_count_s_noise_is_of_the_source_that_makes_all_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    # Found in review: it came from the generator of the batches, which is not cryptographic.
    source, price = Randomness(), {"epsilon": 0.5, "delta": 1e-3}
    for up, down, whole in ((0.0, 1e6, True), (1e6, 0.0, False)):
        monkeypatch.setattr(source, "geometric", lambda count, rate, both=(up, down): np.array(both))
        assert (at_most(1000, units=900, randomness=source, **price) is None) == whole


# The sampler is the plan's


BUDGET = Budget(epsilon=3.0, delta=1e-5, unit="user")


def test_the_plan_s_sampler_is_the_one_its_event_describes() -> None:
    randomness, units = Randomness(insecure_seed=0), np.repeat(np.arange(400), 2)
    poisson = TrainPlan.for_budget(BUDGET, population=400, batch=40, epochs=1)
    made = sampler_for(poisson, units, randomness)
    assert isinstance(made, PoissonSampler)
    assert (made.sampling_rate, made.rows_per_unit) == (0.1, 8)
    cut = TrainPlan.without_privacy(
        population=400, unit="user", batch=40, epochs=1, sampler="truncated-poisson", most_units=500, largest_batch=45
    )
    made = sampler_for(cut, units, randomness)
    assert isinstance(made, TruncatedPoissonSampler)
    assert (made.sampling_rate, made.rows_per_unit, made.largest_batch) == (0.1, 8, 45)


def test_a_log_of_more_units_than_the_plan_states_is_thinned_before_it_is_sampled() -> None:
    twin = TrainPlan.without_privacy(
        population=400, unit="user", batch=400, epochs=1, sampler="truncated-poisson", most_units=2000
    )
    plan = dataclasses.replace(
        twin, budget=dataclasses.replace(BUDGET, epsilon=90.0), clip_norm=1.0, noise_multiplier=9.0
    )
    randomness = Randomness(insecure_seed=0)
    for units, whole in ((400, True), (5000, False)):
        made = sampler_for(plan, np.arange(units), randomness)
        assert isinstance(made, TruncatedPoissonSampler)
        assert (made.among is None) == whole
        assert whole or 1000 < len(made.among) < 2000  # type: ignore[arg-type]


# Balls in bins


def dealt(population: int, bins: int, epochs: int, seed: int = 0) -> np.ndarray:
    """(epochs, population) the bin of each unit."""
    source = BallsInBinsSampler(
        np.arange(population), bins=bins, rows_per_unit=1, generator=np.random.default_rng(seed)
    )
    found = np.full((epochs, population), -1)
    for step, draw in enumerate(source.draws(bins * epochs)):
        assert (found[step // bins, draw.row_numbers] == -1).all()
        found[step // bins, draw.row_numbers] = step % bins
    return found


def is_dealt_at_random(bins_of: np.ndarray, bins: int) -> bool:
    """Uniform over bins, and independent between two units and between two epochs: chi-squares at ALPHA / 3 each.

    Power: over 4,000 pairs, with the sizes of bins fixed, or epochs dealt alike, every pair is in one cell: certain.
    """
    uniform = stats.chisquare(np.bincount(bins_of.ravel(), minlength=bins)).pvalue
    units = bins_of[:, ::2] * bins + bins_of[:, 1::2]
    epochs = bins_of[::2] * bins + bins_of[1::2]
    pairs = [stats.chisquare(np.bincount(each.ravel(), minlength=bins * bins)).pvalue for each in (units, epochs)]
    return bool(min(uniform, *pairs) > ALPHA / 3)


def test_every_unit_is_in_one_bin_of_an_epoch_at_random() -> None:
    found = dealt(200, 5, 40)
    assert (found >= 0).all()
    assert is_dealt_at_random(found, 5)


def test_bins_of_equal_size_and_epochs_dealt_alike_are_seen() -> None:
    rng = np.random.default_rng(1)
    alike = np.repeat(rng.integers(0, 5, (20, 200)), 2, axis=0)
    assert not is_dealt_at_random(alike, 5)
    shuffled = np.array([rng.permutation(2) for _ in range(2000)])  # two units, two bins of one place each
    assert not is_dealt_at_random(shuffled, 2)


def test_a_bin_holds_all_rows_of_its_units_up_to_the_bound() -> None:
    units = np.repeat(np.arange(30), 4)
    source = BallsInBinsSampler(units, bins=3, rows_per_unit=3, generator=np.random.default_rng(0))
    for draw in source.draws(7):
        owners = units[draw.row_numbers]
        assert draw.units == draw.sampled == len(np.unique(owners))
        assert (np.bincount(draw.owners) == 3).all()


def test_a_plan_with_bins_gets_their_sampler() -> None:
    plan = TrainPlan.without_privacy(population=100, batch=9, epochs=1, sampler="balls-in-bins")
    source = sampler_for(plan, np.arange(100), Randomness(insecure_seed=0))
    assert isinstance(source, BallsInBinsSampler)
    assert source.bins == plan.bins == 11


# A bound on the rows of a unit, once for all


def test_kept_rows_are_a_random_choice_of_so_many_of_each_unit() -> None:
    units = np.array([0, 0, 0, 0, 1, 2, 2, 0, 2])
    counts, draws = np.zeros(len(units)), 6000
    rng = np.random.default_rng(0)
    for _ in range(draws):
        kept = kept_rows(units, 2, rng)
        assert np.array_equal(np.bincount(units[kept]), [2, 1, 2])
        assert len(np.unique(kept)) == len(kept)
        counts[kept] += 1
    share = np.array([2 / 5, 2 / 5, 2 / 5, 2 / 5, 1.0, 2 / 3, 2 / 3, 2 / 5, 2 / 3])
    spread = np.sqrt(draws * share * (1 - share))
    # each of eight counts within the ALPHA / 8 quantile of a normal
    assert (np.abs(counts - draws * share) <= stats.norm.isf(ALPHA / 16) * spread).all()
