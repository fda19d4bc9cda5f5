"""Metrics of a model on labels of yes or no that were randomized, corrected for it, with standard errors.

For row i with the answer a_i and the model's probability p_i, the channel's inverse gives numbers whose mean over the
channel is what the label itself would have given (`channel`, Natarajan et al. 2013, lemma 1):

    w_i = (T^-1)[a_i, 1]                 E[w_i] = y_i, the label; for flips with probability q (a - q) / (1 - 2 q)
    rate          mean w                 unbiased
    log loss      mean of -w ln p - (1 - w) ln(1 - p), p clipped as in `evaluation.metrics`; unbiased
    calibration   sum p / sum w          consistent: a ratio of two sums
    AUC           sum_ij w_i (1 - w_j) 1[p_i > p_j] / sum_ij w_i (1 - w_j) over pairs i != j, ties 1/2; consistent: both
                  sums are unbiased, as different rows are answered independently (as in Menon et al. 2015, ICML,
                  with the rate estimated)

Standard errors are of the first order: the metric's derivative by each row's weight (of a mean ``(x_i - mean) / n``),
summed within a unit, squared, summed (the infinitesimal jackknife; Efron 1982, chapter 6). They hold the noise of the
answers and the choice of the rows. None of these is clipped into its range: that would bias it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privads.evaluation.metrics import CLIP, codes_of_units
from privads.signals.channel import Channel

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A metric and its standard error; nan where the rows do not define it."""

    value: float
    std_error: float


@dataclass(frozen=True, kw_only=True)
class DebiasedMetrics:
    """What randomized answers say of a model."""

    rows: int
    rate: Estimate
    log_loss: Estimate
    calibration: Estimate
    auc: Estimate


def debiased_metrics(
    answers: ArrayLike, scores: ArrayLike, channel: Channel, *, units: ArrayLike | None = None
) -> DebiasedMetrics:
    """Returns the metrics of ``scores``, from answers whose windows have all closed.

    answers: (rows,) 0 or 1; those of windows are grouped before, and their channel with `Channel.grouped`. scores:
    (rows,) probabilities of 1. units: (rows,) whole numbers, whose rows may be alike; by default each row stands alone.
    """
    answer, score = np.asarray(answers), np.asarray(scores, dtype=np.float64)
    if channel.states != 2:
        raise ValueError(f"these metrics are of labels of yes or no: group the {channel.states} states to two")
    if answer.ndim != 1 or score.shape != answer.shape:
        raise ValueError(f"answers and scores must have shape (rows,), got {answer.shape} and {score.shape}")
    if not np.isin(answer, (0, 1)).all():
        raise ValueError("answers must be 0 or 1")
    if not ((score >= 0) & (score <= 1)).all():
        raise ValueError("scores must be probabilities in [0, 1]")
    rows = len(answer)
    codes = np.arange(rows) if units is None else codes_of_units(units, rows)
    if rows == 0:
        none = Estimate(math.nan, math.nan)
        return DebiasedMetrics(rows=0, rate=none, log_loss=none, calibration=none, auc=none)
    positive = channel.inverse[answer.astype(np.int64), 1]
    clipped = np.clip(score, CLIP, 1 - CLIP)
    loss = -positive * np.log(clipped) - (1 - positive) * np.log1p(-clipped)
    ones = np.ones(rows)
    return DebiasedMetrics(
        rows=rows,
        rate=_ratio(positive, ones, codes),
        log_loss=_ratio(loss, ones, codes),
        calibration=_ratio(score, positive, codes),
        auc=_auc(positive, score, codes),
    )


def _ratio(numerator: Floats, denominator: Floats, codes: NDArray[np.int64]) -> Estimate:
    """The ratio R of two sums, with the derivatives ``(x_i - R y_i) / sum y``."""
    total = float(denominator.sum())
    if total <= 0:
        return Estimate(math.nan, math.nan)
    value = float(numerator.sum()) / total
    return Estimate(value, _std_error((numerator - value * denominator) / total, codes))


def _auc(positive: Floats, score: Floats, codes: NDArray[np.int64]) -> Estimate:
    """The AUC over pairs of different rows, see the module's text.

    With A = U / V, a row's derivative is ``(w_i (N_i - A N) + (1 - w_i) (P_i - A P)) / V``, where N_i is what lies
    below the row of ``1 - w``, P_i what lies above it of w, without itself, and N, P are all of them.
    """
    negative = 1 - positive
    below = _less(score, negative)  # with half of what ties, the row itself among it
    above = positive.sum() - _less(score, positive)
    own = positive * negative
    won = float(positive @ below - own.sum() / 2)
    pairs = float(positive.sum() * negative.sum() - own.sum())
    if pairs <= 0:
        return Estimate(math.nan, math.nan)
    value = won / pairs
    derivative = positive * (below - value * negative.sum()) + negative * (above - value * positive.sum())
    derivative -= (1 - 2 * value) * own  # the row itself, in both halves
    return Estimate(value, _std_error(derivative / pairs, codes))


def _less(score: Floats, weight: Floats) -> Floats:
    """Returns (rows,) the weight of the rows with a lower score, and half of that of those with the same."""
    order, place = np.unique(score, return_inverse=True)
    weights = np.bincount(place, weight, minlength=len(order))
    return np.asarray((np.cumsum(weights) - weights / 2)[place])


def _std_error(derivatives: Floats, codes: NDArray[np.int64]) -> float:
    of_units = np.bincount(codes, derivatives)
    return float(math.sqrt(of_units @ of_units))
