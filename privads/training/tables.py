"""Embedding tables: clipped sums that stay sparse, and noise that is owed until a row is next read.

Under ``table_noise="dense"`` a step noises every row of every table. Under ``"lazy"`` it writes to its batch's rows
alone, and the model that is handed out has the same law (LazyDP, ASPLOS 2024; here for any schedule of the learning
rate and with weight decay). For plain SGD a row that step s gives the sum g_s and the noise n_s follows

    theta_s = kept_s theta_{s-1} - (lr_s / batch) (g_s + n_s),    kept_s = 1 - lr_s weight_decay,    n_s ~ N(0, s^2 I)

so a row settled after step a owes after step t the factor ``prod kept_s`` over a < s <= t, and noise of variance
``sum over a < s <= t of (lr_s s / batch)^2 prod over s < r <= t of kept_r^2``. Both are paid in one draw.
"""

import inspect
import math
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
from privads.training.plan import TrainPlan

TABLES: tuple[type[nn.Module], ...] = (FusedTable, nn.Embedding, nn.EmbeddingBag)
"""The layers whose ``weight`` is a table: its clipped sums are sparse, and its noise may be lazy."""

_FLUSHED_ROWS = 1 << 16
_PLAIN = {"momentum": 0, "nesterov": False, "maximize": False}


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
    names = {one: name for name, one in model.named_parameters()}
    tables = tables_of(model)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter in tables and not _is_plain(optimizer, group):
                raise ValueError(
                    f"table_noise 'lazy' needs plain SGD on {names[parameter]!r}, without momentum, nesterov or "
                    f"maximize, not {type(optimizer).__name__}: build the optimizer on "
                    "privads.training.tables.param_groups(model, table_lr=...), or plan with table_noise='adafest', "
                    "which takes Adagrad and Adam on the rows it selects"
                )


def _is_plain(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> bool:
    if group.get("plain_sgd", False):
        return not group.get("maximize", False)
    return type(optimizer) is torch.optim.SGD and all(group[key] == value for key, value in _PLAIN.items())


def tables_of(model: nn.Module) -> dict[nn.Parameter, list[nn.Module]]:
    """Returns the trained tables, and the modules through which each is read."""
    found: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        if type(module) in TABLES and module.weight.requires_grad:
            found.setdefault(module.weight, []).append(module)  # type: ignore[arg-type]
    return found


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


class _Debt:
    """What rows owe: one settled after step a owes the factor ``kept[a]`` and noise of variance ``variance[a]``.

    Step by step ``kept[a] *= k`` and ``variance[a] = k^2 variance[a] + noise_std^2`` for all earlier a: as many
    operations as there were steps, which is nothing beside a batch, and no difference of large prefix sums.
    """

    def __init__(self, steps: int) -> None:
        self.steps = 0
        self.variance, self.kept = np.zeros(steps + 1), np.ones(steps + 1)
        self.decays = self.noised = False

    def add(self, *, kept: float, noise_std: float) -> None:
        """Take one step: a factor, and noise of this standard deviation."""
        self.steps += 1
        if kept != 1.0:
            self.decays = True
            self.variance[: self.steps] *= kept**2
            self.kept[: self.steps] *= kept
        if noise_std:
            self.noised = True
            self.variance[: self.steps] += noise_std**2


@dataclass(frozen=True, eq=False)
class _Table:
    """A table, the number of the optimizer's group it is in, what its rows owe, and (rows,) int32 the step each was
    settled after."""

    weight: nn.Parameter
    group: int
    debt: _Debt
    settled: Tensor


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
        self._tables: dict[Tensor, _Table] = {}
        self._hooks: list[RemovableHandle] = []
        modules = tables_of(model)
        self._debts: list[tuple[int, _Debt]] = []
        for number, group in enumerate(optimizer.param_groups):
            weights = [one for one in group["params"] if one in modules]
            if weights:
                self._debts.append((number, _Debt(plan.steps)))
            for weight in weights:
                settled = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
                self._tables[weight] = _Table(weight, *self._debts[-1], settled)
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
        steps = {number: _step_of(self._optimizer.param_groups[number]) for number, _ in self._debts}
        for number, debt in self._debts:  # owed before anything is written: an interrupted step must not show its sums
            lr, kept = steps[number]
            debt.add(kept=kept, noise_std=lr * noise_std / self._plan.batch)
        with torch.no_grad():
            for weight, table in self._tables.items():
                if weight in sums:
                    lr, kept = steps[table.group]
                    # The rows owe this step's decay as all others do: what is added now is divided by it.
                    _add(weight, sums[weight], factor=-lr / (self._plan.batch * kept))

    def step_of(self, table: Tensor) -> tuple[float, float]:
        """Returns (learning rate, factor that weight decay leaves of a weight) of a table's next step."""
        return _step_of(self._optimizer.param_groups[self._tables[table].group])

    def settle(self, table: Tensor, rows: Tensor) -> None:
        """Pay what these ``rows`` (n,) of a table owe, each named once."""
        self._settle(self._tables[table], rows)

    def flush(self) -> None:
        """Settle every row of every table."""
        for table in self._tables.values():
            self._flush(table)

    def detach(self) -> None:
        """Flush, and take the hooks off the model."""
        self.flush()
        for hook in self._hooks:
            hook.remove()

    def _attach(self, table: _Table, modules: Sequence[nn.Module]) -> None:
        for module in modules:
            before = partial(self._before_read, table)
            self._hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._hooks.append(module.register_state_dict_pre_hook(partial(self._before_saving, table)))  # type: ignore[no-untyped-call]

    def _before_read(self, table: _Table, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        ids = positional(module, args, kwargs)[0]
        if table.debt.steps:
            self._settle(table, self._runs_of(ids.detach().flatten()).keys)

    def _before_saving(self, table: _Table, *_: object) -> None:
        self._flush(table)

    def _flush(self, table: _Table) -> None:
        total = len(table.weight)
        for start in range(0, total, _FLUSHED_ROWS):
            end = min(start + _FLUSHED_ROWS, total)
            self._settle(table, torch.arange(start, end, device=table.weight.device))

    def _settle(self, table: _Table, rows: Tensor) -> None:
        """Pay what ``rows`` (n,), each named once, owe."""
        debt = table.debt
        if not (debt.noised or debt.decays):
            return
        since = table.settled.index_select(0, rows)
        owing = since < debt.steps
        if not bool(owing.all()):
            rows, since = rows[owing], since[owing]
        if not len(rows):
            return
        # Autograd must not see the write: what an earlier read of these rows kept was settled then and stays the same.
        weight, noise = table.weight.data, self._noise_owed(table, rows, since)
        if debt.decays:
            kept = torch.from_numpy(debt.kept[: debt.steps]).to(weight).index_select(0, since)
            weight.index_copy_(0, rows, weight[rows].mul_(kept[:, None]).add_(noise))
        else:
            weight.index_add_(0, rows, noise)
        table.settled.index_fill_(0, rows, debt.steps)

    def _noise_owed(self, table: _Table, rows: Tensor, since: Tensor) -> Tensor:
        """Returns (n, dim) the noise of all steps after ``since`` (n,), as the rows see it now."""
        like = table.weight.new_empty(len(rows), table.weight.shape[1])
        if not table.debt.noised:
            return like.zero_()
        noise_std = torch.from_numpy(np.sqrt(table.debt.variance[: table.debt.steps])).to(like)
        return self._randomness.normal_like(like, noise_std=noise_std.index_select(0, since)[:, None])

    def _refuse_copies(self) -> NoReturn:
        raise RuntimeError(
            "rows of the tables still owe noise: call engine.finish() before copying the model, or use its state_dict()"
        )


def _add(weight: Tensor, found: Tensor | SparseSum, *, factor: float) -> None:
    if isinstance(found, SparseSum):
        weight.index_add_(0, found.ids, found.values * factor)  # its own alpha would take three times as long
    else:
        weight.add_(found, alpha=factor)


def _step_of(group: Mapping[str, Any]) -> tuple[float, float]:
    """Returns (learning rate, factor that weight decay leaves of a weight) of the group's next step."""
    lr = float(group["lr"])
    kept = 1.0 - lr * float(group.get("weight_decay", 0.0))
    if not (kept > 0 and math.isfinite(kept)):
        raise ValueError(f"lr * weight_decay of a table must be below 1, got {1 - kept:.4g}: lower one of them")
    return lr, kept


def positional(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what ``module`` was called with, in the order of its forward method, without a tail of None."""
    found = inspect.signature(module.forward).bind(*args, **kwargs).args if kwargs else tuple(args)
    while found and found[-1] is None:
        found = found[:-1]
    return found
