"""What an attribution interface is: what it executes, what it promises to whom, and what its report costs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from dp_accounting import dp_event
from numpy.typing import NDArray

from accounting import mechanisms
from accounting.budget import Neighbors
from privads.noise import Randomness
from privads.signals.attribute import Converted, Shown, std_of_discrete_laplace

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """What an interface makes of rows, (cells, measures) each, in steps: sums as they are, with noise, and the noise's
    standard deviation. seen: what devices show beside it. Only ``noisy`` and ``noise_std`` may be told of private rows.
    """

    exact: Floats
    noisy: Floats
    noise_std: Floats
    seen: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What one protected unit loses. made: what is executed. epsilon: of its pure privacy, without the noise's own
    distance from its law, in total variation.
    """

    made: dp_event.DpEvent
    epsilon: float
    distance: float

    @property
    def event(self) -> dp_event.DpEvent:
        """What is executed, and what the distance adds to delta: both of two answers may be off by it."""
        delta = self.distance * (1 + math.exp(min(self.epsilon, 700.0)))
        if delta >= 1:
            raise ValueError(f"epsilon {self.epsilon:g} protects nobody: lower attribution.epsilon")
        return mechanisms.composed(self.made, mechanisms.approximate_dp(epsilon=0.0, delta=delta))


class Interface(Protocol):
    """One way to report what a log's ads led to."""

    @property
    def neighbors(self) -> Neighbors:
        """Under which its cost is stated."""
        ...

    @property
    def units(self) -> Mapping[str, float]:
        """The measures that are shown, and what one step of each is worth."""
        ...

    @property
    def loss(self) -> Loss:
        """What one unit loses by a report."""
        ...

    @property
    def law(self) -> str:
        """The noise's law, in words."""
        ...

    @property
    def limits_stated(self) -> Mapping[str, float]:
        """The budgets and caps that devices keep to."""
        ...

    @property
    def remedy(self) -> str:
        """What to do where a report costs too much."""
        ...

    def promise(self, unit: str) -> str:
        """Returns what the interface promises to whom, in words, and what that means for one ``unit``."""
        ...

    def check(self) -> None:
        """Raise ValueError where the interface would not take what it is asked for."""
        ...

    def answered(
        self, shown: Shown, converted: Converted, *, randomness: Randomness, insecure_seed: int | None
    ) -> Answered:
        """Returns the report of these rows."""
        ...


def with_laplace(sums: NDArray[np.int64], scale: float, seen: Mapping[str, float], randomness: Randomness) -> Answered:
    """Returns (cells, measures) sums with discrete Laplace noise of this scale, in steps."""
    noisy = sums + randomness.discrete_laplace(sums.size, scale=scale).reshape(sums.shape)
    return Answered(
        exact=sums.astype(np.float64),
        noisy=noisy.astype(np.float64),
        noise_std=np.full(sums.shape, std_of_discrete_laplace(scale)),
        seen=seen,
    )


def laplace_law(scale: float, units: Mapping[str, float]) -> str:
    """Returns that noise's law in words. units: what one step of each measure is worth."""
    steps = ", ".join(f"{unit:g} {name}" for name, unit in units.items())
    return f"discrete Laplace of scale {scale:g} steps on each cell, one step is {steps}"
