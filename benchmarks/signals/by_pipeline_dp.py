"""The tables of `benchmarks.signals.speed` by PipelineDP, in a Python of its own: it needs other packages' versions.

It is run as ``python by_pipeline_dp.py FILE FACTS`` and imports nothing of this project; it prints what it needed.
"""

import itertools
import json
import sys
import time
from collections.abc import Iterator

import pipeline_dp  # type: ignore[import-not-found, unused-ignore]
import pyarrow.parquet


def main(path: str, facts: dict) -> None:  # type: ignore[type-arg]
    """Print the seconds that reading, bounding, counting and noise took, and how many cells there are."""
    started = time.perf_counter()
    values, most = facts["values"], facts["rows_per_user"]
    keys = [*((one,) for one in values), *itertools.combinations(values, 2)]
    cells = [
        (key, *cell, click)
        for key in keys
        for cell in itertools.product(*(values[one] for one in key))
        for click in (0, 1)
    ]

    def contributions() -> Iterator[tuple[str, tuple[object, ...]]]:
        for row in pyarrow.parquet.read_table(path).to_pylist():
            for key in keys:
                yield row["user"], (key, *(row[one] for one in key), row["click"])

    budget = pipeline_dp.NaiveBudgetAccountant(total_epsilon=facts["epsilon"], total_delta=facts["delta"])
    engine = pipeline_dp.DPEngine(budget, pipeline_dp.LocalBackend())
    made = engine.aggregate(
        contributions(),
        pipeline_dp.AggregateParams(
            noise_kind=pipeline_dp.NoiseKind.GAUSSIAN,
            metrics=[pipeline_dp.Metrics.COUNT],
            max_partitions_contributed=most * len(keys),
            max_contributions_per_partition=most,
        ),
        pipeline_dp.DataExtractors(
            privacy_id_extractor=lambda one: one[0],
            partition_extractor=lambda one: one[1],
            value_extractor=lambda _: 0,
        ),
        public_partitions=cells,
    )
    budget.compute_budgets()
    found = sum(1 for _ in made)
    print(json.dumps({"seconds": time.perf_counter() - started, "cells": found, "mebibytes": None}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
