"""The arithmetic of a round, and `federate`: the loop over rounds in one process.

A round is a function of the state before it, the clipped sums of its cohort and fresh randomness:

    mean_t = (sum over users of clip(theta_t - theta_u, C_t) + N(0, (noise_multiplier C_t)^2 I)) / cohort
    theta_{t+1} = server optimizer's step from theta_t with mean_t as the gradient

Everything after the noise is post-processing, so the server's optimizer may be any, and costs nothing: it never sees a
sum without noise. An empty cohort is a round like any other: noise, division, step, charge.
"""

import contextlib
import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from accounting.ledger import Entry, Ledger
from federation.clipping import next_clip_norm
from federation.cohort import LocalTraining
from federation.plan import FederatedPlan
from federation.population import Population, Silo, silos_of
from federation.run import FederatedRun
from federation.sums import UserSums
from federation.task import Task
from privads.batch import Rows, padding
from privads.charge import check_may_read, open_charge
from privads.noise import Randomness

ServerOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Makes the server's optimizer for the parameters, such as ``lambda weights: torch.optim.Adam(weights, lr=0.01)``."""

Progress = Callable[[FederatedPlan], AbstractContextManager[Callable[[int], None]]]
"""Shows how far a run is: it is given the plan and then the number of rounds done, and nothing computed from rows."""


FLOATING_POINT = (
    "idealized: the proof is for real numbers; a user's update is computed in the numbers of the model, and clipped, "
    "summed and noised in float64"
)


def averaging(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Returns the optimizer of federated averaging: a step of 1 along the mean update."""
    return torch.optim.SGD(weights, lr=1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundState:
    """Where a run stands between two rounds; all of it was computed after the noise, and may be broadcast.

    done: rounds so far. weights: the parameters that are trained. optimizer: the server optimizer's state_dict, empty
    before the first round. clip_norm: of the next round.
    """

    done: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    clip_norm: float


def first_state(model: nn.Module, plan: FederatedPlan) -> RoundState:
    """Returns the state before the first round."""
    weights = {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}
    return RoundState(done=0, weights=weights, optimizer={}, clip_norm=plan.clip_norm)


def noised_mean(
    sums: UserSums, plan: FederatedPlan, weights: Mapping[str, Tensor], *, clip_norm: float, randomness: Randomness
) -> dict[str, Tensor]:
    """Returns ``(sum + noise) / cohort`` for each of the ``weights``, in their type.

    clip_norm: to which the summed updates were clipped. Noise is drawn and added in float64, on every number of every
    table, whether a user touched it or not. Under mechanism "local" each of the ``sums.users`` added noise of
    their own; n such noises are one of sqrt(n) times the size.
    """
    noise_std = plan.noise_multiplier * clip_norm if plan.private else 0.0
    if plan.mechanism == "local":
        noise_std *= math.sqrt(sums.users)
    found = {}
    for name, weight in weights.items():
        total = sums.of(name)
        if noise_std:
            total = total + randomness.normal_like(total, noise_std=noise_std)
        found[name] = (total / plan.cohort).to(weight.dtype)
    return found


def after_round(
    state: RoundState, sums: UserSums, plan: FederatedPlan, optimizer: ServerOptimizer, randomness: Randomness
) -> RoundState:
    """Returns the state after a round whose cohort's clipped sums are ``sums``; leaves ``state`` as it is.

    The users of ``sums`` are those whose update came: who dropped out is missing from the sum, and the divisor stays.
    """
    mean = noised_mean(sums, plan, state.weights, clip_norm=state.clip_norm, randomness=randomness)
    parameters = {name: nn.Parameter(one.clone()) for name, one in state.weights.items()}
    inner = optimizer(list(parameters.values()))
    if state.optimizer:
        inner.load_state_dict(copy.deepcopy(dict(state.optimizer)))
    for name, parameter in parameters.items():
        parameter.grad = mean[name]
    inner.step()
    return RoundState(
        done=state.done + 1,
        weights={name: parameter.detach() for name, parameter in parameters.items()},
        optimizer=inner.state_dict(),
        clip_norm=next_clip_norm(plan, state.clip_norm, within=sums.within, users=sums.users, randomness=randomness),
    )


def federate(
    task: Task,
    population: Population,
    plan: FederatedPlan,
    *,
    ledger: Ledger | None = None,
    optimizer: ServerOptimizer = averaging,
    progress: Progress | None = None,
    insecure_seed: int | None = None,
    secure: bool = False,
) -> FederatedRun:
    """Returns the run that trains ``task`` among the users of ``population`` as ``plan`` says, in this process.

    population: `privads.Rows`, such as `Logs`, whose units are the users; several are silos, each with users of its own
    numbering. ledger: charged in full before the first row is read, and `BudgetExceeded` is raised where it does not
    suffice; it may be left out only for data that the schema declares public. optimizer: makes the server's.
    insecure_seed: repeatable cohorts and noise, on public data only. secure: noise against attacks on its
    floating-point numbers, see `privads.noise.Randomness`. The task's own model is left as it is.
    """
    silos = silos_of(population)
    randomness = Randomness(insecure_seed=insecure_seed, secure=secure)
    check_before(plan, silos, ledger, randomness)
    state, local = first_state(task.model, plan), LocalTraining(task, silos[0].schema)
    _rehearse(local, state, plan, silos[0], optimizer)
    entry = _charge(task, plan, silos[0], ledger)
    # From here on private rows are read, and whatever happens the charge stays.
    started = time.monotonic()
    with _fresh_dropout(insecure_seed), contextlib.ExitStack() as shown:
        show = None if progress is None else shown.enter_context(progress(plan))
        members = [Silo(one, plan, rows_per_user=task.rows_per_user, generator=randomness.generator) for one in silos]
        while state.done < plan.rounds:
            sums = local.nothing(state.weights)
            for silo in members:
                drawn = silo.draw()
                sums = sums + local.cohort_sums(silo.rows, drawn, state.weights, clip_norm=state.clip_norm)
            state = after_round(state, sums, plan, optimizer, randomness)
            if show is not None:
                show(state.done)
    if ledger is not None and entry is not None and entry.holder is not None:
        ledger.commit(entry)
    model = copy.deepcopy(task.model)
    model.load_state_dict(dict(state.weights), strict=False)
    return FederatedRun(
        model=model.eval(),
        task=task,
        plan=plan,
        schema=silos[0].schema,
        silos=len(silos),
        ledger=ledger if entry is not None else None,
        entry=entry,
        rounds_done=state.done,
        clip_norm=state.clip_norm,
        seconds=time.monotonic() - started,
        optimizer=type(optimizer([nn.Parameter(torch.zeros(1))])).__name__,
        randomness=randomness.description,
        floating_point=randomness.floating_point if secure else FLOATING_POINT,
        insecure_seed=insecure_seed,
        split=f"training: {'; '.join(getattr(one, 'split_text', 'all rows') for one in silos)}",
        features=getattr(silos[0], "features", None),
    )


def check_before(plan: FederatedPlan, silos: Sequence[Rows], ledger: Ledger | None, randomness: Randomness) -> None:
    """Raises ValueError where plan, data and ledger do not go together; reads no row."""
    schema = silos[0].schema
    check_may_read(schema, ledger, insecure_seed=randomness.insecure_seed, private=plan.private, doing="training on")
    if not schema.unit:
        raise ValueError("users need unit columns: add unit = [COLUMN] to the schema")
    if plan.budget is not None:
        schema.check_unit(plan.budget.unit)
        schema.check_history(plan.budget.unit)
    for one in silos:
        one.check()


def _rehearse(
    local: LocalTraining, state: RoundState, plan: FederatedPlan, rows: Rows, optimizer: ServerOptimizer
) -> None:
    """Train on made-up rows and step, so that what cannot work is refused before anything is charged."""
    batch, owners = padding(rows.schema, 3), torch.tensor([0, 1, 1])
    sums = local.updates(batch, owners, 2, state.weights).clipped_sum(state.clip_norm)
    after_round(state, sums, plan, optimizer, Randomness())


def _charge(task: Task, plan: FederatedPlan, rows: Rows, ledger: Ledger | None) -> Entry | None:
    if ledger is None or plan.budget is None:
        return None
    purpose = f"federate {type(task.model).__name__}"
    return open_charge(ledger, rows.schema.dataset, plan.event, plan.budget, epsilon=plan.spent.upper, purpose=purpose)


@contextlib.contextmanager
def _fresh_dropout(seed: int | None) -> Iterator[None]:
    """Dropout draws from torch's own generator: a seed that others know would undo what sampling hides."""
    before = torch.random.get_rng_state()
    torch.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1 if seed is None else seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(before)
