"""Audits of whole runs: each claims epsilon 1 at delta 1e-5, and says what a run shows of 1,000 canaries.

Beside each game stands its ideal: the same scores of canaries that meet a stated law and nothing else. A fault is gross
for a game if its ideal exceeds the claim in 99 of 100 plays; what is gross the game must see in the code.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor, nn

from accounting import audit
from accounting.audit import Audit, Laws, laws
from accounting.budget import Budget
from benchmarks.faults import signals
from benchmarks.faults.made import DELTA, plan, written
from benchmarks.faults.planting import Law
from federation.plan import FederatedPlan
from federation.server import federate
from federation.task import Task
from privads.attacks.canaries import Canaries, Kind
from privads.batch import Batch
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.models import Logistic
from privads.models.layers import FusedTable
from privads.noise import Randomness
from privads.signals.query import Query
from privads.signals.release import Release
from privads.signals.summary_reports import CONTRIBUTION_BUDGET
from privads.training.fit import fit
from privads.training.plan import TableNoise, TrainPlan

CLAIM, CANARIES, STEPS = 1.0, 1000, 20

_HIDDEN = -(10**6)
"""In place of the number of a cell that is not shown."""
_SHADOWS = 2000


@dataclass(frozen=True, kw_only=True)
class Game:
    """An audit. play: of the code, on the log, with a seed. ideal: of canaries that meet a law."""

    play: Callable[[Logs, int], Audit]
    ideal: Callable[[Law, np.random.Generator], Audit]


def one_run(scores: NDArray[np.float64], included: NDArray[np.bool_]) -> Audit:
    """Returns the one-run audit of the claim."""
    return audit.one_run(np.nan_to_num(scores), included, claimed_epsilon=CLAIM, delta=DELTA)


def ideal_run(law: Law, rng: np.random.Generator, *, noise_multiplier: float, rate: float, steps: int) -> Audit:
    """Returns the audit of canaries that add ``law.amplitude`` to steps of noise ``law.noise noise_multiplier``.

    Scores are log-likelihood ratios, summed over steps; without noise, whether anything was added.
    """
    included = rng.random(CANARIES) < 0.5
    rate = rate if law.rate is None else law.rate
    added = law.amplitude * ((rng.random((steps, CANARIES)) < rate) & included)
    noise_std = max(law.noise * noise_multiplier, 1e-3)
    seen = added + noise_std * rng.normal(size=added.shape)
    ratios = law.amplitude * (seen - law.amplitude / 2) / noise_std**2
    with np.errstate(divide="ignore"):
        chances = np.log([1 - rate, rate])
    return one_run(logsumexp([chances[0] + 0 * ratios, chances[1] + ratios], axis=0).sum(0), included)


# Training


def audited_plan(*, unit: str = "user", table_noise: TableNoise = "dense") -> TrainPlan:
    """Returns the plan of the audited runs: 20 steps, of a tenth of the units each."""
    return plan(epsilon=CLAIM, steps=STEPS, unit=unit, table_noise=table_noise)


def trained(
    kind: Kind,
    log: Logs,
    seed: int,
    *,
    unit: str = "user",
    table_noise: TableNoise = "dense",
) -> Audit:
    """Returns the audit of a training run by its own canaries."""
    torch.manual_seed(seed)
    chosen = audited_plan(unit=unit, table_noise=table_noise)
    canaries = Canaries(count=CANARIES, kind=kind)
    run = fit(Logistic(log.schema), log, chosen, canaries=canaries, insecure_seed=seed)
    if run.evidence is None:
        raise RuntimeError("a run with canaries left no evidence")
    return one_run(run.evidence.scores, run.evidence.included)


def ideal_training(law: Law, rng: np.random.Generator) -> Audit:
    """Returns the audit of ideal canaries of the training run."""
    chosen = audited_plan()
    return ideal_run(law, rng, noise_multiplier=chosen.noise_multiplier, rate=chosen.sampling_rate, steps=chosen.steps)


# Federation


class Own(nn.Module):
    """A weight for each client, which is its logit."""

    def __init__(self) -> None:
        super().__init__()
        self.table = FusedTable([CANARIES], 1, init_std=1.0)
        nn.init.zeros_(self.table.weight)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns each row's weight."""
        return {"click": self.table(batch.ids, batch.offsets)[:, 0, 0]}


@dataclass(frozen=True, eq=False)
class Clients:
    """Users with four rows each that hold nothing but a weight's number, of which each has its own: `privads.Rows`."""

    numbers: NDArray[np.int64]
    schema: Schema

    @property
    def units(self) -> NDArray[np.int64]:
        """(rows,) who owns each row."""
        return np.repeat(np.arange(len(self.numbers)), 4)

    def check(self) -> None:
        """Nothing can be missing."""

    def take(self, row_numbers: NDArray[np.int64]) -> Batch:
        """Returns these rows."""
        count = len(row_numbers)
        return Batch(
            dense=torch.zeros(count, 0),
            ids=torch.from_numpy(self.numbers[self.units[row_numbers]]),
            offsets=torch.arange(count + 1),
            labels={"click": torch.zeros(count)},
            observed={"click": torch.ones(count, dtype=torch.bool)},
            weights=torch.ones(count),
        )

    def reference(self, task: str) -> None:
        """There is no other predictor."""


@cache
def clients_plan() -> FederatedPlan:
    """Returns twenty rounds of a tenth of the clients."""
    budget = Budget(epsilon=CLAIM, delta=DELTA, unit="user")
    return FederatedPlan.for_budget(budget, population=CANARIES, cohort=CANARIES // 10, rounds=20, clip_norm=1.0)


def federated(_: Logs, seed: int) -> Audit:
    """Returns the audit of a federated run whose clients push a weight of their own; the final model is seen.

    The score is that weight, which began at 0.
    """
    included = np.random.default_rng([seed, 1]).random(CANARIES) < 0.5
    facts = {
        "dataset": "clients",
        "population": CANARIES,
        "unit": ["user"],
        "public": True,
        "labels": {"click": "click"},
        "categorical": {"own": {"buckets": CANARIES}},
    }
    clients = Clients(np.flatnonzero(included), Schema.load(facts))
    task = Task(model=Own(), local_learning_rate=1.0, loss=lambda outputs, batch: -1000.0 * outputs["click"])
    run = federate(task, clients, clients_plan(), insecure_seed=seed)
    (table,) = run.model.parameters()
    return one_run(table.detach().numpy()[:, 0].astype(np.float64), included)


def ideal_federation(law: Law, rng: np.random.Generator) -> Audit:
    """Returns the audit of ideal clients, of whom the sum over all rounds is seen."""
    chosen = clients_plan()
    rate = chosen.sampling_rate if law.rate is None else law.rate
    included = rng.random(CANARIES) < 0.5
    added = law.amplitude * rng.binomial(chosen.rounds, rate, CANARIES) * included
    noise_std = law.noise * chosen.noise_multiplier * np.sqrt(chosen.rounds)
    return one_run(added + noise_std * rng.normal(size=CANARIES), included)


# Tables


def released(log: Logs, seed: int, *, found: bool) -> Audit:
    """Returns the audit of a table in which a user has five rows with a site of their own, of which one may count.

    The score of a site's number is the logarithm of how often it comes up with a user over how often without, in a
    second release of sites that are known to have one or not. found: sites are found in the log, not declared.
    """
    rng = np.random.default_rng([seed, 2])
    included, shadow = rng.random(CANARIES) < 0.5, np.arange(_SHADOWS) < _SHADOWS // 2
    values, shadows = (_numbers(one, seed, found=found) for one in (included, shadow))
    kinds = np.unique(np.concatenate([values, shadows]), return_inverse=True)
    place, shadow_place = np.split(kinds[1], [CANARIES])
    with_user, without = (np.bincount(shadow_place[shadow == one], minlength=len(kinds[0])) for one in (True, False))
    return one_run(np.log((with_user + 1) / (without + 1))[place], included)


def _numbers(included: NDArray[np.bool_], seed: int, *, found: bool) -> NDArray[np.int64]:
    """Returns the released number of rows of each user's own site, `_HIDDEN` where it is not shown."""
    names = [f"site {number}" for number in range(len(included))]
    owners = [names[number] for number in np.flatnonzero(included) for _ in range(5)]
    keys = None if found else tuple((name,) for name in names)
    with tempfile.TemporaryDirectory() as folder:
        own = written(signals.columns_of([f"owner of {one}" for one in owners], owners), Path(folder) / "own.parquet")
        table = signals.released(own, Query(by=("site",), keys=keys), insecure_seed=seed)
    shown = dict(zip((key[0] for key in table.keys), table.rows, strict=True))
    return np.array([shown.get(name, _HIDDEN) for name in names], dtype=np.int64)


def ideal_table(law: Law, rng: np.random.Generator) -> Audit:
    """Returns the audit of ideal users of the table."""
    budget = Budget(epsilon=CLAIM, delta=DELTA, unit="user")
    made = _least_noise(budget)
    return ideal_run(law, rng, noise_multiplier=made, rate=1.0, steps=1)


@cache
def _least_noise(budget: Budget) -> float:
    return Release.of([signals.named(1)], budget, rows_per_unit=1).noise_multiplier


# Known laws


@cache
def answers_law() -> Laws:
    """Returns that of an answer about one bit at the claim."""
    chance = signals.YES_OR_NO.randomize_probability(CLAIM)
    return laws.randomized_response(randomize_probability=chance, categories=2)


@cache
def summaries_law() -> Laws:
    """Returns that of a summary, in units of a sixteenth of a contribution."""
    return laws.discrete_laplace(scale=16 / CLAIM, shift=16)


def answers(_: Logs, seed: int) -> Audit:
    """Returns the audit of 1,000 answers for each bit."""
    randomness = Randomness(insecure_seed=seed)
    first, second = (
        signals.YES_OR_NO.randomized(np.full(CANARIES, bit), epsilon=CLAIM, randomness=randomness) for bit in (0, 1)
    )
    return audit.likelihood_ratio(first, second, answers_law(), claimed_epsilon=CLAIM + 1e-9, delta=0.0)


def summaries(_: Logs, seed: int) -> Audit:
    """Returns the audit of 1,000 summaries of nothing, and of a source's whole contribution."""
    first, second = (
        np.rint(signals.summaries(CANARIES, value=value, seed=2 * seed + number) * 16 / CONTRIBUTION_BUDGET)
        for number, value in enumerate((0, CONTRIBUTION_BUDGET))
    )
    return audit.likelihood_ratio(first, second, summaries_law(), claimed_epsilon=CLAIM + 1e-9, delta=0.0)


def ideal_ratio(law: Law, rng: np.random.Generator, *, known: Callable[[], Laws]) -> Audit:
    """Returns the audit of draws from the known law with ``law.noise`` times its noise."""
    true = known().sharper(1 / law.noise)
    places = np.append(true.edges, true.edges[-1] + 1)  # a number in each bin
    first, second = (rng.choice(places, size=CANARIES, p=one / one.sum()) for one in (true.first, true.second))
    return audit.likelihood_ratio(first, second, known(), claimed_epsilon=CLAIM + 1e-9, delta=0.0)


GAMES: dict[str, Game] = {
    "gradients": Game(play=partial(trained, "gradient"), ideal=ideal_training),
    "lazy rows": Game(play=partial(trained, "row", table_noise="lazy"), ideal=ideal_training),
    "users": Game(play=partial(trained, "user"), ideal=ideal_training),
    "clients": Game(play=federated, ideal=ideal_federation),
    "cells": Game(play=partial(released, found=False), ideal=ideal_table),
    "keys": Game(play=partial(released, found=True), ideal=ideal_table),
    "answers": Game(play=answers, ideal=partial(ideal_ratio, known=answers_law)),
    "summaries": Game(play=summaries, ideal=partial(ideal_ratio, known=summaries_law)),
    "examples": Game(play=partial(trained, "gradient", unit="example"), ideal=ideal_training),
    "adafest": Game(play=partial(trained, "user", table_noise="adafest"), ideal=ideal_training),
}
"""By name. The last two are played on honest runs alone: at example level, and with rows that are selected."""
