"""The one way to pay for reading private rows: reserve in full, open, and only then read."""

from collections.abc import Iterator
from contextlib import contextmanager

from dp_accounting import dp_event

from accounting import mechanisms
from accounting.budget import Budget
from accounting.ledger import Charge, Entry, Ledger
from privads.logs.schema import Schema


def open_charge(
    ledger: Ledger, dataset: str, event: dp_event.DpEvent, budget: Budget, *, purpose: str, epsilon: float | None = None
) -> Entry:
    """Returns the opened entry of ``event``, which is spent from now on whatever happens; then rows may be read.

    epsilon: what the event costs at the budget's delta, where that is known already; the ledger refuses less than it
    accounts by itself. Raises `BudgetExceeded` where it does not fit.
    """
    charge = Charge(
        event=mechanisms.to_json(event),
        epsilon=epsilon or None,  # 0: at its delta the event costs nothing, and there is nothing to state
        delta=budget.delta,
        unit=budget.unit,
        neighbors=budget.neighbors,
        purpose=purpose,
    )
    return ledger.open_rows(ledger.reserve(dataset, charge))


@contextmanager
def charged(
    ledger: Ledger | None,
    dataset: str,
    event: dp_event.DpEvent,
    budget: Budget,
    *,
    purpose: str,
    epsilon: float | None = None,
) -> Iterator[Entry | None]:
    """Yields the opened entry, None without a ledger; committed at the end. What fails meanwhile leaves it spent."""
    entry = None if ledger is None else open_charge(ledger, dataset, event, budget, purpose=purpose, epsilon=epsilon)
    yield entry
    if ledger is not None and entry is not None:
        ledger.commit(entry)


def check_may_read(
    schema: Schema, ledger: Ledger | None, *, insecure_seed: int | None, private: bool = True, doing: str = "reading"
) -> None:
    """Refuse what is for public rows alone: work without privacy, noise that can be repeated, and no ledger."""
    check_protected(schema, insecure_seed=insecure_seed, private=private)
    if ledger is None and not schema.public:
        raise ValueError(f"{doing} data set {schema.dataset!r} needs its ledger: pass ledger=Ledger.open(URL)")


def check_protected(schema: Schema, *, insecure_seed: int | None, private: bool) -> None:
    """Refuse on rows that are not public what protects nobody: work without privacy, noise that can be repeated."""
    if schema.public:
        return
    if not private:
        raise ValueError(
            f"data set {schema.dataset!r} is not public: a plan without privacy runs only where the schema says "
            "public = true"
        )
    if insecure_seed is not None:
        raise ValueError(f"insecure_seed is refused: data set {schema.dataset!r} is not declared public")
