"""A log with room for canaries of their own categories, and runs on it that are audited."""

from functools import cache
from pathlib import Path

import torch
from torch import nn

from accounting.budget import Budget
from privads.attacks.canaries import Canaries, Kind
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.models import Logistic
from privads.training.fit import fit
from privads.training.plan import TrainPlan
from privads.training.run import Run
from tests.privads.training.helpers import USERS, write_log

BUCKETS = 1024


def schema() -> Schema:
    return Schema.load(
        {
            "dataset": "small",
            "population": USERS,
            "rows": 1200,
            "unit": ["user"],
            "public": True,
            "labels": {"click": "click"},
            "numeric": {"bid": {"range": [0, 10]}},
            "categorical": {"site": {"buckets": BUCKETS}, "ad": {"buckets": BUCKETS}},
        }
    )


def log(folder: Path) -> Logs:
    return Logs(write_log(folder), schema())


@cache
def plan(*, epsilon: float = 1.0, batch: int = 40, steps: int = 60, **settings: object) -> TrainPlan:
    budget = Budget(epsilon=epsilon, delta=1e-5, unit=str(settings.pop("unit", "user")))
    epochs = steps * batch / USERS
    return TrainPlan.for_budget(budget, population=USERS, batch=batch, epochs=epochs, **settings)  # type: ignore[arg-type]


def audited(
    rows: Logs, chosen: TrainPlan, *, kind: Kind = "gradient", count: int = 300, model: nn.Module | None = None
) -> Run:
    torch.manual_seed(0)
    made = Logistic(rows.schema) if model is None else model
    return fit(made, rows, chosen, canaries=Canaries(count=count, kind=kind))
