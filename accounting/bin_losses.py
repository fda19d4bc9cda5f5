"""The privacy losses of one epoch of balls in bins, as outcomes that are at least as telling.

To an observer, what a unit in T bins leaks is one number: with ``Z = (L_1 + ... + L_T) / T`` of `balls_in_bins`, every
figure of the pair (P, Q) is ``E[f(Z)]`` under Q for a convex f: ``(Z - exp(epsilon))+`` if the unit is removed, ``(1 -
exp(epsilon) Z)+`` if it is added. So whatever is above Z in convex order is above it in every figure; and as sums keep
convex order, it is enough to spread each L to grid points without moving its mean. What results is a pair of its own,
which dominates (P, Q) and can be composed (Zhu, Dong, Wang 2022).

L is spread in two parts. Up to a size b that one L in 20 T exceeds, it is moved to multiples of a width w whose added
variance, at most ``w^2 / 4``, is 1/500 of its own: the sum of those is a power of a Fourier transform. Above b, a grid
of ratios is fine enough, and as hardly ever more than a few of T are above it, their sum is found directly, for each
number j of them; the small ones beside it are spread once more. Mass beyond all grids is given the worst loss: to
infinity for P, to 0 for Q.

All masses are rounded up: by a small factor, more than their relative errors, and by an amount for the Fourier
transform, which on N points errs by ``8 u log2(N)`` times the sum of its inputs (Higham 2002, section 24.1), and the
n-th power of a number by ``(|x| + e)^n - |x|^n``.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import logsumexp, ndtri
from scipy.stats import binom

from accounting.pairs import Array, Mixture, OutcomePair

LEAST_NOISE, MOST_NOISE = 0.3, 100.0
"""Below, the grids are long and sampling helps little; above, a grid of ratios is no longer fine enough."""

MOST_BINS = 10**7

_ABOVE = 0.05
_COARSE = 1 / 500
_STEP = 0.1
_FINER = 100
_MOST_POINTS = 2**18
_TAIL = 1e-17
_PRUNED = 1e-24


@dataclass(frozen=True)
class _Small:
    """Masses of one L up to b, on multiples 0, 1, ... of ``width``; what is above b, or is lost, has none."""

    width: float
    masses: Array


def covers(noise_multiplier: float, bins: int) -> bool:
    """Returns whether `outcomes` takes these."""
    return LEAST_NOISE <= noise_multiplier <= MOST_NOISE and 2 <= bins <= MOST_BINS


@lru_cache(maxsize=4)
def outcomes(noise_multiplier: float, bins: int) -> tuple[OutcomePair, OutcomePair]:
    """Returns pairs that dominate one epoch's, if a unit is removed and if it is added.

    noise_multiplier: from `LEAST_NOISE` to `MOST_NOISE`. bins: from 2 to `MOST_BINS`. Where bins are few and noise is
    little, so much mass lies below the grid that the pair of adding has a large infinite loss: true, and useless.
    """
    top = math.exp((0.5 / noise_multiplier - ndtri(_TAIL)) / noise_multiplier)  # beyond it lies `_TAIL` of P's L
    bound = _size(noise_multiplier, max(_ABOVE / bins, 1e-16))
    small = _small(noise_multiplier, bins, bound)
    step = _STEP * min(1.0, 1 / noise_multiplier)
    edges = bound * np.exp(step * np.arange(max(1, math.ceil(math.log(top / bound) / step)) + 1))
    large = _spread(noise_multiplier, edges)
    chance = min(1.0, float(large.sum()))
    most = next(j for j in range(1, bins + 1) if j == bins or binom.sf(j - 1, bins - 1, chance) < _TAIL)
    first, last = _window(small, bins, bins - most)
    lost = 2 * (last * small.width / bins + 2) * _TAIL + float(binom.sf(most - 1, bins - 1, chance))
    values, masses = [], []
    sums, weights = np.zeros(1), np.ones(1)
    for j in range(most + 1):
        found, thinner = _power(small, bins - j, first, last), 1
        if j:
            ways = (bins - j + 1) / j * (1 + 1e-15)
            sums, weights = _convolved(sums, ways * weights, edges, large, step if j == 1 else 2 * step)
            thinner = math.ceil(max(bound / (_FINER * small.width), math.sqrt(bins) / 2))
        index, found = _thinned(found, first, thinner)
        mass = weights[:, None] * found  # (sums, points)
        value = (sums[:, None] + index * small.width) / bins
        kept = mass * np.maximum(value, 1.0) > _PRUNED
        lost += float((mass * np.maximum(value, 1.0))[~kept].sum())
        values.append(value[kept])
        masses.append(mass[kept])
    return _pairs(np.concatenate(values), np.concatenate(masses), lost)


def _pairs(values: Array, masses: Array, lost: float) -> tuple[OutcomePair, OutcomePair]:
    positive = values > 0
    losses, weights = np.log(values[positive]), masses[positive]
    removing = OutcomePair(losses, weights * values[positive], infinite=lost + 2 * _TAIL)
    return removing, OutcomePair(-losses, weights, infinite=lost + 2 * _TAIL + float(masses[~positive].sum()))


def _size(noise: float, chance: float) -> float:
    """Returns the L that is exceeded with this chance."""
    return math.exp((-ndtri(chance) - 0.5 / noise) / noise)


def _spread(noise: float, edges: Array) -> Array:
    """Returns masses at ``edges`` that L, where it is between them, is spread to: its mass and its mean are kept."""
    with np.errstate(divide="ignore"):
        x = noise * np.log(edges) + 0.5 / noise
    mass = Mixture(np.zeros(1), np.ones(1)).between(x)
    total = Mixture(np.array([1 / noise]), np.ones(1)).between(x)  # of L times its density
    width = np.diff(edges)
    factor = 1 + 1e-13 + 4e-15 * edges[1:] / width  # more than what rounding takes from a difference
    found = np.zeros(len(edges))
    found[:-1] += np.maximum(edges[1:] * mass - total, 0.0) / width * factor
    found[1:] += np.maximum(total - edges[:-1] * mass, 0.0) / width * factor
    return found


def _small(noise: float, bins: int, bound: float) -> _Small:
    """Returns L up to ``bound``, on a width fine enough that not all T of them are moved to 0 at once."""
    x = noise * math.log(bound) + 0.5 / noise
    spread = math.expm1(1 / noise**2) if noise > 1 else math.exp(1 / noise**2)
    shares = Mixture(np.array([2 / noise]), np.ones(1)).between(np.array([-np.inf, x]))
    variance = float(shares[0]) * spread
    never = _size(noise, -math.expm1(math.log(_TAIL) / bins))
    width = max(min(math.sqrt(4 * _COARSE * variance), never, bound), bound / _MOST_POINTS)
    points = math.ceil(bound / width)
    masses = _spread(noise, np.linspace(0.0, bound, points + 1))
    return _Small(bound / points, masses)


def _window(small: _Small, most: int, least: int) -> tuple[int, int]:
    """Returns multiples of the width between which sums of ``least`` to ``most`` lie, but for `_TAIL` at either end.

    Chernoff's bound with t above 1 / mean, so that ``s <= last exp(t (s - last))`` beyond: for means of the sum too.
    """
    index = np.arange(len(small.masses), dtype=np.float64)
    law = small.masses / small.masses.sum()
    mean = float(law @ index)
    deviation = math.sqrt(most * float(law @ (index - mean) ** 2))
    tilts = np.maximum(np.geomspace(0.3, 30.0, 24) / deviation, 1 / (most * mean))
    logs = np.log(np.maximum(law, 1e-300))
    moments = [logsumexp(sign * tilts[:, None] * (index - mean) + logs, axis=1) for sign in (1, -1)]
    above = np.min((most * moments[0] - math.log(_TAIL)) / tilts)
    below = np.min((most * moments[1] - math.log(_TAIL)) / tilts)
    first = max(0, math.floor(least * mean - below))
    return first, min(math.ceil(most * mean + above), most * (len(small.masses) - 1))


def _power(small: _Small, count: int, first: int, last: int) -> Array:
    """Returns (last - first + 1,) upper bounds on the masses of the sum of ``count`` of them."""
    points = next_fast_len(max(last - first + 1, len(small.masses)), real=True)
    unit = 4 * np.finfo(np.float64).eps * math.log2(points) * float(small.masses.sum())
    middle = round(float(small.masses @ np.arange(len(small.masses))))  # centered, the phases stay small
    padded = np.zeros(points)
    padded[: len(small.masses)] = small.masses
    coefficients = rfft(np.roll(padded, -middle))
    size = np.maximum(np.abs(coefficients), 1e-300)
    powers = np.exp(count * np.log(size))
    error = np.exp(np.minimum(count * np.log(size + unit), 700.0)) * (1 + 1e-15 * count) - powers
    found = irfft(powers * np.exp(1j * count * np.angle(coefficients)), points)
    slack = 2 * float(error.sum() + unit * powers.sum()) / points
    shifted = np.roll(found, (count * middle - first) % points)[: last - first + 1]
    return np.asarray(np.maximum(shifted, 0.0) + slack)


def _thinned(masses: Array, first: int, thinner: int) -> tuple[Array, Array]:
    """Returns multiples of ``thinner`` and the masses that those of ``first, first + 1, ...`` are spread to."""
    index = first + np.arange(len(masses))
    if thinner == 1:
        return index.astype(np.float64), masses
    below, rest = np.divmod(index, thinner)
    start, share = int(below[0]), rest / thinner
    points = int(below[-1]) - start + 2
    found = np.bincount(below - start, masses * (1 - share), points)
    found += np.bincount(below - start + 1, masses * share, points)
    return thinner * (start + np.arange(points, dtype=np.float64)), np.asarray(found * (1 + 1e-14))


def _convolved(sums: Array, weights: Array, edges: Array, large: Array, step: float) -> tuple[Array, Array]:
    """Returns the sums with one more large L, spread to ratios ``exp(step)`` again."""
    grid = edges[0] * np.exp(step * np.arange(len(edges) + math.ceil(6 / step)))
    total = np.add.outer(sums, edges).ravel()
    mass = np.multiply.outer(weights, large).ravel()
    below = np.clip(np.searchsorted(grid, total, side="right") - 1, 0, len(grid) - 2)
    share = np.clip((total - grid[below]) / (grid[below + 1] - grid[below]) + 1e-14, 0.0, 1.0)
    found = np.bincount(below, mass * (1 - share + 1e-14), len(grid))
    found += np.bincount(below + 1, mass * share, len(grid))
    kept = found > 0
    return np.asarray(grid[kept]), np.asarray(found[kept])
