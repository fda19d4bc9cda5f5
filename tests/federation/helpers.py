"""The obvious way to train users: one at a time, on a copy of the whole model, by torch's own optimizer."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from accounting.budget import Budget
from federation.plan import FederatedPlan
from federation.task import Task
from privads.batch import Batch
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from tests.privads.training.helpers import USERS, logs

__all__ = ["USERS", "logs"]


def calibrated(*, epsilon: float = 8.0, neighbors: Any = "add-remove", **settings: Any) -> FederatedPlan:
    budget = Budget(epsilon=epsilon, delta=1e-5, unit="user", neighbors=neighbors)
    given = {"population": USERS, "cohort": 40, "rounds": 5, "clip_norm": 0.5, **settings}
    return FederatedPlan.for_budget(budget, **given)


def plan(*, neighbors: Any = "add-remove", **settings: Any) -> FederatedPlan:
    """Returns a plan with noise 1, or 3 under local noise, whose cost is looked up once and not searched for."""
    local = settings.get("mechanism") == "local"
    count = {"count_noise_multiplier": 4.0} if "clip_quantile" in settings else {}
    given = {"population": USERS, "cohort": 40, "rounds": 5, "clip_norm": 0.5, **count, **settings}
    if local:
        given.setdefault("participations", given["rounds"])
    budget = Budget(epsilon=100.0, delta=1e-5, unit="user", neighbors=neighbors)
    return FederatedPlan(budget=budget, noise_multiplier=3.0 if local else 1.0, **given)


def twin(**settings: Any) -> FederatedPlan:
    return FederatedPlan.without_privacy(**{"population": USERS, "cohort": 40, "rounds": 5, **settings})


def private_logs(folder: Path) -> Logs:
    return logs(folder, public=False)


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}


def pick(batch: Batch, rows: list[int]) -> Batch:
    """Returns these rows of a batch, bags and all."""
    fields = (len(batch.offsets) - 1) // batch.rows
    bags = [
        batch.ids[batch.offsets[i] : batch.offsets[i + 1]] for r in rows for i in range(r * fields, (r + 1) * fields)
    ]
    lengths = torch.tensor([0, *map(len, bags)])
    return Batch(
        dense=batch.dense[rows],
        ids=torch.cat(bags) if bags else batch.ids[:0],
        offsets=lengths.cumsum(0),
        labels={task: one[rows] for task, one in batch.labels.items()},
        observed={task: one[rows] for task, one in batch.observed.items()},
        weights=batch.weights[rows],
        hours={task: one[rows] for task, one in batch.hours.items()},
    )


def rows_of_steps(task: Task, rows: list[int]) -> Iterator[list[int]]:
    """Yields the rows of each local step: all, or ``local_rows`` of them, around again at the end."""
    for step in range(task.local_steps):
        size = len(rows) if task.local_rows is None else min(task.local_rows, len(rows))
        first = 0 if task.local_rows is None else step * task.local_rows
        yield [rows[(first + k) % len(rows)] for k in range(size)]


def update_of_one(task: Task, schema: Schema, batch: Batch, rows: list[int]) -> Mapping[str, Tensor]:
    """Returns {name: theta_sent - theta_local} of a user who owns these rows."""
    model, loss = copy.deepcopy(task.model), task.loss_for(schema)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=task.local_learning_rate)
    for some in rows_of_steps(task, rows) if rows else ():
        optimizer.zero_grad()
        part = pick(batch, some)
        loss(model(part), part).mean().backward()
        optimizer.step()
    sent, now = trained(task.model), trained(model)
    return {name: sent[name] - now[name] for name in sent}
