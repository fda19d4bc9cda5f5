"""`Release`: the one bounded noisy group-by, from a log or where rows lie, under one budget and as one charge.

A release bounds what one unit can bring (`Bounds`), then groups, then adds noise. A row adds 1 to one cell of the
counts of each table, and whole steps to its sums, so a unit moves each of these by at most what `Bounds.sensitivity`
says, D.
With noise of standard deviation ``z D / sqrt(a)`` on every cell, a the part's share of the budget and all shares adding
up to 1, the release is a Gaussian mechanism of noise multiplier z.

Noise is a normal number rounded to a whole one: adding it to whole numbers is rounding the Gaussian mechanism's result,
so its accounting holds as it is, and floating-point numbers tell nothing. It is drawn within a total variation distance
d of that; over all draws ``(1 + exp(epsilon)) draws d`` is charged as delta, which is far below any in use.

Which cells are shown is public where their keys are declared: then every one has noise, also an empty one. Where keys
are found in the log, one is shown only if its noisy count is at least the threshold `selection_threshold`, under which
a key that only one unit has stays with probability 1 - delta_s (Korolova et al. 2009 for Laplace; Wilkins et al. 2024,
arXiv 2202.01100, for Gaussian noise). The two parts compose: a Gaussian and an event of (0, delta_s).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from dp_accounting import dp_event
from numpy.typing import NDArray
from scipy.stats import norm

from accounting import accountant, calibrate, mechanisms
from accounting.budget import EXAMPLE, Budget
from accounting.ledger import Ledger
from privads.charge import charged, check_may_read
from privads.logs.database import check_database
from privads.logs.reader import telling_no_row
from privads.logs.schema import Schema
from privads.noise import Backend, Randomness
from privads.noise_tables import check_noise_std
from privads.signals.bounds import Bounds
from privads.signals.counting import Counted
from privads.signals.query import Key, Query, Source
from privads.signals.rows import count
from privads.signals.table import NoisyTable, Terms, sensitivities

SELECTION_SHARE = 0.1
"""The share of a budget's delta that pays for finding keys in the log, where any table does."""

MOST_DRAWS = 2**36
"""Draws of noise of one release: more do not fit in any memory."""

DISTANCE = 2.0**-100
"""Of one draw, in total variation, from the law that is accounted."""

MOST_NOISE_SHARE = 0.01
"""Of a budget's delta, what the draws' distance may take."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """The plan of some tables from one log under one budget: what is executed, and how much noise it needs.

    Made by `of`, from public facts only. shares: of the budget, per table and part of it (its counts, each of its
    sums); all add up to 1. noise_multiplier: of all tables together. named_by: see `Terms`.
    """

    queries: tuple[Query, ...]
    budget: Budget
    bounds: Bounds
    shares: tuple[tuple[float, ...], ...]
    noise_multiplier: float
    backend: Backend = "table"
    named_by: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        queries: Sequence[Query],
        budget: Budget,
        *,
        rows_per_unit: int,
        rows_per_key: int | None = None,
        keys_per_unit: int | None = None,
        shares: Sequence[Sequence[float]] | None = None,
        backend: Backend = "table",
        named_by: tuple[str, ...] = (),
    ) -> "Release":
        """Returns the release with the least noise that keeps ``budget``.

        rows_per_unit, rows_per_key, keys_per_unit: see `Bounds`. shares: by default equal ones; `allocation` gives
        better ones where public figures say how large the cells are. backend: "opendp" draws exact discrete Gaussian
        noise, for declared keys; it is accounted by zCDP, which needs a few percent more of it.
        """
        if not queries:
            raise ValueError("a release needs a table")
        bounds = Bounds(rows=rows_per_unit, rows_per_key=rows_per_key, keys=keys_per_unit)
        if budget.unit == EXAMPLE and bounds.rows != 1:
            raise ValueError(f"under unit 'example' rows_per_unit is 1, got {bounds.rows}")
        if budget.neighbors != "add-remove":
            raise ValueError(f"a release of tables is accounted under add-remove, got {budget.neighbors}")
        if backend == "opendp" and _found(queries):
            raise ValueError('backend "opendp" is for declared keys: declare them, or leave the backend out')
        if backend == "table" and drawing_delta(budget.epsilon) > MOST_NOISE_SHARE * budget.delta:
            most = math.floor(math.log(MOST_NOISE_SHARE * budget.delta / (MOST_DRAWS * DISTANCE)))
            raise ValueError(
                f"epsilon must be at most {most} for tables at delta {budget.delta:g}, got {budget.epsilon:g}"
            )
        given = _shares(queries, shares)

        def event(noise_multiplier: float) -> dp_event.DpEvent:
            return _event(queries, given, noise_multiplier, budget, backend)

        least = calibrate.noise_multiplier(event, budget)
        made = cls(
            queries=tuple(queries),
            budget=budget,
            bounds=bounds,
            shares=given,
            noise_multiplier=least,
            backend=backend,
            named_by=named_by,
        )
        for std in {std for stds in made.noise_stds for std in stds}:
            check_noise_std(std)
        return made

    @property
    def event(self) -> dp_event.DpEvent:
        """What is executed: a Gaussian for each part, what drawing noise costs, and what finding keys costs."""
        return _event(self.queries, self.shares, self.noise_multiplier, self.budget, self.backend)

    @property
    def noise_stds(self) -> tuple[tuple[float, ...], ...]:
        """The noise's standard deviation, per table and part of it."""
        return tuple(
            tuple(
                self.noise_multiplier / math.sqrt(share) * most
                for share, most in zip(shares, sensitivities(query, self.bounds), strict=True)
            )
            for query, shares in zip(self.queries, self.shares, strict=True)
        )

    @property
    def noise_std(self) -> float:
        """The noise's standard deviation on every count of the first table; with equal shares, of every table."""
        return self.noise_stds[0][0]

    @property
    def rows_per_unit(self) -> int:
        """The most rows that are counted of one unit."""
        return self.bounds.rows

    @property
    def spent(self) -> accountant.Bounds:
        """The epsilon of `event` at the budget's delta."""
        return accountant.epsilon(self.event, delta=self.budget.delta, neighbors=self.budget.neighbors)

    @property
    def thresholds(self) -> tuple[float | None, ...]:
        """Per table the least noisy number of rows at which a key is shown that was found in the log.

        A whole number: each of the counts that make the rows was rounded, by at most 1/2. None where keys are declared.
        """
        share = SELECTION_SHARE * self.budget.delta / max(_found(self.queries), 1)
        made: list[float | None] = []
        for query, stds in zip(self.queries, self.noise_stds, strict=True):
            parts = len(query.counted)
            if query.keys is not None or query.dense:
                made.append(None)
            else:
                least = selection_threshold(noise_std=stds[0] * math.sqrt(parts), bounds=self.bounds, delta=share)
                made.append(math.ceil(least + parts / 2))
        return tuple(made)

    def run(
        self, source: Source, *, ledger: Ledger | None, purpose: str, insecure_seed: int | None = None
    ) -> "Released":
        """Returns the tables, in the order of the queries: checks, charges the ledger, reads, in this order."""
        schema, unit = source.schema, self.budget.unit
        check_may_read(schema, ledger, insecure_seed=insecure_seed)
        if source.features is not None:
            raise ValueError("these rows are read through fitted features: pass the log without them")
        schema.check_unit(unit)
        schema.check_history(unit)
        for query in self.queries:
            query.check(schema)
        randomness = Randomness(insecure_seed=insecure_seed)
        _drawn(randomness, 1, 1.0, self.backend)  # what it cannot do is refused here
        check_database()
        source.check()
        event, cost = self.event, None if ledger is None else self.spent.upper
        with charged(ledger, schema.dataset, event, self.budget, epsilon=cost, purpose=purpose) as entry:
            terms = Terms(
                dataset=schema.dataset,
                event=event,
                budget=self.budget,
                bounds=self.bounds,
                law="gaussian" if self.backend == "table" else "discrete-gaussian",
                entry=None if entry is None else str(entry.id),
                named_by=self.named_by,
            )
            with telling_no_row("the rows cannot be counted as the schema says", public=schema.public):
                counted = count(source, self.queries, unit_columns=_owners(schema, unit), bounds=self.bounds)
            tables = tuple(
                _with_noise(query, found, stds, threshold, randomness, self.backend, terms)
                for query, found, stds, threshold in zip(
                    self.queries, counted, self.noise_stds, self.thresholds, strict=True
                )
            )
        return Released(tables=tables, entry=terms.entry)


@dataclass(frozen=True, kw_only=True, eq=False)
class Released:
    """What a release made. entry: of the ledger that was charged."""

    tables: tuple[NoisyTable, ...]
    entry: str | None


def selection_threshold(*, noise_std: float, bounds: Bounds, delta: float) -> float:
    """Returns the least t such that keys only one unit has are all below t with probability at least 1 - delta.

    The chance that one of a unit's keys, with c_j rows each, shows is at most ``sum_j Q((t - c_j) / s)``, Q the
    normal's upper tail; where t is at least the most rows in one cell, that is convex in the c_j, so it is largest at
    one of `Bounds.spreads`. t is the least for which none of them exceeds delta, by bisection, rounded up.

    >>> round(selection_threshold(noise_std=1.0, bounds=Bounds(), delta=norm.sf(5.0)), 6)
    6.0
    """
    most = bounds.per_key
    full, rest, single = bounds.spreads().T

    def worst(t: float) -> float:
        tails = full * norm.sf((t - most) / noise_std) + single * norm.sf((t - 1) / noise_std)
        return float((tails + np.where(rest > 0, norm.sf((t - rest) / noise_std), 0.0)).max())

    low, high = float(most), most + noise_std
    while worst(high) > delta:
        high += high - low
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if worst(middle) > delta else (low, middle)
    return high


def _found(queries: Sequence[Query]) -> int:
    return sum(query.keys is None and not query.dense for query in queries)


def _shares(queries: Sequence[Query], shares: Sequence[Sequence[float]] | None) -> tuple[tuple[float, ...], ...]:
    parts = [len(query.parts) for query in queries]
    if shares is None:
        return tuple((1 / sum(parts),) * own for own in parts)
    given = tuple(tuple(float(one) for one in own) for own in shares)
    if [len(own) for own in given] != parts:
        raise ValueError("shares must have one number for the counts, and for each sum, of every table")
    flat = [one for own in given for one in own]
    if not all(one > 0 for one in flat) or not math.isclose(sum(flat), 1.0, rel_tol=1e-9):
        raise ValueError(f"shares must be positive and add up to 1, got {sum(flat):g}")
    return given


def _event(
    queries: Sequence[Query],
    shares: Sequence[Sequence[float]],
    noise_multiplier: float,
    budget: Budget,
    backend: Backend,
) -> dp_event.DpEvent:
    delta = SELECTION_SHARE * budget.delta if _found(queries) else 0.0
    flat = [noise_multiplier / math.sqrt(one) for own in shares for one in own]
    each = [
        mechanisms.zcdp(rho=0.5 / one**2) if backend == "opendp" else mechanisms.gaussian(noise_multiplier=one)
        for one in flat
    ]
    tables = mechanisms.repeated(each[0], len(each)) if len(set(flat)) == 1 else mechanisms.composed(*each)
    if backend == "opendp":
        return tables
    drawing = mechanisms.approximate_dp(epsilon=0.0, delta=delta + drawing_delta(budget.epsilon))
    return mechanisms.composed(tables, drawing)


def drawing_delta(epsilon: float) -> float:
    """Returns what all draws of a release add to the delta of an epsilon: ``(1 + exp(epsilon)) draws d``."""
    return (1 + math.exp(min(epsilon, 700.0))) * MOST_DRAWS * DISTANCE


def _owners(schema: Schema, unit: str) -> int:
    """Returns how many columns name the unit; 0 where each row is one by itself."""
    return 0 if unit == EXAMPLE else len(schema.unit)


def _with_noise(
    query: Query,
    counted: Counted,
    stds: Sequence[float],
    threshold: float | None,
    randomness: Randomness,
    backend: Backend,
    terms: Terms,
) -> NoisyTable:
    """Returns the table with noise on all declared cells, or with those of the found ones that reach the threshold."""
    listed, places, cells = _cells(query, counted)
    values, noise = {}, {}
    for measure, std in query.by_measure(stds).items():
        exact = np.zeros(cells + 1, dtype=np.int64)  # the last takes what is not declared
        np.add.at(exact, places, counted.values[measure])  # two cells that a database tells apart may have one key
        values[measure] = (exact[:cells] + _drawn(randomness, cells, std, backend)).astype(np.float64)
        noise[measure] = np.broadcast_to(np.float64(std), cells)
    table = NoisyTable(query=query, values=values, noise_std=noise, terms=terms, listed=listed, threshold=threshold)
    if threshold is None or listed is None:
        return table
    shown = (table.rows >= threshold) | np.array([set(key) <= {None} for key in listed])
    return replace(
        table,
        listed=tuple(key for key, show in zip(listed, shown, strict=True) if show),
        values={measure: value[shown] for measure, value in values.items()},
        noise_std={measure: std[shown] for measure, std in noise.items()},
    )


def _drawn(randomness: Randomness, cells: int, noise_std: float, backend: Backend) -> NDArray[np.int64]:
    if backend == "opendp":
        return randomness.discrete_gaussian(cells, noise_std=noise_std, backend=backend)
    return randomness.rounded_gaussian(cells, noise_std=noise_std)


def _cells(query: Query, counted: Counted) -> tuple[tuple[Key, ...] | None, NDArray[np.int64], int]:
    """Returns (keys of the cells, None where they are all of public places; the counted ones' places; their number).

    What was counted and is not among the cells has the place behind the last.
    """
    if query.dense:
        return None, counted.places, query.cells
    exact = _keys(query, counted)
    # A missing value is no secret key: its cell is shown always, with noise, as a declared one is.
    nothing: Key = (None,) * len(query.by)
    listed = query.keys if query.keys is not None else tuple(sorted({*exact, nothing}, key=_order))
    index = {key: place for place, key in enumerate(listed)}
    return listed, np.array([index.get(key, len(listed)) for key in exact], dtype=np.int64), len(listed)


def _keys(query: Query, counted: Counted) -> list[Key]:
    public = iter(np.unravel_index(counted.places, query.shape) if query.shape else ())
    columns: list[list[str | int | None]] = []
    for one in query.by:
        if isinstance(one, str):
            columns.append([None if value is None else str(value) for value in counted.found[one]])
        else:
            names = one.names
            columns.append([names[place] for place in next(public)])
    return list(zip(*columns, strict=True)) if columns else [()] * len(counted.places)


def _order(key: Key) -> tuple[tuple[bool, str], ...]:
    """Sorts keys by what they are: the order in which they came out of the rows would tell of the rows."""
    return tuple((one is not None, "" if one is None else str(one)) for one in key)
