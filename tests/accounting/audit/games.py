"""Canaries as one would wish them, and how often chance may be seen."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from accounting.methods import gaussian_delta

DELTA = 1e-5


def game(
    rng: np.random.Generator, canaries: int, epsilon: float | None = None, *, mu: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores and coins of canaries that are each seen through N(mu, 1) or N(0, 1); ``epsilon`` is at `DELTA`."""
    included = rng.random(canaries) < 0.5
    return rng.normal(size=canaries) + included * (mu_of(epsilon) if mu is None else mu), included


def mu_of(epsilon: float | None) -> float:
    """The mu whose Gaussian has this epsilon at `DELTA`, by bisection of Balle and Wang's formula."""
    assert epsilon is not None
    low, high = 1e-4, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(1 / middle, epsilon) < DELTA else (low, middle)
    return high


def most_of(runs: int, rate: float) -> int:
    """The count that more runs than that exceed only with probability 10^-6, at this rate."""
    return int(binom.isf(1e-6, runs, rate))
