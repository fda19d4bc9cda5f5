"""Logistic regression."""

import torch
from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.layers import FusedTable


class Logistic(nn.Module):
    """Logistic regression over hashed categories and scaled numbers.

    ``logit_t = (b_t + sum over fields f of w_t[id_f] + v_t . x) / sqrt(fields)``, one column per task t.
    Dividing by sqrt(fields) makes a row's input a vector of about length 1 whatever the schema, so that one clip norm
    and one learning rate serve all data sets. All parameters start at 0. Shapes: dense (rows, numeric), logit (rows,).
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        buckets = [field.buckets for field in schema.categorical.values()]
        self.tasks, self.scale = schema.tasks, schema.fields**-0.5
        self.settings: dict[str, object] = {}
        self.table = FusedTable(buckets, len(schema.tasks))
        self.linear = nn.Linear(len(schema.numeric) + 1, len(schema.tasks), bias=False)  # the last input is always 1
        nn.init.zeros_(self.linear.weight)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {task: (rows,) logit}."""
        looked_up = self.table(batch.ids, batch.offsets).reshape(batch.rows, self.table.fields, len(self.tasks))
        wide = self.scale * looked_up.sum(dim=1)  # (rows, tasks)
        inputs = torch.cat([batch.dense, torch.ones_like(batch.weights)[:, None]], dim=1)
        logits = wide + self.linear(self.scale * inputs)
        return {task: logits[:, t] for t, task in enumerate(self.tasks)}
