"""Training on numbers and on events that are still to come: what is learned, reported and written."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from accounting.budget import Budget
from accounting.report.record import Report
from accounting.report.render import html, markdown
from privads.config import ConfigError
from privads.features.pipeline import fit_features
from privads.features.transforms import Pipeline
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.models import Logistic, SharedBottom
from privads.training.checkpoint import load, load_features
from privads.training.finished import predict
from privads.training.fit import fit
from privads.training.plan import TrainPlan
from privads.training.run import Run
from privads.training.scores import write_scores
from privads.training.start import check_start, start_of
from tests.privads.training.helpers import new_ledger, small_plan

USERS, FIELDS = 12_000, 6
NUMBERS = {
    "orders": {"value": "orders", "kind": "count", "most": 10},
    "spend": {"value": "spend", "kind": "log-normal", "most": 500, "typical": 30},
    "stars": {"value": "stars", "kind": "ordinal", "most": 5},
}
START = np.datetime64("2026-11-01", "us")
SPLIT = datetime(2026, 11, 5)
HOUR = np.timedelta64(3_600_000_000, "us")


def schema(labels: Mapping[str, Any], **changes: object) -> Schema:
    facts = {
        "dataset": "small",
        "population": USERS,
        "unit": ["user"],
        "time": "shown",
        "public": True,
        "labels": labels,
        "categorical": {f"c{field}": {"buckets": 16} for field in range(FIELDS)},
    }
    return Schema.load({**facts, **changes})


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One row a user: numbers whose means follow the categories, and events that come within 72 hours, half of them
    within 22."""
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 6, (USERS, FIELDS))
    effects = 0.4 * rng.standard_normal((3, FIELDS, 6))
    one, two, three = (effect[np.arange(FIELDS), codes].sum(axis=1) for effect in effects)
    bought = rng.random(USERS) < 1 / (1 + np.exp(1.5 - two))
    levels = 1 / (1 + np.exp(-(np.array([2.0, 0.5, -0.5, -2.0]) + one[:, None])))
    shown = START + (rng.random(USERS) * 10 * 24 * 3_600_000_000).astype("timedelta64[us]")
    delay = -30 * np.log(1 - rng.random(USERS) * (1 - np.exp(-72 / 30)))  # exponential, cut off at 72 hours
    table = pa.table(
        {
            "user": [f"u{user}" for user in range(USERS)],
            "shown": pa.array(shown),
            "orders": rng.poisson(np.exp(one - 0.5)),
            "spend": np.where(bought, np.exp(np.log(30) + 0.6 * three + 0.8 * rng.standard_normal(USERS)), 0.0),
            "stars": 1 + (rng.random(USERS)[:, None] < levels).sum(axis=1),
            "bought": pa.array(shown + (delay * 3.6e9).astype("timedelta64[us]"), mask=~bought),
            **{f"c{field}": [f"v{code}" for code in codes[:, field]] for field in range(FIELDS)},
        }
    )
    path = tmp_path_factory.mktemp("labels") / "log.parquet"
    pq.write_table(table, path)
    return path


def learned(train: Logs, test: Logs) -> Run:
    """A logistic regression that has converged."""
    model = Logistic(train.schema)
    plan = TrainPlan.without_privacy(population=USERS, unit="user", epochs=20, batch=300)
    return fit(model, train, plan, test=test, optimizer=torch.optim.Adam(model.parameters(), lr=0.05))


@pytest.mark.parametrize(("task", "most"), [("orders", 0.85), ("spend", 0.97), ("stars", 0.92)])
def test_the_mean_of_a_number_is_learned(log: Path, task: str, most: float) -> None:
    train, test = Logs(log, schema({task: NUMBERS[task]})).split(test_fraction=0.3)
    run = learned(train, test)
    found = run.values[task]
    # predicting the mean has an error of 1 and a Gini of 0; 3,600 test rows know their mean to 3 % (spend: 5 %)
    assert found.relative_squared_error.value < most
    assert found.normalized_gini.value > 0.3
    assert found.calibration.value == pytest.approx(1.0, abs=0.16 if task == "spend" else 0.1)
    assert run.metrics == {}


def open_share(shown: np.ndarray[Any, Any]) -> float:
    """The share of events in training that had come by the split, by the law that made them."""
    elapsed = np.clip((np.datetime64(SPLIT, "us") - shown) / HOUR, 0, 72)
    return float(np.mean((1 - np.exp(-elapsed / 30)) / (1 - np.exp(-72 / 30))))


@pytest.mark.parametrize("median", [None, 18.2])
def test_events_still_to_come_are_not_taken_for_none(log: Path, median: float | None) -> None:
    """A row whose window is open counts as what it is; taken for 0, it lowers every prediction by the share to come."""
    shown = pq.read_table(log)["shown"].to_numpy()
    recent = shown[(shown < np.datetime64(SPLIT)) & (shown >= np.datetime64(SPLIT) - 72 * HOUR)]
    assert open_share(recent) < 0.75  # so that the fault would be seen: a fifth of all rows' events are missing
    label: dict[str, Any] = {"time": "bought", "within_hours": 72, "waiting": True}
    if median is not None:
        label["median_hours"] = median  # of this law: 18.2
    whole = Logs(log, schema({"buy": label}))
    train, test = whole.split(after=SPLIT)
    run = learned(train, test)
    found = run.metrics["buy"]
    assert found.rows == (shown >= np.datetime64(SPLIT)).sum()
    # about 1,400 events in 7,200 rows, learned from 1,000: a standard error of 4.5 %; the fault makes it about 0.72
    assert found.calibration.value == pytest.approx(1.0, abs=0.14)
    assert found.auc.value > 0.6


@pytest.mark.parametrize("median", [None, 18.2])
def test_clipping_does_not_take_events_still_to_come_away(log: Path, median: float | None) -> None:
    """At a large epsilon clipping is all that is left of privacy. The likelihood's own slopes are longer than those of
    an event: predictions were 0.74 (learned delays) and 0.64 of what came. A label that was known has 0.84.
    """
    label: dict[str, Any] = {"time": "bought", "within_hours": 72, "waiting": True}
    if median is not None:
        label["median_hours"] = median
    train, test = Logs(log, schema({"buy": label})).split(after=SPLIT)
    budget = Budget(epsilon=200.0, delta=1e-6, unit="user")
    plan = TrainPlan.for_budget(budget, population=4800, batch=240, epochs=25)
    found = fit(Logistic(train.schema), train, plan, test=test, insecure_seed=1).metrics["buy"]
    assert 0.8 < found.calibration.value < 1.1


def test_a_private_run_says_what_it_measured_of_each_kind(log: Path, tmp_path: Path) -> None:
    labels = {**NUMBERS, "buy": {"time": "bought", "within_hours": 72, "waiting": True}}
    train, test = Logs(log, schema(labels, public=False)).split(after=SPLIT)
    run = fit(SharedBottom(train.schema), train, small_plan(), ledger=new_ledger(tmp_path), test=test)
    assert list(run.metrics) == ["buy"]
    assert list(run.values) == list(NUMBERS)
    report = Report.from_json(run.report().to_json())
    assert [one.task for one in report.values] == list(NUMBERS)
    assert any("metrics" in line for line in report.not_covered)
    printed = str(run)
    for text in (markdown(report), html(report)):
        assert "relative squared error" in text
        assert "normalized Gini" in text
    assert "spend: normalized Gini" in printed
    assert "buy: AUC" in printed


def test_a_run_is_saved_read_and_writes_its_predictions(log: Path, tmp_path: Path) -> None:
    labels = {**NUMBERS, "buy": {"time": "bought", "within_hours": 72, "waiting": True}}
    logs = Logs(log, schema(labels))
    run = fit(Logistic(logs.schema), logs, small_plan())
    run.save(tmp_path / "run")
    model, read = load(tmp_path / "run")
    assert read == logs.schema
    assert write_scores(model, read, log, tmp_path / "scores.parquet") == USERS
    scores = pq.read_table(tmp_path / "scores.parquet")
    names = ["orders_mean", "spend_probability", "spend_mean", "stars_mean", "buy_probability"]
    assert scores.column_names == names
    by_row = predict(model, logs)
    order = pq.read_table(log, columns=["user"])["user"].to_pylist()
    assert order == [f"u{user}" for user in range(USERS)]  # a row each, so that both have one order
    assert np.allclose(scores["spend_mean"], by_row["spend"])
    assert np.all((scores["stars_mean"].to_numpy() >= 1) & (scores["stars_mean"].to_numpy() <= 5))


def test_fitted_features_score_rows_without_labels(log: Path, tmp_path: Path) -> None:
    """They read rows through `Raw`, which looked for how long the labels of the schema had waited."""
    buy = {"time": "bought", "within_hours": 72, "waiting": True}
    pipeline = Pipeline.model_validate({"transforms": [{"kind": "hashed", "columns": ["c0"], "buckets": 8}]})
    logs = Logs(log, schema({"buy": buy}))
    train = logs.with_features(fit_features(pipeline, logs))
    fit(Logistic(train.schema), train, small_plan()).save(tmp_path / "run")
    model, read = load(tmp_path / "run")
    features = load_features(tmp_path / "run")
    pq.write_table(pq.read_table(log, columns=[f"c{field}" for field in range(FIELDS)]), tmp_path / "new.parquet")
    assert write_scores(model, read, tmp_path / "new.parquet", tmp_path / "scores.parquet", features=features) == USERS


def test_what_is_still_open_is_not_judged_as_none(log: Path) -> None:
    """Rows for training hold labels that wait as they were at the split: 0 while an event may come."""
    train, _ = Logs(log, schema({"buy": {"time": "bought", "within_hours": 72, "waiting": True}})).split(after=SPLIT)
    run = fit(Logistic(train.schema), train, small_plan()).evaluated_on(train)
    shown = pq.read_table(log)["shown"].to_numpy()
    assert run.metrics["buy"].rows == (shown <= np.datetime64(SPLIT) - 72 * HOUR).sum()


def test_weights_do_not_go_on_with_a_label_of_another_kind(log: Path, tmp_path: Path) -> None:
    logs = Logs(log, schema({"orders": NUMBERS["orders"]}))
    fit(Logistic(logs.schema), logs, small_plan()).save(tmp_path / "run")
    other = schema({"orders": {**NUMBERS["orders"], "most": 20}})
    with pytest.raises(ConfigError, match="its outputs of 'orders' mean something else"):
        check_start(start_of(tmp_path / "run"), Logistic(other), other)


def test_weights_go_on_where_the_delays_are_stated_anew(log: Path, tmp_path: Path) -> None:
    """A logit is a logit: stated delays say how events are weighed."""
    buy = {"time": "bought", "within_hours": 72}
    told = {**buy, "waiting": True, "median_hours": 18.0}
    logs = Logs(log, schema({"buy": told}))
    fit(Logistic(logs.schema), logs, small_plan()).save(tmp_path / "run")
    for label in (buy, {**told, "median_hours": 20.0}):
        check_start(start_of(tmp_path / "run"), Logistic(schema({"buy": label})), schema({"buy": label}))
    learned_delays = schema({"buy": {**buy, "waiting": True}})
    with pytest.raises(ConfigError, match="its outputs of 'buy' mean something else"):
        check_start(start_of(tmp_path / "run"), Logistic(learned_delays), learned_delays)


def test_a_model_begins_at_what_is_typical(log: Path) -> None:
    logs = Logs(log, schema(NUMBERS))
    torch.manual_seed(0)
    found = predict(Logistic(logs.schema), logs)
    assert np.allclose(found["orders"], 1.0)
    assert np.allclose(found["spend"], 0.5 * 30 * np.exp(((0.3 + 2.0) / 2) ** 2 / 2))
