"""How well any test tells whether a unit took part, from a privacy profile: reporting terms, never a promise.

A test is wrong about a of the outputs made without the unit, and misses b of those made with it. What is (e, d)-DP
leaves ``b >= max(0, 1 - d - exp(e) a, exp(-e) (1 - d - a))`` (Wasserman and Zhou 2010, theorem 2.4), so the profile's
points leave the largest of theirs (Dong, Roth, Su 2022, section 2.4). `accounting.explain` reads the curve off the
composed privacy losses where they are known, which is finer.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from dp_accounting import dp_event
from numpy.typing import NDArray

from accounting import accountant
from accounting.budget import Neighbors

DELTAS = (1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
_PARTS = 6
"""Epsilons between none and that of the first of `DELTAS` at which delta is asked for."""
_LEAST_EPSILON = 1e-6


class Point(NamedTuple):
    """The mechanism is (epsilon, delta)-DP."""

    epsilon: float
    delta: float


def profile_points(event: dp_event.DpEvent, *, neighbors: Neighbors, grid: float | None) -> list[Point]:
    """Returns points of the event's privacy profile by rising epsilon, all of them upper bounds; none without privacy.

    ``grid``: of the PLD; a coarse one is looser and cheaper.
    """

    def epsilon(delta: float) -> float:
        return accountant.epsilon(event, delta=delta, neighbors=neighbors, grid=grid).upper

    top = epsilon(DELTAS[0])
    tail = [Point(e, d) for d, e in ((d, epsilon(d)) for d in DELTAS) if 0 < e < math.inf]
    between = [max(_LEAST_EPSILON, top * k / _PARTS) for k in range(_PARTS)] if math.isfinite(top) else []
    found = [
        Point(e, accountant.delta(event, epsilon=e, neighbors=neighbors, grid=grid).upper)
        for e in dict.fromkeys(between)
    ]
    return sorted(point for point in [*found, *tail] if point.delta < 1)


def least_misses(points: Sequence[Point], false_positives: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns, for each share (n,) of false positives in [0, 1], a share (n,) of misses that no test goes below."""
    most = np.zeros_like(false_positives)
    for e, d in points:
        most = np.maximum(most, 1 - d - math.exp(min(e, 700.0)) * false_positives)
        most = np.maximum(most, math.exp(-e) * (1 - d - false_positives))
    return np.maximum(most, 0.0)


def true_positive_rate(points: Sequence[Point], *, false_positive_rate: float) -> float:
    """Returns an upper bound on the share of presences that a test finds at this share of false alarms.

    >>> f"{true_positive_rate([Point(1.0, 0.0)], false_positive_rate=0.01):.4f}"
    '0.0272'
    """
    return float(1 - least_misses(points, np.array([false_positive_rate]))[0])
