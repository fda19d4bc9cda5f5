"""What trials say together: means over seeds with their intervals, the distance that privacy leaves open, and tables.

The intervals say how well the mean over seeds is known for this training log and this test set; they do not say how
test sets vary.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.harness import Figure, Spread
from benchmarks.utility.datasets import A_MILLION, REFERENCE
from benchmarks.utility.trials import METRICS, Trial
from privads.training.run import RELEASED

TARGETS = {("avazu", 1.0): 0.672, ("avazu", 3.0): 0.698, ("avazu", 8.0): 0.705}
"""The mean AUC of logistic regression over seeds that must be reached, by data set and epsilon."""

AIMS = {("avazu", 1.0): 0.690, ("avazu", 3.0): 0.706, ("avazu", 8.0): 0.709}
"""The one that is aimed for."""

DISTANCE_CLOSED = 0.8
"""The share of the distance from the constant to the best model without privacy that must be closed on a million rows
at epsilon 3."""

WORSE, BETTER = "▲", "▼"
"""Marks of a normalized entropy whose difference to that of `REFERENCE` lies above, or below, 0 with its interval."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model at one epsilon on one label: its metrics over seeds."""

    task: str
    trials: Sequence[Trial]
    against: Spread | None = None

    @property
    def first(self) -> Trial:
        """The trial of the first seed."""
        return self.trials[0]

    @property
    def spreads(self) -> dict[str, Spread]:
        """Each of the `METRICS` over seeds."""
        return {metric: Spread.of([one.metrics[self.task][metric] for one in self.trials]) for metric in METRICS}

    @property
    def entropy(self) -> Spread:
        """The normalized entropy over seeds."""
        return self.spreads["normalized_entropy"]

    @property
    def seconds(self) -> float:
        """What a run took on average, without reading the log and without the evaluation."""
        return sum(one.seconds for one in self.trials) / len(self.trials)

    @property
    def mark(self) -> str:
        """`WORSE` or `BETTER` than `REFERENCE`, or nothing where the seeds cannot tell."""
        if self.against is None:
            return ""
        return WORSE if self.against.low > 0 else BETTER if self.against.high < 0 else ""

    def as_dict(self) -> dict[str, Any]:
        """Returns all that was measured, and on what."""
        first, target = self.first, (self.first.dataset, self.first.epsilon or 0.0)
        spreads: dict[str, dict[str, Any]] = {name: dataclasses.asdict(one) for name, one in self.spreads.items()}
        if first.model == REFERENCE and target in TARGETS:
            spreads["auc"] |= {"target": TARGETS[target], "aim": AIMS[target]}
        return {
            "dataset": first.dataset,
            "task": self.task,
            "model": first.model,
            "epsilon": first.epsilon,
            **{name: one for name, one in first.terms.items() if name != "said"},
            "seeds": len(self.trials),
            **spreads,
            "against_logistic": None if self.against is None else dataclasses.asdict(self.against),
            "seconds": self.seconds,
            "plan": first.plan,
            "test": {name: one for name, one in first.test[self.task].items() if name != "reference"},
            "reference": first.test[self.task]["reference"],
        }


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far the best model at one epsilon gets from the constant predictor to the best one without privacy.

    ``share = (1 - NE_private) / (1 - NE_without)``, each the least mean over seeds among the models; the constant
    predictor's normalized entropy is 1. Both are chosen by the held-out rows that they are judged by.
    """

    dataset: str
    task: str
    epsilon: float
    private: Result
    without: Result

    @property
    def share(self) -> float:
        """The share of the distance."""
        return (1 - self.private.entropy.mean) / (1 - self.without.entropy.mean)

    def as_dict(self) -> dict[str, Any]:
        """Returns the share, and whose it is."""
        return {
            "dataset": self.dataset,
            "task": self.task,
            "epsilon": self.epsilon,
            "share": self.share,
            "private": self.private.first.model,
            "without_privacy": self.without.first.model,
        }


def results(trials: Sequence[Trial]) -> list[Result]:
    """Returns one result for each data set, label, model and epsilon, in the order of the trials."""
    groups: dict[tuple[str, str, str, float | None], list[Trial]] = {}
    for trial in trials:
        for task in trial.metrics:
            groups.setdefault((trial.dataset, task, trial.model, trial.epsilon), []).append(trial)
    return [
        Result(task=task, trials=found, against=_against(task, found, groups.get((dataset, task, REFERENCE, epsilon))))
        for (dataset, task, _, epsilon), found in groups.items()
    ]


def _against(task: str, found: Sequence[Trial], reference: Sequence[Trial] | None) -> Spread | None:
    """Returns the normalized entropy above that of `REFERENCE`; seeds are paired, though nothing but their number is
    common to them."""
    if reference is None or found[0].model == REFERENCE:
        return None
    pairs = zip(found, reference, strict=False)
    return Spread.of([a.metrics[task]["normalized_entropy"] - b.metrics[task]["normalized_entropy"] for a, b in pairs])


def distances(found: Sequence[Result]) -> Iterator[Distance]:
    """Yields the distance closed for each data set, label and epsilon, where some model without privacy has one."""
    for (dataset, task), group in _by_label(found).items():
        best: dict[float | None, Result] = {}
        for result in group:
            epsilon = result.first.epsilon
            if epsilon not in best or result.entropy.mean < best[epsilon].entropy.mean:
                best[epsilon] = result
        without = best.get(None)
        if without is None or without.entropy.mean >= 1:
            continue
        for epsilon, private in best.items():
            if epsilon is not None:
                yield Distance(dataset=dataset, task=task, epsilon=epsilon, private=private, without=without)


def figures(found: Sequence[Result]) -> list[Figure]:
    """Returns the mean over seeds of every metric of `REFERENCE`, the normalized entropy of the other models, and the
    distances closed; with the targets that were set for some."""
    several = {key for key in _by_label(found) if sum(other[0] == key[0] for other in _by_label(found)) > 1}
    made = []
    for result in found:
        first, end = result.first, _end(result.first.epsilon)
        name = _name(first.dataset, result.task, several)
        if first.model != REFERENCE:
            mean = result.entropy.mean
            made.append(Figure(name=f"{name}_{first.model}_normalized_entropy_epsilon_{end}", value=mean, unit="ratio"))
            continue
        target = TARGETS.get((first.dataset, first.epsilon or 0.0))
        for metric, spread in result.spreads.items():
            least = target if metric == "auc" else None
            unit = METRICS[metric]
            made.append(Figure(name=f"{name}_{metric}_epsilon_{end}", value=spread.mean, unit=unit, at_least=least))
    for distance in distances(found):
        if distance.dataset == A_MILLION:
            name, least = f"{A_MILLION.replace('-', '_')}_distance_closed", DISTANCE_CLOSED
            made.append(Figure(name=name, value=distance.share, unit="share", at_least=least))
            continue
        name = f"{_name(distance.dataset, distance.task, several)}_distance_closed_epsilon_{_end(distance.epsilon)}"
        made.append(Figure(name=name, value=distance.share, unit="share"))
    return made


def tables(found: Sequence[Result]) -> Iterator[Table]:
    """Yields a table for each data set and label: a model a line, an epsilon a column, the mean over seeds with its
    95 % interval."""
    for (dataset, task), group in _by_label(found).items():
        epsilons = list(dict.fromkeys(result.first.epsilon for result in group))
        test, seeds = group[0].first.test[task], sorted({len(result.trials) for result in group})
        private = next((one.first.terms["said"] for one in group if one.first.epsilon is not None), "without privacy")
        title = (
            f"{dataset}, {task}: normalized entropy over {'/'.join(map(str, seeds))} seeds, mean [95 % interval]; then"
            f" AUC, calibration (predicted / observed)\n{private} and so on by column; {RELEASED}; held out:"
            f" {test['rows']} rows, {test['positives']} positive; {WORSE} worse, {BETTER} better than {REFERENCE}"
        )
        shown = Table("model", *(f"epsilon {_end(epsilon)}" for epsilon in epsilons), title=title, title_justify="left")
        for model, line in itertools.groupby(group, key=lambda one: one.first.model):
            cells = {result.first.epsilon: _cell(result) for result in line}
            shown.add_row(model, *(cells.get(epsilon, "") for epsilon in epsilons))
        if test["reference"] is not None:
            shown.add_row(test["reference"]["name"], f"{test['reference']['normalized_entropy']:.4f}")
        yield shown


def _cell(result: Result) -> str:
    spreads = result.spreads
    ne = spreads["normalized_entropy"]
    return (
        f"{ne.mean:.4f} [{ne.low:.4f}, {ne.high:.4f}]{result.mark}\n"
        f"{spreads['auc'].mean:.4f}, {spreads['calibration'].mean:.3f}"
    )


def _by_label(found: Sequence[Result]) -> Mapping[tuple[str, str], list[Result]]:
    """Returns the results of each data set and label, sorted by model, as they first came."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in found:
        groups.setdefault((result.first.dataset, result.task), []).append(result)
    for group in groups.values():
        order = list(dict.fromkeys(result.first.model for result in group))
        group.sort(key=lambda one: order.index(one.first.model))
    return groups


def _name(dataset: str, task: str, several: set[tuple[str, str]]) -> str:
    return f"{dataset}_{task}" if (dataset, task) in several else dataset


def _end(epsilon: float | None) -> str:
    return "none" if epsilon is None else f"{epsilon:g}"
