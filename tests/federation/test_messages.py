"""What travels is read back as it was sent, and what an honest silo cannot have sent is refused."""

import dataclasses
import math
import tracemalloc
from typing import Any

import pytest
import torch
from torch import nn

from federation.messages import Answer, MessageError, Raw, Request, agreement, check_weights, read_weights
from federation.sums import UserSums
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
SUMS = UserSums(
    users=7,
    within=5,
    dense={"bias": torch.arange(6, dtype=torch.float64).view(2, 3)},
    tables={"table.weight": SparseSum(torch.tensor([0, 3, 9]), torch.full((3, 4), 0.1, dtype=torch.float64), 10)},
)


def answer(sums: UserSums = SUMS, **settings: Any) -> Answer:
    return Answer.of(sums, number=2, plan=plan(**settings))


def raw(values: Any, dtype: torch.dtype = torch.float64) -> Raw:
    return Raw.of(torch.tensor(values, dtype=dtype))


def test_sums_are_read_back_as_they_were_sent() -> None:
    found = answer(clip_quantile=0.5).sums(2, NOTHING)
    assert (found.users, found.within) == (7, 5)
    assert torch.equal(found.dense["bias"], SUMS.dense["bias"])
    assert torch.equal(found.tables["table.weight"].ids, SUMS.tables["table.weight"].ids)
    assert torch.equal(found.tables["table.weight"].values, SUMS.tables["table.weight"].values)
    assert found.tables["table.weight"].rows == 10


def test_the_sum_over_nobody_travels() -> None:
    found = answer(NOTHING).sums(2, NOTHING)
    assert torch.equal((found + NOTHING).of("table.weight"), torch.zeros(10, 4, dtype=torch.float64))


def test_counts_of_users_travel_only_where_the_clip_norm_follows_them() -> None:
    assert (answer().users, answer().within) == (0, 0)
    assert (answer(clip_quantile=0.5).users, answer(clip_quantile=0.5).within) == (7, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": 3}, "another round"),
        ({"users": -1}, "whole numbers"),
        ({"users": 2**60}, "whole numbers"),
        ({"users": 1.0}, "whole numbers"),
        ({"within": 8, "users": 7}, "more users are within"),
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
        dataclasses.replace(answer(), **change).sums(2, NOTHING)


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
            dataclasses.replace(answer(), **change).sums(2, NOTHING)
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


def test_weights_of_another_model_are_refused() -> None:
    mine = {name: Raw.of(one) for name, one in task().model.named_parameters()}
    assert all(
        torch.equal(one, dict(task().model.named_parameters())[name])
        for name, one in read_weights(mine, task()).items()
    )
    with pytest.raises(MessageError, match="another model"):
        read_weights({**mine, "more": raw(0.0)}, task())
    name = next(iter(mine))
    with pytest.raises(MessageError, match="must be <f4"):
        read_weights({**mine, name: raw(0.0)}, task())


def test_a_parameter_that_cannot_travel_is_refused_before_the_charge() -> None:
    with pytest.raises(ValueError, match="must be float64, float32 or float16"):
        check_weights(task(model=nn.Linear(1, 1, dtype=torch.bfloat16)))


def test_a_request_of_another_form_is_refused() -> None:
    fields = {"run": "r", "session": "s", "resumed": False, "number": 1, "clip_norm": 0.5, **agreed()}
    assert Request.of(fields).number == 1
    for change in ({"number": "1"}, {"resumed": 1}, {"clip_norm": 1}, {"more": 1}):
        with pytest.raises(MessageError, match="not a request"):
            Request.of({**fields, **change})
