"""`Margin`: a noisy table by one or two categorical columns, and what its noise allows to be read from it.

A table of counts r by one column or a pair has r = n + N(0, s^2) in every cell, n what is true. Everything here is
decided from r and s, so it costs no privacy:

    merging     values with fewer rows than noise are one value, whose noise is that of their sum
    a total     that several tables know is the mean of their sums, by their variances; each table is then moved to it
    evidence    whether a pair's table says more than its two columns do by themselves
    a law       of a pair: not negative, with its columns' margins, and no further from independence than r deserves

Negative counts are never cut off: that would add rows to every empty cell. A projection that keeps the margins adds
none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

LEAST_STDS = 5.0
"""A value is kept by itself if its noisy rows are at least so many standard deviations of their noise."""

LEAST_ROWS = 10.0
"""A value is kept by itself if it has at least so many noisy rows."""

EVIDENCE_STDS = 4.0
"""A table says something if its misfit is so many standard deviations above what noise and sampling explain."""

FLOOR = 1e-3
"""The least share of what independence expects that the law of a pair gives to a cell."""

ROUNDS = 30
"""Alternations between the margins of a pair; after so few they agree to far below the noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Margin:
    """Noisy counts by one or two columns. columns: their numbers, rising. values: (size,) or (size, size) by code.

    noise_std: of the Gaussian noise on every cell, in rows; 0 where there is none.
    """

    columns: tuple[int, ...]
    values: Floats
    noise_std: float

    def __post_init__(self) -> None:
        if len(self.columns) not in (1, 2) or any(c < 0 for c in self.columns) or len(set(self.columns)) != self.order:
            raise ValueError(f"columns must be one or two different column numbers, got {self.columns}")
        if self.columns != tuple(sorted(self.columns)):
            raise ValueError(f"columns must be rising, got {self.columns}")
        if self.values.ndim != self.order or self.values.size == 0 or not np.isfinite(self.values).all():
            raise ValueError(f"values must be finite, a dimension a column, got shape {self.values.shape}")
        if not (math.isfinite(self.noise_std) and self.noise_std >= 0):
            raise ValueError(f"noise_std must be finite and not negative, got {self.noise_std}")

    @property
    def order(self) -> int:
        """How many columns it counts by."""
        return len(self.columns)


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """A table of merged values. noise_var: per cell, (cells of values): that of a sum of k cells is k s^2."""

    columns: tuple[int, ...]
    values: Floats
    noise_var: Floats

    @property
    def total(self) -> float:
        """The sum of all cells."""
        return float(self.values.sum())

    def moved_to(self, total: float) -> "Cells":
        """Returns the least-squares table of this total: what is missing goes to the cells by their noise."""
        noise = self.noise_var.sum()
        if not noise:
            return self
        moved = self.values + (total - self.total) * self.noise_var / noise
        return Cells(columns=self.columns, values=moved, noise_var=self.noise_var)


def with_margins(pair: Cells, first: Floats, second: Floats) -> Cells:
    """Returns the least-squares table with these margins, of one sum: cells may be negative, as they may before.

    min sum (q - r)^2 / s^2: q = r + s^2 (a_i + b_j), the multipliers of rows and of columns in turns.
    """
    values, variance = pair.values, pair.noise_var
    if not variance.all():
        return pair
    for _ in range(ROUNDS):
        values = values + variance * ((first - values.sum(axis=1)) / variance.sum(axis=1))[:, None]
        values = values + variance * ((second - values.sum(axis=0)) / variance.sum(axis=0))[None, :]
    return Cells(columns=pair.columns, values=values, noise_var=variance)


def coding(single: Margin) -> Codes:
    """Returns (size,) the merged value of each value of a column: numbers from 0, the last that of the merged ones.

    Values under both `LEAST_STDS` noise and `LEAST_ROWS` are merged, then the smallest of the others until the merged
    ones are together no rarer than that either.
    """
    counts, order = single.values, np.argsort(single.values, kind="stable")
    least = max(LEAST_STDS * single.noise_std, LEAST_ROWS)
    rare = int((counts < least).sum())
    while 0 < rare < len(counts):
        if counts[order[:rare]].sum() >= max(LEAST_STDS * single.noise_std * math.sqrt(rare), LEAST_ROWS):
            break
        rare += 1
    codes = np.empty(len(counts), dtype=np.int64)
    kept = np.sort(order[rare:])
    codes[kept] = np.arange(len(kept))
    codes[order[:rare]] = len(kept)
    return codes


def merge(margin: Margin, codings: Sequence[Codes]) -> Cells:
    """Returns the table by the merged values of its columns; ``codings`` has one entry for every column of the log."""
    values, cells = margin.values, np.ones(margin.values.shape)
    for axis, column in enumerate(margin.columns):
        codes = codings[column]
        if values.shape[axis] != len(codes):
            raise ValueError(
                f"column {column} has {len(codes)} values in one table and {values.shape[axis]} in another"
            )
        values, cells = _summed(values, codes, axis), _summed(cells, codes, axis)
    return Cells(columns=margin.columns, values=values, noise_var=cells * margin.noise_std**2)


def total(tables: Sequence[Cells]) -> float:
    """Returns what all tables say of their common sum: the mean of their sums, weighted by 1 / variance."""
    variances = np.array([table.noise_var.sum() for table in tables])
    sums = np.array([table.total for table in tables])
    if (variances == 0).any():
        return float(sums[variances == 0].mean())
    return float(np.average(sums, weights=1 / variances))


def signal_var(misfit: Floats, slope: Floats, variance: Floats) -> float:
    """Returns the variance v of effects e_i, by moments, where misfit_i = slope_i e_i + noise of ``variance``_i.

    E misfit^2 = slope^2 v + variance, by least squares with the weights that no signal calls for; 0 if negative.
    """
    weight = (slope / variance) ** 2
    return max(float((weight * (misfit**2 - variance)).sum() / (weight * slope**2).sum()), 0.0)


def says_more(misfit: Floats, variance: Floats) -> bool:
    """Whether sum misfit^2 / variance is `EVIDENCE_STDS` above its mean, the cells, where nothing but noise is in it.

    Its standard deviation is sqrt(2 cells) where the misfits are normal.
    """
    cells = misfit.size
    return float((misfit**2 / variance).sum()) - cells > EVIDENCE_STDS * math.sqrt(2 * cells)


def pair_law(pair: Cells, first: Floats, second: Floats, rows: float) -> Floats | None:
    """Returns the law of two columns, (sizes) summing to 1, or None where the table does not say more than they do.

    first, second: their own laws. With E = rows first second', the relative deviations from E have a variance v
    (`signal_var`); a cell's true deviation is E^2 v, its noise E + s^2, so w = E^2 v / (E^2 v + E + s^2) of what it
    shows is believed. What is shown is the table `reconciled` with the margins.
    """
    expected = rows * np.outer(first, second)
    variance = expected + pair.noise_var
    misfit = pair.values - expected
    if not says_more(misfit, variance):
        return None
    var = signal_var(misfit, expected, variance)
    signal = expected**2 * var
    shown = reconciled(pair, rows * first, rows * second)
    believed = expected + signal / (signal + variance) * (shown - expected)
    return _fitted(np.maximum(believed, FLOOR * expected) / rows, first, second)


def reconciled(pair: Cells, first: Floats, second: Floats) -> Floats:
    """Returns the table q >= 0 with margins ``first`` and ``second`` that is nearest to the noisy one.

    min sum (q - r)^2 / s^2: q = max(r + s^2 (a_i + b_j), 0), the multipliers a of the rows and b of the columns in
    turns, each exactly. A table without noise is already what it should be.
    """
    if not pair.noise_var.any():
        return np.maximum(pair.values, 0.0)
    shifted, variance = pair.values, pair.noise_var
    for _ in range(ROUNDS):
        shifted = shifted + variance * _multipliers(shifted, variance, first)[:, None]
        shifted = shifted + variance * _multipliers(shifted.T, variance.T, second)[None, :]
    return np.maximum(shifted, 0.0)


def _multipliers(values: Floats, variance: Floats, sums: Floats) -> Floats:
    """Returns per row the a with sum_j max(values_j + variance_j a, 0) = the row's sum, which is positive.

    The sum is piecewise linear and rising in a; cell j wakes up at a = -values_j / variance_j.
    """
    wakes = -values / variance
    order = np.argsort(wakes, axis=1)
    wakes = np.take_along_axis(wakes, order, axis=1)
    have = np.cumsum(np.take_along_axis(values, order, axis=1), axis=1)
    slope = np.cumsum(np.take_along_axis(variance, order, axis=1), axis=1)
    roots = (sums[:, None] - have) / slope  # with the first k cells awake
    last = np.count_nonzero(roots > wakes, axis=1) - 1  # true for the first ones and false for the rest
    return np.asarray(np.take_along_axis(roots, np.maximum(last, 0)[:, None], axis=1)[:, 0])


def _fitted(law: Floats, first: Floats, second: Floats) -> Floats:
    """Returns the law with these margins, by iterative proportional fitting."""
    for _ in range(ROUNDS):
        law = law * (first / law.sum(axis=1))[:, None]
        law = law * (second / law.sum(axis=0))[None, :]
    return law


def _summed(values: Floats, codes: Codes, axis: int) -> Floats:
    moved = np.moveaxis(values, axis, 0)
    out = np.zeros((codes.max() + 1, *moved.shape[1:]))
    np.add.at(out, codes, moved)
    return np.moveaxis(out, 0, axis)
