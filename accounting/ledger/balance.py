"""What is spent and left of a column, as figures for people."""

from collections.abc import Sequence
from dataclasses import dataclass

from accounting.budget import Budget
from accounting.ledger.amounts import DELTA_PLACES, EPSILON_PLACES, at_least, at_most
from accounting.ledger.columns import Column, Rule, Spent
from accounting.ledger.rules import Entry


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What is spent and left of one column's limit. Spent is rounded up, left is rounded down.

    spent_epsilon, spent_delta: the sums under rule `basic`; else the spent loss as epsilon at the limit's delta.
    loss_limit, loss_spent: in the rule's own measure, whose sums the rule keeps. open_entries: charges that are neither
    committed nor aborted; they count as spent. label_only: labels alone are protected, so the figure is no protection
    of the rest and is never added to one that is. by_block: where blocks compose in parallel, the epsilon spent by
    those whose rows lie in that block; ``spent`` and ``left`` are then the dearest block's.
    """

    dataset: str
    limit: Budget
    rule: Rule
    order: float | None
    spent_epsilon: float
    spent_delta: float
    left_epsilon: float
    left_delta: float
    loss_limit: float
    loss_spent: float
    open_entries: int
    label_only: bool
    by_block: dict[str, float] | None


def balance_of(dataset: str, column: Column, spent: Spent, history: Sequence[Entry]) -> Balance:
    """Returns the balance of one column of ``dataset``, whose entries are ``history``."""
    loss, delta, _ = spent.most()
    if column.rule != "basic":
        delta = column.delta_limit if loss else 0  # spent once, by turning the loss into epsilon
    spent_epsilon = column.epsilon_of(loss)
    left = at_most(column.loss_limit - loss, EPSILON_PLACES)
    by_block = {name: column.epsilon_of(spent.most([name])[0]) for name in sorted(spent.blocks)}
    return Balance(
        dataset=dataset,
        limit=column.limit,
        rule=column.rule,
        order=column.order,
        spent_epsilon=spent_epsilon,
        spent_delta=at_least(delta, DELTA_PLACES),
        left_epsilon=left if column.rule == "basic" else max(column.limit.epsilon - spent_epsilon, 0.0),
        left_delta=at_most(column.delta_limit - delta, DELTA_PLACES),
        loss_limit=at_most(column.loss_limit, EPSILON_PLACES),
        loss_spent=at_least(loss, EPSILON_PLACES),
        open_entries=sum(
            entry.closed_at is None and any(cost.column == column.name for cost in entry.costs) for entry in history
        ),
        label_only=column.label_only,
        by_block=by_block if spent.parallel else None,
    )
