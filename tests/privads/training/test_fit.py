"""`fit` from logs to a run: it learns, its report is honest, and it shows nothing on the way."""

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from accounting.report.facts import facts
from accounting.report.record import Report
from accounting.report.render import markdown
from privads.batch import Batch, padding
from privads.logs.logs import Logs
from privads.models import DCN, Logistic, losses
from privads.training.clipping import UnsupportedModel
from privads.training.defaults import STABLE_STEP, sgd_step, steepness_of
from privads.training.engine import PrivateEngine
from privads.training.fit import fit
from privads.training.plan import TrainPlan
from privads.training.run import Run
from tests.privads.test_stated import EVERYTHING
from tests.privads.training.helpers import logs, new_ledger, schema, small_plan


def without_privacy(steps: int = 200) -> TrainPlan:
    return TrainPlan.without_privacy(population=400, unit="user", batch=80, epochs=steps / 5)


@pytest.mark.parametrize("make", [Logistic, DCN])
def test_a_model_learns_what_there_is_to_learn(tmp_path: Path, make: type[nn.Module]) -> None:
    train, test = logs(tmp_path).split(test_fraction=0.3)
    torch.manual_seed(0)
    run = fit(make(train.schema), train, without_privacy(), test=test)
    # the planted log-odds have an AUC of about 0.7; chance is 0.5 with a standard error of 0.03 on 350 rows
    assert run.metrics["click"].auc.value > 0.6
    assert 0.7 < run.metrics["click"].calibration.value < 1.4


def test_several_labels_train_in_one_batch(tmp_path: Path) -> None:
    train, test = logs(tmp_path, tasks={"click": "click", "buy": "buy"}).split(test_fraction=0.3)
    run = fit(Logistic(train.schema), train, without_privacy(50), test=test)
    assert set(run.metrics) == {"click", "buy"}
    predicted = run.predict(test)
    assert predicted["buy"].mean() < predicted["click"].mean()
    assert "buy: AUC" in str(run)


def test_the_report_of_a_private_run_says_what_was_done(tmp_path: Path) -> None:
    train, test = logs(tmp_path, public=False).split(test_fraction=0.3)
    plan = small_plan()
    run = fit(Logistic(train.schema), train, plan, ledger=new_ledger(tmp_path), test=test, seed=11)
    report = run.report()
    assert report.verdict == "private"
    assert report.guarantee is not None
    assert report.guarantee.epsilon == plan.spent.upper <= 5.0
    assert (report.guarantee.unit, report.guarantee.unit_columns) == ("user", ("user",))
    assert report.guarantee.epsilon_without_amplification is not None
    assert report.guarantee.epsilon_without_amplification > report.guarantee.epsilon
    assert [point.delta for point in report.guarantee.profile] == [1e-5, 1e-6, 1e-7]
    assert report.mechanism.steps == plan.steps
    assert report.mechanism.noise_multiplier == plan.noise_multiplier
    assert report.run.seed == 11
    assert "os.urandom" in report.mechanism.randomness
    assert report.budget is not None
    assert report.budget.left_epsilon == pytest.approx(20 - plan.spent.upper, abs=1e-8)
    assert any("held-out rows without noise" in line for line in report.not_covered)
    assert report.from_json(report.to_json()) == report


def test_a_run_states_all_that_can_be_known_and_people_the_rest(tmp_path: Path) -> None:
    train, test = logs(tmp_path, public=False).split(test_fraction=0.3)
    trained = fit(
        Logistic(train.schema),
        train,
        small_plan(),
        test=test,
        ledger=new_ledger(tmp_path),
        config={"report": EVERYTHING},
    )
    assert unstated(trained.report()) == set()
    alone = dataclasses.replace(trained, config={}).report()
    assert unstated(alone) == {
        *("author", "name", "description", "published by", "intended use", "kind", "region", "sector", "published"),
        *("access to rows and run files", "logs are kept", "chosen by", "because"),
    }
    setting = trained.report().setting
    assert setting is not None
    assert (setting.model, setting.releases, setting.interactive) == ("central", "one", False)
    assert trained.report().covered == ("Training: 10 steps on the training rows, by the figure of this report.",)
    assert trained.report().mechanism.bounded_by.startswith("PoissonSampler")


def unstated(report: Report) -> set[str]:
    """Returns the names of the facts that the report does not state; the commit is known in a checkout alone."""
    rows = [row for block in facts(report).values() for row in block]
    return {name for name, words in rows if words == "not stated" and name != "commit"}


def test_what_a_report_could_not_hold_is_refused_before_the_charge(tmp_path: Path) -> None:
    log, ledger = logs(tmp_path, public=False), new_ledger(tmp_path)
    with pytest.raises(ValueError, match="autor"):
        fit(Logistic(log.schema), log, small_plan(), ledger=ledger, config={"report": {"autor": "Ada"}})
    assert ledger.history(log.schema.dataset) == []


@pytest.mark.parametrize("stated", [None, 0.5])
def test_the_report_states_the_step_that_is_reached_and_not_the_first_of_the_warm_up(
    tmp_path: Path, stated: float | None
) -> None:
    log, plan = logs(tmp_path), dataclasses.replace(small_plan(), learning_rate=stated)
    found = fit(Logistic(log.schema), log, plan).report().model.learning_rate
    assert found == pytest.approx(stated or sgd_step(plan))


def test_metrics_on_public_rows_need_no_warning(tmp_path: Path) -> None:
    train, test = logs(tmp_path).split(test_fraction=0.3)
    report = fit(Logistic(train.schema), train, small_plan(), test=test).report()
    assert not any("held-out" in line for line in report.not_covered)
    assert "public data" in report.headline


def test_a_run_without_privacy_says_so(tmp_path: Path) -> None:
    report = fit(Logistic(logs(tmp_path).schema), logs(tmp_path), without_privacy(5)).report()
    assert report.verdict == "not private"
    assert report.headline.startswith("NOT PRIVATE")
    assert report.guarantee is None


def test_an_insecure_seed_is_in_the_headline(tmp_path: Path) -> None:
    log = logs(tmp_path)
    assert "WHO KNOWS THE SEED" in fit(Logistic(log.schema), log, small_plan(), insecure_seed=4).report().headline


def own_loop(log: Logs, steps: int | None = None) -> Run:
    plan, model = small_plan(), Logistic(log.schema)
    engine = PrivateEngine(plan)
    model, optimizer, batches = engine.make_private(model, torch.optim.SGD(model.parameters(), lr=0.1), log)
    for number, batch in enumerate(batches, start=1):
        engine.backward(losses.per_row(model(batch), batch))
        optimizer.step()
        if number == steps:
            break
    return engine.finish()


def test_what_a_loop_of_ones_own_shows_is_an_asserted_assumption(tmp_path: Path) -> None:
    report = own_loop(logs(tmp_path)).report()
    assert report.verdict == "conditional"
    assert len(report.with_status("asserted")) == 3  # what the loop shows, its learning rates, and what its loss does
    assert "rests on 3 asserted assumptions" in report.headline


def test_stopping_early_is_charged_in_full_and_asserted(tmp_path: Path) -> None:
    report = own_loop(logs(tmp_path), steps=3).report()
    assert report.mechanism.steps == 10
    assert any("ended after 3 of 10 steps" in text for text in report.with_status("asserted"))


def test_a_model_that_mixes_rows_spends_nothing(tmp_path: Path) -> None:
    class Centered(Logistic):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            return {task: logit - logit.mean() for task, logit in super().forward(batch).items()}

    log, ledger = logs(tmp_path, public=False), new_ledger(tmp_path)
    with pytest.raises(UnsupportedModel, match="Centered"):
        fit(Centered(log.schema), log, small_plan(), ledger=ledger)
    assert ledger.history("small") == []


def test_a_missing_test_file_spends_nothing(tmp_path: Path) -> None:
    log, ledger = logs(tmp_path, public=False), new_ledger(tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        fit(Logistic(log.schema), log, small_plan(), ledger=ledger, test=Logs("nowhere.csv", log.schema))
    assert ledger.history("small") == []


def test_fit_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = logs(tmp_path)
    fit(Logistic(log.schema), log, small_plan())
    assert capsys.readouterr() == ("", "")


def test_predictions_are_the_models_probabilities_row_by_row(tmp_path: Path) -> None:
    log = logs(tmp_path)
    run = fit(Logistic(log.schema), log, small_plan())
    batch = log.take(np.arange(len(log.units)))
    with torch.no_grad():
        expected = 1 / (1 + np.exp(-run.model(batch)["click"].double().numpy()))
    np.testing.assert_allclose(run.predict(log)["click"], expected, rtol=1e-6)


def test_the_default_step_bounds_the_noise_in_a_logit() -> None:
    # eta / (1 - m) steps of noise: noise_std sqrt(steps) eta / (1 - m) = 0.7 where the stability bound does not bind
    plan = small_plan(epsilon=1.0)
    noise_std = plan.noise_multiplier * plan.clip_norm / plan.batch
    assert sgd_step(plan) / 0.1 * noise_std * plan.steps**0.5 == pytest.approx(0.7)
    easy = TrainPlan.without_privacy(population=10**6, batch=1000, epochs=1)
    assert sgd_step(easy) == pytest.approx(12.0)


def test_private_test_rows_cannot_hide_behind_a_public_training_log(tmp_path: Path) -> None:
    train, private = logs(tmp_path), logs(tmp_path, public=False)
    with pytest.raises(ValueError, match="another schema"):
        fit(Logistic(train.schema), train, small_plan(), test=private)


def test_a_model_or_loss_of_ones_own_is_an_asserted_assumption(tmp_path: Path) -> None:
    log = logs(tmp_path)

    def doubled(outputs: Any, batch: Batch) -> Tensor:
        return 2 * losses.per_row(outputs, batch)

    report = fit(Logistic(log.schema), log, small_plan(), loss=doubled).report()
    assert report.verdict == "conditional"
    assert "show and keep nothing" in report.headline


# Found by a new user: runs that were charged and trained, and then had no report


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sampler": "balls-in-bins", "steps": 25},
        {"sampler": "truncated-poisson", "most_units": 2000, "epsilon": 50.0},
        {"table_noise": "lazy", "rows_at_once": 40},
        {"table_noise": "adafest", "clip_quantile": 0.5},
        {"table_noise": "adafest", "clip_quantile": 0.5, "sampler": "balls-in-bins"},
        {"table_noise": "fest", "clipping": "per-group"},
        {"records": 3},
        {"combined": "mean"},
    ],
    ids=str,
)
def test_every_kind_of_plan_ends_in_a_saved_run_whose_report_says_what_it_did(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    log = logs(tmp_path, public=False)
    plan = small_plan(**settings)  # type: ignore[arg-type]
    run = fit(DCN(log.schema), log, plan, ledger=new_ledger(tmp_path, epsilon=60.0))
    run.save(tmp_path / "run")
    report = Report.from_json((tmp_path / "run" / "report.json").read_text())
    page = markdown(report)
    assert f"noise of tables | {plan.table_noise}" in page
    assert ("0.5 quantile" in page) == (plan.clip_quantile == 0.5)
    assert ("in tables and in the network apart" in page) == (plan.clipping == "per-group")
    assert ("batch, expected rows" in page) == (plan.records > 1)
    assert report.mechanism.rows_per_unit == (plan.records if plan.records > 1 else plan.rows_per_unit)
    assert ("every row joins every batch" in page) == (plan.records > 1)
    assert all(math.isfinite(point.epsilon) for point in report.guarantee.profile)  # type: ignore[union-attr]


@pytest.mark.parametrize("change", [{"steps": 41}, {"noise_multiplier": 9.0}, {"other_noise_multipliers": (9.0,)}])
def test_a_report_that_states_other_steps_or_noise_than_its_event_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    log = logs(tmp_path)
    plan = small_plan(table_noise="adafest", sampler="balls-in-bins", steps=25)
    mechanism = fit(DCN(log.schema), log, plan).report().mechanism
    with pytest.raises(ValueError, match="but the event says"):
        type(mechanism).model_validate({**mechanism.model_dump(), "noise_std": None, **change})


class Steep:
    """Public rows, eight of each unit, of which a share is 1."""

    def __init__(self, share: float, *, public: bool = True) -> None:
        self.schema, self.share = schema(public=public), share

    @property
    def units(self) -> NDArray[np.int64]:
        assert self.schema.public, "a private row was read"
        return np.repeat(np.arange(50), 8)

    def take(self, row_numbers: NDArray[np.int64]) -> Batch:
        batch = padding(self.schema, len(row_numbers))
        labels = torch.arange(len(row_numbers)) < self.share * len(row_numbers)
        return replace(batch, labels={"click": labels.float()}, observed={"click": torch.ones_like(labels)})


def test_without_a_clip_norm_the_step_is_as_much_smaller_as_the_loss_is_steep() -> None:
    """A fixed bug: eight rows of a unit, half of them 1, made the default step diverge without privacy."""
    plan = TrainPlan.without_privacy(population=100_000, unit="user", rows_per_unit=8)
    assert steepness_of(Steep(0.5), plan) == pytest.approx(8)
    assert steepness_of(Steep(0.1), plan) == pytest.approx(8 * 4 * 0.1 * 0.9)
    assert steepness_of(Steep(0.01), plan) == 1
    few = TrainPlan.without_privacy(population=100_000, unit="user", rows_per_unit=3)
    assert steepness_of(Steep(0.5), few) == pytest.approx(3)
    assert sgd_step(plan) == pytest.approx(0.1 * STABLE_STEP)
    assert sgd_step(plan, steepness=8) == pytest.approx(0.1 * STABLE_STEP / 8)


def test_how_steep_a_loss_is_reads_no_private_row() -> None:
    plan = TrainPlan.without_privacy(population=400, unit="user", epochs=1, rows_per_unit=8)
    assert steepness_of(Steep(0.5, public=False), plan) == 1
    assert steepness_of(Steep(0.5), small_plan()) == 1
