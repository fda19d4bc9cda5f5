"""What a privacy loss means to an attacker: error rates instead of epsilon. An explanation, never the guarantee.

An attacker who must tell neighboring data sets apart from the output, with a false positive rate a, misses at least
``f(a) = sup_e max(0, 1 - delta(e) - exp(e) a, exp(-e) (1 - delta(e) - a))`` of the true ones (Dong, Roth, Su 2022,
section 2.4: the trade-off curve of a privacy profile). The profile is that of the composed privacy losses, rounded
against us.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from dp_accounting import dp_event
from dp_accounting.pld.privacy_loss_distribution import identity
from scipy.signal import lfilter
from scipy.special import log_ndtr, ndtr, ndtri

from accounting import tradeoff
from accounting.budget import Neighbors
from accounting.losses import privacy_loss
from accounting.mechanisms import from_json, to_json
from accounting.methods import settle
from accounting.pairs import Array
from accounting.tradeoff import Point, least_misses

LEAST_DELTA = 1e-9
"""The profile is read down to here."""

PROFILE_POINTS = 1000
ROUNDING = 1e-3
"""What the grid may add to epsilon, about ``n h^2 / 2`` over n executions; it sets the grid h."""


@dataclass(frozen=True, kw_only=True)
class GaussianDp:
    """A Gaussian mechanism with sensitivity 1 and noise 1/mu that loses at least as much, and how far off that is.

    ``mu`` is the least one whose curve delta(epsilon) lies nowhere below the mechanism's, for epsilon >= 0 and delta
    >= 1e-9 (below, nothing is said); infinite where delta stays above. ``fit_error`` is the largest distance between
    the two trade-off curves, in false negatives at one rate of false positives; near 0, mu says all there is to say.
    """

    mu: float
    fit_error: float


def gaussian_dp(event: dp_event.DpEvent, *, neighbors: Neighbors = "add-remove") -> GaussianDp:
    """Returns the least mu whose Gaussian loses as much as ``event``, and the error of putting it so.

    An event without privacy has an infinite mu and no error. Raises `UnknownEvent` where no distribution of privacy
    losses is known.

    >>> from accounting.mechanisms import gaussian
    >>> round(gaussian_dp(gaussian(noise_multiplier=2.0)).mu, 3)
    0.5
    """
    profile = _profile(to_json(event), neighbors)
    if profile is None:
        return GaussianDp(mu=math.inf, fit_error=0.0)
    epsilons, deltas = profile
    low, high = 0.0, math.inf if deltas[-1] > 2 * LEAST_DELTA else 1.0
    while np.any(_gaussian_delta(high, epsilons) < deltas):
        low, high = high, 2 * high
    while math.isfinite(high) and high - low > 1e-9 * high:
        mu = (low + high) / 2
        low, high = (mu, high) if np.any(_gaussian_delta(mu, epsilons) < deltas) else (low, mu)
    rates = np.concatenate((np.geomspace(1e-6, 1e-2, 100), np.linspace(0.01, 0.99, 200)))
    missed = least_misses(_points(profile), rates)
    return GaussianDp(mu=high, fit_error=float(np.max(np.abs(missed - ndtr(-ndtri(rates) - high)))))


def true_positive_rate(
    event: dp_event.DpEvent, *, false_positive_rate: float, neighbors: Neighbors = "add-remove"
) -> float:
    """Returns the most true positives, ``1 - f(false_positive_rate)``, that any attacker can have: an upper bound.

    >>> from accounting.mechanisms import gaussian
    >>> round(true_positive_rate(gaussian(noise_multiplier=2.0), false_positive_rate=0.01), 4)
    0.0339
    """
    if not 0 <= false_positive_rate <= 1:
        raise ValueError(f"false_positive_rate must be between 0 and 1, got {false_positive_rate}")
    profile = _profile(to_json(event), neighbors)
    if profile is None:
        return 1.0
    return tradeoff.true_positive_rate(_points(profile), false_positive_rate=false_positive_rate)


def _points(profile: tuple[Array, Array]) -> list[Point]:
    return [Point(*one) for one in zip(*(values.tolist() for values in profile), strict=True)]


def _gaussian_delta(mu: float, epsilons: Array) -> Array:
    """Returns delta of N(mu, 1) against N(0, 1) (Balle and Wang 2018, theorem 8)."""
    return np.asarray(ndtr(mu / 2 - epsilons / mu) - np.exp(epsilons + log_ndtr(-mu / 2 - epsilons / mu)))


@lru_cache(maxsize=32)
def _profile(event_json: str, neighbors: Neighbors) -> tuple[Array, Array] | None:
    """Returns epsilons from 0 to that of `LEAST_DELTA`, and delta at each; None where there is no privacy."""
    leaves = settle(from_json(event_json), neighbors)
    if leaves is None:
        return None
    executions = sum(count for _, count in leaves)
    grid = float(np.clip(math.sqrt(2 * ROUNDING / executions), 1e-5, 1e-3))
    total = identity(grid)
    for leaf, count in leaves:
        total = total.compose(privacy_loss(leaf, neighbors=neighbors, grid=grid).self_compose(count))
    never_below = float(total.get_delta_for_epsilon(math.inf))
    most = float(total.get_epsilon_for_delta(max(LEAST_DELTA, 1.001 * never_below)))
    epsilons = np.linspace(0.0, most, PROFILE_POINTS)
    both = (total._pmf_remove.to_dense_pmf(), total._pmf_add.to_dense_pmf())
    return epsilons, np.maximum(*(_deltas(pmf, grid, epsilons) for pmf in both))


def _deltas(pmf: Any, grid: float, epsilons: Array) -> Array:
    """Returns ``E[(1 - exp(epsilon - Y))+]`` at each epsilon >= 0."""
    losses = (pmf._lower_loss + np.arange(len(pmf._probs))) * grid
    inside = losses > 0
    losses, masses = losses[inside], np.append(pmf._probs[inside], 0.0)
    upper = np.cumsum(masses[::-1])[::-1]  # mass of P at each loss and above
    lower = lfilter([1.0], [1.0, -math.exp(-grid)], masses[::-1])[::-1]  # that of Q, times exp(loss)
    start = np.searchsorted(losses, epsilons, side="right")
    growth = np.exp(epsilons - np.append(losses, math.inf)[start])
    return np.asarray(np.clip(upper[start] - growth * lower[start] + pmf._infinity_mass, 0.0, 1.0))
