"""Embedding tables: clipped sums that stay sparse, and noise that is owed until a row is next read.

Under ``table_noise="dense"`` a step noises every row of every table. Under ``"lazy"`` it writes to its batch's rows
alone, and the model that is handed out has the same law: `privads.training.owed` says what rows owe meanwhile.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from privads.models.layers import FusedTable
from privads.noise import Randomness
from privads.training.owed import Debt, OwingTable, is_plain, step_of
from privads.training.plan import TrainPlan

TABLES: tuple[type[nn.Module], ...] = (FusedTable, nn.Embedding, nn.EmbeddingBag)
"""The layers whose ``weight`` is a table: its clipped sums are sparse, and its noise may be lazy."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Which keys are equal: ``order`` (n,) sorts them, and run i, of key ``keys[i]``, begins at ``starts[i]``."""

    keys: Tensor
    order: Tensor
    starts: Tensor

    @classmethod
    def of(cls, keys: Tensor) -> Self:
        """Returns the runs of ``keys`` (n,), each from 0 to 2^31 - 1; equal ones keep their order."""
        if keys.device.type == "cpu":
            return cls._by_numpy(keys)
        ordered, order = torch.sort(keys.int(), stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=first[1:])
        starts = torch.nonzero(first).flatten()
        return cls(ordered[starts].long(), order, starts)

    @classmethod
    def _by_numpy(cls, keys: Tensor) -> Self:
        """Sorts key and place as one number, which is faster here than any sort that returns the places."""
        places = max(len(keys) - 1, 1).bit_length()
        both = np.left_shift(keys.numpy().astype(np.int64, copy=False), places)
        both += np.arange(len(both))
        both.sort()
        order = both & ((1 << places) - 1)
        both >>= places
        starts = np.flatnonzero(both[1:] != both[:-1]) + 1
        starts = np.concatenate([np.zeros(min(len(both), 1), dtype=np.int64), starts])
        return cls(*(torch.from_numpy(one) for one in (both[starts], order, starts)))


class RunsOfBatch:
    """The runs of a tensor of keys, found once for a batch: noise that is owed, norms and sums all need them."""

    def __init__(self) -> None:
        self._known: list[tuple[Tensor, int, Runs]] = []

    def __call__(self, keys: Tensor) -> Runs:
        """Returns ``Runs.of(keys)``; keys: (n,)."""
        for known, version, runs in self._known:  # kept alive, so that its memory is no other tensor's
            same = known.data_ptr() == keys.data_ptr() and known.shape == keys.shape and known.dtype == keys.dtype
            if same and version == keys._version and known.stride() == keys.stride():
                return runs
        runs = Runs.of(keys)
        self._known.append((keys, keys._version, runs))
        return runs

    def forget(self) -> None:
        """Drop what is known: the next batch has other keys."""
        self._known.clear()


def sums_of_runs(values: Tensor, order: Tensor, starts: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns (runs, dim): for each run the sum over its m of ``weights_m values[order_m]``. weights: (m,)."""
    if not len(order):
        return values.new_zeros(0, values.shape[1])
    return F.embedding_bag(order, values, starts, mode="sum", per_sample_weights=weights)


@dataclass(frozen=True, eq=False)
class SparseSum:
    """A (rows, dim) sum that is ``values[i]`` in row ``ids[i]``, and 0 elsewhere. ids: (n,), each once, ascending."""

    ids: Tensor
    values: Tensor
    rows: int

    def __add__(self, other: "SparseSum") -> "SparseSum":
        runs = Runs.of(torch.cat([self.ids, other.ids]))
        return SparseSum(
            runs.keys, sums_of_runs(torch.cat([self.values, other.values]), runs.order, runs.starts), self.rows
        )

    @classmethod
    def nothing(cls, table: Tensor, width: int) -> Self:
        """Returns the (rows of the table, width) sum of nothing."""
        none = torch.zeros(0, dtype=torch.int64, device=table.device)
        return cls(none, table.new_zeros(0, width), len(table))

    def at(self, rows: Tensor) -> Tensor:
        """Returns (n, dim) the sum in these ``rows`` (n,), in memory of its own."""
        if not len(self.ids):
            return self.values.new_zeros(len(rows), self.values.shape[1])
        places = torch.searchsorted(self.ids, rows).clamp_(max=len(self.ids) - 1)
        missing = self.ids.index_select(0, places) != rows
        return self.values.index_select(0, places).masked_fill_(missing[:, None], 0.0)

    def dense(self) -> Tensor:
        """Returns the (rows, dim) tensor."""
        return self.values.new_zeros(self.rows, self.values.shape[1]).index_copy_(0, self.ids, self.values)


def param_groups(model: nn.Module, *, table_lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Returns groups for any torch optimizer, under which `LazyTables` trains the tables by plain SGD.

    >>> # torch.optim.Adam(param_groups(model, table_lr=0.5), lr=1e-3)

    The mark ``plain_sgd`` says that the optimizer's own rule is not meant for the tables; the engine never lets it see
    them. table_lr, weight_decay: of the tables. The other parameters take what the optimizer is given.
    """
    tables = tables_of(model)
    network = [one for one in model.parameters() if one.requires_grad and one not in tables]
    table_group = {"params": list(tables), "lr": table_lr, "weight_decay": weight_decay, "plain_sgd": True}
    return [{"params": network}, table_group] if network else [table_group]


def check_plain_sgd(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raises ValueError unless every table is trained by plain SGD: what noise does to any other state is not owed."""
    names = named_tables(model)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter in names and not is_plain(optimizer, group):
                raise ValueError(
                    f"table_noise 'lazy' needs plain SGD on {names[parameter]!r}, without momentum, nesterov or "
                    f"maximize, not {type(optimizer).__name__}: build the optimizer on "
                    "privads.training.tables.param_groups(model, table_lr=...), or plan with table_noise='adafest', "
                    "which takes Adagrad and Adam on the rows it selects"
                )


def tables_of(model: nn.Module) -> dict[nn.Parameter, list[nn.Module]]:
    """Returns the trained tables, and the modules through which each is read."""
    found: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        if type(module) in TABLES and module.weight.requires_grad:
            found.setdefault(module.weight, []).append(module)  # type: ignore[arg-type]
    return found


def rows_of_tables(model: nn.Module) -> int:
    """Returns how many rows its tables have together."""
    return sum(len(table) for table in tables_of(model))


def named_tables(model: nn.Module) -> dict[nn.Parameter, str]:
    """Returns the trained tables with their names, in the order of `tables_of`."""
    names = {one: name for name, one in model.named_parameters()}
    return {one: names[one] for one in tables_of(model)}


@contextmanager
def watched(model: nn.Module) -> Iterator[list[tuple[nn.Module, tuple[Any, ...]]]]:
    """Within it each call of a trained table's layer is appended to the list: the layer, and what went in."""
    calls: list[tuple[nn.Module, tuple[Any, ...]]] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        calls.append((module, positional(module, args, kwargs)))

    modules = [module for readers in tables_of(model).values() for module in readers]
    hooks = [module.register_forward_pre_hook(see, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


class LazyTables:
    """Trains the tables of a model by plain SGD and noises their rows when they are next read, exactly in law.

    Guarantees (each with a test of its own):
    - every read through a table's own layer, in training or evaluation, is of settled rows: a hook settles them first;
    - ``state_dict()`` of the model or of a table is flushed, and so is what `flush` leaves;
    - a copy or a pickle of the model is refused while rows owe noise.

    Reading ``model.parameters()``, ``table.weight`` or a ``state_dict()`` from before the last step, which holds the
    weights themselves, cannot be caught: call `flush` first. A model that reads a table in another way than by calling
    its layer is not supported. Beside the weights this holds 4 bytes a row.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        plan: TrainPlan,
        randomness: Randomness,
        runs_of: Callable[[Tensor], Runs] = Runs.of,
    ) -> None:
        check_plain_sgd(model, optimizer)
        self._runs_of = runs_of
        self._model, self._optimizer, self._plan, self._randomness = model, optimizer, plan, randomness
        self._tables: dict[Tensor, OwingTable] = {}
        self._hooks: list[RemovableHandle] = []
        modules = tables_of(model)
        self._debts: list[tuple[int, Debt]] = []
        for number, group in enumerate(optimizer.param_groups):
            weights = [one for one in group["params"] if one in modules]
            if weights:
                self._debts.append((number, Debt(plan.steps)))
            for weight in weights:
                self._tables[weight] = OwingTable.of(weight, self._debts[-1][1])
                self._attach(self._tables[weight], modules[weight])

    def __contains__(self, parameter: object) -> bool:
        return parameter in self._tables

    def __deepcopy__(self, memo: object) -> NoReturn:
        self._refuse_copies()

    def __reduce__(self) -> NoReturn:
        self._refuse_copies()

    @contextmanager
    def stepping(
        self, sums: Mapping[Tensor, Tensor | SparseSum], touched: object, *, noise_std: float
    ) -> Iterator[None]:
        """Take one step of SGD with these clipped sums, owe its noise to every row, and let the other weights step.

        noise_std: of the noise on each number of the sums.
        """
        self.step(sums, noise_std=noise_std)
        yield

    def step(self, sums: Mapping[Tensor, Tensor | SparseSum], *, noise_std: float) -> None:
        """Take one step of SGD with these clipped sums, and owe its noise, of this std on the sums, to every row."""
        check_plain_sgd(self._model, self._optimizer)  # a scheduler may have changed the momentum
        steps = {debt: step_of(self._optimizer.param_groups[number]) for number, debt in self._debts}
        # Owed before anything is written: an interrupted step must not show its sums.
        for debt, (lr, kept) in steps.items():
            debt.add(kept=kept, noise_std=lr * noise_std / self._plan.batch)
        with torch.no_grad():
            for weight, table in self._tables.items():
                if weight in sums:
                    lr, kept = steps[table.debt]
                    add_step(weight, sums[weight], lr=lr, kept=kept, divisor=self._plan.batch)

    def step_of(self, table: Tensor) -> tuple[float, float]:
        """Returns (learning rate, factor that weight decay leaves of a weight) of a table's next step."""
        debt = self._tables[table].debt
        (number,) = (number for number, one in self._debts if one is debt)
        return step_of(self._optimizer.param_groups[number])

    def settle(self, table: Tensor, rows: Tensor) -> None:
        """Pay what these ``rows`` (n,) of a table owe, each named once."""
        self._tables[table].settle(rows, self._randomness)

    def flush(self) -> None:
        """Settle every row of every table."""
        for table in self._tables.values():
            table.flush(self._randomness)

    def detach(self) -> None:
        """Flush, and take the hooks off the model."""
        self.flush()
        for hook in self._hooks:
            hook.remove()

    def _attach(self, table: OwingTable, modules: Sequence[nn.Module]) -> None:
        for module in modules:
            before = partial(self._before_read, table)
            self._hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._hooks.append(module.register_state_dict_pre_hook(partial(self._before_saving, table)))  # type: ignore[no-untyped-call]

    def _before_read(
        self, table: OwingTable, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        ids = positional(module, args, kwargs)[0]
        if table.debt.steps:
            table.settle(self._runs_of(ids.detach().flatten()).keys, self._randomness)

    def _before_saving(self, table: OwingTable, *_: object) -> None:
        table.flush(self._randomness)

    def _refuse_copies(self) -> NoReturn:
        raise RuntimeError(
            "rows of the tables still owe noise: call engine.finish() before copying the model, or use its state_dict()"
        )


def add_step(weight: Tensor, found: Tensor | SparseSum, *, lr: float, kept: float, divisor: float) -> None:
    """Add to a table what a step with this clipped sum writes at once, ``-lr found / divisor``.

    The rows owe this step's decay ``kept`` as all others do, so what is added now is divided by it.
    """
    factor = -lr / (divisor * kept)
    if isinstance(found, SparseSum):
        added = (found.values * factor).to(weight.dtype)  # its own alpha would take three times as long
        weight.index_add_(0, found.ids, added)
    else:
        weight.add_(found, alpha=factor)


def positional(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what ``module`` was called with, in the order of its forward method, without a tail of None."""
    found = inspect.signature(module.forward).bind(*args, **kwargs).args if kwargs else tuple(args)
    while found and found[-1] is None:
        found = found[:-1]
    return found
