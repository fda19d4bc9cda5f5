"""One record must not enter another's gradient: what mixes rows is refused by name, before private rows are read."""

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from opacus.layers import DPGRU, DPLSTM, DPMultiheadAttention
from torch import Tensor, nn

from privads.batch import Batch
from privads.models import DCN, Logistic, losses
from privads.training.clipping import UnitGradients, UnsupportedModel
from privads.training.probe import probe
from tests.privads.training.helpers import schema

SCHEMA = schema()


def probed(model: nn.Module, loss: Callable[[Mapping[str, Tensor], Batch], Tensor] | None = losses.per_row) -> None:
    model.train()
    gradients = UnitGradients(model)
    try:
        probe(model, loss, SCHEMA, gradients)
    finally:
        gradients.cleanup()


class Small(nn.Module):
    """A linear model on the dense column, with a place to mix rows."""

    def __init__(self, mix: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.layer, self.mix = nn.Linear(1, 1), mix

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"click": self.mix(self.layer(batch.dense).squeeze(1))}


@pytest.mark.parametrize("make", [Logistic, DCN])
def test_the_librarys_models_pass(make: Callable[..., nn.Module]) -> None:
    probed(make(SCHEMA))


def test_dropout_passes() -> None:
    class Dropped(Small):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, batch: Batch) -> dict[str, Tensor]:
            return {"click": self.dropout(self.layer(batch.dense)).squeeze(1)}

    model = Dropped()
    probed(model)
    assert model.dropout.training


@pytest.mark.parametrize(
    "mix",
    [
        pytest.param(lambda x: x - x.mean(), id="batch statistics"),
        pytest.param(lambda x: x - x.detach().mean(), id="detached batch statistics"),
        pytest.param(lambda x: x / len(x), id="divided by the batch's size"),
        pytest.param(lambda x: torch.log_softmax(x, 0), id="in-batch negatives"),
        pytest.param(lambda x: x.cumsum(0).flip(0), id="a row sees others"),
        pytest.param(lambda x: x * (x.max() > 0).float() + x.max() * 1e-2, id="batch maximum"),
    ],
)
def test_a_model_that_mixes_rows_is_refused_by_name(mix: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedModel, match="Small"):
        probed(Small(mix))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda loss: loss / len(loss), id="a mean over the batch, row by row"),
        pytest.param(lambda loss: loss - loss.mean(), id="a baseline from the batch"),
        pytest.param(lambda loss: loss * loss.detach() / loss.detach().max(), id="weights from the batch"),
    ],
)
def test_a_loss_that_mixes_rows_is_refused(spoil: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedModel, match="its loss mixes rows"):
        probed(Small(), lambda outputs, batch: spoil(losses.per_row(outputs, batch)))


def test_a_loss_divided_by_the_observed_labels_is_refused() -> None:
    def per_observed(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return losses.per_row(outputs, batch) / batch.observed["click"].sum()

    with pytest.raises(UnsupportedModel, match="mixes rows"):
        probed(Small(), per_observed)


def test_a_mean_loss_is_refused_for_its_shape() -> None:
    with pytest.raises(ValueError, match="one number per row"):
        probed(
            Small(), lambda outputs, batch: F.binary_cross_entropy_with_logits(outputs["click"], batch.labels["click"])
        )


def test_a_parameter_used_behind_its_layers_back_is_refused_by_name() -> None:
    class Behind(Small):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            return {"click": (self.layer(batch.dense) + batch.dense @ self.layer.weight.T).squeeze(1)}

    with pytest.raises(UnsupportedModel, match=r"layer\.weight"):
        probed(Behind())


def test_a_parameter_outside_any_layer_is_refused() -> None:
    class Bare(Small):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(1))

        def forward(self, batch: Batch) -> dict[str, Tensor]:
            return {"click": self.layer(batch.dense).squeeze(1) + self.bias}

    with pytest.raises((UnsupportedModel, ValueError), match=r"Bare|parameters of its own"):
        probed(Bare())


def test_the_probe_leaves_torchs_randomness_and_the_weights_alone() -> None:
    model = DCN(SCHEMA)
    before, state = [one.clone() for one in model.parameters()], torch.random.get_rng_state()
    probed(model)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# Found by a reviewer: rows credited to the wrong unit, and what forward passes write


class SequenceFirst(nn.Module):
    """A layer that is given (positions, rows, width): its first dimension is not the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(1, 4), nn.Linear(4, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        sequence = batch.dense[:, None, :].expand(-1, 3, -1).transpose(0, 1)
        return {"click": self.out(torch.tanh(self.layer(sequence)).mean(0)).squeeze(1)}


class Sorted(Small):
    """Rows go through the layer in another order and come back in their own."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        order = batch.dense[:, 0].argsort()
        return {"click": self.layer(batch.dense[order]).squeeze(1)[order.argsort()]}


class NormalizedBackward(Small):
    """The forward pass is row by row; the backward pass divides by the norm of all rows' gradients."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        out = self.layer(batch.dense)
        out.register_hook(lambda gradient: gradient / gradient.norm())
        return {"click": out.squeeze(1)}


@pytest.mark.parametrize("make", [SequenceFirst, Sorted, NormalizedBackward])
def test_rows_credited_to_another_unit_are_refused(make: type[nn.Module]) -> None:
    with pytest.raises(UnsupportedModel, match=r"SequenceFirst|Sorted|NormalizedBackward|first dimension"):
        probed(make())


class RunningMean(Small):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.mean.lerp_(batch.dense.mean(0), 0.1)
        return super().forward(batch)


class WritesWeights(Small):
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            self.layer.bias.add_(batch.dense.mean())
        return super().forward(batch)


@pytest.mark.parametrize(("make", "name"), [(RunningMean, "mean"), (WritesWeights, "WritesWeights")])
def test_a_forward_pass_that_keeps_what_it_saw_is_refused(make: type[nn.Module], name: str) -> None:
    model = make()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises((UnsupportedModel, ValueError), match=f"{name}|buffers"):
        probed(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_embedding_that_rewrites_what_it_looks_up_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="max_norm"):
        UnitGradients(nn.Embedding(5, 2, max_norm=1.0))


def test_weights_that_start_at_zero_hide_nothing() -> None:
    class Hidden(Small):
        def __init__(self) -> None:
            super().__init__()
            self.mixing = nn.Linear(1, 1, bias=False)
            nn.init.zeros_(self.mixing.weight)

        def forward(self, batch: Batch) -> dict[str, Tensor]:
            mixed = self.mixing(batch.dense).squeeze(1)
            return {"click": super().forward(batch)["click"] + mixed.mean()}

    with pytest.raises(UnsupportedModel, match="Hidden"):
        probed(Hidden())


# Mixed precision, and layers that Opacus or functorch take care of


class Deep(nn.Module):
    """Layers with rules of their own, of Opacus's and of nobody's; under its own autocast if told so."""

    def __init__(self, *, autocast: bool = False, mix: bool = False) -> None:
        super().__init__()
        self.autocast, self.mix = autocast, mix
        self.table, self.norm, self.bend = nn.Embedding(24, 4), nn.LayerNorm(9), nn.PReLU(9)
        self.hidden, self.out = nn.Linear(9, 9), nn.Linear(9, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast or torch.is_autocast_enabled("cpu")):
            x = torch.cat([self.table(batch.ids.view(batch.rows, 2)).flatten(1), batch.dense], 1)
            x = self.bend(self.norm(self.hidden(x)))
            x = x + x.mean(0) if self.mix else x
            return {"click": self.out(x).squeeze(1).float()}


def test_a_model_passes_under_the_callers_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        probed(Deep())
        assert torch.is_autocast_enabled("cpu")


def test_a_model_with_an_autocast_of_its_own_passes() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        probed(Deep(autocast=True))


@pytest.mark.parametrize("own", [True, False])
def test_rows_that_mix_are_refused_under_autocast_too(own: bool) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(UnsupportedModel, match="Deep"):
        probed(Deep(autocast=own, mix=True))


class Sequences(nn.Module):
    """A recurrent layer and attention over three positions made from a row."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.out = nn.Linear(1, 4), layer, nn.Linear(4, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        steps = batch.dense[:, None, :] * torch.tensor([1.0, 2.0, 3.0])[:, None]
        x = torch.tanh(self.first(steps))
        if isinstance(self.layer, DPMultiheadAttention):
            x = x.transpose(0, 1)
            x = self.layer(x, x, x)[0].transpose(0, 1)
        else:
            x = self.layer(x)[0]
        return {"click": self.out(x).sum((1, 2))}


@pytest.mark.parametrize(
    "make",
    [lambda: DPLSTM(4, 4, batch_first=True), lambda: DPGRU(4, 4, batch_first=True), lambda: DPMultiheadAttention(4, 2)],
)
def test_opacus_layers_pass(make: Callable[[], nn.Module]) -> None:
    probed(Sequences(make()))


def test_a_recurrent_layer_that_takes_rows_for_steps_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="Sequences|first dimension"):
        probed(Sequences(DPLSTM(4, 4)))


class Dropping(Small):
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"click": F.dropout(self.layer(batch.dense), 0.5).squeeze(1)}


def test_random_numbers_outside_dropout_layers_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match=r"Dropping.*draws random numbers outside nn\.Dropout"):
        probed(Dropping())


class Branching(Small):
    """A layer that nobody wrote a sampler for, whose forward pass looks at the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Bent()


class Bent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.slope if float(x.sum()) < 1e9 else x


def test_a_layer_that_cannot_be_run_row_by_row_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match=r"layer 'layer' \(Bent\) cannot be computed row by row"):
        probed(Branching())


def test_a_bags_weights_behind_an_argument_left_out_are_refused() -> None:
    class Weighed(Small):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(24, 1, mode="sum")

        def forward(self, batch: Batch) -> dict[str, Tensor]:
            ids = batch.ids.view(batch.rows, 2)
            return {"click": self.bag(ids, per_sample_weights=torch.ones(batch.rows, 2)).squeeze(1)}

    with pytest.raises(UnsupportedModel, match=r"layer 'bag' \(EmbeddingBag\).*None where there is none"):
        probed(Weighed())
