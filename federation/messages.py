"""What a server and its silos send each other, whatever carries it: weights one way, clipped sums the other.

A letter holds records, and a record holds arrays, or numbers and texts. An array travels as its bytes, beside its type
and shape: what is read is measured before memory is taken for it, and none of it can be code. Of a table's sum only the
rows that somebody touched travel. The model's buffers, such as counters, never do.

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
from federation.sums import SentRows, UserSums, Weights
from federation.task import Task, names_of_tables
from privads.logs.schema import Schema
from privads.training.run import fingerprint
from privads.training.tables import SparseSum

VERSION = "1"
"""Of what travels: two sides of different versions refuse each other."""

Letter = Mapping[str, Mapping[str, Any]]
"""What a message holds: records, each of `Raw` arrays, or of numbers and texts."""

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

    def letter(self, weights: Weights) -> Letter:
        """Returns it ready to travel, with the ``weights`` that the cohort starts at; none where rows are named."""
        tables = {name: one for name, one in weights.items() if isinstance(one, SentRows)}
        return {
            "request": asdict(self),
            "weights": {name: Raw.of(one) for name, one in weights.items() if isinstance(one, Tensor)},
            "rows": {name: Raw.of(one.ids) for name, one in tables.items()},
            "values": {name: Raw.of(one.values) for name, one in tables.items()},
        }

    @classmethod
    def of(cls, letter: Letter) -> Self:
        """Returns the request of a letter; refuses what is none."""
        given, kinds = letter.get("request", {}), {one.name: one.type for one in fields(cls)}
        if set(letter) != {"request", "weights", "rows", "values"} or set(given) != set(kinds):
            raise MessageError("not a request for a round of this version of privads")
        if any(type(given[name]) is not kind for name, kind in kinds.items()):
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


def read_weights(letter: Letter, task: Task) -> dict[str, Tensor | SentRows]:
    """Returns the weights that a server sent, of tables perhaps only rows; refuses those of another model."""
    expected = {name: one for name, one in task.model.named_parameters() if one.requires_grad}
    rows = _rows_of(letter["rows"], {name: len(expected[name]) for name in names_of_tables(task.model)})
    whole = set(expected) - set(rows)
    if set(letter["weights"]) != whole or set(letter["values"]) != set(rows):
        raise MessageError("the weights are of another model")
    found: dict[str, Tensor | SentRows] = {}
    for name, one in expected.items():
        if name in whole:
            found[name] = _array(letter["weights"], name).tensor(name, one.dtype, tuple(one.shape))
        else:
            values = _array(letter["values"], name).tensor(name, one.dtype, (len(rows[name]), one.shape[1]))
            found[name] = SentRows(rows[name], values, len(one))
    return found


def named_letter(number: int, named: Mapping[str, Tensor]) -> Letter:
    """Returns the rows of tables that a cohort of round ``number`` will read, ready to travel."""
    return {"round": {"number": number}, "rows": {name: Raw.of(one) for name, one in named.items()}}


def read_named(letter: Letter, number: int, tables: Mapping[str, int]) -> dict[str, Tensor]:
    """Returns the rows that a silo named; refuses those of another round or model. tables: how many rows each has."""
    if set(letter) != {"round", "rows"} or dict(letter["round"]) != {"number": number}:
        raise MessageError("not the names of rows that round " + str(number) + " reads")
    named = _rows_of(letter["rows"], tables)
    if set(named) != set(tables):
        raise MessageError("its tables are those of another model")
    return named


def _rows_of(given: Mapping[str, Any], tables: Mapping[str, int]) -> dict[str, Tensor]:
    """Returns the rows of each table that is given: whole numbers that rise from 0 on."""
    found = {}
    for name in given:
        if name not in tables:
            raise MessageError("its tables are those of another model")
        one, rows = _array(given, name), tables[name]
        if len(one.shape) == 1 and one.shape[0] > rows:
            raise MessageError(f"more rows of {name!r} than the table has")
        ids = one.tensor(name, torch.int64, (None,))
        if len(ids) and not (ids[0] >= 0 and ids[-1] < rows and bool((ids.diff() > 0).all())):
            raise MessageError(f"the rows of {name!r} must rise from 0 on, each once, to at most {rows - 1}")
        found[name] = ids
    return found


def _array(record: Mapping[str, Any], name: str) -> Raw:
    one = record.get(name)
    if not isinstance(one, Raw):
        raise MessageError(f"{name!r} is missing, or no array of this version of privads")
    return one


_SPARSE = {"tables": ("rows", "values"), "touched": ("touched_rows", "touched")}
_ANSWER = frozenset({"counts", "dense", *_SPARSE["tables"], *_SPARSE["touched"]})


def sums_letter(sums: UserSums, number: int, plan: FederatedPlan) -> Letter:
    """Returns a silo's clipped sums of round ``number`` ready to travel.

    How many users took part, and how many were within, is sent where the plan's clip norm follows them, and else 0:
    what nobody needs does not travel.
    """
    counted = plan.clip_quantile is not None
    letter: dict[str, Mapping[str, Any]] = {
        "counts": {
            "number": number,
            "users": sums.users if counted else 0,
            "within": sums.within if counted else 0,
        },
        "dense": {name: Raw.of(one) for name, one in sums.dense.items()},
    }
    for field, (rows, values) in _SPARSE.items():
        letter[rows] = {name: Raw.of(one.ids) for name, one in getattr(sums, field).items()}
        letter[values] = {name: Raw.of(one.values) for name, one in getattr(sums, field).items()}
    return letter


def read_sums(letter: Letter, number: int, nothing: UserSums, *, counting: bool) -> UserSums:
    """Returns the sums that a silo sent, as ``nothing``, the sum over nobody, has them; refuses others.

    What is not finite is refused too: an honest silo sends no such number, as its users' are zeroed one by one.
    counting: whether the counts of users who read each row belong to it.
    """
    counts = letter.get("counts", {})
    if set(letter) != _ANSWER or set(counts) != {"number", "users", "within"}:
        raise MessageError("not an answer to a request of this version of privads")
    if counts["number"] != number:
        raise MessageError("the answer is for another round")
    for one in counts.values():
        if type(one) is not int or not 0 <= one < _MOST_COUNT:
            raise MessageError("its counts must be whole numbers of at least 0")
    if counts["within"] > counts["users"]:
        raise MessageError("more users are within the clip norm than there are")
    if set(letter["dense"]) != set(nothing.dense):
        raise MessageError("its parameters are those of another model")
    dense = {
        name: _finite(name, _array(letter["dense"], name).tensor(name, torch.float64, tuple(one.shape)))
        for name, one in nothing.dense.items()
    }
    widths = {name: one.values.shape[1] for name, one in nothing.tables.items()}
    tables = _sparse(letter, "tables", nothing, widths)
    touched = _sparse(letter, "touched", nothing, dict.fromkeys(widths, 1)) if counting else {}
    if set(tables) != set(widths):
        raise MessageError("its parameters are those of another model")
    return UserSums(users=counts["users"], within=counts["within"], dense=dense, tables=tables, touched=touched)


def _sparse(letter: Letter, field: str, nothing: UserSums, widths: Mapping[str, int]) -> dict[str, SparseSum]:
    rows, values = (letter[part] for part in _SPARSE[field])
    ids = _rows_of(rows, {name: one.rows for name, one in nothing.tables.items()})
    if set(values) != set(ids):
        raise MessageError("its parameters are those of another model")
    return {
        name: SparseSum(
            one,
            _finite(name, _array(values, name).tensor(name, torch.float64, (len(one), widths[name]))),
            nothing.tables[name].rows,
        )
        for name, one in ids.items()
    }


def _finite(name: str, values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise MessageError(f"{name!r} has a number that is not finite")
    return values
