"""Embedding tables, towers and crosses, written once."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FusedTable(nn.Module):
    """All categorical fields' embeddings in one table: ``out[r, f] = sum over ids i of bag (r, f) of weight[i]``.

    buckets: rows per field; the ids of field f lie in [start_f, start_f + buckets_f). A repeated id counts each time.
    forward(ids (total,), offsets (rows * fields + 1,)) -> (rows, fields, dim); (0, 0, dim) where there are no fields.
    sparse: whether autograd's gradient of ``weight`` is sparse; training with privacy does not use it.
    """

    def __init__(self, buckets: Sequence[int], dim: int, *, init_std: float = 0.0, sparse: bool = False) -> None:
        super().__init__()
        self.fields, self.dim, self.sparse = len(buckets), dim, sparse
        self.weight = nn.Parameter(torch.randn(sum(buckets), dim) * init_std)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Returns the sum of each bag's embeddings."""
        rows = (len(offsets) - 1) // max(self.fields, 1)
        bags = F.embedding_bag(ids, self.weight, offsets[:-1], mode="sum", sparse=self.sparse)  # (rows * fields, dim)
        return bags.view(rows, self.fields, self.dim)


class Cross(nn.Module):
    """Cross layers of DCN-v2: ``x_{l+1} = x_0 * scale (W_l x_l + b_l) + x_l`` (Wang et al. 2021, equation 1: scale 1).

    W and b start at 0. forward(x_0 (rows, width)) -> (rows, width).
    """

    def __init__(self, width: int, layers: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        for parameter in self.layers.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x0: Tensor) -> Tensor:
        """Returns the last cross."""
        x = x0
        for layer in self.layers:
            x = x0 * (self.scale * layer(x)) + x  # (rows, width)
        return x


class Tower(nn.Sequential):
    """Fully connected layers with ReLU: (rows, widths[0]) -> (rows, widths[-1])."""

    def __init__(self, widths: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for width, following in itertools.pairwise(widths):
            layers += [nn.Linear(width, following), nn.ReLU()]
        super().__init__(*layers)
