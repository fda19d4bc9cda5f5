"""The limits that a data set gets when it is made: what is allowed, and how the log holds them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from accounting import renyi
from accounting.budget import Budget, LedgerError
from accounting.ledger.amounts import DELTA_PLACES, EPSILON_PLACES, MOST_UNITS, at_most, to_units
from accounting.ledger.blocks import within
from accounting.ledger.columns import Rule

MOST_DELTA = 1e-4
"""Policy: a limit's delta is below it, and below 1 / population where that is stated; at 1 / population, publishing one
unit outright would keep the budget."""

ORDERS = (1.25, 1.5, 1.75, *(float(order) for order in range(2, 33)), 40.0, 48.0, 64.0, 96.0, 128.0, 256.0, 512.0)
"""Rule `rdp` takes its order from these unless one is given: the one with most room for a loss linear in the order."""


def check_rule(rule: str, order: float | None) -> None:
    """Refuse a rule that does not exist, and an order that its rule does not take."""
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {get_args(Rule)}, got {rule!r}")
    if order is not None and rule != "rdp":
        raise ValueError(f"order belongs to rule 'rdp', got {order!r} for rule {rule!r}")
    if order is not None and not 1 < order <= ORDERS[-1]:
        raise ValueError(f"order must be above 1 and at most {ORDERS[-1]:g}, got {order!r}")


def check_limits(limits: Sequence[Budget], population: int | None) -> None:
    """Refuse a delta above policy, two limits for the same unit and kind, and units that are not coarse to fine."""
    if population is not None and (type(population) is not int or population < 1):
        raise ValueError(f"population must be a whole number of at least 1, got {population!r}")
    most = MOST_DELTA if population is None else min(MOST_DELTA, 1 / population)
    for number, limit in enumerate(limits):
        if limit.delta >= most:
            why = "1 / population" if most < MOST_DELTA else "by policy"
            raise LedgerError(f"a limit's delta must be below {most:.3g} ({why}), got {limit}; name a smaller one")
        for before in limits[:number]:
            if (before.neighbors == "replace-label") != (limit.neighbors == "replace-label"):
                continue
            if before.unit == limit.unit:
                raise LedgerError(f"{limit.unit} has one limit of a kind, got {before} and {limit}; leave one out")
            if within(before.unit, limit.unit, ()):
                raise LedgerError(f"a {before.unit} lies in a {limit.unit}: name the limit of {limit.unit} first")


def column_body(limit: Budget, rule: Rule, order: float | None) -> dict[str, Any]:
    """Returns a limit as the log holds it: whole units, rounded down, and what the rule makes of them."""
    epsilon = to_units(limit.epsilon, EPSILON_PLACES, math.floor)
    delta = to_units(limit.delta, DELTA_PLACES, math.floor)
    if not 1 <= epsilon <= MOST_UNITS or delta < 1:
        raise LedgerError(f"a limit must be 1e-9 to 9.2e9 in epsilon and at least 1e-18 in delta, got {limit}")
    held = replace(limit, epsilon=at_most(epsilon, EPSILON_PLACES), delta=at_most(delta, DELTA_PLACES))
    loss = epsilon
    if rule == "zcdp":
        loss = to_units(renyi.rho_within(held), EPSILON_PLACES, math.floor)
    elif rule == "rdp":
        order = float(order) if order is not None else _best_order(held)
        loss = to_units(renyi.divergence_within(held, order), EPSILON_PLACES, math.floor)
    if loss < 1:
        raise LedgerError(f"{limit} leaves nothing to spend under rule {rule!r}; take rule 'basic' or another order")
    return {
        "unit": limit.unit,
        "neighbors": limit.neighbors,
        "epsilon": epsilon,
        "delta": delta,
        "loss": loss,
        "order": order,
    }


def _best_order(limit: Budget) -> float:
    def holds(order: float) -> float:
        try:
            return renyi.divergence_within(limit, order) / order
        except ValueError:  # this order alone costs more than the limit
            return 0.0

    return max(ORDERS, key=holds)
