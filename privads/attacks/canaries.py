"""Canaries: made-up units, each put among the units of a log or left out by the toss of a fair coin.

An audit guesses from what a run releases which of them were put in (Steinke, Nasr and Jagielski 2023, arXiv
2305.08846). They are rows behind those of the log, so the plan's own sampler draws them, and nobody else is drawn any
differently: the claim under audit is one about every unit, and it holds with any others in the log.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from accounting.audit.record import check_claim
from accounting.budget import Budget
from privads.batch import Batch, Rows, joined, taken

if TYPE_CHECKING:
    from privads.logs.schema import Schema

Kind = Literal["gradient", "row", "user"]
"""What a canary adds to the sum of a batch that it is drawn into.

gradient: ``clip_norm`` at one weight of the model, another one for each canary. row: ``clip_norm`` along a random
direction in one row of an embedding table. user: what the clipped gradient of made-up rows comes to.
"""

LEAST, MOST = 50, 100_000
"""So few canaries prove nothing, and of more than so many the audit would be most of the run."""


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """What is planted: ``count`` canaries of a ``kind``, of which about half are put in.

    coins: (count,) which are put in, for tests; None tosses coins. They come from the operating system's entropy, and
    from the run's ``insecure_seed`` where it has one.
    """

    count: int
    kind: Kind = "gradient"
    coins: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or not LEAST <= self.count <= MOST:
            raise ValueError(f"an audit takes from {LEAST} to {MOST} canaries, got {self.count!r}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be {' or '.join(map(repr, get_args(Kind)))}, got {self.kind!r}")
        if self.coins is not None and len(self.coins) != self.count:
            raise ValueError(f"coins must be one for each of {self.count} canaries, got {len(self.coins)}")

    def check(self, budget: Budget | None) -> None:
        """Refuse a run whose claim these canaries cannot contradict, or that makes none."""
        if budget is None:
            raise ValueError("a run without privacy makes no claim to audit: leave out the canaries")
        check_claim(budget.epsilon, budget.delta, pure=False)
        if 2 * self.count * budget.delta > 1:
            raise ValueError(
                f"{self.count} canaries need a delta of at most {0.5 / self.count:.3g}, and the plan's is "
                f"{budget.delta:g}: plant fewer"
            )

    def tossed(self, generator: np.random.Generator) -> NDArray[np.bool_]:
        """Returns (count,) which canaries are put in: independent fair coins."""
        if self.coins is not None:
            return np.array(self.coins, dtype=bool)
        return generator.integers(0, 2, self.count).astype(bool)


def entropy(insecure_seed: int | None) -> np.random.Generator:
    """Returns what coins are tossed by and canaries made from: not the run's own source, whose draws stay the same."""
    if insecure_seed is None:
        return np.random.default_rng()  # seeded by the operating system
    return np.random.default_rng([insecure_seed, 0xCA9A])


@dataclass(frozen=True, eq=False)
class WithCanaries:
    """The rows of a log, and behind them those of the canaries that were put in.

    planted: their rows. of: (planted rows,) the canary that owns each, rising.
    """

    rows: Rows
    planted: Batch
    of: NDArray[np.int64]

    @property
    def schema(self) -> "Schema":
        """The log's."""
        return self.rows.schema

    def check(self) -> None:
        """Checks the log."""
        self.rows.check()

    @cached_property
    def first(self) -> int:
        """The number of the first canary's first row, which is how many rows the log has."""
        return len(self.rows.units)

    @cached_property
    def units(self) -> NDArray[np.int64]:
        """(rows,) who owns each row: a canary is one unit more."""
        units = self.rows.units
        if not len(self.of):
            return units
        places = np.unique(self.of, return_inverse=True)[1]
        return np.concatenate([units, places + (int(units.max()) + 1 if len(units) else 0)])

    def take(self, row_numbers: NDArray[np.int64]) -> Batch:
        """Returns these rows, in this order."""
        mine = row_numbers >= self.first
        if not mine.any():
            return self.rows.take(row_numbers)
        planted = taken(self.planted, row_numbers[mine] - self.first)
        if mine.all():
            return planted
        found = joined(self.rows.take(row_numbers[~mine]), planted)
        order = np.argsort(np.concatenate([np.flatnonzero(~mine), np.flatnonzero(mine)]))
        return found if (np.diff(order) > 0).all() else taken(found, order)

    def reference(self, task: str) -> NDArray[np.float64] | None:
        """Returns (rows,) the other predictor's probability, none of canaries."""
        known = self.rows.reference(task)
        return None if known is None else np.concatenate([known, np.full(len(self.of), np.nan)])

    def canaries_in(self, row_numbers: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Returns (count,) how many of these rows each canary owns."""
        return np.bincount(self.of[row_numbers[row_numbers >= self.first] - self.first], minlength=count)
