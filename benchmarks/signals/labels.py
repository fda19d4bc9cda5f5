"""Learning from randomized labels on the simulator: with the noise modeled, ignored, and without it.

A logistic model learns clicks from answers at epsilon 1 and 3 (delta 0, example, replace-label), by L-BFGS over all
rows. Each way of learning chooses its penalty by its own loss on answers held out from training, which costs nothing
more. Judged by the normalized log-likelihood ``1 - log loss / H(base rate)`` on the clean labels of users not trained
on. A second part learns conversions in windows that have not all closed at the split.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from torch import Tensor

from accounting.budget import Budget
from benchmarks.harness import Figure, Spread
from privads.batch import Batch, Rows
from privads.evaluation.metrics import CLIP, ScoreSums
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.logs.simulator import schema_toml, simulate
from privads.models.heads import EVENT, Head, prediction
from privads.models.logistic import Logistic
from privads.models.losses import per_row
from privads.signals.debiased_metrics import debiased_metrics
from privads.signals.randomized_labels import LabelRelease, RandomizedHead

EPSILONS = (1.0, 3.0)
SEEDS, USERS = 5, 25_000
QUICK_SEEDS, QUICK_USERS = 2, 1_000

PENALTIES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3)
"""Of half the squared weights beside the sum of losses; the next fit begins where the one before ended."""

HELD_OUT = 0.2
"""Of the rows to learn from, to choose the penalty by."""

ENDS_HOURS = (24.0, 72.0)
SPLIT = "2026-11-14"
"""Five of the log's seven days: the rows of the last have no closed window, those of three have one open."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Rows to learn from, in two parts, and clean rows of others to judge by."""

    learn: Batch
    choose: Batch
    judge: Batch
    schema: Schema
    name: str

    @classmethod
    def of(cls, rows: Rows, judge: Rows, name: str, seed: int) -> "Task":
        """Returns ``rows`` in two parts."""
        order = np.random.default_rng(seed).permutation(len(rows.units))
        held = round(HELD_OUT * len(order))
        every = judge.take(np.arange(len(judge.units)))
        return cls(
            learn=rows.take(np.sort(order[held:])),
            choose=rows.take(np.sort(order[:held])),
            judge=every,
            schema=rows.schema,
            name=name,
        )

    def scores(self, head: Head) -> Floats:
        """Returns (rows to judge by,) probabilities of the model that is best on the rows to choose by."""
        model, best, found = Logistic(self.schema), np.inf, np.zeros(0)
        for penalty in PENALTIES:
            _fit(model, self.learn, self.name, head, penalty)
            with torch.no_grad():
                loss = float(_loss(model, self.choose, self.name, head).mean())
                if loss >= best:
                    break  # and worse with every smaller penalty
                best, found = loss, prediction(head, model(self.judge)[self.name]).numpy()
        return found

    def sums(self, scores: Floats) -> ScoreSums:
        """Returns what the clean labels say of ``scores``."""
        return ScoreSums.of(self.judge.labels[self.name].numpy(), scores)


def clicks(*, seeds: int = SEEDS, users: int = USERS) -> Iterator[Figure]:
    """Yields the normalized log-likelihood of every way of learning, and by how much those that model noise lead."""
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            schema = schema_toml(users, public=True, tasks=("click",))
            train, test = _log(Path(folder), users, seed, schema).split(test_fraction=0.3)
            for name, value in _of_seed(train, test, seed).items():
                found.setdefault(name, []).append(value)
    yield from _figures(found)
    for epsilon in EPSILONS:
        for ours in ("forward", "backward"):
            for other in ("ignored", "ignored_then_rescaled"):
                better = np.subtract(found[f"{ours}_epsilon_{epsilon:g}"], found[f"{other}_epsilon_{epsilon:g}"])
                yield Figure(
                    name=f"{ours}_beyond_{other}_epsilon_{epsilon:g}",
                    value=Spread.of(better.tolist()).low,
                    unit="normalized log-likelihood, lower end over seeds",
                    at_least=0.0 if ours == "forward" else None,
                )


def _of_seed(train: Logs, test: Logs, seed: int) -> dict[str, float]:
    """Returns 1 - normalized entropy of each way of learning, from one log."""
    clean = Task.of(train, test, "click", seed)
    found = {"clean": clean.sums(clean.scores(EVENT))}
    errors: dict[str, float] = {}
    for epsilon in EPSILONS:
        release = _release(train.schema, "click", epsilon)
        task = Task.of(release.run(train, ledger=None, insecure_seed=seed), test, "click", seed)
        ignored = task.scores(EVENT)
        flip = release.channel.matrix[0, 1]
        forward = task.scores(release.head("forward"))
        scores = {
            "ignored": ignored,
            "ignored_then_rescaled": np.clip((ignored - flip) / (1 - 2 * flip), CLIP, 1 - CLIP),
            "forward": forward,
            "backward": task.scores(release.head("backward")),
        }
        found |= {f"{name}_epsilon_{epsilon:g}": task.sums(score) for name, score in scores.items()}
        judged = release.run(test, ledger=None, insecure_seed=seed)
        debiased = debiased_metrics(judged.answers, forward, release.channel, units=judged.units).log_loss
        gap = debiased.value - found[f"forward_epsilon_{epsilon:g}"].log_loss
        errors[f"debiased_log_loss_std_errors_off_epsilon_{epsilon:g}"] = gap / debiased.std_error
    return {name: 1 - sums.normalized_entropy for name, sums in found.items()} | errors


def windows(*, seeds: int = SEEDS, users: int = USERS, epsilon: float = 3.0) -> Iterator[Figure]:
    """Yields what learning loses that takes a conversion for none while its window is open."""
    found: dict[str, list[float]] = {}
    within = f"within_hours = {ENDS_HOURS[-1]:g}"
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            facts = schema_toml(users, public=True).replace("within_hours = 24", f"{within}, waiting = true")
            train, test = _log(Path(folder), users, seed, facts).split(after=SPLIT)
            release = _release(train.schema, "conversion", epsilon, ENDS_HOURS)
            task = Task.of(release.run(train, ledger=None, insecure_seed=seed), test, "conversion", seed)
            for name, head in (("censored", release.head()), ("late_is_none", _LateIsNone(release.head()))):
                sums = task.sums(task.scores(head))
                found.setdefault(f"{name}_calibration", []).append(sums.calibration)
                found.setdefault(f"{name}_likelihood", []).append(1 - sums.normalized_entropy)
    yield from _figures(found)


@dataclass(frozen=True)
class _LateIsNone:
    """The head that a careless learner has: what has not been reported is an answer of none, however late."""

    head: RandomizedHead

    @property
    def width(self) -> int:
        return self.head.width

    def loss(self, outputs: Tensor, label: Tensor, hours: Tensor | None) -> Tensor:
        if hours is None:
            raise ValueError("answers of windows need how long each row has waited")
        ends = torch.tensor((0.0, *self.head.ends_hours))
        closed = ends[label.long()] <= hours[:, 1]
        closed_head = RandomizedHead(channel=self.head.channel, correction=self.head.correction, rate=self.head.rate)
        return closed_head.loss(outputs, torch.where(closed, label, 0.0), None)

    def read(self, outputs: Tensor) -> dict[str, Tensor]:
        return self.head.read(outputs)


def _release(schema: Schema, task: str, epsilon: float, ends_hours: tuple[float, ...] = ()) -> LabelRelease:
    budget = Budget(epsilon=epsilon, delta=1e-12, unit="example", neighbors="replace-label")
    return LabelRelease.of(schema, task, budget, ends_hours=ends_hours)


def _log(folder: Path, users: int, seed: int, facts: str) -> Logs:
    pyarrow.parquet.write_table(simulate(users, seed=seed), folder / "log.parquet")
    return Logs(folder / "log.parquet", Schema.parse(facts))


def _loss(model: Logistic, batch: Batch, task: str, head: Head) -> Tensor:
    return per_row(model(batch), batch, heads={task: head})


def _fit(model: Logistic, batch: Batch, task: str, head: Head, penalty: float) -> None:
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=40, history_size=20, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )
    ridge = penalty / (2 * batch.rows)

    def closure() -> Tensor:
        optimizer.zero_grad()
        weights = sum((one.square().sum() for one in model.table.parameters()), torch.zeros(()))
        loss = _loss(model, batch, task, head).mean() + ridge * weights
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    step: Callable[[Callable[[], Tensor]], object] = optimizer.step
    step(closure)


def _figures(found: Mapping[str, Sequence[float]]) -> Iterator[Figure]:
    for name, values in found.items():
        spread = Spread.of(values)
        unit = "predicted / observed" if "calibration" in name else "normalized log-likelihood"
        unit = "standard errors" if "std_errors" in name else unit
        yield Figure(name=name, value=spread.mean, unit=f"{unit}, mean of {len(values)} seeds")
        yield Figure(name=f"{name}_half_width", value=spread.high - spread.mean, unit="half of the 95 % t interval")
