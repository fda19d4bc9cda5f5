"""One record must not enter another's gradient: checked on made-up rows, before private ones are read."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from privads.batch import Batch, taken
from privads.logs.schema import Schema
from privads.models import losses
from privads.training.clipping import UnitGradients, UnsupportedModel
from privads.training.tables import SparseSum, tables_of, watched

Loss = Callable[[Any, Batch], Tensor]

Slope = Tensor | SparseSum

_OWNERS = (0, 1, 1, 2, 2, 2, 3, 3, 4, 5, 5, 5)
"""Who owns each made-up row: units of one to three rows."""

_TOLERANCE = 1e-3
"""Well above what the granted rounding of norms moves a clipped sum by, far below what a row of another unit does."""

_ROUNDINGS = 8
"""How many roundings of what the layers gave may add up; of bfloat16 they come to 6 %."""

_JITTER = 0.3
"""Weights that start at 0 would hide what flows through them: the probe moves all weights, and puts them back."""


def probe(model: nn.Module, loss: Loss | None, schema: Schema, gradients: UnitGradients) -> None:
    """Raises `UnsupportedModel` unless the clipped sums are those of a loop over units, each seen alone.

    On made-up rows, every unit's losses and gradient are computed by plain autograd in a forward pass of its own,
    clipped one by one and added up. The losses of a common pass, and `UnitGradients.clipped_sums`, must be the same. So
    rows that mix, rows that move to another place, and gradients that bypass their layers are all refused, and so is a
    forward pass that changes weights or buffers: what it writes would be computed from rows without noise.
    Without a ``loss`` the model alone is checked, with `losses.for_schema` where its output allows. Of a table only the
    rows that the made-up rows look up are moved, copied and compared: it may be most of the memory.
    """
    default = losses.for_schema(schema)
    device = next(model.parameters()).device
    owners = torch.tensor(_OWNERS, device=device)
    batch = made_up(schema, len(_OWNERS)).to(device)
    exact = torch.autocast(device.type, enabled=False)  # the caller's autocast would round what is compared
    with exact, repeatable(model), _sparse_tables(model), _jittered(model, batch):
        alone = [_of_one_unit(model, loss, default, taken(batch, rows)) for rows in _rows_of(owners)]
        norms = torch.stack([_norm(slope) for _, slope in alone])
        clip_norm = float(norms.median()) / 2 or 1.0
        expected = _clipped_sum([slope for _, slope in alone], norms, clip_norm)
        gradients.forget()
        values = row_losses(model(batch), batch, loss, default=default)
        tolerance = max(_TOLERANCE, _ROUNDINGS * gradients.precision)  # a model may have an autocast of its own
        if not _close(torch.cat([one for one, _ in alone]), values.detach(), tolerance):
            raise UnsupportedModel(
                f"a row's loss depends on rows of other units: {type(model).__name__} or its loss mixes rows (batch "
                "statistics, in-batch negatives, or a mean over the batch) or draws random numbers outside nn.Dropout; "
                "every row must have a loss of its own"
            )
        found = gradients.clipped_sums(values, owners, units=len(alone), clip_norm=clip_norm)
        for (name, parameter), sums in zip(_trained(model), expected, strict=True):
            if not _same_sums(sums, found.sums.get(parameter, _zero(parameter, sums)), tolerance):
                raise UnsupportedModel(
                    f"the gradient of {name!r} in {type(model).__name__} cannot be told apart by unit: the first "
                    "dimension of what each layer takes and gives must be the batch's rows in their order, rows must "
                    "not mix, and weights must be used through their own layer"
                )
    gradients.forget()


def _rows_of(owners: Tensor) -> list[Tensor]:
    return [torch.nonzero(owners == unit).flatten() for unit in range(int(owners.max()) + 1)]


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, one) for name, one in model.named_parameters() if one.requires_grad]


def _of_one_unit(model: nn.Module, loss: Loss | None, default: Loss, batch: Batch) -> tuple[Tensor, list[Slope]]:
    values = row_losses(model(batch), batch, loss, default=default)
    parameters = [one for _, one in _trained(model)]
    slope: tuple[Tensor | None, ...] = torch.autograd.grad(values.sum(), parameters, allow_unused=True)
    tables = tables_of(model)
    return values.detach(), [_slope(p, g, sparse=p in tables) for p, g in zip(parameters, slope, strict=True)]


def _slope(parameter: Tensor, gradient: Tensor | None, *, sparse: bool) -> Slope:
    if gradient is None:
        if not sparse:
            return torch.zeros_like(parameter)
        return SparseSum.nothing(parameter, parameter.shape[1])
    if not gradient.is_sparse:
        return gradient
    gradient = gradient.coalesce()
    return SparseSum(gradient.indices()[0], gradient.values(), len(parameter))


def _values(slope: Slope) -> Tensor:
    return slope.values if isinstance(slope, SparseSum) else slope


def _zero(parameter: Tensor, like: Slope) -> Slope:
    return _slope(parameter, None, sparse=isinstance(like, SparseSum))


def _plus(left: Slope, right: Slope, *, factor: float) -> Slope:
    """Returns ``left + factor right``."""
    if isinstance(left, SparseSum) and isinstance(right, SparseSum):
        return left + SparseSum(right.ids, factor * right.values, right.rows)
    dense_left, dense_right = (one.dense() if isinstance(one, SparseSum) else one for one in (left, right))
    return dense_left + factor * dense_right


def _norm(slope: list[Slope]) -> Tensor:
    return torch.stack([_values(one).double().square().sum() for one in slope]).sum().sqrt()


def _clipped_sum(slopes: list[list[Slope]], norms: Tensor, clip_norm: float) -> list[Slope]:
    total = [_plus(one, one, factor=-1.0) for one in slopes[0]]
    for slope, norm in zip(slopes, norms, strict=True):
        factor = min(1.0, clip_norm / max(float(norm), 1e-30))
        total = [_plus(sums, one, factor=factor) for sums, one in zip(total, slope, strict=True)]
    return total


def _same_sums(left: Slope, right: Slope, tolerance: float) -> bool:
    """Whether the difference is small against the larger: `_close` without a dense table."""
    difference, size = (_values(one) for one in (_plus(left, right, factor=-1.0), left))
    if difference.numel() == 0:
        return True
    ceiling = float(torch.nan_to_num(size).abs().max()) + 1e-6 if size.numel() else 1e-6
    return bool((difference.abs() <= tolerance * 2 * ceiling).all())  # NaN is close to nothing


def _close(left: Tensor, right: Tensor, tolerance: float) -> bool:
    if left.numel() == 0:
        return True
    size = torch.nan_to_num(left).abs().max() + 1e-6
    return torch.allclose(left, right, rtol=tolerance, atol=tolerance * float(size))  # NaN is close to nothing


def row_losses(outputs: Any, batch: Batch, loss: Loss | None, *, default: Loss) -> Tensor:
    """Returns the (rows,) losses, by ``default`` where there is no ``loss``; raises ValueError for any other shape."""
    if loss is not None:
        values = loss(outputs, batch)
    elif isinstance(outputs, Mapping):
        values = default(outputs, batch)
    else:
        values = outputs.flatten(1).sum(1) if outputs.dim() > 1 else outputs
    return check_shape(values, batch.rows)


def check_shape(values: Tensor, rows: int) -> Tensor:
    """Returns ``values`` if they are one number per row; raises ValueError otherwise.

    A (rows, 1) loss times (rows,) clip factors would broadcast to (rows, rows) and switch clipping off.
    """
    if tuple(values.shape) != (rows,):
        found = f"{values.dim()} dimensions" if values.dim() != 1 else "another number"  # a batch's size is private
        raise ValueError(f"loss must have shape (rows,), one number per row of the batch, got {found}")
    return values


def made_up(schema: Schema, rows: int) -> Batch:
    """Returns ``rows`` rows of random numbers, the same ones each time, whose every bag has length 1."""
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
        hours={
            task: label.within_hours * torch.rand(rows, 2, generator=generator).cumprod(1).flip(1)
            for task, label in schema.waiting.items()
        },
    )


@contextlib.contextmanager
def repeatable(model: nn.Module) -> Iterator[None]:
    """Dropout off and torch's own randomness put back afterwards: differences then come from the rows alone."""
    dropouts = [one for one in model.modules() if isinstance(one, nn.modules.dropout._DropoutNd) and one.training]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in dropouts:
            module.eval()
        try:
            yield
        finally:
            for module in dropouts:
                module.train()


@contextlib.contextmanager
def _sparse_tables(model: nn.Module) -> Iterator[None]:
    """Lets autograd's gradients of tables be sparse."""
    dense = [one for ones in tables_of(model).values() for one in ones if not one.sparse]
    for module in dense:
        module.sparse = True  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in dense:
            module.sparse = False  # type: ignore[assignment]


@contextlib.contextmanager
def _jittered(model: nn.Module, batch: Batch) -> Iterator[None]:
    """Moves the trained weights, puts everything back, and refuses a forward pass that wrote to any of it."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tables = tables_of(model)
    before = {name: one.detach().clone() for name, one in state.items() if one not in tables}
    versions = {name: one._version for name, one in state.items()}
    looked_up = _rows_read(model, batch)
    written = [name for name, one in state.items() if one._version != versions[name]]
    rows: dict[str, Any] = {name: looked_up.get(one, ...) for name, one in state.items()}
    before |= {name: one.detach()[rows[name]].clone() for name, one in state.items() if one in tables}
    with torch.no_grad():
        for name, parameter in _trained(model):
            parameter[rows[name]] += torch.randn_like(before[name]) * _JITTER
    versions = {name: one._version for name, one in state.items()}
    moved = {name: one.detach()[rows[name]].clone() for name, one in state.items()}
    try:
        yield
        written += [
            name
            for name, one in state.items()
            if one._version != versions[name] or not torch.equal(one[rows[name]], moved[name])
        ]
        if written:
            raise UnsupportedModel(
                f"the forward pass of {type(model).__name__} writes to {written[0]!r}: what it keeps would be computed "
                "from private rows without noise"
            )
    finally:
        with torch.no_grad():
            for name, one in state.items():
                one[rows[name]] = before[name]


def _rows_read(model: nn.Module, batch: Batch) -> dict[Tensor, Tensor]:
    """Returns the rows of each trained table that ``model(batch)`` looks up."""
    with watched(model) as calls:
        model(batch)
    found: dict[Tensor, Tensor] = {
        weight: torch.zeros(0, dtype=torch.int64, device=weight.device) for weight in tables_of(model)
    }
    for module, (ids, *_) in calls:
        weight: nn.Parameter = module.weight  # type: ignore[assignment]
        found[weight] = torch.unique(torch.cat([found[weight], ids.flatten()]))
    return found
