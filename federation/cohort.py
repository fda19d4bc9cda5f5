"""Local training of many users at once, one clip of each user's whole update, and the sum.

Users train side by side: a layer's weights are a stack of one copy for each user (`torch.func.vmap`). Of a table a user
holds only the rows that their own rows name. All users' rows of a table lie in one stack, each user's apart, so a
lookup needs no padding, and what a user holds and sends is as large as what they touch.

Nothing of one user can reach another one: a user is padded with rows of their own, a model for which it matters how
many those are is refused, and a user whose update is not finite adds zero.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from federation.clipping import factors
from federation.sums import SentRows, UserSums, Weights
from federation.task import Task, tables_of
from privads.batch import Batch, Rows, taken
from privads.logs.schema import Schema
from privads.training.clipping import UnsupportedModel
from privads.training.probe import check_shape, made_up, repeatable
from privads.training.sampling import Draw, Numbers
from privads.training.tables import Runs, SparseSum, sums_of_runs
from privads.training.uses import shares

USERS_AT_ONCE = 512
"""Users that are trained side by side: more take no less time each, and memory grows with them."""

_MADE_UP_OWNERS = (0, 1, 1, 2, 2, 2, 2, 2)
"""Who owns each made-up row: of users side by side all but one are padded."""

_JITTER, _TOLERANCE = 0.3, 1e-3
"""Weights that start at 0 would hide what flows through them. Rounding moves an update by far less, rows that mix by
more."""


@dataclass(frozen=True, eq=False)
class TableUpdate:
    """What users send of a table: ``values[i]`` for row ``ids[i]``, from user ``owners[i]``. values: (n, dim)."""

    owners: Tensor
    ids: Tensor
    values: Tensor
    rows: int


@dataclass(frozen=True, eq=False)
class Updates:
    """What each of ``users`` sends, ``theta_sent - theta_local``. dense: {name: (users, *shape)}. tables: by name.

    counting: their sum comes with the counts of the users who read each row of the tables.
    """

    users: int
    dense: Mapping[str, Tensor]
    tables: Mapping[str, TableUpdate]
    counting: bool = False

    def norms(self) -> Tensor:
        """Returns (users,) the L2 norm of each user's whole update, tables and the rest together, in float64."""
        squared = torch.zeros(self.users, dtype=torch.float64)
        for one in self.dense.values():
            squared += _flat(one).double().square().sum(1)
        for table in self.tables.values():
            squared.index_add_(0, table.owners, table.values.double().square().sum(1))
        return squared.sqrt()

    def clipped_sum(self, clip_norm: float) -> UserSums:
        """Returns the sum of the updates, each scaled to a norm of at most ``clip_norm``; in float64."""
        norms = self.norms()
        scale = factors(norms, clip_norm)
        kept = scale > 0
        dense = {}
        for name, one in self.dense.items():
            flat = torch.where(kept[:, None], _flat(one).double(), 0.0)  # 0 times NaN would be NaN
            dense[name] = (scale @ flat).view(one.shape[1:])
        tables = {}
        for name, table in self.tables.items():
            runs, weights = Runs.of(table.ids), scale[table.owners]
            values = torch.where((weights > 0)[:, None], table.values.double(), 0.0)
            tables[name] = SparseSum(
                runs.keys, sums_of_runs(values, runs.order, runs.starts, weights[runs.order]), table.rows
            )
        within = int((norms <= clip_norm).sum())  # NaN is not within
        touched = self._touched() if self.counting else {}
        return UserSums(users=self.users, within=within, dense=dense, tables=tables, touched=touched)

    def _touched(self) -> dict[str, SparseSum]:
        """Returns of every table (rows, 1) ``sum_u v_u``; over all tables together a user's v_u is at most 1 long."""
        if not self.tables:
            return {}
        each = torch.from_numpy(shares(torch.cat([one.owners for one in self.tables.values()]).numpy()))[:, None]
        found, start = {}, 0
        for name, table in self.tables.items():
            runs, own = Runs.of(table.ids), each[start : start + len(table.ids)]
            found[name] = SparseSum(runs.keys, sums_of_runs(own, runs.order, runs.starts), table.rows)
            start += len(table.ids)
        return found


class _Given(nn.Module):
    """Stands in a user's model for a table: its output is what was looked up already."""

    found: Tensor

    def __init__(self, fields: int, dim: int, ids: Tensor) -> None:
        super().__init__()
        self.fields, self.dim, self._ids = fields, dim, [ids]  # in a list: neither a buffer nor copied
        self.register_buffer("found", torch.zeros(0, fields, dim))

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Returns (rows, fields, dim)."""
        if ids is not self._ids[0]:
            raise UnsupportedModel("a table is called with other ids than batch.ids: pass it batch.ids, batch.offsets")
        return self.found


class LocalTraining:
    """A task's local training, for any number of users side by side. Holds the model's layers, and none of its tables.

    schema: says which losses the labels have, where the task has no loss of its own. counting: sums come with the
    counts of the users who read each row of a table, as a plan of table_noise "adafest" needs them.
    """

    def __init__(
        self, task: Task, schema: Schema, *, users_at_once: int = USERS_AT_ONCE, counting: bool = False
    ) -> None:
        self.task, self.users_at_once, self._loss = task, users_at_once, task.loss_for(schema)
        self._counting = counting
        self._no_ids = torch.zeros(0, dtype=torch.int64)
        tables = tables_of(task.model)
        given = {id(one): _Given(one.fields, one.dim, self._no_ids) for one in tables.values()}
        self._layers = copy.deepcopy(task.model, given)  # what the memo holds already is not copied
        self._layers.train()
        for one in self._layers.parameters():
            one.requires_grad_(False)
        self._tables = {f"{name}.weight": name for name in tables}
        self._trained = {f"{name}.weight": one.weight.requires_grad for name, one in tables.items()}
        self._frozen = {f"{name}.weight": one.weight.detach() for name, one in tables.items()}
        self._fields = {name: one.fields for name, one in tables.items()}
        self._buffers = {name: one for name, one in self._layers.named_buffers() if name not in self._found_names}

    @property
    def _found_names(self) -> set[str]:
        return {f"{name}.found" for name in self._tables.values()}

    def cohort_sums(self, rows: Rows, draw: Draw, weights: Weights, *, clip_norm: float) -> UserSums:
        """Returns the clipped sum over the users of a draw, in memory for ``users_at_once`` of them."""
        total = self.task.nothing(weights)
        for part in _parts(draw, self.users_at_once):
            batch = rows.take(part.row_numbers)
            updates = self.updates(batch, torch.from_numpy(part.owners), part.units, weights)
            total = total + updates.clipped_sum(clip_norm)
        return total

    def check_apart(self, schema: Schema) -> None:
        """Raises `UnsupportedModel` unless, on made-up rows, each user's update is what it is without the others.

        Users side by side are padded to the same number of rows, which is then that of another user: where a row's loss
        depends on how many there are, one user would move the updates of all, beyond what is clipped.
        """
        owners, rows = torch.tensor(_MADE_UP_OWNERS), made_up(schema, len(_MADE_UP_OWNERS))
        weights, users = self._jittered(rows.ids), int(owners.max()) + 1
        once = LocalTraining(replace(self.task, local_steps=1), schema)
        expected = self.task.nothing(weights)
        with repeatable(once._layers):
            found = _numbers(once.updates(rows, owners, users, weights).clipped_sum(math.inf))
            for user in range(users):
                mine = torch.nonzero(owners == user).flatten()
                alone = once.updates(taken(rows, mine), torch.zeros_like(mine), 1, weights)
                expected = expected + alone.clipped_sum(math.inf)
        alone_all = _numbers(expected)
        atol = _TOLERANCE * float(torch.nan_to_num(alone_all).abs().max()) + 1e-9
        if not torch.allclose(found, alone_all, rtol=0.0, atol=atol, equal_nan=True):
            raise UnsupportedModel(
                f"a user's update depends on who is trained beside them: {type(self.task.model).__name__} or its loss "
                "mixes rows (in-batch negatives, or a mean over the batch) or draws random numbers outside nn.Dropout; "
                "every row must have a loss of its own"
            )

    def _jittered(self, ids: Tensor) -> Weights:
        """Returns the task's weights, all moved; of tables the rows ``ids``."""
        kept, generator = Runs.of(ids).keys, torch.Generator().manual_seed(0)
        found: dict[str, Tensor | SentRows] = {}
        for name, one in self.task.model.named_parameters():
            if one.requires_grad:
                values = one.detach().index_select(0, kept) if name in self._tables else one.detach()
                moved = values + _JITTER * torch.randn(values.shape, generator=generator, dtype=torch.float64)
                moved = moved.to(one.dtype)
                found[name] = SentRows(kept, moved, len(one)) if name in self._tables else moved
        return found

    def named(self, rows: Rows, draw: Draw) -> dict[str, Tensor]:
        """Returns, per table that is trained, ids (n,) of the rows that a draw's users will read: each once, ascending.

        They are private: only a server that is trusted with sums without noise may see them.
        """
        read = [rows.take(part.row_numbers).ids for part in _parts(draw, self.users_at_once)]
        ids = Runs.of(torch.cat(read)).keys if read else self._no_ids
        return {weight: ids for weight, name in self._tables.items() if self._trained[weight]}

    def updates(self, batch: Batch, owners: Tensor, users: int, weights: Weights) -> Updates:
        """Returns what each of ``users`` sends, who all start at ``weights``. A user without rows sends zero.

        owners: (rows,) which of the users has each row of the batch, rising.
        """
        held = _held_by(batch, owners)
        stacked = {
            name: _rows_at(one, held.ids) if name in self._tables else _same_for(users, one)
            for name, one in weights.items()
        }
        now: Mapping[str, Tensor] = dict(stacked)
        counts = np.bincount(owners.numpy(), minlength=users)
        places = _places(counts, self.task.local_rows, 0)
        for step in range(self.task.local_steps):
            if step and self.task.local_rows is not None:
                places = _places(counts, self.task.local_rows, step)
            now = self._stepped(now, batch, held, places)
        changed = {name: (stacked[name] - now[name]).detach() for name in weights}
        return Updates(
            users=users,
            counting=self._counting,
            dense={name: one for name, one in changed.items() if name not in self._tables},
            tables={
                name: TableUpdate(held.owners, held.ids, one, len(weights[name]))
                for name, one in changed.items()
                if name in self._tables
            },
        )

    def _stepped(self, now: Mapping[str, Tensor], batch: Batch, held: "_Held", places: "_Places") -> dict[str, Tensor]:
        """Returns every user's weights after one more local step."""
        leaves = {name: one.detach().requires_grad_() for name, one in now.items()}
        found = {}
        for weight, name in self._tables.items():
            table = leaves[weight] if weight in leaves else self._frozen[weight].index_select(0, held.ids)
            found[f"{name}.found"] = places.spread(held.looked_up(batch, table, places.rows, self._fields[name]))
        dense = {name: one for name, one in leaves.items() if name not in self._tables}
        buffers = {name: one.expand(places.users, *one.shape).clone() for name, one in self._buffers.items()}
        losses = vmap(self._loss_of_user, randomness="different")(
            dense | found | buffers, places.spread_columns(batch), places.real
        )
        slopes = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        lr = self.task.local_learning_rate
        return {
            name: one.detach() if slope is None else torch.sub(one.detach(), slope, alpha=lr)
            for (name, one), slope in zip(leaves.items(), slopes, strict=True)
        }

    def _loss_of_user(self, state: Mapping[str, Tensor], columns: Mapping[str, Any], real: Tensor) -> Tensor:
        """Returns () the mean loss of one user's rows. columns: those of a batch, padded. real: (rows,) not padding."""
        batch = Batch(ids=self._no_ids, offsets=self._no_ids, **columns)
        losses = self._loss(functional_call(self._layers, dict(state), (batch,)), batch)
        check_shape(losses, len(real))
        return torch.where(real, losses, 0.0).sum() / real.sum().clamp(min=1)


@dataclass(frozen=True, eq=False)
class _Held:
    """The rows of a table that users hold. owners, ids: (n,). slots: (ids of the batch,) which of them each reads."""

    owners: Tensor
    ids: Tensor
    slots: Tensor

    def looked_up(self, batch: Batch, table: Tensor, rows: Tensor, fields: int) -> Tensor:
        """Returns (rows, fields, dim) what ``rows`` of the batch read of ``table`` (n, dim)."""
        if len(self.slots) == batch.rows * fields and _one_each(batch.offsets):
            slots = self.slots.view(batch.rows, fields).index_select(0, rows)
            return table.index_select(0, slots.reshape(-1)).view(len(rows), fields, table.shape[1])
        bags = (rows[:, None] * fields + torch.arange(fields)).flatten()
        lengths = batch.offsets.diff()[bags]
        ends = lengths.cumsum(0)
        within = torch.arange(int(ends[-1]) if len(ends) else 0) - torch.repeat_interleave(ends - lengths, lengths)
        read = self.slots[torch.repeat_interleave(batch.offsets[bags], lengths) + within]
        found = F.embedding_bag(read, table, ends - lengths, mode="sum") if len(bags) else table.new_zeros(0)
        return found.view(len(rows), fields, table.shape[1])


@dataclass(frozen=True, eq=False)
class _Places:
    """Where the rows of a local step stand, in ``longest`` places for each of ``users``; what is left is padding.

    rows: (n,) of the batch. at: (n,) their places, rising. real: (users, longest) whether a row stands there that
    counts. Padding repeats the user's own rows, so that whatever a model makes of it is as finite as what it makes of
    those, and is zeros only for a user who has none.
    """

    rows: Tensor
    at: Tensor
    real: Tensor

    @cached_property
    def in_order(self) -> bool:
        """Whether the rows are those of the batch, one after another."""
        return bool((self.rows == torch.arange(len(self.rows))).all())

    @property
    def users(self) -> int:
        """How many users there are."""
        return len(self.real)

    def spread(self, values: Tensor) -> Tensor:
        """Returns (users, longest, ...) the ``values`` (n, ...) of the rows in their places, and zeros elsewhere."""
        if len(values) < self.real.numel():
            values = values.new_zeros(self.real.numel(), *values.shape[1:]).index_copy(0, self.at, values)
        return values.view(*self.real.shape, *values.shape[1:])

    def spread_columns(self, batch: Batch) -> dict[str, Any]:
        """Returns the batch's columns but for its ids, for its rows in their places."""

        def moved(values: Tensor) -> Tensor:
            return self.spread(
                values if len(self.rows) == batch.rows and self.in_order else values.index_select(0, self.rows)
            )

        return {
            "dense": moved(batch.dense),
            "weights": moved(batch.weights),
            "labels": {task: moved(one) for task, one in batch.labels.items()},
            "observed": {task: moved(one) for task, one in batch.observed.items()},
            "hours": {task: moved(one) for task, one in batch.hours.items()},
        }


def _numbers(sums: UserSums) -> Tensor:
    """Returns (numbers,) all of them, of tables those of the rows that somebody touched."""
    return torch.cat(
        [*(one.flatten() for one in sums.dense.values()), *(t.values.flatten() for t in sums.tables.values())]
    )


def _held_by(batch: Batch, owners: Tensor) -> _Held:
    """Returns which rows of a table each user's rows name. owners: (rows,)."""
    fields = (len(batch.offsets) - 1) // max(batch.rows, 1)
    rows = int(batch.ids.max()) + 1 if len(batch.ids) else 1
    reader = torch.repeat_interleave(owners.repeat_interleave(fields), batch.offsets.diff())
    runs = Runs.of(reader * rows + batch.ids)
    number = torch.zeros_like(runs.order)
    number[runs.starts] = 1
    slots = torch.empty_like(runs.order).index_copy_(0, runs.order, number.cumsum(0) - 1)
    return _Held(owners=runs.keys // rows, ids=runs.keys % rows, slots=slots)


def _places(counts: Numbers, local_rows: int | None, step: int) -> _Places:
    """Returns the places of the rows of local step ``step``. counts: (users,) the rows that each has."""
    taken = counts if local_rows is None else np.minimum(counts, local_rows)
    longest = max(int(taken.max(initial=0)), 1)
    place, real = np.arange(longest), np.arange(longest) < taken[:, None]
    within = place % np.maximum(taken, 1)[:, None]  # beyond the rows that are taken, those again
    if local_rows is not None:
        within = (within + step * local_rows) % np.maximum(counts, 1)[:, None]
    some = counts > 0
    starts = (np.cumsum(counts) - counts)[:, None] + within
    at = (np.arange(len(counts)) * longest)[:, None] + place
    return _Places(*(torch.from_numpy(one) for one in (starts[some].ravel(), at[some].ravel(), real)))


def _rows_at(table: Tensor | SentRows, ids: Tensor) -> Tensor:
    return table.at(ids) if isinstance(table, SentRows) else table.index_select(0, ids)


def _same_for(users: int, one: Tensor | SentRows) -> Tensor:
    if isinstance(one, SentRows):
        raise ValueError("rows were sent of a parameter that is no table: send it whole")
    return one.expand(users, *one.shape)


def _flat(values: Tensor) -> Tensor:
    """Returns (users, numbers) of ``values`` (users, ...)."""
    return values.unsqueeze(-1).flatten(1)


def _one_each(offsets: Tensor) -> bool:
    return bool((offsets == torch.arange(len(offsets))).all())


def of_users(draw: Draw, kept: NDArray[np.bool_]) -> Draw:
    """Returns the part of a draw whose places are ``kept`` (units,), with all rows of theirs."""
    mine = kept[draw.owners]
    owners, units = (np.cumsum(kept) - 1)[draw.owners[mine]], int(kept.sum())
    return Draw(row_numbers=draw.row_numbers[mine], owners=owners, units=units, sampled=units)


def _parts(draw: Draw, users_at_once: int) -> Iterator[Draw]:
    """Yields the draw in parts of at most so many users, those with as many rows side by side: less is padded."""
    counts = np.bincount(draw.owners, minlength=draw.units)
    starts, order = np.cumsum(counts) - counts, np.argsort(counts, kind="stable")
    for first in range(0, draw.units, users_at_once):
        chosen = order[first : first + users_at_once]
        taken = counts[chosen]
        owners = np.repeat(np.arange(len(chosen)), taken)
        places = np.arange(len(owners)) + np.repeat(starts[chosen] - (np.cumsum(taken) - taken), taken)
        yield Draw(row_numbers=draw.row_numbers[places], owners=owners, units=len(chosen), sampled=len(chosen))
