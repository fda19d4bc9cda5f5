"""What privacy costs in prediction: AUC, log loss, normalized entropy and calibration by epsilon, and without privacy.

Every run takes the library's defaults, by one rule for all data sets: a data set states its rows, split, unit and
delta, and nothing else. Each seed draws fresh batches and noise from OS entropy. The intervals say how well the mean
over seeds is known for this training log and this test set; they do not say how test sets vary.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

import privads
from benchmarks.harness import Figure, Spread, json_line
from privads.evaluation.metrics import ScoreSums, auc
from privads.job import make_plan, prepare
from privads.logs.logs import Logs
from privads.logs.simulator import schema_toml, simulate
from privads.models import build
from privads.run_config import PlanTable, RunConfig, read_config
from privads.training.plan import TrainPlan
from privads.training.run import RELEASED, Run

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FILES = {"avazu": "avazu_ctr.toml", "criteo": "criteo_ctr.toml", "talkingdata": "talkingdata_conversion.toml"}
SIMULATOR = "simulator"
NAMES = (*FILES, SIMULATOR)

EPSILONS = (1.0, 3.0, 8.0, None)  # None: without privacy
QUICK_EPSILONS = (3.0, None)
SEEDS = {"avazu": 20, "criteo": 5, "talkingdata": 5, SIMULATOR: 5}
USERS, QUICK_USERS, QUICK_EPOCHS = 40_000, 2_000, 5.0

TARGETS = {("avazu", 1.0): 0.672, ("avazu", 3.0): 0.698, ("avazu", 8.0): 0.705}
"""The mean AUC over seeds that must be reached, by data set and epsilon."""

AIMS = {("avazu", 1.0): 0.690, ("avazu", 3.0): 0.706, ("avazu", 8.0): 0.709}
"""The one that is aimed for."""

METRICS = {"auc": "probability", "log_loss": "nats", "normalized_entropy": "ratio", "calibration": "ratio"}
"""Every metric, and its unit."""

TITLE = "Mean over seeds, and the 95 % interval of that mean; calibration is predicted / observed"


class CannotMeasureError(ValueError):
    """A data set that cannot be measured here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """The held-out rows whose label is known, and how well another predictor does on them, where the log has one."""

    rows: Logs
    task: str
    known: NDArray[np.bool_]
    labels: NDArray[np.float64]  # (known rows,)

    @classmethod
    def of(cls, rows: Logs, task: str) -> "Held":
        """Returns the held-out ``rows`` for ``task``. Reads them."""
        batch = rows.take(np.arange(len(rows.units)))
        known = batch.observed[task].numpy()
        return cls(rows=rows, task=task, known=known, labels=batch.labels[task].numpy()[known].astype(np.float64))

    @property
    def reference(self) -> dict[str, Any] | None:
        """The other predictor's name and metrics."""
        scores = self.rows.reference(self.task)
        return None if scores is None else {"name": self.rows.schema.reference_name, **self.metrics(scores)}

    def metrics(self, scores: NDArray[np.float64]) -> dict[str, float]:
        """Returns the `METRICS` of (rows,) probabilities."""
        chosen = scores[self.known]
        sums = ScoreSums.of(self.labels, chosen)
        return {
            "auc": auc(self.labels, chosen),
            "log_loss": sums.log_loss,
            "normalized_entropy": sums.normalized_entropy,
            "calibration": sums.calibration,
        }


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One data set at one epsilon: a run and its metrics for each seed."""

    dataset: str
    unit: str
    plan: TrainPlan
    held: Held
    runs: Sequence[Run]
    metrics: Sequence[Mapping[str, float]]

    @property
    def epsilon(self) -> float | None:
        """The epsilon of the budget; None without privacy."""
        return None if self.plan.budget is None else self.plan.budget.epsilon

    @property
    def spreads(self) -> dict[str, Spread]:
        """Each of the `METRICS` over seeds."""
        return {metric: Spread.of([one[metric] for one in self.metrics]) for metric in METRICS}

    @property
    def seconds(self) -> float:
        """What a run took on average, without reading the log and without the evaluation."""
        return float(np.mean([run.facts.seconds for run in self.runs]))

    def figures(self) -> list[Figure]:
        """Returns the mean over seeds of every metric, with the target that was set for it."""
        end = "none" if self.epsilon is None else f"{self.epsilon:g}"
        target = TARGETS.get((self.dataset, self.epsilon or 0.0))
        return [
            Figure(
                name=f"{self.dataset}_{metric}_epsilon_{end}",
                value=spread.mean,
                unit=METRICS[metric],
                at_least=target if metric == "auc" else None,
            )
            for metric, spread in self.spreads.items()
        ]

    def result(self) -> dict[str, Any]:
        """Returns all that was measured, and on what."""
        plan, facts = self.plan, self.runs[0].facts
        key = (self.dataset, self.epsilon or 0.0)
        spreads: dict[str, dict[str, Any]] = {name: dataclasses.asdict(one) for name, one in self.spreads.items()}
        if key in TARGETS:
            spreads["auc"] |= {"target": TARGETS[key], "aim": AIMS[key]}
        return {
            "dataset": self.dataset,
            "task": self.held.task,
            "epsilon": self.epsilon,
            "delta": None if plan.budget is None else plan.budget.delta,
            "unit": self.unit,
            "neighbors": None if plan.budget is None else plan.budget.neighbors,
            "released": RELEASED,
            "seeds": len(self.runs),
            **spreads,
            "seconds": self.seconds,
            "plan": {
                "population": plan.population,
                "batch": plan.batch,
                "steps": plan.steps,
                "rows_per_unit": plan.rows_per_unit,
                "noise_multiplier": plan.noise_multiplier,
                "clip_norm": plan.clip_norm,
                "averaging": plan.averaging,
                "optimizer": facts.optimizer,
                "learning_rate": facts.learning_rate,
            },
            "test": {"rows": len(self.held.labels), "positives": int(self.held.labels.sum())},
            "reference": self.held.reference,
        }


def trials(
    dataset: str, config: RunConfig, *, epsilons: Sequence[float | None], seeds: int, log: Console
) -> list[Trial]:
    """Returns one trial for each epsilon. The log is read once and serves every run.

    Raises `CannotMeasureError`, before any training, where there is no file or no held-out row to measure by.
    """
    if not Path(config.data.path).is_file():
        raise CannotMeasureError(f"there is no file {config.data.path}")
    job = prepare(config.model_copy(update={"plan": _plan_table(config.plan, None)}))
    if job.test is None:
        raise CannotMeasureError("its configuration holds out no rows")
    (task,) = job.train.schema.tasks
    held = Held.of(job.test, task)
    if not 0 < held.labels.sum() < len(held.labels):
        raise CannotMeasureError(f"{job.test.split_text}: these hold no two classes of {task} to measure by")
    found = []
    for epsilon in epsilons:
        plan = make_plan(_plan_table(config.plan, epsilon), job.train.schema)
        terms = "without privacy" if plan.budget is None else str(plan.budget)
        runs = [
            privads.fit(build(config.model.name, job.train.schema, config.model.model_extra), job.train, plan)
            for _ in track(range(seeds), description=f"{dataset}, {terms}", console=log)
        ]
        metrics = [held.metrics(run.predict(job.test)[task]) for run in runs]
        found.append(Trial(dataset=dataset, unit=config.plan.unit, plan=plan, held=held, runs=runs, metrics=metrics))
    return found


def example_config(dataset: str, data: Path) -> RunConfig:
    """Returns the example's configuration, with its rows under the folder ``data``."""
    config = read_config(EXAMPLES / FILES[dataset])
    path = data.joinpath(*Path(config.data.path).parts[-2:])
    return config.model_copy(update={"data": config.data.model_copy(update={"path": str(path)})})


def simulated_config(folder: Path, *, users: int, epochs: float | None) -> RunConfig:
    """Returns the configuration of a simulated log, which is written to ``folder``."""
    path, schema = folder / "impressions.parquet", folder / "ads.toml"
    pyarrow.parquet.write_table(simulate(users, seed=0), path)
    schema.write_text(schema_toml(users, public=True), encoding="utf-8")
    return RunConfig.model_validate(
        {
            "data": {"path": str(path), "schema": str(schema), "test_after": "2026-11-15T00:00:00"},
            "model": {"name": "logistic"},
            "plan": {"epsilon": 3.0, "delta": 1e-6, "unit": "user", "epochs": epochs},
        }
    )


def table(found: Sequence[Trial]) -> Table:
    """Returns the trials for people to read."""
    shown = Table("data", "privacy of the final model", "seeds", *METRICS, "seconds", title=TITLE)
    for trial in found:
        privacy = "none" if trial.plan.budget is None else str(trial.plan.budget)
        cells = [f"{one.mean:.4f}\n[{one.low:.4f}, {one.high:.4f}]" for one in trial.spreads.values()]
        shown.add_row(trial.dataset, privacy, str(len(trial.runs)), *cells, f"{trial.seconds:.1f}")
    return shown


def main(
    data: Annotated[Path, typer.Option(help="The folder of the public data sets.")] = Path("../shared/data"),
    only: Annotated[str | None, typer.Option(help=f"One data set: {', '.join(NAMES)}.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs for each epsilon; 20 on Avazu, else 5.", min=1)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small simulated log and one seed: does it work?")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Measure how well private models predict, with the library's defaults."""
    known = (SIMULATOR,) if quick else NAMES
    if only is not None and only not in known:
        typer.echo(f"--only must be one of {', '.join(known)}{' with --quick' * quick}, got {only!r}", err=True)
        raise typer.Exit(2)
    log, found, skipped = Console(stderr=True), [], []
    with tempfile.TemporaryDirectory() as folder:
        for dataset in known if only is None else (only,):
            if dataset == SIMULATOR:
                users, epochs = (QUICK_USERS, QUICK_EPOCHS) if quick else (USERS, None)
                config = simulated_config(Path(folder), users=users, epochs=epochs)
            else:
                config = example_config(dataset, data)
            runs = seeds or (1 if quick else SEEDS[dataset])
            try:
                found += trials(dataset, config, epsilons=QUICK_EPSILONS if quick else EPSILONS, seeds=runs, log=log)
            except CannotMeasureError as error:
                typer.echo(f"{dataset}: skipped, {error}", err=True)
                skipped.append(dataset)
        figures = [figure for trial in found for figure in trial.figures()]
        if as_json:
            results = [trial.result() for trial in found]
            print(json_line("utility", figures, quick=quick, skipped=skipped, results=results))
            return
    if found:
        Console(width=None if sys.stdout.isatty() else 140).print(table(found))
    for figure in figures:
        if figure.holds is not None:
            said = "holds" if figure.holds else "MISSED"
            print(f"{figure.name}: {figure.value:.4f}, target at least {figure.at_least:g}: {said}")


def _plan_table(plan: PlanTable, epsilon: float | None) -> PlanTable:
    """Returns ``plan`` at another epsilon, or without privacy."""
    return PlanTable.model_validate({**plan.model_dump(), "epsilon": epsilon, "without_privacy": epsilon is None})


if __name__ == "__main__":
    torch.set_num_threads(1)  # the batches are small: more threads cost more than they do
    typer.run(main)
