"""The budget ledger: durable, shared, refusing what a data set's limits do not cover. `Ledger` is its front."""

from accounting.budget import LedgerError
from accounting.ledger.balance import Balance
from accounting.ledger.columns import Cost
from accounting.ledger.cost import Charge
from accounting.ledger.ledger import Ledger, Verification
from accounting.ledger.rules import Entry, State
from accounting.ledger.snapshot import Snapshot

__all__ = ["Balance", "Charge", "Cost", "Entry", "Ledger", "LedgerError", "Snapshot", "State", "Verification"]
