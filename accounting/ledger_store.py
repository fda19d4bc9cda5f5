"""An append-only, hash-chained log in one SQLite file: what the budget ledger remembers.

Each row holds the hash of the row before it, so a changed, removed or reordered row breaks the chain. The
log knows nothing of budgets; `ledger` says which step may follow which.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    insert,
    select,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

SCHEME = "sqlite:///"
APPLICATION_ID = 0x70726461
"""What marks a SQLite file as a ledger of privads ("prda"), in the place its header has for that."""

FORMAT_VERSION = 1
BUSY_SECONDS = 30.0
"""How long to wait for another process's transaction; its own takes milliseconds."""

GENESIS = "0" * 64
"""The hash that stands before the first row."""

Kind = Literal["init", "reserve", "open", "commit", "abort"]

_LOG = Table(
    "log",
    MetaData(),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("dataset", Text, nullable=False),
    Column("key", Text),
    Column("epsilon", BigInteger),
    Column("delta", BigInteger),
    Column("unit", Text),
    Column("neighbors", Text),
    Column("purpose", Text),
    Column("event", Text),
    Column("prev_hash", Text, nullable=False, unique=True),
    Column("hash", Text, nullable=False, unique=True),
    UniqueConstraint("key", "kind"),
)


class LedgerError(RuntimeError):
    """The ledger refuses or cannot be used; the message is one line and names the remedy."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What happened: a data set got its limit (`init`), or the charge with this ``key`` moved on.

    ``epsilon`` and ``delta`` are whole numbers in the ledger's units; only `init` and `reserve` have them.
    """

    kind: Kind
    dataset: str
    key: str | None = None
    epsilon: int | None = None
    delta: int | None = None
    unit: str | None = None
    neighbors: str | None = None
    purpose: str | None = None
    event: str | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A step as the log holds it: numbered from 1 without gaps, timed (UTC, ISO 8601), and chained."""

    seq: int
    at: str
    step: Step
    prev_hash: str
    hash: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the row as plain data, flat, one item per column."""
        return {
            "seq": self.seq,
            "at": self.at,
            **asdict(self.step),
            "prev_hash": self.prev_hash,
            "hash": self.hash,
        }


class Store:
    """One ledger file. Each operation opens and closes a connection: none is shared by forks or threads.

    Guarantees: a step is on the disk when `append` returns (WAL with synchronous=FULL); what `append` read
    is still so when it writes (BEGIN IMMEDIATE: one writer at a time); rows are inserted, never updated or
    deleted. The file must lie on a local disk, since SQLite's WAL needs memory shared by its users.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        name = url.removeprefix(SCHEME)
        if not url.startswith(SCHEME) or name in ("", ":memory:"):
            scheme = url.partition(":")[0]  # only this much of it: the rest may hold a password
            raise LedgerError(f"a ledger is one SQLite file, such as sqlite:///budget.db; got {scheme!r}")
        self.url = url
        self._path = Path(name).absolute()
        self._create = create
        mode = "rwc" if create else "rw"
        self._engine = create_engine(
            "sqlite://",
            poolclass=NullPool,
            creator=lambda: sqlite3.connect(
                f"{self._path.as_uri()}?mode={mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None
            ),
        )

    def rows(self) -> list[Row]:
        """Returns the whole log as it stands in the file, unchecked; waits for no writer."""
        with self._session(write=False) as connection:
            return _read(connection)

    def append(self, step: Step, accept: Callable[[Sequence[Row], Row], None]) -> Row:
        """Adds ``step`` to the log and returns its row, once it is on the disk.

        ``accept(rows, row)`` sees the log, its chain checked, and the row to come, inside the transaction
        that writes it; whatever it raises leaves the file as it was.
        """
        with self._session(write=True) as connection:
            if self._create and _is_empty(connection):
                _lay_out(connection)
                rows = []
            else:
                rows = _read(connection)
                check_chain(rows, self.url)
            row = _seal(step, rows)
            accept(rows, row)
            connection.execute(insert(_LOG).values(row.as_dict()))
            connection.commit()
        return row

    @contextmanager
    def _session(self, *, write: bool) -> Iterator[Connection]:
        """Lends a connection, rolled back unless committed; the database's errors become one clear line."""
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA synchronous=FULL")
                self._check_format(connection)  # before anything is written: the file may be someone else's
                if write:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                else:
                    connection.exec_driver_sql("PRAGMA query_only=ON")
                yield connection
        except DBAPIError as error:
            raise self._explain(error) from error

    def _check_format(self, connection: Connection) -> None:
        if _is_empty(connection):
            if not self._create:
                raise self._absent()
            return
        if _pragma(connection, "application_id") != APPLICATION_ID:
            raise self._foreign()
        version = _pragma(connection, "user_version")
        if version != FORMAT_VERSION:
            raise LedgerError(
                f"{self.url} has format {version}, but this privads reads format {FORMAT_VERSION}: "
                "use the release of privads that wrote it"
            )

    def _absent(self) -> LedgerError:
        return LedgerError(f"there is no ledger at {self.url}; create it with `{init_command(self.url)}`")

    def _foreign(self) -> LedgerError:
        return LedgerError(f"{self.url} is not a ledger of privads; name another file, this one was left as it is")

    def _explain(self, error: DBAPIError) -> LedgerError:
        name = getattr(error.orig, "sqlite_errorname", "").removeprefix("SQLITE_").partition("_")[0]
        match name:
            case "NOTADB":
                return self._foreign()
            case "CANTOPEN" if not (self._create or _exists(self._path)):
                return self._absent()
            case "CANTOPEN" | "READONLY" | "PERM":
                why = f"see that {self._path.parent} exists and that it and the file are writable for this user"
                return LedgerError(f"{self.url} cannot be opened for writing, nothing was charged: {why}")
            case "BUSY" | "LOCKED":
                why = f"another process has held it for {BUSY_SECONDS:g} s, nothing was charged"
                return LedgerError(f"{self.url} is locked: {why}; try again when that process is done")
            case "FULL":
                return LedgerError(f"there is no space left to write {self.url}, nothing was charged; free some")
        return LedgerError(
            f"{self.url} failed ({error.orig}): see what it holds with "
            "`privads budget verify` and restore it from a backup if that fails"
        )


def check_chain(rows: Sequence[Row], url: str) -> None:
    """Raises `LedgerError` with the number of the first row that is missing, changed or out of place."""
    if not rows:
        raise broken(url, 1, "it is missing")
    prev_hash = GENESIS
    for expected, row in enumerate(rows, start=1):
        if row.seq != expected:
            raise broken(url, expected, "it is missing")
        if row.prev_hash != prev_hash:
            raise broken(url, expected, "it does not follow the row before it")
        if row.hash != _hash(row):
            raise broken(url, expected, "its content was changed")
        prev_hash = row.hash


def broken(url: str, seq: int, why: str) -> LedgerError:
    """Returns the error for a log that is not to be trusted from row ``seq`` on."""
    return LedgerError(f"{url} is broken at row {seq}: {why}; restore the file from a backup")


def init_command(url: str, *, dataset: str = "NAME") -> str:
    """Returns the command line that adds a data set to a ledger, for the messages that ask for it."""
    where = f"--ledger {quote(url)} --dataset {quote(dataset)}"
    return f"privads budget init {where} --epsilon E --delta D --unit user"


def _seal(step: Step, rows: Sequence[Row]) -> Row:
    """Returns ``step`` as the row that follows ``rows``, timed and hashed."""
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    prev_hash = rows[-1].hash if rows else GENESIS
    row = Row(seq=len(rows) + 1, at=at, step=step, prev_hash=prev_hash, hash="")
    return replace(row, hash=_hash(row))


def _hash(row: Row) -> str:
    """Returns SHA-256 over the canonical JSON (sorted keys, no spaces) of all columns but the hash itself."""
    columns = row.as_dict()
    del columns["hash"]
    text = json.dumps(columns, sort_keys=True, separators=(",", ":"), default=repr)  # repr: a planted BLOB
    return hashlib.sha256(text.encode()).hexdigest()


def _read(connection: Connection) -> list[Row]:
    names = [field.name for field in fields(Step)]
    return [
        Row(
            seq=found.seq,
            at=found.at,
            step=Step(**{name: getattr(found, name) for name in names}),
            prev_hash=found.prev_hash,
            hash=found.hash,
        )
        for found in connection.execute(select(_LOG).order_by(_LOG.c.seq))
    ]


def _lay_out(connection: Connection) -> None:
    _LOG.metadata.create_all(connection)
    connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
    connection.exec_driver_sql(f"PRAGMA user_version={FORMAT_VERSION}")


def _is_empty(connection: Connection) -> bool:
    """Says whether the file is a database that nothing was ever written to; SQLite creates it so."""
    return _pragma(connection, "application_id") == 0 and _pragma(connection, "schema_version") == 0


def _pragma(connection: Connection, name: str) -> int:
    return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True
