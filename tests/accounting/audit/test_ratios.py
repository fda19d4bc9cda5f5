"""Audits of mechanisms whose law is known: right ones pass, wrong flip rates and scales do not."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import beta

from accounting.audit import Laws, Verdict, laws, likelihood_ratio
from accounting.methods import gaussian_epsilon
from tests.accounting.audit.games import DELTA, most_of

Draw = Callable[[np.random.Generator, int, int, float], np.ndarray]


def answers(rng: np.random.Generator, size: int, bit: int, factor: float) -> np.ndarray:
    """Three categories at epsilon ``factor`` log 4: the category, or with probability p one of all three."""
    randomized = rng.random(size) < 3 / (2 + 4**factor)
    return np.where(randomized, rng.integers(0, 3, size), bit)


def discrete_gaussian(rng: np.random.Generator, size: int, bit: int, factor: float) -> np.ndarray:
    values = np.arange(-60, 61)
    weights = np.exp(-(values**2) / (2 * (4.0 / factor) ** 2))
    return rng.choice(values, size, p=weights / weights.sum()) + bit


MECHANISMS: list[tuple[str, Laws, float, float, Draw]] = [
    (
        "randomized response",
        laws.randomized_response(randomize_probability=0.5, categories=3),
        math.log(4),
        0.0,
        answers,
    ),
    (
        "Laplace",
        laws.laplace(scale=0.5, shift=1.0),
        2.0,
        0.0,
        lambda rng, size, bit, factor: rng.laplace(scale=0.5 / factor, size=size) + bit,
    ),
    (
        "discrete Laplace",
        laws.discrete_laplace(scale=2.0, shift=1),
        0.5,
        0.0,
        lambda rng, size, bit, factor: (
            rng.geometric(-math.expm1(-factor / 2), size) - rng.geometric(-math.expm1(-factor / 2), size) + bit
        ),
    ),
    (
        "discrete Gaussian",
        laws.discrete_gaussian(noise_std=4.0, shift=1),
        gaussian_epsilon(4.0, DELTA),
        DELTA,
        discrete_gaussian,
    ),
    (
        "Gaussian",
        laws.gaussian(noise_std=1.0, shift=1.0),
        gaussian_epsilon(1.0, DELTA),
        DELTA,
        lambda rng, size, bit, factor: rng.normal(bit, 1 / factor, size=size),
    ),
]
EACH = pytest.mark.parametrize(
    ("law", "claim", "delta", "draw"), [m[1:] for m in MECHANISMS], ids=[m[0] for m in MECHANISMS]
)


def verdicts(
    law: Laws, claim: float, delta: float, draw: Draw, *, factor: float, runs: int, size: int = 5000
) -> list[Verdict]:
    rng = np.random.default_rng(1)
    return [
        likelihood_ratio(
            draw(rng, size, 0, factor), draw(rng, size, 1, factor), law, claimed_epsilon=claim, delta=delta
        ).verdict
        for _ in range(runs)
    ]


def test_the_bound_is_that_of_the_counts_by_hand() -> None:
    """Of 60 answers for input 0, 50 are 0; of 40 for input 1, 30 are 1."""
    fair = laws.randomized_response(randomize_probability=0.5, categories=2)
    first, second = np.arange(60) >= 50, np.arange(40) < 30
    found = likelihood_ratio(first, second, fair, claimed_epsilon=1.1, delta=0.01)
    zeros = math.log((beta.ppf(0.025, 50, 11) - 0.01) / beta.ppf(0.975, 11, 30))
    ones = math.log((beta.ppf(0.025, 30, 11) - 0.01) / beta.ppf(0.975, 11, 50))
    assert found.lower == pytest.approx({50: zeros, 30: ones}[found.correct])
    assert (found.guesses, found.canaries) == ({50: 60, 30: 40}[found.correct], 100)


def test_an_output_on_an_edge_is_in_the_bin_that_ends_there() -> None:
    chances = np.array([0.9, 0.1])
    law = Laws(edges=np.array([0.0]), first=chances, second=chances[::-1], sharper=lambda factor: law)
    found = likelihood_ratio(np.zeros(100), np.ones(100), law, claimed_epsilon=1.0, delta=0.0)
    assert (found.correct, found.guesses) == (100, 100)


@EACH
def test_a_mechanism_that_keeps_its_law_passes(law: Laws, claim: float, delta: float, draw: Draw) -> None:
    """At most `most_of` 200 violations at 5 %; a pure mechanism's audit is exact enough to be wrong now and then."""
    found = verdicts(law, claim, delta, draw, factor=1.0, runs=200)
    assert found.count("violation") <= most_of(200, 0.05)
    assert "inconclusive" not in found


@EACH
def test_a_quarter_of_the_noise_is_a_violation(law: Laws, claim: float, delta: float, draw: Draw) -> None:
    """The planted fault: a wrong flip rate, a wrong scale. Every one of 20 is caught."""
    assert verdicts(law, claim, delta, draw, factor=4.0, runs=20) == ["violation"] * 20


@EACH
def test_the_detectable_fault_is_detected_in_95_of_100_audits(
    law: Laws, claim: float, delta: float, draw: Draw
) -> None:
    """At least 88 % of 200: a rate of 95 % fails with 10^-5, one of 75 % passes with 10^-5."""
    rng = np.random.default_rng(2)
    known = likelihood_ratio(draw(rng, 5000, 0, 1.0), draw(rng, 5000, 1, 1.0), law, claimed_epsilon=claim, delta=delta)
    low, high = 1.0, 16.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if law.sharper(middle).epsilon(delta) < known.detectable else (low, middle)
    found = verdicts(law, claim, delta, draw, factor=high, runs=200)
    assert found.count("violation") >= 176


@EACH
def test_lower_is_what_power_says(law: Laws, claim: float, delta: float, draw: Draw) -> None:
    rng = np.random.default_rng(3)
    found = [
        likelihood_ratio(draw(rng, 20000, 0, 1.0), draw(rng, 20000, 1, 1.0), law, claimed_epsilon=claim, delta=delta)
        for _ in range(20)
    ]
    assert 0 < found[0].power < claim < found[0].detectable
    assert np.mean([each.lower for each in found]) == pytest.approx(found[0].power, rel=0.15)


def test_pure_mechanisms_are_bounded_within_a_tenth_of_their_epsilon() -> None:
    rng = np.random.default_rng(4)
    for _, law, claim, _, draw in MECHANISMS[:3]:
        found = likelihood_ratio(
            draw(rng, 100_000, 0, 1.0), draw(rng, 100_000, 1, 1.0), law, claimed_epsilon=claim, delta=0.0
        )
        assert 0.9 * claim < found.lower <= claim


def test_what_was_known_before_does_not_depend_on_the_outputs() -> None:
    fair = laws.randomized_response(randomize_probability=0.5, categories=2)
    zeros, ones, both = np.zeros(1000), np.ones(1000), np.arange(1000) % 2
    told = likelihood_ratio(zeros, ones, fair, claimed_epsilon=1.1, delta=0.0)
    mixed = likelihood_ratio(both, both, fair, claimed_epsilon=1.1, delta=0.0)
    assert told.lower > mixed.lower == 0.0
    assert told.ceiling == mixed.ceiling == told.lower
    assert (told.power, told.detectable) == (mixed.power, mixed.detectable)


def test_a_law_that_tells_nothing_is_inconclusive() -> None:
    blind = laws.randomized_response(randomize_probability=1.0, categories=2)
    found = likelihood_ratio([0, 1] * 50, [0, 1] * 50, blind, claimed_epsilon=1.0, delta=0.0)
    assert found.verdict == "inconclusive"
    assert (found.lower, found.power) == (0.0, 0.0)


def test_outputs_in_other_units_and_inputs_the_wrong_way_round_are_no_evidence_for_the_claim() -> None:
    """The fault: outputs without noise were called consistent with a claim of 1 where they were given so."""
    law, clear = laws.laplace(scale=1.0, shift=1.0), (np.zeros(1000), np.ones(1000))
    terms = {"claimed_epsilon": 1.01, "delta": 0.0}
    assert likelihood_ratio(*clear, law, **terms).verdict == "violation"
    for given in ((16 + 16 * clear[0], 16 + 16 * clear[1]), clear[::-1]):
        found = likelihood_ratio(*given, law, **terms)
        assert (found.verdict, found.detectable) == ("inconclusive", math.inf)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([0.0, math.nan], [0.0], "outputs_first must not be NaN, got 1 of 2"),
        ([0.0], [], "outputs_second must be one row"),
        (["zero"], [1.0], "outputs_first must be numbers"),
    ],
)
def test_what_are_no_outputs_is_refused(first: list[object], second: list[object], message: str) -> None:
    fair = laws.randomized_response(randomize_probability=0.5, categories=2)
    with pytest.raises(ValueError, match=message):
        likelihood_ratio(first, second, fair, claimed_epsilon=1.1, delta=0.0)
