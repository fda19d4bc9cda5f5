"""What browsers report of a log: played in full, compared with brute force, and bounded for one browser."""

from dataclasses import replace

import numpy as np
import pytest

from privads.noise import Randomness
from privads.signals import attribute
from privads.signals.attribute import (
    Converted,
    Shown,
    contributions_of,
    estimated,
    share_of_budget,
    sources_of,
    states_of,
    std_of_discrete_laplace,
    w3c_sums,
)
from privads.signals.event_reports import EventReports
from privads.signals.summary_reports import CONTRIBUTION_BUDGET, MOST_LOOKBACK_DAYS, noise_std, within_budget
from privads.signals.w3c import DAY, MICRO, Browser, Conversion, Limits

SERVICE = "https://sums.example"
LIMITS = Limits(aggregation_services=[SERVICE], epoch_start=0.0, credit_draw=0.5)
ASKED = Conversion(aggregation_service=SERVICE, histogram_size=1, epsilon=1.0, most_value=4, credit=[2.0, 1.0])
START = 20_000 * DAY


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def drawn(seed: int, *, browsers: int = 30, shown: int = 200, converted: int = 80) -> tuple[Shown, Converted]:
    rng = np.random.default_rng(seed)
    times = START + rng.integers(0, 20 * DAY, shown)
    return (
        Shown(
            browsers=rng.integers(0, browsers, shown),
            times=times,
            cells=rng.integers(0, 5, shown),  # 4 is none of the declared
            pages=rng.integers(0, 3, shown),
            shops=rng.integers(0, 2, shown),
        ),
        Converted(
            browsers=rng.integers(0, browsers + 3, converted),  # some saw no ad
            times=START + rng.integers(0, 25 * DAY, converted),
            shops=rng.integers(0, 2, converted),
            values=rng.integers(0, 5, converted) / 4,
        ),
    )


def without(rows: Shown | Converted, browser: int) -> Shown | Converted:
    keep = rows.browsers != browser
    return replace(rows, **{name: column[keep] for name, column in vars(rows).items()})


# W3C


def played(shown: Shown, converted: Converted, cells: int) -> tuple[np.ndarray, int, int]:
    """Every browser, with histograms of all cells, by the definition."""
    total, reports, empty = np.zeros(cells, dtype=np.int64), 0, 0
    for who in set(shown.browsers.tolist()) | set(converted.browsers.tolist()):
        browser = Browser(LIMITS)
        events = [(int(shown.times[i]), 0, i) for i in np.flatnonzero(shown.browsers == who)]
        events += [(int(converted.times[i]), 1, i) for i in np.flatnonzero(converted.browsers == who)]
        for now, kind, i in sorted(events):
            if kind == 0:
                site = f"shop{shown.shops[i]}.test"
                browser.save_impression(
                    now, f"page{shown.pages[i]}.test", histogram_index=int(shown.cells[i]), conversion_sites=[site]
                )
            elif (value := round(float(converted.values[i]) * 4)) > 0:
                asked = replace(ASKED, histogram_size=cells, value=value)
                found = browser.measure_conversion(now, f"shop{converted.shops[i]}.test", asked)
                total, reports, empty = total + found, reports + 1, empty + (not any(found))
    return total, reports, empty


@pytest.mark.parametrize("seed", range(6))
def test_the_sums_are_those_of_every_browser_played_in_full(seed: int) -> None:
    shown, converted = drawn(seed)
    sums, devices = w3c_sums(shown, converted, cells=4, asked=ASKED, limits=LIMITS, draw=lambda: 0.5)
    expected, reports, empty = played(shown, converted, 4)
    assert sums.tolist() == expected.tolist()
    assert (devices.reports, devices.empty) == (reports, empty)
    assert sums.sum() > 0
    assert 0 < devices.empty < devices.reports


def test_the_devices_show_what_was_spent_of_a_sites_budget_and_of_that_for_all() -> None:
    shown = Shown(browsers=ints(1, 1), times=ints(START, START), cells=ints(0, 0), pages=ints(0, 0), shops=ints(0, 1))
    twice = Converted(
        browsers=ints(1, 1), times=ints(START + 1, START + 2), shops=ints(0, 1), values=np.array([0.5, 0.25])
    )
    # values 2 and 1 of 4, scale 8: sites take 2/8 and 1/8; all together twice the values, (4 + 2) / 8
    asked = replace(ASKED, credit=[1.0], lookback_days=1)
    limits = replace(LIMITS, epoch_start=0.5)  # a day ago was in the same epoch
    _, devices = w3c_sums(shown, twice, cells=1, asked=asked, limits=limits, draw=lambda: 0.5)
    assert (devices.most.site, devices.most.everyone) == (250_000, 750_000)
    assert MICRO == 1_000_000


def test_an_endless_browser_keeps_its_first_conversions_and_the_latest_impressions_before_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attribute, "MOST_SHOWN", 5)
    monkeypatch.setattr(attribute, "MOST_CONVERTED", 3)
    rows = np.zeros(20, dtype=np.int64)
    shown = Shown(browsers=rows, times=START + np.arange(20), cells=np.arange(20), pages=rows, shops=rows)
    converted = Converted(browsers=rows[:9], times=START + 8 + np.arange(9), shops=rows[:9], values=np.full(9, 0.25))
    asked = replace(ASKED, credit=[1.0])
    limits = replace(LIMITS, epoch_start=0.5, site_budget=8 * MICRO)
    sums, devices = w3c_sums(shown, converted, cells=20, asked=asked, limits=limits, draw=lambda: 0.5)
    assert devices.reports == 3
    assert np.flatnonzero(sums).tolist() == [8, 9, 10]  # each the latest at its time, none after the third conversion
    monkeypatch.setattr(attribute, "MOST_SHOWN", 1)
    sums, _ = w3c_sums(shown, converted, cells=20, asked=asked, limits=limits, draw=lambda: 0.5)
    assert np.flatnonzero(sums).tolist() == [10]


# Attribution Reporting


def credited(shown: Shown, converted: Converted, lookback: int) -> list[int]:
    found = []
    for j in range(len(converted.times)):
        those = [
            (int(shown.times[i]), i)
            for i in range(len(shown.times))
            if shown.browsers[i] == converted.browsers[j]
            and shown.shops[i] == converted.shops[j]
            and 0 <= converted.times[j] - shown.times[i] <= lookback
        ]
        found.append(max(those, default=(0, -1))[1])
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_conversion_is_credited_to_the_latest_impression_within_the_look_back(seed: int) -> None:
    shown, converted = drawn(seed, browsers=10)
    found = sources_of(shown, converted, lookback=5 * DAY)
    assert found.tolist() == credited(shown, converted, 5 * DAY)
    assert (found >= 0).any()
    assert (found < 0).any()


@pytest.mark.parametrize("seed", range(4))
def test_a_sources_state_is_its_first_reports_by_datum_and_window(seed: int) -> None:
    shown, converted = drawn(seed, browsers=8, converted=150)
    reports, ends, edges = EventReports(windows=(2, 2), most=2), [2 * DAY, 6 * DAY], [0.5]
    states = states_of(shown, converted, reports=reports, window_ends=ends, edges=edges)
    of = credited(shown, converted, ends[-1])
    for source in range(len(shown.times)):
        own = sorted((int(converted.times[j]), j) for j in range(len(of)) if of[j] == source)[:2]
        expected = [0, 0, 0, 0]
        for time, j in own:
            late = time - shown.times[source] > ends[0]
            expected[2 * (converted.values[j] >= 0.5) + late] += 1
        assert reports.counts[states[source]].tolist() == expected
    assert len(set(states.tolist())) > 5


def test_a_conversion_at_the_end_of_a_window_is_in_it_and_one_after_the_last_in_none() -> None:
    ends, zeros = [DAY, 3 * DAY], np.zeros(4, dtype=np.int64)
    shown = Shown(browsers=np.arange(4), times=zeros + START, cells=zeros, pages=zeros, shops=zeros)
    times = START + ints(DAY, DAY + 1, 3 * DAY, 3 * DAY + 1)
    converted = Converted(browsers=np.arange(4), times=times, shops=zeros, values=np.ones(4))
    reports = EventReports(windows=(2,), most=1)
    states = states_of(shown, converted, reports=reports, window_ends=ends, edges=[])
    assert reports.counts[states].tolist() == [[1, 0], [0, 1], [0, 1], [0, 0]]


def test_estimates_are_those_of_the_debiased_states_cell_by_cell() -> None:
    reports, rng = EventReports(windows=(1, 1), most=1), np.random.default_rng(0)
    cells, answers = rng.integers(0, 4, 500), rng.integers(0, 3, 500)
    measures = reports.counts.astype(np.float64)
    found, _ = estimated(cells, answers, cells=3, reports=reports, epsilon=1.5, measures=measures)
    for cell in range(3):
        expected = reports.debiased(answers[cells == cell], epsilon=1.5) @ measures
        assert found[cell] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("sources", [[800, 60, 4, 10, 6, 1], [10, 20, 30, 40, 60, 700]])
def test_estimates_are_unbiased_and_their_stated_noise_is_theirs(sources: list[int]) -> None:
    reports, draws = EventReports(windows=(2,), most=2), 6000
    states = np.repeat(np.arange(reports.states), sources)
    cells, measures = np.zeros(len(states), dtype=np.int64), reports.counts.sum(axis=1, keepdims=True) * 1.0
    randomness, figures, stated = Randomness(), np.empty(draws), np.empty(draws)
    for draw in range(draws):
        answers = reports.randomized(states, epsilon=2.0, randomness=randomness)
        value, std = estimated(cells, answers, cells=1, reports=reports, epsilon=2.0, measures=measures)
        figures[draw], stated[draw] = value[0, 0], std[0, 0]
    truth = float(measures[states].sum())
    std = float(np.sqrt((stated**2).mean()))
    assert abs(figures.mean() - truth) < 5.5 * std / draws**0.5  # by chance below 4e-8
    # figures are sums of hundreds, near normal: 5.5 deviations of a variance of 6,000, 10 %, by chance below 1e-7; a
    # std that is 10 % off is 11 deviations away, missed below 1e-6
    assert figures.var() / std**2 == pytest.approx(1.0, abs=5.5 * (2 / draws) ** 0.5)
    assert stated.std() < 0.1 * std


def contributions(shown: Shown, converted: Converted, *, sources: int, value: int | None = None) -> np.ndarray:
    """Returns (browsers, keys) what counts of each."""
    made = contributions_of(
        shown,
        converted,
        lookback=5 * DAY,
        sources_per_browser=sources,
        count=100,
        value=value,
        cells=4,
    )
    table = np.zeros((50, 9), dtype=np.int64)
    keep = within_budget(made.sources, made.reports, made.values)
    np.add.at(table, (shown.browsers[made.sources[keep]], made.keys[keep]), made.values[keep])
    return table


@pytest.mark.parametrize("seed", range(4))
def test_contributions_are_the_conversions_of_each_browsers_first_sources(seed: int) -> None:
    shown, converted = drawn(seed, browsers=6)
    of = credited(shown, converted, 5 * DAY)
    for sources in (1, 2, 50):
        expected = np.zeros((50, 9), dtype=np.int64)
        for who in range(6):
            first: list[int] = []
            for j in np.argsort(converted.times, kind="stable"):
                if converted.browsers[j] != who or of[j] < 0:
                    continue
                if of[j] not in first and len(first) < sources:
                    first.append(of[j])
                if of[j] in first:
                    cell, worth = int(shown.cells[of[j]]), round(float(converted.values[j]) * 40)
                    expected[who, cell if cell < 4 else 8] += 100
                    expected[who, 4 + cell if cell < 4 else 8] += worth
        assert contributions(shown, converted, sources=sources, value=40).tolist() == expected.tolist()
    counts = contributions(shown, converted, sources=50)
    assert counts.sum() == 100 * sum(one >= 0 for one in of)  # without a value, one contribution for a conversion


def test_a_report_says_how_many_days_ago_its_source_was_shown() -> None:
    shown = Shown(browsers=ints(1), times=ints(START + DAY - 1), cells=ints(0), pages=ints(0), shops=ints(0))
    times = ints(START + DAY - 1, START + DAY, START + (MOST_LOOKBACK_DAYS + 1) * DAY - 1, START + 40 * DAY)
    converted = Converted(browsers=ints(1, 1, 1, 1), times=times, shops=ints(0, 0, 0, 0), values=np.ones(4))
    made = contributions_of(shown, converted, lookback=30 * DAY, sources_per_browser=1, count=1, value=None, cells=1)
    assert made.source_days.tolist() == [0, 1, 30, -1]


def test_a_sources_reports_fit_in_its_budget() -> None:
    for reports in range(1, 21):
        assert reports * share_of_budget(reports, with_value=False) <= CONTRIBUTION_BUDGET
        assert reports * 2 * share_of_budget(reports, with_value=True) <= CONTRIBUTION_BUDGET


@pytest.mark.parametrize("epsilon", [1, 10, 64])
def test_the_deviation_of_discrete_laplace_noise_is_the_published_one(epsilon: float) -> None:
    assert std_of_discrete_laplace(CONTRIBUTION_BUDGET / epsilon) == pytest.approx(
        noise_std(epsilon=epsilon), rel=1e-12
    )


def test_a_log_without_conversions_or_without_rows_is_all_zeros() -> None:
    shown, _ = drawn(0)
    none = Converted(browsers=ints(), times=ints(), shops=ints(), values=np.empty(0))
    nobody = Shown(browsers=ints(), times=ints(), cells=ints(), pages=ints(), shops=ints())
    reports = EventReports(windows=(1,), most=1)
    for rows in (shown, nobody):
        sums, devices = w3c_sums(rows, none, cells=4, asked=ASKED, limits=LIMITS, draw=lambda: 0.5)
        assert (sums.tolist(), devices.reports) == ([0] * 4, 0)
        assert set(states_of(rows, none, reports=reports, window_ends=[DAY], edges=[]).tolist()) <= {0}
        made = contributions_of(rows, none, lookback=DAY, sources_per_browser=1, count=1, value=1, cells=4)
        assert len(made.sources) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": ints(1, 2)}, "must be of one length"),
        ({"times": np.array([1.0])}, "whole numbers of 64 bits"),
        ({"browsers": np.array(["a"])}, "whole numbers of 64 bits"),
        ({"cells": ints(-1)}, "cells must be at least 0"),
    ],
)
def test_impressions_of_another_kind_are_refused(changes: dict[str, np.ndarray], message: str) -> None:
    good = dict.fromkeys(("browsers", "times", "cells", "pages", "shops"), ints(0))
    with pytest.raises(ValueError, match=message):
        Shown(**{**good, **changes})


@pytest.mark.parametrize("values", [[-0.1], [1.1], [np.nan], [0.5, 0.5]])
def test_values_beyond_their_range_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values must be"):
        Converted(browsers=ints(0), times=ints(0), shops=ints(0), values=np.array(values))
