"""Which units a batch holds: Poisson sampling, plain or cut to a largest batch, and balls in bins.

The first two take time proportional to the batch, the last to the population, once in an epoch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privads.noise import Randomness
from privads.training.event import COUNT_SHARE, count_margin
from privads.training.plan import TrainPlan

Numbers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """One batch. row_numbers: (rows,), grouped by unit. owners: (rows + padding,) which of the ``units`` has each row.

    padding: so many rows without weight follow, to fill a fixed shape. ``units`` counts places: one may have no row.
    sampled: so many places, the first ones, hold a unit of the log.
    """

    row_numbers: Numbers
    owners: Numbers
    units: int
    sampled: int
    padding: int = 0


class Sampler(Protocol):
    """Draws a plan's batches."""

    def draws(self, steps: int) -> Iterator[Draw]:
        """Yields ``steps`` batches; one may be empty."""
        ...


def sampler_for(plan: TrainPlan, units: Numbers, randomness: Randomness) -> Sampler:
    """Returns the sampler that the plan's event describes. units: (rows,) who owns each row, as numbers from 0."""
    rate, rows_per_unit, generator = plan.sampling_rate, plan.rows_per_unit, randomness.generator
    if plan.sampler == "balls-in-bins":
        return BallsInBinsSampler(units, bins=plan.bins, rows_per_unit=rows_per_unit, generator=generator)
    if plan.largest_batch is None or plan.most_units is None:
        return PoissonSampler(units, sampling_rate=rate, rows_per_unit=rows_per_unit, generator=generator)
    among = None
    if plan.budget is not None:
        among = at_most(
            plan.most_units,
            units=int(units.max()) + 1 if len(units) else 0,
            epsilon=COUNT_SHARE * plan.budget.epsilon,
            delta=COUNT_SHARE * plan.budget.delta,
            randomness=randomness,
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
        self._owned = Owned(units)

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
        self._owned, self.among = Owned(units), among

    def draws(self, steps: int) -> Iterator[Draw]:
        """Yields ``steps`` independent batches, all of one shape."""
        for _ in range(steps):
            yield self.draw()

    def draw(self) -> Draw:
        """Returns one batch."""
        population = self._owned.units if self.among is None else len(self.among)
        size = min(int(self.generator.binomial(population, self.sampling_rate)), self.largest_batch)
        chosen = _subset(self.generator, population, size)
        chosen = chosen if self.among is None else self.among[chosen]
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
    """In each epoch every unit joins exactly one of ``bins`` batches, a random one; the next epoch deals anew.

    Unlike in a shuffled epoch, whose batches all have one size, one unit's place says nothing of another's (Chua et al.
    2025, arXiv 2412.16802). The steps of an epoch that a run does not finish are never released, which costs no more.
    """

    def __init__(self, units: Numbers, *, bins: int, rows_per_unit: int, generator: np.random.Generator) -> None:
        self.bins, self.rows_per_unit, self.generator = bins, rows_per_unit, generator
        self._owned = Owned(units)

    def draws(self, steps: int) -> Iterator[Draw]:
        """Yields ``steps`` batches, from the start of an epoch on."""
        for step in range(steps):
            if step % self.bins == 0:
                bin_of = self.generator.integers(0, self.bins, self._owned.units)
                dealt = np.argsort(bin_of, kind="stable")  # units of one bin side by side, in rising order
                ends = np.cumsum(np.bincount(bin_of, minlength=self.bins))
            place = step % self.bins
            chosen = dealt[0 if place == 0 else ends[place - 1] : ends[place]]
            rows, owners = self._owned.rows_of(chosen, self.rows_per_unit, self.generator)
            yield Draw(row_numbers=rows, owners=owners, units=len(chosen), sampled=len(chosen))


def kept_rows(units: Numbers, most_rows: int, generator: np.random.Generator) -> Numbers:
    """Returns the numbers of at most ``most_rows`` rows of each unit, a uniform choice, in order of the units.

    units: (rows,) who owns each row. What is left out is never used: so an owner's rows are bounded once for all.
    """
    owned = Owned(units)
    return owned.rows_of(np.arange(owned.units), most_rows, generator)[0]


def at_most(most_units: int, *, units: int, epsilon: float, delta: float, randomness: Randomness) -> Numbers | None:
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
    up, down = randomness.geometric(2, rate=epsilon)
    noise = int(up - down)
    bound = units + noise + margin
    if bound < most_units:
        return None if units < most_units else np.zeros(0, dtype=np.int64)
    slack = math.sqrt(2 * most_units * math.log(2 / delta))
    share = min(1.0, max(0.0, (most_units - 1 - slack) / bound))
    size = int(randomness.generator.binomial(units, share))
    return _subset(randomness.generator, units, size if size < most_units else 0)


class Owned:
    """Which rows each unit owns, as places in a list: where they start, and how many they are."""

    def __init__(self, units: Numbers) -> None:
        self._counts = np.bincount(units).astype(np.int64) if len(units) else np.zeros(0, dtype=np.int64)
        self._starts = np.cumsum(self._counts) - self._counts
        rising = len(units) < 2 or bool((units[1:] >= units[:-1]).all())
        self._order = None if rising else np.argsort(units, kind="stable")  # a cache's rows are in order already

    @property
    def units(self) -> int:
        """How many there are."""
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
