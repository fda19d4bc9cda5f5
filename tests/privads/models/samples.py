"""A small schema and random batches of it."""

import torch

from privads.batch import Batch
from privads.logs.schema import Schema


def schema(
    *, numeric: int = 2, buckets: tuple[int, ...] = (5, 7, 3), tasks: tuple[str, ...] = ("click", "buy")
) -> Schema:
    return Schema.load(
        {
            "dataset": "x",
            "population": 10,
            "labels": {task: task for task in tasks},
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
        labels={task: torch.randint(0, 2, (rows,), generator=generator).float() for task in facts.tasks},
        observed={task: torch.rand(rows, generator=generator) < 0.6 for task in facts.tasks},
        weights=torch.ones(rows),
    )
