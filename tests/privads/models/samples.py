"""A small schema and random batches of it."""

from collections.abc import Mapping
from typing import Any

import torch

from privads.batch import Batch
from privads.logs.labels import ValueLabel
from privads.logs.schema import Schema

EVERY_KIND = {
    "click": "click",
    "orders": {"value": "orders", "kind": "count", "most": 20},
    "spend": {"value": "spend", "kind": "log-normal", "most": 400},
    "stars": {"value": "stars", "kind": "ordinal", "most": 4},
    "buy": {"time": "bought_at", "within_hours": 24, "waiting": True},
    "install": {"time": "installed_at", "within_hours": 48, "waiting": True, "median_hours": 4},
}
"""A label of every kind: 1 + 1 + 3 + 3 + 2 + 1 outputs."""


def schema(
    *,
    numeric: int = 2,
    buckets: tuple[int, ...] = (5, 7, 3),
    tasks: tuple[str, ...] = ("click", "buy"),
    labels: Mapping[str, Any] | None = None,
) -> Schema:
    return Schema.load(
        {
            "dataset": "x",
            "population": 10,
            "time": "shown_at",
            "labels": {task: task for task in tasks} if labels is None else labels,
            "numeric": {f"n{number}": {"range": [0, 10]} for number in range(numeric)},
            "categorical": {f"c{number}": {"buckets": size} for number, size in enumerate(buckets)},
        }
    )


def random_batch(facts: Schema, rows: int, seed: int = 0, *, longest: int = 1) -> Batch:
    """Bags of length 1, or of 0 to ``longest``."""
    generator = torch.Generator().manual_seed(seed)
    starts, fields = facts.bucket_starts, len(facts.categorical)
    lengths = torch.randint(0, longest + 1, (rows * fields,), generator=generator)
    if longest == 1:
        lengths = torch.ones(rows * fields, dtype=torch.int64)
    ids = [
        torch.randint(starts[bag % fields], starts[bag % fields + 1], (int(length),), generator=generator)
        for bag, length in enumerate(lengths)
    ]
    return Batch(
        dense=torch.rand(rows, len(facts.numeric), generator=generator) * 2 - 1,
        ids=torch.cat(ids) if ids else torch.zeros(0, dtype=torch.int64),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        labels={task: _labels(facts, task, rows, generator) for task in facts.tasks},
        observed={task: torch.rand(rows, generator=generator) < 0.6 for task in facts.tasks},
        weights=torch.ones(rows),
        hours={
            task: label.within_hours * torch.rand(rows, 2, generator=generator).cumprod(1).flip(1)
            for task, label in facts.waiting.items()
        },
    )


def _labels(facts: Schema, task: str, rows: int, generator: torch.Generator) -> torch.Tensor:
    label, event = facts.labels[task], torch.randint(0, 2, (rows,), generator=generator).float()
    match label:
        case ValueLabel(kind="ordinal"):
            return torch.randint(1, int(label.most) + 1, (rows,), generator=generator).float()
        case ValueLabel(kind="count"):
            return torch.randint(0, 4, (rows,), generator=generator).float()
        case ValueLabel():
            return event * torch.exp(2 * torch.randn(rows, generator=generator))
    return event
