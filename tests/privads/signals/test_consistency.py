"""Tables made consistent, against generalised least squares over all cells at once."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from privads.signals.consistency import consistent, consistent_grids
from privads.signals.query import Grid, OneOf, Part, Query
from privads.signals.table import NoisyTable
from tests.privads.signals.samples import table

A, B = OneOf(column="site", values=("a",)), OneOf(column="size", values=("s", "t"))
C = Grid(column="bid", edges=(0.0, 1.0))
SIZES = {A: 3, B: 4, C: 2}
SETS: list[tuple[Part, ...]] = [(), (A,), (C,), (B, A), (A, C), (B, C)]
STDS = [2.0, 5.0, 1.0, 3.0, 0.7, 4.0]


def margin(by: Sequence[Part]) -> np.ndarray:
    """The matrix that sums all cells of A, B and C to those of ``by``, in its order."""
    cells = list(itertools.product(*(range(SIZES[part]) for part in (A, B, C))))
    rows = list(itertools.product(*(range(SIZES[part]) for part in by)))
    where = [(A, B, C).index(part) for part in by]
    return np.array([[tuple(cell[i] for i in where) == row for cell in cells] for row in rows], dtype=float)


def least_squares(
    matrices: Sequence[np.ndarray], values: np.ndarray, stds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fitted values and their standard deviations: the textbook's H y and sqrt(diag(H V H'))."""
    design = np.vstack(matrices)
    scaled = design / stds[:, None]
    hat = design @ np.linalg.pinv(scaled) / stds
    return hat @ values, np.sqrt(np.einsum("ij,j,ij->i", hat, stds**2, hat))


def drawn(sets: Sequence[tuple[Part, ...]], stds: Sequence[float], seed: int = 0) -> list[NoisyTable]:
    rng = np.random.default_rng(seed)
    truth = rng.poisson(20.0, 24).astype(float)
    made = []
    for by, std in zip(sets, stds, strict=True):
        values = {name: margin(by) @ truth + rng.normal(0, std, len(margin(by))) for name in ("positives", "negatives")}
        made.append(table(Query(by=by, label="click"), values, std))
    return made


def test_margins_are_the_least_squares_of_all_tables() -> None:
    tables = drawn(SETS, STDS)
    found = consistent(tables)
    stds = np.concatenate([one.noise_std["positives"] for one in tables])
    for measure in ("positives", "negatives"):
        values = np.concatenate([one.values[measure] for one in tables])
        fitted, spread = least_squares([margin(by) for by in SETS], values, stds)
        assert np.concatenate([one.values[measure] for one in found]) == pytest.approx(fitted, abs=1e-9)
        assert np.concatenate([one.noise_std[measure] for one in found]) == pytest.approx(spread, rel=1e-9)


def test_margins_agree_and_no_cell_has_more_noise() -> None:
    tables = drawn(SETS, STDS)
    total, site, bid, both, _, _ = consistent(tables)
    crossed = both.values["positives"].reshape(4, 3)  # by B, then A
    assert crossed.sum(axis=0) == pytest.approx(site.values["positives"])
    assert site.values["positives"].sum() == pytest.approx(total.values["positives"][0])
    assert bid.values["positives"].sum() == pytest.approx(total.values["positives"][0])
    for before, after in zip(tables, consistent(tables), strict=True):
        assert (after.noise_std["negatives"] <= before.noise_std["negatives"] + 1e-12).all()
        assert after.terms is before.terms


COARSE = Grid(column="bid", edges=(0.0, 4.0, 10.0))
MIDDLE = Grid(column="bid", edges=(0.0, 1.0, 4.0, 6.0, 8.0, 10.0))
FINE = Grid(column="bid", edges=tuple(float(i) for i in range(11)))


def test_grids_are_the_least_squares_of_all_of_them() -> None:
    rng = np.random.default_rng(1)
    truth = np.append(rng.poisson(30.0, 10), 9).astype(float)
    tables, matrices, stds = [], [], []
    for grid, std in ((COARSE, 6.0), (MIDDLE, 2.0), (FINE, 3.0)):
        inside = np.array([grid.places(np.array([i + 0.5]))[0] for i in range(10)])
        matrix = np.zeros((grid.cells + 1, 11))
        matrix[inside, np.arange(10)] = 1.0
        matrix[-1, -1] = 1.0
        values = matrix @ truth + rng.normal(0, std, grid.cells + 1)
        tables.append(table(Query(by=(grid,)), {"rows": values}, std))
        matrices.append(matrix)
        stds.append(np.full(grid.cells + 1, std))
    found = consistent_grids(tables)
    values = np.concatenate([one.values["rows"] for one in tables])
    fitted, spread = least_squares(matrices, values, np.concatenate(stds))
    assert np.concatenate([one.values["rows"] for one in found]) == pytest.approx(fitted, abs=1e-9)
    assert np.concatenate([one.noise_std["rows"] for one in found]) == pytest.approx(spread, rel=1e-9)


def test_tables_of_two_releases_do_not_hide_what_the_other_cost() -> None:
    """A fixed bug: each table of the result was made of both releases, and stated the cost of its own."""
    one, two = drawn([(A,), (A, B)], [1.0, 1.0])
    other = replace(two, terms=replace(two.terms, entry="8"))
    with pytest.raises(ValueError, match="of one release"):
        consistent([one, other])
    coarse, fine = (table(Query(by=(grid,)), {"rows": np.zeros(grid.cells + 1)}, 1.0) for grid in (COARSE, FINE))
    with pytest.raises(ValueError, match="of one release"):
        consistent_grids([coarse, replace(fine, terms=other.terms)])


def test_what_cannot_agree_is_refused() -> None:
    one, two = drawn([(A,), (A, B)], [1.0, 1.0])
    listed = table(
        Query(by=("site",), label="click", keys=(("a",),)), {"positives": np.ones(1), "negatives": np.ones(1)}, 1.0
    )
    for tables, said in (([one], "at least two"), ([one, one], "different parts"), ([one, listed], "all their cells")):
        with pytest.raises(ValueError, match=said):
            consistent(tables)
    uneven = drawn([(A,)], [1.0])[0]
    noise = {measure: np.arange(1.0, 4.0) for measure in uneven.values}
    with pytest.raises(ValueError, match="same noise"):
        consistent([NoisyTable(query=uneven.query, values=uneven.values, noise_std=noise, terms=uneven.terms), two])
    fine, coarse = (table(Query(by=(grid,)), {"rows": np.zeros(grid.cells + 1)}, 1.0) for grid in (FINE, COARSE))
    with pytest.raises(ValueError, match="from coarse to fine"):
        consistent_grids([fine, coarse])
    with pytest.raises(ValueError, match="one grid each"):
        consistent_grids([coarse, one])
