"""Canaries as one would wish them, and how often chance may be seen."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.stats import binom

from accounting.methods import gaussian_delta

DELTA = 1e-5


def game(
    rng: np.random.Generator, canaries: int, epsilon: float | None = None, *, mu: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores and coins of canaries that are each seen through N(mu, 1) or N(0, 1); ``epsilon`` is at `DELTA`."""
    included = rng.random(canaries) < 0.5
    return rng.normal(size=canaries) + included * (mu_of(epsilon) if mu is None else mu), included


def worst(canaries: int, correct: int, pairs: Sequence[tuple[float, float]]) -> float:
    """The most that the chance of ``correct`` or more right guesses about all canaries can be: a linear program.

    Over all mechanisms that are (epsilon, delta)-DP for every one of ``pairs``. Of these one that treats canaries and
    sides alike does best, as the mean of a mechanism's mirror images is as private, so that the chances p_k of k right
    guesses tell all. If a coin falls the other way, k right guesses are k - 1 where its guess was right, for k / m of
    what has k right, and k + 1 else.
    """
    m, variables = canaries, canaries + 1 + 2 * canaries * len(pairs)
    rows, most = [], []
    place = m + 1  # of the next excess, P[...|S] - exp(epsilon) P[...|S'] where it is positive
    for epsilon, delta in pairs:
        total = np.zeros(variables)
        moves = [(k, k / m, k - 1, (m - k + 1) / m) for k in range(1, m + 1)]
        moves += [(k, (m - k) / m, k + 1, (k + 1) / m) for k in range(m)]
        for k, share, other, its_share in moves:
            row = np.zeros(variables)
            row[k], row[other], row[place], total[place] = share, -math.exp(epsilon) * its_share, -1.0, 1.0
            rows.append(row)
            most.append(0.0)
            place += 1
        rows.append(total)
        most.append(delta)
    gain, whole = np.zeros(variables), np.zeros((1, variables))
    gain[correct : m + 1], whole[0, : m + 1] = -1.0, 1.0
    return -float(linprog(gain, A_ub=np.array(rows), b_ub=most, A_eq=whole, b_eq=[1.0], method="highs").fun)


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
