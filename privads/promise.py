"""The parts of a report that every run shares: what it promises, what its ledger holds, on which software it ran."""

import math
import platform
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.metadata import version
from typing import Any

from dp_accounting import dp_event

from accounting.accountant import Bounds, epsilon, lower_end, without_amplification
from accounting.budget import EXAMPLE, Budget
from accounting.ledger import Entry, Ledger
from accounting.report import record, terms
from accounting.report.guarantee import Accountant, Guarantee, ProfilePoint
from accounting.report.started import StartedFrom
from privads.provenance import commit

_NEIGHBORS = {
    "add-remove": "One data set has {unit} more than the other.",
    "replace": "One data set has {unit} replaced by others.",
}
_PACKAGES = ("dp-accounting", "numpy", "opacus", "pandas", "privads", "pyarrow", "torch")
_PROFILE_DECADES = (0, 1, 2)
_PUBLIC = (
    "the population, as declared",
    "the schema: columns, buckets, ranges, labels",
    "the plan, and the constants that split the rows",
)
_OF_OTHER_ROWS = ("what several rows of one owner tell together: each row is protected by itself",)


def this_run(
    *,
    identity: str,
    created_at: datetime,
    seconds: float,
    seed: int | None,
    insecure_seed: int | None,
    config: Mapping[str, Any],
    started_from: tuple[StartedFrom, ...] = (),
    author: str | None = None,
) -> record.Run:
    """Returns which run it was, and on which versions."""
    return record.Run(
        id=identity,
        created_at=created_at,
        library_version=version("privads"),
        library_commit=commit(),
        author=author,
        versions={name: version(name) for name in _PACKAGES},
        python=platform.python_version(),
        seconds=seconds,
        seed=seed,
        insecure_seed=insecure_seed,
        config=plain(config),
        started_from=started_from,
    )


def guarantee(
    event_after: Callable[[int], dp_event.DpEvent],
    steps: int,
    budget: Budget,
    spent: Bounds,
    *,
    population: int,
    owned: str,
    unit_columns: tuple[str, ...],
    released: str,
) -> Guarantee:
    """Returns what an executed plan promises, also at smaller deltas, without trust in the sampler, and in other terms.

    event_after: what its first so many steps execute. spent: the epsilon of all of them at the budget's delta. owned:
    what neighbors differ in.
    """
    neighbors, event = budget.neighbors, event_after(steps)
    deltas = [float(f"{budget.delta / 10**decade:.6g}") for decade in _PROFILE_DECADES]
    profile = {
        d: epsilon(event, delta=d, neighbors=neighbors).upper for d in deltas
    }  # a part with a delta of its own has no smaller one
    library, _, number = spent.library.partition(" ")
    points = terms.points(event, spent)
    lower = spent.lower
    if lower is None and math.isfinite(spent.upper):
        lower = lower_end(event, delta=budget.delta, neighbors=neighbors)
    return Guarantee(
        epsilon=spent.upper,
        epsilon_lower=None if lower is None else min(lower, spent.upper),
        delta=budget.delta,
        unit=budget.unit,
        unit_columns=() if budget.unit == EXAMPLE else unit_columns,
        neighbors=neighbors,
        neighbors_definition=_NEIGHBORS[neighbors].format(unit=owned),
        released=released,
        accountant=Accountant(method=spent.method, grid=spent.grid, library=library, version=number),
        epsilon_without_amplification=without_amplification(event, delta=budget.delta, neighbors=neighbors).upper,
        profile=tuple(ProfilePoint(delta=d, epsilon=e) for d, e in profile.items() if math.isfinite(e)),
        curve=terms.curve(points),
        delta_reason=f"below 1 / population = {1 / population:.3g}, at which one unit could be published outright",
        over_steps=terms.over_steps(event_after, steps, spent, budget.delta),
        zcdp_rho=terms.zcdp_rho(event, neighbors=neighbors),
        renyi=terms.renyi_points(event, neighbors=neighbors),
        gaussian=terms.gaussian(event, neighbors=neighbors),
        detection=terms.detection(event, neighbors=neighbors, found=points),
        public_quantities=_PUBLIC,
        unprotected=_OF_OTHER_ROWS if budget.unit == EXAMPLE else (),
    )


def ledger_budget(ledger: Ledger, dataset: str, entry: Entry) -> record.LedgerBudget:
    """Returns the budget of the data set as the ledger holds it, before and after the run's ``entry``."""
    whole = ledger.read()  # once, so that what is left and the head agree
    now = whole.balances(dataset)[0]
    before = ledger.balance(dataset, without=entry)
    return record.LedgerBudget(
        dataset=dataset,
        unit=now.limit.unit,
        neighbors=now.limit.neighbors,
        rule=now.rule if now.order is None else f"{now.rule} at order {now.order:g}",
        limit_epsilon=now.limit.epsilon,
        limit_delta=now.limit.delta,
        spent_before_epsilon=before.spent_epsilon,
        spent_before_delta=before.spent_delta,
        this_run_epsilon=entry.epsilon,
        this_run_delta=entry.delta,
        charged_unit=entry.unit,
        charged_neighbors=entry.neighbors,
        left_epsilon=now.left_epsilon,
        left_delta=now.left_delta,
        entry=str(entry.id),
        head=whole.head,
        open_entries=now.open_entries,
        blocks=entry.blocks,
        refresh="never: what is spent stays spent",
    )


def plain(value: Any) -> Any:
    """Returns ``value`` as plain JSON: tuples as lists, infinity as text, anything else unknown as its text."""
    match value:
        case Mapping():
            return {str(key): plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case float() if not math.isfinite(value):
            return str(value)
        case None | bool() | int() | float() | str():
            return value
    return str(value)
