"""Registered users, in one silo or several: who joins a round, and how often they did."""

from collections.abc import Sequence

import numpy as np

from federation.plan import FederatedPlan
from privads.batch import Rows
from privads.training.sampling import Draw, Numbers, PoissonSampler

Population = Rows | Sequence[Rows]
"""The rows of all users, or those of each silo; a user is a unit of them."""


def silos_of(population: Population) -> tuple[Rows, ...]:
    """Returns the silos; rows by themselves are one. Raises ValueError where public facts differ; reads no row."""
    silos = tuple(population) if isinstance(population, Sequence) else (population,)
    if not silos:
        raise ValueError("a population must have at least one silo, got none")
    for one in silos:
        if not all(hasattr(one, name) for name in ("schema", "take")):  # asking for units would read rows
            raise ValueError(f"a {type(one).__name__} is no source of users' rows: pass Logs, or your own privads.Rows")
        if one.schema != silos[0].schema:
            raise ValueError("all silos must have one schema: their fields, labels and data set are the task's")
    return silos


class Silo:
    """The users of one silo, who join every round independently with the plan's sampling rate.

    Reads whose the rows are. A user of more rows than ``rows_per_user`` brings a random choice of them. Where the plan
    limits how often a user sends an update, one who did so that often is left out of what is drawn.
    """

    def __init__(self, rows: Rows, plan: FederatedPlan, *, rows_per_user: int, generator: np.random.Generator) -> None:
        self.rows, self._units, self._most = rows, rows.units, plan.participations
        self._sampler = PoissonSampler(
            self._units, sampling_rate=plan.sampling_rate, rows_per_unit=rows_per_user, generator=generator
        )
        users = int(self._units.max()) + 1 if len(self._units) else 0
        self.sent: Numbers = np.zeros(users, dtype=np.int64)  # by each user so far

    def draw(self) -> Draw:
        """Returns who takes part in a round, with their rows."""
        drawn = self._sampler.draw()
        users = np.zeros(drawn.units, dtype=np.int64)
        users[drawn.owners] = self._units[drawn.row_numbers]  # every unit of the rows has one
        if self._most is not None:
            may = self.sent[users] < self._most
            kept = may[drawn.owners]
            number = np.cumsum(may) - 1
            drawn = Draw(
                row_numbers=drawn.row_numbers[kept],
                owners=number[drawn.owners[kept]],
                units=int(may.sum()),
                sampled=int(may.sum()),
            )
            users = users[may]
        self.sent[users] += 1
        return drawn
