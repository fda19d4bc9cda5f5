"""The exact counts behind noisy tables, of a bounded choice of each unit's rows, on DuckDB. Nothing here is private.

Rows wait in the database as small whole numbers; only who owns them is text, and the choice of rows sees nothing else,
so that it is made in little memory, whatever the log's size.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from privads.logs.database import Codes, open_database, store
from privads.signals.query import Grid, Query, Source


def count(source: Source, queries: Sequence[Query], *, unit_columns: int, rows_per_unit: int) -> list[pd.DataFrame]:
    """Returns for each query the exact counts by key, of at most ``rows_per_unit`` rows of each unit.

    unit_columns: how many of the schema's unit columns name the unit; with 0 each row is one, and all are counted.
    """
    names = {one: f"k{i}" for i, one in enumerate(dict.fromkeys(one for query in queries for one in query.by))}
    labels = {one: f"y{i}" for i, one in enumerate(dict.fromkeys(q.label for q in queries if q.label is not None))}
    codes = {one: Codes() for one in names if not isinstance(one, Grid)}
    columns = [
        ("place", pa.int64()),
        *((f"u{i}", pa.string()) for i in range(unit_columns)),
        *((name, pa.int32()) for name in names.values()),
        *((name, pa.int8()) for name in labels.values()),
    ]
    frames = _frames(source, names, labels, codes, unit_columns)
    counted = ", ".join(["place", *names.values(), *labels.values()])
    owner = ", ".join(f"u{i}" for i in range(unit_columns))
    with open_database() as database:
        store(database, "rows_read", pa.schema(columns), frames)
        if unit_columns:
            database.execute(
                f"CREATE TABLE chosen AS SELECT place FROM (SELECT {owner}, place, random() AS drawn FROM rows_read) "
                f"QUALIFY row_number() OVER (PARTITION BY {owner} ORDER BY drawn) <= {rows_per_unit}"
            )
            database.execute(f"CREATE TABLE kept AS SELECT {counted} FROM rows_read SEMI JOIN chosen USING (place)")
        else:
            database.execute("ALTER TABLE rows_read RENAME TO kept")
        return [_decoded(database.execute(_sql(query, names, labels)).df(), query, codes) for query in queries]


def _decoded(counted: pd.DataFrame, query: Query, codes: Mapping[str, Codes]) -> pd.DataFrame:
    """Returns the counts with the texts of categories in the place of their numbers."""
    for place, one in enumerate(query.by):
        if not isinstance(one, Grid):
            found = counted.iloc[:, place].fillna(-1).to_numpy(dtype=np.int64)
            counted.isetitem(place, codes[one].texts[found])
    return counted


def _sql(query: Query, names: Mapping[str | Grid, str], labels: Mapping[str, str]) -> str:
    by = ", ".join(names[one] for one in query.by)
    group = f"GROUP BY {by}" if by else ""
    by = by or "NULL AS everything"
    if query.label is None:
        return f"SELECT {by}, count(*) AS rows FROM kept {group}"
    label = labels[query.label]  # null where it is not known
    counted = f"count(*) FILTER ({label} = 1) AS positives, count(*) FILTER ({label} = 0) AS negatives"
    return f"SELECT {by}, {counted} FROM kept WHERE {label} IS NOT NULL {group}"


def _frames(
    source: Source,
    names: Mapping[str | Grid, str],
    labels: Mapping[str, str],
    codes: Mapping[str, Codes],
    unit_columns: int,
) -> Iterator[pa.RecordBatch]:
    """Yields the rows as the database counts them."""
    seen = 0
    for raw in source.raw():
        columns: dict[str, pa.Array] = {"place": pa.array(np.arange(seen, seen + raw.rows))}
        seen += raw.rows
        columns |= {f"u{i}": pa.array(raw.units[i], type=pa.string()) for i in range(unit_columns)}
        for one, name in names.items():
            if isinstance(one, Grid):
                numbers = one.places(raw.numbers[one.column])
            else:
                own, values = raw.texts[one]
                numbers = np.append(codes[one].of(values), np.int32(-1))[own]  # -1, the last, where it is missing
            columns[name] = pa.array(numbers, mask=numbers < 0)
        for label, name in labels.items():
            columns[name] = pa.array(raw.labels[label].astype(np.int8), mask=~raw.observed[label])
        yield pa.RecordBatch.from_pydict(columns)
