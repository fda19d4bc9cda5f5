"""Which units make a batch: Poisson sampling, plain or cut to a largest batch, and balls in bins.

Poisson sampling takes time proportional to the batch, balls in bins to the number of units once an epoch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privads.training.plan import COUNT_SHARE, TrainPlan, count_margin

Numbers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """One batch. row_numbers: (rows,), grouped by unit. owners: (rows + padding,) which of the ``units`` has each row.

    padding: so many rows without weight follow, to fill a fixed shape. ``units`` counts places: one may have no row.
    sampled: so many places, the first ones, hold a unit that was sampled; the rest are there for the shape alone.
    """

    row_numbers: Numbers
    owners: Numbers
    units: int
    sampled: int
    padding: int = 0


class Sampler(Protocol):
    """Draws a plan's batches."""

    def draws(self, steps: int) -> Iterator[Draw]:
        """Yields ``steps`` batches, all that a run has; one may be empty."""
        ...


def sampler_for(plan: TrainPlan, units: Numbers, generator: np.random.Generator) -> Sampler:
    """Returns the sampler that the plan's event describes. units: (rows,) who owns each row, as numbers from 0."""
    rate, rows_per_unit = plan.sampling_rate, plan.rows_per_unit
    if plan.largest_batch is None or plan.most_units is None:
        return PoissonSampler(units, sampling_rate=rate, rows_per_unit=rows_per_unit, generator=generator)
    among = None
    if plan.budget is not None:
        among = at_most(
            plan.most_units,
            units=int(units.max()) + 1 if len(units) else 0,
            epsilon=COUNT_SHARE * plan.budget.epsilon,
            delta=COUNT_SHARE * plan.budget.delta,
            generator=generator,
        )
    return TruncatedPoissonSampler(
        units,
        sampling_rate=rate,
        rows_per_unit=rows_per_unit,
        largest_batch=plan.largest_batch,
        among=among,
        generator=generator,
    )


class PoissonSampler:
    """Every unit joins every batch independently with probability ``sampling_rate`` = q.

    Drawn as n ~ Binomial(N, q) and then n units without replacement: the same law (each subset of size n has
    probability q^n (1-q)^(N-n)), at a cost of the batch, not of N (arXiv 2406.17298, lemma 1). A unit with more than
    ``rows_per_unit`` rows brings a fresh uniform choice of that many.
    """

    def __init__(
        self, units: Numbers, *, sampling_rate: float, rows_per_unit: int, generator: np.random.Generator
    ) -> None:
        self.sampling_rate, self.rows_per_unit, self.generator = sampling_rate, rows_per_unit, generator
        self._owned = _Owned(units)

    def draws(self, steps: int) -> Iterator[Draw]:
        """Yields ``steps`` independent batches; one may be empty."""
        for _ in range(steps):
            yield self.draw()

    def draw(self) -> Draw:
        """Returns one batch."""
        size = int(self.generator.binomial(self._owned.units, self.sampling_rate))
        chosen = _subset(self.generator, self._owned.units, size)
        rows, owners = self._owned.rows_of(chosen, self.rows_per_unit, self.generator)
        return Draw(row_numbers=rows, owners=owners, units=size, sampled=size)


class TruncatedPoissonSampler:
    """Poisson sampling of which at most ``largest_batch`` = B units stay: of more, a uniformly random B of them.

    Every batch has the same shape: B places of ``rows_per_unit`` rows, filled with padding. As a uniform B of a
    uniform n are a uniform B, only min(n, B) units are ever drawn (Ganesh 2025, arXiv 2508.15089; Chua et al. 2024,
    arXiv 2411.04205). among: the units that are sampled at all, see `at_most`; None for all.
    """

    def __init__(
        self,
        units: Numbers,
        *,
        sampling_rate: float,
        rows_per_unit: int,
        largest_batch: int,
        among: Numbers | None = None,
        generator: np.random.Generator,
    ) -> None:
        self.sampling_rate, self.rows_per_unit, self.generator = sampling_rate, rows_per_unit, generator
        self.largest_batch = largest_batch
        self._owned, self._among = _Owned(units), among

    def draws(self, steps: int) -> Iterator[Draw]:
        """Yields ``steps`` independent batches, all of one shape."""
        for _ in range(steps):
            yield self.draw()

    def draw(self) -> Draw:
        """Returns one batch."""
        population = self._owned.units if self._among is None else len(self._among)
        size = min(int(self.generator.binomial(population, self.sampling_rate)), self.largest_batch)
        chosen = _subset(self.generator, population, size)
        chosen = chosen if self._among is None else self._among[chosen]
        rows, owners = self._owned.rows_of(chosen, self.rows_per_unit, self.generator)
        missing = self.rows_per_unit - np.bincount(owners, minlength=self.largest_batch)
        filler = np.repeat(np.arange(self.largest_batch), missing)
        return Draw(
            row_numbers=rows,
            owners=np.concatenate([owners, filler]),
            units=self.largest_batch,
            sampled=size,
            padding=len(filler),
        )


class BallsInBinsSampler:
    """In each epoch every unit joins one of ``bins`` = T batches, chosen uniformly and independently of all else.

    Drawn as the batches' sizes, multinomial with N trials, and a uniformly random order of the units that is cut at
    them: the same law, as given the sizes every assignment that has them is equally likely. The sizes are random: with
    equal ones it would be shuffling, whose cost is another. Takes O(N) once an epoch. A unit with more than
    ``rows_per_unit`` rows brings a fresh uniform choice of that many in each epoch.
    """

    def __init__(self, units: Numbers, *, bins: int, rows_per_unit: int, generator: np.random.Generator) -> None:
        self.bins, self.rows_per_unit, self.generator = bins, rows_per_unit, generator
        self._owned = _Owned(units)

    def draws(self, steps: int) -> Iterator[Draw]:
        """Yields ``steps`` batches, T to an epoch. An epoch that the steps end in releases less, and is charged whole.

        A second call begins a new epoch: that of the first call is not gone on with.
        """
        for first in range(0, steps, self.bins):
            sizes = self.generator.multinomial(self._owned.units, np.full(self.bins, 1 / self.bins))
            order, ends = self.generator.permutation(self._owned.units), np.cumsum(sizes)
            for size, end in zip(sizes[: steps - first], ends[: steps - first], strict=True):
                chosen = np.sort(order[end - size : end])
                rows, owners = self._owned.rows_of(chosen, self.rows_per_unit, self.generator)
                yield Draw(row_numbers=rows, owners=owners, units=int(size), sampled=int(size))


def kept_rows(units: Numbers, rows_per_unit: int, generator: np.random.Generator) -> Numbers:
    """Returns the numbers, rising, of all rows of each unit or of a uniform choice of ``rows_per_unit`` = k of them.

    For sampling rows by themselves, as an event that counts at most k rows of each owner needs it: the choice is made
    once, before the first draw, so that a unit's further rows are in no batch at all. A unit's choice depends on its
    own rows alone. units: (rows,) who owns each row, as numbers from 0.
    """
    if rows_per_unit < 1:
        raise ValueError(f"rows_per_unit must be at least 1, got {rows_per_unit}")
    owned = _Owned(units)
    rows, _ = owned.rows_of(np.arange(owned.units), rows_per_unit, generator)
    return np.sort(rows)


def at_most(
    most_units: int, *, units: int, epsilon: float, delta: float, generator: np.random.Generator
) -> Numbers | None:
    """Returns which units are used so that there are at most ``most_units`` = M of them; None where all are.

    A uniform choice of M units would not do: with more than M, one unit's presence would replace another unit, and
    the add/remove guarantee of what follows would not hold. So the number n of units is released privately, as
    ``n' = n + Z + t``, with Z two-sided geometric, ``P[Z = z] ~ exp(-epsilon |z|)``, and ``t = ln(2/delta) / epsilon``.
    Where n' < M all units are used, else each one independently with probability ``p = (M - 1 - l) / n'``,
    ``l = sqrt(2 M ln(2/delta))``: whether one is used says nothing of another. Should M or more be left all the same,
    none is used.

    Costs (epsilon, delta): epsilon for n'; delta bounds P[n' < n] + P[Binomial(n', p) >= M], at most delta / 2 each
    (the second by Chernoff's bound), as one unit decides whether any is used only where exactly M are left with it
    and M - 1 without.
    """
    margin = count_margin(epsilon=epsilon, delta=delta)
    chance = -math.expm1(-epsilon)
    noise = int(generator.geometric(chance)) - int(generator.geometric(chance))
    bound = units + noise + margin
    if bound < most_units:
        return None if units < most_units else np.zeros(0, dtype=np.int64)
    slack = math.sqrt(2 * most_units * math.log(2 / delta))
    share = min(1.0, max(0.0, (most_units - 1 - slack) / bound))
    size = int(generator.binomial(units, share))
    return _subset(generator, units, size if size < most_units else 0)


class _Owned:
    """Which rows each unit owns, as places in a list: where they start, and how many they are."""

    def __init__(self, units: Numbers) -> None:
        self._counts = np.bincount(units).astype(np.int64) if len(units) else np.zeros(0, dtype=np.int64)
        self._starts = np.cumsum(self._counts) - self._counts
        rising = len(units) < 2 or bool((units[1:] >= units[:-1]).all())
        self._order = None if rising else np.argsort(units, kind="stable")  # a cache's rows are in order already

    @property
    def units(self) -> int:
        return len(self._counts)

    def rows_of(self, chosen: Numbers, rows_per_unit: int, generator: np.random.Generator) -> tuple[Numbers, Numbers]:
        """Returns (rows, which of the ``chosen`` owns each): all of a unit, or ``rows_per_unit`` of them at random."""
        counts = self._counts[chosen]
        kept = np.minimum(counts, rows_per_unit)
        owners = np.repeat(np.arange(len(chosen)), kept)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(kept) - kept, kept)
        full = counts > rows_per_unit
        if full.any():
            within[full[owners]] = _subsets(generator, counts[full], rows_per_unit).ravel()
        places = self._starts[chosen][owners] + within
        return places if self._order is None else self._order[places], owners


def _subset(generator: np.random.Generator, population: int, size: int) -> Numbers:
    """Returns a uniform choice of ``size`` from 0 .. population - 1, in rising order: the order of the file."""
    if size == 0:
        return np.zeros(0, dtype=np.int64)
    chosen = generator.choice(population, size=size, replace=False, shuffle=False)
    return np.sort(chosen)


def _subsets(generator: np.random.Generator, populations: Numbers, size: int) -> Numbers:
    """Returns (populations, size) a uniform choice from 0 .. population - 1 for each: Floyd's algorithm, all at once.

    For j = population - size, ..., population - 1: take t uniform on 0 .. j, or j where t is taken (Bentley and Floyd
    1987). Costs size^2 for each, however large the population.
    """
    taken = np.empty((len(populations), size), dtype=np.int64)
    for position in range(size):
        last = populations - size + position
        found = generator.integers(0, last + 1)
        double = (taken[:, :position] == found[:, None]).any(axis=1)
        taken[:, position] = np.where(double, last, found)
    return np.sort(taken, axis=1)
