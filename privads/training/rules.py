"""Norms and clipped sums of each kind of layer, from its inputs and the gradients at its outputs.

A rule takes all uses of one layer in a batch and returns a `Contribution`: exact squared norms per unit, and sums
weighted per unit. Norms are upper ends: what rounding in float32 may have lost through cancellation is added, so the
bound on a unit's contribution holds for the numbers that are really added up.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from privads.models.layers import FusedTable

ROUNDING = 1e-5
"""Relative error granted to float32 sums and products, of the size that they would have without cancellation."""

Uses = Sequence[tuple[tuple[Tensor, ...], Tensor]]
"""Every use of one layer: what went in, and the gradient at what came out."""


class Contribution(Protocol):
    """What the units of a batch add to one layer's gradient."""

    def squared_norms(self) -> Tensor:
        """(units,) squared norm of each unit's gradient, rounded up."""
        ...

    def weighted_sums(self, factors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields each parameter with ``sum_u factors_u gradient_u``; a factor of 0 makes a unit vanish, NaN or not."""
        ...


Rule = Callable[[Any, Uses, Tensor, int], Contribution]


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
        input_squares = self.inputs.square().sum(1) + extra
        sizes = (input_squares * self.outputs.square().sum(1)).sqrt()  # ||b_m a_m^T||
        counts = torch.bincount(self.owners, minlength=self.units)
        longest = int(counts.max()) if len(counts) else 0
        ceiling = _sum_by(sizes, self.owners, self.units).square()
        if longest <= 1:
            return ceiling * (1 + ROUNDING)
        a, b = (self._padded(values, counts, longest) for values in (self.inputs, self.outputs))
        gram = (torch.bmm(a, a.mT) + extra) * torch.bmm(b, b.mT)  # (units, longest, longest)
        return gram.sum((1, 2)).clamp(min=0) + ROUNDING * ceiling

    def _padded(self, values: Tensor, counts: Tensor, longest: int) -> Tensor:
        order = torch.argsort(self.owners, stable=True)
        owners = self.owners[order]
        position = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners]
        padded = values.new_zeros(self.units * longest, values.shape[1])
        padded[owners * longest + position] = values[order]
        return padded.view(self.units, longest, values.shape[1])  # (units, longest, width)

    def weighted_sums(self, factors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        outputs = _weighted(self.outputs, factors[self.owners])
        if self.weight.requires_grad:
            yield self.weight, outputs.mT @ _finite(self.inputs)
        if self.bias is not None and self.bias.requires_grad:
            yield self.bias, outputs.sum(0)


def linear(module: nn.Linear, uses: Uses, owners: Tensor, units: int) -> Contribution:
    """The rule of `nn.Linear` on (rows, ..., in)."""
    parts = []
    for (inputs, *_), gradient in uses:
        a, b = inputs.flatten(0, -2), gradient.flatten(0, -2)  # (rows * positions, width)
        parts.append((a.to(b.dtype), b, owners.repeat_interleave(len(b) // max(len(owners), 1))))
    a, b, rows = (torch.cat(values) for values in zip(*parts, strict=True))
    return _Outer(module.weight, module.bias, a, b, rows, units)


@dataclass(frozen=True, eq=False)
class _Lookups:
    """A table whose gradient at row i is ``sum over lookups m with id_m = i of g_m``.

    ids: (m,). gradients: (m, dim). owners: (m,). One id may occur often in a unit: its lookups are added before
    squaring (Opacus's sampler of bags drops repeats, and its norm of a padded embedding counts the padding).
    """

    weight: Tensor
    ids: Tensor
    gradients: Tensor
    owners: Tensor
    units: int

    def squared_norms(self) -> Tensor:
        keys, cells = torch.unique(self.owners * len(self.weight) + self.ids, return_inverse=True)
        sizes = self.gradients.norm(dim=1, keepdim=True)
        added = _sum_by(torch.cat([self.gradients, sizes], dim=1), cells, len(keys))  # (cells, dim + 1)
        squares = added[:, :-1].square().sum(1) + ROUNDING * added[:, -1].square()
        return _sum_by(squares, keys // len(self.weight), self.units)

    def weighted_sums(self, factors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        yield (
            self.weight,
            _sum_by(_weighted(self.gradients, factors[self.owners]), self.ids, len(self.weight)),
        )


def fused_table(module: FusedTable, uses: Uses, owners: Tensor, units: int) -> Contribution:
    """The rule of `FusedTable`: bag (row, field) of any length hands its gradient to each of its ids."""
    parts = []
    for (ids, offsets), gradient in uses:
        bags = torch.repeat_interleave(offsets.diff())  # (total,) the bag of each id
        parts.append((ids, gradient.reshape(-1, module.dim)[bags], owners[bags // module.fields]))
    return _lookups(module.weight, parts, units)


def embedding(module: nn.Embedding, uses: Uses, owners: Tensor, units: int) -> Contribution:
    """The rule of `nn.Embedding` on (rows, ...): the padding row has no gradient."""
    parts = []
    for (ids, *_), gradient in uses:
        flat = ids.reshape(-1)
        rows = owners.repeat_interleave(len(flat) // max(len(owners), 1))
        real = flat != (-1 if module.padding_idx is None else module.padding_idx)
        parts.append((flat[real], gradient.reshape(-1, module.embedding_dim)[real], rows[real]))
    return _lookups(module.weight, parts, units)


def embedding_bag(module: nn.EmbeddingBag, uses: Uses, owners: Tensor, units: int) -> Contribution:
    """The rule of `nn.EmbeddingBag`, sum or mean, called as (ids, offsets): one bag a row."""
    if module.mode not in ("sum", "mean") or module.include_last_offset:
        raise NotImplementedError("nn.EmbeddingBag is supported with mode sum or mean, and without include_last_offset")
    parts = []
    for inputs, gradient in uses:
        if len(inputs) != 2:
            raise NotImplementedError("nn.EmbeddingBag is supported when called as module(ids, offsets)")
        ids, offsets = inputs
        lengths = torch.cat([offsets, offsets.new_tensor([len(ids)])]).diff()
        bags = torch.repeat_interleave(lengths)
        real = ids != (-1 if module.padding_idx is None else module.padding_idx)
        counted = _sum_by(real.to(gradient.dtype), bags, len(lengths)).clamp(min=1)
        share = gradient / counted[:, None] if module.mode == "mean" else gradient
        parts.append((ids[real], share[bags[real]], owners[bags[real]]))
    return _lookups(module.weight, parts, units)


def _lookups(weight: Tensor, parts: list[tuple[Tensor, Tensor, Tensor]], units: int) -> _Lookups:
    ids, gradients, owners = (torch.cat(values) for values in zip(*parts, strict=True))
    return _Lookups(weight, ids, gradients, owners, units)


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
            flat = _weighted(gradient.reshape(len(gradient), -1), factors[self.owners])
            yield parameter, flat.sum(0).view(parameter.shape)


def per_sample(module: nn.Module, uses: Uses, owners: Tensor, units: int, *, sampler: Any) -> Contribution:
    """The rule of every other layer: Opacus's grad sampler for it, or functorch."""
    gradients: dict[Tensor, Tensor] = {}
    for inputs, gradient in uses:
        for parameter, value in sampler(module, list(inputs), gradient).items():
            gradients[parameter] = gradients[parameter] + value if parameter in gradients else value
    return _PerSample(gradients, owners, units)


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    FusedTable: fused_table,
    nn.Embedding: embedding,
    nn.EmbeddingBag: embedding_bag,
}


def _sum_by(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Returns (count, ...) the sums of ``values`` (n, ...) over the ``groups`` (n,) they belong to."""
    return values.new_zeros(count, *values.shape[1:]).index_add_(0, groups, values)


def _weighted(values: Tensor, factors: Tensor) -> Tensor:
    """Returns ``values`` (n, width) times ``factors`` (n,); where a factor is 0 the result is 0 even for NaN."""
    return torch.where(factors[:, None] > 0, values * factors[:, None], 0.0)


def _finite(values: Tensor) -> Tensor:
    return torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
