"""Canaries without rows of their own: padding is drawn for them, and what they add is made behind the clipping."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privads.attacks.canaries import WithCanaries
from privads.batch import Rows, padding


class PaddedUnits:
    """Units whose rows are padding, behind those of the log, and how often each was drawn for the batch at hand."""

    def __init__(self, included: NDArray[np.bool_], *, records: int) -> None:
        """records: how many of them a unit has."""
        self._included, self._records = included, records
        self._rows: WithCanaries | None = None
        self._counts = np.zeros(len(included), dtype=np.int64)

    def planted(self, rows: Rows) -> Rows:
        """Returns the rows with those of the canaries that were put in behind them."""
        of = np.repeat(np.flatnonzero(self._included), self._records)
        self._rows = WithCanaries(rows, padding(rows.schema, len(of)), of)
        return self._rows

    def drawn(self, row_numbers: NDArray[np.int64], losses: Tensor) -> Tensor:
        """Counts the canaries among these rows, the first of a batch, or of a part of one, and takes out their losses.

        losses: (rows,), those of padding at their end.
        """
        if self._rows is None:
            return losses
        self._counts += self._rows.canaries_in(row_numbers, len(self._included))
        mine = np.zeros(len(losses), dtype=bool)
        mine[: len(row_numbers)] = row_numbers >= self._rows.first
        return losses.masked_fill(torch.from_numpy(mine).to(losses.device), 0.0)

    def counts(self) -> NDArray[np.int64]:
        """Returns (canaries,) how many rows of each were drawn since it was last asked."""
        found, self._counts = self._counts, np.zeros_like(self._counts)
        return found
