"""The rules of the budget ledger: which step may follow which, and what the steps of a log add up to.

Nothing here reads a file or a clock or does any accounting: a `Book` is fed rows, one by one, and refuses the one that
breaks a rule. A charge moves `reserved -> opened -> committed`, or `reserved -> aborted`. What it costs each column of
its data set stands in its row as whole numbers (`amounts`), so that a log is replayed by adding integers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from accounting.budget import Budget, BudgetExceeded, LedgerError, Neighbors, PrivacyUnit
from accounting.ledger.amounts import DELTA_PLACES, EPSILON_PLACES, at_least
from accounting.ledger.blocks import check_block, check_names, lies_in_one_block
from accounting.ledger.columns import Account, Cost, Spent, check_fits, check_pays, read_column, text, whole_number
from accounting.ledger.store import Kind, Row, broken, init_command

State = Literal["reserved", "opened", "committed", "aborted"]

_MOVES: dict[Kind, tuple[State, State]] = {
    "open": ("reserved", "opened"),
    "commit": ("opened", "committed"),
    "abort": ("reserved", "aborted"),
    "release": ("reserved", "aborted"),
    "lease": ("opened", "opened"),
    "resume": ("opened", "opened"),
}
_HINTS: dict[State, str] = {
    "reserved": "open its rows or abort it",
    "opened": "its rows may have been read, so nothing is given back; commit it",
    "committed": "it is closed; reserve a new charge",
    "aborted": "it is closed; reserve a new charge",
}


class AlreadyDone(Exception):  # noqa: N818 - no error: the step is a retry of one that the log holds
    """Whoever asks did this before; nothing is written, and the entry with this key stands as it is."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A charge on the ledger.

    id: number of the log row that reserved it. epsilon, delta, unit, neighbors: the charge's figure in its own terms;
    costs: what it costs each column. Times: UTC in ISO 8601. released_by, released_because: the human act that freed a
    stale reservation. holder: the secret of the process that may move the entry; None in an entry read back.
    """

    id: int
    dataset: str
    state: State
    epsilon: float
    delta: float
    unit: PrivacyUnit
    neighbors: Neighbors
    records: Mapping[str, int]
    blocks: tuple[str, ...]
    purpose: str
    key: str
    event: str
    costs: tuple[Cost, ...]
    reserved_at: str
    opened_at: str | None = None
    closed_at: str | None = None
    released_by: str | None = None
    released_because: str | None = None
    holder: str | None = field(default=None, repr=False, compare=False)


class Book:
    """What the rows of a log add up to. New rows are let in, and old rows checked, by the same rules."""

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self.accounts: dict[str, Account] = {}
        self.entries: dict[str, Entry] = {}
        self._keys: dict[int, str] = {}
        self._bodies: dict[str, dict[str, Any]] = {}
        self._holders: dict[str, str] = {}
        self._openers: dict[str, object] = {}
        self._leases: dict[str, tuple[str, str]] = {}
        """Hash of each lease: (key of its entry, "" while it is good or else why it is not)."""
        self._good_lease: dict[str, str] = {}
        """Key of each entry that can be resumed: hash of the one lease that is good."""

    def replay(self, rows: Sequence[Row]) -> None:
        """Adds the rows of a log; one that breaks the rules is not of privads' making, and is named."""
        for row in rows:
            try:
                self.add(row)
            except AlreadyDone as error:
                raise broken(self._shown, row.seq, "it repeats a step") from error
            except (LedgerError, BudgetExceeded, TypeError, ValueError, KeyError, OverflowError) as error:
                raise broken(self._shown, row.seq, f"it breaks the rules ({error})") from error

    def add(self, row: Row) -> None:
        """Adds one row, or raises and leaves the book as it was; `AlreadyDone` for a harmless retry."""
        kind, key = row.step.kind, row.step.key
        if kind == "init":
            self._init(row)
        elif kind == "reserve" and isinstance(key, str):
            self._reserve(row, key)
        elif kind in _MOVES and isinstance(key, str):
            self._move(row, key)
        else:
            raise LedgerError(f"unknown step {kind!r}")

    def account(self, dataset: str) -> Account:
        """Returns the data set's account; an unknown one is refused with the command that adds it."""
        if dataset not in self.accounts:
            raise unknown_dataset(self._shown, dataset)
        return self.accounts[dataset]

    def history(self, dataset: str) -> list[Entry]:
        """Returns the data set's entries, oldest first."""
        self.account(dataset)
        return [entry for entry in self.entries.values() if entry.dataset == dataset]

    def entry(self, dataset: str, entry_id: int) -> Entry:
        """Returns one entry of the data set by its number."""
        found = self.entries.get(self._keys.get(entry_id, ""))
        if found is None or found.dataset != dataset:
            raise LedgerError(f"{dataset!r} has no entry {entry_id!r}; see `privads budget history` for its entries")
        return found

    def leave_out(self, entry: Entry) -> None:
        """Takes ``entry`` out of the book, as if it had never been reserved; nothing can be added afterwards."""
        if self.entries.pop(entry.key).state != "aborted":
            self._give_back(entry)

    def leased(self, dataset: str, lease_hash: str) -> Entry:
        """Returns the entry that a lease of this hash resumes, if it still does."""
        key, gone = self._leases.get(lease_hash, ("", "it was not given out here"))
        entry = self.entries.get(key)
        if entry is None or entry.dataset != dataset:
            raise LedgerError(f"no entry of {dataset!r} is resumed by this lease; reserve a new charge")
        if gone:
            raise LedgerError(f"cannot resume entry {entry.id}: {gone}; reserve a new charge")
        return entry

    def _init(self, row: Row) -> None:
        dataset, body = row.step.dataset, row.step.body
        if dataset in self.accounts:
            limit = self.accounts[dataset].columns[0].limit
            raise LedgerError(f"the limit of {dataset!r} is set once: it is {limit}; name another data set")
        check_block(body["block"])
        columns = tuple(read_column(one, body["rule"]) for one in body["columns"])
        names = [(column.limit.unit, column.label_only) for column in columns]
        if not names or len(set(names)) < len(names):
            raise LedgerError("a data set has one column or more, each for a unit or for labels of its own")
        spent = {
            column.name: Spent(lies_in_one_block(column.limit.unit, column.limit.neighbors, body["block"]))
            for column in columns
        }
        self.accounts[dataset] = Account(body["block"], columns, spent)

    def _reserve(self, row: Row, key: str) -> None:
        dataset, body = row.step.dataset, row.step.body
        account = self.account(dataset)
        if key in self.entries:
            self._refuse_used(key, dataset, body)
        entry = _entry(row, key)
        check_names(entry.blocks, account.block)
        columns = account.charged(entry.neighbors)
        if not columns or [cost.column for cost in entry.costs] != [column.name for column in columns]:
            raise LedgerError("a charge costs each column of its kind, once")
        stated = whole_number(body, "epsilon"), whole_number(body, "delta")
        for column, cost in zip(columns, entry.costs, strict=True):
            check_pays(column, cost, *stated)
            check_fits(dataset, column, account.spent[column.name], cost, entry.blocks, (entry.unit, entry.neighbors))
        for cost in entry.costs:
            account.spent[cost.column].add(cost.loss_units, cost.delta_units, entry.blocks)
        self.entries[key] = entry
        self._keys[entry.id] = key
        self._holders[key] = text(body, "holder")
        self._bodies[key] = dict(body)

    def _refuse_used(self, key: str, dataset: str, body: Mapping[str, Any]) -> None:
        """Raises: a key pays for one execution. A retry by the same holder, not opened yet, is `AlreadyDone`."""
        entry = self.entries[key]
        if entry.state == "reserved" and entry.dataset == dataset and self._bodies[key] == dict(body):
            raise AlreadyDone
        raise LedgerError(f"the key {key!r} was used before and is {entry.state}; a new run needs a new key")

    def _move(self, row: Row, key: str) -> None:
        kind, body, entry = row.step.kind, row.step.body, self.entries.get(key)
        if entry is None or entry.dataset != row.step.dataset:
            raise LedgerError(f"no entry of {row.step.dataset!r} has the key {key!r}; reserve it on this ledger first")
        if kind == "resume":
            entry = self.leased(entry.dataset, text(body, "lease"))
            if entry.key != key:
                raise LedgerError("the lease is another entry's")
        elif kind != "release" and text(body, "holder") != self._holders[key]:
            raise LedgerError(f"cannot {kind} entry {entry.id}: only whoever reserved it, or resumed it last, moves it")
        before, after = _MOVES[kind]
        if entry.state == after != before and kind != "release":
            if kind == "open" and body.get("opener") != self._openers[key]:
                raise LedgerError(f"cannot open entry {entry.id}: another copy of it was opened; reserve a new charge")
            raise AlreadyDone
        if entry.state != before:
            raise LedgerError(f"cannot {kind} entry {entry.id}: it is {entry.state}; {_HINTS[entry.state]}")
        self._apply(row, entry, after)

    def _apply(self, row: Row, entry: Entry, after: State) -> None:
        kind, body, key = row.step.kind, row.step.body, entry.key
        if kind == "lease":
            self._end_lease(key, "a later lease took the place of this one")
            lease = self._good_lease[key] = text(body, "lease")
            self._leases[lease] = (key, "")
            return
        if kind == "resume":
            self._end_lease(key, "this lease was used, and a lease is used once")
            self._holders[key] = text(body, "holder")
            return
        if kind == "open":
            self.entries[key] = replace(entry, state=after, opened_at=row.at)
            self._openers[key] = body.get("opener")
            return
        closed = replace(entry, state=after, closed_at=row.at)
        if kind == "release":
            closed = replace(closed, released_by=text(body, "by"), released_because=text(body, "reason"))
        self.entries[key] = closed
        if after == "aborted":
            self._give_back(entry)

    def _give_back(self, entry: Entry) -> None:
        for cost in entry.costs:
            spent = self.accounts[entry.dataset].spent[cost.column]
            spent.add(-cost.loss_units, -cost.delta_units, entry.blocks)

    def _end_lease(self, key: str, why: str) -> None:
        lease = self._good_lease.pop(key, None)
        if lease is not None:
            self._leases[lease] = (key, why)


def _entry(row: Row, key: str) -> Entry:
    body = row.step.body
    asked = Budget(
        epsilon=at_least(whole_number(body, "epsilon"), EPSILON_PLACES),
        delta=at_least(whole_number(body, "delta"), DELTA_PLACES),
        unit=text(body, "unit"),
        neighbors=cast(Neighbors, body["neighbors"]),
    )
    costs = tuple(
        Cost(
            unit=one["unit"],
            neighbors=one["neighbors"],
            loss_units=whole_number(one, "loss"),
            delta_units=whole_number(one, "delta", least=0),
        )
        for one in body["costs"]
    )
    return Entry(
        id=row.seq,
        dataset=row.step.dataset,
        state="reserved",
        epsilon=asked.epsilon,
        delta=asked.delta,
        unit=asked.unit,
        neighbors=asked.neighbors,
        records={unit: whole_number(body["records"], unit) for unit in body["records"]},
        blocks=tuple(body["blocks"]),
        purpose=text(body, "purpose"),
        key=key,
        event=text(body, "event"),
        costs=costs,
        reserved_at=row.at,
    )


def unknown_dataset(shown: str, dataset: str) -> LedgerError:
    """Returns the error for a data set without a limit."""
    command = init_command(shown, dataset=dataset)
    return LedgerError(f"{shown} has no data set {dataset!r}; add it with `{command}`")
