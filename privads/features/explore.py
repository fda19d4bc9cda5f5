"""What a log looks like, for a stated budget: one release of noisy tables, and readings of them with intervals.

Nothing here reads rows but the release. Intervals are about the noise alone: in 95 of 100 releases they hold what would
have been counted without it. Only that of the information is also about which rows happened to come.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from accounting.budget import Budget
from accounting.ledger import Ledger
from accounting.report.phrase import bound
from privads.features.readings import Distribution, distribution, information
from privads.features.transforms import CELLS
from privads.logs.schema import Schema
from privads.signals.query import Query, Source, grid_of
from privads.signals.release import Release
from privads.signals.table import NoisyTable

Z = 1.959964
"""Standard deviations of a normal within which it lies with probability 0.95."""

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
BUCKETS = 10
LARGEST = 10


class _Shown(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Shown):
    """A number and its 95 % interval for the noise."""

    value: float
    low: float
    high: float


class Cell(_Shown):
    """A bucket of a number, or a value of a category. rate: of the label."""

    name: str
    rows: Estimate
    rate: Estimate | None


class Column(_Shown):
    """One column. information: nats that it tells of the label, None where noise hides all of it. values: of a
    category, how many are shown; all others are too rare for this budget. quantiles: of a number, by share.
    """

    name: str
    kind: str
    missing: Estimate
    information: Estimate | None
    cells: tuple[Cell, ...]
    quantiles: dict[str, Estimate] = {}
    values: int | None = None
    threshold: float | None = None
    covered: Estimate | None = None


class Exploration(_Shown):
    """A log as one release shows it; the columns by how much they tell of the label, the most telling first."""

    dataset: str
    label: str
    cost: str
    entry: str | None
    noise_std: float
    rows_per_unit: int
    unit: str
    rows: Estimate
    rate: Estimate | None
    columns: tuple[Column, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An exploration that is not done yet, from public facts only."""

    schema: Schema
    label: str
    release: Release

    @classmethod
    def of(cls, schema: Schema, budget: Budget, *, label: str | None = None, rows_per_unit: int = 1) -> "Plan":
        """Returns the plan: a table of all rows, and for each column one by value and label."""
        label = next(iter(schema.events), schema.tasks[0]) if label is None else label
        queries = [Query(by=(), label=label)]
        queries += [Query(by=(grid_of(schema, name, cells=CELLS),), label=label) for name in schema.numeric]
        queries += [Query(by=(name,), label=label) for name in schema.categorical]
        return cls(schema=schema, label=label, release=Release.of(queries, budget, rows_per_unit=rows_per_unit))

    def run(self, source: Source, *, ledger: Ledger | None, insecure_seed: int | None = None) -> Exploration:
        """Returns what the rows look like: charges the ledger, reads, draws noise. Everything after that is free."""
        found = self.release.run(source, ledger=ledger, purpose="explore", insecure_seed=insecure_seed)
        everything, *tables = found.tables
        names = [*self.schema.numeric, *self.schema.categorical]
        total = float(everything.rows[0])
        columns = [
            (_numeric if name in self.schema.numeric else _categorical)(name, table, total)
            for name, table in zip(names, tables, strict=True)
        ]
        budget = self.release.budget
        return Exploration(
            dataset=self.schema.dataset,
            label=self.label,
            cost=bound(
                self.release.spent.upper,
                delta=budget.delta,
                unit=budget.unit,
                neighbors=budget.neighbors,
                released="everything shown here",
            ),
            entry=found.entry,
            noise_std=self.release.noise_std,
            rows_per_unit=self.release.rows_per_unit,
            unit=budget.unit,
            rows=_estimate(total, everything.rows_std, least=0.0),
            rate=_rate(everything, np.array([True])),
            columns=tuple(sorted(columns, key=lambda column: -column.information.value if column.information else 1.0)),
        )


def _numeric(name: str, table: NoisyTable, total: float) -> Column:
    found = distribution(table)
    buckets = _buckets(table, found)
    return Column(
        name=name,
        kind="numeric",
        missing=_share(found.missing, found.missing_std, total),
        information=_information(table, [chosen for _, chosen in buckets]),
        quantiles={f"{share:g}": _quantile(found, share) for share in QUANTILES},
        cells=tuple(_cell(bucket, table, chosen) for bucket, chosen in buckets),
    )


def _quantile(found: Distribution, share: float) -> Estimate:
    low, high = found.quantile_interval(share, z=Z)
    value = found.quantile(share)
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def _buckets(table: NoisyTable, found: Distribution) -> list[tuple[str, NDArray[np.bool_]]]:
    """Returns about `BUCKETS` neighboring groups of cells with about equally many rows, and the missing ones."""
    places = np.array([-1 if key[0] is None else int(key[0]) for key in table.keys])
    edges = np.unique(np.searchsorted(found.cdf, np.arange(1, BUCKETS) / BUCKETS))
    group = np.where(places < 0, -1, np.searchsorted(edges, places, side="right"))
    named = []
    for number in np.unique(group[group >= 0]):
        chosen = group == number
        low, high = found.edges[places[chosen].min()], found.edges[places[chosen].max() + 1]
        named.append((f"{low:.4g} to {high:.4g}", chosen))
    return [*named, ("missing", group < 0)]


def _categorical(name: str, table: NoisyTable, total: float) -> Column:
    missing = np.array([key == (None,) for key in table.keys])
    values = np.flatnonzero(~missing)
    largest = values[np.argsort(-table.rows[values], kind="stable")][:LARGEST]
    cells = [_cell(str(table.keys[place][0]), table, np.arange(len(missing)) == place) for place in largest]
    shown = float(table.rows[values].sum())
    return Column(
        name=name,
        kind="categorical",
        missing=_share(float(table.rows[missing].sum()), table.rows_std, total),
        information=_information(table, list(np.eye(len(missing), dtype=np.bool_))),
        cells=(*cells, _cell("missing", table, missing)),
        values=len(values),
        threshold=table.threshold,
        covered=_share(shown, table.rows_std * math.sqrt(len(values)), total) if len(values) else None,
    )


def _cell(name: str, table: NoisyTable, chosen: NDArray[np.bool_]) -> Cell:
    std = table.rows_std * math.sqrt(int(chosen.sum()))
    return Cell(name=name, rows=_estimate(float(table.rows[chosen].sum()), std, least=0.0), rate=_rate(table, chosen))


def _rate(table: NoisyTable, chosen: NDArray[np.bool_]) -> Estimate | None:
    """Returns P / (P + N) of the chosen cells together; None where their rows are within the noise.

    Its noise, to first order: ``s sqrt(cells) sqrt(r^2 + (1 - r)^2) / (P + N)``.
    """
    positives, rows = float(table.values["positives"][chosen].sum()), float(table.rows[chosen].sum())
    cells = int(chosen.sum())
    if rows < 3 * table.rows_std * math.sqrt(cells):
        return None
    rate = min(max(positives / rows, 0.0), 1.0)
    std = table.count_std * math.sqrt(cells) * math.hypot(rate, 1 - rate) / rows
    return _estimate(rate, std, least=0.0, most=1.0)


def _share(rows: float, std: float, total: float) -> Estimate:
    size = max(total, 1.0)
    return _estimate(min(max(rows / size, 0.0), 1.0), std / size, least=0.0, most=1.0)


def _information(table: NoisyTable, groups: list[NDArray[np.bool_]]) -> Estimate | None:
    """Returns the mutual information of the label and which group of cells a row is in."""
    positives, negatives = (
        np.array([float(table.values[measure][chosen].sum()) for chosen in groups]) for measure in table.query.measures
    )
    noise_std = table.count_std * np.sqrt([int(chosen.sum()) for chosen in groups])
    value, std = information(positives, negatives, noise_std)
    return None if math.isnan(value) else _estimate(max(value, 0.0), std, least=0.0)


def _estimate(value: float, std: float, *, least: float = -math.inf, most: float = math.inf) -> Estimate:
    return Estimate(
        value=value, low=min(max(value - Z * std, least), value), high=max(min(value + Z * std, most), value)
    )


def in_words(found: Exploration) -> Sequence[str]:
    """Returns the exploration as lines for a terminal, the most telling column first."""
    lines = [
        f"{found.dataset}: {_plain(found.rows)} rows counted, {found.label} in {_percent(found.rate)}",
        f"{found.cost}",
        f"noise of {found.noise_std:.3g} on every count; most rows counted of one {found.unit}: {found.rows_per_unit}",
        "",
    ]
    width = max(len(column.name) for column in found.columns)
    for column in found.columns:
        told = column.information
        tells = "not known" if told is None else f"{told.value:.2g} nats [{told.low:.2g}, {told.high:.2g}]"
        said = f"{column.name:{width}}  tells {tells}, missing {_percent(column.missing)}"
        if column.values is not None:
            said += f", {column.values} values shown, in {_percent(column.covered)} of the rows"
        else:
            middle = column.quantiles["0.5"]
            said += f", median {middle.value:.4g} [{middle.low:.4g}, {middle.high:.4g}]"
        lines.append(said)
    return lines


def _plain(of: Estimate) -> str:
    return f"{of.value:,.0f} [{of.low:,.0f}, {of.high:,.0f}]"


def _percent(of: Estimate | None) -> str:
    return "not known" if of is None else f"{of.value:.2%} [{of.low:.2%}, {of.high:.2%}]"
