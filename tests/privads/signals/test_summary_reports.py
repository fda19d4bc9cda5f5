"""Summary reports: the published noise, whose contributions count, and noise on every declared key."""

import numpy as np
import pytest

from accounting.accountant import epsilon as account
from privads.noise import Randomness
from privads.signals.summary_reports import (
    CONTRIBUTION_BUDGET,
    MOST_CONTRIBUTIONS,
    MOST_LOOKBACK_DAYS,
    MOST_REPORTS,
    event,
    noise_std,
    null_reports,
    padded,
    summarized,
    within_budget,
)


# The vectors of ../shared/conformance/README.md
@pytest.mark.parametrize(
    ("epsilon", "std"), [(1, 92681.9), (3, 30893.97), (5, 18536.4), (10, 9268.2), (14, 6620.1), (64, 1448.15)]
)
def test_the_published_noise(epsilon: float, std: float) -> None:
    assert noise_std(epsilon=epsilon) == pytest.approx(std, abs=0.06)


@pytest.mark.parametrize("epsilon", [0.5, 10.0])
def test_a_summary_costs_its_epsilon(epsilon: float) -> None:
    assert account(event(epsilon=epsilon), delta=1e-12).upper == pytest.approx(epsilon, rel=1e-3)


def test_a_source_adds_no_more_than_its_budget_and_a_report_counts_whole_or_not() -> None:
    half = CONTRIBUTION_BUDGET // 2
    sources = ["a", "a", "a", "b", "a", "a"]
    reports = [1, 1, 2, 1, 3, 4]
    values = [half - 10, 10, half + 1, CONTRIBUTION_BUDGET, half, 1]
    # report 2 of a would go beyond by one; report 3 fits exactly, and nothing is left for report 4
    assert within_budget(sources, reports, values).tolist() == [True, True, False, True, True, False]


def test_values_beyond_64_bits_together_are_beyond_the_budget() -> None:
    assert within_budget([1, 1], [1, 1], np.array([2**62, 2**62])).tolist() == [False, False]


def test_a_source_has_so_many_reports_and_a_report_so_many_contributions() -> None:
    many = MOST_REPORTS + 3
    assert within_budget([1] * many, range(many), [1] * many).tolist() == [True] * MOST_REPORTS + [False] * 3
    wide = MOST_CONTRIBUTIONS + 1
    assert not within_budget([1] * wide, [1] * wide, [1] * wide).any()
    assert within_budget([1] * (wide - 1), [1] * (wide - 1), [1] * (wide - 1)).all()


def test_every_declared_key_has_its_sum_and_noise() -> None:
    big = 2**127 + 5  # keys have 128 bits
    draws = np.array(
        [
            summarized(
                [1, 1, 2, 3],
                [1, 1, 1, 1],
                [big, 7, big, 9],
                [100, 300, 50, 60_000],
                declared=[big, 7, 8],
                epsilon=640.0,
                randomness=Randomness(),
            )
            for _ in range(2000)
        ]
    )
    std = noise_std(epsilon=640.0)  # 145
    assert np.abs(draws.mean(axis=0) - [150, 300, 0]).max() < 5.5 * std / 2000**0.5  # by chance below 1e-6
    assert draws.std(axis=0) == pytest.approx([std] * 3, rel=0.2)  # the key that nobody added to has noise too


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"declared": [1, 1]}, "declared names a key twice"),
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"values": [0]}, "values must be whole numbers of at least 1"),
        ({"values": [0.5]}, "values must be whole numbers of at least 1"),
        ({"reports": [1, 2]}, "must have one shape"),
    ],
)
def test_bad_input_is_one_clear_line(changes: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"sources": [1], "reports": [1], "keys": [1], "values": [5], "declared": [1]}
    with pytest.raises(ValueError, match=message):
        summarized(**{**given, "epsilon": 1.0, "randomness": Randomness(), **changes})  # type: ignore[arg-type]


# Null reports: the published rates are 0.05 for a conversion, or 0.008 for a day of look-back


def z_of(seen: int, draws: int, rate: float) -> float:
    return float((seen - draws * rate) / (draws * rate * (1 - rate)) ** 0.5)


def test_a_conversion_without_a_report_sends_a_null_one_at_the_published_rate() -> None:
    real = np.repeat([-1, 3], 200_000)
    sent = null_reports(real, source_time="excluded", randomness=Randomness())
    assert sent.shape == (400_000, 1)
    # |z| > 5.5 by chance below 4e-8; a rate that is 10 % off is 10 deviations away, missed below 1e-5
    assert abs(z_of(int(sent[:200_000].sum()), 200_000, 0.05)) < 5.5
    assert not sent[200_000:].any()  # a real report stands in its place


def test_every_day_of_look_back_but_the_true_one_sends_a_null_report_at_the_published_rate() -> None:
    real = np.repeat([-1, 0, 3, 30], 20_000)
    sent = null_reports(real, source_time="included", randomness=Randomness())
    assert sent.shape == (80_000, MOST_LOOKBACK_DAYS + 1) == (80_000, 31)
    for day in (0, 3, 30):
        assert not sent[real == day, day].any()
    draws = sent.size - 60_000
    # |z| > 5.5 by chance below 4e-8; a rate that is 10 % off is missed below 1e-15
    assert abs(z_of(int(sent.sum()), draws, 0.008)) < 5.5
    # each day alone, of 60,000 draws or more: by chance below 31 x 4e-8; 50 % off is missed below 1e-4
    for day in range(31):
        assert abs(z_of(int(sent[real != day, day].sum()), int((real != day).sum()), 0.008)) < 5.5


def test_every_report_has_as_many_contributions_and_the_nulls_add_nothing() -> None:
    for count in (0, 1, 19, 20):
        own = [(key + 1, 5) for key in range(count)]
        made = padded(own)
        assert len(made) == 20
        assert made[:count] == own
        assert sum(value for _, value in made) == 5 * count
    with pytest.raises(ValueError, match="at most 20 contributions, got 21"):
        padded([(1, 1)] * 21)


@pytest.mark.parametrize("days", [[31], [-2], [0.5], [[1]], ["a"]])
def test_days_beyond_the_look_back_are_refused(days: list[object]) -> None:
    with pytest.raises(ValueError, match="source_days must be"):
        null_reports(days, source_time="included", randomness=Randomness())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="source_time must be"):
        null_reports([1], source_time="never", randomness=Randomness())  # type: ignore[arg-type]
