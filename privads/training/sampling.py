"""Poisson sampling of units, in time proportional to the batch."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """One batch: (rows,) row numbers, grouped by unit, and for each row which of the drawn ``units`` owns it."""

    row_numbers: NDArray[np.int64]
    owners: NDArray[np.int64]
    units: int


class PoissonSampler:
    """Every unit joins every batch independently with probability ``sampling_rate`` = q.

    Drawn as n ~ Binomial(N, q) and then n units without replacement: the same law (each subset of size n has
    probability q^n (1-q)^(N-n)), at a cost of the batch, not of N (arXiv 2406.17298, lemma 1). A unit with more than
    ``rows_per_unit`` rows brings a fresh uniform choice of that many.
    """

    def __init__(
        self,
        units: NDArray[np.int64],
        *,
        sampling_rate: float,
        rows_per_unit: int,
        generator: np.random.Generator,
    ) -> None:
        self.sampling_rate, self.rows_per_unit, self.generator = sampling_rate, rows_per_unit, generator
        self._by_unit = np.argsort(units, kind="stable")
        counts = np.bincount(units) if len(units) else np.zeros(0, dtype=np.int64)
        self._counts = counts.astype(np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])[:-1]

    def draws(self, steps: int) -> Iterator[Draw]:
        """Yields ``steps`` independent batches; one may be empty."""
        for _ in range(steps):
            yield self.draw()

    def draw(self) -> Draw:
        """Returns one batch."""
        population = len(self._counts)
        size = int(self.generator.binomial(population, self.sampling_rate)) if population else 0
        chosen = (
            self.generator.choice(population, size=size, replace=False, shuffle=False)
            if size
            else np.zeros(0, np.int64)
        )
        counts = self._counts[chosen]
        owners = np.repeat(np.arange(size), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = self._by_unit[np.repeat(self._starts[chosen], counts) + within]
        if counts.size and counts.max() > self.rows_per_unit:
            order = np.lexsort(
                (self.generator.random(len(rows)), owners)
            )  # owners stay in order, their rows are shuffled
            kept = within < self.rows_per_unit
            rows, owners = rows[order][kept], owners[kept]
        return Draw(row_numbers=rows.astype(np.int64), owners=owners.astype(np.int64), units=size)
