"""`ScoreHistogram`: positives and negatives by score on a fixed grid, from which all metrics are read.

Rows of a bin are taken to have the score in its middle (in log-odds). With P_b and N_b the positives and negatives of
bin b and m_b its middle:

    AUC       Σ_b P_b (Σ_{c<b} N_c + N_b / 2) / (Σ P · Σ N)     rows of one bin tie
    log loss  −Σ_b (P_b ln m_b + N_b ln(1 − m_b)) / Σ_b (P_b + N_b)
    calibration  Σ_b (P_b + N_b) m_b / Σ_b P_b
    AP        Σ_b P_b p_b / Σ P,  p_b = (P_{>b} + P_b / 2) / (P_{>b} + N_{>b} + (P_b + N_b) / 2)

Discretization: AUC is exact up to half the share of pairs whose two rows share a bin; AP takes a bin's rows as evenly
mixed. A middle is off by at most half a
bin's width w in log-odds, so calibration by at most e^(w/2) − 1 (8 % at the default w = 0.15, and about w²/24 = 0.1 %
where scores are spread over bins), and a row's log loss by at most w/2.

A histogram may hold noise of a known standard deviation. Its cells are then unbiased and may be negative; the figures
are read from them as they are, so that errors of many cells cancel, with each tail in which no row is seen taken as one
bin (`seen`): noise there would weigh most. What needs counts that are not negative takes `cleaned`. In standard
deviations of its noise, a reading was seen to be off by at most 0.1 (AUC; 0.3 where scores mean nothing), 0.25 (log
loss, normalized entropy, calibration) and 0.6 (AP, which is low). An AUC from all cells is off by nothing, and has 1.2
to 2 times the noise; one without the tails is low by half of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import numpy as np
from dp_accounting import dp_event
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from accounting import mechanisms
from privads.evaluation.metrics import Floats, Interval, ScoreSums, _arrays, check_bootstrap
from privads.signals.query import Grid

SCORE = "score"
"""The column of a score's log-odds, where a grid is of no table's."""

TAIL = 2.0
"""A tail whose rows add up to less than so many standard deviations of its noise holds no row, as far as one sees. A
total that is less than so many of its own is not divided by."""

CLEAR = 5.0
"""The precision of noisy rows is read from so many standard deviations of their noise on."""


def log_odds(bins: int = 120, low: float = -12.0, high: float = 6.0) -> Grid:
    """Returns the grid of bins of equal width in log-odds between public ends; the outer ones hold all scores beyond.

    The default reaches from 6e-6 to 0.998. Under noise fewer bins are better: the noise of a total over b bins grows
    as √b.
    """
    if not (type(bins) is int and bins >= 2):
        raise ValueError(f"bins must be a whole number of at least 2, got {bins}")
    if not -40.0 <= low < high <= 40.0:
        raise ValueError(f"low and high must be log-odds with -40 <= low < high <= 40, got {low}, {high}")
    return Grid(column=SCORE, edges=tuple(np.linspace(low, high, bins + 1).tolist()))


@dataclass(frozen=True)
class HistogramMetrics:
    """What a histogram says, with intervals that hold its sampling and, where it has any, its noise."""

    rows: float
    positives: float
    auc: Interval
    log_loss: Interval
    normalized_entropy: Interval
    calibration: Interval
    average_precision: Interval


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreHistogram:
    """Positives and negatives by bin of the score, (bins,) each; `+` merges parts on one grid.

    noise_std: of the noise in every cell. event: what made it, None for counts without noise. rows_per_unit: the most
    rows of one unit, for intervals.

    >>> a = ScoreHistogram.of([1, 0], [0.5, 0.25])
    >>> (a + a).sums.weight
    4.0
    """

    grid: Grid
    positives: Floats
    negatives: Floats
    noise_std: float = 0.0
    event: dp_event.DpEvent | None = None
    rows_per_unit: int = 1

    @classmethod
    def empty(cls, grid: Grid | None = None) -> ScoreHistogram:
        """The histogram of no rows."""
        grid = log_odds() if grid is None else grid
        return cls(grid=grid, positives=np.zeros(grid.cells), negatives=np.zeros(grid.cells))

    @classmethod
    def of(
        cls, labels: ArrayLike, scores: ArrayLike, *, grid: Grid | None = None, rows_per_unit: int = 1
    ) -> ScoreHistogram:
        """The histogram of labels (rows,) in {0, 1} and scores (rows,) in [0, 1]."""
        grid = log_odds() if grid is None else grid
        label, score, _ = _arrays(labels, scores, None)
        place = grid.places(logit(score))
        positives = summed(place, label, grid.cells)
        negatives = summed(place, 1.0 - label, grid.cells)
        return cls(grid=grid, positives=positives, negatives=negatives, rows_per_unit=rows_per_unit)

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        if self.grid != other.grid:
            raise ValueError(f"histograms on different grids do not add up: {self.grid} and {other.grid}")
        return ScoreHistogram(
            grid=self.grid,
            positives=self.positives + other.positives,
            negatives=self.negatives + other.negatives,
            noise_std=math.hypot(self.noise_std, other.noise_std),
            event=joint_event((self.event, other.event)),
            rows_per_unit=max(self.rows_per_unit, other.rows_per_unit),
        )

    @property
    def sums(self) -> ScoreSums:
        """The sums that log loss, normalized entropy and calibration are ratios of.

        Rows of the upper tail (`seen`) are taken to be as well calibrated as the rest: noise in their number would
        weigh as much in the sum of predictions as rows that convert.
        """
        kept, middle = self.seen, expit(self.grid.middles)
        rows = kept.positives + kept.negatives
        loss = -kept.positives * np.log(middle) - kept.negatives * np.log1p(-middle)
        first, last = self._span
        inside = slice(first, last)
        predicted = float(((self.positives + self.negatives) * middle)[inside].sum())
        positives, of_them = float(kept.positives.sum()), float(self.positives[inside].sum())
        if of_them > 0.0:
            predicted *= positives / of_them
        return ScoreSums(float(rows.sum()), positives, predicted, float(loss.sum()))

    @property
    def auc(self) -> float:
        """The AUC with rows of one bin tied; nan where there is one class, as far as one sees.

        Negative cells stay as they are: Σ_b P_b (Σ_{c<b} N_c + N_b / 2) is linear in each, and noises are independent.
        Noise may carry it out of [0, 1]: cutting it there would bias it.
        """
        kept = self.seen
        positives, negatives = float(kept.positives.sum()), float(kept.negatives.sum())
        if not min(positives, negatives) > self._lost:
            return math.nan
        below = np.cumsum(kept.negatives) - kept.negatives / 2.0
        return float((kept.positives * below).sum()) / (positives * negatives)

    @property
    def average_precision(self) -> float:
        """The average precision, of a bin's positives with half of the bin above them; nan where no label is 1, as far
        as one sees.

        The precision of few noisy rows says nothing, so the bins at the top are one until their rows are 5 standard
        deviations of their noise.
        """
        kept = self.seen
        positives, rows = kept.positives[::-1], (kept.positives + kept.negatives)[::-1]
        total, cells = float(positives.sum()), np.arange(1, self.grid.cells + 1)
        clear = np.flatnonzero(np.cumsum(rows) > CLEAR * self.noise_std * np.sqrt(2.0 * cells))
        if not (len(clear) and total > self._lost):
            return math.nan
        starts = np.r_[0, clear[0] + 1 : self.grid.cells]
        positives, rows = np.add.reduceat(positives, starts), np.add.reduceat(rows, starts)
        above, of = np.cumsum(positives) - positives / 2.0, np.cumsum(rows) - rows / 2.0
        precision = np.divide(above, of, out=np.zeros_like(of), where=of > 0.0)
        return float((positives * precision).sum()) / total

    @cached_property
    def seen(self) -> ScoreHistogram:
        """The same, with each tail as one bin as far as its rows do not stand out of the noise; itself without noise.

        The upper tail's rows go to the last bin where rows are seen, the lower tail's negatives to the first. Its
        positives are taken for none: they are few where scores mean anything, and noise in their number weighs most.
        """
        if not self.noise_std:
            return self
        positives, negatives = np.zeros(self.grid.cells), np.zeros(self.grid.cells)
        first, last = self._span
        if first < last:
            positives[first:last], negatives[first:last] = self.positives[first:last], self.negatives[first:last]
            positives[last - 1] += self.positives[last:].sum()
            negatives[last - 1] += self.negatives[last:].sum()
            negatives[first] += self.negatives[:first].sum()
        return replace(self, positives=positives, negatives=negatives)

    @cached_property
    def _span(self) -> tuple[int, int]:
        """The first bin where rows stand out of the noise, counted from either end, and one beyond the last."""
        rows, bins = self.positives + self.negatives, self.grid.cells
        limit = TAIL * self.noise_std * np.sqrt(2.0 * np.arange(1, bins + 1))
        from_below = np.flatnonzero(np.cumsum(rows) > limit)
        from_above = np.flatnonzero(np.cumsum(rows[::-1]) > limit)
        return (int(from_below[0]), bins - int(from_above[0])) if len(from_below) and len(from_above) else (0, 0)

    @property
    def _lost(self) -> float:
        """A sum of positives up to which noise may have made them all."""
        return TAIL * self.noise_std * math.sqrt(self.grid.cells - self._span[0])

    @property
    def cleaned(self) -> ScoreHistogram:
        """Between the tails, the nearest counts >= 0 of the same totals; itself without noise."""
        if not self.noise_std:
            return self
        inside = np.zeros(self.grid.cells, dtype=np.bool_)
        inside[slice(*self._span)] = True
        kept = replace(self, positives=self.positives * inside, negatives=self.negatives * inside)
        return replace(
            self, positives=_nonnegative(kept.positives, inside), negatives=_nonnegative(kept.negatives, inside)
        )

    def metrics(self, *, level: float = 0.95, replicates: int = 200, seed: int = 0) -> HistogramMetrics:
        """Returns all readings with intervals from a parametric bootstrap of the sampling and of the noise.

        A replicate draws each cell as m times a Poisson number with mean c / m, c the cleaned count and m =
        rows_per_unit (as if all rows of a unit said the same: wide rather than narrow), and adds N(0, noise_std²). With
        t* the reading of a replicate and t° that of the cleaned counts, the interval is the percentile one (Davison and
        Hinkley 1997, section 5.3) moved from t° to t: [t + q_low(t*) − t°, t + q_high(t*) − t°]. At level 0.9 it was
        seen to cover 0.87 to 0.96 of the time (AP: 0.84), and always holds t. Ratios by positives that noise may have
        made are not defined. Costs no budget: reads the counts only.
        """
        check_bootstrap(level, replicates)
        center, rng, bound = self.cleaned, np.random.default_rng(seed), self.rows_per_unit
        found = []
        for _ in range(replicates):
            cells = [
                bound * rng.poisson(counts / bound) + rng.normal(0.0, self.noise_std, self.grid.cells)
                for counts in (center.positives, center.negatives)
            ]
            found.append(replace(self, positives=cells[0], negatives=cells[1])._readings())
        at_center = replace(center, noise_std=0.0)._readings()
        sums, readings = self.sums, list(self._readings())
        if not sums.positives > self._lost:  # a ratio by a total that noise may have made is any number
            readings[2:4] = math.nan, math.nan
        intervals = [
            _percentile(value, middle, np.array(drawn), level, most)
            for value, middle, drawn, most in zip(
                readings,
                at_center,
                zip(*found, strict=True),
                (1.0, math.inf, math.inf, math.inf, 1.0),
                strict=True,
            )
        ]
        return HistogramMetrics(sums.weight, sums.positives, *intervals)

    def _readings(self) -> tuple[float, float, float, float, float]:
        sums = self.sums
        return self.auc, sums.log_loss, sums.normalized_entropy, sums.calibration, self.average_precision


def summed(place: NDArray[np.signedinteger[Any]], values: Floats, places: int) -> Floats:
    """Returns the sum of the values at each place, (places,)."""
    return np.asarray(np.bincount(place, values, places), dtype=np.float64)


def joint_event(events: Iterable[dp_event.DpEvent | None]) -> dp_event.DpEvent | None:
    """Returns the event of all ``events``; None where there is none.

    Histograms that one execution released hold one and the same object, which counts once; equal events of two
    executions are two objects, and count twice.
    """
    different: list[dp_event.DpEvent] = []
    for event in events:
        if event is not None and not any(event is one for one in different):
            different.append(event)
    return None if not different else reduce(mechanisms.composed, different)


def _nonnegative(counts: Floats, inside: NDArray[np.bool_]) -> Floats:
    """The nearest counts >= 0 with the same sum (0 if that is negative): max(c − t, 0) for one t (Held et al. 1974)."""
    found = np.zeros_like(counts)
    total, cells = float(counts.sum()), counts[inside]
    if total <= 0.0 or not len(cells):
        return found
    falling = np.sort(cells)[::-1]
    excess = (np.cumsum(falling) - total) / np.arange(1, len(cells) + 1)
    found[inside] = np.maximum(cells - excess[np.flatnonzero(falling > excess)[-1]], 0.0)
    return found


def _percentile(value: float, center: float, drawn: Floats, level: float, most: float) -> Interval:
    """The interval of ``value``; it and its ends are cut to [0, most], where alone the reading means something."""
    defined, shown = drawn[~np.isnan(drawn)], min(most, max(0.0, value))
    if math.isnan(value) or math.isnan(center) or not len(defined):
        return Interval(math.nan if math.isnan(value) else shown, math.nan, math.nan)
    low, high = np.clip(
        value - center + np.quantile(defined, [(1.0 - level) / 2.0, (1.0 + level) / 2.0]), 0.0, most
    ).tolist()
    return Interval(shown, min(low, shown), max(high, shown))
