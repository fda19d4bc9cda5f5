"""The accountant against closed forms, published figures and another library."""

import doctest
import math
import time

import pytest
from dp_accounting import dp_event
from opacus.accountants import PRVAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from accounting import accountant
from accounting.accountant import COARSE_GRID, GRID, LEAST_NOISE, LONG_RUN_GRID, LONG_RUN_STEPS, epsilon
from accounting.mechanisms import UnknownEvent, dp_sgd, non_private


def gaussian_epsilon(noise: float, delta: float) -> float:
    """Balle and Wang 2018, theorem 8: the exact epsilon of the Gaussian mechanism with sensitivity 1."""

    def excess(eps: float) -> float:
        far = norm.logcdf(-1 / (2 * noise) - eps * noise) + eps
        return float(norm.cdf(1 / (2 * noise) - eps * noise) - math.exp(far) - delta)

    return float(brentq(excess, 0.0, 1e4, xtol=1e-12))


def upper(*, q: float, noise: float, steps: int, delta: float, grid: float | None = None) -> float:
    return epsilon(dp_sgd(sampling_rate=q, noise_multiplier=noise, steps=steps), delta=delta, grid=grid).upper


def test_doctests_run() -> None:
    assert doctest.testmod(accountant).failed == 0


def test_golden_figure_of_dp_sgd() -> None:
    # The optimistic and the pessimistic end of dp-accounting's and Opacus's accountants enclose 6.906.
    assert 6.906 <= upper(q=0.01, noise=1.0, steps=10_000, delta=1e-6) <= 6.915


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-10])
def test_the_gaussian_mechanism_is_bounded_from_above_and_closely(noise: float, delta: float) -> None:
    exact = gaussian_epsilon(noise, delta)
    found = epsilon(dp_event.GaussianDpEvent(noise), delta=delta).upper
    assert exact <= found <= exact + GRID


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 4), (8.0, 50), (30.0, 1000)])
def test_composed_gaussians_are_one_gaussian_with_less_noise(noise: float, steps: int) -> None:
    exact = gaussian_epsilon(noise / math.sqrt(steps), 1e-6)
    found = upper(q=1.0, noise=noise, steps=steps, delta=1e-6)
    assert exact <= found <= exact * 1.001 + steps * GRID / 2


@pytest.mark.parametrize(
    ("q", "noise", "steps", "delta"), [(0.01, 1.0, 1000, 1e-6), (0.1, 2.0, 200, 1e-5), (0.002, 0.8, 5000, 1e-7)]
)
def test_opacus_prv_accountant_agrees(q: float, noise: float, steps: int, delta: float) -> None:
    oracle = PRVAccountant()
    oracle.history = [(noise, q, steps)]
    middle = oracle.get_epsilon(delta, eps_error=0.01)
    assert upper(q=q, noise=noise, steps=steps, delta=delta) == pytest.approx(middle, abs=0.02)


def test_epsilon_rises_with_steps_and_rate_and_falls_with_noise_and_delta() -> None:
    base = {"q": 0.02, "noise": 1.2, "steps": 300, "delta": 1e-6}
    rising = {"q": [0.01, 0.02, 0.1, 1.0], "steps": [100, 300, 500]}
    falling = {"noise": [1.0, 1.2, 3.0], "delta": [1e-8, 1e-6, 1e-4]}
    for name, values in rising.items():
        found = [upper(**{**base, name: value}) for value in values]  # type: ignore[arg-type]
        assert found == sorted(found)
        assert len(set(found)) == len(found)
    for name, values in falling.items():
        found = [upper(**{**base, name: value}) for value in values]  # type: ignore[arg-type]
        assert found == sorted(found, reverse=True)
        assert len(set(found)) == len(found)


def test_a_coarser_grid_is_looser_and_never_lower() -> None:
    event = {"q": 0.01, "noise": 1.0, "steps": 2000, "delta": 1e-6}
    fine, coarse = upper(**event, grid=GRID), upper(**event, grid=COARSE_GRID)  # type: ignore[arg-type]
    assert fine <= coarse <= fine * 1.02


def test_a_long_run_uses_the_fine_grid() -> None:
    event = dp_sgd(sampling_rate=1e-4, noise_multiplier=5.0, steps=LONG_RUN_STEPS + 1)
    bounds = epsilon(event, delta=1e-6)
    assert bounds.grid == LONG_RUN_GRID
    assert bounds.upper < epsilon(event, delta=1e-6, grid=GRID).upper


def test_bounds_say_how_they_were_found() -> None:
    bounds = epsilon(dp_event.GaussianDpEvent(1.0), delta=1e-5)
    assert (bounds.method, bounds.delta, bounds.grid, bounds.lower) == ("PLD", 1e-5, GRID, None)
    assert bounds.library.startswith("dp-accounting ")


def test_an_event_without_privacy_costs_infinity() -> None:
    assert epsilon(non_private(), delta=1e-6).upper == math.inf
    assert epsilon(dp_event.SelfComposedDpEvent(non_private(), 3), delta=1e-6).upper == math.inf


@pytest.mark.parametrize("noise", [LEAST_NOISE / 1.01, 0.01, 1e-6])
def test_next_to_no_noise_costs_infinity_at_once(noise: float) -> None:
    """A fixed bug: noise of 0.01 took hours, and 0.001 asked for 76 GiB."""
    started = time.monotonic()
    assert upper(q=0.01, noise=noise, steps=1000, delta=1e-6) == math.inf
    assert time.monotonic() - started < 1.0


def test_a_distribution_that_does_not_fit_into_memory_promises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(accountant.PLDAccountant, "compose", full)
    assert upper(q=0.011, noise=1.0, steps=17, delta=1e-6) == math.inf


@pytest.mark.parametrize(
    "event",
    [
        dp_event.LaplaceDpEvent(1.0),
        dp_event.PoissonSampledDpEvent(0.1, dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(1.0), 3)),
        dp_event.PoissonSampledDpEvent(0.1, dp_event.NonPrivateDpEvent()),
        dp_event.PoissonSampledDpEvent(0.0, dp_event.GaussianDpEvent(1.0)),
        dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(1.0), 0),
    ],
    ids=str,
)
def test_an_event_that_privads_does_not_make_is_refused(event: dp_event.DpEvent) -> None:
    with pytest.raises(UnknownEvent):
        epsilon(event, delta=1e-6)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-6, math.nan])
def test_a_delta_outside_0_and_1_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon(dp_event.GaussianDpEvent(1.0), delta=delta)


def test_without_amplification_every_unit_is_in_every_batch() -> None:
    sampled = dp_sgd(sampling_rate=0.01, noise_multiplier=10.0, steps=100)
    found = accountant.without_amplification(sampled, delta=1e-6).upper
    assert found == pytest.approx(gaussian_epsilon(1.0, 1e-6), rel=1e-3)
    assert found > epsilon(sampled, delta=1e-6).upper
