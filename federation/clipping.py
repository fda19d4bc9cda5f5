"""How far a user's update is scaled down, and a clip norm that follows a quantile of the norms of the updates."""

import math

import torch
from torch import Tensor

from federation.plan import FederatedPlan
from privads.noise import Randomness
from privads.training import adaptive
from privads.training.plan import LEAST_CLIP_NORM

_ROUNDING = 2.0**-30
"""Taken off a scale, so that what is added up has a norm of at most clip_norm in floating point too: far more than the
rounding of a float64 norm, product and sum over a million users."""


def factors(norms: Tensor, clip_norm: float) -> Tensor:
    """Returns (users,) by what each update is multiplied: ``min(1, clip_norm / norm)``, and 0 where it is not finite.

    norms: (users,) float64. The scaled update's norm is at most ``clip_norm`` in floating point.
    """
    fits = norms <= clip_norm * (1 - _ROUNDING)
    scaled = torch.where(fits, 1.0, clip_norm * (1 - _ROUNDING) / norms)
    return torch.where(norms.isfinite(), scaled, 0.0)


def clip_norms(plan: FederatedPlan, number: int) -> tuple[float, float]:
    """Returns the least and the most that the clip norm of round ``number``, from 1, can be under the plan."""
    if plan.clip_quantile is None:
        return plan.clip_norm, plan.clip_norm
    reach = math.exp(adaptive.RATE * (number - 1)) * (1 + _ROUNDING)
    return max(plan.clip_norm / reach, LEAST_CLIP_NORM), min(plan.clip_norm * reach, adaptive.MOST_CLIP_NORM)


def next_clip_norm(plan: FederatedPlan, now: float, *, within: int, users: int, randomness: Randomness) -> float:
    """Returns the next round's clip norm; draws the noise of the count that it follows (Andrew et al. 2021).

    ``C <- C exp(-RATE (b - quantile))`` with b the noised share of users whose update had a norm of at most C
    (`privads.training.adaptive`). The noise on the sum of the updates is that of ``now``, to which they were clipped.
    Where the plan has no quantile, the clip norm stays. within: how many of the ``users`` who took part.
    """
    if plan.clip_quantile is None or plan.count_noise_multiplier is None:
        return now
    return adaptive.moved(
        now,
        count=within - 0.5 * users,
        noise_std=0.5 * plan.count_noise_multiplier,
        divisor=plan.cohort,
        quantile=plan.clip_quantile,
        randomness=randomness,
    )
