"""`Raw`: rows with their features as the files have them, for transforms and tables; the schema's ranges hold."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from privads.logs.encode import MISSING, Part, dictionary, distinct_texts, numbers, time_parts
from privads.logs.schema import Schema

Texts = tuple[NDArray[np.int64], list[str | None]]
"""(rows,) codes, -1 where missing, and the text that each code stands for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Raw:
    """Some rows before any transform. numbers: per numeric column (rows,) float, NaN where missing, clipped to the
    schema's range. texts: per categorical column. labels, observed: per task (rows,). units: per unit column (rows,).
    times: (rows,) datetime64[us].
    """

    numbers: dict[str, NDArray[np.float64]]
    texts: dict[str, Texts]
    labels: dict[str, NDArray[np.bool_]]
    observed: dict[str, NDArray[np.bool_]]
    units: list[NDArray[np.object_]]
    times: NDArray[np.datetime64]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.times)


def raw_rows(batch: pa.RecordBatch, schema: Schema, part: Part, chosen: NDArray[np.bool_]) -> Raw:
    """Returns the ``chosen`` rows of ``batch``, of which ``part`` has the labels and units (all rows, in order)."""
    clipped = {}
    for name, numeric in schema.numeric.items():
        values, _ = numbers(batch[name])
        clipped[name] = np.clip(values, *numeric.range)[chosen]
    texts = {}
    for name, categorical in schema.categorical.items():
        if categorical.part is None:
            codes, distinct = dictionary(batch[name])
            found, _ = distinct_texts(distinct)
        else:
            codes, found = time_parts(part.times, categorical.part)
        missing = np.array([one is None for one in found])
        texts[name] = (np.where(missing[codes], MISSING, codes)[chosen], list(found))
    return Raw(
        numbers=clipped,
        texts=texts,
        labels={task: label[chosen] for task, label in part.labels.items()},
        observed={task: known[chosen] for task, known in part.observed.items()},
        units=[unit[chosen] for unit in part.units],
        times=part.times[chosen],
    )
