"""The least noise, the most steps or the largest sampling rate that a budget allows, always on the safe side.

All three are one search. epsilon falls as the noise grows and rises with steps and sampling rate; the search walks
towards more loss until the budget is all but used, and returns the last value that was seen to keep it. ``beside``
is what the same budget pays for as well, such as features fitted before: the search then fits both together,
which leaves more than subtracting their epsilons does.
"""

import math
from collections.abc import Callable

from dp_accounting import dp_event

from accounting.accountant import COARSE_GRID, epsilon
from accounting.budget import Budget
from accounting.mechanisms import composed

RELATIVE_TOLERANCE = 5e-4
MOST_NOISE = 1e30
MOST_STEPS = 10**9
LEAST_RATE = 1e-12

_Cost = Callable[[float, float | None], float]
"""(candidate, grid) -> epsilon."""


def noise_multiplier(
    make_event: Callable[[float], dp_event.DpEvent], budget: Budget, *, beside: dp_event.DpEvent | None = None
) -> float:
    """Returns the least noise multiplier, up to 0.05 %, for which ``make_event`` keeps ``budget``.

    Solves ``min s : epsilon(make_event(s), budget.delta).upper <= budget.epsilon``. Raises ValueError where no noise
    keeps it.

    >>> from accounting.mechanisms import dp_sgd
    >>> budget = Budget(epsilon=3.0, delta=1e-6, unit="example")
    >>> s = noise_multiplier(lambda s: dp_sgd(sampling_rate=0.01, noise_multiplier=s, steps=10_000), budget)
    >>> 1.7083 <= s <= 1.7095
    True
    """
    _check_room(budget, beside)

    def cost(candidate: float, grid: float | None) -> float:
        if candidate > MOST_NOISE:
            raise ValueError(
                f"no noise keeps {budget}: delta is too small, or the mechanism takes no notice of its noise"
            )
        return _cost(make_event(candidate), budget, beside, grid)

    return _search(cost, budget.epsilon, start=1.0, safer=1)


def most_steps(
    make_event: Callable[[int], dp_event.DpEvent], budget: Budget, *, beside: dp_event.DpEvent | None = None
) -> int:
    """Returns the most steps, up to 0.05 %, for which ``make_event`` keeps ``budget``.

    Solves ``max T : epsilon(make_event(T), budget.delta).upper <= budget.epsilon``. Raises ValueError where not even
    one step keeps it, or where a billion do.

    >>> from accounting.mechanisms import dp_sgd
    >>> budget = Budget(epsilon=3.0, delta=1e-6, unit="example")
    >>> most_steps(lambda T: dp_sgd(sampling_rate=1.0, noise_multiplier=10.0, steps=T), budget)
    41
    """
    _check_room(budget, beside)

    def cost(candidate: float, grid: float | None) -> float:
        if candidate > MOST_STEPS:
            if _cost(make_event(MOST_STEPS), budget, beside, grid) <= budget.epsilon:
                raise ValueError(f"more than {MOST_STEPS} steps keep {budget}: state how many you want")
            return math.inf
        return _cost(make_event(math.floor(candidate)), budget, beside, grid) if candidate >= 1 else 0.0

    found = math.floor(_search(cost, budget.epsilon, start=1000.0, safer=-1))
    if found < 1:
        raise ValueError(f"not even one step keeps {budget}: add noise, or sample fewer units")
    return found


def largest_sampling_rate(
    make_event: Callable[[float], dp_event.DpEvent], budget: Budget, *, beside: dp_event.DpEvent | None = None
) -> float:
    """Returns the largest Poisson sampling rate, up to 0.05 % and at most 1, for which ``make_event`` keeps ``budget``.

    Solves ``max q : epsilon(make_event(q), budget.delta).upper <= budget.epsilon``. Times the population it is the
    largest expected batch. Raises ValueError where no rate above 1e-12 keeps it.

    >>> from accounting.mechanisms import dp_sgd
    >>> budget = Budget(epsilon=3.0, delta=1e-6, unit="example")
    >>> q = largest_sampling_rate(lambda q: dp_sgd(sampling_rate=q, noise_multiplier=1.7095, steps=10_000), budget)
    >>> 0.0099 <= q <= 0.0101
    True
    """
    _check_room(budget, beside)

    def cost(candidate: float, grid: float | None) -> float:
        if candidate < LEAST_RATE:
            raise ValueError(f"no sampling rate keeps {budget}: add noise, or take fewer steps")
        return math.inf if candidate > 1 else _cost(make_event(candidate), budget, beside, grid)

    if cost(1.0, None) <= budget.epsilon:
        return 1.0
    return _search(cost, budget.epsilon, start=0.01, safer=-1)


def _cost(event: dp_event.DpEvent, budget: Budget, beside: dp_event.DpEvent | None, grid: float | None) -> float:
    both = event if beside is None else composed(beside, event)
    return epsilon(both, delta=budget.delta, neighbors=budget.neighbors, grid=grid).upper


def _check_room(budget: Budget, beside: dp_event.DpEvent | None) -> None:
    if beside is None:
        return
    gone = epsilon(beside, delta=budget.delta, neighbors=budget.neighbors).upper
    if gone >= budget.epsilon:
        raise ValueError(f"nothing is left of {budget}: what stands beside costs epsilon {gone:.4g} of it already")


def _search(cost: _Cost, limit: float, *, start: float, safer: int) -> float:
    """Returns the riskiest value, up to `RELATIVE_TOLERANCE`, that costs at most ``limit``.

    ``safer``: 1 where larger values cost less, -1 where smaller ones do. Works on ``u = safer log(value)``, along
    which the cost falls: first on the accountant's coarse grid, whose answer is safe but a little too cautious, then
    from there on its own grid, a few steps of Newton's kind inside a bracket.
    """

    def value(u: float) -> float:
        return math.exp(safer * u)

    def excess(u: float, grid: float | None) -> float:
        paid = cost(value(u), grid)
        return math.log(paid / limit) if paid > 0 else -math.inf

    bad, good = _bracket(lambda u: excess(u, COARSE_GRID) <= 0, safer * math.log(start))
    while good - bad > 4 * RELATIVE_TOLERANCE:
        middle = (bad + good) / 2
        bad, good = (bad, middle) if excess(middle, COARSE_GRID) <= 0 else (middle, good)
    return value(_refine(lambda u: excess(u, None), good))


def _bracket(keeps: Callable[[float], bool], u: float) -> tuple[float, float]:
    """Returns (a value that does not keep the budget, a value that does), doubling the stride from ``u`` outwards."""
    stride = math.log(2)
    if keeps(u):
        bad, good = u - stride, u
        while keeps(bad):
            stride *= 2
            bad, good = bad - stride, bad
        return bad, good
    bad, good = u, u + stride
    while not keeps(good):
        stride *= 2
        bad, good = good, good + stride
    return bad, good


def _refine(excess: Callable[[float], float], good: float) -> float:
    """Returns the least u at which ``excess`` is still at most 0, starting from ``good``, which may be too cautious."""
    above = excess(good)
    while above > 0:  # an accountant whose fine grid is dearer than its coarse one is none we know; then back off
        good += 4 * RELATIVE_TOLERANCE
        above = excess(good)
    bad, slope = -math.inf, 1.0
    while good - bad > RELATIVE_TOLERANCE and above < 0:
        newton = good + max(above, -1.0) / slope + RELATIVE_TOLERANCE / 4
        inside = bad < newton < good - RELATIVE_TOLERANCE / 8
        guess = newton if inside else max(good - RELATIVE_TOLERANCE / 2, (good + bad) / 2)
        found = excess(guess)
        if math.isfinite(found) and math.isfinite(above) and found > above:
            slope = (found - above) / (good - guess)
        good, above, bad = (guess, found, bad) if found <= 0 else (good, above, guess)
        if -above <= RELATIVE_TOLERANCE / 4 * slope:
            break
    return good
