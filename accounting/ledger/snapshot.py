"""The whole log as one reading found it: what figures are taken from that must agree with each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from accounting.ledger.balance import Balance, balance_of
from accounting.ledger.columns import Account
from accounting.ledger.rules import Book, Entry
from accounting.ledger.store import Row


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A log whose chain and rules were checked. shown: where it was read, without a password. head: its newest row's
    hash.

    rows: the number of each row, by its hash. accounts, entries: by data set, in the order in which those were added;
    entries are oldest first.
    """

    shown: str
    head: str
    rows: Mapping[str, int]
    accounts: Mapping[str, Account]
    entries: Mapping[str, tuple[Entry, ...]]

    def balances(self, dataset: str) -> tuple[Balance, ...]:
        """Returns what is spent and left of each of the data set's limits, the protected unit's first."""
        account, history = self.accounts[dataset], self.entries[dataset]
        return tuple(balance_of(dataset, column, account.spent[column.name], history) for column in account.columns)


def snapshot_of(shown: str, rows: Sequence[Row], book: Book) -> Snapshot:
    """Returns what ``rows``, a whole checked log, and the ``book`` that they were replayed into hold."""
    entries: dict[str, list[Entry]] = {name: [] for name in book.accounts}
    for entry in book.entries.values():
        entries[entry.dataset].append(entry)
    return Snapshot(
        shown=shown,
        head=rows[-1].hash,
        rows={row.hash: row.seq for row in rows},
        accounts=book.accounts,
        entries={name: tuple(found) for name, found in entries.items()},
    )
