"""Many privacy loss distributions composed at once, certified from above even where delta is tiny.

A mechanism's privacy loss distribution (PLD; Sommer, Meiser, Mohammadi 2019) is that of ``X = log(P(o) / Q(o))`` with
o drawn from P; here it is discrete, on multiples of a grid, with some mass at infinity, and rounded against us
(Doroshenko et al. 2022). Losses of composed mechanisms add, and ``delta(e) = E[(1 - exp(e - X))+]``.

All parts are convolved, each as often as it is executed, by one Fourier transform each and one back. Floating point
leaves an absolute error of about 10^-16 in each result, which would drown a delta of 10^-12. So the distributions are
first tilted, ``p(x) exp(t x) / M(t)`` with M the moment generating function, which moves the mass to the losses
that decide delta, and the result is tilted back: the error is then relative to delta. Every step errs upwards:

- wrap-around: a transform over a window adds mass from outside to it, never removes any. What lies above the window
  is bounded by Chernoff, ``P[X > x] <= M(u) exp(-u x)``, and added to delta;
- rounding: each transformed value is off by at most eta (relative to a mass of 1), so a product of powers is off by
  at most ``prod (|phi_i| + eta)^n_i - prod |phi_i|^n_i``; their mean over the frequencies is added to every entry.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Array = NDArray[np.float64]

MOST_POINTS = 2**22
"""Points of one transform. More would take minutes, so the caller takes a coarser grid."""

_ABOVE = 1e-10
"""Share of the tilted mass that may lie above the window."""
_REACH = 12.0
"""Standard deviations of the tilted sum that the window extends downwards."""
_ROUNDING = 1e-14
"""More than the floating-point error of one logarithm of a moment."""
_BLOCKS = 512
_FEW_POINTS = 2**14
_TILTS = np.geomspace(1e-4, 1e8, 241)


class TooFine(ValueError):  # noqa: N818
    """The window needs more points than `MOST_POINTS`; a coarser grid needs fewer."""


@dataclass(frozen=True)
class _Part:
    """One part in one direction: mass at ``(first + i) grid``, how often it is executed, and blocks for estimates."""

    first: int
    mass: Array
    infinite: float
    count: int
    block_mass: Array
    block_mean: Array
    block_variance: Array


class Composition:
    """The composition of ``parts``, pairs of a dp-accounting `PrivacyLossDistribution` and a count, on one grid."""

    def __init__(self, parts: Sequence[tuple[Any, int]]) -> None:
        grids = {pld._pmf_remove._discretization for pld, _ in parts}
        if len(grids) != 1:
            raise ValueError(f"all parts must be on one grid, got {sorted(grids)}")
        (grid,) = grids
        directions = [[_part(pld._pmf_remove, count, grid) for pld, count in parts]]
        if not all(pld._symmetric for pld, _ in parts):
            directions.append([_part(pld._pmf_add, count, grid) for pld, count in parts])
        self._directions = [_Direction(each, grid) for each in directions]

    def epsilon(self, delta: float) -> float:
        """Returns an epsilon, at least 0, with ``delta(epsilon) <= delta`` in both directions; infinite where none."""
        return max(direction.epsilon(delta) for direction in self._directions)

    def delta(self, epsilon: float) -> float:
        """Returns an upper bound, at most 1, on delta at ``epsilon`` in both directions."""
        return max(direction.delta(epsilon) for direction in self._directions)


class _Direction:
    def __init__(self, parts: list[_Part], grid: float) -> None:
        self._parts, self._grid = parts, grid
        finite = math.fsum(part.count * math.log1p(-min(part.infinite, 1 - 2**-53)) for part in parts)
        self._infinite = 1.0 if any(part.infinite >= 1 for part in parts) else -math.expm1(finite)
        self._least = sum(part.count * part.first for part in parts)
        self._most = sum(part.count * (part.first + len(part.mass) - 1) for part in parts)

    def epsilon(self, delta: float) -> float:
        finite = (delta - self._infinite * (1 + 1e-9)) * (1 - 1e-9)
        if finite <= 0:
            return math.inf
        bounds = [(self._estimate(t) + _gap(t) - math.log(finite)) / t for t in _TILTS]
        best = int(np.argmin(bounds))
        tilt = float(_TILTS[best])
        if bounds[best] <= 0 and self._log_moment(tilt) + _gap(tilt) <= math.log(finite):
            return 0.0
        reach = _REACH
        while True:
            found, inside = self._tilted(tilt, bounds[best], reach).epsilon(finite)
            if inside or reach > 100 * _REACH:
                return max(0.0, found)
            reach *= 8

    def delta(self, epsilon: float) -> float:
        if self._infinite == 1:
            return 1.0
        best = int(np.argmin([self._estimate(t) + _gap(t) - t * epsilon for t in _TILTS]))
        found = self._tilted(float(_TILTS[best]), epsilon, _REACH).delta(epsilon)
        return min(1.0, found * (1 + 1e-9) + self._infinite)

    def _estimate(self, tilt: float) -> float:
        """Returns about ``log M(tilt)``, from two moments of each block: good enough to choose a tilt, no bound."""
        total = 0.0
        for part in self._parts:
            terms = tilt * part.block_mean + 0.5 * tilt**2 * part.block_variance
            top = terms.max()
            total += part.count * (top + math.log(float(part.block_mass @ np.exp(terms - top))))
        return total

    def _log_moment(self, tilt: float) -> float:
        """Returns ``log M(tilt)``, rounded up."""
        total = math.fsum(part.count * _tilt(part, tilt * self._grid)[1] for part in self._parts)
        return total + _ROUNDING * sum(part.count for part in self._parts)

    def _tilted(self, tilt: float, epsilon: float, reach: float) -> "_Window":
        """Returns the composed masses around ``epsilon``, which the tilt was chosen for."""
        tilted = [_tilt(part, tilt * self._grid) for part in self._parts]
        log_moment, mean, variance = 0.0, 0.0, 0.0
        for part, (mass, log_sum) in zip(self._parts, tilted, strict=True):
            log_moment += part.count * (log_sum + _ROUNDING)
            index = np.arange(len(mass), dtype=np.float64)
            middle = float(mass @ index)
            mean += part.count * (part.first + middle)
            variance += part.count * float(mass @ (index - middle) ** 2)
        last, tail = self._last(tilt, log_moment)
        edge = epsilon / self._grid
        first = math.floor(min(mean, edge) - reach * math.sqrt(variance)) - 2
        last = max(last, math.ceil(edge) + 2, first + 1)
        first, last = max(first, self._least), min(last, self._most)
        last = max(last, first)
        if last - first >= MOST_POINTS:
            raise TooFine(f"{last - first} points: take a coarser grid")
        points = fft.next_fast_len(max(last - first + 1, 64), real=True)
        masses = [mass for mass, _ in tilted]
        mass = _convolve(self._parts, masses, first, points)
        whole = first == self._least
        return _Window(first, self._grid, tilt, log_moment, mass, tail=tail, whole=whole)

    def _last(self, tilt: float, log_moment: float) -> tuple[int, float]:
        """Returns the last index of the window, and a bound on the mass above it.

        The tilted mass above x is at most ``M(u) / M(t) exp(-(u - t) x)``, for any u > t; it is made `_ABOVE`. It must
        be small for a tight bound, as it wraps around to lower losses. Tilted back, it is below
        ``M(t) _ABOVE exp(-t x)``.
        """
        if self._most - self._least < _FEW_POINTS:
            return self._most, 0.0
        steeper = np.geomspace(1.05 * tilt, max(1e5, 10 * tilt), 64)
        start, share = self._estimate(tilt), math.log(_ABOVE)
        reach = [(self._estimate(u) - start - share) / (u - tilt) for u in steeper]
        u = float(steeper[int(np.argmin(reach))])
        last = math.ceil((self._log_moment(u) - log_moment - share) / (u - tilt) / self._grid + 1e-6)
        if last >= self._most:
            return self._most, 0.0
        return last, math.exp(min(0.0, log_moment + share - tilt * last * self._grid))


class _Window:
    """Masses of the composed losses from ``first`` upwards, in units that keep them near 1."""

    def __init__(
        self, first: int, grid: float, tilt: float, log_moment: float, mass: Array, *, tail: float, whole: bool
    ) -> None:
        losses = (float(first) + np.arange(len(mass))) * grid
        exponents = log_moment - tilt * losses
        kept = exponents < 600.0  # below, the tilt leaves only rounding
        self._losses, self._grid, self._tail = losses[kept], grid, tail
        self._masses = mass[kept] * np.exp(exponents[kept])
        self._least = -math.inf if whole and kept.all() else float(self._losses[0])

    def delta(self, epsilon: float) -> float:
        if epsilon < self._least:  # nothing is known about what lies below the window
            return 1.0
        start = int(np.searchsorted(self._losses, epsilon, side="right"))
        return float(-np.expm1(epsilon - self._losses[start:]) @ self._masses[start:]) + self._tail

    def epsilon(self, delta: float) -> tuple[float, bool]:
        """Returns an epsilon at which delta is small enough, and whether it is the least: not at the window's end."""
        low, high = 0, len(self._losses) - 1
        if self.delta(float(self._losses[high])) > delta:
            return math.inf, True
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.delta(float(self._losses[middle])) <= delta else (middle + 1, high)
        top = float(self._losses[high])
        above = self._masses[high:]
        scaled = float(np.exp(top - self._losses[high:]) @ above)
        excess = float(above.sum()) + self._tail - delta
        inside = top + math.log(excess / scaled) if excess > 0 and scaled > 0 else top
        bottom = float(self._losses[high - 1]) if high else self._least
        found = min(top, max(inside, bottom))
        return found + 1e-12 * max(1.0, abs(top)), found > self._least or found <= 0


def _part(pmf: Any, count: int, grid: float) -> _Part:
    dense = pmf.to_dense_pmf()
    mass = np.maximum(np.asarray(dense._probs, dtype=np.float64), 0.0)
    kept = np.flatnonzero(mass)
    if not kept.size:
        return _Part(0, np.ones(1), 1.0, int(count), np.ones(1), np.zeros(1), np.zeros(1))
    mass, first = mass[kept[0] : kept[-1] + 1], int(dense._lower_loss) + int(kept[0])
    width = -(-len(mass) // _BLOCKS)
    starts = np.arange(0, len(mass), width)
    sums = np.add.reduceat(mass, starts)
    losses = (first + np.arange(len(mass))) * grid
    held = sums > 0
    sums, means = sums[held], np.add.reduceat(mass * losses, starts)[held] / sums[held]
    spreads = np.add.reduceat(mass * losses**2, starts)[held] / sums - means**2
    return _Part(first, mass, float(dense._infinity_mass), int(count), sums, means, np.maximum(spreads, 0.0))


def _gap(tilt: float) -> float:
    """Returns log max_x (1 - exp(-x)) exp(-t x): how far a hockey-stick stays below Chernoff's exponential."""
    return tilt * math.log(tilt) - (tilt + 1) * math.log1p(tilt)


def _tilt(part: _Part, tilt: float) -> tuple[Array, float]:
    """Returns the masses times ``exp(tilt index)``, scaled to sum to 1, and the logarithm of their sum before."""
    exponents = tilt * (part.first + np.arange(len(part.mass)))
    with np.errstate(divide="ignore"):
        exponents += np.log(part.mass)
    top = float(exponents.max())
    masses = np.exp(exponents - top)
    total = float(masses.sum())
    return masses / total, top + math.log(total)


def _convolve(parts: Sequence[_Part], masses: Sequence[Array], first: int, points: int) -> Array:
    """Returns the cyclic convolution, its entry i standing for index ``first + i``, with its error added."""
    eta = 4 * np.finfo(np.float64).eps * math.log2(points)
    log_size = np.zeros(points // 2 + 1)
    log_error = np.zeros_like(log_size)
    phase = np.zeros_like(log_size)
    start = 0
    for part, mass in zip(parts, masses, strict=True):
        middle = round(float(mass @ np.arange(len(mass))))  # centered, the phases stay small
        start += part.count * (part.first + middle)
        folded = np.zeros(-(-len(mass) // points) * points)
        folded[: len(mass)] = mass
        transformed = fft.rfft(np.roll(folded.reshape(-1, points).sum(axis=0), -middle))
        size = np.maximum(np.abs(transformed), 1e-300)
        log_size += part.count * np.log(size)
        log_error += part.count * np.log1p(eta / size)
        phase += part.count * np.angle(transformed)
    size = np.exp(log_size)
    error = np.exp(np.minimum(log_size + log_error, 700.0)) - size
    small = log_error < 1
    error[small] = size[small] * np.expm1(log_error[small])
    result = fft.irfft(size * np.exp(1j * phase), points)
    slack = 2 * float(error.sum() + eta * size.sum()) / points
    return np.asarray(np.maximum(np.roll(result, (start - first) % points), 0.0) + slack)
