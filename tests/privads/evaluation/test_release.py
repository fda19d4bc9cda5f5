"""Metrics released with privacy: charged before a row is read, noise and bound as stated, faults seen."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from accounting import accountant
from accounting.budget import Budget, BudgetExceeded
from accounting.ledger import Ledger
from privads.batch import Batch
from privads.evaluation import release
from privads.evaluation.histogram import Grid, ScoreHistogram
from privads.evaluation.release import ReleaseError, release_metrics
from privads.logs.schema import Schema
from privads.noise import Randomness

ALPHA = 1e-6
BUDGET = Budget(epsilon=1.0, delta=1e-6, unit="user")


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


def _exact(store: Store, *, rows_per_unit: int = 1, tasks: tuple[str, ...] = ("click", "buy")) -> NDArray[np.float64]:
    """The vector that noise is added to."""
    found = release._counted(Echo(), store, tasks, Grid(bins=72), "user", rows_per_unit, np.random.default_rng(0))
    return np.concatenate([cell for task in tasks for cell in (found[task].positives, found[task].negatives)])


def test_a_release_costs_what_the_ledger_was_charged_and_says_what_the_rows_say(ledger: Ledger) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(-1.0, 1.0, 20_000)
    labels = rng.random(20_000) < 1 / (1 + np.exp(-logits))
    found = release_metrics(Echo(), Store(np.arange(20_000), logits, labels), BUDGET, ledger=ledger, tasks=["click"])
    assert accountant.epsilon(found.event, delta=BUDGET.delta).upper <= 1.0
    (entry,) = ledger.history("ads")
    assert entry.state == "committed"
    assert 0.99 < float(entry.epsilon) <= 1.0
    exact = ScoreHistogram.of(labels, 1 / (1 + np.exp(-logits)))
    click = found.metrics["click"]
    assert click.auc.value == pytest.approx(exact.auc, abs=0.02)
    assert click.calibration.value == pytest.approx(exact.sums.calibration, rel=0.05)
    assert click.calibration.low < click.calibration.value < click.calibration.high
    assert found.histograms["click"].event is found.event


def test_a_refused_charge_reads_nothing(ledger: Ledger) -> None:
    too_much = Budget(epsilon=5.0, delta=1e-6, unit="user")
    with pytest.raises(BudgetExceeded):
        release_metrics(Echo(), Unread([0], [0.0], [1]), too_much, ledger=ledger)
    assert ledger.history("ads") == []


def test_the_charge_is_open_before_the_first_row_is_read(ledger: Ledger) -> None:
    states = []

    class Watched(Store):
        @property
        def units(self) -> NDArray[np.int64]:
            states.append([entry.state for entry in ledger.history("ads")])
            return super().units

    release_metrics(Echo(), Watched([0, 1], [0.0, 1.0], [0, 1]), BUDGET, ledger=ledger)
    assert states
    assert all(state == ["opened"] for state in states)


@pytest.mark.parametrize("tasks", [("click",), ("click", "buy")])
@pytest.mark.parametrize("rows_per_unit", [1, 3])
def test_one_unit_moves_the_vector_by_at_most_the_sensitivity(rows_per_unit: int, tasks: tuple[str, ...]) -> None:
    # adversarial: unit 0 has 50 rows, all in one cell; then 50 rows spread over all cells
    sensitivity = rows_per_unit * math.sqrt(len(tasks))
    others = np.arange(1, 20)
    for logits in (np.zeros(50), np.linspace(-9, 5, 50)):
        with_it = Store(np.r_[np.zeros(50), others], np.r_[logits, np.zeros(19)], np.ones(69))
        without = Store(others, np.zeros(19), np.ones(19))
        moved = _exact(with_it, rows_per_unit=rows_per_unit, tasks=tasks)
        moved = moved - _exact(without, rows_per_unit=rows_per_unit, tasks=tasks)
        assert np.linalg.norm(moved) <= sensitivity + 1e-12
        if not logits.any():
            assert np.linalg.norm(moved) == pytest.approx(sensitivity)  # the bound is reached, so it is not loose


def test_fault_without_the_row_bound_the_sensitivity_is_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "_kept", lambda units, *rest: np.arange(len(units)))
    store = Store(np.r_[np.zeros(50), [1]], np.zeros(51), np.ones(51))
    moved = _exact(store) - _exact(Store([1], [0.0], [1]))
    assert np.linalg.norm(moved) > math.sqrt(2)


def _std_is(values: NDArray[np.float64], noise_std: float) -> bool:
    statistic = (values**2).sum() / noise_std**2
    return bool(stats.chi2.ppf(ALPHA / 2, len(values)) < statistic < stats.chi2.isf(ALPHA / 2, len(values)))


def _noise(rows_per_unit: int, seed: int) -> tuple[NDArray[np.float64], float]:
    """All cells' noise in a release on 6,000 cells, of which nearly all are empty, and its stated std."""
    store = Store([0, 1], [0.0, 1.0], [1, 0], public=True)
    grid = Grid(bins=1_500)
    found = release_metrics(
        Echo(), store, BUDGET, ledger=None, rows_per_unit=rows_per_unit, grid=grid, insecure_seed=seed
    )
    exact = release._counted(Echo(), store, ("click", "buy"), grid, "user", 1, np.random.default_rng(0))
    parts = []
    for task, one in found.histograms.items():
        parts += [one.positives - exact[task].positives, one.negatives - exact[task].negatives]
    return np.concatenate(parts), found.noise_std


@pytest.mark.parametrize("rows_per_unit", [1, 4])
def test_noise_has_the_std_that_the_event_and_the_sensitivity_ask_for(rows_per_unit: int) -> None:
    # 6,000 samples: alpha 1e-6, and an error of 10 % is missed with probability below 1e-6 (5,300 needed)
    noise, stated = _noise(rows_per_unit, seed=8)
    multiplier = release.calibrate.noise_multiplier(lambda s: release.mechanisms.gaussian(noise_multiplier=s), BUDGET)
    assert len(noise) >= 5_300
    assert stated == pytest.approx(multiplier * rows_per_unit * math.sqrt(2))
    assert _std_is(noise, multiplier * rows_per_unit * math.sqrt(2))
    assert stats.kstest(noise / stated, "norm").pvalue > ALPHA


def test_fault_half_the_noise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Randomness.normal_like
    monkeypatch.setattr(
        Randomness, "normal_like", lambda self, like, *, noise_std: whole(self, like, noise_std=noise_std / 2)
    )
    noise, stated = _noise(1, seed=8)
    assert not _std_is(noise, stated)


def test_noise_is_fresh_in_each_release_and_cell(ledger: Ledger) -> None:
    store = Store([0], [0.0], [1])
    one, two = (
        release_metrics(Echo(), store, replace(BUDGET, epsilon=0.5), ledger=ledger).histograms for _ in range(2)
    )
    cells = np.concatenate([h[t].positives for h in (one, two) for t in ("click", "buy")])
    assert len(np.unique(cells)) == len(cells)


def test_values_that_are_no_numbers_or_labels_raise_nothing(ledger: Ledger) -> None:
    store = Store([0, 1, 2, 3], [math.nan, math.inf, -math.inf, 0.0], [7, math.nan, 1, 0])
    found = release_metrics(Echo(), store, BUDGET, ledger=ledger)
    assert _exact(store).sum() == 8  # each row is still one count a task
    assert np.isfinite(found.histograms["click"].positives).all()


def test_no_rows_are_released_like_any_others(ledger: Ledger) -> None:
    found = release_metrics(Echo(), Store([], [], []), BUDGET, ledger=ledger)
    assert np.abs(found.histograms["click"].positives).min() > 0.0


def test_a_failure_in_the_rows_tells_nothing_and_gives_nothing_back(ledger: Ledger) -> None:
    class Broken(Store):
        def take(self, row_numbers: NDArray[np.int64]) -> Batch:
            raise RuntimeError("user 4711 has a bid of 13")

    with pytest.raises(ReleaseError, match="could not be read or scored") as refused:
        release_metrics(Echo(), Broken([0], [0.0], [1]), BUDGET, ledger=ledger)
    assert "4711" not in str(refused.value)
    assert refused.value.__suppress_context__
    assert ledger.balance("ads").spent_epsilon > 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows_per_unit": 0}, "rows_per_unit must be a whole number of at least 1, got 0"),
        ({"tasks": ["sale"]}, r"tasks must be different ones of \['click', 'buy'\]"),
        ({"tasks": ["buy", "buy"]}, "tasks must be different ones"),
        ({"ledger": None}, "needs its ledger"),
        ({"insecure_seed": 1}, "insecure_seed is refused"),
        ({"budget": Budget(epsilon=1, delta=1e-6, unit="device")}, "unit must be 'example' or 'user'"),
        ({"budget": Budget(epsilon=1, delta=1e-6, unit="example"), "rows_per_unit": 2}, "rows_per_unit must be 1"),
        ({"budget": Budget(epsilon=1, delta=1e-6, unit="user", neighbors="replace-label")}, "for neighbors"),
        ({"model": torch.nn.Identity()}, "the model must return a logit"),
    ],
)
def test_what_public_facts_forbid_is_refused_before_charge_and_reading(
    ledger: Ledger, changed: dict, message: str
) -> None:
    given = {"model": Echo(), "budget": BUDGET, "ledger": ledger} | changed
    with pytest.raises(ValueError, match=message):
        release_metrics(given.pop("model"), Unread([0], [0.0], [1]), given.pop("budget"), **given)
    assert ledger.history("ads") == []


class OfEveryKind(Store):
    """The same rows with a number, and with an event that waits: in half of them its window is open."""

    def __init__(self, units: object, logits: object, labels: object) -> None:
        super().__init__(units, logits, labels)
        facts = self.schema.model_dump()
        labels_ = {
            "orders": {"value": "orders", "kind": "count", "most": 5},
            "buy": {"time": "bought", "within_hours": 0.7, "waiting": True},
        }
        self.schema = Schema.load({**facts, "labels": labels_, "time": "shown"})

    def take(self, row_numbers: NDArray[np.int64]) -> Batch:
        batch = super().take(row_numbers)
        now = torch.where(torch.from_numpy(row_numbers) % 2 == 0, 0.7, 0.35)
        of = {"orders": batch.labels["buy"], "buy": batch.labels["buy"]}
        known = dict.fromkeys(of, batch.observed["buy"])
        return replace(batch, labels=of, observed=known, hours={"buy": torch.stack([now, now], dim=1)})


class EchoOfEveryKind(torch.nn.Module):
    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        logit = batch.dense[:, 0]
        return {"orders": logit, "buy": torch.stack([logit, torch.zeros_like(logit)], dim=1)}


def test_a_number_is_refused_before_the_charge_and_left_out_where_no_task_is_named(ledger: Ledger) -> None:
    rng = np.random.default_rng(1)
    store = OfEveryKind(np.arange(2000), rng.normal(size=2000), rng.integers(0, 2, 2000))
    with pytest.raises(ValueError, match="'orders' is a number, and this needs a label of yes or no: buy"):
        release_metrics(EchoOfEveryKind(), store, BUDGET, ledger=ledger, tasks=["orders"])
    only = store.schema.model_copy(update={"labels": {"orders": store.schema.labels["orders"]}})
    unread = Unread([0], [0.0], [1])
    unread.schema = only
    with pytest.raises(ValueError, match="the schema has no label of yes or no"):
        release_metrics(EchoOfEveryKind(), unread, BUDGET, ledger=ledger)
    assert ledger.history("ads") == []
    assert set(release_metrics(EchoOfEveryKind(), store, BUDGET, ledger=ledger).metrics) == {"buy"}


def test_an_event_that_waits_is_scored_by_its_probability_once_its_window_has_closed() -> None:
    logits, labels = np.linspace(-4, 4, 200), np.arange(200) % 3 == 0
    store, grid = OfEveryKind(np.arange(200), logits, labels), Grid(bins=72)
    found = release._counted(EchoOfEveryKind(), store, ["buy"], grid, "user", 1, np.random.default_rng(0))["buy"]
    closed = np.arange(200) % 2 == 0
    scores = 1 / (1 + np.exp(-logits.astype(np.float32).astype(np.float64)))
    expected = ScoreHistogram.of(labels[closed], scores[closed], grid=grid)
    assert np.array_equal(found.positives, expected.positives)
    assert np.array_equal(found.negatives, expected.negatives)
