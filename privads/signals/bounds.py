"""`Bounds`: what one unit may bring to the tables of a release, and how far that can move a table."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Of each unit at most ``rows`` rows are counted, chosen at random by the unit itself.

    rows_per_key: of these, at most so many in one cell of a table. keys: in at most so many cells of a table. Both are
    chosen anew for every table, at random, and cost a sort of the rows for each; where left out, a unit's rows may all
    fall in one cell, or each in one of its own.
    """

    rows: int = 1
    rows_per_key: int | None = None
    keys: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("rows_per_unit", self.rows), ("rows_per_key", self.rows_per_key), ("keys", self.keys)):
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")

    @property
    def per_key(self) -> int:
        """The most rows of a unit in one cell."""
        return self.rows if self.rows_per_key is None else min(self.rows, self.rows_per_key)

    @property
    def most_keys(self) -> int:
        """The most cells of one table that a unit's rows are in."""
        return self.rows if self.keys is None else min(self.rows, self.keys)

    @property
    def limits_keys(self) -> bool:
        """Whether rows are chosen table by table."""
        return self.per_key < self.rows or self.most_keys < self.rows

    def sensitivity(self, *, row: int = 1, total: int | None = None) -> float:
        """Returns how far one unit moves a table in L2, where a row adds at most ``row`` and all at most ``total``.

        ``max sqrt(sum_j x_j^2)`` over at most `most_keys` cells with ``0 <= x_j <= row per_key`` and
        ``sum_j x_j <= total`` (by default ``row rows``). The sum of squares is convex, so it is largest with as many
        cells as possible full and one that takes the rest.

        >>> Bounds(rows=10).sensitivity(), round(Bounds(rows=10, rows_per_key=2).sensitivity() ** 2)
        (10.0, 20)
        """
        total = row * self.rows if total is None else min(total, row * self.rows)
        cell = min(row * self.per_key, total)
        full = min(self.most_keys, total // cell)
        rest = min(cell, total - full * cell) if full < self.most_keys else 0
        return math.sqrt(full * cell**2 + rest**2)

    def spreads(self) -> NDArray[np.int64]:
        """Returns the ways, (ways, 3), for a unit to be the only one at k keys that matter for a threshold.

        Each has (keys with `per_key` rows, rows on one more, keys with one row): a function that is convex in each
        key's rows has its largest sum over all ways to spread at most `rows` rows over k keys at one of them.
        """
        most = self.per_key
        found = []
        for keys in range(1, self.most_keys + 1):
            spare = self.rows - keys
            full = keys if most == 1 else min(keys, spare // (most - 1))
            rest = 0 if full == keys else min(most, 1 + spare - full * (most - 1))
            found.append((full, rest, keys - full - (rest > 0)))
        return np.array(found, dtype=np.int64)
