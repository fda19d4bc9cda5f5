"""The training job that a `run.toml` describes."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from accounting.budget import EXAMPLE, Budget, BudgetExceeded
from accounting.ledger import Ledger
from privads.attacks.canaries import Canaries
from privads.config import ConfigError, parse_model
from privads.evaluation.held_out import plan_held_out, with_released
from privads.evaluation.release import MetricsPlan
from privads.features.fitting import Fitting, check_place
from privads.features.pipeline import Features, plan_release
from privads.features.transforms import Pipeline
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.models import build
from privads.progress import Spending
from privads.run_config import DataTable, PlanTable, RunConfig
from privads.signals.release import Release
from privads.training import working
from privads.training.checkpoint import check_writable
from privads.training.fit import Checkpoint, Progress, fit
from privads.training.plan import TrainPlan
from privads.training.run import Run
from privads.training.start import check_start, start_of

KEPT_ROWS = "rows"
"""The folder beside the run folder for rows that are kept."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """A training job whose public facts were all checked: nothing was read, nothing charged.

    fitting: the features that are still to be fitted, after which train, test and model are made anew. metrics: what is
    released of the held-out rows; without it, they are judged without noise.
    """

    config: RunConfig
    train: Logs
    test: Logs | None
    model: torch.nn.Module
    plan: TrainPlan
    ledger: Ledger | None
    out: Path
    fitting: Fitting | None = None
    metrics: MetricsPlan | None = None
    start: Path | None = None
    checkpoint: Checkpoint | None = None
    canaries: Canaries | None = None

    def run(self, *, progress: Progress | None = None) -> Run:
        """Returns the finished run, saved to its folder; only then its working checkpoint is removed."""
        train, test, model = self.train, self.test, self.model
        if self.fitting is not None:
            features = self.fitting.run(train, self.ledger, insecure_seed=self.config.run.insecure_seed)
            train, test = train.with_features(features), None if test is None else test.with_features(features)
            model = model_of(self.config, train.schema)
        run = fit(
            model,
            train,
            self.plan,
            ledger=self.ledger,
            test=test if self.metrics is None else None,
            progress=progress,
            seed=self.config.run.seed,
            insecure_seed=self.config.run.insecure_seed,
            secure=self.config.run.secure,
            config=self.config.model_dump(mode="json", by_alias=True, exclude_none=True),
            start=self.start,
            checkpoint=self.checkpoint,
            canaries=self.canaries,
        )
        try:
            run = with_released(run, self.config, test, self.metrics, ledger=self.ledger)
        finally:  # what was trained and paid for is kept, whatever becomes of its metrics
            run.save(self.out)
            if self.checkpoint is not None:
                working.remove(self.checkpoint.path)
        return run


def canaries_of(config: RunConfig, budget: Budget | None) -> Canaries | None:
    """Returns what [audit] has planted; refuses what cannot contradict a claim of this budget."""
    if config.audit is None:
        return None
    canaries = Canaries(count=config.audit.canaries, kind=config.audit.kind)
    canaries.check(budget)
    return canaries


def prepare(config: RunConfig, *, resume: bool = False) -> TrainJob:
    """Returns the job, with everything refused that can be refused before a row is read or a charge made.

    resume: go on from the working checkpoint, where there is one.
    """
    out = folder_of(config)
    train, test = open_logs(config, cache=cache_of(config, out))
    schema = train.schema
    features, fitting = features_of(config, train)
    if features is not None:
        train, test = train.with_features(features), None if test is None else test.with_features(features)
        schema = train.schema
    model = model_of(config, schema)
    start = None if config.run.start is None else Path(config.run.start)
    if start is not None and fitting is not None:
        raise ConfigError("a run that starts from another's weights needs its features: name them, features.file")
    if start is not None:
        check_start(start_of(start), model, schema)
    checkpoint = checkpoint_of(config, out, resume=resume)
    if checkpoint is not None and fitting is not None and fitting.file is None:
        raise ConfigError("a run with a checkpoint must find its features again: say where to keep them, features.file")
    ledger = None if config.plan.without_privacy else open_ledger(config, schema)
    plan = make_plan(config.plan, schema)
    canaries = canaries_of(config, plan.budget)
    metrics = plan_held_out(config, test)
    beside = {} if metrics is None else {"evaluation": metrics.release}
    if fitting is not None and fitting.release is not None:
        beside = {"features": fitting.release, **beside}
    if ledger is not None and beside:
        check_all_fit(ledger, schema, beside, plan)
    return TrainJob(
        config=config,
        train=train,
        test=test,
        model=model,
        plan=plan,
        ledger=ledger,
        out=out,
        fitting=fitting,
        metrics=metrics,
        start=start,
        checkpoint=checkpoint,
        canaries=canaries,
    )


def model_of(config: RunConfig, schema: Schema) -> torch.nn.Module:
    """Returns the model that [model] names, with weights from ``run.seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(config.run.seed)
        return build(config.model.name, schema, config.model.model_extra)


def features_of(config: RunConfig, train: Logs) -> tuple[Features | None, Fitting | None]:
    """Returns the features that a run finds, or how it will fit them."""
    table, schema = config.features, train.source
    if table is None:
        return None, None
    pipeline = parse_model(Pipeline, {"transforms": table.transforms}, source="[features]")
    pipeline.check_unit(schema, config.plan.unit)
    file = None if table.file is None else Path(table.file)
    if file is not None and file.exists():
        features = Features.load(file)
        if features.pipeline != pipeline or features.source != schema:
            raise ConfigError(
                f"{file} was fitted to other transforms or another schema: remove it, or name another file"
            )
        if features.cost is not None and features.split != train.split_text:
            raise ConfigError(
                f"{file} was fitted to {features.split}, and this run trains on {train.split_text}: name another file"
            )
        _check_cost(features, config, file)
        return features, None
    if file is not None:
        check_place(file)
    budget, delta = None, table.delta or config.plan.delta
    if table.epsilon is not None and delta is not None:
        budget = Budget(epsilon=table.epsilon, delta=delta, unit=config.plan.unit)
    elif pipeline.queries(schema):
        missing = "epsilon" if table.epsilon is None else "delta"
        raise ConfigError(
            f"missing key 'features.{missing}': these transforms read the log, and a budget has no default"
        )
    release = plan_release(pipeline, schema, budget, rows_per_unit=table.rows_per_unit)
    return None, Fitting(pipeline=pipeline, release=release, file=file)


def _check_cost(features: Features, config: RunConfig, file: Path) -> None:
    """Refuse features that were fitted for another unit, or under another budget, than the job states."""
    cost, table = features.cost, config.features
    if cost is None or table is None:
        return
    if cost.unit != config.plan.unit and not features.source.public:
        raise ConfigError(
            f"{file} was fitted to protect {cost.unit!r}, but plan.unit is {config.plan.unit!r}: name another file"
        )
    delta = table.delta or config.plan.delta
    stated = (table.epsilon is None or cost.epsilon <= table.epsilon) and (delta is None or cost.delta <= delta)
    if not stated or cost.rows_per_unit != table.rows_per_unit:
        raise ConfigError(
            f"{file} was fitted with epsilon {cost.epsilon:.6g}, delta {cost.delta:.6g} and {cost.rows_per_unit} rows "
            "per unit, which is not what [features] states: state those, or name another file"
        )


def check_all_fit(ledger: Ledger, schema: Schema, beside: Mapping[str, Release], plan: Spending) -> None:
    """Refuse a job of which a part would be paid for, and a later one would then not fit."""
    balance = ledger.balance(schema.dataset)
    if balance.rule != "basic" or plan.budget is None or balance.limit.unit != plan.budget.unit:
        return  # how other rules add up is seen when the next charge is made
    parts, releases = " and ".join([*beside, "training"]), beside.values()
    needed = plan.spent.upper + sum(one.spent.upper for one in releases)
    delta = plan.budget.delta + sum(one.budget.delta for one in releases)
    if needed > balance.left_epsilon:
        raise BudgetExceeded(
            f"{schema.dataset!r} has epsilon {balance.left_epsilon} left, but {parts} together ask for {needed:.6g}; "
            f"lower {' or '.join(f'{one}.epsilon' for one in [*beside, 'plan'])}"
        )
    if delta > balance.left_delta * (1 + 1e-9):
        raise BudgetExceeded(
            f"{schema.dataset!r} has delta {balance.left_delta} left, but {parts} together ask for {delta:.6g}; "
            f"lower {' or '.join(f'{one}.delta' for one in [*beside, 'plan'])}"
        )


def folder_of(config: RunConfig) -> Path:
    """Returns the run folder, by default one named by the time and the model; refuses one that cannot be written."""
    out = Path(config.run.out or f"runs/{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}-{config.model.name}")
    check_writable(out)
    return out


def cache_of(config: RunConfig, out: Path) -> Path:
    """Returns the folder for the encoded rows of a job that writes ``out``."""
    return out.parent / KEPT_ROWS if config.data.keep_cache else out.parent


def open_logs(config: RunConfig, *, cache: Path | None = None) -> tuple[Logs, Logs | None]:
    """Returns (train, test), with missing files and columns refused; reads no row."""
    keep = config.data.keep_cache and cache is not None
    logs = Logs(config.data.path, Schema.load(config.data.schema_), cache=cache, keep_cache=keep)
    logs.check()
    return split_of(logs, config.data)


def open_ledger(config: RunConfig, schema: Schema) -> Ledger | None:
    """Returns the ledger of a run, which knows the data set; None for public rows, where the file names none."""
    if config.ledger is None:
        if not schema.public:
            raise ConfigError(
                f"data set {schema.dataset!r} is private, and ledger.url is missing: add [ledger] with url = "
                f'"sqlite:///budget.db", made once by `privads budget init`'
            )
        return None
    ledger = Ledger.open(config.ledger.url)
    ledger.balance(schema.dataset)  # an unknown data set is refused here, before the noise is calibrated
    return ledger


def checkpoint_of(config: RunConfig, out: Path, *, resume: bool) -> Checkpoint | None:
    """Returns the working checkpoint that [run] asks for; refuses one where it cannot be kept, and for an audit."""
    if config.run.checkpoint is None:
        if resume:
            raise ConfigError("nothing to resume from: name the file of the working checkpoint, run.checkpoint")
        return None
    path = Path(config.run.checkpoint)
    working.check_outside(path, out)
    found = Checkpoint(path=path, every=config.run.checkpoint_every, resume=resume, keep=True)
    found.found(config.run.insecure_seed)
    if config.audit is not None:
        raise ConfigError("a run with canaries cannot be resumed: leave out [audit], or run.checkpoint")
    return found


def make_plan(table: PlanTable, schema: Schema) -> TrainPlan:
    """Returns the plan of a [plan] table for this schema."""
    schema.check_unit(table.unit)
    schema.check_history(table.unit, records=table.records)
    population = table.population
    if population is None:  # with records above 1 rows are sampled, whoever owns them
        population = schema.population_of(table.unit if table.records == 1 else EXAMPLE)
    with_privacy = {"clip_norm", "clipping", "clip_quantile", "selection_noise_multiplier", "selection_threshold"}
    own = {"epsilon", "delta", "unit", "without_privacy", "population"}
    shared = table.model_dump(exclude=with_privacy | own)
    if table.without_privacy or table.epsilon is None or table.delta is None:
        return TrainPlan.without_privacy(population=population, unit=table.unit, **shared)
    budget = Budget(epsilon=table.epsilon, delta=table.delta, unit=table.unit)
    private = table.model_dump(include=with_privacy)
    return TrainPlan.for_budget(budget, population=population, **shared, **private)


def split_of(logs: Logs, table: DataTable) -> tuple[Logs, Logs | None]:
    """Returns (train, test) as ``[data]`` splits the rows; opens nothing."""
    if table.test_after is not None:
        return logs.split(after=table.test_after)
    if table.test_fraction is not None:
        return logs.split(test_fraction=table.test_fraction, salt=table.salt)
    return logs, None
