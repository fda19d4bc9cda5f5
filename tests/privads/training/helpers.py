"""A small public log and its private twin, for tests of the training room."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from accounting.budget import Budget, Neighbors
from accounting.ledger import Ledger
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.training.plan import TrainPlan

USERS = 400


def schema(*, public: bool = True, tasks: Mapping[str, str] | None = None) -> Schema:
    return Schema.load(
        {
            "dataset": "small",
            "population": USERS,
            "rows": 1200,
            "unit": ["user"],
            "public": public,
            "labels": tasks or {"click": "click"},
            "numeric": {"bid": {"range": [0, 10]}},
            "categorical": {"site": {"buckets": 8}, "ad": {"buckets": 16}},
        }
    )


def write_log(folder: Path, seed: int = 0) -> Path:
    """Writes about 1,200 rows of 400 users with a learnable click; returns the file."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(USERS), rng.integers(1, 6, USERS))
    site, ad, bid = rng.integers(0, 5, len(users)), rng.integers(0, 9, len(users)), rng.uniform(0, 10, len(users))
    rate = 1 / (1 + np.exp(2.0 - 1.5 * (site == 1) - (ad % 3 == 0) - 0.1 * bid))
    columns = {
        "user": [f"u{number}" for number in users],
        "site": [f"s{number}" for number in site],
        "ad": [f"a{number}" for number in ad],
        "bid": bid,
        "click": (rng.random(len(users)) < rate).astype(int),
        "buy": (rng.random(len(users)) < 0.2 * rate).astype(int),
    }
    path = folder / "log.parquet"
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def logs(folder: Path, *, public: bool = True, tasks: Mapping[str, str] | None = None) -> Logs:
    return Logs(write_log(folder), schema(public=public, tasks=tasks))


def small_plan(*, epsilon: float = 5.0, unit: str = "user", steps: int = 10, **settings: object) -> TrainPlan:
    population = USERS if unit == "user" else 1200
    return TrainPlan.for_budget(
        Budget(epsilon=epsilon, delta=1e-5, unit=unit),
        population=population,
        batch=population // 10,
        epochs=steps / 10,
        **settings,  # type: ignore[arg-type]
    )


def new_ledger(
    folder: Path,
    *,
    epsilon: float = 20.0,
    dataset: str = "small",
    unit: str = "user",
    neighbors: Neighbors = "add-remove",
) -> Ledger:
    limit = Budget(epsilon=epsilon, delta=9e-5, unit=unit, neighbors=neighbors)
    return Ledger.init(f"sqlite:///{folder / 'budget.db'}", dataset=dataset, budget=limit)
