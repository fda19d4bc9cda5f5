"""What every finished run has, whoever trained it: a model that predicts, and is judged on held-out rows and saved."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from accounting.report import record, scores
from privads.batch import Rows, settled
from privads.evaluation.calibrate import Calibration
from privads.evaluation.metrics import TaskMetrics, evaluate
from privads.evaluation.values import ValueMetrics, evaluate_value
from privads.features.pipeline import Features
from privads.logs.schema import Schema
from privads.models.heads import heads_of, prediction

_CHUNK_ROWS = 1 << 16


class Finished(Protocol):
    """A finished run: `privads.Run`, or `federation.FederatedRun`."""

    @property
    def model(self) -> nn.Module:
        """The plain module."""
        ...

    @property
    def schema(self) -> Schema:
        """Of the rows that it reads."""
        ...

    @property
    def features(self) -> Features | None:
        """The fitted transforms by which it reads them, if any."""
        ...

    @property
    def calibrations(self) -> Mapping[str, Calibration]:
        """Per task a map from the model's probabilities to calibrated ones."""
        ...

    def report(self) -> record.Report:
        """Returns its privacy report."""
        ...


def predict(model: nn.Module, rows: Rows) -> dict[str, NDArray[np.float64]]:
    """Returns {task: (rows,) probability of an event, or mean of a number} of the ``rows``, in order. Reads them."""
    device = next(model.parameters()).device
    total = len(rows.units)
    heads = heads_of(rows.schema)
    chunks: dict[str, list[NDArray[np.float64]]] = {task: [] for task in heads}
    model.eval()
    with torch.no_grad():
        for start in range(0, total, _CHUNK_ROWS):
            batch = rows.take(np.arange(start, min(start + _CHUNK_ROWS, total))).to(device)
            for task, outputs in model(batch).items():
                chunks[task].append(prediction(heads[task], outputs).cpu().numpy())
    return {task: np.concatenate(parts) if parts else np.zeros(0) for task, parts in chunks.items()}


def check_same_data(train: Schema, test: Schema) -> None:
    """Refuse to judge a run by rows of another schema: what is public there may be private here, and the other way."""
    if train.sha256 != test.sha256:
        raise ValueError(
            f"the rows to evaluate on have another schema ({test.dataset!r}) than those of training "
            f"({train.dataset!r}): use one schema for both"
        )


def judge(
    model: nn.Module, schema: Schema, rows: Rows, *, replicates: int, seed: int
) -> tuple[dict[str, TaskMetrics], dict[str, ValueMetrics]]:
    """Returns what held-out ``rows`` say of a model that was trained on rows of ``schema``: (of events, of numbers).

    Each task is judged on the rows where its label is observed and, where it waits, its window has closed. It reads the
    rows, without noise. replicates, seed: of the bootstrap.
    """
    check_same_data(schema, rows.schema)
    predictions = predict(model, rows)
    batch = rows.take(np.arange(len(rows.units)))
    metrics, values, settled_in = {}, {}, settled(batch, rows.schema)
    for task, predicted in predictions.items():
        known = settled_in[task].numpy()
        label, units = batch.labels[task].numpy()[known], rows.units[known]
        if task not in schema.events:
            values[task] = evaluate_value(label, predicted[known], units, replicates=replicates, seed=seed)
            continue
        reference = rows.reference(task)
        metrics[task] = evaluate(
            label,
            predicted[known],
            units,
            reference=None if reference is None else np.clip(np.nan_to_num(reference[known]), 0.0, 1.0),
            replicates=replicates,
            seed=seed,
        )
    return metrics, values


def said_of_metrics(*, bare: bool, released: bool, calibrated: bool) -> Iterator[str]:
    """Yields what a run's epsilon does not cover of its metrics. bare: without noise, of rows that are not public."""
    if bare:
        yield (
            "The report's metrics and calibration plot: they were computed on held-out rows without noise. Show "
            "them only to people who may see those rows."
        )
    if released:
        also = " and the calibration that is read from them" if calibrated else ""
        yield f"What the metrics below{also} cost: they were released by themselves, for what stands there."


def task_records(schema: Schema, metrics: Mapping[str, TaskMetrics]) -> Iterator[scores.TaskMetrics]:
    """Yields the metrics of events as a report holds them."""
    for task, found in metrics.items():
        reference = None
        if found.reference is not None:
            others = scores.Scores.model_validate(found.reference, from_attributes=True)
            reference = scores.Reference(name=schema.reference_name, scores=others)
        yield scores.TaskMetrics(
            task=task,
            released=False,
            rows=found.rows,
            positives=found.positives,
            scores=scores.Scores.model_validate(found, from_attributes=True),
            reference=reference,
            curve=tuple(scores.CurvePoint.model_validate(point, from_attributes=True) for point in found.curve),
        )


def value_records(values: Mapping[str, ValueMetrics]) -> tuple[scores.ValueMetrics, ...]:
    """Returns the metrics of numbers as a report holds them."""
    return tuple(
        scores.ValueMetrics.model_validate({"task": task, "released": False, **dataclasses.asdict(found)})
        for task, found in values.items()
    )
