"""A report is planned from public facts, charged before a row is read, and holds a log's sums with their noise."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from accounting.accountant import epsilon as account
from accounting.budget import Budget, BudgetExceeded
from accounting.ledger import Ledger
from privads.logs.logs import Logs
from privads.logs.reader import LogError
from privads.logs.schema import Schema
from privads.run_config import AttributionTable
from privads.signals.attribution import AttributionPlan
from privads.signals.report import Report

TALKINGDATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "talkingdata-adtracking" / "clicks.csv.gz"
DAY0 = datetime(2026, 1, 5)
ROWS = [  # user, hours until it was shown, hours from then to the purchase, site, shop, price
    ("a", 1, 2, "news", "s1", 30.0),
    ("a", 2, None, "games", "s1", 10.0),  # shown later: the purchase of the first row at hour 3 is its own
    ("b", 5, 24, "news", "s1", 20.0),
    ("b", 6, None, "games", "s2", 50.0),  # of another shop
    ("c", 30, 1, "=1+1", "s2", None),
    ("d", 40, 1, None, "s1", 99.0),
    ("e", -1, 1, "news", "s1", 5.0),  # before the period
    ("f", 7 * 24, 1, "news", "s1", 5.0),  # after it
]
FACTS: dict[str, Any] = {
    "dataset": "made-up",
    "population": 10,
    "unit": ["user"],
    "time": "shown_at",
    "public": True,
    "labels": {"bought": {"time": "bought_at", "within_hours": 3}},  # what the interface looks back is its own
    "numeric": {"price": {"range": [0, 100]}},
    "categorical": {"site": {"buckets": 8}, "shop": {"buckets": 8}},
}
BASE: dict[str, Any] = {
    "api": "w3c",
    "epsilon": 1.0,
    "label": "bought",
    "keys": {"site": ["news", "games", "tv", "=1+1"]},
    "start": DAY0,
    "days": 7,
}
COST: dict[str, dict[str, Any]] = {
    "w3c": {"epsilon": 2.0, "delta": 1e-6, "unit": "user"},
    "event": {"epsilon": 28.1, "delta": 1e-6, "unit": "example"},
    "summary": {"epsilon": 1.0, "delta": 1e-6, "unit": "user"},
}


def write(folder: Path, rows: list[tuple[Any, ...]], **columns: list[Any]) -> Path:
    shown = [DAY0 + timedelta(hours=row[1]) for row in rows]
    frame = pd.DataFrame(
        {
            "user": [row[0] for row in rows],
            "shown_at": pd.array(shown, dtype="datetime64[us]"),
            "bought_at": pd.array(
                [None if row[2] is None else at + timedelta(hours=row[2]) for at, row in zip(shown, rows, strict=True)],
                dtype="datetime64[us]",
            ),
            "site": [row[3] for row in rows],
            "shop": [row[4] for row in rows],
            "price": [row[5] for row in rows],
        }
    ).assign(**columns)
    file = folder / "log.parquet"
    frame.to_parquet(file)
    return file


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write(tmp_path, ROWS)


def facts(**changes: Any) -> Schema:
    return Schema.load({**FACTS, **changes})


def planned(schema: Schema, cost: dict[str, Any] | None = None, **changes: Any) -> AttributionPlan:
    asked = AttributionTable(**{**BASE, **changes})
    return AttributionPlan.of(asked, schema, **(cost or COST[asked.api]))


def exact(log: Path, cost: dict[str, Any] | None = None, **changes: Any) -> dict[str, dict[tuple[Any, ...], float]]:
    schema = facts()
    plan = planned(schema, cost, **changes)
    found = plan.exact(Logs(log, schema))
    return {name: dict(zip(plan.keys, values.tolist(), strict=True)) for name, values in found.items()}


# What is counted


def test_w3c_credits_the_latest_impression_of_the_browser(log: Path) -> None:
    # the purchases of a at hour 3 and of b at hour 29 go to what was shown last: games, twice
    found = exact(log)["conversions"]
    assert found == {("news",): 0, ("games",): 2, ("tv",): 0, ("=1+1",): 1}


def test_w3c_conversions_match_the_impressions_of_their_own_site(log: Path) -> None:
    cost = {**COST["w3c"], "epsilon": 4.0}
    found = exact(log, cost, conversion_site="shop", keys={"shop": ["s1", "s2"], "site": ["news", "games", "=1+1"]})
    assert {key: value for key, value in found["conversions"].items() if value} == {
        ("s1", "games"): 1,
        ("s1", "news"): 1,
        ("s2", "=1+1"): 1,
    }


def test_w3c_sums_values_in_steps_and_leaves_out_what_is_worth_nothing(log: Path) -> None:
    found = exact(log, value="price", value_steps=10)["price"]  # a: 30, b: 20 of 100 in steps of 10; c: unknown
    assert found == {("news",): 0, ("games",): 50, ("tv",): 0, ("=1+1",): 0}


def test_event_level_reports_count_by_datum_and_window(log: Path) -> None:
    found = exact(
        log, api="event", epsilon=6.0, value="price", value_edges=[25.0], windows_days=[1, 7], conversion_site="shop"
    )
    assert found["reports"] == {("news",): 1, ("games",): 1, ("tv",): 0, ("=1+1",): 1}
    assert found["datum0_window0"] == {("news",): 1, ("games",): 0, ("tv",): 0, ("=1+1",): 1}
    assert found["datum1_window0"] == {("news",): 0, ("games",): 1, ("tv",): 0, ("=1+1",): 0}


def test_summaries_come_back_in_conversions_and_in_the_columns_own_unit(log: Path) -> None:
    found = exact(log, api="summary", value="price")
    assert found["conversions"] == {("news",): 0, ("games",): 2, ("tv",): 0, ("=1+1",): 1}
    assert found["price"][("games",)] == pytest.approx(50.0, abs=0.01)
    assert found["price"][("=1+1",)] == 0


def test_only_impressions_of_the_period_count(log: Path) -> None:
    assert exact(log, start=DAY0 - timedelta(hours=2))["conversions"][("news",)] == 1
    assert exact(log, days=8, cost={**COST["w3c"], "epsilon": 3.0})["conversions"][("news",)] == 1
    aware = datetime(2026, 1, 4, 22, tzinfo=UTC)
    assert exact(log, start=aware)["conversions"][("news",)] == 1


def test_a_log_whose_rows_are_their_own_units_has_a_browser_for_each(log: Path) -> None:
    schema = facts(unit=[])
    plan = planned(schema, {**COST["w3c"], "unit": "example"})
    assert plan.exact(Logs(log, schema))["conversions"].tolist() == [2, 0, 0, 1]


def test_the_side_of_a_split_is_what_was_known_then(log: Path) -> None:
    schema = facts()
    train, _ = Logs(log, schema).split(after=DAY0 + timedelta(hours=10))
    found = planned(schema).exact(train)["conversions"]  # b bought at hour 29
    assert found.tolist() == [0, 1, 0, 0]


def test_rows_that_a_label_puts_on_a_side_are_refused_where_labels_are_protected(log: Path, tmp_path: Path) -> None:
    """Whether a row has an answer at all would tell its label, without noise."""
    schema = facts(unit=[], public=False)
    limit = Budget(epsilon=100.0, delta=1e-5, unit="example", neighbors="replace-label")
    ledger = Ledger.init(f"sqlite:///{tmp_path / 'budget.db'}", dataset="made-up", budget=limit)
    plan = planned(schema, COST["event"], api="event")
    by_hash, by_time = (Logs(log, schema).split(**how)[0] for how in ({"test_fraction": 0.5}, {"after": DAY0}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="split them by time"):
        plan.run(by_hash, ledger=ledger)
    assert ledger.balance("made-up").spent_epsilon == 0
    assert plan.run(by_time, ledger=ledger).entry is not None


# Noise


@pytest.mark.parametrize(("api", "scale"), [("w3c", 2.0), ("summary", 1.0)])
def test_every_declared_cell_has_its_noise(log: Path, api: str, scale: float) -> None:
    keys = {"site": [str(i) for i in range(20_000)]}  # none is in the log
    schema = facts()
    found = planned(schema, api=api, keys=keys).run(Logs(log, schema), ledger=None)
    values, std = found.values["conversions"], found.noise_std["conversions"]
    assert (std == std[0]).all()
    # the variance of 20,000 Laplace draws has a relative deviation of sqrt(5 / 20,000), 1.6 %: 5.5 of them by chance
    # below 1e-6; a std that is 10 % off is 12 deviations away
    assert values.var() / std[0] ** 2 == pytest.approx(1.0, abs=5.5 * (5 / 20_000) ** 0.5)
    assert std[0] == pytest.approx(2**0.5 * scale, rel=0.03)  # in conversions
    assert abs(values.mean()) < 5.5 * std[0] / 20_000**0.5


def test_every_source_answers_at_random(tmp_path: Path) -> None:
    file = write(tmp_path, [(str(i), 1, None, "news", "s1", 1.0) for i in range(20_000)])
    schema = facts()
    found = planned(schema, api="event").run(Logs(file, schema), ledger=None)  # of two states p = 2 / (2 + e - 1)
    p = 2 / (1 + np.e)
    std = (20_000 * (p / 2) * (1 - p / 2)) ** 0.5 / (1 - p)
    assert found.noise_std["reports"][0] == pytest.approx(std, rel=0.05)
    # nothing was reported: beyond 5.5 deviations by chance below 4e-8; answers as they are would be 80 deviations low
    assert 0 < abs(found.values["reports"][0]) < 5.5 * std
    assert found.values["reports"][1] == 0  # games, which no ad was on: that is public


def test_two_reports_have_different_noise_unless_a_public_log_is_seeded(log: Path) -> None:
    schema = facts()
    for api in COST:
        plan = planned(schema, api=api, keys={"site": ["news", *map(str, range(50))]}, epsilon=1.0)
        seeded = [plan.run(Logs(log, schema), ledger=None, insecure_seed=seed) for seed in (1, 1, 2)]
        figures = [next(iter(one.values.values())).tolist() for one in seeded]
        assert figures[0] == figures[1]
        if api != "event":  # of eight sources all answers may be alike
            assert figures[0] != figures[2]
            assert plan.run(Logs(log, schema), ledger=None).values["conversions"].tolist() != figures[0]


# What it costs, and when


@pytest.fixture
def private(log: Path) -> tuple[Logs, Ledger]:
    url = f"sqlite:///{log.parent / 'budget.db'}"
    ledger = Ledger.init(url, dataset="made-up", budget=Budget(epsilon=3.0, delta=1e-5, unit="user"))
    return Logs(log, facts(public=False)), ledger


def test_the_ledger_is_charged_before_the_first_row_is_read(
    private: tuple[Logs, Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs, ledger = private
    states: list[str] = []
    whole = Logs._read

    def watched(self: Logs, *, raw: bool) -> Iterator[Any]:
        states.extend(entry.state for entry in ledger.history("made-up"))
        return whole(self, raw=raw)

    monkeypatch.setattr(Logs, "_read", watched)
    found = planned(logs.source).run(logs, ledger=ledger)
    (entry,) = ledger.history("made-up")
    assert states == ["opened"]
    assert (entry.state, str(entry.id), entry.purpose) == ("committed", found.entry, "attribute w3c")
    assert entry.epsilon == pytest.approx(2.0, rel=1e-6)
    assert account(found.event, delta=1e-6).upper == pytest.approx(found.epsilon)
    assert found.seen == {}  # what single devices show is for public rows alone


def test_a_report_beyond_the_budget_reads_nothing(
    private: tuple[Logs, Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs, ledger = private
    plan = planned(logs.source, {**COST["w3c"], "epsilon": 4.0}, days=15)
    monkeypatch.setattr(Logs, "_read", None)
    with pytest.raises(BudgetExceeded):
        plan.run(logs, ledger=ledger)
    assert not ledger.history("made-up")


def test_labels_are_charged_to_a_ledger_for_labels(log: Path) -> None:
    budget = Budget(epsilon=7.0, delta=1e-5, unit="example", neighbors="replace-label")
    ledger = Ledger.init(f"sqlite:///{log.parent / 'labels.db'}", dataset="made-up", budget=budget)
    schema = facts(public=False)
    found = planned(schema, {**COST["event"], "epsilon": 6.1}, api="event", epsilon=3.0).run(
        Logs(log, schema), ledger=ledger
    )
    (entry,) = ledger.history("made-up")
    assert (entry.neighbors, entry.unit) == ("replace-label", "example")
    assert entry.epsilon == pytest.approx(6.0, rel=1e-6)
    assert "example, replace/label" in found.cost


def test_rows_that_fail_stay_paid_for_and_are_not_told(
    private: tuple[Logs, Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs, ledger = private

    def broken(self: AttributionPlan, raw: Any) -> Any:
        raise RuntimeError("user a saw news")

    monkeypatch.setattr(AttributionPlan, "_cells", broken)
    with pytest.raises(LogError) as refused:
        planned(logs.source).run(logs, ledger=ledger)
    assert "user a" not in str(refused.value)
    (entry,) = ledger.history("made-up")
    assert entry.state == "opened"


def test_private_rows_need_a_ledger_and_noise_from_the_system_and_show_no_exact_figure(log: Path) -> None:
    schema = facts(public=False)
    plan, logs = planned(schema), Logs(log, schema)
    with pytest.raises(ValueError, match="needs its ledger"):
        plan.run(logs, ledger=None)
    with pytest.raises(ValueError, match="insecure_seed is refused"):
        plan.run(logs, ledger=None, insecure_seed=1)
    with pytest.raises(ValueError, match="without noise are refused"):
        plan.exact(logs)


# What is refused, before anything is charged


@pytest.mark.parametrize(
    ("changes", "cost", "message"),
    [
        ({}, {"epsilon": 1.0}, r"costs epsilon 2 \(delta 1e-06, user, add/remove\), more than plan.epsilon, 1"),
        ({"days": 30}, {}, "costs epsilon 6 "),
        ({}, {"unit": "example"}, "plan.unit must be 'user'"),
        ({"api": "event"}, {"unit": "user"}, "plan.unit must be 'example' for api = 'event'"),
        ({"api": "summary", "sources_per_unit": 4}, {}, "attribution.epsilon times sources_per_unit"),
        ({"label": "clicked"}, {}, "'clicked' is no label"),
        ({"keys": {"sight": ["a"]}}, {}, "'sight' is no categorical column"),
        ({"keys": {"price": ["a"]}}, {}, "'price' is no categorical column"),
        ({"value": "site"}, {}, "'site' is no numeric column"),
        ({"impression_site": "where"}, {}, "'where' is no categorical column"),
        ({"conversion_site": "shop"}, {}, "name those to be shown, keys.shop"),
        ({"keys": {"site": [str(i) for i in range(2000)], "shop": [str(i) for i in range(2000)]}}, {}, "4000000 cells"),
        ({"site_budget": 900.0, "global_budget": 4000.0}, {}, "protects nobody"),
    ],
)
def test_what_the_schema_or_the_budget_do_not_allow_is_one_clear_line(
    changes: dict[str, Any], cost: dict[str, Any], message: str
) -> None:
    api = changes.get("api", "w3c")
    with pytest.raises(ValueError, match=message) as refused:
        planned(facts(), {**COST[api], **cost}, **changes)
    assert "\n" not in str(refused.value)


def test_a_label_without_a_time_and_a_range_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="does not say when its event came"):
        planned(facts(labels={"bought": "is_bought"}))
    with pytest.raises(ValueError, match="must begin at 0 or above"):
        planned(facts(numeric={"price": {"range": [-1, 1]}}), value="price")
    with pytest.raises(ValueError, match="'conversions', which is a figure"):
        planned(facts(categorical={"conversions": {"buckets": 4}}), keys={"conversions": ["a"]})


def test_a_log_of_another_schema_or_read_through_features_is_refused(log: Path) -> None:
    plan = planned(facts())
    with pytest.raises(ValueError, match="of another schema"):
        plan.run(Logs(log, facts(population=11)), ledger=None)
    with pytest.raises(LogError, match="no column 'bought_at'"):
        plan.run(Logs(write_without(log, "bought_at"), facts()), ledger=None)


def write_without(log: Path, column: str) -> Path:
    other = log.parent / "other.parquet"
    pd.read_parquet(log).drop(columns=column).to_parquet(other)
    return other


# Hostile rows


@pytest.mark.parametrize(
    "columns",
    [
        {"price": [1e308, -1e308, float("inf"), float("nan"), 0.0, 1.0, 2.0, 3.0]},
        {"price": ["=HYPERLINK(1)", "x", None, "", "nan", "1e999", "-5", "7"]},
        {"site": ["x" * 100_000, "\x1b[31m", "", " ", "=1+1", "a\nb", "\u202e", "news"]},
        {"user": ["a"] * 8},
        {"user": [None, "a", "a", "a", "a", "a", "a", "a"]},
        {"shown_at": [1, 2, 3, 4, 5, 6, 7, 8]},
        {"bought_at": ["yesterday"] * 8},
        {"shown_at": [datetime(1, 1, 1)] * 4 + [datetime(9999, 12, 30)] * 4},
    ],
    ids=lambda columns: next(iter(columns)),
)
@pytest.mark.parametrize("api", sorted(COST))
def test_hostile_rows_are_left_out_or_counted_and_decide_nothing_visible(
    tmp_path: Path, columns: dict[str, list[Any]], api: str
) -> None:
    budget = Budget(
        epsilon=30.0, delta=1e-5, unit=COST[api]["unit"], neighbors="replace-label" if api == "event" else "add-remove"
    )
    ledger = Ledger.init(f"sqlite:///{tmp_path / 'budget.db'}", dataset="made-up", budget=budget)
    schema, file = facts(public=False), write(tmp_path, ROWS, **columns)
    extra = {"value_edges": [50.0]} if api == "event" else {}
    found = planned(schema, api=api, value="price", **extra).run(Logs(file, schema), ledger=ledger)
    assert isinstance(found, Report)
    assert all(np.isfinite(one).all() for one in (*found.values.values(), *found.noise_std.values()))
    (entry,) = ledger.history("made-up")
    assert entry.state == "committed"


@pytest.mark.skipif(not TALKINGDATA.is_file(), reason="the real logs are not part of the repository: no ../shared/data")
def test_real_clicks_are_attributed_to_the_apps_they_were_on() -> None:
    schema = Schema.load("talkingdata")
    clicks = pd.read_csv(TALKINGDATA, parse_dates=["click_time", "attributed_time"], dtype={"app": str})
    apps = clicks.loc[clicks["attributed_time"].notna(), "app"].value_counts().head(5).index.tolist()
    changes = {"label": "conversion", "keys": {"app": apps}, "start": datetime(2017, 11, 6), "days": 4}
    own = clicks[clicks["attributed_time"].notna()].groupby("app").size()
    for api in ("w3c", "summary"):
        plan = planned(schema, {**COST[api], "unit": "device"}, api=api, conversion_site=None, **changes)
        found = plan.exact(Logs(TALKINGDATA, schema))["conversions"]
        # an install may be credited to a later click of the same device: the sum over apps hardly changes
        assert 0.5 * own[apps].sum() < found.sum() <= len(clicks[clicks["attributed_time"].notna()])
