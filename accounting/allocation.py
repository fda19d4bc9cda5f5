"""What one epoch of balls in bins loses: every unit joins exactly one of T batches, chosen uniformly at random.

Batch t releases the sum of its units' vectors, each of length at most 1, plus N(0, s^2 I). With a unit removed the
outputs of an epoch, however later steps depend on earlier ones, are dominated by the pair (Chua et al. 2025, arXiv
2412.16802; Feldman and Shenfeld 2025, arXiv 2502.08202)

    P = 1/T sum over t of N(e_t, s^2 I),    Q = N(0, s^2 I),    P/Q = Z = 1/T sum over t of L_t

where under Q the L_t are independent and lognormal, ``log L ~ N(-1/(2 s^2), 1/s^2)``, of mean 1. So the Renyi
divergences of order a need the moments ``E[Z^a]``, for P from Q, and ``E[Z^(1-a)]``, for Q from P.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

MOST_ORDER = 128
"""The largest order whose moments are computed; above it the divergence without sampling holds."""

_SLACK = 1e-11
"""Added to the logarithm of a moment for each order: more than what logarithms, sums and quadrature lose."""

_OUTER_STEP = 0.02
_TAIL = 40.0
_CHUNK = 256


def log_moment(noise: float, bins: int, order: float) -> float:
    """Returns an upper bound on ``max(log E[Z^a], log E[Z^(1-a)])`` for the order a > 1.

    Exact at whole orders up to `MOST_ORDER`. Between them, where a logarithm of moments is convex in the order and 0 at
    a = 1, it is below its chord. Never above ``a (a-1) / (2 s^2)``, that of a batch that every unit is in: divergences
    are jointly quasi-convex, and (P, Q) is a mixture of such pairs.
    """
    whole = order * (order - 1) / (2 * noise**2)
    if order > MOST_ORDER:
        return whole
    below, above = math.floor(order), math.ceil(order)
    share = order - below
    ends = [[curve[a - 1] if a > 1 else 0.0 for curve in _moments(noise, bins)] for a in (below, above)]
    chord = max(low + share * (high - low) for low, high in zip(*ends, strict=True))
    return float(min(whole, max(0.0, chord) * (1 + _SLACK) + _SLACK * order))


@lru_cache(maxsize=64)
def _moments(noise: float, bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns (MOST_ORDER,) of each: ``log E[Z^a]`` and ``log E[Z^(1-a)]`` at a = 1, 2, ..., `MOST_ORDER`."""
    return _positive(noise, bins), np.concatenate([[0.0], _negative(noise, bins)])


def _positive(noise: float, bins: int) -> NDArray[np.float64]:
    """Returns ``log E[Z^a]``: a! / T^a times the coefficient of z^a in ``(sum over k of E[L^k] z^k / k!)^T``.

    ``E[L^k] = exp((k^2 - k) / (2 s^2))``. All coefficients are positive, so the power is taken in logarithms, by
    squaring, and nothing cancels.
    """
    k = np.arange(MOST_ORDER + 1)
    base = (k * k - k) / (2 * noise**2) - gammaln(k + 1)
    power = np.where(k == 0, 0.0, -np.inf)
    remaining = bins
    while remaining:
        if remaining % 2:
            power = _product(power, base)
        base, remaining = _product(base, base), remaining // 2
    return np.asarray(gammaln(k + 1) - k * math.log(bins) + power)[1:]


def _product(one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the logarithms of the coefficients of a product of power series, from those of the factors."""
    places = np.arange(len(one))
    gap = places[:, None] - places
    terms = np.where(gap >= 0, one[gap] + two, -np.inf)
    return np.asarray(logsumexp(terms, axis=1))


def _negative(noise: float, bins: int) -> NDArray[np.float64]:
    """Returns ``log E[Z^-s]`` at s = 1, ..., MOST_ORDER - 1, from ``z^-s = 1 / Gamma(s) int u^(s-1) exp(-u z) du``.

    ``E[exp(-u Z)] = phi(u / T)^T`` with phi the Laplace transform of L, so in x = log u it is one integral, of
    ``exp(s x) phi(exp(x) / T)^T``. Both integrands are analytic in a strip and decay on both sides, where the error of
    the trapezoidal rule falls exponentially with the step.
    """
    s = np.arange(1, MOST_ORDER)
    blocks: list[NDArray[np.float64]] = []
    x, best = -_TAIL, np.full(len(s), -np.inf)
    while True:
        points: NDArray[np.float64] = x + _OUTER_STEP * np.arange(_CHUNK, dtype=np.float64)
        terms = s[:, None] * points + bins * _log_laplace(points - math.log(bins), noise)
        blocks.append(np.asarray(logsumexp(terms, axis=1)))
        best = np.maximum(best, terms.max(axis=1))
        if (terms[:, -1] < best - _TAIL).all() and (terms[:, -1] < terms[:, -2]).all():
            break
        x += _OUTER_STEP * _CHUNK
    return np.asarray(logsumexp(np.stack(blocks), axis=0) + math.log(_OUTER_STEP) - gammaln(s))


def _log_laplace(log_v: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """Returns ``log E[exp(-v L)]``, L lognormal, for each of the rising ``log_v``: precise where v is small, too."""
    step = min(noise, 1.0) / 10
    lowest = -12.0 - max(0.0, noise * float(log_v[-1]) + 1 / noise)
    z = np.arange(lowest, 12.0 + step, step)
    log_weights = -(z**2) / 2 + math.log(step / math.sqrt(2 * math.pi))
    exponents = np.exp(np.minimum(log_v[:, None] + z / noise - 1 / (2 * noise**2), 700.0))  # v L
    small = log_v < 0
    result = np.empty(len(log_v))
    result[small] = np.log1p(np.expm1(-exponents[small]) @ np.exp(log_weights))
    result[~small] = logsumexp(log_weights - exponents[~small], axis=1)
    return result
