"""DCN-v2: deep and cross network."""

import torch
from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.layers import Cross, FusedTable, Tower

SCALE = 0.1
"""How strongly the weights of crosses, tower and head enter.

With it a row's gradient is about as long as that of `Logistic`, and the noise that privacy puts on these many weights
stays small in the logit, so the same clip norm and step serve both models.
"""


class DCN(nn.Module):
    """Deep and cross network, version 2, crosses beside a tower (Wang et al. 2021, arXiv 2008.13535, figure 1 b).

    ``x_0 = [embeddings, x] / sqrt(fields)``, ``x_{l+1} = x_0 * s (W_l x_l + b_l) + x_l`` and
    ``logit_t = (b_t + sum of x_L's embedding part sqrt(fields / dim)) / sqrt(fields) + s u_t . [x_L, tower(x_0)]``.
    Crosses and head start at 0, so that the network starts as the logistic regression it contains.
    dim: width of an embedding. crosses: cross layers. tower: widths of the hidden layers, none by default.
    Shapes: embeddings (rows, fields, dim), dense (rows, numeric), x_0 (rows, fields * dim + numeric), logit (rows,).
    """

    def __init__(self, schema: Schema, *, dim: int = 4, crosses: int = 2, tower: tuple[int, ...] = ()) -> None:
        super().__init__()
        if dim < 1 or crosses < 0 or any(width < 1 for width in tower):
            raise ValueError(f"a DCN needs positive widths, got dim {dim}, crosses {crosses}, tower {tower}")
        buckets = [field.buckets for field in schema.categorical.values()]
        self.tasks, self.scale = schema.tasks, schema.fields**-0.5
        self.settings = {"dim": dim, "crosses": crosses, "tower": list(tower)}
        self.embedded, self.wide = len(buckets) * dim, dim**-0.5
        width = self.embedded + len(schema.numeric)
        self.table = FusedTable(buckets, dim, init_std=SCALE)
        self.cross = Cross(width, crosses, scale=SCALE)
        self.tower = Tower((width, *tower)) if tower else None
        self.head = nn.Linear(width + (tower[-1] if tower else 0), len(schema.tasks), bias=False)
        self.linear = nn.Linear(len(schema.numeric) + 1, len(schema.tasks), bias=False)  # the last input is always 1
        for layer in (self.head, self.linear):
            nn.init.zeros_(layer.weight)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {task: (rows,) logit}."""
        embedded = self.table(batch.ids, batch.offsets).reshape(batch.rows, self.embedded)
        x0 = self.scale * torch.cat([embedded, batch.dense], dim=1)
        x = self.cross(x0)
        deep = x if self.tower is None else torch.cat([x, self.tower(x0)], dim=1)
        inputs = self.scale * torch.cat([batch.dense, torch.ones_like(batch.weights)[:, None]], dim=1)
        wide = x[:, : self.embedded].sum(dim=1, keepdim=True) * self.wide  # (rows, 1)
        logits = wide + self.linear(inputs) + SCALE * self.head(deep)  # (rows, tasks)
        return {task: logits[:, t] for t, task in enumerate(self.tasks)}
