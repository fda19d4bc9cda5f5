"""Event-level reports: the published state counts, flip probabilities and capacities, and what is drawn."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from privads.noise import Randomness
from privads.signals.event_reports import EventReports, capacity, largest_epsilon

ALPHA = 1e-6


def equal(data: int, windows: int, most: int) -> EventReports:
    return EventReports(windows=(windows,) * data, most=most)


# The vectors of ../shared/conformance/README.md, from WICG's privacy.test.ts
@pytest.mark.parametrize(
    ("reports", "states", "flip", "bits"),
    [
        (equal(8, 3, 3), 2925, 0.0024263221679834087, 11.461727965384876),
        (equal(2, 1, 1), 3, 0.000002494582008677539, 1.584926511508231),
        (equal(5, 3, 3), 816, 0.0006780679, 9.65777),
        (equal(8, 1, 1), 9, 7.48370859e-6, 3.16978),
        (equal(32, 1, 1), 33, 2.74397e-5, 5.04382),
    ],
)
def test_published_figures(reports: EventReports, states: int, flip: float, bits: float) -> None:
    assert reports.states == states
    digits = 1e-14 if len(str(flip)) > 15 else 1e-6  # as many as are printed
    assert reports.randomize_probability(14) == pytest.approx(flip, rel=digits)
    assert reports.capacity(14) == pytest.approx(bits, rel=digits)


def test_published_figures_of_randomized_response() -> None:
    assert equal(1, 1, 1).randomize_probability(math.log(3)) == pytest.approx(0.5, rel=1e-15)
    assert equal(2, 1, 1).randomize_probability(math.log(3)) == pytest.approx(0.6, rel=1e-15)
    assert capacity(2, math.log(3)) == pytest.approx(0.18872187554086717, rel=1e-14)


@pytest.mark.parametrize(
    ("states", "bits", "epsilon"),
    [
        (5545, 6.5, 9.028709123768687),
        (2106, 6.5, 8.366900276574821),
        (16036, 6.5, 9.829279343808693),
        (84121, 11.5, 12.45087042924698),
    ],
)
def test_the_largest_epsilon_under_a_cap(states: int, bits: float, epsilon: float) -> None:
    assert largest_epsilon(states, bits=bits) == pytest.approx(epsilon, rel=1e-14)
    assert capacity(states, largest_epsilon(states, bits=bits)) <= bits
    assert largest_epsilon(4, bits=2.0) == math.inf


CONFIGURATIONS = [
    equal(2, 2, 2),
    EventReports(windows=(1, 3), most=3, most_of_datum=(2, 1)),
    EventReports(windows=(2, 1, 1), most=2, most_of_datum=(1, 2, 2)),
    EventReports(windows=(1,), most=4),
]


@pytest.mark.parametrize("reports", CONFIGURATIONS, ids=str)
def test_states_are_all_ways_to_have_reports(reports: EventReports) -> None:
    most = reports.most_of_datum or (reports.most,) * len(reports.windows)
    ends = np.cumsum((0, *reports.windows))
    cells = itertools.product(range(reports.most + 1), repeat=int(ends[-1]))
    fits = {
        one
        for one in cells
        if sum(one) <= reports.most and all(sum(one[a:b]) <= m for a, b, m in zip(ends, ends[1:], most, strict=False))
    }
    assert reports.states == len(fits)
    assert {tuple(one) for one in reports.counts.tolist()} == fits
    assert len(reports.counts) == len(fits)


def test_an_answer_s_likelihoods_differ_by_exp_epsilon() -> None:
    reports, epsilon, count = equal(2, 1, 1), 1.2, 60_000
    k, p = reports.states, reports.randomize_probability(1.2)
    answers = reports.randomized(np.zeros(count, dtype=np.int64), epsilon=epsilon, randomness=Randomness())
    seen = np.bincount(answers, minlength=k)
    expected = count * np.array([1 - p + p / k] + [p / k] * (k - 1))
    assert expected[0] / expected[1] == pytest.approx(math.exp(epsilon))
    assert stats.chisquare(seen, expected).pvalue > ALPHA
    wrong = count * np.array([math.exp(1.1), 1, 1]) / (math.exp(1.1) + 2)  # a tenth of epsilon off is seen
    assert stats.chisquare(seen, wrong).pvalue < ALPHA


def test_debiased_counts_are_right_on_average() -> None:
    reports, rng, sources = equal(3, 2, 2), np.random.default_rng(1), 2000
    states = rng.integers(0, 5, sources)
    exact = np.bincount(states, minlength=reports.states)
    source = Randomness()
    found = np.array(
        [reports.debiased(reports.randomized(states, epsilon=2.0, randomness=source), epsilon=2.0) for _ in range(300)]
    )
    assert found.sum(axis=1) == pytest.approx(np.full(300, sources))
    # at most one source in a state moves an estimate by 1 / (1 - p); 28 states, six standard errors
    p = reports.randomize_probability(2.0)
    assert np.abs(found.mean(axis=0) - exact).max() < 6 * math.sqrt(sources) / 2 / (1 - p) / 300**0.5


def test_too_many_states_are_counted_and_not_listed() -> None:
    many = equal(32, 5, 20)
    assert many.states == math.comb(20 + 160, 20)
    with pytest.raises(ValueError, match="states are too many to list"):
        _ = many.counts


def test_numbers_below_an_end_are_equally_likely() -> None:
    for end in (1, 3, 7, 1000):
        drawn = Randomness().below(50_000, end)
        assert drawn.min() >= 0
        assert drawn.max() < end
        assert end == 1 or stats.chisquare(np.bincount(drawn, minlength=end)).pvalue > ALPHA
    assert Randomness().below(200, 2**62).max() >= 2**58  # all below by chance: 2^-800


def test_words_that_would_favor_small_numbers_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Randomness(insecure_seed=0)
    words = [np.array([2**64 - 1, 5, 2**64 - 1] + [7] * 17, dtype=np.uint64), np.full(20, 9, dtype=np.uint64)]
    monkeypatch.setattr(source, "_words", lambda count: words.pop(0)[:count])
    assert source.below(2, 10).tolist() == [5, 7]  # 2^64 - 1 is beyond the last whole run of ten


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EventReports(windows=(), most=1), "windows must name"),
        (lambda: EventReports(windows=(1,), most=0), "most must be at least 1"),
        (lambda: EventReports(windows=(1, 1), most=1, most_of_datum=(1,)), "most_of_datum must be"),
        (lambda: equal(1, 1, 1).randomize_probability(-1), "epsilon must be finite"),
        (lambda: largest_epsilon(5, bits=0), "bits must be above 0"),
        (
            lambda: equal(1, 1, 1).randomized(np.array([2]), epsilon=1.0, randomness=Randomness()),
            "states must be numbers from 0 to 1",
        ),
    ],
)
def test_bad_input_is_one_clear_line(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
