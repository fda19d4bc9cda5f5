"""Paying for private rows: what costs no epsilon at its delta is charged that delta, and refused where it is spent."""

from pathlib import Path

import pytest

from accounting import mechanisms
from accounting.budget import Budget, BudgetExceeded
from accounting.ledger import Ledger
from privads.charge import open_charge

HALF = Budget(epsilon=1.0, delta=5e-6, unit="user")


def test_an_event_whose_epsilon_is_0_at_its_delta_still_spends_that_delta(tmp_path: Path) -> None:
    """delta(0) of a Gaussian is 2 Phi(1 / (2 noise)) - 1, about 0.4 / noise = 4e-7 here, below that of the budget."""
    ledger = Ledger.init(
        f"sqlite:///{tmp_path / 'b.db'}", dataset="ads", budget=Budget(epsilon=1, delta=1e-5, unit="user")
    )
    event = mechanisms.gaussian(noise_multiplier=1e6)
    for _ in range(2):
        open_charge(ledger, "ads", event, HALF, purpose="next to nothing", epsilon=0.0)
    assert ledger.balance("ads").spent_delta == pytest.approx(1e-5)
    with pytest.raises(BudgetExceeded, match="delta"):
        open_charge(ledger, "ads", event, HALF, purpose="next to nothing", epsilon=0.0)
