"""Tables: sparse sums, and noise that is owed. Lazy is dense in law, and nothing unflushed gets out."""

import copy
import dataclasses
import io
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from privads.batch import Batch
from privads.job import make_plan
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.models import Logistic, losses
from privads.models.layers import FusedTable
from privads.noise import Randomness
from privads.run_config import PlanTable
from privads.training import tables
from privads.training.defaults import default_optimizer
from privads.training.engine import PrivateEngine
from privads.training.fit import fit
from privads.training.owed import Debt, OwingTable, step_of
from privads.training.plan import TrainPlan
from privads.training.sampling import Draw
from privads.training.tables import LazyTables, Runs, RunsOfBatch, SparseSum, param_groups, sums_of_runs
from tests.privads.training.helpers import logs, new_ledger, small_plan

ALPHA = 1e-6
STEPS = 9


def lazy_plan(steps: int = STEPS, **settings: object) -> TrainPlan:
    return small_plan(steps=steps, table_noise="lazy", **settings)


@pytest.fixture
def log(tmp_path: Path) -> Logs:
    return logs(tmp_path)


# Sparse sums


def test_runs_are_the_places_of_equal_keys_in_order() -> None:
    runs = Runs.of(torch.tensor([5, 2, 5, 9, 2, 5]))
    assert runs.keys.tolist() == [2, 5, 9]
    assert runs.order.tolist() == [1, 4, 0, 2, 5, 3]
    assert runs.starts.tolist() == [0, 2, 5]
    assert [len(one) for one in (Runs.of(torch.zeros(0)).keys, Runs.of(torch.zeros(0)).starts)] == [0, 0]


def test_runs_of_a_batch_are_found_once_and_anew_when_the_keys_change() -> None:
    runs_of, keys = RunsOfBatch(), torch.tensor([5, 2, 5])
    first = runs_of(keys)
    assert runs_of(keys.detach().flatten()) is first  # the same numbers in the same place
    keys[0] = 2
    assert runs_of(keys).keys.tolist() == [2, 5]
    assert runs_of(torch.tensor([9, 9])).keys.tolist() == [9]
    assert runs_of(keys[1:]).keys.tolist() == [2, 5]
    runs_of.forget()
    assert runs_of(keys) is not first


def test_runs_found_by_numpy_are_those_that_torch_finds() -> None:
    keys = torch.randint(0, 2**31 - 1, (1000,)).repeat(3)[torch.randperm(3000)]
    ordered, order = torch.sort(keys, stable=True)
    found = Runs.of(keys)
    assert torch.equal(found.order, order)
    assert torch.equal(found.keys, torch.unique(keys))
    assert torch.equal(ordered[found.starts], found.keys)


def test_sums_of_runs_are_weighted_sums_of_the_values_in_each() -> None:
    values, keys, weights = torch.randn(6, 3), torch.tensor([5, 2, 5, 9, 2, 5]), torch.rand(6)
    runs = Runs.of(keys)
    found = sums_of_runs(values, runs.order, runs.starts, weights[runs.order])
    expected = torch.stack([(values * weights[:, None])[keys == key].sum(0) for key in (2, 5, 9)])
    assert torch.allclose(found, expected)


def test_adding_two_sparse_sums_adds_the_dense_ones() -> None:
    left = SparseSum(torch.tensor([1, 4]), torch.randn(2, 3), 6)
    right = SparseSum(torch.tensor([0, 4, 5]), torch.randn(3, 3), 6)
    both = left + right
    assert both.ids.tolist() == [0, 1, 4, 5]
    assert torch.allclose(both.dense(), left.dense() + right.dense())
    empty = SparseSum(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3), 6)
    assert torch.equal((left + empty).dense(), left.dense())


# Lazy is dense


class TwoTables(nn.Module):
    """A fused table beside an embedding that is read twice, under a network."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fused = FusedTable([field.buckets for field in schema.categorical.values()], 2, init_std=0.3)
        self.twice = nn.Embedding(24, 2)
        self.head = nn.Linear(7, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        ids = batch.ids.view(batch.rows, 2)
        product = self.twice(ids[:, 0]) * self.twice(input=ids[:, 1])
        x = torch.cat([self.fused(batch.ids, batch.offsets).flatten(1), product, batch.dense], dim=1)
        return {"click": self.head(x).squeeze(1)}


class FixedSampler:
    """The same batches for every engine; most rows of the tables are read now and then."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def draws(self, steps: int) -> Iterator[Draw]:
        rng = np.random.default_rng(5)
        for _ in range(steps):
            yield Draw(row_numbers=rng.integers(0, self._rows, 3), owners=np.arange(3), units=3, sampled=3)


def stream(step: int, shape: torch.Size) -> Tensor:
    """Noise number ``step`` of a parameter of this shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 * step + sum(shape)))


def rate(done: int) -> float:
    return 0.5 if done < 3 else 0.1 * (1 + done % 4)


LR, DECAY = 3.0, 0.05


def trained(log: Logs, plan: TrainPlan, plant: Callable[[LazyTables], None] = lambda _: None) -> dict[str, Tensor]:
    """The weights after a run in which every step's noise of every row comes from the fixed stream."""
    model = TwoTables(log.schema)
    sgd = torch.optim.SGD(model.parameters(), lr=LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(sgd, rate)
    engine = PrivateEngine(plan)
    _, optimizer, batches = engine.make_private(model, sgd, log, loss=losses.per_row)
    engine._source.sampler = FixedSampler(len(log.units))  # type: ignore[assignment]

    def dense(reference: Tensor, *, noise_std: float) -> Tensor:
        return noise_std * stream(engine.steps_done, reference.shape)

    def owed(table: OwingTable, rows: Tensor, since: Tensor, _: Randomness) -> Tensor:
        # the definition: theta_s = kept_s theta_{s-1} - lr_s noise_s, unrolled from each row's last settlement
        total = torch.zeros(len(rows), table.weight.shape[1])
        for step in range(table.debt.steps):
            lr = LR * rate(step)
            noise = plan.noise_multiplier * plan.clip_norm / plan.batch * stream(step, table.weight.shape)[rows]
            moved = (1 - lr * DECAY) * total - lr * noise
            total = torch.where((since <= step)[:, None], moved, total)
        return total

    optimizer._drawn_together = 0  # each parameter's noise has a stream of its own
    engine.randomness.normal_like = dense  # type: ignore[assignment,method-assign]
    if engine._tables is not None:
        for table in engine._tables._tables.values():
            table.noise_owed = partial(owed, table)  # type: ignore[method-assign]
        plant(engine._tables)
    for batch in batches:
        engine.backward(losses.per_row(model(batch), batch))
        optimizer.step()
        schedule.step()
    engine.finish()
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def both_agree(log: Logs, plant: Callable[[LazyTables], None] = lambda _: None) -> bool:
    plan = lazy_plan(clip_norm=0.2)
    reference = trained(log, dataclasses.replace(plan, table_noise="dense"))
    lazy = trained(log, plan, plant)
    return all(torch.allclose(lazy[name], one, rtol=1e-4, atol=1e-5) for name, one in reference.items())


def test_lazy_equals_dense_on_the_same_noise_stream_under_a_schedule_and_weight_decay(log: Logs) -> None:
    assert both_agree(log)


def forget_the_flush(lazy: LazyTables) -> None:
    lazy.flush = lambda: None  # type: ignore[method-assign]


def read_without_settling(lazy: LazyTables) -> None:
    lazy._before_read = None  # type: ignore[assignment,method-assign]
    for table in lazy._tables.values():
        modules = tables.tables_of(lazy._model)[table.weight]
        for module in modules:
            module._forward_pre_hooks.clear()


def halve_the_noise(lazy: LazyTables) -> None:
    for table in lazy._tables.values():
        owed = table.noise_owed
        table.noise_owed = lambda *found, owed=owed: 0.5 * owed(*found)  # type: ignore[method-assign]


def forget_who_was_settled(lazy: LazyTables) -> None:
    for table in lazy._tables.values():

        def again(rows: Tensor, randomness: Randomness, table: OwingTable = table) -> None:
            before = table.settled.clone()
            OwingTable.settle(table, rows, randomness)
            table.settled.copy_(before)

        table.settle = again  # type: ignore[method-assign]


def forget_the_decay(lazy: LazyTables) -> None:
    for _, debt in lazy._debts:
        add = debt.add
        debt.add = lambda *, kept, noise_std, add=add: add(kept=1.0, noise_std=noise_std)  # type: ignore[method-assign]


def forget_the_steps_own_decay(lazy: LazyTables) -> None:
    step = lazy.step

    def wrong(sums: dict[Tensor, Tensor | SparseSum], *, noise_std: float) -> None:
        scaled = {
            p: SparseSum(one.ids, one.values * step_of(lazy._optimizer.param_groups[0])[1], one.rows)
            if isinstance(one, SparseSum)
            else one
            for p, one in sums.items()
        }
        step(scaled, noise_std=noise_std)

    lazy.step = wrong  # type: ignore[method-assign]


FAULTS = [
    forget_the_flush,
    read_without_settling,
    halve_the_noise,
    forget_who_was_settled,
    forget_the_decay,
    forget_the_steps_own_decay,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda one: one.__name__)
def test_each_fault_of_lazy_noise_turns_the_comparison_red(log: Logs, fault: Callable[[LazyTables], None]) -> None:
    assert not both_agree(log, fault)


# The law of the noise that is owed

ROWS = 40_000
"""Two halves of 20,000: a chi-square test at ALPHA catches a 5 % error of the std with miss probability below 1e-6."""

RATES = (1.0, 0.5, 2.0, 0.1)

NOISE_STDS = (1.0, 3.0, 0.5, 2.0)
"""Of each step's sums: it changes with the clip norm and with the noise multiplier."""


def owed_after(plant: Callable[[LazyTables], None] = lambda _: None, *, decay: float = 0.0) -> tuple[Tensor, float]:
    """A table of zeros after steps without gradients: its upper half is read before every step, the rest never.

    Returns its weights, and the std by the definition, times the plan's batch.
    """
    plan = lazy_plan(len(RATES))
    model = nn.Embedding(ROWS, 1)
    nn.init.zeros_(model.weight)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=decay)
    lazy = LazyTables(model, sgd, plan, Randomness())
    plant(lazy)
    variance = 0.0
    for lr, noise_std in zip(RATES, NOISE_STDS, strict=True):
        sgd.param_groups[0]["lr"] = lr
        model(torch.arange(ROWS // 2))
        lazy.step({}, noise_std=noise_std)
        variance = (1 - lr * decay) ** 2 * variance + (lr * noise_std) ** 2
    lazy.detach()
    return model.weight.detach().flatten() * plan.batch, math.sqrt(variance)


def law_holds(values: Tensor, std: float) -> bool:
    """Chi-square of each half, and normality, each at ALPHA."""
    for half in values.double().numpy().reshape(2, -1):
        statistic = (half**2).sum() / std**2
        if not stats.chi2.ppf(ALPHA / 2, len(half)) < statistic < stats.chi2.isf(ALPHA / 2, len(half)):
            return False
        if stats.kstest(half / std, "norm").pvalue < ALPHA:
            return False
    return True


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_owed_noise_has_the_law_of_noise_paid_at_every_step(decay: float) -> None:
    assert law_holds(*owed_after(decay=decay))


def pay_at_the_current_rate(lazy: LazyTables) -> None:
    """As published code does: the noise of old steps at the learning rate of today."""
    for _, debt in lazy._debts:
        add = debt.add

        def wrong(*, kept: float, noise_std: float, debt: Debt = debt, add: Callable[..., None] = add) -> None:
            add(kept=kept, noise_std=noise_std)
            debt.variance[: debt.steps] = noise_std**2 * np.arange(debt.steps, 0, -1)

        debt.add = wrong  # type: ignore[method-assign]


def too_little(lazy: LazyTables) -> None:
    for _, debt in lazy._debts:
        debt.add = partial(_add_less, debt.add)  # type: ignore[method-assign]


def _add_less(add: Callable[..., None], *, kept: float, noise_std: float) -> None:
    add(kept=kept, noise_std=0.95 * noise_std)


def at_the_last_steps_std(lazy: LazyTables) -> None:
    """As if the clip norm had always been what it is now."""
    for _, debt in lazy._debts:
        debt.add = partial(_add_at_the_last, debt, debt.add)  # type: ignore[method-assign]


def _add_at_the_last(debt: Debt, add: Callable[..., None], *, kept: float, noise_std: float) -> None:
    add(kept=kept, noise_std=noise_std)
    lr = RATES[debt.steps - 1]
    squares = np.array(RATES[: debt.steps]) ** 2 * (noise_std / lr) ** 2
    debt.variance[: debt.steps] = np.cumsum(squares[::-1])[::-1]


@pytest.mark.parametrize(
    "fault", [too_little, pay_at_the_current_rate, at_the_last_steps_std], ids=lambda one: one.__name__
)
def test_wrong_owed_noise_is_seen(fault: Callable[[LazyTables], None]) -> None:
    assert not law_holds(*owed_after(fault))


def test_a_rows_payments_are_independent_of_each_other() -> None:
    paid = []
    model = nn.Embedding(ROWS, 1)
    nn.init.zeros_(model.weight)
    lazy = LazyTables(model, torch.optim.SGD(model.parameters(), lr=1.0), lazy_plan(2), Randomness())
    for _ in range(2):
        before = model.weight.detach().clone()
        lazy.step({}, noise_std=1.0)
        lazy.flush()
        paid.append((model.weight.detach() - before).flatten().double().numpy())
    correlation = (paid[0] * paid[1]).mean() / (paid[0].std() * paid[1].std()) * ROWS**0.5
    assert abs(correlation) < stats.norm.isf(ALPHA / 2)


# Nothing unflushed gets out


def started(log: Logs, steps: int = STEPS) -> tuple[PrivateEngine, nn.Module, torch.optim.Optimizer, Iterator[Batch]]:
    model, engine = TwoTables(log.schema), PrivateEngine(lazy_plan(steps))
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    _, optimizer, batches = engine.make_private(model, sgd, log, loss=losses.per_row)
    engine._source.sampler = FixedSampler(len(log.units))  # type: ignore[assignment]
    return engine, model, optimizer, iter(batches)


def step(engine: PrivateEngine, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    engine.backward(losses.per_row(model(batch), batch))
    optimizer.step()


def table_weights(model: nn.Module) -> Tensor:
    return torch.cat([model.fused.weight.detach(), model.twice.weight.detach()]).clone()  # type: ignore[union-attr]


def test_a_step_writes_to_the_rows_of_its_batch_alone(log: Logs) -> None:
    engine, model, optimizer, batches = started(log)
    before, batch = table_weights(model), next(batches)
    step(engine, model, optimizer, batch)
    changed = (table_weights(model) != before).any(1).nonzero().flatten()
    read = batch.ids.unique()
    assert set(changed.tolist()) <= set(read.tolist()) | set((24 + read).tolist())


@pytest.mark.parametrize("way", ["flush", "finish", "state_dict", "state_dict of the table"])
def test_after_a_flush_every_row_has_changed(log: Logs, way: str) -> None:
    engine, model, optimizer, batches = started(log)
    before = table_weights(model)
    step(engine, model, optimizer, next(batches))
    if way == "flush":
        engine.flush()
    elif way == "finish":
        engine.finish()
    elif way == "state_dict":
        model.state_dict()
    else:
        for module in (model.fused, model.twice):
            module.state_dict()  # type: ignore[operator]
    assert (table_weights(model) != before).all()


def test_a_state_dict_of_a_run_under_way_is_flushed(log: Logs) -> None:
    engine, model, optimizer, batches = started(log)
    before = model.state_dict()["twice.weight"].clone()
    step(engine, model, optimizer, next(batches))
    next(batches)
    saved = model.state_dict()["twice.weight"]
    assert (saved != before).all()
    engine.flush()
    assert torch.equal(model.state_dict()["twice.weight"], saved)  # nothing was left to pay


@pytest.mark.parametrize("training", [True, False])
def test_every_read_is_of_settled_rows(log: Logs, training: bool) -> None:
    engine, model, optimizer, batches = started(log)
    step(engine, model, optimizer, next(batches))
    model.train(training)
    with torch.no_grad():
        rows = torch.tensor([3, 3, 7, 20])
        read = model.twice(rows)  # type: ignore[operator]
    engine.flush()
    assert torch.equal(model.twice.weight[rows], read)  # type: ignore[union-attr,index]


def test_a_gradient_that_the_loop_left_on_a_table_never_reaches_its_rows(log: Logs) -> None:
    # Found in review: the inner optimizer took a plain step with whatever loss.backward() had put into weight.grad.
    engine, model, optimizer, batches = started(log)
    before, batch = table_weights(model), next(batches)
    found = losses.per_row(model(batch), batch)
    (1e6 * found.sum()).backward(retain_graph=True)  # type: ignore[no-untyped-call]
    engine.backward(found)
    optimizer.step()
    assert (table_weights(model) - before).abs().max() < 1.0


def test_a_step_that_is_interrupted_owes_its_noise_before_it_writes_its_sums(
    log: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Found in review: Ctrl-C after the sums were written and before they were owed let state_dict() show them bare.
    def interrupted(*arguments: object, **numbers: float) -> None:
        add(*arguments, **numbers)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    engine, model, optimizer, batches = started(log)
    before, batch, add = table_weights(model), next(batches), tables.add_step
    engine.backward(losses.per_row(model(batch), batch))
    monkeypatch.setattr(tables, "add_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    model.state_dict()
    assert (table_weights(model) != before).all()


def test_a_copy_or_a_pickle_of_a_model_that_owes_noise_is_refused_and_allowed_when_it_is_paid(log: Logs) -> None:
    engine, model, optimizer, batches = started(log)
    step(engine, model, optimizer, next(batches))
    with pytest.raises(RuntimeError, match=r"engine\.finish\(\) before copying"):
        copy.deepcopy(model)
    with pytest.raises(RuntimeError, match=r"engine\.finish\(\) before copying"):
        torch.save(model, io.BytesIO())
    engine.finish()
    assert torch.equal(copy.deepcopy(model).twice.weight, model.twice.weight)  # type: ignore[union-attr]


def test_the_model_is_plain_after_finish(log: Logs) -> None:
    engine, model, _, _ = started(log)
    engine.finish()
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._state_dict_pre_hooks
        assert not module._forward_hooks


def test_weights_changed_behind_the_steps_back_are_still_seen(log: Logs) -> None:
    engine, model, optimizer, batches = started(log)
    step(engine, model, optimizer, next(batches))
    batch = next(batches)
    engine.backward(losses.per_row(model(batch), batch))
    with torch.no_grad():
        model.twice.weight[0] += 1.0  # type: ignore[union-attr,index,operator]
    with pytest.raises(RuntimeError, match=r"outside optimizer\.step"):
        optimizer.step()


# What tables may be trained by


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
    ],
    ids=["Adam", "Adagrad", "momentum", "maximize"],
)
def test_a_stateful_optimizer_on_a_table_is_refused_and_nothing_spent(
    tmp_path: Path, make: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
) -> None:
    log, ledger = logs(tmp_path, public=False), new_ledger(tmp_path)
    model = Logistic(log.schema)
    with pytest.raises(ValueError, match=r"plain SGD on 'table.weight'.*param_groups"):
        PrivateEngine(lazy_plan(), ledger=ledger).make_private(model, make(model.parameters()), log)
    assert ledger.history("small") == []


def test_momentum_that_a_scheduler_brings_is_refused(log: Logs) -> None:
    engine, model, optimizer, batches = started(log)
    batch = next(batches)
    engine.backward(losses.per_row(model(batch), batch))
    optimizer.param_groups[0]["momentum"] = 0.9
    with pytest.raises(ValueError, match="plain SGD"):
        optimizer.step()


def test_a_sum_of_a_table_may_be_dense() -> None:
    model = nn.Embedding(4, 2)
    before = model.weight.detach().clone()
    lazy = LazyTables(model, torch.optim.SGD(model.parameters(), lr=2.0), lazy_plan(), Randomness())
    sums = torch.randn(4, 2)
    lazy.step({model.weight: sums}, noise_std=0.0)
    assert torch.allclose(model.weight, before - 2.0 / lazy_plan().batch * sums)


def test_a_learning_rate_that_comes_with_a_loaded_optimizer_state_counts() -> None:
    # load_state_dict puts new dictionaries in place of the groups
    model = nn.Embedding(4, 2)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    lazy = LazyTables(model, sgd, lazy_plan(), Randomness())
    sgd.load_state_dict({**sgd.state_dict(), "param_groups": [{**sgd.state_dict()["param_groups"][0], "lr": 3.0}]})
    before = model.weight.detach().clone()
    lazy.step({model.weight: torch.ones(4, 2)}, noise_std=0.0)
    assert torch.allclose(before - model.weight, torch.full((4, 2), 3.0 / lazy_plan().batch))


def test_the_report_says_that_the_debt_was_paid_and_what_the_author_asserts(log: Logs) -> None:
    run = fit(Logistic(log.schema), log, lazy_plan())
    assert any("owed of their noise was paid" in text for text in run.report().with_status("enforced"))
    assert run.report().verdict == "private"
    engine, model, optimizer, batches = started(log, steps=1)
    step(engine, model, optimizer, next(batches))
    assert any("no weight is shown while it owes" in text for text in engine.finish().report().with_status("asserted"))


def test_adam_may_train_the_network_beside_plain_tables(log: Logs) -> None:
    model, engine = TwoTables(log.schema), PrivateEngine(lazy_plan())
    adam = torch.optim.Adam(param_groups(model, table_lr=0.5), lr=0.1)
    _, optimizer, batches = engine.make_private(model, adam, log, loss=losses.per_row)
    step(engine, model, optimizer, next(iter(batches)))
    assert set(adam.state) == {model.head.weight, model.head.bias}


def test_the_default_optimizer_gives_tables_plain_steps_of_the_size_that_momentum_reaches(log: Logs) -> None:
    model = Logistic(log.schema)
    network, table = default_optimizer(model, lazy_plan()).param_groups
    assert (network["momentum"], table["momentum"]) == (0.9, 0.0)
    assert table["lr"] == pytest.approx(10 * network["lr"])
    assert table["params"] == [model.table.weight]


def test_lazy_noise_releases_the_last_iterate_and_refuses_an_average() -> None:
    assert lazy_plan().averaging == 0.0
    assert lazy_plan().event == dataclasses.replace(lazy_plan(), table_noise="dense").event
    with pytest.raises(ValueError, match="give averaging=0 with it, got 0.5"):
        lazy_plan(averaging=0.5)
    with pytest.raises(ValueError, match="table_noise must be 'dense', 'lazy', 'adafest' or 'fest', got 'none'"):
        small_plan(table_noise="none")


def test_a_run_toml_may_ask_for_lazy_noise(log: Logs) -> None:
    table = PlanTable(epsilon=5.0, delta=1e-5, unit="user", epochs=1.0, table_noise="lazy")
    assert make_plan(table, log.schema).table_noise == "lazy"


def test_a_decay_that_leaves_nothing_is_refused() -> None:
    model = nn.Embedding(4, 1)
    lazy = LazyTables(model, torch.optim.SGD(model.parameters(), lr=2.0, weight_decay=0.5), lazy_plan(), Randomness())
    with pytest.raises(ValueError, match=r"lr \* weight_decay of a table must be below 1, got 1"):
        lazy.step({}, noise_std=1.0)


def test_the_twin_without_privacy_is_the_ordinary_step(log: Logs) -> None:
    plan = TrainPlan.without_privacy(population=400, unit="user", batch=40, epochs=0.3, table_noise="lazy")
    reference = trained(log, dataclasses.replace(plan, table_noise="dense"))

    def own_noise(lazy: LazyTables) -> None:
        for table in lazy._tables.values():
            vars(table).pop("noise_owed")

    for name, one in trained(log, plan, own_noise).items():
        assert torch.allclose(one, reference[name], rtol=1e-5, atol=1e-6), name


# Memory


class LargestNew(TorchDispatchMode):
    """Notes the largest tensor that torch makes anew; views of what there is do not count."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self._known = {one.untyped_storage().data_ptr() for one in known}
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor) and not one.is_sparse:
                storage = one.untyped_storage()
                if storage.data_ptr() not in self._known:
                    self.largest = max(self.largest, storage.nbytes())
        return out


WIDTH = 8


class Large(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, WIDTH)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"click": self.table(batch.ids.view(batch.rows, 2)).sum((1, 2))}


def largest_tensor(log: Logs, plan: TrainPlan, rows: int) -> int:
    """Bytes of the largest new tensor, from the probe to the flush."""
    model, engine = Large(rows), PrivateEngine(plan)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    with LargestNew(list(model.parameters())) as noted:
        _, optimizer, batches = engine.make_private(model, sgd, log, loss=losses.per_row)
        source = iter(batches)
        for _ in range(2):
            step(engine, model, optimizer, next(source))
        engine.finish()
    return noted.largest


def test_lazy_makes_no_second_table_from_the_probe_to_the_flush(log: Logs) -> None:
    rows = 1_000_000
    assert largest_tensor(log, lazy_plan(), rows) == 4 * rows  # the index of settlements
    assert largest_tensor(log, small_plan(averaging=0.0), rows) == 4 * WIDTH * rows
