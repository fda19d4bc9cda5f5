"""Norms and clipped sums of each kind of layer, from its inputs and the gradients at its outputs.

A rule takes all uses of one layer in a batch and returns a `Contribution`: exact squared norms per unit, and sums
weighted per unit. Norms are upper ends: what rounding in float32 may have lost through cancellation is added, so the
bound on a unit's contribution holds for the numbers that are really added up.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privads.models.layers import FusedTable
from privads.training.tables import Runs, SparseSum, sums_of_runs

ROUNDING = 1e-5
"""Relative error granted to float32 sums and products, of the size that they would have without cancellation."""

_ADDING = 2.0**-22
"""Relative error of a square for each float32 number that was added up: of norm and sum, 2^-24 each, doubled."""

Uses = Sequence[tuple[tuple[Tensor, ...], Tensor]]
"""Every use of one layer: what went in, and the gradient at what came out."""


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


Rule = Callable[[Any, Uses, Tensor, int], Contribution]

RunsOf = Callable[[Tensor], Runs]
TableRule = Callable[[Any, Uses, Tensor, int, RunsOf], Contribution]


@dataclass(frozen=True, eq=False)
class _Outer:
    """A layer whose gradient is ``sum over m of b_m a_m^T`` (and ``sum b_m`` for the bias): `nn.Linear`.

    inputs a: (m, in). outputs b: (m, out). owners: (m,).
    """

    weight: Tensor
    bias: Tensor | None
    inputs: Tensor
    outputs: Tensor
    owners: Tensor
    units: int

    def squared_norms(self) -> Tensor:
        # ||sum_m b_m a_m^T||^2 = sum over pairs m, n of one unit: (a_m . a_n) (b_m . b_n)   (the Gram identity)
        extra = 1.0 if self.bias is not None else 0.0  # the bias is a weight whose input is always 1
        squares = (_squares(self.inputs) + extra) * _squares(self.outputs)  # ||b_m a_m^T||^2
        if len(self.owners) <= self.units and _strictly_ascending(self.owners):  # at most one for each unit
            return _sum_by(squares, self.owners, self.units) * (1 + ROUNDING)
        counts = torch.bincount(self.owners, minlength=self.units)
        longest = int(counts.max())
        ceiling = _sum_by(squares.sqrt(), self.owners, self.units).square()
        places = self._places(counts, longest)
        a, b = (self._padded(values, places, longest) for values in (self.inputs, self.outputs))
        gram = (torch.bmm(a, a.mT) + extra) * torch.bmm(b, b.mT)  # (units, longest, longest)
        return gram.sum((1, 2)).clamp(min=0) + (ROUNDING + _ADDING * counts) * ceiling

    def _places(self, counts: Tensor, longest: int) -> Tensor:
        """Returns (m,) where each goes in (units * longest,): a unit's side by side."""
        number = torch.arange(len(self.owners), device=self.owners.device)
        if not _ascending(self.owners):
            order = torch.argsort(self.owners, stable=True)
            number = torch.empty_like(order).index_copy_(0, order, number)
        return self.owners * longest + number - (counts.cumsum(0) - counts)[self.owners]

    def _padded(self, values: Tensor, places: Tensor, longest: int) -> Tensor:
        if len(values) == self.units * longest and _ascending(self.owners):  # all units are full: nothing to move
            padded = values
        else:
            padded = values.new_zeros(self.units * longest, values.shape[1]).index_copy_(0, places, values)
        return padded.view(self.units, longest, values.shape[1])  # (units, longest, width)

    def weighted_sums(self, factors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        by_row = factors[self.owners]
        outputs = _without_dropped(self.outputs, by_row) * by_row[:, None]
        if self.weight.requires_grad:
            yield self.weight, outputs.mT @ _without_dropped(self.inputs, by_row)
        if self.bias is not None and self.bias.requires_grad:
            yield self.bias, outputs.sum(0)


def linear(module: nn.Linear, uses: Uses, owners: Tensor, units: int) -> Contribution:
    """The rule of `nn.Linear` on (rows, ..., in)."""
    parts = []
    for (inputs, *_), gradient in uses:
        a, b = inputs.flatten(0, -2), gradient.flatten(0, -2)  # (rows * positions, width)
        parts.append((a.to(b.dtype), b, _each_repeated(owners, len(b) // max(len(owners), 1))))
    a, b, rows = (values[0] if len(values) == 1 else torch.cat(values) for values in zip(*parts, strict=True))
    return _Outer(module.weight, module.bias, a, b, rows, units)


@dataclass(frozen=True, eq=False)
class Lookups:
    """A table whose gradient at row i is ``sum over lookups m with id_m = i of weight_m g_{bag_m}``.

    ids: (m,). bags: (m,), or None where lookup m is bag m. weights: (m,), or None for 1. gradients g: (bags, dim).
    owners: (bags,), the same for ``bags_per_row`` bags side by side. One id may occur often in a unit: its lookups are
    added before squaring (Opacus's sampler of bags drops repeats, and its norm of a padded embedding counts the
    padding). Lookups are sorted once, by owner and then by id, for norms and sums.
    """

    table: Tensor
    ids: Tensor
    bags: Tensor | None
    weights: Tensor | None
    gradients: Tensor
    owners: Tensor
    units: int
    runs_of: RunsOf
    bags_per_row: int = 1

    def _by_lookup(self, values: Tensor) -> Tensor:
        """Returns (m,) for each lookup what ``values`` (bags,) says of its bag."""
        return values if self.bags is None else values[self.bags]

    @cached_property
    def _runs(self) -> Runs:
        owners = self._by_lookup(self.owners)
        if _ascending(owners):
            return self.runs_of(self.ids)
        by_owner = torch.argsort(owners, stable=True)
        runs = Runs.of(self.ids[by_owner])
        return Runs(runs.keys, by_owner[runs.order], runs.starts)

    @cached_property
    def _repeats(self) -> Tensor:
        """(m,) bool, in the order of runs: whether the lookup before is of the same unit and the same id."""
        repeats = _same_as_before(self._by_lookup(self.owners).index_select(0, self._runs.order))
        repeats[self._runs.starts] = False
        return repeats

    def rows_read(self) -> Tensor:
        """(units,) how many rows of the table each unit reads, each once."""
        first = self._runs.order[~self._repeats]
        return torch.bincount(self._by_lookup(self.owners)[first], minlength=self.units)

    def counts(self, weights: Tensor) -> SparseSum:
        """Returns (rows of the table, 1): the sum of the ``weights`` (units,) of those that read each row."""
        first = ~self._repeats
        by_pair = weights[self._by_lookup(self.owners)[self._runs.order[first]]]
        starts = torch.zeros_like(first, dtype=torch.int64).index_fill_(0, self._runs.starts, 1)
        which = (starts.cumsum(0) - 1)[first]
        return SparseSum(self._runs.keys, _sum_by(by_pair[:, None], which, len(self._runs.keys)), len(self.table))

    def squared_norms(self) -> Tensor:
        """(units,) squared norm of each unit's gradient, rounded up."""
        repeats, order, owners = self._repeats, self._runs.order, self._by_lookup(self.owners)
        rows = len(self.gradients) // max(self.bags_per_row, 1)
        if self.bags is None and self.weights is None and not bool(repeats.any()):
            by_row = _squares(self.gradients.view(rows, -1)).double()
            return _sum_by(by_row, self.owners[:: self.bags_per_row], self.units) * (1 + ROUNDING)
        squares = self._by_lookup(_squares(self.gradients)).double()  # a unit may have any number of lookups
        if self.weights is not None:
            squares = squares * self.weights.square()
        if not bool(repeats.any()):
            return _sum_by(squares, owners, self.units) * (1 + ROUNDING)
        several = repeats.clone()
        several[:-1] |= repeats[1:]
        lookups = order[several]  # those whose id occurs again in their unit, side by side
        starts = torch.nonzero(~repeats[several]).flatten()
        bags, weights = self._by_lookup_number(lookups)
        added = sums_of_runs(self.gradients, bags, starts, weights)  # (pairs of unit and id, dim)
        ceiling = sums_of_runs(squares[:, None].sqrt(), lookups, starts).flatten().square()
        lengths = torch.diff(starts, append=starts.new_tensor([len(lookups)]))
        alone = squares.index_fill(0, lookups, 0.0)
        pairs = _sum_by(_squares(added) + (ROUNDING + _ADDING * lengths) * ceiling, owners[lookups[starts]], self.units)
        return _sum_by(alone, owners, self.units) * (1 + ROUNDING) + pairs

    def _by_lookup_number(self, lookups: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the bags and the weights of these lookups."""
        bags = lookups if self.bags is None else self.bags[lookups]
        return bags, None if self.weights is None else self.weights[lookups]

    def weighted_sums(self, factors: Tensor) -> Iterator[tuple[Tensor, SparseSum]]:
        """Yields the table with ``sum_u factors_u gradient_u``."""
        if not len(self.ids) or not self.table.requires_grad:
            return
        by_bag = factors[self.owners]
        bags, weights = self._by_lookup_number(self._runs.order)
        both = by_bag.index_select(0, bags)
        both = both if weights is None else both * weights
        gradients = _without_dropped(self.gradients, by_bag)
        sums = sums_of_runs(gradients, bags, self._runs.starts, both.to(gradients.dtype))
        yield self.table, SparseSum(self._runs.keys, sums, len(self.table))


_Part = tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]
"""One use of a table: ids, bags, weights, gradients and owners of `Lookups`."""


def fused_table(module: FusedTable, uses: Uses, owners: Tensor, units: int, runs_of: RunsOf) -> Contribution:
    """The rule of `FusedTable`: bag (row, field) of any length hands its gradient to each of its ids."""
    parts: list[_Part] = []
    for (ids, offsets), gradient in uses:
        by_bag = _each_repeated(owners, module.fields)
        lengths = offsets.diff()
        bags = None if bool((lengths == 1).all()) else torch.repeat_interleave(lengths)
        parts.append((ids, bags, None, gradient.reshape(-1, module.dim), by_bag))
    return _lookups(module.weight, parts, units, runs_of, bags_per_row=module.fields)


def embedding(module: nn.Embedding, uses: Uses, owners: Tensor, units: int, runs_of: RunsOf) -> Contribution:
    """The rule of `nn.Embedding` on (rows, ...): the padding row has no gradient."""
    parts: list[_Part] = []
    for (ids, *_), gradient in uses:
        flat, bags = ids.reshape(-1), None
        if module.padding_idx is not None:
            bags = torch.nonzero(flat != module.padding_idx).flatten()
            flat = flat[bags]
        by_bag = _each_repeated(owners, ids.numel() // max(len(owners), 1))
        parts.append((flat, bags, None, gradient.reshape(-1, module.embedding_dim), by_bag))
    return _lookups(module.weight, parts, units, runs_of)


def embedding_bag(module: nn.EmbeddingBag, uses: Uses, owners: Tensor, units: int, runs_of: RunsOf) -> Contribution:
    """The rule of `nn.EmbeddingBag`, sum or mean, called as (ids, offsets[, per_sample_weights]): one bag a row."""
    if module.mode not in ("sum", "mean") or module.include_last_offset:
        raise NotImplementedError("nn.EmbeddingBag is supported with mode sum or mean, and without include_last_offset")
    parts: list[_Part] = []
    for inputs, gradient in uses:
        if len(inputs) not in (2, 3) or inputs[0].dim() != 1:
            raise NotImplementedError("nn.EmbeddingBag is supported when called as module(ids, offsets)")
        ids, offsets, *weights = inputs
        lengths = torch.cat([offsets, offsets.new_tensor([len(ids)])]).diff()
        bags = torch.repeat_interleave(lengths)
        real = ids != (-1 if module.padding_idx is None else module.padding_idx)
        counted = _sum_by(real.to(gradient.dtype), bags, len(lengths)).clamp(min=1)
        share = gradient / counted[:, None] if module.mode == "mean" else gradient
        parts.append((ids[real], bags[real], weights[0][real] if weights else None, share, owners))
    return _lookups(module.weight, parts, units, runs_of)


def _lookups(table: Tensor, parts: list[_Part], units: int, runs_of: RunsOf, *, bags_per_row: int = 1) -> Lookups:
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
    return Lookups(table, ids, torch.cat(every_bag), torch.cat(every_weight), gradients, owners, units, runs_of)


@dataclass(frozen=True, eq=False)
class _PerSample:
    """Any layer, through per-row gradients: {parameter: (rows, *shape)}."""

    gradients: dict[Tensor, Tensor]
    owners: Tensor
    units: int

    def squared_norms(self) -> Tensor:
        total = torch.zeros(self.units, device=self.owners.device)
        for gradient in self.gradients.values():
            flat = gradient.reshape(len(gradient), -1)  # (rows, parameters)
            added = _sum_by(flat, self.owners, self.units)
            ceiling = _sum_by(flat.norm(dim=1), self.owners, self.units).square()
            total = total + added.square().sum(1) + ROUNDING * ceiling
        return total

    def weighted_sums(self, factors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for parameter, gradient in self.gradients.items():
            by_row = factors[self.owners]
            flat = _without_dropped(gradient.reshape(len(gradient), -1), by_row)
            yield parameter, (by_row @ flat).view(parameter.shape)


def per_sample(module: nn.Module, uses: Uses, owners: Tensor, units: int, *, sampler: Any) -> Contribution:
    """The rule of every other layer: Opacus's grad sampler for it, or functorch."""
    gradients: dict[Tensor, Tensor] = {}
    for inputs, gradient in uses:
        for parameter, value in sampler(module, list(inputs), gradient).items():
            gradients[parameter] = gradients[parameter] + value if parameter in gradients else value
    return _PerSample(gradients, owners, units)


def layer_norm(module: nn.LayerNorm, uses: Uses, owners: Tensor, units: int) -> Contribution:
    """The rule of `nn.LayerNorm` on (rows, ..., shape): ``y = x_hat * w + b``, so dy/dw is x_hat and dy/db is 1."""
    gradients: dict[Tensor, Tensor] = {}
    for (inputs, *_), gradient in uses:
        shape = module.normalized_shape
        normed = F.layer_norm(inputs.to(gradient.dtype), shape, eps=module.eps)
        for parameter, values in ((module.weight, gradient * normed), (module.bias, gradient)):
            if parameter is not None and parameter.requires_grad:
                by_row = values.reshape(len(values), -1, *shape).sum(1)  # over positions
                gradients[parameter] = gradients[parameter] + by_row if parameter in gradients else by_row
    return _PerSample(gradients, owners, units)


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    nn.LayerNorm: layer_norm,
}

TABLE_RULES: dict[type[nn.Module], TableRule] = {
    FusedTable: fused_table,
    nn.Embedding: embedding,
    nn.EmbeddingBag: embedding_bag,
}


def _sum_by(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Returns (count, ...) the sums of ``values`` (n, ...) over the ``groups`` (n,) they belong to."""
    return values.new_zeros(count, *values.shape[1:]).index_add_(0, groups, values)


def _ascending(values: Tensor) -> bool:
    return bool((values[1:] >= values[:-1]).all())


def _strictly_ascending(values: Tensor) -> bool:
    return bool((values[1:] > values[:-1]).all())


def _squares(values: Tensor) -> Tensor:
    """Returns (n,) the squared norm of each of ``values`` (n, width)."""
    norms: Tensor = torch.linalg.vector_norm(values, dim=1)
    return norms.square()


def _each_repeated(values: Tensor, times: int) -> Tensor:
    return values if times == 1 else values.repeat_interleave(times)


def _same_as_before(values: Tensor) -> Tensor:
    """Returns (n,) bool: whether each of ``values`` (n,) equals the one before it."""
    same = torch.zeros_like(values, dtype=torch.bool)
    torch.eq(values[1:], values[:-1], out=same[1:])
    return same


def _without_dropped(values: Tensor, factors: Tensor) -> Tensor:
    """Returns ``values`` (n, width) with 0, not NaN, where their factor (n,) is 0."""
    kept = factors > 0
    return values if bool(kept.all()) else torch.where(kept[:, None], values, 0.0)
