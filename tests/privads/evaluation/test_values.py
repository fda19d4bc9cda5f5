"""Metrics of predicted numbers, against their definitions written out as loops."""

import math

import numpy as np
import pytest

from privads.evaluation.metrics import auc
from privads.evaluation.values import evaluate_value

RNG = np.random.default_rng(5)
NUMBERS = np.where(RNG.random(60) < 0.5, 0.0, np.round(RNG.gamma(1.0, 9.0, 60), 1))
PREDICTED = np.round(RNG.gamma(2.0, 2.0, 60), 0)  # with ties
UNITS = RNG.integers(0, 17, 60)


def gini(numbers: np.ndarray, scores: np.ndarray) -> float:
    total = 0.0
    for number, score in zip(numbers, scores, strict=True):
        total += number * sum((score > other) + (score == other) / 2 for other in scores)
    return 2 * total / (len(numbers) * numbers.sum()) - 1


def test_metrics_are_their_definitions() -> None:
    found = evaluate_value(NUMBERS, PREDICTED, UNITS)
    mean = NUMBERS.mean()
    assert found.rows == 60
    assert found.mean.value == pytest.approx(mean)
    assert found.calibration.value == pytest.approx(PREDICTED.sum() / NUMBERS.sum())
    squares = ((NUMBERS - PREDICTED) ** 2).sum() / ((NUMBERS - mean) ** 2).sum()
    assert found.relative_squared_error.value == pytest.approx(squares)
    expected = gini(NUMBERS, PREDICTED) / gini(NUMBERS, NUMBERS)
    assert found.normalized_gini.value == pytest.approx(expected)


def test_perfect_and_constant_predictions() -> None:
    right = evaluate_value(NUMBERS, NUMBERS, UNITS)
    assert right.normalized_gini.value == pytest.approx(1)
    assert right.relative_squared_error.value == pytest.approx(0)
    constant = evaluate_value(NUMBERS, np.full(60, NUMBERS.mean()), UNITS)
    assert constant.normalized_gini.value == pytest.approx(0)
    assert constant.relative_squared_error.value == pytest.approx(1)


def test_of_zeros_and_ones_the_gini_is_twice_the_auc_less_1() -> None:
    labels = (NUMBERS > 0).astype(float)
    expected = 2 * auc(labels, PREDICTED / PREDICTED.max()) - 1
    assert evaluate_value(labels, PREDICTED, UNITS).normalized_gini.value == pytest.approx(expected)


def test_intervals_are_quantiles_over_resampled_units() -> None:
    found = evaluate_value(NUMBERS, PREDICTED, UNITS, replicates=50, seed=3)
    rng, owners = np.random.default_rng(3), np.unique(UNITS)
    calibration, order = [], []
    for _ in range(50):
        drawn = owners[rng.integers(0, len(owners), len(owners))]
        rows = np.concatenate([np.flatnonzero(owner == UNITS) for owner in drawn])
        calibration.append(PREDICTED[rows].sum() / NUMBERS[rows].sum())
        order.append(gini(NUMBERS[rows], PREDICTED[rows]) / gini(NUMBERS[rows], NUMBERS[rows]))
    for interval, values in ((found.calibration, calibration), (found.normalized_gini, order)):
        assert [interval.low, interval.high] == pytest.approx(np.quantile(values, [0.025, 0.975]))


def test_the_error_of_numbers_that_are_all_alike_is_not_defined() -> None:
    """Their variance is 0 but for what rounding leaves of it, by which nothing can be divided."""
    found = evaluate_value([0.3] * 7, [0.6] * 7, range(7))
    assert math.isnan(found.relative_squared_error.value)
    assert found.calibration.value == pytest.approx(2.0)


@pytest.mark.parametrize("numbers", [[], [0.0, 0.0]])
def test_what_the_rows_do_not_define_is_nan(numbers: list[float]) -> None:
    found = evaluate_value(numbers, [1.0] * len(numbers), np.arange(len(numbers)))
    assert math.isnan(found.calibration.value)
    assert math.isnan(found.relative_squared_error.value)
    assert math.isnan(found.normalized_gini.value)


@pytest.mark.parametrize(
    ("numbers", "predicted", "message"),
    [
        ([1.0], [1.0, 2.0], "must have one shape"),
        ([-1.0], [1.0], "labels must be finite and not negative"),
        ([1.0], [math.inf], "predicted must be finite and not negative"),
    ],
)
def test_bad_arrays_are_refused(numbers: list[float], predicted: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_value(numbers, predicted, [0] * len(numbers))
