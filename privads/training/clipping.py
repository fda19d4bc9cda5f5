"""Per-unit clipping in one backward pass.

Hooks keep each layer's input and the place where its output enters the graph. One backward pass then gives the
gradients at those outputs; from the two, exact norms of every unit's gradient and the clipped sums are formed, layer by
layer, without a per-row weight gradient for the layers that have a rule of their own (`privads.training.rules`):

    norm_u^2 = sum over layers ||sum over rows r of u: dloss_r/dW||^2
    sum_u min(1, C / norm_u) * (sum over rows r of u: dloss_r/dW)

Everything else goes through Opacus's grad samplers, which are read and never changed.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient, prepare_layer
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from privads.training.refusals import UnsupportedModel, layer_name, refuse_layers
from privads.training.rules import RULES, TABLE_RULES, Contribution, Lookups, Rule, per_sample
from privads.training.tables import TABLES, RunsOfBatch, SparseSum, positional

__all__ = ["ClippedSums", "UnitGradients", "UnsupportedModel"]

_KNOWN_TYPES = (torch.bfloat16, torch.float32, torch.float64)

_SHORT = 1 - 1e-6
"""A vector of counts is made so much shorter than 1: what rounding adds to its length is less."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClippedSums:
    """What the units of a batch add up to, or those of a part of one: parts are added with ``+``.

    sums: per parameter the sum of clipped gradients, sparse for a table; a parameter without a contribution is left
    out. within: (units,) bool, whose norm was at most the clip norm. touched: per table (n, 1) counts of used rows, the
    sum over units u of v_u, which is ``1 / sqrt(m)`` at each of the m rows, of all tables, that u reads.
    """

    sums: Mapping[Tensor, Tensor | SparseSum]
    within: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    touched: Mapping[Tensor, SparseSum] = field(default_factory=dict)

    def __add__(self, other: "ClippedSums") -> "ClippedSums":
        return ClippedSums(
            sums=_added(self.sums, other.sums),
            within=torch.cat([self.within, other.within]),
            touched=_added(self.touched, other.touched),
        )


def _added(one: Mapping[Tensor, Any], two: Mapping[Tensor, Any]) -> dict[Tensor, Any]:
    both = {key: one[key] + two[key] for key in one if key in two}
    return {**one, **two, **both}


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a layer: what went in (with the versions of the tensors), and where the output enters the graph."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    versions: tuple[int, ...]
    edge: GradientEdge
    output_shape: torch.Size


class UnitGradients(GradSampleHooks):  # type: ignore[misc]
    """Attached to a model, gives sums over units of clipped gradients. The model itself is left as it is.

    Guarantees (each with a test of its own):
    - the norm of what one unit adds to all sums together is at most ``clip_norm``, in floating point;
    - the sums equal those of a loop over units, one backward pass each;
    - a unit whose gradient is not finite adds zero, and changes nothing else;
    - a layer that took no part in the loss adds zero, never the last batch's gradient;
    - what one unit adds to the counts of used rows has a length of at most 1, in floating point.
    """

    def __init__(self, model: nn.Module) -> None:
        self._calls: list[_Call] = []
        self.runs_of = RunsOfBatch()
        self._samplers: dict[nn.Module, Any] = {}
        refuse_layers(model)
        try:
            super().__init__(model, batch_first=True, loss_reduction="sum", strict=True)
        except NotImplementedError as error:
            raise UnsupportedModel(f"a layer cannot be trained with privacy: {error}") from None
        self._refuse_uncovered(model)
        trained = [one for one in self.iterate_submodules(model) if any(p.requires_grad for p in one.parameters())]
        self._groups = len({type(one) in TABLES for one in trained})

    def add_hooks(self, **_: Any) -> None:
        """Attach one forward hook to every layer with parameters of its own."""
        self.autograd_grad_sample_hooks = self._module.autograd_grad_sample_hooks = []
        for module in self.iterate_submodules(self._module):
            if type(module) not in RULES and type(module) not in TABLE_RULES:
                sampler = self.GRAD_SAMPLERS.get(type(module))
                if sampler is None:
                    prepare_layer(module, batch_first=True)
                    sampler = ft_compute_per_sample_gradient
                self._samplers[module] = sampler
            self.autograd_grad_sample_hooks.append(module.register_forward_hook(self._capture, with_kwargs=True))
        self.enable_hooks()

    def iterate_submodules(self, module: nn.Module) -> Iterator[nn.Module]:
        """Yields the layers with parameters of their own; those with a rule, or handled whole, are not entered."""
        if type(module) in RULES or type(module) in TABLE_RULES:
            yield module
            return
        yield from super().iterate_submodules(module)

    def capture_activations_hook(self, module: nn.Module, forward_input: Any, output: Any) -> None:
        """Keep what a layer was called with."""
        if not (self.hooks_enabled and module.training and torch.is_grad_enabled()):
            return
        if not isinstance(output, Tensor) or not all(isinstance(one, Tensor) for one in forward_input):
            raise UnsupportedModel(
                f"{layer_name(self._module, module)} holds parameters of its own but does not map tensors to a tensor: "
                "move its parameters into a layer such as nn.Linear"
            )
        if not output.requires_grad:
            return
        inputs = tuple(one.detach() for one in forward_input)
        versions = tuple(one._version for one in inputs)
        self._calls.append(_Call(module, inputs, versions, get_gradient_edge(output), output.shape))

    def _capture(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.capture_activations_hook(module, positional(module, args, kwargs), output)

    def forget(self) -> None:
        """Drop what was kept of earlier calls."""
        self._calls.clear()
        self.runs_of.forget()

    def clipped_sums(
        self,
        losses: Tensor,
        owners: Tensor,
        *,
        units: int,
        clip_norm: float,
        per_group: bool = False,
        touching: int | None = None,
    ) -> ClippedSums:
        """Returns the sums over units of their clipped gradients.

        losses: (rows,). owners: (rows,) the unit of each row, in 0 .. units - 1. With an infinite ``clip_norm`` nothing
        is clipped, and norms are not computed. per_group: a unit's gradient in tables and in all other layers is
        clipped to ``clip_norm / sqrt(2)`` each (McMahan et al. 2018, arXiv 1710.06963, section 2.2). touching: count
        the rows of tables that the first so many units read; None counts nothing.
        """
        with torch.autocast(losses.device.type, enabled=False):  # norms must be those of the numbers that are added up
            found = self._contributions(losses, owners, units)
            split = per_group and self._groups > 1
            groups = [[one for one in found if isinstance(one, Lookups) == which] for which in (True, False)]
            bound = clip_norm / math.sqrt(2) if split else clip_norm
            sums: dict[Tensor, Tensor | SparseSum] = {}
            within = torch.ones(units, dtype=torch.bool, device=losses.device)
            for group in groups if split else [found]:
                factors = _factors(group, units, bound, losses.device)
                within &= factors == 1
                for contribution in group:
                    sums.update(contribution.weighted_sums(factors))
            touched = {} if touching is None else _touched(found, units, touching)
            return ClippedSums(sums=sums, within=within, touched=touched)

    def _contributions(self, losses: Tensor, owners: Tensor, units: int) -> list[Contribution]:
        if not self._calls:
            raise RuntimeError(
                "no layer was called in training mode since the batch was drawn: call model.train() and compute the "
                "loss from model(batch)"
            )
        calls, self._calls = self._calls, []
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
            losses.sum(), [call.edge for call in calls], allow_unused=True
        )
        by_module: dict[nn.Module, list[tuple[tuple[Tensor, ...], Tensor]]] = {}
        for call, gradient in zip(calls, gradients, strict=True):
            if gradient is None:
                continue
            if any(tensor._version != version for tensor, version in zip(call.inputs, call.versions, strict=True)):
                name = layer_name(self._module, call.module)
                raise UnsupportedModel(f"the input of {name} was changed in place after it was used; make it a copy")
            if gradient.shape[0] != len(owners) or gradient.dtype not in _KNOWN_TYPES:
                name = layer_name(self._module, call.module)
                raise UnsupportedModel(
                    f"{name} gave {tuple(gradient.shape)} of {gradient.dtype}: the first dimension must be "
                    f"the {len(owners)} rows, in bfloat16 (not float16), float32 or float64"
                )
            inputs = tuple(_full(one) for one in call.inputs)
            by_module.setdefault(call.module, []).append((inputs, _full(gradient.detach())))
        found = []
        for module, uses in by_module.items():
            found.append(self._rule_of(module)(module, uses, owners, units))
        return found

    def _rule_of(self, module: nn.Module) -> Rule:
        if type(module) in TABLE_RULES:
            rule = TABLE_RULES[type(module)]
            return lambda module, uses, owners, units: rule(module, uses, owners, units, self.runs_of)
        return RULES.get(type(module)) or partial(per_sample, sampler=self._samplers[module])

    def _refuse_uncovered(self, model: nn.Module) -> None:
        owner: dict[nn.Parameter, nn.Module] = {}
        for module in self.iterate_submodules(model):
            for parameter in module.parameters():
                if owner.setdefault(parameter, module) is not module:
                    raise UnsupportedModel(
                        f"{layer_name(model, module)} shares a parameter with {layer_name(model, owner[parameter])}: "
                        "use the same layer in both places instead of two layers with one parameter"
                    )


def _factors(group: list[Contribution], units: int, clip_norm: float, device: torch.device) -> Tensor:
    """Returns (units,) what each unit's gradient in this group of layers is multiplied with."""
    if math.isinf(clip_norm):
        return torch.ones(units, device=device)
    squares = torch.zeros(units, dtype=torch.float64, device=device)
    for contribution in group:
        squares += contribution.squared_norms().double()
    norms = squares.sqrt()
    # Compared, not divided first: NaN and infinity fall through to 0.
    return torch.where(norms <= clip_norm, 1.0, torch.nan_to_num(clip_norm / norms, nan=0.0)).float()


def _touched(found: list[Contribution], units: int, touching: int) -> dict[Tensor, SparseSum]:
    """Returns the counts of used rows of each table; units from number ``touching`` on add nothing."""
    tables = [one for one in found if isinstance(one, Lookups)]
    if not tables:
        return {}
    many = torch.stack([one.rows_read() for one in tables]).sum(0)  # (units,) rows of all tables
    weights = many.clamp(min=1).double().rsqrt().mul_(_SHORT).float()
    weights[touching:] = 0.0
    return {one.table: one.counts(weights) for one in tables}


def _full(values: Tensor) -> Tensor:
    """Returns what mixed precision made short as float32: its norms are then those of the numbers that are added."""
    return values.float() if values.dtype == torch.bfloat16 else values
