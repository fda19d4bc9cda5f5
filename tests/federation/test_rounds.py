"""A round is sum, noise, a public divisor, and then any optimizer; a run is charged before its first row is read."""

import copy
import dataclasses
import io
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from accounting import mechanisms
from accounting.budget import BudgetExceeded
from federation.cohort import LocalTraining
from federation.plan import FederatedPlan
from federation.population import Silo
from federation.rounds import ServerOptimizer, after_round, averaging, first_state, noised_mean
from federation.server import federate
from federation.sums import UserSums
from federation.task import Task
from privads.batch import Batch
from privads.logs.logs import Logs
from privads.models import DCN, Logistic, losses
from privads.noise import Randomness
from privads.progress import bar
from privads.training.clipping import UnsupportedModel
from privads.training.tables import SparseSum
from tests.federation.helpers import USERS, logs, pick, plan, private_logs, trained, twin, update_of_one
from tests.privads.models.samples import random_batch, schema
from tests.privads.training.helpers import new_ledger

ALPHA = 1e-6

SERVERS: dict[str, ServerOptimizer] = {
    "sgd": averaging,
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.5, momentum=0.9),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.01),
    "adagrad": lambda weights: torch.optim.Adagrad(weights, lr=0.1),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, lr=0.01),
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    return logs(tmp_path_factory.mktemp("log"))


def task(log: Logs, model: nn.Module | None = None, **settings: Any) -> Task:
    given: dict[str, Any] = {"local_learning_rate": 0.5, "local_steps": 2, **settings}
    return Task(model=DCN(log.schema) if model is None else model, **given)


def has_std(values: Tensor, std: float) -> bool:
    """Chi-square at ALPHA; of 20,000 values an error of 5 % is missed with probability below 1e-6."""
    statistic = float(values.double().square().sum()) / std**2
    return bool(stats.chi2.ppf(ALPHA / 2, len(values)) < statistic < stats.chi2.isf(ALPHA / 2, len(values)))


def of_zero(sizes: dict[str, int], users: int) -> UserSums:
    dense = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}
    return UserSums(users=users, within=0, dense=dense, tables={})


# What a round computes


def test_a_round_without_privacy_is_federated_averaging(log: Logs) -> None:
    """Every user takes part: the new model is the mean of the local ones (McMahan et al. 2017, algorithm 1)."""
    own = task(log)
    run = federate(own, log, twin(cohort=USERS, rounds=1))
    batch = log.take(np.arange(len(log.units)))
    total = {name: torch.zeros_like(one) for name, one in trained(own.model).items()}
    for user in range(USERS):
        rows = np.flatnonzero(log.units == user).tolist()
        for name, one in update_of_one(own, log.schema, batch, rows).items():
            total[name] += one
    for name, one in trained(own.model).items():
        torch.testing.assert_close(trained(run.model)[name], one - total[name] / USERS, atol=1e-6, rtol=1e-5)


def test_users_in_two_silos_are_summed_as_if_in_one(log: Logs) -> None:
    found = twin(cohort=USERS, rounds=3)
    own = task(log)
    one, two = federate(own, log, found), federate(own, log.split(test_fraction=0.4), found)
    for name, weight in trained(one.model).items():
        torch.testing.assert_close(trained(two.model)[name], weight, atol=1e-6, rtol=1e-5)


def test_who_drops_out_is_missing_from_the_sum_and_does_not_change_the_divisor() -> None:
    found, weights = twin(cohort=40), {"w": torch.ones(2, dtype=torch.float64)}
    sums = UserSums(users=10, within=0, dense={"w": torch.tensor([8.0, 4.0], dtype=torch.float64)}, tables={})
    fewer = dataclasses.replace(sums, users=1)
    for one in (sums, fewer):
        mean = noised_mean(one, found, weights, clip_norm=1.0, randomness=Randomness())
        assert mean["w"].tolist() == [0.2, 0.1]


def test_over_selection_asks_more_users_and_divides_by_the_cohort_as_planned(log: Logs) -> None:
    """All users are asked, for a cohort of half of them: the sum of all, divided by half."""
    own = task(log)
    start = trained(own.model)
    moved = [
        trained(federate(own, log, twin(cohort=cohort, over_selection=more, rounds=1)).model)
        for cohort, more in ((USERS, 0.0), (USERS // 2, 1.0))
    ]
    for name, one in start.items():
        torch.testing.assert_close(moved[1][name] - one, 2 * (moved[0][name] - one), atol=1e-6, rtol=1e-4)


def test_rows_of_tables_that_nobody_touched_get_noise_as_all_others() -> None:
    """Sums are (rows, values), and the noise is on the whole table: 10,000 rows of two, five of them in the sum."""
    found = plan()
    table = SparseSum(torch.arange(5), torch.full((5, 2), 3.0, dtype=torch.float64), 10_000)
    sums, weights = UserSums(users=3, within=3, dense={}, tables={"t": table}), {"t": torch.zeros(10_000, 2)}
    mean = noised_mean(sums, found, weights, clip_norm=0.5, randomness=Randomness())
    assert has_std(mean["t"][5:].flatten() * found.cohort, found.noise_multiplier * 0.5)
    assert float((mean["t"][:5] * found.cohort - 3.0).abs().max()) < 6 * found.noise_multiplier * 0.5


def test_an_empty_cohort_is_noised_and_counted_as_any_other() -> None:
    found, sizes = plan(), {"a": 12_000, "b": 8_000}
    model = nn.ParameterDict({name: nn.Parameter(torch.zeros(size)) for name, size in sizes.items()})
    state = after_round(first_state(model, found), of_zero(sizes, users=0), found, averaging, Randomness())
    moved = torch.cat([*state.weights.values()])
    assert has_std(moved * found.cohort, found.noise_multiplier * found.clip_norm)
    assert state.done == 1


def test_noise_is_that_of_the_clip_norm_that_was_used_not_of_the_next() -> None:
    """Flower added the noise of the norm that it had just moved to."""
    found = plan(clip_quantile=0.5)
    state = first_state(nn.ParameterDict({"w": nn.Parameter(torch.zeros(20_000))}), found)
    state = dataclasses.replace(state, clip_norm=2.0)
    after = after_round(state, of_zero({"w": 20_000}, users=40), found, averaging, Randomness())
    assert after.clip_norm > 2.0 * 1.05  # nobody was within it: it rises by 10 %
    assert has_std(after.weights["w"] * found.cohort, found.noise_multiplier * 2.0)


def test_under_local_noise_every_user_who_sends_adds_noise_of_their_own(log: Logs) -> None:
    found = plan(neighbors="replace", mechanism="local", cohort=USERS, rounds=2)
    still = nn.Linear(1, 20_000, bias=False)
    task = Task(model=still, local_learning_rate=1.0, loss=lambda outputs, batch: torch.zeros(batch.rows))
    silo = Silo(log, found, rows_per_user=2, randomness=Randomness())
    weights = {"weight": still.weight.detach()}

    class Zero(LocalTraining):
        def cohort_sums(self, rows: Any, draw: Any, weights: Any, *, clip_norm: float) -> UserSums:
            return of_zero({"weight": still.weight.shape}, draw.units)

    sums = silo.sums(Zero(task, log.schema), weights, clip_norm=0.5)
    assert sums.users == USERS
    assert has_std(sums.of("weight"), found.noise_multiplier * 0.5 * USERS**0.5)
    mean = noised_mean(sums, found, weights, clip_norm=0.5, randomness=Randomness())
    assert torch.equal(mean["weight"], (sums.of("weight") / found.cohort).float())  # and the server adds none


# What the server's optimizer sees


def seen_by(make: ServerOptimizer, seen: list[list[Tensor]]) -> ServerOptimizer:
    """Returns the optimizer, which writes down the gradients of each step."""

    def made(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        found = make(weights)
        found.register_step_pre_hook(
            lambda *_: seen.append([one.grad.clone() for one in weights if one.grad is not None])
        )
        return found

    return made


def rounds(
    state: Any, sums: list[UserSums], found: FederatedPlan, make: ServerOptimizer, seed: int = 0
) -> Iterator[Any]:
    randomness = Randomness(insecure_seed=seed)
    for one in sums:
        state = after_round(state, one, found, make, randomness)
        yield state


def random_sums(count: int) -> list[UserSums]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [UserSums(users=3, within=1, dense={"w": one}, tables={}) for one in made]


@pytest.mark.parametrize("server", [*SERVERS])
def test_rounds_are_the_steps_of_the_optimizer_along_the_noised_means(server: str) -> None:
    """One torch optimizer over all rounds, given what each round's was given, comes to the same weights."""
    model = nn.ParameterDict({"w": nn.Parameter(torch.ones(6))})
    seen: list[list[Tensor]] = []
    *_, last = rounds(first_state(model, plan()), random_sums(6), plan(), seen_by(SERVERS[server], seen))
    (weight,) = model.values()
    optimizer = SERVERS[server]([weight])
    for (gradient,) in seen:
        weight.grad = gradient
        optimizer.step()
    assert torch.equal(last.weights["w"], weight.detach())


@pytest.mark.parametrize("server", [*SERVERS])
def test_one_users_presence_moves_what_any_server_optimizer_sees_by_at_most_the_clip(server: str) -> None:
    """Flower noised the result of FedAdam and FedAdagrad, which one client had moved 6.7 and 50 times the clip.

    30 users, each left out in turn, under the same noise: the gradients at the optimizer, times the cohort, differ by
    at most the clip norm, and by all of it for those who are clipped. In float64, up to 1e-12.
    """
    facts, found = schema(), plan()
    model = Logistic(facts).double()
    own = Task(model=model, local_learning_rate=1.0, local_steps=2)
    batch, owners = random_batch(facts, 30), torch.arange(30)
    batch = dataclasses.replace(batch, dense=batch.dense.double())
    local, state = LocalTraining(own, facts), first_state(model, found)
    clip_norm = float(local.updates(batch, owners, 30, state.weights).norms().median())
    state = dataclasses.replace(state, clip_norm=clip_norm)

    def at_the_server(rows: list[int]) -> Tensor:
        seen: list[list[Tensor]] = []
        updates = local.updates(pick(batch, rows), torch.arange(len(rows)), len(rows), state.weights)
        list(rounds(state, [updates.clipped_sum(clip_norm)], found, seen_by(SERVERS[server], seen)))
        return torch.cat([one.flatten() for one in seen[0]]) * found.cohort

    whole = at_the_server(list(range(30)))
    moved = [float((whole - at_the_server([row for row in range(30) if row != user])).norm()) for user in range(30)]
    assert max(moved) <= clip_norm * (1 + 1e-12)
    assert max(moved) >= clip_norm * (1 - 1e-6)


def test_noise_is_added_to_float64_sums_so_that_large_sums_hide_no_rounding() -> None:
    """A sum of 2^24 in float32 would swallow a user's 0.5, or double it."""
    found, weights = twin(cohort=1), {"w": torch.zeros(1, dtype=torch.float64)}
    sums = [
        UserSums(users=1, within=1, dense={"w": torch.tensor([one], dtype=torch.float64)}, tables={})
        for one in (2.0**24, 0.5)
    ]
    mean = noised_mean(sums[0] + sums[1], found, weights, clip_norm=1.0, randomness=Randomness())
    assert Fraction(float(mean["w"])) == Fraction(2**24) + Fraction(1, 2)


# A round is a function


@pytest.mark.parametrize("server", [*SERVERS])
def test_a_round_leaves_its_state_as_it_is_and_goes_on_from_a_copy_on_disk(server: str) -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.ones(6))})
    found, sums = plan(clip_quantile=0.5), random_sums(4)
    states = [first_state(model, found), *rounds(first_state(model, found), sums, found, SERVERS[server])]
    kept = copy.deepcopy(states[2])
    file = io.BytesIO()
    torch.save(dataclasses.asdict(states[2]), file)
    file.seek(0)
    read = type(kept)(**torch.load(file, weights_only=True))
    for start in (states[2], read):
        one, two = (next(iter(rounds(start, sums[2:3], found, SERVERS[server], seed=5))) for _ in range(2))
        assert torch.equal(one.weights["w"], two.weights["w"])
        assert one.clip_norm == two.clip_norm
    assert torch.equal(states[2].weights["w"], kept.weights["w"])
    assert str(states[2].optimizer) == str(kept.optimizer)
    assert torch.equal(model["w"].detach(), torch.ones(6))


def test_a_run_repeats_from_its_seed_and_only_from_it(log: Logs) -> None:
    own, found = task(log, local_rows=1), plan()
    one, two, other = (trained(federate(own, log, found, insecure_seed=seed).model) for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    fresh = [trained(federate(own, log, found).model) for _ in range(2)]
    assert not any(torch.equal(fresh[0][name], fresh[1][name]) for name in one)


def test_rounds_in_which_nobody_takes_part_are_rounds(log: Logs) -> None:
    """At a rate of 1 in 400, 20 rounds without an empty one have probability 1e-4."""
    run = federate(task(log), log, plan(cohort=1, rounds=20))
    assert run.rounds_done == 20
    assert mechanisms.to_dict(run.plan.event)["count"] == 20
    assert all(bool(one.isfinite().all()) for one in trained(run.model).values())


def test_the_tasks_own_model_is_left_as_it_was(log: Logs) -> None:
    own = task(log)
    before = copy.deepcopy(own.model.state_dict())
    run = federate(own, log, plan())
    assert all(torch.equal(one, before[name]) for name, one in own.model.state_dict().items())
    assert own.model.training
    assert not run.model.training


def test_a_private_run_learns(log: Logs) -> None:
    batch = log.take(np.arange(len(log.units)))
    own = task(log, local_steps=4)
    run = federate(
        own,
        log,
        plan(rounds=20, cohort=80, clip_norm=1.0),
        optimizer=SERVERS["momentum"],
        insecure_seed=0,
    )
    first, last = (float(losses.per_row(model(batch), batch).detach().mean()) for model in (own.model, run.model))
    assert last < first - 0.03


# What is charged, refused and read, in which order


class Watched:
    """A log that says when its rows are read."""

    def __init__(self, log: Logs, at_first: Callable[[], None]) -> None:
        self._log, self._at_first = log, at_first

    @property
    def schema(self) -> Any:
        return self._log.schema

    def check(self) -> None:
        self._log.check()

    @property
    def units(self) -> Any:
        self._at_first()
        return self._log.units

    def take(self, row_numbers: Any) -> Batch:
        self._at_first()
        return self._log.take(row_numbers)

    def reference(self, task: str) -> None:
        return None


def unread() -> None:
    raise AssertionError("rows were read")


def test_the_ledger_is_charged_in_full_before_the_first_row_is_read(tmp_path: Path) -> None:
    ledger, log, found = new_ledger(tmp_path), private_logs(tmp_path), plan()
    spent: list[float] = []
    rows = Watched(log, lambda: spent.append(ledger.balance("small").spent_epsilon))
    run = federate(task(log), rows, found, ledger=ledger)
    assert spent[0] == pytest.approx(found.spent.upper, rel=1e-6)
    (entry,) = ledger.history("small")
    assert run.entry is not None
    assert (entry.id, entry.purpose) == (run.entry.id, "federate DCN")


def test_a_run_beyond_the_budget_reads_no_row(tmp_path: Path) -> None:
    ledger, log = new_ledger(tmp_path, epsilon=1.0), private_logs(tmp_path)
    with pytest.raises(BudgetExceeded):
        federate(task(log), Watched(log, unread), plan(), ledger=ledger)


def test_what_was_charged_stays_charged_when_a_round_fails(tmp_path: Path) -> None:
    ledger, log = new_ledger(tmp_path), private_logs(tmp_path)
    with pytest.raises(AssertionError, match="rows were read"):
        federate(task(log), Watched(log, unread), plan(), ledger=ledger)
    assert ledger.balance("small").spent_epsilon == pytest.approx(plan().spent.upper, rel=1e-6)


class Mixed(nn.Module):
    """Decides by a row's value, which no batch of users can do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        found = self.layer(batch.dense)[:, 0]
        return {"click": found if float(found.sum()) > 0 else -found}


def test_a_loss_over_all_rows_of_a_batch_is_refused_before_anything_is_charged(tmp_path: Path) -> None:
    ledger, log = new_ledger(tmp_path), private_logs(tmp_path)
    task = Task(
        model=Logistic(log.schema), local_learning_rate=0.5, loss=lambda o, _: -torch.log_softmax(o["click"], dim=0)
    )
    with pytest.raises(UnsupportedModel, match="trained beside them"):
        federate(task, log, plan(), ledger=ledger)
    assert not ledger.history("small")


def test_a_model_that_cannot_be_trained_side_by_side_is_refused_before_anything_is_charged(tmp_path: Path) -> None:
    ledger, log = new_ledger(tmp_path), private_logs(tmp_path)
    with pytest.raises((UnsupportedModel, RuntimeError)):
        federate(task(log, Mixed()), Watched(log, unread), plan(), ledger=ledger)
    assert ledger.history("small") == []


def test_private_data_need_a_ledger_a_plan_and_fresh_randomness(tmp_path: Path) -> None:
    ledger, log = new_ledger(tmp_path), private_logs(tmp_path)
    rows = Watched(log, unread)
    with pytest.raises(ValueError, match="needs its ledger"):
        federate(task(log), rows, plan())
    with pytest.raises(ValueError, match="is not public: a plan without privacy"):
        federate(task(log), rows, twin(), ledger=ledger)
    with pytest.raises(ValueError, match="insecure_seed is refused"):
        federate(task(log), rows, plan(), ledger=ledger, insecure_seed=1)
    assert ledger.history("small") == []


def test_the_progress_bar_of_training_shows_rounds(log: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    federate(task(log), log, plan(), progress=bar)
    assert "5/5" in terminal.getvalue()


def test_every_round_is_shown_and_nothing_else(log: Logs) -> None:
    shown: list[int] = []

    class Bar:
        def __init__(self, found: FederatedPlan) -> None:
            assert found.rounds == 5

        def __enter__(self) -> Callable[[int], None]:
            return shown.append

        def __exit__(self, *_: object) -> None:
            shown.append(-1)

    federate(task(log), log, plan(), progress=Bar)
    assert shown == [1, 2, 3, 4, 5, -1]
