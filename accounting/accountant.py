"""Events in, bounds on epsilon out.

The accountant is dp-accounting's privacy loss distribution (PLD) under add/remove (Doroshenko et al. 2022), in its
pessimistic form: every rounding goes against us, so the figure is an upper bound.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant

from accounting.budget import check_delta
from accounting.mechanisms import from_json, to_json

GRID = 1e-4
COARSE_GRID = 1e-3
"""Widths of the PLD's discretisation. Both give upper bounds; the coarse one is looser and ten times faster."""

LONG_RUN_STEPS = 100_000
LONG_RUN_GRID = 1e-5
"""The rounding adds up over the steps: at a million, the ordinary grid would be 0.3 % off."""

LEAST_NOISE = 0.1
"""Below it one step alone loses more than 50, in epsilon: nothing is promised, and nothing is computed for hours."""

LITTLE_NOISE = 0.3
"""Below it losses are so large that the coarse grid is fine enough, and the ordinary one takes minutes."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What is known about an epsilon: ``lower <= epsilon <= upper`` at ``delta``.

    ``lower`` is None where no certified lower end was computed. A promise uses ``upper``.
    """

    lower: float | None
    upper: float
    delta: float
    method: str
    grid: float
    library: str


def epsilon(event: dp_event.DpEvent, *, delta: float, grid: float | None = None) -> Bounds:
    """Returns bounds on the least epsilon for which ``event`` is (epsilon, delta)-DP under add/remove.

    delta(epsilon) is the hockey-stick divergence between the outputs on neighboring data sets; the upper end is
    that of a distribution of privacy losses rounded up to multiples of ``grid``.
    An event without privacy gives infinity, and so does one with a noise multiplier below `LEAST_NOISE`.
    An event that privads does not make raises `UnknownEvent`.

    >>> from accounting.mechanisms import dp_sgd
    >>> round(epsilon(dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=10_000), delta=1e-6).upper, 3)
    6.907
    """
    check_delta(delta)
    return _epsilon(to_json(event), delta, _grid_for(event) if grid is None else grid)


def without_amplification(event: dp_event.DpEvent, *, delta: float) -> Bounds:
    """Returns the bounds that would hold if every unit were in every batch: the figure without trust in the sampler."""
    return epsilon(_unsampled(event), delta=delta)


@lru_cache(maxsize=512)
def _epsilon(event_json: str, delta: float, grid: float) -> Bounds:
    event = from_json(event_json)
    upper = math.inf
    if _noise(event) >= LEAST_NOISE:
        accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=grid)
        try:
            upper = float(accountant.compose(event).get_epsilon(delta))
        except (ValueError, MemoryError):  # the distribution of losses does not fit into memory: nothing is promised
            upper = math.inf
    library = f"dp-accounting {version('dp-accounting')}"
    return Bounds(lower=None, upper=upper, delta=delta, method="PLD", grid=grid, library=library)


def _grid_for(event: dp_event.DpEvent) -> float:
    if _noise(event) < LITTLE_NOISE:
        return COARSE_GRID
    long_run = isinstance(event, dp_event.SelfComposedDpEvent) and event.count > LONG_RUN_STEPS
    return LONG_RUN_GRID if long_run else GRID


def _noise(event: dp_event.DpEvent) -> float:
    """Returns the noise multiplier of the Gaussian inside ``event``; 0 where there is none."""
    match event:
        case dp_event.GaussianDpEvent(noise_multiplier=noise_multiplier):
            return float(noise_multiplier)
        case dp_event.PoissonSampledDpEvent(event=inner) | dp_event.SelfComposedDpEvent(event=inner):
            return _noise(inner)
    return 0.0


def _unsampled(event: dp_event.DpEvent) -> dp_event.DpEvent:
    match event:
        case dp_event.PoissonSampledDpEvent(event=inner):
            return inner
        case dp_event.SelfComposedDpEvent(event=inner, count=count):
            return dp_event.SelfComposedDpEvent(_unsampled(inner), count)
    return event
