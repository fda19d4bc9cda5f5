"""Every default number of a training run, from public facts only: population, unit, budget, kind of model.

They were chosen on the simulator and on one hour of Avazu (`avazu_first10k`), and are the same rule for every data set.
"""

import math

import torch
from torch import nn

from privads.training.plan import TrainPlan
from privads.training.tables import param_groups

MOMENTUM = 0.9

WARM_UP = 0.25
"""The share of the steps over which the step grows to its full size. Where conversions are rare, full steps from the
start would carry the first predictions, of one half, far below the base rate, and momentum would keep them there."""

LOGIT_NOISE = 0.7
"""The standard deviation that privacy noise at full step may give the last iterate's logit, for a row of length 1."""

STABLE_STEP = 120.0
"""Largest step of `Logistic`: heavy-ball descent on its loss (curvature at most (1 + 1/fields) / 4) is stable below."""

EQUIVALENT_REACH = 1.0
"""Without privacy the step is about the one that a very large epsilon would allow (Gaussian privacy of mu = 2)."""


def default_optimizer(model: nn.Module, plan: TrainPlan) -> torch.optim.Optimizer:
    """Returns the optimizer that `privads.fit` uses when it is given none.

    SGD with momentum m = 0.9 and a step eta of which ``eta / (1 - m)`` is
    ``min(LOGIT_NOISE / (noise_std sqrt(steps)), STABLE_STEP, steps)``, where noise_std, the noise of one step's mean
    gradient, is noise_multiplier clip_norm / batch: the noise of all steps then moves a logit by about LOGIT_NOISE.
    The models are written so that this step suits them all. ``plan.learning_rate`` takes its place where it is given.
    `warm_up` is the schedule that goes with it. Under ``table_noise="lazy"`` tables take plain steps of eta / (1 - m),
    which is where momentum arrives after 1 / (1 - m) steps.
    """
    lr = plan.learning_rate or sgd_step(plan)
    if plan.table_noise == "dense":
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM)
    groups = param_groups(model, table_lr=lr / (1 - MOMENTUM))
    groups[-1]["momentum"] = 0.0
    return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM)


def warm_up(optimizer: torch.optim.Optimizer, plan: TrainPlan) -> torch.optim.lr_scheduler.LambdaLR:
    """Returns the default optimizer's schedule: step t = 1, 2, ... has size ``min(1, t / (WARM_UP steps)) eta``."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / (WARM_UP * plan.steps)))


def sgd_step(plan: TrainPlan) -> float:
    """Returns the step of the default optimizer; its docstring has the formula."""
    if plan.private:
        noise_std = plan.noise_multiplier * plan.clip_norm / plan.batch
        reach = LOGIT_NOISE / (noise_std * math.sqrt(plan.steps))
    else:
        reach = EQUIVALENT_REACH * plan.population / plan.steps
    return (1 - MOMENTUM) * min(reach, STABLE_STEP, plan.steps)
