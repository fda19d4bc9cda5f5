"""The federated job that a `run.toml` describes, in this process."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from accounting.budget import Budget, Neighbors
from accounting.ledger import Ledger
from federation import defaults
from federation.config import FederationTable
from federation.plan import FederatedPlan
from federation.population import silos_of
from federation.rounds import ServerOptimizer
from federation.run import FederatedRun, released_of
from federation.server import Progress, federate
from federation.task import Task
from privads.attacks.canaries import Canaries
from privads.config import ConfigError
from privads.evaluation.held_out import plan_held_out, with_released
from privads.evaluation.release import MetricsPlan
from privads.job import (
    cache_of,
    canaries_of,
    check_all_fit,
    checkpoint_of,
    features_of,
    folder_of,
    model_of,
    open_ledger,
    open_logs,
)
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.progress import bar
from privads.run_config import PlanTable, RunConfig
from privads.training import working
from privads.training.fit import Checkpoint

NEIGHBORS: dict[str, Neighbors] = {"central": "add-remove", "local": "replace"}
"""What a budget of each mechanism is about, which [plan] need not say."""


@dataclass(frozen=True, kw_only=True)
class FederateJob:
    """A federated job whose public facts were all checked: nothing was read, nothing charged.

    metrics: what is released of the held-out rows; without it, they are judged without noise.
    """

    config: RunConfig
    silos: tuple[Logs, ...]
    test: Logs | None
    task: Task
    plan: FederatedPlan
    optimizer: ServerOptimizer
    ledger: Ledger | None
    out: Path
    shared_units: bool = False
    metrics: MetricsPlan | None = None
    checkpoint: Checkpoint | None = None
    canaries: Canaries | None = None

    def run(self, *, progress: Progress | None = None) -> FederatedRun:
        """Returns the finished run, saved to its folder; only then its working checkpoint is removed."""
        facts = self.config.run
        found = federate(
            self.task,
            self.silos,
            self.plan,
            shared_units=self.shared_units,
            ledger=self.ledger,
            optimizer=self.optimizer,
            progress=progress,
            insecure_seed=facts.insecure_seed,
            secure=facts.secure,
            checkpoint=self.checkpoint,
            canaries=self.canaries,
        )
        stated = self.config.model_dump(mode="json", by_alias=True, exclude_none=True)
        run = replace(found, config=stated, seed=facts.seed)
        try:
            if self.test is not None and self.metrics is None:
                run = run.evaluated_on(self.test, seed=facts.seed)
            run = with_released(run, self.config, self.test, self.metrics, ledger=self.ledger)
        finally:  # what was trained and paid for is kept, whatever becomes of its metrics
            run.save(self.out)
            if self.checkpoint is not None:
                working.remove(self.checkpoint.path)
        return run


def prepare(config: RunConfig, table: FederationTable, *, resume: bool = False) -> FederateJob:
    """Returns the job, with everything refused that can be refused before a row is read or a charge made.

    resume: go on from the working checkpoint, where there is one.
    """
    if config.run.start is not None:
        raise ConfigError("run.start is for `privads train`: a federated run begins with new weights; leave it out")
    out = folder_of(config)
    silos, test = open_silos(config, table, cache=cache_of(config, out))
    schema = silos[0].schema
    checkpoint = checkpoint_of(config, out, resume=resume)
    ledger = None if config.plan.without_privacy else open_ledger(config, silos[0].source)
    plan = make_plan(config.plan, table, schema, silos=len(silos))
    canaries = canaries_of(config, plan.budget)
    metrics = plan_held_out(config, test)
    if ledger is not None and metrics is not None:
        check_all_fit(ledger, schema, {"evaluation": metrics.release}, plan)
    server = table.server or defaults.default_server(plan)
    return FederateJob(
        config=config,
        silos=silos,
        test=test,
        task=make_task(config, table, schema),
        plan=plan,
        optimizer=defaults.server_optimizer(plan, server, table.server_learning_rate),
        ledger=ledger,
        out=out,
        shared_units=table.shared_units,
        metrics=metrics,
        canaries=canaries,
        checkpoint=None if checkpoint is None else replace(checkpoint, every=None),  # every round is kept
    )


def open_silos(
    config: RunConfig, table: FederationTable, *, cache: Path | None = None
) -> tuple[tuple[Logs, ...], Logs | None]:
    """Returns (the rows that each silo trains on, those that are held out), with missing files and columns refused.

    The held-out rows are those of ``data.path``: the split is one and the same for all files, by a row's time or its
    unit's key, so no silo trains on any of them.
    """
    train, test = open_logs(config, cache=cache)
    silos = [train]
    if table.silo_paths:
        paths = [config.data.model_copy(update={"path": path}) for path in table.silo_paths]
        silos = [open_logs(config.model_copy(update={"data": one}), cache=cache)[0] for one in paths]
    features, fitting = features_of(config, train)
    if fitting is not None and fitting.release is not None:
        raise ConfigError(
            "[features] has transforms that are fitted to rows, and those of a federated run stay where they are: "
            "leave them out, or name the file of fitted ones, features.file"
        )
    if fitting is not None:
        features = replace(fitting, file=None).run(train, None)  # they are free: nothing is read, nothing to keep
    if features is not None:
        silos = [one.with_features(features) for one in silos]
        test = None if test is None else test.with_features(features)
    silos_of(silos)
    return tuple(silos), test


def make_plan(plan: PlanTable, table: FederationTable, schema: Schema, *, silos: int) -> FederatedPlan:
    """Returns the plan of [federation], for the budget and population of [plan].

    silos: how many there are; a user is taken to be in all of them where the table does not say in how many.
    """
    if plan.unit == "example":
        raise ConfigError("a federated run protects users: plan.unit must be their name in the schema, such as 'user'")
    schema.check_unit(plan.unit)
    if table.silos is not None and table.silos > silos:
        raise ConfigError(
            f"federation.silos, how many silos a user may be in, must be at most their number of {silos}, "
            f"got {table.silos}"
        )
    population = schema.population_of(plan.unit) if plan.population is None else plan.population
    cohort = table.cohort or defaults.default_cohort(population, over_selection=table.over_selection)
    rounds = table.rounds or defaults.default_rounds(population)
    most = silos if table.silos is None else table.silos
    if plan.without_privacy or plan.epsilon is None or plan.delta is None:
        return FederatedPlan.without_privacy(
            population=population,
            cohort=cohort,
            rounds=rounds,
            over_selection=table.over_selection,
            silos=most,
            table_noise=table.table_noise,
        )
    neighbors = NEIGHBORS[table.mechanism]
    return FederatedPlan.for_budget(
        Budget(epsilon=plan.epsilon, delta=plan.delta, unit=plan.unit, neighbors=neighbors),
        population=population,
        cohort=cohort,
        rounds=rounds,
        clip_norm=table.clip_norm or defaults.CLIP_NORM,
        over_selection=table.over_selection,
        silos=most,
        mechanism=table.mechanism,
        participations=table.participations,
        clip_quantile=table.clip_quantile,
        table_noise=table.table_noise,
        selection_noise_multiplier=table.selection_noise_multiplier,
        selection_threshold=table.selection_threshold,
    )


def make_task(config: RunConfig, table: FederationTable, schema: Schema) -> Task:
    """Returns what users train: the model of [model], by the numbers of [federation]."""
    return Task(
        model=model_of(config, schema),
        local_learning_rate=table.local_learning_rate or defaults.LOCAL_LEARNING_RATE,
        local_steps=table.local_steps or defaults.LOCAL_STEPS,
        rows_per_user=table.rows_per_user or defaults.ROWS_PER_USER,
        local_rows=table.local_rows,
    )


def shown(plan: FederatedPlan) -> AbstractContextManager[Callable[[int], None]]:
    """Shows on a terminal how far a run is, and what it has cost."""
    return bar(plan, each="rounds", released=released_of(plan))
