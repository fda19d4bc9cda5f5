"""What the ledger's tests share: small limits, charges of a stated cost, and how a refusal reads."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from dp_accounting import dp_event
from sqlalchemy import insert

from accounting.budget import Budget, BudgetExceeded
from accounting.ledger import Charge, Ledger, LedgerError
from accounting.ledger import store as log
from accounting.ledger.store import Step
from accounting.mechanisms import approximate_dp, to_json

ADS = "ads-2026q4"


def budget(epsilon: float = 1.0, delta: float = 1e-6, unit: str = "user", **fields: Any) -> Budget:
    return Budget(epsilon=epsilon, delta=delta, unit=unit, **fields)


def charge(epsilon: float = 0.1, delta: float = 1e-8, **fields: Any) -> Charge:
    """A charge of a mechanism that costs exactly ``epsilon`` at ``delta``."""
    event = to_json(approximate_dp(epsilon=epsilon, delta=delta))
    return Charge(**{"event": event, "unit": "user", "purpose": "train dcn", **fields}, delta=delta)


def charge_of(event: dp_event.DpEvent, delta: float = 1e-6, **fields: Any) -> Charge:
    return Charge(**{"unit": "user", "purpose": "train dcn", **fields}, event=to_json(event), delta=delta)


def write(ledger: Ledger, steps: Sequence[Step]) -> None:
    """Adds steps to the log in one transaction, correctly chained, past the rules and without waiting for each."""
    store = ledger._store
    last = store.rows()[-1]
    rows = []
    for step in steps:
        last = log._seal(step, last)
        rows.append({**last.as_dict(), "body": log._canonical(last.step.body)})
    with store._session(write=True) as connection:
        connection.execute(insert(log._LOG), rows)
        connection.commit()


def runs(ledger: Ledger, count: int) -> None:
    """Repeats the data set's first run, committed, ``count`` times under other keys and by nobody in particular."""
    three = [row.step for row in ledger._store.rows()[1:4]]
    assert [step.kind for step in three] == ["reserve", "open", "commit"]
    write(ledger, [replace(step, key=f"run-{number}") for number in range(count) for step in three])


def refusal(function: Callable[..., Any], *args: Any, **named: Any) -> str:
    """The message with which the ledger refuses; it is one line."""
    with pytest.raises((LedgerError, BudgetExceeded, ValueError)) as caught:
        function(*args, **named)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message
