"""`PrivateEngine`: makes a model, an optimizer and a log private, in an order that cannot be got wrong."""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from accounting.budget import EXAMPLE
from accounting.ledger import Entry, Ledger
from privads.attacks.canaries import Canaries
from privads.attacks.evidence import Evidence
from privads.attacks.watch import Watch, watch_for
from privads.batch import Batch, Rows
from privads.charge import open_charge
from privads.noise import Randomness
from privads.training import resume, working
from privads.training.adaptive import ClipNorm
from privads.training.batches import Batches, Sampled, Source
from privads.training.checks import check_before
from privads.training.clipping import ClippedSums, UnitGradients
from privads.training.optimizer import PlanOptimizer
from privads.training.plan import TrainPlan
from privads.training.probe import Loss, check_shape, probe
from privads.training.resume import Resumption, Standing
from privads.training.run import Facts, Run, fingerprint
from privads.training.sampling import TruncatedPoissonSampler, sampler_for
from privads.training.selection import SelectedTables, select_these, selection
from privads.training.tables import LazyTables, named_tables, rows_of_tables, tables_of
from privads.training.uses import touched_by_all

_State = Literal["new", "ready", "drawn", "summed", "finished"]


class PrivateEngine:
    """A training loop's private half: it samples units, clips, adds noise, charges the ledger and averages iterates.

    >>> # engine = PrivateEngine(plan, ledger=ledger)
    >>> # model, optimizer, batches = engine.make_private(model, optimizer, train)
    >>> # for batch in batches:
    >>> #     engine.backward(loss_per_row(model(batch), batch))
    >>> #     optimizer.step()
    >>> # run = engine.finish()

    ledger: may be left out only for data that the schema declares public. insecure_seed: makes batches and noise
    repeatable, and is refused on data that are not public. secure: noise against attacks on its floating-point numbers,
    see `Randomness`. purpose: what the ledger's entry says. canaries: planted for an audit, which `finish` makes.
    """

    def __init__(
        self,
        plan: TrainPlan,
        *,
        ledger: Ledger | None = None,
        insecure_seed: int | None = None,
        secure: bool = False,
        purpose: str = "train",
        canaries: Canaries | None = None,
    ) -> None:
        self.plan, self.ledger, self.purpose, self.canaries = plan, ledger, purpose, canaries
        self.randomness = Randomness(insecure_seed=insecure_seed, secure=secure)
        self.steps_done = 0
        self._state: _State = "new"
        self._sums: ClippedSums | None = None
        self._within: list[Tensor] = []
        self._clip = ClipNorm(plan, self.randomness)
        self._tables: LazyTables | SelectedTables | None = None
        self._average: list[Tensor] = []
        self._watch: Watch | None = None
        self._process: int | None = None
        self._run_entry: int | None = None
        self._resumptions: tuple[Resumption, ...] = ()
        self.note: Mapping[str, Any] = {}

    def make_private(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rows: Rows,
        *,
        loss: Loss | None = None,
        resume_from: str | Path | None = None,
        shown: bool = True,
    ) -> tuple[nn.Module, PlanOptimizer, Batches]:
        """Returns (model, optimizer, batches): checks everything, charges the ledger, opens the rows, in this order.

        loss: (outputs, batch) -> (rows,). Where it is given, the probe covers it; else the report says that its
        independence across rows is asserted. The model is the same object, with hooks attached until `finish`.

        resume_from: the file that `save` wrote: the run goes on from there, with fresh randomness. shown: something of
        the steps since then may have left its process, such as a loss that was printed; they are then charged again.
        """
        self._expect("new", "make_private is called once for each engine")
        if self.canaries is not None and resume_from is not None:
            raise ValueError("a run with canaries cannot be resumed: start a new run, or leave out the canaries")
        check_before(self.plan, self.ledger, self.randomness, model, optimizer, rows)
        standing = None if resume_from is None else self._resumed(Path(resume_from), model, optimizer, rows)
        model.train()
        self._gradients = UnitGradients(model)
        try:
            probe(model, loss, rows.schema, self._gradients)
            self._tables = self._tables_for(model, optimizer)
            self.model, self.rows, self.loss_probed = model, rows, loss is not None
            self._optimizer = PlanOptimizer(
                optimizer, self.plan, self.randomness, self._clip, self._take_sums, self._after_step, self._tables
            )
            if self.canaries is not None:
                noised, seed = self._optimizer.noised, self.randomness.insecure_seed
                self._watch = self._optimizer.watch = watch_for(
                    self.canaries, self.plan, model, loss, rows, noised, self._tables, insecure_seed=seed
                )
            group = optimizer.param_groups[0]
            self._rate = float(group.get("initial_lr", group["lr"]))  # the former where a schedule starts lower
            self._kept = {name: one.clone() for name, one in self._untrained().items()}
            self._versions = self._weights_now()
            self.entry = self._charge() if standing is None else self._charge_rest(standing, shown=shown)
        except BaseException:
            self._detach()
            raise
        # From here on private rows are read, and whatever happens the charge stays.
        self._torch_state = torch.random.get_rng_state()
        seed = self.randomness.insecure_seed
        # Dropout draws from torch's own generator, by row: a seed that others know would undo the unit's anonymity.
        torch.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1 if seed is None else seed)
        self._started = time.monotonic() - (0.0 if standing is None else standing.seconds)
        self._open_rows(standing)
        self._state, self._process = "ready", os.getpid()
        return model, self._optimizer, Batches(self.plan.steps, self._draws)

    def save(self, path: str | Path, *, note: Mapping[str, Any] | None = None) -> None:
        """Write a working checkpoint, from which `make_private` resumes this run, in place of an earlier one.

        It is a secret, see `privads.training.working`. Between two steps only, and with balls in bins between two
        epochs, as a fresh deal in the middle of one would put units into two of its batches. note: what the loop wants
        to find in ``engine.note`` when it goes on, as `working.write` takes it.
        """
        self._expect("ready", "a checkpoint is made between two steps")
        if self._watch is not None:
            raise ValueError("a run with canaries cannot be resumed: leave out the checkpoint, or the canaries")
        if self._within:
            raise RuntimeError("a checkpoint is made between two steps, and parts of a batch are still to come")
        if not self.may_save:
            raise RuntimeError(f"with balls in bins a checkpoint is made after a multiple of {self.plan.bins} steps")
        if self.randomness.insecure_seed is not None:
            raise ValueError("a run with insecure_seed is repeated, not resumed: leave out the checkpoint")
        self._check_versions()
        lease = None
        if self.ledger is not None and self.entry is not None and self.entry.holder is not None:
            lease = self.ledger.lease(self.entry)  # refused where another process has gone on with the run
        chosen = None
        if isinstance(self._tables, SelectedTables) and self._selects_once:
            chosen = self._tables.chosen()
        used = getattr(self._source.sampler, "among", None)
        standing = Standing(
            steps_done=self.steps_done,
            seconds=time.monotonic() - self._started,
            clip_norm=self._clip.now,
            average=self._average,
            used=None if used is None else torch.from_numpy(used),
            selected=chosen,
            entry=None if self.entry is None else self._run_entry,
            lease=lease,
            resumptions=self._resumptions,
            note=note or {},
            places=len(self._source.sampled.units),
        )
        weights = self.model.state_dict()  # flushed
        weights |= {name: one for name, one in self._kept.items() if name in weights}  # not what the loop wrote
        inner = self._optimizer.original_optimizer
        working.write(Path(path), resume.packed(standing, self.plan, self.rows.schema, weights, inner))

    @property
    def may_save(self) -> bool:
        """Whether a checkpoint can be made now: between two steps, and with balls in bins between two epochs."""
        between_epochs = self.plan.sampler != "balls-in-bins" or self.steps_done % self.plan.bins == 0
        return self._state == "ready" and not self._within and between_epochs

    def backward(self, losses: Tensor) -> None:
        """Sum the gradients of each unit's rows, clip them, and keep the sums for the optimizer's step.

        losses: (rows,), one number per row of the batch, without a mean. Once for each batch.
        """
        self._expect("drawn", "backward is called once for each batch, before optimizer.step()")
        part, plan = self._part, self.plan
        check_shape(losses, len(part.owners))
        if part.rows < len(losses):  # padding has no gradient, whatever the loss says of it
            real = torch.arange(len(losses), device=losses.device) < part.rows
            losses = torch.where(real, losses, torch.zeros_like(losses))
        apart = None
        if self._watch is not None:
            losses = self._watch.drawn(part.numbers, losses)
            apart = self._watch.apart(part.numbers, part.owners, part.units)
        if plan.combined == "mean":
            owned = torch.bincount(part.owners[: part.rows], minlength=part.units).clamp(min=1)
            losses = losses / owned[part.owners]
        found = self._gradients.clipped_sums(
            losses,
            part.owners,
            units=part.units,
            clip_norm=self._clip.now,
            per_group=plan.clipping == "per-group",
            touching=part.rows if self._counts_rows else None,
            apart=apart,
        )
        if part.rows:
            self._sums = found if self._sums is None else self._sums + found
        self._within.append(found.within[: part.sampled])
        self._state = "summed"

    def abandon(self) -> None:
        """End a run that was interrupted: the model is left without hooks and settled, and the charge as it is."""
        self._detach()
        self._state = "finished"

    def flush(self) -> None:
        """Pay the noise that rows of tables owe, so that `model.parameters()` may be read or copied.

        ``model.state_dict()`` and `finish` do it by themselves, and a forward pass for the rows it reads. Only under
        ``table_noise="lazy"`` is anything owed.
        """
        if self._tables is not None:
            self._tables.flush()

    def finish(self) -> Run:
        """Returns the run: takes the hooks off, puts the averaged weights into the model, and commits the charge."""
        if self._state not in ("ready", "drawn"):
            raise RuntimeError("finish is called once, after the last optimizer.step()")
        self._check_process()
        self._check_versions()
        if self.ledger is not None and self.entry is not None and self.entry.holder is not None:
            self.ledger.commit(self.entry)  # first: refused where another process has gone on with the run
        self._detach()
        with torch.no_grad():
            if self._average:
                for parameter, mean in zip(self._trained(), self._average, strict=True):
                    parameter.copy_(mean)
            for name, one in self._untrained().items():
                one.copy_(self._kept[name])  # whatever wrote to it had seen rows without noise
        torch.random.set_rng_state(self._torch_state)
        self.model.eval()
        self._state = "finished"
        return Run(
            model=self.model,
            plan=self.plan,
            schema=self.rows.schema,
            ledger=self.ledger if self.entry is not None else None,
            entry=self.entry,
            evidence=self._evidence(),
            facts=Facts(
                steps_done=self.steps_done,
                seconds=time.monotonic() - self._started,
                randomness=self.randomness.description,
                floating_point=self.randomness.floating_point,
                insecure_seed=self.randomness.insecure_seed,
                optimizer=type(self._optimizer.original_optimizer).__name__,
                learning_rate=self._rate,
                weights_sha256=fingerprint(self.model.state_dict()),
                loss_probed=self.loss_probed,
                resumptions=self._resumptions,
            ),
        )

    def _evidence(self) -> Evidence | None:
        if self._watch is None or self.canaries is None:
            return None
        return Evidence.of(self._watch, self.canaries, self.plan, self.model)

    def _tables_for(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> LazyTables | SelectedTables | None:
        """Returns what trains the tables, where dense noise does not."""
        plan = self.plan
        if plan.table_noise == "dense":
            return None
        if plan.table_noise == "lazy":
            return LazyTables(model, optimizer, plan, self.randomness, self._gradients.runs_of)
        select = selection(plan, rows_of_tables(model), self.randomness)
        return SelectedTables(named_tables(model), optimizer, self.randomness, batch=plan.batch, select=select)

    def _resumed(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, rows: Rows) -> Standing:
        """Returns where the run stands that goes on, with its weights and states put back."""
        if self.randomness.insecure_seed is not None:
            raise ValueError("a resumed run takes fresh randomness: leave out insecure_seed")
        standing = resume.unpacked(working.read(path), self.plan, rows.schema, model, optimizer)
        device = next(model.parameters()).device
        self.steps_done, self._clip.now, self.note = standing.steps_done, standing.clip_norm, standing.note
        self._average = [one.to(device) for one in standing.average]
        return standing

    def _charge_rest(self, standing: Standing, *, shown: bool) -> Entry | None:
        """Returns the charge under which a resumed run goes on."""
        if self.ledger is None or self.plan.budget is None:
            return None
        dataset = self.rows.schema.dataset
        entry, resumption = resume.paid_for(
            self.ledger,
            dataset,
            self.plan,
            entry=standing.entry,
            lease=standing.lease,
            step=standing.steps_done,
            shown=shown,
            purpose=self.purpose,
        )
        self._run_entry, self._resumptions = standing.entry, (*standing.resumptions, resumption)
        return entry

    def _open_rows(self, standing: Standing | None) -> None:
        """Read who owns the rows, and make what a plan makes once of the log; a resumed run has it already."""
        generator, plan = self.randomness.generator, self.plan
        rows = self.rows if self._watch is None else self._watch.planted(self.rows)
        sampled = Sampled.of(rows, plan, by_row=self._unit == EXAMPLE, generator=generator)
        sampler = sampler_for(plan, sampled.units, self.randomness)
        if standing is not None and standing.places != len(sampled.units) and plan.records == 1:
            raise working.CheckpointError("the log is not the one that the run was on: start a new run")
        if standing is not None and isinstance(sampler, TruncatedPoissonSampler):
            sampler.among = None if standing.used is None else standing.used.numpy()
        self._source = Source(sampled, sampler, plan, next(self.model.parameters()).device)
        if not (isinstance(self._tables, SelectedTables) and self._selects_once):
            return
        if standing is not None and standing.selected is not None:
            chosen = zip(tables_of(self.model), standing.selected, strict=True)
            self._tables.select = select_these({table: ids.to(table.device) for table, ids in chosen})
            return
        rows_per_unit = plan.rows_per_unit
        touched = touched_by_all(self.model, sampled, sampled.units, rows_per_unit=rows_per_unit, generator=generator)
        self._tables.select = selection(plan, rows_of_tables(self.model), self.randomness, touched=touched)

    def _detach(self) -> None:
        """Leave the model as any other: settled, and without hooks."""
        self._gradients.cleanup()
        if self._tables is not None:
            self._tables.detach()

    def _draws(self) -> Iterator[Batch]:
        """Yields the batches of the plan's steps, in parts where it says so."""
        for part in self._source.parts(self.plan.steps - self.steps_done):
            self._check_process()
            if self._state != "ready":
                raise RuntimeError("every batch needs engine.backward(loss) and then optimizer.step(), once each")
            self._gradients.forget()
            self._part, self._state = part, "drawn"
            yield part.batch
        if self._state != "ready":
            raise RuntimeError("the last batch still needs engine.backward(loss) and optimizer.step()")

    def _take_sums(self) -> ClippedSums | None:
        """Returns the batch's sums; None while parts of it are still to come."""
        self._expect("summed", "optimizer.step() comes once for each batch, after engine.backward(loss)")
        self._check_versions()
        if not self._part.last:
            self._state = "ready"
            return None
        if self.steps_done >= self.plan.steps:
            raise RuntimeError(
                f"the plan's {self.plan.steps} steps are done: more need another plan, and its own charge"
            )
        sums, self._sums = self._sums, None
        return ClippedSums(sums={}) if sums is None else sums

    def _after_step(self) -> None:
        self._clip.follow(torch.cat(self._within))
        self._within = []
        self._state = "ready"
        self._versions = self._weights_now()
        self.steps_done += 1
        first = round(self.plan.steps * (1 - self.plan.averaging))
        if self.plan.averaging and self.steps_done > first:
            current = [parameter.detach() for parameter in self._trained()]
            if not self._average:
                self._average = [one.clone() for one in current]
            else:
                share = 1 / (self.steps_done - first)
                for mean, one in zip(self._average, current, strict=True):
                    mean.lerp_(one, share)

    def _weights_now(self) -> list[int]:
        """Counts torch's writes to each weight: one that is not the step's is seen."""
        return [parameter._version for parameter in self._trained()]

    def _trained(self) -> list[nn.Parameter]:
        return list(self._optimizer.params)

    def _untrained(self) -> dict[str, Tensor]:
        """What the model saves and the optimizer does not train: buffers, and frozen weights."""
        trained = {id(one) for one in self._trained()}
        state = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {name: one.detach() for name, one in state if id(one) not in trained}

    @property
    def _unit(self) -> str:
        if self.plan.budget is not None:
            return self.plan.budget.unit
        by_row = self.plan.rows_per_unit == 1 and self.plan.records == 1
        return EXAMPLE if by_row else self.rows.schema.protected_unit

    def _charge(self) -> Entry | None:
        if self.ledger is None or self.plan.budget is None:
            return None
        budget, schema = self.plan.budget, self.rows.schema
        cost = self.plan.spent.upper
        entry = open_charge(self.ledger, schema.dataset, self.plan.event, budget, epsilon=cost, purpose=self.purpose)
        self._run_entry = entry.id
        return entry

    @property
    def _selects_once(self) -> bool:
        return self.plan.table_noise == "fest" and self.plan.private

    @property
    def _counts_rows(self) -> bool:
        """Whether every batch's used rows decide which are trained; without privacy they are those themselves."""
        return self.plan.table_noise == "adafest" or (self.plan.table_noise == "fest" and not self.plan.private)

    def _check_versions(self) -> None:
        if self._versions != self._weights_now():
            raise RuntimeError(
                "weights were changed outside optimizer.step(): only the step sees gradients after the noise"
            )

    def _check_process(self) -> None:
        if self._process not in (None, os.getpid()):
            raise RuntimeError("a fork of the process that was charged is another execution: it needs its own charge")

    def _expect(self, state: _State, otherwise: str) -> None:
        self._check_process()
        if self._state != state:
            raise RuntimeError(otherwise)
