"""Scores of a log, written in its own order and never held in memory as a whole."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from torch import nn

from privads.batch import padding
from privads.evaluation.calibrate import Calibration
from privads.features.pipeline import Features
from privads.logs.encode import as_batch, encoded
from privads.logs.past import looking_back
from privads.logs.reader import check_columns, find_files
from privads.logs.schema import Schema
from privads.models.heads import heads_of
from privads.new_folder import new_file


def write_scores(
    model: nn.Module,
    schema: Schema,
    path: str | Path,
    out: Path,
    *,
    features: Features | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
) -> int:
    """Returns how many rows were scored: for each row at ``path``, in its order, to Parquet ``out``.

    The columns are {task}_probability of an event, {task}_mean of a number, and both of an amount, whose probability is
    that of more than 0. features: the fitted transforms by which the model reads rows; earlier rows that they look back
    at are those at ``path``. Labels are not needed. A row that does not fit the schema gets null. ``out`` is written
    whole or not at all. calibrations: {task}_calibrated beside the probability.
    """
    maps = calibrations or {}
    pasts = () if features is None else features.pasts
    read = (schema if features is None else features.source).without_labels(with_owners=bool(pasts))
    files = find_files(path)
    for file in files:
        check_columns(file, read, read.columns)
    heads = heads_of(schema)
    with torch.no_grad():
        names = [f"{task}_{name}" for task, one in model(padding(schema)).items() for name in heads[task].read(one)]
    columns = pa.schema([(name, pa.float64()) for name in (*names, *(f"{task}_calibrated" for task in maps))])
    rows = 0
    with (
        new_file(out) as draft,
        pyarrow.parquet.ParquetWriter(draft, columns) as writer,
        looking_back(encoded(files, read, raw=True), pasts, unit_columns=len(read.unit)) as look_back,
    ):
        for part in encoded(files, read, raw=features is not None):
            part = part if features is None else features.encoded(look_back(part))
            rows += len(part.fits)
            with torch.no_grad():
                outputs = model(as_batch(part, np.arange(len(part.fits))))
            found = {task: heads[task].read(one.double()) for task, one in outputs.items()}
            scores = [one.numpy() for reading in found.values() for one in reading.values()]
            scores += [_calibrated(found[task]["probability"].numpy(), one) for task, one in maps.items()]
            writer.write_table(pa.table([pa.array(one, mask=~part.fits) for one in scores], schema=columns))
    return rows


def _calibrated(probability: NDArray[np.float64], calibration: Calibration) -> NDArray[np.float64]:
    """Returns (rows,) calibrated probabilities; a score that is no number stays none, and is no error."""
    known = ~np.isnan(probability)
    return np.where(known, calibration.apply(np.where(known, probability, 0.5)), np.nan)
