"""Bounds from many runs: exact shares, games with a known answer, and what the choice of a threshold costs."""

import math

import numpy as np
import pytest
from scipy.stats import beta

from accounting.audit import many_runs
from tests.accounting.audit.games import DELTA, most_of, mu_of


def drawn(rng: np.random.Generator, epsilon: float | None, size: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(0.0 if epsilon is None else mu_of(epsilon), size=size), rng.normal(size=size)


def test_perfect_scores_prove_what_their_counts_do() -> None:
    """All 100 runs with the unit are above all 100 without: 12 events (6 ranks, 2 sides), each two limits."""
    share = 0.05 / 12 / 2
    found = many_runs(np.full(100, 1.0), np.zeros(100), claimed_epsilon=1.0, delta=1e-3)
    often, seldom = share ** (1 / 100), beta.ppf(1 - share, 1, 100)
    assert found.lower == found.ceiling == pytest.approx(math.log((often - 1e-3) / seldom))
    assert (found.correct, found.guesses, found.canaries) == (100, 100, 200)
    assert found.verdict == "violation"


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_is_the_best_of_all_events_one_by_one(seed: int) -> None:
    """Ranks 1 to 16 of 40, for scores above, and 1 to 8 of 30, for scores below: 9 events, each two limits."""
    rng = np.random.default_rng(seed)
    inside, outside = rng.normal(2.5, size=30), rng.normal(size=40)
    share = 0.05 / 9 / 2
    found = many_runs(inside, outside, claimed_epsilon=1.0, delta=0.001)
    options = []
    for rank in (1, 2, 4, 8, 16):
        right = sum(score > sorted(outside)[-rank] for score in inside)
        options.append((beta.ppf(share, right, 31 - right), beta.ppf(1 - share, rank, 41 - rank), right, rank))
    for rank in (1, 2, 4, 8):
        right = sum(score < sorted(inside)[rank - 1] for score in outside)
        options.append((beta.ppf(share, right, 41 - right), beta.ppf(1 - share, rank, 31 - rank), right, rank))
    bound, right, rank = max((math.log((a - 0.001) / b), right, rank) for a, b, right, rank in options if right)
    assert found.lower == pytest.approx(bound)
    assert found.lower > 0
    assert (found.correct, found.guesses) == (right, right + rank - 1)


@pytest.mark.parametrize(
    ("epsilon", "size", "measured"), [(1.99, 500, 0.24), (4.38, 500, 0.87), (4.38, 2500, 1.52), (10.0, 2500, 3.45)]
)
def test_ideal_runs_prove_what_power_says(epsilon: float, size: int, measured: float) -> None:
    """``measured``: means of 10 of jax_privacy's Clopper-Pearson bound, which pays for every threshold there is."""
    rng = np.random.default_rng(1)
    found = [many_runs(*drawn(rng, epsilon, size), claimed_epsilon=epsilon, delta=DELTA) for _ in range(30)]
    lowers = [each.lower for each in found]
    assert measured < np.mean(lowers) < epsilon
    assert np.median(lowers) == pytest.approx(found[0].power, abs=0.25)  # off by less than 0.09 in two of three


def test_without_a_leak_a_bound_above_0_is_as_rare_as_stated() -> None:
    """At most `most_of` 2,000 at 5 %. Both limits of an event are seldom wrong at once, so that it stays far below."""
    rng = np.random.default_rng(2)
    above = [many_runs(*drawn(rng, None, 64), claimed_epsilon=1.0, delta=DELTA).lower > 0 for _ in range(2000)]
    assert sum(above) <= most_of(2000, 0.05)


def test_a_claim_that_is_spent_whole_is_contradicted_in_at_most_5_of_100_audits() -> None:
    rng = np.random.default_rng(3)
    found = [many_runs(*drawn(rng, 1.0, 200), claimed_epsilon=1.0, delta=DELTA).verdict for _ in range(500)]
    assert found.count("violation") <= most_of(500, 0.05)


def test_the_detectable_epsilon_is_detected_in_95_of_100_audits() -> None:
    """At least 88 % of 200, as several thresholds may see it: a rate of 95 % fails with 10^-5, of 75 % passes so."""
    rng = np.random.default_rng(4)
    least = many_runs(*drawn(rng, 1.0, 2000), claimed_epsilon=1.0, delta=DELTA).detectable
    assert least < 4
    found = [many_runs(*drawn(rng, least, 2000), claimed_epsilon=1.0, delta=DELTA).verdict for _ in range(200)]
    assert found.count("violation") >= 176


def test_answers_of_one_bit_are_audited_too() -> None:
    """Randomized response of epsilon 4 under a claim of 1, and under its own; nearly all scores are ties."""
    rng = np.random.default_rng(5)
    right = math.exp(4) / (1 + math.exp(4))
    answers = rng.random(2000) < right, rng.random(2000) >= right
    assert many_runs(*answers, claimed_epsilon=1.0, delta=0.0).verdict == "violation"
    found = many_runs(*answers, claimed_epsilon=4.0, delta=0.0)
    assert 2.5 < found.lower < 4
    assert found.lower == pytest.approx(found.power, abs=0.6)


def test_both_sides_are_looked_at_and_monotone_maps_change_nothing() -> None:
    inside, outside = drawn(np.random.default_rng(6), 3.0, 200)
    found = many_runs(inside, outside, claimed_epsilon=3.0, delta=DELTA)
    assert many_runs(np.exp(inside), np.exp(outside), claimed_epsilon=3.0, delta=DELTA) == found
    mirrored = many_runs(-outside, -inside, claimed_epsilon=3.0, delta=DELTA)
    assert mirrored.lower == found.lower
    assert many_runs(outside, inside, claimed_epsilon=3.0, delta=DELTA).lower == 0.0


def test_sizes_may_differ_and_be_one() -> None:
    assert many_runs([1.0], [0.0], claimed_epsilon=1.0, delta=0.0).verdict == "inconclusive"
    rng = np.random.default_rng(7)
    found = many_runs(rng.normal(3, size=1000), rng.normal(size=50), claimed_epsilon=1.0, delta=DELTA)
    assert found.canaries == 1050
    assert found.lower > 0.5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scores_in": [math.nan]}, "scores_in must not be NaN, got 1 of 1"),
        ({"scores_in": []}, "scores_in must be one row"),
        ({"scores_out": 3.0}, r"scores_out must be one row of at least one number, got shape \(\)"),
        ({"claimed_epsilon": -1.0}, "epsilon must be"),
        ({"delta": 1.5}, "delta must be"),
    ],
)
def test_what_are_no_runs_is_refused(changed: dict[str, object], message: str) -> None:
    given = {"scores_in": [1.0], "scores_out": [0.0], "claimed_epsilon": 1.0, "delta": DELTA}
    with pytest.raises(ValueError, match=message):
        many_runs(**{**given, **changed})  # type: ignore[arg-type]


def test_scores_that_are_all_the_same_are_no_evidence_for_the_claim() -> None:
    """The fault: an attack that tells nothing was called consistent with the claim, as one that might have told."""
    runs = np.zeros(1000)
    assert many_runs(np.arange(1000), np.arange(1000), claimed_epsilon=2.0, delta=DELTA).verdict == "consistent"
    found = many_runs(runs, runs, claimed_epsilon=2.0, delta=DELTA)
    assert (found.verdict, found.detectable) == ("inconclusive", math.inf)


def test_scores_that_speak_for_the_opposite_are_no_evidence_for_the_claim() -> None:
    """The fault: runs that are told apart by each score, the wrong way round, were called consistent."""
    scores = np.arange(2000)
    assert many_runs(scores[1000:], scores[:1000], claimed_epsilon=2.0, delta=DELTA).verdict == "violation"
    assert many_runs(scores[:1000], scores[1000:], claimed_epsilon=2.0, delta=DELTA).verdict == "inconclusive"
