"""What cannot be trained with privacy is refused in one line with the layer's name and what to use instead."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.utils.prune
from opacus.layers import DPMultiheadAttention
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from privads.batch import Batch
from privads.training.clipping import UnitGradients, UnsupportedModel
from privads.training.engine import PrivateEngine
from tests.privads.training.helpers import logs, new_ledger, small_plan


class Raw(nn.Module):
    """A parameter of its own beside a layer."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.gate, self.inside = nn.Parameter(torch.ones(4)), inside

    def forward(self, x: Tensor) -> Tensor:
        return self.gate * self.inside(x)


class Listed(nn.Module):
    """Parameters in a list, used by a layer that has none of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.ones(4)])


class Counting(nn.Linear):
    """A layer with parameters and a buffer."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.register_buffer("calls", torch.zeros(1))


class OwnTable(nn.Embedding):
    pass


class OwnBag(nn.EmbeddingBag):
    pass


def shared() -> nn.Module:
    pair = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    pair[1].weight = pair[0].weight
    return pair


def quantized() -> nn.Module:
    return torch.ao.nn.qat.Linear(4, 4, qconfig=torch.ao.quantization.get_default_qat_qconfig())


def pruned() -> nn.Module:
    layer = nn.Linear(4, 4)
    torch.nn.utils.prune.l1_unstructured(layer, "weight", amount=0.5)
    return layer


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), "BatchNorm1d.*use nn.LayerNorm"),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), "BatchNorm2d.*use nn.LayerNorm"),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(4), "BatchNorm3d.*use nn.LayerNorm"),
    "BatchNorm without parameters": (
        lambda: nn.BatchNorm1d(4, affine=False, track_running_stats=False),
        "use nn.LayerNorm",
    ),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(4), "SyncBatchNorm.*use nn.LayerNorm"),
    "InstanceNorm with statistics": (
        lambda: nn.InstanceNorm1d(4, track_running_stats=True),
        "InstanceNorm1d.*set track_running_stats=False",
    ),
    "LSTM": (lambda: nn.LSTM(4, 4), r"LSTM.*use opacus.layers.DPLSTM$"),
    "GRU": (lambda: nn.GRU(4, 4), r"GRU.*use opacus.layers.DPGRU$"),
    "RNN": (lambda: nn.RNN(4, 4), r"RNN.*use opacus.layers.DPRNN$"),
    "LSTMCell": (lambda: nn.LSTMCell(4, 4), "use opacus.layers.dp_rnn.DPLSTMCell"),
    "GRUCell": (lambda: nn.GRUCell(4, 4), "use opacus.layers.dp_rnn.DPGRUCell"),
    "RNNCell": (lambda: nn.RNNCell(4, 4), "use opacus.layers.dp_rnn.DPRNNCell"),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2), "use opacus.layers.DPMultiheadAttention"),
    "Transformer": (
        lambda: nn.Transformer(4, 2, 1, 1, 4),
        r"'body.encoder.layers.0.self_attn' \(MultiheadAttention\).*use opacus.layers.DPMultiheadAttention",
    ),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 4),
        "self_attn.*use opacus.layers.DPMultiheadAttention",
    ),
    "TransformerDecoderLayer": (
        lambda: nn.TransformerDecoderLayer(4, 2, 4),
        "self_attn.*use opacus.layers.DPMultiheadAttention",
    ),
    "attention with rows first": (
        lambda: DPMultiheadAttention(4, 2, batch_first=True),
        "exchanges heads and positions.*use batch_first=False",
    ),
    "bag of maxima": (lambda: nn.EmbeddingBag(4, 4, mode="max"), "EmbeddingBag.*use mode='sum' or 'mean'"),
    "table scaled by frequency": (
        lambda: nn.Embedding(4, 4, scale_grad_by_freq=True),
        "Embedding.*set scale_grad_by_freq=False",
    ),
    "table of bounded norm": (lambda: nn.Embedding(4, 4, max_norm=1.0), "Embedding.*remove max_norm"),
    "bag of bounded norm": (lambda: nn.EmbeddingBag(4, 4, max_norm=1.0), "EmbeddingBag.*remove max_norm"),
    "subclass of a table": (lambda: OwnTable(4, 4), "OwnTable.*use Embedding itself"),
    "subclass of a bag": (lambda: OwnBag(4, 4), "OwnBag.*use EmbeddingBag itself"),
    "lazy layer": (lambda: nn.LazyLinear(4), "LazyLinear.*give its sizes"),
    "lazy convolution": (lambda: nn.LazyConv1d(4, 2), "LazyConv1d.*give its sizes"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "body.*weight or spectral norm.*remove"),
    "weight norm without bias": (
        lambda: parametrizations.weight_norm(nn.Linear(4, 4, bias=False)),
        "body.*weight or spectral norm.*remove",
    ),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), "body.*weight or spectral norm.*remove"),
    "spectral norm by hook": (lambda: spectral_norm(nn.Linear(4, 4)), "body.*weight or spectral norm.*remove"),
    "pruned": (pruned, "body.*pruning.*remove"),
    "quantized": (quantized, "body.*is compiled or quantized"),
    "compiled": (lambda: torch.compile(nn.Linear(4, 4)), "body.*is compiled or quantized"),
    "data parallel": (lambda: nn.DataParallel(nn.Linear(4, 4)), "DataParallel.*pass the plain module"),
    "list of parameters": (Listed, "ParameterList.*is never called"),
    "buffer beside parameters": (Counting, "Counting.*the buffer 'calls'.*keep buffers in a layer without"),
    "dropout beside parameters": (lambda: Raw(nn.Dropout(0.5)), "Raw.*holds a Dropout.*a layer of their own"),
    "table beside parameters": (lambda: Raw(nn.Embedding(4, 4)), "Raw.*holds a Embedding.*a layer of their own"),
    "half precision": (lambda: nn.Linear(4, 4).bfloat16(), "keep them in torch.float32.*torch.autocast"),
    "one parameter in two layers": (shared, "shares a parameter.*use the same layer in both places"),
}


class Around(nn.Module):
    """A model with ``body`` beside a layer that can be trained; refused before its forward pass is tried."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.first, self.body = nn.Linear(4, 4), body

    def forward(self, batch: Batch) -> Tensor:
        raise RuntimeError("not to be reached")


@pytest.mark.parametrize(("make", "why"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_is_refused_in_one_line_with_a_remedy(make: Callable[[], nn.Module], why: str) -> None:
    with pytest.raises(UnsupportedModel, match=why) as refused:
        UnitGradients(Around(make()))
    assert "\n" not in str(refused.value)
    assert "body" in str(refused.value)


FINE: dict[str, Callable[[], nn.Module]] = {
    "LayerNorm": lambda: nn.LayerNorm(4),
    "InstanceNorm without statistics": lambda: nn.InstanceNorm1d(4, affine=True),
    "Dropout": lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)),
    "dropout of nothing beside parameters": lambda: Raw(nn.Dropout(0.0)),
    "attention of one head, rows first": lambda: DPMultiheadAttention(4, 1, batch_first=True),
    "buffers in a layer of their own": lambda: nn.InstanceNorm1d(4, affine=False),
    "what is frozen": lambda: nn.LSTM(4, 4).requires_grad_(False),
    "a frozen subclass of a table": lambda: OwnTable(4, 4).requires_grad_(False),
    "a lazy layer with its sizes": lambda: shaped(nn.LazyLinear(4)),
}


def shaped(layer: nn.Module) -> nn.Module:
    layer(torch.zeros(1, 4))
    return layer


@pytest.mark.parametrize("make", FINE.values(), ids=FINE)
def test_what_can_be_trained_is_not_refused(make: Callable[[], nn.Module]) -> None:
    UnitGradients(Around(make())).cleanup()


def test_a_refused_model_is_left_as_it_was() -> None:
    model = Around(nn.LSTM(4, 4))
    attributes = [set(vars(module)) for module in model.modules()]
    with pytest.raises(UnsupportedModel):
        UnitGradients(model)
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert all(not vars(parameter) for parameter in model.parameters())
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["LSTM", "Transformer", "bag of maxima", "weight norm", "dropout beside parameters"])
def test_a_refusal_comes_before_anything_is_charged(tmp_path: Path, name: str) -> None:
    ledger = new_ledger(tmp_path)
    model = Around(REFUSED[name][0]())
    engine = PrivateEngine(small_plan(), ledger=ledger)
    with pytest.raises(UnsupportedModel, match="body"):
        engine.make_private(model, torch.optim.SGD(model.parameters(), lr=0.1), logs(tmp_path, public=False))
    assert not ledger.history("small")
