"""Faults that would break the promise of a federated run, each planted in the code and each seen by a check of a run.

Every check runs through `federate` as a user would; it passes as the code is, and fails with the fault. Six of the
faults are those of Flower 1.41's wrappers.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from federation import clipping, cohort, population, rounds, server
from federation.server import federate
from federation.task import Task
from privads.batch import Batch
from privads.logs.logs import Logs
from privads.noise import Randomness
from privads.training import adaptive
from tests.federation.helpers import USERS, logs, plan, trained

ALPHA = 1e-6

Check = Callable[[Logs], bool]
Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    return logs(tmp_path_factory.mktemp("log"))


class Wide(nn.Module):
    """20,000 weights without a gradient: what moves them is noise. An error of 5 % of its std is missed with
    probability below 1e-6 at ALPHA."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 20_000, bias=False)

    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"click": 0.0 * self.layer(batch.dense).sum(1)}


class Steep(nn.Module):
    """One weight that every user moves by 1,000, all in one direction."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"click": self.weight * torch.ones_like(batch.weights)}


def moved(log: Logs, model: nn.Module, found: Any, **settings: Any) -> Tensor:
    """How far the weights moved, times the planned cohort: the noised sums."""
    loss = settings.pop("loss", None)
    run = federate(Task(model=model, local_learning_rate=1.0, loss=loss), log, found, **settings)
    before, after = trained(model), trained(run.model)
    return torch.cat([(before[name] - after[name]).flatten() for name in before]) * found.cohort


def has_variance(values: Tensor, variance: float) -> bool:
    statistic = float(values.double().square().sum()) / variance
    return bool(stats.chi2.ppf(ALPHA / 2, len(values)) < statistic < stats.chi2.isf(ALPHA / 2, len(values)))


# Checks: each returns whether a promise holds


def noise_is_as_large_as_planned(log: Logs) -> bool:
    found = plan(rounds=1)
    return has_variance(moved(log, Wide(), found), (found.noise_multiplier * found.clip_norm) ** 2)


def noise_does_not_depend_on_how_many_came(log: Logs) -> bool:
    """Of 800 users, as declared, 400 exist, and all are asked: the divisor is 800."""
    found = plan(rounds=1, population=2 * USERS, cohort=2 * USERS)
    return has_variance(moved(log, Wide(), found), (found.noise_multiplier * found.clip_norm) ** 2)


def noise_of_rounds_is_independent(log: Logs) -> bool:
    found = plan(rounds=4)
    return has_variance(moved(log, Wide(), found), 4 * (found.noise_multiplier * found.clip_norm) ** 2)


def noise_is_that_of_the_clip_norm_in_use(log: Logs) -> bool:
    """Nothing moves the weights: every user is within, and the clip norm falls by 10 % after the round."""
    found = plan(rounds=1, clip_quantile=0.5)
    return has_variance(moved(log, Wide(), found), (found.noise_multiplier * found.clip_norm) ** 2)


def a_user_adds_at_most_the_clip_norm(log: Logs) -> bool:
    """All of 400 users push one weight by 1,000: the sum is 400 clip norms, give or take six noises."""
    found = plan(rounds=1, cohort=USERS)
    sum_of_all = float(moved(log, Steep(), found, loss=lambda outputs, batch: 1000.0 * outputs["click"]))
    return abs(sum_of_all - USERS * found.clip_norm) < 6 * found.noise_multiplier * found.clip_norm


def a_user_who_sends_nan_adds_zero(log: Logs) -> bool:
    found = plan(rounds=1, cohort=USERS)
    sums = moved(log, Steep(), found, loss=lambda outputs, batch: math.nan * outputs["click"])
    return bool(sums.isfinite().all()) and float(sums.abs().max()) < 6 * found.noise_multiplier * found.clip_norm


def users_join_with_the_planned_probability(log: Logs) -> bool:
    """50 rounds of 400 users at rate 0.2, clipped to one direction: 4,000 updates, give or take six std."""
    found = plan(rounds=50, cohort=80)
    total = float(moved(log, Steep(), found, loss=lambda outputs, batch: 1000.0 * outputs["click"])) / found.clip_norm
    std = math.sqrt(50 * USERS * 0.2 * 0.8 + 50 * found.noise_multiplier**2)
    return abs(total - 50 * 80) < 6 * std


def the_clip_norm_moves_towards_the_norms(log: Logs) -> bool:
    """Every update is longer than the first clip norm, and none than 1: it must rise to about 1, and stay there."""
    found = plan(rounds=30, cohort=200, clip_quantile=0.5, clip_norm=0.1)
    task = Task(model=Steep(), local_learning_rate=1.0, loss=lambda outputs, batch: outputs["click"])
    return 0.5 < federate(task, log, found).clip_norm < 2.0


def the_optimizer_sees_noise(log: Logs) -> bool:
    """Adam's second moments after one round are (1 - 0.999) g^2, g the noised mean, whose noise is as planned."""
    found, kept = plan(rounds=1), []

    def adam(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        made = torch.optim.Adam(weights, lr=0.01)
        made.register_step_post_hook(lambda *_: kept.append([made.state[one]["exp_avg"] for one in weights]))
        return made

    moved(log, Wide(), found, optimizer=adam)
    return has_variance(kept[-1][0].flatten() * 10 * found.cohort, (found.noise_multiplier * found.clip_norm) ** 2)


def users_with_many_rows_weigh_as_much_as_others(log: Logs) -> bool:
    """Updates of 1 for everyone, in one direction and below the clip norm: their sum is the number of users."""
    found = plan(rounds=1, cohort=USERS, clip_norm=2.0)
    total = float(moved(log, Steep(), found, loss=lambda outputs, batch: outputs["click"]))
    return abs(total - USERS) < 6 * found.noise_multiplier * found.clip_norm


# Plants: each breaks one thing


def half_the_noise(patch: pytest.MonkeyPatch) -> None:
    whole = Randomness.normal_like
    patch.setattr(Randomness, "normal_like", lambda self, one, *, noise_std: whole(self, one, noise_std=noise_std / 2))


def the_same_noise_each_round(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Randomness,
        "normal_like",
        lambda self, one, *, noise_std: noise_std * torch.randn(one.shape, generator=torch.Generator().manual_seed(1)),
    )


def noise_of_the_next_clip_norm(patch: pytest.MonkeyPatch) -> None:
    """Flower, defect d."""
    own = rounds.after_round

    def late(state: Any, sums: Any, found: Any, optimizer: Any, randomness: Any) -> Any:
        now = clipping.next_clip_norm(
            found, state.clip_norm, within=sums.within, users=sums.users, randomness=Randomness()
        )
        return own(dataclasses.replace(state, clip_norm=now), sums, found, optimizer, randomness)

    patch.setattr(server, "after_round", late)


def the_bit_the_wrong_way_round(patch: pytest.MonkeyPatch) -> None:
    """Flower, defect c."""
    own = adaptive.moved
    patch.setattr(adaptive, "moved", lambda now, *, count, **others: own(now, count=-count, **others))


def no_clipping(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cohort, "factors", lambda norms, clip_norm: torch.ones_like(norms))


def not_a_number_passes(patch: pytest.MonkeyPatch) -> None:
    """Flower, defect f: min(1, nan) is 1."""
    patch.setattr(cohort, "factors", lambda norms, clip_norm: torch.where(norms > clip_norm, clip_norm / norms, 1.0))


def division_by_those_who_came(patch: pytest.MonkeyPatch) -> None:
    own = rounds.noised_mean

    def mean(sums: Any, found: Any, weights: Any, **others: Any) -> Any:
        exact = own(sums, found, weights, **others)
        return {name: one * found.cohort / max(sums.users, 1) for name, one in exact.items()}

    patch.setattr(rounds, "noised_mean", mean)


def half_the_users(patch: pytest.MonkeyPatch) -> None:
    own = population.PoissonSampler
    patch.setattr(
        population,
        "PoissonSampler",
        lambda units, *, sampling_rate, **rest: own(units, sampling_rate=0.5 * sampling_rate, **rest),
    )


def noise_after_the_step(patch: pytest.MonkeyPatch) -> None:
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


def weights_by_rows(patch: pytest.MonkeyPatch) -> None:
    """Flower, defect a: a user counts as often as they have rows."""
    own = cohort.LocalTraining.updates

    def weighted(self: Any, batch: Any, owners: Tensor, users: int, weights: Any) -> Any:
        found = own(self, batch, owners, users, weights)
        rows_each = len(owners) / max(users, 1)
        sums = found.clipped_sum

        class Weighted:
            def clipped_sum(self, clip_norm: float) -> Any:
                whole = sums(clip_norm)
                return dataclasses.replace(whole, dense={name: rows_each * one for name, one in whole.dense.items()})

        return Weighted()

    patch.setattr(cohort.LocalTraining, "updates", weighted)


FAULTS: list[tuple[Check, Plant]] = [
    (noise_is_as_large_as_planned, half_the_noise),
    (noise_does_not_depend_on_how_many_came, division_by_those_who_came),
    (noise_of_rounds_is_independent, the_same_noise_each_round),
    (noise_is_that_of_the_clip_norm_in_use, noise_of_the_next_clip_norm),
    (a_user_adds_at_most_the_clip_norm, no_clipping),
    (a_user_who_sends_nan_adds_zero, not_a_number_passes),
    (users_join_with_the_planned_probability, half_the_users),
    (the_clip_norm_moves_towards_the_norms, the_bit_the_wrong_way_round),
    (the_optimizer_sees_noise, noise_after_the_step),
    (users_with_many_rows_weigh_as_much_as_others, weights_by_rows),
]


@pytest.mark.parametrize("check", list(dict.fromkeys(check for check, _ in FAULTS)), ids=lambda check: check.__name__)
def test_the_promise_holds(check: Check, log: Logs) -> None:
    assert check(log)


@pytest.mark.parametrize(("check", "plant"), FAULTS, ids=lambda one: one.__name__)
def test_the_fault_is_seen(check: Check, plant: Plant, log: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert not check(log)
