"""The plot of a data set's spending: what it draws, and what it draws of nothing."""

from pathlib import Path

import pytest

from accounting import mechanisms
from accounting.budget import Budget
from accounting.ledger import Charge, Entry, Ledger
from accounting.report.spending import draw, spending

RUN = mechanisms.dp_sgd(sampling_rate=0.01, noise_multiplier=1.5, steps=100)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    limit = Budget(epsilon=3.0, delta=1e-6, unit="user-day")
    return Ledger.init(f"sqlite:///{tmp_path / 'b.db'}", dataset="ads", budget=limit, block="day")


def reserve(ledger: Ledger, *blocks: str) -> Entry:
    charge = Charge(event=mechanisms.to_json(RUN), delta=1e-8, unit="user-day", purpose="train", blocks=blocks)
    return ledger.reserve("ads", charge)


def test_the_spending_ends_with_what_the_ledger_enforces(ledger: Ledger) -> None:
    entries = [reserve(ledger, "2026-11-22"), reserve(ledger, "2026-11-23"), reserve(ledger), reserve(ledger)]
    ledger.abort(entries[-1])
    times, totals = spending(ledger.history("ads"), ledger.balance("ads"))
    one = entries[0].costs[0].loss
    assert totals == pytest.approx([one, one, 2 * one, 3 * one, 2 * one], abs=1e-8), "two blocks cost the dearest"
    assert totals[-1] == ledger.balance("ads").loss_spent
    assert times == sorted(times)


def test_a_plot_of_nothing_shows_no_made_up_dates(ledger: Ledger, tmp_path: Path) -> None:
    draw([], ledger.balance("ads"), tmp_path / "empty.svg")
    drawn = (tmp_path / "empty.svg").read_text()
    assert "nothing was charged" in drawn
    assert "1970" not in drawn
    reserve(ledger)
    draw(ledger.history("ads"), ledger.balance("ads"), tmp_path / "one.svg")
    assert "UTC" in (tmp_path / "one.svg").read_text()
