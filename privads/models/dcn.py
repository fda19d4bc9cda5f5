"""DCN-v2: deep and cross network."""

import torch
from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.layers import Cross, FusedTable, Tower


class DCN(nn.Module):
    """Deep and cross network, version 2, stacked beside a tower (Wang et al. 2021, arXiv 2008.13535, figure 1 b).

    ``x_0 = [embeddings, x]; logit_t = u_t . [cross(x_0), tower(x_0)] + b_t``.
    dim: width of an embedding. crosses: cross layers. tower: widths of the hidden layers.
    Shapes: embeddings (rows, fields, dim), dense (rows, numeric), x_0 (rows, fields * dim + numeric), logit (rows,).
    """

    def __init__(self, schema: Schema, *, dim: int = 8, crosses: int = 2, tower: tuple[int, ...] = (64, 32)) -> None:
        super().__init__()
        buckets = [field.buckets for field in schema.categorical.values()]
        width = len(buckets) * dim + len(schema.numeric)
        self.tasks = schema.tasks
        self.settings = {"dim": dim, "crosses": crosses, "tower": list(tower)}
        self.table = FusedTable(buckets, dim, init_std=dim**-0.5)
        self.cross = Cross(width, crosses)
        self.tower = Tower((width, *tower))
        self.head = nn.Linear(width + (tower[-1] if tower else width), len(schema.tasks))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {task: (rows,) logit}."""
        embedded = self.table(batch.ids, batch.offsets).flatten(1)  # (rows, fields * dim)
        x0 = torch.cat([embedded, batch.dense], dim=1)
        logits = self.head(torch.cat([self.cross(x0), self.tower(x0)], dim=1))  # (rows, tasks)
        return {task: logits[:, t] for t, task in enumerate(self.tasks)}
