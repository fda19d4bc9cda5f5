"""What a server does, wherever its users are: check, charge, go round after round, keep each one, and hand out the run.

`federate` does it for users of this process, `federation.flower.federate` for those of Flower's nodes; both are `serve`
with other `Parties`.

A round's noised result is on the disk before anybody is sent it, and so are the rows of tables that were settled for
the next round. A run that was killed goes on from there: what it did since then left the server in no message, so
nothing is paid twice. What users sent under mechanism "local" was released as it was sent, and is charged again.
"""

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from accounting import mechanisms
from accounting.budget import BudgetExceeded
from accounting.ledger import Entry, Ledger
from federation.canaries import watch_for
from federation.cohort import LocalTraining
from federation.parties import Parties, SparseParties
from federation.plan import FederatedPlan
from federation.population import Members, Population, check_users
from federation.rounds import RoundState, ServerOptimizer, after_round, averaging, check_optimizer, first_state
from federation.run import FederatedRun
from federation.sums import UserSums
from federation.tables import flush, sent, settle
from federation.task import Task
from privads.attacks.canaries import Canaries
from privads.attacks.evidence import Evidence
from privads.batch import padding
from privads.charge import check_may_read, open_charge
from privads.logs.schema import Schema
from privads.noise import Randomness
from privads.training import working
from privads.training.fit import Checkpoint
from privads.training.owed import Debt, OwingTable
from privads.training.resume import Resumption, paid_for
from privads.training.working import CheckpointError

Progress = Callable[[FederatedPlan], AbstractContextManager[Callable[[int], None]]]
"""Shows how far a run is: it is given the plan and then the number of rounds done, and nothing computed from rows."""

FLOATING_POINT = (
    "idealized: the proof is for real numbers; a user's update is computed in the numbers of the model, and clipped, "
    "summed and noised in float64"
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
    checkpoint: Checkpoint | None = None,
    shared_units: bool = False,
    canaries: Canaries | None = None,
) -> FederatedRun:
    """Returns the run that trains ``task`` among the users of ``population`` as ``plan`` says, in this process.

    population: `privads.Rows`, such as `Logs`, whose units are the users; several are silos, each with users of its own
    numbering. ledger: charged in full before the first row is read, and `BudgetExceeded` is raised where it does not
    suffice; it may be left out only for data that the schema declares public. optimizer: makes the server's.
    insecure_seed: repeatable cohorts and noise, on public data only. secure: noise against attacks on its
    floating-point numbers, see `privads.noise.Randomness`. checkpoint: where each round is kept before the next one
    begins, and whether to go on from there. shared_units: the unit columns name a user alike in all silos, and of a
    user of more silos than the plan's some leave their rows out (`federation.identity`); without it the report asserts
    that there is no such user. canaries: planted for an audit of the run, whose outcome stands in the report; not in a
    run with a checkpoint. The task's own model is left as it is.
    """
    return serve(
        task,
        Members(population, shared_units=shared_units),
        plan,
        ledger=ledger,
        optimizer=optimizer,
        progress=progress,
        insecure_seed=insecure_seed,
        secure=secure,
        checkpoint=checkpoint,
        canaries=canaries,
    )


def serve(
    task: Task,
    parties: Parties,
    plan: FederatedPlan,
    *,
    ledger: Ledger | None = None,
    optimizer: ServerOptimizer = averaging,
    progress: Progress | None = None,
    insecure_seed: int | None = None,
    secure: bool = False,
    checkpoint: Checkpoint | None = None,
    canaries: Canaries | None = None,
) -> FederatedRun:
    """Returns the run that trains ``task`` among ``parties``; all else is as `federate` says it."""
    randomness = Randomness(insecure_seed=insecure_seed, secure=secure)
    check_before(plan, parties, ledger, randomness)
    if canaries is not None and checkpoint is not None:
        raise ValueError("a run with canaries cannot be resumed: leave out the checkpoint, or the canaries")
    watch = None if canaries is None else watch_for(canaries, parties, task, plan, insecure_seed=insecure_seed)
    kept = None if checkpoint is None else _found(checkpoint, insecure_seed)
    _rehearse(task, plan, parties.schema, optimizer)
    state = first_state(task.model, plan)
    if kept is None:
        charge = Charge.first(task, plan, parties.schema, ledger)
    else:
        state = _state_of(kept, task, plan, parties.schema)
        check_optimizer(state, optimizer)
        charge = Charge.again(kept, task, plan, parties.schema, ledger)
        if checkpoint is not None and charge.may_go_on:  # before anything takes time: the lease in the file is used up
            working.write(checkpoint.path, _packed(state, charge, parties.schema, kept["parties"], task, plan))
    # From here on private rows are read, and whatever happens the charge stays.
    started = time.monotonic()
    if charge.may_go_on:
        parties.open(task, plan, insecure_seed=insecure_seed, secure=secure)
        if kept is not None:
            parties.restore(kept["parties"])

    def keep() -> None:
        if checkpoint is not None:
            standing = parties.standing() if kept is None or charge.may_go_on else kept["parties"]
            working.write(checkpoint.path, _packed(state, charge, parties.schema, standing, task, plan))

    see = None if watch is None else watch.see
    with contextlib.ExitStack() as shown:
        show = None if progress is None else shown.enter_context(progress(plan))
        while charge.may_go_on and state.done < plan.rounds:
            answers: Iterable[UserSums]
            if isinstance(parties, SparseParties) and plan.table_noise == "lazy":
                named = parties.named(state.done + 1)
                settle(state.owed, named, randomness)
                keep()
                weights = sent(state.weights, state.owed, named)
                answers = parties.sums(state.done + 1, weights, clip_norm=state.clip_norm)
            else:
                keep()
                answers = parties.sums(state.done + 1, state.weights, clip_norm=state.clip_norm)
            sums = task.nothing(state.weights, sparse=plan.mechanism == "central")
            for one in answers:
                sums = sums + one
            state = after_round(state, sums, plan, optimizer, randomness, see)
            if show is not None:
                show(state.done)
    flush(state.owed, randomness)
    keep()
    charge.commit()
    model = copy.deepcopy(task.model)
    model.load_state_dict(dict(state.weights), strict=False)
    if checkpoint is not None and not checkpoint.keep:
        working.remove(checkpoint.path)
    return FederatedRun(
        model=model.eval(),
        task=task,
        plan=plan,
        schema=parties.schema,
        silos=parties.silos,
        backend=parties.backend,
        not_covered=parties.not_covered,
        limited=getattr(parties, "limited", False),
        ledger=ledger if charge.run is not None else None,
        entry=charge.run,
        rounds_done=state.done,
        clip_norm=state.clip_norm,
        seconds=time.monotonic() - started,
        optimizer=type(optimizer([nn.Parameter(one) for one in state.weights.values()])).__name__,
        randomness=randomness.description,
        floating_point=_floating_point(plan, randomness),
        insecure_seed=insecure_seed,
        split=f"training: {parties.split}",
        features=parties.features,
        resumptions=charge.resumptions,
        evidence=None if watch is None or canaries is None else Evidence.of(watch, canaries, plan, model),
    )


def _floating_point(plan: FederatedPlan, randomness: Randomness) -> str:
    if randomness.secure:
        return randomness.floating_point
    owed = "; noise that rows of tables owe is drawn and added in the numbers of the model"
    return FLOATING_POINT + (owed if plan.table_noise == "lazy" else "")


def check_before(plan: FederatedPlan, parties: Parties, ledger: Ledger | None, randomness: Randomness) -> None:
    """Raises ValueError where plan, data and ledger do not go together; reads no row."""
    schema = parties.schema
    check_may_read(schema, ledger, insecure_seed=randomness.insecure_seed, private=plan.private, doing="training on")
    check_users(schema, plan)
    if plan.table_noise != "dense" and not isinstance(parties, SparseParties):
        raise ValueError(
            f"table_noise {plan.table_noise!r} needs parties that tell which rows their users read: plan with 'dense'"
        )
    parties.check()


def _rehearse(task: Task, plan: FederatedPlan, schema: Schema, optimizer: ServerOptimizer) -> None:
    """Train on made-up rows and step, so that what cannot work is refused before anything is charged."""
    state = first_state(task.model, plan)
    batch, owners = padding(schema, 3), torch.tensor([0, 1, 1])
    local = LocalTraining(task, schema)
    sums = local.updates(batch, owners, 2, state.weights).clipped_sum(state.clip_norm)
    local.check_apart(schema)
    after_round(state, sums, plan, optimizer, Randomness())


@dataclass(frozen=True, kw_only=True, eq=False)
class Charge:
    """Under which entries of the ledger a run is made. held: that which this process holds and commits at the end.

    run: the charge of the whole run. may_go_on: False where going on after an interruption costs more than is left:
    the run then ends with the rounds that it has.
    """

    ledger: Ledger | None = None
    run: Entry | None = None
    held: tuple[Entry, ...] = ()
    resumptions: tuple[Resumption, ...] = ()
    may_go_on: bool = True

    @classmethod
    def first(cls, task: Task, plan: FederatedPlan, schema: Schema, ledger: Ledger | None) -> "Charge":
        """Returns the charge of a new run, in full."""
        if ledger is None or plan.budget is None:
            return cls()
        entry = open_charge(
            ledger, schema.dataset, plan.event, plan.budget, epsilon=plan.spent.upper, purpose=_purpose(task)
        )
        return cls(ledger=ledger, run=entry, held=(entry,))

    @classmethod
    def again(
        cls, kept: Mapping[str, Any], task: Task, plan: FederatedPlan, schema: Schema, ledger: Ledger | None
    ) -> "Charge":
        """Returns the charge under which a run goes on from a checkpoint.

        What a server with central noise did since then is repeated under the run's own charge. What users sent under
        mechanism "local" is charged once more: one update of each, for the round that was not kept. A second copy of a
        checkpoint pays for the rounds that remain; where tables owe noise it pays for all rounds, as the noise of
        earlier ones was not drawn yet, and two copies draw it apart. One that cannot pay then has no model to show.
        """
        earlier = tuple(Resumption(**one) for one in kept["resumptions"])
        owing = plan.table_noise == "lazy" and kept["done"] < plan.rounds
        if ledger is None or plan.budget is None:
            return cls(resumptions=(*earlier, Resumption(step=kept["done"])))
        run = next((one for one in ledger.history(schema.dataset) if one.id == kept["entry"]), None)
        try:
            held, resumption = paid_for(
                ledger,
                schema.dataset,
                plan,
                entry=kept["entry"],
                lease=kept["lease"],
                step=0 if owing else kept["done"],
                shown=False,
                purpose=_purpose(task),
            )
            resumption = replace(resumption, step=kept["done"])
            if plan.mechanism == "local" and resumption.entry is None and kept["done"] < plan.rounds:
                once = mechanisms.gaussian(noise_multiplier=plan.noise_multiplier)
                purpose = f"{_purpose(task)}: round {kept['done'] + 1} of entry {kept['entry']} again"
                extra = open_charge(ledger, schema.dataset, once, plan.budget, purpose=purpose)
                return cls(
                    ledger=ledger,
                    run=run,
                    held=(held, extra),
                    resumptions=(*earlier, replace(resumption, entry=extra.id)),
                )
        except BudgetExceeded:
            if owing:
                raise
            return cls(ledger=ledger, run=run, resumptions=earlier, may_go_on=False)
        return cls(ledger=ledger, run=run, held=(held,), resumptions=(*earlier, resumption))

    def lease(self) -> str | None:
        """Returns the secret by which another process may go on under the run's charge; an earlier one is void."""
        if self.ledger is None or not self.held or self.held[0].holder is None:
            return None
        return self.ledger.lease(self.held[0])

    def commit(self) -> None:
        """Say that the run is over."""
        for entry in self.held:
            if self.ledger is not None and entry.holder is not None:
                self.ledger.commit(entry)


def _purpose(task: Task) -> str:
    return f"federate {type(task.model).__name__}"


def _found(checkpoint: Checkpoint, insecure_seed: int | None) -> Mapping[str, Any] | None:
    """Returns the state to go on from; None for a new run."""
    if checkpoint.every is not None:
        raise ValueError("every round of a federated run is kept: leave out every")
    path = checkpoint.found(insecure_seed)
    return None if path is None else working.read(path)


def _packed(
    state: RoundState, charge: Charge, schema: Schema, standing: Mapping[str, Any], task: Task, plan: FederatedPlan
) -> dict[str, Any]:
    """Returns what a checkpoint holds. standing: of the parties."""
    return {
        **{one.name: getattr(state, one.name) for one in dataclasses.fields(state)},
        "owed": {name: {"settled": one.settled, "debt": one.debt.packed()} for name, one in state.owed.items()},
        "plan": dataclasses.asdict(plan),
        "task": task.settings,
        "schema": schema.sha256,
        "parties": standing,
        "entry": None if charge.run is None else charge.run.id,
        "lease": charge.lease(),
        "resumptions": [dataclasses.asdict(one) for one in charge.resumptions],
    }


def _state_of(kept: Mapping[str, Any], task: Task, plan: FederatedPlan, schema: Schema) -> RoundState:
    """Returns the state that a checkpoint holds; refuses one of another plan, task, schema or model."""
    try:
        mine = {"plan": dataclasses.asdict(plan), "task": task.settings}
        for table, stated in mine.items():
            other = next((name for name in stated if kept[table].get(name) != stated[name]), None)
            if other is not None or set(kept[table]) != set(stated):
                raise CheckpointError(
                    f"the checkpoint is of a run whose {table} has another {other or 'form'}: resume with the one it "
                    "was made under, or start a new run"
                )
        if kept["schema"] != schema.sha256:
            raise CheckpointError("the checkpoint is of a run on rows of another schema: start a new run")
        shapes = {name: tuple(one.shape) for name, one in task.model.named_parameters() if one.requires_grad}
        if {name: tuple(one.shape) for name, one in kept["weights"].items()} != shapes:
            raise CheckpointError("the checkpoint is of another model: make the model as it was, or start a new run")
        owed = {
            name: OwingTable(kept["weights"][name], Debt.unpacked(one["debt"]), one["settled"])
            for name, one in kept["owed"].items()
        }
        fields = {one.name: kept[one.name] for one in dataclasses.fields(RoundState)}
        return RoundState(**{**fields, "owed": owed})
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"not a checkpoint of a federated run of this version ({error}): start a new run"
        ) from None
