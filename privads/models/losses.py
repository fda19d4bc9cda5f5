"""The loss of each row, by itself."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from privads.batch import Batch
from privads.config import nearest_name
from privads.logs.schema import Schema
from privads.models.heads import EVENT, Head, heads_of


def for_schema(
    schema: Schema, task_weights: Mapping[str, float] | None = None
) -> Callable[[Mapping[str, Tensor], Batch], Tensor]:
    """Returns the loss of a schema's labels: `per_row`, by each label's own kind."""
    return partial(per_row, task_weights=task_weights, heads=heads_of(schema))


def per_row(
    outputs: Mapping[str, Tensor],
    batch: Batch,
    task_weights: Mapping[str, float] | None = None,
    heads: Mapping[str, Head] | None = None,
) -> Tensor:
    """Returns (rows,) the sum over tasks of ``weight_t observed_t loss_t(outputs_t, label_t)``.

    outputs: {task: (rows,) or (rows, width)}. heads: what each task's outputs mean; by default logits, with the log
    loss. An unobserved label adds 0, and nothing is divided by how many are observed, so one row's loss never depends
    on another row.
    """
    for task in task_weights or {}:
        if task not in outputs:
            raise ValueError(f"task_weights names {task!r}, which is no task{nearest_name(task, outputs)}")
    if heads is None and batch.hours:
        raise ValueError("labels that wait have losses of their own: use losses.for_schema(schema)")
    total = torch.zeros_like(batch.weights)
    for task, found in outputs.items():
        head = EVENT if heads is None else heads[task]
        if found.dtype == torch.bfloat16:
            found = found.float()  # what is added to outputs must not be rounded as coarsely as they were
        shape = (batch.rows,) if head.width == 1 else (batch.rows, head.width)
        if found.shape != shape:
            raise ValueError(f"outputs of {task!r} must have shape {shape}, got {tuple(found.shape)}")
        label = torch.where(batch.observed[task], batch.labels[task], 0.0)  # an unknown one may be NaN
        loss = head.loss(found, label, batch.hours.get(task))
        weight = 1.0 if task_weights is None else task_weights.get(task, 1.0)
        total = total + torch.where(batch.observed[task], weight * loss, 0.0)
    return total * batch.weights
