"""Which cells of which tables a row is in: the features that a model learned from sums of labels knows.

A table over columns (a, b) of A and B values has A B cells, and a row with values (i, j) is in cell i B + j. In all,
the features of a row x are K(x), (cells,), one 1 in each table, and a log's sums of labels by cell are ``c = K' y``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from math import prod

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Columns = tuple[str, ...]

MOST_CELLS = np.iinfo(np.int32).max


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Tables over columns. sizes: how many values each column has. tables: the columns of each, every one once.

    >>> Encoding(sizes={"size": 3, "hour": 24}, tables=(("size",), ("size", "hour"))).cells
    75
    """

    sizes: Mapping[str, int]
    tables: tuple[Columns, ...]

    def __post_init__(self) -> None:
        for name, size in self.sizes.items():
            if size < 1:
                raise ValueError(f"column {name!r} must have at least 1 value, got {size}")
        if not self.tables or len({frozenset(table) for table in self.tables}) != len(self.tables):
            raise ValueError("tables must be at least one, and none of them twice")
        for table in self.tables:
            unknown = [name for name in table if name not in self.sizes]
            if unknown or not table or len(set(table)) != len(table):
                raise ValueError(f"a table must have columns of {list(self.sizes)}, each once, got {table}")
        if self.cells > MOST_CELLS:
            raise ValueError(f"tables must have at most {MOST_CELLS} cells together, got {self.cells}")

    @classmethod
    def of(cls, sizes: Mapping[str, int], *, most_cells_of_a_pair: int = 0) -> "Encoding":
        """Returns one table for each column, and one for each pair of columns with at most so many cells."""
        pairs = (pair for pair in combinations(sizes, 2) if prod(sizes[name] for name in pair) <= most_cells_of_a_pair)
        return cls(sizes=dict(sizes), tables=(*((name,) for name in sizes), *pairs))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """How many cells each table has."""
        return tuple(prod(self.sizes[name] for name in table) for table in self.tables)

    @cached_property
    def cells(self) -> int:
        """How many cells all tables have."""
        return sum(self.lengths)

    @cached_property
    def parts(self) -> tuple[slice, ...]:
        """Where each table's cells stand among all."""
        ends = np.cumsum(self.lengths).tolist()
        return tuple(slice(end - length, end) for end, length in zip(ends, self.lengths, strict=True))

    def places(self, rows: NDArray[np.integer]) -> Ints:
        """Returns (tables, rows) each row's cell in each table. rows: (rows, columns) values from 0, as in `sizes`."""
        if rows.ndim != 2 or rows.shape[1] != len(self.sizes) or rows.dtype.kind not in "iu":
            raise ValueError(f"rows must be whole numbers of shape (rows, {len(self.sizes)}), got {rows.shape}")
        for name, values in zip(self.sizes, rows.T, strict=True):
            if len(values) and not (values.min() >= 0 and values.max() < self.sizes[name]):
                raise ValueError(f"values of column {name!r} must be from 0 to {self.sizes[name] - 1}")
        column = {name: values.astype(np.int32) for name, values in zip(self.sizes, rows.T, strict=True)}
        places = np.zeros((len(self.tables), len(rows)), dtype=np.int32)
        for place, table in zip(places, self.tables, strict=True):
            for name in table:
                place *= self.sizes[name]
                place += column[name]
        return places


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """The features of the rows that a model is learned over.

    places: (tables, rows). public: whether they are declared public; if not, nothing protects them, and a model of
    them promises something about labels only. scale: how many rows of the log one of these stands for: above 1 where
    they are a sample.
    """

    encoding: Encoding
    places: Ints
    public: bool
    scale: float = 1.0
    _counts: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.places.shape[1:] == (0,):
            raise ValueError("features must have at least one row")
        if not 1 <= self.scale < np.inf:
            raise ValueError(f"scale must be finite and at least 1, got {self.scale}")
        object.__setattr__(self, "_counts", self.sums(np.ones(self.places.shape[1])))

    @classmethod
    def of(
        cls, encoding: Encoding, rows: NDArray[np.integer], *, public: bool, total: float | None = None
    ) -> "Features":
        """Returns the features of ``rows``, (rows, columns).

        total: where they are a sample, about how many rows the log has: a public number, or a noisy one.
        """
        scale = 1.0 if total is None else total / max(len(rows), 1)
        return cls(encoding=encoding, places=encoding.places(rows), public=public, scale=scale)

    @property
    def rows(self) -> float:
        """How many rows of the log these stand for."""
        return self.scale * float(self.places.shape[1])

    @property
    def counts(self) -> Floats:
        """(cells,) how many rows of the log each cell has, about so where these are a sample."""
        return self._counts

    def sums(self, values: Floats) -> Floats:
        """Returns K' v scaled to the log, (cells,), for (rows,) values."""
        return np.concatenate([self.sums_of(table, values) for table in range(len(self.places))])

    def sums_of(self, table: int, values: Floats) -> Floats:
        """Returns K' v scaled to the log, of one table's cells only."""
        return np.asarray(self.scale * np.bincount(self.places[table], values, minlength=self.encoding.lengths[table]))

    def matrix(self, tables: Iterable[int]) -> sparse.csr_matrix:
        """Returns K, (rows, cells of ``tables``)."""
        chosen = list(tables)
        lengths = [self.encoding.lengths[table] for table in chosen]
        starts = np.cumsum([0, *lengths[:-1]], dtype=np.int32)
        rows, width = self.places.shape[1], len(chosen)
        cells = np.empty((rows, width), dtype=np.int32)
        for column, (table, start) in enumerate(zip(chosen, starts, strict=True)):
            np.add(self.places[table], start, out=cells[:, column])
        ends = np.arange(0, rows * width + 1, width)
        return sparse.csr_matrix((np.ones(rows * width), cells.ravel(), ends), shape=(rows, sum(lengths)))
