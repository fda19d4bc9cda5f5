"""Noise that rows of a table owe until they are next read: how much, and paying it in one draw.

For plain SGD a row that step s gives the sum g_s and the noise n_s follows

    theta_s = kept_s theta_{s-1} - (lr_s / batch) (g_s + n_s),    kept_s = 1 - lr_s weight_decay,    n_s ~ N(0, s^2 I)

so a row settled after step a owes after step t the factor ``prod kept_s`` over a < s <= t, and noise of variance
``sum over a < s <= t of (lr_s s / batch)^2 prod over s < r <= t of kept_r^2``. Both are paid in one draw (LazyDP,
ASPLOS 2024; here for any schedule of the learning rate and with weight decay). What is read after that has the law that
it would have, had every step noised every row.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privads.noise import Randomness

_FLUSHED_ROWS = 1 << 16
_PLAIN = {"momentum": 0, "nesterov": False, "maximize": False}


class Debt:
    """What rows owe: one settled after step a owes the factor ``kept[a]`` and noise of variance ``variance[a]``.

    Step by step ``kept[a] *= k`` and ``variance[a] = k^2 variance[a] + noise_std^2`` for all earlier a: as many
    operations as there were steps, which is nothing beside a batch, and no difference of large prefix sums.
    """

    def __init__(self, steps: int) -> None:
        self.steps = 0
        self.variance: NDArray[np.float64] = np.zeros(steps + 1)
        self.kept: NDArray[np.float64] = np.ones(steps + 1)
        self.decays = self.noised = False

    def add(self, *, kept: float, noise_std: float) -> None:
        """Take one step: a factor, and noise of this standard deviation."""
        self.steps += 1
        if kept != 1.0:
            self.decays = True
            self.variance[: self.steps] *= kept**2
            self.kept[: self.steps] *= kept
        if noise_std:
            self.noised = True
            self.variance[: self.steps] += noise_std**2

    def packed(self) -> dict[str, Any]:
        """Returns it as a working checkpoint can hold it."""
        return {
            "steps": self.steps,
            "variance": torch.from_numpy(self.variance),
            "kept": torch.from_numpy(self.kept),
            "decays": self.decays,
            "noised": self.noised,
        }

    @classmethod
    def unpacked(cls, packed: Mapping[str, Any]) -> Self:
        """Returns what `packed` was made of."""
        found = cls(len(packed["variance"]) - 1)
        found.steps, found.decays, found.noised = packed["steps"], packed["decays"], packed["noised"]
        found.variance, found.kept = packed["variance"].numpy().copy(), packed["kept"].numpy().copy()
        return found


@dataclass(eq=False)
class OwingTable:
    """A table (rows, dim), what its rows owe, and ``settled``: (rows,) int32 the step that each was settled after."""

    weight: Tensor
    debt: Debt
    settled: Tensor

    @classmethod
    def of(cls, weight: Tensor, debt: Debt) -> Self:
        """Returns the table, of which nothing is owed yet."""
        return cls(weight, debt, torch.zeros(len(weight), dtype=torch.int32, device=weight.device))

    def flush(self, randomness: Randomness) -> None:
        """Settle every row."""
        total = len(self.weight)
        for start in range(0, total, _FLUSHED_ROWS):
            end = min(start + _FLUSHED_ROWS, total)
            self.settle(torch.arange(start, end, device=self.weight.device), randomness)

    def settle(self, rows: Tensor, randomness: Randomness) -> None:
        """Pay what ``rows`` (n,), each named once, owe."""
        debt = self.debt
        if not (debt.noised or debt.decays):
            return
        since = self.settled.index_select(0, rows)
        owing = since < debt.steps
        if not bool(owing.all()):
            rows, since = rows[owing], since[owing]
        if not len(rows):
            return
        # Autograd must not see the write: what an earlier read of these rows kept was settled then and stays the same.
        weight, noise = self.weight.data, self.noise_owed(rows, since, randomness)
        if debt.decays:
            kept = torch.from_numpy(debt.kept[: debt.steps]).to(weight).index_select(0, since)
            weight.index_copy_(0, rows, weight[rows].mul_(kept[:, None]).add_(noise))
        else:
            weight.index_add_(0, rows, noise)
        self.settled.index_fill_(0, rows, debt.steps)

    def noise_owed(self, rows: Tensor, since: Tensor, randomness: Randomness) -> Tensor:
        """Returns (n, dim) the noise of all steps after ``since`` (n,), as the rows see it now."""
        like = self.weight.new_empty(len(rows), self.weight.shape[1])
        if not self.debt.noised:
            return like.zero_()
        noise_std = torch.from_numpy(np.sqrt(self.debt.variance[: self.debt.steps])).to(like)
        return randomness.normal_like(like, noise_std=noise_std.index_select(0, since)[:, None])


def is_plain(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> bool:
    """Whether a group of the optimizer is trained by plain SGD: what noise does to any other state is not owed."""
    if group.get("plain_sgd", False):
        return not group.get("maximize", False)
    return type(optimizer) is torch.optim.SGD and all(group[key] == value for key, value in _PLAIN.items())


def step_of(group: Mapping[str, Any]) -> tuple[float, float]:
    """Returns (learning rate, factor that weight decay leaves of a weight) of a group's next step."""
    lr = float(group["lr"])
    kept = 1.0 - lr * float(group.get("weight_decay", 0.0))
    if not (kept > 0 and math.isfinite(kept)):
        raise ValueError(f"lr * weight_decay of a table must be below 1, got {1 - kept:.4g}: lower one of them")
    return lr, kept
