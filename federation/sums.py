"""What goes to a silo and comes back: rows of tables that are sent, and `UserSums`, a commutative monoid."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from privads.noise import Randomness
from privads.training.tables import SparseSum


@dataclass(frozen=True, eq=False)
class SentRows:
    """What a silo is sent of a table of ``rows`` rows: row ``ids[i]`` is ``values[i]``, and no other row is known.

    ids: (n,), each once, ascending. values: (n, dim).
    """

    ids: Tensor
    values: Tensor
    rows: int

    def __len__(self) -> int:
        return self.rows

    @property
    def shape(self) -> torch.Size:
        """Of the whole table."""
        return torch.Size((self.rows, self.values.shape[1]))

    def at(self, ids: Tensor) -> Tensor:
        """Returns (m, dim) the rows ``ids`` (m,); raises ValueError where one of them was not sent."""
        places = torch.searchsorted(self.ids, ids)
        if len(ids) and (not len(self.ids) or bool((self.ids[places.clamp(max=len(self.ids) - 1)] != ids).any())):
            raise ValueError("a row of a table is read that was not named before the round: name all rows of a cohort")
        return self.values.index_select(0, places)


Weights = Mapping[str, Tensor | SentRows]
"""The parameters that are trained, by name; of a table perhaps only rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UserSums:
    """The sum of ``users`` clipped updates, in float64. dense: {name: tensor}. tables: {name: rows and values}.

    within: of how many users the update was no longer than the clip norm. Both counts are private until noised: what
    a round divides by is the plan's cohort. touched: where the plan selects rows, of every table the (rows, 1) counts
    ``sum_u v_u`` of the users who read each; v_u is 1 / sqrt(n_u) at the n_u rows that user u reads in all tables.
    """

    users: int
    within: int
    dense: Mapping[str, Tensor]
    tables: Mapping[str, SparseSum]
    touched: Mapping[str, SparseSum] = field(default_factory=dict)

    @classmethod
    def nothing(cls, weights: Weights, *, tables: Collection[str]) -> Self:
        """Returns the sum over nobody. weights: the parameters. tables: the names of those whose sums are sparse."""
        return cls(
            users=0,
            within=0,
            dense={
                name: torch.zeros(one.shape, dtype=torch.float64) for name, one in weights.items() if name not in tables
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
            touched={
                **other.touched,
                **{
                    name: one + other.touched[name] if name in other.touched else one
                    for name, one in self.touched.items()
                },
            },
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
