"""The losses of balls in bins: never below the definition, hardly above it, and red where a fault is planted.

``E[(L - k)+]`` of one lognormal L is ``F(1/s - x) - k F(-x)``, x = s log k + 1/(2s): Black and Scholes's formula, from
which the figures of two and three bins follow by adaptive quadrature over the others.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import dblquad, quad
from scipy.special import ndtr
from scipy.stats import norm

from accounting import bin_losses
from accounting.bin_losses import outcomes
from accounting.pairs import OutcomePair


def call(k: float, noise: float) -> float:
    """E[(L - k)+]."""
    if k <= 0:
        return 1 - k
    x = noise * math.log(k) + 0.5 / noise
    return float(ndtr(1 / noise - x) - k * ndtr(-x))


def lognormal(x: float, noise: float) -> float:
    return math.exp(x / noise - 0.5 / noise**2)


def exact_removed(noise: float, bins: int, alpha: float) -> float:
    """E[(Z - alpha)+] for two or three bins, as defined."""
    if bins == 2:
        inner = [
            quad(
                lambda x: norm.pdf(x) * call(2 * alpha - lognormal(x, noise), noise) / 2,
                a,
                a + 2,
                epsabs=1e-15,
                epsrel=1e-11,
            )[0]
            for a in range(-10, 14, 2)
        ]
        return math.fsum(inner)

    def density(y: float, x: float) -> float:
        rest = 3 * alpha - lognormal(x, noise) - lognormal(y, noise)
        return math.exp(-(x * x + y * y) / 2) / (2 * math.pi) * call(rest, noise) / 3

    return float(dblquad(density, -9, 11, -9, 11, epsabs=1e-11, epsrel=1e-7)[0])


def exact_added(noise: float, bins: int, alpha: float) -> float:
    """E[(1 - alpha Z)+] = 1 - alpha + alpha E[(Z - 1/alpha)+], as E[Z] = 1."""
    return 1 - alpha + alpha * exact_removed(noise, bins, 1 / alpha)


def figure(pair: OutcomePair, epsilon: float) -> float:
    """delta(epsilon) of finitely many outcomes, by definition."""
    return float(np.maximum(-np.expm1(epsilon - pair.losses), 0.0) @ pair.masses) + pair.infinite


@pytest.mark.parametrize(("noise", "bins"), [(0.7, 2), (1.0, 2), (3.0, 2), (1.0, 3)])
@pytest.mark.parametrize("epsilon", [-1.0, 0.0, 0.3, 2.0])
def test_delta_is_that_of_the_definition_and_never_below(noise: float, bins: int, epsilon: float) -> None:
    removing, adding = outcomes(noise, bins)
    for pair, exact in (
        (removing, exact_removed(noise, bins, math.exp(epsilon))),
        (adding, exact_added(noise, bins, math.exp(epsilon))),
    ):
        found = figure(pair, epsilon)
        assert exact - 1e-8 * exact - 1e-10 <= found <= 1.02 * exact + 1e-10


@pytest.mark.parametrize(
    ("noise", "bins"), [(0.3, 100), (0.5, 3000), (1.0, 2), (1.0, 7), (1.0, 3000), (10.0, 100), (100.0, 2)]
)
def test_both_distributions_have_all_their_mass_and_hardly_more(noise: float, bins: int) -> None:
    removing, adding = outcomes(noise, bins)
    for pair in (removing, adding):
        assert (pair.masses >= 0).all()
        assert 1 <= pair.masses.sum() + pair.infinite < 1 + 1e-6
        assert pair.infinite < 1e-8
    # What is above Z in convex order has its mean and at least its variance, (exp(1/s^2) - 1) / T, but hardly more.
    values, weights = np.exp(removing.losses), removing.masses / np.exp(removing.losses)
    variance = math.expm1(1 / noise**2) / bins
    if noise >= 1:  # below, infinity holds a part that counts
        assert variance * (1 - 1e-5) - 1e-6 <= float(weights @ (values - 1) ** 2) <= 1.02 * variance + 1e-6


def test_spread_masses_keep_mass_and_mean() -> None:
    edges = np.array([0.0, 0.5, 0.9, 1.4, 7.0])
    found = bin_losses._spread(1.2, edges)
    assert found.sum() == pytest.approx(norm.cdf(1.2 * math.log(7.0) + 0.5 / 1.2), rel=1e-11)
    assert found @ edges == pytest.approx(1 - call(7.0, 1.2) - 7 * norm.sf(1.2 * math.log(7.0) + 0.5 / 1.2), rel=1e-11)


def test_a_power_is_the_law_of_a_sum_and_never_below() -> None:
    law = np.array([0.2, 0.5, 0.0, 0.2])  # a tenth is lost
    expected = np.ones(1)
    for _ in range(9):
        expected = np.convolve(expected, law)
    found = bin_losses._power(bin_losses._Small(0.1, law), 9, 0, 27)
    assert (found >= expected).all()
    assert found == pytest.approx(expected, abs=1e-13)
    assert bin_losses._power(bin_losses._Small(0.1, law), 0, 0, 27)[0] == pytest.approx(1.0)


def test_hardly_any_of_a_sum_lies_beyond_the_window() -> None:
    small = bin_losses._Small(1.0, np.array([0.5, 0.3, 0.1, 0.1]))
    first, last = bin_losses._window(small, 3000, 3000)
    whole = bin_losses._power(small, 3000, 0, 9000)
    assert 0 < first < 2400 < last < 9000
    assert last - first < 1500
    whole -= whole.min()  # what the transform rounds up
    assert whole[:first].sum() + whole[last + 1 :].sum() < 1e-10


def test_thinning_keeps_mass_and_mean() -> None:
    masses = np.random.default_rng(0).random(50)
    index, found = bin_losses._thinned(masses, 17, 7)
    assert found.sum() == pytest.approx(masses.sum(), rel=1e-12)
    assert found @ index == pytest.approx(masses @ np.arange(17, 67), rel=1e-12)
    assert (index % 7 == 0).all()


def test_several_large_ones_are_convolved_with_mass_and_mean_kept() -> None:
    edges, large = 5 * np.exp(0.1 * np.arange(30)), np.random.default_rng(0).random(30)
    one, weights = bin_losses._convolved(np.zeros(1), np.ones(1), edges, large, 0.1)
    assert weights.sum() == pytest.approx(large.sum())
    assert weights @ one == pytest.approx(large @ edges)
    two, both = bin_losses._convolved(one, weights, edges, large, 0.2)
    assert both.sum() == pytest.approx(large.sum() ** 2)
    assert both @ two == pytest.approx(2 * large.sum() * (large @ edges))


def moved_down(noise: float, edges: np.ndarray) -> np.ndarray:
    """The planted fault: every L falls to the grid point below it, which moves the mean."""
    mass = np.diff(norm.cdf(noise * np.log(np.maximum(edges, 1e-300)) + 0.5 / noise))
    return np.append(mass, 0.0)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("_spread", moved_down),
        ("_convolved", lambda sums, weights, *_: (sums, 0.0 * weights)),
        ("_power", lambda small, count, first, last: power(small, max(0, count - 1), first, last)),
    ],
    ids=["mean moved", "large ones forgotten", "a bin forgotten"],
)
def test_the_test_of_delta_sees_a_planted_fault(
    monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[..., object]
) -> None:
    monkeypatch.setattr(bin_losses, name, fault)
    pair, _ = outcomes.__wrapped__(1.0, 2)
    assert figure(pair, 0.3) < exact_removed(1.0, 2, math.exp(0.3)) * (1 - 1e-3)


power = bin_losses._power


def test_what_is_out_of_range_is_not_covered() -> None:
    assert bin_losses.covers(1.0, 2)
    for noise, bins in ((0.29, 100), (101.0, 100), (1.0, 1), (1.0, 10**7 + 1)):
        assert not bin_losses.covers(noise, bins)
