"""How well scores rank: average precision over all rows, and AUC, recall@k and NDCG@k group by group.

A group is what one ranking decision sees: a user, a query, a request. Per-group values are kept as `PerGroup`, whose
weighted mean, share left out and bootstrap interval over groups are readings; `MeanSums` is what they add up to, a
commutative monoid, so that workers who each hold whole groups merge to the figure of one.

Equal scores are taken in random order and the mean over these orders is the value (McSherry and Najork 2008, ECIR,
"Computing information retrieval performance measures efficiently in the presence of tied scores"): a model that scores
all alike gains nothing from the order in which the rows were stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privads.evaluation.metrics import Floats, Interval, _arrays, auc, check_bootstrap, interval, ratio

GroupWeight = Literal["impressions", "positives"]


@dataclass(frozen=True)
class MeanSums:
    """Sums over groups that a weighted mean is a ratio of; `+` merges parts that share no group.

    left_out: the weight of groups that do not define the value.

    >>> (MeanSums(1.0, 2.0, 1.0) + MeanSums(2.0, 2.0, 0.0)).mean
    0.75
    """

    total: float = 0.0
    weight: float = 0.0
    left_out: float = 0.0

    def __add__(self, other: MeanSums) -> MeanSums:
        return MeanSums(self.total + other.total, self.weight + other.weight, self.left_out + other.left_out)

    @property
    def mean(self) -> float:
        """The weighted mean over the groups that define the value; nan where none does."""
        return ratio(self.total, self.weight)

    @property
    def share_left_out(self) -> float:
        """The share of all weight in groups that do not define the value; nan where there is no weight."""
        return ratio(self.left_out, self.weight + self.left_out)


@dataclass(frozen=True, eq=False)
class PerGroup:
    """A value of each group, (groups,), nan where it does not define one, and the group's weight, (groups,)."""

    values: Floats
    weights: Floats

    @property
    def sums(self) -> MeanSums:
        """What the weighted mean is a ratio of."""
        known = ~np.isnan(self.values)
        total = float((self.values[known] * self.weights[known]).sum())
        return MeanSums(total, float(self.weights[known].sum()), float(self.weights[~known].sum()))

    def interval(self, *, level: float = 0.95, replicates: int = 200, seed: int = 0) -> Interval:
        """Returns the weighted mean with its bootstrap interval over groups; (nan, nan) with fewer than two.

        Groups are taken for the privacy units or for parts of independent ones; where a unit owns several groups, the
        interval is too narrow.
        """
        check_bootstrap(level, replicates)
        known = ~np.isnan(self.values)
        weights = self.weights[known]
        totals, groups = self.values[known] * weights, int(known.sum())
        found = [self.sums.mean]
        rng = np.random.default_rng(seed)
        for _ in range(replicates if groups >= 2 else 0):
            drawn = rng.integers(0, groups, groups)
            found.append(ratio(float(totals[drawn].sum()), float(weights[drawn].sum())))
        return interval(np.array(found), level)


def auc_by_group(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, *, weight: GroupWeight = "impressions"
) -> PerGroup:
    """Returns the AUC within each group; its mean is the grouped AUC.

    gAUC = Σ_g w_g AUC_g / Σ_g w_g over groups with both classes, w_g the group's impressions or its positives (Zhu et
    al. 2017, arXiv 1706.06978, section 6.1, there over users by impressions). Unlike AUC it is not moved by how groups
    differ from each other. Groups of one class have no AUC and are left out: `PerGroup.sums.share_left_out`.

    Labels (rows,) in {0, 1}, scores (rows,) in [0, 1], groups (rows,) names or codes.

    >>> auc_by_group([0, 1, 1, 0, 1], [0.1, 0.2, 0.7, 0.9, 0.5], [7, 7, 8, 8, 9]).sums
    MeanSums(total=2.0, weight=4.0, left_out=1.0)
    """
    if weight not in ("impressions", "positives"):
        raise ValueError(f"weight must be 'impressions' or 'positives', got {weight!r}")
    label, score, _ = _arrays(labels, scores, None)
    rows_of = _rows_by_group(groups, len(label))
    values = np.array([auc(label[rows], score[rows]) for rows in rows_of])
    sizes = [len(rows) if weight == "impressions" else label[rows].sum() for rows in rows_of]
    return PerGroup(values.astype(np.float64), np.array(sizes, dtype=np.float64))


def average_precision(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Returns the area under the precision-recall curve by steps; rows of one score are one threshold.

    AP = Σ_t (R_t − R_{t−1}) P_t over the distinct scores t from high to low, R_t and P_t the recall and precision of
    "score at least t". nan where no label is 1. Nothing is interpolated, which would be too optimistic (Davis and
    Goadrich 2006, ICML). A constant score has AP = the base rate.

    >>> average_precision([1, 0, 1], [0.9, 0.8, 0.7])  # (1 + 2/3) / 2
    0.8333333333333333
    """
    label, score, weight = _arrays(labels, scores, weights)
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0.0, True)[: len(score)])
    positives, rows = np.cumsum((weight * label)[order])[ends], np.cumsum(weight[order])[ends]
    if not len(ends) or not positives[-1] > 0.0:
        return math.nan
    precision = np.divide(positives, rows, out=np.zeros_like(rows), where=rows > 0.0)
    return float((np.diff(positives, prepend=0.0) * precision).sum() / positives[-1])


def recall_by_group(relevance: ArrayLike, scores: ArrayLike, groups: ArrayLike, *, k: int) -> PerGroup:
    """Returns the share of each group's relevant rows that are among its k best scores, every group with weight 1.

    Relevant is relevance > 0. Groups without a relevant row are left out.

    >>> recall_by_group([1, 0, 1], [0.9, 0.8, 0.7], [0, 0, 0], k=2).values.tolist()
    [0.5]
    """
    grade, score = _graded(relevance, scores, k)
    found = []
    for rows in _rows_by_group(groups, len(grade)):
        relevant = _tie_means((grade[rows] > 0.0).astype(np.float64), score[rows])
        found.append(ratio(float(relevant[:k].sum()), float(relevant.sum())))
    return PerGroup(np.array(found, dtype=np.float64), np.ones(len(found)))


def ndcg_by_group(relevance: ArrayLike, scores: ArrayLike, groups: ArrayLike, *, k: int) -> PerGroup:
    """Returns each group's normalized discounted cumulative gain at k, every group with weight 1.

    DCG@k = Σ_{i=1..k} g_i / log2(i + 1), g_i the relevance at rank i; NDCG@k = DCG@k / DCG@k of the best order
    (Järvelin and Kekäläinen 2002, TOIS 20(4), with the discount of Burges et al. 2005). The gain is the relevance
    itself: pass 2^r − 1 for the exponential gain. Groups without a relevant row are left out.

    >>> round(ndcg_by_group([3, 2, 0], [0.5, 0.9, 0.1], [0, 0, 0], k=2).values.item(), 4)
    0.9134
    """
    grade, score = _graded(relevance, scores, k)
    discount = 1.0 / np.log2(np.arange(min(k, len(grade))) + 2.0)
    found = []
    for rows in _rows_by_group(groups, len(grade)):
        depth = discount[: len(rows)]
        gained = float((_tie_means(grade[rows], score[rows])[: len(depth)] * depth).sum())
        best = float((np.sort(grade[rows])[::-1][: len(depth)] * depth).sum())
        found.append(ratio(gained, best))
    return PerGroup(np.array(found, dtype=np.float64), np.ones(len(found)))


def _tie_means(value: Floats, score: Floats) -> Floats:
    """The values from the highest score down, each the mean of those with its score: the mean over orders of ties."""
    names, place = np.unique(-score, return_inverse=True)
    means = np.bincount(place, value, len(names)) / np.bincount(place, minlength=len(names))
    return np.asarray(means[np.sort(place)])


def _rows_by_group(groups: ArrayLike, rows: int) -> list[NDArray[np.int64]]:
    names = np.asarray(groups)
    if names.shape != (rows,):
        raise ValueError(f"groups must have shape {(rows,)} as the labels have, got {names.shape}")
    if not rows:
        return []
    codes = np.unique(names, return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


def _graded(relevance: ArrayLike, scores: ArrayLike, k: int) -> tuple[Floats, Floats]:
    """Relevance >= 0 and scores of any scale, (rows,), checked; messages never quote a row's value."""
    grade, score = np.asarray(relevance, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if grade.ndim != 1:
        raise ValueError(f"relevance must have shape (rows,), got {grade.shape}")
    if score.shape != grade.shape:
        raise ValueError(f"scores must have shape {grade.shape} as the relevance has, got {score.shape}")
    if not np.all((grade >= 0.0) & np.isfinite(grade)):
        raise ValueError("relevance must be finite and not negative")
    if np.any(np.isnan(score)):
        raise ValueError("scores must be numbers")
    return grade, score
