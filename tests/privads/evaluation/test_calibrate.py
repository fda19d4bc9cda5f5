"""Calibration maps against general solvers and the definition, and what noise does to them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit

from accounting import accountant
from accounting import calibrate as budgets
from accounting.budget import Budget
from accounting.mechanisms import gaussian
from privads.evaluation.calibrate import Calibration, Counts, by_segment, isotonic, platt
from privads.evaluation.histogram import ScoreHistogram, log_odds
from privads.evaluation.metrics import ScoreSums
from privads.evaluation.release import RELEASE_GRID


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def _rows(rng: np.random.Generator, rows: int, mean: float = -3.4) -> tuple[np.ndarray, np.ndarray]:
    """Labels and their true probabilities; the base rate is about 5 % at the default mean."""
    truth = expit(rng.normal(mean, 1.0, rows))
    return (rng.random(rows) < truth).astype(int), truth


def _noised(exact: ScoreHistogram, noise_std: float, rng: np.random.Generator) -> ScoreHistogram:
    cells = [one + rng.normal(0.0, noise_std, exact.grid.cells) for one in (exact.positives, exact.negatives)]
    event = gaussian(noise_multiplier=noise_std)
    return replace(exact, positives=cells[0], negatives=cells[1], noise_std=noise_std, event=event)


# Platt


def test_platt_minimizes_the_log_loss_of_platts_targets(rng: np.random.Generator) -> None:
    labels, truth = _rows(rng, 3_000, mean=-1.0)
    scores = expit(0.5 * logit(truth) - 0.7)
    up, down = (labels.sum() + 1) / (labels.sum() + 2), 1 / ((1 - labels).sum() + 2)
    target = np.where(labels == 1, up, down)

    def loss(at: np.ndarray) -> float:
        p = expit(at[0] * logit(scores) + at[1])
        return -float((target * np.log(p) + (1 - target) * np.log1p(-p)).sum())

    best = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9, "maxiter": 10_000})
    found = platt(Counts.of_rows(labels, scores))
    assert (found.slope, found.intercept) == pytest.approx(best.x, abs=1e-4)
    assert found.event is None


def test_platt_undoes_a_line_on_the_log_odds(rng: np.random.Generator) -> None:
    labels, truth = _rows(rng, 200_000, mean=-1.0)
    found = platt(Counts.of_rows(labels, expit(0.5 * logit(truth) - 0.7)))
    assert found.slope == pytest.approx(2.0, rel=0.05)  # logit truth = 2 (logit score + 0.7)
    assert found.intercept == pytest.approx(1.4, abs=0.06)


def test_predictions_of_a_fit_add_up_to_the_positives(rng: np.random.Generator) -> None:
    labels, truth = _rows(rng, 20_000)
    scores = 0.85 * truth
    mapped = platt(Counts.of_rows(labels, scores)).apply(scores)
    assert ScoreSums.of(labels, mapped).calibration == pytest.approx(1.0, abs=1e-3)


def test_fits_of_little_are_finite_or_nothing() -> None:
    split = platt(Counts.of_rows([0, 1], [0.2, 0.8]))  # separable: the plain maximum is infinite
    assert 0 < split.slope < 10
    assert platt(Counts.of_rows([0, 0], [0.2, 0.8])) == Calibration()
    assert platt(Counts.of_rows([], [])) == Calibration()
    constant = platt(Counts.of_rows([0, 0, 0, 1] * 100, [0.5] * 400))
    assert constant.slope == 1.0
    assert constant.apply([0.5])[0] == pytest.approx(0.25, abs=0.01)


def test_a_prediction_15_percent_low_is_mended_within_3_percent_at_epsilon_one_half(rng: np.random.Generator) -> None:
    """100,000 units of one row, 5 % convert; what the ratio is off by on the same and on a million other rows.

    Noise alone moves the ratio by 0.8 % (std), with sampling it is 2.1 % on other rows. The mean of 20 absolute errors
    is then 1.7 % with a std of 0.3 %: above 3 % with probability below 1e-5.
    """
    budget = Budget(epsilon=0.5, delta=1e-6, unit="user")
    noise_std = budgets.noise_multiplier(lambda s: gaussian(noise_multiplier=s), budget)
    other_labels, other_truth = _rows(rng, 1_000_000)
    same, other = [], []
    for _ in range(20):
        labels, truth = _rows(rng, 100_000)
        scores = 0.85 * truth
        assert ScoreSums.of(labels, scores).calibration < 0.9
        found = platt(
            Counts.of_histogram(_noised(ScoreHistogram.of(labels, scores, grid=RELEASE_GRID), noise_std, rng))
        )
        assert found.event is not None
        assert accountant.epsilon(found.event, delta=1e-6).upper <= 0.5
        same.append(ScoreSums.of(labels, found.apply(scores)).calibration - 1.0)
        other.append(ScoreSums.of(other_labels, found.apply(0.85 * other_truth)).calibration - 1.0)
    assert np.abs(same).max() < 0.04  # 4.6 standard deviations
    assert np.abs(same).mean() < 0.02
    assert np.abs(other).mean() < 0.03


def test_noise_that_explains_the_change_is_not_followed(rng: np.random.Generator) -> None:
    labels, truth = _rows(rng, 2_000)
    exact = ScoreHistogram.of(labels, truth, grid=log_odds(bins=36))
    slopes = [platt(Counts.of_histogram(_noised(exact, 40.0, rng))).slope for _ in range(40)]
    unaware = [platt(replace(Counts.of_histogram(_noised(exact, 40.0, rng)), noise_std=0.0)).slope for _ in range(40)]
    assert np.abs(np.array(slopes) - 1).mean() < 0.5 * np.abs(np.array(unaware) - 1).mean()
    empty = platt(Counts.of_histogram(_noised(ScoreHistogram.empty(), 9.0, rng)))
    assert np.isfinite([empty.slope, empty.intercept]).all()


# Isotonic


def test_isotonic_is_the_largest_of_least_means(rng: np.random.Generator) -> None:
    # the minimum-maximum formula: value at i = max over a <= i of min over b >= i of the mean of a..b
    labels, scores = rng.integers(0, 2, 40), np.sort(rng.random(40))
    found = isotonic(Counts.of_rows(labels, scores)).apply(scores)
    for i in range(40):
        expected = max(min(labels[a : b + 1].mean() for b in range(i, 40)) for a in range(i + 1))
        assert found[i] == pytest.approx(expected, abs=1e-9)


def test_isotonic_from_noisy_bins_rises_and_mends_a_bent_score(rng: np.random.Generator) -> None:
    labels, truth = _rows(rng, 200_000, mean=-1.5)
    bent = truth**2
    exact = ScoreHistogram.of(labels, bent, grid=RELEASE_GRID)
    found = isotonic(Counts.of_histogram(_noised(exact, 8.5, rng)))
    values = [probability for _, probability in found.knots]
    assert values == sorted(values)
    assert 0.0 <= values[0] <= values[-1] <= 1.0
    assert np.abs(found.apply(bent) - truth).mean() < 0.02 < 0.1 < np.abs(bent - truth).mean()


def test_isotonic_of_nothing_changes_nothing() -> None:
    assert isotonic(Counts.of_rows([], [])) == Calibration()


# Segments


def test_segments_are_mended_each_and_small_ones_follow_the_whole(rng: np.random.Generator) -> None:
    parts = {}
    for name, rows, factor in (("low", 40_000, 0.6), ("high", 40_000, 1.4), ("small", 30, 1.0)):
        labels, truth = _rows(rng, rows, mean=-2.0)
        parts[name] = (labels, np.clip(truth * factor, 0, 1))
    found = by_segment({name: Counts.of_rows(*rows) for name, rows in parts.items()})
    for name in ("low", "high"):
        labels, scores = parts[name]
        mapped = found.apply(scores, np.full(len(scores), name))
        assert ScoreSums.of(labels, mapped).calibration == pytest.approx(1.0, abs=0.04)
    assert found.segments["low"] > 0.2 > -0.2 > found.segments["high"]
    unseen = found.apply([0.1], ["new"])
    assert unseen == pytest.approx(found.apply([0.1]))


def test_equal_segments_are_not_told_apart(rng: np.random.Generator) -> None:
    shifts = []
    for _ in range(20):
        rows = {str(name): _rows(rng, 1_000, mean=-2.0) for name in range(8)}
        shifts += list(by_segment({name: Counts.of_rows(*one) for name, one in rows.items()}).segments.values())
    assert np.std(shifts) < 0.06  # unshrunk, 1 / √(1,000 · 0.1) = 0.1


def test_segments_of_one_release_cost_once(rng: np.random.Generator) -> None:
    one = _noised(ScoreHistogram.of(*_rows(rng, 5_000)), 5.0, rng)
    two = replace(_noised(ScoreHistogram.of(*_rows(rng, 5_000)), 5.0, rng), event=one.event)
    found = by_segment({"a": Counts.of_histogram(one), "b": Counts.of_histogram(two)})
    assert found.event == one.event
    assert by_segment({}) == Calibration()


# The value


def test_a_calibration_survives_json(rng: np.random.Generator) -> None:
    noisy = _noised(ScoreHistogram.of(*_rows(rng, 5_000)), 5.0, rng)
    for found in (
        platt(Counts.of_histogram(noisy)),
        isotonic(Counts.of_histogram(noisy)),
        Calibration(segments={"a": 0.5}),
    ):
        again = Calibration.from_json(found.to_json())
        assert again == found
        assert again.event == found.event
    with pytest.raises(ValueError, match="this is not the JSON of a calibration"):
        Calibration.from_json("{}")
    with pytest.raises(ValueError, match="scores must be probabilities"):
        Calibration().apply([math.nan])


def test_the_map_of_no_change_changes_nothing() -> None:
    scores = np.array([1e-6, 0.2, 0.9])
    assert Calibration().apply(scores) == pytest.approx(scores)
