"""`PrivateEngine`: makes a model, an optimizer and a log private, in an order that cannot be got wrong."""

import os
import time
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from accounting import mechanisms
from accounting.budget import EXAMPLE
from accounting.ledger import Charge, Entry, Ledger
from privads.batch import Batch, Rows, joined, padding
from privads.noise import Randomness
from privads.training.clipping import UnitGradients, UnsupportedModel
from privads.training.optimizer import PlanOptimizer
from privads.training.plan import TrainPlan
from privads.training.probe import Loss, check_shape, probe
from privads.training.run import Facts, Run
from privads.training.sampling import Draw, sampler_for
from privads.training.tables import LazyTables, SparseSum, check_plain_sgd

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
    repeatable, and is refused on data that are not public. purpose: what the ledger's entry says.
    """

    def __init__(
        self,
        plan: TrainPlan,
        *,
        ledger: Ledger | None = None,
        insecure_seed: int | None = None,
        purpose: str = "train",
    ) -> None:
        self.plan, self.ledger, self.purpose = plan, ledger, purpose
        self.randomness = Randomness(insecure_seed=insecure_seed)
        self.steps_done = 0
        self._state: _State = "new"
        self._sums: dict[Tensor, Tensor | SparseSum] = {}
        self._lazy: LazyTables | None = None
        self._average: list[Tensor] = []

    def make_private(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, rows: Rows, *, loss: Loss | None = None
    ) -> tuple[nn.Module, PlanOptimizer, "Batches"]:
        """Returns (model, optimizer, batches): checks everything, charges the ledger, opens the rows, in this order.

        loss: (outputs, batch) -> (rows,). Where it is given, the probe covers it; else the report says that its
        independence across rows is asserted. The model is the same object, with hooks attached until `finish`.
        """
        self._expect("new", "make_private is called once for each engine")
        self._check(model, optimizer, rows)
        model.train()
        self._gradients = UnitGradients(model)
        try:
            probe(model, loss, rows.schema, self._gradients)
            if self.plan.table_noise == "lazy":
                self._lazy = LazyTables(model, optimizer, self.plan, self.randomness)
            self.model, self.rows, self.loss_probed = model, rows, loss is not None
            self._device = next(model.parameters()).device
            self._optimizer = PlanOptimizer(
                optimizer, self.plan, self.randomness, self._take_sums, self._after_step, self._lazy
            )
            self._kept = {name: one.clone() for name, one in self._untrained().items()}
            self._versions = self._weights_now()
            self.entry = self._charge()
        except BaseException:
            self._detach()
            raise
        # From here on private rows are read, and whatever happens the charge stays.
        self._torch_state = torch.random.get_rng_state()
        seed = self.randomness.insecure_seed
        # Dropout draws from torch's own generator, by row: a seed that others know would undo the unit's anonymity.
        torch.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1 if seed is None else seed)
        self._started = time.monotonic()
        units = np.arange(len(rows.units)) if self._unit == EXAMPLE else rows.units
        self._sampler = sampler_for(self.plan, units, self.randomness.generator)
        self._state = "ready"
        return model, self._optimizer, Batches(self)

    def backward(self, losses: Tensor) -> None:
        """Sum the gradients of each unit's rows, clip them, and keep the sums for the optimizer's step.

        losses: (rows,), one number per row of the batch, without a mean. Once for each batch.
        """
        self._expect("drawn", "backward is called once for each batch, before optimizer.step()")
        check_shape(losses, len(self._owners))
        if self._drawn < len(losses):  # padding has no gradient, whatever the loss says of it
            real = torch.arange(len(losses), device=losses.device) < self._drawn
            losses = torch.where(real, losses, torch.zeros_like(losses))
        found = self._gradients.clipped_sums(losses, self._owners, units=self._units, clip_norm=self.plan.clip_norm)
        self._sums = found.sums if self._drawn else {}
        self._state = "summed"

    def flush(self) -> None:
        """Pay the noise that rows of tables owe, so that `model.parameters()` may be read or copied.

        ``model.state_dict()`` and `finish` do it by themselves, and a forward pass for the rows it reads. Only under
        ``table_noise="lazy"`` is anything owed.
        """
        if self._lazy is not None:
            self._lazy.flush()

    def finish(self) -> Run:
        """Returns the run: takes the hooks off, puts the averaged weights into the model, and commits the charge."""
        if self._state not in ("ready", "drawn"):
            raise RuntimeError("finish is called once, after the last optimizer.step()")
        self._detach()
        with torch.no_grad():
            if self._average:
                for parameter, mean in zip(self._trained(), self._average, strict=True):
                    parameter.copy_(mean)
            for name, one in self._untrained().items():
                one.copy_(self._kept[name])  # whatever wrote to it had seen rows without noise
        torch.random.set_rng_state(self._torch_state)
        self.model.eval()
        if self.ledger is not None and self.entry is not None:
            self.ledger.commit(self.entry)
        self._state = "finished"
        groups = self._optimizer.param_groups
        return Run(
            model=self.model,
            plan=self.plan,
            schema=self.rows.schema,
            ledger=self.ledger if self.entry is not None else None,
            entry=self.entry,
            facts=Facts(
                steps_done=self.steps_done,
                seconds=time.monotonic() - self._started,
                randomness=self.randomness.description,
                insecure_seed=self.randomness.insecure_seed,
                optimizer=type(self._optimizer.original_optimizer).__name__,
                learning_rate=float(groups[0]["lr"]),
                loss_probed=self.loss_probed,
            ),
        )

    def _detach(self) -> None:
        """Leave the model as any other: settled, and without hooks."""
        self._gradients.cleanup()
        if self._lazy is not None:
            self._lazy.detach()

    def _draws(self) -> Iterator[Batch]:
        """Yields the batches of the plan, one for each step."""
        for draw in self._sampler.draws(self.plan.steps):
            if self._state != "ready":
                raise RuntimeError("every batch needs engine.backward(loss) and then optimizer.step(), once each")
            self._gradients.forget()
            yield self._show(draw)
        if self._state != "ready":
            raise RuntimeError("the last batch still needs engine.backward(loss) and optimizer.step()")

    def _show(self, draw: Draw) -> Batch:
        self._state = "drawn"
        self._drawn, self._units = len(draw.row_numbers), max(draw.units, 1)
        owners = draw.owners if len(draw.owners) else np.zeros(1, dtype=np.int64)  # an empty draw is a row of padding
        self._owners = torch.from_numpy(owners).to(self._device)
        if len(owners) == self._drawn:
            return self.rows.take(draw.row_numbers).to(self._device)
        filler = padding(self.rows.schema, len(owners) - self._drawn)
        batch = joined(self.rows.take(draw.row_numbers), filler) if self._drawn else filler
        return batch.to(self._device)

    def _take_sums(self) -> Mapping[Tensor, Tensor | SparseSum]:
        self._expect("summed", "optimizer.step() comes once for each batch, after engine.backward(loss)")
        if self.steps_done >= self.plan.steps:
            raise RuntimeError(
                f"the plan's {self.plan.steps} steps are done: more need another plan, and its own charge"
            )
        if self._versions != self._weights_now():
            raise RuntimeError(
                "weights were changed outside optimizer.step(): only the step sees gradients after the noise"
            )
        sums, self._sums = self._sums, {}
        return sums

    def _after_step(self) -> None:
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
        return EXAMPLE if self.plan.rows_per_unit == 1 else self.rows.schema.protected_unit

    def _check(self, model: nn.Module, optimizer: torch.optim.Optimizer, rows: Rows) -> None:
        """Refuse what can be refused before a private row is read or the ledger is charged."""
        schema = rows.schema
        if self.plan.budget is None and not schema.public:
            raise ValueError(
                f"data set {schema.dataset!r} is not public: a plan without privacy runs only where the schema says "
                "public = true"
            )
        if self.randomness.insecure_seed is not None and not schema.public:
            raise ValueError(f"insecure_seed is refused: data set {schema.dataset!r} is not declared public")
        if self.plan.budget is not None:
            schema.check_unit(self.plan.budget.unit)
            if self.ledger is None and not schema.public:
                raise ValueError(
                    f"training on data set {schema.dataset!r} needs its ledger: pass ledger=Ledger.open(URL)"
                )
        mine = set(model.parameters())
        given = [one for group in optimizer.param_groups for one in group["params"]]
        if not given or any(one not in mine for one in given):
            raise UnsupportedModel("the optimizer must hold parameters of the model, and of nothing else")
        if self.plan.table_noise == "lazy":
            check_plain_sgd(model, optimizer)
        rows.check()

    def _charge(self) -> Entry | None:
        if self.ledger is None or self.plan.budget is None:
            return None
        budget, schema = self.plan.budget, self.rows.schema
        entry = self.ledger.reserve(
            schema.dataset,
            Charge(
                epsilon=self.plan.spent.upper,
                delta=budget.delta,
                unit=budget.unit,
                neighbors=budget.neighbors,
                event=mechanisms.to_json(self.plan.event),
                purpose=self.purpose,
            ),
        )
        self.ledger.open_rows(entry)
        return entry

    def _expect(self, state: _State, otherwise: str) -> None:
        if self._state != state:
            raise RuntimeError(otherwise)


class Batches:
    """The plan's batches: `plan.steps` of them, once. A second pass would be a second run, and raises."""

    def __init__(self, engine: PrivateEngine) -> None:
        self._engine, self._started = engine, False

    def __len__(self) -> int:
        return self._engine.plan.steps

    def __iter__(self) -> Iterator[Batch]:
        if self._started:
            raise RuntimeError(
                "the plan's batches can be read once: another pass needs another plan, and its own charge"
            )
        self._started = True
        return self._engine._draws()
