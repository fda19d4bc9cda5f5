"""Where a ledger's log may lie: one SQLite file, or one PostgreSQL database that a team shares.

Each class here gives its database the same four promises: what was read inside a writing transaction is still so when
it commits, since writers take turns; what was committed is on the disk; a database that holds something else is told
apart before anything is written; every failure becomes one clear line that shows no password.
"""

import os
import re
import sqlite3
import time
import weakref
from pathlib import Path
from shlex import quote
from typing import Protocol

from sqlalchemy import URL, Connection, Engine, MetaData, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from accounting.budget import LedgerError

SQLITE = "sqlite:///"
POSTGRES = "postgresql+psycopg://"

APPLICATION_ID = 0x70726461
"""What marks a SQLite file as a ledger of privads ("prda"), in the place its header has for that."""

SCHEMA = "privads_ledger"
"""The PostgreSQL schema that holds the ledger of a database, and nothing else."""

_PG = "pg_catalog"
"""Where PostgreSQL's own functions lie: a search_path may name others of the same names first."""

WRITER_LOCK = 0x70726976616473
"""The number of PostgreSQL's advisory lock that writers take in turn ("privads")."""

BUSY_SECONDS = 30.0
"""How long to wait for another writer's transaction; its own takes milliseconds."""

CONNECT_SECONDS = 10
"""How long to wait for a PostgreSQL server to answer, unless the URL says otherwise (connect_timeout)."""


class Database(Protocol):
    """What a log needs of the database it lies in."""

    @property
    def shown(self) -> str:
        """The URL for people to read: without its password."""

    @property
    def engine(self) -> Engine:
        """Where connections come from."""

    def begin(self, connection: Connection, *, write: bool) -> None:
        """Starts a transaction; one that writes is then the only one that does."""

    def format(self, connection: Connection) -> int | None:
        """Returns the format of the ledger that is there, or None if nothing is; something else is refused."""

    def lay_out(self, connection: Connection, tables: MetaData, version: int) -> None:
        """Makes an empty ledger of this format."""

    def explain(self, error: DBAPIError, *, committing: bool) -> LedgerError:
        """Returns what went wrong as one clear line; ``committing``: it was the commit itself that failed."""


def database(url: str, *, create: bool) -> Database:
    """Returns the database that ``url`` names; nothing is opened yet."""
    if url.startswith(SQLITE) and url.removeprefix(SQLITE) not in ("", ":memory:"):
        return SQLite(url, create=create)
    if url.startswith(POSTGRES):
        return PostgreSQL(url)
    scheme = url.partition(":")[0]  # only this much of it: the rest may hold a password
    raise LedgerError(
        "a ledger is one SQLite file, such as sqlite:///budget.db, or one PostgreSQL database, such as "
        f"postgresql+psycopg://user@host/database; got {scheme!r}"
    )


class SQLite:
    """One file on a local disk (SQLite's WAL needs memory that its users share).

    Each operation opens and closes a connection, so none is shared by forks or threads. Writers take turns by BEGIN
    IMMEDIATE; WAL with synchronous=FULL puts a commit on the disk before it returns.
    """

    def __init__(self, url: str, *, create: bool) -> None:
        self.shown = url
        self._path = Path(url.removeprefix(SQLITE)).absolute()
        self._create = create
        mode = "rwc" if create else "rw"
        self.engine = create_engine(
            "sqlite://",
            poolclass=NullPool,
            creator=lambda: sqlite3.connect(
                f"{self._path.as_uri()}?mode={mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None
            ),
        )

    def begin(self, connection: Connection, *, write: bool) -> None:
        """Starts a transaction, unless the file is someone else's: then not a byte of it may change."""
        connection.exec_driver_sql("PRAGMA synchronous=FULL")
        found = self.format(connection)
        if not write:
            connection.exec_driver_sql("PRAGMA query_only=ON")
        elif found is not None or self._create:
            _use_wal(connection)
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    def format(self, connection: Connection) -> int | None:
        """Returns the file's format; SQLite makes a file empty, with a schema that was never changed.

        The schema is looked at first: whoever makes a ledger just then changes it and sets the mark in one transaction.
        """
        empty = _pragma(connection, "schema_version") == 0
        application = _pragma(connection, "application_id")
        if application == APPLICATION_ID:
            return _pragma(connection, "user_version")
        if empty and application == 0:
            return None
        raise self._foreign()

    def lay_out(self, connection: Connection, tables: MetaData, version: int) -> None:
        """Makes the tables and the triggers that keep them append-only, and marks the file."""
        tables.create_all(connection)
        for action in ("UPDATE", "DELETE"):
            connection.exec_driver_sql(
                f"CREATE TRIGGER log_refuses_{action.lower()} BEFORE {action} ON log "
                "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
            )
        connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
        connection.exec_driver_sql(f"PRAGMA user_version={version}")

    def explain(self, error: DBAPIError, *, committing: bool) -> LedgerError:
        """Reads SQLite's error name."""
        name = getattr(error.orig, "sqlite_errorname", "").removeprefix("SQLITE_")
        match name if name == "IOERR_SHMSIZE" else name.partition("_")[0]:
            case "NOTADB":
                return self._foreign()
            case "CANTOPEN" if not (self._create or _exists(self._path)):
                return absent(self.shown)
            case "CANTOPEN" | "READONLY" | "PERM":
                why = f"see that {self._path.parent} exists and that it and the file are writable for this user"
                return LedgerError(f"{self.shown} cannot be opened for writing, nothing was charged: {why}")
            case "BUSY" | "LOCKED":
                why = f"another process has held it for {BUSY_SECONDS:g} s, nothing was charged"
                return LedgerError(f"{self.shown} is locked: {why}; try again when that process is done")
            case "FULL" | "IOERR_SHMSIZE":  # no room for the log, or for the index that WAL keeps beside it
                return LedgerError(f"there is no space left to write {self.shown}, nothing was charged; free some")
        if committing:
            return _outcome_unknown(self.shown, str(error.orig))
        return _failed(self.shown, str(error.orig))

    def _foreign(self) -> LedgerError:
        return LedgerError(f"{self.shown} is not a ledger of privads; name another file, this one was left as it is")


class PostgreSQL:
    """One database of a server: its ledger lies in the schema `privads_ledger`, which holds nothing else.

    Writers take turns by an advisory lock of the transaction, for which SELECT and INSERT on the log are rights enough.
    Each write sets synchronous_commit=on for itself and refuses a server that runs with fsync=off: there a commit may
    be lost. Connections are pooled; a forked child drops its parent's and opens its own. Prepared statements are off
    and nothing is set for longer than a transaction, so that a pooler may stand between.
    """

    def __init__(self, url: str) -> None:
        where = _parse(url)
        hidden = {name: "***" for name in where.query if re.search("pass|pw|secret", name.lower())}
        self.shown = where.update_query_dict(hidden).render_as_string(hide_password=True)
        defaults = {"connect_timeout": str(CONNECT_SECONDS), "client_encoding": "utf8", "application_name": "privads"}
        try:
            self.engine = create_engine(
                where.update_query_dict({**defaults, **where.query}),
                isolation_level="READ COMMITTED",  # each statement sees what was committed before it began
                pool_size=1,
                max_overflow=-1,  # more only while more threads write at once
                pool_pre_ping=True,
                connect_args={"prepare_threshold": None},
                execution_options={"schema_translate_map": {None: SCHEMA}},
            )
        except ImportError as error:
            raise LedgerError(
                "a ledger on PostgreSQL needs psycopg, which is not installed: pip install 'privads[postgres]'"
            ) from error
        _pooled.add(self)
        weakref.finalize(self, self.engine.dispose)

    def begin(self, connection: Connection, *, write: bool) -> None:
        """Takes the writers' lock, if the transaction is to write; reading waits for nobody."""
        if not write:
            return
        found = connection.exec_driver_sql(  # evaluated from left to right, in one round trip
            f"SELECT {_PG}.current_setting('fsync'), {_PG}.set_config('synchronous_commit', 'on', true), "
            f"{_PG}.set_config('lock_timeout', '{BUSY_SECONDS * 1000:.0f}ms', true), "
            f"{_PG}.pg_advisory_xact_lock({WRITER_LOCK})"
        )
        if found.scalar_one() != "on":
            raise LedgerError(
                f"{self.shown} runs with fsync=off, so a crash may lose what was charged; nothing was charged: "
                "set fsync=on in the server's postgresql.conf and restart it"
            )

    def format(self, connection: Connection) -> int | None:
        """Returns the format that the schema's table `meta` states."""
        schema, meta = connection.exec_driver_sql(
            f"SELECT {_PG}.to_regnamespace('{SCHEMA}') IS NOT NULL, {_PG}.to_regclass('{SCHEMA}.meta') IS NOT NULL"
        ).one()
        if not schema:
            return None
        versions = connection.exec_driver_sql(f"SELECT format FROM {SCHEMA}.meta").scalars().all() if meta else []
        if len(versions) != 1:
            raise self._foreign()
        return int(versions[0])

    def lay_out(self, connection: Connection, tables: MetaData, version: int) -> None:
        """Makes the schema, its tables and the triggers that keep them append-only."""
        connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")
        connection.exec_driver_sql(f"CREATE TABLE {SCHEMA}.meta (format integer NOT NULL)")
        connection.execute(text(f"INSERT INTO {SCHEMA}.meta VALUES (:version)"), {"version": version})
        tables.create_all(connection)
        connection.exec_driver_sql(
            f"CREATE FUNCTION {SCHEMA}.refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$"
        )
        connection.exec_driver_sql(
            f"CREATE TRIGGER log_refuses_changes BEFORE UPDATE OR DELETE OR TRUNCATE ON {SCHEMA}.log "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.refuse()"
        )

    def explain(self, error: DBAPIError, *, committing: bool) -> LedgerError:
        """Reads PostgreSQL's error code; a failure to connect has none."""
        said = " ".join(str(error.orig).split())  # in one line; a server and libpq never repeat a password
        if committing:
            return _outcome_unknown(self.shown, said)
        match getattr(error.orig, "sqlstate", None):
            case "55P03":
                why = f"another process has held it for {BUSY_SECONDS:g} s, nothing was charged"
                return LedgerError(f"{self.shown} is locked: {why}; try again when that process is done")
            case "42501":
                why = "let its owner grant USAGE on the schema, SELECT on its tables and INSERT on its log"
                return LedgerError(f"{self.shown} refuses this user ({said}), nothing was charged: {why}")
            case "42P01" | "42703" | "3F000":
                return self._foreign()
            case "25006":
                why = "name its primary server"
                return LedgerError(f"{self.shown} cannot be written, it is read-only; nothing was charged: {why}")
            case "53100":
                return LedgerError(f"there is no space left to write {self.shown}, nothing was charged; free some")
            case None | "57P01" | "57P02" | "57P03":
                why = "see that the server runs and that the URL names its host, port, database, user and password"
                return LedgerError(f"{self.shown} cannot be reached ({said}), nothing was charged: {why}")
        return _failed(self.shown, said)

    def _foreign(self) -> LedgerError:
        return LedgerError(
            f"{self.shown} has a schema {SCHEMA} that is not a ledger of privads; name another database, this one was "
            "left as it is"
        )


_pooled: weakref.WeakSet[PostgreSQL] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """Gives a forked child pools of its own: two processes that talk on one connection garble it."""
    for one in _pooled:
        one.engine.dispose(close=False)


os.register_at_fork(after_in_child=_leave_to_the_parent)


def init_command(shown: str, *, dataset: str = "NAME") -> str:
    """Returns the command line that adds a data set to a ledger, for the messages that ask for it."""
    where = f"--ledger {quote(shown)} --dataset {quote(dataset)}"
    return f"privads budget init {where} --epsilon E --delta D --unit user"


def absent(shown: str) -> LedgerError:
    """Returns the error for a place without a ledger."""
    return LedgerError(f"there is no ledger at {shown}; create it with `{init_command(shown)}`")


def _failed(shown: str, said: str) -> LedgerError:
    return LedgerError(
        f"{shown} failed ({said}), nothing was charged: see what it holds with "
        "`privads budget verify` and restore it from a backup if that fails"
    )


def _outcome_unknown(shown: str, said: str) -> LedgerError:
    return LedgerError(
        f"{shown} failed while it wrote a step ({said}), which may or may not be on the ledger: "
        "repeat it with the same charge, which never counts twice"
    )


def _parse(url: str) -> URL:
    """Returns the parts of a PostgreSQL URL; one that is not understood is not repeated, for it may hold a password."""
    try:
        where = make_url(url)
    except (ArgumentError, ValueError):
        where = None
    if where is None or not where.database or "@" in f"{where.host}{where.database}":
        raise LedgerError(
            "the ledger's URL must read postgresql+psycopg://user:password@host:5432/database, with each of / : @ "
            "in a password written as %2F %3A %40; or leave the password out, and libpq finds it in ~/.pgpass"
        )
    return where


def _use_wal(connection: Connection) -> None:
    """Turns on WAL, which a file then keeps; SQLite itself does not wait for a writer to a file that is not yet so."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            return
        except DBAPIError as error:
            busy = getattr(error.orig, "sqlite_errorname", "") == "SQLITE_BUSY"
            if not busy or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _pragma(connection: Connection, name: str) -> int:
    return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True
