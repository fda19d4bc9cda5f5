"""`run.toml` as a value, and the training job that it describes."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from accounting.budget import Budget
from accounting.ledger import Ledger
from privads.config import ConfigError, override, parse_model
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.models import build
from privads.training.checkpoint import check_writable
from privads.training.fit import Progress, fit
from privads.training.plan import TrainPlan
from privads.training.run import Run

SQLITE = "sqlite:///"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataTable(_Table):
    """Where the rows are, and which of them are held out."""

    path: str
    schema_: str = Field(alias="schema")
    test_after: datetime | None = None
    test_fraction: float | None = Field(default=None, gt=0, lt=1)
    salt: str = "privads"

    @model_validator(mode="after")
    def _one_split(self) -> Self:
        if self.test_after is not None and self.test_fraction is not None:
            raise ValueError("test_after and test_fraction are two ways to split: give one")
        return self


class LedgerTable(_Table):
    """Where the budget is kept."""

    url: str


class ModelTable(BaseModel):
    """Which model, and its settings."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str


class PlanTable(_Table):
    """What the run may cost. Everything but epsilon, delta and unit has a default computed from public facts."""

    epsilon: float | None = None
    delta: float | None = None
    unit: str
    without_privacy: bool = False
    population: int | None = Field(default=None, gt=0)
    batch: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    rows_per_unit: int | None = Field(default=None, gt=0)
    clip_norm: float | None = None
    learning_rate: float | None = None
    averaging: float | None = None

    @model_validator(mode="after")
    def _budget_is_stated(self) -> Self:
        if not self.without_privacy and (self.epsilon is None or self.delta is None):
            missing = "epsilon" if self.epsilon is None else "delta"
            raise ValueError(f"missing key 'plan.{missing}': a privacy budget has no default")
        return self


class RunTable(_Table):
    """Where the run folder goes, and the seed of initial weights and bootstrap."""

    out: str | None = None
    seed: int = 0
    insecure_seed: int | None = None


class RunConfig(_Table):
    """The whole of `run.toml`."""

    data: DataTable
    model: ModelTable
    plan: PlanTable
    ledger: LedgerTable | None = None
    run: RunTable = RunTable()


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """A training job whose public facts were all checked: nothing was read, nothing charged."""

    config: RunConfig
    train: Logs
    test: Logs | None
    model: torch.nn.Module
    plan: TrainPlan
    ledger: Ledger | None
    out: Path

    def run(self, *, progress: Progress | None = None) -> Run:
        """Returns the finished run, saved to its folder."""
        run = fit(
            self.model,
            self.train,
            self.plan,
            ledger=self.ledger,
            test=self.test,
            progress=progress,
            seed=self.config.run.seed,
            insecure_seed=self.config.run.insecure_seed,
            config=self.config.model_dump(mode="json", by_alias=True, exclude_none=True),
        )
        run.save(self.out)
        return run


def read_config(file: Path, settings: Sequence[str] = ()) -> RunConfig:
    """Returns the configuration in ``file`` with ``settings`` (TABLE.KEY=VALUE) applied.

    Paths inside the file are relative to its folder, paths in ``settings`` to the working directory.
    """
    try:
        data: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    data = _anchored(data, file.parent)
    for setting in settings:
        data = override(data, setting)
    return parse_model(RunConfig, data, source=str(file))


def prepare(config: RunConfig) -> TrainJob:
    """Returns the job, with everything refused that can be refused before a row is read or a charge made."""
    schema = Schema.load(config.data.schema_)
    logs = Logs(config.data.path, schema)
    logs.check()
    train, test = _split(logs, config.data)
    out = Path(config.run.out or f"runs/{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}-{config.model.name}")
    with torch.random.fork_rng():
        torch.manual_seed(config.run.seed)
        model = build(config.model.name, schema, config.model.model_extra)
    ledger = None if config.ledger is None or config.plan.without_privacy else Ledger.open(config.ledger.url)
    if ledger is not None:
        ledger.balance(schema.dataset)  # an unknown data set is refused here, before the noise is calibrated
    plan = make_plan(config.plan, schema)
    check_writable(out)
    return TrainJob(config=config, train=train, test=test, model=model, plan=plan, ledger=ledger, out=out)


def make_plan(table: PlanTable, schema: Schema) -> TrainPlan:
    """Returns the plan of a [plan] table for this schema."""
    schema.check_unit(table.unit)
    population = schema.population_of(table.unit) if table.population is None else table.population
    shared = table.model_dump(include={"batch", "epochs", "rows_per_unit", "learning_rate", "averaging"})
    if table.without_privacy or table.epsilon is None or table.delta is None:
        return TrainPlan.without_privacy(population=population, unit=table.unit, **shared)
    budget = Budget(epsilon=table.epsilon, delta=table.delta, unit=table.unit)
    return TrainPlan.for_budget(budget, population=population, clip_norm=table.clip_norm, **shared)


def _split(logs: Logs, table: DataTable) -> tuple[Logs, Logs | None]:
    if table.test_after is not None:
        return logs.split(after=table.test_after)
    if table.test_fraction is not None:
        return logs.split(test_fraction=table.test_fraction, salt=table.salt)
    return logs, None


def _anchored(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns ``data`` with its relative paths read from ``folder``."""
    result = dict(data)
    table = result.get("data")
    if isinstance(table, dict):
        table = dict(table)
        if isinstance(table.get("path"), str):
            table["path"] = str(folder / table["path"])
        if isinstance(table.get("schema"), str) and (folder / table["schema"]).is_file():
            table["schema"] = str(folder / table["schema"])
        result["data"] = table
    ledger = result.get("ledger")
    if isinstance(ledger, dict) and isinstance(ledger.get("url"), str) and ledger["url"].startswith(SQLITE):
        result["ledger"] = {**ledger, "url": f"{SQLITE}{folder / ledger['url'].removeprefix(SQLITE)}"}
    return result
