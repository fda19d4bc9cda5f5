"""What a release is and cost, in words and as JSON: for the command line and for reports."""

from collections.abc import Sequence
from typing import Any

from accounting import accountant
from accounting.report.phrase import bound
from privads.signals.query import Query
from privads.signals.release import Release
from privads.signals.table import NoisyTable, Terms

FOR_READING = (
    "tables of keys found in the log are for reading: for `privads learn`, state the values (release.values), or"
    " release again with release.values_from and these tables"
)
"""What a reader of a plan should know before the budget is spent."""


def cost_of(release: Release) -> str:
    """Returns the cost with its delta, unit, neighbors and what was released, as one phrase."""
    budget = release.budget
    return bound(
        release.spent.upper, delta=budget.delta, unit=budget.unit, neighbors=budget.neighbors, released="all tables"
    ) + named_by(release.named_by)


def terms_cost(terms: Terms) -> str:
    """Returns what the release cost that tables carry the terms of, with what naming their values cost."""
    budget = terms.budget
    spent = accountant.epsilon(terms.event, delta=budget.delta, neighbors=budget.neighbors).upper
    own = bound(spent, delta=budget.delta, unit=budget.unit, neighbors=budget.neighbors, released="all tables")
    return own + named_by(terms.named_by)


def named_by(costs: Sequence[str]) -> str:
    """Returns the end of a phrase about a cost, where values were named by earlier releases: the costs add up."""
    return f", and on top the release that named its values: {'; '.join(costs)}" if costs else ""


def title(query: Query) -> str:
    """Returns what a table is by."""
    return "by " + " and ".join(query.columns) if query.by else "all rows"


def plan_lines(release: Release) -> list[str]:
    """Returns what would be released: of each table its cells, its noise and from where on found keys are shown."""
    made = [f"{len(release.queries)} tables for {cost_of(release)}", _bounds(release), ""]
    for query, stds, threshold in zip(release.queries, release.noise_stds, release.thresholds, strict=True):
        cells = "keys found in the log" if threshold is not None else f"{_cells(query):,} cells"
        shown = "" if threshold is None else f", shown from {threshold:g} rows on"
        made.append(f"{title(query)}: {cells}, noise std {_noise(query, stds)}{shown}")
    if any(one is not None for one in release.thresholds):
        made += ["", FOR_READING]
    return made


def lines(release: Release, tables: Sequence[NoisyTable], entry: str | None) -> list[str]:
    """Returns what was released, a line for each table, and what it cost."""
    made = []
    for table, stds in zip(tables, release.noise_stds, strict=True):
        name = table.query.measures[0]
        cells = len(table.values[name])
        stds = tuple(float(table.noise_std[part[0]].max()) for part in table.query.parts) if cells else stds
        shown = "" if table.threshold is None else f", shown from {table.threshold:g} rows on"
        made.append(f"{title(table.query)}: {cells:,} cells, noise std {_noise(table.query, stds)}{shown}")
    charged = "no ledger was charged: the data are declared public" if entry is None else f"charged as entry {entry}"
    return [*made, "", _bounds(release), f"{cost_of(release)}; {charged}"]


def summary(release: Release, tables: Sequence[NoisyTable] | None = None) -> dict[str, Any]:
    """Returns the release as values for JSON."""
    budget, bounds = release.budget, release.bounds
    own: list[dict[str, Any]] = []
    for place, (query, stds) in enumerate(zip(release.queries, release.noise_stds, strict=True)):
        one: dict[str, Any] = {
            "by": list(query.columns),
            "measures": list(query.measures),
            "noise_std": query.by_measure(stds),
            "threshold": release.thresholds[place],
        }
        if tables is not None:
            one["cells"] = len(tables[place].values[query.measures[0]])
        own.append(one)
    return {
        "epsilon": release.spent.upper,
        "delta": budget.delta,
        "unit": budget.unit,
        "neighbors": budget.neighbors,
        "named_by": list(release.named_by),
        "rows_per_unit": bounds.rows,
        "rows_per_key": bounds.rows_per_key,
        "keys_per_unit": bounds.keys,
        "tables": own,
    }


def _bounds(release: Release) -> str:
    bounds = release.bounds
    made = f"of one {release.budget.unit} at most {bounds.rows} rows are counted"
    made += "" if bounds.rows_per_key is None else f", {bounds.rows_per_key} in one cell"
    return made + ("" if bounds.keys is None else f", in {bounds.keys} cells of a table")


def _noise(query: Query, stds: Sequence[float]) -> str:
    names = [*(["counts"] if query.counts else []), *(one.name for one in query.sums)]
    if len(names) == 1:
        return f"{stds[0]:.4g}"  # of each count where a label splits the rows
    return ", ".join(f"{std:.4g} ({name})" for name, std in zip(names, stds, strict=True))


def _cells(query: Query) -> int:
    return query.cells if query.dense else len(query.keys or ())
