"""What travels is read back as it was sent, and what an honest silo cannot have sent is refused."""

import dataclasses
import math
import tracemalloc
from typing import Any

import pytest
import torch
from torch import nn

from federation.messages import (
    Letter,
    MessageError,
    Raw,
    Request,
    agreement,
    check_weights,
    named_letter,
    read_named,
    read_sums,
    read_weights,
    sums_letter,
)
from federation.sums import SentRows, UserSums
from federation.task import Task
from privads.models import Logistic
from privads.training.tables import SparseSum
from tests.federation.helpers import plan, twin
from tests.privads.training.helpers import schema

NOTHING = UserSums(
    users=0,
    within=0,
    dense={"bias": torch.zeros(2, 3, dtype=torch.float64)},
    tables={"table.weight": SparseSum(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.float64), 10)},
)
NONE = {"number": 2, "users": 0, "within": 0}
SUMS = UserSums(
    users=7,
    within=5,
    dense={"bias": torch.arange(6, dtype=torch.float64).view(2, 3)},
    tables={"table.weight": SparseSum(torch.tensor([0, 3, 9]), torch.full((3, 4), 0.1, dtype=torch.float64), 10)},
)


def answer(sums: UserSums = SUMS, **settings: Any) -> Letter:
    return sums_letter(sums, 2, plan(**settings))


def read(letter: Letter, *, counting: bool = False) -> UserSums:
    return read_sums(letter, 2, NOTHING, counting=counting)


def raw(values: Any, dtype: torch.dtype = torch.float64) -> Raw:
    return Raw.of(torch.tensor(values, dtype=dtype))


def test_sums_are_read_back_as_they_were_sent() -> None:
    found = read(answer(clip_quantile=0.5))
    assert (found.users, found.within) == (7, 5)
    assert torch.equal(found.dense["bias"], SUMS.dense["bias"])
    assert torch.equal(found.tables["table.weight"].ids, SUMS.tables["table.weight"].ids)
    assert torch.equal(found.tables["table.weight"].values, SUMS.tables["table.weight"].values)
    assert found.tables["table.weight"].rows == 10


def test_the_sum_over_nobody_travels() -> None:
    found = read(answer(NOTHING))
    assert torch.equal((found + NOTHING).of("table.weight"), torch.zeros(10, 4, dtype=torch.float64))


def test_counts_of_users_travel_only_where_the_clip_norm_follows_them() -> None:
    assert answer()["counts"] == {"number": 2, "users": 0, "within": 0}
    assert answer(clip_quantile=0.5)["counts"] == {"number": 2, "users": 7, "within": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": {**NONE, "number": 3}}, "another round"),
        ({"counts": {**NONE, "users": -1}}, "whole numbers"),
        ({"counts": {**NONE, "users": 2**60}}, "whole numbers"),
        ({"counts": {**NONE, "users": 1.0}}, "whole numbers"),
        ({"counts": {**NONE, "users": 7, "within": 8}}, "more users are within"),
        ({"counts": {"number": 2}}, "not an answer"),
        ({"more": {}}, "not an answer"),
        ({"dense": {"bias": "text"}}, "no array of this version"),
        ({"dense": {}}, "another model"),
        ({"dense": {"bias": raw([[0.0] * 3] * 2), "more": raw(0.0)}}, "another model"),
        ({"values": {}}, "another model"),
        ({"dense": {"bias": raw([0.0] * 6)}}, "must be <f8 of shape 2x3"),
        ({"dense": {"bias": raw([[0.0] * 3] * 2, torch.float32)}}, "must be <f8"),
        ({"dense": {"bias": Raw("<f8", (2, 3), b"0" * 47)}}, "not as many bytes"),
        ({"dense": {"bias": Raw("<f8", (2, 3), b"")}}, "not as many bytes"),
        ({"dense": {"bias": raw([[0.0, 0.0, math.nan]] * 2)}}, "not finite"),
        ({"dense": {"bias": raw([[0.0, 0.0, math.inf]] * 2)}}, "not finite"),
        ({"values": {"table.weight": raw([[0.1, 0.1, 0.1, math.nan]] * 3)}}, "not finite"),
        ({"values": {"table.weight": raw([[0.1] * 4] * 2)}}, "of shape 3x4"),
        ({"values": {"table.weight": raw([[0.1] * 3] * 3)}}, "of shape 3x4"),
        ({"rows": {"table.weight": raw([0, 3, 10], torch.int64)}}, "must rise"),
        ({"rows": {"table.weight": raw([-1, 3, 9], torch.int64)}}, "must rise"),
        ({"rows": {"table.weight": raw([0, 3, 3], torch.int64)}}, "must rise"),
        ({"rows": {"table.weight": raw([3, 0, 9], torch.int64)}}, "must rise"),
        ({"rows": {"table.weight": raw([0.0, 3.0, 9.0])}}, "must be <i8"),
        ({"rows": {"table.weight": Raw("<i8", (10**12,), b"")}}, "more rows"),
        ({"rows": {"table.weight": Raw("<i8", (-3,), b"")}}, "of shape any"),
        ({"rows": {"table.weight": raw([[0], [3], [9]], torch.int64)}}, "of shape any"),
    ],
)
def test_an_answer_that_no_honest_silo_sends_is_refused(change: Any, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        read({**answer(), **change})


def test_a_huge_answer_is_refused_before_memory_is_taken_for_it() -> None:
    much = bytes(40_000_000)
    bad = [
        {"dense": {"bias": Raw("<f8", (5_000_000,), much)}},
        {"dense": {"bias": Raw("<f8", (2, 3), much)}},
        {"rows": {"table.weight": Raw("<i8", (5_000_000,), much)}},
        {"values": {"table.weight": Raw("<f8", (1_250_000, 4), much)}},
        {"dense": {"bias": Raw("<f8", (10**15,), b"")}},
    ]
    tracemalloc.start()
    for change in bad:
        with pytest.raises(MessageError):
            read({**answer(), **change})
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1_000_000


def task(**settings: Any) -> Task:
    torch.manual_seed(0)
    given: dict[str, Any] = {"model": Logistic(schema()), "local_learning_rate": 0.5, **settings}
    return Task(**given)


def agreed(found: Any = None, *, by: Any = None, own: Task | None = None, **settings: Any) -> dict[str, str]:
    given = {"insecure_seed": None, "secure": False, **settings}
    return agreement(own or task(), found or plan(), by or schema(), **given)


class Counting(nn.Module):
    """A model with buffers, one of which counts."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.tensor(scale))


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (agreed(plan(clip_norm=0.6)), {"plan"}),
        (agreed(plan(cohort=41)), {"plan"}),
        (agreed(twin()), {"plan"}),
        (agreed(own=task(local_steps=2)), {"task"}),
        (agreed(own=task(loss=lambda outputs, batch: outputs["click"])), {"task"}),
        (agreed(own=task(model=nn.Linear(1, 1))), {"model"}),
        (agreed(by=schema(tasks={"click": "buy"})), {"schema"}),
        (agreed(insecure_seed=3), {"randomness"}),
        (agreed(secure=True), {"randomness"}),
    ],
)
def test_sides_that_differ_in_what_protects_users_do_not_agree(other: dict[str, str], what: set[str]) -> None:
    mine = agreed()
    assert {name for name in mine if mine[name] != other[name]} == what


def test_what_is_not_trained_must_be_alike() -> None:
    mine, same, other = (agreed(own=task(model=Counting(scale)))["model"] for scale in (1.0, 1.0, 2.0))
    assert mine == same != other


def asked(**change: Any) -> Request:
    given: dict[str, Any] = {"run": "r", "session": "s", "resumed": False, "number": 1, "clip_norm": 0.5, **agreed()}
    return Request(**{**given, **change})


def test_weights_are_read_back_whole_or_as_the_rows_that_were_sent() -> None:
    weights = {name: one.detach() for name, one in task().model.named_parameters()}
    found = read_weights(asked().letter(weights), task())
    assert all(torch.equal(found[name], one) for name, one in weights.items())
    table, ids = weights["table.weight"], torch.tensor([1, 5])
    some = read_weights(asked().letter({**weights, "table.weight": SentRows(ids, table[ids], len(table))}), task())[
        "table.weight"
    ]
    assert isinstance(some, SentRows)
    assert torch.equal(some.at(torch.tensor([5])), table[5:6])
    assert some.shape == table.shape


def test_weights_of_another_model_are_refused() -> None:
    letter = asked().letter({name: one.detach() for name, one in task().model.named_parameters()})
    mine = letter["weights"]
    name = next(iter(mine))
    for change, message in (
        ({"weights": {**mine, "more": raw(0.0)}}, "another model"),
        ({"weights": {**mine, name: raw(0.0)}}, "must be <f4"),
        ({"rows": {name: raw([0], torch.int64)}}, "another model"),
    ):
        with pytest.raises(MessageError, match=message):
            read_weights({**letter, **change}, task())


def test_named_rows_are_read_back_and_others_refused() -> None:
    named = {"table.weight": torch.tensor([0, 3, 9])}
    found = read_named(named_letter(2, named), 2, {"table.weight": 10})
    assert torch.equal(found["table.weight"], named["table.weight"])
    for letter, tables in (
        (named_letter(3, named), {"table.weight": 10}),
        (named_letter(2, named), {"table.weight": 9}),
        (named_letter(2, named), {"other.weight": 10}),
        (named_letter(2, {}), {"table.weight": 10}),
        (named_letter(2, {"table.weight": torch.tensor([3, 0])}), {"table.weight": 10}),
        ({}, {}),
    ):
        with pytest.raises(MessageError):
            read_named(letter, 2, tables)


def test_counts_of_who_reads_a_row_travel_where_the_plan_selects_rows() -> None:
    touched = {"table.weight": SparseSum(torch.tensor([3]), torch.tensor([[0.5]], dtype=torch.float64), 10)}
    letter = answer(dataclasses.replace(SUMS, touched=touched))
    assert torch.equal(read(letter, counting=True).touched["table.weight"].values, torch.tensor([[0.5]]).double())
    assert read(letter).touched == {}
    assert read(answer(NOTHING), counting=True).touched == {}
    with pytest.raises(MessageError, match="not finite"):
        read({**letter, "touched": {"table.weight": raw([[math.nan]])}}, counting=True)
    with pytest.raises(MessageError, match="of shape 1x1"):
        read({**letter, "touched": {"table.weight": raw([[0.5, 0.5]])}}, counting=True)


def test_a_parameter_that_cannot_travel_is_refused_before_the_charge() -> None:
    with pytest.raises(ValueError, match="must be float64, float32 or float16"):
        check_weights(task(model=nn.Linear(1, 1, dtype=torch.bfloat16)))


def test_a_request_of_another_form_is_refused() -> None:
    letter = asked().letter({})
    assert Request.of(letter) == asked()
    for change in ({"number": "1"}, {"resumed": 1}, {"clip_norm": 1}, {"more": 1}):
        with pytest.raises(MessageError, match="not a request"):
            Request.of({**letter, "request": {**letter["request"], **change}})
    with pytest.raises(MessageError, match="not a request"):
        Request.of({"request": letter["request"]})
