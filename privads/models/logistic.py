"""Logistic regression."""

import torch
from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.heads import Outputs
from privads.models.layers import FusedTable, line


class Logistic(nn.Module):
    """Logistic regression over hashed categories and scaled numbers.

    ``logit_t = (b_t + sum over fields f of w_t[id_f] + v_t . x) / sqrt(fields)``, for each output t of the labels.
    Dividing by sqrt(fields) makes a row's input a vector of about length 1 whatever the schema, so that one clip norm
    and one learning rate serve all data sets. All parameters start at 0, b at a stated rate. Shapes: dense
    (rows, numeric), logit (rows,).
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        buckets = [field.buckets for field in schema.categorical.values()]
        self.outputs, self.scale = Outputs(schema), schema.fields**-0.5
        self.settings: dict[str, object] = {}
        self.table = FusedTable(buckets, self.outputs.width)
        self.linear = line(len(schema.numeric), self.outputs.starts, scale=self.scale)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {task: (rows,) logit, or (rows, width) outputs}."""
        looked_up = self.table(batch.ids, batch.offsets).reshape(batch.rows, self.table.fields, self.outputs.width)
        wide = self.scale * looked_up.sum(dim=1)  # (rows, outputs)
        inputs = torch.cat([batch.dense, torch.ones_like(batch.weights)[:, None]], dim=1)
        columns = wide + self.linear(self.scale * inputs)
        return self.outputs(columns)
