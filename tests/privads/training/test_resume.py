"""A resumed run goes on as if nothing had happened, with fresh randomness, and pays for every execution."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from accounting.accountant import epsilon
from accounting.budget import Budget, BudgetExceeded
from accounting.ledger import Ledger, LedgerError
from accounting.mechanisms import from_json
from accounting.report.anchor import find_entries
from privads.logs.logs import Logs
from privads.models import DCN, Logistic, losses
from privads.noise import Randomness
from privads.training import working
from privads.training.engine import PrivateEngine
from privads.training.fit import Checkpoint, fit
from privads.training.plan import TrainPlan
from privads.training.run import Run
from privads.training.tables import LazyTables
from privads.training.working import CheckpointError
from tests.privads.training.helpers import USERS, logs, new_ledger, small_plan

STEPS, KILLED_AFTER = 6, 4


def named(one: object) -> str:
    """The id of a parameter: a function by its name, for its address is another one in each process."""
    return re.sub(r"<function (\w+) at \w+>", r"\1", str(one))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tmp_path / "secret" / "run.checkpoint"


def whole_batches(**settings: object) -> TrainPlan:
    """Every unit is in every batch with all its rows: without noise nothing is left to chance."""
    budget = Budget(epsilon=50.0, delta=1e-5, unit="user")
    return TrainPlan.for_budget(budget, population=USERS, batch=USERS, epochs=STEPS, **settings)  # type: ignore[arg-type]


def adagrad(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(model.parameters(), lr=0.1)


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)


def plain(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.01)


class Killed(Exception):  # noqa: N818
    """Stands for a process that ends."""


def run(
    log: Logs,
    plan: TrainPlan,
    make: Callable[[nn.Module], torch.optim.Optimizer] = plain,
    *,
    ledger: Ledger | None = None,
    save: Path | None = None,
    killed_after: int | None = None,
    resume: Path | None = None,
    shown: bool = False,
) -> Run:
    torch.manual_seed(0)
    model = DCN(log.schema, tower=(4,))
    engine = PrivateEngine(plan, ledger=ledger)
    _, optimizer, batches = engine.make_private(
        model, make(model), log, loss=losses.per_row, resume_from=resume, shown=shown
    )
    for batch in batches:
        engine.backward(losses.per_row(model(batch), batch))
        optimizer.step()
        if save is not None and engine.may_save:
            engine.save(save)
        if engine.steps_done == killed_after:
            raise Killed
    return engine.finish()


def killed(log: Logs, plan: TrainPlan, make: Callable[..., torch.optim.Optimizer] = plain, **settings: object) -> None:
    with pytest.raises(Killed):
        run(log, plan, make, killed_after=KILLED_AFTER, **settings)  # type: ignore[arg-type]


def weights(found: Run) -> Tensor:
    return torch.cat([one.detach().flatten() for one in found.model.parameters()])


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Randomness, "normal_like", lambda _, like, *, noise_std: torch.zeros_like(like))
    return iter(())


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({}, momentum),
        ({"averaging": 0.6}, adagrad),
        ({"table_noise": "lazy"}, plain),
        ({"table_noise": "adafest", "selection_threshold": 0.0}, adagrad),
        ({"table_noise": "fest", "selection_threshold": 0.0}, momentum),
        ({"clip_quantile": 0.8, "clip_norm": 0.05}, plain),
        ({"rows_at_once": 100, "clipping": "per-group"}, plain),
    ],
    ids=named,
)
@pytest.mark.usefixtures("silent")
def test_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, checkpoint: Path, settings: dict[str, object], make: Callable[..., torch.optim.Optimizer]
) -> None:
    log, plan = logs(tmp_path), whole_batches(**settings)
    expected = run(log, plan, make)
    killed(log, plan, make, save=checkpoint)
    found = run(log, plan, make, resume=checkpoint)
    assert torch.allclose(weights(found), weights(expected), atol=1e-6)
    assert found.facts.steps_done == STEPS


@pytest.mark.parametrize("lost", ["optimizer", "average", "clip_norm", "steps_done"])
@pytest.mark.usefixtures("silent")
def test_a_checkpoint_that_lost_a_part_is_seen(tmp_path: Path, checkpoint: Path, lost: str) -> None:
    log = logs(tmp_path)
    plan = whole_batches(clip_quantile=0.8, clip_norm=0.05, averaging=0.6)
    expected = weights(run(log, plan, momentum))
    killed(log, plan, momentum, save=checkpoint)
    state = working.read(checkpoint)
    nothing = {"optimizer": momentum(DCN(log.schema, tower=(4,))).state_dict(), "average": [], "clip_norm": 0.05}
    working.write(checkpoint, {**state, lost: {**nothing, "steps_done": 3}[lost]})
    assert not torch.allclose(weights(run(log, plan, momentum, resume=checkpoint)), expected, atol=1e-6)


# Randomness is fresh


def test_two_resumes_from_one_checkpoint_draw_other_batches_and_other_noise(tmp_path: Path, checkpoint: Path) -> None:
    log, plan = logs(tmp_path), small_plan(steps=STEPS)
    killed(log, plan, save=checkpoint)
    one, two = (weights(run(log, plan, resume=checkpoint)) for _ in range(2))
    assert (one != two).all()


def test_a_checkpoint_holds_no_state_of_a_generator(tmp_path: Path, checkpoint: Path) -> None:
    log = logs(tmp_path)
    killed(log, small_plan(steps=STEPS), save=checkpoint)
    state = working.read(checkpoint)
    known = {
        "steps_done",
        "seconds",
        "clip_norm",
        "average",
        "used",
        "selected",
        "entry",
        "lease",
        "resumptions",
        "note",
        "places",
    }
    assert set(state) == known | {"plan", "schema", "optimizer_kind", "weights", "optimizer"}


def test_a_run_with_an_insecure_seed_is_not_resumed(tmp_path: Path, checkpoint: Path) -> None:
    log, plan = logs(tmp_path), small_plan(steps=STEPS)
    killed(log, plan, save=checkpoint)
    model = DCN(log.schema, tower=(4,))
    engine = PrivateEngine(plan, insecure_seed=1)
    with pytest.raises(ValueError, match="fresh randomness"):
        engine.make_private(model, plain(model), log, resume_from=checkpoint)
    engine = PrivateEngine(plan, insecure_seed=1)
    engine.make_private(model, plain(model), log)
    with pytest.raises(ValueError, match="repeated, not resumed"):
        engine.save(checkpoint)


# What leaves is flushed


def unread_rows_moved(log: Logs, checkpoint: Path) -> bool:
    """Whether the saved tables' rows that no batch read hold their noise."""
    torch.manual_seed(0)
    before = DCN(log.schema, tower=(4,)).table.weight.detach()
    with pytest.raises(Killed):
        run(log, small_plan(steps=STEPS, table_noise="lazy"), save=checkpoint, killed_after=1)
    return bool((working.read(checkpoint)["weights"]["table.weight"] != before).all())


def test_a_lazy_runs_checkpoint_is_flushed(tmp_path: Path, checkpoint: Path) -> None:
    assert unread_rows_moved(logs(tmp_path), checkpoint)


def test_a_forgotten_flush_is_seen(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LazyTables, "_before_saving", lambda *_: None)
    assert not unread_rows_moved(logs(tmp_path), checkpoint)


# What it costs


def private(tmp_path: Path, *, epsilon: float = 20.0) -> tuple[Logs, Ledger]:
    return logs(tmp_path, public=False), new_ledger(tmp_path, epsilon=epsilon)


def test_a_first_resume_costs_nothing_and_a_second_one_the_steps_that_remain(tmp_path: Path, checkpoint: Path) -> None:
    log, ledger = private(tmp_path)
    plan = small_plan(steps=STEPS)
    killed(log, plan, ledger=ledger, save=checkpoint)
    kept = checkpoint.read_bytes()
    spent = ledger.balance("small").spent_epsilon
    first = run(log, plan, ledger=ledger, resume=checkpoint)
    assert ledger.balance("small").spent_epsilon == spent
    assert [one.state for one in ledger.history("small")] == ["committed"]
    assert first.report().assumptions[-1].text.startswith("resumed after step 4 under the run's own charge")

    checkpoint.write_bytes(kept)
    second = run(log, plan, ledger=ledger, resume=checkpoint)
    again = ledger.history("small")[1]
    rest = epsilon(plan.event_of_rest(KILLED_AFTER), delta=1e-5).upper
    assert ledger.balance("small").spent_epsilon == pytest.approx(spent + rest, abs=1e-6)
    assert again.state == "committed"
    assert from_json(again.event).count == STEPS - KILLED_AFTER  # type: ignore[attr-defined]
    assert "steps 5 to 6 of entry" in again.purpose
    said = second.report().assumptions[-1].text
    assert said == f"resumed after step 4: the steps after it were charged again, as entry {again.id}"
    assert find_entries(second.report(), ledger.read()) == (again, ledger.history("small")[0])


def test_steps_of_which_something_was_shown_are_charged_again(tmp_path: Path, checkpoint: Path) -> None:
    log, ledger = private(tmp_path)
    plan = small_plan(steps=STEPS)
    killed(log, plan, ledger=ledger, save=checkpoint)
    run(log, plan, ledger=ledger, resume=checkpoint, shown=True)
    assert len(ledger.history("small")) == 2


def test_a_loop_of_ones_own_is_taken_to_show_something(tmp_path: Path, checkpoint: Path) -> None:
    log, ledger = private(tmp_path)
    plan = small_plan(steps=STEPS)
    killed(log, plan, ledger=ledger, save=checkpoint)
    model = DCN(log.schema, tower=(4,))
    PrivateEngine(plan, ledger=ledger).make_private(model, plain(model), log, resume_from=checkpoint)
    assert len(ledger.history("small")) == 2


def test_a_second_resume_over_budget_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    log, ledger = private(tmp_path, epsilon=5.5)
    plan = small_plan(steps=STEPS)
    killed(log, plan, ledger=ledger, save=checkpoint)
    kept = checkpoint.read_bytes()
    run(log, plan, ledger=ledger, resume=checkpoint)
    checkpoint.write_bytes(kept)
    with pytest.raises(BudgetExceeded):
        run(log, plan, ledger=ledger, resume=checkpoint)
    assert len(ledger.history("small")) == 1


def test_the_process_that_was_resumed_cannot_end_its_run_as_well(tmp_path: Path, checkpoint: Path) -> None:
    log, ledger = private(tmp_path)
    plan, model = small_plan(steps=1), DCN(logs(tmp_path).schema, tower=(4,))
    engine = PrivateEngine(plan, ledger=ledger)
    _, optimizer, batches = engine.make_private(model, plain(model), log, loss=losses.per_row)
    engine.save(checkpoint)
    run(log, plan, ledger=ledger, resume=checkpoint)
    for batch in batches:
        engine.backward(losses.per_row(model(batch), batch))
        optimizer.step()
    with pytest.raises(LedgerError, match="only whoever reserved it, or resumed it last"):
        engine.finish()


def test_a_run_killed_at_any_step_stays_charged_in_full(tmp_path: Path, checkpoint: Path) -> None:
    for steps in (1, 3):
        folder = tmp_path / str(steps)
        folder.mkdir()
        log, ledger = private(folder)
        with pytest.raises(Killed):
            run(log, small_plan(steps=STEPS), ledger=ledger, save=checkpoint, killed_after=steps)
        assert 4.9 < ledger.balance("small").spent_epsilon <= 5.0


def test_another_ledger_does_not_pay_for_the_run(tmp_path: Path, checkpoint: Path) -> None:
    log, ledger = private(tmp_path)
    plan = small_plan(steps=STEPS)
    killed(log, plan, ledger=ledger, save=checkpoint)
    (tmp_path / "other").mkdir()
    with pytest.raises(CheckpointError, match="resume with the ledger that it was charged to"):
        run(log, plan, ledger=new_ledger(tmp_path / "other"), resume=checkpoint)


# What must be the same


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_norm": 0.5}, "whose plan has another clip_norm"),
        ({"rows_per_unit": 3}, "whose plan has another rows_per_unit"),
        ({"make": momentum}, None),
        ({"make": adagrad}, "the checkpoint's optimizer is SGD, not Adagrad"),
        ({"model": Logistic}, "of another model"),
        ({"tasks": {"buy": "buy"}}, "another schema"),
    ],
    ids=named,
)
def test_a_checkpoint_of_another_run_is_refused_before_a_charge(
    tmp_path: Path, checkpoint: Path, change: dict[str, object], message: str | None
) -> None:
    log, ledger = private(tmp_path)
    settings = {"steps": STEPS, "averaging": 0.0}
    killed(log, small_plan(**settings), ledger=ledger, save=checkpoint)  # type: ignore[arg-type]
    if "tasks" in change:
        log = logs(tmp_path, public=False, tasks=change["tasks"])  # type: ignore[arg-type]
    model = Logistic(log.schema) if "model" in change else DCN(log.schema, tower=(4,))
    plan = small_plan(**settings, **{k: v for k, v in change.items() if k not in ("make", "model", "tasks")})  # type: ignore[arg-type]
    engine = PrivateEngine(plan, ledger=ledger)
    inner = change.get("make", plain)(model)  # type: ignore[operator]
    if message is None:
        engine.make_private(model, inner, log, resume_from=checkpoint, shown=False)
        assert inner.param_groups[0]["momentum"] == 0.0  # its settings are the checkpoint's
        return
    before = weights_of(model)
    with pytest.raises(CheckpointError, match=message):
        engine.make_private(model, inner, log, resume_from=checkpoint, shown=False)
    assert torch.equal(weights_of(model), before)
    assert len(ledger.history("small")) == 1


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([one.detach().flatten().clone() for one in model.parameters()])


def test_a_state_of_another_form_is_refused_in_one_line(tmp_path: Path, checkpoint: Path) -> None:
    log, plan = logs(tmp_path), small_plan(steps=STEPS)
    killed(log, plan, save=checkpoint)
    state = working.read(checkpoint)
    working.write(checkpoint, {key: value for key, value in state.items() if key != "average"})
    with pytest.raises(CheckpointError, match="not a checkpoint of this version") as caught:
        run(log, plan, resume=checkpoint)
    assert "\n" not in str(caught.value)


# When it can be made


def test_a_checkpoint_is_made_between_two_steps_only(tmp_path: Path, checkpoint: Path) -> None:
    log = logs(tmp_path)
    model = DCN(log.schema, tower=(4,))
    engine = PrivateEngine(small_plan(rows_at_once=40))
    _, optimizer, batches = engine.make_private(model, plain(model), log, loss=losses.per_row)
    batch = next(iter(batches))
    with pytest.raises(RuntimeError, match="between two steps"):
        engine.save(checkpoint)
    engine.backward(losses.per_row(model(batch), batch))
    optimizer.step()
    assert engine.steps_done == 0
    with pytest.raises(RuntimeError, match="parts of a batch are still to come"):
        engine.save(checkpoint)


def test_balls_in_bins_are_resumed_at_the_start_of_an_epoch(tmp_path: Path, checkpoint: Path) -> None:
    log = logs(tmp_path)
    plan = small_plan(steps=25, sampler="balls-in-bins")
    assert plan.bins == 10
    with pytest.raises(Killed):
        run(log, plan, save=checkpoint, killed_after=13)
    assert working.read(checkpoint)["steps_done"] == 10
    assert plan.event_of_rest(10).count == 2  # type: ignore[attr-defined]
    engine = PrivateEngine(plan)
    model = DCN(log.schema, tower=(4,))
    _, optimizer, batches = engine.make_private(model, plain(model), log, loss=losses.per_row, resume_from=checkpoint)
    batch = next(iter(batches))
    engine.backward(losses.per_row(model(batch), batch))
    optimizer.step()
    with pytest.raises(RuntimeError, match="after a multiple of 10 steps"):
        engine.save(checkpoint)


def test_what_was_counted_and_selected_once_is_not_done_again(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logs(tmp_path)
    plan = small_plan(steps=STEPS, table_noise="fest", sampler="truncated-poisson", most_units=2000, epsilon=50.0)
    monkeypatch.setattr("privads.training.sampling.at_most", lambda *_, **__: np.arange(0, USERS, 2))
    killed(log, plan, save=checkpoint)
    assert len(working.read(checkpoint)["used"]) == USERS // 2
    monkeypatch.setattr("privads.training.engine.touched_by_all", None)  # not called
    monkeypatch.setattr("privads.training.sampling.at_most", lambda *_, **__: None)
    model = DCN(log.schema, tower=(4,))
    engine = PrivateEngine(plan)
    engine.make_private(model, plain(model), log, resume_from=checkpoint)
    assert len(engine._source.sampler.among) == USERS // 2  # type: ignore[attr-defined]
    rest = plan.event_of_rest(KILLED_AFTER)
    assert rest.count == STEPS - KILLED_AFTER


# Through fit


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch, ending: type[BaseException] | None = None) -> None:
    backward, calls = PrivateEngine.backward, []

    def planted(self: PrivateEngine, found: Tensor) -> None:
        calls.append(0)
        if len(calls) == step:
            raise ending or Killed
        backward(self, found)

    monkeypatch.setattr(PrivateEngine, "backward", planted)


@pytest.mark.parametrize("table_noise", ["dense", "lazy"])
@pytest.mark.usefixtures("silent")
def test_fit_goes_on_with_its_schedule_and_removes_the_checkpoint(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, table_noise: str
) -> None:
    log, plan = logs(tmp_path), dataclasses.replace(whole_batches(table_noise=table_noise), steps=6)
    monkeypatch.setattr("privads.training.defaults.WARM_UP", 1.0)  # every step has another learning rate

    def model() -> nn.Module:
        torch.manual_seed(0)
        return DCN(log.schema)

    expected = fit(model(), log, plan)
    interrupted_at(5, monkeypatch)
    first = Checkpoint(path=checkpoint, every=2)
    with pytest.raises(Killed):
        fit(model(), log, plan, checkpoint=first)
    assert working.read(checkpoint)["steps_done"] == 4
    with pytest.raises(
        CheckpointError, match="resume it .--resume, in Python resume=True., or remove the file to start anew"
    ):
        fit(model(), log, plan, checkpoint=first)
    found = fit(model(), log, plan, checkpoint=dataclasses.replace(first, resume=True))
    assert torch.allclose(weights(found), weights(expected), atol=1e-6)
    assert not checkpoint.exists()


def test_fit_resumes_under_the_runs_own_charge_and_remembers_what_it_started_from(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, ledger = private(tmp_path)
    plan = small_plan(steps=STEPS)
    monday = fit(DCN(log.schema), log, plan, ledger=ledger)
    interrupted_at(4, monkeypatch)
    kept = Checkpoint(path=checkpoint, every=1, resume=True)  # there is none yet: the run begins
    with pytest.raises(Killed):
        fit(DCN(log.schema), log, plan, ledger=ledger, start=monday, checkpoint=kept)
    tuesday = fit(DCN(log.schema), log, plan, ledger=ledger, start=monday, checkpoint=kept)
    assert [one.state for one in ledger.history("small")] == ["committed", "committed"]
    assert [one.run for one in tuesday.started_from] == [monday.id]


def test_a_checkpoint_of_a_seeded_run_is_refused_before_it_begins(tmp_path: Path, checkpoint: Path) -> None:
    log = logs(tmp_path)
    with pytest.raises(ValueError, match="repeated, not resumed"):
        fit(DCN(log.schema), log, small_plan(), insecure_seed=1, checkpoint=Checkpoint(path=checkpoint))
    with pytest.raises(ValueError, match="every must be a whole number of steps"):
        Checkpoint(path=checkpoint, every=0)


# Found by an attacker: ways to execute more than was charged


def test_a_fork_of_the_charged_process_is_refused(tmp_path: Path) -> None:
    log = logs(tmp_path)
    model = DCN(log.schema, tower=(4,))
    engine = PrivateEngine(small_plan())
    _, _, batches = engine.make_private(model, plain(model), log, loss=losses.per_row)
    child = os.fork()
    if child == 0:
        refused = 0
        for attempt in (lambda: next(iter(batches)), engine.finish):
            try:
                attempt()
            except RuntimeError:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    next(iter(batches))


@pytest.mark.parametrize("ending", [Killed, KeyboardInterrupt])
def test_an_interrupted_fit_leaves_the_weights_of_the_checkpoint_and_no_later_ones(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, ending: type[BaseException]
) -> None:
    log, ledger = private(tmp_path)
    interrupted_at(6, monkeypatch, ending)
    model = DCN(log.schema)
    kept = Checkpoint(path=checkpoint, every=2)
    with pytest.raises(ending):
        fit(model, log, small_plan(steps=10, averaging=0.0), ledger=ledger, checkpoint=kept)
    state = working.read(checkpoint)
    assert state["steps_done"] == 4
    for name, one in model.state_dict().items():
        assert torch.equal(one, state["weights"][name])
    assert not any(module._forward_hooks for module in model.modules())


def test_a_progress_of_ones_own_may_show_steps_which_are_then_charged_again(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, ledger = private(tmp_path)
    plan = small_plan(steps=STEPS)
    interrupted_at(4, monkeypatch)
    kept = Checkpoint(path=checkpoint, every=1, resume=True)
    settings = {"ledger": ledger, "checkpoint": kept, "progress": lambda _: contextlib.nullcontext(lambda _: None)}
    with pytest.raises(Killed):
        fit(DCN(log.schema), log, plan, **settings)  # type: ignore[arg-type]
    run_of = fit(DCN(log.schema), log, plan, **settings)  # type: ignore[arg-type]
    assert len(ledger.history("small")) == 2
    assert run_of.report().verdict == "conditional"


def test_a_process_whose_run_was_taken_over_saves_no_more(tmp_path: Path, checkpoint: Path) -> None:
    log, ledger = private(tmp_path)
    model = DCN(log.schema, tower=(4,))
    engine = PrivateEngine(small_plan(steps=STEPS), ledger=ledger)
    engine.make_private(model, plain(model), log, loss=losses.per_row)
    engine.save(checkpoint)
    run(log, small_plan(steps=STEPS), ledger=ledger, resume=checkpoint)
    with pytest.raises(LedgerError):
        engine.save(checkpoint)


def test_a_log_that_has_grown_is_not_gone_on_with(tmp_path: Path, checkpoint: Path) -> None:
    log, plan = logs(tmp_path), small_plan(steps=STEPS)
    killed(log, plan, save=checkpoint)
    working.write(checkpoint, {**working.read(checkpoint), "places": len(log.units) - 1})
    with pytest.raises(CheckpointError, match="the log is not the one"):
        run(log, plan, resume=checkpoint)


def test_weights_written_after_the_last_step_are_seen(tmp_path: Path, checkpoint: Path) -> None:
    log = logs(tmp_path)
    model = DCN(log.schema, tower=(4,))
    engine = PrivateEngine(small_plan())
    engine.make_private(model, plain(model), log, loss=losses.per_row)
    with torch.no_grad():
        model.head.weight.fill_(1.0)
    for ending in (lambda: engine.save(checkpoint), engine.finish):
        with pytest.raises(RuntimeError, match=r"outside optimizer\.step"):
            ending()


def test_a_checkpoint_of_the_last_step_can_be_resumed_again(tmp_path: Path, checkpoint: Path) -> None:
    log, ledger = private(tmp_path)
    plan = small_plan(steps=KILLED_AFTER)
    killed(log, plan, ledger=ledger, save=checkpoint)
    for _ in range(2):
        run(log, plan, ledger=ledger, resume=checkpoint, shown=True)
    assert len(ledger.history("small")) == 1  # nothing remained to be executed


def test_a_checkpoint_whose_optimizer_has_other_groups_changes_nothing(tmp_path: Path, checkpoint: Path) -> None:
    log, plan = logs(tmp_path), small_plan(steps=STEPS)
    killed(log, plan, save=checkpoint)
    model = DCN(log.schema, tower=(4,))
    before = weights_of(model)
    groups = [{"params": [one]} for one in model.parameters()]
    with pytest.raises(CheckpointError, match="other groups of weights"):
        PrivateEngine(plan).make_private(model, torch.optim.SGD(groups, lr=1.0), log, resume_from=checkpoint)
    assert torch.equal(weights_of(model), before)


def test_fit_goes_on_from_a_checkpoint_that_a_loop_of_ones_own_saved(tmp_path: Path, checkpoint: Path) -> None:
    log, plan = logs(tmp_path), small_plan(steps=STEPS)
    killed(log, plan, save=checkpoint)
    kept = Checkpoint(path=checkpoint, resume=True)
    model = DCN(log.schema, tower=(4,))
    found = fit(model, log, plan, optimizer=plain(model), checkpoint=kept)
    assert found.started_from == ()
