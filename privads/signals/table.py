"""`NoisyTable`: counts and sums by key with noise, what the noise is, and what the release of them cost.

Vocabularies, quantiles, counters, explorations and released metrics are readings of it, and learners train on it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from dp_accounting import dp_event

from accounting import mechanisms
from accounting.budget import Budget
from privads.signals.bounds import Bounds
from privads.signals.query import Floats, Key, Query

Law = Literal["gaussian", "discrete-gaussian"]
"""Of noise on whole numbers: a normal number rounded, or a law on whole numbers itself."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a release was, as each of its tables carries it. Public facts only.

    event: of the whole release, all its tables together; what each one cost is not told apart. budget: the event keeps
    it. bounds: on what one unit brought. entry: of the ledger, None where none was charged; tables with the same entry
    are one release. named_by: in words what the earlier releases cost whose tables named the values, which comes on top
    of the event; empty where they are public.
    """

    dataset: str
    event: dp_event.DpEvent
    budget: Budget
    bounds: Bounds
    law: Law
    entry: str | None = None
    named_by: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisyTable:
    """Noisy numbers by key. values: per measure (cells,), a sum's in whole steps. noise_std: per measure (cells,).
    listed: the keys of the cells, None where they are all of public places. threshold: of the noisy number of rows,
    under which a cell whose key was found in the log is not shown; None where keys were declared. combined: several
    tables were put together (`consistency`), so that the noise is less than the event's, and cells share it.

    Anything computed from it is free: the release has paid. `negative` values are left as they are, since cutting them
    off would bias every sum.
    """

    query: Query
    values: Mapping[str, Floats]
    noise_std: Mapping[str, Floats]
    terms: Terms
    listed: tuple[Key, ...] | None = None
    threshold: float | None = None
    combined: bool = False

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """The key of each cell: per part its value, a grid's place, `OTHER`, or None where it is missing."""
        declared = self.query.declared if self.listed is None else self.listed
        return () if declared is None else declared

    @property
    def rows(self) -> Floats:
        """(cells,) noisy number of rows."""
        return np.asarray(sum(self.values[measure] for measure in self.query.counted))

    @property
    def count_std(self) -> float:
        """The noise's standard deviation in each count, where all cells have the same."""
        stds = self.noise_std[self.query.counted[0]]
        least, most = (float(stds.min()), float(stds.max())) if len(stds) else (0.0, 0.0)
        if least != most:
            raise ValueError("the cells of this table do not have the same noise: ask for noise_std")
        return most

    @property
    def rows_std(self) -> float:
        """The noise's standard deviation in `rows`."""
        return self.count_std * math.sqrt(len(self.query.counted))


def by_release(tables: Sequence[NoisyTable]) -> list[tuple[Terms, list[NoisyTable]]]:
    """Returns the terms of each release that the tables come from, once, with its tables.

    A release without an entry is known by its terms alone: a table that is there twice is of another one, and so is one
    that has more counts and sums than their event has mechanisms left.
    """
    found: list[tuple[Terms, list[NoisyTable]]] = []
    for table in tables:
        for terms, own in found:
            if terms == table.terms and (terms.entry is not None or _fits(table, own)):
                own.append(table)
                break
        else:
            found.append((table.terms, [table]))
    return found


def _fits(table: NoisyTable, own: Sequence[NoisyTable]) -> bool:
    adding = (dp_event.GaussianDpEvent, dp_event.ZCDpEvent)
    made = sum(count for one, count in mechanisms.parts(table.terms.event) if isinstance(one, adding))
    parts = sum(len(one.query.parts) for one in (table, *own))
    return parts <= made and all(one.query != table.query for one in own)


def sensitivities(query: Query, bounds: Bounds) -> tuple[float, ...]:
    """Returns how far one unit moves each part of a table in L2: as `Query.parts` has them; of a sum in steps."""
    counts = (bounds.sensitivity(),) if query.counts else ()
    sums = (bounds.sensitivity(row=one.steps, total=one.steps_of_unit(bounds.rows)) for one in query.sums)
    return (*counts, *sums)
