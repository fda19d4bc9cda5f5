"""The metrics against their definitions, the laws of merging, and intervals that cover.

Statistical tests run on fixed seeds; the failure probability stated is over seeds, if the claim is true.
"""

import math
from dataclasses import astuple

import numpy as np
import pytest
from scipy import stats

from privads.evaluation.metrics import Interval, ScoreSums, auc, evaluate


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def _rows(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores with many ties, and weights of which some are 0."""
    scores = rng.integers(0, 12, rows) / 11
    return (rng.random(rows) < scores).astype(int), scores, rng.integers(0, 4, rows) * rng.random(rows)


# AUC


def _auc_by_pairs(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    won = pairs = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            pairs += weights[i] * weights[j]
            won += weights[i] * weights[j] * (1.0 if scores[i] > scores[j] else 0.5 * (scores[i] == scores[j]))
    return won / pairs


@pytest.mark.parametrize("rows", [5, 40, 150])
def test_auc_is_the_share_of_pairs_won_with_ties_and_weights(rng: np.random.Generator, rows: int) -> None:
    labels, scores, weights = _rows(rng, rows)
    labels[:2], weights[:2] = (0, 1), 1.0  # so that there are two classes
    assert auc(labels, scores, weights) == pytest.approx(_auc_by_pairs(labels, scores, weights), abs=1e-12)
    unweighted = _auc_by_pairs(labels, scores, np.ones(rows))
    assert auc(labels, scores) == pytest.approx(unweighted, abs=1e-12)


def test_auc_is_scipys_mann_whitney_statistic(rng: np.random.Generator) -> None:
    labels, scores, _ = _rows(rng, 3_000)
    positive, negative = scores[labels == 1], scores[labels == 0]
    expected = stats.mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative))
    assert auc(labels, scores) == pytest.approx(expected, abs=1e-12)


def test_auc_of_weight_two_is_auc_of_a_row_twice(rng: np.random.Generator) -> None:
    labels, scores, _ = _rows(rng, 100)
    times = rng.integers(0, 4, 100)
    repeated = auc(np.repeat(labels, times), np.repeat(scores, times))
    assert auc(labels, scores, times) == pytest.approx(repeated, abs=1e-12)


def test_auc_depends_on_the_order_of_scores_alone(rng: np.random.Generator) -> None:
    labels, scores, weights = _rows(rng, 200)
    order = rng.permutation(200)
    value = auc(labels, scores, weights)
    assert auc(labels, scores**3 / 2, weights) == value
    assert auc(labels, 1 - scores, weights) == pytest.approx(1 - value)
    assert auc(labels[order], scores[order], weights[order]) == pytest.approx(value)


# Log loss, normalized entropy, calibration


def test_log_loss_is_its_definition() -> None:
    sums = ScoreSums.of([1, 0, 1], [0.9, 0.2, 0.5], [1.0, 2.0, 0.5])
    expected = -(math.log(0.9) + 2 * math.log(0.8) + 0.5 * math.log(0.5)) / 3.5
    assert sums.log_loss == pytest.approx(expected, rel=1e-14)
    assert sums.calibration == pytest.approx((0.9 + 2 * 0.2 + 0.5 * 0.5) / 1.5, rel=1e-14)


def test_log_loss_clips_sure_predictions_at_1e_7() -> None:
    assert ScoreSums.of([1], [0.0]).log_loss == pytest.approx(-math.log(1e-7))
    assert ScoreSums.of([0], [1.0]).log_loss == pytest.approx(-math.log(1e-7), rel=1e-9)
    assert ScoreSums.of([1, 0], [1.0, 0.0]).calibration == 1.0  # only the logarithm is clipped


def test_normalized_entropy_of_the_base_rate_is_1(rng: np.random.Generator) -> None:
    labels, _, weights = _rows(rng, 500)
    for weight in (np.ones(500), weights):
        rate = np.average(labels, weights=weight)
        sums = ScoreSums.of(labels, np.full(500, rate), weight)
        assert sums.normalized_entropy == pytest.approx(1.0, rel=1e-12)
        assert sums.calibration == pytest.approx(1.0, rel=1e-12)


def test_normalized_entropy_is_log_loss_over_scipys_entropy(rng: np.random.Generator) -> None:
    labels, scores, _ = _rows(rng, 500)
    sums = ScoreSums.of(labels, scores)
    entropy = stats.bernoulli(labels.mean()).entropy()
    assert sums.normalized_entropy == pytest.approx(sums.log_loss / entropy, rel=1e-12)


def test_score_sums_are_a_commutative_monoid(rng: np.random.Generator) -> None:
    a, b, c = (ScoreSums.of(*_rows(rng, 50)) for _ in range(3))
    assert a + b == b + a
    assert a + ScoreSums() == a
    assert astuple((a + b) + c) == pytest.approx(astuple(a + (b + c)), rel=1e-14)


def test_merged_parts_are_the_whole(rng: np.random.Generator) -> None:
    labels, scores, weights = _rows(rng, 1_000)
    merged = ScoreSums()
    for part in np.array_split(rng.permutation(1_000), 7):
        merged = merged + ScoreSums.of(labels[part], scores[part], weights[part])
    whole = ScoreSums.of(labels, scores, weights)
    assert astuple(merged) == pytest.approx(astuple(whole), rel=1e-12)
    assert merged.normalized_entropy == pytest.approx(whole.normalized_entropy, rel=1e-12)


# Intervals


def test_evaluate_reports_the_metrics_of_the_rows(rng: np.random.Generator) -> None:
    labels, scores, weights = _rows(rng, 400)
    found = evaluate(labels, scores, rng.integers(0, 90, 400), weights=weights, reference=np.sqrt(scores))
    sums = ScoreSums.of(labels, scores, weights)
    assert (found.rows, found.positives) == (400, labels.sum())
    assert found.auc.value == pytest.approx(auc(labels, scores, weights))
    assert found.log_loss.value == pytest.approx(sums.log_loss)
    assert found.normalized_entropy.value == pytest.approx(sums.normalized_entropy)
    assert found.calibration.value == pytest.approx(sums.calibration)
    for metric in (found.auc, found.log_loss, found.normalized_entropy, found.calibration):
        assert metric.low < metric.value < metric.high
    assert found.reference is not None
    assert found.reference.auc == found.auc  # the same order of scores, on the same replicates
    assert found.reference.log_loss.value == pytest.approx(ScoreSums.of(labels, np.sqrt(scores), weights).log_loss)


def test_a_replicate_is_the_log_of_the_units_drawn(rng: np.random.Generator) -> None:
    """The fast bootstrap against the obvious one: copy the rows of every drawn unit and score them."""
    labels, scores, weights = _rows(rng, 120)
    units = rng.integers(0, 30, 120)
    found = evaluate(labels, scores, units, weights=weights, replicates=40, seed=5)
    names, draw, obvious = np.unique(units), np.random.default_rng(5), []
    for _ in range(40):
        chosen = names[draw.integers(0, len(names), len(names))]
        rows = np.concatenate([np.flatnonzero(units == unit) for unit in chosen])
        sums = ScoreSums.of(labels[rows], scores[rows], weights[rows])
        area = auc(labels[rows], scores[rows], weights[rows])
        obvious.append((area, sums.log_loss, sums.normalized_entropy, sums.calibration))
    expected = np.quantile(obvious, [0.025, 0.975], axis=0).T
    metrics = (found.auc, found.log_loss, found.normalized_entropy, found.calibration)
    assert [(each.low, each.high) for each in metrics] == pytest.approx(expected)


def test_same_seed_same_intervals_and_names_of_units_do_not_matter(rng: np.random.Generator) -> None:
    labels, scores, _ = _rows(rng, 300)
    units = rng.integers(0, 50, 300)
    assert evaluate(labels, scores, units) == evaluate(labels, scores, units)
    assert evaluate(labels, scores, units) == evaluate(labels, scores, units.astype(np.int16) * 3 - 700)
    assert evaluate(labels, scores, units).auc != evaluate(labels, scores, units, seed=1).auc


def test_a_higher_level_is_a_wider_interval(rng: np.random.Generator) -> None:
    labels, scores, _ = _rows(rng, 300)
    narrow, wide = (evaluate(labels, scores, np.arange(300), level=level).auc for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


CLASSES = np.array([0.1, 0.3, 0.7])  # P(y = 1) of three kinds of row, equally likely; scores are these
TRUE_LOG_LOSS = float(np.mean(stats.bernoulli(CLASSES).entropy()))
TRUE_AUC = sum(
    CLASSES[i] * (1 - CLASSES[j]) * (1.0 if i > j else 0.5 * (i == j)) for i in range(3) for j in range(3)
) / (CLASSES.sum() * (3 - CLASSES.sum()))


def _covered(rng: np.random.Generator, copies: int, by_row: bool) -> np.ndarray:
    """How often 90 % intervals of AUC, log loss and calibration hold the truth, in 300 logs of 150 units.

    A unit's rows are `copies` of one draw. `by_row` plants the fault: every row taken for a unit of its own.
    """
    hits = np.zeros(3)
    for trial in range(300):
        scores = np.repeat(rng.choice(CLASSES, 150), copies)
        labels = np.repeat(rng.random(150) < scores[::copies], copies)
        owner = np.arange(len(scores)) if by_row else np.repeat(np.arange(150), copies)
        found = evaluate(labels, scores, owner, level=0.9, replicates=100, seed=trial)
        intervals = (found.auc, found.log_loss, found.calibration)
        truths = (TRUE_AUC, TRUE_LOG_LOSS, 1.0)
        hits += [each.low <= truth <= each.high for each, truth in zip(intervals, truths, strict=True)]
    return hits / 300


@pytest.mark.parametrize("copies", [1, 4])
def test_intervals_cover_the_truth_at_about_their_level(rng: np.random.Generator, copies: int) -> None:
    # 100 replicates and 150 units leave a true coverage of 0.87 or more. At 0.87, fewer than 0.80 of 300
    # trials happens with probability 4e-4; at 0.90, more than 0.96 with 1e-4.
    covered = _covered(rng, copies, by_row=False)
    assert np.all((covered > 0.80) & (covered < 0.96))


def test_fault_a_bootstrap_by_row_does_not_cover(rng: np.random.Generator) -> None:
    # Four copies halve the width: P(|Z| < 1.645 / 2) = 0.59; above 0.75 with probability below 1e-8.
    assert np.all(_covered(rng, 4, by_row=True) < 0.75)


def test_fewer_units_make_wider_intervals(rng: np.random.Generator) -> None:
    scores = np.repeat(rng.random(100), 16)
    labels = np.repeat(rng.random(100) < scores[::16], 16)
    by_unit = evaluate(labels, scores, np.repeat(np.arange(100), 16))
    by_row = evaluate(labels, scores, np.arange(1_600))
    for name in ("auc", "log_loss", "normalized_entropy", "calibration"):
        unit, row = getattr(by_unit, name), getattr(by_row, name)
        assert 2.5 < (unit.high - unit.low) / (row.high - row.low) < 6.0  # √16 = 4
    for unit_bin, row_bin in zip(by_unit.curve, by_row.curve, strict=True):
        assert unit_bin.high - unit_bin.low > 1.5 * (row_bin.high - row_bin.low)


# The calibration curve


def test_curve_bins_hold_every_row_once_in_order_of_score(rng: np.random.Generator) -> None:
    scores = rng.random(1_000)
    labels = (rng.random(1_000) < scores).astype(int)
    curve = evaluate(labels, scores, np.arange(1_000)).curve
    assert [each.rows for each in curve] == [100] * 10
    for each, rows in zip(curve, np.array_split(np.argsort(scores), 10), strict=True):
        assert each.mean_predicted == pytest.approx(scores[rows].mean())
        assert each.observed_rate == pytest.approx(labels[rows].mean())
        wilson = stats.binomtest(int(labels[rows].sum()), 100).proportion_ci(0.95, method="wilson")
        assert (each.low, each.high) == pytest.approx((wilson.low, wilson.high))


def test_curve_does_not_split_equal_scores(rng: np.random.Generator) -> None:
    scores = rng.choice([0.1, 0.1, 0.1, 0.4], 500)
    curve = evaluate(np.zeros(500), scores, np.arange(500)).curve
    assert [each.mean_predicted for each in curve] == pytest.approx([0.1, 0.4])
    assert all(each.low < 1e-12 and each.high > 0.005 for each in curve)  # no positive, yet not sure


def test_curve_covers_a_calibrated_score(rng: np.random.Generator) -> None:
    scores = rng.random(50_000) * 0.2
    curve = evaluate(rng.random(50_000) < scores, scores, np.arange(50_000), level=0.9999, replicates=1).curve
    assert all(each.low < each.mean_predicted < each.high for each in curve)  # fails with 1e-3


# Rows that define little


def _undefined(interval: Interval) -> bool:
    return all(math.isnan(value) for value in astuple(interval))


def test_no_rows_define_nothing() -> None:
    found = evaluate([], [], [], reference=[])
    assert (found.rows, found.positives, found.curve) == (0, 0, ())
    for metrics in (found, found.reference):
        assert metrics is not None
        assert _undefined(metrics.auc)
        assert _undefined(metrics.log_loss)
        assert _undefined(metrics.normalized_entropy)
        assert _undefined(metrics.calibration)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_log_loss_but_no_auc_and_no_normalized_entropy(label: int) -> None:
    found = evaluate(np.full(20, label), np.linspace(0, 1, 20), np.arange(20))
    assert _undefined(found.auc)
    assert _undefined(found.normalized_entropy)
    assert found.log_loss.low < found.log_loss.value < found.log_loss.high
    assert math.isnan(found.calibration.value) == (label == 0)


def test_equal_scores_have_an_auc_of_one_half() -> None:
    found = evaluate([0, 1] * 50, np.full(100, 0.5), np.repeat(np.arange(50), 2))
    assert found.auc == Interval(0.5, 0.5, 0.5)
    assert found.normalized_entropy.value == pytest.approx(1.0)
    assert len(found.curve) == 1


def test_one_unit_has_values_without_intervals() -> None:
    found = evaluate([0, 1, 1], [0.2, 0.3, 0.9], [4, 4, 4])
    assert found.auc.value == 1.0
    assert math.isnan(found.auc.low)
    assert math.isnan(found.auc.high)


def test_rows_without_weight_define_nothing() -> None:
    found = evaluate([0, 1], [0.2, 0.9], [0, 1], weights=[0, 0])
    assert _undefined(found.auc)
    assert _undefined(found.log_loss)
    assert math.isnan(found.curve[0].observed_rate)


def test_replicates_of_one_class_are_left_out() -> None:
    found = evaluate([1] + [0] * 5, [0.9] + [0.1] * 5, np.arange(6), replicates=50)
    assert found.auc == Interval(1.0, 1.0, 1.0)
    assert 0.0 < found.calibration.low <= found.calibration.high < math.inf


# What is refused


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": [0, 2]}, "labels must be 0 or 1"),
        ({"labels": [0, math.nan]}, "labels must be 0 or 1"),
        ({"labels": [[0, 1]]}, r"labels must have shape \(rows,\), got \(1, 2\)"),
        ({"scores": [0.5, 1.5]}, r"scores must be probabilities in \[0, 1\]"),
        ({"scores": [0.5, math.nan]}, r"scores must be probabilities in \[0, 1\]"),
        ({"scores": [0.5]}, r"scores must have shape \(2,\) as the labels have, got \(1,\)"),
        ({"reference": [-0.1, 0.5]}, r"reference must be probabilities in \[0, 1\]"),
        ({"reference": [0.5]}, r"reference must have shape \(2,\) as the labels have, got \(1,\)"),
        ({"weights": [1, -1]}, "weights must be finite and not negative"),
        ({"weights": [1, math.inf]}, "weights must be finite and not negative"),
        ({"weights": [1]}, r"weights must have shape \(2,\) as the labels have, got \(1,\)"),
        ({"units": [0]}, r"units must have shape \(2,\) as the labels have, got \(1,\)"),
        ({"units": [0.5, 1.5]}, "units must be integer codes, got float64"),
        ({"level": 1.0}, "level must lie between 0 and 1, got 1.0"),
        ({"replicates": 0}, "replicates must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(changed: dict, message: str) -> None:
    arguments = {"labels": [0, 1], "scores": [0.2, 0.7], "units": [0, 1]} | changed
    with pytest.raises(ValueError, match=message) as refused:
        evaluate(**arguments)
    assert "\n" not in str(refused.value)
