"""The one way to pay for reading private rows: reserve in full, open, and only then read."""

from dp_accounting import dp_event

from accounting import mechanisms
from accounting.budget import Budget
from accounting.ledger import Charge, Entry, Ledger


def open_charge(
    ledger: Ledger, dataset: str, event: dp_event.DpEvent, budget: Budget, *, purpose: str, epsilon: float | None = None
) -> Entry:
    """Returns the opened entry of ``event``, which is spent from now on whatever happens; then rows may be read.

    epsilon: what the event costs at the budget's delta, where that is known already; the ledger refuses less than it
    accounts by itself. Raises `BudgetExceeded` where it does not fit.
    """
    charge = Charge(
        event=mechanisms.to_json(event),
        epsilon=epsilon,
        delta=budget.delta,
        unit=budget.unit,
        neighbors=budget.neighbors,
        purpose=purpose,
    )
    return ledger.open_rows(ledger.reserve(dataset, charge))
