"""Canaries that push weights: a contribution of exactly ``clip_norm``, along a direction that is a canary's own."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privads.attacks.canaries import WithCanaries, taken
from privads.attacks.directions import Directions
from privads.attacks.ratios import Ratios, along
from privads.batch import Batch, Rows
from privads.training.plan import TrainPlan


class Pushes:
    """Canaries that add ``clip_norm`` along a direction of their own whenever the plan's sampler draws them.

    Their rows are padding, whose loss is taken out: what they add is made here, behind the clipping, and says nothing
    of it. The attacker sees every noised sum and knows what everyone else added to it, both of which the claim allows.
    """

    threat_model = "sees every noised sum, and knows what all others added to it"

    def __init__(
        self, included: NDArray[np.bool_], directions: Sequence[Directions | None], plan: TrainPlan, row: Batch
    ) -> None:
        """directions: of each noised parameter. row: of padding, what a canary has for a row."""
        self.included, self._directions, self._records, self._row = included, directions, plan.records, row
        self._rows: WithCanaries | None = None
        self._counts = np.zeros(len(included), dtype=np.int64)
        self._others, self._clip_norm = np.zeros(len(included)), 1.0
        self._ratios = Ratios(directions, len(included), plan)

    def planted(self, rows: Rows) -> Rows:
        """Returns the rows with those of the canaries behind them: one each, or as many as the plan has records."""
        of = np.repeat(np.flatnonzero(self.included), self._records)
        self._rows = WithCanaries(rows, taken(self._row, np.zeros(len(of), dtype=np.int64)), of)
        return self._rows

    def drawn(self, row_numbers: NDArray[np.int64], losses: Tensor) -> Tensor:
        """Counts the canaries in a batch, and takes their rows' losses out."""
        if self._rows is None:
            return losses
        self._counts += self._rows.canaries_in(row_numbers, len(self.included))
        mine = np.zeros(len(losses), dtype=bool)
        mine[: len(row_numbers)] = row_numbers >= self._rows.first
        return losses.masked_fill(torch.from_numpy(mine).to(losses.device), 0.0)

    def apart(self, row_numbers: NDArray[np.int64], owners: Tensor, units: int) -> None:
        """Nobody's sums are asked for apart: what canaries add is known."""

    def added(self, sums: Sequence[Tensor], apart: Mapping[Tensor, object], clip_norm: float) -> list[Tensor]:
        """Returns the sums with ``clip_norm`` along the direction of every canary that was drawn."""
        self._others, self._clip_norm = along(sums, self._directions, len(self.included)), clip_norm
        amounts = torch.from_numpy(self._counts * clip_norm)
        self._counts = np.zeros_like(self._counts)
        return [
            one if direction is None else direction.add(one, amounts.to(direction.of.device)[direction.of])
            for one, direction in zip(sums, self._directions, strict=True)
        ]

    def see(self, noised: Sequence[Tensor]) -> None:
        """Adds each canary's log-likelihood ratio of this step to its score."""
        seen = along(noised, self._directions, len(self.included)) - self._others
        self._ratios.add(seen / self._clip_norm)

    def scores(self, model: nn.Module) -> NDArray[np.float64]:
        """Returns the sums of the log-likelihood ratios."""
        return self._ratios.total
