"""The runs whose weights a run began with: what was learned before, and what that was charged."""

from typing import Self

from pydantic import model_validator

from accounting.budget import Neighbors
from accounting.report.fields import Amount, Count, Delta, Record, Text, Verdict
from accounting.report.phrase import NOT_STATED, bound


class StartedFrom(Record):
    """A run whose weights another one began with. What it cost was charged on its own, and is stated here.

    ``epsilon``, ``delta``, ``unit``, ``neighbors``: None for a run without privacy. ``entry``, ``head``: of the ledger
    that it was charged to; ``same_ledger``: it is the ledger of the run that went on, and it holds that entry.
    ``canaries``: at most so many were planted in it for an audit.
    """

    run: Text
    dataset: Text
    public: bool
    verdict: Verdict
    epsilon: Amount | None = None
    delta: Delta | None = None
    unit: Text | None = None
    neighbors: Neighbors | None = None
    entry: Text | None = None
    head: Text | None = None
    same_ledger: bool = False
    canaries: Count = 0

    @model_validator(mode="after")
    def _whole_or_none(self) -> Self:
        terms = (self.epsilon, self.delta, self.unit, self.neighbors)
        if any(one is None for one in terms) and any(one is not None for one in terms):
            raise ValueError("epsilon, delta, unit and neighbors of an earlier run are stated together or not at all")
        if self.same_ledger and self.entry is None:
            raise ValueError("an earlier run that was charged to no ledger has none in common with this one")
        return self

    @property
    def cost(self) -> str:
        """What it was charged, in one phrase."""
        if self.epsilon is None or self.unit is None or self.neighbors is None:
            return "no privacy"
        released = "its final model"
        return bound(self.epsilon, delta=self.delta, unit=self.unit, neighbors=self.neighbors, released=released)

    @property
    def charged(self) -> str:
        """Where it was charged, in one phrase."""
        if self.entry is None:
            return "charged to no ledger"
        which = "the same ledger" if self.same_ledger else f"another ledger (head {self.head or NOT_STATED})"
        return f"charged as entry {self.entry} of {which}"
