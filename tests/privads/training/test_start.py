"""Going on from an earlier run: its weights are taken, its cost stays, and the report says so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accounting.ledger import Ledger
from accounting.report.record import Report
from accounting.report.render import markdown
from accounting.report.started import StartedFrom
from privads.attacks.canaries import Canaries
from privads.batch import Batch
from privads.config import ConfigError
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.models import DCN, Logistic, losses
from privads.training import fit as fitting
from privads.training import start as starting
from privads.training.fit import fit
from privads.training.plan import TrainPlan
from privads.training.run import Run
from tests.privads.training.helpers import logs, new_ledger, schema, small_plan, write_log

PLAN = small_plan(steps=2)
"""Calibrated once; two steps, since nothing here is about learning."""

TWIN = TrainPlan.without_privacy(population=400, unit="user", batch=40, epochs=0.2)


@pytest.fixture
def log(tmp_path: Path) -> Logs:
    return logs(tmp_path, public=False)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return new_ledger(tmp_path)


@pytest.fixture
def first(log: Logs, ledger: Ledger) -> Run:
    return fit(Logistic(log.schema), log, PLAN, ledger=ledger)


def weights_seen_first(log: Logs, ledger: Ledger, start: Run | Path | None) -> dict[str, Tensor]:
    """The weights with which the first batch is read, before any step."""
    model = Logistic(log.schema)
    seen: dict[str, Tensor] = {}

    def noting(outputs: Any, batch: Batch) -> Tensor:
        # the probe comes before it, but only a charged run calls the loss
        if len(ledger.history("small")) == 2 and not seen:
            seen.update({name: one.detach().clone() for name, one in model.named_parameters()})
        return losses.per_row(outputs, batch)

    fit(model, log, PLAN, ledger=ledger, start=start, loss=noting)
    return seen


@pytest.mark.parametrize("from_folder", [False, True])
def test_the_first_batch_is_read_with_the_earlier_runs_weights(
    log: Logs, ledger: Ledger, first: Run, tmp_path: Path, from_folder: bool
) -> None:
    expected = {name: one.clone() for name, one in first.model.state_dict().items()}
    assert any(one.any() for one in expected.values())  # a new Logistic is all zeros
    start = first.save(tmp_path / "first") if from_folder else first
    seen = weights_seen_first(log, ledger, start)
    assert all(torch.equal(seen[name], one) for name, one in expected.items())
    assert all(torch.equal(one, expected[name]) for name, one in first.model.state_dict().items())


def test_planted_fault_weights_that_are_not_taken_are_seen(
    log: Logs, ledger: Ledger, first: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_: None)
    seen = weights_seen_first(log, ledger, first)
    assert not any(torch.equal(seen[name], one) for name, one in first.model.state_dict().items())


def test_both_runs_are_charged_each_on_its_own(log: Logs, ledger: Ledger, first: Run) -> None:
    second = fit(Logistic(log.schema), log, PLAN, ledger=ledger, start=first)
    assert first.entry is not None
    entries = ledger.history("small")
    assert [one.id for one in entries] == [first.entry.id, entries[1].id]
    assert entries[1].purpose == f"train Logistic, from run {first.id}"
    assert entries[0].epsilon == entries[1].epsilon == pytest.approx(PLAN.spent.upper, abs=1e-8)
    assert ledger.balance("small").spent_epsilon == pytest.approx(2 * PLAN.spent.upper, abs=1e-7)
    guarantee = second.report().guarantee
    assert guarantee is not None
    assert guarantee.epsilon == PLAN.spent.upper  # its own alone


def test_the_report_names_the_earlier_run_what_it_cost_and_where(log: Logs, ledger: Ledger, first: Run) -> None:
    report = fit(Logistic(log.schema), log, PLAN, ledger=ledger, start=first).report()
    assert first.entry is not None
    (one,) = report.run.started_from
    assert (one.run, one.dataset, one.public, one.verdict) == (first.id, "small", False, "private")
    assert (one.epsilon, one.delta) == (first.entry.epsilon, first.entry.delta)
    assert (one.unit, one.neighbors) == ("user", "add-remove")
    assert (one.entry, one.same_ledger) == (str(first.entry.id), True)
    line = next(line for line in report.not_covered if "initial weights" in line)
    for said in (f"run {first.id}", one.cost, f"entry {one.entry} of the same ledger", "this run's alone", "together"):
        assert said in line
    assert f"goes on from run {first.id}, which is not counted here" in report.headline
    assert f"started from | run {first.id}" in markdown(report)
    assert Report.from_json(report.to_json()) == report


def test_the_report_names_the_canaries_that_the_earlier_run_was_audited_with(log: Logs, ledger: Ledger) -> None:
    """The fault: a model that went on from an audited run had learned from its canaries, and did not say so."""
    audited = fit(Logistic(log.schema), log, PLAN, ledger=ledger, canaries=Canaries(count=60, kind="user"))
    report = fit(Logistic(log.schema), log, PLAN, ledger=ledger, start=audited).report()
    assert report.audit == ()
    assert "its model has learned from up to 60 planted canaries" in report.headline


def test_a_report_of_new_weights_names_no_run(first: Run) -> None:
    report = first.report()
    assert report.run.started_from == ()
    assert "What the model's initial weights had learned elsewhere." in report.not_covered
    assert "goes on" not in report.headline


def test_days_of_retraining_are_all_named_the_latest_first(
    log: Logs, ledger: Ledger, first: Run, tmp_path: Path
) -> None:
    runs, last = [first], first
    for day in range(2):
        folder = last.save(tmp_path / f"day{day}")
        last = fit(Logistic(log.schema), log, PLAN, ledger=ledger, start=folder)
        runs.append(last)
    report = last.report()
    assert [one.run for one in report.run.started_from] == [runs[1].id, runs[0].id]
    assert all(one.same_ledger for one in report.run.started_from)
    assert any("and of a run before it" in line for line in report.not_covered)


def test_planted_fault_a_run_that_forgets_what_it_started_from_is_seen(
    log: Logs, ledger: Ledger, first: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(*arguments: Any) -> tuple[StartedFrom, ...]:
        starting.go_on(*arguments)
        return ()

    monkeypatch.setattr(fitting, "go_on", forgetful)
    report = fit(Logistic(log.schema), log, PLAN, ledger=ledger, start=first).report()
    assert "goes on from" not in report.headline


def test_an_entry_of_another_ledger_is_not_taken_for_one_of_this(log: Logs, first: Run, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = new_ledger(tmp_path / "other")
    report = fit(Logistic(log.schema), log, PLAN, ledger=other, start=first).report()
    (one,) = report.run.started_from
    assert not one.same_ledger
    assert first.ledger is not None
    assert f"of another ledger (head {first.ledger.head()})" in one.charged


def test_an_entry_with_another_figure_is_not_taken_for_the_runs(
    log: Logs, ledger: Ledger, first: Run, tmp_path: Path
) -> None:
    folder = first.save(tmp_path / "first")
    change(folder / "report.json", lambda report: report["budget"].update(this_run_epsilon=0.001))
    (one,) = fit(Logistic(log.schema), log, PLAN, ledger=ledger, start=folder).report().run.started_from
    assert not one.same_ledger


# What must match


def like(log: Logs, **facts: Any) -> Logs:
    """The same rows under another schema."""
    return Logs(log.path, Schema.load({**log.schema.model_dump(mode="json"), **facts}))


OTHER_SITE = {"site": {"buckets": 9}, "ad": {"buckets": 16}}
HOUR = {"site": {"buckets": 8}, "ad": {"buckets": 16, "part": "hour"}}


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"categorical": OTHER_SITE}, "categorical field 'site' has 8 buckets, in this one 9 buckets"),
        ({"categorical": {"ad": {"buckets": 16}}}, "categorical field 'site' has 8 buckets, in this one no place"),
        ({"categorical": {"ad": {"buckets": 16}, "site": {"buckets": 8}}}, "in another order"),
        ({"categorical": HOUR, "time": "bid"}, "16 buckets, in this one 16 buckets of the hour"),
        ({"numeric": {"bid": {"range": [0, 9]}}}, r"range \[0.0, 10.0\], in this one range \[0.0, 9.0\]"),
        ({"numeric": {}}, "numeric field 'bid' has range .* no place"),
        ({"labels": {"buy": "buy"}}, "its labels are click, these buy"),
        ({"labels": {"click": "click", "buy": "buy"}}, "its labels are click, these click, buy"),
    ],
)
def test_a_schema_whose_table_means_something_else_is_refused(
    log: Logs, ledger: Ledger, first: Run, facts: dict[str, Any], said: str
) -> None:
    other = like(log, **facts)
    with pytest.raises(ConfigError, match=said) as caught:
        fit(Logistic(other.schema), other, PLAN, ledger=ledger, start=first)
    assert str(caught.value).startswith(f"cannot start from run {first.id}: ")
    assert "\n" not in str(caught.value)
    assert len(ledger.history("small")) == 1  # nothing was charged


def test_facts_that_decide_neither_shapes_nor_meaning_may_change(log: Logs, ledger: Ledger, first: Run) -> None:
    later = like(log, population=500, rows=2000)
    assert fit(Logistic(later.schema), later, PLAN, ledger=ledger, start=first).started_from[0].run == first.id


@pytest.mark.parametrize("from_folder", [False, True])
def test_another_model_or_setting_is_refused(
    log: Logs, ledger: Ledger, first: Run, tmp_path: Path, from_folder: bool
) -> None:
    start = first.save(tmp_path / "first") if from_folder else first
    with pytest.raises(ConfigError, match="its model is 'logistic', this one 'dcn'"):
        fit(DCN(log.schema), log, PLAN, ledger=ledger, start=start)
    deep = fit(DCN(log.schema, dim=2, tower=(3,)), log, PLAN, ledger=ledger)
    start = deep.save(tmp_path / "deep") if from_folder else deep
    for settings, said in (({"tower": (3,)}, "dim = 2, this one 4"), ({"dim": 2}, r"tower = \[3\], this one \[\]")):
        with pytest.raises(ConfigError, match=said):
            fit(DCN(log.schema, **settings), log, PLAN, ledger=ledger, start=start)
    assert len(ledger.history("small")) == 2


def test_weights_of_another_shape_are_refused_though_class_and_settings_say_nothing(
    log: Logs, ledger: Ledger, tmp_path: Path
) -> None:
    class Mine(Logistic):
        def __init__(self, facts: Schema, *, wide: bool) -> None:
            super().__init__(facts)
            if wide:
                self.linear = nn.Linear(2, 2, bias=False)

    folder = fit(Mine(log.schema, wide=False), log, PLAN, ledger=ledger).save(tmp_path / "mine")
    assert fit(Mine(log.schema, wide=False), log, PLAN, ledger=ledger, start=folder).started_from
    with pytest.raises(ConfigError, match=r"'linear.weight' has shape \(1, 2\), here \(2, 2\)"):
        fit(Mine(log.schema, wide=True), log, PLAN, ledger=ledger, start=folder)
    save_file({"table.weight": load_file(folder / "model.safetensors")["table.weight"]}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match="are not those that its report is about: they were changed"):
        fit(Mine(log.schema, wide=False), log, PLAN, ledger=ledger, start=folder)


def test_weights_that_were_changed_since_are_no_start(log: Logs, ledger: Ledger, first: Run, tmp_path: Path) -> None:
    # Found in review: weights trained on without privacy passed as those of a charged run.
    folder = first.save(tmp_path / "first")
    weights = load_file(folder / "model.safetensors")
    save_file({name: one + 1 for name, one in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match="are not those that its report is about"):
        fit(type(first.model)(log.schema), log, PLAN, ledger=ledger, start=folder)
    with torch.no_grad():
        next(first.model.parameters()).add_(1.0)
    with pytest.raises(ConfigError, match="are not those that it ended with"):
        fit(type(first.model)(log.schema), log, PLAN, ledger=ledger, start=first)


def test_the_earlier_runs_own_model_is_not_trained_on(log: Logs, ledger: Ledger, first: Run) -> None:
    """It would be saved under a report that is not about it."""
    with pytest.raises(ConfigError, match="that run's own model"):
        fit(first.model, log, PLAN, ledger=ledger, start=first)
    assert len(ledger.history("small")) == 1


# Whose data may be in the weights


def test_public_weights_without_privacy_may_start_a_private_run(tmp_path: Path, log: Logs, ledger: Ledger) -> None:
    (tmp_path / "public").mkdir()
    open_facts = schema().model_copy(update={"dataset": "open"})
    open_log = Logs(write_log(tmp_path / "public", seed=1), open_facts)
    public = fit(Logistic(open_facts), open_log, TWIN)
    for start in (public, public.save(tmp_path / "run")):
        report = fit(Logistic(log.schema), log, PLAN, ledger=ledger, start=start).report()
        (one,) = report.run.started_from
        assert (one.cost, one.charged, one.verdict) == ("no privacy", "charged to no ledger", "not private")
        assert report.verdict == "private"


def test_a_private_run_may_start_one_on_public_data(tmp_path: Path, first: Run) -> None:
    public = like(logs(tmp_path), dataset="open")
    report = fit(Logistic(public.schema), public, TWIN, start=first).report()
    assert report.verdict == "not private"
    assert any(f"run {first.id}" in line for line in report.not_covered)


@pytest.mark.parametrize("plan", [TWIN, PLAN], ids=["no privacy", "not charged"])
def test_data_that_were_public_then_and_are_private_now_are_refused(
    tmp_path: Path, ledger: Ledger, plan: TrainPlan
) -> None:
    """What was learned without privacy, or without a charge, would go around the ledger."""
    public = logs(tmp_path)
    then = fit(Logistic(public.schema), public, plan)
    private = logs(tmp_path, public=False)
    with pytest.raises(ConfigError, match="data set 'small' is private: start from a run"):
        fit(Logistic(private.schema), private, PLAN, ledger=ledger, start=then)
    assert ledger.history("small") == []
    assert fit(Logistic(public.schema), public, plan, start=then).started_from


def change(file: Path, how: Callable[[dict[str, Any]], object]) -> None:
    facts = json.loads(file.read_text())
    how(facts)
    if file.name == "report.json":  # whoever edits a report can bring its headline up to date
        facts.pop("headline")
        file.write_text(Report.model_validate_json(json.dumps(facts)).to_json())
    else:
        file.write_text(json.dumps(facts))


def test_a_run_without_privacy_on_private_data_is_refused(
    log: Logs, ledger: Ledger, first: Run, tmp_path: Path
) -> None:
    folder = first.save(tmp_path / "first")
    change(folder / "report.json", lambda report: report.update(guarantee=None, budget=None))
    with pytest.raises(ConfigError, match=f"run {first.id} is not private, and its data set 'small' is private"):
        fit(Logistic(log.schema), log, PLAN, ledger=ledger, start=folder)
    assert len(ledger.history("small")) == 1


def test_a_run_that_was_charged_to_nobody_is_refused(log: Logs, ledger: Ledger, first: Run, tmp_path: Path) -> None:
    folder = first.save(tmp_path / "first")
    change(folder / "report.json", lambda report: report.update(budget=None))
    with pytest.raises(ConfigError, match="was charged to no ledger"):
        fit(Logistic(log.schema), log, PLAN, ledger=ledger, start=folder)


def test_a_broken_promise_on_private_data_is_refused(log: Logs, ledger: Ledger, first: Run, tmp_path: Path) -> None:
    folder = first.save(tmp_path / "first")
    change(folder / "report.json", lambda report: report["assumptions"][0].update(status="violated"))
    with pytest.raises(ConfigError, match="is violated, and its data set"):
        fit(Logistic(log.schema), log, PLAN, ledger=ledger, start=folder)


def test_an_uncharged_run_further_back_is_refused_too(log: Logs, ledger: Ledger, first: Run, tmp_path: Path) -> None:
    folder = first.save(tmp_path / "first")
    older = StartedFrom(run="older", dataset="small", public=True, verdict="not private").model_dump(mode="json")
    change(folder / "report.json", lambda report: report["run"].update(started_from=[older]))
    with pytest.raises(ConfigError, match="run older is not private"):
        fit(Logistic(log.schema), log, PLAN, ledger=ledger, start=folder)


def test_planted_fault_without_the_check_unprotected_data_would_get_in(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, private = logs(tmp_path), logs(tmp_path, public=False)
    then = fit(Logistic(public.schema), public, TWIN)
    monkeypatch.setattr(starting, "check_start", lambda *_: None)
    assert fit(Logistic(private.schema), private, PLAN, ledger=ledger, start=then).report().verdict == "private"


# A folder that was changed


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("model.json", lambda one: one["schema"].update(population=7), "model.json was changed"),
        ("model.json", lambda one: one.pop("schema_sha256"), "model.json was changed"),
        ("model.json", lambda one: one.pop("name"), "model.json was changed"),
        ("model.json", lambda one: one.update(settings={"dim": 3}), "not of one run"),
        ("report.json", lambda one: one["data"].update(schema_sha256="0" * 64), "not of one run"),
        ("report.json", lambda one: one["data"].update(dataset="other"), "not of one run"),
        ("report.json", lambda one: one["data"].update(public=True), "not of one run"),
        ("report.json", lambda one: one["model"].update(settings={"dim": 3}), "not of one run"),
    ],
)
def test_a_folder_whose_files_contradict_each_other_is_refused(
    log: Logs, ledger: Ledger, first: Run, tmp_path: Path, name: str, how: Any, said: str
) -> None:
    folder = first.save(tmp_path / "first")
    change(folder / name, how)
    with pytest.raises(ConfigError, match=said) as caught:
        fit(Logistic(log.schema), log, PLAN, ledger=ledger, start=folder)
    assert "\n" not in str(caught.value)
    assert len(ledger.history("small")) == 1


def test_a_report_whose_figure_was_changed_under_its_headline_is_refused(
    log: Logs, ledger: Ledger, first: Run, tmp_path: Path
) -> None:
    file = first.save(tmp_path / "first") / "report.json"
    facts = json.loads(file.read_text())
    facts["guarantee"].update(epsilon=0.01, epsilon_lower=None)
    file.write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="report.json was changed, or is no report"):
        fit(Logistic(log.schema), log, PLAN, ledger=ledger, start=file.parent)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors", "report.json"])
def test_a_folder_that_is_none_of_a_run_is_refused(
    log: Logs, ledger: Ledger, first: Run, tmp_path: Path, name: str
) -> None:
    folder = first.save(tmp_path / "first")
    (folder / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=f"{name} (was changed|is damaged)"):
        fit(Logistic(log.schema), log, PLAN, ledger=ledger, start=folder)
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"not a run folder: it has no {name}"):
        fit(Logistic(log.schema), log, PLAN, ledger=ledger, start=str(folder))
    assert len(ledger.history("small")) == 1
