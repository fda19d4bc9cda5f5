"""Events in, bounds on epsilon or delta out.

What is promised is the upper end. It is the least of the figures that hold for the event:

- closed form, where only plain Gaussians are composed (Balle and Wang 2018);
- basic composition, where every mechanism is (epsilon, delta)-DP by itself: the epsilons and the deltas add up;
- PLD: privacy loss distributions, rounded against us on a grid and composed with certified error (`composition`);
- RDP, where PLD cannot represent a mechanism or gives nothing finite (`renyi`);
- a join of the two, where each covers a part of the mix only: each part gets a share of delta (or of epsilon), and
  the two guarantees add up. ``method`` names the join and the share.

A mechanism that none covers raises `UnknownEvent`. Identical mechanisms are composed by their count, never one by one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from typing import get_args

from dp_accounting import dp_event

from accounting import certified, methods
from accounting.budget import Neighbors, check_delta, check_epsilon
from accounting.mechanisms import from_json, parts, to_json, unsampled
from accounting.methods import GRID, LEAST_NOISE, Figure, Question

__all__ = ["COARSE_GRID", "GRID", "LEAST_NOISE", "LIBRARY", "Bounds", "delta", "epsilon", "over_steps", "profile"]
__all__ += ["lower_end", "without_amplification"]

COARSE_GRID = 1e-3
"""A grid for searches and progress bars: still an upper bound, looser than on `GRID` and ten times faster."""

LIBRARY = f"privads {version('privads')} on dp-accounting {version('dp-accounting')}"
"""Whose code computed a figure: losses are built on dp-accounting's distributions, and composed here."""

_QUICK = 0.05
"""What `lower_end` wants of `certified`'s error."""

_LOOSER = (1.003, 1.03, 1.3, 3.0)
"""How far below the upper end `delta` looks for a certified lower end."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What is known about a privacy figure: ``lower <= figure <= upper`` for ``neighbors``.

    The figure is the least epsilon at ``delta`` (then ``epsilon`` is None), or the least delta at ``epsilon`` (then
    ``delta`` is None). ``lower`` is None where no certified lower end was computed or none is known. A promise uses
    ``upper``. ``grid`` is the width of the privacy losses' discretization, None for a method without one.
    """

    lower: float | None
    upper: float
    epsilon: float | None
    delta: float | None
    neighbors: Neighbors
    method: str
    grid: float | None
    library: str


def epsilon(
    event: dp_event.DpEvent,
    *,
    delta: float,
    neighbors: Neighbors = "add-remove",
    certify: bool = False,
    grid: float | None = None,
) -> Bounds:
    """Returns bounds on the least epsilon for which ``event`` is (epsilon, delta)-DP under ``neighbors``.

    delta(epsilon) is the hockey-stick divergence between the outputs on neighboring data sets. ``certify`` computes a
    certified lower end too (`certified`), which takes seconds; without it only a closed form has one. ``grid`` replaces
    the one chosen from the number of executions. An event without privacy gives infinity, and so does one with a noise
    multiplier below `LEAST_NOISE`. What cannot be accounted raises `UnknownEvent`.

    >>> from accounting.mechanisms import dp_sgd
    >>> round(epsilon(dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=10_000), delta=1e-6).upper, 3)
    6.907
    """
    check_delta(delta)
    bounds = _bounds(event, Question("epsilon", float(delta), neighbors, grid))
    if bounds.upper == 0:
        return replace(bounds, lower=0.0)
    if not certify or bounds.lower is not None or math.isinf(bounds.upper):
        return bounds
    ends = _certified(to_json(event), float(delta), neighbors)
    if ends is None:
        return bounds
    if ends[1] < bounds.upper:
        return replace(bounds, lower=ends[0], upper=ends[1], method="PRV", grid=None)
    return replace(bounds, lower=min(ends[0], bounds.upper))


def delta(
    event: dp_event.DpEvent,
    *,
    epsilon: float,
    neighbors: Neighbors = "add-remove",
    certify: bool = False,
    grid: float | None = None,
) -> Bounds:
    """Returns bounds on the least delta for which ``event`` is (epsilon, delta)-DP under ``neighbors``.

    Arguments and errors are those of `epsilon`. With ``certify`` the lower end is the largest of a few deltas under the
    upper end at which the certified lower end on epsilon is above ``epsilon``; 0 where it is at none of them.

    >>> from accounting.mechanisms import gaussian
    >>> f"{delta(gaussian(noise_multiplier=1.0), epsilon=1.0).upper:.6f}"
    '0.126937'
    """
    check_epsilon(epsilon)
    bounds = _bounds(event, Question("delta", float(epsilon), neighbors, grid))
    if not certify or bounds.lower is not None or not 1e-300 < bounds.upper < 1:
        return bounds
    for factor in _LOOSER:
        ends = _certified(to_json(event), bounds.upper / factor, neighbors)
        if ends is None:
            return bounds
        if ends[0] > epsilon:
            return replace(bounds, lower=bounds.upper / factor)
    return replace(bounds, lower=0.0)


def without_amplification(event: dp_event.DpEvent, *, delta: float, neighbors: Neighbors = "add-remove") -> Bounds:
    """Returns the bounds that would hold if every unit were in every batch: the figure without trust in the sampler."""
    return epsilon(unsampled(event), delta=delta, neighbors=neighbors)


def lower_end(event: dp_event.DpEvent, *, delta: float, neighbors: Neighbors = "add-remove") -> float | None:
    """Returns a certified lower end on the least epsilon, quicker than that of `epsilon`, and about 0.05 lower.

    None where none is known: `certified` says of what there is one.

    >>> from accounting.mechanisms import dp_sgd
    >>> f"{lower_end(dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=10_000), delta=1e-6):.2f}"
    '6.86'
    """
    check_delta(delta)
    ends = _certified(to_json(event), float(delta), neighbors, _QUICK)
    return None if ends is None else ends[0]


def over_steps(
    event_after: Callable[[int], dp_event.DpEvent],
    steps: Sequence[int],
    *,
    delta: float,
    neighbors: Neighbors = "add-remove",
) -> list[Bounds]:
    """Returns the bounds on epsilon after each of ``steps``, all at least 1, for a plot."""
    return [epsilon(event_after(n), delta=delta, neighbors=neighbors) for n in steps]


def profile(event: dp_event.DpEvent, *, deltas: Sequence[float], neighbors: Neighbors = "add-remove") -> list[Bounds]:
    """Returns the bounds on epsilon at each of ``deltas``: the privacy profile."""
    return [epsilon(event, delta=each, neighbors=neighbors) for each in deltas]


def _bounds(event: dp_event.DpEvent, question: Question) -> Bounds:
    if question.neighbors not in get_args(Neighbors):
        raise ValueError(f"neighbors must be one of {get_args(Neighbors)}, got {question.neighbors!r}")
    if question.grid is not None and not 0 < question.grid <= 1:
        raise ValueError(f"grid must be in (0, 1], got {question.grid}")
    figure = _figure(to_json(event), question)
    asked_epsilon = question.least == "epsilon"
    return Bounds(
        lower=max(0.0, figure.value * (1 - 2e-9) - 2e-12) if figure.exact else None,
        upper=figure.value,
        epsilon=None if asked_epsilon else question.given,
        delta=question.given if asked_epsilon else None,
        neighbors=question.neighbors,
        method=figure.method,
        grid=figure.grid,
        library=LIBRARY,
    )


@lru_cache(maxsize=4096)
def _figure(event_json: str, question: Question) -> Figure:
    leaves = methods.settle(from_json(event_json), question.neighbors)
    if leaves is None:
        return Figure(math.inf if question.least == "epsilon" else 1.0, "no privacy")
    return methods.answer(leaves, question)


@lru_cache(maxsize=512)
def _certified(
    event_json: str, delta: float, neighbors: Neighbors, wanted_error: float = certified.WANTED_ERROR
) -> tuple[float, float] | None:
    return certified.bounds(parts(from_json(event_json)), delta=delta, neighbors=neighbors, wanted_error=wanted_error)
