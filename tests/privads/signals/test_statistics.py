"""Estimates of the sums of labels: each is unbiased with the variance it states, and their mean is the best there is.

Each statistical test draws `DRAWS` times. A cell's mean over them, in its own standard errors, is close to normal: that
one of 76 cells is farther off than `BOUND` = 6 has probability below 2e-7. A wrong flip rate, as planted below, moves
it by more than 20, and is missed with probability below 1e-30.
"""

from dataclasses import replace

import numpy as np
import pytest

from privads.noise import Randomness
from privads.signals.encoding import Encoding, Features
from privads.signals.event_reports import EventReports
from privads.signals.statistics import (
    Source,
    Statistic,
    as_in_sample,
    combined,
    flip_rates,
    labeled_sample,
    noisy_sums,
    public_labels,
    randomized_labels,
    settled,
    without_empty,
)
from tests.privads.signals.made_clicks import SIZES, clicks

DRAWS, BOUND = 400, 6.0
MADE = clicks(3000, seed=0)
TRUTH = public_labels(MADE.features, MADE.labels).values
RNG = np.random.default_rng(1)


def sums(noise_std: float, rng: np.random.Generator) -> Statistic:
    encoding = MADE.features.encoding
    return noisy_sums(
        encoding,
        {
            table: (TRUTH[part] + noise_std * rng.standard_normal(length), noise_std)
            for table, part, length in zip(encoding.tables, encoding.parts, encoding.lengths, strict=True)
        },
        neighbors="add-remove",
    )


def answers(a: float, b: float, rng: np.random.Generator) -> np.ndarray:
    flipped = rng.random(len(MADE.labels)) < np.where(MADE.labels == 1, b, a)
    return np.where(flipped, 1 - MADE.labels, MADE.labels)


def sampled(f: float, rng: np.random.Generator) -> Statistic:
    chosen = rng.random(len(MADE.labels)) < f
    sample = Features.of(MADE.features.encoding, MADE.rows[chosen], public=True)
    return labeled_sample(MADE.features, sample, MADE.labels[chosen], sampling_rate=f, public=True)


def noisy_sampled(f: float, noise_std: float, rng: np.random.Generator) -> Statistic:
    chosen = rng.random(len(MADE.labels)) < f
    sample = Features.of(MADE.features.encoding, MADE.rows[chosen], public=False)
    found = labeled_sample(
        MADE.features,
        sample,
        MADE.labels[chosen],
        sampling_rate=f,
        public=False,
        noise_std=noise_std,
        neighbors="replace-label",
    )
    # the noise that was charged is on the sums of the sample, and is scaled up with them
    return replace(found, values=found.values + noise_std * rng.standard_normal(len(found.values)) / f)


def z_of_means(draws: list[Statistic]) -> np.ndarray:
    """(cells that vary,) how many standard errors the mean of the draws is from the truth."""
    values = np.stack([one.values for one in draws])
    off, error = values.mean(axis=0) - TRUTH, values.std(axis=0) / np.sqrt(len(draws))
    assert (off[error == 0] == 0).all()
    return off[error > 0] / error[error > 0]


def test_each_statistic_is_unbiased() -> None:
    rng = np.random.default_rng(2)
    for make in (
        lambda: sums(7.0, rng),
        lambda: randomized_labels(MADE.features, answers(0.2, 0.2, rng), false_positive=0.2, false_negative=0.2),
        lambda: randomized_labels(MADE.features, answers(0.3, 0.1, rng), false_positive=0.3, false_negative=0.1),
        lambda: sampled(0.2, rng),
    ):
        assert np.abs(z_of_means([make() for _ in range(DRAWS)])).max() < BOUND


def test_a_wrong_flip_rate_is_seen() -> None:
    rng = np.random.default_rng(3)
    wrong = [
        randomized_labels(MADE.features, answers(0.2, 0.2, rng), false_positive=0.15, false_negative=0.15)
        for _ in range(DRAWS)
    ]
    assert np.abs(z_of_means(wrong)).max() > 20


def test_each_statistic_has_the_variance_it_states() -> None:
    """The sum over a table's cells of squared errors, over that of stated variances, is 1 up to 6 standard errors.

    Cells' rates differ from the log's, which the variances of unequal flips and of samples leave out: summed over a
    table they are right.
    """
    rng = np.random.default_rng(4)
    for make in (
        lambda: sums(7.0, rng),
        lambda: randomized_labels(MADE.features, answers(0.2, 0.2, rng), false_positive=0.2, false_negative=0.2),
        lambda: randomized_labels(MADE.features, answers(0.3, 0.1, rng), false_positive=0.3, false_negative=0.1),
        lambda: sampled(0.2, rng),
        lambda: noisy_sampled(0.2, 2.0, rng),
    ):
        draws = [make() for _ in range(DRAWS)]
        sites = MADE.features.encoding.parts[2]
        ratio = np.mean([((one.values - TRUTH)[sites] ** 2).sum() / one.variance[sites].sum() for one in draws])
        # 60 cells of unequal size are about 20 equal ones: std of a draw's ratio sqrt(2 / 20), of the mean 0.016
        assert abs(ratio - 1) < BOUND * 0.016


def test_labels_by_k_ary_response_are_unbiased_with_the_flip_rates_of_their_states() -> None:
    kinds = EventReports(windows=(1, 1), most=1)
    epsilon = 1.0
    a, b = flip_rates(states=3, positive_states=2, randomize_probability=kinds.randomize_probability(epsilon))
    assert a == pytest.approx(2 / (2 + np.e), abs=1e-12)  # p (k - 1) / k with p = k / (k + e - 1)
    none = int(np.flatnonzero(kinds.counts.sum(axis=1) == 0)[0])
    some = int(np.flatnonzero(kinds.counts.sum(axis=1) == 1)[0])
    states = np.where(MADE.labels == 1, some, none).astype(np.int64)
    draws = []
    for seed in range(100):
        told = kinds.randomized(states, epsilon=epsilon, randomness=Randomness(insecure_seed=seed))
        draws.append(
            randomized_labels(
                MADE.features, (told != none).astype(np.float64), false_positive=a, false_negative=b, terms="k-ary"
            )
        )
    assert np.abs(z_of_means(draws)).max() < BOUND


def test_the_stated_variance_of_randomized_response_is_that_of_the_paper() -> None:
    epsilon = 2.0
    q = 1 / (1 + np.exp(epsilon))
    found = randomized_labels(MADE.features, MADE.labels, false_positive=q, false_negative=q)
    expected = MADE.features.counts * np.exp(epsilon) / (np.exp(epsilon) - 1) ** 2
    np.testing.assert_allclose(found.variance, expected, rtol=1e-12)


def test_sums_are_preferred_where_cells_are_large_enough() -> None:
    epsilon, noise_std = 1.0, 10.0
    q = 1 / (1 + np.exp(epsilon))
    labels = randomized_labels(MADE.features, MADE.labels, false_positive=q, false_negative=q)
    both = combined(sums(noise_std, RNG), labels)
    large = MADE.features.counts > noise_std**2 * (np.exp(epsilon) - 1) ** 2 / np.exp(epsilon)
    assert 0 < large.sum() < len(large)
    np.testing.assert_array_equal(both.used == 0, large)
    assert [source.kind for source in both.sources] == ["noisy sums", "randomized labels"]


def test_no_other_weights_have_less_variance_than_the_combination() -> None:
    one, other = sums(5.0, RNG), sums(9.0, RNG)
    both = combined(one, other)
    for share in np.linspace(0, 1, 101):
        assert (both.variance <= share**2 * one.variance + (1 - share) ** 2 * other.variance + 1e-9).all()
    np.testing.assert_allclose(both.variance, 25 * 81 / (25 + 81))
    np.testing.assert_allclose(both.values, (one.values * 81 + other.values * 25) / (25 + 81))
    three = combined(both, sums(3.0, RNG))
    np.testing.assert_allclose(three.weights.sum(axis=0), 1)
    np.testing.assert_allclose(three.weights[:, 0], np.array([1 / 25, 1 / 81, 1 / 9]) / (1 / 25 + 1 / 81 + 1 / 9))


def test_the_combination_has_the_variance_it_states() -> None:
    rng = np.random.default_rng(5)
    q = 0.3
    draws = [
        combined(
            sums(8.0, rng),
            randomized_labels(MADE.features, answers(q, q, rng), false_positive=q, false_negative=q),
            sampled(0.3, rng),
        )
        for _ in range(DRAWS)
    ]
    assert np.abs(z_of_means(draws)).max() < BOUND
    ratio = np.mean([((one.values - TRUTH) ** 2).sum() / one.variance.sum() for one in draws])
    assert abs(ratio - 1) < 0.1


def test_what_is_exact_or_not_told_of_counts_alone_or_not_at_all() -> None:
    encoding = MADE.features.encoding
    part = noisy_sums(encoding, {("hour",): (TRUTH[encoding.parts[1]] + 3.0, 2.0)}, neighbors="add-remove")
    assert np.isinf(part.variance[encoding.parts[0]]).all()
    assert (part.used[encoding.parts[0]] == -1).all()
    exact = public_labels(MADE.features, MADE.labels)
    np.testing.assert_array_equal(combined(part, exact).values, TRUTH)
    np.testing.assert_array_equal(combined(part, exact).variance, 0)
    other = sums(4.0, RNG)
    both = combined(part, other)
    np.testing.assert_array_equal(both.values[encoding.parts[2]], other.values[encoding.parts[2]])
    np.testing.assert_array_equal(both.used[encoding.parts[1]], 0)


def test_settled_tables_agree_and_the_total_is_weighted_by_variance() -> None:
    encoding = Encoding.of({"a": 2, "b": 3})
    one = noisy_sums(
        encoding,
        {("a",): (np.array([10.0, 20.0]), 1.0), ("b",): (np.array([10.0, 10.0, 16.0]), 2.0)},
        neighbors="add-remove",
    )
    values, _, total = settled(one)
    assert total == pytest.approx((30 / 2 + 36 / 12) / (1 / 2 + 1 / 12))
    np.testing.assert_allclose([values[:2].sum(), values[2:].sum()], total)
    np.testing.assert_allclose(np.diff(values[2:4]), 0, atol=1e-12)


def test_negative_sums_are_kept_and_empty_cells_are_known() -> None:
    low = replace(sums(1.0, RNG), values=TRUTH - 1000.0)
    assert (settled(low)[0] < 0).all()
    sparse = Features.of(MADE.features.encoding, MADE.rows[:20], public=False)
    emptied = without_empty(low, sparse)
    np.testing.assert_array_equal(emptied.values == 0, sparse.counts == 0)
    np.testing.assert_array_equal(emptied.variance == 0, sparse.counts == 0)


def test_a_sample_with_exact_displayed_counts_has_the_log_s_rates() -> None:
    sample = Features.of(MADE.features.encoding, MADE.rows[::5], public=False, total=len(MADE.rows))
    truth = public_labels(MADE.features, MADE.labels)
    displayed = replace(truth, values=MADE.features.counts, variance=np.zeros(len(TRUTH)))
    found = as_in_sample(truth, sample, displayed)
    there = sample.counts > 0
    np.testing.assert_allclose(
        (found.values / np.maximum(sample.counts, 1))[there], (TRUTH / MADE.features.counts)[there], rtol=1e-6
    )
    assert (found.values[~there] == 0).all()
    noisy = replace(displayed, variance=np.full(len(TRUTH), 1e12))
    np.testing.assert_allclose(as_in_sample(truth, sample, noisy).values, as_in_sample(truth, sample, None).values)


def test_what_is_not_a_statistic_is_refused() -> None:
    features, encoding = MADE.features, MADE.features.encoding
    sample = Features.of(encoding, MADE.rows[:9], public=False)
    for call, said in (
        (lambda: noisy_sums(encoding, {("x",): (np.zeros(3), 1.0)}, neighbors="add-remove"), "tables must be"),
        (lambda: noisy_sums(encoding, {("hour",): (np.zeros(3), 1.0)}, neighbors="add-remove"), "12 cells"),
        (lambda: noisy_sums(encoding, {("hour",): (np.zeros(12), -1.0)}, neighbors="add-remove"), "noise_std"),
        (lambda: noisy_sums(encoding, {("hour",): (np.full(12, np.nan), 1.0)}, neighbors="add-remove"), "finite"),
        (lambda: randomized_labels(features, MADE.labels, false_positive=0.5, false_negative=0.5), "flip rates"),
        (lambda: randomized_labels(features, MADE.labels[:9], false_positive=0.1, false_negative=0.1), "shape"),
        (lambda: randomized_labels(features, MADE.labels + 1, false_positive=0.1, false_negative=0.1), "0 or 1"),
        (
            lambda: labeled_sample(features, sample, MADE.labels[:9], sampling_rate=0.003, public=False),
            "noise that was charged",
        ),
        (lambda: flip_rates(states=3, positive_states=3, randomize_probability=0.1), "positive_states"),
        (lambda: combined(), "there must be"),
        (lambda: combined(sums(1.0, RNG), _other()), "same tables"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def _other() -> Statistic:
    encoding = Encoding.of({**SIZES, "more": 2})
    zeros = np.zeros(encoding.cells)
    source = Source(kind="noisy sums", neighbors="add-remove")
    return Statistic(encoding=encoding, values=zeros, variance=zeros + 1, sources=(source,), weights=zeros[None] + 1)
