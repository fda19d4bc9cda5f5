"""A charge, and what it costs each column of its data set.

A charge states a mechanism and whom it protects; the ledger itself works out what each column loses by it. Let U be the
charge's unit and V the column's:

- U is V: the event as it is. Within one time block, `user` and `user-day` name the same rows, and so are one unit.
- each U lies in a V, which brings at most k of them (``records[V]``): the event as one owner of k loses it
  (`mechanisms.user_level`) or, where that is not known, group privacy of its figure: (epsilon, delta)-DP for one is
  (k epsilon, delta (e^(k epsilon) - 1) / (e^epsilon - 1))-DP for k (Vadhan 2017, lemma 2.2), and rho is k^2 rho
  (Bun and Steinke 2016).
- each V lies in a U: to add or remove a V is to replace what its U contributed; the event is accounted under `replace`.
- neither is known, but k is stated: without a V, each of its k Us may stay and contribute otherwise; k are replaced.

A charge under add-remove is accounted under `replace` for a column under `replace`. There, a V that is replaced may
come back in another U: in the last two cases twice as many Us are replaced. A charge under `replace` says nothing of
data with another number of units, so it is refused wherever that number changes: by a column under add-remove, by one
of another unit, or by a unit that moves to another time block.

Label charges (`replace-label`) pay to label columns only, and all others to the other columns only.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from secrets import token_urlsafe
from typing import Protocol
from uuid import uuid4

from dp_accounting import dp_event

from accounting import accountant, mechanisms, renyi
from accounting.budget import Budget, LedgerError, Neighbors, PrivacyUnit, check_epsilon
from accounting.ledger.amounts import DELTA_PLACES, EPSILON_PLACES, at_least, to_units
from accounting.ledger.blocks import check_names, split_unit, within
from accounting.ledger.columns import MEASURES, Account, Column, Cost
from accounting.mechanisms import UnknownEvent

LEAST_DELTA_SHARE = 2.0**-200
"""Group privacy looks for the inner delta down to this share of the outer one; a group that needs less is refused."""


@dataclass(frozen=True, kw_only=True)
class Charge:
    """One execution of a mechanism, to be paid in full before it reads a row.

    event: what is executed, as `mechanisms.to_json` writes it. A sequence of runs that is fixed in advance may be one
    charge, whose event is their composition: then, and only then, their joint figure is what is charged.
    delta: at which its epsilon is charged. unit, neighbors: whom the event protects, and against what.
    purpose: for people, such as "train dcn". records: for other units the enforced bound on how many of the charge's
    units one of them brings, such as {"user": 8}. blocks: the time blocks whose rows are read; none means all.
    epsilon: what the caller believes it costs; below what the ledger accounts it is refused, above it rule `basic`
    charges it.
    key: names this execution; the ledger takes each key once, so one charge never pays for two runs. holder: the secret
    of the process that executes it. Only its hash is stored.
    """

    event: str
    delta: float
    unit: PrivacyUnit
    purpose: str
    neighbors: Neighbors = "add-remove"
    records: Mapping[str, int] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    epsilon: float | None = None
    key: str = field(default_factory=lambda: uuid4().hex)
    holder: str = field(default_factory=token_urlsafe, repr=False)

    def __post_init__(self) -> None:
        Budget(epsilon=1.0, delta=self.delta, unit=self.unit, neighbors=self.neighbors)  # its checks
        if self.epsilon is not None:
            check_epsilon(self.epsilon)
        for name in ("event", "purpose", "key", "holder"):
            check_line(name, getattr(self, name))
        if not isinstance(self.blocks, tuple) or not all(isinstance(one, str) for one in self.blocks):
            raise ValueError(f"blocks must be a tuple of names such as '2026-11-22', got {self.blocks!r}")
        if not isinstance(self.records, Mapping):
            raise ValueError(f"records must map units to whole numbers, such as {{'user': 8}}, got {self.records!r}")
        for unit, records in self.records.items():
            Budget(epsilon=1.0, delta=self.delta, unit=unit)
            if type(records) is not int or records < 1:
                raise ValueError(f"records of {unit!r} must be a whole number of at least 1, got {records!r}")
        mechanisms.from_json(self.event)  # refuses what privads does not write


class Charged(Protocol):
    """What decides a cost; a `Charge` and the `Entry` made of it both have it."""

    @property
    def event(self) -> str: ...  # noqa: D102
    @property
    def delta(self) -> float: ...  # noqa: D102
    @property
    def unit(self) -> PrivacyUnit: ...  # noqa: D102
    @property
    def neighbors(self) -> Neighbors: ...  # noqa: D102
    @property
    def records(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def blocks(self) -> tuple[str, ...]: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class View:
    """A charge as one unit of a column meets it: ``group`` units of the event change, each by ``neighbors``.

    pairs: whether the change may also be taken for twice as many under add-remove: one removed, another one added.
    """

    event: dp_event.DpEvent
    neighbors: Neighbors
    group: int
    pairs: bool = False


def check_line(name: str, text: object) -> None:
    """Refuse what is not one printable line of text."""
    if not isinstance(text, str) or not text or not text.isprintable():
        raise ValueError(f"{name} must be one line of text, got {text!r}")


def own_epsilon(charge: Charged) -> int:
    """Returns the charge's figure in its own terms, in units: epsilon of its event at its delta, rounded up.

    Refused: a run without privacy, an event that the accountant does not know, an infinite loss.
    """
    event = mechanisms.from_json(charge.event)
    if '"non-private"' in mechanisms.to_json(event):
        raise LedgerError("a run without privacy cannot be charged; run it on public data, without a ledger")
    view = View(event=event, neighbors=charge.neighbors, group=1)
    return _units(_known(lambda: view_epsilon(view, _charged_delta(charge))), "epsilon", charge)


def costs(charge: Charged, account: Account, *, floor_units: int = 0) -> tuple[Cost, ...]:
    """Returns what the charge costs each column of its kind, and no less than ``floor_units`` of epsilon."""
    check_names(charge.blocks, account.block)
    columns = account.charged(charge.neighbors)
    if not columns:
        kind = "labels only" if charge.neighbors == "replace-label" else "more than labels"
        raise LedgerError(
            f"the charge protects {kind} ({charge.neighbors}), and the data set has no budget for that; "
            "make one with a limit of these neighbors"
        )
    return tuple(_cost(charge, column, view(charge, column, account), floor_units) for column in columns)


def view(charge: Charged, column: Column, account: Account) -> View:
    """Returns how one unit of ``column`` meets the charge, as the module's text says."""
    limit, event = column.limit, mechanisms.from_json(charge.event)
    if charge.neighbors == "replace" and ((charge.unit, "replace") != column.name or charge.blocks):
        raise LedgerError(
            f"the charge holds under 'replace' for {charge.unit}, from which nothing follows where the number of its "
            f"units changes, as it may for {limit.unit} under {limit.neighbors!r} and in single blocks; make a plan "
            "under 'add-remove', or a ledger of its own by `privads budget init --neighbors replace`"
        )
    finer = _finer(charge, limit.unit, account)
    group = 1 if finer is False else _group(charge, limit.unit, account)
    if not finer and limit.neighbors == "replace":
        group *= 2
    neighbors = limit.neighbors if finer or charge.neighbors == "replace-label" else "replace"
    pairs = neighbors == "replace" and charge.neighbors == "add-remove"
    return View(event=event, neighbors=neighbors, group=group, pairs=pairs)


def seen_event(view: View) -> dp_event.DpEvent:
    """Returns the event as one owner of ``view.group`` of its units loses it; raises `UnknownEvent` if unknown."""
    return view.event if view.group == 1 else mechanisms.user_level(view.event, view.group)


def group_epsilon(event: dp_event.DpEvent, *, group: int, delta: float, neighbors: Neighbors) -> float:
    """Returns an epsilon of ``event`` for ``group`` units at ``delta``, by group privacy of its own figures.

    Each inner delta d, with e = epsilon(d), gives k e at ``d (e^(k e) - 1) / (e^e - 1)``. The largest d on a ladder of
    halves for which that is within ``delta`` is taken; infinity where there is none.
    """
    inner = delta
    while inner >= delta * LEAST_DELTA_SHARE and inner > 1e-300:
        one = accountant.epsilon(event, delta=inner, neighbors=neighbors).upper
        if not math.isfinite(one):
            return math.inf
        needed = _log_group_factor(one, group)
        if math.log(inner) + needed <= math.log(delta):
            return group * one
        # The factor grows as d falls, so no d between this rung and delta / factor can be enough.
        inner = min(inner / 2, math.exp(math.log(delta) - needed)) if needed < 600 else 0.0
    return math.inf


def _log_group_factor(epsilon: float, group: int) -> float:
    """Returns ``log((e^(k epsilon) - 1) / (e^epsilon - 1))``, rounded up."""
    if epsilon == 0:
        return math.log(group) + 1e-9

    def log_expm1(x: float) -> float:
        return x + math.log(-math.expm1(-x))

    return log_expm1(group * epsilon) - log_expm1(epsilon) + 1e-9


def _finer(charge: Charged, unit: PrivacyUnit, account: Account) -> bool | None:
    """Says whether each of the charge's units lies in one ``unit`` (or is it); None: that is not known."""
    if _same(charge, unit, account):
        return True
    found = within(charge.unit, unit, account.units)
    owners = split_unit(charge.unit)[0], split_unit(unit)[0]
    if found is None and within(*owners, account.units) is not None:
        raise LedgerError(f"a {charge.unit} may lie in two {unit}s, so its charge cannot be turned into one of {unit}")
    return found


def _same(charge: Charged, unit: PrivacyUnit, account: Account) -> bool:
    """Says whether the two units are the same rows of what the charge reads: in one day, a user is a user-day."""
    if charge.unit == unit:
        return True
    if len(charge.blocks) != 1 or split_unit(charge.unit)[0] != split_unit(unit)[0]:
        return False
    return all(_spans_block(one, account) for one in (charge.unit, unit))


def _spans_block(unit: PrivacyUnit, account: Account) -> bool:
    """Says whether a unit's period is no shorter than a block, so that each owner has one unit in a block."""
    base, period = split_unit(unit)
    return not period or within(f"{base}-{account.block}", unit, ()) is True


def _group(charge: Charged, unit: PrivacyUnit, account: Account) -> int:
    """Returns k, the most of the charge's units that one ``unit`` brings to what the charge reads."""
    if _same(charge, unit, account):
        return 1
    bounds = [charge.records[unit]] if unit in charge.records else []
    same_base = split_unit(charge.unit)[0] == split_unit(unit)[0]
    if charge.blocks and same_base and _spans_block(charge.unit, account):
        bounds.append(len(charge.blocks))  # an owner has one unit in each block
    if not bounds:
        raise LedgerError(
            f"the charge protects {charge.unit}, the data set protects {unit}: state how many of the first one {unit} "
            f"brings at most, as records={{{unit!r}: k}}, or make a plan whose unit is {unit}"
        )
    return min(bounds)


def _cost(charge: Charged, column: Column, view: View, floor_units: int) -> Cost:
    delta_units = 0
    match column.rule:
        case "basic":
            loss = _known(lambda: view_epsilon(view, _charged_delta(charge)))
            delta_units = _delta_units(charge)
        case "zcdp":
            loss = _known(lambda: _rho(view), column)
        case "rdp":
            loss = _known(lambda: _divergence(view, column), column)
    floor = floor_units if column.rule == "basic" else 0  # an epsilon says nothing about rho or a divergence
    return Cost(
        unit=column.limit.unit,
        neighbors=column.limit.neighbors,
        loss_units=max(_units(loss, MEASURES[column.rule], charge), floor),
        delta_units=delta_units,
    )


def view_epsilon(view: View, delta: float) -> float:
    """Returns the epsilon at ``delta`` of what the view's group loses; raises `UnknownEvent` where none is known."""

    def whole() -> float:
        return accountant.epsilon(seen_event(view), delta=delta, neighbors=view.neighbors).upper

    def hops(group: int, neighbors: Neighbors) -> float:
        return group_epsilon(view.event, group=group, delta=delta, neighbors=neighbors)

    return _first_known(view, whole, hops)


def _rho(view: View) -> float:
    def whole() -> float:
        return renyi.zcdp_rho(seen_event(view), neighbors=view.neighbors)

    def hops(group: int, neighbors: Neighbors) -> float:
        return group**2 * renyi.zcdp_rho(view.event, neighbors=neighbors)

    return _first_known(view, whole, hops)


def _first_known(view: View, whole: Callable[[], float], hops: Callable[[int, Neighbors], float]) -> float:
    """Returns the loss of the event as a whole, or else by group privacy; raises the first `UnknownEvent`."""
    try:
        return whole()
    except UnknownEvent as error:
        ways: list[tuple[int, Neighbors]] = [(view.group, view.neighbors)] if view.group > 1 else []
        ways += [(2 * view.group, "add-remove")] if view.pairs else []
        for group, neighbors in ways:
            with suppress(UnknownEvent):
                return hops(group, neighbors)
        raise error


def _divergence(view: View, column: Column) -> float:
    if column.order is None:
        raise LedgerError("rule 'rdp' needs its order")
    return renyi.divergence(seen_event(view), order=column.order, neighbors=view.neighbors)


def _known(account_for: Callable[[], float], column: Column | None = None) -> float:
    """Returns the loss, or refuses an event whose loss is not known, with the remedy."""
    try:
        return account_for()
    except UnknownEvent as error:
        remedy = "charge only what `accounting.mechanisms` makes, under the neighbors that it states"
        if column is not None and column.rule != "basic":
            remedy = f"charge it to a data set whose rule is 'basic', since it has no bounded {MEASURES[column.rule]}"
        raise LedgerError(f"what the event costs is not known ({error}); {remedy}") from error


def _units(loss: float, measure: str, charge: Charged) -> int:
    if not math.isfinite(loss):
        raise LedgerError(
            f"the event has no finite {measure} at delta {charge.delta}; add noise, or state smaller records"
        )
    return max(to_units(loss, EPSILON_PLACES, math.ceil), 1)


def _delta_units(charge: Charged) -> int:
    return to_units(charge.delta, DELTA_PLACES, math.ceil)


def _charged_delta(charge: Charged) -> float:
    """Returns the delta that is charged, at which epsilon is then accounted: at least 1e-18."""
    return at_least(_delta_units(charge), DELTA_PLACES)
