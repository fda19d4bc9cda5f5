"""W3C Attribution Level 1: the published scenarios, the specification's worked budgets, and what only time shows."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privads.noise import Randomness
from privads.signals.sites import NoSiteError, site_of
from privads.signals.w3c import (
    DAY,
    HOUR,
    MICRO,
    Browser,
    Conversion,
    Limits,
    RefusedError,
    aggregate,
    fairly_allocate_credit,
)

SCENARIOS = Path(__file__).parents[4] / "shared" / "conformance" / "w3c-attribution"
FILES = sorted(one for one in SCENARIOS.glob("*.json") if "events" in json.loads(one.read_text(encoding="utf-8")))
START = 1_767_225_600_000_000  # the scenarios count seconds from any moment
SERVICE = "https://service.example"


# Scenarios


def limits_of(stated: dict[str, Any]) -> Limits:
    return Limits(
        aggregation_services=list(stated["aggregationServices"]),
        site_budget=stated["perSitePrivacyBudget"],
        global_budget=stated["globalPrivacyBudgetPerEpoch"],
        impression_site_quota=stated["impressionSiteQuotaPerEpoch"],
        epoch_days=stated["privacyBudgetEpochDays"],
        most_lookback_days=stated["maxLookbackDays"],
        most_histogram_size=stated["maxHistogramSize"],
        most_credits=stated["maxCreditSize"],
        most_match_values=stated["maxMatchValues"],
        most_conversion_sites=stated["maxConversionSitesPerImpression"],
        most_conversion_callers=stated["maxConversionCallersPerImpression"],
        most_impression_sites=stated["maxImpressionSitesForConversion"],
        most_impression_callers=stated["maxImpressionCallersForConversion"],
        epoch_start=stated["epochStart"],
        credit_draw=stated["fairlyAllocateCreditFraction"],
    )


IMPRESSION = {
    "histogramIndex": "histogram_index",
    "matchValue": "match_value",
    "conversionSites": "conversion_sites",
    "conversionCallers": "conversion_callers",
    "lifetimeDays": "lifetime_days",
    "priority": "priority",
}
CONVERSION = {
    "aggregationService": "aggregation_service",
    "histogramSize": "histogram_size",
    "epsilon": "epsilon",
    "value": "value",
    "maxValue": "most_value",
    "credit": "credit",
    "lookbackDays": "lookback_days",
    "matchValues": "match_values",
    "impressionSites": "impression_sites",
    "impressionCallers": "impression_callers",
}


def renamed(options: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names[key]: value for key, value in options.items() if key != "$comment"}


def answer(browser: Browser, event: dict[str, Any]) -> list[int] | None:
    now, frame = START + event["seconds"] * 1_000_000, event.get("intermediarySite")
    match event["event"]:
        case "saveImpression":
            browser.save_impression(now, event["site"], intermediary=frame, **renamed(event["options"], IMPRESSION))
        case "measureConversion":
            asked = Conversion(**renamed(event["options"], CONVERSION))
            return browser.measure_conversion(now, event["site"], asked, intermediary=frame)
        case "clearImpressionsForSite":
            browser.clear_impressions_of(event["site"])
        case "clearBrowsingHistoryForAttribution":
            browser.clear_history(now, event["sites"], forget_visits=event["forgetVisits"])
        case "enableAPI" | "disableAPI" as what:
            browser.enabled = what == "enableAPI"
        case other:
            raise AssertionError(f"unknown event {other}")
    return None


@pytest.mark.skipif(not FILES, reason="the scenarios of W3C's reference implementation are not here")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_published_scenario_is_answered_as_published(file: Path) -> None:
    pytest.importorskip("publicsuffixlist")
    config = json.loads((SCENARIOS / "CONFIG.json").read_text(encoding="utf-8"))
    browser = Browser(limits_of(config))
    for event in json.loads(file.read_text(encoding="utf-8"))["events"]:
        expected = event.get("expected", event.get("expectedError"))
        if expected is None or isinstance(expected, list):
            assert answer(browser, event) == expected, event
        else:
            with pytest.raises(RefusedError) as caught:
                answer(browser, event)
            assert caught.value.name == (expected["name"] if isinstance(expected, dict) else expected), event


# Budgets, in micro-epsilon


def browser(**changes: Any) -> Browser:
    return Browser(Limits(aggregation_services=[SERVICE], epoch_start=0.5, credit_draw=0.5, **changes))


def conversion(**changes: Any) -> Conversion:
    return Conversion(**{"aggregation_service": SERVICE, "histogram_size": 4, "value": 4, "most_value": 8, **changes})


def test_in_one_epoch_a_report_costs_its_own_l1_norm() -> None:
    one = browser()
    one.save_impression(START, "news.example", histogram_index=1)
    one.save_impression(START + 1, "news.example", histogram_index=9)  # outside the histogram: in no bucket
    asked = conversion(credit=(3, 1), lookback_days=1)
    assert one.measure_conversion(START + 2, "shop.example", asked) == [0, 1, 0, 0]
    spent = one.spent("shop.example", START + 2)
    # noise scale 2 * 8 / 1 = 16; the L1 norm is 1 of the value 4; what all may see costs 2 * 4 / 16 always
    assert spent.site == MICRO // 16
    assert spent.everyone == MICRO // 2


def test_over_several_epochs_a_report_costs_twice_its_value_in_each_that_matched() -> None:
    one = browser()
    one.save_impression(START, "news.example", histogram_index=0)
    one.measure_conversion(START, "other.example", conversion(epsilon=1e-6, lookback_days=1))  # sets the epochs
    one.save_impression(START + 4 * DAY, "news.example", histogram_index=1)
    found = one.measure_conversion(START + 5 * DAY, "shop.example", conversion(credit=(3, 1)))
    assert found == [1, 3, 0, 0]
    for day in (0, 5):
        assert one.spent("shop.example", START + day * DAY).site == MICRO // 2
    assert one.spent("shop.example", START - 7 * DAY).site == 0  # nothing matched there


def test_a_fraction_of_a_micro_epsilon_is_rounded_up() -> None:
    one = browser()
    one.save_impression(START, "news.example", histogram_index=0)
    one.measure_conversion(START, "shop.example", conversion(value=1, most_value=3, epsilon=0.1, lookback_days=1))
    # exactly 1 / (2 * 3 / 0.1) = 1/60 of an epsilon, 16666.67 millionths
    assert one.spent("shop.example", START).site == 16_667


@pytest.mark.parametrize(
    ("limits", "reports"),
    [
        ({}, 2),  # the site's million, at half a million a report
        ({"site_budget": 4 * MICRO, "global_budget": 1_400_000}, 2),
        ({"site_budget": 4 * MICRO, "impression_site_quota": 500_000}, 1),
    ],
)
def test_a_report_needs_all_of_its_budgets_and_else_takes_none(limits: dict[str, int], reports: int) -> None:
    one = browser(**limits)
    one.save_impression(START, "news.example", histogram_index=2)
    found = [one.measure_conversion(START + n, "shop.example", conversion(lookback_days=7)) for n in range(3)]
    assert found == [[0, 0, 4, 0]] * reports + [[0] * 4] * (3 - reports)
    spent = one.spent("shop.example", START)
    assert (spent.site, spent.everyone) == (reports * MICRO // 2, reports * MICRO // 2)


def test_an_impression_site_pays_its_quota_once_a_report() -> None:
    one = browser(impression_site_quota=500_000)
    for index in range(3):
        one.save_impression(START, "news.example", histogram_index=index)
    assert sum(one.measure_conversion(START, "shop.example", conversion(credit=(1, 1, 2), lookback_days=7))) == 4
    assert one.measure_conversion(START, "other.example", conversion(lookback_days=7)) == [0] * 4


def test_without_a_match_nothing_is_taken() -> None:
    one = browser()
    one.save_impression(START, "news.example", histogram_index=0, match_value=1)
    one.measure_conversion(START, "shop.example", conversion(match_values=[2]))
    assert one.spent("shop.example", START).everyone == 0


# Clearing


def test_budgets_that_were_spent_on_request_are_spent_and_the_others_are_not() -> None:
    one = browser()
    one.save_impression(START, "news.example", histogram_index=0)
    one.measure_conversion(START, "other.example", conversion(epsilon=1e-6, lookback_days=1))
    one.clear_history(START, ["shop.example"], forget_visits=False)
    assert one.measure_conversion(START, "shop.example", conversion(lookback_days=1)) == [0] * 4
    assert sum(one.measure_conversion(START, "other.example", conversion(lookback_days=1))) == 4


def test_after_all_was_cleared_the_running_epoch_is_never_used_again() -> None:
    one = browser()
    one.save_impression(START, "news.example", histogram_index=0)
    one.measure_conversion(START, "shop.example", conversion(lookback_days=1))
    one.clear_history(START + 1, [], forget_visits=True)
    one.save_impression(START + 2, "news.example", histogram_index=0)
    assert one.measure_conversion(START + 3, "shop.example", conversion(lookback_days=1)) == [0] * 4
    later = START + 4 * DAY  # the epochs began half a week before
    one.save_impression(later, "news.example", histogram_index=3)
    assert one.measure_conversion(later, "shop.example", conversion()) == [0, 0, 0, 4]


def test_without_a_stated_start_epochs_begin_at_a_drawn_full_hour() -> None:
    starts = set()
    for part in (0.0, 0.37, 0.999):
        one = Browser(Limits(aggregation_services=[SERVICE]), draw=lambda part=part: part)
        one.spent("shop.example", START)
        assert one._start is not None
        assert one._start % HOUR == 0
        assert 0 <= START - one._start <= 7 * DAY
        starts.add(one._start)
    assert len(starts) == 3


# Aggregation


def test_an_aggregate_is_the_sum_with_discrete_laplace_noise() -> None:
    reports = [[0, 4, 0], [1, 3, 0]] * 50
    exact = np.array([50, 350, 0])
    count = 4000
    found = np.array([aggregate(reports, epsilon=2.0, most_value=8, randomness=Randomness()) for _ in range(count)])
    assert found.dtype == np.int64
    ratio = np.exp(-1 / 8)  # of the scale 2 * 8 / 2
    std = np.sqrt(2 * ratio) / (1 - ratio)
    noise = found - exact
    # failing by chance: below 1e-6 each; 10 % of the scale off would be missed with probability below 1e-3
    assert np.abs(noise.mean(axis=0)).max() < 5.2 * std / count**0.5
    assert noise.std() == pytest.approx(std, rel=5.2 * 1.2 / (3 * count) ** 0.5)


def test_reports_of_different_sizes_or_beyond_the_stated_value_are_no_aggregate() -> None:
    with pytest.raises(ValueError, match="reports of different sizes"):
        aggregate([[1], [1, 2]], epsilon=1.0, most_value=8, randomness=Randomness())
    with pytest.raises(ValueError, match="a report's sum must be from 0 to most_value"):
        aggregate([[9]], epsilon=1.0, most_value=8, randomness=Randomness())


# Credit


def test_credit_is_fair_on_average_and_never_off_by_more_than_one() -> None:
    rng = np.random.default_rng(0)
    for credit, value in (([3.0, 1.0], 7), ([1.0, 1.0, 1.0], 10), ([0.2, 0.5, 0.3, 0.9], 5), ([1.0], 9)):
        exact = np.array([float(Fraction(one) * value / sum(map(Fraction, credit))) for one in credit])
        drawn = np.array([fairly_allocate_credit(credit, value, rng.random) for _ in range(4000)])
        assert (drawn.sum(axis=1) == value).all()
        assert (np.abs(drawn - exact) < 1).all()
        # each is within 1 of its mean, so 4,000 know it to 0.5 / sqrt(4000); 5 of these by chance: 1e-6
        assert np.abs(drawn.mean(axis=0) - exact).max() < 5 * 0.5 / 4000**0.5


# Sites


@pytest.mark.parametrize(
    ("host", "site"),
    [("a.b.example.com", "example.com"), ("Shop.CO.UK", "shop.co.uk"), ("bücher.example", "xn--bcher-kva.example")],
)
def test_a_host_s_site_is_one_label_more_than_its_suffix(host: str, site: str) -> None:
    pytest.importorskip("publicsuffixlist")
    assert site_of(host) == site


@pytest.mark.parametrize(
    "host", ["", ":", "a", "co.uk", "localhost", "x.localhost", "10.0.0.1", "a..b", "a b.com", "[::1]"]
)
def test_what_has_no_site_is_refused(host: str) -> None:
    pytest.importorskip("publicsuffixlist")
    with pytest.raises(NoSiteError):
        site_of(host)
