"""One-run bounds: enumeration, exact laws of the worst mechanisms, another library's figures, and games with coins."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from accounting.audit import Audit, one_run, one_run_fdp
from accounting.audit.guesses import blind_guesses, p_value, rejects, rejects_gaussian, right_guesses
from accounting.audit.ideal import gaussian_mu
from accounting.methods import gaussian_delta
from tests.accounting.audit.games import DELTA, game, most_of, worst

METHODS = pytest.mark.parametrize("method", [one_run, one_run_fdp])
Method = Callable[..., Audit]

# (canaries, guesses, correct, delta, significance) -> bounds of one-run and one-run f-DP, as jax_privacy at commit
# 8967688 gives them (`auditing._epsilon_one_run`, `_epsilon_one_run_fdp`).
LIBRARY = [
    (1000, 1000, 1000, 1e-5, 0.05, 5.7823, 12.3346),
    (1000, 200, 150, 1e-5, 0.05, 0.8200, 1.2969),
    (1000, 300, 252, 1e-5, 0.05, 1.3915, 2.3103),
    (5000, 500, 451, 1e-6, 0.05, 1.9667, 3.1559),
    (5000, 5000, 3300, 1e-5, 0.01, 0.5928, 0.8376),
    (100, 100, 80, 1e-4, 0.05, 0.9553, 1.8181),
    (200, 40, 40, 1e-3, 0.1, 2.3715, 3.8222),
    (50, 50, 30, 1e-9, 0.05, 0.0, 0.0),
    (1000, 100, 99, 1e-5, 0.001, 1.7419, 3.0146),
]


def played(
    method: Method, canaries: int, guesses: int, correct: int, *, delta: float = DELTA, significance: float = 0.05
) -> Audit:
    """The audit of a game of which exactly ``correct`` of ``guesses`` are right, the wrong ones on both sides."""
    included = np.arange(canaries) % 2 == 0
    high, low, wrong = guesses - guesses // 2, guesses // 2, guesses - correct
    included[canaries - high :] = np.arange(high) >= wrong - wrong // 2
    included[:low] = np.arange(low) < wrong // 2
    return method(
        np.arange(canaries), included, claimed_epsilon=1.0, delta=delta, significance=significance, guesses=guesses
    )


def tail(guesses: int, right: float, correct: int) -> float:
    """P[at least ``correct`` of ``guesses``], each right by itself, summed over all outcomes."""
    return math.fsum(
        math.prod(right if bit else 1 - right for bit in bits)
        for bits in itertools.product((0, 1), repeat=guesses)
        if sum(bits) >= correct
    )


@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 0.01])
def test_the_p_value_is_the_theorems_by_enumeration(epsilon: float, delta: float) -> None:
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    for canaries, guesses in ((3, 2), (5, 5), (9, 6)):
        for correct in range(guesses + 1):
            base = tail(guesses, right, correct)
            gains = [(tail(guesses, right, correct - i) - base) / i for i in range(1, canaries + 1)]
            expected = min(1.0, base + 2 * canaries * delta * max(gains))
            assert p_value(canaries, guesses, correct, epsilon, delta) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("delta", [0.0, 0.001, 0.02])
def test_no_p_value_is_below_the_chance_under_mechanisms_that_keep_the_claim(epsilon: float, delta: float) -> None:
    """Each bit published with probability delta and otherwise randomized; and, rarely, all bits published at once."""
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    for canaries in (1, 4, 20):
        for correct in range(canaries + 1):
            stated = p_value(canaries, canaries, correct, epsilon, delta)
            assert stated >= (1 - 1e-9) * binom.sf(correct - 1, canaries, delta + (1 - delta) * right)
            assert stated >= (1 - 1e-9) * (delta + (1 - delta) * binom.sf(correct - 1, canaries, right))


@pytest.mark.parametrize("epsilon", [0.3, 1.5])
@pytest.mark.parametrize("canaries", [2, 10, 40])
def test_no_p_value_below_one_half_is_below_the_chance_under_any_mechanism(epsilon: float, canaries: int) -> None:
    """Exact: over all mechanisms that keep the claim. Above, where no audit rejects, the theorem's form is too low."""
    for delta in (1e-3 / canaries, 0.1 / canaries):
        for correct in range(1, canaries + 1):
            stated = p_value(canaries, canaries, correct, epsilon, delta)
            if stated <= 0.5:
                assert stated >= (1 - 1e-7) * worst(canaries, correct, [(epsilon, delta)])
    assert p_value(2, 2, 1, 1.5, 0.01) < worst(2, 1, [(1.5, 0.01)]) - 5e-4


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_the_curves_test_is_that_of_the_worst_mechanism_under_the_curve(epsilon: float) -> None:
    """All guesses right: exact, but for the curve's having 40 corners here. Fewer: it may ask for more than it need."""
    mu = gaussian_mu(epsilon, DELTA)
    curve = [(one, gaussian_delta(1 / mu, one)) for one in np.linspace(0, 4 * mu, 40)]
    for canaries in (3, 10, 20):
        most = worst(canaries, canaries, curve)
        assert rejects_gaussian(canaries, canaries, canaries, epsilon, DELTA, most * 1.0001)
        assert not rejects_gaussian(canaries, canaries, canaries, epsilon, DELTA, most * 0.998)
        for correct in (canaries - 1, canaries - 2):
            most = worst(canaries, correct, curve)
            assert not rejects_gaussian(canaries, canaries, correct, epsilon, DELTA, most * 0.998)


@pytest.mark.parametrize(("canaries", "guesses", "correct", "delta", "significance", "plain", "curve"), LIBRARY)
def test_bounds_are_another_librarys(
    canaries: int, guesses: int, correct: int, delta: float, significance: float, plain: float, curve: float
) -> None:
    for method, expected in ((one_run, plain), (one_run_fdp, curve)):
        found = played(method, canaries, guesses, correct, delta=delta, significance=significance)
        assert found.lower == pytest.approx(expected, abs=6e-5)


def test_the_bound_is_the_largest_epsilon_that_is_rejected() -> None:
    found = played(one_run, 1000, 300, 252)
    assert p_value(1000, 300, 252, found.lower, DELTA) <= 0.05 < p_value(1000, 300, 252, found.lower + 2e-6, DELTA)


def test_the_curves_test_of_one_canary_is_exact() -> None:
    """One canary behind N(mu, 1) or N(0, 1) is told right with probability Phi(mu / 2), and no better."""
    mu = gaussian_mu(2.0, DELTA)
    assert not rejects_gaussian(1, 1, 1, 2.0, DELTA, float(ndtr(mu / 2)) - 1e-9)
    assert rejects_gaussian(1, 1, 1, 2.0, DELTA, float(ndtr(mu / 2)) + 1e-9)


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "points"),
    [(2, 2, 2, 1001), (5, 2, 2, 1001), (3, 3, 3, 101), (3, 3, 2, 101), (7, 3, 3, 101)],
)
def test_the_curves_test_rejects_what_no_chances_allow(canaries: int, guesses: int, correct: int, points: int) -> None:
    """All chances p_0, ..., p_r on a grid that obey R_{i+1} <= g(H_i): none gives more to v or more right guesses."""
    mu = gaussian_mu(1.0, DELTA)
    steps = np.linspace(0, 1, points)
    chances = np.stack(np.meshgrid(*[steps] * guesses, indexing="ij"))
    chances = np.concatenate((1 - chances.sum(axis=0, keepdims=True), chances)).reshape(guesses + 1, -1)
    chances = chances[:, chances[0] >= -1e-12]
    numbers = np.arange(guesses + 1)[:, None]
    allowed = np.ones(chances.shape[1], dtype=bool)
    for i in range(guesses):
        right = (chances * numbers)[i + 1 :].sum(axis=0) / canaries
        wrong = (chances * (guesses - numbers))[i:].sum(axis=0) / canaries
        allowed &= right <= ndtr(ndtri(wrong.clip(0, 1)) + mu) + 1e-12
    most = float(chances[correct:].sum(axis=0)[allowed].max())
    assert 0.05 < most < 0.95
    assert not rejects_gaussian(canaries, guesses, correct, 1.0, DELTA, most - 1e-9)
    assert rejects_gaussian(canaries, guesses, correct, 1.0, DELTA, most + 3 / (points - 1))


@METHODS
def test_the_bound_grows_with_right_guesses_and_shrinks_with_all_guesses_and_delta(method: Method) -> None:
    by_right = [played(method, 200, 60, correct).lower for correct in range(61)]
    assert by_right == sorted(by_right)
    assert by_right[30] == 0.0 < by_right[60]
    by_guesses = [played(method, 200, guesses, 40).lower for guesses in range(40, 81, 4)]
    assert by_guesses == sorted(by_guesses, reverse=True)
    by_delta = [played(method, 200, 60, 55, delta=delta).lower for delta in (1e-9, 1e-6, 1e-4, 1e-3)]
    if method is one_run:  # a curve's epsilon is read at delta
        assert by_delta == sorted(by_delta, reverse=True)
    by_significance = [played(method, 200, 60, 50, significance=level).lower for level in (1e-6, 1e-3, 0.05, 0.3)]
    assert by_significance == sorted(by_significance)


@METHODS
def test_the_verdict_is_that_of_the_test_at_the_claim(method: Method) -> None:
    test = {one_run: rejects, one_run_fdp: rejects_gaussian}[method]
    for correct in range(45, 61):
        found = played(method, 200, 60, correct)
        assert (found.verdict == "violation") == test(200, 60, correct, 1.0, DELTA, 0.05)


@METHODS
@pytest.mark.parametrize(
    ("epsilon", "canaries", "measured"),
    [(1.99, 1000, (0.45, 0.59)), (4.38, 1000, (1.09, 1.48)), (4.38, 5000, (1.27, 2.00)), (10.0, 1000, (2.72, 3.99))],
)
def test_ideal_canaries_prove_what_power_says_and_more_than_with_a_threshold_chosen_from_the_scores(
    method: Method, epsilon: float, canaries: int, measured: tuple[float, float]
) -> None:
    """``measured``: means of 10 runs of jax_privacy's Bonferroni over all thresholds, as it stands."""
    rng = np.random.default_rng(7)
    found = [method(*game(rng, canaries, epsilon), claimed_epsilon=epsilon, delta=DELTA) for _ in range(30)]
    mean = np.mean([each.lower for each in found])
    assert mean > measured[method is one_run_fdp]
    assert mean == pytest.approx(found[0].power, rel=0.12)  # 30 runs: their mean is off by less than 4 %
    assert {each.verdict for each in found} <= {"consistent", "inconclusive"}


@METHODS
@pytest.mark.parametrize("claim", [1.0, 3.0])
def test_a_quarter_of_the_noise_is_a_violation(method: Method, claim: float) -> None:
    """The planted fault. Each run flags it with probability above 0.95, so that 30 of 40 do but with 10^-6."""
    rng = np.random.default_rng(3)
    runs = [
        method(*game(rng, 1000, mu=4 * gaussian_mu(claim, DELTA)), claimed_epsilon=claim, delta=DELTA)
        for _ in range(40)
    ]
    assert runs[0].detectable < 5 * claim
    assert sum(run.verdict == "violation" for run in runs) >= 30


@METHODS
def test_the_detectable_epsilon_is_detected_in_95_of_100_runs(method: Method) -> None:
    """Between 85 and 100 % of 300: a rate of 95 % fails with 10^-11, one of 80 % passes with 0.02."""
    rng = np.random.default_rng(4)
    least = method(*game(rng, 1000, 2.0), claimed_epsilon=2.0, delta=DELTA).detectable
    runs = [method(*game(rng, 1000, least), claimed_epsilon=2.0, delta=DELTA) for _ in range(300)]
    assert 0.85 < np.mean([run.verdict == "violation" for run in runs]) < 1.0


@METHODS
def test_without_a_leak_a_bound_above_0_is_as_rare_as_stated(method: Method) -> None:
    """Exact: r guesses about fair coins are right like r tosses, whatever the scores are."""
    for canaries, guesses in ((60, 60), (200, 40), (1000, 200), (1000, 500)):
        least = next(c for c in range(guesses + 1) if played(method, canaries, guesses, c, delta=1e-6).lower > 0)
        assert binom.sf(least - 1, guesses, 0.5) <= 0.05
        assert binom.sf(least - 2, guesses, 0.5) > 0.045  # and no rarer than it needs to be


@METHODS
def test_without_a_leak_games_bound_nothing_in_95_of_100(method: Method) -> None:
    """At most `most_of` 1,000 at 5 %: a right test fails with 10^-6; one that is wrong in 10 % passes with 0.02."""
    rng = np.random.default_rng(5)
    found = [method(*game(rng, 200, mu=0.0), claimed_epsilon=1.0, delta=DELTA).lower > 0 for _ in range(1000)]
    assert sum(found) <= most_of(1000, 0.05)


def test_a_claim_that_is_spent_whole_is_contradicted_in_at_most_5_of_100_runs() -> None:
    """Randomized response, which the test is exact for: a rate of 5 % fails with 10^-6, of 10 % passes with 0.02."""
    rng = np.random.default_rng(6)
    violations = 0
    for _ in range(1000):
        included = rng.random(100) < 0.5
        flipped = rng.random(100) > math.exp(1.5) / (1 + math.exp(1.5))
        found = one_run(included ^ flipped, included, claimed_epsilon=1.5, delta=0.0, guesses=100)
        violations += found.verdict == "violation"
    assert violations <= most_of(1000, 0.05)
    assert violations >= 5  # the test is not idle: more than 2 % expected


def test_with_1000_canaries_no_guessing_proves_more_than_5_78_and_a_claim_of_8_stays_open() -> None:
    included = np.arange(1000) % 2 == 0
    found = one_run(1.0 * included, included, claimed_epsilon=8.0, delta=DELTA)
    assert found.correct == found.guesses
    assert math.isinf(found.detectable)
    assert found.verdict == "inconclusive"
    every = one_run(1.0 * included, included, claimed_epsilon=8.0, delta=DELTA, guesses=1000)
    assert every.lower == every.ceiling == pytest.approx(5.78, abs=0.005)


@METHODS
def test_what_was_known_before_does_not_depend_on_the_scores(method: Method) -> None:
    rng = np.random.default_rng(8)
    leak, none = (method(*game(rng, 500, mu=mu), claimed_epsilon=2.0, delta=DELTA) for mu in (5.0, 0.0))
    assert leak.lower > none.lower
    public = ("guesses", "power", "ceiling", "detectable", "canaries")
    assert [getattr(leak, name) for name in public] == [getattr(none, name) for name in public]


def test_only_the_order_of_scores_counts_and_not_that_of_the_canaries() -> None:
    scores, included = game(np.random.default_rng(9), 400, 3.0)
    found = one_run(scores, included, claimed_epsilon=3.0, delta=DELTA)
    shuffled = np.random.default_rng(10).permutation(400)
    assert one_run(np.exp(scores[shuffled]), included[shuffled], claimed_epsilon=3.0, delta=DELTA) == found
    ends = np.where(scores == scores.max(), np.inf, np.where(scores == scores.min(), -np.inf, scores))
    assert one_run(ends, included, claimed_epsilon=3.0, delta=DELTA) == found


def test_equal_scores_tell_nothing_even_if_the_included_come_first() -> None:
    """The planted fault: a stable sort of canaries that are given included first would be right every time."""
    for first in (True, False):
        included = (np.arange(1000) < 500) == first
        found = one_run(np.zeros(1000), included, claimed_epsilon=1.0, delta=DELTA, guesses=1000)
        assert 400 <= found.correct <= 600  # 6 standard deviations
        assert found.verdict != "violation"


@METHODS
@pytest.mark.parametrize("scores", [np.zeros(1000), np.repeat([-1.0, 0.0, 1.0], [10, 980, 10])])
def test_scores_that_tell_nothing_are_no_evidence_for_the_claim(method: Method, scores: NDArray[np.float64]) -> None:
    """The fault: a run that never began, or that diverged, was called consistent with a claim of 1."""
    included = np.random.default_rng(1).random(1000) < 0.5
    found = method(scores, included, claimed_epsilon=1.0, delta=DELTA)
    assert method(np.arange(1000), included, claimed_epsilon=1.0, delta=DELTA).verdict == "consistent"
    assert (found.verdict, found.detectable) == ("inconclusive", math.inf)


@METHODS
def test_scores_that_speak_for_the_opposite_are_no_evidence_for_the_claim(method: Method) -> None:
    """The fault: an attack with a wrong sign proved 0 of a mechanism that hides nothing, and was called consistent."""
    scores, included = game(np.random.default_rng(2), 1000, mu=4.0)
    assert method(scores, included, claimed_epsilon=1.0, delta=DELTA).verdict == "violation"
    assert method(-scores, included, claimed_epsilon=1.0, delta=DELTA).verdict == "inconclusive"


def test_guesses_of_both_kinds_at_one_score_are_blind() -> None:
    assert [blind_guesses(np.array([1.0, 0.0, 1.0, 0.0]), guesses) for guesses in (1, 2, 4)] == [0, 0, 0]
    assert [blind_guesses(np.array([1.0, 1.0, 1.0, 0.0]), guesses) for guesses in (1, 2, 3, 4)] == [0, 0, 0, 2]
    assert [blind_guesses(np.zeros(5), guesses) for guesses in (1, 2, 3, 4, 5)] == [1, 2, 2, 4, 4]
    assert blind_guesses(np.array([2.0, 0.0, 0.0, 0.0, 0.0, -1.0]), 6) == 4


@METHODS
def test_the_detectable_epsilon_of_scores_with_ties_is_detected_in_95_of_100_runs(method: Method) -> None:
    """Only ``told`` canaries have a score. Between 85 and 100 % of 200: a rate of 95 % fails with 10^-8."""
    rng, told, guesses = np.random.default_rng(4), 180, 200

    def played_with(epsilon: float) -> Audit:
        scores, included = game(rng, 1000, epsilon)
        order = np.argsort(scores)
        scores[order[told // 2 : 1000 - told // 2]] = 0.0
        return method(scores, included, claimed_epsilon=2.0, delta=DELTA, guesses=guesses)

    least = played_with(2.0).detectable
    assert least > 1.05 * method(*game(rng, 1000, 2.0), claimed_epsilon=2.0, delta=DELTA, guesses=guesses).detectable
    assert 0.85 < np.mean([played_with(least).verdict == "violation" for _ in range(200)]) < 1.0


def test_a_gaussians_curve_is_not_the_claim_of_randomized_response() -> None:
    """Which keeps epsilon 3 and is contradicted all the same, as the docstrings say: in all 20 runs, 4.1 on average."""
    rng = np.random.default_rng(6)
    for _ in range(20):
        included = rng.random(1000) < 0.5
        answers = included ^ (rng.random(1000) > math.exp(3) / (1 + math.exp(3)))
        assert one_run_fdp(answers, included, claimed_epsilon=3.0, delta=DELTA).verdict == "violation"


def test_guesses_are_of_the_highest_included_and_of_the_lowest_not() -> None:
    included = np.array([True, False, True, False])
    scores = np.array([3.0, 2.0, 1.0, 0.0])  # highest included, lowest not; between them it is the other way round
    assert [right_guesses(scores, included, guesses) for guesses in (1, 2, 3, 4)] == [1, 2, 2, 2]
    assert right_guesses(-scores, included, 2) == 0


@METHODS
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scores": [1.0, math.nan, 0.0, 2.0]}, "scores must not be NaN, got 1 of 4"),
        ({"scores": [[1.0, 2.0], [3.0, 4.0]]}, r"scores must be one row .* got shape \(2, 2\)"),
        ({"scores": []}, r"scores must be one row of at least one number, got shape \(0,\)"),
        ({"scores": ["a", "b", "c", "d"]}, "scores must be numbers"),
        ({"included": [True, False]}, r"included must be one flag for each of 4 scores, got shape \(2,\)"),
        ({"included": [2, 0, 1, 0]}, "included must be true or false"),
        ({"included": [True] * 4}, "fair coins, got 4 of 4"),
        ({"included": [False] * 4}, "fair coins, got 0 of 4"),
        ({"scores": range(1000), "included": [i % 10 > 0 for i in range(1000)]}, "fair coins, got 900 of 1000"),
        ({"claimed_epsilon": 0.0}, "epsilon must be a positive finite number"),
        ({"claimed_epsilon": math.nan}, "epsilon must be"),
        ({"claimed_epsilon": math.inf}, "epsilon must be"),
        ({"claimed_epsilon": 1e300}, r"claimed_epsilon must be at most 1e\+06, got 1e\+300"),
        ({"delta": 1.0}, r"delta must be .*in \[1e-50, 1\), got 1.0"),
        ({"delta": 1e-300}, "delta must be"),
        ({"delta": -1e-5}, "delta must be"),
        ({"delta": math.nan}, "delta must be"),
        ({"delta": 0.2}, r"delta must be at most 1 / \(2 canaries\) = 0.125, got 0.2"),
        ({"significance": 0.0}, r"significance must be in \(0, 0.5\), got 0.0"),
        ({"significance": 0.5}, "significance must be"),
        ({"guesses": 0}, "guesses must be a whole number from 1 to 4 canaries, got 0"),
        ({"guesses": 5}, "guesses must be"),
        ({"guesses": 2.0}, "guesses must be"),
        ({"guesses": True}, "guesses must be"),
    ],
)
def test_what_is_no_game_is_refused_in_one_line(method: Method, changed: dict[str, object], message: str) -> None:
    given = {"scores": [3.0, 2.0, 1.0, 0.0], "included": [True, False, True, False]}
    terms = {"claimed_epsilon": 1.0, "delta": 1e-5}
    with pytest.raises(ValueError, match=message) as caught:
        method(**{**given, **terms, **changed})
    assert "\n" not in str(caught.value)


def test_a_curve_has_no_epsilon_at_delta_0() -> None:
    with pytest.raises(ValueError, match=r"delta must be in \[1e-50, 1\), got 0"):
        one_run_fdp([1.0, 0.0], [True, False], claimed_epsilon=1.0, delta=0.0)


@METHODS
def test_the_smallest_and_the_most_extreme_games_have_an_answer(method: Method) -> None:
    for claim in (1e-300, 1e-3, 1.0, 1e6):
        found = method([1.0, 0.0], [True, False], claimed_epsilon=claim, delta=DELTA)
        assert found.lower == 0.0
        assert found.verdict == "inconclusive"
        assert all(value >= 0 for value in dataclasses.asdict(found).values() if isinstance(value, int | float))
