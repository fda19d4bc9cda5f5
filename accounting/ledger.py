"""The durable privacy-budget ledger: what each data set may lose, what was spent of it, and by whom.

A data set has one limit, set once. A charge moves `reserved -> opened -> committed`, or `reserved ->
aborted`: it is reserved in full and marked opened before the first private row is read, and never given
back afterwards, whatever happens. A reservation that nobody closed counts as spent. Losses add up.

`ledger_store` keeps the log, `ledger_rules` says what may follow what and how amounts are counted.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import uuid4

from accounting.budget import Budget, Neighbors, PrivacyUnit
from accounting.ledger_rules import (
    DELTA_PLACES,
    EPSILON_PLACES,
    MOST_UNITS,
    Book,
    Entry,
    State,
    at_least,
    at_most,
    to_units,
    unknown_dataset,
)
from accounting.ledger_store import Kind, LedgerError, Row, Step, Store, check_chain

__all__ = ["Balance", "Charge", "Entry", "Ledger", "LedgerError", "State", "Verification"]


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What one execution of a mechanism may cost at most.

    epsilon: an upper bound, at ``delta``. unit, neighbors: whom the two protect; they must be the data set's.
    event: what is executed, as one line of JSON that any later accountant can read again.
    purpose: for people, such as "train dcn".
    key: names this execution; the ledger takes each key once, so one charge never pays for two runs.
    """

    epsilon: float
    delta: float
    unit: PrivacyUnit
    event: str
    purpose: str
    neighbors: Neighbors = "add-remove"
    key: str = field(default_factory=lambda: uuid4().hex)

    def __post_init__(self) -> None:
        Budget(epsilon=self.epsilon, delta=self.delta, unit=self.unit, neighbors=self.neighbors)  # its checks
        for name in ("event", "purpose", "key"):
            _check_line(name, getattr(self, name))
        _pairs(self.event)


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What is spent and left of a data set's limit. Spent is rounded up, left is rounded down.

    ``open_entries``: charges that are neither committed nor aborted; they count as spent.
    """

    dataset: str
    limit: Budget
    spent_epsilon: float
    spent_delta: float
    left_epsilon: float
    left_delta: float
    open_entries: int


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The chain holds: ``entries`` rows, the newest with hash ``head``.

    ``anchored``: a hash noted elsewhere (in a report, in git) was found in the chain, so nothing up to it
    was cut off or rewritten. Without one, a log whose tail was cut off looks like a younger log.
    """

    entries: int
    head: str
    anchored: bool

    def __str__(self) -> str:
        tail = "anchored" if self.anchored else "tail not anchored: verify with a head noted elsewhere"
        return f"{self.entries} rows, head {self.head}, {tail}"


class Ledger:
    """A ledger file. Several processes and threads may use it at once; together they keep each limit.

    Guarantees, each with a test: no limit is exceeded on either axis; a refused charge changes nothing;
    what a method wrote is on the disk when it returns; after `open_rows` nothing is given back; every
    figure comes from a log whose hash chain and rules were checked just then. Reading waits for no writer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def url(self) -> str:
        """Where the ledger is."""
        return self._store.url

    @classmethod
    def init(cls, url: str, *, dataset: str, budget: Budget) -> Self:
        """Returns the ledger at ``url`` after adding a data set with its limit; creates a missing file.

        The limit is set once: a second `init` of the same data set is refused.
        """
        _check_line("dataset", dataset)
        epsilon = to_units(budget.epsilon, EPSILON_PLACES, math.floor)
        delta = to_units(budget.delta, DELTA_PLACES, math.floor)
        if not 1 <= epsilon <= MOST_UNITS or delta < 1:
            raise LedgerError(f"a limit must be 1e-9 to 9.2e9 in epsilon and at least 1e-18 in delta, got {budget}")
        ledger = cls(Store(url, create=True))
        step = Step(
            kind="init",
            dataset=dataset,
            epsilon=epsilon,
            delta=delta,
            unit=budget.unit,
            neighbors=budget.neighbors,
        )
        ledger._append(step)
        return cls.open(url)

    @classmethod
    def open(cls, url: str) -> Self:
        """Returns the ledger at ``url``; a missing file is refused with the command that creates it."""
        store = Store(url)
        store.rows()
        return cls(store)

    def reserve(self, dataset: str, charge: Charge) -> Entry:
        """Returns the entry of ``charge``, which is spent from now on; `BudgetExceeded` if it does not fit.

        All checks and the charge are one transaction. Refused: an unknown data set, another unit or other
        neighbors than the data set's, a key used before, a run without privacy.
        """
        if ("event", "non-private") in _pairs(charge.event):
            raise LedgerError("a run without privacy cannot be charged; run it on public data, without a ledger")
        step = Step(
            kind="reserve",
            dataset=dataset,
            key=charge.key,
            epsilon=to_units(charge.epsilon, EPSILON_PLACES, math.ceil),
            delta=to_units(charge.delta, DELTA_PLACES, math.ceil),
            unit=charge.unit,
            neighbors=charge.neighbors,
            purpose=charge.purpose,
            event=charge.event,
        )
        return self._append(step).entries[charge.key]

    def open_rows(self, entry: Entry) -> Entry:
        """Returns the entry, opened; call it before the first private row is read. No refund after it."""
        return self._move(entry, "open")

    def commit(self, entry: Entry) -> Entry:
        """Returns the entry, closed; its charge stays in full."""
        return self._move(entry, "commit")

    def abort(self, entry: Entry) -> Entry:
        """Returns the entry, closed, and gives its charge back; refused once its rows were opened."""
        return self._move(entry, "abort")

    def datasets(self) -> list[str]:
        """Returns the names of the data sets, in the order in which they were added."""
        return list(self._book(self._checked_rows()).accounts)

    def balance(self, dataset: str) -> Balance:
        """Returns what is spent and left of the data set's limit."""
        book = self._book(self._checked_rows())
        account = book.account(dataset)
        return Balance(
            dataset=dataset,
            limit=account.limit,
            spent_epsilon=at_least(account.spent_epsilon, EPSILON_PLACES),
            spent_delta=at_least(account.spent_delta, DELTA_PLACES),
            left_epsilon=at_most(account.epsilon - account.spent_epsilon, EPSILON_PLACES),
            left_delta=at_most(account.delta - account.spent_delta, DELTA_PLACES),
            open_entries=sum(entry.closed_at is None for entry in book.history(dataset)),
        )

    def history(self, dataset: str) -> list[Entry]:
        """Returns the data set's charges, oldest first."""
        return self._book(self._checked_rows()).history(dataset)

    def export(self, dataset: str) -> list[dict[str, Any]]:
        """Returns the data set's log rows as they stand in the file, unchecked, as JSON-able data.

        ``epsilon`` and ``delta`` count units of 1e-9 and 1e-18. The chain runs through all data sets of a
        file.
        """
        rows = [row.as_dict() for row in self._store.rows() if row.step.dataset == dataset]
        if not rows:
            raise unknown_dataset(self.url, dataset)
        return rows

    def head(self) -> str:
        """Returns the hash of the newest row; noted outside the file, as in a report, it anchors the log."""
        return self.verify().head

    def verify(self, *, head: str | None = None) -> Verification:
        """Walks the chain and replays every step; raises `LedgerError` with the number of the first bad row.

        A changed, removed or reordered row is found, and so is one that breaks the rules. A cut tail, or a
        chain rewritten as a whole, is found only by a ``head`` that was noted elsewhere.
        """
        rows = self._checked_rows()
        self._book(rows)
        if head is not None and head not in [row.hash for row in rows]:
            raise LedgerError(
                f"{self.url} is broken: its {len(rows)} rows hold no row with the hash {head}, so its tail "
                "was cut off or rewritten; restore the file from a backup"
            )
        return Verification(entries=len(rows), head=rows[-1].hash, anchored=head is not None)

    def _move(self, entry: Entry, kind: Kind) -> Entry:
        return self._append(Step(kind=kind, dataset=entry.dataset, key=entry.key)).entries[entry.key]

    def _append(self, step: Step) -> Book:
        """Adds ``step`` to the log if the rules allow it, and returns the book with it."""
        book = Book(self.url)

        def accept(rows: Sequence[Row], row: Row) -> None:
            book.replay(rows)
            book.add(row)

        self._store.append(step, accept)
        return book

    def _checked_rows(self) -> list[Row]:
        rows = self._store.rows()
        check_chain(rows, self.url)
        return rows

    def _book(self, rows: Sequence[Row]) -> Book:
        book = Book(self.url)
        book.replay(rows)
        return book


def _check_line(name: str, text: str) -> None:
    if not isinstance(text, str) or not text or not text.isprintable():
        raise ValueError(f"{name} must be one line of text, got {text!r}")


def _pairs(event: str) -> list[tuple[str, Any]]:
    """Returns all name-value pairs in the JSON text ``event``, however deep, repeated names included."""
    found: list[tuple[str, Any]] = []
    try:
        json.loads(event, object_pairs_hook=found.extend, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"event must be JSON, got {event!r}") from error
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
