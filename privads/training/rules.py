"""Norms and clipped sums of each kind of layer, from its inputs and the gradients at its outputs.

A rule takes all uses of one layer in a batch and returns a `Contribution`: exact squared norms per unit, and sums
weighted per unit. Norms are upper ends: what rounding in float32 may have lost through cancellation is added, so the
bound on a unit's contribution holds for the numbers that are really added up. The rules of tables are in
`privads.training.lookups`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from opacus.layers.dp_rnn import RNNLinear
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from privads.models.layers import FusedTable
from privads.training.contribution import (
    ADDING,
    ROUNDING,
    WIDE,
    Contribution,
    Owners,
    Rule,
    TableRule,
    Uses,
    squares,
    without_dropped,
)
from privads.training.lookups import embedding, embedding_bag, fused_table

Sampler = Callable[[Any, list[Tensor], Tensor], Mapping[Tensor, Tensor]]
"""(layer, inputs, gradient at the output) -> {parameter: (rows, *shape) each row's gradient}, as in Opacus."""


_FEW = 16
"""Up to so many pairs of input and gradient in a unit, float32 is good enough for the Gram matrix.

What it loses of a square is granted in proportion to the square of the sum of their sizes. Where many of them point
everywhere, that is far above the square of their sum's norm; in float64 only the sum's own rounding is to be granted.
"""

_AT_ONCE = 1 << 22
"""Numbers of Gram matrices that are held at a time."""


@dataclass(frozen=True, eq=False)
class _Outer:
    """A layer whose gradient is ``sum over m of b_m a_m^T`` (and ``sum b_m`` for the bias): `nn.Linear`.

    inputs a: (rows, positions, in). outputs b: (rows, positions, out). A unit's m are all positions of its rows.
    """

    weight: Tensor
    bias: Tensor | None
    inputs: Tensor
    outputs: Tensor
    owners: Owners

    def squared_norms(self) -> Tensor:
        # ||sum_m b_m a_m^T||^2 = sum over pairs m, n of one unit: (a_m . a_n) (b_m . b_n)   (the Gram identity)
        trained = float(self.weight.requires_grad)
        extra = float(self.bias is not None and self.bias.requires_grad)  # a bias is a weight whose input is always 1
        sizes = ((trained * squares(self.inputs) + extra) * squares(self.outputs)).sqrt()  # ||b_m a_m^T||
        ceiling = self.owners.sums(sizes.sum(1))  # (units,) what the norm would be if nothing cancelled
        many = self.inputs.shape[1] * self.owners.longest
        if many <= 1:
            return ceiling.square() * (1 + ROUNDING)
        a, b = self.owners.side_by_side(self.inputs), self.owners.side_by_side(self.outputs)
        exact, found = many > _FEW or max(a.shape[2], b.shape[2]) > WIDE, []
        for of_a, of_b in zip(*(torch.split(one, max(1, _AT_ONCE // many**2)) for one in (a, b)), strict=True):
            of_a, of_b = (of_a.double(), of_b.double()) if exact else (of_a, of_b)
            gram = (trained * torch.bmm(of_a, of_a.mT) + extra) * torch.bmm(of_b, of_b.mT)  # (units, many, many)
            found.append(gram.sum((1, 2)).clamp(min=0))
        squared, granted = torch.cat(found), ROUNDING + ADDING * many
        if not exact:
            return squared + granted * ceiling.square()
        return (squared.sqrt() + granted / 2 * ceiling).square()

    def weighted_sums(self, factors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        by_row = self.owners.by_row(factors)
        weighted = (without_dropped(self.outputs, by_row) * by_row[:, None, None]).flatten(0, 1)
        if self.weight.requires_grad:
            yield self.weight, weighted.mT @ without_dropped(self.inputs, by_row).flatten(0, 1)
        if self.bias is not None and self.bias.requires_grad:
            yield self.bias, weighted.sum(0)


def linear(module: nn.Linear, uses: Uses, owners: Owners) -> Contribution:
    """The rule of `nn.Linear` on (rows, ..., in)."""
    parts = [(_with_positions(inputs), _with_positions(gradient)) for (inputs, *_), gradient in uses]
    a, b = (values[0] if len(values) == 1 else torch.cat(values, 1) for values in zip(*parts, strict=True))
    return _Outer(module.weight, module.bias, a, b, owners)


@dataclass(frozen=True, eq=False)
class _PerUnit:
    """A layer of few parameters, through each unit's gradient: {parameter: (units, parameters)}."""

    gradients: dict[Tensor, Tensor]
    units: int

    def squared_norms(self) -> Tensor:
        found = [gradient.square().sum(1) for gradient in self.gradients.values()]
        return torch.stack(found).sum(0) * (1 + ROUNDING)

    def weighted_sums(self, factors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for parameter, gradient in self.gradients.items():
            yield parameter, (factors.to(gradient.dtype) @ without_dropped(gradient, factors)).view(parameter.shape)


def layer_norm(module: nn.LayerNorm, uses: Uses, owners: Owners) -> Contribution:
    """The rule of `nn.LayerNorm` on (rows, ..., *normalized_shape): a row's gradient is sum g xhat, and sum g.

    The sums are over positions, g is the gradient at the output and xhat the normalized input (Opacus's sampler needs a
    bias).
    """
    return per_sample(module, uses, owners, sampler=_of_layer_norm)


def _of_layer_norm(module: nn.LayerNorm, inputs: list[Tensor], gradient: Tensor) -> dict[Tensor, Tensor]:
    shape = module.normalized_shape
    found: dict[Tensor, Tensor] = {}
    if module.weight.requires_grad:
        normalized = F.layer_norm(inputs[0], shape, eps=module.eps)
        found[module.weight] = _over_positions(gradient * normalized, len(shape))
    if module.bias is not None and module.bias.requires_grad:
        found[module.bias] = _over_positions(gradient, len(shape))
    return found


def per_sample(module: nn.Module, uses: Uses, owners: Owners, *, sampler: Sampler) -> Contribution:
    """The rule of a layer through each row's gradient, which ``sampler`` gives; summed by unit before it is squared."""
    gradients: dict[Tensor, Tensor] = {}
    for inputs, gradient in uses:
        for parameter, values in sampler(module, list(inputs), gradient).items():
            if parameter.requires_grad:
                added = owners.sums(values.flatten(1))
                gradients[parameter] = gradients[parameter] + added if parameter in gradients else added
    return _PerUnit(gradients, owners.units)


def by_functorch(module: nn.Module, inputs: list[Tensor], gradient: Tensor) -> dict[Tensor, Tensor]:
    """The sampler of a layer that nobody wrote one for: its own forward and backward pass on each row, vectorized.

    Opacus's would need no second argument of the layer, and would leave an attribute on it.
    """
    names = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}

    def product(parameters: dict[str, Tensor], of_row: list[Tensor], at_output: Tensor) -> Tensor:
        output: Tensor = functional_call(module, parameters, tuple(one.unsqueeze(0) for one in of_row))
        return (output.squeeze(0) * at_output).sum()

    detached = {name: parameter.detach() for name, parameter in names.items()}
    found: dict[str, Tensor] = vmap(grad(product), in_dims=(None, 0, 0))(detached, inputs, gradient)
    return {names[name]: values for name, values in found.items()}


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    RNNLinear: linear,
    nn.LayerNorm: layer_norm,
}
"""The layers with a rule of their own; of a subclass nobody knows what its forward pass does."""

TABLE_RULES: dict[type[nn.Module], TableRule] = {
    FusedTable: fused_table,
    nn.Embedding: embedding,
    nn.EmbeddingBag: embedding_bag,
}
"""The same for tables, whose ids may have been sorted before: their rules are told what sorts."""


def _with_positions(values: Tensor) -> Tensor:
    """Returns (rows, positions, width) of ``values`` (rows, ..., width)."""
    return values.flatten(1, -2) if values.dim() > 2 else values.unsqueeze(1)


def _over_positions(values: Tensor, last: int) -> Tensor:
    """Returns (rows, *shape) the sums of ``values`` (rows, ..., *shape) over what is between. last: dims of shape."""
    between = tuple(range(1, values.dim() - last))
    return values.sum(between) if between else values  # sum over no dimension would be the sum over all
