"""`fit`: the engine's loop, and nothing else."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accounting.ledger import Ledger
from accounting.report.started import StartedFrom
from privads.attacks.canaries import Canaries
from privads.logs.logs import Logs
from privads.models import MODELS, losses
from privads.progress import bar
from privads.stated import stated
from privads.training import working
from privads.training.defaults import default_optimizer, steepness_of, warm_up
from privads.training.engine import PrivateEngine
from privads.training.finished import check_same_data
from privads.training.plan import TrainPlan
from privads.training.probe import Loss
from privads.training.run import Run
from privads.training.start import go_on, start_of
from privads.training.working import CheckpointError

CHECKPOINTS = 20
"""How many checkpoints a run writes where nobody says how often."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A working checkpoint of a run, a secret of mode 0600 (`privads.training.working`).

    every: steps between two of them; None makes `CHECKPOINTS` in a run. With balls in bins they are made at the ends of
    epochs only. resume: go on from the file where there is one; else one that is there is refused. keep: leave it at
    the end of `fit`, for who saves the run first and then removes it.
    """

    path: Path
    every: int | None = None
    resume: bool = False
    keep: bool = False

    def __post_init__(self) -> None:
        if self.every is not None and (not isinstance(self.every, int) or self.every < 1):
            raise ValueError(f"every must be a whole number of steps of at least 1, got {self.every!r}")

    def found(self, insecure_seed: int | None = None) -> Path | None:
        """Returns the file to resume from; refuses what would fail after the charge."""
        if insecure_seed is not None:
            raise ValueError("a run with insecure_seed is repeated, not resumed: leave out the checkpoint")
        working.check_place(self.path)
        if not self.path.exists():
            return None
        if not self.resume:
            raise CheckpointError(
                f"{self.path} holds the checkpoint of an interrupted run: resume it (--resume, in Python resume=True), "
                "or remove the file to start anew"
            )
        return self.path

    def is_due(self, steps_done: int, plan: TrainPlan) -> bool:
        """Whether one is to be written after so many steps."""
        if plan.sampler == "balls-in-bins" and self.every is None:
            return True  # where it can be made at all
        return steps_done % (self.every or max(1, plan.steps // CHECKPOINTS)) == 0


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
    checkpoint: Checkpoint | None = None,
    canaries: Canaries | None = None,
) -> Run:
    """Returns the run that trains ``model`` on ``train`` as ``plan`` says, evaluated on ``test`` where it is given.

    ledger: charged in full before the first row is read; raises `BudgetExceeded` where it does not suffice.
    loss: (outputs, batch) -> (rows,); by default `losses.for_schema`: that of each label's kind, summed over tasks.
    optimizer: by default `default_optimizer`. seed: of the bootstrap. insecure_seed: repeatable batches and noise, on
    public data only.
    secure: noise against attacks on its floating-point numbers, see `privads.noise.Randomness`.
    start: an earlier run, or the folder of one, whose weights this one begins with; model, fields and labels must
    match. Its cost stays where it was charged, and the report names it beside this run's own figure.
    config: kept in the report; its table ``report`` says what only people know (`privads.run_config.ReportTable`).
    checkpoint: where to keep a working checkpoint, and whether to go on from one.
    canaries: planted for an audit of the run, whose outcome stands in the report; not in a run with a checkpoint.
    """
    if canaries is not None and checkpoint is not None:
        raise ValueError("a run with canaries cannot be resumed: leave out the checkpoint, or the canaries")
    if test is not None:
        check_same_data(train.schema, test.schema)
        test.check()
    stated(config or {})  # refused here, before a row is read
    resume_from = None if checkpoint is None else checkpoint.found(insecure_seed)
    earlier: tuple[StartedFrom, ...] = ()
    if start is not None and resume_from is None:  # a checkpoint has the weights and the names of its start
        earlier = go_on(start_of(start), model, train.schema, ledger)
    chosen_loss: Loss = losses.for_schema(train.schema) if loss is None else loss
    inner = optimizer
    if inner is None:
        inner = default_optimizer(model, plan, steepness=steepness_of(train, plan))
    schedule = warm_up(inner, plan) if optimizer is None else None
    purpose = f"train {type(model).__name__}" + (f", from run {earlier[0].run}" if earlier else "")
    engine = PrivateEngine(
        plan, ledger=ledger, insecure_seed=insecure_seed, secure=secure, purpose=purpose, canaries=canaries
    )
    model, private, batches = engine.make_private(
        model, inner, train, loss=chosen_loss, resume_from=resume_from, shown=not _is_own(progress)
    )
    if resume_from is not None:
        earlier = tuple(StartedFrom.model_validate(one) for one in engine.note.get("started_from", ()))
    if schedule is not None:
        schedule.last_epoch = engine.steps_done
    with _put_back_at_an_error(engine, model, inner, checkpoint), _shown(progress, plan) as show:
        for batch in batches:
            before = engine.steps_done
            engine.backward(chosen_loss(model(batch), batch))
            private.step()
            if engine.steps_done == before:
                continue  # parts of the batch are still to come
            if schedule is not None:
                schedule.step()
            if checkpoint is not None and engine.may_save and checkpoint.is_due(engine.steps_done, plan):
                engine.save(checkpoint.path, note={"started_from": [one.model_dump() for one in earlier]})
            show(engine.steps_done)
    run = engine.finish()
    facts = dataclasses.replace(
        run.facts,
        own_loop=False,
        own_parts=loss is not None or type(model) not in MODELS.values() or not _is_own(progress),
        split=f"training: {train.split_text}",
        seed=seed,
    )
    config = dict(config or {"data": {"path": train.path}})
    run = dataclasses.replace(run, facts=facts, config=config, started_from=earlier, features=train.features)
    run = run if test is None else run.evaluated_on(test, seed=seed)
    if checkpoint is not None and not checkpoint.keep:
        working.remove(checkpoint.path)
    return run


def _is_own(progress: Progress | None) -> bool:
    """Whether nothing but privads itself sees the run while it lasts."""
    return progress is None or progress is bar


def _shown(progress: Progress | None, plan: TrainPlan) -> AbstractContextManager[Callable[[int], None]]:
    return contextlib.nullcontext(_say_nothing) if progress is None else progress(plan)


@contextlib.contextmanager
def _put_back_at_an_error(
    engine: PrivateEngine, model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint | None
) -> Iterator[None]:
    """Leaves an interrupted run's model and optimizer as the checkpoint has them.

    A resume repeats the steps since then for nothing, so whoever caught the error must not have seen them.
    """
    try:
        yield
    except BaseException:
        if checkpoint is not None and checkpoint.path.exists():
            engine.abandon()
            state = working.read(checkpoint.path)
            model.load_state_dict(state["weights"])
            optimizer.load_state_dict(state["optimizer"])
        raise


def _say_nothing(_: int) -> None:
    pass
