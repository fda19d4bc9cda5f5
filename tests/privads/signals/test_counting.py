"""What bounds leave of a unit's rows, whatever the unit does, and how sums are kept within its own bound."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ibis
import numpy as np
import pytest
from scipy.stats import binom

from privads.signals import counting
from privads.signals.bounds import Bounds
from privads.signals.counting import Counted, Names, bounded, counted, split
from privads.signals.query import OneOf, Query, Sum

VALUES = tuple("abcdefgh")
SITE = OneOf(column="site", values=VALUES)
CAPPED = Sum(column="n", most=4.0, most_of_unit=6.0)
QUERY = Query(by=(SITE,), sums=(CAPPED,))

ADVERSARIES = {
    "all in one cell": ([0] * 40, [4] * 40),
    "each in its own": ([*range(8)] * 5, [4] * 40),
    "one large cell": ([0] * 33 + [*range(1, 8)], [4] * 40),
    "small values": ([*range(8)] * 5, [1] * 40),
    "nothing and much": ([*range(8)] * 5, [0, 4] * 20),
}
LIMITS = [
    Bounds(rows=rows, rows_per_key=per_key, keys=keys)
    for rows, per_key, keys in [(1, None, None), (5, None, None), (5, 1, None), (5, None, 2), (8, 2, 3), (30, 3, 2)]
]


def count(owners: Sequence[str], places: Sequence[int], values: Sequence[int], bounds: Bounds) -> Counted:
    names = Names.of([QUERY], unit_columns=1)
    rows = {names.owners[0]: owners, names.parts[SITE]: places, names.sums[CAPPED]: values}
    table = ibis.duckdb.connect().create_table("t", ibis.memtable(rows))
    with bounded(table, names, bounds).cache() as kept:
        return split(counted(kept, [QUERY], names, bounds).to_pyarrow(), [QUERY])[0]


def check(found: Counted, bounds: Bounds) -> None:
    """One unit's rows alone are how far it moves the table."""
    rows, total = found.values["rows"], found.values["sum of n"]
    assert np.linalg.norm(rows) <= bounds.sensitivity() * (1 + 1e-12)
    assert np.linalg.norm(total) <= bounds.sensitivity(row=4, total=CAPPED.steps_of_unit(bounds.rows)) * (1 + 1e-12)
    assert rows.max() <= bounds.per_key
    assert len(rows) <= bounds.most_keys
    assert rows.sum() <= bounds.rows
    assert total.sum() <= 6


@pytest.mark.parametrize("bounds", LIMITS, ids=repr)
@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_no_unit_moves_a_table_by_more_than_the_sensitivity(adversary: str, bounds: Bounds) -> None:
    places, values = ADVERSARIES[adversary]
    found = count(["u"] * 40, places, values, bounds)
    check(found, bounds)
    assert found.values["rows"].sum() > 0


def test_without_the_bound_on_keys_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_within_keys", lambda rows, *_: rows)
    with pytest.raises(AssertionError):
        check(count(["u"] * 40, *ADVERSARIES["each in its own"], Bounds(rows=30, rows_per_key=3, keys=2)), LIMITS[-1])


def test_without_the_bound_on_a_unit_s_sum_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sum, "steps_of_unit", lambda self, rows: self.steps * rows)
    found = count(["u"] * 40, *ADVERSARIES["all in one cell"], Bounds(rows=5))
    assert found.values["sum of n"].sum() == 20


def test_a_light_unit_keeps_its_whole_sum_and_a_heavy_one_its_bound() -> None:
    owners, places = ["u"] * 4 + ["v"] * 2, [0] * 4 + [1] * 2
    found = count(owners, places, [4, 4, 4, 4, 3, 2], Bounds(rows=4))
    assert dict(zip(found.places.tolist(), found.values["sum of n"].tolist(), strict=True)) == {0: 6, 1: 5}
    assert found.values["rows"].tolist() == [4, 2] if found.places[0] == 0 else [2, 4]


def test_a_row_of_no_owner_adds_no_more_than_a_row_may() -> None:
    names = Names.of([QUERY], unit_columns=0)
    table = ibis.memtable({names.parts[SITE]: [0, 0], names.sums[CAPPED]: [4, 100]})
    (found,) = split(counted(bounded(table, names, Bounds()), [QUERY], names, Bounds()).to_pyarrow(), [QUERY])
    assert found.values["sum of n"].tolist() == [4 + 4]


def test_every_cell_of_a_unit_is_as_likely_to_be_kept() -> None:
    """800 units in 8 cells, 2 kept, one of which has 9 of 16 rows: binomial with p = 1/4, eight tests at alpha 1e-6
    together. Were cells drawn by their rows, the large one would be kept by more than half: missed below 1e-30.
    """
    owners = [f"u{i}" for i in range(800) for _ in range(16)]
    found = count(owners, ([0] * 9 + [*range(1, 8)]) * 800, [0] * 12_800, Bounds(rows=16, keys=2, rows_per_key=1))
    assert found.values["rows"].sum() == 1600
    assert all(binom.ppf(6e-8, 800, 0.25) <= one <= binom.isf(6e-8, 800, 0.25) for one in found.values["rows"])


def test_which_rows_fill_a_unit_s_sum_is_drawn_anew() -> None:
    """1,000 units, each with a row of 6 steps in all cells, of which one fits: each cell gets 125 of 1,000 on average;
    eight binomial tests at alpha 1e-6 together; a first row that always wins is missed with probability below 1e-100.
    """
    six = Sum(column="n", most=6.0, most_of_unit=6.0)
    query = Query(by=(SITE,), sums=(six,))
    names, bounds = Names.of([query], unit_columns=1), Bounds(rows=8)
    owners = [f"u{i}" for i in range(1000) for _ in range(8)]
    rows: Mapping[str, Any] = {
        names.owners[0]: owners,
        names.parts[SITE]: [*range(8)] * 1000,
        names.sums[six]: [6] * 8000,
    }
    table = ibis.duckdb.connect().create_table("t", ibis.memtable(rows))
    with bounded(table, names, bounds).cache() as kept:
        (found,) = split(counted(kept, [query], names, bounds).to_pyarrow(), [query])
    won = found.values["sum of n"] // 6
    assert won.sum() == 1000
    assert all(binom.ppf(6e-8, 1000, 0.125) <= one <= binom.isf(6e-8, 1000, 0.125) for one in won)


def test_tables_of_one_release_count_the_same_rows() -> None:
    """Also where the database draws its random numbers anew for every query."""
    queries = [Query(by=(SITE,)), Query(by=(SITE,), keys=(("a",),))]
    names, bounds = Names.of(queries, unit_columns=1), Bounds(rows=2)
    rows = {names.owners[0]: ["u", "v"] * 400, names.parts[SITE]: [*range(8)] * 100}
    table = ibis.duckdb.connect().create_table("t", ibis.memtable(rows))
    with bounded(table, names, bounds).cache() as kept:
        one, two = split(counted(kept, queries, names, bounds).to_pyarrow(), queries)
    assert Counter(zip(one.places, one.values["rows"], strict=True)) == Counter(
        zip(two.places, two.values["rows"], strict=True)
    )
    assert math.isclose(one.values["rows"].sum(), 4)
