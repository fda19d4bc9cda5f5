"""One trial: a model trained at one epsilon from one seed, what it predicts on held-out rows, and a line of JSON of it.

Every run takes the library's defaults. The seed chooses the initial weights; batches and noise come from OS entropy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

import privads
from benchmarks.harness import Kept, name_of
from benchmarks.utility.datasets import CannotMeasureError
from privads.evaluation.metrics import ScoreSums, auc
from privads.job import make_plan, open_logs
from privads.logs.logs import Logs
from privads.models import build
from privads.run_config import PlanTable, RunConfig
from privads.training.defaults import default_optimizer, steepness_of
from privads.training.plan import TrainPlan
from privads.training.run import RELEASED, settings_of

METRICS = {"auc": "probability", "log_loss": "nats", "normalized_entropy": "ratio", "calibration": "ratio"}
"""Every metric, and its unit."""


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
        found = cls(rows=rows, task=task, known=known, labels=batch.labels[task].numpy()[known].astype(np.float64))
        if not 0 < found.labels.sum() < len(found.labels):
            raise CannotMeasureError(f"{rows.split_text}: these hold no two classes of {task} to measure by")
        return found

    @property
    def facts(self) -> dict[str, Any]:
        """How many rows there are, how many are positive, and the other predictor's name and metrics."""
        scores = self.rows.reference(self.task)
        reference = None if scores is None else {"name": self.rows.schema.reference_name, **self.metrics(scores)}
        return {"rows": len(self.labels), "positives": int(self.labels.sum()), "reference": reference}

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
    """A finished run: what it was, what it cost, and its metrics by label.

    made_of: names rows, split, plan, model, step and version; a trial that was made of anything else is another one.
    """

    dataset: str
    model: str
    epsilon: float | None
    seed: int
    made_of: str
    terms: dict[str, Any]
    plan: dict[str, Any]
    test: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    seconds: float

    @property
    def key(self) -> tuple[str, int]:
        """What no two trials have in common."""
        return self.made_of, self.seed


def trials(
    dataset: str,
    config: RunConfig,
    *,
    runs: Mapping[str, int],
    epsilons: Sequence[float | None],
    kept: Kept[Trial],
    log: Console,
) -> list[Trial]:
    """Returns one trial for each model, epsilon and seed; those in ``kept`` are not run again.

    runs: the models, and the number of seeds of each.

    The log is read once and serves every run. Raises `CannotMeasureError`, before any training, where there is no
    file, no held-out row or no second class to measure by.
    """
    if config.data.test_after is None and config.data.test_fraction is None:
        raise CannotMeasureError("its configuration holds out no rows")
    train, test = open_logs(config)
    if test is None:
        raise CannotMeasureError("its configuration holds out no rows")
    held = {task: Held.of(test, task) for task in train.schema.tasks}
    facts = {task: one.facts for task, one in held.items()}
    plans = {epsilon: make_plan(at_epsilon(config.plan, epsilon), train.schema) for epsilon in epsilons}
    steep = {epsilon: steepness_of(train, plan) for epsilon, plan in plans.items()}
    seeds = range(max(runs.values(), default=0))
    wanted = [(seed, epsilon, model) for seed in seeds for epsilon in epsilons for model in runs if seed < runs[model]]
    found = []
    for seed, epsilon, model in track(wanted, description=dataset, console=log):
        plan = plans[epsilon]
        network = _network(model, train, seed)
        made_of = _fingerprint(train, network, plan, default_optimizer(network, plan, steepness=steep[epsilon]))
        if (made_of, seed) not in kept.found:
            run = privads.fit(network, train, plan)
            scores = run.predict(test)
            kept.add(
                Trial(
                    dataset=dataset,
                    model=model,
                    epsilon=epsilon,
                    seed=seed,
                    made_of=made_of,
                    terms=_terms(plan, config.plan.unit),
                    plan={
                        **_of_plan(plan),
                        "optimizer": run.facts.optimizer,
                        "learning_rate": run.facts.learning_rate,
                    },
                    test=facts,
                    metrics={task: one.metrics(scores[task]) for task, one in held.items()},
                    seconds=run.facts.seconds,
                )
            )
        found.append(kept.found[made_of, seed])
    return found


def at_epsilon(plan: PlanTable, epsilon: float | None) -> PlanTable:
    """Returns ``plan`` at another epsilon, or without privacy."""
    return PlanTable.model_validate({**plan.model_dump(), "epsilon": epsilon, "without_privacy": epsilon is None})


def _network(model: str, train: Logs, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(model, train.schema)


def _fingerprint(train: Logs, network: torch.nn.Module, plan: TrainPlan, optimizer: torch.optim.Optimizer) -> str:
    model = type(network).__name__, settings_of(network)
    step = type(optimizer).__name__, [group["lr"] for group in optimizer.param_groups]  # defaults, and may change
    return name_of(train.schema.sha256, train.split_text, model, plan, step)


def _terms(plan: TrainPlan, unit: str) -> dict[str, Any]:
    budget = plan.budget
    return {
        "said": "without privacy" if budget is None else str(budget),
        "delta": None if budget is None else budget.delta,
        "unit": unit,
        "neighbors": None if budget is None else budget.neighbors,
        "released": RELEASED,
    }


def _of_plan(plan: TrainPlan) -> dict[str, Any]:
    names = ("population", "batch", "steps", "rows_per_unit", "noise_multiplier", "averaging")
    return {**{name: getattr(plan, name) for name in names}, "clip_norm": plan.clip_norm if plan.private else None}
