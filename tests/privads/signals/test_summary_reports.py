"""Summary reports: the published noise, whose contributions count, and noise on every declared key."""

import numpy as np
import pytest

from accounting.accountant import epsilon as account
from privads.noise import Randomness
from privads.signals.summary_reports import (
    CONTRIBUTION_BUDGET,
    MOST_CONTRIBUTIONS,
    MOST_REPORTS,
    event,
    noise_std,
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
