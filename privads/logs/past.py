"""How many rows its user had before each row, and how long ago: what a row's own unit did strictly earlier.

A row sees rows with the same unit columns only, so all that it sees belongs to one unit, and no unit's rows enter
another's features. Rows at the same time do not see each other, so the order of a file decides nothing. Labels are not
looked at: when a row is served, the outcomes of earlier ones may not be known.

The rows are read twice. First who owns each, its time and the columns that must agree go to the database, which finds
the earlier rows by a window over each unit's rows in the order of time; it holds at most `database.MEMORY` in memory,
beside the distinct values of those columns. Then the rows are read again, each part beside what was found for it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from privads.logs.database import Codes, open_database, store
from privads.logs.reader import LogError

if TYPE_CHECKING:
    from privads.logs.encode import Part

HOUR = 3_600_000_000
"""In microseconds."""

_FARTHEST = 2**60
"""Microseconds from 1970 beyond which times are taken for equal: a file can hold times whose distance is no 64 bits."""


class Past(BaseModel):
    """The rows that a row looks back at: of its own unit, strictly earlier, with its values in ``columns`` (a missing
    value is one), and at most ``within_hours`` hours before it; None for any time before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    columns: tuple[str, ...] = ()
    within_hours: float | None = Field(default=None, gt=0, le=1e6)


@dataclass(frozen=True, kw_only=True, eq=False)
class Earlier:
    """What a `Past` finds. rows: (rows,) how many. hours: (rows,) since the latest of them, NaN where there is none."""

    rows: NDArray[np.int64]
    hours: NDArray[np.float64]

    def __getitem__(self, chosen: NDArray[Any]) -> "Earlier":
        return Earlier(rows=self.rows[chosen], hours=self.hours[chosen])


@contextmanager
def looking_back(
    parts: Iterable["Part"], pasts: Sequence[Past], *, unit_columns: int
) -> Iterator[Callable[["Part"], "Part"]]:
    """Yields what adds to a part what its rows look back at; to be called with all parts, in their order.

    parts: encoded with ``raw``; they are read to the end before anything is yielded, or not at all without ``pasts``.
    Rows that do not fit the schema are not seen, and see nothing.
    """
    if not pasts:
        yield lambda part: part
        return
    names = {column: f"k{i}" for i, column in enumerate(dict.fromkeys(one for past in pasts for one in past.columns))}
    owner = [f"u{i}" for i in range(unit_columns)]
    columns = [
        *(("place", pa.int64()), ("micros", pa.int64())),
        *((one, pa.string()) for one in owner),
        *((one, pa.int32()) for one in names.values()),
    ]
    with open_database() as database:
        store(database, "rows_read", pa.schema(columns), _frames(parts, names))
        found = [f"count(*) OVER w{i} AS n{i}, micros - max(micros) OVER w{i} AS s{i}" for i in range(len(pasts))]
        windows = [f"w{i} AS ({_window(past, owner, names)})" for i, past in enumerate(pasts)]
        database.execute(
            f"CREATE TABLE found AS SELECT place, {', '.join(found)} FROM rows_read WINDOW {', '.join(windows)} "
            "ORDER BY place"
        )
        database.execute("DROP TABLE rows_read")
        yield _Adder(database, tuple(pasts))


class _Adder:
    """Adds what was found to parts, as they come."""

    def __init__(self, database: Any, pasts: tuple[Past, ...]) -> None:
        self._database, self._pasts, self._seen = database, pasts, 0

    def __call__(self, part: "Part") -> "Part":
        first, end = self._seen, self._seen + len(part.fits)
        self._seen = end
        found = self._database.execute("SELECT * FROM found WHERE place >= ? AND place < ?", [first, end]).fetchnumpy()
        places = found["place"] - first
        if len(places) != part.fits.sum():
            raise LogError("the files have changed while they were read: start again")
        made = {}
        for i, past in enumerate(self._pasts):
            rows, hours = np.zeros(end - first, dtype=np.int64), np.full(end - first, np.nan)
            rows[places] = found[f"n{i}"]
            hours[places] = np.ma.filled(found[f"s{i}"].astype(np.float64), np.nan) / HOUR
            made[past] = Earlier(rows=rows, hours=hours)
        return replace(part, pasts=made)


def _window(past: Past, owner: Sequence[str], names: dict[str, str]) -> str:
    same = ", ".join([*owner, *(names[column] for column in past.columns)])
    start = "UNBOUNDED" if past.within_hours is None else str(round(past.within_hours * HOUR))
    return f"PARTITION BY {same} ORDER BY micros RANGE BETWEEN {start} PRECEDING AND 1 PRECEDING"


def _frames(parts: Iterable["Part"], names: dict[str, str]) -> Iterator[pa.RecordBatch]:
    """Yields the rows as the database looks at them."""
    seen, codes = 0, {column: Codes() for column in names}
    for part in parts:
        places = np.flatnonzero(part.fits)
        micros = np.clip(part.times[places].astype("datetime64[us]").astype(np.int64), -_FARTHEST, _FARTHEST)
        columns = {"place": pa.array(seen + places), "micros": pa.array(micros)}
        seen += len(part.fits)
        columns |= {f"u{i}": pa.array(unit[places], type=pa.string()) for i, unit in enumerate(part.units)}
        for column, name in names.items():
            own, values = part.texts[column]
            columns[name] = pa.array(np.append(codes[column].of(values), np.int32(-1))[own[places]])
        yield pa.RecordBatch.from_pydict(columns)
