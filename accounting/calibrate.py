"""The least noise that fits a budget, always on the safe side."""

from collections.abc import Callable

from dp_accounting import dp_event, mechanism_calibration
from dp_accounting.rdp import RdpAccountant

from accounting.accountant import COARSE_GRID, epsilon
from accounting.budget import Budget

RELATIVE_TOLERANCE = 1e-3
_ORDERS = (
    *range(2, 65),
    80,
    96,
    128,
    192,
    256,
    512,
    1024,
)  # whole orders: the fractional ones fail to converge


def noise_multiplier(make_event: Callable[[float], dp_event.DpEvent], budget: Budget) -> float:
    """Returns the least noise multiplier, up to 0.1 %, for which ``make_event`` keeps ``budget``.

    Solves ``min s : epsilon(make_event(s), budget.delta).upper <= budget.epsilon``. epsilon falls as s grows. Renyi
    accounting is loose but cheap at any s, so its answer is where the search starts; from there the bracket is
    narrowed with PLD, first on the coarse grid, then on the fine one. The end that keeps the budget is returned.

    >>> from accounting.mechanisms import dp_sgd
    >>> budget = Budget(epsilon=3.0, delta=1e-6, unit="example")
    >>> s = noise_multiplier(lambda s: dp_sgd(sampling_rate=0.01, noise_multiplier=s, steps=10_000), budget)
    >>> 1.708 <= s <= 1.711
    True
    """

    def keeps(candidate: float, grid: float | None) -> bool:
        return epsilon(make_event(candidate), delta=budget.delta, grid=grid).upper <= budget.epsilon

    start = mechanism_calibration.calibrate_dp_mechanism(
        lambda: RdpAccountant(orders=_ORDERS),
        make_event,
        budget.epsilon,
        budget.delta,
        mechanism_calibration.LowerEndpointAndGuess(1e-2, 2.0),
        tol=1e-3,
    )
    coarse = _narrow(float(start), lambda s: keeps(s, COARSE_GRID))
    return _narrow(coarse, lambda s: keeps(s, None))


def _narrow(guess: float, keeps: Callable[[float], bool]) -> float:
    """Returns the least value that keeps, up to `RELATIVE_TOLERANCE`, searching outwards from ``guess``."""
    width = 1 + RELATIVE_TOLERANCE
    enough, too_little = guess, guess / width
    while not keeps(enough):
        too_little, enough, width = enough, enough * width, width**2
    while keeps(too_little):
        enough, too_little, width = too_little, too_little / width, width**2
    while enough / too_little > 1 + RELATIVE_TOLERANCE * (1 + 1e-9):
        middle = (enough * too_little) ** 0.5
        if keeps(middle):
            enough = middle
        else:
            too_little = middle
    return enough
