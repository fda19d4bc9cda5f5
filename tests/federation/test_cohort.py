"""Users trained side by side are the users one by one, and none of them moves the sum by more than the clip norm."""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from federation.cohort import LocalTraining, Updates
from federation.task import Task
from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models import DCN, MODELS, DeepFM, Logistic, MMoE, WideDeep
from privads.models.layers import FusedTable
from privads.training.clipping import UnsupportedModel
from privads.training.sampling import Draw
from tests.federation.helpers import pick, trained, update_of_one
from tests.privads.models.samples import EVERY_KIND, random_batch, schema

OWNERS = (0, 0, 0, 1, 2, 2, 2, 2, 4, 4)
"""User 3 has no rows, nor have users 5 and 6."""
USERS = 7


def jittered(model: nn.Module) -> nn.Module:
    """Weights that start at 0 hide what flows through them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.3 * torch.randn(one.shape, generator=generator))
    return model


def rows_of(user: int) -> list[int]:
    return [row for row, owner in enumerate(OWNERS) if owner == user]


def updates_of(
    task: Task, facts: Schema, batch: Batch, owners: tuple[int, ...] = OWNERS, users: int = USERS
) -> Updates:
    return LocalTraining(task, facts).updates(batch, torch.tensor(owners), users, trained(task.model))


def one_by_one(found: Updates, user: int) -> dict[str, Tensor]:
    """Returns the whole update of one user, tables and all."""
    whole = {name: one[user] for name, one in found.dense.items()}
    for name, table in found.tables.items():
        own = table.owners == user
        whole[name] = torch.zeros(table.rows, table.values.shape[1]).index_add(0, table.ids[own], table.values[own])
    return whole


@pytest.mark.parametrize("local_rows", [None, 1, 2])
@pytest.mark.parametrize("name", [*MODELS])
def test_users_side_by_side_are_the_users_one_by_one(name: str, local_rows: int | None) -> None:
    torch.manual_seed(0)
    facts = schema()
    task = Task(model=jittered(MODELS[name](facts)), local_learning_rate=0.3, local_steps=4, local_rows=local_rows)
    batch = random_batch(facts, len(OWNERS), longest=1 if local_rows == 1 else 3)
    found = updates_of(task, facts, batch)
    assert found.dense
    assert found.tables
    for user in range(USERS):
        expected, own = update_of_one(task, facts, batch, rows_of(user)), one_by_one(found, user)
        assert set(own) == set(expected)
        for parameter, one in expected.items():
            torch.testing.assert_close(own[parameter], one, atol=2e-6, rtol=1e-4)
        moved = any(bool(one.any()) for one in own.values())
        assert moved == bool(rows_of(user))


def test_labels_of_every_kind_are_trained_on() -> None:
    facts = schema(labels=EVERY_KIND)
    task = Task(model=jittered(DCN(facts)), local_learning_rate=0.1, local_steps=2)
    batch = random_batch(facts, len(OWNERS))
    found = updates_of(task, facts, batch)
    for user in range(USERS):
        for parameter, one in update_of_one(task, facts, batch, rows_of(user)).items():
            torch.testing.assert_close(one_by_one(found, user)[parameter], one, atol=2e-6, rtol=1e-4)


def test_numbers_alone_need_no_table() -> None:
    facts = schema(buckets=())
    task = Task(model=jittered(Logistic(facts)), local_learning_rate=0.3)
    batch = random_batch(facts, len(OWNERS))
    found = updates_of(task, facts, batch)
    assert not found.tables
    for user in range(USERS):
        for parameter, one in update_of_one(task, facts, batch, rows_of(user)).items():
            torch.testing.assert_close(one_by_one(found, user)[parameter], one, atol=2e-6, rtol=1e-4)


def test_what_is_frozen_is_not_sent() -> None:
    facts = schema()
    model = jittered(DCN(facts))
    model.table.weight.requires_grad_(False)
    task, batch = Task(model=model, local_learning_rate=0.3, local_steps=2), random_batch(facts, len(OWNERS))
    found = updates_of(task, facts, batch)
    assert not found.tables
    for user in range(USERS):
        for parameter, one in update_of_one(task, facts, batch, rows_of(user)).items():
            torch.testing.assert_close(one_by_one(found, user)[parameter], one, atol=2e-6, rtol=1e-4)


class Stored:
    """Rows of a made-up log."""

    def __init__(self, facts: Schema, batch: Batch) -> None:
        self.schema, self.batch = facts, batch

    def take(self, row_numbers: np.ndarray) -> Batch:
        return pick(self.batch, row_numbers.tolist())


@pytest.mark.parametrize("users_at_once", [1, 2, 3, 100])
def test_the_sum_is_that_of_each_user_clipped_by_itself_however_many_are_trained_at_once(users_at_once: int) -> None:
    facts, clip_norm = schema(), 0.5
    task = Task(model=jittered(DeepFM(facts)), local_learning_rate=0.3, local_steps=3)
    batch = random_batch(facts, len(OWNERS), longest=2)
    expected = {name: torch.zeros(one.shape, dtype=torch.float64) for name, one in trained(task.model).items()}
    clipped = 0
    for user in range(USERS):
        update = {name: one.double() for name, one in update_of_one(task, facts, batch, rows_of(user)).items()}
        norm = math.sqrt(sum(float(one.square().sum()) for one in update.values()))
        clipped += norm > clip_norm
        for name, one in update.items():
            expected[name] += one * min(1.0, clip_norm / max(norm, 1e-9))
    assert 0 < clipped < len(set(OWNERS))
    local = LocalTraining(task, facts, users_at_once=users_at_once)
    order = np.array([3, 0, 1, 2, 4, 5, 6, 7, 8, 9])  # the draw numbers its users as it likes
    owners = np.array([0, 1, 1, 1, 2, 2, 2, 2, 5, 5])
    draw = Draw(row_numbers=order, owners=owners, units=USERS, sampled=USERS)
    found = local.cohort_sums(Stored(facts, batch), draw, trained(task.model), clip_norm=clip_norm)  # type: ignore[arg-type]
    assert (found.users, found.within) == (USERS, USERS - clipped)
    for name, one in expected.items():
        torch.testing.assert_close(found.of(name), one, atol=2e-6, rtol=1e-4)


def exact_square(tensors: Any) -> Fraction:
    return sum((Fraction(number) ** 2 for one in tensors for number in one.flatten().tolist()), Fraction(0))


@pytest.mark.parametrize("clip_norm", [1e-6, 0.01, 0.1, 1 / 3])
def test_a_clipped_update_is_no_longer_than_the_clip_norm_in_floating_point(clip_norm: float) -> None:
    """In exact arithmetic, over the numbers that are really added up, of 25 users, most of whom are clipped."""
    facts = schema()
    task = Task(model=jittered(WideDeep(facts)), local_learning_rate=1.0, local_steps=2)
    batch = random_batch(facts, 25)
    found = updates_of(task, facts, batch, tuple(range(25)), 25)
    assert int((found.norms() > clip_norm).sum()) > 15
    limit = Fraction(clip_norm) ** 2
    for user in range(25):
        alone = updates_of(task, facts, pick(batch, [user]), (0,), 1).clipped_sum(clip_norm)
        assert exact_square([*alone.dense.values(), *(one.values for one in alone.tables.values())]) <= limit


def test_one_user_changes_the_sum_by_at_most_the_clip_norm_in_floating_point() -> None:
    """Users of one to five rows, each of some left out in turn: the exact difference of the two sums, rounding and all,
    though who is there decides how all others are padded."""
    facts, clip_norm, users = schema(), 0.05, 20
    task = Task(model=jittered(Logistic(facts)), local_learning_rate=1.0, local_steps=2)
    owners = np.repeat(np.arange(users), np.arange(users) % 5 + 1)
    batch = random_batch(facts, len(owners))
    whole = updates_of(task, facts, batch, tuple(owners), users).clipped_sum(clip_norm)
    for user in range(0, users, 2):
        rest = np.flatnonzero(owners != user)
        others = tuple(owners[rest] - (owners[rest] > user))
        without = updates_of(task, facts, pick(batch, rest.tolist()), others, users - 1).clipped_sum(clip_norm)
        moved = Fraction(0)
        for name in trained(task.model):
            for a, b in zip(whole.of(name).flatten().tolist(), without.of(name).flatten().tolist(), strict=True):
                moved += (Fraction(a) - Fraction(b)) ** 2
        assert moved <= Fraction(clip_norm) ** 2


def test_a_million_copies_of_a_row_weigh_as_much_as_one() -> None:
    """Under Flower a client that said it had a million rows moved the mean ten times as far as the noise assumed."""
    facts = schema(tasks=("click",))
    task = Task(model=jittered(Logistic(facts)), local_learning_rate=0.3)
    batch = random_batch(facts, 2)
    one = updates_of(task, facts, batch, (0, 1), 2)
    many = updates_of(task, facts, pick(batch, [0] * 1000 + [1]), (*[0] * 1000, 1), 2)
    for name in trained(task.model):
        torch.testing.assert_close(one_by_one(many, 0)[name], one_by_one(one, 0)[name], atol=1e-6, rtol=1e-4)


class Poisoned(nn.Module):
    """A logistic regression whose output is ``bad`` for users with a number above 0.9."""

    def __init__(self, facts: Schema, bad: float) -> None:
        super().__init__()
        self.inner, self.bad = jittered(DCN(facts)), bad

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.inner(batch)
        return {task: torch.where(batch.dense[:, 0] > 0.9, self.bad * one, one) for task, one in found.items()}


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_user_whose_update_is_not_finite_adds_zero_and_spoils_nobody_else(bad: float, where: int) -> None:
    """Flower let a NaN through, as min(1, nan) is 1. First, in the middle, last: padding is made of no user's rows."""
    facts = schema()
    task = Task(model=Poisoned(facts, bad), local_learning_rate=1.0, local_steps=3)
    batch = random_batch(facts, 6)
    batch.dense[:, 0] = 0.0
    for known in batch.observed.values():
        known[:] = True
    owners = (0, 0, 0, 1, 2, 2)
    own = [row for row in range(6) if owners[row] == where]
    rest = [row for row in range(6) if owners[row] != where]
    batch.dense[own, 0] = 1.0
    found = updates_of(task, facts, batch, owners, 3).clipped_sum(0.1)
    kept = updates_of(task, facts, pick(batch, rest), tuple(0 if owners[r] == owners[rest[0]] else 1 for r in rest), 2)
    assert (found.users, found.within) == (3, int((kept.norms() <= 0.1).sum()))
    for name in trained(task.model):
        assert bool(found.of(name).isfinite().all())
        torch.testing.assert_close(found.of(name), kept.clipped_sum(0.1).of(name), atol=1e-7, rtol=1e-5)


def test_an_update_of_zero_is_summed_as_any_other() -> None:
    """Flower divided by its norm."""
    facts = schema()
    task = Task(model=DCN(facts), local_learning_rate=0.3, loss=lambda outputs, batch: 0.0 * outputs["click"])
    found = updates_of(task, facts, random_batch(facts, len(OWNERS))).clipped_sum(0.1)
    assert (found.users, found.within) == (USERS, USERS)
    assert not any(bool(found.of(name).any()) for name in trained(task.model))


class Counting(nn.Module):
    """Counts its calls, and keeps a mean of what it saw, as batch normalization does."""

    def __init__(self, facts: Schema) -> None:
        super().__init__()
        self.inner = jittered(Logistic(facts))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        self.calls += 1
        self.seen.mul_(0.9).add_(batch.dense.mean(0))
        found: Mapping[str, Tensor] = self.inner(batch)
        return found


def test_buffers_are_neither_sent_nor_changed_nor_part_of_the_norm() -> None:
    """Flower clipped and noised a counter of batches."""
    facts = schema()
    counting, plain = Counting(facts), jittered(Logistic(facts))
    batch, owners = random_batch(facts, len(OWNERS)), torch.tensor(OWNERS)
    local = LocalTraining(Task(model=counting, local_learning_rate=0.3, local_steps=3), facts)
    before = [local.updates(batch, owners, USERS, trained(counting)) for _ in range(2)]
    found = updates_of(Task(model=plain, local_learning_rate=0.3, local_steps=3), facts, batch)
    assert not set(before[0].dense) & {"calls", "seen"}
    assert torch.equal(before[0].norms(), found.norms())
    assert torch.equal(before[1].norms(), found.norms())  # nothing was kept from the first time
    assert int(counting.calls) == 0
    assert not counting.seen.any()


def test_a_user_holds_only_the_rows_they_name() -> None:
    facts = schema(buckets=(100_000, 7))
    task = Task(model=DCN(facts), local_learning_rate=0.3)
    found = updates_of(task, facts, random_batch(facts, len(OWNERS)))
    (table,) = found.tables.values()
    assert len(table.values) <= 2 * len(OWNERS)
    assert set(zip(table.owners.tolist(), table.ids.tolist(), strict=True)) == {
        (OWNERS[lookup // 2], one) for lookup, one in enumerate(random_batch(facts, len(OWNERS)).ids.tolist())
    }


def test_dropout_differs_between_users() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64))

        def forward(self, batch: Batch) -> dict[str, Tensor]:
            kept = nn.functional.dropout(self.weight, 0.5, training=self.training)
            return {"click": kept.sum() * torch.ones_like(batch.weights)}

    facts = schema(tasks=("click",))
    task = Task(model=Dropping(), local_learning_rate=1.0, loss=lambda outputs, batch: outputs["click"])
    found = updates_of(task, facts, random_batch(facts, 2), (0, 1), 2)
    assert not torch.equal(found.dense["weight"][0], found.dense["weight"][1])


class Otherwise(nn.Module):
    """Reads its table in a way that cannot be split among users."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.table, self.how = FusedTable([5, 7, 3], 2), how

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if self.how == "weight":
            return {"click": self.table.weight.sum() * batch.weights}
        return {"click": self.table((batch.ids + 1) % 5, batch.offsets).sum((1, 2))}


def test_a_table_that_is_not_read_by_the_rows_own_ids_is_refused() -> None:
    facts = schema(tasks=("click",))
    batch = random_batch(facts, len(OWNERS))
    with pytest.raises(UnsupportedModel, match=r"other ids than batch\.ids"):
        updates_of(Task(model=Otherwise("ids"), local_learning_rate=0.1), facts, batch)
    with pytest.raises(AttributeError, match="weight"):
        updates_of(Task(model=Otherwise("weight"), local_learning_rate=0.1), facts, batch)


def test_a_loss_with_a_mean_is_refused() -> None:
    facts = schema()
    task = Task(model=MMoE(facts), local_learning_rate=0.1, loss=lambda outputs, batch: outputs["click"].mean())
    with pytest.raises(ValueError, match="rows"):
        updates_of(task, facts, random_batch(facts, len(OWNERS)))


# One user beside another


class Mixing(nn.Module):
    """Adds the sum over the rows that it is given: with padding, over more than a user has."""

    def __init__(self, facts: Schema) -> None:
        super().__init__()
        self.inner = DCN(facts)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {task: one + one.sum() for task, one in self.inner(batch).items()}


def in_batch(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """The loss of in-batch negatives: a row against all rows."""
    return -torch.log_softmax(outputs["click"], 0)


def of_logarithm(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Its slope is NaN at a row of zeros."""
    return (outputs["click"] - batch.weights.log()).square()


def moved_by_a_neighbor(task: Task, facts: Schema) -> float:
    """Returns by how many clip norms a user of five rows moves what users of two rows add to a round's sum."""
    owners = [user for user in range(10) for _ in range(2)] + [10] * 5
    batch = random_batch(facts, len(owners))
    both = updates_of(task, facts, batch, tuple(owners), 11).clipped_sum(1e-3)
    rest = updates_of(task, facts, pick(batch, list(range(20))), tuple(owners[:20]), 10).clipped_sum(1e-3)
    last = updates_of(task, facts, pick(batch, list(range(20, 25))), (0,) * 5, 1).clipped_sum(1e-3)
    return math.hypot(*(float((both.of(n) - rest.of(n) - last.of(n)).norm()) / 1e-3 for n in trained(task.model)))


@pytest.mark.parametrize(("model", "loss"), [(Mixing, None), (DCN, in_batch)])
def test_a_model_that_mixes_rows_would_let_one_user_move_all_others_and_is_refused(model: Any, loss: Any) -> None:
    torch.manual_seed(0)
    facts = schema(tasks=("click",))
    task = Task(model=jittered(model(facts)), local_learning_rate=0.3, loss=loss)
    assert moved_by_a_neighbor(task, facts) > 0.1  # beside the one clip norm of their own update
    with pytest.raises(UnsupportedModel, match="who is trained beside them"):
        LocalTraining(task, facts).check_apart(facts)


@pytest.mark.parametrize("local_rows", [None, 2])
def test_padding_is_as_finite_as_a_users_own_rows(local_rows: int | None) -> None:
    facts = schema(tasks=("click",))
    model = jittered(DCN(facts))
    task = Task(model=model, local_learning_rate=0.3, loss=of_logarithm, local_steps=2, local_rows=local_rows)
    assert moved_by_a_neighbor(task, facts) < 1e-3
    LocalTraining(task, facts).check_apart(facts)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_of_privads_train_each_user_apart(name: str) -> None:
    facts = schema()
    task = Task(model=MODELS[name](facts), local_learning_rate=0.3, local_rows=2)
    LocalTraining(task, facts).check_apart(facts)
