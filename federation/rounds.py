"""The arithmetic of a round: a state, the clipped sums of a cohort, noise, and the state after it.

A round is a function of the state before it, the clipped sums of its cohort and fresh randomness:

    mean_t = (sum over users of clip(theta_t - theta_u, C_t) + N(0, (noise_multiplier C_t)^2 I)) / cohort
    theta_{t+1} = server optimizer's step from theta_t with mean_t as the gradient

Everything after the noise is post-processing, so the server's optimizer may be any, and costs nothing: it never sees a
sum without noise. An empty cohort is a round like any other: noise, division, step, charge.

Of tables that is so under ``table_noise="dense"``. Under the others a round costs what its cohort touches, and
`federation.tables` says what it writes: those tables, and the optimizer's states of them, are changed where they are,
and so the state before such a round is no more.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from federation import tables
from federation.clipping import next_clip_norm
from federation.plan import FederatedPlan
from federation.sums import UserSums
from federation.task import names_of_tables
from privads.noise import Randomness
from privads.training.owed import OwingTable
from privads.training.working import CheckpointError

ServerOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Makes the server's optimizer for the parameters, such as ``lambda weights: torch.optim.Adam(weights, lr=0.01)``."""


def averaging(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Returns the optimizer of federated averaging: a step of 1 along the mean update."""
    return torch.optim.SGD(weights, lr=1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundState:
    """Where a run stands between two rounds. All of it was computed after the noise, and may be broadcast, but for rows
    that owe noise: see ``owed``.

    done: rounds so far. weights: the parameters that are trained. optimizer: the server optimizer's state_dict, empty
    before the first round. clip_norm: of the next round. owed: under ``table_noise="lazy"`` the tables among the
    weights, the same memory, of which only settled rows may leave the server.
    """

    done: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    clip_norm: float
    owed: Mapping[str, OwingTable] = field(default_factory=dict)


def first_state(model: nn.Module, plan: FederatedPlan) -> RoundState:
    """Returns the state before the first round."""
    weights = {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}
    names = names_of_tables(model) if plan.table_noise == "lazy" else []
    owed = tables.owing({name: weights[name] for name in names}, plan.rounds)
    return RoundState(done=0, weights=weights, optimizer={}, clip_norm=plan.clip_norm, owed=owed)


def noise_std_of(plan: FederatedPlan, clip_norm: float) -> float:
    """Returns the std of the noise that the server adds to each number of a sum of updates clipped to ``clip_norm``."""
    return plan.noise_multiplier * clip_norm if plan.private and plan.mechanism == "central" else 0.0


def check_optimizer(state: RoundState, optimizer: ServerOptimizer) -> None:
    """Raises `CheckpointError` where ``state`` is of a server with another kind of optimizer, or other steps."""
    own = optimizer([nn.Parameter(one.clone()) for one in state.weights.values()]).state_dict()
    if state.optimizer and _settings(state.optimizer) != _settings(own):
        raise CheckpointError(
            "the checkpoint is of a run whose server has another optimizer, or another step: resume with the one it "
            "was made under, or start a new run"
        )


def _settings(optimizer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the kind and the numbers of an optimizer, which its state_dict holds for each group of weights."""
    return [{name: one for name, one in group.items() if name != "params"} for group in optimizer["param_groups"]]


def noised_mean(
    sums: UserSums,
    plan: FederatedPlan,
    weights: Mapping[str, Tensor],
    *,
    clip_norm: float,
    randomness: Randomness,
) -> dict[str, Tensor]:
    """Returns ``(sum + noise) / cohort`` for each of the ``weights``, in their type.

    clip_norm: to which the summed updates were clipped. Noise is drawn and added in float64, on every number of every
    table, whether a user touched it or not. Under mechanism "local" the users have added theirs before they sent
    (`federation.population.Silo`), and none comes on top.
    """
    noise_std, found = noise_std_of(plan, clip_norm), {}
    for name, weight in weights.items():
        total = sums.of(name)
        if noise_std:
            total = total + randomness.normal_like(total, noise_std=noise_std)
        found[name] = (total / plan.cohort).to(weight.dtype)
    return found


def after_round(
    state: RoundState,
    sums: UserSums,
    plan: FederatedPlan,
    optimizer: ServerOptimizer,
    randomness: Randomness,
    see: Callable[[Mapping[str, Tensor], float], None] | None = None,
) -> RoundState:
    """Returns the state after a round whose cohort's clipped sums are ``sums``.

    The users of ``sums`` are those whose update came: who dropped out is missing from the sum, and the divisor stays.
    see: an audit's, which looks at the noised mean of the parameters that are noised whole, and at the clip norm.
    Leaves ``state`` as it is under ``table_noise="dense"``, and takes it over else.
    """
    apart: Iterable[str] = () if plan.table_noise == "dense" else sums.tables
    dense = {name: one for name, one in state.weights.items() if name not in apart}
    mean = noised_mean(sums, plan, dense, clip_norm=state.clip_norm, randomness=randomness)
    if see is not None:
        see(mean, state.clip_norm)
    parameters = {name: nn.Parameter(one.clone() if name in dense else one) for name, one in state.weights.items()}
    inner = optimizer(list(parameters.values()))
    if state.optimizer:
        inner.load_state_dict(copy.deepcopy(dict(state.optimizer)) if not apart else dict(state.optimizer))
    for name, one in mean.items():
        parameters[name].grad = one
    stepping = tables.stepping(
        {name: parameters[name] for name in apart},
        state.owed,
        sums,
        plan,
        inner,
        noise_std=noise_std_of(plan, state.clip_norm),
        randomness=randomness,
    )
    with stepping:
        inner.step()
    return RoundState(
        done=state.done + 1,
        weights={name: parameter.detach() for name, parameter in parameters.items()},
        optimizer=inner.state_dict(),
        clip_norm=next_clip_norm(plan, state.clip_norm, within=sums.within, users=sums.users, randomness=randomness),
        owed=state.owed,
    )
