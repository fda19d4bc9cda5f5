"""Per-unit clipping in one backward pass.

Hooks keep each layer's input and the place where its output enters the graph. One backward pass then gives the
gradients at those outputs; from the two, exact norms of every unit's gradient and the clipped sums are formed, layer by
layer, without a per-row weight gradient for the layers that have a rule of their own (`privads.training.rules`):

    norm_u^2 = sum over layers ||sum over rows r of u: dloss_r/dW||^2
    sum_u min(1, C / norm_u) * (sum over rows r of u: dloss_r/dW)

Everything else goes through Opacus's grad samplers, which are read and never changed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient, prepare_layer
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from privads.training.rules import RULES, Contribution, per_sample
from privads.training.tables import SparseSum, positional


class UnsupportedModel(ValueError):  # noqa: N818
    """A model whose units' gradients cannot be told apart; the message names the layer and what to do."""


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
    - a layer that took no part in the loss adds zero, never the last batch's gradient.
    """

    def __init__(self, model: nn.Module) -> None:
        self._calls: list[_Call] = []
        self._samplers: dict[nn.Module, Any] = {}
        _refuse_cross_row_layers(model)
        try:
            super().__init__(model, batch_first=True, loss_reduction="sum", strict=True)
        except NotImplementedError as error:
            raise UnsupportedModel(f"a layer cannot be trained with privacy: {error}") from None
        self._refuse_uncovered(model)

    def add_hooks(self, **_: Any) -> None:
        """Attach one forward hook to every layer with parameters of its own."""
        self.autograd_grad_sample_hooks = self._module.autograd_grad_sample_hooks = []
        for module in self.iterate_submodules(self._module):
            if type(module) not in RULES:
                sampler = self.GRAD_SAMPLERS.get(type(module))
                if sampler is None:
                    prepare_layer(module, batch_first=True)
                    sampler = ft_compute_per_sample_gradient
                self._samplers[module] = sampler
            self.autograd_grad_sample_hooks.append(module.register_forward_hook(self._capture, with_kwargs=True))
        self.enable_hooks()

    def iterate_submodules(self, module: nn.Module) -> Iterator[nn.Module]:
        """Yields the layers with parameters of their own; those with a rule, or handled whole, are not entered."""
        if type(module) in RULES:
            yield module
            return
        yield from super().iterate_submodules(module)

    def capture_activations_hook(self, module: nn.Module, forward_input: Any, output: Any) -> None:
        """Keep what a layer was called with."""
        if not (self.hooks_enabled and module.training and torch.is_grad_enabled()):
            return
        if not isinstance(output, Tensor) or not all(isinstance(one, Tensor) for one in forward_input):
            raise UnsupportedModel(
                f"{_name(self._module, module)} holds parameters of its own but does not map tensors to a tensor: "
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

    def clipped_sums(
        self, losses: Tensor, owners: Tensor, *, units: int, clip_norm: float
    ) -> dict[Tensor, Tensor | SparseSum]:
        """Returns, per parameter, the sum over units of their clipped gradients.

        losses: (rows,). owners: (rows,) the unit of each row, in 0 .. units - 1. A parameter without a contribution is
        not in the result; a table's sum is sparse. With an infinite ``clip_norm`` nothing is clipped, and norms are not
        computed.
        """
        with torch.autocast(losses.device.type, enabled=False):  # norms must be those of the numbers that are added up
            return self._clipped_sums(self._contributions(losses, owners, units), losses, units, clip_norm)

    def _clipped_sums(
        self, contributions: list[Contribution], losses: Tensor, units: int, clip_norm: float
    ) -> dict[Tensor, Tensor | SparseSum]:
        if torch.isinf(torch.tensor(clip_norm)):
            factors = torch.ones(units, device=losses.device)
        else:
            squares = torch.zeros(units, dtype=torch.float64, device=losses.device)
            for contribution in contributions:
                squares += contribution.squared_norms().double()
            norms = squares.sqrt()
            # Compared, not divided first: NaN and infinity fall through to 0.
            factors = torch.where(norms <= clip_norm, 1.0, torch.nan_to_num(clip_norm / norms, nan=0.0)).float()
        sums: dict[Tensor, Tensor | SparseSum] = {}
        for contribution in contributions:
            for parameter, value in contribution.weighted_sums(factors):
                sums[parameter] = sums[parameter] + value if parameter in sums else value  # type: ignore[operator]
        return sums

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
                name = _name(self._module, call.module)
                raise UnsupportedModel(f"the input of {name} was changed in place after it was used; make it a copy")
            if gradient.shape[0] != len(owners) or gradient.dtype not in (torch.float32, torch.float64):
                raise UnsupportedModel(
                    f"{_name(self._module, call.module)} gave {tuple(gradient.shape)} of {gradient.dtype}: the first "
                    f"dimension must be the {len(owners)} rows, in float32 or float64"
                )
            by_module.setdefault(call.module, []).append((call.inputs, gradient.detach()))
        found = []
        for module, uses in by_module.items():
            rule = RULES.get(type(module)) or partial(per_sample, sampler=self._samplers[module])
            found.append(rule(module, uses, owners, units))
        return found

    def _refuse_uncovered(self, model: nn.Module) -> None:
        owner: dict[nn.Parameter, nn.Module] = {}
        for module in self.iterate_submodules(model):
            for parameter in module.parameters():
                if owner.setdefault(parameter, module) is not module:
                    raise UnsupportedModel(
                        f"{_name(model, module)} shares a parameter with {_name(model, owner[parameter])}: "
                        "use the same layer in both places instead of two layers with one parameter"
                    )


def _refuse_cross_row_layers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise UnsupportedModel(
                f"{name or 'the model'}: max_norm rewrites the rows that a batch looks up; remove it"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UnsupportedModel(
                f"{name or 'the model'} ({type(module).__name__}) mixes rows of different units: use nn.LayerNorm"
            )


def _name(model: nn.Module, module: nn.Module) -> str:
    names = [name for name, candidate in model.named_modules() if candidate is module]
    return f"layer {names[0]!r} ({type(module).__name__})" if names and names[0] else f"the {type(module).__name__}"
