"""The engine: its order of doing things, its protocol, and the law of what it releases."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from accounting.budget import Budget, BudgetExceeded
from accounting.ledger import Ledger
from privads.batch import Batch
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.models import DCN, Logistic, losses
from privads.noise import Randomness
from privads.training import engine as engine_module
from privads.training.clipping import UnitGradients, UnsupportedModel
from privads.training.engine import PrivateEngine
from privads.training.fit import fit
from privads.training.optimizer import PlanOptimizer
from privads.training.plan import TrainPlan
from privads.training.tables import SparseSum, tables_of
from tests.privads.training.helpers import logs, new_ledger, schema, small_plan

ALPHA = 1e-6


class SpiedLogs(Logs):
    """Notes when its rows are first read."""

    events: list[str]

    @property
    def units(self) -> np.ndarray:
        self.events.append("rows read")
        return super().units


def spied_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[SpiedLogs, Ledger, list[str]]:
    """A private log and its ledger, and the list that notes the order of charge and reading."""
    log = logs(tmp_path, public=False)
    spied = SpiedLogs(log.path, log.schema)
    spied.events = events = []
    ledger = new_ledger(tmp_path)
    for name in ("reserve", "open_rows"):
        original = getattr(Ledger, name)
        monkeypatch.setattr(Ledger, name, lambda *a, _n=name, _o=original, **k: (events.append(_n), _o(*a, **k))[1])
    return spied, ledger, events


@pytest.fixture
def log(tmp_path: Path) -> Logs:
    return logs(tmp_path)


def started(
    log: Logs, plan: TrainPlan, *, model: nn.Module | None = None, lr: float = 1.0, **settings: object
) -> tuple[PrivateEngine, nn.Module, PlanOptimizer, object]:
    engine = PrivateEngine(plan, **settings)  # type: ignore[arg-type]
    chosen = Logistic(log.schema) if model is None else model
    inner = torch.optim.SGD(chosen.parameters(), lr=lr)
    return (engine, *engine.make_private(chosen, inner, log, loss=losses.per_row))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([one.detach().flatten().clone() for one in model.parameters()])


# The order: check, charge, open


def test_the_ledger_is_charged_before_the_first_row_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spied, ledger, events = spied_on(tmp_path, monkeypatch)
    started(spied, small_plan(), ledger=ledger)
    assert events[:3] == ["reserve", "open_rows", "rows read"]


def test_a_run_over_budget_is_refused_before_a_row_is_read(tmp_path: Path) -> None:
    log = logs(tmp_path, public=False)
    spied = SpiedLogs(log.path, log.schema)
    spied.events = []
    ledger = new_ledger(tmp_path, epsilon=4.0)
    with pytest.raises(BudgetExceeded):
        started(spied, small_plan(epsilon=5.0), ledger=ledger)
    assert spied.events == []
    assert ledger.balance("small").spent_epsilon == 0


@pytest.mark.parametrize("table_noise", ["dense", "lazy"])
def test_a_refused_charge_leaves_the_model_as_it_was(tmp_path: Path, table_noise: str) -> None:
    # Found in review: the hooks stayed, kept every later pass in memory, and under lazy noise refused a copy.
    log, ledger = logs(tmp_path, public=False), new_ledger(tmp_path, epsilon=1.0)
    model, before = Logistic(log.schema), torch.random.get_rng_state()
    with pytest.raises(BudgetExceeded):
        started(log, small_plan(epsilon=5.0, table_noise=table_noise), model=model, ledger=ledger)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())
    copy.deepcopy(model)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_charge_stays_when_the_loop_fails(tmp_path: Path) -> None:
    log, ledger = logs(tmp_path, public=False), new_ledger(tmp_path)
    _, _, _, batches = started(log, small_plan(), ledger=ledger)
    next(iter(batches))  # and then the process dies
    balance = ledger.balance("small")
    assert 4.9 < balance.spent_epsilon <= 5.0
    assert balance.open_entries == 1
    assert ledger.history("small")[0].state == "opened"


def test_a_finished_run_is_committed_with_its_whole_event(tmp_path: Path) -> None:
    log, ledger, plan = logs(tmp_path, public=False), new_ledger(tmp_path), small_plan()
    engine, model, optimizer, batches = started(log, plan, ledger=ledger)
    for batch in batches:
        engine.backward(losses.per_row(model(batch), batch))
        optimizer.step()
    engine.finish()
    entry = ledger.history("small")[0]
    assert entry.state == "committed"
    assert f'"count":{plan.steps}' in entry.event


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"public": False, "ledger": None}, "needs its ledger"),
        ({"public": False, "insecure_seed": 1}, "insecure_seed is refused"),
        ({"public": False, "private": False}, "is not public"),
        ({"unit": "session"}, "unit must be 'example' or 'user'"),
        ({"path": "nowhere.parquet"}, "no such file"),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_spent(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    public = bool(change.get("public", True))
    log = logs(tmp_path, public=public)
    if "path" in change:
        log = Logs(str(change["path"]), log.schema)
    ledger = new_ledger(tmp_path)
    plan = small_plan(unit=str(change.get("unit", "user")))
    if not change.get("private", True):
        plan = TrainPlan.without_privacy(population=400, unit="user")
    with pytest.raises(ValueError, match=message):
        started(
            log,
            plan,
            ledger=None if "ledger" in change else ledger,
            insecure_seed=change.get("insecure_seed"),
        )
    assert ledger.history("small") == []


def test_an_optimizer_with_foreign_parameters_is_refused(log: Logs) -> None:
    engine, model = PrivateEngine(small_plan()), Logistic(log.schema)
    stranger = nn.Parameter(torch.zeros(3))
    with pytest.raises(UnsupportedModel, match="the optimizer must hold parameters of the model"):
        engine.make_private(model, torch.optim.SGD([*model.parameters(), stranger], lr=1.0), log)


# The protocol


def test_the_batches_are_the_plans_steps_and_can_be_read_once(log: Logs) -> None:
    engine, model, optimizer, batches = started(log, small_plan(steps=7))
    assert len(batches) == 7
    seen = 0
    for batch in batches:
        engine.backward(losses.per_row(model(batch), batch))
        optimizer.step()
        seen += 1
    assert seen == 7
    with pytest.raises(RuntimeError, match="can be read once"):
        iter(batches)


def test_backward_twice_for_one_batch_raises(log: Logs) -> None:
    engine, model, _, batches = started(log, small_plan())
    batch = next(iter(batches))
    engine.backward(losses.per_row(model(batch), batch))
    with pytest.raises(RuntimeError, match="once for each batch"):
        engine.backward(losses.per_row(model(batch), batch))


def test_a_step_without_backward_or_a_second_step_raises(log: Logs) -> None:
    engine, model, optimizer, batches = started(log, small_plan())
    batch = next(iter(batches))
    with pytest.raises(RuntimeError, match="comes once for each batch"):
        optimizer.step()
    engine.backward(losses.per_row(model(batch), batch))
    optimizer.step()
    with pytest.raises(RuntimeError, match="comes once for each batch"):
        optimizer.step()


def test_skipping_a_batch_raises_because_skipping_would_be_a_choice_made_by_private_rows(log: Logs) -> None:
    _, _, _, batches = started(log, small_plan())
    source = iter(batches)
    next(source)
    with pytest.raises(RuntimeError, match=r"engine.backward\(loss\) and then optimizer.step"):
        next(source)


@pytest.mark.parametrize("shape", [lambda x: x.mean(), lambda x: x[:, None], lambda x: x[:-1]])
def test_a_loss_of_another_shape_than_rows_is_refused(log: Logs, shape: Callable[[Tensor], Tensor]) -> None:
    engine, model, _, batches = started(log, small_plan())
    batch = next(iter(batches))
    with pytest.raises(ValueError, match=r"loss must have shape \(rows,\)"):
        engine.backward(shape(losses.per_row(model(batch), batch)))


def test_the_model_is_plain_again_after_finish(log: Logs) -> None:
    engine, model, _, _ = started(log, small_plan())
    run = engine.finish()
    assert run.model is model
    assert not any(module._forward_hooks for module in model.modules())
    assert not model.training


def test_an_engine_serves_one_run(log: Logs) -> None:
    engine, model, _, _ = started(log, small_plan())
    with pytest.raises(RuntimeError, match="called once"):
        engine.make_private(model, torch.optim.SGD(model.parameters(), lr=1.0), log)


# What a step releases


def one_step(log: Logs, plan: TrainPlan, model: nn.Module, seed: int | None = None) -> Tensor:
    """The change of the weights in one step with learning rate 1."""
    engine, model, optimizer, batches = started(log, plan, model=model, insecure_seed=seed)
    before = weights(model)
    batch = next(iter(batches))
    engine.backward(losses.per_row(model(batch), batch))
    optimizer.step()
    return before - weights(model)


def noise_is_right(folder: Path, plan: TrainPlan, scale: float = 1.0) -> bool:
    """Zero gradients leave noise of std noise_multiplier clip_norm / batch: chi-square at ALPHA, over 20,000 samples
    (a 5 % error of the std is missed with probability below 1e-6)."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 20_000, bias=False)

        def forward(self, batch: Batch) -> dict[str, Tensor]:
            return {"click": 0.0 * self.layer(batch.dense).sum(1)}

    values = one_step(logs(folder), plan, Wide()).numpy().astype(float) * scale
    noise_std = plan.noise_multiplier * plan.clip_norm / plan.batch
    statistic = (values**2).sum() / noise_std**2
    return bool(stats.chi2.ppf(ALPHA / 2, len(values)) < statistic < stats.chi2.isf(ALPHA / 2, len(values)))


def test_noise_has_the_plans_std_divided_by_the_public_batch(tmp_path: Path) -> None:
    assert noise_is_right(tmp_path, small_plan(clip_norm=0.7))


@pytest.mark.parametrize("fault", [0.5, 0.95, 1.05])
def test_wrong_noise_is_seen(tmp_path: Path, fault: float) -> None:
    assert not noise_is_right(tmp_path, small_plan(clip_norm=0.7), scale=fault)


def test_every_parameter_gets_noise_also_where_no_row_went(log: Logs) -> None:
    model = DCN(log.schema)
    change = one_step(log, small_plan(), model)
    assert (change != 0).all()


def test_an_empty_draw_still_adds_noise(log: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan()
    engine, model, optimizer, batches = started(log, plan)
    monkeypatch.setattr(engine._source.sampler, "draw", _empty_draw)
    before = weights(model)
    batch = next(iter(batches))
    assert batch.rows == 1
    assert float(batch.weights.sum()) == 0.0
    engine.backward(losses.per_row(model(batch), batch) + 5.0 * weights_of(model).sum())
    optimizer.step()
    change = weights(model) - before
    assert (change != 0).all()
    assert float(change.abs().max()) < 10 * plan.noise_multiplier * plan.clip_norm / plan.batch


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([one.flatten() for one in model.parameters()])


def truncated_plan(**changes: object) -> TrainPlan:
    settings = {"population": 400, "unit": "user", "batch": 40, "epochs": 0.5, "averaging": 0.0}
    return TrainPlan.without_privacy(
        **{**settings, "sampler": "truncated-poisson", "most_units": 500, "largest_batch": 48, **changes}  # type: ignore[arg-type]
    )


def test_batches_of_a_truncated_plan_have_one_shape_and_padding_moves_nothing(log: Logs) -> None:
    plan = truncated_plan()
    engine, model, optimizer, batches = started(log, plan)
    shapes = set()
    for batch in batches:
        shapes.add((batch.rows, len(batch.ids), len(engine._part.owners), engine._part.units))
        real, before = engine._part.rows, weights(model)
        loss = losses.per_row(model(batch), batch) + 5.0 * model(batch)["click"]  # not 0 on padding
        total = torch.autograd.grad(loss[:real].sum(), list(model.parameters()), retain_graph=True)
        expected = torch.cat([one.flatten() for one in total]) / plan.batch
        engine.backward(loss)
        optimizer.step()
        assert torch.allclose(before - weights(model), expected, atol=1e-5)
    assert shapes == {(48 * 8, 48 * 8 * 2, 48 * 8, 48)}


def test_a_truncated_batch_of_nobody_still_adds_noise(log: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(epsilon=50.0, delta=1e-5, unit="user")
    plan = dataclasses.replace(truncated_plan(), budget=budget, clip_norm=1.0, noise_multiplier=5.0)
    engine, model, optimizer, batches = started(log, plan)
    monkeypatch.setattr(engine._source.sampler, "among", np.zeros(0, dtype=np.int64))
    before = weights(model)
    batch = next(iter(batches))
    assert float(batch.weights.sum()) == 0.0
    engine.backward(losses.per_row(model(batch), batch))
    optimizer.step()
    assert (weights(model) != before).all()


def _empty_draw() -> object:
    from privads.training.sampling import Draw

    none = np.zeros(0, dtype=np.int64)
    return Draw(row_numbers=none, owners=none, units=0, sampled=0)


def test_the_divisor_is_the_plans_batch_and_not_the_drawn_one(log: Logs) -> None:
    # The same weights and a noise-free twin: doubling the population halves q, but the divisor stays plan.batch
    twin = TrainPlan.without_privacy(population=400, unit="user", batch=400, epochs=1, rows_per_unit=5)
    change = one_step(log, twin, Logistic(log.schema))
    batch = log.take(np.arange(len(log.units)))
    model = Logistic(log.schema)
    total = torch.autograd.grad(losses.per_row(model(batch), batch).sum(), list(model.parameters()))
    expected = torch.cat([one.flatten() for one in total]) / 400
    assert torch.allclose(change, expected, atol=1e-6)


def test_one_unit_moves_a_step_by_at_most_the_clip_norm_over_the_batch(tmp_path: Path) -> None:
    import pyarrow.parquet

    path = Path(logs(tmp_path).path)
    table = pyarrow.parquet.read_table(path)
    without = tmp_path / "without.parquet"
    keep = np.array([user != "u7" for user in table["user"].to_pylist()])
    pyarrow.parquet.write_table(table.filter(keep), without)
    plan = small_plan(clip_norm=0.05)
    sums = []
    for file in (path, without):
        log = Logs(file, schema())
        model = Logistic(log.schema)
        gradients, batch = UnitGradients(model), log.take(np.arange(len(log.units)))
        owners = torch.from_numpy(log.units.copy())
        found = gradients.clipped_sums(
            losses.per_row(model(batch), batch), owners, units=int(owners.max()) + 1, clip_norm=plan.clip_norm
        ).sums
        every = [found[p] for p in model.parameters()]
        sums.append(torch.cat([(one.dense() if isinstance(one, SparseSum) else one).flatten() for one in every]))
    moved = float((sums[0] - sums[1]).norm())
    assert 0.9 * plan.clip_norm < moved <= plan.clip_norm * (1 + 1e-5)


def test_an_insecure_seed_repeats_a_run_and_its_absence_does_not(log: Logs) -> None:
    plan = small_plan()
    assert torch.equal(*(one_step(log, plan, Logistic(log.schema), seed=3) for _ in range(2)))
    assert not torch.equal(*(one_step(log, plan, Logistic(log.schema)) for _ in range(2)))


def test_the_released_weights_are_the_mean_of_the_last_iterates(log: Logs) -> None:
    engine, model, optimizer, batches = started(log, small_plan(steps=8, averaging=0.5))
    iterates = []
    for batch in batches:
        engine.backward(losses.per_row(model(batch), batch))
        optimizer.step()
        iterates.append(weights(model))
    engine.finish()
    assert torch.allclose(weights(model), torch.stack(iterates[4:]).mean(0), atol=1e-6)


def test_without_averaging_the_last_iterate_is_released(log: Logs) -> None:
    engine, model, optimizer, batches = started(log, small_plan(steps=4, averaging=0.0))
    for batch in batches:
        engine.backward(losses.per_row(model(batch), batch))
        optimizer.step()
    last = weights(model)
    engine.finish()
    assert torch.equal(weights(model), last)


# Found by a reviewer: ways around the plan


@pytest.mark.parametrize("scheduler", ["ExponentialNoise", "ExponentialGradClip"])
def test_opacus_schedulers_cannot_turn_the_noise_down(log: Logs, scheduler: str) -> None:
    from opacus import schedulers

    _, _, optimizer, _ = started(log, small_plan())
    with pytest.raises(ValueError, match="as the plan says"):
        getattr(schedulers, scheduler)(optimizer, gamma=0.1).step()


def test_the_plans_steps_cannot_be_taken_twice(log: Logs) -> None:
    engine, model, optimizer, batches = started(log, small_plan(steps=2))
    for batch in batches:
        engine.backward(losses.per_row(model(batch), batch))
        optimizer.step()
    assert list(engine._draws()) == []


def test_weights_changed_behind_the_steps_back_are_seen(log: Logs) -> None:
    engine, model, optimizer, batches = started(log, small_plan())
    batch = next(iter(batches))
    engine.backward(losses.per_row(model(batch), batch))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.original_optimizer.step()  # a step without noise
    with pytest.raises(RuntimeError, match=r"outside optimizer\.step"):
        optimizer.step()


def test_a_frozen_weight_written_during_the_run_is_put_back(log: Logs) -> None:
    class Frozen(Logistic):
        def __init__(self, facts: object) -> None:
            super().__init__(facts)  # type: ignore[arg-type]
            self.codebook = nn.Linear(1, 1, bias=False)
            self.codebook.weight.requires_grad_(False)

    model = Frozen(log.schema)
    inner = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1.0)
    engine = PrivateEngine(small_plan())
    _, _, batches = engine.make_private(model, inner, log)
    before = model.codebook.weight.clone()
    batch = next(iter(batches))
    with torch.no_grad():
        model.codebook.weight.add_(batch.dense.mean())
    engine.finish()
    assert torch.equal(model.codebook.weight, before)


def test_torchs_seed_does_not_reach_dropout_and_comes_back_after_the_run(log: Logs) -> None:
    draws = []
    for _ in range(2):
        model = Logistic(log.schema)
        torch.manual_seed(0)
        state = torch.random.get_rng_state()
        engine, _, _, _ = started(log, small_plan(), model=model)
        draws.append(torch.rand(4))
        engine.finish()
        assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(*draws)


# Other noises and clip norms


class Recorded:
    """Draws zeros, and notes the shape and the std of each draw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.draws: list[tuple[tuple[int, ...], float]] = []
        monkeypatch.setattr(Randomness, "normal_like", lambda _, like, *, noise_std: self.zeros(like, noise_std))

    def zeros(self, like: Tensor, noise_std: float | Tensor) -> Tensor:
        if not isinstance(noise_std, Tensor):
            self.draws.append((tuple(like.shape), noise_std))
        return torch.zeros_like(like)


def trained(log: Logs, plan: TrainPlan, *, seed: int = 5) -> tuple[PrivateEngine, nn.Module]:
    torch.manual_seed(0)
    engine, model, optimizer, batches = started(log, plan, model=DCN(log.schema), insecure_seed=seed)
    for batch in batches:
        engine.backward(losses.per_row(model(batch), batch))
        optimizer.step()
    engine.finish()
    return engine, model


def counted_without_a_choice(model: nn.Module, *_: object, **__: object) -> dict[Tensor, SparseSum]:
    ids = torch.zeros(0, dtype=torch.int64)
    return {table: SparseSum(ids, torch.zeros(0, 1), len(table)) for table in tables_of(model)}


@pytest.mark.parametrize("table_noise", ["adafest", "fest"])
def test_selecting_every_row_is_dense_training(log: Logs, monkeypatch: pytest.MonkeyPatch, table_noise: str) -> None:
    Recorded(monkeypatch)
    monkeypatch.setattr(engine_module, "touched_by_all", counted_without_a_choice)  # else the batches are others
    settings = {"clip_norm": 0.2, "averaging": 0.0}
    _, dense = trained(log, small_plan(**settings))
    _, selected = trained(log, small_plan(table_noise=table_noise, selection_threshold=-1e12, **settings))
    assert torch.allclose(weights(selected), weights(dense), atol=1e-6)


def test_rows_that_too_few_units_use_are_left_alone_and_the_network_is_not(log: Logs) -> None:
    plan = small_plan(table_noise="adafest", selection_threshold=1e12)
    torch.manual_seed(0)
    before = DCN(log.schema)
    _, model = trained(log, plan)
    assert torch.equal(model.table.weight, before.table.weight)
    assert not torch.equal(model.linear.weight, before.linear.weight)


def test_what_padding_reads_is_not_counted(log: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(table_noise="adafest")
    engine, model, optimizer, batches = started(log, plan, model=DCN(log.schema))
    monkeypatch.setattr(engine._source.sampler, "draw", _empty_draw)
    seen = []
    monkeypatch.setattr(engine._tables, "select", lambda _, counts: seen.append(counts) or counts.ids[:0])
    batch = next(iter(batches))
    engine.backward(losses.per_row(model(batch), batch))
    optimizer.step()
    assert float(seen[0].values.sum()) == 0.0


def test_fest_reads_the_log_after_the_charge_and_chooses_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spied, ledger, events = spied_on(tmp_path, monkeypatch)
    engine, model, *_ = started(spied, small_plan(table_noise="fest"), model=DCN(spied.schema), ledger=ledger)
    assert events[:3] == ["reserve", "open_rows", "rows read"]
    nothing = SparseSum(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1), len(model.table.weight))
    chosen = [engine._tables.select(model.table.weight, nothing) for _ in range(2)]
    assert torch.equal(*chosen)
    assert '"noise_multiplier"' in ledger.history("small")[0].event


def test_the_twin_of_a_selecting_plan_is_the_ordinary_sparse_step(log: Logs) -> None:
    shared = {"population": 400, "unit": "user", "batch": 40, "epochs": 1.0, "averaging": 0.0}
    plans = [TrainPlan.without_privacy(**shared, table_noise=noise) for noise in ("dense", "adafest", "fest")]
    dense, adafest, fest = (weights(trained(log, plan)[1]) for plan in plans)
    assert torch.allclose(adafest, dense, atol=1e-6)
    assert torch.allclose(fest, dense, atol=1e-6)


def test_the_noise_is_that_of_the_clip_norm_in_use(log: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch)
    plan = small_plan(clip_norm=0.05, clip_quantile=0.9, averaging=0.0, steps=4)
    engine, model, optimizer, batches = started(log, plan)
    norms = []
    for batch in batches:
        norms.append(engine._clip.now)
        engine.backward(losses.per_row(model(batch), batch))
        recorded.draws.clear()
        optimizer.step()
        *gradients, (shape, count_std) = recorded.draws
        assert {std for _, std in gradients} == {plan.noise_multiplier * norms[-1]}
        assert (shape, count_std) == ((1,), 0.5 * plan.count_noise_multiplier)
    assert norms == sorted(set(norms))  # nearly all units are clipped, so it grows


def test_a_lazy_table_owes_the_noise_of_each_steps_clip_norm(log: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(clip_norm=0.05, clip_quantile=0.9, table_noise="lazy", steps=3)
    engine, model, optimizer, batches = started(log, plan)
    expected = 0.0
    for batch in batches:
        expected += (plan.noise_multiplier * engine._clip.now / plan.batch) ** 2
        engine.backward(losses.per_row(model(batch), batch))
        optimizer.step()
    (_, debt), *_ = engine._tables._debts
    assert debt.variance[0] == pytest.approx(expected)


def test_only_units_of_the_log_are_counted_as_clipped_or_not(log: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(clip_norm=0.05, clip_quantile=0.9, sampler="truncated-poisson", most_units=2000, epsilon=50.0)
    engine, model, optimizer, batches = started(log, plan)
    counted = []
    monkeypatch.setattr(engine._clip, "follow", counted.append)
    batch = next(iter(batches))
    sampled = engine._part.sampled
    engine.backward(losses.per_row(model(batch), batch))
    optimizer.step()
    assert len(counted[0]) == sampled < engine._part.units


def test_features_of_other_rows_are_refused_before_anything_is_charged(tmp_path: Path) -> None:
    log, ledger = logs(tmp_path, public=False), new_ledger(tmp_path, unit="example")
    facts = log.schema.model_dump()
    facts["numeric"]["bid"]["history"] = {"rows": 2}
    made = Logs(log.path, Schema.load(facts))
    with pytest.raises(ValueError, match="'bid' is made from other rows.*plan with records = 5, or protect 'user'"):
        started(made, small_plan(unit="example"), ledger=ledger)
    assert ledger.history("small") == []
    run = fit(Logistic(made.schema), made, small_plan(unit="example", records=5), ledger=ledger)
    report = run.report()
    assert report.guarantee is not None
    assert "the at most 2 later rows that were made with it" in report.guarantee.neighbors_definition
    assert ("asserted", "a row's values enter at most 2 later rows") in {(a.status, a.text) for a in report.assumptions}


def test_a_secure_run_draws_all_its_noise_from_sums_and_says_so(log: Logs) -> None:
    run = fit(Logistic(log.schema), log, small_plan(), secure=True)
    mechanism = run.report().mechanism
    assert "sum of four" in mechanism.randomness
    assert "against attacks" in mechanism.floating_point
    with pytest.raises(ValueError, match="leave out insecure_seed, or secure"):
        PrivateEngine(small_plan(), insecure_seed=1, secure=True)


def test_a_loader_that_makes_its_own_batches_is_refused(log: Logs) -> None:
    loader = torch.utils.data.DataLoader(list(range(10)), batch_size=2, shuffle=True)
    model = Logistic(log.schema)
    with pytest.raises(ValueError, match=r"a DataLoader is no source of rows.*shuffled or in order"):
        PrivateEngine(small_plan()).make_private(model, torch.optim.SGD(model.parameters(), lr=1.0), loader)  # type: ignore[arg-type]


def test_the_mean_of_a_units_rows_is_clipped_where_the_plan_says_so(log: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    Recorded(monkeypatch)
    plan = TrainPlan.for_budget(
        Budget(epsilon=50.0, delta=1e-5, unit="user"), population=400, batch=400, epochs=1, clip_norm=0.3, averaging=0.0
    )
    change = one_step(log, dataclasses.replace(plan, combined="mean"), Logistic(log.schema))
    expected = torch.zeros_like(change)
    for user in range(400):  # the definition: one unit's rows at a time
        batch, model = log.take(np.flatnonzero(log.units == user)), Logistic(log.schema)
        loss = losses.per_row(model(batch), batch).mean()
        gradient = torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(model.parameters()))])
        expected += gradient * min(1.0, 0.3 / float(gradient.norm())) / 400
    assert torch.allclose(change, expected, atol=1e-5)
    summed = one_step(log, plan, Logistic(log.schema))
    assert not torch.allclose(summed, expected, atol=1e-3)
