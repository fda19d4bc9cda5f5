"""Learning from sums of labels: the objective, the minimum, what the noise does to it, and what is said of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from privads.signals.encoding import Encoding, Features, Floats
from privads.signals.glm import NoisyLogistic, Problem, learn, minimized
from privads.signals.statistics import (
    Statistic,
    combined,
    labeled_sample,
    noisy_sums,
    public_labels,
    randomized_labels,
)
from tests.privads.signals.made_clicks import SIZES, Clicks, clicks, normalized

PAIRS = Encoding.of(SIZES, most_cells_of_a_pair=50)
MADE = clicks(20_000, seed=0)
TEST = clicks(20_000, seed=0)  # the same effects
TEST = replace(TEST, labels=(np.random.default_rng(9).random(20_000) < TEST.probabilities).astype(np.float64))


def noisy(made: Clicks, noise_std: float, seed: int) -> Statistic:
    rng, truth, encoding = (
        np.random.default_rng(seed),
        public_labels(made.features, made.labels),
        made.features.encoding,
    )
    return noisy_sums(
        encoding,
        {
            table: (truth.values[part] + noise_std * rng.standard_normal(length), noise_std)
            for table, part, length in zip(encoding.tables, encoding.parts, encoding.lengths, strict=True)
        },
        neighbors="add-remove",
        terms="epsilon 1 (delta 1e-06, example, add/remove)",
    )


def one_hot(made: Clicks) -> np.ndarray:
    return np.asarray(made.features.matrix(range(len(made.features.encoding.tables))).toarray())


def unnoised(statistic: Statistic) -> Statistic:
    """What a learner sees that takes noisy sums for the sums."""
    return replace(statistic, variance=np.zeros_like(statistic.variance))


def value(statistic: Statistic, made: Clicks = MADE, ridge: float | None = None) -> float:
    """The normalized log-likelihood of held-out labels under what is learned."""
    return normalized(TEST.labels, learn(made.features, statistic, ridge=ridge).predict(TEST.rows))


def test_the_objective_is_the_log_likelihood_of_the_rows_and_its_gradient_is_its_slope() -> None:
    made, rng = clicks(300, seed=1, encoding=PAIRS), np.random.default_rng(0)
    k, y = one_hot(made), made.labels
    theta, penalty, b = rng.normal(size=k.shape[1]), rng.uniform(0.1, 2, k.shape[1]), -0.7
    problem = Problem(
        matrix=made.features.matrix(range(len(PAIRS.tables))),
        scale=1.0,
        lengths=PAIRS.lengths,
        values=k.T @ y,
        total=float(y.sum()),
    )

    def by_rows(b: float, theta: Floats) -> float:
        p = expit(b + k @ theta)
        return float(-(y * np.log(p) + (1 - y) * np.log1p(-p)).sum() + (penalty * theta**2).sum() / 2)

    assert problem.objective(b + k @ theta, penalty, b, theta) == pytest.approx(by_rows(b, theta), rel=1e-12)
    slope, gradient = problem.gradient(b + k @ theta, penalty, theta)
    h = 1e-5
    assert slope == pytest.approx((by_rows(b + h, theta) - by_rows(b - h, theta)) / (2 * h), rel=1e-5)
    for j in range(0, k.shape[1], 7):
        e = h * np.eye(k.shape[1])[j]
        assert gradient[j] == pytest.approx(
            (by_rows(b, theta + e) - by_rows(b, theta - e)) / (2 * h), rel=1e-4, abs=1e-5
        )


@pytest.mark.parametrize("encoding", [Encoding.of(SIZES), PAIRS])
def test_without_noise_it_is_the_logistic_regression_of_the_rows(encoding: Encoding) -> None:
    made = clicks(4000, seed=2, encoding=encoding)
    oracle = LogisticRegression(C=0.5, tol=1e-10, max_iter=3000).fit(one_hot(made), made.labels)
    found = learn(made.features, public_labels(made.features, made.labels), ridge=2.0)
    np.testing.assert_allclose(found.coefficients, oracle.coef_[0], atol=2e-3)
    np.testing.assert_allclose(found.predict(made.rows), oracle.predict_proba(one_hot(made))[:, 1], atol=1e-3)


def test_without_noise_and_with_its_own_penalty_it_is_as_good_as_the_best_regression_of_the_rows() -> None:
    known, held = one_hot(MADE), one_hot(TEST)
    best = max(
        normalized(TEST.labels, LogisticRegression(C=c, max_iter=500).fit(known, MADE.labels).predict_proba(held)[:, 1])
        for c in (0.1, 1.0, 10.0)
    )
    assert value(public_labels(MADE.features, MADE.labels)) > best - 0.001


def test_at_the_minimum_the_gradient_is_zero_with_penalties_and_columns_that_depend_on_each_other() -> None:
    rng = np.random.default_rng(3)
    site = rng.integers(0, 60, 5000)
    rows = np.stack([site % 4, site % 12, site], axis=1)  # device and hour are functions of the site
    features = Features.of(PAIRS, rows, public=True)
    labels = (rng.random(5000) < expit(-1 + 0.1 * (site % 7))).astype(np.float64)
    problem = Problem(
        matrix=features.matrix(range(len(PAIRS.tables))),
        scale=1.0,
        lengths=PAIRS.lengths,
        values=public_labels(features, labels).values,
        total=float(labels.sum()),
    )
    penalty = 10.0 ** rng.uniform(-2, 2, PAIRS.cells)
    b, theta = minimized(problem, penalty, -1.0, np.zeros(PAIRS.cells))
    slope, gradient = problem.gradient(b + problem.matrix @ theta, penalty, theta)
    assert abs(slope) < 1e-2
    assert np.abs(gradient).max() < 5e-2  # of sums of some hundreds


def test_modeling_the_noise_beats_ignoring_it() -> None:
    seeds = [noisy(MADE, 60.0, seed) for seed in range(5)]
    aware, ignorant = (
        [value(how(one), ridge=ridge) for one in seeds] for how, ridge in ((lambda x: x, None), (unnoised, 1.0))
    )
    assert min(aware) > max(ignorant) + 0.02
    assert value(public_labels(MADE.features, MADE.labels)) > max(aware)


def test_under_noise_that_drowns_the_sums_it_is_no_worse_than_the_constant() -> None:
    """Some 5,000 positives in 76 cells: only their number is told."""
    assert np.mean([value(noisy(MADE, 300.0, seed)) for seed in range(5)]) > -0.005


def test_more_noise_never_helps_on_average() -> None:
    found = [
        np.mean([value(noisy(MADE, noise_std, seed)) for seed in range(5)]) for noise_std in (0.0, 20.0, 80.0, 300.0)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] - found[1] < 0.1 * found[0]


def test_cutting_sums_off_at_zero_is_worse() -> None:
    """The fault that the module's text warns of: every cell of few positives is raised, and with them all predictions.

    Means of 40 logs: right is within 4 standard errors of 0, and misses that with probability 6e-5; cut off is beyond
    8.
    """
    rare = clicks(20_000, seed=4, base=-5.0, effect_std=0.8)

    def too_high(told: Statistic) -> float:
        return float(learn(rare.features, told).predict(rare.rows).mean() / rare.labels.mean() - 1)

    kept = [noisy(rare, 30.0, seed) for seed in range(40)]
    right = np.array([too_high(told) for told in kept])
    cut = np.array([too_high(replace(told, values=np.maximum(told.values, 0))) for told in kept])
    assert abs(right.mean()) < 4 * right.std() / np.sqrt(40)
    assert (cut - right).mean() > 8 * (cut - right).std() / np.sqrt(40)


def test_standard_errors_cover_the_effects() -> None:
    """Of 76 effects from a prior as assumed, in 20 logs, the share within 2 errors is 0.954: 0.90 to 0.99 allowed.

    Effects of a log move together, with the log's intercept: 20 logs give the share a standard error of about 0.01.
    """
    inside = []
    for seed in range(20):
        made = clicks(8000, seed=100 + seed)
        found = learn(made.features, noisy(made, 10.0, seed))
        for part in made.features.encoding.parts[1:]:
            off = found.coefficients[part] - made.effects[part]
            off -= np.average(off, weights=found.standard_errors[part] ** -2)  # a table's shift is the intercept's
            inside.append(np.abs(off) < 2 * found.standard_errors[part])
    assert 0.90 < np.concatenate(inside).mean() < 0.99


def test_a_sample_of_labels_adds_to_noisy_sums() -> None:
    rng, sums = np.random.default_rng(5), [noisy(MADE, 40.0, seed) for seed in range(5)]
    chosen = rng.random(len(MADE.labels)) < 0.1
    sample = Features.of(MADE.features.encoding, MADE.rows[chosen], public=True)
    labels = labeled_sample(MADE.features, sample, MADE.labels[chosen], sampling_rate=0.1, public=True)
    together = np.mean([value(combined(one, labels)) for one in sums])
    assert together > np.mean([value(one) for one in sums])
    assert together > value(labels)


def test_randomized_labels_are_learned_from() -> None:
    rng = np.random.default_rng(6)
    answers = np.where(rng.random(len(MADE.labels)) < 0.2, 1 - MADE.labels, MADE.labels)
    told = randomized_labels(MADE.features, answers, false_positive=0.2, false_negative=0.2)
    exact = value(public_labels(MADE.features, MADE.labels))
    assert 0.7 * exact < value(told) < exact
    assert learn(MADE.features, told).neighbors == "replace-label"


def test_an_unlabeled_sample_stands_for_the_rows_with_displayed_counts() -> None:
    sample = Features.of(MADE.features.encoding, MADE.rows[::5], public=False, total=len(MADE.rows))
    told = noisy(MADE, 5.0, 0)
    rng = np.random.default_rng(0)
    counts = MADE.features.counts + 5.0 * rng.standard_normal(len(told.values))
    displayed = replace(told, values=counts)

    def held(displayed: Statistic | None) -> float:
        return normalized(TEST.labels, learn(sample, told, displayed=displayed).predict(TEST.rows))

    assert held(displayed) > 0.98 * value(told)
    assert held(displayed) > held(None) + 0.002


def test_a_log_without_effects_gives_the_constant() -> None:
    flat = clicks(20_000, seed=7, effect_std=0.0)
    found = learn(flat.features, noisy(flat, 20.0, 0))
    assert found.predict(flat.rows).std() < 0.01
    assert found.prior_variances is not None
    assert (found.prior_variances < 1e-3).all()


def test_where_no_table_says_anything_the_rate_is_the_noisy_number_of_positives() -> None:
    """A table that is first taken up and then left out once left the intercept at twice the rate."""
    rare = clicks(20_000, seed=4, base=-5.0, effect_std=0.8)
    told = noisy(rare, 30.0, 5)
    found = learn(rare.features, told)
    assert found.prior_variances is not None
    assert not found.prior_variances.any()
    sums = [told.values[part].sum() for part in rare.features.encoding.parts]
    total = np.average(sums, weights=1 / np.array([4, 12, 60]))  # by inverse variance; no cell is empty
    assert found.predict(rare.rows).sum() == pytest.approx(total, rel=1e-6)


def test_features_that_are_not_public_give_a_guarantee_of_labels_only() -> None:
    told = noisy(MADE, 10.0, 0)
    found = learn(MADE.features, told)
    assert found.neighbors == "replace-label"
    assert found.unprotected == tuple(SIZES)
    assert "NOT protected are the features device, hour, site" in found.guarantee
    assert "add-remove" not in found.guarantee
    public = learn(replace(MADE.features, public=True), told)
    assert (public.neighbors, public.unprotected) == ("add-remove", ())
    labels = randomized_labels(MADE.features, MADE.labels, false_positive=0.1, false_negative=0.1)
    assert learn(replace(MADE.features, public=True), combined(told, labels)).neighbors == "replace-label"
    assert learn(replace(MADE.features, public=True), public_labels(MADE.features, MADE.labels)).neighbors is None


def test_a_model_says_which_source_it_used() -> None:
    labels = randomized_labels(MADE.features, MADE.labels, false_positive=0.2, false_negative=0.2)
    both = combined(noisy(MADE, 20.0, 0), labels)
    found = learn(MADE.features, both)
    assert found.used == (int((both.used == 0).sum()), int((both.used == 1).sum()))
    assert min(found.used) > 0


def test_a_model_comes_back_from_json() -> None:
    found = learn(MADE.features, noisy(MADE, 10.0, 0))
    back = NoisyLogistic.from_dict(json.loads(json.dumps(found.as_dict(), sort_keys=True)))
    np.testing.assert_array_equal(back.predict(TEST.rows), found.predict(TEST.rows))
    assert back.as_dict() == found.as_dict()
    spoiled = {**found.as_dict(), "coefficients": [0.0]}
    with pytest.raises(ValueError, match="shape"):
        NoisyLogistic.from_dict(spoiled)
    with pytest.raises(ValueError, match="no model"):
        NoisyLogistic.from_dict({"columns": []})


def test_what_cannot_be_learned_is_refused() -> None:
    told = noisy(MADE, 10.0, 0)
    for call, said in (
        (lambda: learn(clicks(100, seed=0, encoding=PAIRS).features, told), "same tables"),
        (lambda: learn(MADE.features, told, ridge=0.0), "ridge"),
        (lambda: learn(MADE.features, replace(told, variance=np.full(len(told.values), np.inf))), "not known"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
