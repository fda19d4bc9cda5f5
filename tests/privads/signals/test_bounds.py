"""How far one unit can move a table: the formula against every way there is to spread its rows."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from privads.signals.bounds import Bounds

SMALL = [
    Bounds(rows=rows, rows_per_key=per_key, keys=keys)
    for rows, per_key, keys in itertools.product(range(1, 7), (None, 1, 2, 3), (None, 1, 2, 3))
]


def spreads(most: int, cells: int, total: int) -> list[tuple[int, ...]]:
    """Every way to put up to ``total`` into cells of at most ``most``, the largest first."""
    if cells == 0:
        return [()]
    return [
        (first, *rest) for first in range(min(most, total) + 1) for rest in spreads(first, cells - 1, total - first)
    ]


@pytest.mark.parametrize("row", [1, 2, 3])
@pytest.mark.parametrize("total", [None, 1, 2, 4, 5, 100])
def test_the_sensitivity_is_the_worst_way_to_spread_rows(row: int, total: int | None) -> None:
    for bounds in SMALL:
        limit = row * bounds.rows if total is None else min(total, row * bounds.rows)
        ways = spreads(row * bounds.per_key, bounds.most_keys, limit)
        worst = max(sum(one**2 for one in way) for way in ways)
        assert bounds.sensitivity(row=row, total=total) == pytest.approx(math.sqrt(worst), rel=1e-12), bounds


@pytest.mark.parametrize("noise_std", [0.5, 3.0])
def test_the_spreads_hold_the_worst_way_for_every_threshold(noise_std: float) -> None:
    for bounds in SMALL:
        ways = [way for way in spreads(bounds.per_key, bounds.most_keys, bounds.rows) if any(way)]
        for t in (bounds.per_key, bounds.per_key + 1.0, bounds.per_key + 4 * noise_std):
            worst = max(sum(norm.sf((t - one) / noise_std) for one in way if one) for way in ways)
            full, rest, single = bounds.spreads().T
            tails = full * norm.sf((t - bounds.per_key) / noise_std) + single * norm.sf((t - 1) / noise_std)
            found = (tails + np.where(rest > 0, norm.sf((t - rest) / noise_std), 0)).max()
            assert found >= worst * (1 - 1e-9), bounds
            assert found <= worst * (1 + 1e-9), bounds


@pytest.mark.parametrize("given", [0, -1, 1.0, True])
def test_a_bound_is_a_whole_number_of_at_least_one(given: int) -> None:
    for name in ("rows", "rows_per_key", "keys"):
        with pytest.raises(ValueError, match="whole number of at least 1"):
            Bounds(**{name: given})


def test_a_wider_bound_than_the_rows_limits_nothing() -> None:
    assert not Bounds(rows=3, rows_per_key=3, keys=5).limits_keys
    assert Bounds(rows=3, keys=2).limits_keys
    assert Bounds(rows=3, rows_per_key=2).limits_keys
