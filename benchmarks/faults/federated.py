"""Faults of a federated run, each planted in one place, and the checks that see them, through `federate`.

Five of the faults are those of Flower 1.41's wrappers.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from accounting.budget import Budget
from benchmarks.faults.made import USERS, Steep, Wide, has_variance, weights
from benchmarks.faults.planting import Fault, Law, Patch
from federation import clipping, cohort, population, rounds, server
from federation.plan import FederatedPlan
from federation.rounds import ServerOptimizer, averaging
from federation.server import federate
from federation.task import Task
from privads.batch import Batch
from privads.logs.logs import Logs
from privads.noise import Randomness
from privads.training import adaptive
from privads.training.probe import Loss
from privads.training.sampling import PoissonSampler
from privads.training.tables import SparseSum


def steep(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Returns losses by which every user moves the weight of `Steep` by 1,000, all in one direction."""
    return 1000.0 * outputs["click"]


@cache
def plan() -> FederatedPlan:
    """Returns five rounds of a tenth of the users with noise 1, whose cost is looked up and not searched for."""
    budget = Budget(epsilon=100.0, delta=1e-5, unit="user")
    return FederatedPlan(budget=budget, population=USERS, cohort=40, rounds=5, clip_norm=0.5, noise_multiplier=1.0)


def moved(
    log: Logs,
    model: nn.Module,
    found: FederatedPlan,
    *,
    loss: Loss | None = None,
    optimizer: ServerOptimizer = averaging,
) -> Tensor:
    """Returns how far the weights moved, times the planned cohort: the noised sums."""
    before = weights(model)
    run = federate(Task(model=model, local_learning_rate=1.0, loss=loss), log, found, optimizer=optimizer)
    return (before - weights(run.model)) * found.cohort


def planned_variance(found: FederatedPlan) -> float:
    """Returns that of the noise on each number of a round's sums."""
    return (found.noise_multiplier * found.clip_norm) ** 2


# Checks: each returns whether a promise holds


def noise_is_as_large_as_planned(log: Logs, _: Patch) -> bool:
    found = dataclasses.replace(plan(), rounds=1)
    return has_variance(moved(log, Wide(), found), planned_variance(found))


def noise_does_not_depend_on_how_many_came(log: Logs, _: Patch) -> bool:
    """Of 800 users, as declared, 400 exist, and all are asked: the divisor is 800."""
    found = dataclasses.replace(plan(), rounds=1, population=2 * USERS, cohort=2 * USERS)
    return has_variance(moved(log, Wide(), found), planned_variance(found))


def noise_of_rounds_is_independent(log: Logs, _: Patch) -> bool:
    found = dataclasses.replace(plan(), rounds=4)
    return has_variance(moved(log, Wide(), found), 4 * planned_variance(found))


def noise_is_that_of_the_clip_norm_in_use(log: Logs, _: Patch) -> bool:
    """Nothing moves the weights: every user is within, and the clip norm falls by 10 % after the round."""
    found = dataclasses.replace(plan(), rounds=1, clip_quantile=0.5, count_noise_multiplier=4.0)
    return has_variance(moved(log, Wide(), found), planned_variance(found))


def a_user_adds_at_most_the_clip_norm(log: Logs, _: Patch) -> bool:
    """All of 400 users push one weight by 1,000: the sum is 400 clip norms, give or take six noises."""
    found = dataclasses.replace(plan(), rounds=1, cohort=USERS)
    sum_of_all = float(moved(log, Steep(), found, loss=steep))
    return abs(sum_of_all - USERS * found.clip_norm) < 6 * found.noise_multiplier * found.clip_norm


def a_user_who_sends_nan_adds_zero(log: Logs, _: Patch) -> bool:
    found = dataclasses.replace(plan(), rounds=1, cohort=USERS)
    sums = moved(log, Steep(), found, loss=lambda outputs, batch: math.nan * outputs["click"])
    return bool(sums.isfinite().all()) and float(sums.abs().max()) < 6 * found.noise_multiplier * found.clip_norm


def users_join_with_the_planned_probability(log: Logs, _: Patch) -> bool:
    """50 rounds of 400 users at rate 0.2, clipped to one direction: 4,000 updates, give or take six std."""
    found = dataclasses.replace(plan(), rounds=50, cohort=80)
    total = float(moved(log, Steep(), found, loss=steep)) / found.clip_norm
    std = math.sqrt(50 * USERS * 0.2 * 0.8 + 50 * found.noise_multiplier**2)
    return abs(total - 50 * 80) < 6 * std


def the_clip_norm_moves_towards_the_norms(log: Logs, _: Patch) -> bool:
    """Every update is longer than the first clip norm, and none than 1: it must rise to about 1, and stay there."""
    found = dataclasses.replace(
        plan(), rounds=30, cohort=200, clip_quantile=0.5, count_noise_multiplier=4.0, clip_norm=0.1
    )
    task = Task(model=Steep(), local_learning_rate=1.0, loss=lambda outputs, batch: outputs["click"])
    return 0.5 < federate(task, log, found).clip_norm < 2.0


def the_optimizer_sees_noise(log: Logs, _: Patch) -> bool:
    """Adam's second moments after one round are (1 - 0.999) g^2, g the noised mean, whose noise is as planned."""
    found, kept = dataclasses.replace(plan(), rounds=1), []

    def adam(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        made = torch.optim.Adam(weights, lr=0.01)
        made.register_step_post_hook(lambda *_: kept.append([made.state[one]["exp_avg"] for one in weights]))
        return made

    moved(log, Wide(), found, optimizer=adam)
    return has_variance(kept[-1][0].flatten() * 10 * found.cohort, planned_variance(found))


def users_with_many_rows_weigh_as_much_as_others(log: Logs, _: Patch) -> bool:
    """Updates of 1 for everyone, in one direction and below the clip norm: their sum is the number of users."""
    found = dataclasses.replace(plan(), rounds=1, cohort=USERS, clip_norm=2.0)
    total = float(moved(log, Steep(), found, loss=lambda outputs, batch: outputs["click"]))
    return abs(total - USERS) < 6 * found.noise_multiplier * found.clip_norm


# Plants: each breaks one thing


def half_the_noise(patch: Patch) -> None:
    whole = Randomness.normal_like
    patch.setattr(Randomness, "normal_like", lambda self, one, *, noise_std: whole(self, one, noise_std=noise_std / 2))


def the_same_noise_each_round(patch: Patch) -> None:
    patch.setattr(
        Randomness,
        "normal_like",
        lambda self, one, *, noise_std: noise_std * torch.randn(one.shape, generator=torch.Generator().manual_seed(1)),
    )


def noise_of_the_next_clip_norm(patch: Patch) -> None:
    """Flower, defect d."""
    own = rounds.after_round

    def late(state: Any, sums: Any, found: Any, optimizer: Any, randomness: Any, see: Any = None) -> Any:
        now = clipping.next_clip_norm(
            found, state.clip_norm, within=sums.within, users=sums.users, randomness=Randomness()
        )
        return own(dataclasses.replace(state, clip_norm=now), sums, found, optimizer, randomness, see)

    patch.setattr(server, "after_round", late)


def the_bit_the_wrong_way_round(patch: Patch) -> None:
    """Flower, defect c."""
    own = adaptive.moved
    patch.setattr(adaptive, "moved", lambda now, *, count, **others: own(now, count=-count, **others))


def no_clipping(patch: Patch) -> None:
    patch.setattr(cohort, "factors", lambda norms, clip_norm: torch.ones_like(norms))


def not_a_number_passes(patch: Patch) -> None:
    """Flower, defect f: min(1, nan) is 1."""
    patch.setattr(cohort, "factors", lambda norms, clip_norm: torch.where(norms > clip_norm, clip_norm / norms, 1.0))


def division_by_those_who_came(patch: Patch) -> None:
    own = rounds.noised_mean

    def mean(sums: Any, found: Any, weights: Any, **others: Any) -> Any:
        exact = own(sums, found, weights, **others)
        return {name: one * found.cohort / max(sums.users, 1) for name, one in exact.items()}

    patch.setattr(rounds, "noised_mean", mean)


def half_the_users(patch: Patch) -> None:
    own = PoissonSampler
    patch.setattr(
        population,
        "PoissonSampler",
        lambda units, *, sampling_rate, **rest: own(units, sampling_rate=0.5 * sampling_rate, **rest),
    )


def noise_after_the_step(patch: Patch) -> None:
    """Flower, defect b: the optimizer takes the exact mean, and its result gets the noise."""
    own, step = rounds.noised_mean, rounds.after_round
    patch.setattr(
        rounds,
        "noised_mean",
        lambda sums, found, *rest, **more: own(
            sums, dataclasses.replace(found, budget=None, noise_multiplier=0.0, clip_norm=math.inf), *rest, **more
        ),
    )

    def later(state: Any, sums: Any, found: Any, *others: Any) -> Any:
        after = step(state, sums, found, *others)
        std = found.noise_multiplier * found.clip_norm / found.cohort
        return dataclasses.replace(after, weights={n: w + std * torch.randn(w.shape) for n, w in after.weights.items()})

    patch.setattr(server, "after_round", later)


def weights_by_rows(patch: Patch) -> None:
    """Flower, defect a: a user counts as often as they have rows."""
    own = cohort.LocalTraining.updates

    def weighted(self: Any, batch: Any, owners: Tensor, users: int, weights: Any) -> Any:
        found = own(self, batch, owners, users, weights)
        rows_each = len(owners) / max(users, 1)
        sums = found.clipped_sum

        class Weighted:
            def clipped_sum(self, clip_norm: float) -> Any:
                whole = sums(clip_norm)
                tables = {
                    name: SparseSum(one.ids, rows_each * one.values, one.rows) for name, one in whole.tables.items()
                }
                dense = {name: rows_each * one for name, one in whole.dense.items()}
                return dataclasses.replace(whole, dense=dense, tables=tables)

        return Weighted()

    patch.setattr(cohort.LocalTraining, "updates", weighted)


def noise_forgotten(patch: Patch) -> None:
    """The server publishes exact sums."""
    patch.setattr(Randomness, "normal_like", lambda _, like, *, noise_std: torch.zeros_like(like))


FAULTS = (
    Fault(
        area="federation",
        plant=half_the_noise,
        check=noise_is_as_large_as_planned,
        game="clients",
        law=Law(noise=0.5),
    ),
    Fault(
        area="federation",
        plant=noise_forgotten,
        check=noise_is_as_large_as_planned,
        game="clients",
        law=Law(noise=0.0),
    ),
    Fault(
        area="federation",
        plant=division_by_those_who_came,
        check=noise_does_not_depend_on_how_many_came,
        game="clients",
    ),
    Fault(
        area="federation",
        plant=the_same_noise_each_round,
        check=noise_of_rounds_is_independent,
        game="clients",
    ),
    Fault(area="federation", plant=noise_of_the_next_clip_norm, check=noise_is_that_of_the_clip_norm_in_use),
    Fault(
        area="federation",
        plant=no_clipping,
        check=a_user_adds_at_most_the_clip_norm,
        game="clients",
        law=Law(amplitude=1000.0),
    ),
    Fault(area="federation", plant=not_a_number_passes, check=a_user_who_sends_nan_adds_zero),
    Fault(
        area="federation",
        plant=half_the_users,
        check=users_join_with_the_planned_probability,
        game="clients",
        law=Law(rate=0.05),
    ),
    Fault(area="federation", plant=the_bit_the_wrong_way_round, check=the_clip_norm_moves_towards_the_norms),
    Fault(area="federation", plant=noise_after_the_step, check=the_optimizer_sees_noise, game="clients"),
    Fault(
        area="federation",
        plant=weights_by_rows,
        check=users_with_many_rows_weigh_as_much_as_others,
        game="clients",
        law=Law(amplitude=4.0),
    ),
)
"""Of a round; those without a game show only under an adaptive clip norm, or do not tell of a user."""
