"""`[evaluation]` in a run file: metrics of private held-out rows, with noise, for an entry of their own."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from accounting import mechanisms
from accounting.budget import Budget
from accounting.ledger import Charge, Ledger
from accounting.report.record import Report
from privads.evaluation import calibrate, held_out
from privads.logs.logs import Logs
from privads.noise import Randomness
from privads.training.checkpoint import load, load_calibrations
from tests.privads.test_cli import ADS_TOML, RUN_TOML, Done, privads, refused, write_log
from tests.privads.test_job_features import FEATURES

EVALUATION = """
[evaluation]
epsilon = 0.5
segments = {site = ["s1", "s2"]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_log(tmp_path)
    (tmp_path / "ads.toml").write_text(ADS_TOML.format(public="false"))
    (tmp_path / "run.toml").write_text(RUN_TOML + EVALUATION)
    return tmp_path


def ledger(folder: Path, epsilon: float = 10.0, rule: str = "basic") -> Ledger:
    budget = Budget(epsilon=epsilon, delta=9e-5, unit="user")
    return Ledger.init(f"sqlite:///{folder / 'budget.db'}", dataset="small", budget=budget, rule=rule)  # type: ignore[arg-type]


def train(folder: Path, *arguments: str, out: str = "run") -> Done:
    return privads(folder, "train", "run.toml", "--quiet", "--out", out, *arguments)


def report(folder: Path, out: str = "run") -> Report:
    return Report.from_json((folder / out / "report.json").read_text())


def test_the_metrics_of_held_out_rows_are_an_entry_of_their_own(folder: Path) -> None:
    budget = ledger(folder)
    done = train(folder)
    assert done.returncode == 0, done.stderr
    training, metrics = budget.history("small")
    assert (training.purpose, metrics.purpose) == ("train Logistic", "release metrics")
    assert training.epsilon == pytest.approx(3.0, abs=0.01)
    assert 0.49 < metrics.epsilon <= 0.5
    assert (metrics.unit, metrics.neighbors, metrics.delta, metrics.state) == ("user", "add-remove", 1e-5, "committed")
    parts = mechanisms.parts(mechanisms.from_json(metrics.event))  # one Gaussian twice: all rows, and by site
    assert sorted(times for _, times in parts) == [1, 2]
    assert budget.balance("small").spent_epsilon == pytest.approx(3.5, abs=0.01)
    assert "AUC" in done.stdout
    assert "(noisy)" in done.stdout


def test_the_report_says_what_the_metrics_cost_and_that_they_are_noisy(folder: Path) -> None:
    budget = ledger(folder)
    assert train(folder).returncode == 0
    found, entry = report(folder), budget.history("small")[1]
    assert [(task.task, task.segment) for task in found.metrics] == [
        ("click", None),
        ("click", "site = s1"),
        ("click", "site = s2"),
    ]
    claim = "epsilon <= 0.50 (delta 1e-05, user, add/remove, all metrics of these rows)"
    cost = f"{claim}, charged by itself as entry {entry.id}"
    assert all(task.released and task.release == cost and task.curve == () for task in found.metrics)
    assert f"its metrics by themselves: {cost}" in found.headline
    assert not any("without noise" in line for line in found.not_covered)
    said = "What the metrics below cost: they were released by themselves, for what stands there."
    assert said in found.not_covered
    auc = found.metrics[0].scores.auc
    for shown in (privads(folder, "report", "run").stdout, (folder / "run" / "report.html").read_text()):
        assert shown.count("Noisy: read from noisy counts, with intervals that hold their noise.") == 3
        assert (
            shown.count(cost.replace("<=", "&lt;=" if "<html" in shown else "<=")) >= 4
        )  # the headline's, and each task's
        assert "click, site = s1" in shown
        assert "about " in shown
        if auc.value is not None and auc.low is not None and auc.high is not None:
            assert f"{auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}]" in shown
    assert found.guarantee is not None
    assert found.guarantee.epsilon <= 3.0  # the run's own figure is as without them


def test_no_held_out_row_is_read_before_the_entry_is_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget, states = ledger(folder), []
    whole = Logs._read

    def watched(self: Logs, *, raw: bool) -> Iterator[object]:
        if self.side is not None and self.side.side == "test":
            states.append([(entry.purpose, entry.state) for entry in budget.history("small")])
        return whole(self, raw=raw)

    monkeypatch.setattr(Logs, "_read", watched)
    assert train(folder).returncode == 0
    assert states == [[("train Logistic", "committed"), ("release metrics", "opened")]]


def test_without_the_table_metrics_are_exact_and_not_covered_as_ever(folder: Path) -> None:
    budget = ledger(folder)
    (folder / "run.toml").write_text(RUN_TOML)
    assert train(folder).returncode == 0
    assert len(budget.history("small")) == 1
    (task,) = report(folder).metrics
    assert (task.released, task.release, task.segment) == (False, None, None)
    assert any("held-out rows without noise" in line for line in report(folder).not_covered)


def test_a_job_whose_metrics_would_not_fit_trains_nothing(folder: Path) -> None:
    budget = ledger(folder, 3.2)
    refused(
        train(folder), 3, "evaluation and training together ask for 3.4", "lower evaluation.epsilon or plan.epsilon"
    )
    assert budget.history("small") == []
    (folder / "run.toml").write_text(RUN_TOML + FEATURES + EVALUATION)
    refused(train(folder), 3, "features and evaluation and training together ask for 3.9")
    assert budget.history("small") == []


def test_a_job_whose_delta_would_not_fit_trains_nothing(folder: Path) -> None:
    budget = ledger(folder)
    said = "evaluation and training together ask for 9.5e-05"
    refused(train(folder, "--set", "evaluation.delta=8.5e-5"), 3, "has delta 9e-05 left", said)
    assert budget.history("small") == []


def test_features_and_metrics_stand_beside_the_run(folder: Path) -> None:
    budget = ledger(folder)
    (folder / "run.toml").write_text(RUN_TOML + FEATURES + EVALUATION)
    done = train(folder)
    assert done.returncode == 0, done.stderr
    assert [entry.purpose for entry in budget.history("small")] == ["fit features", "train Logistic", "release metrics"]
    assert report(folder).headline.count("by themselves: epsilon <= 0.50") == 2


def test_a_run_whose_metrics_fail_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = ledger(folder)

    def broken(self: Logs) -> Iterator[object]:
        raise RuntimeError("the row of u17")

    monkeypatch.setattr(Logs, "judged", broken)
    done = train(folder)
    refused(done, 2, "the run was saved without metrics")
    assert "u17" not in done.stderr
    assert report(folder).metrics == ()
    assert budget.balance("small").spent_epsilon == pytest.approx(3.5, abs=0.01)  # nothing is given back


def test_a_run_whose_budget_went_to_another_job_meanwhile_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = ledger(folder, 4.0)
    whole = held_out.MetricsPlan.run

    def too_late(self: held_out.MetricsPlan, *given: object, **more: object) -> object:
        event = mechanisms.to_json(mechanisms.gaussian(noise_multiplier=6.0))
        other = Charge(event=event, delta=1e-5, unit="user", neighbors="add-remove", purpose="another job", epsilon=0.9)
        budget.reserve("small", other)
        return whole(self, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(held_out.MetricsPlan, "run", too_late)
    refused(train(folder), 3, "the run was saved without metrics, which did not fit")
    assert report(folder).metrics == ()
    assert (folder / "run" / "model.safetensors").is_file()


def test_public_rows_may_be_judged_with_noise_for_nothing(folder: Path) -> None:
    (folder / "ads.toml").write_text(ADS_TOML.format(public="true"))
    (folder / "run.toml").write_text((RUN_TOML + EVALUATION).replace('[ledger]\nurl = "sqlite:///budget.db"\n', ""))
    done = train(folder)
    assert done.returncode == 0, done.stderr
    assert str(report(folder).metrics[0].release).endswith("charged to no ledger")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("test_fraction = 0.3\n", "", "[evaluation] needs held-out rows"),
        ("epsilon = 0.5\n", "", "missing key 'evaluation.epsilon'"),
        ("epsilon = 0.5", "epsilon = -1", "epsilon must be a positive finite number"),
        ("site =", "sight =", "'sight' is no categorical column"),
        ('["s1", "s2"]', "[]", "segments of 'site' must be named"),
        ('["s1", "s2"]', '["s1", "s1"]', "named once each"),
        ("epsilon = 0.5", "epsilon = 0.5\nsegment = 1", "unknown key 'evaluation.segment'"),
        ("epsilon = 0.5", "epsilon = 0.5\nrows_per_unit = 0", "rows_per_unit"),
        ("epsilon = 0.5", 'epsilon = 0.5\ncalibration = "plat"', "evaluation.calibration"),
    ],
)
def test_a_wrong_table_is_one_clear_line_and_costs_nothing(folder: Path, old: str, new: str, said: str) -> None:
    budget = ledger(folder)
    table = EVALUATION if old in EVALUATION else ""
    (folder / "run.toml").write_text((RUN_TOML if table else RUN_TOML.replace(old, new)) + EVALUATION.replace(old, new))
    refused(train(folder), 2, said)
    assert budget.history("small") == []


def test_without_the_library_that_counts_nothing_is_trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = ledger(folder)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    refused(train(folder), 2, "privads[signals]")
    assert budget.history("small") == []


def test_a_calibration_is_read_from_what_was_released_and_predict_applies_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without noise, against scikit-learn's logistic regression on the held-out rows themselves."""
    monkeypatch.setattr(Randomness, "rounded_gaussian", lambda self, count, *, noise_std: 0 * self.below(count, 2))
    monkeypatch.setattr(calibrate, "_shrunk", lambda deviation, variance: deviation)  # by the noise that there is not
    (folder / "ads.toml").write_text(ADS_TOML.format(public="true"))
    text = (RUN_TOML + EVALUATION).replace('[ledger]\nurl = "sqlite:///budget.db"\n', "")
    stated = 'epsilon = 28\nrows_per_unit = 5\ncalibration = "platt"'  # no user has more rows
    (folder / "run.toml").write_text(text.replace("epsilon = 0.5", stated))
    # one model, as what bins lose depends on its scores, and the mean of some models is off by more than a twentieth
    done = train(folder, "--set", "run.insecure_seed=1")
    assert done.returncode == 0, done.stderr
    model, schema = load(folder / "run")
    _, test = Logs(folder / "log.parquet", schema).split(test_fraction=0.3)
    batch = test.take(np.arange(len(test.units)))
    with torch.no_grad():
        at = model(batch)["click"].double().numpy()
    label = batch.labels["click"].numpy()
    positives, negatives = label.sum(), (1 - label).sum()
    target = np.where(label == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))  # Platt's, as weights of both
    both, halves = np.repeat([1, 0], len(at)), np.concatenate([target, 1 - target])
    oracle = LogisticRegression(C=np.inf).fit(np.tile(at, 2)[:, None], both, sample_weight=halves)
    slope, intercept = float(oracle.coef_[0, 0]), float(oracle.intercept_[0])
    (found,) = load_calibrations(folder / "run").values()
    # rows stand at the middles of bins, which are wide against this model's scores: a flatter slope, once by 0.25
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept), abs=0.4)
    assert found.apply(expit(at)).mean() == pytest.approx(label.mean(), rel=0.05)
    said = report(folder).model.calibration
    assert said == f"click: logit p' = {found.slope:.3g} logit p {found.intercept:+.3g}"
    assert said in (folder / "run" / "report.html").read_text().replace("&#39;", "'")

    assert privads(folder, "predict", "run", "log.parquet", "--out", "scores.parquet").returncode == 0
    scores = pyarrow.parquet.read_table(folder / "scores.parquet").to_pandas()
    expected = expit(found.slope * logit(scores["click_probability"]) + found.intercept)
    assert scores["click_calibrated"].to_numpy() == pytest.approx(expected.to_numpy())
    assert list(scores) == ["click_probability", "click_calibrated"]


def test_a_calibration_costs_nothing_more(folder: Path) -> None:
    budget = ledger(folder)
    assert train(folder, "--set", "evaluation.calibration=isotonic").returncode == 0
    _, metrics = budget.history("small")
    (found,) = load_calibrations(folder / "run").values()
    assert found.event_json == metrics.event
    assert budget.balance("small").spent_epsilon == pytest.approx(3.5, abs=0.01)
    assert "epsilon <= 0.50" in report(folder).headline


def test_delta_may_be_stated_by_itself(folder: Path) -> None:
    budget = ledger(folder)
    assert train(folder, "--set", "evaluation.delta=2e-6").returncode == 0
    assert budget.history("small")[1].delta == 2e-6


def test_json_is_the_report(folder: Path) -> None:
    ledger(folder)
    stated = json.loads(train(folder, "--json").stdout)
    assert stated["metrics"][0]["release"].startswith("epsilon <= 0.50")
