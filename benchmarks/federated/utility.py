"""How well models rank that were trained where the data are, beside central training and popularity.

All train the same rows with the same model, unit, budget, cohort, number of rounds and clip norm. One step on all of a
user's rows makes a federated round the mechanism of a central step that clips the mean of a unit's rows; where both use
one optimizer, only how it is computed differs. ``central`` is `privads.fit` with the server's optimizer,
``central_defaults`` with its own (optimizer, step and averaging).

`SETTINGS` were chosen at seed 0 on a fifth of what is trained on, held out for that: the rows that figures are of
had no part in it. The seed of a trial chooses what is held out and the initial weights.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch

import privads
from accounting.budget import Budget
from benchmarks.federated.recommending import ALIBABA, PINTEREST, Choices, Pairs, Preference, popularity, ranking, read
from benchmarks.harness import Figure, Kept, Spread, name_of
from federation.plan import FederatedPlan
from federation.server import federate
from federation.task import Task
from privads.logs.logs import Logs
from privads.training.defaults import sgd_step
from privads.training.plan import TrainPlan

Way = Literal["federated", "central", "central_defaults"]

WAYS: tuple[Way, ...] = ("federated", "central", "central_defaults")
EPSILONS: tuple[float | None, ...] = (1.0, 3.0, 8.0, None)  # None: without privacy
DELTA, CLIP_NORM, ROWS_PER_USER = 1e-6, 0.1, 32
LEAST_RATIO = 0.98
ROWS_AT_ONCE = 1 << 15
"""Of central training: a batch is read and summed in parts."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run at one epsilon takes. cohort: a share of all users. sgd, adam: the server's step.

    scale, bias_scale: how much of a preference comes from the history and from the item alone (`Preference`); what a
    user may change is bounded, and this shares it out.
    """

    cohort: float
    rounds: int
    scale: float
    bias_scale: float
    sgd: float | None = None
    adam: float | None = None

    def __post_init__(self) -> None:
        if (self.sgd is None) == (self.adam is None):
            raise ValueError(f"one of sgd and adam must be given, got {self.sgd} and {self.adam}")

    def optimizer(self, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Returns the server's optimizer."""
        if self.adam is not None:
            return torch.optim.Adam(weights, lr=self.adam)
        return torch.optim.SGD(weights, lr=self.sgd or 0.0)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trained model. made_of: names data, setting, plan, step and version: of another it is another trial."""

    dataset: str
    way: str
    epsilon: float | None
    seed: int
    made_of: str
    noise_multiplier: float
    recall: float
    ndcg: float
    popularity_recall: float
    popularity_ndcg: float
    seconds: float

    @property
    def key(self) -> tuple[str, str, int]:
        """What no two trials have in common."""
        return self.made_of, self.way, self.seed


SEEDS = {PINTEREST: 5, ALIBABA: 10}
"""A run of the one takes half a minute of a core's time, of the other a second."""

SETTINGS: Mapping[tuple[str, float | None], Setting] = {
    (PINTEREST, 1.0): Setting(cohort=1 / 3, rounds=16, scale=1.0, bias_scale=4.0, sgd=130.0),
    (PINTEREST, 3.0): Setting(cohort=1 / 3, rounds=16, scale=4.0, bias_scale=2.0, sgd=2000.0),
    (PINTEREST, 8.0): Setting(cohort=1 / 9, rounds=50, scale=4.0, bias_scale=1.0, adam=0.02),
    (PINTEREST, None): Setting(cohort=1 / 9, rounds=50, scale=4.0, bias_scale=1.0, adam=0.02),
    (ALIBABA, 1.0): Setting(cohort=1 / 3, rounds=32, scale=1.0, bias_scale=4.0, sgd=10.0),
    (ALIBABA, 3.0): Setting(cohort=1 / 3, rounds=32, scale=1.0, bias_scale=4.0, sgd=30.0),
    (ALIBABA, 8.0): Setting(cohort=1 / 3, rounds=32, scale=1.0, bias_scale=4.0, sgd=60.0),
    (ALIBABA, None): Setting(cohort=1 / 3, rounds=32, scale=1.0, bias_scale=4.0, sgd=60.0),
}


def trials(
    choices: Choices,
    setting: Setting,
    epsilon: float | None,
    *,
    seeds: int,
    kept: Kept[Trial],
    ways: Sequence[Way] = WAYS,
) -> Iterator[Trial]:
    """Yields the trials of one data set at one epsilon; those in ``kept`` are not run again."""
    for seed in range(seeds):
        train, out = choices.split(seed)
        rows, floor = Pairs(train), ranking(train, out, popularity(train))
        plan = _plan(train, setting, epsilon)
        made_of = _fingerprint(choices, setting, plan)
        for way in ways:
            found = kept.found.get((made_of, way, seed))
            if found is None:
                started = time.monotonic()
                model = _trained(way, rows, setting, plan, seed)
                seconds = time.monotonic() - started
                reached = ranking(train, out, model)
                found = Trial(
                    dataset=choices.name,
                    way=way,
                    epsilon=epsilon,
                    seed=seed,
                    made_of=made_of,
                    noise_multiplier=plan.noise_multiplier,
                    recall=reached.recall,
                    ndcg=reached.ndcg,
                    popularity_recall=floor.recall,
                    popularity_ndcg=floor.ndcg,
                    seconds=seconds,
                )
                kept.add(found)
            yield found


def all_trials(
    name: str, data: Path, epsilons: Sequence[float | None], seeds: int | None, kept: Kept[Trial]
) -> list[Trial]:
    """Returns the trials of one data set of the folder ``data``. seeds: None where `SEEDS` has its own number."""
    choices = read(name, data)
    runs = seeds or SEEDS[name]
    return [one for eps in epsilons for one in trials(choices, SETTINGS[name, eps], eps, seeds=runs, kept=kept)]


def quick_figures(epsilons: Sequence[float | None], kept: Kept[Trial]) -> Iterator[Figure]:
    """Yields the figures of made-up choices, of few users: does it work?"""
    rng = np.random.default_rng(0)
    users, items = np.repeat(np.arange(100), 6), rng.integers(0, 30, 600)
    choices = Choices.of("made_up", users, items, 30)
    setting = Setting(cohort=1 / 2, rounds=2, scale=1.0, bias_scale=4.0, sgd=10.0)
    for epsilon in epsilons:
        yield from figures(list(trials(choices, setting, epsilon, seeds=1, kept=kept)))


def figures(found: Sequence[Trial]) -> Iterator[Figure]:
    """Yields means over seeds at each epsilon, and the federated over the central model's, seed by seed."""
    for dataset, epsilon in dict.fromkeys((one.dataset, one.epsilon) for one in found):
        name = f"{dataset}_{'none' if epsilon is None else f'epsilon_{epsilon:g}'}"
        here = [one for one in found if (one.dataset, one.epsilon) == (dataset, epsilon)]
        for metric in ("recall", "ndcg"):
            by_way = {way: [getattr(one, metric) for one in here if one.way == way] for way in WAYS}
            for way, values in by_way.items():
                if values:
                    yield from _spread(f"{name}_{way}_{metric}", values, "share")
            floor = [getattr(one, f"popularity_{metric}") for one in here if one.way == "federated"]
            yield Figure(name=f"{name}_popularity_{metric}", value=float(np.mean(floor)), unit="share")
            for way in ("central", "central_defaults"):
                if len(by_way[way]) == len(by_way["federated"]):
                    ratios = [mine / its for mine, its in zip(by_way["federated"], by_way[way], strict=True)]
                    least = LEAST_RATIO if way == "central" else None
                    yield from _spread(f"{name}_{metric}_federated_over_{way}", ratios, "", at_least=least)


def _spread(name: str, values: Sequence[float], unit: str, *, at_least: float | None = None) -> Iterator[Figure]:
    """Yields the mean, and with several seeds both ends of its interval."""
    spread = Spread.of(values)
    yield Figure(name=name, value=spread.mean, unit=unit, at_least=at_least)
    if len(values) > 1:
        yield Figure(name=f"{name}_low", value=spread.low, unit=unit)
        yield Figure(name=f"{name}_high", value=spread.high, unit=unit)


def _plan(train: Choices, setting: Setting, epsilon: float | None) -> FederatedPlan:
    cohort = round(setting.cohort * train.population)
    if epsilon is None:
        return FederatedPlan.without_privacy(population=train.population, cohort=cohort, rounds=setting.rounds)
    return FederatedPlan.for_budget(
        Budget(epsilon=epsilon, delta=DELTA, unit="user"),
        population=train.population,
        cohort=cohort,
        rounds=setting.rounds,
        clip_norm=CLIP_NORM,
    )


def _as_central(plan: FederatedPlan, *, averaging: float | None) -> TrainPlan:
    """Returns the central plan with the sampler, clip, noise and number of steps of ``plan``.

    averaging: of the last iterates; None takes the default.
    """
    if plan.budget is None:
        unit, epochs = "user", plan.rounds * plan.cohort / plan.population
        twin = TrainPlan.without_privacy(
            population=plan.population,
            unit=unit,
            batch=plan.cohort,
            epochs=epochs,
            rows_per_unit=ROWS_PER_USER,
            rows_at_once=ROWS_AT_ONCE,
            averaging=averaging,
            combined="mean",
        )
        return dataclasses.replace(twin, steps=plan.rounds)
    made = TrainPlan(
        budget=plan.budget,
        population=plan.population,
        batch=plan.cohort,
        steps=plan.rounds,
        rows_per_unit=ROWS_PER_USER,
        clip_norm=plan.clip_norm,
        noise_multiplier=plan.noise_multiplier,
        rows_at_once=ROWS_AT_ONCE,
        combined="mean",
    )
    return made if averaging is None else dataclasses.replace(made, averaging=averaging)


def _trained(way: Way, rows: Pairs, setting: Setting, plan: FederatedPlan, seed: int) -> Preference:
    """Returns the model that ``way`` trains; the same initial weights in all ways."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Preference(rows.choices.catalog, scale=setting.scale, bias_scale=setting.bias_scale)
    if way == "federated":
        task = Task(model=model, local_learning_rate=1.0, local_steps=1, rows_per_user=ROWS_PER_USER)
        trained = federate(task, rows, plan, optimizer=setting.optimizer).model
    else:
        own = way == "central_defaults"
        optimizer = None if own else setting.optimizer(list(model.parameters()))
        central = _as_central(plan, averaging=None if own else 0.0)
        trained = privads.fit(model, cast(Logs, rows), central, optimizer=optimizer).model
    return cast(Preference, trained)


def _fingerprint(choices: Choices, setting: Setting, plan: FederatedPlan) -> str:
    step = sgd_step(_as_central(plan, averaging=None))  # that of ``central_defaults``, which may change
    return name_of(choices.name, len(choices.users), setting, plan, step)
