"""DLRM: products of embeddings, and of a tower over the numbers."""

import torch
from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.layers import SCALE, Features, Tower, checked, pairs


class DLRM(nn.Module):
    """Deep learning recommendation model: a tower over dot products (Naumov et al. 2019, arXiv 1906.00091).

    ``z = [bottom(x / sqrt(fields)), e_1 / sqrt(fields), ...]`` and
    ``logit_t = wide_t + s u_t . top([z_0, <z_i, z_j> for all pairs i < j])``, where wide_t is the logistic regression
    of `Features` (not in the paper) and s = SCALE. u starts at 0, so that it starts as the logistic regression. Without
    numbers there is no z_0, and the products alone are read; without categories z_0 alone.
    dim: width of an embedding and of z_0. bottom, top: widths of the hidden layers of the two towers.
    Shapes: x (rows, numeric), e_f (rows, dim), z (rows, 1 + categorical, dim), logit (rows,).
    """

    def __init__(
        self, schema: Schema, *, dim: int = 4, bottom: tuple[int, ...] = (8,), top: tuple[int, ...] = (16,)
    ) -> None:
        super().__init__()
        self.settings = checked("a DLRM", {"dim": dim, "bottom": bottom, "top": top})
        self.tasks, self.scale = schema.tasks, schema.fields**-0.5
        self.features = Features(schema, dim)
        self.bottom = Tower((len(schema.numeric), *bottom, dim)) if schema.numeric else None
        vectors = self.features.vectors + bool(schema.numeric)
        width = vectors * (vectors - 1) // 2 + (dim if schema.numeric else 0)
        self.top = Tower((width, *top))
        self.head = nn.Linear((width, *top)[-1], len(schema.tasks), bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {task: (rows,) logit}."""
        wide, vectors, _ = self.features(batch)
        if self.bottom is None:
            read = pairs(vectors)
        else:
            z0 = self.bottom(self.scale * batch.dense)
            read = torch.cat([z0, pairs(torch.cat([z0.unsqueeze(1), vectors], dim=1))], dim=1)
        logits = wide + SCALE * self.head(self.top(read))  # (rows, tasks)
        return {task: logits[:, t] for t, task in enumerate(self.tasks)}
