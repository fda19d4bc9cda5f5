"""How long a release of all single columns and pairs takes, in what memory, and how fast noise is drawn.

The rows are made up: categories of 10 to 100 values whose first are the most frequent, about ten rows a user, a click
in twenty rows. Each way keeps at most `ROWS_PER_USER` random rows of a user, counts clicks and other rows by every
column and pair, and adds noise to all declared cells, in a process of its own: its peak of memory is then its own.
DuckDB has two threads. pandas plans nothing, and its noise is numpy's, of a standard deviation that somebody said: that
protects nobody. PipelineDP runs with its local backend.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from accounting.budget import Budget
from benchmarks.harness import Figure
from privads.logs.schema import Schema
from privads.noise import Randomness
from privads.signals.query import OneOf, singles_and_pairs
from privads.signals.release import Release
from privads.signals.rows import Warehouse

EPSILON, DELTA = 3.0, 1e-7
ROWS_PER_USER = 8
CHUNK_ROWS = 1_000_000
SECONDS_ALLOWED, CELLS_ALLOWED, DRAWS_WANTED = 60.0, 10_000_000, 5e6
NOISE_STD = 100.0
_STATUS = Path("/proc/self/status")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured; of the slower ways, at most so many rows and columns."""

    rows: int = 10_000_000
    columns: int = 20
    pandas_rows: int = 1_000_000
    pipeline_dp_rows: int = 10_000
    pipeline_dp_columns: int = 5
    draws: int = 5_000_000


QUICK = Sizes(rows=20_000, columns=4, pandas_rows=20_000, pipeline_dp_rows=1000, pipeline_dp_columns=3, draws=100_000)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a way needed. mebibytes: its peak of memory beyond what its process had before; only Linux tells."""

    seconds: float
    cells: int
    mebibytes: float | None


def values(columns: int) -> dict[str, tuple[str, ...]]:
    """Returns the public values of each column."""
    sizes = np.linspace(10, 100, columns).astype(int).tolist()
    return {f"c{i}": tuple(f"v{j}" for j in range(size)) for i, size in enumerate(sizes)}


def write(path: Path, rows: int, columns: int) -> None:
    """Write made-up rows as Parquet, a million at a time."""
    rng, writer = np.random.default_rng(0), None
    for start in range(0, rows, CHUNK_ROWS):
        count = min(CHUNK_ROWS, rows - start)
        made = {}
        for name, texts in values(columns).items():
            codes = (rng.random(count) ** 2 * len(texts)).astype(np.int8)
            made[name] = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(texts))
        made["user"] = pa.array(rng.integers(0, max(rows // 10, 1), count)).cast(pa.string())
        made["click"] = pa.array((rng.random(count) < 0.05).astype(np.int8))
        part = pa.table(made)
        writer = writer or pq.ParquetWriter(path, part.schema)
        writer.write_table(part)
    if writer is not None:
        writer.close()


def plan(columns: int) -> Release:
    """Returns the release of all tables."""
    parts = [OneOf(column=name, values=texts) for name, texts in values(columns).items()]
    budget = Budget(epsilon=EPSILON, delta=DELTA, unit="user")
    return Release.of(singles_and_pairs(parts, label="click"), budget, rows_per_unit=ROWS_PER_USER)


def by_privads(path: Path, columns: int) -> int:
    """Releases the tables through DuckDB; returns how many cells they have."""
    import ibis

    rows = pq.ParquetFile(path).metadata.num_rows
    facts = {
        "dataset": "made-up",
        "population": max(rows // 10, 1),
        "rows": rows,
        "unit": ["user"],
        "public": True,
        "labels": {"click": "click"},
        "categorical": {name: {"buckets": 128} for name in values(columns)},
    }
    connection = ibis.duckdb.connect()
    with tempfile.TemporaryDirectory() as folder:
        for setting in (
            "memory_limit='2GB'", "threads=2", "preserve_insertion_order=false", f"temp_directory='{folder}'",
        ):  # fmt: skip
            connection.raw_sql(f"SET {setting}")
        source = Warehouse(table=connection.read_parquet(path), schema=Schema.load(facts))
        made = plan(columns).run(source, ledger=None, purpose="benchmark")
        connection.disconnect()
    return sum(len(counts) for table in made.tables for counts in table.values.values())


def by_pandas(path: Path, columns: int) -> int:
    """Counts the same tables with pandas; returns how many cells they have."""
    rng, cells = np.random.default_rng(), 0
    frame = pd.read_parquet(path).sample(frac=1, random_state=rng)
    frame = frame[frame.groupby("user").cumcount() < ROWS_PER_USER]
    kept = frame.assign(click=frame["click"].astype("category"))
    names = list(values(columns))
    for key in (*((one,) for one in names), *itertools.combinations(names, 2)):
        counts = kept.groupby([*key, "click"], observed=False).size()
        cells += len(counts + np.round(NOISE_STD * rng.standard_normal(len(counts))))
    return cells


WAYS: dict[str, Callable[[Path, int], int]] = {"privads": by_privads, "pandas": by_pandas}


def measured(path: Path, way: str, columns: int) -> Run:
    """Returns what one of `WAYS` needs in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.signals.speed", way, str(path), str(columns)]
    return _told(command)


def measured_pipeline_dp(path: Path, columns: int, python: Path) -> Run:
    """Returns what PipelineDP needs with the Python that has it."""
    script = str(Path(__file__).with_name("by_pipeline_dp.py"))
    facts = {"values": values(columns), "rows_per_user": ROWS_PER_USER, "epsilon": EPSILON, "delta": DELTA}
    return _told([str(python), script, str(path), json.dumps(facts)])


def release_figures(folder: Path, sizes: Sizes, *, pipeline_dp: Path | None = None) -> Iterator[Figure]:
    """Yields what the release needs, and the other ways beside it, at the size that each can do."""
    ways = [("privads", sizes.rows, sizes.columns), ("pandas", sizes.pandas_rows, sizes.columns)]
    if pipeline_dp is not None:
        # the size that PipelineDP can do, by every way
        size = (sizes.pipeline_dp_rows, sizes.pipeline_dp_columns)
        ways += [("privads", *size), ("pandas", *size), ("pipeline_dp", *size)]
    for way, rows, columns in ways:
        path = folder / f"{rows}_{columns}.parquet"
        if not path.exists():
            write(path, rows, columns)
        if way == "pipeline_dp" and pipeline_dp is not None:
            run = measured_pipeline_dp(path, columns, pipeline_dp)
        else:
            run = measured(path, way, columns)
        promised = way == "privads" and rows == Sizes.rows
        name = "ten_million_rows" if promised else f"{way}_{rows}_rows_{columns}_columns"
        yield Figure(name=f"{name}_seconds", value=run.seconds, unit="s", at_most=SECONDS_ALLOWED if promised else None)
        if run.mebibytes is not None:
            yield Figure(name=f"{name}_memory", value=run.mebibytes, unit="MiB beyond the start")
        yield Figure(name=f"{name}_cells", value=run.cells, unit="cells", at_most=CELLS_ALLOWED if promised else None)
        tables = columns * (columns + 1) // 2
        yield Figure(name=f"{name}_rate", value=rows * tables / run.seconds, unit="rows counted in a table a second")


def noise_figures(sizes: Sizes) -> Iterator[Figure]:
    """Yields how many whole-number draws a second each law gives, the best of three times on one core."""
    source = Randomness()
    laws: dict[str, Callable[[], object]] = {
        "discrete_gaussian": lambda: source.discrete_gaussian(sizes.draws, noise_std=NOISE_STD),
        "discrete_laplace": lambda: source.discrete_laplace(sizes.draws, scale=NOISE_STD),
        "rounded_gaussian": lambda: source.rounded_gaussian(sizes.draws, noise_std=NOISE_STD),
    }
    for name, draw in laws.items():
        taken = []
        for _ in range(3):
            started = time.perf_counter()
            draw()
            taken.append(time.perf_counter() - started)
        yield Figure(name=f"{name}_draws", value=sizes.draws / min(taken), unit="draws a second", at_least=DRAWS_WANTED)


def _told(command: list[str]) -> Run:
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def _peak_mebibytes() -> float | None:
    # Not ru_maxrss: a process begins with its parent's, and this one's parent may have held much more.
    if not _STATUS.is_file():
        return None
    return int(re.findall(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))[0]) / 2**10


def _run(way: Annotated[str, typer.Argument()], path: Path, columns: int) -> None:
    before, started = _peak_mebibytes(), time.perf_counter()
    cells = WAYS[way](path, columns)
    seconds, after = time.perf_counter() - started, _peak_mebibytes()
    beyond = None if before is None or after is None else after - before
    print(json.dumps(asdict(Run(seconds=seconds, cells=cells, mebibytes=beyond))))


if __name__ == "__main__":
    typer.run(_run)
