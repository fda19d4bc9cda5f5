"""One reading of a ledger says what its other figures say, on each database, and writes nothing."""

from accounting.budget import Budget
from accounting.ledger import Ledger
from tests.accounting.ledger.helpers import ADS, budget, charge


def test_a_snapshot_is_what_the_ledger_says_one_figure_at_a_time(url: str) -> None:
    day = Budget(epsilon=1.0, delta=1e-7, unit="user-day")
    ledger = Ledger.init(url, dataset=ADS, budget=budget(), also=[day], block="day")
    Ledger.init(url, dataset="clicks", budget=budget(epsilon=2.0))
    Ledger.init(url, dataset="empty", budget=budget())
    ledger.commit(ledger.open_rows(ledger.reserve(ADS, charge(0.1, blocks=("2026-11-22",)))))
    ledger.abort(ledger.reserve("clicks", charge(0.3)))
    ledger.reserve(ADS, charge(0.2, blocks=("2026-11-23",)))
    before = ledger._store.rows()
    found = ledger.read()
    assert ledger._store.rows() == before, "reading writes nothing"
    assert list(found.accounts) == ledger.datasets() == [ADS, "clicks", "empty"]
    for name in ledger.datasets():
        assert list(found.entries[name]) == ledger.history(name)
        assert found.balances(name) == ledger.balances(name)
    assert found.head == ledger.head()
    assert found.rows == {row.hash: row.seq for row in before}
    assert found.shown == ledger.url
