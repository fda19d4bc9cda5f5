"""`fit`: the engine's loop, and nothing else."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
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
from privads.training.start import go_on, start_of

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
    start: Run | str | Path | None = None,
) -> Run:
    """Returns the run that trains ``model`` on ``train`` as ``plan`` says, evaluated on ``test`` where it is given.

    ledger: charged in full before the first row is read; raises `BudgetExceeded` where it does not suffice.
    loss: (outputs, batch) -> (rows,); by default the log loss summed over tasks. optimizer: by default
    `default_optimizer`. seed: of the bootstrap. insecure_seed: repeatable batches and noise, on public data only.
    secure: noise against attacks on its floating-point numbers, see `privads.noise.Randomness`.
    start: an earlier run, or the folder of one, whose weights this one begins with; model, fields and labels must
    match. Its cost stays where it was charged, and the report names it beside this run's own figure.
    """
    if test is not None:
        check_same_data(train.schema, test.schema)
        test.check()
    earlier = () if start is None else go_on(start_of(start), model, train.schema, ledger)
    chosen_loss: Loss = losses.per_row if loss is None else loss
    inner = default_optimizer(model, plan) if optimizer is None else optimizer
    schedule = warm_up(inner, plan) if optimizer is None else None
    purpose = f"train {type(model).__name__}" + (f", from run {earlier[0].run}" if earlier else "")
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
    config = dict(config or {"data": {"path": train.path}})
    run = dataclasses.replace(run, facts=facts, config=config, started_from=earlier)
    return run if test is None else run.evaluated_on(test, seed=seed)


def _say_nothing(_: int) -> None:
    pass
