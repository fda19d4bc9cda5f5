"""From a plan and rows to the batches that a loop sees: whole, or in parts where one would not fit into memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privads.batch import Batch, Rows, joined, padding
from privads.training.plan import TrainPlan
from privads.training.sampling import Draw, Sampler, kept_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """What the loop is shown at a time: a batch, or where the plan says ``rows_at_once`` a part of one.

    owners: (rows,) which of the ``units`` places has each row. rows: so many are real, the others padding behind them.
    numbers: (rows,) of the real ones in the log.
    sampled: the places, from the first, that hold a unit of the log. last: no part of the same batch follows.
    """

    batch: Batch
    owners: Tensor
    units: int
    rows: int
    numbers: NDArray[np.int64]
    sampled: int
    last: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampled:
    """The rows that a plan samples from, and who is sampled and clipped with them.

    numbers: (n,) rows of the log; None for all. units: (n,) the owner of each.
    """

    rows: Rows
    numbers: NDArray[np.int64] | None
    units: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Rows, plan: TrainPlan, *, by_row: bool, generator: np.random.Generator) -> Self:
        """Returns all rows; where rows are sampled one by one and owned by units, a choice of so many of each unit.

        by_row: the protected unit is a row. Reads the owners of all rows.
        """
        units = _without_gaps(rows.units)
        if plan.records > 1 and not by_row:
            numbers = kept_rows(units, plan.records, generator)
            return cls(rows=rows, numbers=numbers, units=np.arange(len(numbers)))
        return cls(rows=rows, numbers=None, units=np.arange(len(units)) if by_row else units)

    def take(self, places: NDArray[np.int64]) -> Batch:
        """Returns the rows at these places of ``units``."""
        return self.rows.take(self.in_log(places))

    def in_log(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the numbers in the log of the rows at these places."""
        return places if self.numbers is None else self.numbers[places]


def _without_gaps(units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the owners as numbers from 0 of which none is missing: a count of them counts owners."""
    if not len(units) or bool(np.bincount(units).all()):
        return units
    return np.unique(units, return_inverse=True)[1].astype(np.int64)


class Source:
    """Draws a plan's batches and gathers their rows."""

    def __init__(self, sampled: Sampled, sampler: Sampler, plan: TrainPlan, device: torch.device) -> None:
        self.sampled, self.sampler, self._plan, self._device = sampled, sampler, plan, device

    def parts(self, steps: int) -> Iterator[Part]:
        """Yields the parts of ``steps`` batches."""
        for draw in self.sampler.draws(steps):
            parts = list(parts_of(draw, self._plan.rows_at_once))
            for number, part in enumerate(parts, start=1):
                yield self._gathered(part, last=number == len(parts))

    def _gathered(self, draw: Draw, *, last: bool) -> Part:
        real = len(draw.row_numbers)
        # An empty draw is a row of padding.
        owners = draw.owners if len(draw.owners) else np.zeros(1, dtype=np.int64)
        if real == len(owners):
            batch = self.sampled.take(draw.row_numbers)
        else:
            filler = padding(self.sampled.rows.schema, len(owners) - real)
            batch = joined(self.sampled.take(draw.row_numbers), filler) if real else filler
        return Part(
            batch=batch.to(self._device),
            owners=torch.from_numpy(owners).to(self._device),
            units=max(draw.units, 1),
            rows=real,
            numbers=self.sampled.in_log(draw.row_numbers),
            sampled=draw.sampled,
            last=last,
        )


def parts_of(draw: Draw, rows_at_once: int | None) -> Iterator[Draw]:
    """Yields the draw in parts of whole units with at most ``rows_at_once`` rows each, padding included; None: as one.

    Clipped sums of parts add up to those of the whole, as each unit is in one part.
    """
    if rows_at_once is None or len(draw.owners) <= rows_at_once:
        yield draw
        return
    owners, filler = np.split(draw.owners, [len(draw.row_numbers)])
    ends = np.cumsum(np.bincount(draw.owners, minlength=draw.units))  # rows of all places up to each
    first = 0
    while first < draw.units:
        before = 0 if first == 0 else int(ends[first - 1])
        end = max(int(np.searchsorted(ends, before + rows_at_once, side="right")), first + 1)
        mine, fill = np.searchsorted(owners, [first, end]), np.searchsorted(filler, [first, end])
        yield Draw(
            row_numbers=draw.row_numbers[mine[0] : mine[1]],
            owners=np.concatenate([owners[mine[0] : mine[1]], filler[fill[0] : fill[1]]]) - first,
            units=end - first,
            padding=int(fill[1] - fill[0]),
            sampled=min(max(draw.sampled - first, 0), end - first),
        )
        first = end


class Batches:
    """The plan's batches: so many ``steps`` of them, once. A second pass would be a second run, and raises."""

    def __init__(self, steps: int, draws: Callable[[], Iterator[Batch]]) -> None:
        self._steps, self._draws, self._started = steps, draws, False

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        if self._started:
            raise RuntimeError(
                "the plan's batches can be read once: another pass needs another plan, and its own charge"
            )
        self._started = True
        return self._draws()
