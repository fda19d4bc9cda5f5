"""What a run lost in other terms than its claim, for the report: over its steps, at other deltas, to a test.

All figures are upper bounds except the fitted Gaussian. They serve plots and comparisons, so they are computed on a
coarser grid than the claim, once for each mechanism.
"""

import math
from collections.abc import Callable, Sequence

from dp_accounting import dp_event

from accounting import accountant, explain, renyi, tradeoff
from accounting.accountant import Bounds
from accounting.budget import Neighbors
from accounting.mechanisms import UnknownEvent
from accounting.report.guarantee import AfterSteps, Detection, GaussianFit, ProfilePoint, RenyiPoint

PLACES = 8
"""Over how many parts of the steps epsilon is shown."""

FALSE_POSITIVE_RATES = (0.001, 0.01)
ORDERS = (2.0, 4.0, 8.0, 16.0)
_COARSER = 5.0


def over_steps(
    event_after: Callable[[int], dp_event.DpEvent], steps: int, spent: Bounds, delta: float
) -> tuple[AfterSteps, ...]:
    """Returns epsilon at ``delta`` after up to `PLACES` numbers of steps; the last one is ``spent``, that of them all.

    Nowhere is it above the last one: what was released by then is a part of what was released in the end.
    """
    found = []
    for done in sorted({math.ceil(steps * k / PLACES) for k in range(1, PLACES)} - {steps}):
        at = accountant.epsilon(event_after(done), delta=delta, neighbors=spent.neighbors, grid=coarse(spent)).upper
        found.append(AfterSteps(steps=done, epsilon=min(at, spent.upper)))
    return (*found, AfterSteps(steps=steps, epsilon=spent.upper)) if math.isfinite(spent.upper) else ()


def points(event: dp_event.DpEvent, spent: Bounds) -> list[tradeoff.Point]:
    """Returns points of the event's privacy profile, for the functions below."""
    return tradeoff.profile_points(event, neighbors=spent.neighbors, grid=coarse(spent))


def curve(found: Sequence[tradeoff.Point]) -> tuple[ProfilePoint, ...]:
    """Returns the profile by falling delta; points that round to no delta are left out."""
    return tuple(ProfilePoint(delta=point.delta, epsilon=point.epsilon) for point in found if point.delta > 0)


def gaussian(event: dp_event.DpEvent, *, neighbors: Neighbors) -> GaussianFit | None:
    """Returns the Gaussian mechanism that loses at least as much; None where none does, or its losses are unknown."""
    try:
        fit = explain.gaussian_dp(event, neighbors=neighbors)
    except UnknownEvent:
        return None
    return GaussianFit(mu=fit.mu, error=fit.fit_error) if math.isfinite(fit.mu) else None


def detection(
    event: dp_event.DpEvent, *, neighbors: Neighbors, found: Sequence[tradeoff.Point]
) -> tuple[Detection, ...]:
    """Returns what the best test finds at few false alarms; by the profile's points ``found`` where nothing finer is
    known."""

    def most(rate: float) -> float:
        try:
            return explain.true_positive_rate(event, false_positive_rate=rate, neighbors=neighbors)
        except UnknownEvent:
            return tradeoff.true_positive_rate(found, false_positive_rate=rate)

    return tuple(Detection(false_positive_rate=one, true_positive_rate=most(one)) for one in FALSE_POSITIVE_RATES)


def zcdp_rho(event: dp_event.DpEvent, *, neighbors: Neighbors) -> float | None:
    """Returns the rho of zero-concentrated DP; None where none is known."""
    try:
        return renyi.zcdp_rho(event, neighbors=neighbors)
    except UnknownEvent:
        return None


def renyi_points(event: dp_event.DpEvent, *, neighbors: Neighbors) -> tuple[RenyiPoint, ...]:
    """Returns the Renyi divergences of `ORDERS` that are known and finite."""
    try:
        found = {order: renyi.divergence(event, order=order, neighbors=neighbors) for order in ORDERS}
    except UnknownEvent:
        return ()
    return tuple(RenyiPoint(order=order, divergence=one) for order, one in found.items() if math.isfinite(one))


def coarse(spent: Bounds) -> float | None:
    """Returns a grid for plots: coarser than the claim's, with up to 25 times its error; None where it has none."""
    return None if spent.grid is None else min(max(accountant.COARSE_GRID, spent.grid), _COARSER * spent.grid)
