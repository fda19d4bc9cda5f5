"""Where rows are counted: those of a log in an embedded DuckDB, those of a `Warehouse` where they lie.

Rows of a log wait in the database as small whole numbers; only who owns them is text.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from privads.logs.database import LONGEST, Codes, open_database, store
from privads.logs.labels import DelayedLabel, EventLabel, ValueLabel
from privads.logs.raw import Raw
from privads.logs.reader import MISSING_TEXTS
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
    (within_hours) is refused, as are times and histories.

    Rows are read as those of files are: one without an owner, or with an infinite number, is left out; numbers are
    clipped to their range, and the texts that stand for nothing in a file do so here. Else texts are as the database
    has them, and equal where it says so: under a collation that ignores case, "a" is "A", and which of both a key is
    shown as may be one row's choice. Random numbers are the database's, which must not be seeded.
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
        for task, label in schema.labels.items():
            if isinstance(label, DelayedLabel):
                raise ValueError(f"label {task!r} comes later, which a table is not asked for: read the rows as files")
        kinds = self.table.schema()
        labels = [_column_of(label) for label in schema.labels.values()]
        for columns, what, fits in (
            ([*schema.numeric, *labels], "numbers of a bounded precision", _is_number),
            ([*schema.categorical], "texts, whole numbers, dates or yes and no", _is_category),
            ([*schema.unit], "texts, numbers or times", _is_owner),
        ):
            for one in columns:
                if one not in kinds:
                    raise ValueError(
                        f"the table has no column {one!r}, which the schema names; it has: {', '.join(kinds.names)}"
                    )
                if not fits(kinds[one]):  # a cast that fails on one row would tell of it
                    raise ValueError(f"column {one!r} must hold {what}, got {kinds[one]}: cast it in the table")

    def raw(self) -> Iterator[Raw]:
        """Refused: rows of a warehouse are counted there, and do not come here."""
        raise ValueError("the rows of a warehouse are counted where they lie: read them as files (`Logs`) for this")

    def rows(self, names: Names) -> "ir.Table":
        """Returns the rows as `counting` reads them."""
        table, schema = self.table, self.schema
        for column in schema.unit:
            table = table.filter(table[column].notnull() & ~_is_missing(table[column]))
        for column in schema.numeric:
            if table[column].type().is_floating():
                table = table.filter(~_is_infinite(_float(table[column])).fill_null(False))
        made = {}
        for part, name in names.parts.items():
            if isinstance(part, Grid):
                made[name] = _cut(_number(table, part.column, schema), part)
            else:
                made[name] = _among(table[part.column], part) if isinstance(part, OneOf) else _found(table[part])
        for task, name in names.labels.items():
            made[name] = _label(table, schema.labels[task]).cast("int8")
        for one, name in names.sums.items():
            label = schema.labels.get(one.column)
            made[name] = _steps(_number(table, one.column, schema) if label is None else _label(table, label), one)
        # Owners as they are: what the database calls equal is one owner, such as 1.0 and 1.00.
        made |= {name: table[column] for name, column in zip(names.owners, schema.unit, strict=False)}
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
    chosen = bounded(rows, names, bounds)
    if chosen is rows:
        return split(counted(rows, queries, names, bounds).to_pyarrow(), queries)
    with chosen.cache() as kept:  # one choice of rows for all tables, in one sort, and gone afterwards
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


def _is_number(kind: Any) -> bool:
    bounded_decimal = kind.is_decimal() and kind.precision is not None  # 10^400 is no float, and an error
    return bool(kind.is_floating() or kind.is_integer() or kind.is_boolean() or bounded_decimal)


def _is_category(kind: Any) -> bool:
    return bool(kind.is_string() or kind.is_integer() or kind.is_boolean() or kind.is_date() or kind.is_uuid())


def _is_owner(kind: Any) -> bool:
    return bool(_is_category(kind) or _is_number(kind) or kind.is_decimal() or kind.is_timestamp() or kind.is_binary())


def _is_missing(column: Any) -> Any:
    """Returns whether a value that is there stands for one that is missing."""
    import ibis

    if column.type().is_floating():
        return column.isnan()
    return column.isin(MISSING_TEXTS) if column.type().is_string() else ibis.literal(False)


def _text(column: Any) -> Any:
    kind = column.type()
    return column if kind.is_string() else (column.cast("int32") if kind.is_boolean() else column).cast("string")


def _found(column: Any) -> Any:
    """Returns a category's value as text, the empty one where it is missing."""
    import ibis

    missing = column.isnull() | _is_missing(column)
    return ibis.ifelse(missing, "", ibis.literal(HERE) + _text(column).left(LONGEST))


def _among(column: Any, part: OneOf) -> Any:
    """Returns a category's place among public values."""
    import ibis

    other, missing = len(part.values), len(part.values) + 1
    # No join: under a collation for which two of the values are equal it would count a row twice.
    place = _text(column).cases(*((one, i) for i, one in enumerate(part.values)), else_=other) if other else other
    return ibis.ifelse(column.isnull() | _is_missing(column), missing, place).cast("int32")


def _cut(number: Any, grid: Grid) -> Any:
    """Returns a number's place."""
    import ibis

    inner = ((number < edge, i) for i, edge in enumerate(grid.edges[1:-1]))
    return ibis.cases((number.isnull(), grid.cells), *inner, else_=grid.cells - 1).cast("int32")


def _float(column: Any) -> Any:
    """Returns a column as floats, null where it has no number."""
    import ibis

    number = (column.cast("int32") if column.type().is_boolean() else column).cast("float64")
    return ibis.ifelse(number.isnull() | number.isnan(), ibis.null("float64"), number)


def _is_infinite(number: Any) -> Any:
    return number.abs() > sys.float_info.max  # Ibis's own question is always answered with no by Spark


def _clipped(number: Any, low: float, high: float) -> Any:
    """Returns numbers within two bounds, null where there is none: the least of null and 1 is 1 in some databases."""
    import ibis

    return ibis.cases((number < low, low), (number > high, high), else_=number)


def _number(table: "ir.Table", column: str, schema: Schema) -> Any:
    return _clipped(_float(table[column]), *schema.numeric[column].range)


def _label(table: "ir.Table", label: str | EventLabel | DelayedLabel | ValueLabel) -> Any:
    """Returns a label's value, null where it is not known."""
    import ibis

    number = _float(table[_column_of(label)])
    if not isinstance(label, ValueLabel):
        return ibis.cases((number == 1, 1.0), (number == 0, 0.0), else_=ibis.null("float64"))
    known = (number >= (1 if label.kind == "ordinal" else 0)) & ~_is_infinite(number)
    if label.kind != "log-normal":
        whole = _clipped(number, -1.0, 2.0**53)  # beyond are whole numbers only, and some that fit in no integer
        known &= whole == whole.floor().cast("float64")
    if label.kind == "ordinal":
        known &= number <= label.most
    return ibis.cases((known, _clipped(number, 0.0, label.most)), else_=ibis.null("float64"))


def _steps(number: Any, one: Sum) -> Any:
    bounded_number = _clipped(number, 0.0, one.most).fill_null(0.0)
    return (bounded_number / one.step + 0.5).floor().cast("int64")


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
    """Returns each row's place; of a value to be found its number, -1 where missing."""
    if not isinstance(part, str):
        return public_places(raw, part)
    own, texts = raw.texts[part]
    return np.append(codes[part].of(texts), np.int32(-1))[own]  # -1, the last, where it is missing


def public_places(raw: Raw, part: Grid | OneOf) -> NDArray[np.int32]:
    """Returns (rows,) each row's place, the last where it is missing."""
    if isinstance(part, Grid):
        places, missing = part.places(raw.numbers[part.column]), part.cells
    else:
        own, texts = raw.texts[part.column]
        places, missing = np.append(part.places(texts), np.int32(-1))[own], len(part.values) + 1
    return np.where(places < 0, missing, places).astype(np.int32)


def _values(raw: Raw, column: str, schema: Schema) -> NDArray[np.float64]:
    if column not in schema.labels:
        return raw.numbers[column]
    return np.where(raw.observed[column], raw.labels[column], 0.0).astype(np.float64)
