"""`fit`: the engine's loop, and nothing else."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from accounting.ledger import Ledger
from privads.logs.logs import Logs
from privads.models import MODELS, losses
from privads.training.defaults import default_optimizer, warm_up
from privads.training.engine import PrivateEngine
from privads.training.plan import TrainPlan
from privads.training.probe import Loss
from privads.training.run import Run, check_same_data

Progress = Callable[[TrainPlan], AbstractContextManager[Callable[[int], None]]]
"""Shows how far a run is: it is given the plan and then the number of steps done, and never a batch."""


def fit(
    model: nn.Module,
    train: Logs,
    plan: TrainPlan,
    *,
    ledger: Ledger | None = None,
    test: Logs | None = None,
    loss: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    insecure_seed: int | None = None,
    secure: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Run:
    """Returns the run that trains ``model`` on ``train`` as ``plan`` says, evaluated on ``test`` where it is given.

    ledger: charged in full before the first row is read; raises `BudgetExceeded` where it does not suffice.
    loss: (outputs, batch) -> (rows,); by default the log loss summed over tasks. optimizer: by default
    `default_optimizer`. seed: of the bootstrap. insecure_seed: repeatable batches and noise, on public data only.
    secure: noise against attacks on its floating-point numbers, see `privads.noise.Randomness`.
    """
    if test is not None:
        check_same_data(train.schema, test.schema)
        test.check()
    chosen_loss: Loss = losses.per_row if loss is None else loss
    inner = default_optimizer(model, plan) if optimizer is None else optimizer
    schedule = warm_up(inner, plan) if optimizer is None else None
    purpose = f"train {type(model).__name__}"
    engine = PrivateEngine(plan, ledger=ledger, insecure_seed=insecure_seed, secure=secure, purpose=purpose)
    model, private, batches = engine.make_private(model, inner, train, loss=chosen_loss)
    with contextlib.nullcontext(_say_nothing) if progress is None else progress(plan) as show:
        for batch in batches:
            before = engine.steps_done
            engine.backward(chosen_loss(model(batch), batch))
            private.step()
            if engine.steps_done == before:
                continue  # parts of the batch are still to come
            if schedule is not None:
                schedule.step()
            show(engine.steps_done)
    run = engine.finish()
    facts = dataclasses.replace(
        run.facts,
        own_loop=False,
        own_parts=loss is not None or type(model) not in MODELS.values(),
        split=f"training: {train.split_text}",
        seed=seed,
    )
    run = dataclasses.replace(run, facts=facts, config=dict(config or {"data": {"path": train.path}}))
    return run if test is None else run.evaluated_on(test, seed=seed)


def _say_nothing(_: int) -> None:
    pass
