"""Metrics released with privacy: charged before a row is read, noise and bound as stated, faults seen."""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score

from accounting import accountant, mechanisms
from accounting.budget import Budget, BudgetExceeded
from accounting.ledger import Ledger
from privads.batch import Batch
from privads.evaluation import scored
from privads.evaluation.histogram import ScoreHistogram, log_odds
from privads.evaluation.release import MetricsPlan, MetricsRelease, release_metrics
from privads.logs.logs import Logs
from privads.logs.reader import LogError
from privads.logs.schema import Schema
from privads.noise import Randomness
from privads.signals import release as release_module

ALPHA = 1e-6
BUDGET = Budget(epsilon=1.0, delta=1e-6, unit="user")
GRID = log_odds(bins=72)


class Store:
    """Rows in memory whose one number is the logit that `Echo` returns."""

    def __init__(self, units: object, logits: object, labels: object, *, public: bool = False) -> None:
        self._units, self._logits, self._labels = (np.asarray(each) for each in (units, logits, labels))
        self.schema = Schema.load(
            {
                "dataset": "ads",
                "population": 100,
                "rows": 1000,
                "unit": ["user"],
                "public": public,
                "labels": {"click": "click", "buy": "buy"},
                "numeric": {"x": {"range": [-1, 1]}},
                "categorical": {"site": {"buckets": 2}},
            }
        )

    def check(self) -> None: ...

    @property
    def units(self) -> NDArray[np.int64]:
        return self._units.astype(np.int64)

    def take(self, row_numbers: NDArray[np.int64]) -> Batch:
        rows = len(row_numbers)
        label = torch.from_numpy(self._labels[row_numbers].astype(np.float32))
        return Batch(
            dense=torch.from_numpy(self._logits[row_numbers].astype(np.float32))[:, None],
            ids=torch.zeros(rows, dtype=torch.int64),
            offsets=torch.arange(rows + 1),
            labels={"click": label, "buy": label},
            observed={"click": torch.ones(rows, dtype=torch.bool), "buy": torch.ones(rows, dtype=torch.bool)},
            weights=torch.ones(rows),
        )

    def reference(self, task: str) -> None:
        return None


class Unread(Store):
    """A store that must not be read."""

    @property
    def units(self) -> NDArray[np.int64]:
        raise AssertionError("the rows were read")

    def take(self, row_numbers: NDArray[np.int64]) -> Batch:
        raise AssertionError("the rows were read")


class Echo(torch.nn.Module):
    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"click": batch.dense[:, 0], "buy": batch.dense[:, 0]}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    limit = Budget(epsilon=3.0, delta=1e-5, unit="user")
    return Ledger.init(f"sqlite:///{tmp_path}/budget.db", dataset="ads", budget=limit)


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Randomness, "rounded_gaussian", lambda self, count, *, noise_std: np.zeros(count, np.int64))


def public(store: Store) -> Store:
    store.schema = store.schema.model_copy(update={"public": True})
    return store


def cells(found: MetricsRelease) -> NDArray[np.float64]:
    """All cells of a release, one after the other."""
    return np.concatenate(
        [cell for one in found.readings for cell in (one.histogram.positives, one.histogram.negatives)]
    )


def exact(store: Store, **given: object) -> NDArray[np.float64]:
    """The vector that noise is added to; use it with ``no_noise``."""
    return cells(release_metrics(Echo(), public(store), BUDGET, ledger=None, **given))  # type: ignore[arg-type]


# What is charged, and when


def test_a_release_costs_what_the_ledger_was_charged_and_says_what_the_rows_say(ledger: Ledger) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(-1.0, 1.0, 20_000)
    labels = rng.random(20_000) < 1 / (1 + np.exp(-logits))
    found = release_metrics(Echo(), Store(np.arange(20_000), logits, labels), BUDGET, ledger=ledger, tasks=["click"])
    assert accountant.epsilon(found.event, delta=BUDGET.delta).upper <= 1.0
    (entry,) = ledger.history("ads")
    assert entry.state == "committed"
    assert 0.99 < float(entry.epsilon) <= 1.0
    click = found.metrics["click"]
    assert click.auc.value == pytest.approx(roc_auc_score(labels, logits), abs=0.02)
    assert click.log_loss.value == pytest.approx(log_loss(labels, 1 / (1 + np.exp(-logits))), abs=0.02)
    assert click.calibration.value == pytest.approx(1.0, rel=0.06)
    assert click.calibration.low < click.calibration.value < click.calibration.high
    assert found.histograms["click"].event is found.event
    assert str(entry.id) == found.entry
    assert found.cost.startswith(
        "epsilon <= 1.00 (delta 1e-06, user, add/remove, all metrics of these rows), charged by"
    )


@pytest.mark.parametrize(("rows_per_unit", "tasks"), [(1, ["click"]), (4, ["click", "buy"])])
def test_what_is_charged_is_the_event_of_the_noise(ledger: Ledger, rows_per_unit: int, tasks: list[str]) -> None:
    """T tables, to each of which a unit adds a vector of length m at most, with noise s: T Gaussians of s / m."""
    found = release_metrics(
        Echo(), Store([0], [0.0], [1]), BUDGET, ledger=ledger, rows_per_unit=rows_per_unit, tasks=tasks
    )
    (entry,) = ledger.history("ads")
    each = mechanisms.gaussian(noise_multiplier=found.noise_std / rows_per_unit)
    drawing = mechanisms.approximate_dp(epsilon=0.0, delta=(1 + math.e) * 2.0**-64)  # 2^36 draws, each within 2^-100
    made = mechanisms.composed(mechanisms.repeated(each, len(tasks)), drawing)
    assert entry.event == mechanisms.to_json(made) == mechanisms.to_json(found.event)
    assert (entry.unit, entry.neighbors, entry.delta) == ("user", "add-remove", 1e-6)
    # T Gaussians are one of a vector of length m root(T): Gaussians compose exactly (Dong et al. 2022, corollary 3.3)
    together = mechanisms.gaussian(noise_multiplier=found.noise_std / (rows_per_unit * math.sqrt(len(tasks))))
    assert accountant.epsilon(together, delta=1e-6).upper == pytest.approx(found.epsilon, rel=1e-3)


def test_a_refused_charge_reads_nothing(ledger: Ledger) -> None:
    too_much = Budget(epsilon=5.0, delta=1e-6, unit="user")
    with pytest.raises(BudgetExceeded):
        release_metrics(Echo(), Unread([0], [0.0], [1]), too_much, ledger=ledger)
    assert ledger.history("ads") == []


def _states_while_reading(ledger: Ledger) -> list[list[str]]:
    """What the ledger says whenever a row is looked at: who owns it, what it holds, what the model makes of it."""
    states = []

    class Watched(Store):
        @property
        def units(self) -> NDArray[np.int64]:
            states.append([entry.state for entry in ledger.history("ads")])
            return super().units

        def take(self, row_numbers: NDArray[np.int64]) -> Batch:
            states.append([entry.state for entry in ledger.history("ads")])
            return super().take(row_numbers)

    class WatchedEcho(Echo):
        def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
            if batch.weights.sum() > 0:  # made-up rows have no weight
                states.append([entry.state for entry in ledger.history("ads")])
            return super().forward(batch)

    release_metrics(WatchedEcho(), Watched([0, 1], [0.0, 1.0], [0, 1]), BUDGET, ledger=ledger)
    return states


def test_the_charge_is_open_before_the_first_row_is_read(ledger: Ledger) -> None:
    states = _states_while_reading(ledger)
    assert len(states) == 3
    assert all(state == ["opened"] for state in states)


def test_fault_a_charge_after_the_read_is_seen(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_first(source: scored.Scored) -> None:
        list(source.raw())

    monkeypatch.setattr(scored.Scored, "check", read_first)
    assert [] in _states_while_reading(ledger)


# What one unit can change


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("tasks", [("click",), ("click", "buy")])
@pytest.mark.parametrize("rows_per_unit", [1, 3])
def test_one_unit_moves_the_vector_by_at_most_the_sensitivity(rows_per_unit: int, tasks: tuple[str, ...]) -> None:
    # adversarial: unit 0 has 50 rows, all in one cell; then 50 rows spread over all cells
    sensitivity = rows_per_unit * math.sqrt(len(tasks))
    others = np.arange(1, 20)
    for logits in (np.zeros(50), np.linspace(-9, 5, 50)):
        with_it = Store(np.r_[np.zeros(50), others], np.r_[logits, np.zeros(19)], np.ones(69))
        without = Store(others, np.zeros(19), np.ones(19))
        moved = exact(with_it, rows_per_unit=rows_per_unit, tasks=tasks)
        moved = moved - exact(without, rows_per_unit=rows_per_unit, tasks=tasks)
        assert np.linalg.norm(moved) <= sensitivity + 1e-12
        if not logits.any():
            assert np.linalg.norm(moved) == pytest.approx(sensitivity)  # the bound is reached, so it is not loose


@pytest.mark.usefixtures("no_noise")
def test_fault_without_the_row_bound_the_sensitivity_is_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_module, "_owners", lambda schema, unit: 0)
    store = Store(np.r_[np.zeros(50), [1]], np.zeros(51), np.ones(51))
    moved = exact(store) - exact(Store([1], [0.0], [1]))
    assert np.linalg.norm(moved) > math.sqrt(2)


OWNERS = [1, 11, 111, -1, 2**53, 2**53 + 1, 0, 10]  # that a prefix, a sign, or float64 would merge


@pytest.mark.usefixtures("no_noise")
def test_units_are_told_apart_and_a_unit_s_rows_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two units taken for one would hide rows of one behind the other's; one taken for two would bring twice."""
    units, rows = np.repeat(OWNERS, 3), 3 * len(OWNERS)
    for most in (1, 2):
        found = exact(Store(units, np.zeros(rows), np.ones(rows)), rows_per_unit=most, tasks=["click"])
        assert found.sum() == most * len(OWNERS)
    monkeypatch.setattr(Store, "units", property(lambda self: self._units.astype(np.float64)))  # the planted fault
    assert exact(Store(units, np.zeros(rows), np.ones(rows)), tasks=["click"]).sum() == len(OWNERS) - 1


# The noise


def _std_is(values: NDArray[np.float64], noise_std: float) -> bool:
    statistic = (values**2).sum() / noise_std**2
    return bool(stats.chi2.ppf(ALPHA / 2, len(values)) < statistic < stats.chi2.isf(ALPHA / 2, len(values)))


def _noise(rows_per_unit: int, seed: int) -> tuple[NDArray[np.float64], float]:
    """All cells' noise in a release on 6,000 cells, of which all but four are empty, and its stated std."""
    store, grid = Store([0, 1], [0.0, 1.0], [1, 0], public=True), log_odds(bins=1_500)
    found = release_metrics(
        Echo(), store, BUDGET, ledger=None, rows_per_unit=rows_per_unit, grid=grid, insecure_seed=seed
    )
    one = ScoreHistogram.of([1, 0], [0.5, 1 / (1 + math.exp(-1.0))], grid=grid)
    return cells(found) - np.tile(np.concatenate([one.positives, one.negatives]), 2), found.noise_std


@pytest.mark.parametrize("rows_per_unit", [1, 4])
def test_noise_has_the_std_that_the_event_and_the_sensitivity_ask_for(rows_per_unit: int) -> None:
    # 6,000 samples: alpha 1e-6, and an error of 10 % is missed with probability below 1e-6 (5,300 needed)
    noise, stated = _noise(rows_per_unit, seed=8)
    assert len(noise) >= 5_300
    assert _std_is(noise, stated)
    assert not _std_is(noise / 2, stated)  # half the noise is seen
    smoothed = noise + np.random.default_rng(0).uniform(-0.5, 0.5, len(noise))  # the noise is a rounded normal
    assert stats.kstest(smoothed / stated, "norm").pvalue > ALPHA
    # By the definition of Gaussian privacy (Balle and Wang 2018, theorem 8), at sensitivity m root(2) of two tables
    scale = rows_per_unit * math.sqrt(2) / stated
    delta = stats.norm.cdf(scale / 2 - 1 / scale) - math.e * stats.norm.cdf(-scale / 2 - 1 / scale)
    assert 0.97e-6 < delta <= 1e-6


def test_every_cell_has_noise_and_one_without_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole noise of std 6 is 0 in one cell of 15: in twelve releases of 6,000 cells all in one with 6,000 / 15^12."""
    assert np.any([_noise(1, seed=seed)[0] != 0 for seed in range(12)], axis=0).all()
    whole = Randomness.rounded_gaussian

    def with_a_hole(self: Randomness, count: int, *, noise_std: float) -> NDArray[np.int64]:
        drawn = whole(self, count, noise_std=noise_std)
        drawn[count // 2] = 0
        return drawn

    monkeypatch.setattr(Randomness, "rounded_gaussian", with_a_hole)
    assert not np.any([_noise(1, seed=seed)[0] != 0 for seed in range(12)], axis=0).all()


def test_noise_is_fresh_in_each_release_and_cell(ledger: Ledger) -> None:
    """Whole noise of std 12 is the same twice with probability 0.024: in a fifth of 288 cells, below 1e-30."""
    store = Store([0], [0.0], [1])
    one, two = (cells(release_metrics(Echo(), store, replace(BUDGET, epsilon=0.5), ledger=ledger)) for _ in range(2))
    assert (one == two).mean() < 0.2
    assert (one[1:] == one[:-1]).mean() < 0.2


# Whatever the rows hold


@pytest.mark.usefixtures("no_noise")
def test_values_that_are_no_numbers_or_labels_raise_nothing(ledger: Ledger) -> None:
    store = Store([0, 1, 2, 3], [math.nan, math.inf, -math.inf, 0.0], [7, math.nan, 1, 0])
    found = release_metrics(Echo(), store, BUDGET, ledger=ledger, tasks=["click"]).histograms["click"]
    assert found.negatives.sum() == 2  # a label that is not 1 counts as 0; a score that is no number is in no bin
    assert (found.negatives[-1], found.positives[0]) == (1, 1)


def test_no_rows_are_released_like_any_others(ledger: Ledger) -> None:
    found = release_metrics(Echo(), Store([], [], []), BUDGET, ledger=ledger)
    assert _std_is(cells(found), found.noise_std)


@pytest.mark.parametrize("where", ["store", "model"])
def test_a_failure_in_the_rows_tells_nothing_and_gives_nothing_back(ledger: Ledger, where: str) -> None:
    class Broken(Store):
        def take(self, row_numbers: NDArray[np.int64]) -> Batch:
            raise RuntimeError("user 4711 has a bid of 13")

    class BrokenEcho(Echo):
        def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
            if batch.weights.sum() > 0:
                raise RuntimeError("user 4711 has a bid of 13")
            return super().forward(batch)

    store = (Broken if where == "store" else Store)([0], [0.0], [1])
    with pytest.raises(LogError, match="cannot be counted") as refused:
        release_metrics(BrokenEcho() if where == "model" else Echo(), store, BUDGET, ledger=ledger)
    assert "4711" not in str(refused.value)
    assert refused.value.__suppress_context__
    assert ledger.balance("ads").spent_epsilon > 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows_per_unit": 0}, "rows_per_unit must be a whole number of at least 1, got 0"),
        ({"rows_per_unit": 1.5}, "rows_per_unit must be a whole number"),
        ({"tasks": ["sale"]}, "'sale' is no label"),
        ({"tasks": []}, "metrics are released of labels of yes or no, and none is named or in the schema"),
        ({"tasks": ["buy", "buy"]}, "tasks must be different labels"),
        ({"ledger": None}, "needs its ledger"),
        ({"insecure_seed": 1}, "insecure_seed is refused"),
        ({"budget": Budget(epsilon=1, delta=1e-6, unit="device")}, "unit must be 'example' or 'user'"),
        ({"budget": Budget(epsilon=1, delta=1e-6, unit="example"), "rows_per_unit": 2}, "rows_per_unit is 1"),
        ({"budget": Budget(epsilon=1, delta=1e-6, unit="user", neighbors="replace-label")}, "under add-remove"),
        ({"model": torch.nn.Identity()}, r"the model must return outputs of shape \(rows,\) for 'click'"),
        ({"segments": {"country": ["x"]}}, "'country' is no categorical column"),
        ({"segments": {"site": []}}, "segments of 'site' must be named"),
        ({"segments": {"site": ["a", "a"]}}, "segments of 'site' must be named once each, got a, a"),
        ({"segments": {"site": ["a"]}}, "pass Logs"),
    ],
)
def test_what_public_facts_forbid_is_refused_before_charge_and_reading(
    ledger: Ledger, changed: dict, message: str
) -> None:
    given = {"model": Echo(), "budget": BUDGET, "ledger": ledger} | changed
    with pytest.raises(ValueError, match=message):
        release_metrics(given.pop("model"), Unread([0], [0.0], [1]), given.pop("budget"), **given)
    assert ledger.history("ads") == []


def test_without_the_library_that_counts_nothing_is_charged(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ImportError, match=r"privads\[signals\]"):
        release_metrics(Echo(), Unread([0], [0.0], [1]), BUDGET, ledger=ledger)
    assert ledger.history("ads") == []


# A log, and its segments


FACTS = {
    "dataset": "ads",
    "population": 100,
    "rows": 1000,
    "unit": ["user"],
    "public": True,
    "labels": {"click": "is_click"},
    "numeric": {"x": {"range": [-9, 5]}},
    "categorical": {"site": {"buckets": 8}},
}


class Linear(torch.nn.Module):
    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"click": 4.0 * batch.dense[:, 0]}


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = 3_000
    return pd.DataFrame(
        {
            "user": [f"u{number}" for number in rng.integers(0, 900, rows)],
            "site": rng.choice(["a", "b", "c", None], rows),
            "x": rng.uniform(-9, 5, rows),
            "is_click": rng.choice([0.0, 1.0, np.nan], rows),
        }
    )


def as_log(frame: pd.DataFrame, folder: Path, **facts: object) -> Logs:
    path = folder / "log.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
    return Logs(path, Schema.load({**FACTS, **facts}))


def by_hand(frame: pd.DataFrame, grid: object) -> tuple[list[float], list[float]]:
    """Clicks and others by bin, from the definition: the log scale of x, four times, in bins of equal width."""
    scaled = np.sign(frame["x"]) * np.log1p(np.abs(frame["x"]))
    low, high = -np.log(10), np.log(6)
    logit = 4 * (2 * (scaled - low) / (high - low) - 1)
    counts = [np.histogram(logit[frame["is_click"] == label], grid.edges)[0] for label in (1, 0)]  # type: ignore[attr-defined]
    return counts[0].tolist(), counts[1].tolist()


@pytest.mark.usefixtures("no_noise")
def test_a_log_is_counted_by_score_and_by_segment(frame: pd.DataFrame, tmp_path: Path) -> None:
    logs, grid = as_log(frame, tmp_path), log_odds(bins=5, low=-4.001, high=4.001)
    segments = {"site": ["a", "c", "nowhere"]}
    found = release_metrics(Linear(), logs, BUDGET, ledger=None, rows_per_unit=3_000, grid=grid, segments=segments)
    assert [(one.task, one.column, one.value) for one in found.readings] == [
        ("click", None, None),
        ("click", "site", "a"),
        ("click", "site", "c"),
        ("click", "site", "nowhere"),
    ]
    parts = (frame, *(frame[frame["site"] == value] for value in segments["site"]))
    for part, one in zip(parts, found.readings, strict=True):
        counted = (one.histogram.positives.tolist(), one.histogram.negatives.tolist())
        assert counted == by_hand(part, grid), one.value
    assert sum(map(sum, by_hand(frame, grid))) == frame["is_click"].notna().sum()  # the test's own bins miss no row


@pytest.mark.usefixtures("no_noise")
def test_each_label_is_counted_by_its_own_score_and_where_it_is_known() -> None:
    class Apart(Store):
        def take(self, row_numbers: NDArray[np.int64]) -> Batch:
            batch = super().take(row_numbers)
            known = {"click": batch.observed["click"], "buy": batch.labels["click"] == 1}  # one buys after a click
            return replace(batch, labels={**batch.labels, "buy": batch.dense[:, 0]}, observed=known)

    class Both(torch.nn.Module):
        def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {"buy": -2.0 + 0.0 * batch.dense[:, 0], "click": batch.dense[:, 0]}

    store = public(Apart([0, 1, 2, 3, 4], [1, 0, 1, 1, 0], [1, 1, 0, 1, 0]))
    found = release_metrics(Both(), store, BUDGET, ledger=None, grid=log_odds(bins=3, low=-2.5, high=1.5))
    counts = {task: (one.positives.tolist(), one.negatives.tolist()) for task, one in found.histograms.items()}
    # bins end at -1.17 and 0.17: clicks are scored 0 or 1, buys -2
    assert counts["click"] == ([0, 1, 2], [0, 1, 1])
    assert counts["buy"] == ([2, 0, 0], [1, 0, 0])


@pytest.mark.usefixtures("no_noise")
def test_a_number_has_no_such_metrics_and_a_label_that_waits_is_scored_by_its_probability(
    frame: pd.DataFrame, tmp_path: Path, ledger: Ledger
) -> None:
    class Waits(torch.nn.Module):
        def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
            logit = 4.0 * batch.dense[:, 0]
            return {"sale": torch.stack([logit, 0.0 * logit + 9.0], dim=1), "spent": logit}

    frame["t"] = pd.Timestamp("2026-11-01")
    frame["sold"] = [pd.Timestamp("2026-11-02") if one == 1 else pd.NaT for one in frame["is_click"]]
    frame["eur"] = 2.0
    labels = {
        "sale": {"time": "sold", "within_hours": 48, "waiting": True},
        "spent": {"value": "eur", "kind": "log-normal", "most": 100},
    }
    logs, grid = as_log(frame, tmp_path, time="t", labels=labels), log_odds(bins=5, low=-4.001, high=4.001)
    found = release_metrics(Waits(), logs, BUDGET, ledger=None, rows_per_unit=3_000, grid=grid)
    assert list(found.histograms) == ["sale"]
    sold = frame.assign(is_click=(frame["is_click"] == 1).astype(float))
    one = found.histograms["sale"]
    assert (one.positives.tolist(), one.negatives.tolist()) == by_hand(sold, grid)
    with pytest.raises(ValueError, match="'spent' is a number"):
        release_metrics(Waits(), logs, BUDGET, ledger=ledger, tasks=["spent"])
    assert ledger.history("ads") == []


def test_segments_are_a_table_more_for_each_task_and_all_have_the_noise_of_two(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    logs = as_log(frame, tmp_path)
    plans = [MetricsPlan.of(logs.source, BUDGET, segments=one).release for one in ({}, {"site": ["a", "b"]})]
    assert [len(plan.queries) for plan in plans] == [1, 2]
    assert plans[1].noise_std == pytest.approx(math.sqrt(2) * plans[0].noise_std, rel=1e-3)


@pytest.mark.usefixtures("no_noise")
def test_one_unit_moves_a_log_s_tables_by_at_most_the_sensitivity(frame: pd.DataFrame, tmp_path: Path) -> None:
    """Each other user has one row, so that the choice of rows is the same with and without the heavy one."""
    frame["is_click"] = frame["is_click"].fillna(1.0)
    frame = frame.drop_duplicates("user")
    heavy = pd.DataFrame({"user": "heavy", "site": "a", "x": 1.0, "is_click": 1.0}, index=range(80))
    vectors = []
    for number, rows in enumerate((frame, pd.concat([frame, heavy]))):
        (tmp_path / str(number)).mkdir()
        logs = as_log(rows, tmp_path / str(number))
        given = {"rows_per_unit": 2, "segments": {"site": ["a", "b"]}}
        vectors.append(cells(release_metrics(Linear(), logs, BUDGET, ledger=None, **given)))
    assert np.linalg.norm(vectors[1] - vectors[0]) == pytest.approx(2 * math.sqrt(2))


def test_a_score_made_from_other_rows_is_refused_where_single_rows_are_protected(
    frame: pd.DataFrame, tmp_path: Path, ledger: Ledger
) -> None:
    x = {"range": [-9, 5], "history": {"rows": 3}}
    logs = as_log(frame, tmp_path, public=False, numeric={"x": x})
    single = Budget(epsilon=1.0, delta=1e-6, unit="example")
    with pytest.raises(ValueError, match="'x' is made from other rows"):
        release_metrics(Linear(), logs, single, ledger=ledger)
    assert ledger.history("ads") == []


@pytest.mark.usefixtures("no_noise")
def test_a_unit_of_two_columns_is_each_pair_of_their_values(frame: pd.DataFrame, tmp_path: Path) -> None:
    """Joined as text, ("u1", "11") and ("u11", "1") would be one; by the first column alone, all days of a user."""
    rng = np.random.default_rng(0)
    users, days = rng.choice(["u1", "u11", "u2"], len(frame)), rng.choice(["1", "11", "2"], len(frame))
    frame = frame.assign(is_click=1.0, user=users, day=days)
    logs = as_log(frame, tmp_path, unit=["user", "day"], unit_name="user-day")
    budget = replace(BUDGET, unit="user-day")
    found = release_metrics(Linear(), logs, budget, ledger=None)
    assert cells(found).sum() == 9

    class Days(Store):
        def __init__(self) -> None:
            super().__init__(np.repeat([1, 2, 3], 4), np.zeros(12), np.ones(12), public=True)
            self.schema = self.schema.model_copy(update={"unit": ("user", "day"), "unit_name": "user-day"})

    found = release_metrics(Echo(), Days(), budget, ledger=None, tasks=["click"])
    assert cells(found).sum() == 3  # a store says by number who owns a row, whatever the columns


@pytest.mark.usefixtures("no_noise")
def test_rows_that_are_units_by_themselves_all_count(frame: pd.DataFrame, tmp_path: Path) -> None:
    single = Budget(epsilon=1.0, delta=1e-6, unit="example")
    found = release_metrics(Linear(), as_log(frame, tmp_path), single, ledger=None)
    assert cells(found).sum() == frame["is_click"].notna().sum()


def test_the_rows_are_read_once_and_nothing_is_written(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    whole = Logs.raw

    def watched(self: Logs) -> Iterator[object]:
        reads.append(1)
        return whole(self)

    monkeypatch.setattr(Logs, "raw", watched)
    monkeypatch.setattr("privads.logs.logs.cached", None)  # the file of encoded rows
    release_metrics(Linear(), as_log(frame, tmp_path), BUDGET, ledger=None, segments={"site": ["a"]})
    assert len(reads) == 1
