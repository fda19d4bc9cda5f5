"""What one layer's rule gives for a batch: norms per unit, rounded up, and sums weighted per unit."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from privads.training.tables import Runs, SparseSum

ROUNDING = 1e-5
"""Relative error granted to float32 sums and products, of the size that they would have without cancellation."""

ADDING = 2.0**-22
"""Relative error of a square for each float32 number that was added up: of norm and sum, 2^-24 each, doubled."""

WIDE = 1024
"""Of so many float32 numbers, torch's norm and products are not taken: of 10^5 they are wrong by 1e-4."""

Uses = Sequence[tuple[tuple[Any, ...], Tensor]]
"""Every use of one layer: what went in (tensors or None), and the gradient at what came out, rows first."""


class Contribution(Protocol):
    """What the units of a batch add to one layer's gradient."""

    def squared_norms(self) -> Tensor:
        """(units,) squared norm of each unit's gradient, rounded up."""
        ...

    def weighted_sums(self, factors: Tensor) -> Iterator[tuple[Tensor, Tensor | SparseSum]]:
        """Yields each parameter with ``sum_u factors_u gradient_u``; a factor of 0 makes a unit vanish, NaN or not.

        A table's sum is sparse.
        """
        ...


@dataclass(frozen=True, eq=False)
class Owners:
    """Who owns each row of a batch. of: (rows,), in 0 .. units - 1. What the rules ask is found out once a batch."""

    of: Tensor
    units: int

    @cached_property
    def single(self) -> bool:
        """Whether row u is all that unit u has: nothing is to be added up then, or to be moved."""
        return len(self.of) == self.units and bool((self.of == self._numbers).all())

    @cached_property
    def counts(self) -> Tensor:
        """(units,) how many rows each unit has."""
        return torch.bincount(self.of, minlength=self.units)

    @cached_property
    def longest(self) -> int:
        """How many rows a unit has at most."""
        return 1 if self.single else int(self.counts.max())

    def sums(self, values: Tensor) -> Tensor:
        """Returns (units, ...) the sums of ``values`` (rows, ...) over each unit's rows."""
        return values if self.single else sum_by(values, self.of, self.units)

    def by_row(self, values: Tensor) -> Tensor:
        """Returns (rows,) what ``values`` (units,) says of each row's unit."""
        return values if self.single else values.index_select(0, self.of)

    def side_by_side(self, values: Tensor) -> Tensor:
        """Returns (units, longest * n, width): the rows of ``values`` (rows, n, width), those of a unit together."""
        width = values.shape[2]
        if len(values) != self.units * self.longest or not self._ascending:  # otherwise nothing is to be moved
            padded = values.new_zeros(self.units * self.longest, *values.shape[1:])
            values = padded.index_copy_(0, self._places, values)
        return values.reshape(self.units, -1, width) if values.numel() else values.new_zeros(self.units, 0, width)

    @cached_property
    def _numbers(self) -> Tensor:
        return torch.arange(len(self.of), device=self.of.device)

    @cached_property
    def _ascending(self) -> bool:
        return self.single or ascending(self.of)

    @cached_property
    def _places(self) -> Tensor:
        """(rows,) where each goes in (units * longest,): a unit's side by side."""
        number = self._numbers
        if not self._ascending:
            order = torch.argsort(self.of, stable=True)
            number = torch.empty_like(order).index_copy_(0, order, number)
        return self.of * self.longest + number - (self.counts.cumsum(0) - self.counts).index_select(0, self.of)


Rule = Callable[[Any, Uses, Owners], Contribution]

RunsOf = Callable[[Tensor], Runs]
TableRule = Callable[[Any, Uses, Owners, RunsOf], Contribution]


def sum_by(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Returns (count, ...) the sums of ``values`` (n, ...) over the ``groups`` (n,) they belong to."""
    return values.new_zeros(count, *values.shape[1:]).index_add_(0, groups, values)


def ascending(values: Tensor) -> bool:
    """Whether no value of ``values`` (n,) is below the one before it."""
    return bool((values[1:] >= values[:-1]).all())


def squares(values: Tensor) -> Tensor:
    """Returns (...,) the squared norm of each of ``values`` (..., width)."""
    if values.shape[-1] > WIDE:
        return values.square().sum(-1)  # torch's sum adds in pairs
    norms: Tensor = torch.linalg.vector_norm(values, dim=-1)  # without a copy of the values
    return norms.square()


def without_dropped(values: Tensor, factors: Tensor) -> Tensor:
    """Returns ``values`` (n, ...) with 0, not NaN, where their factor (n,) is 0."""
    kept = factors > 0
    return values if bool(kept.all()) else torch.where(kept.view(-1, *[1] * (values.dim() - 1)), values, 0.0)
