"""Canaries in rows of tables whose noise is owed until they are read: seen once it is paid, in the final model."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privads.attacks.directions import Directions
from privads.attacks.padded import PaddedUnits
from privads.training.plan import TrainPlan
from privads.training.tables import LazyTables, SparseSum


class FinalRows:
    """Canaries that add ``clip_norm`` along a direction in a row of a table, of which only the end is seen.

    The attacker knows what all others added, and so where plain SGD would have taken the row without the canary and
    without noise,

        theta_t = kept_t theta_{t-1} - (lr_t / batch) g_t,

    and scores how far from there, against its direction, the final row is: in standard deviations of its table's rows.
    """

    threat_model = "sees the final model, and knows what all others added to every sum"
    blunt = False

    def __init__(
        self,
        included: NDArray[np.bool_],
        directions: Mapping[nn.Parameter, Directions],
        plan: TrainPlan,
        units: PaddedUnits,
        tables: LazyTables,
    ) -> None:
        """directions: of each table, within a row for each canary."""
        self.included, self._directions, self._plan, self._units, self._tables = (
            included,
            directions,
            plan,
            units,
            tables,
        )
        self._rows = {table: one.places[:, 0] // table.shape[1] for table, one in directions.items()}
        self._expected = {table: table.detach()[rows].double() for table, rows in self._rows.items()}
        self.planted, self.drawn = units.planted, units.drawn

    def apart(self, row_numbers: NDArray[np.int64], owners: Tensor, units: int) -> None:
        """Nobody's sums are asked for apart: what canaries add is known."""

    def added(self, sums: Sequence[Tensor], apart: Mapping[Tensor, object], clip_norm: float) -> list[Tensor]:
        """Returns the sums: canaries are in tables alone."""
        return list(sums)

    def see(self, noised: Sequence[Tensor]) -> None:
        """Looks at nothing: the tables' noise is not drawn yet."""

    def in_tables(
        self, sums: Mapping[Tensor, Tensor | SparseSum], clip_norm: float
    ) -> Mapping[Tensor, Tensor | SparseSum]:
        """Returns the sums with ``clip_norm`` along the direction of every canary that was drawn."""
        counts, found = torch.from_numpy(self._units.counts()), dict(sums)
        for table, direction in self._directions.items():
            rows, width = self._rows[table], table.shape[1]
            others = found.get(table, SparseSum.nothing(table, width))
            others = (
                others if isinstance(others, SparseSum) else SparseSum(torch.arange(len(table)), others, len(table))
            )
            lr, kept = self._tables.step_of(table)
            self._expected[table] = kept * self._expected[table] - lr / self._plan.batch * others.at(rows).double()
            amounts = counts.to(rows.device)[direction.of] * clip_norm
            (drawn,) = torch.nonzero(amounts, as_tuple=True)
            if len(drawn):
                if kept != 1.0:  # a row that owes decay would shrink what is added now as well
                    self._tables.settle(table, rows[drawn])
                order = drawn[torch.argsort(rows[drawn])]
                pushes = (direction.weights * amounts[:, None])[order].to(table.dtype)
                found[table] = others + SparseSum(rows[order], pushes, len(table))
        return found

    def scores(self, model: nn.Module) -> NDArray[np.float64]:
        """Returns how far each canary's row ended from where it would have been, in standard deviations."""
        scores = np.zeros(len(self.included))
        for table, direction in self._directions.items():
            moved = self._expected[table] - table.detach()[self._rows[table]].double()
            along = (moved * direction.weights).sum(1).numpy(force=True)
            spread = float(along.std())
            scores[direction.of.numpy(force=True)] = along / spread if spread else 0.0
        return scores
