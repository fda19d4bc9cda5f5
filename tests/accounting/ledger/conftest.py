"""Where the ledger's tests keep their ledgers: every test that takes `url` runs on each database."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from benchmarks.postgres import Server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the ledger of `sqlite_url` is."""
    return tmp_path / "budget.db"


@pytest.fixture
def sqlite_url(path: Path) -> str:
    """A place for a ledger in a SQLite file."""
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_url(postgres: "Server") -> str:
    """A place for a ledger in a PostgreSQL database."""
    postgres.empty("ledger")
    return postgres.url("ledger")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """A place for a ledger, on each database in turn."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def other_url(url: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A second place for a ledger, on the same database as `url`."""
    if url.startswith("sqlite"):
        return f"sqlite:///{tmp_path / 'other.db'}"
    server: Server = request.getfixturevalue("postgres")
    server.empty("other")
    return server.url("other")


@pytest.fixture
def tamper(url: str, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Changes the table `log` behind the ledger's back, its triggers removed first."""

    def change(*statements: str) -> None:
        if url.startswith("sqlite"):
            with closing(sqlite3.connect(request.getfixturevalue("path"))) as connection:
                for action in ("update", "delete"):
                    connection.execute(f"DROP TRIGGER IF EXISTS log_refuses_{action}")
                for statement in statements:
                    connection.execute(statement)
                connection.commit()
            return
        server: Server = request.getfixturevalue("postgres")
        with server.connect("ledger", search_path="privads_ledger") as connection:
            connection.execute("DROP TRIGGER IF EXISTS log_refuses_changes ON log")
            for statement in statements:
                connection.execute(statement)

    return change
