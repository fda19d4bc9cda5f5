"""What an audited run carries along: it plants canaries, watches what is released, and scores each of them."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from privads.attacks.canaries import Canaries, entropy
from privads.attacks.directions import check_room, one_row_each, one_weight_each, shared
from privads.attacks.evidence import Watching
from privads.attacks.final_rows import FinalRows
from privads.attacks.padded import PaddedUnits
from privads.attacks.pushes import Pushes
from privads.attacks.users import FinalUsers, WatchedUsers, made_up
from privads.batch import Rows
from privads.training.plan import TrainPlan
from privads.training.probe import Loss
from privads.training.tables import LazyTables, SparseSum, tables_of


class Watch(Watching, Protocol):
    """What the engine asks of an audit. None of it changes what is drawn, clipped or noised of anybody else."""

    def planted(self, rows: Rows) -> Rows:
        """Returns the rows with those of the canaries behind them."""
        ...

    def drawn(self, row_numbers: NDArray[np.int64], losses: Tensor) -> Tensor:
        """Takes note of the canaries in a batch; returns its losses (rows,), without those of rows that are none."""
        ...

    def apart(self, row_numbers: NDArray[np.int64], owners: Tensor, units: int) -> Tensor | None:
        """Returns (units,) bool, whose clipped sums are wanted by themselves too; None for nobody's."""
        ...

    def added(
        self, sums: Sequence[Tensor], apart: Mapping[Tensor, Tensor | SparseSum], clip_norm: float
    ) -> list[Tensor]:
        """Returns a batch's sums, one for each noised parameter, with what its canaries add beside their rows."""
        ...

    def in_tables(
        self, sums: Mapping[Tensor, Tensor | SparseSum], clip_norm: float
    ) -> Mapping[Tensor, Tensor | SparseSum]:
        """Returns the sums of tables with noise of their own, with what canaries add to them beside their rows."""
        ...

    def see(self, noised: Sequence[Tensor]) -> None:
        """Looks at the same sums after the noise."""
        ...


def watch_for(
    canaries: Canaries,
    plan: TrainPlan,
    model: nn.Module,
    loss: Loss | None,
    rows: Rows,
    noised: Sequence[nn.Parameter],
    own_noise: object,
    *,
    insecure_seed: int | None,
) -> Watch:
    """Returns the watch of these canaries; refuses what a run cannot be audited by. Reads no row.

    noised: the parameters whose sums are noised whole at every step. own_noise: what trains the tables, where that is
    not all of them.
    """
    canaries.check(plan.budget)
    if plan.most_units is not None and plan.population + canaries.count >= plan.most_units:
        raise ValueError(
            f"{canaries.count} canaries beside a population of {plan.population} may be more than most_units = "
            f"{plan.most_units}, and units of the log be left out for them: plant fewer, or raise most_units"
        )
    generator = entropy(insecure_seed)
    included = canaries.tossed(generator)
    tables = tables_of(model)
    if canaries.kind == "user":
        if loss is None:
            raise ValueError("canaries of kind 'user' need the loss: give it to make_private")
        rows_of_users = made_up(rows.schema, canaries.count, generator)
        if any(one in tables for one in noised):
            return WatchedUsers(included, plan, rows_of_users, loss, model, noised)
        return FinalUsers(included, plan, rows_of_users, loss, model)
    lazy = own_noise if canaries.kind == "row" and isinstance(own_noise, LazyTables) else None
    watched = list(noised) if lazy is None else [one for one in tables if one in lazy]
    rooms = [one.numel() if canaries.kind == "gradient" else len(one) * (one in tables) for one in watched]
    check_room(canaries.count, sum(rooms), what="weights" if canaries.kind == "gradient" else "rows of tables")
    make = one_weight_each if canaries.kind == "gradient" else one_row_each
    directions = make(watched, shared(canaries.count, rooms), generator)
    units = PaddedUnits(included, records=plan.records)
    if lazy is not None:
        found = {table: one for table, one in zip(watched, directions, strict=True) if one is not None}
        return FinalRows(included, found, plan, units, lazy)
    return Pushes(included, directions, plan, units)
