"""Which rows of a model's tables all units of a log use: what a selection made once, before training, reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privads.batch import Batch
from privads.models.layers import FusedTable
from privads.training.clipping import UnsupportedModel
from privads.training.lookups import bag_lengths
from privads.training.sampling import Owned
from privads.training.tables import SparseSum, tables_of, watched

_READ_ROWS = 1 << 15
"""Most rows of the log that are read at a time, unless one unit has more."""

_ROUNDING = 2.0**-50
"""Granted to the float64 root and quotient in v_u, so that its norm is at most 1 in floating point too."""


class Taken(Protocol):
    """Rows that can be taken by number: all of a log's, or a choice of them."""

    def take(self, row_numbers: NDArray[np.int64]) -> Batch:
        """Returns these rows."""
        ...


def touched_by_all(
    model: nn.Module, rows: Taken, units: NDArray[np.int64], *, rows_per_unit: int, generator: np.random.Generator
) -> dict[Tensor, SparseSum]:
    """Returns, per table, (rows, 1) ``sum_u v_u`` over all units of a log: reads private rows, and adds no noise.

    The caller charges a Gaussian of L2 sensitivity 1 (over all tables together, add/remove) before, and gives the
    result to `select_once` alone. The model is evaluated on at most ``rows_per_unit`` rows of each unit, chosen at
    random, and hooks on its tables see the ids. units: (rows,) who owns each row, as numbers from 0. Holds 8 bytes for
    each row of the tables.
    """
    tables = tables_of(model)
    starts = dict(zip(tables, np.cumsum([0, *map(len, tables)]).tolist(), strict=False))
    total = sum(map(len, tables))
    counts = torch.zeros(total, dtype=torch.float64)
    device = next(model.parameters()).device
    owned = Owned(units)
    with _evaluating(model), watched(model) as calls, torch.no_grad():
        for some in _in_parts(owned.units, max(1, _READ_ROWS // rows_per_unit)):
            row_numbers, owners = owned.rows_of(some, rows_per_unit, generator)
            if len(row_numbers):
                model(rows.take(row_numbers).to(device))
            keys = [np.zeros(0, dtype=np.int64)]
            for module, inputs in calls:
                if not len(module.weight):  # type: ignore[arg-type]
                    continue
                readers, read = reads(module, inputs, len(row_numbers))
                keys.append(owners[readers] * total + starts[module.weight] + read)  # type: ignore[index]
            calls.clear()
            pairs = np.sort(np.concatenate(keys))  # of an owner and a row of any table
            pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # each once: np.unique takes sixty times as long
            counts.index_add_(0, torch.from_numpy(pairs % total), torch.from_numpy(shares(pairs // total)))
    return {weight: _nonzero(counts[start : start + len(weight)], weight) for weight, start in starts.items()}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _in_parts(total: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Yields 0 .. total - 1, ``size`` at a time."""
    for start in range(0, total, size):
        yield np.arange(start, min(start + size, total))


def shares(owners: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns (n,) what each row that is read adds to a count: 1 / sqrt(how many its owner reads)."""
    return (1 - _ROUNDING) / np.sqrt(np.bincount(owners))[owners]


def reads(module: nn.Module, inputs: tuple[Any, ...], batch_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (row of the batch, row of the table), each (m,), of every lookup that has a gradient."""
    ids = inputs[0]
    if isinstance(module, nn.Embedding):
        lengths = torch.full((len(ids),), ids[0].numel() if len(ids) else 0, device=ids.device)
    elif isinstance(module, FusedTable):
        lengths = inputs[1][:: module.fields].diff()
    else:
        lengths = bag_lengths(module, inputs)  # type: ignore[arg-type]
    if len(lengths) != batch_rows:
        raise UnsupportedModel(
            f"a {type(module).__name__} is called with {len(lengths)} rows for a batch of {batch_rows}: the first "
            "dimension of what a table reads must be the batch's rows"
        )
    ids, readers = ids.flatten().numpy(force=True), torch.repeat_interleave(lengths).numpy(force=True)
    real = ids != (-1 if getattr(module, "padding_idx", None) is None else module.padding_idx)
    return readers[real], ids[real]


def _nonzero(counts: Tensor, weight: Tensor) -> SparseSum:
    ids = torch.nonzero(counts).flatten()
    return SparseSum(ids.to(weight.device), counts[ids][:, None].to(weight.device), len(counts))
