"""Canaries that push weights: a contribution of exactly ``clip_norm``, along a direction that is a canary's own."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privads.attacks.directions import Directions
from privads.attacks.padded import PaddedUnits
from privads.attacks.ratios import Ratios, along
from privads.training.plan import TrainPlan
from privads.training.tables import SparseSum


class Pushes:
    """Canaries that add ``clip_norm`` along a direction of their own whenever the plan's sampler draws them.

    Their rows are padding, whose loss is taken out: what they add is made here, behind the clipping, and says nothing
    of it. The attacker sees every noised sum and knows what everyone else added to it, both of which the claim allows.
    """

    threat_model = "sees every noised sum, and knows what all others added to it"
    blunt = False

    def __init__(
        self,
        included: NDArray[np.bool_],
        directions: Sequence[Directions | None],
        plan: TrainPlan,
        units: PaddedUnits,
    ) -> None:
        """directions: of each noised parameter."""
        self.included, self._directions, self._units = included, directions, units
        self.planted, self.drawn = units.planted, units.drawn
        self._others, self._clip_norm = np.zeros(len(included)), 1.0
        self._ratios = Ratios(directions, len(included), plan)

    def apart(self, row_numbers: NDArray[np.int64], owners: Tensor, units: int) -> None:
        """Nobody's sums are asked for apart: what canaries add is known."""

    def added(self, sums: Sequence[Tensor], apart: Mapping[Tensor, object], clip_norm: float) -> list[Tensor]:
        """Returns the sums with ``clip_norm`` along the direction of every canary that was drawn."""
        self._others, self._clip_norm = along(sums, self._directions, len(self.included)), clip_norm
        amounts = torch.from_numpy(self._units.counts() * clip_norm)
        return [
            one if direction is None else direction.add(one, amounts.to(direction.of.device)[direction.of])
            for one, direction in zip(sums, self._directions, strict=True)
        ]

    def in_tables(
        self, sums: Mapping[Tensor, Tensor | SparseSum], clip_norm: float
    ) -> Mapping[Tensor, Tensor | SparseSum]:
        """Returns the sums of tables with noise of their own: no canary is in them."""
        return sums

    def see(self, noised: Sequence[Tensor]) -> None:
        """Adds each canary's log-likelihood ratio of this step to its score."""
        seen = along(noised, self._directions, len(self.included)) - self._others
        self._ratios.add(seen / self._clip_norm)

    def scores(self, model: nn.Module) -> NDArray[np.float64]:
        """Returns the sums of the log-likelihood ratios."""
        return self._ratios.total
