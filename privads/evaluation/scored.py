"""`Scored`: rows with a model's scores in the place of their columns, as a `Source` that tables count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from privads.batch import Batch, Rows, padding, settled
from privads.logs.logs import Logs
from privads.logs.raw import Raw
from privads.logs.schema import Numeric, Schema
from privads.models.heads import head_of, prediction
from privads.signals.query import check_categorical

LARGEST = 40.0
"""Log-odds are clipped to this; those of any float below 1 and above 0 are smaller."""

_CHUNK_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """The ``rows``, each scored by ``model`` when it is read; segments: the columns that stay. Not through features:
    the scores were made of them, and a segment is what the files hold.
    """

    model: nn.Module
    rows: Rows
    tasks: tuple[str, ...]
    segments: tuple[str, ...] = ()
    features: None = None

    @property
    def schema(self) -> Schema:
        """The public facts of the scored rows."""
        found = scored_schema(source_of(self.rows), self.tasks, self.segments)
        if isinstance(self.rows, Logs) or not found.unit:
            return found
        return found.model_copy(update={"unit": ("unit",), "unit_name": found.protected_unit})

    @property
    def split_text(self) -> str:
        """Which rows these are, in words."""
        return self.rows.split_text if isinstance(self.rows, Logs) else "all rows"

    def check(self) -> None:
        """Refuse missing files and columns, and a model without outputs for each task; reads no row."""
        if self.segments and not isinstance(self.rows, Logs):
            raise ValueError("segments are columns of a log: pass Logs")
        check_outputs(self.model, self.rows.schema, self.tasks)
        self.rows.check()

    def raw(self) -> Iterator[Raw]:
        """Yields the rows with their scores, as log-odds; one that is no number is missing."""
        self.model.eval()
        device = next((one.device for one in self.model.parameters()), torch.device("cpu"))
        for raw, batch in _judged(self.rows):
            if not raw.rows:
                continue
            with torch.no_grad():
                outputs = self.model(batch.to(device))
            numbers = {score_of(task): self._log_odds(task, outputs[task]) for task in self.tasks}
            yield replace(raw, numbers=numbers, texts={name: raw.texts[name] for name in self.segments})

    def _log_odds(self, task: str, outputs: torch.Tensor) -> NDArray[np.float64]:
        probability = prediction(head_of(self.rows.schema.labels[task]), outputs)
        return np.asarray(np.clip(torch.logit(probability).cpu().numpy(), -LARGEST, LARGEST))


def source_of(rows: Rows) -> Schema:
    """Returns the public facts of the files; of a company's own store, those that it has."""
    return rows.source if isinstance(rows, Logs) else rows.schema


def score_of(task: str) -> str:
    """Returns the column with the log-odds of a task's score."""
    return f"score of {task}"


def scored_schema(schema: Schema, tasks: Sequence[str], segments: Sequence[str] = ()) -> Schema:
    """Returns the public facts of rows that have scores of ``tasks`` in the place of their columns, and ``segments``.

    A segment keeps its history; that of the scores is the model's inputs', and to be checked on their schema.
    """
    check_categorical(schema, *segments)
    return schema.model_copy(
        update={
            "labels": {task: f"label of {task}" for task in tasks},
            "reference": {},
            "numeric": {score_of(task): Numeric(range=(-LARGEST, LARGEST)) for task in tasks},
            "categorical": {name: schema.categorical[name] for name in segments},
        }
    )


def check_outputs(model: nn.Module, schema: Schema, tasks: Sequence[str]) -> None:
    """Refuse a model whose outputs on a made-up row are not those of each task's label."""
    model.eval()
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        outputs = model(padding(schema, 2).to(device))
    for task in tasks:
        width = head_of(schema.labels[task]).width
        shape = (2,) if width == 1 else (2, width)
        if not isinstance(outputs, Mapping) or task not in outputs or tuple(outputs[task].shape) != shape:
            raise ValueError(
                f"the model must return outputs of shape {'(rows,)' if width == 1 else f'(rows, {width})'} for {task!r}"
            )


def _judged(rows: Rows) -> Iterator[tuple[Raw, Batch]]:
    """Yields the rows as a table and as a model reads them."""
    if isinstance(rows, Logs):
        yield from rows.judged()
        return
    units = rows.units
    for start in range(0, len(units), _CHUNK_ROWS):
        numbers = np.arange(start, min(start + _CHUNK_ROWS, len(units)))
        batch = rows.take(numbers)
        raw = Raw(
            numbers={},
            texts={},
            labels={task: (label.numpy() == 1.0).astype(np.float32) for task, label in batch.labels.items()},
            observed={task: known.numpy() for task, known in settled(batch, rows.schema).items()},
            units=[units[numbers].astype(str).astype(object)],
            times=np.full(len(numbers), "NaT", dtype="datetime64[us]"),
        )
        yield raw, batch
