"""Directions have length 1, nothing in common, and reach every parameter."""

import numpy as np
import pytest
import torch

from privads.attacks.directions import Directions, one_row_each, one_weight_each, shared

PARAMETERS = [torch.zeros(50, 3), torch.zeros(4), torch.zeros(2, 2, 5)]


def dense(found: list[Directions | None], count: int) -> torch.Tensor:
    """(count, all weights) the directions, as vectors."""
    vectors = torch.zeros(count, sum(one.numel() for one in PARAMETERS), dtype=torch.float64)
    start = 0
    for parameter, one in zip(PARAMETERS, found, strict=True):
        if one is not None:
            for canary, places, weights in zip(one.of.tolist(), one.places, one.weights, strict=True):
                vectors[canary, start + places] = weights
        start += parameter.numel()
    return vectors


def test_every_canary_has_a_weight_of_its_own() -> None:
    vectors = dense(one_weight_each(PARAMETERS, shared(40, [150, 4, 20]), np.random.default_rng(0)), 40)
    assert torch.equal(vectors @ vectors.T, torch.eye(40, dtype=torch.float64))
    assert torch.equal(vectors.abs().sum(1), torch.ones(40, dtype=torch.float64))


def test_every_canary_has_a_row_of_its_own() -> None:
    found = one_row_each(PARAMETERS, [30, 0, 0], np.random.default_rng(0))
    vectors = dense(found, 30)
    assert torch.allclose(vectors @ vectors.T, torch.eye(30, dtype=torch.float64))
    assert ((vectors[:, :150].view(30, 50, 3) != 0).all(2).sum(1) == 1).all()
    assert found[1:] == [None, None]


def test_small_parameters_are_watched_as_well_as_large_ones() -> None:
    assert shared(40, [150, 4, 20]) == [18, 4, 18]
    assert shared(3, [5, 5, 5, 5]) == [1, 1, 1, 0]
    with pytest.raises(ValueError, match="do not fit"):
        shared(7, [3, 3])


def test_what_is_added_along_directions_is_found_along_them() -> None:
    directions, rng = one_row_each([PARAMETERS[0]], [30], np.random.default_rng(0))[0], np.random.default_rng(1)
    assert directions is not None
    amounts, total = torch.from_numpy(rng.normal(size=30)), torch.from_numpy(rng.normal(size=(50, 3))).float()
    before = directions.along(total)
    assert torch.allclose(directions.along(directions.add(total, amounts)) - before, amounts, atol=1e-6)
