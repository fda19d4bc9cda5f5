"""Fitting features to ten million rows and reading the rows through them: how long, and in how much memory.

The pipeline has a vocabulary for each category, three rates (one of a cross), the quantiles of each number, one of them
standardized, a missing indicator, a hashed cross, and how often and how long ago the user was there before, under unit
user: 14 tables in one release. Rows come from Parquet files of about a million rows each, and go through the transforms
into the row cache that training reads.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pyarrow.compute
import pyarrow.parquet
import typer
from rich.console import Console

from accounting.budget import Budget
from benchmarks.harness import Figure, announced, json_line, table
from privads.features.pipeline import fit_features
from privads.features.transforms import (
    Frequency,
    Hashed,
    Missing,
    Pipeline,
    Quantiles,
    Rate,
    Recency,
    Standardized,
    Vocabulary,
)
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.logs.simulator import schema_toml, simulate

USERS = 250_000
"""Users of a file; they have about four rows each."""

FILES, QUICK_FILES, QUICK_USERS = 10, 2, 500
MOST_SECONDS = 60.0
BUDGET = Budget(epsilon=1.0, delta=1e-8, unit="user")


def write(folder: Path, files: int, users: int) -> Schema:
    """Returns the schema of the log that it writes: ``files`` files whose users are all different."""
    for number in range(files):
        made = simulate(users, seed=number)
        own = pyarrow.compute.binary_join_element_wise(made["user_id"], str(number), ".")
        place = made.schema.get_field_index("user_id")
        pyarrow.parquet.write_table(made.set_column(place, "user_id", own), folder / f"part-{number}.parquet")
    return Schema.parse(schema_toml(files * users, public=True))


def pipeline(schema: Schema) -> Pipeline:
    """Returns the transforms that are measured."""
    (label,) = schema.tasks
    return Pipeline(
        transforms=(
            *(Vocabulary(columns=(name,), label=label) for name in schema.categorical),
            *(Rate(columns=(name,), label=label) for name in ("campaign", "advertiser")),
            Rate(columns=("interest", "advertiser"), label=label),
            *(Quantiles(column=name) for name in schema.numeric),
            Standardized(column="bid_usd"),
            Missing(column="price_usd"),
            Hashed(columns=("device", "creative_size"), buckets=64),
            Frequency(),
            Recency(),
        )
    )


def measure(folder: Path, files: int, users: int) -> Iterator[Figure]:
    """Yields all figures."""
    schema = write(folder, files, users)
    before = _peak_mb()
    logs, asked = Logs(folder, schema, cache=Path(tempfile.gettempdir())), pipeline(schema)
    started = time.perf_counter()
    features = fit_features(asked, logs, BUDGET, rows_per_unit=4)
    fitted = time.perf_counter()
    rows = len(logs.with_features(features).units)
    done = time.perf_counter()
    yield Figure(name="rows", value=float(rows), unit="rows")
    yield Figure(name="tables", value=float(len(asked.queries(schema))), unit="tables")
    yield Figure(name="fit", value=fitted - started, unit="s")
    yield Figure(name="transform_and_cache", value=done - fitted, unit="s")
    yield Figure(name="whole_pipeline", value=done - started, unit="s", at_most=MOST_SECONDS)
    yield Figure(name="peak_memory_beyond_start", value=_peak_mb() - before, unit="MB")


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: does it work?")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Measure fitting features to ten million rows, and reading the rows through them."""
    files, users = (QUICK_FILES, QUICK_USERS) if quick else (FILES, USERS)
    with tempfile.TemporaryDirectory() as folder:
        figures = announced(measure(Path(folder), files, users))
    if as_json:
        print(json_line("features", figures, quick=quick))
        return
    Console(width=None if sys.stdout.isatty() else 140).print(table(figures, title="privads.features"))


if __name__ == "__main__":
    typer.run(main)
