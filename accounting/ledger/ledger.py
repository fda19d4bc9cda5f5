"""The durable privacy-budget ledger: what each data set may lose, what was spent of it, and by whom.

`store` keeps the log, `rules` says what may follow what, `columns` what fits, `cost` what a charge costs whom.
"""

import csv
import hashlib
import io
import json
import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from secrets import token_urlsafe
from threading import Lock
from typing import Any, Self

from accounting import mechanisms
from accounting.accountant import Bounds
from accounting.budget import Budget, LedgerError, PrivacyUnit
from accounting.ledger.amounts import DELTA_PLACES, EPSILON_PLACES, at_least, to_units
from accounting.ledger.balance import Balance, balance_of
from accounting.ledger.blocks import Block, check_block
from accounting.ledger.columns import Account, Column, Rule
from accounting.ledger.cost import Charge, check_line, costs, own_epsilon
from accounting.ledger.joint import joint_bounds
from accounting.ledger.limits import check_limits, check_rule, column_body
from accounting.ledger.rules import AlreadyDone, Book, Entry
from accounting.ledger.snapshot import Snapshot, snapshot_of
from accounting.ledger.store import Kind, Mark, Row, Step, Store, broken, check_chain
from accounting.mechanisms import UnknownEvent

REACCOUNT_TOLERANCE = 1e-6
"""Relative. Libraries of different versions differ by less in their floating point; a corrected bug is more."""


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
    """A ledger in a database. Several processes and threads may use it at once; together they keep each limit.

    Guarantees, each with a test: no limit of any column is exceeded; a refused charge changes nothing; what a method
    wrote is on the disk when it returns; after `open_rows` nothing is given back; one key pays for one execution; every
    figure comes from a log whose hash chain and rules were checked just then. Reading waits for no writer.

    A writer remembers the log as it checked it last, and checks what was added since; `verify` and all figures read it
    from the start. The newest row that a ledger saw is never forgotten: an older copy in its place is refused.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = Lock()
        self._known: tuple[Book, Mark] | None = None
        self._seen: Mark | None = None
        self._opener = token_urlsafe()
        _ledgers.add(self)

    @property
    def url(self) -> str:
        """Where the ledger is, without a password."""
        return self._store.shown

    @classmethod
    def init(
        cls,
        url: str,
        *,
        dataset: str,
        budget: Budget,
        also: Sequence[Budget] = (),
        rule: Rule = "basic",
        order: float | None = None,
        block: Block | None = None,
        population: int | None = None,
    ) -> Self:
        """Returns the ledger at ``url`` after adding a data set with its limits; creates what is missing.

        budget: the protected unit's limit. also: limits of further units, from coarse to fine, such as user-day under
        user, and of labels (`replace-label`); every charge of its kind pays to each. rule: how losses are summed, see
        `columns`. order: of the Renyi divergence, for rule `rdp`. block: the period of the time blocks, if the data are
        cut into any. All of it is set once: a second `init` of the same data set is refused.
        """
        check_line("dataset", dataset)
        check_block(block)
        check_rule(rule, order)
        limits = [budget, *also]
        check_limits(limits, population)
        body = {
            "rule": rule,
            "block": block,
            "population": population,
            "columns": [column_body(limit, rule, order) for limit in limits],
        }
        ledger = cls(Store(url, create=True))
        ledger._append(Step(kind="init", dataset=dataset, body=body))
        return cls.open(url)

    @classmethod
    def open(cls, url: str) -> Self:
        """Returns the ledger at ``url``; a missing one is refused with the command that creates it."""
        store = Store(url)
        store.rows()
        return cls(store)

    def reserve(self, dataset: str, charge: Charge) -> Entry:
        """Returns the entry of ``charge``, which is spent from now on; `BudgetExceeded` if it does not fit.

        The cost is accounted first; all checks and the charge are then one transaction. Refused: an unknown data set,
        a cost that is unknown or infinite or above what the charge states, a unit that cannot be converted, a key used
        before. The very same charge again, not opened yet, is a retry: it returns its entry and costs nothing.
        """
        account = self._account(dataset)
        own = own_epsilon(charge)
        stated = own if charge.epsilon is None else to_units(charge.epsilon, EPSILON_PLACES, math.ceil)
        if stated < own:
            raise LedgerError(
                f"the event costs epsilon {at_least(own, EPSILON_PLACES)} at delta {charge.delta} ({charge.unit}, "
                f"{charge.neighbors}), but the charge states {charge.epsilon}; state no less, or nothing"
            )
        protected = account.columns[0]
        if protected.rule != "basic" and charge.delta > protected.limit.delta:
            raise LedgerError(f"delta must be at most the limit's {protected.limit.delta}, got {charge.delta}")
        body = {
            "event": mechanisms.to_json(mechanisms.from_json(charge.event)),
            "epsilon": stated,
            "delta": to_units(charge.delta, DELTA_PLACES, math.ceil),
            "unit": charge.unit,
            "neighbors": charge.neighbors,
            "purpose": charge.purpose,
            "records": dict(charge.records),
            "blocks": list(charge.blocks),
            "holder": _hash(charge.holder),
            "costs": [
                {"unit": cost.unit, "neighbors": cost.neighbors, "loss": cost.loss_units, "delta": cost.delta_units}
                for cost in costs(charge, account, floor_units=stated)
            ],
        }
        return self._moved(Step(kind="reserve", dataset=dataset, key=charge.key, body=body), charge.holder)

    def open_rows(self, entry: Entry) -> Entry:
        """Returns the entry, opened; call it before the first private row is read. No refund after it.

        A retry is harmless on this very ledger object. Refused on every other one, as in a worker that got a copy of
        the charge: whoever opened the entry runs it.
        """
        return self._move(entry, "open", opener=self._opener)

    def commit(self, entry: Entry) -> Entry:
        """Returns the entry, closed; its charge stays in full."""
        return self._move(entry, "commit")

    def abort(self, entry: Entry) -> Entry:
        """Returns the entry, closed, and gives its charge back; refused once its rows were opened."""
        return self._move(entry, "abort")

    def release_stale(self, dataset: str, entry_id: int, *, by: str, reason: str) -> Entry:
        """Returns a reservation that nobody will open any more, closed, and gives its charge back.

        A human act, recorded with who did it and why; refused once the rows were opened. Whoever held the reservation
        can no longer open it.
        """
        check_line("by", by)
        check_line("reason", reason)
        entry = self._book(self._checked_rows()).entry(dataset, entry_id)
        step = Step(kind="release", dataset=dataset, key=entry.key, body={"by": by, "reason": reason})
        return self._moved(step, None)

    def lease(self, entry: Entry) -> str:
        """Returns a secret by which `resume` continues the opened entry, once; an earlier lease of it is void.

        Keep it in the checkpoint. A run that has none cannot be resumed, and a checkpoint is resumed at most once.
        """
        lease = token_urlsafe()
        self._move(entry, "lease", lease=_hash(lease))
        return lease

    def resume(self, dataset: str, lease: str) -> Entry:
        """Returns the entry that ``lease`` continues; from now on the caller holds it, and nobody else.

        Refused: a lease used before, one whose place a later lease took, an entry that is committed.
        """
        check_line("lease", lease)
        entry = self._book(self._checked_rows()).leased(dataset, _hash(lease))
        holder = token_urlsafe()
        body = {"lease": _hash(lease), "holder": _hash(holder)}
        return self._moved(Step(kind="resume", dataset=dataset, key=entry.key, body=body), holder)

    def read(self) -> Snapshot:
        """Returns everything that the log says, from one reading of it."""
        rows = self._checked_rows()
        return snapshot_of(self.url, rows, self._book(rows))

    def datasets(self) -> list[str]:
        """Returns the names of the data sets, in the order in which they were added."""
        return list(self._book(self._checked_rows()).accounts)

    def balance(self, dataset: str, *, without: Entry | None = None) -> Balance:
        """Returns what is spent and left of the limit of the data set's protected unit, see `balances`."""
        return self.balances(dataset, without=without)[0]

    def balances(self, dataset: str, *, without: Entry | None = None) -> tuple[Balance, ...]:
        """Returns what is spent and left of each of the data set's limits, the protected unit's first.

        without: an entry to leave out, as if it had not been made; for reports that show what came before a run.
        """
        book = self._book(self._checked_rows())
        if without is not None:
            book.leave_out(book.entry(dataset, without.id))
        account, history = book.account(dataset), book.history(dataset)
        return tuple(balance_of(dataset, column, account.spent[column.name], history) for column in account.columns)

    def history(self, dataset: str) -> list[Entry]:
        """Returns the data set's charges, oldest first."""
        return self._book(self._checked_rows()).history(dataset)

    def joint(self, dataset: str, *, unit: PrivacyUnit | None = None, label_only: bool = False) -> Bounds:
        """Returns bounds on what all charges that were not aborted cost one ``unit`` together, at its limit's delta.

        unit: one of the data set's; None is the first. label_only: of its column for labels. See `joint`: the figure is
        tighter than what the rule enforces, and admits nothing.
        """
        book = self._book(self._checked_rows())
        account = book.account(dataset)
        column = _find_column(dataset, account, unit, label_only or account.columns[0].label_only)
        charges = [
            entry
            for entry in book.history(dataset)
            if entry.state != "aborted" and (entry.neighbors == "replace-label") == column.label_only
        ]
        return joint_bounds(charges, column, account)

    def reaccount(self, dataset: str) -> list[Entry]:
        """Returns the charges whose recorded cost is below what today's accountant says, or is no longer known.

        Events are what the ledger keeps: after a bug in a library, history is accounted anew. Nothing is written.
        """
        book = self._book(self._checked_rows())
        account = book.account(dataset)
        return [entry for entry in book.history(dataset) if entry.state != "aborted" and _too_low(entry, account)]

    def export(self, dataset: str) -> list[dict[str, Any]]:
        """Returns the data set's log rows as they stand in the database, unchecked, as JSON-able data.

        Amounts count units of 1e-9 (losses) and 1e-18 (deltas). The chain runs through all data sets of a ledger.
        """
        rows = [row.as_dict() for row in self._store.rows() if row.step.dataset == dataset]
        if not rows:
            self._book(self._checked_rows()).account(dataset)  # refuses it
        return rows

    def export_csv(self, dataset: str) -> str:
        """Returns `export` as CSV, one line a row, the body as JSON."""
        text = io.StringIO()
        rows = self.export(dataset)
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "body": json.dumps(row["body"], sort_keys=True)} for row in rows)
        return text.getvalue()

    def head(self) -> str:
        """Returns the hash of the newest row; noted outside the ledger, as in a report, it anchors the log."""
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
                "was cut off or rewritten; restore it from a backup"
            )
        return Verification(entries=len(rows), head=rows[-1].hash, anchored=head is not None)

    def _move(self, entry: Entry, kind: Kind, **body: str) -> Entry:
        if entry.holder is None:
            raise LedgerError(
                f"cannot {kind} entry {entry.id}: only who reserved or resumed it holds it, and this copy was read from"
                " the log; a reservation that nobody will open is freed by `privads budget release-stale`"
            )
        step = Step(kind=kind, dataset=entry.dataset, key=entry.key, body={"holder": _hash(entry.holder), **body})
        return self._moved(step, entry.holder)

    def _moved(self, step: Step, holder: str | None) -> Entry:
        entry = self._append(step)
        if entry is None:
            raise LedgerError(f"{step.kind!r} moves no entry")
        return replace(entry, holder=holder)

    def _append(self, step: Step) -> Entry | None:
        """Adds ``step`` to the log if the rules allow it, and returns the entry that it moved, if any."""
        with self._lock:
            book, mark = self._known or (Book(self.url), None)
            self._known = None  # until it is known again what the log holds

            def accept(rows: Sequence[Row], row: Row) -> None:
                if mark is None:
                    self._check_seen(rows, self._seen)
                book.replay(rows)
                last = self._see(rows[-1]) if rows else mark
                try:
                    book.add(row)
                except Exception:
                    self._known = None if last is None else (book, last)  # a refusal leaves the book as it was
                    raise

            try:
                row = self._store.append(step, accept, mark)
            except AlreadyDone:
                return book.entries[step.key or ""]
            self._known = (book, self._see(row))
            return book.entries.get(step.key or "")

    def _account(self, dataset: str) -> Account:
        """Returns the data set's account, from memory if it is there: its columns never change."""
        with self._lock:
            if self._known is None or dataset not in self._known[0].accounts:
                rows = self._checked_rows()
                self._known = (self._book(rows), self._see(rows[-1]))
            return self._known[0].account(dataset)

    def _checked_rows(self) -> list[Row]:
        seen = self._seen  # before reading, since other threads write meanwhile
        rows = self._store.rows()
        check_chain(rows, self.url)
        self._check_seen(rows, seen)
        self._see(rows[-1])
        return rows

    def _check_seen(self, rows: Sequence[Row], seen: Mark | None) -> None:
        if seen is not None and (len(rows) < seen.seq or rows[seen.seq - 1].hash != seen.hash):
            raise broken(self.url, seen.seq, "it is not the row that was read before")

    def _see(self, row: Row) -> Mark:
        mark = Mark(seq=row.seq, hash=row.hash)
        if self._seen is None or self._seen.seq < row.seq:
            self._seen = mark
        return mark

    def _book(self, rows: Sequence[Row]) -> Book:
        book = Book(self.url)
        book.replay(rows)
        return book


_ledgers: weakref.WeakSet[Ledger] = weakref.WeakSet()


def _renew_in_the_child() -> None:
    """Makes the ledgers of a forked child its own: another opener, and a lock that no thread of its parent holds."""
    for one in _ledgers:
        one._lock, one._opener = Lock(), token_urlsafe()


os.register_at_fork(after_in_child=_renew_in_the_child)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _find_column(dataset: str, account: Account, unit: PrivacyUnit | None, label_only: bool) -> Column:
    for column in account.columns:
        if unit in (None, column.limit.unit) and column.label_only == label_only:
            return column
    kind = "labels of " if label_only else ""
    raise LedgerError(f"{dataset!r} has no limit for {kind}{unit}; it has limits for {', '.join(account.units)}")


def _too_low(entry: Entry, account: Account) -> bool:
    try:
        today = costs(entry, account)
    except (LedgerError, UnknownEvent):
        return True
    return any(
        now.loss_units > recorded.loss_units * (1 + REACCOUNT_TOLERANCE) + 1
        for now, recorded in zip(today, entry.costs, strict=True)
    )
