"""Every default number of a training run, from public facts only: population, unit, budget, kind of model.

They were chosen on the simulator and on one hour of Avazu (`avazu_first10k`), and are the same rule for every data set.
"""

import math

import numpy as np
import torch
from torch import nn

from privads.batch import Rows
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


_LOOKED_AT = 1 << 16


def default_optimizer(model: nn.Module, plan: TrainPlan, *, steepness: float = 1.0) -> torch.optim.Optimizer:
    """Returns the optimizer that `privads.fit` uses when it is given none.

    SGD with momentum m = 0.9 and a step eta of which ``eta / (1 - m)`` is
    ``min(LOGIT_NOISE / (noise_std sqrt(steps)), STABLE_STEP, steps)``, where noise_std, the noise of one step's mean
    gradient, is noise_multiplier clip_norm / batch: the noise of all steps then moves a logit by about LOGIT_NOISE.
    The models are written so that this step suits them all. ``plan.learning_rate`` takes its place where it is given.
    `warm_up` is the schedule that goes with it. Under ``table_noise="lazy"`` tables take plain steps of eta / (1 - m),
    which is where momentum arrives after 1 / (1 - m) steps. steepness: what STABLE_STEP is divided by (`steepness_of`).
    """
    lr = plan.learning_rate or sgd_step(plan, steepness=steepness)
    if plan.table_noise == "dense":
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM)
    groups = param_groups(model, table_lr=lr / (1 - MOMENTUM))
    groups[-1]["momentum"] = 0.0
    return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM)


def warm_up(optimizer: torch.optim.Optimizer, plan: TrainPlan) -> torch.optim.lr_scheduler.LambdaLR:
    """Returns the default optimizer's schedule: step t = 1, 2, ... has size ``min(1, t / (WARM_UP steps)) eta``."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / (WARM_UP * plan.steps)))


def steepness_of(train: Rows, plan: TrainPlan) -> float:
    """Returns how much steeper the loss of public ``train`` is than that of one row of a unit, at least 1.

    Without a clip norm, rows whose gradients are summed make a unit's loss as many times as steep, and a label that is
    1 with rate r a row's ``4 r (1 - r)`` times: the mean rows of a unit times the largest of these over tasks, by the
    first 65,536 rows. 1 with privacy, where clipping bounds the sum, where the rows are not public, and where
    the step is stated.
    """
    stated = plan.learning_rate is not None
    if stated or plan.private or not train.schema.public or plan.records > 1 or plan.combined != "sum":
        return 1.0
    rows = np.bincount(train.units)
    if not len(rows):
        return 1.0
    seen = train.take(np.arange(min(len(train.units), _LOOKED_AT)))
    rates = [float(seen.labels[task][seen.observed[task]].mean()) for task in train.schema.events]
    spread = max((4 * rate * (1 - rate) for rate in rates if not math.isnan(rate)), default=1.0)
    return max(1.0, float(np.minimum(rows, plan.rows_per_unit).mean()) * spread)


def sgd_step(plan: TrainPlan, *, steepness: float = 1.0) -> float:
    """Returns the step of the default optimizer; its docstring has the formula."""
    if plan.private:
        noise_std = plan.noise_multiplier * plan.clip_norm / plan.batch
        reach = LOGIT_NOISE / (noise_std * math.sqrt(plan.steps))
    else:
        reach = EQUIVALENT_REACH * plan.population / plan.steps
    return (1 - MOMENTUM) * min(reach, STABLE_STEP / steepness, plan.steps)
