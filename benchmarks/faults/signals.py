"""Faults of tables, reports and randomized labels, each planted in one place, and the checks that see them."""

import contextlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from accounting.budget import Budget
from accounting.ledger import Ledger
from benchmarks.faults.made import DELTA, Wide, has_variance, is_binomial, made_log, written
from benchmarks.faults.planting import Fault, Law, Patch
from privads.evaluation.release import release_metrics
from privads.logs.logs import Logs
from privads.noise import Randomness
from privads.noise_tables import bernoulli
from privads.signals import event_reports, release, rows
from privads.signals.event_reports import EventReports
from privads.signals.query import Query
from privads.signals.release import Release
from privads.signals.summary_reports import CONTRIBUTION_BUDGET, summarized
from privads.signals.table import NoisyTable

CELLS = 20_000
"""So many cells of empty tables are looked at: an error of 5 % of the noise is missed with probability below 1e-6."""

YES_OR_NO = EventReports(windows=(1,), most=1)
"""The states of one bit."""


def released(log: Logs, query: Query, *, insecure_seed: int | None = None) -> NoisyTable:
    """Returns a table of which a user may count one row, at epsilon 1."""
    budget = Budget(epsilon=1.0, delta=DELTA, unit="user")
    made = Release.of([query], budget, rows_per_unit=1)
    (table,) = made.run(log, ledger=None, purpose="look", insecure_seed=insecure_seed).tables
    return table


def named(count: int) -> Query:
    """Returns the table of so many declared sites, of which the log has none."""
    return Query(by=("site",), keys=tuple((f"never {number}",) for number in range(count)))


def noise_is_as_large_as_planned(log: Logs, _: Patch) -> bool:
    """Cells of sites that no row has hold noise of the planned variance, and 1/12 for rounding: chi-square."""
    table = released(log, named(CELLS))
    return has_variance(torch.from_numpy(table.rows), table.count_std**2 + 1 / 12)


def a_user_adds_one_row(log: Logs, patch: Patch) -> bool:
    """Without noise, a table of which a user may count one row adds up to as many rows as there are users."""
    patch.setattr(release, "_drawn", lambda _, cells, *others: np.zeros(cells, dtype=np.int64))
    sites: tuple[tuple[str], ...] = tuple((f"s{number}",) for number in range(5))
    total = float(released(log, Query(by=("site",), keys=sites)).rows.sum())
    return total <= len(np.unique(log.units))


def a_key_of_one_user_stays_hidden(_: Logs, __: Patch) -> bool:
    """A site that one user alone has is not shown, but with probability 1e-6: the tenth of delta that is for this."""
    with tempfile.TemporaryDirectory() as folder:
        log = written(columns_of(["the user"], ["their own"]), Path(folder) / "log.parquet")
        table = released(log, Query(by=("site",)))
    return table.keys == ((None,),)


def columns_of(users: list[str], sites: list[str]) -> dict[str, object]:
    """Returns the columns of a log with these users and sites, one row for each pair."""
    count = len(users)
    return {"user": users, "site": sites, "ad": ["a"] * count, "bid": [1.0] * count, "click": [0] * count}


def answers_are_random_as_often_as_stated(_: Logs, __: Patch) -> bool:
    """Of 100,000 answers for "no" at epsilon 1, 1 / (1 + e) are "yes": binomial.

    A chance that is off by 5 % is missed with probability below 1e-9.
    """
    count = 100_000
    answers = YES_OR_NO.randomized(np.zeros(count, dtype=np.int64), epsilon=1.0, randomness=Randomness())
    return is_binomial(int(answers.sum()), count, 1 / (1 + math.e))


def whole_noise_has_its_scale(_: Logs, __: Patch) -> bool:
    """Of 20,000 summaries of nothing at epsilon 1, as many are within the scale as Laplace noise is: 1 - 1 / e.

    A scale that is off by 10 % is missed with probability below 1e-8; whole numbers change the chance by 1e-5.
    """
    sums = summaries(CELLS, value=0, seed=None)
    return is_binomial(int((np.abs(sums) <= CONTRIBUTION_BUDGET).sum()), CELLS, 1 - math.exp(-1))


def summaries(count: int, *, value: int, seed: int | None) -> NDArray[np.int64]:
    """Returns (count,) sums at epsilon 1 of a contribution of ``value`` to each key, none where it is 0."""
    owners = list(range(count)) if value else []
    return summarized(
        owners,
        owners,
        owners,
        [value] * len(owners),
        declared=range(count),
        epsilon=1.0,
        randomness=Randomness(insecure_seed=seed),
    )


def looking_at_private_rows_is_charged(_: Logs, __: Patch) -> bool:
    """Metrics by which a checkpoint might be chosen: one entry more in the ledger of the rows they are of."""
    with tempfile.TemporaryDirectory() as folder:
        log = made_log(Path(folder), public=False)
        limit = Budget(epsilon=5.0, delta=9e-5, unit="user")
        dataset = log.schema.dataset
        ledger = Ledger.init(f"sqlite:///{Path(folder) / 'budget.db'}", dataset=dataset, budget=limit)
        release_metrics(Wide().eval(), log, Budget(epsilon=1.0, delta=DELTA, unit="user"), ledger=ledger)
        return len(ledger.history(dataset)) == 1


# Faults


def noise_halved(patch: Patch) -> None:
    """On every cell."""
    draw = Randomness.rounded_gaussian

    def half(self: Randomness, count: int, *, noise_std: float) -> NDArray[np.int64]:
        return draw(self, count, noise_std=noise_std / 2)

    patch.setattr(Randomness, "rounded_gaussian", half)


def no_noise_on_empty_cells(patch: Patch) -> None:
    """Only what was counted gets noise: 0 says that nobody is there."""
    made = release._with_noise

    def sparse(query: Any, counted: Any, *others: Any) -> NoisyTable:
        table = made(query, counted, *others)
        _, places, cells = release._cells(query, counted)
        empty = np.setdiff1d(np.arange(cells), places)
        for value in table.values.values():
            value[empty] = 0.0
        return table

    patch.setattr(release, "_with_noise", sparse)


def keys_selected_by_true_counts(patch: Patch) -> None:
    """Every key that a row has is shown: noise is on its count alone."""
    patch.setattr(release, "selection_threshold", lambda **_: -math.inf)
    patch.setattr(Release, "thresholds", property(lambda self: tuple(-1e9 for _ in self.queries)))


def rows_of_a_user_unbounded(patch: Patch) -> None:
    """All rows of a user are counted where noise is for one."""

    def everything(found: Any, names: Any, bounds: Any) -> Any:
        return found if bounds.limits_keys else found.drop(*names.owners)

    patch.setattr(rows, "bounded", everything)


def answers_random_too_seldom(patch: Patch) -> None:
    """A third of the stated chance that an answer is a random one."""

    def seldom(states: int, epsilon: float) -> Any:
        return bernoulli(states, math.log1p(3 * (states + math.expm1(epsilon)) - states))

    patch.setattr(event_reports, "bernoulli", seldom)


def whole_noise_of_a_third_of_the_scale(patch: Patch) -> None:
    """As where the sensitivity of a part is taken for that of the whole."""
    draw = Randomness.discrete_laplace

    def third(self: Randomness, count: int, *, scale: float, **others: Any) -> NDArray[np.int64]:
        return draw(self, count, scale=scale / 3, **others)

    patch.setattr(Randomness, "discrete_laplace", third)


def checkpoint_chosen_on_private_rows_uncharged(patch: Patch) -> None:
    """What is looked at to choose a model is not in the ledger."""

    @contextlib.contextmanager
    def free(*_: Any, **__: Any) -> Iterator[None]:
        yield None

    patch.setattr(release, "charged", free)


FAULTS = (
    Fault(
        area="signals",
        plant=noise_halved,
        check=noise_is_as_large_as_planned,
        game="cells",
        law=Law(noise=0.5),
    ),
    Fault(
        area="signals",
        plant=no_noise_on_empty_cells,
        check=noise_is_as_large_as_planned,
        game="cells",
        law=Law(noise=0.0),
    ),
    Fault(
        area="signals",
        plant=keys_selected_by_true_counts,
        check=a_key_of_one_user_stays_hidden,
        game="keys",
        law=Law(noise=0.0),
    ),
    Fault(
        area="signals",
        plant=rows_of_a_user_unbounded,
        check=a_user_adds_one_row,
        game="cells",
        law=Law(amplitude=5.0),
    ),
    Fault(
        area="signals",
        plant=answers_random_too_seldom,
        check=answers_are_random_as_often_as_stated,
        game="answers",
        law=Law(noise=1 / 2.318),
    ),
    Fault(
        area="signals",
        plant=whole_noise_of_a_third_of_the_scale,
        check=whole_noise_has_its_scale,
        game="summaries",
        law=Law(noise=1 / 3),
    ),
    Fault(
        area="signals",
        plant=checkpoint_chosen_on_private_rows_uncharged,
        check=looking_at_private_rows_is_charged,
    ),
)
"""Of what is released or reported; an audit of outputs does not look into ledgers."""
