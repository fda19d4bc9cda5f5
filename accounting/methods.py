"""The ways to turn mechanisms into an epsilon or a delta, and the choice among them.

Each way gives a figure that holds; the least one is taken. `accountant` says which ways there are. They read an event
through `settle`, which merges all plain Gaussians into one: outputs with noise s_1, s_2, ... lose together what a
single one with noise ``(sum_i s_i^-2)^(-1/2)`` loses.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from dp_accounting import dp_event
from scipy.optimize import brentq
from scipy.special import erfcx, log_ndtr

from accounting import losses, renyi
from accounting.budget import Neighbors
from accounting.composition import Composition, TooFine
from accounting.mechanisms import (
    ApproximateDpEvent,
    BallsInBinsDpEvent,
    DiscreteGaussianDpEvent,
    UnknownEvent,
    composed,
    from_json,
    gaussian,
    merged_noise,
    parts,
    pure_epsilon,
    repeated,
    replaced,
    to_dict,
    to_json,
    unsampled,
)

GRID = 1e-4
"""Width of the PLD's grid where nothing asks for another."""

GRID_ERROR = 0.001
MANY = 50
GRID_ERROR_OF_MANY = 0.006
"""What a grid of width h may add to epsilon over n executions, about ``n h^2 / 2`` (measured up to n = 10^6); more
where there are more distinct mechanisms than `MANY`, each of which takes its time."""

LEAST_NOISE = 0.1
"""Below it one execution alone loses more than 50, in epsilon: nothing is promised, and nothing computed for hours."""

SHARES = (0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
"""Shares of delta, or of epsilon, that a join tries for the mechanisms that PLD covers."""

_POINTS = 300_000
"""Points over the losses of one execution beyond which a coarser grid is fine enough."""

_FINER = 5.0
_COARSER = 4.0
_TRIES = 8

Leaves = tuple[tuple[dp_event.DpEvent, int], ...]
"""Distinct mechanisms, each with how often it is executed."""


@dataclass(frozen=True)
class Figure:
    """An epsilon or a delta that holds, and how it was found. ``exact``: no smaller one holds."""

    value: float
    method: str
    grid: float | None = None
    exact: bool = False


@dataclass(frozen=True)
class Question:
    """The least epsilon at a given delta, or the least delta at a given epsilon, under a neighboring relation.

    ``grid`` replaces the one chosen for the PLD.
    """

    least: Literal["epsilon", "delta"]
    given: float
    neighbors: Neighbors
    grid: float | None = None

    def of_gaussian(self, noise: float) -> float:
        """Returns the figure of a Gaussian mechanism with this noise and sensitivity 1."""
        return gaussian_epsilon(noise, self.given) if self.least == "epsilon" else gaussian_delta(noise, self.given)

    def of_composition(self, composition: Composition) -> float:
        """Returns the figure of composed privacy losses."""
        return composition.epsilon(self.given) if self.least == "epsilon" else composition.delta(self.given)

    def of_renyi(self, event: dp_event.DpEvent) -> float:
        """Returns the figure of the event's Renyi divergences."""
        if self.least == "epsilon":
            return renyi.least_epsilon(event, delta=self.given, neighbors=self.neighbors)
        return renyi.least_delta(event, epsilon=self.given, neighbors=self.neighbors)

    def of_plain(self, epsilon: float, delta: float) -> float:
        """Returns the figure of an (epsilon, delta)-DP mechanism that is known by this pair only."""
        if self.least == "epsilon":
            return epsilon if delta <= self.given else math.inf
        return min(delta, 1.0) if epsilon <= self.given else 1.0

    def says_nothing(self, value: float) -> bool:
        """Returns whether the figure is one that every event keeps."""
        return value == math.inf or (self.least == "delta" and value >= 1)


def settle(event: dp_event.DpEvent, neighbors: Neighbors) -> Leaves | None:
    """Returns the mechanisms of ``event`` with all plain Gaussians merged; None where there is no privacy to account.

    There is none in an event without privacy, and next to none below `LEAST_NOISE`. Raises `UnknownEvent` for what has
    no meaning under ``neighbors``.
    """
    rest: list[tuple[dp_event.DpEvent, int]] = []
    precisions: list[float] = []
    hopeless = False
    for found, count in parts(event):
        renyi.check_replaced(found, neighbors)
        leaf = _unsampled_if_whole(found)
        hopeless |= isinstance(leaf, dp_event.NonPrivateDpEvent) or _noise(leaf) < LEAST_NOISE
        if isinstance(leaf, dp_event.GaussianDpEvent):
            precisions.append(count / leaf.noise_multiplier**2)
        else:
            rest.append((leaf, count))
    if hopeless:
        return None
    if precisions:
        rest.append((gaussian(noise_multiplier=math.fsum(precisions) ** -0.5), 1))
    return tuple(rest)


def _unsampled_if_whole(leaf: dp_event.DpEvent) -> dp_event.DpEvent:
    """Returns one plain Gaussian where every unit is in every batch."""
    match leaf:
        case dp_event.PoissonSampledDpEvent(sampling_probability=1.0, event=inner):
            return gaussian(noise_multiplier=merged_noise(inner))
        case BallsInBinsDpEvent(noise_multiplier=noise, bins=1):
            return gaussian(noise_multiplier=noise)
    return leaf


def answer(leaves: Leaves, question: Question) -> Figure:
    """Returns the least figure that any way gives; raises `UnknownEvent` where none covers the mechanisms."""
    neighbors = question.neighbors
    if len(leaves) == 1 and isinstance(leaves[0][0], dp_event.GaussianDpEvent):
        noise = replaced(leaves[0][0], neighbors).noise_multiplier
        return Figure(question.of_gaussian(noise), "closed form", exact=True)
    other = tuple(part for part in leaves if not losses.covers(part[0], neighbors))
    for leaf, _ in other:
        if not _has_renyi(((leaf, 1),), neighbors):
            raise UnknownEvent(f"nothing accounts for {to_dict(leaf)['event']} under neighbors {neighbors!r}")
    found = [*_basic(leaves, question)]
    if not other:
        found.append(_pld(leaves, question))
    unsaid = bool(other) or all(question.says_nothing(figure.value) for figure in found)
    if unsaid and _has_renyi(leaves, neighbors):
        found.append(Figure(question.of_renyi(_whole(leaves)), "RDP"))
    if unsaid and any(isinstance(leaf, BallsInBinsDpEvent) for leaf, _ in leaves):
        found.append(_without_bins(leaves, question))
    if other and len(other) < len(leaves):
        found.extend(_joins(tuple(part for part in leaves if part not in other), other, question))
    return min(found, key=lambda figure: figure.value)


def _without_bins(leaves: Leaves, question: Question) -> Figure:
    """Returns the figure of an observer who knows every unit's bins: less, where bins are few or noise is little."""
    known = settle(composed(*(_known_bins(leaf, count) for leaf, count in leaves)), question.neighbors)
    if known is None:
        return Figure(math.inf if question.least == "epsilon" else 1.0, "no privacy")
    figure = answer(known, question)
    return replace(figure, method=f"{figure.method}, without amplification", exact=False)


def _known_bins(leaf: dp_event.DpEvent, count: int) -> dp_event.DpEvent:
    return repeated(unsampled(leaf) if isinstance(leaf, BallsInBinsDpEvent) else leaf, count)


def gaussian_epsilon(noise: float, delta: float) -> float:
    """Returns the exact epsilon of a Gaussian mechanism with sensitivity 1, rounded up by less than 10^-9 of it.

    Solves ``Phi(1/(2s) - e s) - exp(e) Phi(-1/(2s) - e s) = delta`` (Balle and Wang 2018, theorem 8).
    """
    if gaussian_delta(noise, 0.0) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(noise, high) > delta:
        high *= 2
    wanted = math.log(delta)
    found = brentq(lambda e: _log_gaussian_delta(noise, e) - wanted, 0.0, high, xtol=1e-13, rtol=1e-14)
    return float(found) * (1 + 5e-10) + 1e-12


def gaussian_delta(noise: float, epsilon: float) -> float:
    """Returns the exact delta of a Gaussian mechanism with sensitivity 1, rounded up by less than 10^-9 of it."""
    return min(1.0, math.exp(_log_gaussian_delta(noise, epsilon)) * (1 + 5e-10))


def _log_gaussian_delta(noise: float, epsilon: float) -> float:
    """Returns the logarithm of delta to eleven digits, without cancellation.

    With ``x = e s - 1/(2s)``, ``w = 1/s`` and Mills' ratio ``R(x) = Phi(-x) / phi(x)``, delta is
    ``phi(x) (R(x) - R(x + w))``, as ``exp(e) phi(x + w) = phi(x)``; for small w the difference is the integral of
    ``-R' = 1 - x R``.
    """
    x, width = epsilon * noise - 1 / (2 * noise), 1 / noise
    if x < -1:  # then w > 2 and the two terms are far apart
        log_near = float(log_ndtr(-x))
        return log_near + math.log(-math.expm1(epsilon + float(log_ndtr(-x - width)) - log_near))
    if width > 1e-3:
        gap = _mills(x) - _mills(x + width)
    else:
        ends = [1 - point * _mills(point) for point in (x, x + width / 2, x + width)]
        gap = width * (ends[0] + 4 * ends[1] + ends[2]) / 6
    return math.log(gap) - x**2 / 2 - math.log(2 * math.pi) / 2 if gap > 0 else -math.inf


def _mills(x: float) -> float:
    return math.sqrt(math.pi / 2) * float(erfcx(x / math.sqrt(2)))


def _noise(leaf: dp_event.DpEvent) -> float:
    """Returns the Gaussian noise of one execution, for one unit; infinity where there is no Gaussian in it."""
    match leaf:
        case dp_event.GaussianDpEvent(noise_multiplier=noise):
            return float(noise)
        case dp_event.TruncatedSubsampledGaussianDpEvent(noise_multiplier=noise):
            return float(noise)
        case BallsInBinsDpEvent(noise_multiplier=noise):
            return float(noise)
        case dp_event.PoissonSampledDpEvent(event=inner):
            return merged_noise(inner)
        case dp_event.MixtureOfGaussiansDpEvent(standard_deviation=noise):
            return float(noise)
        case dp_event.RepeatAndSelectDpEvent(event=inner):
            return min(_noise(each) for each, _ in parts(inner))
    return math.inf


def _basic(leaves: Leaves, question: Question) -> list[Figure]:
    """Returns the figure of basic composition, where every mechanism is (epsilon, delta)-DP by itself."""
    epsilons, deltas = [], []
    for leaf, count in leaves:
        grown = replaced(leaf, question.neighbors)
        pure = pure_epsilon(grown)
        if pure is None and not isinstance(grown, ApproximateDpEvent):
            return []
        epsilons.append(count * (grown.epsilon if pure is None else pure))
        deltas.append(count * grown.delta if pure is None else 0.0)
    return [Figure(question.of_plain(math.fsum(epsilons), math.fsum(deltas)), "basic composition")]


def _pld(leaves: Leaves, question: Question) -> Figure:
    """Returns the figure of the composed privacy losses, on a grid that is fine enough and fits into memory."""
    grid = question.grid or _grid(leaves, question.neighbors)
    for _ in range(_TRIES):
        try:
            composition = _composition(tuple((to_json(leaf), n) for leaf, n in leaves), question.neighbors, grid)
            return Figure(question.of_composition(composition), "PLD", grid)
        except (TooFine, MemoryError):
            grid *= _COARSER
    return Figure(math.inf if question.least == "epsilon" else 1.0, "PLD", grid)


def _grid(leaves: Leaves, neighbors: Neighbors) -> float:
    """Returns a grid that adds little to epsilon, and gives one execution no more than `_POINTS` points.

    Rounding onto a grid h adds up to ``h^2 / 4`` to the variance of one execution's loss: little where the grid is
    `_FINER` times finer than a typical loss.
    """
    executions = sum(count for _, count in leaves)
    error = GRID_ERROR if len(leaves) <= MANY else GRID_ERROR_OF_MANY
    sizes = [_size(leaf, neighbors) for leaf, _ in leaves]
    typical = math.sqrt(
        math.fsum(n * spread**2 for (_, spread), (_, n) in zip(sizes, leaves, strict=True)) / executions
    )
    grid = min(GRID, math.sqrt(2 * error / executions), typical / _FINER or GRID)
    return _one_digit(max(grid, max(width for width, _ in sizes) / _POINTS))


def _one_digit(grid: float) -> float:
    """Returns the grid rounded down to one digit, so that it can be said."""
    digit = 10.0 ** math.floor(math.log10(grid) + 1e-9)
    return float(f"{math.floor(grid / digit + 1e-9) * digit:.0e}")


def _size(leaf: dp_event.DpEvent, neighbors: Neighbors) -> tuple[float, float]:
    """Returns about the largest loss of one execution that matters, and about the spread of its losses."""
    rate, steps = 1.0, 1
    match leaf:
        case dp_event.PoissonSampledDpEvent(sampling_probability=rate):
            pass
        case dp_event.TruncatedSubsampledGaussianDpEvent(sampling_probability=rate):
            pass
        case dp_event.MixtureOfGaussiansDpEvent(sampling_probs=chances):
            rate = 1 - chances[0]
        case BallsInBinsDpEvent(bins=steps):
            rate = 1 / steps
    match replaced(unsampled(leaf), neighbors):
        case dp_event.GaussianDpEvent() | dp_event.ComposedDpEvent() as inner:
            noise = merged_noise(inner)
        case DiscreteGaussianDpEvent(noise_std=noise_std, sensitivity=sensitivity):
            noise = noise_std / sensitivity
        case ApproximateDpEvent(epsilon=epsilon):
            return float(epsilon), float(epsilon)
        case inner:
            epsilon = pure_epsilon(inner) or 0.0
            return epsilon, epsilon
    width = 1 / (2 * noise**2) + 10 / noise
    sampled = math.log1p(rate * math.expm1(width)) if width < 700 else width
    return sampled, math.sqrt(steps) * rate * min(1 / noise, 1.0)


@lru_cache(maxsize=32)
def _loss(leaf_json: str, neighbors: Neighbors, grid: float) -> Any:
    return losses.privacy_loss(from_json(leaf_json), neighbors=neighbors, grid=grid)


@lru_cache(maxsize=4)
def _composition(leaves: tuple[tuple[str, int], ...], neighbors: Neighbors, grid: float) -> Composition:
    return Composition([(_loss(text, neighbors, grid), count) for text, count in leaves])


def _joins(covered: Leaves, other: Leaves, question: Question) -> list[Figure]:
    """Returns, for each of `SHARES`, the sum of the two parts' figures, each at its share of what is given."""
    found = []
    for share in SHARES:
        first = answer(covered, replace(question, given=question.given * share))
        second = replace(question, given=question.given * (1 - share) * (1 - 1e-12)).of_renyi(_whole(other))
        asked = "delta" if question.least == "epsilon" else "epsilon"
        method = f"{first.method} + RDP, joined by basic composition with {share:g} of {asked} for {first.method}"
        total = first.value + second
        found.append(Figure(min(total, 1.0) if question.least == "delta" else total, method, first.grid))
    return found


def _whole(leaves: Leaves) -> dp_event.DpEvent:
    return composed(*(repeated(leaf, count) for leaf, count in leaves))


def _has_renyi(leaves: Leaves, neighbors: Neighbors) -> bool:
    try:
        renyi.divergence(_whole(leaves), order=2.0, neighbors=neighbors)
    except UnknownEvent:
        return False
    return True
