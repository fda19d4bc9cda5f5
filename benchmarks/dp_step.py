"""What a private training step costs: `python -m benchmarks.dp_step --json`.

In one run, on the same rows and with a fresh batch at every step: ordinary PyTorch with sparse gradients and SGD,
Opacus's ghost clipping, and ours with each noise for tables. 26 categorical fields, 13 numbers, width 16, network
429-256-128-1. Every step draws its batch and gathers it from arrays in memory. Times are medians over repetitions in
which the contenders take turns; peak memory is that of a process of its own.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from accounting.budget import Budget
from benchmarks.harness import Figure, announced, json_line
from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models import losses
from privads.models.layers import FusedTable, Tower
from privads.training.engine import PrivateEngine
from privads.training.plan import TableNoise, TrainPlan

FIELDS, NUMBERS, WIDTH = 26, 13, 16
NETWORK = (FIELDS * WIDTH + NUMBERS, 256, 128, 1)
BATCH, USER_ROWS = 4096, 8
LEARNING_RATE = 0.05
GHOST_STEPS = 7
AIMS = {
    "lazy_over_ordinary": 1.1,
    "lazy_over_ghost": 1 / 15,
    "memory_over_ordinary": 1.1,
    "user_over_example": 1.2,
    "adafest_over_ordinary": 1.2,
}

_STATUS = Path("/proc/self/status")

Ids = Literal["zipf", "uniform"]
Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """table_rows: of all 26 tables together. examples: rows to draw from. batch: expected examples in a batch.
    ragged: a user has 1 to 15 examples, 8 on average, instead of 8."""

    table_rows: int
    examples: int = 400_000
    batch: int = BATCH
    ids: Ids = "zipf"
    ragged: bool = False

    @property
    def buckets(self) -> int:
        return self.table_rows // FIELDS

    @property
    def schema(self) -> Schema:
        return Schema.load(
            {
                "dataset": "made-up",
                "population": self.examples,
                "rows": self.examples,
                "unit": ["user"],
                "public": True,
                "labels": {"click": "click"},
                "numeric": {f"n{number}": {"range": [0, 1]} for number in range(NUMBERS)},
                "categorical": {f"c{number}": {"buckets": self.buckets} for number in range(FIELDS)},
            }
        )


class InMemory:
    """Rows in arrays: ids of one value a field, with frequencies 1 / rank or all the same. Eight rows have one user."""

    def __init__(self, workload: Workload) -> None:
        self.schema, self._rng = workload.schema, np.random.default_rng(0)
        shape = (workload.examples, FIELDS)
        weights = 1.0 / np.arange(1, workload.buckets + 1) if workload.ids == "zipf" else np.ones(workload.buckets)
        ranks = np.searchsorted(np.cumsum(weights) / weights.sum(), self._rng.random(shape, dtype=np.float32))
        ids = self._rng.permutation(workload.buckets)[np.minimum(ranks, workload.buckets - 1)]  # frequent ones apart
        self._ids = (ids + np.arange(FIELDS) * workload.buckets).astype(np.int32)
        self._dense = self._rng.random((workload.examples, NUMBERS), dtype=np.float32)
        self._labels = (self._rng.random(workload.examples) < 0.2).astype(np.float32)
        sizes = self._rng.integers(1, 2 * USER_ROWS, workload.examples) if workload.ragged else USER_ROWS
        self._units = np.repeat(np.arange(workload.examples), sizes)[: workload.examples]

    @property
    def units(self) -> NDArray[np.int64]:
        return self._units

    def check(self) -> None:
        """Nothing can be missing."""

    def reference(self, task: str) -> None:
        """There is no other predictor."""

    def take(self, row_numbers: NDArray[np.int64]) -> Batch:
        rows = len(row_numbers)
        return Batch(
            dense=torch.from_numpy(self._dense[row_numbers]),
            ids=torch.from_numpy(self._ids[row_numbers].ravel().astype(np.int64)),
            offsets=torch.arange(rows * FIELDS + 1),
            labels={"click": torch.from_numpy(self._labels[row_numbers])},
            observed={"click": torch.ones(rows, dtype=torch.bool)},
            weights=torch.ones(rows),
        )

    def draw(self, batch: int) -> Batch:
        """Returns a batch as ordinary training draws it."""
        return self.take(self._rng.integers(0, len(self._labels), batch))


class Net(nn.Module):
    """Embeddings beside numbers, under a network. ``layer`` makes the table: a `FusedTable`, or what Opacus knows."""

    def __init__(self, schema: Schema, table: nn.Module) -> None:
        super().__init__()
        self.table, self.tower, self.head = table, Tower(NETWORK[:-1]), nn.Linear(*NETWORK[-2:])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if isinstance(self.table, FusedTable):
            embedded = self.table(batch.ids, batch.offsets)
        else:
            embedded = self.table(batch.ids.view(batch.rows, FIELDS))
        x = torch.cat([embedded.reshape(batch.rows, FIELDS * WIDTH), batch.dense], dim=1)
        return {"click": self.head(self.tower(x)).squeeze(1)}


def ordinary(workload: Workload, rows: InMemory) -> Step:
    """Returns a step of PyTorch's own: sparse gradients, SGD."""
    model = Net(rows.schema, _table(workload, sparse=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def step() -> None:
        batch = rows.draw(workload.batch)
        loss = losses.per_row(model(batch), batch).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def ours(workload: Workload, rows: InMemory, *, noise: TableNoise, unit: str = "example", steps: int = 10_000) -> Step:
    """Returns a step of `PrivateEngine`."""
    by_user = 1 if unit == "example" else USER_ROWS
    most = 2 * USER_ROWS - 1 if workload.ragged and unit != "example" else by_user
    plan = TrainPlan.for_budget(
        Budget(epsilon=8.0, delta=1e-7, unit=unit),
        population=workload.examples // by_user,
        batch=workload.batch // by_user,
        epochs=steps * workload.batch / workload.examples,
        rows_per_unit=most,
        averaging=0.0,
        table_noise=noise,
    )
    engine = PrivateEngine(plan)
    inner = Net(rows.schema, _table(workload))
    sgd = torch.optim.SGD(inner.parameters(), lr=LEARNING_RATE)
    model, optimizer, batches = engine.make_private(inner, sgd, rows, loss=losses.per_row)
    source = iter(batches)

    def step() -> None:
        batch = next(source)
        engine.backward(losses.per_row(model(batch), batch))
        optimizer.step()

    return step


def opacus_ghost(workload: Workload, rows: InMemory) -> Step:
    """Returns a step of Opacus's ghost clipping, from its components."""
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
    from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    net = Net(rows.schema, nn.Embedding(FIELDS * workload.buckets, WIDTH))
    model = GradSampleModuleFastGradientClipping(net, max_grad_norm=1.0, use_ghost_clipping=True)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(model.parameters(), lr=LEARNING_RATE),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=workload.batch,
    )
    criterion = DPLossFastGradientClipping(model, optimizer, nn.BCEWithLogitsLoss(), loss_reduction="mean")

    def step() -> None:
        batch = rows.draw(workload.batch)
        optimizer.zero_grad()
        criterion(model(batch)["click"], batch.labels["click"]).backward()
        optimizer.step()

    return step


def medians(steps: Mapping[str, Step], *, repetitions: int) -> dict[str, float]:
    """Returns {name: median milliseconds}; the contenders take turns, so that a slow minute slows all of them."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repetitions + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            taken[name].append(1e3 * (time.perf_counter() - started))
    return {name: float(np.median(times[2:])) for name, times in taken.items()}  # the first two warm up


def compared(workload: Workload, *, repetitions: int) -> dict[str, float]:
    """Returns the medians of ordinary steps and of ours with lazy noise and with selected rows."""
    rows = InMemory(workload)
    noises: tuple[TableNoise, ...] = ("lazy", "adafest")
    steps = {"ordinary": ordinary(workload, rows)} | {noise: ours(workload, rows, noise=noise) for noise in noises}
    return medians(steps, repetitions=repetitions)


def reference_figures(size: int) -> Iterator[Figure]:
    """Yields what Opacus's ghost clipping and our dense noise take, with lazy steps in between."""
    workload, name = Workload(table_rows=size), _short(size)
    rows = InMemory(workload)
    steps = {noise: ours(workload, rows, noise=noise) for noise in get_args(TableNoise)}
    found = medians({**steps, "ghost": opacus_ghost(workload, rows)}, repetitions=GHOST_STEPS)
    for contender in ("dense", "ghost"):
        yield Figure(name=f"{contender}_step_{name}", value=found[contender], unit="ms")
    yield Figure(name=f"lazy_over_ghost_{name}", value=found["lazy"] / found["ghost"], unit="ratio", at_most=1 / 8)
    yield Figure(name=f"dense_over_ghost_{name}", value=found["dense"] / found["ghost"], unit="ratio")


def time_figures(sizes: Sequence[int], *, repetitions: int) -> Iterator[Figure]:
    """Yields steps and ratios for each size of the tables, and for Zipf and uniform ids."""
    for size in sizes:
        for ids in ("zipf", "uniform"):
            name = f"{_short(size)}_{ids}"
            found = compared(Workload(table_rows=size, ids=ids), repetitions=repetitions)
            for contender, milliseconds in found.items():
                yield Figure(name=f"{contender}_step_{name}", value=milliseconds, unit="ms")
            for contender, most in (("lazy", 1.3), ("adafest", 1.6)):
                ratio = found[contender] / found["ordinary"]
                limit = most if ids == "zipf" else None
                yield Figure(name=f"{contender}_over_ordinary_{name}", value=ratio, unit="ratio", at_most=limit)


def growth_figures(sizes: Sequence[int], batches: Sequence[int], *, repetitions: int) -> Iterator[Figure]:
    """Yields how the lazy step grows with the batch; with the rows it does by `time_figures`."""
    for batch in batches:
        workload = Workload(table_rows=sizes[0], batch=batch)
        found = compared(workload, repetitions=repetitions)
        ratio = found["lazy"] / found["ordinary"]
        yield Figure(name=f"lazy_step_batch_{batch}", value=found["lazy"], unit="ms")
        yield Figure(name=f"lazy_over_ordinary_batch_{batch}", value=ratio, unit="ratio")


def user_figures(size: int, *, repetitions: int) -> Iterator[Figure]:
    """Yields the step under unit user, of 8 examples or of 1 to 15, against that under unit example on as many."""
    for kind in ("", "_ragged"):
        workload = Workload(table_rows=size, ragged=bool(kind))
        rows = InMemory(workload)
        steps = {unit: ours(workload, rows, noise="lazy", unit=unit) for unit in ("example", "user")}
        found = medians(steps, repetitions=repetitions)
        yield Figure(name=f"user_step_{_short(size)}{kind}", value=found["user"], unit="ms")
        ratio = found["user"] / found["example"]
        yield Figure(name=f"user_over_example_{_short(size)}{kind}", value=ratio, unit="ratio", at_most=1.6)


def memory_figures(size: int, *, steps: int) -> Iterator[Figure]:
    """Yields the peak memory of processes that take ``steps`` steps each; only Linux tells."""
    if not _STATUS.is_file():
        return
    peaks = {}
    for contender in ("ordinary", "lazy"):
        command = [sys.executable, "-m", "benchmarks.dp_step", "--peak-of", contender, "--rows", str(size)]
        done = subprocess.run(
            [*command, "--steps", str(steps)],
            cwd=Path(__file__).resolve().parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[contender] = float(json.loads(done.stdout.splitlines()[-1])["mebibytes"])
        yield Figure(name=f"{contender}_peak_memory_{_short(size)}", value=peaks[contender], unit="MiB")
    ratio = peaks["lazy"] / peaks["ordinary"]
    yield Figure(name=f"memory_over_ordinary_{_short(size)}", value=ratio, unit="ratio", at_most=1.3)
    # (batch, rows, width) float32: Opacus's hooks hold a dense gradient of the table for every row of the batch
    hooks = BATCH * size * WIDTH * 4 / 2**20
    yield Figure(name=f"opacus_hooks_memory_needed_{_short(size)}", value=hooks, unit="MiB")


def peak_memory(contender: str, *, size: int, steps: int) -> float:
    """Returns the MiB that this process has used at most after ``steps`` steps."""
    workload = Workload(table_rows=size, examples=20 * BATCH)  # few: the rows count for both
    rows = InMemory(workload)
    step = ordinary(workload, rows) if contender == "ordinary" else ours(workload, rows, noise="lazy")
    for _ in range(steps):
        step()
    # Not ru_maxrss: a process begins with its parent's, and this one's parent may have held much more.
    return int(re.findall(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))[0]) / 2**10


def measure(*, quick: bool) -> Iterator[Figure]:
    """Yields all figures."""
    sizes, batches = ((26_000, 52_000), (512,)) if quick else ((1_000_000, 10_000_000), (1024, 16_384))
    repetitions = 3 if quick else 31
    yield from time_figures(sizes, repetitions=repetitions)
    yield from reference_figures(sizes[0])
    yield from growth_figures(sizes, batches, repetitions=repetitions)
    yield from user_figures(sizes[0], repetitions=repetitions)
    yield from memory_figures(sizes[-1], steps=3 if quick else 10)


def table(figures: Sequence[Figure]) -> Table:
    """Returns the figures for people to read."""
    shown = Table("figure", "value", "unit", "target", "aim", "holds", title="privads.training: one step")
    for one in figures:
        said = {True: "yes", False: "MISSED", None: ""}[one.holds]
        aim = next((aim for name, aim in AIMS.items() if one.holds is not None and one.name.startswith(name)), None)
        shown.add_row(
            one.name, f"{one.value:.4g}", one.unit, one.target or "", "" if aim is None else f"<= {aim:.3g}", said
        )
    return shown


def _table(workload: Workload, *, sparse: bool = False) -> FusedTable:
    table = FusedTable([1] * FIELDS, WIDTH, sparse=sparse)
    table.weight = nn.Parameter(torch.empty(FIELDS * workload.buckets, WIDTH).normal_(std=0.01))
    return table


def _short(size: int) -> str:
    return f"{size // 1_000_000}M" if size >= 1_000_000 else f"{size // 1000}k"


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: does it work?")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    threads: Annotated[int | None, typer.Option(help="Threads of torch; by default its own choice.")] = None,
    peak_of: Annotated[str | None, typer.Option(help="Only the peak memory of 'ordinary' or 'lazy'.")] = None,
    rows: Annotated[int, typer.Option(help="Rows of the tables, with --peak-of.")] = 1_000_000,
    steps: Annotated[int, typer.Option(help="Steps, with --peak-of.")] = 10,
) -> None:
    """Measure what a private training step costs."""
    if threads is not None:
        torch.set_num_threads(threads)
    if peak_of is not None:
        print(json.dumps({"mebibytes": peak_memory(peak_of, size=rows, steps=steps)}))
        return
    figures = announced(measure(quick=quick))
    if as_json:
        extra: dict[str, Any] = {"quick": quick, "aims": AIMS}
        print(json_line("dp_step", figures, **extra))
        return
    Console(width=None if sys.stdout.isatty() else 140).print(table(figures))


if __name__ == "__main__":
    typer.run(main)
