"""The simulator: its probabilities are exact, its shape is that of an ads log, its world is its seed's.

Statistical tests run on fixed seeds; the failure probability stated is over seeds, if the claim is true.
"""

import tomllib
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from scipy.special import expit, logit

from privads.evaluation.metrics import ScoreSums, auc
from privads.logs import simulator
from privads.logs.simulator import FIELDS, RANGES, delay_cdf, schema_toml, simulate

USERS = 20_000
START = datetime(2026, 11, 9)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return simulate(USERS, seed=0)


@pytest.fixture(scope="module")
def log(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas()
    delay = frame["converted_at"] - frame["shown_at"]
    return frame.assign(conversion=(delay <= pd.Timedelta(hours=24)).astype(int), delay=delay)


# The shape of the log


def test_every_user_appears_and_rows_match_the_mean(log: pd.DataFrame) -> None:
    per_user = log["user_id"].value_counts()
    assert set(per_user.index) == {f"u{number:06d}" for number in range(USERS)}
    std = np.sqrt(3 + 9 / simulator.IMPRESSIONS_SHAPE)  # of 1 + a negative binomial of mean 3
    assert abs(per_user.mean() - 4.0) < 5 * std / np.sqrt(USERS)  # fails with probability 6e-7


def test_impressions_per_user_have_a_heavy_tail(log: pd.DataFrame) -> None:
    per_user = log["user_id"].value_counts()
    assert per_user.median() <= 2
    assert per_user.max() > 30  # a Poisson of mean 4 passes 30 with probability 1e-17


def test_user_names_stay_distinct_beyond_six_digits() -> None:
    names = simulator._user_ids(np.array([7, 999_999, 1_000_000])).to_pylist()
    assert names == ["u000007", "u999999", "u1000000"]


def test_columns_have_the_stated_types(table: pa.Table) -> None:
    expected = {"user_id": pa.string(), "shown_at": pa.timestamp("us"), "converted_at": pa.timestamp("us")}
    expected |= {name: pa.string() for name in FIELDS} | {"is_click": pa.int8()}
    expected |= {"bayes_click": pa.float64(), "bayes_conversion": pa.float64(), "bid_usd": pa.float64()}
    assert {name: table.schema.field(name).type for name in expected} == expected
    assert set(table.column_names) == set(expected) | set(RANGES)


def test_rows_are_in_order_of_time_and_within_the_days(log: pd.DataFrame) -> None:
    assert log["shown_at"].is_monotonic_increasing
    assert log["shown_at"].min() >= START
    assert log["shown_at"].max() < START + pd.Timedelta(days=7)
    assert (log["hour"] == log["shown_at"].dt.strftime("h%H")).all()


@pytest.mark.parametrize("name", ["campaign", "site", "device", "country"])
def test_ids_are_zipf_distributed(log: pd.DataFrame, name: str) -> None:
    field = FIELDS[name]
    ranks = np.arange(1, field.size + 1)
    top = 1.0 / (ranks**-field.zipf).sum()
    seen = log[name].dropna()
    drawn = USERS if name in simulator.OF_A_USER else len(seen)
    if drawn == USERS:
        seen = log.drop_duplicates("user_id")[name].dropna()
    counts = seen.value_counts().reindex(field.names).to_numpy(dtype=float)
    assert abs(counts[0] / len(seen) - top) < 5 * np.sqrt(top * (1 - top) / len(seen))  # fails with 6e-7
    head = slice(0, 50)
    slope = np.polyfit(np.log(ranks[head]), np.log(counts[head]), 1)[0]
    assert slope == pytest.approx(-field.zipf, abs=0.08)  # its std is below 0.015


def test_an_advertiser_owns_its_campaigns(log: pd.DataFrame) -> None:
    assert (log.groupby("campaign")["advertiser"].nunique() == 1).all()
    assert log["advertiser"].nunique() == FIELDS["advertiser"].size


def test_what_belongs_to_a_user_is_the_same_in_all_its_rows(log: pd.DataFrame) -> None:
    for name in simulator.OF_A_USER:
        assert (log.fillna({name: "null"}).groupby("user_id")[name].nunique() == 1).all()


@pytest.mark.parametrize("name", FIELDS)
def test_categories_are_missing_at_their_rate(log: pd.DataFrame, name: str) -> None:
    rate, rows = FIELDS[name].missing, log
    if name in simulator.OF_A_USER:
        rows = log.drop_duplicates("user_id")
    missing = rows[name].isna()
    assert abs(missing.mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / len(rows))  # fails with 6e-7


def test_numbers_lie_in_their_public_ranges_but_for_the_tail_of_the_price(log: pd.DataFrame) -> None:
    for name, (low, high) in RANGES.items():
        beyond = (log[name] > high).mean()
        assert log[name].min() >= low
        assert beyond < 0.01
        assert (beyond > 0.0) == (name == "price_usd")


def test_prices_hide_where_they_are_high(log: pd.DataFrame) -> None:
    assert 0.03 < log["price_usd"].isna().mean() < 0.08
    shown_high = (log["price_usd"].dropna() > 100).mean()
    all_high = stats.norm.sf(np.log(4.0) / simulator.PRICE_SIGMA)
    assert shown_high < 0.9 * all_high
    assert 0.02 < log["bid_usd"].isna().mean() < 0.04


def test_recency_is_the_time_since_the_users_previous_row(log: pd.DataFrame) -> None:
    expected = log.groupby("user_id")["shown_at"].diff().dt.total_seconds() / 3600
    assert_allclose(log["user_recency_hours"], expected, atol=0.0051)


def test_campaigns_drift_apart_by_day(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _drift_p_value(simulate(20_000, seed=5)) < 1e-6
    monkeypatch.setattr(simulator, "DRIFT_PER_DAY", 0.0)
    assert _drift_p_value(simulate(20_000, seed=5)) > 1e-3  # fails with 1e-3: without drift the test is red


def _drift_p_value(table: pa.Table) -> float:
    """Do large campaigns' log-odds move otherwise than all rows' from first to last day? Chi-square."""
    log = table.to_pandas()
    day, value = (log["shown_at"] - START).dt.days, logit(log["bayes_click"])
    trend, total = value[day == 6].mean() - value[day == 0].mean(), 0.0
    for campaign in FIELDS["campaign"].names[:10]:
        first, last = (value[(log["campaign"] == campaign) & (day == when)] for when in (0, 6))
        moved = last.mean() - first.mean() - trend
        total += moved**2 / (first.var() / len(first) + last.var() / len(last))
    return float(stats.chi2.sf(total, 10))


def test_clicks_rise_over_the_days(log: pd.DataFrame) -> None:
    by_day = log.groupby((log["shown_at"] - START).dt.days)["bayes_click"].mean()
    assert 1.05 < by_day[6] / by_day[0] < 1.35  # e^(0.1 ln 7) = 1.21, and drift of the campaigns


# The labels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_label_rates(seed: int) -> None:
    log = simulate(5_000, seed=seed)
    assert 0.06 < np.mean(log["bayes_click"]) < 0.10
    assert 0.03 < np.mean(log["bayes_conversion"]) < 0.042


def test_conversions_follow_a_click_and_the_impression(log: pd.DataFrame) -> None:
    converted = log["converted_at"].notna()
    assert (log.loc[converted, "is_click"] == 1).all()
    assert (log.loc[converted, "delay"] > pd.Timedelta(0)).all()
    assert 0 < converted.sum() < log["is_click"].sum()
    assert (log.loc[converted, "delay"] > pd.Timedelta(hours=24)).any()


def test_delays_follow_their_distribution_whatever_the_row(log: pd.DataFrame) -> None:
    converted = log[log["converted_at"].notna()]
    hours = (converted["delay"].dt.total_seconds() / 3600).to_numpy()
    cdf = np.vectorize(delay_cdf)
    assert stats.kstest(hours, cdf).pvalue > 1e-6
    likely = (converted["bayes_conversion"] > converted["bayes_conversion"].median()).to_numpy()
    assert stats.ks_2samp(hours[likely], hours[~likely]).pvalue > 1e-6


def _z(labels: pd.Series, probabilities: pd.Series) -> float:
    return float((labels - probabilities).sum() / np.sqrt((probabilities * (1 - probabilities)).sum()))


TASKS = [("is_click", "bayes_click"), ("conversion", "bayes_conversion")]


@pytest.mark.parametrize(("label", "bayes"), TASKS)
def test_bayes_probabilities_are_calibrated(log: pd.DataFrame, label: str, bayes: str) -> None:
    # |z| < 5 fails with probability 6e-7; about 3,000 conversions miss an error of 20 % with 1e-8.
    assert abs(_z(log[label], log[bayes])) < 5
    assert abs(_z(log[label], 1.2 * log[bayes])) > 5  # fault: a probability 20 % off turns it red


@pytest.mark.parametrize(("label", "bayes"), TASKS)
def test_bayes_probabilities_are_calibrated_in_every_decile(log: pd.DataFrame, label: str, bayes: str) -> None:
    flat = expit(logit(log[bayes].mean()) + 0.7 * (logit(log[bayes]) - logit(log[bayes].mean())))
    limit = stats.chi2.isf(1e-6, 10)
    assert _chi_square(log[label], log[bayes]) < limit  # fails with probability 1e-6
    assert _chi_square(log[label], flat) > limit  # fault: effects of 0.7 the size


def _chi_square(labels: pd.Series, probabilities: pd.Series) -> float:
    decile = pd.qcut(probabilities, 10, labels=False)
    return sum(_z(labels[decile == number], probabilities[decile == number]) ** 2 for number in range(10))


@pytest.mark.parametrize(("label", "bayes"), TASKS)
def test_bayes_probabilities_are_calibrated_where_values_are_missing(log: pd.DataFrame, label: str, bayes: str) -> None:
    for name in ("site", "country", "age_band", "interest", "price_usd", "bid_usd", "user_recency_hours"):
        rows = log[log[name].isna()]
        assert abs(_z(rows[label], rows[bayes])) < 5  # each fails with 6e-7


@pytest.mark.parametrize(("label", "bayes"), TASKS)
def test_no_noisy_version_of_the_bayes_probability_is_better(log: pd.DataFrame, label: str, bayes: str) -> None:
    rng = np.random.default_rng(1)
    best = ScoreSums.of(log[label], log[bayes]).log_loss
    for _ in range(5):
        noisy = expit(logit(log[bayes]) + rng.normal(0, 0.4, len(log)))
        assert auc(log[label], log[bayes]) > auc(log[label], noisy)
        assert best < ScoreSums.of(log[label], noisy).log_loss


def test_signal_is_that_of_a_conversion_model(log: pd.DataFrame) -> None:
    assert 0.77 < auc(log["conversion"], log["bayes_conversion"]) < 0.83
    assert 0.74 < auc(log["is_click"], log["bayes_click"]) < 0.80


def test_an_interaction_is_none_that_a_sum_of_fields_expresses() -> None:
    rng = np.random.default_rng(0)
    rows, columns = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(6))
    table = simulator._interaction(rng.normal(size=(4, 6)), rows, columns, 0.5)
    assert_allclose(rows @ table, 0, atol=1e-12)
    assert_allclose(table @ columns, 0, atol=1e-12)
    assert rows @ table**2 @ columns == pytest.approx(0.25)


# The seed


def test_same_seed_same_log() -> None:
    assert simulate(300, seed=4).equals(simulate(300, seed=4))


def test_other_seed_other_log() -> None:
    assert not simulate(300, seed=4).equals(simulate(300, seed=5))


def test_longer_logs_come_from_the_same_world() -> None:
    short, long = (simulator._effects(np.random.default_rng(3), "click", days) for days in (2, 9))
    assert all(np.array_equal(short.fields[name], long.fields[name]) for name in FIELDS)
    assert np.array_equal(short.affinity, long.affinity)
    assert np.array_equal(short.format, long.format)
    assert_allclose(short.drift, long.drift[:2])


# The public facts


def test_schema_names_columns_of_the_log(table: pa.Table) -> None:
    facts = tomllib.loads(schema_toml(40_000, tasks=("conversion", "click")))
    assert (facts["dataset"], facts["population"], facts["public"]) == ("simulated-ads", 40_000, False)
    named = [*facts["unit"], facts["time"], facts["labels"]["click"], facts["labels"]["conversion"]["time"]]
    named += [*facts["reference"].values(), *facts["numeric"], *facts["categorical"]]
    assert set(named) == set(table.column_names)
    for name, column in facts["categorical"].items():
        assert column["buckets"] >= FIELDS[name].size


def test_schema_states_population_and_publicity() -> None:
    facts = tomllib.loads(schema_toml(123, public=True))
    assert (facts["population"], facts["public"]) == (123, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"users": 0}, "users must be at least 1, got 0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"days": 0}, "days must be at least 1, got 0"),
        ({"impressions_per_user": 0.5}, "impressions_per_user must be at least 1, got 0.5"),
        ({"impressions_per_user": float("nan")}, "impressions_per_user must be at least 1, got nan"),
        ({"start": datetime(2026, 11, 9, 1)}, "start must be a midnight without a time zone"),
        ({"start": datetime(2026, 11, 9, tzinfo=UTC)}, "start must be a midnight without a time zone"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(**({"users": 10, "seed": 0} | arguments))


def test_the_smallest_log() -> None:
    assert simulate(1, seed=0, days=1, impressions_per_user=1.0).num_rows == 1
