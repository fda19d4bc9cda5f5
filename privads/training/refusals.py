"""Layers that cannot be trained with privacy, and what to use instead of each: told before anything is charged."""

from collections.abc import Iterator, Sequence

import torch
from opacus.layers.dp_multihead_attention import DPMultiheadAttention, SequenceBias
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from privads.training.tables import TABLES

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.jit.ScriptModule)
_ELSEWHERE = ("torch._dynamo", "torch.ao.nn", "torch.nn.quantized", "torch.nn.qat", "torch.nn.intrinsic")
"""Modules of torch whose classes are compiled or quantized."""


class UnsupportedModel(ValueError):  # noqa: N818
    """A model whose units' gradients cannot be told apart; the message names the layer and what to do."""


def refuse_layers(model: nn.Module) -> None:
    """Raises `UnsupportedModel` for the first layer that mixes rows, hides them, or is not what it will be."""
    for module in model.modules():
        why = _why_lazy(module) or _why_wrapped(module) or _why_mixing(module)
        if why is None and any(one.requires_grad for one in module.parameters()):
            why = _why_table(module) or _why_opaque(module)
        if why is not None:
            raise UnsupportedModel(f"{layer_name(model, module)} {why}")


def refuse_parameters(model: nn.Module, layers: Sequence[nn.Module], *, whole: Sequence[nn.Module]) -> None:
    """Raises `UnsupportedModel` for the first of the ``layers``, with parameters of their own, that cannot be trained.

    whole: those whose gradients are computed by running all that is in them on each row.
    """
    owner: dict[nn.Parameter, nn.Module] = {}
    for module in layers:
        why = _why_parameters(module)
        if why is not None:
            raise UnsupportedModel(f"{layer_name(model, module)} {why}")
        for parameter in module.parameters():
            if owner.setdefault(parameter, module) is not module:
                raise UnsupportedModel(
                    f"{layer_name(model, module)} shares a parameter with {layer_name(model, owner[parameter])}: "
                    "use the same layer in both places instead of two layers with one parameter"
                )
    for module in whole:
        for inside in module.modules():
            if isinstance(inside, TABLES) or (isinstance(inside, nn.modules.dropout._DropoutNd) and inside.p > 0):
                raise UnsupportedModel(
                    f"{layer_name(model, module)} has parameters of its own and holds a {type(inside).__name__}: move "
                    "its own parameters into a layer of their own"
                )


def rows_second(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the layers of Opacus that take and give (positions, rows, width)."""
    for module in model.modules():
        if isinstance(module, SequenceBias) and not module.batch_first:
            yield module
        if isinstance(module, DPMultiheadAttention) and not module.batch_first:
            yield from module.modules()


def layer_name(model: nn.Module, module: nn.Module) -> str:
    """Returns the name of a layer in ``model`` and its type, as error messages give them."""
    names = [name for name, candidate in model.named_modules() if candidate is module]
    return f"layer {names[0]!r} ({type(module).__name__})" if names and names[0] else f"the {type(module).__name__}"


def _why_lazy(module: nn.Module) -> str | None:
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "has no shape yet: give its sizes, or call the model on made-up rows first"
    return None


def _why_wrapped(module: nn.Module) -> str | None:
    if isinstance(module, _WRAPPERS):
        return "wraps the model: pass the plain module that is in it"
    if type(module).__module__.startswith(_ELSEWHERE):
        return "is compiled or quantized: train the plain module, and compile or quantize what was trained"
    return None


def _why_mixing(module: nn.Module) -> str | None:
    if isinstance(module, _BatchNorm):
        return "mixes rows of different units: use nn.LayerNorm"
    if isinstance(module, _InstanceNorm) and module.track_running_stats:
        return "keeps statistics of private rows without noise: set track_running_stats=False"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
        return "rewrites the rows that a batch looks up: remove max_norm"
    return None


def _why_table(module: nn.Module) -> str | None:
    if isinstance(module, TABLES) and type(module) not in TABLES:
        known = next(one for one in TABLES if isinstance(module, one))
        return f"is a subclass of {known.__name__}, whose gradient may differ: use {known.__name__} itself"
    if not isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return None
    if module.scale_grad_by_freq:
        return "divides by how often the batch reads a row: set scale_grad_by_freq=False"
    if isinstance(module, nn.EmbeddingBag) and module.mode == "max":
        return "has mode 'max', whose gradient is not a sum over lookups: use mode='sum' or 'mean'"
    return None


def _why_opaque(module: nn.Module) -> str | None:
    """Why the gradients of what torch computes in one piece cannot be told apart by row."""
    kind = type(module).__name__
    if isinstance(module, nn.MultiheadAttention):
        return (
            "computes all its products in one piece: use opacus.layers.DPMultiheadAttention on (positions, rows, width)"
        )
    if isinstance(module, nn.RNNBase):
        return f"computes all its steps in one piece: use opacus.layers.DP{kind}"
    if isinstance(module, nn.RNNCellBase):
        return f"computes all its products in one piece: use opacus.layers.dp_rnn.DP{kind}"
    if parametrize.is_parametrized(module) or _is_computed(module):
        return "computes its weight from other parameters (weight or spectral norm, pruning): remove that"
    if isinstance(module, DPMultiheadAttention) and module.batch_first and module.num_heads > 1:
        # Opacus 1.6.0 reads (rows * heads, positions, width of a head) as (rows, positions, width): not attention
        return "exchanges heads and positions under batch_first=True: use batch_first=False, and transpose"
    return None


def _why_parameters(module: nn.Module) -> str | None:
    if isinstance(module, nn.ParameterList | nn.ParameterDict):
        return "is never called: hold its parameters in the layer that uses them"
    buffers = [name for name, _ in module.named_buffers()]
    if buffers:
        return f"has parameters and the buffer {buffers[0]!r}: keep buffers in a layer without parameters"
    for parameter in module.parameters():
        if parameter.dtype not in (torch.float32, torch.float64):
            return (
                f"has parameters in {parameter.dtype}: keep them in torch.float32, and run the forward pass under "
                "torch.autocast(dtype=torch.bfloat16)"
            )
    return None


def _is_computed(module: nn.Module) -> bool:
    """Whether a hook writes ``weight`` or ``bias`` before every call, as torch.nn.utils.weight_norm's does."""
    found = (module.__dict__.get(name) for name in ("weight", "bias"))
    return any(isinstance(one, Tensor) for one in found)
