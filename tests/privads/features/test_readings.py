"""Readings of noisy tables, against the numbers they stand for."""

import numpy as np
import pytest

from privads.features import readings
from privads.features.readings import distribution, information, rates
from privads.signals.query import Grid, Query
from privads.signals.table import NoisyTable
from tests.privads.signals.samples import table


def by_site(positives: np.ndarray, negatives: np.ndarray, noise_std: float) -> NoisyTable:
    query = Query(by=("site",), label="click", keys=tuple((f"s{i}",) for i in range(len(positives))))
    return table(query, {"positives": positives, "negatives": negatives}, noise_std)


def by_grid(counts: np.ndarray, edges: np.ndarray, noise_std: float, missing: float = 0.0) -> NoisyTable:
    grid = Grid(column="bid", edges=tuple(edges.tolist()))
    return table(Query(by=(grid,)), {"rows": np.append(counts, missing)}, noise_std)


def test_without_noise_quantiles_and_moments_are_the_sample_s() -> None:
    sample = np.random.default_rng(0).gamma(2.0, 2.0, 20_000)
    edges = np.linspace(0, 30, 601)
    counts, _ = np.histogram(sample, edges)
    found = distribution(by_grid(counts.astype(float), edges, 1e-9, missing=7.0))
    for share in (0.01, 0.25, 0.5, 0.9, 0.999):
        assert found.quantile(share) == pytest.approx(np.quantile(sample, share), abs=0.05)
    mean, std = found.moments()
    assert (mean, std) == (pytest.approx(sample.mean(), abs=0.02), pytest.approx(sample.std(), abs=0.02))
    assert (found.rows, found.missing) == (20_000, 7.0)


def test_noise_on_empty_cells_moves_no_quantile_by_much() -> None:
    """Cutting negative counts off would add 40 rows to each of 500 empty cells: half of all rows."""
    rng = np.random.default_rng(1)
    edges, counts = np.linspace(0, 512, 513), np.zeros(512)
    counts[:8] = 2_500.0
    found = distribution(by_grid(counts + rng.normal(0, 100.0, 512), edges, 100.0))
    assert found.quantile(0.5) == pytest.approx(4.0, abs=0.5)
    assert np.all(np.diff(found.cdf) >= 0)
    assert (found.cdf[0], found.cdf[-1]) == (0.0, 1.0)


def test_the_interval_of_a_quantile_covers_it_as_often_as_stated() -> None:
    """95 % of 300 releases; fewer than 88 % would happen with probability below 1e-6 if that held."""
    rng = np.random.default_rng(2)
    edges, counts = np.linspace(0, 64, 65), np.full(64, 500.0)
    hits = 0
    for _ in range(300):
        found = distribution(by_grid(counts + rng.normal(0, 60.0, 64), edges, 60.0))
        low, high = found.quantile_interval(0.5)
        hits += low <= 32.0 <= high
    assert hits >= 0.88 * 300


def test_an_all_noise_distribution_is_one_still() -> None:
    found = distribution(by_grid(np.random.default_rng(3).normal(0, 50.0, 16), np.linspace(0, 1, 17), 50.0))
    assert np.all(np.diff(found.cdf) >= 0)
    assert 0 <= found.quantile(0.5) <= 1


def test_a_rate_is_pulled_to_the_whole_log_by_its_noise() -> None:
    rows = np.array([100_000.0, 100_000.0, 400.0, 400.0])
    true = np.array([0.10, 0.30, 0.10, 0.30])
    found = rates(by_site(rows * true, rows * (1 - true), 30.0))
    assert found.weights[0] > 0.99
    assert found.weights[2] < found.weights[0]
    assert true[2] < found.rates[2] < found.overall


def test_a_cell_that_is_all_noise_has_the_whole_log_s_rate() -> None:
    found = rates(by_site(np.array([1000.0, 2000.0, 5.0]), np.array([9000.0, 8000.0, -40.0]), 30.0))
    assert found.rates[2] == found.overall


def test_shrunk_rates_are_nearer_the_truth_than_raw_ones_and_the_spread_is_unbiased() -> None:
    rng = np.random.default_rng(4)
    spreads, better = [], 0
    for _ in range(100):
        true = np.clip(rng.normal(0.2, 0.05, 300), 0.01, 0.9)
        rows = rng.integers(200, 3000, 300)
        clicks = rng.binomial(rows, true).astype(float)
        noisy = by_site(clicks + rng.normal(0, 25, 300), rows - clicks + rng.normal(0, 25, 300), 25.0)
        found = rates(noisy)
        raw = noisy.values["positives"] / np.maximum(noisy.rows, 1)
        better += np.square(found.rates - true).mean() < np.square(raw - true).mean()
        spreads.append(found.spread**2)
    assert better >= 99
    assert np.mean(spreads) == pytest.approx(0.05**2, rel=0.05)


def test_information_is_the_mutual_information_where_rates_differ_little() -> None:
    rows, true = np.array([5000.0, 3000.0, 2000.0]), np.array([0.10, 0.14, 0.18])
    found, std = information(rows * true * 1e6, rows * (1 - true) * 1e6, np.full(3, 1e-9))
    joint = np.stack([rows * true, rows * (1 - true)]) / rows.sum()
    exact = float((joint * np.log(joint / (joint.sum(0) * joint.sum(1)[:, None]))).sum())
    assert found == pytest.approx(exact, rel=0.1)
    assert std < 1e-3 * found


@pytest.mark.parametrize("spread", [0.0, 0.03])
def test_information_is_unbiased_and_knows_its_deviation(spread: float) -> None:
    rng = np.random.default_rng(5)
    true = np.clip(0.2 + spread * rng.normal(size=50), 0.01, 0.99)
    exact = float(np.square(true - true.mean()).mean() / (2 * true.mean() * (1 - true.mean())))
    found, stds = [], []
    for _ in range(400):
        clicks = rng.binomial(1000, true).astype(float)
        noisy = clicks + rng.normal(0, 20, 50), 1000 - clicks + rng.normal(0, 20, 50)
        value, std = information(*noisy, np.full(50, 20.0))
        found.append(value)
        stds.append(std)
    # The mean of 400, within five of its standard errors and 2 % for terms of second order.
    assert np.mean(found) == pytest.approx(exact, abs=5 * np.std(found) / 20 + 0.02 * exact)
    assert np.mean(stds) == pytest.approx(np.std(found), rel=0.25)


def test_a_distribution_needs_a_grid() -> None:
    with pytest.raises(ValueError, match="by one grid"):
        distribution(by_site(np.zeros(1), np.zeros(1), 1.0))


def test_a_table_without_a_telling_cell_says_nothing() -> None:
    empty = by_site(np.zeros(3), np.zeros(3), 10.0)
    assert np.isnan(information(*empty.values.values(), np.full(3, 10.0))).all()
    assert readings.rates(empty).overall == 0.5
