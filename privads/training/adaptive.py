"""A clip norm that follows a quantile of the units' gradient norms, from a private count (Andrew et al. 2021)."""

import math

import torch
from torch import Tensor

from privads.noise import Randomness
from privads.training.plan import LEAST_CLIP_NORM, TrainPlan

RATE = 0.2
"""How fast the clip norm moves: by a factor of at most ``exp(RATE)`` a step (Andrew et al. 2021, section 3.1)."""

MOST_CLIP_NORM = 1e6


class ClipNorm:
    """The clip norm of the next step: fixed, or ``C <- C exp(-RATE (b - quantile))`` after each step, where

    ``b = 1/2 + (sum over units of (1[norm <= C] - 1/2) + N(0, (count_noise_multiplier / 2)^2)) / batch``

    is the noised share of units that were not clipped (algorithm 1). A unit moves the sum by 1/2, whether it is clipped
    or not, and the divisor is the plan's batch. The noise on the gradients has the clip norm that they were clipped to.
    """

    def __init__(self, plan: TrainPlan, randomness: Randomness, *, now: float | None = None) -> None:
        self._plan, self._randomness = plan, randomness
        self.now = plan.clip_norm if now is None else now

    def follow(self, within: Tensor) -> None:
        """Move by what the count of units says. within: (units,) bool, of those really sampled: norm <= clip norm."""
        plan = self._plan
        if plan.clip_quantile is None or plan.count_noise_multiplier is None:
            return
        self.now = moved(
            self.now,
            count=float(within.sum()) - 0.5 * len(within),
            noise_std=0.5 * plan.count_noise_multiplier,
            divisor=plan.batch,
            quantile=plan.clip_quantile,
            randomness=self._randomness,
        )


def moved(
    clip_norm: float, *, count: float, noise_std: float, divisor: float, quantile: float, randomness: Randomness
) -> float:
    """Returns the clip norm after one step of `ClipNorm`'s rule, and draws the noise of the count.

    count: the sum over units of (1[norm <= C] - 1/2). noise_std: of the noise on it. divisor: a public number.
    """
    exact = torch.tensor([count], dtype=torch.float64)
    noised = float(exact + randomness.normal_like(exact, noise_std=noise_std))
    share = 0.5 + noised / divisor
    found = clip_norm * math.exp(-RATE * max(-1.0, min(1.0, share - quantile)))
    return min(max(found, LEAST_CLIP_NORM), MOST_CLIP_NORM)
