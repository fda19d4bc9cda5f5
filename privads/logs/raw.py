"""`Raw`: rows with their features as the files have them, for transforms and tables; the schema's ranges hold."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from privads.logs.encode import Part, Texts
from privads.logs.past import Earlier, Past


@dataclass(frozen=True, kw_only=True, eq=False)
class Raw:
    """Some rows before any transform. numbers: per numeric column (rows,) float, NaN where missing, clipped to the
    schema's range. texts: per categorical column. labels, observed: per task (rows,). units: per unit column (rows,).
    times: (rows,) datetime64[us]. pasts: what the rows look back at, of a log that is read through features.
    """

    numbers: dict[str, NDArray[np.float64]]
    texts: dict[str, Texts]
    labels: dict[str, NDArray[np.bool_]]
    observed: dict[str, NDArray[np.bool_]]
    units: list[NDArray[np.object_]]
    times: NDArray[np.datetime64]
    pasts: dict[Past, Earlier] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.times)


def raw_rows(part: Part) -> Raw:
    """Returns the rows of a part that was encoded with ``raw``."""
    return Raw(
        numbers=part.numbers,
        texts=part.texts,
        labels=part.labels,
        observed=part.observed,
        units=part.units,
        times=part.times,
        pasts=part.pasts,
    )
