"""Going on from an earlier run's weights: what must match for it, and what the report has to say about it.

What the earlier run cost stays where it was charged. A run that goes on from it has a figure of its own, and its report
names every run in the weights: whoever is in the data of several of them loses what they cost together.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from accounting.ledger import Ledger
from accounting.report.record import Report
from accounting.report.started import StartedFrom
from privads.config import ConfigError
from privads.logs.labels import Label
from privads.logs.schema import Schema
from privads.models import heads
from privads.training import checkpoint
from privads.training.run import Run, fingerprint, settings_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """An earlier run, as far as one that goes on from it must know it. model: its own, where it is still at hand."""

    name: str
    settings: Mapping[str, Any]
    schema: Schema
    report: Report
    weights: Callable[[], Mapping[str, Tensor]]
    model: nn.Module | None = None


def start_of(run: Run | str | Path) -> Start:
    """Returns the start from a run, or from the folder of one; refuses a folder whose files are not of one run."""
    if isinstance(run, Run):
        if run.facts.weights_sha256 not in (None, fingerprint(run.model.state_dict())):
            raise ConfigError(f"the weights of run {run.id} are not those that it ended with: they were changed since")
        return Start(
            name=checkpoint.name_of(run.model),
            settings=settings_of(run.model),
            schema=run.schema,
            report=run.report(),
            weights=run.model.state_dict,
            model=run.model,
        )
    folder = Path(run)
    name, settings, schema = checkpoint.read_about(folder)
    report = checkpoint.read_report(folder)
    stated = (report.data.schema_sha256, report.data.dataset, report.data.public, report.model.settings)
    if stated != (schema.sha256, schema.dataset, schema.public, settings):
        raise ConfigError(f"{checkpoint.REPORT} and {checkpoint.MODEL} in {folder} are not of one run: one was changed")
    weights = partial(_weights_of, folder, report.model.weights_sha256)
    return Start(name=name, settings=settings, schema=schema, report=report, weights=weights)


def _weights_of(folder: Path, sha256: str | None) -> Mapping[str, Tensor]:
    weights = checkpoint.read_weights(folder)
    if sha256 not in (None, fingerprint(weights)):
        raise ConfigError(f"the weights in {folder} are not those that its report is about: they were changed")
    return weights


def check_start(start: Start, model: nn.Module, schema: Schema) -> None:
    """Refuse a start whose weights mean something else in ``model``, or whose runs nobody was charged for.

    Without a guarantee that was charged only public data may be in the weights: public when they were used, and public
    still where they are the data set at hand.
    """
    what = f"cannot start from run {start.report.run.id}"
    if start.model is not None and not set(start.model.parameters()).isdisjoint(model.parameters()):
        raise ConfigError(f"{what} with that run's own model, which its report is about: give a model of its own")
    for difference in _differences(start, model, schema):
        raise ConfigError(f"{what}: {difference}")
    for one in _runs_in(start.report):
        if one.public and (one.dataset != schema.dataset or schema.public):
            continue
        if one.verdict not in ("private", "conditional"):
            raise ConfigError(
                f"{what}: run {one.run} is {one.verdict}, and its data set {one.dataset!r} is private: start from a "
                "run with a guarantee, or with new weights"
            )
        if one.entry is None:
            raise ConfigError(
                f"{what}: run {one.run} was charged to no ledger, and its data set {one.dataset!r} is private: start "
                "from a run that was charged, or with new weights"
            )


def go_on(start: Start, model: nn.Module, schema: Schema, ledger: Ledger | None) -> tuple[StartedFrom, ...]:
    """Put the earlier run's weights into ``model``; returns the runs in them, the latest first.

    Reads no row of a log and charges nothing. ledger: this run's; where it holds an earlier run's entry, that is said.
    """
    check_start(start, model, schema)
    weights, own = start.weights(), model.state_dict()
    for name in sorted({*weights, *own}):
        there, here = (tuple(one[name].shape) if name in one else None for one in (weights, own))
        if there != here:
            raise ConfigError(
                f"cannot start from run {start.report.run.id}: its weight {name!r} has shape {there}, here {here}"
            )
    model.load_state_dict(weights)
    return _found_in(ledger, _runs_in(start.report))


def _differences(start: Start, model: nn.Module, schema: Schema) -> Iterator[str]:
    """Yields what decides shapes or the meaning of the table's rows, and differs."""
    name, settings = checkpoint.name_of(model), settings_of(model)
    if start.name != name:
        yield f"its model is {start.name!r}, this one {name!r}"
    for key in sorted({*start.settings, *settings}):
        if start.settings.get(key) != settings.get(key):
            yield f"its model has {key} = {start.settings.get(key)}, this one {settings.get(key)}"
    there, here = _fields(start.schema), _fields(schema)
    for field in (*there, *here):
        if there.get(field) != here.get(field):
            yield f"in its schema {field} has {there.get(field, 'no place')}, in this one {here.get(field, 'no place')}"
    if list(there) != list(here):
        yield "its schema has the same fields in another order, and so other rows of the table and columns"
    if start.schema.tasks != schema.tasks:
        yield f"its labels are {', '.join(start.schema.tasks)}, these {', '.join(schema.tasks)}"
    for task, label in schema.labels.items():
        if _meaning(start.schema.labels.get(task, label)) != _meaning(label):
            yield f"its outputs of {task!r} mean something else: the labels are of another kind"


def _meaning(label: Label) -> heads.Head:
    """Returns how a label's outputs are read: where delays are stated, as the logit of any event."""
    head = heads.head_of(label)
    return heads.EVENT if isinstance(head, heads.Weighted) else head


def _fields(schema: Schema) -> dict[str, str]:
    categorical = {
        f"categorical field {name!r}": f"{field.buckets} buckets" + (f" of the {field.part}" if field.part else "")
        for name, field in schema.categorical.items()
    }
    return categorical | {f"numeric field {name!r}": f"range {list(one.range)}" for name, one in schema.numeric.items()}


def _runs_in(report: Report) -> tuple[StartedFrom, ...]:
    """Returns the run of a report and those in the weights that it had begun with."""
    promise, budget = report.guarantee, report.budget
    terms: dict[str, Any] = {}
    if promise is not None:
        terms = {"epsilon": promise.epsilon, "delta": promise.delta, "unit": promise.unit}
        terms["neighbors"] = promise.neighbors
    if promise is not None and budget is not None:
        terms |= {"epsilon": budget.this_run_epsilon, "entry": budget.entry, "head": budget.head}
        terms["delta"] = promise.delta if budget.this_run_delta is None else budget.this_run_delta
    latest = StartedFrom(
        run=report.run.id,
        dataset=report.data.dataset,
        public=report.data.public,
        verdict=report.verdict,
        canaries=report.planted,
        **terms,
    )
    return (latest, *report.run.started_from)


def _found_in(ledger: Ledger | None, runs: tuple[StartedFrom, ...]) -> tuple[StartedFrom, ...]:
    """Returns the runs, each with whether ``ledger`` holds its entry, to the same figure."""
    held = set()
    if ledger is not None:
        for dataset in {one.dataset for one in runs} & set(ledger.datasets()):
            for entry in ledger.history(dataset):
                held.add((dataset, str(entry.id), entry.epsilon, entry.delta, entry.unit, entry.neighbors))
    return tuple(
        one.model_copy(
            update={
                "same_ledger": (one.dataset, one.entry, one.epsilon, one.delta, one.unit, one.neighbors) in held,
            }
        )
        for one in runs
    )
