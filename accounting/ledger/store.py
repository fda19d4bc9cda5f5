"""An append-only, hash-chained log in a database: what the budget ledger remembers.

Each row holds the hash of the row before it, so a changed, removed or reordered row breaks the chain. The
log knows nothing of budgets; `rules` says which step may follow which.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import BigInteger, Column, Connection, MetaData, Table, Text, insert, select
from sqlalchemy import Row as Found
from sqlalchemy.exc import DBAPIError

from accounting.budget import LedgerError
from accounting.ledger.databases import absent, database, init_command

__all__ = ["GENESIS", "Kind", "LedgerError", "Mark", "Row", "Step", "Store", "broken", "check_chain", "init_command"]

FORMAT_VERSION = 2

GENESIS = "0" * 64
"""The hash that stands before the first row."""

Kind = Literal["init", "reserve", "open", "commit", "abort", "release", "lease", "resume"]

_LOG = Table(
    "log",
    MetaData(),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("dataset", Text, nullable=False),
    Column("key", Text),
    Column("body", Text, nullable=False),
    Column("prev_hash", Text, nullable=False, unique=True),
    Column("hash", Text, nullable=False, unique=True),
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What happened: a data set got its limit (`init`), or the charge with this ``key`` moved on.

    ``body`` is what else the rules want remembered, as JSON-able data without NaN or infinities.
    """

    kind: Kind
    dataset: str
    key: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A step as the log holds it: numbered from 1 without gaps, timed (UTC, ISO 8601), and chained."""

    seq: int
    at: str
    step: Step
    prev_hash: str
    hash: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the row as plain data, one item per column; ``body`` is a mapping of its own."""
        return {
            "seq": self.seq,
            "at": self.at,
            "kind": self.step.kind,
            "dataset": self.step.dataset,
            "key": self.step.key,
            "body": dict(self.step.body),
            "prev_hash": self.prev_hash,
            "hash": self.hash,
        }


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A row up to which the log was read and checked before."""

    seq: int
    hash: str


class Store:
    """The log at a URL: `sqlite:///file` or `postgresql+psycopg://user@host/database`.

    Guarantees: a step is on the disk when `append` returns; what `append` read is still so when it writes, since
    writers take turns; rows are inserted, never updated or deleted, and triggers refuse both. Threads and forked
    processes may share a store.

    shown: the URL without its password.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        self._database = database(url, create=create)
        self._create = create
        self.shown = self._database.shown

    def rows(self) -> list[Row]:
        """Returns the whole log as it stands, unchecked; waits for no writer."""
        with self._session(write=False) as connection:
            if not self._holds_a_ledger(connection):
                raise absent(self.shown)
            return _read(connection)

    def append(self, step: Step, accept: Callable[[Sequence[Row], Row], None], since: Mark | None = None) -> Row:
        """Adds ``step`` to the log and returns its row, once it is on the disk.

        ``accept(rows, row)`` sees the rows after ``since`` (all without one), their chain checked, and the row to
        come, inside the transaction that writes it; whatever it raises leaves the log as it was. A row at ``since``
        that is gone or changed is refused like any broken chain.
        """
        with self._session(write=True) as connection:
            rows: list[Row] = []
            if self._holds_a_ledger(connection):
                rows = _read(connection, since)
                check_chain(rows, self.shown, since)
                rows = rows if since is None else rows[1:]
            elif self._create and since is None:
                self._database.lay_out(connection, _LOG.metadata, FORMAT_VERSION)
            else:
                raise absent(self.shown)
            row = _seal(step, rows[-1] if rows else since)
            accept(rows, row)
            connection.execute(insert(_LOG), {**row.as_dict(), "body": _canonical(row.step.body)})
            self._commit(connection)
        return row

    @contextmanager
    def _session(self, *, write: bool) -> Iterator[Connection]:
        """Lends a connection, rolled back unless committed; the database's errors become one clear line."""
        try:
            with self._database.engine.connect() as connection:
                self._database.begin(connection, write=write)
                yield connection
        except DBAPIError as error:
            raise self._database.explain(error, committing=False) from error

    def _commit(self, connection: Connection) -> None:
        try:
            connection.commit()
        except DBAPIError as error:
            raise self._database.explain(error, committing=True) from error

    def _holds_a_ledger(self, connection: Connection) -> bool:
        found = self._database.format(connection)
        if found not in (None, FORMAT_VERSION):
            raise LedgerError(
                f"{self.shown} has format {found}, but this privads reads format {FORMAT_VERSION}: "
                "use the release of privads that wrote it"
            )
        return found is not None


def check_chain(rows: Sequence[Row], shown: str, since: Mark | None = None) -> None:
    """Raises `LedgerError` with the number of the first row that is missing, changed or out of place.

    ``rows`` is a whole log, or with ``since`` the row that it marks and those after it.
    """
    first, prev_hash = (1, GENESIS) if since is None else (since.seq, None)
    if not rows:
        raise broken(shown, first, "it is missing")
    if since is not None and (rows[0].seq, rows[0].hash) != (since.seq, since.hash):
        raise broken(shown, first, "it is not the row that was read before")
    for expected, row in enumerate(rows, start=first):
        if row.seq != expected:
            raise broken(shown, expected, "it is missing")
        if prev_hash is not None and row.prev_hash != prev_hash:
            raise broken(shown, expected, "it does not follow the row before it")
        if row.hash != _hash(row):
            raise broken(shown, expected, "its content was changed")
        prev_hash = row.hash


def broken(shown: str, seq: int, why: str) -> LedgerError:
    """Returns the error for a log that is not to be trusted from row ``seq`` on."""
    return LedgerError(f"{shown} is broken at row {seq}: {why}; restore it from a backup")


def _seal(step: Step, last: Row | Mark | None) -> Row:
    """Returns ``step`` as the row that follows ``last``, timed and hashed."""
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    seq, prev_hash = (0, GENESIS) if last is None else (last.seq, last.hash)
    step = replace(step, body=json.loads(_canonical(step.body)))  # as it will be read back
    row = Row(seq=seq + 1, at=at, step=step, prev_hash=prev_hash, hash="")
    return replace(row, hash=_hash(row))


def _hash(row: Row) -> str:
    """Returns SHA-256 over the canonical JSON of all columns but the hash itself."""
    columns = row.as_dict()
    del columns["hash"]
    return hashlib.sha256(_canonical(columns).encode()).hexdigest()


def _canonical(data: Mapping[str, Any]) -> str:
    """Returns the one JSON text of ``data``: sorted keys, no spaces, ASCII."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _read(connection: Connection, since: Mark | None = None) -> list[Row]:
    """Returns the log from the row that ``since`` marks, or all of it."""
    query = select(_LOG).order_by(_LOG.c.seq)
    return [
        _row(found) for found in connection.execute(query if since is None else query.where(_LOG.c.seq >= since.seq))
    ]


def _row(found: Found[Any]) -> Row:
    """Returns a row of the table; what privads cannot have written there is kept as text, which breaks its hash."""
    told: dict[str, Any] = {
        name: value if isinstance(value, str | int | None) else repr(value) for name, value in found._mapping.items()
    }
    step = Step(kind=told["kind"], dataset=told["dataset"], key=told["key"], body=_body(found.body))
    return Row(seq=told["seq"], at=told["at"], step=step, prev_hash=told["prev_hash"], hash=told["hash"])


def _body(stored: Any) -> dict[str, Any]:
    try:
        body = json.loads(stored)
        if isinstance(body, dict) and _canonical(body) == stored:
            return body
    except (TypeError, ValueError, RecursionError):
        pass
    return {"unreadable": repr(stored)}
