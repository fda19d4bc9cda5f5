"""`NoisyTable`: the one bounded noisy group-by. Vocabularies, quantiles, counters and explorations are readings of it.

A release bounds what one unit can bring, then groups, then adds noise. Of each unit at most ``rows_per_unit`` = m rows
are kept, chosen at random by the unit itself; a kept row adds 1 to one cell of each table. So a unit changes a table,
as a vector of cells, by at most m in L2 (all its rows in one cell), and with noise N(0, (z m)^2) on every cell a table
is a Gaussian mechanism of noise multiplier z. All tables of a release are made in one pass and are one charge.

Which cells are shown is public where their keys are declared: then every one has noise, also an empty one. Where keys
are found in the log, one is shown only if its noisy count is at least the threshold `selection_threshold`, under which
a key that only one unit has stays with probability 1 - delta_s (Korolova et al. 2009 for Laplace; Wilkins et al. 2024,
arXiv 2202.01100, for Gaussian noise). The two parts compose: a Gaussian and an event of (0, delta_s).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from dp_accounting import dp_event
from numpy.typing import NDArray
from scipy.stats import norm

from accounting import accountant, calibrate, mechanisms
from accounting.budget import EXAMPLE, Budget
from accounting.ledger import Ledger
from privads.charge import open_charge
from privads.logs.database import check_database
from privads.logs.reader import telling_no_row
from privads.logs.schema import Schema
from privads.noise import Randomness
from privads.signals.counting import count
from privads.signals.query import Key, Query, Source

SELECTION_SHARE = 0.1
"""The share of a budget's delta that pays for finding keys in the log, where any table does."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisyTable:
    """Noisy counts by key. values: per measure (cells,). noise_std: of every value. threshold: of the noisy number of
    rows, under which a cell whose key was found in the log is not shown; None where keys were declared.

    Anything computed from it is free: the release has paid. `negative` values are left as they are, since cutting them
    off would bias every sum.
    """

    query: Query
    keys: tuple[Key, ...]
    values: Mapping[str, Floats]
    noise_std: float
    threshold: float | None

    @property
    def rows(self) -> Floats:
        """(cells,) noisy number of rows."""
        return np.asarray(sum(self.values[measure] for measure in self.query.measures))

    @property
    def rows_std(self) -> float:
        """The noise's standard deviation in `rows`."""
        return self.noise_std * math.sqrt(len(self.query.measures))


@dataclass(frozen=True, kw_only=True)
class Release:
    """The plan of some tables from one log under one budget: what is executed, and how much noise it needs.

    Made by `of`, from public facts only. The budget is split so that every table has the same noise multiplier
    ``sqrt(tables) z``, where z is that of all of them together.
    """

    queries: tuple[Query, ...]
    budget: Budget
    rows_per_unit: int
    noise_multiplier: float

    @classmethod
    def of(cls, queries: Sequence[Query], budget: Budget, *, rows_per_unit: int) -> "Release":
        """Returns the release with the least noise that keeps ``budget``."""
        if not queries:
            raise ValueError("a release needs a table")
        if rows_per_unit < 1:
            raise ValueError(f"rows_per_unit must be at least 1, got {rows_per_unit}")
        if budget.unit == EXAMPLE and rows_per_unit != 1:
            raise ValueError(f"under unit 'example' rows_per_unit is 1, got {rows_per_unit}")
        if budget.neighbors != "add-remove":
            raise ValueError(f"a release of tables is accounted under add-remove, got {budget.neighbors}")

        def event(noise_multiplier: float) -> dp_event.DpEvent:
            return _event(queries, noise_multiplier, budget.delta)

        least = calibrate.noise_multiplier(event, budget)
        return cls(queries=tuple(queries), budget=budget, rows_per_unit=rows_per_unit, noise_multiplier=least)

    @property
    def event(self) -> dp_event.DpEvent:
        """What is executed: a Gaussian for each table, and what finding keys in the log costs."""
        return _event(self.queries, self.noise_multiplier, self.budget.delta)

    @property
    def noise_std(self) -> float:
        """The noise's standard deviation on every value of every table."""
        return self.noise_multiplier * self.rows_per_unit

    @property
    def spent(self) -> accountant.Bounds:
        """The epsilon of `event` at the budget's delta."""
        return accountant.epsilon(self.event, delta=self.budget.delta, neighbors=self.budget.neighbors)

    def threshold(self, query: Query) -> float | None:
        """Returns the least noisy number of rows at which a key is shown that was found in the log."""
        if query.declared is not None:
            return None
        share = SELECTION_SHARE * self.budget.delta / _found(self.queries)
        noise_std = self.noise_std * math.sqrt(len(query.measures))
        return selection_threshold(noise_std=noise_std, rows_per_unit=self.rows_per_unit, delta=share)

    def run(
        self, source: Source, *, ledger: Ledger | None, purpose: str, insecure_seed: int | None = None
    ) -> "Released":
        """Returns the tables, in the order of the queries: checks, charges the ledger, reads, in this order."""
        schema, unit = source.schema, self.budget.unit
        if insecure_seed is not None and not schema.public:
            raise ValueError(f"insecure_seed is refused: data set {schema.dataset!r} is not declared public")
        if source.features is not None:
            raise ValueError("these rows are read through fitted features: pass the log without them")
        if ledger is None and not schema.public:
            raise ValueError(f"reading data set {schema.dataset!r} needs its ledger: pass ledger=Ledger.open(URL)")
        schema.check_unit(unit)
        schema.check_history(unit)
        for query in self.queries:
            query.check(schema)
        randomness = Randomness(insecure_seed=insecure_seed, secure=insecure_seed is None)
        check_database()
        source.check()
        entry = None
        if ledger is not None:
            cost = self.spent.upper
            entry = open_charge(ledger, schema.dataset, self.event, self.budget, epsilon=cost, purpose=purpose)
        with telling_no_row("the rows cannot be counted as the schema says", public=schema.public):
            counted = count(source, self.queries, unit_columns=_owners(schema, unit), rows_per_unit=self.rows_per_unit)
        tables = tuple(
            _with_noise(query, found, self.noise_std, self.threshold(query), randomness)
            for query, found in zip(self.queries, counted, strict=True)
        )
        if ledger is not None and entry is not None:
            ledger.commit(entry)
        return Released(tables=tables, entry=None if entry is None else str(entry.id))


@dataclass(frozen=True, kw_only=True, eq=False)
class Released:
    """What a release made. entry: of the ledger that was charged."""

    tables: tuple[NoisyTable, ...]
    entry: str | None


def selection_threshold(*, noise_std: float, rows_per_unit: int, delta: float) -> float:
    """Returns the least t such that keys only one unit has are all below t with probability at least 1 - delta.

    A unit's m rows may fall on k keys, c_j on each. The chance that one of them shows is at most
    ``sum_j Q((t - c_j) / s)``, Q the normal's upper tail; where t >= m that is convex in the c_j, so it is largest
    with one of them at m - k + 1 and all others at 1. t is the least for which no k in 1 .. m exceeds delta, by
    bisection, rounded up.

    >>> round(selection_threshold(noise_std=1.0, rows_per_unit=1, delta=norm.sf(5.0)), 6)
    6.0
    """
    rows = np.arange(1, rows_per_unit + 1)  # k, the number of keys

    def worst(t: float) -> float:
        first, others = norm.sf((t - (rows_per_unit - rows + 1)) / noise_std), norm.sf((t - 1) / noise_std)
        return float((first + (rows - 1) * others).max())

    low, high = float(rows_per_unit), rows_per_unit + noise_std
    while worst(high) > delta:
        high += high - low
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if worst(middle) > delta else (low, middle)
    return high


def _found(queries: Sequence[Query]) -> int:
    return sum(query.declared is None for query in queries)


def _event(queries: Sequence[Query], noise_multiplier: float, delta: float) -> dp_event.DpEvent:
    tables = mechanisms.repeated(mechanisms.gaussian(noise_multiplier=noise_multiplier), len(queries))
    if not _found(queries):
        return tables
    return mechanisms.composed(tables, mechanisms.approximate_dp(epsilon=0.0, delta=SELECTION_SHARE * delta))


def _owners(schema: Schema, unit: str) -> int:
    """Returns how many columns name the unit; 0 where each row is one by itself."""
    return 0 if unit == EXAMPLE else len(schema.unit)


def _with_noise(
    query: Query, counted: pd.DataFrame, noise_std: float, threshold: float | None, randomness: Randomness
) -> NoisyTable:
    """Returns the table with noise on all declared cells, or with those of the found ones that reach the threshold."""
    width = len(query.by)
    rows = counted.iloc[:, :width].itertuples(index=False) if width else [()]
    exact = {_key(row): position for position, row in enumerate(rows)}
    declared = query.declared
    nothing: Key = (None,) * width
    # A missing value is no secret key: its cell is shown always, with noise, as a declared one is.
    keys = declared if declared is not None else tuple(sorted({*exact, nothing}, key=_order))
    places = np.array([exact.get(key, -1) for key in keys], dtype=np.int64)
    values = {}
    for measure in query.measures:
        counts = np.append(counted[measure].to_numpy(dtype=np.float64), 0.0)  # -1 is the last: nothing was counted
        values[measure] = counts[places] + randomness.normal(len(keys), noise_std=noise_std)
    table = NoisyTable(query=query, keys=tuple(keys), values=values, noise_std=noise_std, threshold=threshold)
    if threshold is None:
        return table
    shown = (table.rows >= threshold) | np.array([key == nothing for key in keys])
    chosen = tuple(key for key, show in zip(keys, shown, strict=True) if show)
    return NoisyTable(
        query=query,
        keys=chosen,
        values={measure: value[shown] for measure, value in values.items()},
        noise_std=noise_std,
        threshold=threshold,
    )


def _key(row: Iterable[Any]) -> Key:
    return tuple(None if pd.isna(one) else one if isinstance(one, str) else int(one) for one in row)


def _order(key: Key) -> tuple[tuple[bool, str], ...]:
    """Sorts keys by what they are: the order in which they came out of the rows would tell of the rows."""
    return tuple((one is not None, "" if one is None else str(one)) for one in key)
