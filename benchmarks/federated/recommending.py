"""The task of the utility part: what users did with items in public data, a model that ranks items, and its metrics.

`pinterest-10core`: pins, by 37,501 users of 9,836 items. `alibaba-ecomm`: which of 401 categories of items 1,037 users
clicked, collected or bought from: they have 25,766 items between them, too many to learn anything of one.

A fifth of what each user did is held out at random. A model is given the rest and ranks all items that are not in it.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.layers import FusedTable

Numbers = NDArray[np.int64]

PINTEREST, ALIBABA = "pinterest", "alibaba"
FOLDERS = {PINTEREST: "pinterest-10core", ALIBABA: "alibaba-ecomm"}

HELD_OUT = 0.2
OTHERS = 8
"""Items drawn at random, that a row's item is held against."""

MOST_HISTORY = 32
TOP = 20


@dataclass(frozen=True, eq=False, repr=False)
class Choices:
    """Which items users chose, each once. users, items: (choices,) by rising user; users are 0, 1, ..., as items."""

    name: str
    users: Numbers
    items: Numbers
    population: int
    catalog: int

    @classmethod
    def of(cls, name: str, users: Numbers, items: Numbers, catalog: int) -> Self:
        """Returns the choices of users by any numbers."""
        population = len(np.unique(users))
        pairs = np.unique(np.unique(users, return_inverse=True)[1] * catalog + items)
        return cls(name, pairs // catalog, pairs % catalog, population, catalog)

    def split(self, seed: int) -> tuple[Self, Self]:
        """Returns what is kept, and the `HELD_OUT` share that is not."""
        out = np.random.default_rng(seed).random(len(self.users)) < HELD_OUT
        return self._where(~out), self._where(out)

    def _where(self, chosen: NDArray[np.bool_]) -> Self:
        return type(self)(self.name, self.users[chosen], self.items[chosen], self.population, self.catalog)

    @property
    def starts(self) -> Numbers:
        """(population + 1,) where each user's choices begin."""
        return np.searchsorted(self.users, np.arange(self.population + 1))


def read(name: str, data: Path) -> Choices:
    """Returns the choices of one of `FOLDERS` in the folder of all data sets."""
    folder = data / FOLDERS[name]
    if name == ALIBABA:
        with gzip.open(folder / "items.tsv.gz", "rt", encoding="utf-8") as lines:
            category = {row[0]: row[2] for row in (line.split("\t") for line in lines)}
        numbers = {one: i for i, one in enumerate(sorted(set(category.values())))}
        with gzip.open(folder / "edges.tsv.gz", "rt", encoding="utf-8") as lines:
            pairs = [(int(row[0]), numbers[category[row[1]]]) for row in map(str.split, lines)]
        catalog = len(numbers)
    else:
        with gzip.open(folder / "train.txt.gz", "rt", encoding="utf-8") as lines:
            pairs = [(int(user), int(one)) for user, *items in map(str.split, lines) for one in items]
        catalog = max(item for _, item in pairs) + 1
    users, items = np.array(pairs, dtype=np.int64).T
    return Choices.of(name, users, items, catalog)


class Pairs:
    """A store of `privads.Rows`: a row is one choice, beside `OTHERS` random items and the user's other choices.

    Its fields are ``item``, ``history`` and ``others``; the last names rows of the item's part of the table.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices, self.units, self._starts = choices, choices.users, choices.starts
        drawn = np.random.default_rng(0).integers(0, choices.catalog, (len(choices.users), OTHERS))
        self._others = torch.from_numpy(drawn)
        self.path = self.split_text = f"{choices.name}, but for a random {HELD_OUT:.0%}"
        self.features = None
        self.schema = Schema.load(
            {
                "dataset": choices.name,
                "population": choices.population,
                "unit": ["user"],
                "public": True,
                "labels": {"preferred": "preferred"},
                "categorical": {
                    "item": {"buckets": choices.catalog},
                    "history": {"buckets": choices.catalog},
                    "others": {"buckets": 2},
                },
            }
        )

    def check(self) -> None:
        """Nothing can be missing."""

    def reference(self, task: str) -> None:
        """There is no other predictor."""

    def take(self, row_numbers: Numbers) -> Batch:
        """Returns these rows."""
        rows, (history, lengths) = len(row_numbers), self._history(row_numbers)
        before = np.cumsum(lengths) - lengths + np.arange(rows) * (1 + OTHERS)  # where a row's ids begin
        ids = np.empty(len(history) + rows * (1 + OTHERS), dtype=np.int64)
        taken = np.zeros(len(ids), dtype=np.bool_)
        ids[before] = self.choices.items[row_numbers]
        others = (before + 1 + lengths)[:, None] + np.arange(OTHERS)
        ids[others] = self._others[row_numbers]
        taken[before] = taken[others] = True
        ids[~taken] = history + self.choices.catalog
        offsets = np.stack([before, before + 1, before + 1 + lengths], 1).ravel()
        return Batch(
            dense=torch.zeros(rows, 0),
            ids=torch.from_numpy(ids),
            offsets=torch.from_numpy(np.append(offsets, len(ids))),
            labels={"preferred": torch.ones(rows)},
            observed={"preferred": torch.ones(rows, dtype=torch.bool)},
            weights=torch.ones(rows),
        )

    def _history(self, rows: Numbers) -> tuple[Numbers, Numbers]:
        """Returns the user's other choices for each of the rows, one after another, and how many each row has."""
        first = self._starts[self.units[rows]]
        have = np.minimum(self._starts[self.units[rows] + 1] - first, MOST_HISTORY + 1)
        at = np.arange(have.sum()) - np.repeat(np.cumsum(have) - have, have) + np.repeat(first, have)
        other = at != np.repeat(rows, have)
        row = np.repeat(np.arange(len(rows)), have)[other]
        return self.choices.items[at[other]], np.bincount(row, minlength=len(rows))


class Preference(nn.Module):
    """How much a user prefers an item to others: ``s(i) - mean over others j of s(j)``,
    ``s(i) = bias_scale b_i + scale p_i . h / |h|``, ``h`` the sum of ``q_j`` over the user's other choices j.

    A table of two parts, of p with b and of q. p and b start at 0, so that nothing is preferred, and q at random.
    """

    def __init__(self, catalog: int, *, dim: int = 16, scale: float = 4.0, bias_scale: float = 1.0) -> None:
        super().__init__()
        self.catalog, self.scale, self.bias_scale = catalog, scale, bias_scale
        self.table = FusedTable([catalog, catalog, 2], dim + 1, init_std=dim**-0.5)
        with torch.no_grad():
            self.table.weight[:catalog] = 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the logit of each row's preference."""
        found = self.table(batch.ids, batch.offsets)
        apart = found[:, 0] - found[:, 2] / OTHERS
        h = found[:, 1, :-1]
        h = h * torch.rsqrt(h.square().sum(-1, keepdim=True) + 1e-3)
        return {"preferred": self.bias_scale * apart[:, -1] + self.scale * (apart[:, :-1] * h).sum(-1)}

    def scores(self, kept: Choices, users: Numbers) -> Tensor:
        """Returns (users, catalog) ``s``, of whole histories."""
        weight, starts = self.table.weight.detach(), kept.starts
        lengths = torch.from_numpy(starts[users + 1] - starts[users])
        at = np.concatenate([np.arange(starts[one], starts[one + 1]) for one in users])
        ids = torch.from_numpy(kept.items[at] + kept.catalog)
        h = F.embedding_bag(ids, weight[:, :-1].contiguous(), lengths.cumsum(0) - lengths, mode="sum")
        h = h * torch.rsqrt(h.square().sum(-1, keepdim=True) + 1e-3)
        p, b = weight[: self.catalog, :-1], weight[: self.catalog, -1]
        return self.bias_scale * b + self.scale * h @ p.T


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Means over users with held-out choices. recall: the share of them among the first `TOP`; ndcg: of these."""

    recall: float
    ndcg: float


def ranking(kept: Choices, out: Choices, scores: Preference | Tensor, *, most_users: int = 4000) -> Ranking:
    """Returns how well ``scores`` rank what was held out among all items that a user is not known to have chosen."""
    users = np.unique(out.users)
    users = users[:: max(1, len(users) // most_users)]
    discounts = 1 / np.log2(np.arange(TOP) + 2)
    recalls, gains, kept_at, out_at = [], [], kept.starts, out.starts
    for part in np.array_split(users, max(1, len(users) // 500)):
        found = scores.expand(len(part), -1).clone() if isinstance(scores, Tensor) else scores.scores(kept, part)
        for row, user in zip(found, part, strict=True):
            row[torch.from_numpy(kept.items[kept_at[user] : kept_at[user + 1]])] = -torch.inf
            top = row.topk(TOP).indices.numpy()
            hits = np.isin(top, out.items[out_at[user] : out_at[user + 1]])
            wanted = out_at[user + 1] - out_at[user]
            recalls.append(hits.sum() / wanted)
            gains.append((hits * discounts).sum() / discounts[:wanted].sum())
    return Ranking(recall=float(np.mean(recalls)), ndcg=float(np.mean(gains)))


def popularity(kept: Choices) -> Tensor:
    """Returns (catalog,) how many chose each item: the same ranking for everybody, without privacy."""
    return torch.from_numpy(np.bincount(kept.items, minlength=kept.catalog)).float()
