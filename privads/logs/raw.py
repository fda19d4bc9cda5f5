"""`Raw`: rows with their features as the files have them, for transforms and tables; the schema's ranges hold."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privads.logs.encode import Part, Texts
from privads.logs.schema import Schema


@dataclass(frozen=True, kw_only=True, eq=False)
class Raw:
    """Some rows before any transform. numbers: per numeric column (rows,) float, NaN where missing, clipped to the
    schema's range. texts: per categorical column. labels, observed: per task (rows,); a label that waits is observed
    once its window has closed. units: per unit column (rows,). times: (rows,) datetime64[us].
    """

    numbers: dict[str, NDArray[np.float64]]
    texts: dict[str, Texts]
    labels: dict[str, NDArray[np.float32]]
    observed: dict[str, NDArray[np.bool_]]
    units: list[NDArray[np.object_]]
    times: NDArray[np.datetime64]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.times)


def raw_rows(part: Part, schema: Schema) -> Raw:
    """Returns the rows of a part that was encoded with ``raw``."""
    closed = {task: hours[:, 1] >= schema.waiting[task].within_hours for task, hours in part.hours.items()}
    return Raw(
        numbers=part.numbers,
        texts=part.texts,
        labels=part.labels,
        observed={task: known & closed.get(task, True) for task, known in part.observed.items()},
        units=part.units,
        times=part.times,
    )
