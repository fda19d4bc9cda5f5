"""Per-unit clipping in one backward pass.

Hooks keep each layer's input and the place where its output enters the graph. One backward pass then gives the
gradients at those outputs; from the two, exact norms of every unit's gradient and the clipped sums are formed, layer by
layer, without a per-row weight gradient for the layers that have a rule of their own (`privads.training.rules`):

    norm_u^2 = sum over layers ||sum over rows r of u: dloss_r/dW||^2
    sum_u min(1, C / norm_u) * (sum over rows r of u: dloss_r/dW)

Everything else goes through Opacus's grad samplers, which are read and never changed, or through functorch.

Source: book-keeping (Bu et al. 2023, arXiv 2210.00038), ghost norms (Li et al. 2022, arXiv 2110.05679) and, by group,
McMahan et al. 2018 (arXiv 1710.06963, section 3.3).
"""

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.layers import DPGRU, DPLSTM, DPRNN
from opacus.utils.module_utils import has_trainable_params
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from privads.training.contribution import Contribution, Owners, Rule
from privads.training.lookups import Lookups
from privads.training.refusals import UnsupportedModel, layer_name, refuse_layers, refuse_parameters, rows_second
from privads.training.rules import RULES, TABLE_RULES, Sampler, by_functorch, per_sample
from privads.training.tables import RunsOfBatch, SparseSum, positional, tables_of

__all__ = ["ClippedSums", "UnitGradients", "UnsupportedModel"]

_Inputs = tuple[Tensor | None, ...]

_RECURRENT = (DPRNN, DPLSTM, DPGRU)
"""Opacus's recurrent layers hold their cells' parameters under other names: the cells' own layers compute."""

_WIDE = {torch.bfloat16: torch.float32, torch.float32: torch.float32, torch.float64: torch.float64}
"""What a layer may give, and in what its norms and sums are computed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClippedSums:
    """What the units of a batch add up to, or those of a part of one: parts are added with ``+``.

    sums: per parameter, the sum over units of their clipped gradients; a table's is sparse, and a parameter without a
    contribution is left out.
    within: (units,) bool, whose norm was at most its clip norm (by group: both of them); all, where nothing is clipped.
    touched: per table, (n, 1) counts of used rows: the sum over units u of v_u, which is ``1 / sqrt(m)``, rounded down,
    at each of the m rows, of all tables together, that u reads, so that ``||v_u||_2 <= 1``. Whether a unit counts does
    not depend on its gradient. Reads of a padding_idx, by rows of padding, and of tables without a part in the loss do
    not count.
    apart: per parameter, the part of ``sums`` that the units have whose sums were asked for by themselves.
    """

    sums: Mapping[Tensor, Tensor | SparseSum]
    within: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    touched: Mapping[Tensor, SparseSum] = field(default_factory=dict)
    apart: Mapping[Tensor, Tensor | SparseSum] = field(default_factory=dict)

    def __add__(self, other: "ClippedSums") -> "ClippedSums":
        return ClippedSums(
            sums=_added(self.sums, other.sums),
            within=torch.cat([self.within, other.within]),
            touched=_added(self.touched, other.touched),
            apart=_added(self.apart, other.apart),
        )


def _added(one: Mapping[Tensor, Any], two: Mapping[Tensor, Any]) -> dict[Tensor, Any]:
    both = {key: one[key] + two[key] for key in one if key in two}
    return {**one, **two, **both}


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a layer: what went in (with the versions of the tensors), and where the output enters the graph."""

    module: nn.Module
    inputs: _Inputs
    versions: tuple[int, ...]
    edge: GradientEdge
    dtype: torch.dtype


class UnitGradients(GradSampleHooks):  # type: ignore[misc]
    """Attached to a model, gives sums over units of clipped gradients. The model itself is left as it is.

    Guarantees (each with a test of its own):
    - the norm of what one unit adds to all sums together is at most ``clip_norm``, in floating point;
    - the sums equal those of a loop over units, one backward pass each;
    - a unit whose gradient is not finite adds zero, and changes nothing else;
    - a layer that took no part in the loss adds zero, never the last batch's gradient;
    - what one unit adds to the counts of used rows has a length of at most 1, in floating point.

    The forward pass may run under `torch.autocast` in bfloat16: what the layers took and gave is made float32 before it
    is multiplied, and norms are those of the numbers that are added up.
    """

    def __init__(self, model: nn.Module) -> None:
        self._calls: list[_Call] = []
        self._samplers: dict[nn.Module, Sampler] = {}
        self.runs_of = RunsOfBatch()
        refuse_layers(model)
        layers = list(self.iterate_submodules(model))
        whole = [one for one in layers if not _has_rule(one) and _sampler(one) is by_functorch]
        refuse_parameters(model, layers, whole=whole)
        trained = [one for one in model.parameters() if one.requires_grad]
        tables = tables_of(model)
        self._mixed = 0 < len(tables) < len(trained)
        self._rows_second = set(rows_second(model))
        super().__init__(model, batch_first=True, loss_reduction="sum", strict=True)

    def add_hooks(self, **_: Any) -> None:
        """Attach one forward hook to every layer with trained parameters of its own."""
        self.autograd_grad_sample_hooks = self._module.autograd_grad_sample_hooks = []
        for module in self.iterate_submodules(self._module):
            if not _has_rule(module):
                self._samplers[module] = _sampler(module)
            self.autograd_grad_sample_hooks.append(module.register_forward_hook(self._capture, with_kwargs=True))
        self.enable_hooks()

    def iterate_submodules(self, module: nn.Module) -> Iterator[nn.Module]:
        """Yields the layers with trained parameters of their own; of those with a rule or handled whole, no part."""
        if not _has_rule(module):
            inside = super().iterate_submodules(module)
            yield from (one for one in inside if type(one) not in _RECURRENT)
        elif has_trainable_params(module):
            yield module

    def capture_activations_hook(self, module: nn.Module, forward_input: Any, output: Any) -> None:
        """Keep what a layer was called with."""
        if not (self.hooks_enabled and module.training and torch.is_grad_enabled()):
            return
        if not isinstance(output, Tensor) or not all(isinstance(one, Tensor | None) for one in forward_input):
            raise UnsupportedModel(
                f"{layer_name(self._module, module)} holds parameters of its own but does not map tensors to a tensor: "
                "move its parameters into a layer such as nn.Linear"
            )
        if not output.requires_grad:
            return
        inputs = tuple(None if one is None else one.detach() for one in forward_input)
        versions = tuple(0 if one is None else one._version for one in inputs)
        self._calls.append(_Call(module, inputs, versions, get_gradient_edge(output), output.dtype))

    def _capture(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if kwargs and inspect.signature(module.forward).bind(*args, **kwargs).kwargs:
            raise UnsupportedModel(
                f"{layer_name(self._module, module)} was called with {list(kwargs)} and without an argument before "
                "them: pass every argument up to the last, None where there is none"
            )
        self.capture_activations_hook(module, positional(module, args, kwargs), output)

    def forget(self) -> None:
        """Drop what was kept of earlier calls."""
        self._calls.clear()
        self.runs_of.forget()

    @property
    def precision(self) -> float:
        """The relative spacing of the coarsest numbers that the layers gave since `forget`: 2^-7 of bfloat16."""
        return max((torch.finfo(call.dtype).eps for call in self._calls), default=0.0)

    def clipped_sums(
        self,
        losses: Tensor,
        owners: Tensor,
        *,
        units: int,
        clip_norm: float,
        per_group: bool = False,
        touching: int | None = None,
        apart: Tensor | None = None,
    ) -> ClippedSums:
        """Returns the sums over units of their clipped gradients.

        losses: (rows,). owners: (rows,) the unit of each row, in 0 .. units - 1. clip_norm: the bound on a unit's whole
        contribution; with an infinite one nothing is clipped, and norms are not computed. per_group: tables and the
        rest are clipped each to ``clip_norm / sqrt(2)``; a model that has only one of the two, to ``clip_norm``.
        touching: asks for ``touched``; the first so many rows count, and later ones are padding: a unit of nobody.
        apart: (units,) bool, whose sums are given by themselves too.
        """
        real = units
        if touching is not None and touching < len(owners):
            owners = owners.clone()
            owners[touching:] = units  # whatever padding computes, it is clipped and counted by itself
            units += 1
            apart = None if apart is None else torch.cat([apart, apart.new_zeros(1)])
        # Autocast would round products: norms must be those of the numbers that are added up.
        with torch.autocast(losses.device.type, enabled=False):
            found = self._contributions(losses, Owners(owners, units))
            split = per_group and self._mixed
            groups = [[one for one in found if isinstance(one, Lookups) == which] for which in (True, False)]
            bound = clip_norm / math.sqrt(2) if split else clip_norm
            sums: dict[Tensor, Tensor | SparseSum] = {}
            some: dict[Tensor, Tensor | SparseSum] = {}
            within = torch.ones(units, dtype=torch.bool, device=losses.device)
            for group in groups if split else [found]:
                factors, below = _factors(group, units, bound, losses.device)
                within &= below
                for contribution in group:
                    sums.update(contribution.weighted_sums(factors))
                    if apart is not None and bool(apart.any()):
                        some.update(contribution.weighted_sums(torch.where(apart, factors, 0.0)))
            touched = {} if touching is None else _touched(found, real, units)
        return ClippedSums(sums=sums, within=within[:real], touched=touched, apart=some)

    def _contributions(self, losses: Tensor, owners: Owners) -> list[Contribution]:
        if not self._calls:
            raise RuntimeError(
                "no layer was called in training mode since the batch was drawn: call model.train() and compute the "
                "loss from model(batch)"
            )
        calls, self._calls = self._calls, []
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
            losses.sum(), [call.edge for call in calls], allow_unused=True
        )
        by_module: dict[nn.Module, list[tuple[_Inputs, Tensor]]] = {}
        for call, gradient in zip(calls, gradients, strict=True):
            if gradient is not None:
                by_module.setdefault(call.module, []).append(self._checked(call, gradient.detach(), len(owners.of)))
        self.disable_hooks()  # functorch calls layers again
        try:
            return [self._contribution(module, uses, owners) for module, uses in by_module.items()]
        finally:
            self.enable_hooks()

    def _checked(self, call: _Call, gradient: Tensor, rows: int) -> tuple[_Inputs, Tensor]:
        """Returns one use of a layer, in float32 or wider."""
        if any(one is not None and one._version != was for one, was in zip(call.inputs, call.versions, strict=True)):
            raise UnsupportedModel(
                f"the input of {layer_name(self._module, call.module)} was changed in place after it was used; make "
                "it a copy"
            )
        if gradient.dtype == torch.float16:
            raise UnsupportedModel(
                f"{layer_name(self._module, call.module)} gave float16, whose gradients need a loss scaling that "
                "clipping would undo: use torch.autocast(dtype=torch.bfloat16)"
            )
        inputs = call.inputs
        if call.module in self._rows_second:
            inputs = tuple(None if one is None else one.transpose(0, 1) for one in inputs)
            gradient = gradient.transpose(0, 1)
        if gradient.shape[:1] != (rows,) or gradient.dtype not in _WIDE:
            raise UnsupportedModel(
                f"{layer_name(self._module, call.module)} gave {tuple(gradient.shape)} of {gradient.dtype}: the first "
                f"dimension must be the {rows} rows, in bfloat16, float32 or float64"
            )
        wide = _WIDE[gradient.dtype]
        inputs = tuple(one.to(wide) if one is not None and one.is_floating_point() else one for one in inputs)
        return inputs, gradient.to(wide)

    def _contribution(self, module: nn.Module, uses: list[tuple[_Inputs, Tensor]], owners: Owners) -> Contribution:
        try:
            return self._rule_of(module)(module, uses, owners)
        except torch.OutOfMemoryError:
            raise
        except (NotImplementedError, RuntimeError) as error:
            why = str(error).splitlines()[0]
            raise UnsupportedModel(
                f"the gradients of {layer_name(self._module, module)} cannot be computed row by row: {why}"
            ) from error

    def _rule_of(self, module: nn.Module) -> Rule:
        if type(module) in TABLE_RULES:
            rule = TABLE_RULES[type(module)]
            return lambda module, uses, owners: rule(module, uses, owners, self.runs_of)
        return RULES.get(type(module)) or partial(per_sample, sampler=self._samplers[module])


def _has_rule(module: nn.Module) -> bool:
    return type(module) in RULES or type(module) in TABLE_RULES


def _factors(group: list[Contribution], units: int, clip_norm: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns (units,) what each unit's gradient in a group of layers is multiplied with, and whether it was within."""
    if math.isinf(clip_norm):
        return torch.ones(units, device=device), torch.ones(units, dtype=torch.bool, device=device)
    squares = torch.zeros(units, dtype=torch.float64, device=device)
    for contribution in group:
        squares += contribution.squared_norms()
    norms = squares.sqrt()
    within = norms <= clip_norm
    # Compared, not divided first: NaN and infinity fall through to 0.
    return torch.where(within, 1.0, torch.nan_to_num(clip_norm / norms, nan=0.0)).float(), within


def _sampler(module: nn.Module) -> Sampler:
    """Returns what gives each row's gradient of a layer without a rule: Opacus's sampler for it, or functorch."""
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return by_functorch  # Opacus's sampler of convolutions pads with zeros whatever the layer says
    sampler: Sampler = GradSampleHooks.GRAD_SAMPLERS.get(type(module), by_functorch)
    return sampler


def _touched(contributions: list[Contribution], real: int, units: int) -> dict[Tensor, SparseSum]:
    """Returns per table the sum over units of their normalized indicators; units from ``real`` on are padding."""
    tables = [one for one in contributions if isinstance(one, Lookups)]
    if not tables:
        return {}
    counts = torch.stack([one.rows_read() for one in tables]).sum(0)
    shares = counts.clamp(min=1).double().rsqrt().float()
    shares = torch.nextafter(shares, torch.zeros_like(shares))  # below the root, whichever way it was rounded
    shares[real:] = 0.0
    found = {}
    for table in tables:
        indicators = table.indicators(shares)
        if real < units:
            read = indicators.values[:, 0] > 0  # by more than padding
            indicators = SparseSum(indicators.ids[read], indicators.values[read], indicators.rows)
        found[table.table] = indicators
    return found
