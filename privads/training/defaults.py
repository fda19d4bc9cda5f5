"""Every default number of a training run, from public facts only: population, unit, budget, kind of model.

They were chosen on the simulator and on one hour of Avazu (`avazu_first10k`), and are the same rule for every data set.
"""

import math

import torch
from torch import nn

from privads.models.logistic import Logistic
from privads.training.plan import TrainPlan

MOMENTUM = 0.9
LOGIT_NOISE = 0.5
"""The standard deviation that privacy noise may give the last iterate's logit, for a row of length 1."""

STABLE_STEP = 120.0
"""Largest step of `Logistic`: heavy-ball descent on its loss (curvature at most (1 + 1/fields) / 4) is stable below."""

UNAMPLIFIED_EQUIVALENT = 2.0
"""Without privacy the step is the one that noise of this Gaussian privacy level (mu-GDP) would allow."""


def default_optimizer(model: nn.Module, plan: TrainPlan) -> torch.optim.Optimizer:
    """Returns the optimizer that `privads.fit` uses when it is given none.

    `Logistic`: SGD with momentum m = 0.9 and a step eta of which ``eta / (1 - m)`` is
    ``min(LOGIT_NOISE / (noise_std sqrt(steps)), STABLE_STEP)``, where noise_std = noise_multiplier clip_norm / batch is
    the noise of one step's mean gradient: the noise of all steps together then moves a logit by about LOGIT_NOISE.
    Any other model: Adam. ``plan.learning_rate`` takes the place of the rule's step.
    """
    if not isinstance(model, Logistic):
        return torch.optim.Adam(model.parameters(), lr=plan.learning_rate or adam_step(plan))
    return torch.optim.SGD(model.parameters(), lr=plan.learning_rate or sgd_step(plan), momentum=MOMENTUM)


def sgd_step(plan: TrainPlan) -> float:
    """Returns the step of `Logistic`'s optimizer; its docstring has the formula."""
    if plan.private:
        noise_std = plan.noise_multiplier * plan.clip_norm / plan.batch
        reach = LOGIT_NOISE / (noise_std * math.sqrt(plan.steps))
    else:
        reach = LOGIT_NOISE * UNAMPLIFIED_EQUIVALENT * plan.population / plan.steps
    return (1 - MOMENTUM) * min(reach, STABLE_STEP)


def adam_step(plan: TrainPlan) -> float:
    """Returns Adam's step."""
    return 0.01
