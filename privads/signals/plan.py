"""`[release]` of run.toml as a `Release`: from public facts and earlier releases only, no row is read."""

from collections.abc import Iterable
from pathlib import Path

from accounting.budget import Budget
from privads.config import ConfigError
from privads.logs.schema import Schema
from privads.run_config import PlanTable, ReleaseTable, SumTable
from privads.signals.allocation import shares_by
from privads.signals.bounds import Bounds
from privads.signals.query import (
    OTHER,
    Grid,
    OneOf,
    Part,
    Query,
    Sum,
    check_categorical,
    check_numeric,
    grid_of,
    singles_and_pairs,
)
from privads.signals.release import Release
from privads.signals.saved import load_tables
from privads.signals.summary import terms_cost
from privads.signals.table import NoisyTable, by_release


def plan_release(table: ReleaseTable, plan: PlanTable, schema: Schema) -> Release:
    """Returns what ``[release]`` asks for; its budget is ``[plan]``'s where it states none."""
    epsilon = plan.epsilon if table.epsilon is None else table.epsilon
    delta = plan.delta if table.delta is None else table.delta
    if epsilon is None or delta is None:
        raise ConfigError("a privacy budget has no default: state release.epsilon and release.delta")
    queries = _queries(table, schema)
    if not queries:
        raise ConfigError("nothing to release: name release.columns, or release.tables")
    for query in queries:
        query.check(schema)
    bounds = Bounds(rows=table.rows_per_unit, rows_per_key=table.rows_per_key, keys=table.keys_per_unit)
    shares = None
    if table.shares_by is not None:
        shares = shares_by(queries, bounds, load_tables(Path(table.shares_by)), least=table.least)
    return Release.of(
        queries,
        Budget(epsilon=epsilon, delta=delta, unit=plan.unit),
        rows_per_unit=bounds.rows,
        rows_per_key=bounds.rows_per_key,
        keys_per_unit=bounds.keys,
        shares=shares,
        backend=table.backend,
        named_by=_named_by(table),
    )


def _queries(table: ReleaseTable, schema: Schema) -> list[Query]:
    used = {*table.columns, *(name for one in table.tables for name in one.by)}
    for column in sorted({*table.values, *table.values_from, *table.edges} - used):
        raise ConfigError(f"release states places of {column!r}, and no table is by it")
    for column in sorted(table.values.keys() & table.values_from.keys()):
        raise ConfigError(f"values of {column!r} are stated and taken from an earlier release: give one")
    parts = [_part(table, schema, column) for column in table.columns]
    sums = _sums(table.sums)
    made = singles_and_pairs(parts, label=table.label, sums=sums, counts=table.counts)
    queries = made if table.pairs else made[: len(parts)]
    for one in table.tables:
        queries.append(
            Query(
                by=tuple(_part(table, schema, column) for column in one.by),
                label=table.label if one.label is None else one.label,
                sums=sums if one.sums is None else _sums(one.sums),
                counts=table.counts if one.counts is None else one.counts,
            )
        )
    twice = next((query for place, query in enumerate(queries) if query in queries[:place]), None)
    if twice is not None:
        raise ConfigError(f"release asks for the table by {', '.join(twice.columns) or 'nothing'} twice")
    return queries


def _part(table: ReleaseTable, schema: Schema, column: str) -> Part:
    if column in schema.numeric:
        if column in table.values or column in table.values_from:
            raise ConfigError(f"{column!r} is a number: state release.edges, not values")
        check_numeric(schema, column)
        if column in table.edges:
            return Grid(column=column, edges=tuple(table.edges[column]))
        return grid_of(schema, column, cells=table.cells)
    check_categorical(schema, column)
    if column in table.edges:
        raise ConfigError(f"{column!r} is a category: state release.values, not edges")
    if column in table.values_from:
        return OneOf(column=column, values=shown_values(Path(table.values_from[column]), column))
    return OneOf(column=column, values=tuple(table.values[column])) if column in table.values else column


def shown_values(place: Path, column: str) -> tuple[str, ...]:
    """Returns the values that an earlier release's table by ``column`` shows. Free: that release has paid for them.

    place: the folder of the release, or the table's file.
    """
    table = _table_by(place, column)
    values = tuple(str(key[0]) for key in table.keys if key[0] not in (None, OTHER))
    if not values:
        raise ConfigError(f"{place} shows no value of {column!r}: none reached its threshold")
    return values


def _table_by(place: Path, column: str) -> NoisyTable:
    table = next((one for one in load_tables(place) if one.query.columns == (column,)), None)
    if table is None:
        raise ConfigError(f"{place} has no table by {column!r} alone: take values from one that has")
    return table


def _named_by(table: ReleaseTable) -> tuple[str, ...]:
    """Returns what the releases cost that values are taken from, each once."""
    tables = [_table_by(Path(place), column) for column, place in table.values_from.items()]
    return tuple(dict.fromkeys(terms_cost(terms) for terms, _ in by_release(tables)))


def _sums(tables: Iterable[SumTable]) -> tuple[Sum, ...]:
    return tuple(Sum(**one.model_dump()) for one in tables)
