"""Metrics of a model on private rows, released with privacy: readings of noisy tables of score by label.

A release counts, for each of T tasks, the rows by bin of the score and label, and once more by each of S columns of
segments. These T (1 + S) tables are one `privads.signals.release.Release`: it bounds each unit to m = rows_per_unit
rows, charges the ledger, reads, and adds N(0, (z m)²) to every cell, z for all tables together. What is said here is
read from them, and costs nothing more.

The model must score each row by itself and must itself be public or released with privacy. Guarantees, each with a
test: nothing is read before the ledger was charged in full; the charged event is that of the tables' noise; no value of
a row (a score that is no number, a label out of range, a failure inside the model) decides whether something raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dp_accounting import dp_event
from torch import nn

from accounting.budget import Budget
from accounting.ledger import Ledger
from accounting.report.phrase import bound
from privads.batch import Rows
from privads.evaluation.histogram import SCORE, HistogramMetrics, ScoreHistogram, log_odds
from privads.evaluation.scored import Scored, score_of, scored_schema, source_of
from privads.logs.schema import Schema
from privads.signals.query import Grid, Key, Query
from privads.signals.release import Release
from privads.signals.table import NoisyTable
from privads.training.finished import Finished, check_same_data

RELEASE_GRID = log_odds(bins=72)
"""Bins of 0.25 in log-odds: calibration is off by 0.3 %, AUC low by 0.0004 to 0.0026 as rows of one bin tie (scores
spread by 2 to 0.5 in log-odds), and noise is in 144 cells a task."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What a table says of one task, over all rows or those of one segment: ``column`` is ``value``."""

    task: str
    histogram: ScoreHistogram
    metrics: HistogramMetrics
    column: str | None = None
    value: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class MetricsRelease:
    """What a release says, and what it cost. epsilon: at the budget's delta. entry: of the ledger that was charged."""

    budget: Budget
    event: dp_event.DpEvent
    epsilon: float
    noise_std: float
    rows_per_unit: int
    readings: tuple[Reading, ...]
    entry: str | None = None

    @property
    def histograms(self) -> dict[str, ScoreHistogram]:
        """The noisy histogram of each task, over all rows."""
        return {one.task: one.histogram for one in self.readings if one.column is None}

    @property
    def metrics(self) -> dict[str, HistogramMetrics]:
        """What each task's histogram says, over all rows."""
        return {one.task: one.metrics for one in self.readings if one.column is None}

    @property
    def cost(self) -> str:
        """The claim, what it is about, and who paid."""
        budget = self.budget
        charged = "charged to no ledger" if self.entry is None else f"charged by itself as entry {self.entry}"
        claim = bound(
            self.epsilon,
            delta=budget.delta,
            unit=budget.unit,
            neighbors=budget.neighbors,
            released="all metrics of these rows",
        )
        return f"{claim}, {charged}"


@dataclass(frozen=True, kw_only=True)
class MetricsPlan:
    """A release of metrics that is not done yet, from public facts only."""

    tasks: tuple[str, ...]
    segments: Mapping[str, tuple[str, ...]]
    grid: Grid
    release: Release

    @classmethod
    def of(
        cls,
        schema: Schema,
        budget: Budget,
        *,
        rows_per_unit: int = 1,
        tasks: Sequence[str] | None = None,
        segments: Mapping[str, Sequence[str]] | None = None,
        grid: Grid = RELEASE_GRID,
    ) -> MetricsPlan:
        """Returns the plan for rows whose files ``schema`` describes; see `release_metrics`."""
        chosen = tuple(schema.events if tasks is None else tasks)
        if not chosen:
            raise ValueError("metrics are released of labels of yes or no, and none is named or in the schema")
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"tasks must be different labels of yes or no, got {list(chosen)}")
        for task in chosen:
            schema.check_event(task)
        parts = {column: tuple(values) for column, values in (segments or {}).items()}
        for column, values in parts.items():
            if not values or not all(isinstance(one, str) for one in values):
                raise ValueError(f"segments of {column!r} must be named, as texts: which exist in the log is private")
            if len(set(values)) < len(values):
                raise ValueError(f"segments of {column!r} must be named once each, got {', '.join(values)}")
        schema.check_unit(budget.unit)
        facts = scored_schema(schema, chosen, tuple(parts))
        queries = [Query(by=(_own(grid, task),), label=task) for task in chosen]
        for column, values in parts.items():
            keys: tuple[Key, ...] = tuple((value, place) for value in values for place in range(grid.cells))
            queries += [Query(by=(column, _own(grid, task)), label=task, keys=keys) for task in chosen]
        for query in queries:
            query.check(facts)
        release = Release.of(queries, budget, rows_per_unit=rows_per_unit)
        return cls(tasks=chosen, segments=parts, grid=grid, release=release)

    def run(
        self,
        model: nn.Module | Finished,
        rows: Rows,
        *,
        ledger: Ledger | None,
        insecure_seed: int | None = None,
        level: float = 0.95,
    ) -> MetricsRelease:
        """Returns what the rows say of the model: checks, charges the ledger, reads and scores, in this order."""
        if not isinstance(model, nn.Module):
            check_same_data(model.schema, rows.schema)
            model = model.model
        rows.schema.check_history(self.release.budget.unit)
        scored = Scored(model=model, rows=rows, tasks=self.tasks, segments=tuple(self.segments))
        found = self.release.run(scored, ledger=ledger, purpose="release metrics", insecure_seed=insecure_seed)
        event = self.release.event
        readings = []
        for query, table in zip(self.release.queries, found.tables, strict=True):
            column, task = _column(query), str(query.label)
            for value in (None,) if column is None else self.segments[column]:
                first: Key = () if column is None else (value,)
                one = histogram_of(table, first, event=event, rows_per_unit=self.release.rows_per_unit)
                metrics = one.metrics(level=level)
                readings.append(Reading(task=task, histogram=one, metrics=metrics, column=column, value=value))
        return MetricsRelease(
            budget=self.release.budget,
            event=event,
            epsilon=self.release.spent.upper,
            noise_std=self.release.noise_std,
            rows_per_unit=self.release.rows_per_unit,
            readings=tuple(readings),
            entry=found.entry,
        )


def release_metrics(
    model: nn.Module | Finished,
    logs: Rows,
    budget: Budget,
    *,
    ledger: Ledger | None,
    rows_per_unit: int = 1,
    tasks: Sequence[str] | None = None,
    segments: Mapping[str, Sequence[str]] | None = None,
    grid: Grid = RELEASE_GRID,
    insecure_seed: int | None = None,
    level: float = 0.95,
) -> MetricsRelease:
    """Returns the model's metrics on ``logs`` with noise that keeps ``budget``, charged before the first row is read.

    rows_per_unit: the most rows of one unit that count, a uniform choice of its rows; noise grows with it. tasks: where
    None, all whose label is yes or no. segments: categorical columns and, of each, the public values that are judged
    apart; a column is one table more for each task, and all get more noise. ledger: None only where the schema declares
    the log public, as insecure_seed. A failure after the charge gives nothing back.
    """
    plan = MetricsPlan.of(
        source_of(logs), budget, rows_per_unit=rows_per_unit, tasks=tasks, segments=segments, grid=grid
    )
    return plan.run(model, logs, ledger=ledger, insecure_seed=insecure_seed, level=level)


def histogram_of(
    table: NoisyTable, first: Key = (), *, event: dp_event.DpEvent | None = None, rows_per_unit: int = 1
) -> ScoreHistogram:
    """Returns a table's cells by bin of the score, of the keys that begin with ``first``; rows without one stay out."""
    grid = next(one for one in table.query.by if isinstance(one, Grid))
    place = {key: position for position, key in enumerate(table.keys)}
    cells = [place[(*first, one)] for one in range(grid.cells)]
    return ScoreHistogram(
        grid=replace(grid, column=SCORE),
        positives=table.values["positives"][cells],
        negatives=table.values["negatives"][cells],
        noise_std=table.count_std,
        event=event,
        rows_per_unit=rows_per_unit,
    )


def _own(grid: Grid, task: str) -> Grid:
    """Returns the grid on the task's own score."""
    return replace(grid, column=score_of(task))


def _column(query: Query) -> str | None:
    """Returns the column of segments in a table; None where it is of all rows."""
    return next((one for one in query.by if isinstance(one, str)), None)
