"""Lazy noise is dense noise in law, a row is settled before it is sent, and selected rows alone change."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from federation import rounds, server, tables
from federation.cohort import LocalTraining
from federation.plan import FederatedPlan
from federation.population import Members
from federation.rounds import ServerOptimizer, after_round, averaging, first_state
from federation.run import FederatedRun
from federation.server import federate
from federation.sums import SentRows, UserSums
from federation.task import Task
from privads.batch import Batch
from privads.logs.logs import Logs
from privads.models import DCN
from privads.models.layers import FusedTable
from privads.noise import Randomness
from privads.training import selection
from privads.training.owed import Debt, OwingTable
from privads.training.sampling import Draw
from privads.training.tables import SparseSum
from tests.federation.helpers import USERS, logs, plan, private_logs, twin
from tests.privads.training.helpers import new_ledger

ALPHA = 1e-6

TABLE = "table.weight"

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    return logs(tmp_path_factory.mktemp("log"))


def task(log: Logs, model: nn.Module | None = None) -> Task:
    torch.manual_seed(0)
    return Task(model=model or DCN(log.schema), local_learning_rate=0.5, local_steps=2)


# Lazy is dense


LR, DECAY = 2.0, 0.05


def decaying(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=LR, weight_decay=DECAY)


def stream(step: int, shape: Any) -> Tensor:
    """The noise of round ``step`` on a parameter of this shape."""
    generator = torch.Generator().manual_seed(1000 * step + sum(shape))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


class TwoTables(nn.Module):
    """Both are read by the same ids."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = FusedTable([8, 16], 2, init_std=0.3), FusedTable([8, 16], 1, init_std=0.3)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        found = [table(batch.ids, batch.offsets).flatten(1).sum(1) for table in (self.one, self.two)]
        return {"click": found[0] * found[1]}


class Noises:
    """Every round's noise of every row, from a fixed stream, in dense and in lazy runs."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.round, self.stds = 0, []
        step, std_of, noises = server.after_round, rounds.noise_std_of, self

        def counted(state: Any, *others: Any) -> Any:
            noises.round = state.done
            return step(state, *others)

        def noted(found: FederatedPlan, clip_norm: float) -> float:
            noises.stds[noises.round :] = [std_of(found, clip_norm)]
            return noises.stds[-1]

        def dense(_: Randomness, like: Tensor, *, noise_std: float) -> Tensor:
            return (noise_std * stream(noises.round, like.shape)).to(like.dtype)

        def owed(table: OwingTable, rows: Tensor, since: Tensor, _: Randomness) -> Tensor:
            # the definition: theta_s = kept theta_{s-1} - lr noise_s / cohort, from each row's last settlement on
            total = torch.zeros(len(rows), table.weight.shape[1], dtype=torch.float64)
            for s in range(table.debt.steps):
                noise = noises.stds[s] / 20 * stream(s, table.weight.shape)[rows]
                total = torch.where((since <= s)[:, None], (1 - LR * DECAY) * total - LR * noise, total)
            return total.float()

        patch.setattr(server, "after_round", counted)
        patch.setattr(rounds, "noise_std_of", noted)
        patch.setattr(Randomness, "normal_like", dense)
        patch.setattr(OwingTable, "noise_owed", owed)


def run_of(log: Logs, found: FederatedPlan, sent: list[Any]) -> FederatedRun:
    class Watching(Members):
        def sums(self, number: int, weights: Any, *, clip_norm: float) -> Iterator[UserSums]:
            sent.append(weights[TABLE])
            sent[-1] = sent[-1].clone() if isinstance(sent[-1], Tensor) else sent[-1]
            return super().sums(number, weights, clip_norm=clip_norm)

    return server.serve(task(log), Watching(log), found, optimizer=decaying, insecure_seed=1)


def both_agree(log: Logs, plant: Plant = lambda _: None) -> bool:
    """Rounds of a few users, under a clip norm that moves: weights at the end, and rows on the way."""
    found = plan(rounds=12, cohort=20, population=USERS * 10, clip_quantile=0.5)
    runs, sent = [], []
    for noise in ("dense", "lazy"):
        with pytest.MonkeyPatch.context() as own:
            Noises(own)
            if noise == "lazy":
                plant(own)
            sent.append([])
            try:
                runs.append(run_of(log, dataclasses.replace(found, table_noise=noise), sent[-1]))
            except RuntimeError:  # a row that owes noise cannot be sent
                return False
    dense, lazy = (dict(one.model.named_parameters()) for one in runs)
    settled = all(torch.allclose(b.values, a[b.ids], rtol=1e-4, atol=1e-5) for a, b in zip(*sent, strict=True))
    assert 0 < sum(len(one.ids) for one in sent[1]) < 0.5 * sum(len(one) for one in sent[0])
    return settled and all(torch.allclose(lazy[name], one, rtol=1e-4, atol=1e-5) for name, one in dense.items())


def test_lazy_equals_dense_on_the_same_noise_stream_under_decay_and_a_clip_norm_that_moves(
    log: Logs,
) -> None:
    assert both_agree(log)


def forget_the_flush(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(server, "flush", lambda *_: None)


def send_without_settling(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(server, "settle", lambda *_: None)
    patch.setattr(
        server,
        "sent",
        lambda weights, owed, named: {
            **weights,
            **{
                name: SentRows(named[name], one.weight.index_select(0, named[name]), len(one.weight))
                for name, one in owed.items()
            },
        },
    )


def halve_what_is_owed(patch: pytest.MonkeyPatch) -> None:
    owed = OwingTable.noise_owed
    patch.setattr(OwingTable, "noise_owed", lambda *found: 0.5 * owed(*found))


def forget_who_was_settled(patch: pytest.MonkeyPatch) -> None:
    settle = OwingTable.settle

    def again(table: OwingTable, rows: Tensor, randomness: Randomness) -> None:
        before = table.settled.clone()
        settle(table, rows, randomness)
        table.settled.copy_(before)

    patch.setattr(OwingTable, "settle", again)


def forget_the_decay(patch: pytest.MonkeyPatch) -> None:
    add = Debt.add
    patch.setattr(Debt, "add", lambda debt, *, kept, noise_std: add(debt, kept=1.0, noise_std=noise_std))


def a_sum_without_its_rounds_decay(patch: pytest.MonkeyPatch) -> None:
    add = tables.add_step
    patch.setattr(tables, "add_step", lambda *found, kept, **numbers: add(*found, kept=1.0, **numbers))


@pytest.mark.parametrize(
    "plant",
    [
        forget_the_flush,
        send_without_settling,
        halve_what_is_owed,
        forget_who_was_settled,
        forget_the_decay,
        a_sum_without_its_rounds_decay,
    ],
    ids=lambda one: one.__name__,
)
def test_each_fault_of_lazy_noise_turns_the_comparison_red(log: Logs, plant: Plant) -> None:
    assert not both_agree(log, plant)


ROWS = 40_000
"""Two halves of 20,000: a chi-square test at ALPHA catches a 5 % error of the std with miss probability below 1e-6."""

CLIP_NORMS = (0.5, 2.0, 1.0, 0.3)


class Wide(nn.Module):
    """A table that fills the test, and another weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.other = FusedTable([ROWS], 1), nn.Linear(1, 1)


def law_holds() -> bool:
    """Rounds of nobody, each with its own clip norm: the upper half is sent before every round, the rest never."""
    found, randomness = plan(table_noise="lazy", rounds=len(CLIP_NORMS)), Randomness()
    state = first_state(Wide(), found)
    state.weights[TABLE].zero_()
    seen, variance = [], 0.0
    for clip_norm in CLIP_NORMS:
        state = dataclasses.replace(state, clip_norm=clip_norm)
        named = {TABLE: torch.arange(ROWS // 2)}
        tables.settle(state.owed, named, randomness)
        try:
            sent = tables.sent(state.weights, state.owed, named)[TABLE]
        except RuntimeError:  # a row that owes noise cannot be sent
            return False
        assert isinstance(sent, SentRows)
        if variance:
            seen.append((sent.values.flatten(), variance))
        nothing = UserSums.nothing(state.weights, tables=[TABLE])
        state = after_round(state, nothing, found, averaging, randomness)
        variance += (found.noise_multiplier * clip_norm / found.cohort) ** 2
    tables.flush(state.owed, randomness)
    seen += [(half, variance) for half in state.weights[TABLE].flatten().view(2, -1)]
    for values, expected in seen:
        statistic = float(values.double().square().sum()) / expected
        if not stats.chi2.ppf(ALPHA / 2, len(values)) < statistic < stats.chi2.isf(ALPHA / 2, len(values)):
            return False
        if stats.kstest(values.double().numpy() / math.sqrt(expected), "norm").pvalue < ALPHA:
            return False
    return True


def test_rows_have_noise_by_the_number_of_rounds_and_by_each_rounds_clip_norm() -> None:
    assert law_holds()


def too_little(patch: pytest.MonkeyPatch) -> None:
    add = Debt.add
    patch.setattr(Debt, "add", lambda debt, *, kept, noise_std: add(debt, kept=kept, noise_std=0.95 * noise_std))


def all_rounds_at_the_last_clip_norm(patch: pytest.MonkeyPatch) -> None:
    add = Debt.add

    def wrong(debt: Debt, *, kept: float, noise_std: float) -> None:
        add(debt, kept=kept, noise_std=noise_std)
        debt.variance[: debt.steps] = noise_std**2 * np.arange(debt.steps, 0, -1)

    patch.setattr(Debt, "add", wrong)


@pytest.mark.parametrize(
    "plant", [too_little, all_rounds_at_the_last_clip_norm, forget_who_was_settled], ids=lambda one: one.__name__
)
def test_wrong_owed_noise_is_seen(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert not law_holds()


def test_a_lazy_round_writes_to_the_named_rows_alone(log: Logs) -> None:
    found, members, randomness = plan(table_noise="lazy", cohort=2), Members(log), Randomness()
    own = task(log)
    members.open(own, found, insecure_seed=2, secure=False)
    state = first_state(own.model, found)
    for number in range(1, 4):
        before = state.weights[TABLE].clone()
        named = members.named(number)
        tables.settle(state.owed, named, randomness)
        sums = own.nothing(state.weights)
        for one in members.sums(number, tables.sent(state.weights, state.owed, named), clip_norm=state.clip_norm):
            sums = sums + one
        state = after_round(state, sums, found, averaging, randomness)
        moved = (state.weights[TABLE] != before).any(1).nonzero().flatten()
        assert set(moved.tolist()) <= set(named[TABLE].tolist())
        assert set(sums.tables[TABLE].ids.tolist()) <= set(named[TABLE].tolist())


def test_the_named_rows_are_those_that_the_cohorts_rows_name(log: Logs) -> None:
    local = LocalTraining(task(log, TwoTables()), log.schema, users_at_once=2)
    rows, owners = np.array([0, 5, 9, 17, 300]), np.array([0, 0, 1, 2, 4])
    named = local.named(log, Draw(row_numbers=rows, owners=owners, units=5, sampled=5))
    assert len(named) == 2
    for ids in named.values():
        assert ids.tolist() == sorted(set(log.take(rows).ids.tolist()))
    nobody = local.named(log, Draw(row_numbers=rows[:0], owners=owners[:0], units=0, sampled=0))
    assert all(len(ids) == 0 for ids in nobody.values())


def test_users_train_on_sent_rows_as_on_whole_tables_and_on_no_other_row(log: Logs) -> None:
    own = task(log, TwoTables())
    local, state = LocalTraining(own, log.schema), first_state(own.model, twin(table_noise="lazy"))
    rows, owners = np.arange(40), log.units[:40]
    draw = Draw(row_numbers=rows, owners=owners, units=int(owners.max()) + 1, sampled=int(owners.max()) + 1)
    named = local.named(log, draw)
    whole = local.cohort_sums(log, draw, state.weights, clip_norm=0.5)
    parts = local.cohort_sums(log, draw, tables.sent(state.weights, state.owed, named), clip_norm=0.5)
    for name in state.weights:
        assert torch.equal(whole.of(name), parts.of(name))
    fewer = {name: ids[1:] for name, ids in named.items()}
    with pytest.raises(ValueError, match="not named before the round"):
        local.cohort_sums(log, draw, tables.sent(state.weights, state.owed, fewer), clip_norm=0.5)
    one = SentRows(torch.arange(1), torch.zeros(1, 1), 1)
    with pytest.raises(ValueError, match="no table: send it whole"):
        local.cohort_sums(log, draw, {**state.weights, "head.weight": one}, clip_norm=0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coarse_numbers_would_keep_a_users_sum_and_lose_its_noise_and_are_refused(dtype: torch.dtype) -> None:
    """Where numbers are four stds of the noise apart, a user who adds two stds makes a weight the next number, and the
    noise takes it there in 2 % of all rounds without the user. Rounded after both, that is 50 % and 2 %."""
    with pytest.raises(ValueError, match="must be float32 or float64"):
        tables.owing({"table.weight": torch.ones(4, 2, dtype=dtype)}, 3)
    assert tables.owing({"table.weight": torch.ones(4, 2, dtype=torch.float64)}, 3)


def test_a_row_that_owes_noise_cannot_be_sent() -> None:
    found = plan(table_noise="lazy")
    state = first_state(Wide(), found)
    state = after_round(state, UserSums.nothing(state.weights, tables=[TABLE]), found, averaging, Randomness())
    tables.settle(state.owed, {TABLE: torch.arange(5)}, Randomness())
    tables.sent(state.weights, state.owed, {TABLE: torch.arange(5)})
    with pytest.raises(RuntimeError, match="settle it first"):
        tables.sent(state.weights, state.owed, {TABLE: torch.arange(6)})
    tables.settle(state.owed, {TABLE: torch.arange(ROWS)}, Randomness())  # as who wants the whole table does
    whole = tables.sent(state.weights, state.owed, {TABLE: torch.arange(ROWS)})[TABLE]
    assert isinstance(whole, SentRows)
    assert torch.equal(whole.values, state.weights[TABLE])


@pytest.mark.parametrize("ids", [[ROWS], [-1], [3, 3], [4, 2]])
def test_rows_that_a_table_does_not_have_or_that_come_twice_are_refused(ids: list[int]) -> None:
    state = first_state(Wide(), plan(table_noise="lazy"))
    with pytest.raises(ValueError, match="named rows of 'table.weight' must rise, each once, from 0 to at most 39999"):
        tables.settle(state.owed, {TABLE: torch.tensor(ids)}, Randomness())
    with pytest.raises(ValueError, match="rows of 'other' are named, which is no table: name those of table.weight"):
        tables.settle(state.owed, {"other": torch.tensor([1])}, Randomness())


@pytest.mark.parametrize(
    "make",
    [
        lambda weights: torch.optim.Adam(weights, lr=0.1),
        lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
        lambda weights: torch.optim.SGD(weights, lr=0.1, maximize=True),
    ],
)
def test_a_stateful_server_optimizer_is_refused_for_lazy_noise_and_nothing_spent(
    make: ServerOptimizer, tmp_path: Path
) -> None:
    rows, ledger = private_logs(tmp_path), new_ledger(tmp_path, epsilon=200.0)
    with pytest.raises(ValueError, match="'lazy' needs plain SGD of the server on 'table.weight'"):
        federate(task(rows), rows, plan(table_noise="lazy"), ledger=ledger, optimizer=make)
    with pytest.raises(ValueError, match="must hold 'table.weight'"):
        federate(task(rows), rows, plan(table_noise="lazy"), ledger=ledger, optimizer=lambda w: averaging(w[1:]))
    assert ledger.history("small") == []


def test_momentum_may_step_the_other_parameters(log: Logs) -> None:
    def groups(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        table, others = [one for one in weights if one.shape[0] == 24], [one for one in weights if one.shape[0] != 24]
        assert len(table) == 1
        return torch.optim.SGD([{"params": others, "momentum": 0.9}, {"params": table, "lr": 0.5}], lr=1.0)

    run = federate(task(log), log, plan(table_noise="lazy"), optimizer=groups)
    assert run.rounds_done == 5


def test_parties_that_name_no_rows_are_refused_before_the_charge(tmp_path: Path) -> None:
    class Mute:
        def __init__(self, inner: Members) -> None:
            self.schema, self.silos, self.split, self.features = inner.schema, 1, "all rows", None
            self.backend, self.not_covered = inner.backend, inner.not_covered
            self.check, self.open, self.sums = inner.check, inner.open, inner.sums
            self.standing, self.restore = inner.standing, inner.restore

    rows, ledger = private_logs(tmp_path), new_ledger(tmp_path, epsilon=200.0)
    for found in (plan(table_noise="lazy"), adafest()):
        with pytest.raises(ValueError, match="needs parties that tell which rows their users read"):
            server.serve(task(rows), Mute(Members(rows)), found, ledger=ledger)
    assert ledger.history("small") == []
    assert server.serve(task(rows), Mute(Members(rows)), plan(), ledger=ledger).rounds_done == 5


def test_the_twin_without_privacy_is_the_dense_one(log: Logs) -> None:
    runs = [
        federate(task(log), log, twin(table_noise=noise), insecure_seed=3, optimizer=decaying)
        for noise in ("dense", "lazy")
    ]
    dense, lazy = (dict(one.model.named_parameters()) for one in runs)
    for name, one in dense.items():
        torch.testing.assert_close(lazy[name], one, rtol=1e-5, atol=1e-6)


def test_the_report_says_what_was_owed_and_what_the_server_sees(log: Logs) -> None:
    report = federate(task(log), log, plan(table_noise="lazy")).report()
    assert report.mechanism.table_noise == "lazy"
    assert any("when it is sent, and so has the last model" in one for one in report.with_status("enforced"))
    assert any("those that its cohort reads" in one and "server sees" in one for one in report.not_covered)
    assert "drawn and added in the numbers of the model" in report.mechanism.floating_point
    selected = federate(task(log), log, adafest()).report()
    assert selected.mechanism.other_noise_multipliers == (2.0,)
    assert any("follows from noised counts alone" in one for one in selected.with_status("enforced"))


# Selected rows


def adafest(**settings: Any) -> FederatedPlan:
    return plan(table_noise="adafest", selection_noise_multiplier=2.0, **settings)


def user_sums(log: Logs, users: list[int], *, model: nn.Module) -> UserSums:
    local = LocalTraining(task(log, model), log.schema, counting=True)
    state = first_state(model, plan())
    rows = np.concatenate([np.flatnonzero(log.units == user) for user in users] or [np.arange(0)])
    owners = np.repeat(np.arange(len(users)), [int((log.units == user).sum()) for user in users])
    draw = Draw(row_numbers=rows, owners=owners, units=len(users), sampled=len(users))
    return local.cohort_sums(log, draw, state.weights, clip_norm=0.5)


def counts_move_by(log: Logs) -> list[float]:
    """By how much each of 30 users moves the counts of both tables ."""
    model, everyone = TwoTables(), list(range(30))

    def flat(users: list[int]) -> Tensor:
        found = user_sums(log, users, model=model)
        return torch.cat([one.dense().flatten() for one in found.touched.values()])

    whole = flat(everyone)
    return [float((whole - flat([other for other in everyone if other != user])).norm()) for user in everyone]


def test_one_user_moves_the_counts_of_all_tables_together_by_one(log: Logs) -> None:
    moved = counts_move_by(log)
    assert max(moved) <= 1 + 1e-12
    assert min(moved) >= 1 - 1e-9


def test_a_user_who_counts_once_for_each_table_is_seen(log: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    from federation import cohort

    monkeypatch.setattr(cohort, "shares", lambda owners: 2**0.5 / np.sqrt(np.bincount(owners))[owners])
    assert max(counts_move_by(log)) > 1.4


def stepped(found: FederatedPlan, make: ServerOptimizer, count: int) -> Any:
    """Rounds on a wide table of zeros of which users touched rows 0 to 4, and the rows that each selected."""
    randomness, state, chosen = Randomness(), first_state(Wide(), found), []
    law = selection.selected_rows

    def noted(*given: Any, **named: Any) -> Tensor:
        chosen.append(law(*given, **named))
        return chosen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "selected_rows", noted)
        for _ in range(count):
            nothing = UserSums.nothing(state.weights, tables=[TABLE])
            rows = SparseSum(torch.arange(5), torch.full((5, 1), 3.0, dtype=torch.float64), ROWS)
            touched = SparseSum(torch.arange(5), torch.full((5, 1), 100.0, dtype=torch.float64), ROWS)
            sums = dataclasses.replace(nothing, users=100, tables={TABLE: rows}, touched={TABLE: touched})
            before = state.weights[TABLE].clone()
            state = after_round(state, sums, found, make, randomness)
            moved = (state.weights[TABLE] != before).flatten().nonzero().flatten()
            assert torch.equal(moved, chosen[-1])
    return state, chosen


SERVERS: dict[str, ServerOptimizer] = {
    "sgd": averaging,
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.5, momentum=0.9),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.01),
    "adagrad": lambda weights: torch.optim.Adagrad(weights, lr=0.1),
}


@pytest.mark.parametrize("name", [*SERVERS])
def test_a_round_changes_the_selected_rows_alone_whatever_the_server_optimizer(name: str) -> None:
    found = dataclasses.replace(adafest(), selection_threshold=6.0)
    _, chosen = stepped(found, SERVERS[name], 3)
    for rows in chosen:
        assert rows[:5].tolist() == [0, 1, 2, 3, 4]
        assert 5 < len(rows) < 200  # of 40,000 that nobody read, each passes three standard deviations: 54 of them


def selected_noise_holds() -> bool:
    """20,000 of the rows that nobody touched are selected: their noise is that of dense rounds."""
    found = dataclasses.replace(adafest(), selection_threshold=0.0)
    state, (rows,) = stepped(found, averaging, 1)
    values = state.weights[TABLE].flatten()[rows[5:]].double() * found.cohort
    statistic = float(values.square().sum()) / (found.noise_multiplier * found.clip_norm) ** 2
    return bool(stats.chi2.ppf(ALPHA / 2, len(values)) < statistic < stats.chi2.isf(ALPHA / 2, len(values)))


def test_selected_rows_get_noise_whether_a_user_touched_them_or_not() -> None:
    assert selected_noise_holds()


def test_too_little_noise_on_selected_rows_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Randomness.normal_like
    monkeypatch.setattr(
        Randomness, "normal_like", lambda self, one, *, noise_std: whole(self, one, noise_std=0.95 * noise_std)
    )
    assert not selected_noise_holds()


def test_the_twin_of_adafest_is_the_dense_one(log: Logs) -> None:
    runs = [federate(task(log), log, twin(table_noise=noise), insecure_seed=3) for noise in ("dense", "adafest")]
    dense, selected = (dict(one.model.named_parameters()) for one in runs)
    for name, one in dense.items():
        torch.testing.assert_close(selected[name], one, rtol=1e-5, atol=1e-6)


def test_an_optimizer_whose_rows_are_not_their_own_is_refused_for_adafest(log: Logs) -> None:
    with pytest.raises(ValueError, match="'adafest' and 'fest' step 'table.weight' with one of"):
        federate(task(log), log, adafest(), optimizer=lambda weights: torch.optim.Rprop(weights))


def test_a_private_adafest_run_learns_in_any_silo(log: Logs) -> None:
    silos = log.split(test_fraction=0.4)
    run = federate(task(log), silos, adafest(silos=2), optimizer=partial(torch.optim.Adam, lr=0.01))
    assert run.rounds_done == 5
    assert all(bool(one.isfinite().all()) for one in run.model.parameters())
