"""One record must not enter another's gradient: checked on made-up rows, before private ones are read."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models import losses
from privads.training.clipping import UnitGradients, UnsupportedModel

Loss = Callable[[Any, Batch], Tensor]

_UNITS, _ROWS_PER_UNIT = 6, 2
_TOLERANCE = 1e-4


def probe(model: nn.Module, loss: Loss | None, schema: Schema, gradients: UnitGradients) -> None:
    """Raises `UnsupportedModel` if changing or removing one unit changes another unit's loss or gradient.

    Also refused: a loss that is not (rows,), and a gradient that the layers' rules do not account for in full.
    Without a ``loss`` the model alone is checked, with `losses.per_row` where its output allows.
    """
    device = next(model.parameters()).device
    made_up = _made_up(schema, 2 * _UNITS * _ROWS_PER_UNIT).to(device)
    numbers = torch.arange(2 * _UNITS * _ROWS_PER_UNIT).view(2, _UNITS, _ROWS_PER_UNIT)
    with _repeatable(model):
        for unit in range(_UNITS):
            others = numbers[0, [one for one in range(_UNITS) if one != unit]].flatten()
            before = _of_others(model, loss, _pick(made_up, torch.cat([others, numbers[0, unit]])), len(others))
            for after_rows, what in (
                (torch.cat([others, numbers[1, unit]]), "another unit's rows change"),
                (others, "another unit is removed"),
            ):
                gradients.forget()
                after = _of_others(model, loss, _pick(made_up, after_rows), len(others))
                _compare(model, before, after, what)
        gradients.forget()
        _check_covered(model, loss, _pick(made_up, numbers[0].flatten()), gradients)
    gradients.forget()


def _compare(
    model: nn.Module, before: tuple[Tensor, list[Tensor]], after: tuple[Tensor, list[Tensor]], what: str
) -> None:
    if not torch.allclose(before[0], after[0], rtol=_TOLERANCE, atol=1e-6):
        raise UnsupportedModel(
            f"a row's loss changes when {what}: {type(model).__name__} or its loss mixes rows (batch statistics, "
            "in-batch negatives, or a mean over the batch); every row must have a loss of its own"
        )
    if not _close(before[1], after[1]):
        raise UnsupportedModel(f"a unit's gradient changes when {what}: {type(model).__name__} or its loss mixes rows")


def row_losses(outputs: Any, batch: Batch, loss: Loss | None) -> Tensor:
    """Returns the (rows,) losses; raises ValueError for any other shape."""
    if loss is not None:
        values = loss(outputs, batch)
    elif isinstance(outputs, Mapping):
        values = losses.per_row(outputs, batch)
    else:
        values = outputs.flatten(1).sum(1) if outputs.dim() > 1 else outputs
    return check_shape(values, batch.rows)


def check_shape(values: Tensor, rows: int) -> Tensor:
    """Returns ``values`` if they are one number per row; raises ValueError otherwise.

    A (rows, 1) loss times (rows,) clip factors would broadcast to (rows, rows) and switch clipping off.
    """
    if tuple(values.shape) != (rows,):
        raise ValueError(f"loss must have shape ({rows},), one number per row, got {tuple(values.shape)}")
    return values


def _of_others(model: nn.Module, loss: Loss | None, batch: Batch, others: int) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    values = row_losses(model(batch), batch, loss)[:others]
    parameters = [one for one in model.parameters() if one.requires_grad]
    slope = torch.autograd.grad(values.sum(), parameters, allow_unused=True)
    return values.detach(), [torch.zeros(1) if one is None else one for one in slope]


def _check_covered(model: nn.Module, loss: Loss | None, batch: Batch, gradients: UnitGradients) -> None:
    """The rules' sum without clipping must be autograd's gradient, parameter by parameter."""
    parameters = {one: name for name, one in model.named_parameters() if one.requires_grad}
    values = row_losses(model(batch), batch, loss)
    expected = torch.autograd.grad(values.sum(), list(parameters), allow_unused=True, retain_graph=True)
    owners = torch.arange(batch.rows, device=values.device) // _ROWS_PER_UNIT
    found = gradients.clipped_sums(values, owners, units=_UNITS, clip_norm=float("inf"))
    for parameter, gradient in zip(parameters, expected, strict=True):
        mine = found.get(parameter, torch.zeros_like(parameter))
        if not _close([torch.zeros_like(parameter) if gradient is None else gradient], [mine]):
            raise UnsupportedModel(
                f"the gradient of {parameters[parameter]!r} does not come from one call of its layer: "
                "use parameters only through the layer that holds them"
            )


def _close(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE * float(a.abs().max() + 1e-3))
        for a, b in zip(left, right, strict=True)
        if a.numel()
    )


def _made_up(schema: Schema, rows: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    starts = torch.tensor(schema.bucket_starts)
    buckets = starts.diff()
    ids = starts[:-1] + (torch.rand(rows, len(buckets), generator=generator) * buckets).long()

    def coin() -> Tensor:
        return torch.randint(0, 2, (rows,), generator=generator)

    return Batch(
        dense=torch.rand(rows, len(schema.numeric), generator=generator) * 2 - 1,
        ids=ids.flatten(),
        offsets=torch.arange(ids.numel() + 1),
        labels={task: coin().float() for task in schema.tasks},
        observed={task: torch.arange(rows) % 5 != coin() for task in schema.tasks},
        weights=torch.ones(rows),
    )


def _pick(batch: Batch, rows: Tensor) -> Batch:
    """Returns these rows of a batch whose every bag has length 1."""
    ids = batch.ids.view(batch.rows, -1)[rows]
    return Batch(
        dense=batch.dense[rows],
        ids=ids.flatten(),
        offsets=torch.arange(ids.numel() + 1, device=ids.device),
        labels={task: label[rows] for task, label in batch.labels.items()},
        observed={task: known[rows] for task, known in batch.observed.items()},
        weights=batch.weights[rows],
    )


@contextlib.contextmanager
def _repeatable(model: nn.Module) -> Iterator[None]:
    """Dropout off and torch's own randomness put back afterwards: differences then come from the rows alone."""
    dropouts = [one for one in model.modules() if isinstance(one, nn.modules.dropout._DropoutNd) and one.training]
    with torch.random.fork_rng():
        for module in dropouts:
            module.eval()
        try:
            yield
        finally:
            for module in dropouts:
                module.train()
