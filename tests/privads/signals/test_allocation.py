"""Shares of a budget and caps, against searches over all of them."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

from privads.signals.allocation import best_cap, relative_weight, shares, shares_by, split_of_contributions
from privads.signals.bounds import Bounds
from privads.signals.query import Grid, Query, Sum
from privads.signals.table import sensitivities
from tests.privads.signals.samples import table

BID = Grid(column="bid", edges=(0.0, 1.0, 5.0, 10.0))
QUERIES = (Query(by=(BID,)), Query(by=(), label="click", sums=(Sum(column="bid", most=10.0, step=0.5),)))
BOUNDS = Bounds(rows=3)


def test_shares_have_the_least_weighted_variance() -> None:
    weights = [[0.3], [0.002, 5.0]]
    moves = np.array([one for query in QUERIES for one in sensitivities(query, BOUNDS)])
    flat = np.array([0.3, 0.002, 5.0])

    def loss(logits: np.ndarray) -> float:
        parts = np.exp(logits - logits.max())
        return float(np.log((flat * moves**2 / (parts / parts.sum())).sum()))

    best = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-14}).x
    expected = np.exp(best) / np.exp(best).sum()
    found = shares(QUERIES, BOUNDS, weights)
    assert [len(own) for own in found] == [1, 2]
    assert np.concatenate(found) == pytest.approx(expected, rel=1e-3)
    assert np.concatenate(found).sum() == pytest.approx(1.0)


def test_a_weight_is_the_square_of_rmsre() -> None:
    truth, noise = np.array([100.0, 10.0, 1.0, 0.0]), 3.0
    rmsre = np.sqrt(np.mean((noise / np.maximum(truth, 5.0)) ** 2))
    assert relative_weight(truth, least=5.0) * noise**2 == pytest.approx(rmsre**2)


def test_contributions_go_with_the_size_to_the_minus_two_thirds_and_beat_equal_ones() -> None:
    sizes = np.array([10_000.0, 500.0, 20.0])
    found = np.array(split_of_contributions(sizes))
    assert found[0] / found[2] == pytest.approx((sizes[0] / sizes[2]) ** (-2 / 3))

    def loss(parts: np.ndarray) -> float:
        return float(((1 / (parts * sizes)) ** 2).sum())

    steps = np.linspace(0.001, 0.998, 400)
    grid = [np.array([a, b, 1 - a - b]) for a, b in itertools.product(steps, steps) if a + b < 0.999]
    assert loss(found) <= min(map(loss, grid)) * (1 + 1e-9)
    assert loss(found) < 0.8 * loss(np.full(3, 1 / 3))


@pytest.mark.parametrize("noise_multiplier", [0.0, 3.0, 40.0, 1e4])
def test_the_best_cap_is_the_least_of_a_fine_search(noise_multiplier: float) -> None:
    values, counts = np.array([1.0, 2.0, 5.0, 20.0, 300.0]), np.array([900.0, 400.0, 100.0, 30.0, 2.0])

    def error(cap: float) -> float:
        lost = (counts * np.maximum(values - cap, 0)).sum() / 12
        return float(lost**2 + (noise_multiplier * cap) ** 2)

    found = best_cap(values, counts, noise_multiplier=noise_multiplier, cells=12)
    assert error(found) <= min(map(error, np.linspace(1e-3, 300, 200_000))) * (1 + 1e-6) + 1e-12


def test_what_is_no_size_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        relative_weight([np.nan], least=1.0)
    with pytest.raises(ValueError, match="weights must be positive"):
        shares(QUERIES, BOUNDS, [[0.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match="positive and finite"):
        split_of_contributions([1.0, 0.0])
    with pytest.raises(ValueError, match="a value above 0"):
        best_cap([0.0], [1.0], noise_multiplier=1.0, cells=1)


def test_shares_by_earlier_tables_are_those_of_their_values() -> None:
    """Cells of a hundred rows ask for less noise than cells of ten thousand: as the root of the weights."""
    rare, common = Query(by=(BID,)), Query(by=())
    earlier = [table(rare, {"rows": np.full(4, 100.0)}, 1.0), table(common, {"rows": np.array([10_000.0])}, 1.0)]
    found = shares_by([rare, common], BOUNDS, earlier, least=10.0)
    assert found[0][0] / found[1][0] == pytest.approx(100.0)
    floor = shares_by([rare, common], BOUNDS, earlier, least=1e6)
    assert floor[0][0] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no earlier table by bid has 'rows'"):
        shares_by([rare], BOUNDS, earlier[1:], least=1.0)
