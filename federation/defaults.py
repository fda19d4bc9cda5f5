"""Every default number of a federated run, from public facts only: population, unit, budget.

`privads federate` takes them where `[federation]` leaves a key out; they are the same rule for every data set.
"""

import math

import torch
from torch import nn

from federation.plan import FederatedPlan
from federation.rounds import ServerOptimizer
from privads.training.defaults import LOGIT_NOISE, MOMENTUM
from privads.training.sizes import default_batch, default_steps

CLIP_NORM = 0.8
"""Bound on a user's update. With the local numbers below that of a user of few rows is rarely longer: a smaller bound
cuts the users who converted more than the others, and pushes predictions below the observed rate."""

LOCAL_LEARNING_RATE, LOCAL_STEPS, ROWS_PER_USER = 0.25, 4, 32
"""Local steps together go about as far as one gradient is long, and central training bounds that by the same number."""

LARGEST_REACH = 120.0
"""Largest step of the server, momentum summed up: where descent on the loss of `Logistic` is stable, as for
`privads.training.defaults.STABLE_STEP`, while an update is about one gradient."""

ADAM_STEP = 0.01


def default_cohort(population: int, *, over_selection: float = 0.0) -> int:
    """Returns that of central training, `privads.training.sizes.default_batch`, at most population / (1 +
    over_selection)."""
    return max(1, min(default_batch(population), math.floor(population / (1 + over_selection))))


def default_rounds(population: int) -> int:
    """Returns as many as central training takes steps, `privads.training.sizes.default_steps`."""
    return default_steps(population)


def default_server(plan: FederatedPlan) -> str:
    """Returns "momentum", and where rows of tables change only in some rounds "sgd": a row's momentum would too."""
    return "momentum" if plan.table_noise == "dense" else "sgd"


def server_step(plan: FederatedPlan, server: str) -> float:
    """Returns the step of the server's optimizer.

    SGD with momentum m (0.9 under "momentum", 0 under "sgd") takes
    ``(1 - m) min(LOGIT_NOISE / (noise_std sqrt(rounds)), LARGEST_REACH)`` with ``noise_std = noise_multiplier clip_norm
    / cohort``: the noise of all rounds then moves a logit by about LOGIT_NOISE. Under local noise a cohort's is
    ``sqrt(cohort)`` times as large. Adam scales its steps by itself and takes ADAM_STEP.
    """
    if server == "adam":
        return ADAM_STEP
    momentum = MOMENTUM if server == "momentum" else 0.0
    reach = LARGEST_REACH
    if plan.private:
        noise_std = plan.noise_multiplier * plan.clip_norm / plan.cohort
        if plan.mechanism == "local":
            noise_std *= math.sqrt(plan.cohort)
        reach = min(reach, LOGIT_NOISE / (noise_std * math.sqrt(plan.rounds)))
    return (1 - momentum) * reach


def server_optimizer(plan: FederatedPlan, server: str, step: float | None = None) -> ServerOptimizer:
    """Returns what makes the server's optimizer: "momentum", "sgd" or "adam". step: by default `server_step`."""
    lr = server_step(plan, server) if step is None else step

    def make(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        if server == "adam":
            return torch.optim.Adam(weights, lr=lr)
        return torch.optim.SGD(weights, lr=lr, momentum=MOMENTUM if server == "momentum" else 0.0)

    return make
