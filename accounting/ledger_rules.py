"""The rules of the budget ledger: which step may follow which, and what the steps of a log add up to.

Nothing here reads a file or a clock: a `Book` is fed rows, one by one, and refuses the one that breaks a
rule. A charge moves `reserved -> opened -> committed`, or `reserved -> aborted`. Losses add up (basic
composition, Dwork and Roth 2014, theorem 3.16): over all charges that were not aborted, ``sum epsilon_i <=
limit.epsilon`` and ``sum delta_i <= limit.delta``.

Amounts are whole numbers, never floats: epsilon in units of 1e-9, delta in units of 1e-18. A float is taken
for the decimal number that it prints as, so 0.1 is one tenth; a charge is then rounded up to the next unit,
a limit down. Hence ten charges of 0.1 fill a limit of 1.0 exactly, and a charge of the limit's own figures
fits. (Read as its exact binary value, 0.1 is 5.6e-18 above one tenth, and neither would fit. The decimal
differs from it by at most half a unit in the float's last place, a relative 1.2e-16: far below any
accountant's own error.)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, cast

from accounting.budget import Budget, BudgetExceeded, Neighbors, PrivacyUnit
from accounting.ledger_store import Kind, LedgerError, Row, Step, broken, init_command

State = Literal["reserved", "opened", "committed", "aborted"]

EPSILON_PLACES = 9
DELTA_PLACES = 18
"""Decimal places of the ledger's units: amounts up to 9.2e9 and 9.2 fit into a database's 64-bit integers."""

MOST_UNITS = 2**63 - 1

_MOVES: dict[Kind, tuple[State, State]] = {
    "open": ("reserved", "opened"),
    "commit": ("opened", "committed"),
    "abort": ("reserved", "aborted"),
}
_HINTS: dict[State, str] = {
    "reserved": "open its rows or abort it",
    "opened": "its rows may have been read, so nothing is given back; commit it",
    "committed": "it is closed; reserve a new charge",
    "aborted": "it is closed; reserve a new charge",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A charge on the ledger. ``id``: number of the log row that reserved it. Times: UTC in ISO 8601."""

    id: int
    dataset: str
    state: State
    epsilon: float
    delta: float
    unit: PrivacyUnit
    neighbors: Neighbors
    purpose: str
    key: str
    event: str
    reserved_at: str
    opened_at: str | None = None
    closed_at: str | None = None


@dataclass
class Account:
    """One data set in the ledger's whole units."""

    limit: Budget
    epsilon: int
    delta: int
    spent_epsilon: int = 0
    spent_delta: int = 0


class Book:
    """What the rows of a log add up to. New rows are let in, and old rows checked, by the same rules."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.accounts: dict[str, Account] = {}
        self.entries: dict[str, Entry] = {}
        self._charges: dict[str, tuple[int, int]] = {}

    def replay(self, rows: Sequence[Row]) -> None:
        """Adds the rows of a log; one that breaks the rules is not of privads' making, and is named."""
        for row in rows:
            try:
                self.add(row)
            except (LedgerError, BudgetExceeded, TypeError, ValueError) as error:
                raise broken(self._url, row.seq, f"it breaks the rules ({error})") from error

    def add(self, row: Row) -> None:
        """Adds one row, or raises and leaves the book as it was."""
        match row.step:
            case Step(kind="init"):
                self._init(row.step)
            case Step(kind="reserve", key=str() as key):
                self._reserve(row, key)
            case Step(kind="open" | "commit" | "abort", key=str() as key):
                self._move(row, key)
            case _:
                raise LedgerError(f"unknown step {row.step.kind!r}")

    def account(self, dataset: str) -> Account:
        """Returns the data set's account; an unknown one is refused with the command that adds it."""
        if dataset not in self.accounts:
            raise unknown_dataset(self._url, dataset)
        return self.accounts[dataset]

    def history(self, dataset: str) -> list[Entry]:
        """Returns the data set's entries, oldest first."""
        self.account(dataset)
        return [entry for entry in self.entries.values() if entry.dataset == dataset]

    def _init(self, step: Step) -> None:
        if step.dataset in self.accounts:
            limit = self.accounts[step.dataset].limit
            raise LedgerError(f"the limit of {step.dataset!r} is set once: it is {limit}; name another data set")
        epsilon, delta = _amounts(step)
        self.accounts[step.dataset] = Account(_limit(step), epsilon, delta)

    def _reserve(self, row: Row, key: str) -> None:
        step, account = row.step, self.account(row.step.dataset)
        asked, limit = _asked(step), account.limit
        if (asked.unit, asked.neighbors) != (limit.unit, limit.neighbors):
            raise LedgerError(
                f"{step.dataset!r} protects {limit.unit} ({limit.neighbors}), but the charge protects "
                f"{asked.unit} ({asked.neighbors}); make a plan whose unit is {limit.unit}"
            )
        if key in self.entries:
            state = self.entries[key].state
            raise LedgerError(f"the key {key!r} was used before and is {state}; a new run needs a new key")
        epsilon, delta = _amounts(step)
        if account.spent_epsilon + epsilon > account.epsilon or account.spent_delta + delta > account.delta:
            left_epsilon = at_most(account.epsilon - account.spent_epsilon, EPSILON_PLACES)
            left_delta = at_most(account.delta - account.spent_delta, DELTA_PLACES)
            raise BudgetExceeded(
                f"{step.dataset!r} has epsilon {left_epsilon} and delta {left_delta} left of its limit "
                f"(epsilon {limit.epsilon}, delta {limit.delta}, {limit.unit}, {limit.neighbors}), but "
                f"the charge asks for epsilon {asked.epsilon} and delta {asked.delta}"
            )
        account.spent_epsilon += epsilon
        account.spent_delta += delta
        self._charges[key] = epsilon, delta
        self.entries[key] = Entry(
            id=row.seq,
            dataset=step.dataset,
            state="reserved",
            epsilon=asked.epsilon,
            delta=asked.delta,
            unit=asked.unit,
            neighbors=asked.neighbors,
            purpose=str(step.purpose),
            key=key,
            event=str(step.event),
            reserved_at=row.at,
        )

    def _move(self, row: Row, key: str) -> None:
        kind, entry = row.step.kind, self.entries.get(key)
        if entry is None or entry.dataset != row.step.dataset:
            raise LedgerError(f"no entry of {row.step.dataset!r} has the key {key!r}; reserve it on this ledger first")
        before, after = _MOVES[kind]
        if entry.state != before:
            raise LedgerError(f"cannot {kind} entry {entry.id}: it is {entry.state}; {_HINTS[entry.state]}")
        opened_at = row.at if kind == "open" else entry.opened_at
        closed_at = None if kind == "open" else row.at
        self.entries[key] = replace(entry, state=after, opened_at=opened_at, closed_at=closed_at)
        if kind == "abort":
            account, (epsilon, delta) = self.accounts[entry.dataset], self._charges[key]
            account.spent_epsilon -= epsilon
            account.spent_delta -= delta


def _amounts(step: Step) -> tuple[int, int]:
    epsilon, delta = step.epsilon, step.delta
    if not (isinstance(epsilon, int) and isinstance(delta, int)):
        raise LedgerError(f"amounts must be whole numbers, got {epsilon!r} and {delta!r}")
    return epsilon, delta


def _limit(step: Step) -> Budget:
    """Returns the limit that an `init` set, not a unit above what the log holds."""
    epsilon, delta = _amounts(step)
    return _budget(step, at_most(epsilon, EPSILON_PLACES), at_most(delta, DELTA_PLACES))


def _asked(step: Step) -> Budget:
    """Returns what a `reserve` asked for, not a unit below what the log holds."""
    epsilon, delta = _amounts(step)
    return _budget(step, at_least(epsilon, EPSILON_PLACES), at_least(delta, DELTA_PLACES))


def _budget(step: Step, epsilon: float, delta: float) -> Budget:
    neighbors = cast(Neighbors, step.neighbors)  # Budget itself checks the name
    return Budget(epsilon=epsilon, delta=delta, unit=str(step.unit), neighbors=neighbors)


def unknown_dataset(url: str, dataset: str) -> LedgerError:
    """Returns the error for a data set without a limit."""
    command = init_command(url, dataset=dataset)
    return LedgerError(f"{url} has no data set {dataset!r}; add it with `{command}`")


def to_units(amount: float, places: int, rounding: Callable[[Fraction], int]) -> int:
    """Returns ``rounding(amount * 10**places)``, exactly, for the decimal number that ``amount`` prints as.

    >>> to_units(0.1, EPSILON_PLACES, math.ceil), to_units(1e-10, EPSILON_PLACES, math.ceil)
    (100000000, 1)
    """
    return rounding(Fraction(repr(float(amount))) * 10**places)


def at_least(units: int, places: int) -> float:
    """Returns the least float that prints as no less than ``units / 10**places``."""
    exact = Fraction(units, 10**places)
    value = float(exact)
    while Fraction(repr(value)) < exact:
        value = math.nextafter(value, math.inf)
    return value


def at_most(units: int, places: int) -> float:
    """Returns the largest float that prints as no more than ``units / 10**places``."""
    exact = Fraction(units, 10**places)
    value = float(exact)
    while Fraction(repr(value)) > exact:
        value = math.nextafter(value, -math.inf)
    return value
