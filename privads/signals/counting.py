"""The exact counts behind noisy tables, as one Ibis expression over bounded rows. Nothing here is private.

Rows are a table of an Ibis connection with columns that `Names` gives: owners as text, each part of a key as a place or
a found value, labels as 1, 0 or null, values in whole steps. Where it has a column ``place`` that numbers the rows, the
choice of rows sees only that and the owners, so that it is made in little memory whatever the log's size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from privads.signals.bounds import Bounds
from privads.signals.query import Part, Query, Sum

if TYPE_CHECKING:
    import ibis.expr.types as ir

PLACE = "place"
DRAWN = "drawn"
RANK = "rank"


@dataclass(frozen=True, kw_only=True)
class Names:
    """The columns of the rows: of each part of a key, label and sum that a release asks for, and of owners."""

    parts: Mapping[Part, str]
    labels: Mapping[str, str]
    sums: Mapping[Sum, str]
    owners: tuple[str, ...]

    @classmethod
    def of(cls, queries: Sequence[Query], *, unit_columns: int) -> "Names":
        """Returns the names for all that ``queries`` ask for."""
        parts = dict.fromkeys(one for query in queries for one in query.by)
        labels = dict.fromkeys(query.label for query in queries if query.label is not None)
        sums = dict.fromkeys(one for query in queries for one in query.sums)
        return cls(
            parts={one: f"k{i}" for i, one in enumerate(parts)},
            labels={one: f"y{i}" for i, one in enumerate(labels)},
            sums={one: f"v{i}" for i, one in enumerate(sums)},
            owners=tuple(f"u{i}" for i in range(unit_columns)),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Counted:
    """The exact counts of one table. places: (cells,) of the public parts, in the order of a dense table. found:
    (cells,) per part whose values are found in the log. values: (cells,) per measure.
    """

    places: NDArray[np.int64]
    found: Mapping[str, NDArray[Any]]
    values: Mapping[str, NDArray[np.int64]]


def bounded(rows: "ir.Table", names: Names, bounds: Bounds) -> "ir.Table":
    """Returns of each owner at most ``bounds.rows`` rows, in a random order, their sums within each one's bound."""
    import ibis

    limits = {name: one.steps_of_unit(bounds.rows) for one, name in names.sums.items()}
    if not names.owners:
        capped = {name: ibis.least(rows[name], limits[name]) for name in limits}
        return rows.mutate(**capped) if capped else rows
    tight = [name for one, name in names.sums.items() if limits[name] < one.steps * bounds.rows]
    by_place = PLACE in rows.columns
    seen = rows.select(*names.owners, PLACE, *tight) if by_place else rows
    drawn = seen.mutate(**{DRAWN: ibis.random()})
    order = ibis.window(group_by=list(names.owners), order_by=DRAWN)
    chosen = drawn.mutate(**{RANK: ibis.row_number().over(order)}).filter(ibis._[RANK] < bounds.rows)
    if tight:
        so_far = ibis.window(group_by=list(names.owners), order_by=[DRAWN, RANK], preceding=None, following=0)
        left = {name: limits[name] - (chosen[name].sum().over(so_far) - chosen[name]) for name in tight}
        zero = ibis.literal(0, "int64")
        chosen = chosen.mutate(
            **{name: ibis.greatest(zero, ibis.least(chosen[name], left[name])).cast("int64") for name in tight}
        )
    chosen = chosen.drop(DRAWN, RANK)
    if by_place:
        unlimited = [
            name for name in rows.columns if name not in (tight if bounds.limits_keys else {*tight, *names.owners})
        ]
        joined = rows.select(*unlimited)
        only = chosen.select(PLACE, *tight)
        return joined.inner_join(only, PLACE) if tight else joined.semi_join(only, PLACE)
    return chosen if bounds.limits_keys else chosen.drop(*names.owners)


def counted(kept: "ir.Table", queries: Sequence[Query], names: Names, bounds: Bounds) -> "ir.Table":
    """Returns the counts of all tables as one expression: table, place, found values, measures."""
    import ibis

    width = max(len(_found(query)) for query in queries)
    depth = max(len(query.measures) for query in queries)
    text = next((kept[name].type() for one, name in names.parts.items() if isinstance(one, str)), None)
    return ibis.union(
        *(_one(kept, query, names, bounds, number, width, depth, text) for number, query in enumerate(queries)),
        distinct=False,
    )


def _one(
    kept: "ir.Table", query: Query, names: Names, bounds: Bounds, number: int, width: int, depth: int, text: Any
) -> "ir.Table":
    import ibis

    place = ibis.literal(0, "int64")
    for one in query.by:
        if not isinstance(one, str):
            place = place * ibis.literal(len(one.names), "int64") + kept[names.parts[one]].cast("int64")
    found = {f"f{i}": kept[names.parts[one]] for i, one in enumerate(_found(query))}
    label = None if query.label is None else names.labels[query.label]
    rows = kept.mutate(at=place, **found)
    if label is not None:
        rows = rows.filter(rows[label].notnull())
    if bounds.limits_keys and names.owners:
        rows = _within_keys(rows, ["at", *found], names.owners, bounds)
    measures = []
    if query.counts:
        # A label of null is in no row here: what is not 1 is 0.
        measures += [rows.count()] if label is None else [(rows[label] == 1).sum(), (rows[label] != 1).sum()]
    measures += [rows[names.sums[one]].sum() for one in query.sums]
    made = {f"m{i}": one.fill_null(0).cast("int64") for i, one in enumerate(measures)}
    grouped = rows.group_by("at", *found).aggregate(**made) if query.by else rows.aggregate(**made)
    filled: dict[str, Any] = {"table": ibis.literal(number, "int32")}
    filled["at"] = grouped["at"] if query.by else ibis.literal(0, "int64")
    filled |= {f"f{i}": grouped[f"f{i}"] if f"f{i}" in found else ibis.null(text) for i in range(width)}
    filled |= {f"m{i}": grouped[f"m{i}"] if i < len(made) else ibis.literal(0, "int64") for i in range(depth)}
    return grouped.select(**filled)


def _within_keys(rows: "ir.Table", keys: list[str], owners: Sequence[str], bounds: Bounds) -> "ir.Table":
    """Returns of each owner's rows at most so many in one cell, and those of at most so many cells."""
    import ibis

    if bounds.most_keys < bounds.rows:
        cells = rows.select(*owners, *keys).distinct().mutate(**{DRAWN: ibis.random()})
        order = ibis.window(group_by=list(owners), order_by=DRAWN)
        picked = cells.mutate(**{RANK: ibis.row_number().over(order)}).filter(ibis._[RANK] < bounds.most_keys)
        rows = rows.semi_join(picked, [*owners, *keys])
    if bounds.per_key < bounds.rows:
        drawn = rows.mutate(**{DRAWN: ibis.random()})
        order = ibis.window(group_by=[*owners, *keys], order_by=DRAWN)
        rows = drawn.mutate(**{RANK: ibis.row_number().over(order)}).filter(ibis._[RANK] < bounds.per_key)
    return rows


def split(counts: pa.Table, queries: Sequence[Query]) -> list[Counted]:
    """Returns the tables of a `counted` result, apart."""
    order = counts.column("table").to_numpy()
    sorting = np.argsort(order, kind="stable")
    starts = np.searchsorted(order[sorting], np.arange(len(queries) + 1))
    columns = {
        name: np.asarray(counts.column(name).to_numpy())[sorting] for name in counts.column_names if name != "table"
    }
    made = []
    for number, query in enumerate(queries):
        own = slice(starts[number], starts[number + 1])
        found = {one: columns[f"f{i}"][own] for i, one in enumerate(_found(query))}
        values = {measure: columns[f"m{i}"][own].astype(np.int64) for i, measure in enumerate(query.measures)}
        made.append(Counted(places=columns["at"][own].astype(np.int64), found=found, values=values))
    return made


def _found(query: Query) -> tuple[str, ...]:
    return tuple(one for one in query.by if isinstance(one, str))
