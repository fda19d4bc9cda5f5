"""What a working checkpoint holds of a run, and what a resume must find the same and pay for."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from dp_accounting import dp_event
from torch import Tensor, nn

from accounting import mechanisms
from accounting.budget import Budget
from accounting.ledger import Charge, Entry, Ledger, LedgerError
from accounting.report.anchor import executed_again
from privads.logs.schema import Schema
from privads.training.plan import TrainPlan
from privads.training.working import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """A run went on from its checkpoint after ``step`` steps. entry: of the charge for the steps that were charged
    again; None where the run's own charge covered them."""

    step: int
    entry: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Standing:
    """Where a run stands between two steps, beside its model and optimizer.

    used: which units a truncated sampler uses, None for all. selected: per table the rows that were chosen once, None
    where none were. lease: the ledger's secret by which one process may go on under ``entry``. note: the training
    loop's own. places: rows of the log that are sampled from.
    """

    steps_done: int
    seconds: float
    clip_norm: float
    average: list[Tensor]
    used: Tensor | None = None
    selected: list[Tensor] | None = None
    entry: int | None = None
    lease: str | None = None
    resumptions: tuple[Resumption, ...] = ()
    note: Mapping[str, Any] = field(default_factory=dict)
    places: int = 0


def packed(
    standing: Standing,
    plan: TrainPlan,
    schema: Schema,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    """Returns the state of a checkpoint. weights: of the whole model, flushed."""
    fields = {one.name: getattr(standing, one.name) for one in dataclasses.fields(standing)}
    return {
        **fields,
        "resumptions": [dataclasses.asdict(one) for one in standing.resumptions],
        "plan": dataclasses.asdict(plan),
        "schema": schema.sha256,
        "optimizer_kind": type(optimizer).__name__,
        "weights": dict(weights),
        "optimizer": optimizer.state_dict(),
    }


def unpacked(
    state: Mapping[str, Any], plan: TrainPlan, schema: Schema, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Standing:
    """Returns where the run stands, and puts its weights and states into ``model`` and ``optimizer``.

    Refuses a checkpoint of another plan, schema, model or optimizer, before anything is changed.
    """
    try:
        mine = dataclasses.asdict(plan)
        other = next((name for name in mine if state["plan"].get(name) != mine[name]), None)
        if other is not None or set(state["plan"]) != set(mine):
            raise CheckpointError(
                f"the checkpoint is of a run whose plan has another {other or 'form'}: resume with the plan it was "
                "made under, or start a new run"
            )
        if state["schema"] != schema.sha256:
            raise CheckpointError("the checkpoint is of a run on rows of another schema: start a new run")
        known = {name: tuple(one.shape) for name, one in model.state_dict().items()}
        if {name: tuple(one.shape) for name, one in state["weights"].items()} != known:
            raise CheckpointError("the checkpoint is of another model: make the model as it was, or start a new run")
        kind = type(optimizer).__name__
        if state["optimizer_kind"] != kind:
            raise CheckpointError(f"the checkpoint's optimizer is {state['optimizer_kind']}, not {kind}: give the same")
        resumptions = tuple(Resumption(**one) for one in state["resumptions"])
        names = [one.name for one in dataclasses.fields(Standing) if one.name != "resumptions"]
        standing = Standing(**{name: state[name] for name in names}, resumptions=resumptions)
        try:
            optimizer.load_state_dict(state["optimizer"])  # refused as a whole where its groups are others
        except ValueError:
            raise CheckpointError("the checkpoint's optimizer has other groups of weights: give the same") from None
        model.load_state_dict(state["weights"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"not a checkpoint of this version of privads ({error}): start a new run") from None
    return standing


class Charged(Protocol):
    """What a resume asks of a plan: `privads.TrainPlan`, or `federation.FederatedPlan`, whose steps are rounds."""

    @property
    def budget(self) -> Budget | None:
        """What the run may cost; None without privacy."""
        ...

    @property
    def steps(self) -> int:
        """How many there are."""
        ...

    @property
    def event(self) -> dp_event.DpEvent:
        """What the run executes."""
        ...

    def event_of_rest(self, steps_done: int, /) -> dp_event.DpEvent:
        """Returns what the steps after the first ``steps_done`` execute."""
        ...


def paid_for(
    ledger: Ledger,
    dataset: str,
    plan: Charged,
    *,
    entry: int | None,
    lease: str | None,
    step: int,
    shown: bool,
    purpose: str,
) -> tuple[Entry, Resumption]:
    """Returns the charge under which the run goes on, opened, and what to say of it.

    Steps after the checkpoint are executed a second time. If nothing of their first execution left its process, what
    the data's owners lose is what one execution costs, and the run's own charge pays for it: the lease is used up, so
    that no other copy of the checkpoint goes on as well. Else, also where the lease is no longer good, the steps that
    remain are charged again. shown: something may have left the process.
    """
    run = next((one for one in ledger.history(dataset) if one.id == entry), None)
    if run is None or run.event != mechanisms.to_json(plan.event):
        raise CheckpointError(
            f"{ledger.url} has no charge {entry} of this run: resume with the ledger that it was charged to"
        )
    if not shown and lease is not None:
        try:
            return ledger.resume(dataset, lease), Resumption(step=step)
        except LedgerError:
            pass  # it was used, or the run has ended: what follows is another execution
    if step == plan.steps or plan.budget is None:
        return run, Resumption(step=step)
    again = Charge(
        event=mechanisms.to_json(plan.event_of_rest(step)),
        delta=plan.budget.delta,
        unit=plan.budget.unit,
        neighbors=plan.budget.neighbors,
        purpose=executed_again(purpose, first=step + 1, last=plan.steps, entry=run.id),
    )
    opened = ledger.open_rows(ledger.reserve(dataset, again))
    return opened, Resumption(step=step, entry=opened.id)
