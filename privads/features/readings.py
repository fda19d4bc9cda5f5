"""What a `NoisyTable` tells: distributions and rates by key, each with what its noise does to it. All of it is free.

A count with noise has a known standard deviation s, so nothing here guesses how noisy it is. Numbers that a release
cannot tell apart from noise are pulled to what the whole table says, and nothing is divided by a noisy count as such.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from privads.signals.query import Grid
from privads.signals.table import NoisyTable

Floats = NDArray[np.float64]

LEAST_ROWS = 3.0
"""A cell with fewer rows than so many standard deviations of its noise says nothing about its own rate."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Distribution:
    """The distribution of a number over the rows where it is not missing, by one grid.

    edges: (cells + 1,). cdf: (cells + 1,) rising from 0 to 1. rows: noisy number of those rows, at least 1. cdf_std:
    (cells + 1,) the noise's standard deviation in the cdf before it was made to rise. missing: noisy number of rows
    without the number; missing_std: its noise.
    """

    edges: Floats
    cdf: Floats
    rows: float
    cdf_std: Floats
    missing: float
    missing_std: float

    def quantile(self, share: float) -> float:
        """Returns the number below which a ``share`` of the rows lies, linear inside a cell."""
        return float(np.interp(share, *_rising(self.cdf, self.edges)))

    def quantile_interval(self, share: float, *, z: float = 1.96) -> tuple[float, float]:
        """Returns where the quantile lies for a cdf within z standard deviations of its noise."""
        half = z * float(np.interp(share, *_rising(self.cdf, self.cdf_std)))
        return self.quantile(max(0.0, share - half)), self.quantile(min(1.0, share + half))

    def moments(self) -> tuple[float, float]:
        """Returns (mean, standard deviation), each cell's rows at its middle."""
        middles, shares = (self.edges[1:] + self.edges[:-1]) / 2, np.diff(self.cdf)
        mean = float(shares @ middles)
        return mean, math.sqrt(max(float(shares @ (middles - mean) ** 2), 0.0))


def distribution(table: NoisyTable) -> Distribution:
    """Returns the distribution that a table by one grid shows.

    The cdf is the rising function nearest to the noisy cumulated counts (isotonic regression, with the weights 1 / i
    that their growing noise calls for). Negative counts are not cut off first: that would add rows to every empty cell.
    """
    (grid,) = table.query.by
    if not isinstance(grid, Grid):
        raise ValueError("a distribution is read from a table by one grid")
    counts = dict(zip((key[0] for key in table.keys), table.rows, strict=True))
    cells = np.array([counts[i] for i in range(grid.cells)])
    total = max(float(cells.sum()), 1.0)
    cumulated = np.cumsum(cells)
    weights = 1.0 / np.arange(1, grid.cells + 1)
    rising = np.clip(isotonic_regression(cumulated, weights=weights).x / total, 0.0, 1.0)
    rising[-1] = 1.0
    noise = table.rows_std * np.sqrt(np.arange(grid.cells + 1)) / total
    # The total's own noise takes part: near the upper end it is the cells above that are uncertain.
    above = table.rows_std * np.sqrt(grid.cells - np.arange(grid.cells + 1)) / total
    return Distribution(
        edges=np.array(grid.edges),
        cdf=np.concatenate([[0.0], rising]),
        rows=total,
        cdf_std=noise * above / np.maximum(np.hypot(noise, above), 1e-300),
        missing=float(counts[None]),
        missing_std=table.rows_std,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Rates:
    """The rate of a label by key, shrunk to the whole table's.

    overall: the table's rate p. rates: (cells,) in (0, 1). weights: (cells,) in [0, 1], how much of each is its own.
    spread: the standard deviation of the true rates among cells, as the table shows it.
    """

    overall: float
    rates: Floats
    weights: Floats
    spread: float


def rates(table: NoisyTable) -> Rates:
    """Returns the label's rate in each cell, shrunk by what its noise and its few rows leave unknown.

    With P and N the noisy positives and negatives of a cell, s their noise, n = P + N and p the whole table's rate,
    ``d = (1 - p) P - p N`` has mean ``n (r - p)`` for a true rate r, and variance
    ``v = s^2 ((1 - p)^2 + p^2) + n p (1 - p)``. So ``t^2 = sum(d^2 - v) / sum(n^2 - 2 s^2)`` estimates the true
    rates' variance without bias from noise, over the cells with n at least `LEAST_ROWS` standard deviations, and
    ``r = p + w d / n`` with ``w = t^2 / (t^2 + v / n^2)`` is the best linear guess of a rate (empirical Bayes).
    """
    positives, negatives, s = table.values["positives"], table.values["negatives"], table.count_std
    rows = np.maximum(table.rows, 1.0)
    enough = table.rows >= LEAST_ROWS * table.rows_std
    total = float(table.rows[enough].sum())
    least = 1.0 / max(total, 2.0)
    overall = float(np.clip(positives[enough].sum() / total, least, 1 - least)) if total > 0 else 0.5
    d, variance = _deviation(overall, positives, negatives, rows, s)
    size = float((rows[enough] ** 2 - 2 * s**2).sum())
    spread2 = max(float((d[enough] ** 2 - variance[enough]).sum()) / size, 0.0) if size > 0 else 0.0
    weights = np.where(enough, spread2 / np.maximum(spread2 + variance / rows**2, 1e-300), 0.0)
    shrunk = overall + weights * d / rows
    return Rates(
        overall=overall,
        rates=np.clip(shrunk, overall / 20, 1 - (1 - overall) / 20),
        weights=weights,
        spread=math.sqrt(spread2),
    )


def information(positives: Floats, negatives: Floats, noise_std: Floats) -> tuple[float, float]:
    """Returns about how many nats a row's cell tells of its label (mutual information, to second order), and the
    standard deviation of that figure for the noise and for which rows happened to come.

    positives, negatives, noise_std: (cells,) noisy counts and the noise on each of them.
    ``I = sum_v (n_v / n) KL(r_v | p)``, and ``KL(r | p) = (r - p)^2 / (2 p (1 - p))`` for rates r near p. With d and v
    of `rates`, ``n_v^2 (r_v - p)^2`` is ``d^2 - v`` in the mean: noise and chance are subtracted, so a column that
    tells nothing comes out near 0, on either side. ``d^2`` has variance ``2 v^2 + 4 v n_v^2 (r_v - p)^2``. Cells whose
    rows are within `LEAST_ROWS` deviations of their noise are left out; nan where all are.
    """
    rows = positives + negatives
    enough = rows >= LEAST_ROWS * np.sqrt(2.0) * noise_std
    rows, s = np.maximum(rows[enough], 1.0), noise_std[enough]
    total = float(rows.sum())
    if total <= 0:
        return math.nan, math.nan
    p = float(np.clip(positives[enough].sum() / total, 1 / total, 1 - 1 / total))
    d, variance = _deviation(p, positives[enough], negatives[enough], rows, s)
    scale = total * 2 * p * (1 - p)
    signal = d**2 - variance
    chance = 2 * float((variance**2 / rows**2).sum())
    spread = chance + 4 * float((variance * signal / rows**2).sum())  # without bias, so it can fall below its least
    return float((signal / rows).sum()) / scale, math.sqrt(max(spread, chance)) / scale


def _deviation(
    p: float, positives: Floats, negatives: Floats, rows: Floats, noise_std: Floats | float
) -> tuple[Floats, Floats]:
    """Returns d and v of `rates`: what a cell has beyond the rate p, and that figure's variance."""
    d = (1 - p) * positives - p * negatives
    return d, noise_std**2 * ((1 - p) ** 2 + p**2) + rows * p * (1 - p)


def _rising(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Returns x and y without the points that share their x with an earlier one, as `numpy.interp` needs."""
    kept = np.concatenate([[True], np.diff(x) > 0])
    return x[kept], y[kept]
