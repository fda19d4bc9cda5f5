"""Layers that cannot be trained with privacy, and what to use instead of each."""

from torch import nn
from torch.nn.utils import parametrize


class UnsupportedModel(ValueError):  # noqa: N818
    """A model whose units' gradients cannot be told apart; the message names the layer and what to do."""


INSTEAD: dict[type[nn.Module], str] = {
    nn.LSTM: "opacus.layers.DPLSTM",
    nn.GRU: "opacus.layers.DPGRU",
    nn.RNN: "opacus.layers.DPRNN",
    nn.LSTMCell: "opacus.layers.dp_rnn.DPLSTMCell",
    nn.GRUCell: "opacus.layers.dp_rnn.DPGRUCell",
    nn.RNNCell: "opacus.layers.dp_rnn.DPRNNCell",
    nn.MultiheadAttention: "opacus.layers.DPMultiheadAttention",
}
"""torch's own layers that compute in one fused call, where no hook sees the rows' gradients, and Opacus's for them."""


def refuse_layers(model: nn.Module) -> None:
    """Raises `UnsupportedModel` for the first layer that mixes rows, hides them, or is not what it will be."""
    for module in model.modules():
        why = _why_not(module)
        if why is not None:
            raise UnsupportedModel(f"{layer_name(model, module)} {why}")


def layer_name(model: nn.Module, module: nn.Module) -> str:
    """Returns the layer as an error names it."""
    names = [name for name, candidate in model.named_modules() if candidate is module]
    return f"layer {names[0]!r} ({type(module).__name__})" if names and names[0] else f"the {type(module).__name__}"


def _why_not(module: nn.Module) -> str | None:
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
        return "has a max_norm, which rewrites the rows that a batch looks up: remove it"
    if isinstance(module, nn.EmbeddingBag):
        if module.mode not in ("sum", "mean"):
            return f"has mode {module.mode!r}, whose gradient hides the rows it came from: use mode 'sum' or 'mean'"
        if module.include_last_offset:
            return "has include_last_offset: leave it off, and give one offset a row"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "mixes rows of different units: use nn.LayerNorm or nn.GroupNorm"
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
        return "keeps statistics of the rows it sees: give track_running_stats=False"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "has no weights yet: run one made-up batch through the model first"
    if parametrize.is_parametrized(module) or _has_old_norm(module):
        return "computes its weight from others (a parametrization): remove it, and train the weight itself"
    for kind, instead in INSTEAD.items():
        if type(module) is kind:
            return f"computes in one fused call, where rows cannot be told apart: use {instead}"
    return None


def _has_old_norm(module: nn.Module) -> bool:
    """Whether torch.nn.utils.weight_norm or spectral_norm, the older forms, are on the layer."""
    kinds = {type(hook).__name__ for hook in module._forward_pre_hooks.values()}
    return bool(kinds & {"WeightNorm", "SpectralNorm"})
