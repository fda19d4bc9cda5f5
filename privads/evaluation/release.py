"""Metrics of a model on private rows, released with privacy: one noisy histogram of scores for each task.

What is released is the vector of all tasks' `ScoreHistogram`s. One unit keeps at most m = rows_per_unit rows, each of
which adds 1 to one cell of each of T tasks; all m may lie in one cell, so the unit moves the vector by at most

    sensitivity = m √T  in L2, and the noise is N(0, (noise_multiplier · m √T)²) in every cell.

Guarantees, each with a test: nothing is read before the ledger was charged in full; the noise has the stated standard
deviation in every cell, empty ones too; rows beyond a unit's m are dropped before they are scored, by fresh randomness
and the unit's own rows alone; no value of a row (a score that is no number, a label out of range, a failure inside the
model) decides whether something raises. The model must score each row by itself and must itself be public or released
with privacy. Floating point: idealized; the noise is the sum of four normals in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from dp_accounting import dp_event
from numpy.typing import NDArray
from torch import nn

from accounting import calibrate, mechanisms
from accounting.budget import EXAMPLE, Budget
from accounting.ledger import Entry, Ledger
from privads.batch import Rows, padding, settled
from privads.charge import open_charge
from privads.evaluation.histogram import Grid, HistogramMetrics, ScoreHistogram
from privads.evaluation.metrics import Floats
from privads.logs.schema import Schema
from privads.models.heads import heads_of
from privads.noise import Randomness
from privads.training.run import Run, check_same_data
from privads.training.sampling import kept_rows

RELEASE_GRID = Grid(bins=72)
"""Bins of 0.25 in log-odds: calibration is off by 0.3 %, and noise is in 144 cells a task."""

_CHUNK_ROWS = 1 << 16


class ReleaseError(ValueError):
    """The rows could not be scored; which and why is private."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MetricsRelease:
    """Noisy histograms by task, what they cost, and what they say."""

    budget: Budget
    event: dp_event.DpEvent
    noise_std: float
    rows_per_unit: int
    histograms: Mapping[str, ScoreHistogram]
    metrics: Mapping[str, HistogramMetrics]
    entry: Entry | None = field(default=None, repr=False)


def release_metrics(
    model: nn.Module | Run,
    logs: Rows,
    budget: Budget,
    *,
    ledger: Ledger | None,
    rows_per_unit: int = 1,
    tasks: Sequence[str] | None = None,
    grid: Grid = RELEASE_GRID,
    insecure_seed: int | None = None,
    level: float = 0.95,
) -> MetricsRelease:
    """Returns the model's metrics on ``logs`` with noise that keeps ``budget``, charged before the first row is read.

    rows_per_unit: the most rows of one unit that count, a uniform choice of its rows; noise grows with it. tasks: of
    yes or no, all of the schema's where None. ledger: None only where the schema declares the log public, as
    insecure_seed.
    A failure after the charge gives nothing back.
    """
    schema = logs.schema
    chosen = _checked(schema, budget, ledger, rows_per_unit, tasks, insecure_seed)
    if isinstance(model, Run):
        check_same_data(model.schema, schema)
        model = model.model
    _check_outputs(model, schema, chosen)
    logs.check()
    sensitivity = rows_per_unit * math.sqrt(len(chosen))
    multiplier = calibrate.noise_multiplier(lambda s: mechanisms.gaussian(noise_multiplier=s), budget)
    event, noise_std = mechanisms.gaussian(noise_multiplier=multiplier), multiplier * sensitivity
    randomness = Randomness(insecure_seed=insecure_seed, secure=insecure_seed is None)

    entry = None if ledger is None else open_charge(ledger, schema.dataset, event, budget, purpose="release metrics")
    exact = _counted(model, logs, chosen, grid, budget.unit, rows_per_unit, randomness.generator)
    histograms = _noised(exact, event, noise_std, randomness)
    if ledger is not None and entry is not None:
        entry = ledger.commit(entry)
    return MetricsRelease(
        budget=budget,
        event=event,
        noise_std=noise_std,
        rows_per_unit=rows_per_unit,
        histograms=histograms,
        metrics={task: one.metrics(level=level) for task, one in histograms.items()},
        entry=entry,
    )


def _noised(
    exact: Mapping[str, ScoreHistogram], event: dp_event.DpEvent, noise_std: float, randomness: Randomness
) -> dict[str, ScoreHistogram]:
    """Returns the histograms with independent N(0, noise_std²) in every cell: the only step that releases anything."""

    def noisy(counts: Floats) -> Floats:
        exactly = torch.from_numpy(counts)
        return np.asarray((exactly + randomness.normal_like(exactly, noise_std=noise_std)).numpy())

    return {
        task: replace(
            one, positives=noisy(one.positives), negatives=noisy(one.negatives), noise_std=noise_std, event=event
        )
        for task, one in exact.items()
    }


def _counted(
    model: nn.Module,
    logs: Rows,
    tasks: Sequence[str],
    grid: Grid,
    unit: str,
    rows_per_unit: int,
    generator: np.random.Generator,
) -> dict[str, ScoreHistogram]:
    """Returns the exact histograms of at most ``rows_per_unit`` rows of each unit; a label that is unobserved, or whose
    window is still open, adds nothing.
    """
    heads = heads_of(logs.schema)
    histograms = {task: replace(ScoreHistogram.empty(grid), rows_per_unit=rows_per_unit) for task in tasks}
    try:
        numbers = _kept(logs.units, unit, rows_per_unit, generator)
        model.eval()
        device = next((one.device for one in model.parameters()), torch.device("cpu"))
        for start in range(0, len(numbers), _CHUNK_ROWS):
            batch = logs.take(numbers[start : start + _CHUNK_ROWS])
            with torch.no_grad():
                outputs, settled_in = model(batch.to(device)), settled(batch, logs.schema)
            for task in tasks:
                known = settled_in[task].numpy()
                score = heads[task].read(outputs[task].double())["probability"].cpu().numpy()[known]
                label = batch.labels[task].numpy()[known] == 1.0
                part = ScoreHistogram.of(label, np.nan_to_num(score, nan=0.5), grid=grid)
                histograms[task] = histograms[task] + part
    except Exception:
        if logs.schema.public:
            raise
        # What failed may be one person's row, so neither its text nor the place is told.
        raise ReleaseError(f"the rows of data set {logs.schema.dataset!r} could not be read or scored") from None
    return histograms


def _kept(units: NDArray[np.int64], unit: str, rows_per_unit: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Returns the numbers of the rows that count; a row that is its own unit always does."""
    if unit == EXAMPLE or not len(units):
        return np.arange(len(units))
    codes = np.unique(units, return_inverse=True)[1].astype(np.int64)
    return np.sort(kept_rows(codes, rows_per_unit, generator))


def _checked(
    schema: Schema,
    budget: Budget,
    ledger: Ledger | None,
    rows_per_unit: int,
    tasks: Sequence[str] | None,
    insecure_seed: int | None,
) -> tuple[str, ...]:
    """Returns the tasks; refuses what public facts forbid. Reads no row."""
    if type(rows_per_unit) is not int or rows_per_unit < 1:
        raise ValueError(f"rows_per_unit must be a whole number of at least 1, got {rows_per_unit!r}")
    if budget.unit == EXAMPLE and rows_per_unit != 1:
        raise ValueError(f"rows_per_unit must be 1 where each row is its own unit, got {rows_per_unit}")
    if budget.neighbors == "replace-label":
        raise ValueError("metrics are released for neighbors 'add-remove' or 'replace', got 'replace-label'")
    schema.check_unit(budget.unit)
    schema.check_history(budget.unit)
    chosen = tuple(schema.events if tasks is None else tasks)
    if not schema.events:
        raise ValueError("metrics are released of probabilities, and the schema has no label of yes or no")
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(schema.tasks):
        raise ValueError(f"tasks must be different ones of {list(schema.tasks)}, got {list(chosen)}")
    for task in chosen:
        schema.check_event(task)
    if not schema.public and ledger is None:
        raise ValueError(f"a release from data set {schema.dataset!r} needs its ledger: pass ledger=Ledger.open(URL)")
    if not schema.public and insecure_seed is not None:
        raise ValueError(f"insecure_seed is refused: data set {schema.dataset!r} is not declared public")
    return chosen


def _check_outputs(model: nn.Module, schema: Schema, tasks: Sequence[str]) -> None:
    """Refuse a model whose outputs on made-up rows are not those of each task's label."""
    model.eval()
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        outputs = model(padding(schema, 2).to(device))
    for task in tasks:
        width = heads_of(schema)[task].width
        shape, said = ((2,), "a logit of shape (rows,)") if width == 1 else ((2, width), f"shape (rows, {width})")
        if not isinstance(outputs, Mapping) or task not in outputs or tuple(outputs[task].shape) != shape:
            raise ValueError(f"the model must return {said} for task {task!r}")
