"""DLRM: products of embeddings, and of a tower over the numbers."""

import torch
from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.heads import Outputs
from privads.models.layers import SCALE, Features, Tower, checked, pairs


class DLRM(nn.Module):
    """Deep learning recommendation model: a tower over dot products (Naumov et al. 2019, arXiv 1906.00091).

    ``z = [bottom([x, 1] / sqrt(fields)), e_1 / sqrt(fields), ...]`` and
    ``logit_t = wide_t + s u_t . top([z_0, <z_i, z_j> for all pairs i < j])``, where wide_t is the logistic regression
    of `Features` (not in the paper) and s = SCALE. u starts at 0, so that it starts as the logistic regression. By the
    1, schemas without numbers have a z_0 too.
    dim: width of an embedding and of z_0. bottom, top: widths of the hidden layers of the two towers.
    Shapes: x (rows, numeric), e_f (rows, dim), z (rows, 1 + categorical, dim), logit (rows,).
    """

    def __init__(
        self, schema: Schema, *, dim: int = 4, bottom: tuple[int, ...] = (4,), top: tuple[int, ...] = (8,)
    ) -> None:
        super().__init__()
        self.settings = checked("a DLRM", {"dim": dim, "bottom": bottom, "top": top})
        self.outputs, self.scale = Outputs(schema), schema.fields**-0.5
        self.features = Features(schema, dim)
        self.bottom = Tower((len(schema.numeric) + 1, *bottom, dim))
        width = dim + self.features.vectors * (self.features.vectors + 1) // 2
        self.top = Tower((width, *top))
        self.head = nn.Linear((width, *top)[-1], self.outputs.width, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {task: (rows,) logit, or (rows, width) outputs}."""
        wide, vectors, _ = self.features(batch)
        numbers = torch.cat([batch.dense, torch.ones_like(batch.weights)[:, None]], dim=1)
        z0 = self.bottom(self.scale * numbers)
        products = pairs(torch.cat([z0.unsqueeze(1), vectors], dim=1))
        read = torch.cat([z0, products], dim=1)
        columns = wide + SCALE * self.head(self.top(read))  # (rows, outputs)
        return self.outputs(columns)
