"""The rules of tables: many lookups hand the gradient of one bag each to one row each of a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from privads.models.layers import FusedTable
from privads.training.contribution import (
    ADDING,
    ROUNDING,
    Contribution,
    Owners,
    RunsOf,
    Uses,
    ascending,
    squares,
    sum_by,
    without_dropped,
)
from privads.training.tables import Runs, SparseSum, sums_of_runs


@dataclass(frozen=True, eq=False)
class Lookups:
    """A table whose gradient at row i is ``sum over lookups m with id_m = i of weight_m g_{bag_m}``.

    ids: (m,). bags: (m,), or None where lookup m is bag m. weights: (m,), or None for 1. gradients g: (bags, dim).
    owners: (bags,), the same for ``bags_per_row`` bags side by side. One id may occur often in a unit: its lookups are
    added before squaring (Opacus's sampler of bags drops repeats, and its norm of a padded embedding counts the
    padding). Lookups are sorted once, by id and then by owner, for norms, sums and indicators.
    """

    table: Tensor
    ids: Tensor
    bags: Tensor | None
    weights: Tensor | None
    gradients: Tensor
    owners: Tensor
    units: int
    runs_of: RunsOf
    bags_per_row: int

    def squared_norms(self) -> Tensor:
        """(units,) squared norm of each unit's gradient, rounded up."""
        if self._repeats is None and self.bags is None and self.weights is None and self.bags_per_row:
            by_row = squares(self.gradients.view(-1, self.bags_per_row * self.gradients.shape[1])).double()
            return sum_by(by_row, self.owners[:: self.bags_per_row], self.units) * (1 + ROUNDING)
        by_lookup = self._by_lookup(squares(self.gradients)).double()  # a unit may have any number of lookups
        if self.weights is not None:
            by_lookup = by_lookup * self.weights.square()
        if self._repeats is None:
            return sum_by(by_lookup, self._owner_by_lookup, self.units) * (1 + ROUNDING)
        several = self._repeats.clone()
        several[:-1] |= self._repeats[1:]
        lookups = self._runs.order[several]  # those whose id occurs again in their unit, side by side
        starts = torch.nonzero(~self._repeats[several]).flatten()
        bags, weights = self._by_lookup_number(lookups)
        added = sums_of_runs(self.gradients, bags, starts, weights)  # (pairs of unit and id, dim)
        ceiling = sums_of_runs(by_lookup[:, None].sqrt(), lookups, starts).flatten()
        lengths = torch.diff(starts, append=starts.new_tensor([len(lookups)]))
        alone = by_lookup.index_fill(0, lookups, 0.0)
        pair_owners = self._owner_by_lookup[lookups[starts]]
        norms = squares(added).double().sqrt() + (ROUNDING + ADDING * lengths) / 2 * ceiling
        pairs = sum_by(norms.square(), pair_owners, self.units)
        return sum_by(alone, self._owner_by_lookup, self.units) * (1 + ROUNDING) + pairs

    def weighted_sums(self, factors: Tensor) -> Iterator[tuple[Tensor, SparseSum]]:
        """Yields the table with ``sum_u factors_u gradient_u``."""
        if not len(self.ids) or not self.table.requires_grad:
            return
        bags, weights = self._by_lookup_number(self._runs.order)
        both = factors.index_select(0, self._owners_in_order)
        both = both if weights is None else both * weights
        gradients = without_dropped(self.gradients, factors.index_select(0, self.owners))
        sums = sums_of_runs(gradients, bags, self._runs.starts, both.to(gradients.dtype))
        yield self.table, SparseSum(self._runs.keys, sums, len(self.table))

    def rows_read(self) -> Tensor:
        """(units,) how many rows of the table each unit reads, each counted once."""
        return torch.bincount(self._pairs[0], minlength=self.units)

    def indicators(self, shares: Tensor) -> SparseSum:
        """Returns (n, 1) values: for each row the sum of ``shares`` (units,) over the units that read it."""
        owners, starts = self._pairs
        return SparseSum(self._runs.keys, sums_of_runs(shares[:, None], owners, starts), len(self.table))

    def _by_lookup(self, values: Tensor) -> Tensor:
        """Returns (m,) for each lookup what ``values`` (bags,) says of its bag."""
        return values if self.bags is None else values.index_select(0, self.bags)

    def _by_lookup_number(self, lookups: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the bags and the weights of these lookups."""
        bags = lookups if self.bags is None else self.bags.index_select(0, lookups)
        return bags, None if self.weights is None else self.weights.index_select(0, lookups)

    @cached_property
    def _owner_by_lookup(self) -> Tensor:
        return self._by_lookup(self.owners)

    @cached_property
    def _runs(self) -> Runs:
        if ascending(self._owner_by_lookup):
            return self.runs_of(self.ids)
        by_owner = torch.argsort(self._owner_by_lookup, stable=True)
        runs = Runs.of(self.ids[by_owner])
        return Runs(runs.keys, by_owner[runs.order], runs.starts)

    @cached_property
    def _owners_in_order(self) -> Tensor:
        return self._owner_by_lookup.index_select(0, self._runs.order)

    @cached_property
    def _repeats(self) -> Tensor | None:
        """(m,) bool, in the order of the runs: of the same unit and id as the one before. None where none is."""
        owners = self._owners_in_order
        repeats = torch.zeros_like(owners, dtype=torch.bool)
        torch.eq(owners[1:], owners[:-1], out=repeats[1:])
        repeats.index_fill_(0, self._runs.starts, False)
        return repeats if bool(repeats.any()) else None

    @cached_property
    def _pairs(self) -> tuple[Tensor, Tensor]:
        """(pairs,) the owner of each pair of a unit and a row it reads, by row; and where each row's pairs start."""
        if self._repeats is None:
            return self._owners_in_order, self._runs.starts
        first = ~self._repeats
        before = first.cumsum(0) - 1  # the pairs before a lookup that is the first of its pair
        return self._owners_in_order[first], before.index_select(0, self._runs.starts)


_Part = tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]
"""One use of a table: ids, bags, weights, gradients and owners of `Lookups`."""


def fused_table(module: FusedTable, uses: Uses, owners: Owners, runs_of: RunsOf) -> Contribution:
    """The rule of `FusedTable`: bag (row, field) of any length hands its gradient to each of its ids."""
    parts: list[_Part] = []
    for (ids, offsets), gradient in uses:
        lengths = offsets.diff()
        bags = None if bool((lengths == 1).all()) else torch.repeat_interleave(lengths)
        parts.append((ids, bags, None, gradient.reshape(-1, module.dim), owners.of.repeat_interleave(module.fields)))
    return _lookups(module.weight, parts, owners.units, runs_of, bags_per_row=module.fields)


def embedding(module: nn.Embedding, uses: Uses, owners: Owners, runs_of: RunsOf) -> Contribution:
    """The rule of `nn.Embedding` on (rows, ...): the padding row has no gradient."""
    parts: list[_Part] = []
    for (ids, *_), gradient in uses:
        flat, bags = ids.reshape(-1), None
        if module.padding_idx is not None:
            bags = torch.nonzero(flat != module.padding_idx).flatten()
            flat = flat[bags]
        by_bag = owners.of.repeat_interleave(ids.numel() // max(len(owners.of), 1))
        parts.append((flat, bags, None, gradient.reshape(-1, module.embedding_dim), by_bag))
    return _lookups(module.weight, parts, owners.units, runs_of, bags_per_row=1)


def embedding_bag(module: nn.EmbeddingBag, uses: Uses, owners: Owners, runs_of: RunsOf) -> Contribution:
    """The rule of `nn.EmbeddingBag`, sum or mean, one bag a row: called with ids (rows, n), or with ids and offsets."""
    parts: list[_Part] = []
    for inputs, gradient in uses:
        ids, bags = inputs[0].flatten(), torch.repeat_interleave(bag_lengths(module, inputs))
        weights = inputs[2].flatten() if len(inputs) > 2 else None
        if module.padding_idx is not None:
            real = torch.nonzero(ids != module.padding_idx).flatten()
            ids, bags, weights = ids[real], bags[real], None if weights is None else weights[real]
        if module.mode == "mean":
            gradient = gradient / torch.bincount(bags, minlength=len(gradient)).clamp(min=1)[:, None]
        parts.append((ids, bags, weights, gradient, owners.of))
    return _lookups(module.weight, parts, owners.units, runs_of, bags_per_row=1)


def bag_lengths(module: nn.EmbeddingBag, inputs: Sequence[Any]) -> Tensor:
    """Returns (bags,) how many ids each bag of a call ``module(ids[, offsets[, weights]])`` has."""
    ids, offsets = inputs[0], inputs[1] if len(inputs) > 1 else None
    if offsets is None:
        return torch.full((len(ids),), ids.shape[1], device=ids.device)
    ends = offsets if module.include_last_offset else torch.cat([offsets, offsets.new_tensor([len(ids)])])
    return ends.diff()


def _lookups(table: Tensor, parts: list[_Part], units: int, runs_of: RunsOf, *, bags_per_row: int) -> Lookups:
    if len(table) >= 1 << 31:
        raise NotImplementedError(f"a table of {len(table)} rows: split it into tables below 2^31 rows")
    if len(parts) == 1:
        return Lookups(table, *parts[0], units, runs_of, bags_per_row)
    every_bag, every_weight, before = [], [], 0
    for ids, bags, weights, gradients, _ in parts:
        every_bag.append(before + (torch.arange(len(ids), device=ids.device) if bags is None else bags))
        every_weight.append(torch.ones_like(ids, dtype=gradients.dtype) if weights is None else weights)
        before += len(gradients)
    ids, gradients, owners = (torch.cat([part[place] for part in parts]) for place in (0, 3, 4))  # type: ignore[misc]
    return Lookups(table, ids, torch.cat(every_bag), torch.cat(every_weight), gradients, owners, units, runs_of, 1)
