"""Bounds on epsilon from many independent runs, with a unit in half of them: a threshold on a score, and counting.

If a share a of the runs with the unit score above a threshold, and a share b of those without it, then (epsilon,
delta)-DP demands ``a <= exp(epsilon) b + delta``; in the same way for scores below one. Bounding a from below and b
from above (Clopper and Pearson 1934) bounds epsilon. It is sound for independent runs only: scores of many canaries of
one run disturb each other and belong to `accounting.audit.one_run`.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtrc, betaincinv

from accounting.audit import ideal
from accounting.audit.binomials import least, most, ratio
from accounting.audit.record import BACKWARDS, DETECTED, Audit, Floats, as_scores, check_claim

_SEED = 2026
_GAMES = 101
_QUANTILES = (np.arange(64) + 0.5) / 64


def many_runs(
    scores_in: ArrayLike,
    scores_out: ArrayLike,
    *,
    claimed_epsilon: float,
    delta: float,
    significance: float = 0.05,
) -> Audit:
    """Returns the audit by thresholds at fixed ranks, each of which has its share of the ``significance``.

    The thresholds are the k-th highest of ``scores_out``, for scores above, and the k-th lowest of ``scores_in``, for
    scores below, with k = 1, 2, 4, ... up to half of them. Of n scores the share that really lies beyond the k-th is
    at most a Beta(k, n - k + 1) number, so that choosing the threshold from the scores costs nothing; that there are
    several is paid for by Bonferroni, and each event's significance is halved between its two shares.

    scores_in, scores_out: (runs,), (runs,), of runs with and without the unit; higher speaks for "with". delta may be
    0. ``canaries`` of the result counts all runs; ``guesses`` are the runs beyond the best threshold, ``correct``
    those of them that belong there. Raises ValueError for NaN, empty scores, or terms out of range.

    >>> rng = np.random.default_rng(1)
    >>> found = many_runs(rng.normal(2.0, size=500), rng.normal(size=500), claimed_epsilon=1.0, delta=1e-5)
    >>> found.verdict, f"{found.lower:.2f} {found.power:.2f}", found.correct, found.guesses
    ('violation', '2.84 0.00', 139, 139)
    """
    check_claim(claimed_epsilon, delta, significance)
    with_it, without_it = as_scores("scores_in", scores_in), as_scores("scores_out", scores_out)
    power, ceiling, detectable = _outlook(with_it.size, without_it.size, claimed_epsilon, delta, significance)
    found = _best(with_it, without_it, delta, significance)
    alike = min(with_it.min(), without_it.min()) == max(with_it.max(), without_it.max())
    if alike or _best(without_it, with_it, delta, BACKWARDS).lower > 0:  # scores that tell nothing, or the opposite
        detectable = math.inf
    return Audit(
        method="Clopper-Pearson",
        claimed_epsilon=claimed_epsilon,
        delta=delta,
        significance=significance,
        lower=found.lower,
        kind="bound",
        canaries=with_it.size + without_it.size,
        guesses=found.right + found.wrong,
        correct=found.right,
        power=power,
        ceiling=ceiling,
        detectable=detectable,
    )


class _Found(NamedTuple):
    """The best bound, and the runs beyond its threshold that belong there and that do not."""

    lower: float
    right: int
    wrong: int


def _best(with_it: Floats, without_it: Floats, delta: float, significance: float) -> _Found:
    sides = (with_it, without_it), (-without_it, -with_it)
    share = significance / (2 * sum(_ranks(far.size).size for _, far in sides))
    found = []
    for near, far in sides:
        right, wrong = _beyond(near, far), _beyond(far, far)
        bounds = _bounds(right, near.size, far.size, delta, share)
        best = int(np.argmax(bounds))
        found.append(_Found(max(0.0, float(bounds[best])), int(right[best]), int(wrong[best])))
    return max(found)


def _ranks(size: int) -> Floats:
    return np.power(2.0, np.arange(max(1, int(math.log2(size))), dtype=np.float64))


def _beyond(near: Floats, far: Floats) -> Floats:
    """Returns how many of ``near`` are above the k-th highest of ``far``, for each rank k."""
    thresholds = np.sort(far)[far.size - _ranks(far.size).astype(int)]
    return np.asarray(near.size - np.searchsorted(np.sort(near), thresholds, side="right"), dtype=np.float64)


def _bounds(counts: Floats, near: int, far: int, delta: float, share: float) -> Floats:
    return ratio(least(counts, near, share), most(_ranks(far) - 1, far, share), delta)


@lru_cache(maxsize=64)
def _outlook(
    runs_in: int, runs_out: int, epsilon: float, delta: float, significance: float
) -> tuple[float, float, float]:
    """Returns power, the median of ideal games drawn with a fixed seed; ceiling; and detectable epsilon."""
    rng = np.random.default_rng(_SEED)
    games = (ideal.scores(rng, runs_in, runs_out, epsilon, delta) for _ in range(_GAMES))
    power = float(np.median([_best(*game, delta, significance).lower for game in games]))
    ranks = _ranks(runs_out).size + _ranks(runs_in).size
    share = significance / (2 * ranks)
    sides = [_side(near, far, epsilon, delta, share) for near, far in ((runs_in, runs_out), (runs_out, runs_in))]
    ceilings, detectable = zip(*sides, strict=True)
    return power, max(0.0, *ceilings), min(detectable)


def _side(near: int, far: int, epsilon: float, delta: float, share: float) -> tuple[float, float]:
    """Returns ceiling and detectable epsilon of the thresholds of one side, the best rank's of each."""
    ranks = _ranks(far)
    strays = betaincinv(ranks[:, None], far - ranks[:, None] + 1, _QUANTILES)  # (ranks, quantiles), shares beyond
    needed = _needed(near, far, epsilon, delta, share)

    def detected(true: float) -> bool:
        chances = bdtrc(needed[:, None] - 1, near, ideal.hits(true, delta, strays)).mean(axis=1)
        return bool((chances[needed <= near] >= DETECTED).any())

    ceiling = float(_bounds(np.full(ranks.size, float(near)), near, far, delta, share).max())
    return ceiling, ideal.least_detected(detected, epsilon)


def _needed(near: int, far: int, epsilon: float, delta: float, share: float) -> Floats:
    """Returns, for each rank, the least count that puts the bound above ``epsilon``; near + 1 where none does."""
    counts = np.arange(near + 1, dtype=np.float64)
    proven = least(counts, near, share)
    demanded = np.exp(min(epsilon, 700.0)) * most(_ranks(far) - 1, far, share) + delta
    return np.asarray(np.searchsorted(proven, demanded, side="right"), dtype=np.float64)
