"""Scores of canaries from what a run shows at each step: sums of log-likelihood ratios."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import binom
from torch import Tensor

from privads.attacks.directions import Directions

PRIOR_DRAWS = 20
"""The plan's noise counts as so many observations when the noise of a parameter is estimated."""

LEAST_REACH = 0.5
"""Clip norms that canaries must add on average: of less, little is seen beside the noise, and nothing of clipping."""


class Sampled(Protocol):
    """What a plan says of one unit in one step."""

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise, in clip norms."""
        ...

    @property
    def sampling_rate(self) -> float:
        """The chance that a record is drawn."""
        ...

    @property
    def records(self) -> int:
        """How many records a unit has, each drawn and clipped by itself."""
        ...


class Ratios:
    """The sum over steps of ``log E[exp((2 y a b - (a b)^2) / (2 s^2))]``, for b ~ Binomial(k, q).

    y is what is seen along a canary's direction, in clip norms: ``a b + N(0, s^2)`` for one that was put in, of whose
    k records b were drawn, each at the plan's sampling rate q, and N(0, s^2) for one that was not. This is the best
    score where the noise is Gaussian and the amplitude a known (Neyman and Pearson). s is what the noise of each
    parameter is seen to be, over all steps and canaries so far: where it is less than planned, or none, the scores are
    the better for it. Several amplitudes may be supposed: all are summed, and the most likely one's scores count.
    """

    def __init__(self, directions: Sequence[Directions | None], count: int, plan: Sampled, supposed: int = 1) -> None:
        """directions: of each noised parameter. supposed: how many amplitudes a canary may have."""
        self._totals = np.zeros((supposed, count))
        self._parameter = np.zeros(count, dtype=np.int64)
        for number, one in enumerate(directions):
            if one is not None:
                self._parameter[one.of.numpy(force=True)] = number
        self._observed = np.bincount(self._parameter, minlength=len(directions))
        self._squares = np.full(len(directions), PRIOR_DRAWS * plan.noise_multiplier**2)
        self._observations = np.full(len(directions), float(PRIOR_DRAWS))
        self._reach, self._steps = 0.0, 0
        self._drawn = np.arange(plan.records + 1)[:, None, None]
        self._log_chance = binom.logpmf(self._drawn, plan.records, plan.sampling_rate)  # (records + 1, 1, 1)

    def add(self, seen: NDArray[np.float64], amplitudes: NDArray[np.float64] | float = 1.0) -> None:
        """Take a step's y: (canaries,). amplitudes: a, (supposed, canaries)."""
        self._squares += np.bincount(self._parameter, seen**2, minlength=len(self._squares))
        self._observations += self._observed
        variance = np.maximum(self._squares / self._observations, 1e-12)[self._parameter]
        added = self._drawn * amplitudes
        self._reach += float(np.mean(np.max(np.minimum(np.atleast_2d(amplitudes), 1.0), axis=0)))
        self._steps += 1
        self._totals += logsumexp(added * (seen - added / 2) / variance + self._log_chance, axis=0)

    @property
    def blunt(self) -> bool:
        """Whether canaries that were drawn added less than `LEAST_REACH`, over all steps so far."""
        return self._reach < LEAST_REACH * self._steps

    @property
    def total(self) -> NDArray[np.float64]:
        """(canaries,) the sums, under the amplitude that makes what was seen of all canaries most likely."""
        likelihoods = np.logaddexp(0.0, self._totals).sum(axis=1)  # each was put in, or not, with equal chance
        total: NDArray[np.float64] = self._totals[int(likelihoods.argmax())]
        return total


def along(values: Sequence[Tensor | None], directions: Sequence[Directions | None], count: int) -> NDArray[np.float64]:
    """Returns (count,) how far ``values``, one for each parameter, go along each canary's directions."""
    found = np.zeros(count)
    for value, direction in zip(values, directions, strict=True):
        if value is not None and direction is not None:
            found[direction.of.numpy(force=True)] += direction.along(value.detach()).numpy(force=True)
    return found
