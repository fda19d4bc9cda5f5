"""The metrics ads teams decide by, as sums that merge, with intervals over the units who own the rows.

Rows i have a label y_i in {0, 1}, a probability p_i and a weight w_i (1 unless given). With W = Σ w_i:

    log loss            L  = −(1/W) Σ w_i [y_i ln p_i + (1 − y_i) ln(1 − p_i)], p_i clipped to [1e-7, 1−1e-7]
    normalized entropy  NE = L / H(b),  b = (1/W) Σ w_i y_i,  H(b) = −b ln b − (1 − b) ln(1 − b)
    calibration         Σ w_i p_i / Σ w_i y_i
    AUC                 P(p_+ > p_−) + P(p_+ = p_−)/2 for a positive and a negative drawn by weight

NE below 1 is better than predicting the rows' own base rate (He et al. 2014, ADKDD, "Practical lessons from
predicting clicks on ads at Facebook", section 2, with calibration beside it). The first three are ratios of
`ScoreSums`, a commutative monoid: parts computed anywhere add up to the whole. AUC is no ratio of sums over
rows; it is the Mann-Whitney statistic, computed exactly from one sort.

A metric that the rows do not define is `math.nan`, never an error: NE and AUC where there is one class,
calibration where no label is 1, all of them where there are no rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

CLIP = 1e-7
CURVE_BINS = 10


@dataclass(frozen=True)
class ScoreSums:
    """Sums over rows that log loss, normalized entropy and calibration are ratios of; `+` merges parts.

    `ScoreSums()` is the sum over no rows. Sums are of float64, so `+` is associative up to rounding.

    >>> a, b = ScoreSums.of([1, 0], [0.5, 0.25]), ScoreSums.of([0], [0.25])
    >>> (a + b).calibration
    1.0
    """

    weight: float = 0.0
    positives: float = 0.0
    predicted: float = 0.0
    loss: float = 0.0

    @classmethod
    def of(cls, labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> ScoreSums:
        """The sums over the rows of labels (rows,), scores (rows,) and weights (rows,)."""
        return cls(*_row_sums(*_arrays(labels, scores, weights)).sum(axis=0).tolist())

    def __add__(self, other: ScoreSums) -> ScoreSums:
        return ScoreSums(
            self.weight + other.weight,
            self.positives + other.positives,
            self.predicted + other.predicted,
            self.loss + other.loss,
        )

    @property
    def log_loss(self) -> float:
        """The mean log loss in nats."""
        return ratio(self.loss, self.weight)

    @property
    def normalized_entropy(self) -> float:
        """The mean log loss over the entropy of the same rows' base rate; nan where there is one class."""
        rate = ratio(self.positives, self.weight)
        if not 0.0 < rate < 1.0:
            return math.nan
        return self.log_loss / (-rate * math.log(rate) - (1.0 - rate) * math.log1p(-rate))

    @property
    def calibration(self) -> float:
        """Predicted over observed positives; 1 is calibrated, nan where no label is 1."""
        return ratio(self.predicted, self.positives)


@dataclass(frozen=True)
class Interval:
    """A metric on the rows and its bootstrap interval over units; nan where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CalibrationBin:
    """Rows with neighboring scores: what was predicted, what happened, and how sure that is (`_curve`)."""

    mean_predicted: float
    observed_rate: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class TaskMetrics:
    """One label's metrics on one set of rows. `reference` holds another predictor's on the same rows."""

    rows: int
    positives: int
    auc: Interval
    log_loss: Interval
    normalized_entropy: Interval
    calibration: Interval
    curve: tuple[CalibrationBin, ...]
    reference: TaskMetrics | None = None


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Returns the probability that a positive scores above a negative, ties counted 1/2; O(n log n).

    AUC = Σ_{y_i=1, y_j=0} w_i w_j (1[s_i > s_j] + 1[s_i = s_j]/2) / (Σ_{y_i=1} w_i · Σ_{y_j=0} w_j)

    nan where there is one class. Labels (rows,) in {0, 1}, scores (rows,) in [0, 1], weights (rows,) >= 0.

    >>> auc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    return _weighted_auc(*_arrays(labels, scores, weights))()


def evaluate(
    labels: ArrayLike,
    scores: ArrayLike,
    units: ArrayLike,
    *,
    reference: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    level: float = 0.95,
    replicates: int = 200,
    seed: int = 0,
) -> TaskMetrics:
    """Returns the metrics of `scores`, with intervals from a bootstrap over units.

    Each replicate draws as many units as there are, with replacement, and all rows of a unit move together
    (the cluster bootstrap: Davison and Hinkley 1997, section 3.8); the interval lies between the quantiles
    (1 ± level)/2 of the replicates that define the metric. With fewer than two units it is (nan, nan): one
    unit says nothing about how units vary. `reference` (rows,) is scored on the same replicates.

    Labels (rows,) in {0, 1}; scores (rows,) in [0, 1]; units (rows,) integer codes of who owns each row;
    weights (rows,) >= 0. O(n log n) once, then O(n) per replicate.

    >>> evaluate([0, 1, 1, 0], [0.2, 0.9, 0.6, 0.3], [0, 0, 1, 1]).auc
    Interval(value=1.0, low=1.0, high=1.0)
    """
    check_bootstrap(level, replicates)
    label, score, weight = _arrays(labels, scores, weights)
    codes = codes_of_units(units, len(label))
    other = None
    if reference is not None:
        other = _arrays(labels, reference, weights, scores_name="reference")[1]
    found = _task_metrics(label, score, weight, codes, level, multiplicities(codes, replicates, seed))
    if other is None:
        return found
    draws = multiplicities(codes, replicates, seed)
    return replace(found, reference=_task_metrics(label, other, weight, codes, level, draws))


def multiplicities(codes: NDArray[np.int64], replicates: int, seed: int) -> Iterator[Floats]:
    """How often each unit is in the data, (units,): once, then in every replicate, drawn with replacement."""
    units = int(codes.max()) + 1 if len(codes) else 0
    yield np.ones(units)
    rng = np.random.default_rng(seed)
    for _ in range(replicates if units >= 2 else 0):
        yield np.bincount(rng.integers(0, units, units), minlength=units).astype(np.float64)


def _task_metrics(
    label: Floats,
    score: Floats,
    weight: Floats,
    codes: NDArray[np.int64],
    level: float,
    multiplicities: Iterator[Floats],
) -> TaskMetrics:
    columns = _row_sums(label, score, weight).T
    per_unit = np.stack([np.bincount(codes, column) for column in columns])  # (4, units)
    area = _weighted_auc(label, score, weight, codes)
    measured = []
    for times in multiplicities:
        # einsum, not @: BLAS would start threads for every small product, which takes longer than the product
        sums = ScoreSums(*np.einsum("su,u->s", per_unit, times).tolist())
        measured.append((area(times), sums.log_loss, sums.normalized_entropy, sums.calibration))
    values = np.array(measured)  # (1 + replicates, metrics), the data as they are in row 0
    return TaskMetrics(
        rows=len(label),
        positives=int(label.sum()),
        auc=interval(values[:, 0], level),
        log_loss=interval(values[:, 1], level),
        normalized_entropy=interval(values[:, 2], level),
        calibration=interval(values[:, 3], level),
        curve=_curve(label, score, weight, codes, level),
    )


def interval(values: Floats, level: float) -> Interval:
    """Returns the first of the values with the quantiles (1 ± level)/2 of those after it that are defined."""
    value, defined = float(values[0]), values[1:][~np.isnan(values[1:])]
    if math.isnan(value) or not len(defined):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(defined, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(value, float(low), float(high))


def _weighted_auc(
    label: Floats, score: Floats, weight: Floats, codes: NDArray[np.int64] | None = None
) -> Callable[..., float]:
    """The AUC as a function of how often each unit is in the data."""
    return concordance(weight * label, weight * (1.0 - label), score, codes)


def concordance(
    higher: Floats, lower: Floats, score: Floats, codes: NDArray[np.int64] | None = None
) -> Callable[..., float]:
    """P(a row drawn by the weights ``higher`` scores above one drawn by ``lower``), ties counted 1/2, as a function of
    how often each unit is in the data: sorts once, then O(n) per call.
    """
    order = np.argsort(score, kind="stable")
    sorted_score = score[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_score[1:] != sorted_score[:-1]])[: len(score)])
    first, second = higher[order], lower[order]
    owner = None if codes is None else codes[order]

    def share(times: Floats | None = None) -> float:
        copies = 1.0 if times is None or owner is None else times[owner]
        highs = np.add.reduceat(first * copies, starts)  # (distinct scores,)
        lows = np.add.reduceat(second * copies, starts)
        below = np.cumsum(lows) - lows / 2.0  # those below, plus half of those that tie
        won = float(np.einsum("g,g->", highs, below))
        return ratio(won, float(highs.sum() * lows.sum()))

    return share


def _curve(
    label: Floats, score: Floats, weight: Floats, codes: NDArray[np.int64], level: float
) -> tuple[CalibrationBin, ...]:
    """About ten bins of rows between quantiles of the score; equal scores share a bin.

    The interval is Wilson's with n = (Σ_u W_u)² / Σ_u W_u², W_u a unit's weight in the bin: Kish's effective
    size with units as the sample, as if all rows of one unit said the same. It is therefore wide rather than
    narrow, and has a width also where a bin holds no positive.
    """
    if not len(score):
        return ()
    edges = np.unique(np.quantile(score, np.arange(1, CURVE_BINS) / CURVE_BINS))
    place = np.searchsorted(edges, score, side="right")
    bins = [place == number for number in np.unique(place)]
    return tuple(_bin(label[rows], score[rows], weight[rows], codes[rows], level) for rows in bins)


def _bin(label: Floats, score: Floats, weight: Floats, codes: NDArray[np.int64], level: float) -> CalibrationBin:
    sums = ScoreSums(*_row_sums(label, score, weight).sum(axis=0).tolist())
    of_units = np.bincount(np.unique(codes, return_inverse=True)[1], weight)
    rate = ratio(sums.positives, sums.weight)
    low, high = _wilson(rate, ratio(sums.weight**2, float(of_units @ of_units)), level)
    return CalibrationBin(ratio(sums.predicted, sums.weight), rate, low, high, len(label))


def _wilson(rate: float, size: float, level: float) -> tuple[float, float]:
    """(r + z²/2n ± z √(r(1−r)/n + z²/4n²)) / (1 + z²/n), a rate r seen in n draws (Wilson 1927, JASA)."""
    if math.isnan(rate):
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    center = rate + z * z / (2.0 * size)
    half = z * math.sqrt(rate * (1.0 - rate) / size + z * z / (4.0 * size * size))
    scale = 1.0 + z * z / size
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


def _row_sums(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Every row's share of `ScoreSums`, in its order of fields, (rows, 4)."""
    clipped = np.clip(score, CLIP, 1.0 - CLIP)
    loss = -np.where(label == 1.0, np.log(clipped), np.log1p(-clipped))
    return np.asarray(weight[:, None] * np.stack([np.ones_like(label), label, score, loss], axis=1))


def ratio(numerator: float, denominator: float) -> float:
    """Returns numerator / denominator; nan where the denominator is not positive."""
    return numerator / denominator if denominator > 0.0 else math.nan


def _arrays(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None, scores_name: str = "scores"
) -> tuple[Floats, Floats, Floats]:
    """The arguments as float64 arrays (rows,), checked; messages never quote a row's value."""
    label, score = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if label.ndim != 1:
        raise ValueError(f"labels must have shape (rows,), got {label.shape}")
    weight = np.ones_like(label) if weights is None else np.asarray(weights, dtype=np.float64)
    for name, array in ((scores_name, score), ("weights", weight)):
        if array.shape != label.shape:
            raise ValueError(f"{name} must have shape {label.shape} as the labels have, got {array.shape}")
    if not np.all((label == 0.0) | (label == 1.0)):
        raise ValueError("labels must be 0 or 1")
    if not np.all((score >= 0.0) & (score <= 1.0)):
        raise ValueError(f"{scores_name} must be probabilities in [0, 1]")
    if not np.all((weight >= 0.0) & np.isfinite(weight)):
        raise ValueError("weights must be finite and not negative")
    return label, score, weight


def codes_of_units(units: ArrayLike, rows: int) -> NDArray[np.int64]:
    """The units as codes 0, 1, ... without gaps, (rows,)."""
    owner = np.asarray(units)
    if owner.shape != (rows,):
        raise ValueError(f"units must have shape {(rows,)} as the labels have, got {owner.shape}")
    if rows and not np.issubdtype(owner.dtype, np.integer):
        raise ValueError(f"units must be integer codes, got {owner.dtype}")
    return np.unique(owner, return_inverse=True)[1].astype(np.int64)


def check_bootstrap(level: float, replicates: int) -> None:
    """Refuse a level outside (0, 1) and less than one replicate."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, got {replicates}")
