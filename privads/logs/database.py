"""DuckDB as this library uses it: rows wait in little memory, and beyond it in a folder that nobody else can open."""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

LONGEST = 1024
"""Characters of a category's value that are looked at: without an end to them one unit could fill the memory."""

MEMORY = "2GB"
"""What the database may hold in memory; beyond it, it uses files in a folder of its own that is removed at the end."""


_AT_ONCE = 8
"""Frames of rows that go to the database together: one by one they would take it four times as long."""


def check_database() -> None:
    """Refuse to go on where DuckDB is not installed."""
    try:
        import duckdb  # noqa: F401
    except ImportError:
        raise ImportError("counting a log needs DuckDB: pip install 'privads[signals]'") from None


@contextmanager
def open_database() -> Iterator[Any]:
    """Yields an empty database (a DuckDB connection) that is gone at the end, whatever it holds."""
    check_database()
    import duckdb

    with tempfile.TemporaryDirectory(prefix="privads-") as folder, duckdb.connect() as database:
        database.execute(f"SET memory_limit='{MEMORY}'")
        database.execute(f"SET temp_directory='{Path(folder).as_posix()}'")
        database.execute("SET temp_file_encryption=true")  # a process that is killed leaves its files behind
        # Else it encrypts with an extension only that it looks for on the network, and fails where there is none. Its
        # own key is not as random as one should be: what is left behind is hard to read, not impossible.
        database.execute("SET force_mbedtls_unsafe='true'")
        database.execute("SET autoinstall_known_extensions=false")
        database.execute("SET preserve_insertion_order=false")
        database.execute("SET enable_progress_bar=false")
        yield database


def store(database: Any, table: str, schema: pa.Schema, frames: Iterator[pa.RecordBatch]) -> None:
    """Store the rows of ``frames`` in a new table. They are made here, so that what goes wrong with them is told as it
    is: handed over as a stream, it would be an error of the database's.
    """
    database.register("new_rows", schema.empty_table())
    database.execute(f"CREATE TABLE {table} AS SELECT * FROM new_rows")
    while some := list(itertools.islice(frames, _AT_ONCE)):
        database.register("new_rows", pa.Table.from_batches(some))
        database.execute(f"INSERT INTO {table} BY NAME SELECT * FROM new_rows")
    database.unregister("new_rows")


class Codes:
    """Whole numbers from 0 for texts, in the order in which they come."""

    def __init__(self) -> None:
        self._of: dict[str, int] = {}

    def of(self, texts: Sequence[str | None]) -> NDArray[np.int32]:
        """Returns each text's number; -1 for None."""
        known = self._of
        return np.array(
            [-1 if one is None else known.setdefault(one[:LONGEST], len(known)) for one in texts], dtype=np.int32
        )

    @property
    def texts(self) -> NDArray[np.object_]:
        """The text of each number."""
        return np.array([*self._of, None], dtype=object)
