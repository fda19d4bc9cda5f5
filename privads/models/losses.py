"""The loss of each row, by itself."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from privads.batch import Batch
from privads.config import nearest_name


def per_row(outputs: Mapping[str, Tensor], batch: Batch, task_weights: Mapping[str, float] | None = None) -> Tensor:
    """Returns (rows,) the sum over tasks of ``weight_t observed_t log_loss(label_t, sigmoid(logit_t))``.

    outputs: {task: (rows,) logits}. An unobserved label adds 0, and nothing is divided by how many are observed, so one
    row's loss never depends on another row.
    """
    for task in task_weights or {}:
        if task not in outputs:
            raise ValueError(f"task_weights names {task!r}, which is no task{nearest_name(task, outputs)}")
    total = torch.zeros_like(batch.weights)
    for task, logits in outputs.items():
        if logits.shape != batch.weights.shape:
            raise ValueError(
                f"logits of {task!r} must have shape {tuple(batch.weights.shape)}, got {tuple(logits.shape)}"
            )
        label = torch.where(batch.observed[task], batch.labels[task], 0.0)  # an unknown one may be NaN
        loss = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
        weight = 1.0 if task_weights is None else task_weights.get(task, 1.0)
        total = total + torch.where(batch.observed[task], weight * loss, 0.0)
    return total * batch.weights
