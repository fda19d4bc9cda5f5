"""Calibration overall and by segment: where a model that is right on average is wrong.

An ads model whose calibration ratio is 1 overall may bid 20 % too high for one advertiser and 20 % too low for another.
`sums_by_segment` is a mergeable table of `ScoreSums`; `by_segment` adds intervals over units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privads.evaluation.metrics import Interval, ScoreSums, _arrays, codes_of_units, evaluate


@dataclass(frozen=True)
class SegmentMetrics:
    """One segment's rows and metrics. Intervals are of this segment alone, not of all segments at once."""

    segment: str
    rows: int
    positives: int
    normalized_entropy: Interval
    calibration: Interval


def sums_by_segment(
    labels: ArrayLike, scores: ArrayLike, segments: ArrayLike, weights: ArrayLike | None = None
) -> dict[str, ScoreSums]:
    """Returns the `ScoreSums` of each segment; `merged` adds two such tables.

    >>> sums_by_segment([1, 0], [0.5, 0.25], ["a", "b"])["a"].calibration
    0.5
    """
    label, score, weight = _arrays(labels, scores, weights)
    names = _segment_names(segments, len(label))
    return {
        str(name): ScoreSums.of(label[names == name], score[names == name], weight[names == name])
        for name in np.unique(names)
    }


def merged(one: Mapping[str, ScoreSums], two: Mapping[str, ScoreSums]) -> dict[str, ScoreSums]:
    """Returns the sums of both tables, in order of the segments' names; a segment in one of them alone stays.

    >>> merged({"a": ScoreSums(1.0)}, {"a": ScoreSums(2.0)})["a"].weight
    3.0
    """
    return {name: one.get(name, ScoreSums()) + two.get(name, ScoreSums()) for name in sorted({*one, *two})}


def by_segment(
    labels: ArrayLike,
    scores: ArrayLike,
    units: ArrayLike,
    segments: ArrayLike,
    *,
    level: float = 0.95,
    replicates: int = 200,
    seed: int = 0,
) -> tuple[SegmentMetrics, ...]:
    """Returns each segment's rows, positives, normalized entropy and calibration, in order of the segments' names.

    Intervals as `metrics.evaluate` makes them, over the units with rows in the segment. Of 20 segments one lies
    outside its 95 % interval by chance: take a level of 1 − 0.05 / segments to speak of all of them.

    >>> [(one.segment, one.rows) for one in by_segment([1, 0, 1], [0.5, 0.2, 0.9], [0, 1, 1], ["b", "a", "b"])]
    [('a', 1), ('b', 2)]
    """
    label, score, _ = _arrays(labels, scores, None)
    codes = codes_of_units(units, len(label))
    names = _segment_names(segments, len(label))
    found = []
    for name in np.unique(names):
        rows = names == name
        one = evaluate(label[rows], score[rows], codes[rows], level=level, replicates=replicates, seed=seed)
        found.append(SegmentMetrics(str(name), one.rows, one.positives, one.normalized_entropy, one.calibration))
    return tuple(found)


def calibration_error(labels: ArrayLike, scores: ArrayLike, *, bins: int = 10) -> float:
    """Returns the expected calibration error over about ``bins`` bins of equally many rows.

    ECE = Σ_b (n_b / n) |mean score in b − share of positives in b| (Naeini et al. 2015, AAAI, here with quantile
    bins; equal scores share one). It is never negative, so even a calibrated model's is above 0 by about
    Σ_b √(r_b (1 − r_b) n_b) / n: compare models on the same rows. nan where there are no rows.

    >>> calibration_error([0, 1, 1, 1], [0.25, 0.25, 0.75, 0.75], bins=2)
    0.25
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    label, score, _ = _arrays(labels, scores, None)
    if not len(label):
        return float("nan")
    edges = np.unique(np.quantile(score, np.arange(1, bins) / bins))
    place = np.searchsorted(edges, score, side="right")
    return float(np.abs(np.bincount(place, score - label)).sum() / len(label))


def _segment_names(segments: ArrayLike, rows: int) -> NDArray[np.str_]:
    names = np.asarray(segments)
    if names.shape != (rows,):
        raise ValueError(f"segments must have shape {(rows,)} as the labels have, got {names.shape}")
    return names.astype(str)
