"""`Run`: a trained model with what it cost, and the report about both."""

import dataclasses
import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from accounting import mechanisms
from accounting.accountant import Bounds
from accounting.budget import EXAMPLE
from accounting.ledger import Entry, Ledger
from accounting.report import record, scores
from accounting.report.guarantee import Guarantee
from accounting.report.started import StartedFrom
from accounting.report.summary import summary
from privads.attacks.evidence import Evidence
from privads.batch import Rows
from privads.evaluation.calibrate import Calibration
from privads.evaluation.metrics import TaskMetrics
from privads.evaluation.values import ValueMetrics
from privads.features.pipeline import Features
from privads.logs.schema import Schema
from privads.promise import guarantee, ledger_budget, plain, this_run
from privads.stated import stated
from privads.training.assumptions import assumptions
from privads.training.finished import judge, predict, task_records, value_records
from privads.training.plan import TrainPlan
from privads.training.resume import Resumption
from privads.training.scope import bounded_by, covered, not_covered, setting

RELEASED = "final model"


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """What the engine knows at the end of a run, for the report.

    loss_probed: the probe covered the loss. own_loop: the training loop was not `privads.fit`. own_parts: model or loss
    is not privads's. resumptions: the run went on from a checkpoint.
    """

    steps_done: int
    seconds: float
    randomness: str
    floating_point: str
    insecure_seed: int | None
    optimizer: str
    learning_rate: float
    loss_probed: bool
    own_loop: bool = True
    own_parts: bool = True
    resumptions: tuple[Resumption, ...] = ()
    weights_sha256: str | None = None
    split: str = "not stated"
    seed: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A finished training run. ``model`` is the plain module, with the averaged weights and no hooks.

    released: metrics that were released with privacy. calibrations: maps fitted to what those were read from.
    started_from: the runs in the weights that it began with, the latest first. features: the fitted transforms by which
    the model reads rows. evidence: of an audit with canaries.
    """

    model: nn.Module
    plan: TrainPlan
    schema: Schema
    facts: Facts
    ledger: Ledger | None = None
    entry: Entry | None = None
    metrics: Mapping[str, TaskMetrics] = field(default_factory=dict)
    values: Mapping[str, ValueMetrics] = field(default_factory=dict)
    released: tuple[scores.TaskMetrics, ...] = ()
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    started_from: tuple[StartedFrom, ...] = ()
    features: Features | None = None
    evidence: Evidence | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __str__(self) -> str:
        return summary(self.report())

    @property
    def epsilon(self) -> Bounds:
        """Bounds on what the run cost, at the budget's delta."""
        return self.plan.spent

    def predict(self, rows: Rows) -> dict[str, NDArray[np.float64]]:
        """Returns {task: (rows,) probability of an event, or mean of a number}. Reads the rows."""
        return predict(self.model, rows)

    def evaluated_on(self, rows: Rows, *, replicates: int = 200, seed: int = 0) -> "Run":
        """Returns the same run with metrics on held-out ``rows``, each task on the rows where its label is observed
        and, where it waits, its window has closed.

        This reads the rows and its result is not covered by epsilon: the report says so. replicates: of the bootstrap.
        """
        metrics, values = judge(self.model, self.schema, rows, replicates=replicates, seed=seed)
        return dataclasses.replace(self, metrics=metrics, values=values)

    def report(self) -> record.Report:
        """Returns the privacy report of this run; what people say of it is in the table ``report`` of ``config``."""
        said = stated(self.config)
        return record.Report(
            run=this_run(
                identity=self.id,
                created_at=self.created_at,
                seconds=self.facts.seconds,
                seed=self.facts.seed,
                insecure_seed=self.facts.insecure_seed,
                config={**self.config, "plan": dataclasses.asdict(self.plan)},
                started_from=self.started_from,
                author=said.author,
            ),
            guarantee=self._guarantee(),
            mechanism=self._mechanism(),
            assumptions=tuple(assumptions(self.plan, self.facts, charged=self.entry is not None)),
            covered=tuple(covered(self)),
            not_covered=tuple(not_covered(self)),
            data=record.Data(
                dataset=self.schema.dataset,
                population=self.plan.population,
                public=self.schema.public,
                split=self.facts.split,
                schema_sha256=self.schema.sha256,
                labels=self.schema.tasks,
                categorical=len(self.schema.categorical),
                numeric=len(self.schema.numeric),
                unit_columns=self.schema.unit,
                features=None if self.features is None else str(self.features.cost or "free: fitted to nothing"),
            ),
            model=record.Model(
                name=type(self.model).__name__,
                parameters=sum(parameter.numel() for parameter in self.model.parameters()),
                optimizer=self.facts.optimizer,
                learning_rate=self.facts.learning_rate,
                averaging=f"mean of the last {self.plan.averaging:.0%} of the iterates"
                if self.plan.averaging
                else "none",
                calibration="; ".join(f"{task}: {one}" for task, one in self.calibrations.items()) or None,
                settings=settings_of(self.model),
                weights_sha256=self.facts.weights_sha256,
            ),
            budget=self._ledger_budget(),
            metrics=(*task_records(self.schema, self.metrics), *self.released),
            values=value_records(self.values),
            audit=() if self.evidence is None else (self.evidence.result(),),
            product=said.product,
            setting=setting(RELEASED) if self.plan.private else None,
            security=said.security,
            justification=said.justification,
        )

    def save(self, folder: str | Path) -> Path:
        """Write model.safetensors, model.json, report.json and report.html into a new ``folder``; returns its path."""
        from privads.training.checkpoint import save

        return save(self, Path(folder))

    def _guarantee(self) -> Guarantee | None:
        budget = self.plan.budget
        if budget is None:
            return None
        return guarantee(
            self.plan.event_after,
            self.plan.steps,
            budget,
            self.epsilon,
            population=self.plan.population,
            owned=self._owned(),
            unit_columns=self.schema.unit,
            released=RELEASED,
        )

    def _owned(self) -> str:
        """Returns what neighbors differ in."""
        budget, records = self.plan.budget, self.plan.records
        if budget is None or budget.unit != "example":
            return "all rows of one unit" if budget is None else f"all rows of one {budget.unit}"
        if records == 1:
            return "one row"
        return f"one row, whose values the at most {records // 2} later rows that were made with it hold as well,"

    def _mechanism(self) -> record.Mechanism:
        plan, private = self.plan, self.plan.private
        return record.Mechanism(
            event=mechanisms.to_dict(plan.event),
            sampler=plan.sampler,
            sampling_rate=plan.sampling_rate,
            steps=plan.steps,
            batch=plan.batch,
            rows_per_unit=plan.rows_per_unit if plan.records == 1 or self._unit_is_row else plan.records,
            bounded_by=bounded_by(plan),
            clip_norm=plan.clip_norm if private else None,
            noise_multiplier=plan.noise_multiplier if private else None,
            noise_std=plan.noise_multiplier * plan.clip_norm if private and plan.clip_quantile is None else None,
            randomness=self.facts.randomness,
            floating_point=self.facts.floating_point,
            sampled="units" if plan.records == 1 else "rows",
            clipping=self._clipping(),
            table_noise=plan.table_noise,
            other_noise_multipliers=plan.other_noise_multipliers,
            implementation=f"privads.training on torch {torch.__version__} and Opacus {version('opacus')}",
        )

    @property
    def _unit_is_row(self) -> bool:
        return self.plan.budget is not None and self.plan.budget.unit == EXAMPLE

    def _clipping(self) -> str:
        plan = self.plan
        if not plan.private:
            return "none"
        what = "each row's gradient" if plan.records > 1 else f"the {plan.combined} of a unit's gradients"
        where = ", in tables and in the network apart" if plan.clipping == "per-group" else ""
        if plan.clip_quantile is None:
            return f"{what}{where}"
        return f"{what}; the clip norm is the first one, and follows the {plan.clip_quantile:g} quantile of the norms"

    def _ledger_budget(self) -> record.LedgerBudget | None:
        if self.ledger is None or self.entry is None or self.plan.budget is None:
            return None
        return ledger_budget(self.ledger, self.schema.dataset, self.entry)


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """Returns the SHA-256 of a model's weights, by name."""
    total = hashlib.sha256()
    for name in sorted(weights):
        one = weights[name].detach().cpu().contiguous()
        total.update(f"{name}{one.dtype}{tuple(one.shape)}".encode())
        total.update(one.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def settings_of(model: nn.Module) -> dict[str, Any]:
    """Returns the settings that a model was made with, as plain JSON; empty where it does not say."""
    settings: dict[str, Any] = plain(getattr(model, "settings", {}))
    return settings
