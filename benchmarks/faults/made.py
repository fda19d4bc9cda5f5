"""The small public log that faults are planted around, plans for it, and models that show one thing each."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from accounting.budget import Budget
from privads.batch import Batch
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.models.layers import FusedTable
from privads.training.plan import TableNoise, TrainPlan

USERS, BUCKETS, WIDTH = 400, 1024, 20_000
DELTA = 1e-5

ALPHA = 1e-6
"""The chance that one statistical check fails although its promise holds."""


def made_log(folder: Path, *, users: int = USERS, public: bool = True) -> Logs:
    """Returns rows of so many users, who have from 1 to 5 each."""
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(users), rng.integers(1, 6, users))
    rows = len(owners)
    columns = {
        "user": [f"u{number}" for number in owners],
        "site": [f"s{number}" for number in rng.integers(0, 5, rows)],
        "ad": [f"a{number}" for number in rng.integers(0, 9, rows)],
        "bid": rng.uniform(0, 10, rows),
        "click": rng.integers(0, 2, rows),
    }
    return written(columns, folder / "log.parquet", users=users, public=public)


def written(columns: Mapping[str, object], path: Path, *, users: int = USERS, public: bool = True) -> Logs:
    """Returns the log with these columns, written to ``path``."""
    pyarrow.parquet.write_table(pa.table(dict(columns)), path)
    schema = Schema.load(
        {
            "dataset": "made up",
            "population": users,
            "rows": 3 * users,
            "unit": ["user"],
            "public": public,
            "labels": {"click": "click"},
            "numeric": {"bid": {"range": [0, 10]}},
            "categorical": {"site": {"buckets": BUCKETS}, "ad": {"buckets": BUCKETS}},
        }
    )
    return Logs(path, schema)


@cache
def plan(*, epsilon: float = 5.0, steps: int = 10, unit: str = "user", table_noise: TableNoise = "dense") -> TrainPlan:
    """Returns the plan of so many steps of a tenth of the users, or of the rows, each; no averages."""
    population = USERS if unit == "user" else 3 * USERS
    return TrainPlan.for_budget(
        Budget(epsilon=epsilon, delta=DELTA, unit=unit),
        population=population,
        batch=population // 10,
        epochs=steps / 10,
        averaging=0.0,
        table_noise=table_noise,
    )


@dataclass(frozen=True, eq=False)
class Some:
    """Some rows of a log, of the users that own them: `privads.Rows`."""

    log: Logs
    mine: NDArray[np.int64]

    @property
    def schema(self) -> Schema:
        """The log's."""
        return self.log.schema

    def check(self) -> None:
        """Checks the log."""
        self.log.check()

    @property
    def units(self) -> NDArray[np.int64]:
        """(rows,) who owns each row, numbered from 0."""
        return np.unique(self.log.units[self.mine], return_inverse=True)[1].astype(np.int64)

    def take(self, row_numbers: NDArray[np.int64]) -> Batch:
        """Returns these rows."""
        return self.log.take(self.mine[row_numbers])

    def reference(self, task: str) -> None:
        """There is no other predictor."""


class Wide(nn.Module):
    """20,000 weights of a layer without a gradient: what moves them is noise.

    An error of 5 % of its std is missed with probability below 1e-6 at `ALPHA`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, WIDTH, bias=False)

    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        """Returns logits of 0."""
        return {"click": 0.0 * self.layer(batch.dense).sum(1)}


class WideTable(nn.Module):
    """20,480 weights of a table without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.table = FusedTable([BUCKETS, BUCKETS], 10, init_std=0.1)

    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        """Returns logits of 0."""
        return {"click": 0.0 * self.table(batch.ids, batch.offsets).sum((1, 2))}


class Steep(nn.Module):
    """One weight that every row moves in one direction."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        """Returns the weight as everybody's logit."""
        return {"click": self.layer(torch.ones_like(batch.weights)[:, None])[:, 0]}


def weights(model: nn.Module) -> Tensor:
    """Returns a copy of all weights as one vector."""
    return torch.cat([one.detach().flatten().clone() for one in model.parameters()])


def has_variance(values: Tensor, variance: float) -> bool:
    """Returns whether the squares of normal ``values`` add up as they do but with probability `ALPHA`: chi-square."""
    statistic = float(values.double().square().sum()) / variance
    return bool(stats.chi2.ppf(ALPHA / 2, len(values)) < statistic < stats.chi2.isf(ALPHA / 2, len(values)))


def is_binomial(count: int, trials: int, chance: float) -> bool:
    """Returns whether so many of the trials come up as they do but with probability `ALPHA`."""
    return bool(stats.binom.ppf(ALPHA / 2, trials, chance) <= count <= stats.binom.isf(ALPHA / 2, trials, chance))
