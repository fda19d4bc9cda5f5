"""What is read from noisy tables: merged values, totals, evidence of a pair, and its law."""

import numpy as np
import pytest
from scipy.optimize import minimize

from privads.signals.margins import (
    Cells,
    Margin,
    coding,
    merge,
    pair_law,
    reconciled,
    says_more,
    signal_var,
    total,
    with_margins,
)


def cells(values: np.ndarray, noise_std: float, columns: tuple[int, ...] = (0, 1)) -> Cells:
    return Cells(columns=columns, values=values, noise_var=np.full(values.shape, noise_std**2))


def test_rare_values_are_merged_and_together_are_not_rare() -> None:
    single = Margin(columns=(0,), values=np.array([500.0, 3.0, 60.0, -8.0, 2.0]), noise_std=10.0)
    codes = coding(single)
    # under 50: values 1, 3, 4, of sum -3; with value 2 that is 57, under 5 x 10 x 2 = 100; with value 0 it is enough
    assert codes.tolist() == [0, 0, 0, 0, 0]
    assert coding(Margin(columns=(0,), values=np.array([500.0, 3.0, 600.0, 98.0, 2.0]), noise_std=10.0)).tolist() == [
        0,
        2,
        1,
        2,
        2,
    ]


def test_a_merged_cell_has_the_noise_of_its_sum() -> None:
    pair = Margin(columns=(0, 1), values=np.arange(12.0).reshape(4, 3), noise_std=2.0)
    found = merge(pair, [np.array([0, 1, 1, 1]), np.array([0, 0, 1])])
    assert found.values.tolist() == [[1, 2], [3 + 4 + 6 + 7 + 9 + 10, 5 + 8 + 11]]
    assert found.noise_var.tolist() == [[8, 4], [24, 12]]


def test_the_total_weighs_tables_by_their_variance() -> None:
    tables = [cells(np.full(4, 25.0), 1.0, (0,)), cells(np.full(16, 7.0), 1.0, (1,))]
    assert total(tables) == pytest.approx((100 / 4 + 112 / 16) / (1 / 4 + 1 / 16))
    assert tables[1].moved_to(100.0).total == pytest.approx(100.0)


def test_a_table_that_is_nothing_but_noise_says_no_more() -> None:
    """The misfit is chi-square: with 2,000 cells, 4 standard deviations are exceeded once in 20,000 times."""
    rng = np.random.default_rng(0)
    variance = rng.uniform(1, 100, 2000)
    assert not says_more(np.sqrt(variance) * rng.standard_normal(2000), variance)
    assert says_more(np.sqrt(1.3 * variance) * rng.standard_normal(2000), variance)


def test_the_variance_of_effects_is_found_under_noise() -> None:
    rng = np.random.default_rng(1)
    slope, noise = rng.uniform(5, 50, 20_000), 20.0
    effects = 0.5 * rng.standard_normal(20_000)
    misfit = slope * effects + noise * rng.standard_normal(20_000)
    # its standard error is about 0.005
    assert signal_var(misfit, slope, np.full(20_000, noise**2)) == pytest.approx(0.25, abs=0.03)


def test_reconciled_is_the_nearest_table_with_the_margins() -> None:
    rng = np.random.default_rng(2)
    noisy, noise_std = rng.normal(5, 6, (3, 4)), rng.uniform(1, 3, (3, 4))
    first, second = np.array([10.0, 20.0, 30.0]), np.array([5.0, 25.0, 10.0, 20.0])
    found = reconciled(Cells(columns=(0, 1), values=noisy, noise_var=noise_std**2), first, second)
    rows = [{"type": "eq", "fun": lambda q, i=i: q.reshape(3, 4)[i].sum() - first[i]} for i in range(3)]
    columns = [{"type": "eq", "fun": lambda q, j=j: q.reshape(3, 4)[:, j].sum() - second[j]} for j in range(3)]
    exact = minimize(
        lambda q: (((q.reshape(3, 4) - noisy) / noise_std) ** 2).sum(),
        np.full(12, 5.0),
        bounds=[(0, None)] * 12,
        constraints=[*rows, *columns],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    ).x.reshape(3, 4)
    assert (exact < 1e-6).any()  # the bound is met somewhere: cutting off would have added rows
    assert found == pytest.approx(exact, abs=1e-3)


def test_a_table_with_margins_keeps_its_negative_cells() -> None:
    noisy = np.array([[-30.0, 50.0], [20.0, 70.0]])
    found = with_margins(cells(noisy, 2.0), np.array([24.0, 92.0]), np.array([-8.0, 124.0]))
    assert found.values.sum(axis=1) == pytest.approx([24.0, 92.0])
    assert found.values.sum(axis=0) == pytest.approx([-8.0, 124.0])
    assert found.values[0, 0] < 0


def test_a_pair_has_a_law_only_where_it_says_more() -> None:
    rng = np.random.default_rng(3)
    first, second, count, noise_std = np.full(10, 0.1), np.full(20, 0.05), 100_000.0, 20.0
    apart = count * np.outer(first, second)
    noise = np.sqrt(apart + noise_std**2) * rng.standard_normal((10, 20))
    assert pair_law(cells(apart + noise, noise_std), first, second, count) is None
    tied = np.zeros((10, 20))
    tied[np.repeat(np.arange(10), 2), np.arange(20)] = 0.05
    law = pair_law(cells(count * tied + noise_std * rng.standard_normal((10, 20)), noise_std), first, second, count)
    assert law is not None
    assert law.sum(axis=1) == pytest.approx(first, rel=1e-3)
    assert np.abs(law - tied).sum() < 0.03


@pytest.mark.parametrize(
    ("columns", "values", "noise_std", "message"),
    [
        ((1, 0), np.ones((2, 2)), 1.0, "columns must be rising"),
        ((0, 0), np.ones((2, 2)), 1.0, "columns must be one or two different"),
        ((0,), np.ones((2, 2)), 1.0, "values must be finite, a dimension a column"),
        ((0,), np.array([1.0, np.nan]), 1.0, "values must be finite"),
        ((0,), np.ones(2), -1.0, "noise_std must be finite and not negative, got -1.0"),
    ],
)
def test_a_table_that_cannot_be_is_refused(
    columns: tuple[int, ...], values: np.ndarray, noise_std: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Margin(columns=columns, values=values, noise_std=noise_std)


def test_tables_with_other_values_of_a_column_are_refused() -> None:
    with pytest.raises(ValueError, match="column 0 has 3 values in one table and 2 in another"):
        merge(Margin(columns=(0,), values=np.ones(2), noise_std=1.0), [np.array([0, 1, 2])])
