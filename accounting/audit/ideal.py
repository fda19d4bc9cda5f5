"""The best canaries there can be, of a mechanism that spends a given (epsilon, delta): what an audit could see of them.

Each canary is seen alone, through one number: N(mu, 1) if it is included, N(0, 1) if not, where mu is that of the
Gaussian mechanism with exactly this epsilon at delta (Balle and Wang 2018, theorem 8). A Gaussian has no epsilon at
delta 0; there the number is a bit, right with probability ``exp(epsilon) / (1 + exp(epsilon))``: randomized response.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtr, ndtri

from accounting.audit.record import Floats
from accounting.methods import gaussian_delta, gaussian_epsilon

_MOST_MU = 100.0
"""Past it a single canary is told with certainty."""


@lru_cache(maxsize=256)
def gaussian_mu(epsilon: float, delta: float) -> float:
    """Returns mu of the Gaussian mechanism N(0, 1) against N(mu, 1) that has this epsilon at delta in (0, 1).

    >>> round(gaussian_mu(4.38, 1e-5), 2)
    1.0
    """
    found = brentq(
        lambda x: math.log(max(gaussian_delta(math.exp(-x), epsilon), 1e-300)) - math.log(delta),
        math.log(delta),  # delta is below mu / sqrt(2 pi)
        math.log(_MOST_MU) + math.log1p(epsilon),
        xtol=1e-12,
    )
    return math.exp(found)


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Returns the epsilon at delta in (0, 1) of N(mu, 1) against N(0, 1); 0 for mu <= 0."""
    return gaussian_epsilon(1 / mu, delta) if mu > 0 else 0.0


def precision(epsilon: float, delta: float, share: float) -> float:
    """Returns the chance that a guess is right, if ``share`` of the canaries are guessed and those best told.

    Half of the guesses are "included", for the highest of all scores, half "not included", for the lowest. Where t is
    the score above which ``share / 2`` of all lie, the chance p obeys ``P[N(mu, 1) > t] = share p`` and
    ``P[N(0, 1) > t] = share (1 - p)``, so that mu = z(share (1 - p)) - z(share p), z(a) being what a normal number
    exceeds with probability a.
    """
    if delta == 0:
        return float(expit(epsilon))
    mu = gaussian_mu(epsilon, delta)
    low, high = 0.5, 1 - 1e-15
    if _mu_of_precision(high, share) <= mu:
        return high
    return float(brentq(lambda p: _mu_of_precision(p, share) - mu, low, high, xtol=1e-14))


def epsilon_of_precision(right: float, delta: float, share: float) -> float:
    """Returns the epsilon at delta whose `precision` is ``right``: its inverse."""
    if delta == 0:
        return float(logit(right))
    return epsilon_of_mu(_mu_of_precision(right, share), delta)


def hits(epsilon: float, delta: float, false_alarms: Floats) -> Floats:
    """Returns the shares of included canaries that are found if these shares of the others are called included.

    ``Phi(Phi^-1(a) + mu)``; for delta 0, ``min(exp(epsilon) a, 1 - exp(-epsilon) (1 - a))``.
    """
    if delta == 0:
        return np.minimum(math.exp(min(epsilon, 700.0)) * false_alarms, 1 - math.exp(-epsilon) * (1 - false_alarms))
    return np.asarray(ndtr(ndtri(false_alarms) + gaussian_mu(epsilon, delta)))


def scores(rng: np.random.Generator, included: int, others: int, epsilon: float, delta: float) -> tuple[Floats, Floats]:
    """Returns draws of the numbers of so many included canaries, and of so many others."""
    if delta == 0:
        right = float(expit(epsilon))
        return (rng.random(included) < right).astype(float), (rng.random(others) >= right).astype(float)
    return rng.normal(gaussian_mu(epsilon, delta), size=included), rng.normal(size=others)


def least_detected(detected: Callable[[float], bool], claimed: float) -> float:
    """Returns the least true epsilon above ``claimed`` that is detected, to one in a thousand; infinite where none is.

    None is looked for beyond 1,000 times the claim. ``detected`` must be true from some epsilon on.
    """
    low, high = claimed, 2 * claimed
    while not detected(high):
        low, high = high, 2 * high
        if low > 1000 * claimed:
            return math.inf
    while high - low > 1e-3 * low:
        middle = (low + high) / 2
        low, high = (low, middle) if detected(middle) else (middle, high)
    return high


def _mu_of_precision(right: float, share: float) -> float:
    return float(ndtri(share * right) - ndtri(share * (1 - right)))
