"""DCN-v2: deep and cross network."""

import torch
from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.heads import Outputs
from privads.models.layers import SCALE, Cross, FusedTable, Tower, line


class DCN(nn.Module):
    """Deep and cross network, version 2, crosses beside a tower (Wang et al. 2021, arXiv 2008.13535, figure 1 b).

    ``x_0 = [e, x] / sqrt(fields)``, ``x_{l+1} = x_0 * s (W_l x_l + b_l) + x_l``, and for output t
    ``logit_t = 1_t . x_L / sqrt(dim) + v_t . [x, 1] / sqrt(fields) + s u_t . [x_L, tower(x_0)]``,
    where s = SCALE and 1_t adds up output t's part of the embeddings. Crosses, u and v start at 0, so that the network
    starts as the logistic regression it contains.
    dim: width of an embedding for each output. crosses: cross layers. tower: widths of hidden layers (default: none).
    Shapes: e (rows, fields * outputs * dim), x (rows, numeric), x_l (rows, width of both), logit (rows,).
    """

    def __init__(self, schema: Schema, *, dim: int = 4, crosses: int = 2, tower: tuple[int, ...] = ()) -> None:
        super().__init__()
        if dim < 1 or crosses < 0 or any(width < 1 for width in tower):
            raise ValueError(f"a DCN needs positive widths, got dim {dim}, crosses {crosses}, tower {tower}")
        buckets = [field.buckets for field in schema.categorical.values()]
        self.outputs, self.dim, self.scale = Outputs(schema), dim, schema.fields**-0.5
        self.settings = {"dim": dim, "crosses": crosses, "tower": list(tower)}
        self.embedded = len(buckets) * self.outputs.width * dim
        width = self.embedded + len(schema.numeric)
        self.table = FusedTable(buckets, self.outputs.width * dim, init_std=SCALE)
        self.cross = Cross(width, crosses, scale=SCALE)
        self.tower = Tower((width, *tower)) if tower else None
        self.head = nn.Linear(width + (tower[-1] if tower else 0), self.outputs.width, bias=False)
        nn.init.zeros_(self.head.weight)
        self.linear = line(len(schema.numeric), self.outputs.starts, scale=self.scale)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {task: (rows,) logit, or (rows, width) outputs}."""
        embedded = self.table(batch.ids, batch.offsets).reshape(batch.rows, self.embedded)
        x0 = self.scale * torch.cat([embedded, batch.dense], dim=1)
        x = self.cross(x0)
        parts = x[:, : self.embedded].reshape(batch.rows, self.table.fields, self.outputs.width, self.dim)
        wide = self.dim**-0.5 * parts.sum(dim=(1, 3))  # (rows, outputs)
        inputs = self.scale * torch.cat([batch.dense, torch.ones_like(batch.weights)[:, None]], dim=1)
        deep = x if self.tower is None else torch.cat([x, self.tower(x0)], dim=1)
        columns = wide + self.linear(inputs) + SCALE * self.head(deep)  # (rows, outputs)
        return self.outputs(columns)
