"""Metrics on randomized answers: exactly those of clean labels on average, with standard errors that are right."""

import itertools
import math

import numpy as np
import pytest

from privads.evaluation.metrics import ScoreSums, auc
from privads.signals.channel import Channel
from privads.signals.debiased_metrics import debiased_metrics

UNEQUAL = Channel(np.array([[0.9, 0.1], [0.35, 0.65]]))  # no, answered yes more seldom than yes is answered no
CERTAIN = Channel(np.eye(2))


def sample(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and scores in tenths (many tie) that are calibrated to them."""
    rng = np.random.default_rng(seed)
    score = rng.integers(1, 6, rows) / 10
    return (rng.random(rows) < score).astype(np.int64), score


def answered(label: np.ndarray, channel: Channel, rng: np.random.Generator) -> np.ndarray:
    return (rng.random(label.shape) < channel.matrix[label, 1]).astype(np.int64)


def test_with_certain_answers_these_are_the_plain_metrics() -> None:
    label, score = sample(500, seed=1)
    found, sums = debiased_metrics(label, score, CERTAIN), ScoreSums.of(label, score)
    assert found.rows == 500
    assert found.rate.value == pytest.approx(label.mean(), rel=1e-12)
    assert found.log_loss.value == pytest.approx(sums.log_loss, rel=1e-12)
    assert found.calibration.value == pytest.approx(sums.calibration, rel=1e-12)
    assert found.auc.value == pytest.approx(auc(label, score), rel=1e-12)


@pytest.mark.parametrize("channel", [Channel.binary(epsilon=0.5), UNEQUAL], ids=["equal", "unequal"])
def test_averages_over_all_answers_are_those_of_the_labels(channel: Channel) -> None:
    """All 2^7 answers to seven labels, each as often as it comes. Ratios: numerators and denominators by themselves."""
    label, score = sample(7, seed=3)
    assert 0 < label.sum() < 7
    every = np.array(list(itertools.product([0, 1], repeat=7)))
    chance = channel.matrix[label, every].prod(axis=1)
    assert chance.sum() == pytest.approx(1, rel=1e-12)
    found = [debiased_metrics(one, score, channel) for one in every]
    assert chance @ [one.rate.value for one in found] == pytest.approx(label.mean(), abs=1e-12)
    assert chance @ [one.log_loss.value for one in found] == pytest.approx(
        ScoreSums.of(label, score).log_loss, abs=1e-12
    )
    # what calibration divides by is 7 times the rate, and a rate that is not positive has none
    for one in found:
        if one.rate.value > 0:
            assert one.calibration.value == pytest.approx(score.sum() / (7 * one.rate.value), rel=1e-12)
        else:
            assert math.isnan(one.calibration.value)
    won = pairs = 0.0
    for one, often in zip(every, chance, strict=True):
        w = channel.inverse[one, 1]
        for i, j in itertools.permutations(range(7), 2):
            pairs += often * w[i] * (1 - w[j])
            won += often * w[i] * (1 - w[j]) * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
    assert won / pairs == pytest.approx(auc(label, score), rel=1e-9)


@pytest.mark.parametrize("channel", [Channel.binary(epsilon=1.0), UNEQUAL], ids=["equal", "unequal"])
def test_the_auc_is_that_of_all_pairs_of_different_rows(channel: Channel) -> None:
    label, score = sample(60, seed=4)
    answer = answered(label, channel, np.random.default_rng(5))
    w = channel.inverse[answer, 1]
    weight = np.outer(w, 1 - w)
    np.fill_diagonal(weight, 0.0)
    higher = (score[:, None] > score) + 0.5 * (score[:, None] == score)
    expected = (weight * higher).sum() / weight.sum()
    found = debiased_metrics(answer, score, channel).auc
    assert found.value == pytest.approx(expected, rel=1e-12)
    # the standard error is that of the derivatives by a row's weight, here by differences
    derivative = []
    for row in range(60):
        times = np.ones(60)
        times[row] += 1e-6
        moved = weight * np.outer(times, times)
        derivative.append(((moved * higher).sum() / moved.sum() - expected) / 1e-6)
    assert found.std_error == pytest.approx(math.sqrt(np.square(derivative).sum()), rel=1e-4)


def test_standard_errors_are_how_much_metrics_vary() -> None:
    """400 logs of 1,500 rows: their standard deviation is known to 3.5 %, so one wrong by a quarter is seen (7 sigma);
    five sigma, 18 %, happens by chance once in a million."""
    channel, rng = Channel.binary(epsilon=1.0), np.random.default_rng(6)
    clean = 0.3  # scores are 0.1 ... 0.5, calibrated
    score = rng.integers(1, 6, (400, 1500)) / 10
    answer = answered((rng.random(score.shape) < score).astype(np.int64), channel, rng)
    every = [debiased_metrics(a, s, channel) for a, s in zip(answer, score, strict=True)]
    for name, expected in (("rate", clean), ("calibration", 1.0), ("auc", None), ("log_loss", None)):
        values = np.array([getattr(one, name).value for one in every])
        errors = np.array([getattr(one, name).std_error for one in every])
        assert errors.mean() == pytest.approx(values.std(), rel=0.18)
        if expected is not None:  # a ratio is off by a part of its variance
            assert abs(values.mean() - expected) < 5 * values.std() / 20 + values.var()


def test_rows_of_one_unit_that_say_the_same_are_no_more_rows() -> None:
    channel = Channel.binary(epsilon=1.0)
    label, score = sample(300, seed=8)
    answer = answered(label, channel, np.random.default_rng(9))
    once = debiased_metrics(answer, score, channel)
    copies = np.tile(np.arange(300), 4)
    four = debiased_metrics(answer[copies], score[copies], channel, units=copies)
    assert four.log_loss.std_error == pytest.approx(once.log_loss.std_error, rel=1e-12)
    assert four.calibration.std_error == pytest.approx(once.calibration.std_error, rel=1e-12)


def test_a_row_without_rows_has_no_metrics() -> None:
    found = debiased_metrics([], [], Channel.binary(epsilon=1.0))
    assert found.rows == 0
    assert math.isnan(found.auc.value)
    assert math.isnan(debiased_metrics([0, 0], [0.5, 0.2], CERTAIN).auc.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: debiased_metrics([0, 1], [0.5], CERTAIN), "must have shape \\(rows,\\)"),
        (lambda: debiased_metrics([0, 2], [0.5, 0.5], CERTAIN), "answers must be 0 or 1"),
        (lambda: debiased_metrics([0, 1], [0.5, 1.5], CERTAIN), "scores must be probabilities"),
        (lambda: debiased_metrics([0, 1], [0.5, math.nan], CERTAIN), "scores must be probabilities"),
        (lambda: debiased_metrics([0], [0.5], Channel(np.eye(3))), "group the 3 states to two"),
    ],
)
def test_bad_input_is_one_clear_line(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
