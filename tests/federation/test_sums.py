"""Sums of users can be added in any order and grouping, and nobody's sum changes nothing."""

import torch
from torch import Tensor

from federation.sums import UserSums
from privads.training.tables import SparseSum

SHAPES = {"dense": torch.zeros(3), "table": torch.zeros(10, 2)}


def random_sums(seed: int) -> UserSums:
    """Whole numbers, whose sums are exact."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(10, generator=generator)[:4].sort().values
    values = torch.randint(-9, 9, (4, 2), generator=generator).double()
    return UserSums(
        users=seed + 1,
        within=seed,
        dense={"dense": torch.randint(-9, 9, (3,), generator=generator).double()},
        tables={"table": SparseSum(ids, values, 10)},
    )


def numbers(sums: UserSums) -> Tensor:
    counts = torch.tensor([sums.users, sums.within], dtype=torch.float64)
    return torch.cat([counts, *(sums.of(name).flatten() for name in SHAPES)])


def test_sums_are_a_commutative_monoid() -> None:
    one, two, three = (random_sums(seed) for seed in range(3))
    nothing = UserSums.nothing(SHAPES, tables={"table"})
    assert torch.equal(numbers((one + two) + three), numbers(one + (two + three)))
    assert torch.equal(numbers(one + two), numbers(two + one))
    assert torch.equal(numbers(one + nothing), numbers(one))
    assert torch.equal(numbers(one + two), numbers(one) + numbers(two))
    assert nothing.of("table").dtype == nothing.of("dense").dtype == torch.float64


def test_a_sparse_sum_holds_each_row_once() -> None:
    table = (random_sums(0) + random_sums(1)).tables["table"]
    assert table.ids.tolist() == sorted(set(table.ids.tolist()))
