"""`FederatedRun`: a model that was trained where the rows are, with what it cost, and the report about both."""

import dataclasses
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dp_accounting import dp_event
from numpy.typing import NDArray
from torch import nn

from accounting import mechanisms
from accounting.accountant import Bounds, epsilon
from accounting.ledger import Entry, Ledger
from accounting.report import record, scores
from accounting.report.guarantee import Guarantee
from accounting.report.setting import Actor, Setting
from accounting.report.summary import summary
from federation.plan import FederatedPlan
from federation.task import Task
from privads.attacks.evidence import NOT_COVERED, Evidence
from privads.batch import Rows
from privads.evaluation.calibrate import Calibration
from privads.evaluation.metrics import TaskMetrics
from privads.evaluation.values import ValueMetrics
from privads.features.pipeline import Features
from privads.logs.schema import Schema
from privads.models import MODELS
from privads.promise import guarantee, ledger_budget, this_run
from privads.stated import stated
from privads.training.assumptions import of_resumptions
from privads.training.checkpoint import save
from privads.training.finished import judge, predict, said_of_metrics, task_records, value_records
from privads.training.resume import Resumption
from privads.training.run import fingerprint, settings_of

RELEASED = "models of all rounds"
SENT = "messages of one user in the whole run"

_TABLES = {
    "dense": (
        "the server's optimizer sees the noised mean alone, with noise on every row of every table",
        "after_round",
    ),
    "lazy": (
        "every row of a table has the noise of all rounds before it when it is sent, and so has the last model",
        "federation.tables.settle and flush",
    ),
    "adafest": (
        "which rows of tables a round changes follows from noised counts alone, and each of them gets its noise",
        "SelectedTables",
    ),
}
"""What a report says of each `federation.plan.TableNoise`, and what makes it so."""


def released_of(plan: FederatedPlan) -> str:
    """Returns what a plan's epsilon is about."""
    return SENT if plan.mechanism == "local" else RELEASED


@dataclass(frozen=True, kw_only=True, eq=False)
class FederatedRun:
    """A finished federated run. ``model`` is a plain module with the last round's weights; the task's is as it was.

    silos: how many there were. backend, not_covered: how they were reached, and what that leaves open. limited: at most
    the plan's silos used one user's rows. clip_norm: after the last round. optimizer: the name of the server's. All
    else: as `privads.training.run.Run` has it.
    """

    model: nn.Module
    task: Task
    plan: FederatedPlan
    schema: Schema
    silos: int
    rounds_done: int
    clip_norm: float
    seconds: float
    optimizer: str
    randomness: str
    floating_point: str
    insecure_seed: int | None
    backend: str = "this process"
    not_covered: tuple[str, ...] = ()
    split: str = "not stated"
    limited: bool = False
    features: Features | None = None
    metrics: Mapping[str, TaskMetrics] = field(default_factory=dict)
    values: Mapping[str, ValueMetrics] = field(default_factory=dict)
    released: tuple[scores.TaskMetrics, ...] = ()
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    ledger: Ledger | None = None
    entry: Entry | None = None
    resumptions: tuple[Resumption, ...] = ()
    evidence: Evidence | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __str__(self) -> str:
        return summary(self.report())

    @property
    def epsilon(self) -> Bounds:
        """Bounds on what the run cost, at the budget's delta."""
        budget = self.plan.budget
        if budget is None or not self._sent_again:
            return self.plan.spent
        return epsilon(self._event_after(self.plan.rounds), delta=budget.delta, neighbors=budget.neighbors)

    @property
    def _sent_again(self) -> int:
        """How many updates a user may have sent beyond the plan's participations: one in each round that was lost."""
        local = self.plan.participations is not None
        return sum(one.step < self.plan.rounds for one in self.resumptions) if local else 0

    def _event_after(self, rounds: int) -> dp_event.DpEvent:
        """Returns what was executed after the first ``rounds`` rounds, and in those that were lost."""
        if self.plan.participations is None or not self._sent_again:
            return self.plan.event_after(rounds)
        once = mechanisms.gaussian(noise_multiplier=self.plan.noise_multiplier)
        return mechanisms.repeated(once, min(rounds, self.plan.participations) + self._sent_again)

    def predict(self, rows: Rows) -> dict[str, NDArray[np.float64]]:
        """Returns {task: (rows,) probability of an event, or mean of a number}. Reads the rows."""
        return predict(self.model, rows)

    def evaluated_on(self, rows: Rows, *, replicates: int = 200, seed: int = 0) -> "FederatedRun":
        """Returns the same run with metrics on held-out ``rows``, as `privads.training.run.Run.evaluated_on` does.

        This reads the rows and its result is not covered by epsilon: the report says so. replicates: of the bootstrap.
        """
        metrics, values = judge(self.model, self.schema, rows, replicates=replicates, seed=seed)
        return dataclasses.replace(self, metrics=metrics, values=values)

    def save(self, folder: str | Path) -> Path:
        """Write model.safetensors, model.json, report.json and report.html into a new ``folder``; returns its path."""
        return save(self, Path(folder))

    def report(self) -> record.Report:
        """Returns the privacy report of this run; what people say of it is in the table ``report`` of ``config``."""
        plan, schema, said = self.plan, self.schema, stated(self.config)
        settings = {
            **self.config,
            "plan": dataclasses.asdict(plan),
            "task": self.task.settings,
            "silos": self.silos,
            "backend": self.backend,
        }
        return record.Report(
            run=this_run(
                identity=self.id,
                created_at=self.created_at,
                seconds=self.seconds,
                seed=self.seed,
                insecure_seed=self.insecure_seed,
                config=settings,
                author=said.author,
            ),
            guarantee=self._guarantee(),
            mechanism=self._mechanism(),
            assumptions=tuple(self._assumptions()),
            covered=tuple(self._covered()),
            not_covered=tuple(self._not_covered()),
            data=record.Data(
                dataset=schema.dataset,
                population=plan.population,
                public=schema.public,
                split=self.split,
                schema_sha256=schema.sha256,
                labels=schema.tasks,
                categorical=len(schema.categorical),
                numeric=len(schema.numeric),
                unit_columns=schema.unit,
                features=None if self.features is None else str(self.features.cost or "free: fitted to nothing"),
            ),
            model=record.Model(
                name=type(self.model).__name__,
                parameters=sum(parameter.numel() for parameter in self.model.parameters()),
                optimizer=f"{self.optimizer} on the server, SGD at the users'",
                learning_rate=self.task.local_learning_rate,
                averaging="none",
                calibration="; ".join(f"{task}: {one}" for task, one in self.calibrations.items()) or None,
                settings=settings_of(self.model),
                weights_sha256=fingerprint(self.model.state_dict()),
            ),
            budget=None
            if self.ledger is None or self.entry is None
            else ledger_budget(self.ledger, schema.dataset, self.entry),
            metrics=(*task_records(schema, self.metrics), *self.released),
            values=value_records(self.values),
            audit=() if self.evidence is None else (self.evidence.result(),),
            product=said.product,
            setting=self._setting() if plan.private else None,
            security=said.security,
            justification=said.justification,
        )

    def _guarantee(self) -> Guarantee | None:
        budget = self.plan.budget
        if budget is None:
            return None
        return guarantee(
            self._event_after,
            self.plan.rounds,
            budget,
            self.epsilon,
            population=self.plan.population,
            owned=f"all rows of one {budget.unit}",
            unit_columns=self.schema.unit,
            released=released_of(self.plan),
        )

    def _mechanism(self) -> record.Mechanism:
        plan, private = self.plan, self.plan.private
        fixed = private and plan.clip_quantile is None
        clipping = "each user's whole update, tables and network together"
        if plan.clip_quantile is not None:
            clipping += (
                f"; the clip norm is the first one, and follows the {plan.clip_quantile:g} quantile of the norms"
            )
        return record.Mechanism(
            event=mechanisms.to_dict(self._event_after(plan.rounds)),
            sampler=plan.sampler if plan.participations is None else "every user, as often as the plan lets them",
            sampling_rate=plan.sampling_rate if plan.participations is None else None,
            steps=plan.rounds if plan.participations is None else plan.participations + self._sent_again,
            batch=plan.cohort,
            rows_per_unit=self.task.rows_per_user,
            bounded_by="PoissonSampler of each silo, a fresh random choice for each round",
            clip_norm=plan.clip_norm if private else None,
            noise_multiplier=plan.noise_multiplier if private else None,
            noise_std=plan.noise_multiplier * plan.clip_norm if fixed else None,
            randomness=self.randomness,
            floating_point=self.floating_point,
            sampled="users" if plan.silos == 1 else "users, in each silo by itself",
            clipping=clipping if private else "none",
            table_noise=plan.table_noise,
            other_noise_multipliers=tuple(
                one for one in (plan.count_noise_multiplier, plan.selection_noise_multiplier) if one is not None
            ),
            implementation=f"federation and privads on torch {torch.__version__}",
        )

    def _setting(self) -> Setting:
        server, noise = "to add noise to the sums, and show nothing but the noised models", "each silo's sum of a round"
        if self.plan.mechanism == "local":
            server, noise = "nothing: the promise is about them", "each user's update, with noise of its own"
        if self.plan.table_noise == "lazy":
            noise += ", and before it which rows of tables its users read"
        return Setting(
            model="local" if self.plan.mechanism == "local" else "federated",
            actors=(
                Actor(who="a silo", sees="the rows and updates of its own users", trust="to follow the plan"),
                Actor(who="the server", sees=noise, trust=server),
                Actor(
                    who="whoever gets the models, the silos among them",
                    sees=RELEASED,
                    trust="nothing: the promise is about them",
                ),
            ),
            releases="many",
        )

    def _covered(self) -> Iterator[str]:
        if self.plan.private:
            yield f"Training: {self.plan.rounds} rounds on the users' rows."
        if self.features is not None and self.features.cost is not None:
            yield f"By themselves, beside this figure: the fitted features ({self.features.cost})."
        for release in dict.fromkeys(one.release for one in self.released if one.release):
            yield f"Releasing metrics, by itself: {release}."

    def _assumptions(self) -> Iterator[record.Assumption]:
        plan = self.plan
        if not plan.private:
            return
        most = (plan.participations or 0) + self._sent_again
        for text, by in (
            (
                "every user joins every round independently with the stated probability"
                if plan.participations is None
                else f"no user sends more than {most} updates, each with noise of its own",
                "Silo",
            ),
            ("one user adds at most clip_norm to a silo's sum of a round", "LocalTraining, in floating point"),
            ("the noised sum is divided by the plan's cohort, a public number", "noised_mean"),
            _TABLES[plan.table_noise],
        ):
            yield record.Assumption(status="enforced", text=text, by=by)
        text = "no user's update depends on who else is trained beside them"
        yield record.Assumption(status="checked", text=text, by="LocalTraining.check_apart, on made-up rows")
        if self.entry is not None:
            text = "the budget was charged before the first row was read"
            yield record.Assumption(status="enforced", text=text, by="Ledger")
        again = {"dense": "the rounds after it were", "adafest": "the rounds after it were", "lazy": "all rounds were"}
        charged = again[plan.table_noise] if plan.mechanism == "central" else "one update of each user was"
        for text, by in of_resumptions(self.resumptions, each="round", again=charged):
            yield record.Assumption(status="enforced", text=text, by=by)
        if self.rounds_done < plan.rounds:
            text = f"the run ended after {self.rounds_done} of {plan.rounds} rounds: to go on cost more than was left"
            yield record.Assumption(status="enforced", text=text, by="Ledger")
        if self.silos > plan.silos and self.limited:
            text = f"at most {plan.silos} of the {self.silos} silos use one user's rows, told by the unit columns"
            yield record.Assumption(status="enforced", text=text, by="federation.identity.allowed")
        elif self.silos > plan.silos:
            text = f"no user has rows in more than {plan.silos} of the {self.silos} silos"
            yield record.Assumption(status="asserted", text=text, by="the author of the plan")
        if self.task.loss is not None or type(self.model) not in MODELS.values():
            text = "the model and the loss show and keep nothing of the rows they are given"
            yield record.Assumption(status="asserted", text=text, by="the author of the model or the loss")

    def _not_covered(self) -> Iterator[str]:
        if not self.plan.private:
            yield "Anything: this run has no differential privacy."
            return
        yield from said_of_metrics(
            bare=bool(self.metrics or self.values) and not self.schema.public,
            released=bool(self.released),
            calibrated=bool(self.calibrations),
        )
        if self.evidence is not None:
            yield NOT_COVERED
        if self.plan.mechanism == "local":
            yield "Which rounds a user takes part in: it is drawn at random, whatever their rows are."
        else:
            yield (
                "What the server sees: it is trusted, and sees each silo's sum before the noise, and in which rows of "
                "tables it is not zero."
            )
        if self.plan.table_noise == "lazy":
            yield (
                "Which rows of tables a silo is sent: those that its cohort reads. The server sees them before each "
                "round, and whoever watches the messages sees how many they are."
            )
        if self.limited and self.silos > self.plan.silos:
            yield "What a silo learns of a user whose rows it must leave out: that other silos have rows of them."
        yield from self.not_covered
        yield "Choices made by looking at the rows before the run: features, buckets, ranges, model, budget."
        yield "What the model's initial weights had learned elsewhere."
        yield "Other uses of these data that are not charged to the same ledger."
        yield "Side channels: how long the run took and how much memory it used."
