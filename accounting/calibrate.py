"""The least noise that fits a budget, always on the safe side."""

from collections.abc import Callable

from dp_accounting import dp_event

from accounting.accountant import COARSE_GRID, epsilon
from accounting.budget import Budget

RELATIVE_TOLERANCE = 1e-3
MOST_NOISE = 1e30


def noise_multiplier(make_event: Callable[[float], dp_event.DpEvent], budget: Budget) -> float:
    """Returns the least noise multiplier, up to 0.1 %, for which ``make_event`` keeps ``budget``.

    Solves ``min s : epsilon(make_event(s), budget.delta).upper <= budget.epsilon``. epsilon falls as s grows, so the
    answer is bracketed and the bracket is halved, first on the accountant's coarse grid, then on the fine one. The end
    that keeps the budget is returned. Raises ValueError where no noise keeps it.

    >>> from accounting.mechanisms import dp_sgd
    >>> budget = Budget(epsilon=3.0, delta=1e-6, unit="example")
    >>> s = noise_multiplier(lambda s: dp_sgd(sampling_rate=0.01, noise_multiplier=s, steps=10_000), budget)
    >>> 1.708 <= s <= 1.711
    True
    """

    def keeps(candidate: float, grid: float | None) -> bool:
        if candidate > MOST_NOISE:
            raise ValueError(
                f"no noise keeps {budget}: delta is too small, or the mechanism takes no notice of its noise"
            )
        return epsilon(make_event(candidate), delta=budget.delta, grid=grid).upper <= budget.epsilon

    coarse = _narrow(1.0, lambda s: keeps(s, COARSE_GRID), width=2.0)
    return _narrow(coarse, lambda s: keeps(s, None), width=1 + RELATIVE_TOLERANCE)


def _narrow(guess: float, keeps: Callable[[float], bool], *, width: float) -> float:
    """Returns the least value that keeps, up to `RELATIVE_TOLERANCE`, searching outwards from ``guess``."""
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
