"""How long it takes to draw a private batch and to gather its rows from the cache.

The rows are made up: 13 numbers, 26 categories with ids that fall off as 1 / rank (Zipf), one label, written through
the cache that a log is read into. Each figure is the median over batches, each freshly drawn, and beside it the one
that 95 % of batches stay below.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.harness import Figure, announced, json_line, table
from privads.logs.cache import CachedRows, cached
from privads.logs.encode import Part, as_batch
from privads.logs.schema import Schema
from privads.training.sampling import Draw, PoissonSampler, TruncatedPoissonSampler

NUMERIC, CATEGORICAL, BUCKETS = 13, 26, 40_000
BATCH, ROWS_PER_USER = 4096, 8
MOST_DRAW_MS, MOST_GATHER_MS = 1.0, 10.0
CHUNK_ROWS = 1 << 17


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    rows: int
    batches: int


FULL, QUICK = Sizes(rows=10_000_000, batches=200), Sizes(rows=100_000, batches=20)


def schema(rows: int) -> Schema:
    """Returns the public facts of the made-up rows."""
    return Schema.load(
        {
            "dataset": "made-up",
            "population": max(1, rows // ROWS_PER_USER),
            "rows": rows,
            "unit": ["user"],
            "public": True,
            "labels": {"click": "click"},
            "numeric": {f"n{number}": {"range": [0, 1]} for number in range(NUMERIC)},
            "categorical": {f"c{number}": {"buckets": BUCKETS} for number in range(CATEGORICAL)},
        }
    )


def parts(facts: Schema, rows: int, *, seed: int = 0) -> Iterator[Part]:
    """Yields ``rows`` made-up encoded rows, the users' rows far from each other, as in a log in order of time."""
    rng = np.random.default_rng(seed)
    starts = np.array(facts.bucket_starts[:-1])
    for first in range(0, rows, CHUNK_ROWS):
        size = min(CHUNK_ROWS, rows - first)
        rank = np.exp(rng.random((size, CATEGORICAL), dtype=np.float32) * np.log(BUCKETS)).astype(np.int32)
        users = rng.integers(0, max(1, rows // ROWS_PER_USER), size)
        yield Part(
            dense=rng.random((size, NUMERIC), dtype=np.float32),
            ids=(starts + np.minimum(rank, BUCKETS - 1)).astype(np.int32),
            labels={"click": (rng.random(size) < 0.1).astype(np.float32)},
            observed={"click": np.ones(size, dtype=np.bool_)},
            reference={},
            units=[users.astype(str).astype(object)],
            times=np.zeros(size, dtype="datetime64[us]"),
            fits=np.ones(size, dtype=np.bool_),
        )


def milliseconds(action: Callable[[], object], times: int) -> NDArray[np.float64]:
    """Returns how long each of ``times`` calls took, after a few that do not count."""
    for _ in range(5):
        action()
    taken = np.empty(times)
    for number in range(times):
        started = time.perf_counter()
        action()
        taken[number] = (time.perf_counter() - started) * 1e3
    return taken


def batch_figures(rows: CachedRows, sizes: Sizes) -> Iterator[Figure]:
    """Yields the time of a draw, and of a draw and its rows, for each unit and sampler."""
    generator = np.random.default_rng(0)
    by_row, by_user = BATCH / len(rows.units), min(1.0, BATCH / (int(rows.units[-1]) + 1))
    samplers: dict[str, PoissonSampler | TruncatedPoissonSampler] = {
        "example": PoissonSampler(
            np.arange(len(rows.units)), sampling_rate=by_row, rows_per_unit=1, generator=generator
        ),
        "user": PoissonSampler(rows.units, sampling_rate=by_user, rows_per_unit=ROWS_PER_USER, generator=generator),
        "truncated_user": TruncatedPoissonSampler(
            rows.units,
            sampling_rate=by_user,
            rows_per_unit=ROWS_PER_USER,
            largest_batch=BATCH + BATCH // 16,
            generator=generator,
        ),
    }
    for name, sampler in samplers.items():
        target = name == "example"

        def gather(draw: Callable[[], Draw] = sampler.draw) -> object:
            return as_batch(rows, draw().row_numbers)

        actions: tuple[tuple[str, Callable[[], object], float], ...] = (
            ("draw", sampler.draw, MOST_DRAW_MS),
            ("draw_and_gather", gather, MOST_GATHER_MS),
        )
        for what, action, most in actions:
            taken = milliseconds(action, sizes.batches)
            median, slow = float(np.median(taken)), float(np.quantile(taken, 0.95))
            yield Figure(name=f"{name}_{what}", value=median, unit="ms", at_most=most if target else None)
            yield Figure(name=f"{name}_{what}_95", value=slow, unit="ms")
        drawn = [len(sampler.draw().row_numbers) for _ in range(10)]
        yield Figure(name=f"{name}_rows", value=float(np.mean(drawn)), unit="rows a batch")


def measure(folder: Path, sizes: Sizes) -> Iterator[Figure]:
    """Yields all figures."""
    facts = schema(sizes.rows)
    started = time.perf_counter()
    rows = cached(lambda: parts(facts, sizes.rows), facts, folder=folder)
    yield Figure(name="rows", value=float(sizes.rows), unit="rows")
    yield Figure(name="write_and_group", value=time.perf_counter() - started, unit="s")
    yield Figure(name="row_bytes", value=float(rows.dense.strides[0]), unit="bytes")
    yield from batch_figures(rows, sizes)


def main(
    folder: Annotated[
        Path | None, typer.Option(help="Where the cache is written; by default the temporary folder.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: does it work?")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Measure drawing and gathering batches of 4096 from 10 million rows."""
    figures = announced(measure(folder or Path(tempfile.gettempdir()), QUICK if quick else FULL))
    if as_json:
        print(json_line("rows", figures, quick=quick, batch=BATCH))
        return
    Console(width=None if sys.stdout.isatty() else 140).print(table(figures, title="privads.logs.cache"))


if __name__ == "__main__":
    typer.run(main)
