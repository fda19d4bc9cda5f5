"""Two-sided bounds on epsilon: what surely holds, and what surely does not.

Each privacy loss Y (of P against Q, `accounting.pairs`) is rounded to the nearest multiple of a mesh h, and shifted
so that its mean stays (Gopi, Lee, Wutschitz 2021, arXiv:2106.02848). The k differences of a composition then have
mean zero and range h, and by Hoeffding's inequality their sum exceeds ``t = h sqrt(k/2 log(2/eta))`` with a
probability below eta, or never exceeds ``t = k h / 2``. With ``delta(e) = E[(1 - exp(e - sum Y))+]`` and delta~ the
same for the rounded ones::

    delta(e + t) - eta <= delta~(e) <= delta(e - t) + eta.

delta~ is found by one Fourier transform for each mechanism, powers, and one back. Its errors are added to eta:

- mass of a Y beyond the mesh: 1e-4 delta for all steps together.
- the sum is found modulo the length of the transform: Chernoff's bound from the rounded Y's moments.
- rounding: an FFT of n numbers is taken to err by ``8 u log2(n)`` times the sum of their sizes (Higham 2002, section
  24.1), ``|a^n - b^n| <= n |a - b| max(|a|, |b|)^(n-1)``, and Parseval turns the coefficients' errors into the sum's.

All of it is done under the tilted law ``exp(l y) dP / E[exp(l Y)]``, whose mean is closer to epsilon: the errors are
then small relative to delta, whatever delta is. A mass computed from slightly wrong ends is an exact rounding
to a mesh with slightly wrong ends, so h is taken 2e-9 wider.

The lower end says: for a smaller epsilon there are two neighboring data sets and a set of outputs that break
(epsilon, delta). The data are those where everyone else contributes zero and the unit as much as it may, always the
same; it is a statement on the mechanism, not on the data at hand.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from dp_accounting import dp_event
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import logsumexp

from accounting import balls_in_bins
from accounting.budget import Neighbors
from accounting.mechanisms import ApproximateDpEvent, BallsInBinsDpEvent, UnknownEvent, replaced
from accounting.methods import gaussian_epsilon
from accounting.pairs import Array, Pair, cumulants, pairs

WANTED_ERROR = 0.004
"""Distance t of either end from the epsilon of the rounded losses, for an epsilon from 1 to 10; else in proportion."""

MOST_POINTS = 2**23
"""Points of a mesh or a transform; where more would be needed, the mesh is coarser and the bounds are wider."""

FEW_POINTS = 2**16
"""So many are transformed without choosing among them."""

ULP = 2.0**-53


def bounds(
    parts: Sequence[tuple[dp_event.DpEvent, int]],
    *,
    delta: float,
    neighbors: Neighbors,
    wanted_error: float = WANTED_ERROR,
) -> tuple[float, float] | None:
    """Returns (lower, upper) bounds on the least epsilon of the composition; None where no lower end is certified.

    ``parts`` are mechanisms and how often each is executed. Certified are Gaussians, Poisson-sampled Gaussians,
    mixtures of Gaussians, Laplace, discrete Laplace and Gaussian, and randomized response, and any mix of them. The
    larger end of both directions (adding, removing a unit) counts, for either end. Gaussians alone, and one randomized
    response, are exact. Balls in bins have a lower end only, that of the mix is at least theirs, and no upper one here.
    ``wanted_error``: a larger one is quicker, and the bounds are wider and as certain.
    """
    gaussians = [(replaced(leaf, neighbors), n) for leaf, n in parts if isinstance(leaf, dp_event.GaussianDpEvent)]
    others = [(leaf, n) for leaf, n in parts if not isinstance(leaf, dp_event.GaussianDpEvent)]
    mu = math.sqrt(math.fsum(n / leaf.noise_multiplier**2 for leaf, n in gaussians))
    if gaussians and not others:
        exact = gaussian_epsilon(1 / mu, delta)  # rounded up by less than 1e-9 of it
        return exact * (1 - 1e-9), exact
    binned = [(leaf, n) for leaf, n in others if isinstance(leaf, BallsInBinsDpEvent)]
    if binned and neighbors == "add-remove":
        return max(_lower_of_bins(leaf, n, delta) for leaf, n in binned), math.inf
    if any(isinstance(leaf, ApproximateDpEvent) for leaf, _ in others):
        return None  # its pair need not be attained by the mechanism that has this guarantee
    try:
        terms = [(pairs(leaf, neighbors), n) for leaf, n in others]
        if gaussians:
            terms.append((pairs(dp_event.GaussianDpEvent(1 / mu), "add-remove"), 1))
    except UnknownEvent:
        return None
    if len(others) == 1 and not gaussians and others[0][1] == 1:
        match others[0][0]:
            case dp_event.RandomizedResponseDpEvent(noise_parameter=p, num_buckets=k):
                exact = math.log(max((1 - p + p / k - delta) / (p / k), 1.0))
                return exact * (1 - 1e-9), exact * (1 + 1e-9)
    ways = max(len(both) for both, _ in terms)
    ends = [_ends([(both[min(i, len(both) - 1)], n) for both, n in terms], delta, wanted_error) for i in range(ways)]
    return max(low for low, _ in ends), max(high for _, high in ends)


def _lower_of_bins(leaf: BallsInBinsDpEvent, epochs: int, delta: float) -> float:
    return balls_in_bins.lower_epsilon(
        noise_multiplier=leaf.noise_multiplier, bins=leaf.bins, epochs=epochs, delta=delta
    )


@dataclass(frozen=True)
class _Plan:
    """How a composition is transformed. ``tilt`` is l; ``above``, ``below``: further tilts, for Chernoff's bounds."""

    mesh: float
    error: float
    doubt: float
    tail: float
    tilt: float
    above: float
    below: float
    low: float
    high: float


@dataclass(frozen=True)
class _Rounded:
    """A loss on the mesh: masses of the points ``first, first + 1, ...`` times h, and the shift that keeps the mean."""

    first: int
    masses: Array
    shift: float
    mean_error: float

    def log_moment(self, tilt: float, mesh: float) -> float:
        return float(logsumexp(self._exponents(tilt, mesh)))

    def tilted(self, tilt: float, mesh: float, length: int) -> Array:
        """Returns the tilted masses, modulo ``length``."""
        exponents = self._exponents(tilt, mesh)
        index = (self.first + np.arange(len(self.masses))) % length
        return np.asarray(np.bincount(index, np.exp(exponents - logsumexp(exponents)), length))

    def _exponents(self, tilt: float, mesh: float) -> Array:
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.masses) + tilt * mesh * (self.first + np.arange(len(self.masses))))


Terms = Sequence[tuple[Pair, int]]


def _ends(terms: Terms, delta: float, wanted_error: float) -> tuple[float, float]:
    """Returns the bounds for one direction."""
    plan = _plan(terms, delta, wanted_error)
    rounded = [(_round(pair, plan), n) for pair, n in terms]
    error = plan.error + math.fsum(n * each.mean_error for each, n in rounded)
    curve, low, high = _transform(rounded, plan)
    if not low < high:
        return 0.0, math.inf

    near = error / 50
    middle = _edge(low, high, lambda epsilon: sum(curve(epsilon)) > delta, near)
    lower = _nearest(middle, low, lambda epsilon: curve(epsilon)[0] - curve(epsilon)[1] > delta, near)
    upper = _nearest(middle, high, lambda epsilon: sum(curve(epsilon)) <= delta, near)
    return (
        0.0 if lower is None else max(lower - error, 0.0),
        math.inf if upper is None else max(upper + error, 0.0),
    )


def _nearest(start: float, end: float, holds: Callable[[float], bool], near: float) -> float | None:
    """Returns a point from ``start`` on towards ``end`` where ``holds``, close to the first; None if none is found."""
    step = math.copysign(near, end - start)
    last = far = start
    while far == start or not holds(far):
        if far == end:
            return None
        last, far = far, start + step
        far = min(far, end) if step > 0 else max(far, end)
        step *= 2
    return _edge(far, last, holds, near)


def _edge(held: float, lost: float, holds: Callable[[float], bool], near: float) -> float:
    """Returns a point where ``holds`` is true (or ``held``), next to one where it is not, between the two."""
    while abs(lost - held) > near:
        middle = (held + lost) / 2
        held, lost = (middle, lost) if holds(middle) else (held, middle)
    return held


def _plan(terms: Terms, delta: float, wanted_error: float) -> _Plan:
    """Chooses the tilt near that of Chernoff's bound, the mesh for the wanted error, and the transform's range.

    ``h = t max((k/2 log(2/eta))^(-1/2), 2/k)``; nothing here needs to be exact: every bound is computed from the
    choice.
    """

    steps = sum(n for _, n in terms)
    tail = 1e-4 * delta / (2 * steps)
    supports = [pair.support(tail) for pair, _ in terms]

    def total(orders: Array) -> Array:
        each = zip(terms, supports, strict=True)
        return np.asarray(sum(n * cumulants(pair, orders, support) for (pair, n), support in each))

    tilts = np.logspace(-3, 10, 261)
    chernoff = (total(tilts) + math.log(1 / delta)) / tilts
    tilt, guess = float(tilts[np.argmin(chernoff)]), max(float(chernoff.min()), 1e-12)
    eta = 1e-4 * delta
    spread = math.sqrt(steps / 2 * math.log(2 / eta))
    wanted = wanted_error * (guess if guess < 1 else max(1.0, guess / 10))
    widest = max(high - low for low, high in supports)
    mesh = max(wanted * max(1 / spread, 2 / steps), widest / MOST_POINTS)
    tilt = min(0.7 * tilt, 0.1 / mesh)  # closer to zero, rare large losses weigh less and the sum's range is shorter
    # A further tilt that one mesh step would show is no use: the rounded losses have other moments there.
    more = np.geomspace(1e-2, 1.0, 81) / (mesh * math.sqrt(steps))
    more = np.concatenate((more, np.geomspace(1e-3 * tilt, 1e2 * tilt, 81)))
    more = more[more <= 1 / (mesh * math.sqrt(steps))]
    far = math.log(1e7) - float(total(np.array([tilt]))[0])
    above, below = (total(tilt + more) + far) / more, (total(tilt - more) + far) / more
    low = max(-float(below.min()), math.fsum(n * s[0] for s, (_, n) in zip(supports, terms, strict=True)))
    high = min(float(above.min()), math.fsum(n * s[1] for s, (_, n) in zip(supports, terms, strict=True)))
    mesh = max(mesh, (high - low) / MOST_POINTS)
    return _Plan(
        mesh=mesh,
        error=(mesh + 2e-9 * min(1.0, widest)) * min(spread, steps / 2),
        doubt=eta + 2 * steps * tail,
        tail=tail,
        tilt=tilt,
        above=float(more[np.argmin(above)]),
        below=float(more[np.argmin(below)]),
        low=low,
        high=high,
    )


def _round(pair: Pair, plan: _Plan) -> _Rounded:
    low, high = pair.support(plan.tail)
    first, last = math.floor(low / plan.mesh) - 1, math.ceil(high / plan.mesh) + 1
    masses = pair.cells((np.arange(first, last + 2, dtype=np.float64) - 0.5) * plan.mesh).upper
    losses, weights = pair.atoms()
    inside = (losses >= (first - 0.5) * plan.mesh) & (losses <= (last + 0.5) * plan.mesh)
    index = np.rint(losses[inside] / plan.mesh).astype(np.int64) - first
    masses = masses + np.bincount(index, weights[inside], len(masses))
    nodes, at = pair.quadrature()
    mean = float(at @ nodes)
    size = abs(low) + abs(high)
    return _Rounded(
        first=first,
        masses=masses,
        shift=mean - plan.mesh * float(masses @ (first + np.arange(len(masses)))),
        mean_error=1e-13 * size + 2 * plan.tail * (size + pair.steepest),
    )


def _transform(
    rounded: Sequence[tuple[_Rounded, int]], plan: _Plan
) -> tuple[Callable[[float], tuple[float, float]], float, float]:
    """Returns ``epsilon -> (delta~, error bound)`` and the range of epsilon where it is known."""
    mesh, tilt = plan.mesh, plan.tilt
    shift = math.fsum(n * each.shift for each, n in rounded)
    first, last = _window(rounded, plan, shift)
    length = next_fast_len(last - first + 1, real=True)
    unit = 8 * ULP * math.log2(length)
    log_sum: npt.NDArray[np.complex128] = np.zeros(length // 2 + 1, dtype=np.complex128)
    log_size, doubt = np.zeros(len(log_sum)), np.zeros(len(log_sum))
    moment = 0.0
    for each, n in rounded:
        coefficients = rfft(each.tilted(tilt, mesh, length))
        size = np.abs(coefficients) + unit
        with np.errstate(divide="ignore", invalid="ignore"):  # a coefficient of 0 stays 0
            log_sum += n * np.log(coefficients)
        log_size += n * np.log(size)
        doubt += n * (unit / size + 4 * ULP)
        moment += n * each.log_moment(tilt, mesh)
    masses = np.roll(irfft(np.exp(log_sum), length), -first % length)
    sizes = np.exp(log_size)
    forward = math.sqrt(2 / length * float(np.sum((sizes * doubt) ** 2)))
    backward = unit * 2 / length * float(np.sum(sizes))
    wrapped = _outside(rounded, plan, first, first + length - 1, moment)
    sums = (first + np.arange(length)) * mesh + shift
    decay = -math.expm1(-tilt * mesh)  # weights fall at least like exp(-l (s - epsilon))
    stray = wrapped + forward / math.sqrt(-math.expm1(-2 * tilt * mesh)) + backward / decay
    largest = max(abs(e) for each, _ in rounded for e in (each.first, each.first + len(each.masses))) * mesh
    relative = 4 * ULP * (tilt * largest + 50) * sum(n for _, n in rounded)
    log_moment = moment + tilt * shift

    def curve(epsilon: float) -> tuple[float, float]:
        beyond = sums[np.searchsorted(sums, epsilon, side="right") :] - epsilon
        scale = math.exp(log_moment - tilt * epsilon)
        weights = np.exp(-tilt * beyond) * -np.expm1(-beyond)
        found = scale * float(masses[length - len(beyond) :] @ weights)
        return found, plan.doubt + scale * stray + relative * abs(found)

    return curve, max(float(sums[0]), (log_moment - 600) / tilt), float(sums[-1])


def _window(rounded: Sequence[tuple[_Rounded, int]], plan: _Plan, shift: float) -> tuple[int, int]:
    """Returns the first and last mesh points of the sum to keep: as planned, or all where that is little more."""
    bottom, top = _reach(rounded)
    if top - bottom < FEW_POINTS:
        return bottom, top
    first = math.floor((plan.low - shift) / plan.mesh) - 1
    last = math.ceil((plan.high - shift) / plan.mesh) + 1
    slack = 4 * sum(n for _, n in rounded) + (last - first) // 10
    return (bottom if first <= bottom + slack else first), (top if last >= top - slack else last)


def _reach(rounded: Sequence[tuple[_Rounded, int]]) -> tuple[int, int]:
    """Returns the least and the largest mesh point that the sum of the rounded losses can have."""
    return sum(n * each.first for each, n in rounded), sum(
        n * (each.first + len(each.masses) - 1) for each, n in rounded
    )


def _outside(rounded: Sequence[tuple[_Rounded, int]], plan: _Plan, first: int, last: int, moment: float) -> float:
    """Returns Chernoff's bound on the tilted mass of the sum outside of ``first`` to ``last``, in mesh points."""

    def moments(tilt: float) -> float:
        return math.fsum(n * each.log_moment(tilt, plan.mesh) for each, n in rounded) - moment

    bottom, top = _reach(rounded)
    bound = 0.0
    if top > last:
        bound += math.exp(min(0.0, moments(plan.tilt + plan.above) - plan.above * (last + 1) * plan.mesh))
    if bottom < first:
        bound += math.exp(min(0.0, moments(plan.tilt - plan.below) + plan.below * (first - 1) * plan.mesh))
    return bound
