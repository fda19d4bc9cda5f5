"""Embedding tables, towers, crosses, pairs of fields, experts and gates, written once."""

import itertools
from collections.abc import Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.heads import Outputs

SCALE = 0.1
"""How strongly everything beside the logistic regression enters: crosses, pairs, towers and their heads.

With it a row's gradient is about as long as that of `Logistic`, and the noise that privacy puts on these many weights
stays small in the logit, so the same clip norm and step serve all models.
"""


def checked(model: str, sizes: Mapping[str, int | tuple[int, ...]]) -> dict[str, object]:
    """Returns ``sizes`` as settings are kept, with lists for tuples; raises ValueError where one is below 1."""
    for name, value in sizes.items():
        if any(size < 1 for size in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{model} needs positive sizes, got {name} {value}")
    return {name: list(value) if isinstance(value, tuple) else value for name, value in sizes.items()}


class FusedTable(nn.Module):
    """All categorical fields' embeddings in one table: ``out[r, f] = sum over ids i of bag (r, f) of weight[i]``.

    buckets: rows per field; the ids of field f lie in [start_f, start_f + buckets_f). A repeated id counts each time.
    forward(ids (total,), offsets (rows * fields + 1,)) -> (rows, fields, dim); (0, 0, dim) where there are no fields.
    sparse: whether autograd's gradient of ``weight`` is sparse; training with privacy does not use it.
    """

    def __init__(self, buckets: Sequence[int], dim: int, *, init_std: float = 0.0, sparse: bool = False) -> None:
        super().__init__()
        self.fields, self.dim, self.sparse = len(buckets), dim, sparse
        # without fields nothing is looked up, and an output of no rows could not be told apart by unit
        self.weight = nn.Parameter(torch.randn(sum(buckets), dim) * init_std, requires_grad=bool(buckets))

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Returns the sum of each bag's embeddings."""
        rows = (len(offsets) - 1) // max(self.fields, 1)
        bags = F.embedding_bag(ids, self.weight, offsets[:-1], mode="sum", sparse=self.sparse)  # (rows * fields, dim)
        return bags.view(rows, self.fields, self.dim)


def line(numbers: int, starts: Sequence[float], *, scale: float) -> nn.Linear:
    """Returns a layer of numbers and at the end a constant 1, times ``scale``: (rows, numbers + 1) -> (rows, outputs).

    Its weights start at 0, but for the constant's: at ``starts / scale``, so that the outputs are ``starts``.
    """
    layer = nn.Linear(numbers + 1, len(starts), bias=False)
    nn.init.zeros_(layer.weight)
    begin_at(layer, starts, scale=scale)
    return layer


def begin_at(layer: nn.Linear, starts: Sequence[float], *, scale: float) -> None:
    """Makes the outputs of a `line` begin at ``starts``."""
    with torch.no_grad():
        layer.weight[:, -1] = torch.tensor(starts) / scale


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


class Numbers(nn.Module):
    """A vector for each number, as long as the number: ``out[r, i] = x[r, i] v_i``: (rows, n) -> (rows, n, dim)."""

    def __init__(self, numbers: int, dim: int, *, init_std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(numbers, dim) * init_std)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the vectors."""
        return x.unsqueeze(2) * self.weight


class Features(nn.Module):
    """A row as the logistic regression that every model contains, and as the vectors of its fields: one table for both.

    ``wide_t = (sum over fields f of w_t[id_f] + v_t . [x, 1]) / sqrt(fields)``, ``vector_f = e[id_f] / sqrt(fields)``.
    w and v start at 0, but for the constant's (`line`), e as vectors of about length 1, so that both parts read a row
    of about length 1.
    dim: width of a vector. groups: how many e holds for each field, such as one for each output. numbers: whether
    numbers have vectors too, ``x_i e_i / sqrt(fields)``; else x_0 holds the numbers themselves, over sqrt(fields).
    forward(batch) -> wide (rows, outputs), vectors (rows, vectors, groups * dim), x_0 (rows, width).
    """

    def __init__(self, schema: Schema, dim: int, *, groups: int = 1, numbers: bool = False) -> None:
        super().__init__()
        buckets = [field.buckets for field in schema.categorical.values()]
        outputs = Outputs(schema)
        self.outputs, self.dim, self.scale = outputs.width, groups * dim, schema.fields**-0.5
        self.vectors = schema.fields if numbers else len(buckets)
        self.width = self.vectors * self.dim + (0 if numbers else len(schema.numeric))
        self.table = FusedTable(buckets, self.outputs + self.dim, init_std=dim**-0.5)
        with torch.no_grad():
            self.table.weight[:, : self.outputs] = 0
        self.numbers = (
            Numbers(len(schema.numeric), self.dim, init_std=dim**-0.5) if numbers and schema.numeric else None
        )
        self.linear = line(len(schema.numeric), outputs.starts, scale=self.scale)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Returns wide, vectors and x_0."""
        x = self.scale * batch.dense
        found = self.table(batch.ids, batch.offsets)
        found = self.scale * found.reshape(batch.rows, self.table.fields, self.outputs + self.dim)
        constant = self.scale * torch.ones_like(batch.weights)[:, None]
        wide = found[:, :, : self.outputs].sum(1) + self.linear(torch.cat([x, constant], dim=1))
        vectors = found[:, :, self.outputs :]
        if self.numbers is not None:
            vectors = torch.cat([vectors, self.numbers(x)], dim=1)
        x0 = vectors.flatten(1)
        return wide, vectors, x0 if x0.shape[1] == self.width else torch.cat([x0, x], dim=1)


def sum_of_pairs(vectors: Tensor) -> Tensor:
    """Returns the sum over pairs i < j of <v_i, v_j>, as ``(||sum v_i||^2 - sum ||v_i||^2) / 2``: O(fields * dim).

    Rendle 2010, lemma 3.1. vectors: (rows, fields, ..., dim) -> (rows, ...).
    """
    return (vectors.sum(1).square() - vectors.square().sum(1)).sum(-1) / 2


def pairs(vectors: Tensor) -> Tensor:
    """Returns <v_i, v_j> of each pair i < j, ordered by i, then j: (rows, n, dim) -> (rows, n (n - 1) / 2)."""
    n = vectors.shape[1]
    first, second = torch.triu_indices(n, n, offset=1, device=vectors.device)
    return torch.bmm(vectors, vectors.mT)[:, first, second]


class Heads(nn.Module):
    """For each task a tower and its outputs, which start at 0: tasks times (rows, width) -> (rows, sum of outputs)."""

    def __init__(self, outputs: Collection[int], width: int, tower: tuple[int, ...]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(Tower((width, *tower)) for _ in outputs)
        self.logits = nn.ModuleList(nn.Linear((width, *tower)[-1], columns, bias=False) for columns in outputs)
        for parameter in self.logits.parameters():
            nn.init.zeros_(parameter)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Returns the outputs of each task's input, side by side."""
        parts = zip(self.logits, self.towers, inputs, strict=True)
        return torch.cat([logit(tower(x)) for logit, tower, x in parts], dim=1)


class Experts(nn.Module):
    """Towers side by side: (rows, width) -> (rows, experts, last width of the tower)."""

    def __init__(self, experts: int, width: int, tower: tuple[int, ...]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(Tower((width, *tower)) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        """Returns what each expert makes of x."""
        return torch.stack([tower(x) for tower in self.towers], dim=1)


class Gate(nn.Module):
    """Mixes experts: ``sum over k of softmax(W x)_k expert_k`` (Ma et al. 2018, equation 6). W starts at 0: their mean.

    forward(x (rows, width), experts (rows, experts, out)) -> (rows, out).
    """

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, experts, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor, experts: Tensor) -> Tensor:
        """Returns the mixture."""
        shares = torch.softmax(self.linear(x), dim=1)  # over a row's experts
        return (shares.unsqueeze(2) * experts).sum(1)


class GatedExtraction(nn.Module):
    """Customized gate control: each task mixes its own experts and the shared ones (Tang et al. 2020, section 4.1).

    In all layers but the last a shared gate also mixes the experts of all, as the next layer's shared input (4.2).
    forward(one x (rows, width) for each task, then the shared one) -> one (rows, out) for each task[, then the shared].
    """

    def __init__(
        self, tasks: int, experts: int, shared: int, width: int, tower: tuple[int, ...], *, last: bool
    ) -> None:
        super().__init__()
        counts = [experts] * tasks + [shared]
        self.experts = nn.ModuleList(Experts(count, width, tower) for count in counts)
        seen = [experts + shared] * tasks + ([] if last else [experts * tasks + shared])
        self.gates = nn.ModuleList(Gate(width, count) for count in seen)

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Returns the mixtures."""
        found = [experts(x) for experts, x in zip(self.experts, inputs, strict=True)]
        seen = [torch.cat([own, found[-1]], dim=1) for own in found[:-1]] + [torch.cat(found, dim=1)]
        # without strict: the last layer has no gate for the shared input
        return [gate(x, experts) for gate, x, experts in zip(self.gates, inputs, seen, strict=False)]
