"""`Raw`: rows with their features as the files have them, for transforms and tables; the schema's ranges hold."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from privads.batch import Batch, settled
from privads.logs.encode import Part, Texts, as_batch
from privads.logs.past import Earlier, Past
from privads.logs.schema import Schema


@dataclass(frozen=True, kw_only=True, eq=False)
class Raw:
    """Some rows before any transform. numbers: per numeric column (rows,) float, NaN where missing, clipped to the
    schema's range. texts: per categorical column. labels, observed: per task (rows,); a label that waits is observed
    once its window has closed. units: per unit column (rows,). times: (rows,) datetime64[us]. hours: per task that
    waits (rows, 2), as `Batch` has them. pasts: what the rows look back at, of a log that is read through features.
    """

    numbers: dict[str, NDArray[np.float64]]
    texts: dict[str, Texts]
    labels: dict[str, NDArray[np.float32]]
    observed: dict[str, NDArray[np.bool_]]
    units: list[NDArray[np.object_]]
    times: NDArray[np.datetime64]
    hours: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    pasts: dict[Past, Earlier] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.times)


def raw_rows(part: Part, schema: Schema) -> Raw:
    """Returns the rows of a part that was encoded with ``raw``."""
    return Raw(
        numbers=part.numbers,
        texts=part.texts,
        labels=part.labels,
        observed=settled(part, schema),
        units=part.units,
        times=part.times,
        hours=part.hours,
        pasts=part.pasts,
    )


def batch_of(raw: Raw, dense: NDArray[np.float32], ids: NDArray[np.int32]) -> Batch:
    """Returns the rows as a model reads them, from what they were made to; without how long labels have waited."""
    return as_batch(_Made(dense=dense, ids=ids, labels=raw.labels, observed=raw.observed), np.arange(raw.rows))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Made:
    """The columns of a batch."""

    dense: NDArray[np.float32]
    ids: NDArray[np.int32]
    labels: dict[str, NDArray[np.float32]]
    observed: dict[str, NDArray[np.bool_]]
    hours: dict[str, NDArray[np.float64]] = field(default_factory=dict)
