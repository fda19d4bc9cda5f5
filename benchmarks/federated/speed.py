"""How many users a second are trained where their rows are, in how much memory, and at which epsilon.

The task: a table of 9,836 items x 32 and a network of one hidden layer of 32, as a recommender of pins has them; users
have about 20 events and take 4 local steps, on all of their events at each step, or on a quarter of them. Items fall
off as 1 / rank^0.8. Whole runs are timed, with sampling, clipping, noise on the whole table and the server's step.
"""

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from numpy.typing import NDArray
from torch import Tensor, nn

from accounting.budget import Budget
from benchmarks.harness import Figure
from federation.plan import FederatedPlan
from federation.server import federate
from federation.task import Task
from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.layers import FusedTable, Tower

ITEMS, DIM, HIDDEN = 9836, 32, 32
EVENTS, LOCAL_STEPS = 20, 4
LEAST_USERS_A_SECOND = 2000.0
MOST_GROWTH_MB = 64.0
MOST_RATIO = 1.001
DELTA = 1e-6


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured. users: registered. cohort: users of a round. repeats: of each measurement."""

    users: int = 20_000
    cohort: int = 2000
    rounds: int = 5
    repeats: int = 5


FULL = Sizes()
QUICK = Sizes(users=400, cohort=40, rounds=2, repeats=1)


class Interactions:
    """Which item each event was about and whether the user engaged, in arrays: a store of `privads.Rows` in memory."""

    def __init__(self, schema: Schema, units: NDArray[np.int64], items: Tensor, engaged: Tensor) -> None:
        self.schema, self.units, self.items, self.engaged = schema, units, items, engaged

    def check(self) -> None:
        """Nothing can be missing."""

    def take(self, row_numbers: NDArray[np.int64]) -> Batch:
        """Returns these events."""
        rows = torch.from_numpy(row_numbers)
        count = len(rows)
        return Batch(
            dense=torch.zeros(count, 0),
            ids=self.items[rows],
            offsets=torch.arange(count + 1),
            labels={"engaged": self.engaged[rows]},
            observed={"engaged": torch.ones(count, dtype=torch.bool)},
            weights=torch.ones(count),
        )

    def reference(self, task: str) -> None:
        """There is no other predictor."""


class ItemNetwork(nn.Module):
    """A table of items and a tower: ``logit = u . tower(e[item])``."""

    def __init__(self) -> None:
        super().__init__()
        self.table = FusedTable([ITEMS], DIM, init_std=DIM**-0.5)
        self.tower = Tower((DIM, HIDDEN))
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the logit of each event."""
        return {"engaged": self.head(self.tower(self.table(batch.ids, batch.offsets)[:, 0]))[:, 0]}


def interactions(users: int, *, seed: int = 0) -> Interactions:
    """Returns made-up events: from 12 to 28 a user."""
    schema = Schema.load(
        {
            "dataset": "interactions",
            "population": users,
            "unit": ["user"],
            "public": True,
            "labels": {"engaged": "engaged"},
            "categorical": {"item": {"buckets": ITEMS}},
        }
    )
    rng = np.random.default_rng(seed)
    units = np.repeat(np.arange(users), rng.integers(EVENTS - 8, EVENTS + 9, users))
    shares = np.arange(1, ITEMS + 1) ** -0.8
    items = rng.choice(ITEMS, len(units), p=shares / shares.sum())
    engaged = (rng.random(len(units)) < 0.5).astype(np.float32)
    return Interactions(schema, units, torch.from_numpy(items), torch.from_numpy(engaged))


def plan_for(users: int, cohort: int, rounds: int) -> FederatedPlan:
    """Returns a plan with noise; how much of it there is takes no time."""
    budget = Budget(epsilon=1e4, delta=1e-9, unit="user")
    return FederatedPlan(
        budget=budget, population=users, cohort=cohort, rounds=rounds, clip_norm=0.1, noise_multiplier=1.0
    )


def users_a_second(rows: Interactions, sizes: Sizes, *, local_rows: int | None) -> tuple[float, float]:
    """Returns (of wall time, of one core's time): the median over repeats of whole runs."""
    task = Task(
        model=ItemNetwork(), local_learning_rate=0.1, local_steps=LOCAL_STEPS, rows_per_user=32, local_rows=local_rows
    )
    plan = plan_for(sizes.users, sizes.cohort, sizes.rounds)
    wall, processor = [], []
    for _ in range(sizes.repeats):
        started = time.perf_counter(), time.process_time()
        federate(task, rows, plan)
        wall.append(time.perf_counter() - started[0])
        processor.append(time.process_time() - started[1])
    users = sizes.cohort * sizes.rounds
    return users / float(np.median(wall)), users / float(np.median(processor))


def speed(sizes: Sizes) -> Iterator[Figure]:
    """Yields how many users a second are trained."""
    rows = interactions(sizes.users)
    for name, local_rows, target in (
        ("local_backend", None, LEAST_USERS_A_SECOND),
        ("local_backend_quarters", EVENTS // LOCAL_STEPS, None),
    ):
        wall, processor = users_a_second(rows, sizes, local_rows=local_rows)
        yield Figure(name=name, value=wall, unit="users/s", at_least=target)
        yield Figure(name=f"{name}_per_core", value=processor, unit="users/s of one core's time")


def memory(sizes: Sizes) -> Iterator[Figure]:
    """Yields by how much the peak of memory grows where a round has ten times as many users."""
    rows = interactions(sizes.users)
    task = Task(model=ItemNetwork(), local_learning_rate=0.1, local_steps=LOCAL_STEPS)
    federate(task, rows, plan_for(sizes.users, sizes.cohort, 1))
    before = _peak_mb()
    federate(task, rows, plan_for(sizes.users, min(10 * sizes.cohort, sizes.users), 1))
    yield Figure(name="memory_of_ten_times_the_cohort", value=_peak_mb() - before, unit="MB", at_most=MOST_GROWTH_MB)


def epsilons() -> Iterator[Figure]:
    """Yields what the reference run costs, beside dp-accounting's upper bound on the same event."""
    sampled = dp_event.PoissonSampledDpEvent(0.01, dp_event.GaussianDpEvent(1.0))
    there = PLDAccountant().compose(dp_event.SelfComposedDpEvent(sampled, 1000)).get_epsilon(DELTA)
    yield Figure(name="epsilon_over_dp_accounting", value=_reference_epsilon() / there, unit="", at_most=MOST_RATIO)
    for silos in (1, 2, 5):
        yield Figure(name=f"epsilon_silos_{silos}", value=_reference_epsilon(silos=silos), unit="")
    yield Figure(name="epsilon_over_selection_30", value=_reference_epsilon(over_selection=0.3), unit="")


def _reference_epsilon(*, silos: int = 1, over_selection: float = 0.0) -> float:
    plan = FederatedPlan(
        budget=Budget(epsilon=1e4, delta=DELTA, unit="user"),
        population=100_000,
        cohort=1000,
        rounds=1000,
        clip_norm=1.0,
        noise_multiplier=1.0,
        silos=silos,
        over_selection=over_selection,
    )
    return plan.spent.upper


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
