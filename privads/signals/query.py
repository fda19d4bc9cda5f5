"""What a table counts: a `Query` of public facts, over a `Source` of rows."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privads.logs.raw import Raw
from privads.logs.schema import Schema

Key = tuple[str | int | None, ...]
Floats = NDArray[np.float64]


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
    def middles(self) -> Floats:
        """The middle of each cell, (cells,)."""
        edges = np.asarray(self.edges)
        return np.asarray((edges[1:] + edges[:-1]) / 2.0)

    def places(self, values: Floats) -> NDArray[np.int32]:
        """Returns each number's cell, -1 where it is missing."""
        found = np.clip(np.searchsorted(self.edges, values, side="right") - 1, 0, self.cells - 1)
        return np.where(np.isnan(values), -1, found).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class Query:
    """What one table counts. by: categorical columns and grids, whose values together are a cell's key; where it is
    empty there is one cell, of all rows.

    label: the table then counts, of the rows whose label is known, the positive and the negative ones by themselves.
    That costs no more than counting rows, as a row is one or the other. keys: the cells that are shown; where left out,
    all cells for grids alone, and what `selection_threshold` lets through for categories.
    """

    by: tuple[str | Grid, ...]
    label: str | None = None
    keys: tuple[Key, ...] | None = None

    def __post_init__(self) -> None:
        if self.keys is not None and len(set(self.keys)) < len(self.keys):
            raise ValueError("keys name a cell twice: its count would be shown with two noises, and paid for once")

    @property
    def measures(self) -> tuple[str, ...]:
        """What is counted in each cell."""
        return ("rows",) if self.label is None else ("positives", "negatives")

    @property
    def declared(self) -> tuple[Key, ...] | None:
        """The public keys; None where they are found in the log."""
        if self.keys is not None:
            return self.keys
        if all(isinstance(one, Grid) for one in self.by):
            places = [[*range(one.cells), None] for one in self.by if isinstance(one, Grid)]
            return tuple(itertools.product(*places))
        return None

    def check(self, schema: Schema) -> None:
        """Refuse what the schema does not have."""
        for one in self.by:
            if isinstance(one, Grid):
                check_numeric(schema, one.column)
            else:
                check_categorical(schema, one)
        if self.label is not None:
            schema.check_event(self.label)


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
