"""What a server and its silos send each other, whatever carries it: weights one way, clipped sums the other.

An array travels as its bytes, beside its type and shape: what is read is measured before memory is taken for it, and
none of it can be code. Of a table's sum only the rows that somebody touched travel. The model's buffers, such as
counters, never do.

An honest silo's answer passes every check here, whatever its users' rows are. A check that a single user could tip,
such as one of how many users there are, would make the whole silo's sum depend on that user.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from federation.plan import FederatedPlan
from federation.sums import UserSums
from federation.task import Task
from privads.logs.schema import Schema
from privads.training.run import fingerprint
from privads.training.tables import SparseSum

VERSION = "1"
"""Of what travels: two sides of different versions refuse each other."""

_DTYPES = {torch.float64: "<f8", torch.float32: "<f4", torch.float16: "<f2", torch.int64: "<i8"}
_MOST_COUNT = 2**53


class MessageError(ValueError):
    """A message that cannot be used; the text is one line, and names no private value."""


@dataclass(frozen=True, eq=False)
class Raw:
    """An array as it travels. dtype: as numpy spells it, little-endian. data: its numbers in C order, nothing else."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Returns ``values`` ready to travel."""
        dtype = _DTYPES[values.dtype]
        return cls(dtype, tuple(values.shape), values.detach().contiguous().numpy().astype(dtype, copy=False).tobytes())

    def tensor(self, name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> Tensor:
        """Returns the array as a tensor of its own; refuses another type or shape, or bytes that are not of it.

        shape: as it must be; None stands for any length.
        """
        fits = len(shape) == len(self.shape) and all(
            mine >= 0 and must in (None, mine) for mine, must in zip(self.shape, shape, strict=True)
        )
        if self.dtype != _DTYPES[dtype] or not fits:
            text = "x".join("any" if one is None else str(one) for one in shape) or "one number"
            raise MessageError(f"{name!r} must be {_DTYPES[dtype]} of shape {text}")
        if len(self.data) != math.prod(self.shape) * np.dtype(self.dtype).itemsize:
            raise MessageError(f"{name!r} has not as many bytes as its shape says")
        return torch.from_numpy(np.frombuffer(self.data, dtype=self.dtype).reshape(self.shape).astype(self.dtype[1:]))


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a server asks a silo for: the clipped sum of round ``number``, from 1.

    run: the server's name for the run, the same after a resume. session: of the process that asks, so that a round that
    was lost with an earlier one can be asked again, and no round twice by one. resumed: whether there was an earlier
    one. The rest are the digests of what both sides must have alike, see `agreement`.
    """

    run: str
    session: str
    resumed: bool
    number: int
    clip_norm: float
    version: str
    plan: str
    task: str
    model: str
    schema: str
    randomness: str

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Returns the request of these fields; refuses others."""
        kinds = {one.name: one.type for one in fields(cls)}
        if set(given) != set(kinds) or any(type(given[name]) is not kind for name, kind in kinds.items()):
            raise MessageError("not a request for a round of this version of privads")
        return cls(**given)


def agreement(
    task: Task, plan: FederatedPlan, schema: Schema, *, insecure_seed: int | None, secure: bool
) -> dict[str, str]:
    """Returns {what: digest} of all that a server and its silos must have alike.

    A silo that compares it cannot be given a wider clip, another sampling rate or more local steps by its server. What
    a loss of one's own computes is not in it, only its name.
    """
    trained = {name: one for name, one in task.model.named_parameters() if one.requires_grad}
    kept = {name: one for name, one in task.model.state_dict().items() if name not in trained}
    loss = None if task.loss is None else getattr(task.loss, "__qualname__", type(task.loss).__name__)
    shapes = {name: [str(one.dtype), *one.shape] for name, one in trained.items()}
    return {
        "version": VERSION,
        "plan": _digest(asdict(plan)),
        "task": _digest({**task.settings, "loss": loss}),
        "model": _digest([type(task.model).__name__, shapes, fingerprint(kept)]),
        "schema": schema.sha256,
        "randomness": _digest([insecure_seed, secure]),
    }


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_weights(task: Task) -> None:
    """Raises ValueError where a parameter is of a type that does not travel."""
    for name, one in task.model.named_parameters():
        if one.requires_grad and one.dtype not in _DTYPES:
            raise ValueError(f"parameter {name!r} must be float64, float32 or float16 to be sent, got {one.dtype}")


def packed_weights(weights: Mapping[str, Tensor]) -> dict[str, Raw]:
    """Returns the weights ready to travel."""
    return {name: Raw.of(one) for name, one in weights.items()}


def read_weights(given: Mapping[str, Raw], task: Task) -> dict[str, Tensor]:
    """Returns the weights that a server sent; refuses those of another model."""
    expected = {name: one for name, one in task.model.named_parameters() if one.requires_grad}
    if set(given) != set(expected):
        raise MessageError("the weights are of another model")
    return {name: given[name].tensor(name, one.dtype, tuple(one.shape)) for name, one in expected.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """A silo's clipped sum as it travels. dense, rows, values: by parameter; the latter two are those of tables.

    users, within: as `UserSums` has them where the plan's clip norm follows them, and else 0: what nobody needs is not
    sent.
    """

    number: int
    users: int
    within: int
    dense: Mapping[str, Raw]
    rows: Mapping[str, Raw]
    values: Mapping[str, Raw]

    @classmethod
    def of(cls, sums: UserSums, *, number: int, plan: FederatedPlan) -> Self:
        """Returns the answer to the request for round ``number``."""
        counted = plan.clip_quantile is not None
        return cls(
            number=number,
            users=sums.users if counted else 0,
            within=sums.within if counted else 0,
            dense={name: Raw.of(one) for name, one in sums.dense.items()},
            rows={name: Raw.of(one.ids) for name, one in sums.tables.items()},
            values={name: Raw.of(one.values) for name, one in sums.tables.items()},
        )

    def sums(self, number: int, nothing: UserSums) -> UserSums:
        """Returns the sums, as ``nothing``, the sum over nobody, has them; refuses an answer of another form or round.

        What is not finite is refused too: an honest silo sends no such number, as its users' are zeroed one by one.
        """
        if self.number != number:
            raise MessageError("the answer is for another round")
        for count in (self.users, self.within):
            if type(count) is not int or not 0 <= count < _MOST_COUNT:
                raise MessageError("its counts must be whole numbers of at least 0")
        if self.within > self.users:
            raise MessageError("more users are within the clip norm than there are")
        if set(self.dense) != set(nothing.dense) or not set(self.rows) == set(self.values) == set(nothing.tables):
            raise MessageError("its parameters are those of another model")
        dense = {
            name: _finite(name, self.dense[name].tensor(name, torch.float64, tuple(one.shape)))
            for name, one in nothing.dense.items()
        }
        tables = {name: self._table(name, one) for name, one in nothing.tables.items()}
        return UserSums(users=self.users, within=self.within, dense=dense, tables=tables)

    def _table(self, name: str, nothing: SparseSum) -> SparseSum:
        given, dim = self.rows[name], nothing.values.shape[1]
        if len(given.shape) == 1 and given.shape[0] > nothing.rows:
            raise MessageError(f"more rows of {name!r} than the table has")
        ids = given.tensor(name, torch.int64, (None,))
        if len(ids) and not (ids[0] >= 0 and ids[-1] < nothing.rows and bool((ids.diff() > 0).all())):
            raise MessageError(f"the rows of {name!r} must rise from 0 on, each once, to at most {nothing.rows - 1}")
        values = self.values[name].tensor(name, torch.float64, (len(ids), dim))
        return SparseSum(ids, _finite(name, values), nothing.rows)


def _finite(name: str, values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise MessageError(f"{name!r} has a number that is not finite")
    return values
