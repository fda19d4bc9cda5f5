"""Composed privacy losses against exact sums, closed forms and dp-accounting, far into the tail."""

import math
from itertools import product

import mpmath
import numpy as np
import pytest
from dp_accounting.pld.pld_pmf import DensePLDPmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution, from_gaussian_mechanism

from accounting import composition
from accounting.composition import Composition, TooFine
from accounting.losses import privacy_loss
from accounting.mechanisms import dp_sgd, parts

GRID = 0.01


def losses(first: int, masses: list[float], infinite: float = 0.0) -> PrivacyLossDistribution:
    return PrivacyLossDistribution(DensePLDPmf(GRID, first, np.array(masses), infinite, True))


def by_enumeration(parts: list[tuple[int, list[float], float, int]], epsilon: float) -> float:
    """E[(1 - exp(epsilon - X))+] over every combination of outcomes, in 40 digits."""
    repeated = [(first, masses, infinite) for first, masses, infinite, count in parts for _ in range(count)]
    finite, total = mpmath.mpf(1), mpmath.mpf(0)
    with mpmath.workdps(40):
        for _, _, infinite in repeated:
            finite *= 1 - mpmath.mpf(infinite)
        for choice in product(*(range(len(masses)) for _, masses, _ in repeated)):
            loss = sum(first + i for (first, _, _), i in zip(repeated, choice, strict=True)) * mpmath.mpf(GRID)
            if loss > epsilon:
                mass = mpmath.mpf(1)
                for (_, masses, _), i in zip(repeated, choice, strict=True):
                    mass *= mpmath.mpf(masses[i])
                total += mass * (1 - mpmath.exp(epsilon - loss))
        return float(total + 1 - finite)


MIXED = [
    (-40, [0.3, 0.0, 0.2, 0.3, 0.2], 0.0, 2),
    (100, [0.7, 0.2, 1e-7, 0.1 - 1e-7 - 1e-5], 1e-5, 2),
    (-7, [0.5, 0.4999, 1e-4], 0.0, 2),
]


@pytest.mark.parametrize("epsilon", [0.005, 0.5, 0.9, 1.0, 2.0])
def test_delta_is_that_of_every_combination_enumerated(epsilon: float) -> None:
    exact = by_enumeration(MIXED, epsilon)
    found = Composition([(losses(a, masses, inf), n) for a, masses, inf, n in MIXED]).delta(epsilon)
    assert exact <= found <= exact * (1 + 1e-6) + 1e-12


def test_epsilon_is_the_least_at_which_delta_is_kept() -> None:
    made = Composition([(losses(a, masses, inf), n) for a, masses, inf, n in MIXED])
    for delta in (0.5, 1e-2, 1e-3, 2.5e-5):
        found = made.epsilon(delta)
        assert by_enumeration(MIXED, found) <= delta * (1 + 1e-12)
        assert found == 0 or by_enumeration(MIXED, found - 1e-4) > delta


def test_a_delta_below_the_mass_at_infinity_has_no_epsilon() -> None:
    made = Composition([(losses(0, [0.5, 0.5 - 1e-5], 1e-5), 3)])
    assert made.epsilon(2.9e-5) == math.inf
    assert made.epsilon(3.1e-5) < 0.1


def test_certain_losses_add_up_exactly() -> None:
    made = Composition([(losses(30, [1.0]), 7), (losses(-10, [1.0]), 3)])
    assert made.epsilon(1e-9) == pytest.approx(1.8, abs=1e-6)
    assert made.delta(1.0) == pytest.approx(1 - math.exp(-0.8), rel=1e-6)
    assert made.delta(1.81) <= 1e-12


@pytest.mark.parametrize("delta", [0.3, 1e-3, 1e-6, 1e-12, 1e-15, 1e-18, 1e-30])
@pytest.mark.parametrize(("noise", "count"), [(1.0, 1), (5.0, 100), (40.0, 20_000)])
def test_composed_gaussians_are_exact_far_into_the_tail(noise: float, count: int, delta: float) -> None:
    grid = 1e-4
    pld = from_gaussian_mechanism(noise, value_discretization_interval=grid, log_mass_truncation_bound=-160)
    found = Composition([(pld, count)]).epsilon(delta)
    mu = mpmath.sqrt(count) / noise
    with mpmath.workdps(60):

        def exact(epsilon: float) -> float:
            e = mpmath.mpf(epsilon)
            return float(mpmath.ncdf(mu / 2 - e / mu) - mpmath.exp(e) * mpmath.ncdf(-mu / 2 - e / mu))

        assert exact(found) <= delta
        assert exact(found - 2e-4 - count * grid**2) > delta or found < 2e-4


@pytest.mark.parametrize("delta", [1e-6, 1e-12, 1e-15])
def test_a_tiny_loss_has_a_tiny_epsilon_at_a_tiny_delta(delta: float) -> None:
    """A fixed bug: below a delta of 10^-11, an epsilon of 7e-5 was given as infinite, and then as RDP's 0.08."""
    leaf = parts(dp_sgd(sampling_rate=3e-5, noise_multiplier=4.0, steps=1))[0][0]
    grid = 1e-6
    found = Composition([(privacy_loss(leaf, neighbors="add-remove", grid=grid), 1)]).epsilon(delta)
    with mpmath.workdps(40):
        q, mu, e = mpmath.mpf(3e-5), mpmath.mpf(1) / 4, mpmath.mpf(found)

        def exact(e: mpmath.mpf) -> mpmath.mpf:
            edge = mpmath.log((mpmath.exp(e) - 1 + q) / q) / mu + mu / 2
            return q * mpmath.ncdf(mu - edge) - (mpmath.expm1(e) + q) * mpmath.ncdf(-edge)

        assert exact(e) <= delta
        assert exact(e - 3 * grid) > delta


def test_adding_and_removing_a_unit_are_both_bounded() -> None:
    loose, tight = DensePLDPmf(GRID, 50, np.array([1.0]), 0.0, True), DensePLDPmf(GRID, 1, np.array([1.0]), 0.0, True)
    for pld in (PrivacyLossDistribution(loose, tight), PrivacyLossDistribution(tight, loose)):
        assert Composition([(pld, 4)]).epsilon(1e-6) == pytest.approx(2.0, abs=1e-5)
        assert Composition([(pld, 4), (losses(10, [1.0]), 1)]).delta(1.0) == pytest.approx(1 - math.exp(-1.1))


def test_an_empty_and_an_infinite_part_have_their_limits() -> None:
    assert Composition([(losses(0, [1.0]), 10**9)]).epsilon(1e-9) == pytest.approx(0.0, abs=1e-9)
    assert Composition([(losses(0, [0.0], 1.0), 1)]).epsilon(0.5) == math.inf
    assert Composition([(losses(0, [0.0], 1.0), 1)]).delta(1.0) == 1.0


def test_parts_on_different_grids_are_refused() -> None:
    other = PrivacyLossDistribution(DensePLDPmf(0.1, 0, np.array([1.0]), 0.0, True))
    with pytest.raises(ValueError, match="one grid"):
        Composition([(losses(0, [1.0]), 1), (other, 1)])


def test_a_window_too_large_asks_for_a_coarser_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "MOST_POINTS", 100)
    with pytest.raises(TooFine, match="coarser grid"):
        Composition([(losses(-500, [1 / 1000] * 1000), 50)]).epsilon(1e-6)


def test_without_the_rounding_error_the_bound_would_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: the transform's own error, taken away, leaves entries below what they stand for."""
    parts = composition._Direction([composition._part(losses(0, [0.5, 0.5])._pmf_remove, 60, GRID)], GRID)._parts
    exact = [math.comb(60, i) / 2**60 for i in range(61)]
    sound = composition._convolve(parts, [parts[0].mass], 0, 64)[:61]
    assert all(found >= true for found, true in zip(sound, exact, strict=True))
    monkeypatch.setattr(composition.np, "finfo", lambda _: type("Info", (), {"eps": 0.0}))
    faulty = composition._convolve(parts, [parts[0].mass], 0, 64)[:61]
    assert any(found < true for found, true in zip(faulty, exact, strict=True))


def test_without_the_tail_the_bound_would_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: a window that ends too early and forgets what lies above it promises too little."""
    made = Composition([(losses(-300, [1 / 600] * 600), 40)])
    sound = made.delta(5.0)
    monkeypatch.setattr(composition._Direction, "_last", lambda self, tilt, share: (math.ceil(5.5 / GRID), -math.inf))
    monkeypatch.setattr(composition, "_convolve", _cut(composition._convolve))
    assert made.delta(5.0) < 0.9 * sound


def _cut(convolve: object) -> object:
    def cut(parts: object, masses: object, first: int, points: int) -> np.ndarray:
        full = convolve(parts, masses, first, 2**18)  # type: ignore[operator]
        return np.asarray(full[:points])

    return cut
