"""Calibration by segment against the metrics of the segment's own rows, and the merge laws of the table."""

import math

import numpy as np
import pytest

from privads.evaluation.metrics import ScoreSums, evaluate
from privads.evaluation.segments import by_segment, calibration_error, merged, sums_by_segment


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_a_segment_has_the_metrics_of_its_own_rows(rng: np.random.Generator) -> None:
    labels, scores = rng.integers(0, 2, 400), rng.random(400)
    units, segments = rng.integers(0, 80, 400), rng.choice(["ios", "android", "tv"], 400)
    table = by_segment(labels, scores, units, segments)
    assert [one.segment for one in table] == ["android", "ios", "tv"]
    assert sum(one.rows for one in table) == 400
    for one in table:
        rows = segments == one.segment
        alone = evaluate(labels[rows], scores[rows], units[rows])
        assert (one.rows, one.positives) == (rows.sum(), labels[rows].sum())
        assert one.calibration == alone.calibration
        assert one.calibration.value == pytest.approx(scores[rows].sum() / labels[rows].sum())
        assert one.normalized_entropy == alone.normalized_entropy


def test_right_on_average_and_wrong_in_both_segments_is_seen(rng: np.random.Generator) -> None:
    truth = np.repeat([0.2, 0.4], 20_000)
    labels = (rng.random(40_000) < truth).astype(int)
    table = by_segment(labels, np.full(40_000, 0.3), np.arange(40_000), np.repeat(["a", "b"], 20_000))
    assert table[0].calibration.low > 1.2 > 0.9 > table[1].calibration.high


def test_tables_merge_as_a_commutative_monoid(rng: np.random.Generator) -> None:
    rows = [(rng.integers(0, 2, 50), rng.random(50), rng.choice(["a", "b", "c"], 50)) for _ in range(3)]
    one, two, three = (sums_by_segment(*part) for part in rows)
    assert merged(one, two) == merged(two, one)
    assert merged(one, {}) == one
    whole = sums_by_segment(*(np.concatenate(column) for column in zip(*rows, strict=True)))
    joined = merged(merged(one, two), three)
    other = merged(one, merged(two, three))
    for name, sums in whole.items():
        for part in (joined, other):
            assert part[name].loss == pytest.approx(sums.loss)
            assert part[name].calibration == pytest.approx(sums.calibration)
    assert merged({"a": ScoreSums(1.0)}, {"b": ScoreSums(2.0)}) == {"a": ScoreSums(1.0), "b": ScoreSums(2.0)}


def test_calibration_error_is_its_definition_over_quantile_bins(rng: np.random.Generator) -> None:
    scores = rng.random(1_000)
    labels = (rng.random(1_000) < scores**2).astype(int)
    parts = np.array_split(np.argsort(scores), 10)
    expected = sum(len(rows) / 1_000 * abs(scores[rows].mean() - labels[rows].mean()) for rows in parts)
    assert calibration_error(labels, scores) == pytest.approx(expected)
    assert calibration_error([0, 1, 1, 0], [0.5] * 4, bins=4) == 0.0  # equal scores share a bin


def test_what_the_rows_do_not_define_is_nan_and_bad_arguments_are_refused() -> None:
    assert math.isnan(calibration_error([], []))
    assert by_segment([], [], [], []) == ()
    (one,) = by_segment([0, 0], [0.1, 0.2], [0, 1], ["x", "x"])
    assert math.isnan(one.calibration.value)
    assert math.isnan(one.normalized_entropy.value)
    with pytest.raises(ValueError, match=r"segments must have shape \(1,\)"):
        by_segment([0], [0.1], [0], ["a", "b"])
    with pytest.raises(ValueError, match="bins must be at least 1"):
        calibration_error([0], [0.1], bins=0)
