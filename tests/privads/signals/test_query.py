"""What a table may ask for: the places of values, the steps of sums, and what is refused."""

import math

import numpy as np
import pytest

from privads.signals.query import MOST_CELLS, OTHER, Grid, OneOf, Query, Sum, singles_and_pairs
from tests.privads.signals.samples import facts

BID = Grid(column="bid", edges=(0.0, 1.0, 5.0))
SITE = OneOf(column="site", values=("a", "b"))


def test_a_value_that_is_not_named_is_other_and_a_missing_one_is_missing() -> None:
    assert SITE.places(["b", "a", "c", "A", "a ", "", None]).tolist() == [1, 0, 2, 2, 2, 2, -1]
    assert SITE.names == ("a", "b", OTHER, None)


def test_a_number_lies_between_its_edges_and_what_is_beyond_in_the_outer_cells() -> None:
    values = np.array([-math.inf, -1e308, -0.0, 0.0, 0.999, 1.0, 5.0, 1e308, math.inf, math.nan])
    assert BID.places(values).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, -1]


@pytest.mark.parametrize(
    ("most", "step", "value", "steps"),
    [
        (10.0, 1.0, 3.49, 3),
        (10.0, 1.0, 3.5, 4),
        (10.0, 0.25, 0.375, 2),
        (10.0, 1.0, 10.0, 10),
        (10.0, 1.0, 1e308, 10),
        (10.0, 1.0, math.inf, 10),
        (10.0, 1.0, -math.inf, 0),
        (10.0, 1.0, -1e308, 0),
        (10.0, 1.0, -0.0, 0),
        (10.0, 1.0, math.nan, 0),
        (1.0, 1.0, 5e-324, 0),
    ],
)
def test_a_row_adds_its_clipped_value_in_whole_steps(most: float, step: float, value: float, steps: int) -> None:
    added = Sum(column="bid", most=most, step=step)
    assert added.counted(np.array([value])).tolist() == [steps]
    assert added.counted(np.array([value])).dtype == np.int64


def test_no_value_adds_more_than_the_steps_of_a_row() -> None:
    """Whatever the rounding: the sensitivity is made from `steps`."""
    rng = np.random.default_rng(0)
    for most, step in zip(rng.uniform(1, 1e6, 500).tolist(), rng.uniform(1e-3, 1, 500).tolist(), strict=True):
        added = Sum(column="bid", most=most, step=step)
        assert added.counted(np.array([most, math.inf, math.nextafter(most, 0)])).max() == added.steps


def test_a_unit_adds_at_most_its_own_bound() -> None:
    assert Sum(column="bid", most=3.0).steps_of_unit(5) == 15
    assert Sum(column="bid", most=3.0, most_of_unit=7.9).steps_of_unit(5) == 7
    assert Sum(column="bid", most=3.0, most_of_unit=100.0).steps_of_unit(5) == 15


@pytest.mark.parametrize(
    ("most", "step", "most_of_unit", "said"),
    [
        (0.0, 1.0, None, "must be positive"),
        (1.0, 2.0, None, "step at most most"),
        (math.inf, 1.0, None, "must be positive"),
        (math.nan, 1.0, None, "must be positive"),
        (1.0, -1.0, None, "must be positive"),
        (1.0, 1.0, 0.5, "at least one step"),
        (1.0, 1.0, math.inf, "at least one step"),
        (1e10, 1.0, None, "too many steps"),
    ],
)
def test_a_sum_without_a_bound_is_refused(most: float, step: float, most_of_unit: float | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sum(column="bid", most=most, step=step, most_of_unit=most_of_unit)


def test_values_that_are_named_twice_or_are_no_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="name one twice"):
        OneOf(column="site", values=("a", "b", "a"))
    with pytest.raises(ValueError, match="must be texts"):
        OneOf(column="site", values=("a", 1))  # type: ignore[arg-type]


def test_a_dense_table_has_all_cells_of_its_public_places() -> None:
    query = Query(by=(SITE, BID))
    assert (query.dense, query.shape, query.cells) == (True, (4, 3), 12)
    declared = query.declared
    assert declared is not None
    assert len(set(declared)) == 12
    assert declared[:2] == (("a", 0), ("a", 1))
    assert declared[-1] == (None, None)
    assert Query(by=()).declared == ((),)


def test_a_table_with_found_values_declares_nothing() -> None:
    mixed = Query(by=("site", BID))
    assert (mixed.dense, mixed.declared) == (False, None)
    assert Query(by=("site", BID), keys=(("a", 0),)).declared == (("a", 0),)


def test_too_many_cells_are_refused_before_they_are_made() -> None:
    """A fixed bug: places that do not fit in 64 bits failed only once rows were read, and paid for."""
    wide = tuple(Grid(column=f"c{i}", edges=tuple(map(float, range(1000)))) for i in range(7))
    assert 1000**7 > 2**63 > MOST_CELLS
    with pytest.raises(ValueError, match="too large"):
        Query(by=wide)
    with pytest.raises(ValueError, match="too large"):
        Query(by=wide, counts=False, sums=(Sum(column="bid"),))
    with pytest.raises(ValueError, match="too large"):
        Query(by=(*wide, "site"))
    with pytest.raises(ValueError, match="too large"):
        Query(by=wide, keys=((0,) * 7,))
    assert Query(by=wide[:2], keys=((0, 0),)).cells == 1000**2


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"by": (SITE,), "sums": (Sum(column="bid"), Sum(column="bid", most=2.0))}, "one sum of each column"),
        ({"by": (SITE,), "counts": False}, "needs sums"),
        ({"by": ("site",), "counts": False, "sums": (Sum(column="bid"),)}, "cells that are declared"),
        ({"by": (SITE,), "counts": False, "sums": (Sum(column="bid"),), "label": "click"}, "no label"),
        ({"by": (SITE,), "keys": (("a",), ("a",))}, "name a cell twice"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(query: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Query(**query)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (Query(by=(OneOf(column="bid", values=("a",)),)), "'bid' is no categorical column"),
        (Query(by=(Grid(column="site", edges=(0.0, 1.0)),)), "'site' is no numeric column"),
        (Query(by=(), sums=(Sum(column="site"),)), "'site' is no numeric column"),
        (Query(by=(), label="bid"), "'bid' is no label"),
    ],
)
def test_what_the_schema_does_not_have_is_refused(query: Query, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        query.check(facts())


def test_singles_and_pairs_are_each_part_and_each_two() -> None:
    found = singles_and_pairs([SITE, BID, "size"], label="click")
    assert [one.by for one in found] == [(SITE,), (BID,), ("size",), (SITE, BID), (SITE, "size"), (BID, "size")]
    assert {one.label for one in found} == {"click"}
