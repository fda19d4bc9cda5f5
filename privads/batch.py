"""`Rows` and `Batch`: what travels between logs, models and trainers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from privads.logs.schema import Schema


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A set of rows as a model reads them.

    dense: (rows, numeric) float in [-1, 1]. ids: (total,) rows of the fused table. offsets: (rows * categorical + 1,)
    where the ids of bag (row, field) begin, so a one-hot field is a bag of length 1. labels: per task (rows,), in
    {0, 1} or the number itself. observed: per task (rows,) bool, False where the label is not known yet. weights:
    (rows,). hours: per task that waits (rows, 2), from the impression until the event, or until now where there was
    none yet, and until now; both end with the label's window.
    """

    dense: Tensor
    ids: Tensor
    offsets: Tensor
    labels: Mapping[str, Tensor]
    observed: Mapping[str, Tensor]
    weights: Tensor
    hours: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.weights)

    def to(self, device: torch.device | str) -> "Batch":
        """Returns the batch on ``device``."""

        return Batch(
            dense=self.dense.to(device),
            ids=self.ids.to(device),
            offsets=self.offsets.to(device),
            labels={task: label.to(device) for task, label in self.labels.items()},
            observed={task: known.to(device) for task, known in self.observed.items()},
            weights=self.weights.to(device),
            hours={task: waited.to(device) for task, waited in self.hours.items()},
        )


class Rows(Protocol):
    """Rows with owners. `Logs` is one; a company's own store can be another.

    Reading `units` or calling `take` may read private rows; `schema` and `check` must not.
    """

    @property
    def schema(self) -> "Schema":
        """The public facts."""
        ...

    def check(self) -> None:
        """Raise ValueError where the public facts do not hold (a missing file or column); reads no row."""
        ...

    @property
    def units(self) -> NDArray[np.int64]:
        """(rows,) who owns each row, as numbers from 0. Where they rise, a unit's rows are gathered from one place."""
        ...

    def take(self, row_numbers: NDArray[np.int64]) -> Batch:
        """Returns these rows, in this order."""
        ...

    def reference(self, task: str) -> NDArray[np.float64] | None:
        """Returns (rows,) another predictor's probability of ``task``, if there is one."""
        ...


def padding(schema: "Schema", rows: int = 1) -> Batch:
    """Returns ``rows`` made-up rows without weight: what a model sees when a Poisson draw is empty."""
    starts = torch.tensor(schema.bucket_starts[:-1], dtype=torch.int64)
    return Batch(
        dense=torch.zeros(rows, len(schema.numeric)),
        ids=starts.repeat(rows),
        offsets=torch.arange(rows * len(starts) + 1),
        labels={task: torch.zeros(rows) for task in schema.tasks},
        observed={task: torch.zeros(rows, dtype=torch.bool) for task in schema.tasks},
        weights=torch.zeros(rows),
        hours={task: torch.zeros(rows, 2) for task in schema.waiting},
    )


class Labeled(Protocol):
    """Rows with labels, as tensors (`Batch`) or arrays (`logs.encode.Part`)."""

    @property
    def observed(self) -> Mapping[str, Any]:
        """Per task (rows,) bool."""
        ...

    @property
    def hours(self) -> Mapping[str, Any]:
        """Per task that waits (rows, 2)."""
        ...


def settled(rows: Labeled, schema: "Schema") -> dict[str, Any]:
    """Returns per task (rows,) bool, whether the label will stay as it is: observed, and where it waits, the window has
    closed.
    """
    closed = {task: hours[:, 1] >= schema.waiting[task].within_hours for task, hours in rows.hours.items()}
    return {task: known & closed[task] if task in closed else known for task, known in rows.observed.items()}


def joined(one: Batch, two: Batch) -> Batch:
    """Returns the rows of ``one`` and then those of ``two``."""
    return Batch(
        dense=torch.cat([one.dense, two.dense]),
        ids=torch.cat([one.ids, two.ids]),
        offsets=torch.cat([one.offsets, two.offsets[1:] + one.offsets[-1]]),
        labels={task: torch.cat([label, two.labels[task]]) for task, label in one.labels.items()},
        observed={task: torch.cat([known, two.observed[task]]) for task, known in one.observed.items()},
        weights=torch.cat([one.weights, two.weights]),
        hours={task: torch.cat([waited, two.hours[task]]) for task, waited in one.hours.items()},
    )


def taken(batch: Batch, numbers: NDArray[np.int64] | Tensor) -> Batch:
    """Returns the rows of ``batch`` with these numbers, in this order."""
    places = torch.as_tensor(numbers, device=batch.weights.device)
    fields = (len(batch.offsets) - 1) // batch.rows if batch.rows else 0
    bags = (places[:, None] * fields + torch.arange(fields, device=places.device)).flatten()
    lengths = batch.offsets.diff()[bags]
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    within = torch.arange(int(offsets[-1]), device=places.device) - torch.repeat_interleave(offsets[:-1], lengths)
    return Batch(
        dense=batch.dense[places],
        ids=batch.ids[torch.repeat_interleave(batch.offsets[:-1][bags], lengths) + within],
        offsets=offsets,
        labels={task: label[places] for task, label in batch.labels.items()},
        observed={task: known[places] for task, known in batch.observed.items()},
        weights=batch.weights[places],
        hours={task: waited[places] for task, waited in batch.hours.items()},
    )
