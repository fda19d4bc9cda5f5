"""Event-level reports of the Attribution Reporting API (historical): k-ary randomized response on what one ad led to.

An ad that was shown (a source) may lead to at most C reports. A report is one of several trigger data in one of its
datum's windows; of datum i at most c_i are made. How many reports each datum got in each window is the source's state,
one of k. With probability p it is replaced by one drawn uniformly from all k, its own among them:

    p = k / (k + exp(epsilon) - 1),  capacity = log2 k - H2(q) - q log2(k - 1),  q = p (k - 1) / k

so that the likelihoods of one answer from two states differ by at most exp(epsilon), for one source, not for a person
(WICG attribution-reporting-api, flexible event-level configurations; retired by browsers in 2026).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from privads.noise import Randomness
from privads.noise_tables import bernoulli

MOST_STATES = 1 << 20
"""As many are listed; more can be counted only."""


@dataclass(frozen=True)
class EventReports:
    """Which reports a source may lead to. windows: for each trigger datum how many. most: reports of a source.

    most_of_datum: of each datum, by default ``most``.

    >>> EventReports(windows=(3,) * 8, most=3).states
    2925
    """

    windows: tuple[int, ...]
    most: int
    most_of_datum: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.windows or min(self.windows) < 1:
            raise ValueError(f"windows must name at least one window for each trigger datum, got {self.windows}")
        if self.most < 1:
            raise ValueError(f"most must be at least 1, got {self.most}")
        if len(self._of_datum) != len(self.windows) or min(self._of_datum) < 1:
            raise ValueError(f"most_of_datum must be at least 1 for each of {len(self.windows)} trigger data")

    @property
    def _of_datum(self) -> tuple[int, ...]:
        return (self.most,) * len(self.windows) if self.most_of_datum is None else self.most_of_datum

    @cached_property
    def states(self) -> int:
        """How many states there are, k."""
        ways = [1] + [0] * self.most  # of so many reports, over the data that were counted
        for windows, most in zip(self.windows, self._of_datum, strict=True):
            # so many reports spread over the windows, in any number each: C(reports + windows - 1, reports)
            own = [math.comb(reports + windows - 1, reports) for reports in range(min(most, self.most) + 1)]
            ways = [
                sum(own[new] * ways[total - new] for new in range(min(total, len(own) - 1) + 1))
                for total in range(self.most + 1)
            ]
        return sum(ways)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(states, windows of all data) how many reports each state has, in each datum's windows side by side."""
        if self.states > MOST_STATES:
            raise ValueError(f"{self.states} states are too many to list: at most {MOST_STATES}")
        limits = [most for windows, most in zip(self.windows, self._of_datum, strict=True) for _ in range(windows)]
        data = [datum for datum, windows in enumerate(self.windows) for _ in range(windows)]
        return np.array(list(_listed(limits, data, self.most, {})), dtype=np.int64)

    def randomize_probability(self, epsilon: float) -> float:
        """Returns p, the probability that a state is replaced by one of all."""
        _check(epsilon)
        return self.states / (self.states + math.expm1(epsilon))

    def capacity(self, epsilon: float) -> float:
        """Returns how many bits of its source one answer can tell at most."""
        return capacity(self.states, epsilon)

    def randomized(self, states: NDArray[np.int64], *, epsilon: float, randomness: Randomness) -> NDArray[np.int64]:
        """Returns (sources,) the answers for (sources,) states, numbered as in ``counts``.

        The coin is drawn to 2^-128 and the other state exactly.
        """
        _check(epsilon)
        if len(states) and not (states.min() >= 0 and states.max() < self.states):
            raise ValueError(f"states must be numbers from 0 to {self.states - 1}")
        flipped = randomness.drawn(bernoulli(self.states, epsilon), len(states)) == 1
        return np.where(flipped, randomness.below(len(states), self.states), states)

    def debiased(self, answers: NDArray[np.int64], *, epsilon: float) -> NDArray[np.float64]:
        """Returns (states,) unbiased estimates of how many sources were in each state: ``(n - N p / k) / (1 - p)``."""
        p, seen = self.randomize_probability(epsilon), np.bincount(answers, minlength=self.states)
        return np.asarray((seen - len(answers) * p / self.states) / (1 - p))


def capacity(states: int, epsilon: float) -> float:
    """Returns the capacity of k-ary randomized response in bits: ``log2 k - H2(q) - q log2(k - 1)``."""
    _check(epsilon)
    if states == 1:
        return 0.0
    q = (states - 1) / (states + math.expm1(epsilon))
    return math.log2(states) - _entropy(q) - q * math.log2(states - 1)


def largest_epsilon(states: int, *, bits: float) -> float:
    """Returns the largest epsilon whose `capacity` is at most ``bits``; infinity where none exceeds it."""
    if bits <= 0:
        raise ValueError(f"bits must be above 0, got {bits}")
    if math.log2(states) <= bits:
        return math.inf
    low, high = 0.0, 1.0
    while capacity(states, high) <= bits:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if capacity(states, middle) <= bits else (low, middle)
    return low


def _entropy(q: float) -> float:
    """Returns H2(q) in bits."""
    if q in (0.0, 1.0):
        return 0.0
    return -(q * math.log(q) + (1 - q) * math.log1p(-q)) / math.log(2)


def _listed(limits: Sequence[int], data: Sequence[int], left: int, used: dict[int, int]) -> Iterator[list[int]]:
    """Yields the counts of every state, windows one after another."""
    if not limits:
        yield []
        return
    datum = data[0]
    for reports in range(min(left, limits[0] - used.get(datum, 0)) + 1):
        rest = {**used, datum: used.get(datum, 0) + reports}
        for others in _listed(limits[1:], data[1:], left - reports, rest):
            yield [reports, *others]


def _check(epsilon: float) -> None:
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon must be finite and at least 0, got {epsilon}")
