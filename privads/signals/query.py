"""What a table counts: a `Query` of public facts, over a `Source` of rows."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privads.logs.raw import Raw
from privads.logs.schema import Schema

Key = tuple[str | int | None, ...]
Floats = NDArray[np.float64]

OTHER = -1
"""In the key of a cell: any value that `OneOf` does not name."""

MOST_CELLS = 10_000_000
"""Declared cells of one table."""

MOST_PLACES = 1 << 62
"""Cells of public places of a table that does not have all of them: each has a number of 64 bits."""

MOST_STEPS = 1 << 31
"""Steps that one row's value may have: what many rows add up to then fits in 64 bits."""


class Source(Protocol):
    """Rows with public facts, such as `Logs`. Only `raw` reads rows."""

    @property
    def schema(self) -> Schema:
        """The public facts."""
        ...

    @property
    def features(self) -> object | None:
        """What the rows are read through; a release counts them as the files have them."""
        ...

    @property
    def split_text(self) -> str:
        """Which rows of the files these are, in words."""
        ...

    def check(self) -> None:
        """Raise ValueError where the public facts do not hold; reads no row."""
        ...

    def raw(self) -> Iterator[Raw]:
        """Yields the rows with their features as they are in the files."""
        ...


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A number's place among public ``edges``: cell i is [edges[i], edges[i+1]), the outer cells take what lies beyond;
    None where the number is missing.
    """

    column: str
    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.edges) < 2 or not all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError(f"edges of the grid on {self.column!r} must rise, and be at least two")

    @property
    def cells(self) -> int:
        """The number of cells, without the one of missing values."""
        return len(self.edges) - 1

    @property
    def names(self) -> tuple[str | int | None, ...]:
        """What the places are called in a key; the last is that of missing values."""
        return (*range(self.cells), None)

    @property
    def middles(self) -> Floats:
        """The middle of each cell, (cells,)."""
        edges = np.asarray(self.edges)
        return np.asarray((edges[1:] + edges[:-1]) / 2.0)

    def places(self, values: Floats) -> NDArray[np.int32]:
        """Returns each number's cell, -1 where it is missing."""
        found = np.clip(np.searchsorted(self.edges, values, side="right") - 1, 0, self.cells - 1)
        return np.where(np.isnan(values), -1, found).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class OneOf:
    """A category's place among public ``values``; behind them the place of all others, then that of missing ones."""

    column: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.values)) < len(self.values):
            raise ValueError(f"values of {self.column!r} name one twice")
        if not all(isinstance(one, str) for one in self.values):
            raise ValueError(f"values of {self.column!r} must be texts")

    @property
    def names(self) -> tuple[str | int | None, ...]:
        """What the places are called in a key."""
        return (*self.values, OTHER, None)

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {value: place for place, value in enumerate(self.values)}

    def places(self, texts: Sequence[str | None]) -> NDArray[np.int32]:
        """Returns each text's place, -1 where it is missing."""
        other = len(self.values)
        return np.array([-1 if one is None else self._codes.get(one, other) for one in texts], dtype=np.int32)


Part = str | Grid | OneOf
"""What a table is by: a categorical column whose values are found in the log, or public places."""


@dataclass(frozen=True, kw_only=True)
class Sum:
    """The sum of a numeric column's or a label's values over a cell's rows, in whole ``step``s.

    A row adds ``round(clip(x, 0, most) / step)`` steps, 0 where x is missing or not known; all rows of one unit
    together at most ``most_of_unit`` (by default rows_per_unit times most), of its rows in a random order. An event's
    label is 1 or 0: with most_of_unit = 2 at most two positive rows of a unit count.
    """

    column: str
    most: float = 1.0
    step: float = 1.0
    most_of_unit: float | None = None

    def __post_init__(self) -> None:
        if not (0 < self.step <= self.most < math.inf):
            raise ValueError(f"of a sum of {self.column!r}, step and most must be positive and step at most most")
        if self.most_of_unit is not None and not self.step <= self.most_of_unit < math.inf:
            raise ValueError(f"of a sum of {self.column!r}, most_of_unit must be at least one step")
        if self.most / self.step >= MOST_STEPS:
            raise ValueError(f"a row's {self.column!r} has too many steps: count in larger ones")

    @property
    def name(self) -> str:
        """What the measure is called."""
        return f"sum of {self.column}"

    @property
    def steps(self) -> int:
        """The most steps of one row."""
        return math.floor(self.most / self.step + 0.5)

    def steps_of_unit(self, rows_per_unit: int) -> int:
        """Returns the most steps of one unit."""
        limit = self.steps * rows_per_unit
        return limit if self.most_of_unit is None else min(limit, math.floor(self.most_of_unit / self.step))

    def counted(self, values: Floats) -> NDArray[np.int64]:
        """Returns the steps that each row's value adds."""
        bounded = np.clip(np.nan_to_num(values, nan=0.0), 0.0, self.most)
        return np.floor(bounded / self.step + 0.5).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Query:
    """What one table counts. by: categorical columns and grids, whose values together are a cell's key; where it is
    empty there is one cell, of all rows.

    label: the table then counts, of the rows whose label is known, the positive and the negative ones by themselves.
    That costs no more than counting rows, as a row is one or the other. sums: of values, beside the counts. counts:
    without them only the sums are made. keys: the cells that are shown; where left out, all cells for public places
    alone, and what `selection_threshold` lets through for categories.
    """

    by: tuple[Part, ...]
    label: str | None = None
    sums: tuple[Sum, ...] = ()
    counts: bool = True
    keys: tuple[Key, ...] | None = None

    def __post_init__(self) -> None:
        if self.keys is not None and len(set(self.keys)) < len(self.keys):
            raise ValueError("keys name a cell twice: its count would be shown with two noises, and paid for once")
        if len(set(self.sums)) < len(self.sums) or len({one.name for one in self.sums}) < len(self.sums):
            raise ValueError("a table has one sum of each column")
        found = self.keys is None and not self.dense
        if not self.counts and (not self.sums or found or self.label is not None):
            raise ValueError("a table without counts needs sums, cells that are declared, and no label")
        most = MOST_CELLS if self.dense else MOST_PLACES
        if self.cells > most:
            raise ValueError(f"a table of {self.cells:,} cells is too large: at most {most:,}")

    @property
    def counted(self) -> tuple[str, ...]:
        """What is counted in each cell."""
        return () if not self.counts else ("rows",) if self.label is None else ("positives", "negatives")

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """The measures that take noise together, as one unit moves them together: the counts, then each sum."""
        counts = (self.counted,) if self.counts else ()
        return (*counts, *((one.name,) for one in self.sums))

    @property
    def measures(self) -> tuple[str, ...]:
        """All numbers of a cell: counts, then sums."""
        return tuple(measure for part in self.parts for measure in part)

    def by_measure(self, of_parts: Sequence[float]) -> dict[str, float]:
        """Returns what each part has, such as its noise, by measure."""
        return {name: value for part, value in zip(self.parts, of_parts, strict=True) for name in part}

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it is by."""
        return tuple(column_of(one) for one in self.by)

    @property
    def dense(self) -> bool:
        """Whether the table has all cells of public places."""
        return self.keys is None and not any(isinstance(one, str) for one in self.by)

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of places of each public part."""
        return tuple(len(one.names) for one in self.by if not isinstance(one, str))

    @property
    def cells(self) -> int:
        """The number of cells of public places: of a dense table, all."""
        return math.prod(self.shape)

    @property
    def declared(self) -> tuple[Key, ...] | None:
        """The public keys; None where they are found in the log."""
        if self.keys is not None:
            return self.keys
        if self.dense:
            return tuple(itertools.product(*(one.names for one in self.by if not isinstance(one, str))))
        return None

    def check(self, schema: Schema) -> None:
        """Refuse what the schema does not have."""
        for one in self.by:
            if isinstance(one, Grid):
                check_numeric(schema, one.column)
            else:
                check_categorical(schema, column_of(one))
        if self.label is not None:
            schema.check_event(self.label)
        for added in self.sums:
            if added.column not in schema.labels:
                check_numeric(schema, added.column)


def column_of(part: Part) -> str:
    """Returns the column of a part of a key."""
    return part if isinstance(part, str) else part.column


def grid_of(schema: Schema, column: str, *, cells: int) -> Grid:
    """Returns the grid of so many cells over a number's public range, even on the scale of sign(x) log(1 + abs(x))."""
    check_numeric(schema, column)
    low, high = schema.numeric[column].range
    ends = np.sign([low, high]) * np.log1p(np.abs([low, high]))
    even = np.linspace(ends[0], ends[1], cells + 1)
    edges = np.sign(even) * np.expm1(np.abs(even))
    edges[0], edges[-1] = low, high
    return Grid(column=column, edges=tuple(np.unique(edges).tolist()))


def singles_and_pairs(
    parts: Sequence[Part], *, label: str | None = None, sums: tuple[Sum, ...] = (), counts: bool = True
) -> list[Query]:
    """Returns a table by each part, then one by each pair of them."""
    chosen = [*((one,) for one in parts), *itertools.combinations(parts, 2)]
    return [Query(by=by, label=label, sums=sums, counts=counts) for by in chosen]


def check_numeric(schema: Schema, column: str) -> None:
    """Refuse what is no numeric column of the schema."""
    if column not in schema.numeric:
        raise ValueError(f"{column!r} is no numeric column of the schema; known: {', '.join(schema.numeric) or 'none'}")


def check_categorical(schema: Schema, *columns: str) -> None:
    """Refuse what is no categorical column of the schema."""
    for column in columns:
        if column not in schema.categorical:
            known = ", ".join(schema.categorical) or "none"
            raise ValueError(f"{column!r} is no categorical column of the schema; known: {known}")
