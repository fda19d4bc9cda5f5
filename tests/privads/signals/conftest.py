"""Databases that a `Warehouse` may be in, each of which takes the same made-up rows."""

import importlib.util
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from privads.noise import Randomness

if TYPE_CHECKING:
    from benchmarks.postgres import Server

Rows = Mapping[str, Sequence[Any]]
Stored = Callable[[Rows, Mapping[str, str]], Any]
"""Stores columns of the given types ("text", "bigint", "double", "boolean") and returns their Ibis table."""

ARROW = {"text": pa.string(), "bigint": pa.int64(), "double": pa.float64(), "boolean": pa.bool_()}

_numbers = itertools.count()


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Randomness, "rounded_gaussian", lambda self, count, *, noise_std: np.zeros(count, dtype=np.int64)
    )


@pytest.fixture
def in_duckdb() -> Stored:
    """A user's own DuckDB."""
    import ibis

    connection = ibis.duckdb.connect()
    return lambda rows, kinds: connection.create_table(f"t{next(_numbers)}", arrow(rows, kinds))


@pytest.fixture
def in_postgres(postgres: "Server") -> Iterator[Stored]:
    """A PostgreSQL database."""
    import ibis

    from benchmarks.postgres import PASSWORD, USER

    connection = ibis.postgres.connect(
        host="127.0.0.1", port=postgres.port, user=USER, password=PASSWORD, database="postgres"
    )

    def stored(rows: Rows, kinds: Mapping[str, str]) -> Any:
        name = f"t{next(_numbers)}"
        columns = ", ".join(
            f'"{column}" {kind.replace("double", "double precision")}' for column, kind in kinds.items()
        )
        with postgres.connect() as owner:
            owner.execute(f"CREATE TABLE {name} ({columns})")
            with owner.cursor() as cursor:
                places = ", ".join(["%s"] * len(kinds))
                cursor.executemany(
                    f"INSERT INTO {name} VALUES ({places})", list(zip(*(rows[one] for one in kinds), strict=True))
                )
        return connection.table(name)

    yield stored
    connection.disconnect()


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """A Spark of this process alone."""
    if importlib.util.find_spec("pyspark") is None:
        pytest.skip("PySpark is not installed: pip install 'privads[spark]'")
    if shutil.which("java") is None:
        pytest.skip("no Java is installed, which Spark needs: apt-get install openjdk-17-jre-headless")
    from pyspark.sql import SparkSession

    made = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    session = made.config("spark.sql.shuffle.partitions", "2").config("spark.ui.showConsoleProgress", "false")
    session = session.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture
def in_spark(spark: Any, tmp_path: Path) -> Stored:
    """A Spark session."""
    import ibis

    connection = ibis.pyspark.connect(spark)

    def stored(rows: Rows, kinds: Mapping[str, str]) -> Any:
        name = f"t{next(_numbers)}"
        pyarrow.parquet.write_table(arrow(rows, kinds), tmp_path / name)
        return connection.read_parquet(tmp_path / name, table_name=name)

    return stored


@pytest.fixture(params=["duckdb", "postgres", pytest.param("spark", marks=pytest.mark.slow)])
def stored(request: pytest.FixtureRequest) -> Stored:
    """Each of them in turn."""
    found: Stored = request.getfixturevalue(f"in_{request.param}")
    return found


def arrow(rows: Rows, kinds: Mapping[str, str]) -> pa.Table:
    return pa.table(
        {column: pa.array(rows[column], type=ARROW[kind], from_pandas=False) for column, kind in kinds.items()}
    )
