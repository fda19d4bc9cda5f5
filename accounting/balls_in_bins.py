"""Renyi divergences of balls-in-bins sampling: in each epoch every unit joins one of T batches, chosen uniformly.

An epoch releases T noisy sums. To an observer one unit is ``P = (1/T) sum_i N(e_i, s^2 I)`` against ``Q = N(0, s^2
I)`` in T dimensions, at most (Chua et al. 2024, arXiv 2412.16802): along the direction in which the unit would move a
step's sum, the noise is a standard one whatever came before, and a shorter move is a noisier one. With ``L_i = exp(x_i
/ s - 1 / (2 s^2))``, x_i standard normal, and ``Z = (L_1 + ... + L_T) / T`` the moments that make the divergences of
order a are

- ``E[Z^a]`` if the unit is removed. As ``E[L^k] = m_k = exp(k (k - 1) / (2 s^2))``, it is for whole a the coefficient
  ``a! / T^a [z^a] (sum_k m_k z^k / k!)^T``: powers of a series of positive numbers, taken in logarithms.
- ``E[Z^-c]``, ``c = a - 1``, if it is added. It is an integral over Laplace's transform f of L, ``T^c / Gamma(c)
  int exp(c v) f(exp v)^T dv``. Means are above geometric means, so it is at most ``exp(c (1 + c / T) / (2 s^2))``
  too, which is the smaller one for orders far above T.

Neither exceeds the moment without sampling, ``exp(a (a - 1) / (2 s^2))``, as moments are convex in (P, Q) together.
All are rounded up. Logarithms of moments are convex in the order, so a chord bounds those of fractional orders.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, log_ndtr, ndtri

Array = npt.NDArray[np.float64]

TABLES = (64, 512)
"""Orders up to which moments are tabulated; above the last one, sampling is taken to be of no use."""

_LEAST_NOISE = 0.2
"""Below, the integral takes many points, and sampling helps little."""

_SLACK = 1e-12
_FLOOR = 1e-40
_SMALL = 1e-28
_BLOCK = 512


def divergence(*, noise_multiplier: float, bins: int, order: float, swapped: bool) -> float:
    """Returns an upper bound on the Renyi divergence of ``order`` of one epoch: the larger of both directions.

    ``swapped``: a unit is replaced by another, ``D_a(P, P') <= (a - 1/2) / (a - 1) D_2a(P, Q) + D_(2a-1)(Q, P')``
    (Mironov 2017, proposition 11), and at most that of sums which move by 2 in the unit's own batch.
    """
    if not swapped:
        return _divergence(noise_multiplier, bins, order)
    both = (order - 0.5) / (order - 1) * _divergence(noise_multiplier, bins, 2 * order)
    return min(2 * order / noise_multiplier**2, both + _divergence(noise_multiplier, bins, 2 * order - 1))


def lower_epsilon(*, noise_multiplier: float, bins: int, epochs: int, delta: float) -> float:
    """Returns an epsilon below which no (epsilon, delta)-DP holds for ``epochs`` epochs; 0 where none is found.

    Where everyone else contributes zero, let S be "some sum is above c". The unit's presence makes its probability p =
    ``1 - (F(c)^(T-1) F(c - 1))^E`` instead of q = ``1 - F(c)^(T E)``, F the noise's distribution function. Adding and
    removing, ``epsilon >= log((p - delta) / q)`` and ``log((1 - q - delta) / (1 - p))``, at the best c.
    """
    c = np.linspace(-6.0, 12.0 + 2 / noise_multiplier, 4000)
    still = epochs * bins * log_ndtr(c)
    moved = epochs * ((bins - 1) * log_ndtr(c) + log_ndtr(c - 1 / noise_multiplier))
    above, below = -np.expm1(np.stack((moved, still))), np.exp(np.stack((still, moved)))
    found = 0.0
    for first, second in (above, below):
        known = (first > delta) & (second > 1e-300)
        found = max(found, *np.log((first[known] - delta) / second[known]), 0.0)
    return max(0.0, float(found) * (1 - 1e-9) - 1e-12)


def _divergence(noise: float, bins: int, order: float) -> float:
    whole = order / (2 * noise**2)
    if bins == 1 or order > TABLES[-1]:
        return whole
    logs = _log_moments(noise, bins, next(most for most in TABLES if order <= most))
    below, above = math.floor(order), math.ceil(order)
    chord = logs[below] + (order - below) * (logs[above] - logs[below])
    return float(min(whole, chord / (order - 1)))


@lru_cache(maxsize=64)
def _log_moments(noise: float, bins: int, most: int) -> Array:
    """Returns (most + 1,) upper bounds on the larger one of ``log E[Z^a]`` and ``log E[Z^(1-a)]``; 0 for a = 1."""
    order = np.arange(most + 1)
    logs = np.maximum(log_removed(noise, bins, most), np.append(0.0, log_added(noise, bins, most - 1)))
    logs = np.minimum(logs, order * (order - 1) / (2 * noise**2))
    logs[:2] = 0.0
    return np.asarray(logs)


def log_removed(noise: float, bins: int, most: int) -> Array:
    """Returns (most + 1,) upper bounds on ``log E[Z^a]`` for a = 0, 1, ..., most.

    A coefficient of z^n is between ``1/n!`` and ``t^n / n! m_n`` in the t-th power, whose logarithms are within a size
    that is convex in n. Each of at most ``2 log2 T`` products adds up the errors of z^i and z^(n-i), and at most 4 u
    times that size.
    """
    k = np.arange(most + 1)
    log_factorial = gammaln(k + 1)
    powers = _log_power(k * (k - 1) / (2 * noise**2) - log_factorial, bins)
    size = k * (k - 1) / (2 * noise**2) + log_factorial + k * math.log(bins) + k
    error = (2 * bins.bit_length() + 2) * 2.0**-51 * size + k * _SLACK
    return np.asarray(powers + log_factorial - k * math.log(bins) + error)


def log_added(noise: float, bins: int, most: int) -> Array:
    """Returns (most + 1,) upper bounds on ``log E[Z^-c]`` for c = 0, 1, ..., most.

    The trapezoidal rule with step h errs by ``2 exp(-2 pi d / h) / (1 - exp(-2 pi d / h))`` times the largest integral
    along a line at distance up to d from the real one (Trefethen and Weideman 2014, theorem 5.1). There ``|f(exp(v + i
    y))| <= f(exp(v) cos y)``, so that integral is ``(cos y)^-c`` times the wanted one: with d = 1 and the step below,
    the rule errs by less than 1e-15 of the result. ``f(exp v)`` is a log-concave function smoothed by a normal
    density, so it is log-concave: beyond either end, terms fall at least as fast as the last two.
    """
    c = np.arange(1, most + 1)
    geometric = c * (1 + c / bins) / (2 * noise**2)
    if noise < _LEAST_NOISE or bins == 1:
        return np.append(0.0, geometric)
    step = 2 * math.pi / (36 + 0.62 * most)
    points, log_transform = _log_transform(noise, bins, most, step)
    fall = bins * log_transform
    terms = c[:, None] * points + fall  # (orders, points)
    left = terms[:, 0] - terms[:, 1] + _SLACK
    right = terms[:, -1] - terms[:, -2] + 4e-11 * abs(fall[-2])
    tails = [terms[:, end] + _log_geometric(ratio) for end, ratio in ((0, left), (-1, right))]
    total = _log_sum(np.column_stack((terms, *tails))) + math.log(step)
    return np.append(0.0, np.minimum(geometric, total + c * math.log(bins) - gammaln(c) + _SLACK * (c + 1)))


def _log_power(logs: Array, power: int) -> Array:
    """Returns the logarithms of the first coefficients of the power of a series, by repeated squaring."""
    result = None
    while power:
        if power & 1:
            result = logs if result is None else _log_product(result, logs)
        power >>= 1
        if power:
            logs = _log_product(logs, logs)
    return logs if result is None else result


def _log_product(first: Array, second: Array) -> Array:
    padded = np.concatenate((second[::-1], np.full(len(second) - 1, -np.inf)))
    shifted = np.lib.stride_tricks.sliding_window_view(padded, len(second))[::-1]  # [n, i] is second[n - i]
    return _log_sum(first + shifted)


def _log_sum(logs: Array) -> Array:
    """Returns the logarithm of the sum of each row."""
    top = logs.max(axis=1)
    with np.errstate(invalid="ignore"):
        found = top + np.log(np.exp(logs - top[:, None]).sum(axis=1))
    return np.asarray(np.where(np.isinf(top), top, found))


def _log_geometric(log_ratio: Array) -> Array:
    """Returns ``log(r + r^2 + ...)``; infinity where r is not below 1."""
    falls = log_ratio < 0
    safe = np.where(falls, log_ratio, -1.0)
    return np.where(falls, safe - np.log(-np.expm1(safe)), np.inf)


def _log_transform(noise: float, bins: int, most: int, step: float) -> tuple[Array, Array]:
    """Returns points v, ``step`` apart, and upper bounds on ``log f(exp v)`` there, ``f(u) = E[exp(-u L)]``.

    The points reach from where f^T is 1 to where it is of no account beside any ``exp(-c v)``, or f is `_SMALL`.
    """
    half = 1 / (2 * noise**2)
    share = (80 + most * (half + math.log(bins) + 5)) / (0.6 * bins)  # of L above 1/u for a negligible f(u)^T
    high = half - ndtri(max(1 - share, _SMALL)) / noise + 4.5
    points = np.arange(-math.log(bins) - 25, high, step)
    blocks = np.array_split(points, -(-len(points) // _BLOCK))
    logs = np.concatenate([_log_laplace(noise, block) for block in blocks])
    kept = logs > math.log(_SMALL)
    return points[kept], logs[kept]


def _log_laplace(noise: float, points: Array) -> Array:
    """Returns upper bounds on ``log E[exp(-exp(v + x / s - 1 / (2 s^2)))]``, x standard normal, for each v of points.

    The integrand is at most ``exp(d^2 / 2)`` times the density of x at distance d < pi s / 2 from the real line: the
    trapezoidal rule errs by less than `_FLOOR` / 4, and beyond 14 lies less than another quarter. Near 1 the
    expectation of ``1 - exp(-...)`` is summed instead, to 1e-12 of itself, and rounded down.
    """
    reach = min(math.pi / 2 * noise, 13.9)
    step = 2 * math.pi * reach / (97 + reach**2 / 2)
    x = np.arange(-14.0, 14.0 + step, step)
    weights = np.exp(-(x**2) / 2) * step / math.sqrt(2 * math.pi)
    exponents = -np.exp(points[:, None] + (x / noise - 1 / (2 * noise**2)))  # (points, nodes)
    lost = -np.expm1(exponents) @ weights * (1 - 1e-12) - _FLOOR
    kept = np.exp(exponents) @ weights * (1 + 1e-11) + _FLOOR
    return np.where(lost < 0.5, np.log1p(-np.clip(lost, 0.0, 0.5)), np.log(kept))
