"""The two output distributions that are hardest to tell apart, for every mechanism whose privacy loss is known.

For neighboring data sets D ~ D' a mechanism has a dominating pair (P, Q): whatever an observer can learn about D
against D', he can learn from one draw of P against Q (Zhu, Dong, Wang 2022). Its privacy loss is ``Y = log(P(x) /
Q(x))`` with x drawn from P. A pair here answers what accountants ask of Y: where it lies, and how much of P and of Q
lies between two losses. Every pair but that of (epsilon, delta)-DP is attained: there are data for which (P, Q) are
the mechanism's own output distributions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from dp_accounting import dp_event
from scipy.interpolate import CubicHermiteSpline
from scipy.special import logsumexp, ndtr

from accounting.budget import Neighbors
from accounting.mechanisms import ApproximateDpEvent, DiscreteGaussianDpEvent, UnknownEvent, merged_noise, replaced

Array = npt.NDArray[np.float64]

MOST_OUTCOMES = 20_000_000
"""Integers that the loss of a discrete mechanism is listed for; more would not fit into memory beside the rest."""

MOST_POINTS = 2**18
"""Points of one integral."""

NEGLIGIBLE = 1e-40
"""Mass of P that is cut off at the end of an infinite range: far below any delta, after any number of steps."""

NORMAL_TAIL = 13.4
"""A standard normal exceeds it with a probability below `NEGLIGIBLE`."""


@dataclass(frozen=True)
class Cells:
    """The masses of P and Q between neighboring losses, and a bound on the relative error of both."""

    upper: Array
    lower: Array
    error: Array | float


class Pair(Protocol):
    """The privacy loss Y of P against Q: an absolutely continuous part and atoms."""

    @property
    def infinite(self) -> float:
        """Mass of P where Q has none."""

    @property
    def steepest(self) -> float:
        """Bound on how fast Y grows beyond `support` per standard deviation; 0 where all of Y lies within."""

    def support(self, tail: float) -> tuple[float, float]:
        """Returns losses between which Y lies, but for mass ``tail`` of P at either end."""

    def atoms(self) -> tuple[Array, Array]:
        """Returns the losses that have mass under P, and their masses."""

    def cells(self, losses: Array) -> Cells:
        """Returns the masses of the continuous part between ``losses``, which ascend."""

    def quadrature(self) -> tuple[Array, Array]:
        """Returns losses and weights with ``sum(weights * f(losses)) = E[f(Y)]``, for exponentials f and f(y) = y."""


@dataclass(frozen=True)
class Mixture:
    """``sum_j weights[j] N(means[j], 1)``."""

    means: Array
    weights: Array

    def log_ratio(self, x: Array) -> Array:
        """Returns ``log(density / density of N(0, 1))``: a logarithm of a sum of exponentials of m x - m^2 / 2."""
        total = np.full_like(x, -np.inf)
        for mean, weight in zip(self.means, self.weights, strict=True):
            np.logaddexp(total, math.log(weight) - mean**2 / 2 + mean * x, out=total)
        return total

    def slope(self, x: Array) -> Array:
        """Returns the derivative of `log_ratio`: the expected component's mean, given x."""
        exponents = np.log(self.weights) - self.means**2 / 2 + x[:, None] * self.means  # (points, components)
        shares = np.exp(exponents - exponents.max(axis=1, keepdims=True))
        return np.asarray((shares @ self.means) / shares.sum(axis=1))

    def tail(self, x: float) -> float:
        """Returns the mass above x."""
        return float(self.weights @ ndtr(self.means - x))

    def mirrored(self) -> "Mixture":
        """Returns the distribution of -x."""
        return Mixture(-self.means, self.weights)

    def between(self, x: Array) -> Array:
        """Returns the masses between neighboring x, each accurate relative to itself: tails are never taken from 1."""
        total = np.zeros(len(x) - 1)
        for mean, weight in zip(self.means, self.weights, strict=True):
            z = x - mean
            tails = ndtr(-np.abs(z))
            above = z > 0
            inside = np.diff(np.where(above, -tails, tails))
            inside[np.diff(above.astype(np.int8)) > 0] += 1.0
            total += weight * inside
        return total


@dataclass(frozen=True)
class GaussianPair:
    """Mixtures of Gaussians P, with means >= 0, and Q, with means <= 0: the loss rises with x."""

    upper: Mixture
    lower: Mixture
    infinite: float = 0.0

    @property
    def steepest(self) -> float:
        """See `Pair`."""
        return float(self.upper.means.max() - self.lower.means.min())

    def loss(self, x: Array) -> Array:
        """Returns Y at x."""
        return self.upper.log_ratio(x) - self.lower.log_ratio(x)

    def ends(self, tail: float) -> tuple[float, float]:
        """Returns x between which P lies, but for mass ``tail`` at either end."""
        return -_quantile(self.upper.mirrored(), tail), _quantile(self.upper, tail)

    def support(self, tail: float) -> tuple[float, float]:
        """See `Pair`."""
        low, high = self.loss(np.array(self.ends(tail)))
        return float(low), float(high)

    def atoms(self) -> tuple[Array, Array]:
        """See `Pair`."""
        return np.empty(0), np.empty(0)

    def cells(self, losses: Array) -> Cells:
        """See `Pair`. The x of a loss comes from a cubic spline through 2^14 to 2^20 exact points.

        Its error moves a loss by less than 1e-9 (measured: 2e-12). Both masses lie between the same two x, and are
        exact for them.
        """
        x = self.points(losses)
        # Two ulps of a tail, divided by the mass between: the ratio of tail to density of a normal is below 1.26.
        width = np.maximum(np.diff(x), 1e-300)
        return Cells(self.upper.between(x), self.lower.between(x), 6e-16 / np.minimum(width, 1.0))

    def points(self, losses: Array) -> Array:
        """Returns the x at which Y is each of ``losses``, which ascend; the end of the range for a loss beyond it."""
        low, high = self.ends(NEGLIGIBLE)
        count = int(np.clip((high - low) * self.steepest / 0.005, 2**14, 2**20))
        knots = np.linspace(low, high, count)
        heights = self.loss(knots)
        if heights[-1] - heights[0] < 1e-15:  # so little is lost that it is below the precision of floats
            return np.where(losses <= heights[0], low, high)
        # Where the loss is nearly constant, knots are dropped, so that heights strictly ascend.
        climbed = np.floor((heights - heights[0]) / min(1e-12, (heights[-1] - heights[0]) / 1e6))
        kept = np.concatenate(([True], np.diff(np.maximum.accumulate(climbed)) > 0))
        knots, heights = knots[kept], heights[kept]
        slopes = self._slope(knots)
        inside = np.clip(losses, heights[0], heights[-1])
        x = CubicHermiteSpline(heights, knots, 1 / slopes)(inside)
        left = np.clip(np.searchsorted(heights, inside) - 1, 0, len(knots) - 2)
        return np.asarray(np.maximum.accumulate(np.clip(x, knots[left], knots[left + 1])))

    def _slope(self, x: Array) -> Array:
        blocks = np.array_split(x, max(1, len(x) // 2**14))
        return np.concatenate([self.upper.slope(b) - self.lower.slope(b) for b in blocks])

    def quadrature(self) -> tuple[Array, Array]:
        """See `Pair`. The trapezoidal rule errs by ``exp(-2 pi d / step)`` for what is analytic in a strip of width d.

        (Trefethen and Weideman 2014, theorem 5.1.) No term of a mixture turns by more than a right angle for
        ``d = pi / (2 steepest)``, so that the mixture has no zero and its logarithm is analytic there.
        """
        low, high = self.ends(NEGLIGIBLE)
        step = min(math.pi / (2 * self.steepest), 1.0) / 6
        x = np.arange(low, high + step, step)
        density = np.exp(self.upper.log_ratio(x) - x**2 / 2) / math.sqrt(2 * math.pi)
        return self.loss(x), density * step

    def log_moment(self, order: float) -> float:
        """Returns ``log E_Q[exp(order Y)]`` to a relative 1e-12; infinity if it takes more than `MOST_POINTS`.

        With u, l the log ratios of P and Q to N(0, 1), it is the integral of ``phi exp(order u + (1 - order) l)``. The
        trapezoidal rule is used as in `quadrature`, on the strip of half its width: there no term turns by more than
        45 degrees, so Q's modulus falls to no less than ``2^(-1/2)`` of its own, and the integrand grows by no more
        than ``exp(1/8) 2^((order - 1) / 2)``, which the step makes up for. Above ``order steepest + 40`` and below -40
        lies nothing: u grows by at most the largest mean, and l is bounded on the one side, u on the other.
        """
        step = min(math.pi / (2 * self.steepest), 1.0) * math.pi / (46 + 0.35 * (order - 1))
        count = (order * self.steepest + 80) / step
        if count > MOST_POINTS:
            return math.inf
        x = np.arange(-40.0, order * self.steepest + 40, step)
        exponents = order * self.upper.log_ratio(x) + (1 - order) * self.lower.log_ratio(x) - x**2 / 2
        return float(logsumexp(exponents)) + math.log(step / math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class LaplacePair:
    """``P = Laplace(0, 1/a)`` against ``Q = Laplace(1, 1/a)``: Y is a with probability 1/2, and within [-a, a]."""

    most: float
    infinite: float = 0.0
    steepest: float = 0.0

    def support(self, tail: float) -> tuple[float, float]:
        """See `Pair`."""
        return -self.most, self.most

    def atoms(self) -> tuple[Array, Array]:
        """See `Pair`."""
        return np.array([-self.most, self.most]), np.array([math.exp(-self.most) / 2, 0.5])

    def cells(self, losses: Array) -> Cells:
        """See `Pair`."""
        inside = np.clip(losses, -self.most, self.most)
        half_widths = -np.expm1(-np.diff(inside) / 2)
        upper = np.exp((inside[1:] - self.most) / 2) / 2 * half_widths
        lower = np.exp(-(inside[:-1] + self.most) / 2) / 2 * half_widths
        return Cells(upper, lower, 1e-15)

    def quadrature(self) -> tuple[Array, Array]:
        """See `Pair`: Gauss and Legendre's rule, and the atoms."""
        nodes, weights = np.polynomial.legendre.leggauss(200)
        losses, masses = self.atoms()
        inside = nodes * self.most
        density = np.exp((inside - self.most) / 2) / 4
        return np.concatenate((losses, inside)), np.concatenate((masses, weights * self.most * density))


@dataclass(frozen=True)
class OutcomePair:
    """Finitely many outcomes, each with its loss and its mass under P."""

    losses: Array
    masses: Array
    infinite: float = 0.0
    steepest: float = 0.0

    def support(self, tail: float) -> tuple[float, float]:
        """See `Pair`."""
        return float(self.losses.min()), float(self.losses.max())

    def atoms(self) -> tuple[Array, Array]:
        """See `Pair`."""
        return self.losses, self.masses

    def cells(self, losses: Array) -> Cells:
        """See `Pair`."""
        nothing = np.zeros(len(losses) - 1)
        return Cells(nothing, nothing, 0.0)

    def quadrature(self) -> tuple[Array, Array]:
        """See `Pair`."""
        return self.losses, self.masses


def check(leaf: dp_event.DpEvent, neighbors: Neighbors) -> None:
    """Refuses, with `UnknownEvent`, a mechanism for which `pairs` knows no pair under this relation."""
    swapped = neighbors != "add-remove"
    match replaced(leaf, neighbors):
        case dp_event.GaussianDpEvent() | dp_event.LaplaceDpEvent() | ApproximateDpEvent():
            return
        case dp_event.PoissonSampledDpEvent(event=inner):
            merged_noise(inner)
            return
        case dp_event.MixtureOfGaussiansDpEvent() if not swapped:
            return
        case dp_event.RandomizedResponseDpEvent() if swapped:
            return
        case dp_event.DiscreteLaplaceDpEvent(sensitivity=sensitivity) if sensitivity <= MOST_OUTCOMES:
            return
        case DiscreteGaussianDpEvent(noise_std=s) if 2 * NORMAL_TAIL * s <= MOST_OUTCOMES:
            return
    raise UnknownEvent(f"no distribution of privacy losses under {neighbors} is known for {leaf}")


def pairs(leaf: dp_event.DpEvent, neighbors: Neighbors) -> tuple[Pair, ...]:
    """Returns the dominating pair of one execution; two, (removing, adding) a unit, where the directions differ.

    Gaussian, noise multiplier s: N(1/s, 1) against N(0, 1). Poisson-sampled with rate q: ``(1-q) N(0, 1) + q N(1/s,
    1)`` against N(0, 1), and the reverse (Zhu, Dong, Wang 2022); if a unit is replaced, against ``(1-q) N(0, 1) + q
    N(-1/s, 1)``, as in dp-accounting. Several Gaussians on one sample: divided by their noise, the outputs are one
    vector, shifted by (1/s_1, 1/s_2, ...) if the unit is in the sample. Turned so that the shift is along one axis,
    the noise is the same, and the other axes do not depend on the unit: what is left is one Gaussian with ``1/s =
    (sum_i s_i^-2)^(1/2)``. Mixture of Gaussians: the shift is drawn from a list (Choquette-Choo et al. 2024,
    corollary 4.7). Randomized response: one answer against another. Laplace and discrete noise: a shift of one
    number.
    """
    check(leaf, neighbors)
    match replaced(leaf, neighbors):
        case dp_event.GaussianDpEvent(noise_multiplier=s):
            return (_gaussian_pair([1 / s], [1.0]),)
        case dp_event.PoissonSampledDpEvent(sampling_probability=q, event=inner):
            return _sampled([0.0, 1 / merged_noise(inner)], [1 - q, q], neighbors)
        case dp_event.MixtureOfGaussiansDpEvent(standard_deviation=s, sensitivities=shifts, sampling_probs=chances):
            return _sampled([shift / s for shift in shifts], chances, neighbors)
        case dp_event.LaplaceDpEvent(noise_multiplier=b):
            return (LaplacePair(1 / b),)
        case dp_event.RandomizedResponseDpEvent(noise_parameter=p, num_buckets=k):
            return (_randomized_response(p, k),)
        case dp_event.DiscreteLaplaceDpEvent(noise_parameter=rate, sensitivity=sensitivity):
            return (_discrete_laplace(rate, sensitivity),)
        case DiscreteGaussianDpEvent(noise_std=s, sensitivity=sensitivity):
            return (_discrete_gaussian(s, sensitivity),)
        case ApproximateDpEvent(epsilon=epsilon, delta=delta):
            signs = np.array([1.0, -1.0])
            return (OutcomePair(epsilon * signs, (1 - delta) / (1 + np.exp(-epsilon * signs)), infinite=delta),)
    raise UnknownEvent(f"no distribution of privacy losses is known for {leaf}")


def sampled_pairs(sampling_rate: float, shift: float, neighbors: Neighbors) -> tuple[Pair, ...]:
    """Returns the pairs of a Poisson-sampled Gaussian with unit noise that a sampled unit shifts by ``shift``."""
    return _sampled([0.0, shift], [1 - sampling_rate, sampling_rate], neighbors)


def _sampled(shifts: Sequence[float], chances: Sequence[float], neighbors: Neighbors) -> tuple[Pair, ...]:
    present = [(shift, chance) for shift, chance in zip(shifts, chances, strict=True) if chance > 0]
    moved = Mixture(np.array([shift for shift, _ in present]), np.array([chance for _, chance in present]))
    if neighbors != "add-remove":
        return (GaussianPair(moved, moved.mirrored()),)
    still = Mixture(np.zeros(1), np.ones(1))
    removing = GaussianPair(moved, still)
    return (removing,) if len(present) == 1 else (removing, GaussianPair(still, moved.mirrored()))


def _gaussian_pair(shifts: Sequence[float], chances: Sequence[float]) -> Pair:
    return _sampled(shifts, chances, "add-remove")[0]


def _randomized_response(p: float, categories: int) -> Pair:
    false = p / categories
    true = 1 - p + false
    most = math.log(true / false)
    return OutcomePair(np.array([most, 0.0, -most]), np.array([true, (categories - 2) * false, false]))


def _discrete_laplace(rate: float, sensitivity: int) -> Pair:
    outside = 1 / (1 + math.exp(-rate))  # at or below 0
    x = np.arange(1, sensitivity)
    losses = np.concatenate(([rate * sensitivity], rate * (sensitivity - 2.0 * x), [-rate * sensitivity]))
    masses = np.concatenate(
        ([outside], math.tanh(rate / 2) * np.exp(-rate * x), [math.exp(-rate * sensitivity) * outside])
    )
    return OutcomePair(losses, masses)


def _discrete_gaussian(noise_std: float, sensitivity: int) -> Pair:
    most = math.ceil(NORMAL_TAIL * noise_std) + 1
    x = np.arange(-most, most + 1, dtype=np.float64)
    masses = np.exp(-((x / noise_std) ** 2) / 2)
    losses = sensitivity * (sensitivity - 2 * x) / (2 * noise_std**2)
    return OutcomePair(losses, masses / masses.sum(), infinite=NEGLIGIBLE)


def _quantile(mixture: Mixture, tail: float) -> float:
    """Returns the least x, up to 1e-6, above which at most ``tail`` of the mixture lies."""
    low, high = float(mixture.means.min()) - 40.0, float(mixture.means.max()) + 40.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if mixture.tail(middle) <= tail else (middle, high)
    return high


def cumulants(pair: Pair, orders: Array, support: tuple[float, float]) -> Array:
    """Returns ``log E[exp(t Y); Y in support]`` for each t of ``orders``, by quadrature."""
    losses, weights = pair.quadrature()
    inside = (losses >= support[0]) & (losses <= support[1])
    return np.array([logsumexp(t * losses[inside], b=weights[inside]) for t in orders])
