"""`UserSums`: what a silo sends of a round, and what a server adds up; a commutative monoid."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from privads.noise import Randomness
from privads.training.tables import SparseSum


@dataclass(frozen=True, kw_only=True, eq=False)
class UserSums:
    """The sum of ``users`` clipped updates, in float64. dense: {name: tensor}. tables: {name: rows and values}.

    within: of how many users the update was no longer than the clip norm. Both counts are private until noised: what
    a round divides by is the plan's cohort.
    """

    users: int
    within: int
    dense: Mapping[str, Tensor]
    tables: Mapping[str, SparseSum]

    @classmethod
    def nothing(cls, weights: Mapping[str, Tensor], *, tables: Collection[str]) -> Self:
        """Returns the sum over nobody. weights: the parameters. tables: the names of those whose sums are sparse."""
        return cls(
            users=0,
            within=0,
            dense={
                name: torch.zeros_like(one, dtype=torch.float64) for name, one in weights.items() if name not in tables
            },
            tables={
                name: SparseSum(
                    torch.zeros(0, dtype=torch.int64), torch.zeros(0, one.shape[1], dtype=torch.float64), len(one)
                )
                for name, one in weights.items()
                if name in tables
            },
        )

    def __add__(self, other: "UserSums") -> "UserSums":
        return UserSums(
            users=self.users + other.users,
            within=self.within + other.within,
            dense={name: one + other.dense[name] for name, one in self.dense.items()},
            tables={name: one + other.tables[name] for name, one in self.tables.items()},
        )

    def noised(self, noise_std: float, randomness: Randomness) -> "UserSums":
        """Returns the sums with N(0, noise_std^2) on every number of every parameter, and so without sparse tables."""
        names = [*self.dense, *self.tables]
        noised = {}
        for name in names:
            whole = self.of(name)
            noised[name] = whole + randomness.normal_like(whole, noise_std=noise_std) if noise_std else whole
        return UserSums(users=self.users, within=self.within, dense=noised, tables={})

    def of(self, name: str) -> Tensor:
        """Returns the sum of one parameter as a whole tensor."""
        return self.dense[name] if name in self.dense else self.tables[name].dense()
