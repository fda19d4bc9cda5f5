"""The columns of a data set: for each protected unit its limit, what is spent of it, and the rule that keeps it.

Each column has one measure of loss, fixed when the data set is made, whose sums stay a guarantee when every charge is
chosen after the results of those before it were seen (a *filter*: Rogers, Roth, Ullman and Vadhan 2016):

- ``basic``: loss is epsilon; ``sum epsilon_i <= epsilon`` and ``sum delta_i <= delta`` (Dwork and Roth 2014, theorem
  3.16; with amounts chosen on the way, Rogers et al. 2016). Least for few charges.
- ``zcdp``: loss is rho; ``sum rho_i <= rho`` (Bun and Steinke 2016; as a filter, Whitehouse et al. 2023).
- ``rdp``: loss is the Renyi divergence of one order; ``sum divergence_i <= divergence``. The order is fixed when the
  data set is made: choosing it later would be choosing after looking (Feldman and Zrnic 2021; Lecuyer 2021).

The last two spend the limit's delta once, when the sum is turned into epsilon, so their charges have no delta of their
own. No such theorem is known for composing privacy loss distributions: the joint figure (`joint`) enforces nothing,
unless the whole sequence was fixed in advance and is one charge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from accounting import renyi
from accounting.budget import Budget, BudgetExceeded, LedgerError, Neighbors, PrivacyUnit
from accounting.ledger.amounts import DELTA_PLACES, EPSILON_PLACES, at_least, at_most
from accounting.ledger.blocks import Block

Rule = Literal["basic", "zcdp", "rdp"]

CONVERSION_TOLERANCE = 1e-9
"""Relative. An older log's limits were converted by the floating point of other versions of the libraries."""

MEASURES: dict[Rule, str] = {"basic": "epsilon", "zcdp": "rho", "rdp": "Renyi divergence"}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one charge costs one column: ``loss`` in the measure of its rule, and ``delta``; both rounded up."""

    unit: PrivacyUnit
    neighbors: Neighbors
    loss_units: int
    delta_units: int

    @property
    def column(self) -> tuple[str, str]:
        """The name of the column that pays."""
        return self.unit, self.neighbors

    @property
    def loss(self) -> float:
        """Epsilon, rho or Renyi divergence."""
        return at_least(self.loss_units, EPSILON_PLACES)

    @property
    def delta(self) -> float:
        """Zero where the rule charges no delta of its own."""
        return at_least(self.delta_units, DELTA_PLACES)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One unit's protection: the limit, and the rule that keeps it. order: of the Renyi divergence, under `rdp`."""

    limit: Budget
    rule: Rule
    order: float | None
    loss_limit: int
    delta_limit: int

    @property
    def label_only(self) -> bool:
        """Whether labels alone are protected; such a column and the others never share a charge."""
        return self.limit.neighbors == "replace-label"

    @property
    def name(self) -> tuple[str, str]:
        """What tells the columns of a data set apart."""
        return self.limit.unit, self.limit.neighbors

    def epsilon_of(self, loss_units: int) -> float:
        """Returns a sum of losses as epsilon at the limit's delta."""
        loss = at_least(loss_units, EPSILON_PLACES)
        if self.rule == "basic" or loss_units == 0:
            return loss
        if self.order is None:
            return renyi.epsilon_of_zcdp(loss, self.limit.delta)
        return renyi.epsilon_of_renyi(loss, self.order, self.limit.delta)


@dataclass
class Spent:
    """What is spent of one column, in units, as (loss, delta): by charges to all blocks, and by block."""

    parallel: bool
    whole: tuple[int, int] = (0, 0)
    blocks: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, loss: int, delta: int, blocks: Sequence[str]) -> None:
        """Adds a charge to ``blocks``, or to everything where units do not lie in one block."""
        if not self.parallel or not blocks:
            self.whole = self.whole[0] + loss, self.whole[1] + delta
            return
        for name in blocks:
            before = self.blocks.get(name, (0, 0))
            self.blocks[name] = before[0] + loss, before[1] + delta

    def most(self, blocks: Sequence[str] = ()) -> tuple[int, int, str | None]:
        """Returns (loss, delta, dearest block): the most that a unit of ``blocks`` (of any, if none) has lost."""
        if not self.parallel:
            return *self.whole, None
        found = [(*self.blocks.get(name, (0, 0)), name) for name in blocks or self.blocks]
        loss, _, dearest = max(found, default=(0, 0, None), key=lambda one: one[:2])
        delta = max((one[1] for one in found), default=0)
        return self.whole[0] + loss, self.whole[1] + delta, dearest


@dataclass
class Account:
    """One data set: its columns, coarse to fine, the protected one first, and what is spent of each."""

    block: Block | None
    columns: tuple[Column, ...]
    spent: dict[tuple[str, str], Spent]

    @property
    def units(self) -> list[PrivacyUnit]:
        """The columns' units, coarse to fine, each once."""
        return list(dict.fromkeys(column.limit.unit for column in self.columns))

    def charged(self, neighbors: Neighbors) -> list[Column]:
        """Returns the columns that a charge pays to: all of its kind."""
        return [column for column in self.columns if column.label_only == (neighbors == "replace-label")]


def check_pays(column: Column, cost: Cost, epsilon_units: int, delta_units: int) -> None:
    """Refuse a cost that is less than what the charge itself states, in the terms of ``column``'s rule."""
    least_loss, delta = (epsilon_units, delta_units) if column.rule == "basic" else (1, 0)
    if cost.loss_units < least_loss or cost.delta_units != delta:
        raise LedgerError(f"under rule {column.rule!r} each column pays what the charge states, got {cost}")


def check_fits(
    dataset: str, column: Column, spent: Spent, cost: Cost, blocks: Sequence[str], asked: tuple[str, str]
) -> None:
    """Raise `BudgetExceeded` if ``column`` of ``dataset`` has not enough left for ``cost`` in each of ``blocks``.

    asked: unit and neighbors of the charge itself, for the remedy.
    """
    loss, delta, block = spent.most(blocks)
    if loss + cost.loss_units <= column.loss_limit and delta + cost.delta_units <= column.delta_limit:
        return
    left = at_most(column.loss_limit - loss, EPSILON_PLACES)
    left_delta = at_most(column.delta_limit - delta, DELTA_PLACES)
    limit, basic = column.limit, column.rule == "basic"
    measure = measure_of(column.rule, column.order)
    where = f" in block {block}" if block is not None else ""
    has = f"{measure} {left}" + (f" and delta {left_delta}" if basic else "")
    wants = f"{measure} {cost.loss}" + (f" and delta {cost.delta}" if basic else "")
    remedy = "nothing is left for another charge"
    if left > 0 and left_delta > 0 and basic:
        same = asked == column.name
        what = "ask for an epsilon of" if same else f"make a plan that costs a {limit.unit}"
        remedy = f"{what} at most {left}" + (f" and a delta of at most {left_delta}" if cost.delta > left_delta else "")
    elif left > 0 and left_delta > 0:
        remedy = "add noise or take fewer steps"
    raise BudgetExceeded(
        f"{dataset!r} has {has} left{where} of its limit (epsilon {limit.epsilon}, delta {limit.delta}, {limit.unit}, "
        f"{limit.neighbors}, rule {column.rule}), but the charge asks for {wants}; {remedy}"
    )


def measure_of(rule: Rule, order: float | None) -> str:
    """Returns what losses under a rule are counted in, in words. order: of the Renyi divergence."""
    return MEASURES[rule] + ("" if order is None else f" of order {order:g}")


def read_column(body: Mapping[str, Any], rule: str) -> Column:
    """Returns the column that an `init` row holds, its limit not a unit above what stands there."""
    if rule not in MEASURES:
        raise LedgerError(f"unknown rule {rule!r}")
    order = body["order"]
    if (rule == "rdp") != isinstance(order, float):
        raise LedgerError(f"a Renyi order belongs to rule 'rdp' and to no other, got {order!r} under {rule!r}")
    epsilon, delta = whole_number(body, "epsilon"), whole_number(body, "delta")
    loss = whole_number(body, "loss")
    if rule == "basic" and loss != epsilon:
        raise LedgerError(f"under rule 'basic' the limit is epsilon itself, got {loss!r} for {epsilon!r}")
    limit = Budget(
        epsilon=at_most(epsilon, EPSILON_PLACES),
        delta=at_most(delta, DELTA_PLACES),
        unit=text(body, "unit"),
        neighbors=cast(Neighbors, body["neighbors"]),  # Budget itself checks the name
    )
    column = Column(limit=limit, rule=rule, order=order, loss_limit=loss, delta_limit=delta)
    if column.epsilon_of(loss) > limit.epsilon * (1 + CONVERSION_TOLERANCE):
        raise LedgerError(f"under rule {rule!r} the limit {limit} is less than what {loss} units of loss amount to")
    return column


def whole_number(body: Mapping[str, Any], name: str, least: int = 1) -> int:
    """Returns a whole number of a log row's body; anything else there is not of privads' making."""
    value = body[name]
    if type(value) is not int or value < least:
        raise LedgerError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def text(body: Mapping[str, Any], name: str) -> str:
    """Returns a text of a log row's body."""
    value = body[name]
    if not isinstance(value, str):
        raise LedgerError(f"{name} must be text, got {value!r}")
    return value
