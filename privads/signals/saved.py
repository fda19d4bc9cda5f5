"""Noisy tables as Parquet files that carry what they are: query, noise, event, budget and the ledger's entry.

A file has a column for each part of the key ("by site": a found value, or the number of a public place, with "value of
site" beside it for people), one for each measure, and where the noise is not the same in all cells "std of" each. Its
facts are `attrs` in pandas. What is read back is checked as if it came from a stranger: a table without its facts, with
another number of cells, or whose noise is not that of its event is refused.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dp_accounting import dp_event
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.stats import norm

from accounting import accountant, mechanisms
from accounting.budget import Budget, Neighbors
from privads.config import ConfigError, parse_model
from privads.logs.labels import Facts
from privads.new_folder import new_file, new_folder
from privads.signals.bounds import Bounds
from privads.signals.query import Floats, Grid, Key, OneOf, Part, Query, Sum
from privads.signals.table import Law, NoisyTable, Terms, by_release, sensitivities

METADATA = b"privads.noisy_table"
"""The key of the facts in a file's metadata."""

ATTRS = b"PANDAS_ATTRS"
"""What pandas reads as a frame's `attrs`: so an analyst sees the noise and the budget, which no column says."""

CLOSE = 1e-9
"""Relative: noise and event are both written in full."""


class PartFacts(Facts):
    """A part of a key: with edges a grid, with values one of these, else what is found."""

    column: str
    edges: tuple[float, ...] | None = None
    values: tuple[str, ...] | None = None

    @classmethod
    def of(cls, part: Part) -> Self:
        """Returns the facts of a part."""
        if isinstance(part, str):
            return cls(column=part)
        return cls(column=part.column, edges=getattr(part, "edges", None), values=getattr(part, "values", None))

    @property
    def part(self) -> Part:
        """The part that these facts are of."""
        if self.edges is not None:
            return Grid(column=self.column, edges=self.edges)
        return self.column if self.values is None else OneOf(column=self.column, values=self.values)


class _Sum(Facts):
    column: str
    most: float
    step: float
    most_of_unit: float | None = None


class _Budget(Facts):
    epsilon: float
    delta: float
    unit: str
    neighbors: Neighbors


class _Bounds(Facts):
    rows: int
    rows_per_key: int | None = None
    keys: int | None = None


class _Table(Facts):
    """The facts of one file. listed: the keys were declared one by one."""

    format: Literal[1]
    dataset: str
    by: tuple[PartFacts, ...]
    label: str | None
    sums: tuple[_Sum, ...] = ()
    counts: bool = True
    listed: bool = False
    threshold: float | None = None
    combined: bool = False
    noise_std: dict[str, float] | None = Field(description="per measure; None: a column of each has it")
    law: Law
    event: str
    budget: _Budget
    bounds: _Bounds
    entry: str | None = None
    named_by: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _noise_is_positive(self) -> Self:
        if self.noise_std is not None and not all(0 < one < math.inf for one in self.noise_std.values()):
            raise ValueError("noise_std must be positive and finite")
        return self

    def query(self, keys: tuple[Key, ...] | None) -> Query:
        sums = tuple(Sum(**one.model_dump()) for one in self.sums)
        by = tuple(one.part for one in self.by)
        return Query(by=by, label=self.label, sums=sums, counts=self.counts, keys=keys if self.listed else None)

    def terms(self, event: dp_event.DpEvent) -> Terms:
        return Terms(
            dataset=self.dataset,
            event=event,
            budget=Budget(**self.budget.model_dump()),
            bounds=Bounds(**self.bounds.model_dump()),
            law=self.law,
            entry=self.entry,
            named_by=self.named_by,
        )


def save_table(table: NoisyTable, file: Path) -> None:
    """Write the table; the file must not exist, and appears whole or not at all."""
    query, terms, budget = table.query, table.terms, table.terms.budget
    alike = all(len(std) == 0 or std.min() == std.max() for std in table.noise_std.values())
    facts = _Table(
        format=1,
        dataset=terms.dataset,
        by=tuple(PartFacts.of(one) for one in query.by),
        label=query.label,
        sums=tuple(
            _Sum(column=one.column, most=one.most, step=one.step, most_of_unit=one.most_of_unit) for one in query.sums
        ),
        counts=query.counts,
        listed=query.keys is not None,
        threshold=table.threshold,
        combined=table.combined,
        noise_std={name: float(std.max()) for name, std in table.noise_std.items()} if alike else None,
        law=terms.law,
        event=mechanisms.to_json(terms.event),
        budget=_Budget(epsilon=budget.epsilon, delta=budget.delta, unit=budget.unit, neighbors=budget.neighbors),
        bounds=_Bounds(rows=terms.bounds.rows, rows_per_key=terms.bounds.rows_per_key, keys=terms.bounds.keys),
        entry=terms.entry,
        named_by=terms.named_by,
    )
    columns: dict[str, pa.Array] = dict(_key_columns(table))
    columns |= {name: pa.array(table.values[name]) for name in query.measures}
    if not alike:
        columns |= {f"std of {name}": pa.array(np.asarray(table.noise_std[name])) for name in query.measures}
    written = facts.model_dump_json(exclude={"event", "by"}, exclude_none=True).encode()
    whole = pa.table(columns).replace_schema_metadata({METADATA: facts.model_dump_json().encode(), ATTRS: written})
    if file.exists():
        raise ConfigError(f"{file} exists already: choose another place, or remove it")
    with new_file(file) as draft:
        pq.write_table(whole, draft)


def load_table(file: Path) -> NoisyTable:
    """Returns the table in ``file``; raises `ConfigError`, one line, where it is not what `save_table` writes."""
    try:
        return _loaded(file)
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, pa.ArrowException) as error:
        raise ConfigError(f"{file}: {_short(error)}") from None


def save_tables(tables: Sequence[NoisyTable], folder: Path) -> None:
    """Write a release's tables to a new folder, each to a file named by its number and what it is by.

    The folder appears whole or not at all; of tables that nobody else holds see `kept.keep_tables`.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists already: choose another place, or remove it")
    with new_folder(folder) as draft:
        for number, table in enumerate(tables):
            save_table(table, draft / f"{number:03}-{_name(table.query)}.parquet")


def load_tables(place: Path) -> tuple[NoisyTable, ...]:
    """Returns the tables in a folder that `save_tables` wrote, in their order, or the one of a file."""
    if not place.exists():
        raise ConfigError(f"there is no file or folder {place}")
    files = sorted(place.glob("*.parquet")) if place.is_dir() else [place]
    if not files:
        raise ConfigError(f"folder {place} holds no table (.parquet)")
    tables = tuple(load_table(file) for file in files)
    for terms, own in by_release(tables):
        try:
            _check_noise(own)
        except ValueError as error:
            raise ConfigError(f"{place}, the tables of {terms.entry or 'no entry'}: {error}") from None
    return tables


def _loaded(file: Path) -> NoisyTable:
    if not file.is_file():
        raise ConfigError(f"there is no file {file}")
    stored = pq.read_table(file)
    written = (stored.schema.metadata or {}).get(METADATA)
    if written is None:
        raise ConfigError(f"{file} is no noisy table: what its noise is and what it cost is not written in it")
    facts = parse_model(_Table, json.loads(written), source=f"{file}: what is written of this table")
    values = {name: _numbers(stored, name) for name in facts.query(()).measures}
    keys = _keys(stored, facts)
    query = facts.query(keys)
    if query.dense and stored.num_rows != query.cells:
        raise ValueError(f"the table has {stored.num_rows} cells, and its public places make {query.cells}")
    if facts.noise_std is None:
        noise = {name: _numbers(stored, f"std of {name}") for name in query.measures}
    else:
        noise = {name: np.broadcast_to(facts.noise_std[name], stored.num_rows) for name in query.measures}
    if any(len(std) and not std.min() > 0 for std in noise.values()):
        raise ValueError("noise_std must be positive")
    event = mechanisms.from_json(facts.event)
    table = NoisyTable(
        query=query,
        values=values,
        noise_std=noise,
        terms=facts.terms(event),
        listed=None if query.dense else keys,
        threshold=facts.threshold,
        combined=facts.combined,
    )
    _check_cost(table.terms)
    _check_noise([table])
    _check_threshold(table)
    return table


def _key_columns(table: NoisyTable) -> list[tuple[str, pa.Array]]:
    query = table.query
    columns: list[tuple[str, pa.Array]] = []
    if table.listed is None:
        found = np.unravel_index(np.arange(query.cells), query.shape) if query.by else ()
        for i, part in enumerate(query.by):
            columns += _place_columns(query, i, part, found[i])
        return columns
    for i, part in enumerate(query.by):
        own = [key[i] for key in table.listed]
        if isinstance(part, str):
            columns.append((_by(query, i), pa.array(own, type=pa.string())))
        else:
            names = {name: place for place, name in enumerate(part.names)}
            columns += _place_columns(query, i, part, np.array([names[one] for one in own], dtype=np.int64))
    return columns


def _place_columns(query: Query, i: int, part: Part, places: NDArray[np.integer]) -> list[tuple[str, pa.Array]]:
    """Returns the numbers of the places, which are read back, and what they are called, which is for people."""
    called = [] if isinstance(part, str) else in_words(part)
    named = pa.array(places, type=pa.int32(), mask=places >= len(called))  # the place behind is that of missing values
    names = pa.DictionaryArray.from_arrays(named, pa.array(called, type=pa.string()))
    return [
        (_by(query, i), pa.array(places, type=pa.int32())),
        (f"value of {_by(query, i).removeprefix('by ')}", names),
    ]


def in_words(part: Grid | OneOf) -> list[str]:
    """Returns what the places are called for people, but for the last, that of missing values.

    >>> in_words(Grid(column="bid", edges=(0.0, 1.0, 5.0, 10.0)))
    ['below 1', '1 to below 5', '5 or more']
    >>> in_words(OneOf(column="site", values=("a", "b")))
    ['a', 'b', 'any other']
    """
    if isinstance(part, OneOf):
        return [*part.values, "any other"]
    inner = [f"{edge:.6g}" for edge in part.edges[1:-1]]
    if not inner:
        return ["any number"]
    between = [f"{low} to below {high}" for low, high in itertools.pairwise(inner)]
    return [f"below {inner[0]}", *between, f"{inner[-1]} or more"]


def _keys(stored: pa.Table, facts: _Table) -> tuple[Key, ...]:
    """Returns the keys of a table that lists them; of one with all cells only checks that they are in order."""
    query = facts.query(())
    columns: list[list[str | int | None]] = []
    for i, part in enumerate(query.by):
        column = stored.column(_by(query, i))
        if isinstance(part, str):
            if not (pa.types.is_string(column.type) or pa.types.is_null(column.type)):
                raise ValueError(f"column {_by(query, i)!r} must be text")
            columns.append(column.to_pylist())
            continue
        places = _numbers(stored, _by(query, i)).astype(np.int64)
        if len(places) and not (places.min() >= 0 and places.max() < len(part.names)):
            raise ValueError(f"column {_by(query, i)!r} has a place that there is not")
        if not facts.listed and query.by and not any(isinstance(one, str) for one in query.by):
            shape = tuple(len(one.names) for one in query.by if not isinstance(one, str))
            expected = np.unravel_index(np.arange(math.prod(shape)), shape)[i]
            if not np.array_equal(places, expected):
                raise ValueError("the cells are not in the order of their places, or some are missing")
        else:
            columns.append([part.names[place] for place in places])
    keys = tuple(zip(*columns, strict=True)) if columns else ()
    if len(set(keys)) < len(keys):
        raise ValueError("a key comes twice")
    return keys


def _check_cost(terms: Terms) -> None:
    """Refuse terms whose event costs more than they say."""
    budget = terms.budget
    spent = accountant.epsilon(terms.event, delta=budget.delta, neighbors=budget.neighbors).upper
    if not spent <= budget.epsilon * (1 + 1e-6):
        raise ValueError(f"the event costs epsilon {spent:.4g}, and the table says {budget}")


def _check_noise(tables: Sequence[NoisyTable]) -> None:
    """Refuse tables of one release whose noise is not the one that their event accounts.

    Every part of a table (its counts together, each sum) takes a mechanism of the event that no other part took. Of
    tables that were put together no cell has less noise than the whole event, nor more than its noisiest part.
    """
    terms = tables[0].terms
    left = [[multiplier, count] for multiplier, count in _multipliers(terms)]
    if not left:
        raise ValueError(f"the event is not of {terms.law} noise, which the table says it has")
    most = max(multiplier for multiplier, _ in left)
    least = sum(count / multiplier**2 for multiplier, count in left) ** -0.5
    for table, names, moved in _parts(tables):
        if sum(count for _, count in left) < 1:
            raise ValueError("the event is of fewer counts and sums than the release's tables have")
        stds = np.unique(np.concatenate([table.noise_std[name] for name in names])) / moved
        if table.combined:
            if len(stds) and not least * (1 - CLOSE) <= stds[0] <= stds[-1] <= most * (1 + CLOSE):
                worse = "more" if stds[-1] > most * (1 + CLOSE) else "less"
                raise ValueError(f"the noise of {names[0]!r} is {worse} than its event is of")
            next(one for one in left if one[1] >= 1)[1] -= 1
            continue
        took = min((one for one in left if one[1] >= 1), key=lambda one: abs(one[0] - stds[0]) if len(stds) else 0.0)
        if len(stds) and not (stds[-1] <= stds[0] * (1 + CLOSE) and math.isclose(stds[0], took[0], rel_tol=CLOSE)):
            raise ValueError(f"the noise of {names[0]!r} is {stds[0] * moved:.6g}, and its event is of other noise")
        took[1] -= 1


def _multipliers(terms: Terms) -> list[tuple[float, int]]:
    """Returns the noise multipliers that an event is of, each with how often."""
    parts = mechanisms.parts(terms.event)
    if terms.law == "gaussian":
        return [(one.noise_multiplier, count) for one, count in parts if isinstance(one, dp_event.GaussianDpEvent)]
    return [(math.sqrt(0.5 / one.rho), count) for one, count in parts if isinstance(one, dp_event.ZCDpEvent)]


def _parts(tables: Sequence[NoisyTable]) -> Iterator[tuple[NoisyTable, tuple[str, ...], float]]:
    """Yields (table, measures, how far one unit moves them in L2) of every part."""
    for table in tables:
        for own, moved in zip(table.query.parts, sensitivities(table.query, table.terms.bounds), strict=True):
            yield table, own, moved


def _check_threshold(table: NoisyTable) -> None:
    """Refuse keys found in the log that are shown from fewer rows on than the event pays for."""
    query, terms = table.query, table.terms
    if query.keys is not None or query.dense:
        if table.threshold is not None:
            raise ValueError("the table has a threshold, and its keys were declared")
        return
    parts = mechanisms.parts(terms.event)
    delta = sum(one.delta * count for one, count in parts if isinstance(one, mechanisms.ApproximateDpEvent))
    least = terms.bounds.per_key + table.rows_std * norm.isf(delta)  # of a key that only one unit has
    if table.threshold is None or not (delta > 0 and table.threshold >= least):
        raise ValueError(f"keys found in the log are shown from {table.threshold} rows on, which its event is not of")
    missing = np.array([set(key) <= {None} for key in table.keys], dtype=np.bool_)
    if not ((table.rows >= table.threshold) | missing).all():
        raise ValueError("a key found in the log is shown with fewer rows than the threshold")


def _numbers(stored: pa.Table, name: str) -> Floats:
    if name not in stored.column_names:
        raise ValueError(f"there is no column {name!r}")
    column = stored.column(name)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)) or column.null_count:
        raise ValueError(f"column {name!r} must be numbers, with none missing")
    values = column.to_numpy().astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"column {name!r} must be finite")
    return np.asarray(values)


def _by(query: Query, place: int) -> str:
    column = query.columns[place]
    return f"by {column}" if place == 0 else f"by {column} ({place + 1})"


def _name(query: Query) -> str:
    return "-".join(re.sub(r"[^A-Za-z0-9_]+", "_", one)[:40] for one in query.columns) or "all"


def _short(error: Any) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
