"""At most so many silos use one user's rows, no silo is favored, and no user decides for another."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from federation import identity, population
from federation.identity import Identifiers, allowed
from federation.population import Members
from federation.server import federate
from federation.task import Task
from privads.batch import Batch
from privads.logs.logs import Logs
from privads.models import DCN
from tests.federation.helpers import USERS, logs, plan, private_logs
from tests.privads.training.helpers import new_ledger

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    return logs(tmp_path_factory.mktemp("log"))


def people(count: int, seed: int = 0) -> Identifiers:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 2), dtype=np.uint64)


def overlapping() -> list[Identifiers]:
    """Four silos of 3,000 users, each of whom is in a random choice of them."""
    everyone, rng = people(3000), np.random.default_rng(1)
    return [everyone[rng.permutation(3000)[: rng.integers(1000, 3000)]] for _ in range(4)]


def by_user(silos: list[Identifiers], kept: list[NDArray[np.bool_]]) -> dict[bytes, tuple[set[int], set[int]]]:
    """Returns for each user the silos that they are in, and those that may use their rows."""
    found: dict[bytes, tuple[set[int], set[int]]] = {}
    for number, (one, may) in enumerate(zip(silos, kept, strict=True)):
        for who, use in zip(one, may, strict=True):
            where, used = found.setdefault(who.tobytes(), (set(), set()))
            where.add(number)
            if use:
                used.add(number)
    return found


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_of_each_user_so_many_silos_use_the_rows_as_may_and_no_fewer(most: int) -> None:
    silos = overlapping()
    for where, used in by_user(silos, allowed(silos, silos=most)).values():
        assert len(used) == min(most, len(where))


def test_no_silo_is_favored() -> None:
    """9,000 users of three silos: each gets a third, give or take six standard deviations (45 each)."""
    silos = [people(9000)] * 3
    for kept in allowed(silos, silos=1):
        assert abs(int(kept.sum()) - 3000) < 270
    for kept in allowed(silos, silos=2):
        assert abs(int(kept.sum()) - 6000) < 270


def test_what_is_decided_of_a_user_follows_from_them_alone() -> None:
    silos = overlapping()
    whole = by_user(silos, allowed(silos, silos=2))
    gone = silos[0][0]
    rest = [one[(one != gone).any(axis=1)] for one in silos]
    without = by_user(rest, allowed(rest, silos=2))
    assert without == {who: found for who, found in whole.items() if who != gone.tobytes()}


def test_users_of_one_silo_or_of_none_are_all_kept() -> None:
    assert [kept.tolist() for kept in allowed([people(3), people(0), people(2, seed=1)], silos=1)] == [
        [True] * 3,
        [],
        [True] * 2,
    ]


# What is added up


class Without:
    """A log without one of its users."""

    def __init__(self, log: Logs, user: int) -> None:
        self._log, self._user = log, user
        self._rows = np.flatnonzero(log.units != user)
        self.schema, self.check = log.schema, log.check

    @property
    def units(self) -> NDArray[np.int64]:
        kept = self._log.units[self._rows]
        return np.asarray(kept - (kept > self._user), dtype=np.int64)

    def take(self, row_numbers: NDArray[np.int64]) -> Batch:
        return self._log.take(self._rows[row_numbers])

    def reference(self, task: str) -> None:
        return None

    def identifiers(self, key: bytes) -> Identifiers:
        return np.delete(self._log.identifiers(key), self._user, axis=0)


CLIP_NORM = 1e-3
"""Below the norm of every update."""


def sum_of(silos: list[Any], most: int) -> tuple[int, torch.Tensor]:
    """Returns how many updates a round in which everyone takes part adds up, and their sum."""
    torch.manual_seed(0)
    schema = silos[0].schema
    task = Task(model=DCN(schema), local_learning_rate=0.5)
    members = Members(silos, shared_units=True)
    found = plan(silos=most, cohort=USERS, clip_norm=CLIP_NORM, rounds=1)
    members.open(task, found, insecure_seed=None, secure=False)
    weights = {name: one.detach() for name, one in task.model.named_parameters()}
    total = task.nothing(weights)
    for one in members.sums(1, weights, clip_norm=CLIP_NORM):
        total = total + one
    return total.users, torch.cat([total.of(name).flatten() for name in weights])


def one_user_moves_the_sum_by(log: Logs, most: int) -> Iterator[float]:
    """Yields, for some users who are in all of three silos, by how many clip norms the sum of a round moves."""
    _, whole = sum_of([log, log, log], most)
    for user in (0, 17, 399):
        rest = Without(log, user)
        _, without = sum_of([rest, rest, rest], most)
        yield float((whole - without).norm()) / CLIP_NORM


@pytest.mark.parametrize("most", [1, 2])
def test_a_user_of_three_silos_moves_the_sum_by_as_many_clip_norms_as_is_accounted(log: Logs, most: int) -> None:
    users, _ = sum_of([log, log, log], most)
    assert users == most * USERS
    for moved in one_user_moves_the_sum_by(log, most):
        assert most - 1e-6 <= moved <= most + 1e-9


def all_may(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(population, "allowed", lambda found, *, silos: [np.ones(len(one), dtype=bool) for one in found])


def one_silo_more(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(population, "allowed", lambda found, *, silos: identity.allowed(found, silos=silos + 1))


def silos_number_their_users(patch: pytest.MonkeyPatch) -> None:
    """Identifiers that are not shared: a silo's own."""
    own = Logs.identifiers
    calls = iter(range(100))
    patch.setattr(Logs, "identifiers", lambda log, key: own(log, key) ^ np.uint64(next(calls)))


def the_mask_is_not_used(patch: pytest.MonkeyPatch) -> None:
    own = population.Silo
    patch.setattr(population, "Silo", lambda *given, allowed, **others: own(*given, **others))


@pytest.mark.parametrize(
    "plant", [all_may, one_silo_more, silos_number_their_users, the_mask_is_not_used], ids=lambda one: one.__name__
)
def test_each_fault_lets_a_user_move_the_sum_by_more(log: Logs, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert max(one_user_moves_the_sum_by(log, 1)) > 1.9


def test_a_resumed_run_decides_as_the_first(log: Logs) -> None:
    found, masks = plan(), []
    for _ in range(2):
        members = Members([log, log], shared_units=True)
        members.open(Task(model=DCN(log.schema), local_learning_rate=0.5), found, insecure_seed=None, secure=False)
        masks.append([one._allowed for one in members._silos])
    for one, two in zip(*masks, strict=True):
        assert (one == two).all()
        assert 0 < one.sum() < USERS


def test_where_silos_are_as_few_as_planned_nobody_is_left_out(log: Logs) -> None:
    assert sum_of([log, log], 2)[0] == 2 * USERS


# What is said, and refused


def test_a_limit_that_is_kept_is_enforced_in_the_report_and_one_that_is_not_is_asserted(log: Logs) -> None:
    task = Task(model=DCN(log.schema), local_learning_rate=0.3)
    kept = federate(task, [log, log], plan(), shared_units=True).report()
    assert kept.verdict == "private"
    assert "at most 1 of the 2 silos use one user's rows, told by the unit columns" in kept.with_status("enforced")
    assert any("other silos have rows of them" in one for one in kept.not_covered)
    said = federate(task, [log, log], plan()).report()
    assert "no user has rows in more than 1 of the 2 silos" in said.headline


def test_rows_without_identifiers_are_refused_before_the_charge(tmp_path: Path) -> None:
    class Own:
        def __init__(self, log: Logs) -> None:
            self.schema, self.check, self.take, self.reference = log.schema, log.check, log.take, log.reference

        @property
        def units(self) -> NDArray[np.int64]:
            raise AssertionError("rows were read")

    rows, ledger = private_logs(tmp_path), new_ledger(tmp_path, epsilon=200.0)
    task = Task(model=DCN(rows.schema), local_learning_rate=0.3)
    with pytest.raises(ValueError, match="a Own cannot tell which users silos share"):
        federate(task, [rows, Own(rows)], plan(), ledger=ledger, shared_units=True)
    assert ledger.history("small") == []
