"""Encodings: which cell a row is in, and sums over rows against the definition."""

import itertools

import numpy as np
import pytest

from privads.signals.encoding import Encoding, Features

ENCODING = Encoding(sizes={"a": 2, "b": 3, "c": 4}, tables=(("a",), ("b", "c"), ("c", "a")))


def made(rows: int = 200) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(0, size, rows) for size in ENCODING.sizes.values()], axis=1)


def test_a_cell_of_a_pair_is_the_first_value_times_the_second_size_plus_the_second() -> None:
    every = np.array(list(itertools.product(range(2), range(3), range(4))))
    places = ENCODING.places(every)
    for row, (a, b, c) in enumerate(every):
        assert places[:, row].tolist() == [a, 4 * b + c, 2 * c + a]


def test_matrix_and_sums_are_the_definition() -> None:
    rows, values = made(), np.random.default_rng(1).normal(size=200)
    features = Features.of(ENCODING, rows, public=True)
    dense = np.zeros((len(rows), ENCODING.cells))
    for number, (a, b, c) in enumerate(rows):
        dense[number, [a, 2 + 4 * b + c, 14 + 2 * c + a]] = 1
    np.testing.assert_array_equal(features.matrix(range(3)).toarray(), dense)
    np.testing.assert_array_equal(features.matrix([2]).toarray(), dense[:, 14:])
    np.testing.assert_allclose(features.sums(values), dense.T @ values, atol=1e-12)
    np.testing.assert_array_equal(features.counts, dense.sum(axis=0))


def test_a_sample_stands_for_the_whole_log() -> None:
    features = Features.of(ENCODING, made(), public=True, total=1000)
    assert (features.scale, features.rows) == (5.0, 1000.0)
    assert features.counts[:2].sum() == 1000


def test_pairs_are_those_of_few_enough_cells() -> None:
    found = Encoding.of({"a": 2, "b": 3, "c": 4}, most_cells_of_a_pair=8)
    assert found.tables == (("a",), ("b",), ("c",), ("a", "b"), ("a", "c"))
    assert found.cells == 2 + 3 + 4 + 6 + 8


@pytest.mark.parametrize(
    ("sizes", "tables", "said"),
    [
        ({"a": 2}, (("b",),), "columns of"),
        ({"a": 2}, (("a", "a"),), "each once"),
        ({"a": 2, "b": 2}, (("a", "b"), ("b", "a")), "twice"),
        ({"a": 2}, (), "at least one"),
        ({"a": 0}, (("a",),), "at least 1 value"),
        ({"a": 100_000, "b": 100_000}, (("a", "b"),), "cells together"),
    ],
)
def test_an_encoding_that_makes_no_sense_is_refused(
    sizes: dict[str, int], tables: tuple[tuple[str, ...], ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Encoding(sizes=sizes, tables=tables)


@pytest.mark.parametrize(
    "rows", [np.array([[0, 0, 4]]), np.array([[-1, 0, 0]]), np.array([[0, 0]]), np.array([[0.0, 0.0, 0.0]])]
)
def test_rows_outside_the_columns_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be"):
        ENCODING.places(rows)


def test_features_need_rows_and_a_scale_of_at_least_one() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Features.of(ENCODING, np.zeros((0, 3), dtype=np.int64), public=True)
    with pytest.raises(ValueError, match="scale"):
        Features.of(ENCODING, made(), public=True, total=100)
