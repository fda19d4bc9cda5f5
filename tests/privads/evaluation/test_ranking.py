"""Ranking metrics against double loops, hand-worked examples and all orders of ties."""

import itertools
import math

import numpy as np
import pytest

from privads.evaluation import ranking
from privads.evaluation.metrics import auc
from privads.evaluation.ranking import (
    MeanSums,
    auc_by_group,
    average_precision,
    ndcg_by_group,
    recall_by_group,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def _pairs_won(labels: np.ndarray, scores: np.ndarray) -> float | None:
    won = pairs = 0.0
    for i in range(len(labels)):
        for j in range(len(labels)):
            if labels[i] == 1 and labels[j] == 0:
                pairs += 1
                won += 1.0 if scores[i] > scores[j] else 0.5 * (scores[i] == scores[j])
    return won / pairs if pairs else None


@pytest.mark.parametrize("weight", ["impressions", "positives"])
def test_grouped_auc_is_the_weighted_mean_of_the_shares_of_pairs_won(rng: np.random.Generator, weight: str) -> None:
    labels, scores, groups = rng.integers(0, 2, 200), rng.integers(0, 6, 200) / 5, rng.integers(0, 60, 200)
    total = mass = left = 0.0
    for group in range(60):
        rows = groups == group
        size = float(rows.sum() if weight == "impressions" else labels[rows].sum())
        value = _pairs_won(labels[rows], scores[rows])
        if value is None:
            left += size
        else:
            total, mass = total + size * value, mass + size
    sums = auc_by_group(labels, scores, groups, weight=weight).sums  # type: ignore[arg-type]
    assert sums.mean == pytest.approx(total / mass, abs=1e-12)
    assert sums.share_left_out == pytest.approx(left / (left + mass), abs=1e-12)
    assert left > 0


def test_one_group_has_the_plain_auc_and_differences_between_groups_do_not_count(rng: np.random.Generator) -> None:
    labels, scores = rng.integers(0, 2, 80), rng.random(80)
    assert auc_by_group(labels, scores, np.zeros(80)).sums.mean == pytest.approx(auc(labels, scores))
    groups = np.repeat(["rare", "often"], 500)
    labels = (rng.random(1000) < np.repeat([0.1, 0.6], 500)).astype(int)
    constant = np.repeat([0.1, 0.6], 500)
    assert auc(labels, constant) > 0.7
    assert auc_by_group(labels, constant, groups).sums.mean == 0.5


def test_average_precision_of_a_hand_worked_ranking_with_a_tie() -> None:
    # thresholds 0.9: 1 of 1; 0.5: two rows, one positive, 2 of 3; 0.1: 3 of 5
    expected = (1 / 3) * 1 + (1 / 3) * (2 / 3) + (1 / 3) * (3 / 5)
    assert average_precision([1, 0, 1, 0, 1], [0.9, 0.5, 0.5, 0.1, 0.1]) == pytest.approx(expected)


def test_average_precision_is_its_definition_by_thresholds(rng: np.random.Generator) -> None:
    labels, scores, weights = rng.integers(0, 2, 150), rng.integers(0, 20, 150) / 19, rng.random(150)
    area = before = 0.0
    for threshold in sorted(set(scores), reverse=True):
        above = scores >= threshold
        positive = (weights * labels)[above].sum()
        recall = positive / (weights * labels).sum()
        area, before = area + (recall - before) * positive / weights[above].sum(), recall
    assert average_precision(labels, scores, weights) == pytest.approx(area, abs=1e-12)


def test_a_constant_score_has_the_base_rate_as_average_precision() -> None:
    assert average_precision([1, 0, 0, 0], [0.3] * 4) == 0.25


def _over_orders_of_ties(grades: np.ndarray, scores: np.ndarray, k: int) -> tuple[float, float]:
    """Recall@k and DCG@k as means over all orders that the scores allow."""
    recalls, gains = [], []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            top = [grades[i] for i in order[:k]]
            recalls.append(sum(g > 0 for g in top) / sum(g > 0 for g in grades))
            gains.append(sum(g / math.log2(rank + 2) for rank, g in enumerate(top)))
    return float(np.mean(recalls)), float(np.mean(gains))


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_recall_and_ndcg_are_means_over_the_orders_of_ties(rng: np.random.Generator, k: int) -> None:
    for _ in range(10):
        grades, scores = rng.integers(0, 4, 6), rng.integers(0, 3, 6) / 2
        grades[0] = 2
        recall, gain = _over_orders_of_ties(grades, scores, k)
        ideal = sum(g / math.log2(rank + 2) for rank, g in enumerate(sorted(grades, reverse=True)[:k]))
        group = np.zeros(6)
        assert recall_by_group(grades, scores, group, k=k).values[0] == pytest.approx(recall, abs=1e-12)
        assert ndcg_by_group(grades, scores, group, k=k).values[0] == pytest.approx(gain / ideal, abs=1e-12)


def test_ndcg_of_the_textbook_ranking() -> None:
    # relevance 3, 2, 3, 0, 1, 2 in the order of the scores: DCG@6 6.861, of the best order 7.141
    value = ndcg_by_group([3, 2, 3, 0, 1, 2], [6, 5, 4, 3, 2, 1], np.zeros(6), k=6).values[0]
    assert value == pytest.approx(0.961, abs=5e-4)


def test_groups_without_a_relevant_row_are_left_out() -> None:
    for found in (
        recall_by_group([0, 0, 1], [1, 2, 3], ["a", "a", "b"], k=1),
        ndcg_by_group([0, 0, 1], [1, 2, 3], ["a", "a", "b"], k=1),
    ):
        assert found.sums == MeanSums(1.0, 1.0, 1.0)


def test_sums_are_a_commutative_monoid_and_parts_of_whole_groups_are_the_whole(rng: np.random.Generator) -> None:
    a, b, c = (MeanSums(*rng.random(3)) for _ in range(3))
    assert a + b == b + a
    assert a + MeanSums() == a
    assert ((a + b) + c).mean == pytest.approx((a + (b + c)).mean)
    labels, scores, groups = rng.integers(0, 2, 300), rng.random(300), rng.integers(0, 30, 300)
    for read in (
        auc_by_group,
        lambda *rows: recall_by_group(*rows, k=3),
        lambda *rows: ndcg_by_group(*rows, k=3),
    ):
        merged = MeanSums()
        for part in range(4):
            rows = groups % 4 == part
            merged = merged + read(labels[rows], scores[rows], groups[rows]).sums
        whole = read(labels, scores, groups).sums
        assert merged.mean == pytest.approx(whole.mean)
        assert merged.left_out == pytest.approx(whole.left_out)


def test_what_the_rows_do_not_define_is_nan() -> None:
    assert math.isnan(average_precision([0, 0], [0.1, 0.2]))
    assert math.isnan(average_precision([], []))
    assert math.isnan(auc_by_group([1, 1], [0.1, 0.2], [0, 1]).sums.mean)
    for read in (auc_by_group, lambda *rows: recall_by_group(*rows, k=3), lambda *rows: ndcg_by_group(*rows, k=3)):
        assert math.isnan(read([], [], []).sums.mean)
        assert math.isnan(read([1], [0.5], [0]).interval().low)


def test_intervals_over_groups_cover_the_mean_at_about_their_level(rng: np.random.Generator) -> None:
    # values with mean 0.5 in 100 groups: coverage near 0.89; fewer than 0.80 of 300 with probability 1e-5
    hits = 0
    for trial in range(300):
        found = ranking.PerGroup(rng.random(100), rng.integers(1, 4, 100).astype(float))
        one = found.interval(level=0.9, seed=trial)
        hits += one.low <= 0.5 <= one.high
    assert 0.80 < hits / 300 < 0.97


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recall_by_group([1], [1], [0], k=0), "k must be at least 1, got 0"),
        (lambda: recall_by_group([-1], [1], [0], k=1), "relevance must be finite and not negative"),
        (lambda: ndcg_by_group([1], [math.nan], [0], k=1), "scores must be numbers"),
        (lambda: auc_by_group([1], [0.5], [0, 1]), r"groups must have shape \(1,\)"),
        (lambda: auc_by_group([1], [0.5], [0], weight="rows"), "weight must be"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_are_refused_in_one_line(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
