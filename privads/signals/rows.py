"""Where rows are counted: those of a log in an embedded DuckDB, those of a `Warehouse` where they lie.

Rows of a log wait in the database as small whole numbers; only who owns them is text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from privads.logs.database import LONGEST, Codes, open_database, store
from privads.logs.labels import DelayedLabel, EventLabel, ValueLabel
from privads.logs.raw import Raw
from privads.logs.schema import Schema
from privads.signals.bounds import Bounds
from privads.signals.counting import PLACE, Counted, Names, bounded, counted, split
from privads.signals.query import Grid, OneOf, Part, Query, Source, Sum

if TYPE_CHECKING:
    import ibis.expr.types as ir

HERE = "="
"""Before every value that is found in a warehouse, so that none is the empty text of a missing one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Warehouse:
    """Rows of a table that Ibis reaches: DuckDB, Spark, PostgreSQL or another database, by its connection alone.

    table: an Ibis table expression, such as ``ibis.postgres.connect(...).table("impressions")``; filter it by public
    constants only. Its columns are those of the schema. Labels are columns of 0 and 1 or numbers; one that comes later
    (within_hours) is refused, as are times and histories. A row without an owner is left out.
    """

    table: "ir.Table"
    schema: Schema
    split_text: str = "all rows of the table"
    features: None = None

    def check(self) -> None:
        """Raise ValueError where the table does not have what the schema names; reads no row."""
        schema = self.schema
        histories = [name for name, one in schema.numeric.items() if one.history is not None]
        histories += [
            name for name, one in schema.categorical.items() if one.history is not None or one.part is not None
        ]
        if histories:
            raise ValueError(f"{histories[0]!r} is made from a time or other rows: read the rows as files (`Logs`)")
        columns = [*schema.numeric, *schema.categorical, *schema.unit]
        for task, label in schema.labels.items():
            if isinstance(label, DelayedLabel):
                raise ValueError(f"label {task!r} comes later, which a table is not asked for: read the rows as files")
            columns.append(_column_of(label))
        missing = [one for one in columns if one not in self.table.columns]
        if missing:
            raise ValueError(
                f"the table has no column {missing[0]!r}, which the schema names; it has: "
                f"{', '.join(self.table.columns)}"
            )

    def raw(self) -> Iterator[Raw]:
        """Refused: rows of a warehouse are counted there, and do not come here."""
        raise ValueError("the rows of a warehouse are counted where they lie: read them as files (`Logs`) for this")

    def rows(self, names: Names) -> "ir.Table":
        """Returns the rows as `counting` reads them."""
        import ibis

        table, made = self.table, {}
        for column in self.schema.unit:
            table = table.filter(table[column].notnull())
        for part, name in names.parts.items():
            if isinstance(part, OneOf):
                table, made[name] = _joined(table, part, name)
            else:
                made[name] = _cut(table[part.column], part) if isinstance(part, Grid) else _found(table[part])
        for task, name in names.labels.items():
            known = table[_column_of(self.schema.labels[task])].cast("int8")
            made[name] = ibis.cases((known == 1, 1), (known == 0, 0), else_=ibis.null("int8")).cast("int8")
        for one, name in names.sums.items():
            label = self.schema.labels.get(one.column)
            made[name] = _steps(table[one.column if label is None else _column_of(label)], one)
        made |= {
            name: table[column].cast("string") for name, column in zip(names.owners, self.schema.unit, strict=False)
        }
        return table.select(**made)


def count(source: Source, queries: Sequence[Query], *, unit_columns: int, bounds: Bounds) -> list[Counted]:
    """Returns for each query the exact counts, of a bounded choice of each unit's rows.

    unit_columns: how many of the schema's unit columns name the unit; with 0 each row is one, and all are counted.
    """
    names = Names.of(queries, unit_columns=unit_columns)
    if isinstance(source, Warehouse):
        made = _counts(source.rows(names), queries, names, bounds)
        return [_with_texts(one, _without_mark) for one in made]
    codes = {one: Codes() for one in names.parts if isinstance(one, str)}
    with open_database() as database:
        store(database, "rows_read", _columns(names), _frames(source, names, codes))
        import ibis

        rows = ibis.duckdb.from_connection(database).table("rows_read")
        made = _counts(rows, queries, names, bounds)
    texts = {one: own.texts for one, own in codes.items()}
    return [_with_texts(one, lambda column, found: texts[column][found.astype(np.int64)]) for one in made]


def _counts(rows: "ir.Table", queries: Sequence[Query], names: Names, bounds: Bounds) -> list[Counted]:
    kept = bounded(rows, names, bounds)
    if kept is not rows:
        kept = kept.cache()  # one choice of rows for all tables, in one sort
    return split(counted(kept, queries, names, bounds).to_pyarrow(), queries)


def _with_texts(one: Counted, texts: Any) -> Counted:
    found = {column: texts(column, values) for column, values in one.found.items()}
    return Counted(places=one.places, found=found, values=one.values)


def _without_mark(_: str, found: NDArray[Any]) -> NDArray[np.object_]:
    return np.array([one[len(HERE) :] if one else None for one in found], dtype=object)


def _column_of(label: str | EventLabel | DelayedLabel | ValueLabel) -> str:
    if isinstance(label, str):
        return label
    return label.value if isinstance(label, ValueLabel) else label.column


def _found(column: Any) -> Any:
    """Returns a category's value as text, the empty one where it is missing."""
    import ibis

    return ibis.ifelse(column.isnull(), "", ibis.literal(HERE) + column.cast("string").left(LONGEST))


def _joined(table: "ir.Table", part: OneOf, name: str) -> tuple["ir.Table", Any]:
    """Returns the table with each row's place among the values looked up, and the place."""
    import ibis

    known, place = f"{name}_value", f"{name}_place"
    places = {known: list(part.values), place: list(range(len(part.values)))}
    values = ibis.memtable(places, schema={known: "string", place: "int32"})
    text = table[part.column].cast("string")
    joined = table.left_join(values, text == values[known]).drop(known)
    other, missing = len(part.values), len(part.values) + 1
    return joined, ibis.ifelse(joined[part.column].isnull(), missing, joined[place].fill_null(other)).cast("int32")


def _cut(column: Any, grid: Grid) -> Any:
    """Returns a number's place: how many of the inner edges it reaches."""
    import ibis

    number = column.cast("float64")
    place = ibis.literal(0, "int32")
    for edge in grid.edges[1:-1]:
        place = place + (number >= edge).cast("int32")
    return ibis.ifelse(number.isnull() | number.isnan(), grid.cells, place).cast("int32")


def _steps(column: Any, one: Sum) -> Any:
    import ibis

    number = column.cast("float64")
    number = ibis.ifelse(number.isnull() | number.isnan(), 0.0, number)
    return (ibis.greatest(0.0, ibis.least(number, one.most)) / one.step + 0.5).floor().cast("int64")


def _columns(names: Names) -> pa.Schema:
    return pa.schema(
        [
            (PLACE, pa.int64()),
            *((name, pa.string()) for name in names.owners),
            *((name, pa.int32()) for name in names.parts.values()),
            *((name, pa.int8()) for name in names.labels.values()),
            *((name, pa.int64()) for name in names.sums.values()),
        ]
    )


def _frames(source: Source, names: Names, codes: Mapping[str, Codes]) -> Iterator[pa.RecordBatch]:
    """Yields the rows as the database counts them."""
    seen, schema = 0, source.schema
    for raw in source.raw():
        columns: dict[str, pa.Array] = {PLACE: pa.array(np.arange(seen, seen + raw.rows))}
        seen += raw.rows
        columns |= {name: pa.array(raw.units[i], type=pa.string()) for i, name in enumerate(names.owners)}
        columns |= {name: pa.array(_places(raw, one, codes)) for one, name in names.parts.items()}
        for label, name in names.labels.items():
            columns[name] = pa.array(raw.labels[label].astype(np.int8), mask=~raw.observed[label])
        for added, name in names.sums.items():
            columns[name] = pa.array(added.counted(_values(raw, added.column, schema)))
        yield pa.RecordBatch.from_pydict(columns)


def _places(raw: Raw, part: Part, codes: Mapping[str, Codes]) -> NDArray[np.int32]:
    """Returns each row's place, the last where it is missing; of a value to be found its number, -1 where missing."""
    if isinstance(part, Grid):
        places, missing = part.places(raw.numbers[part.column]), part.cells
    elif isinstance(part, OneOf):
        own, texts = raw.texts[part.column]
        places, missing = np.append(part.places(texts), np.int32(-1))[own], len(part.values) + 1
    else:
        own, texts = raw.texts[part]
        return np.append(codes[part].of(texts), np.int32(-1))[own]  # -1, the last, where it is missing
    return np.where(places < 0, missing, places).astype(np.int32)


def _values(raw: Raw, column: str, schema: Schema) -> NDArray[np.float64]:
    if column not in schema.labels:
        return raw.numbers[column]
    return np.where(raw.observed[column], raw.labels[column], 0.0).astype(np.float64)
