"""Balls in bins: the divergences of one epoch against their definition, and its figures against what must hold.

Each statistical test fails by chance with probability below 1e-6.
"""

import math

import numpy as np
import pytest
from scipy.integrate import dblquad, simpson
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import norm

from accounting import balls_in_bins, calibrate, explain, renyi
from accounting.accountant import delta, epsilon, without_amplification
from accounting.balls_in_bins import lower_epsilon
from accounting.budget import Budget
from accounting.mechanisms import (
    BallsInBinsDpEvent,
    UnknownEvent,
    balls_in_bins_dp_sgd,
    composed,
    dp_sgd,
    gaussian,
    laplace,
    user_level,
)


def log_moment_of_two(noise: float, power: float) -> float:
    """log E[((L_1 + L_2) / 2)^power], integrated over both dimensions as defined."""

    def density(y: float, x: float) -> float:
        mean = (math.exp(x / noise) + math.exp(y / noise)) * math.exp(-1 / (2 * noise**2)) / 2
        return math.exp(power * math.log(mean) - (x * x + y * y) / 2) / (2 * math.pi)

    reach = 9 + abs(power) / noise
    return math.log(dblquad(density, -reach, reach, -reach, reach, epsabs=0, epsrel=1e-9)[0])


@pytest.mark.parametrize("noise", [0.7, 1.0, 4.0])
def test_the_moments_of_two_bins_are_integrated_as_defined_and_rounded_up(noise: float) -> None:
    removed, added = balls_in_bins.log_removed(noise, 2, 64), balls_in_bins.log_added(noise, 2, 63)
    for order in (2, 3, 5):
        exact = log_moment_of_two(noise, order)
        assert exact - 1e-9 <= removed[order] <= exact + 1e-7
    for power in (1, 2):
        exact = log_moment_of_two(noise, -power)
        assert exact - 1e-9 <= added[power] <= exact + 1e-7


@pytest.mark.parametrize("noise", [0.15, 0.5, 1.0, 30.0])
def test_one_bin_is_a_gaussian(noise: float) -> None:
    orders = np.arange(64)
    plain = orders * (orders - 1) / (2 * noise**2)  # Mironov 2017, proposition 7
    assert balls_in_bins.log_removed(noise, 1, 63) == pytest.approx(plain, rel=1e-9, abs=1e-9)
    assert balls_in_bins.log_added(noise, 1, 62)[1:] == pytest.approx(plain[2:], rel=1e-9)
    assert epsilon(balls_in_bins_dp_sgd(noise_multiplier=2.0, bins=1, epochs=9), delta=1e-6).upper == pytest.approx(
        epsilon(gaussian(noise_multiplier=2 / 3), delta=1e-6).upper, rel=1e-8
    )


def test_three_bins_have_the_moments_of_their_multinomial_sum() -> None:
    # E[(L_1 + L_2 + L_3)^3] = 3 m_3 + 18 m_2 m_1 + 6 m_1^3, with m_k = exp(k (k - 1) / (2 s^2))
    noise = 1.3
    m = [math.exp(k * (k - 1) / (2 * noise**2)) for k in range(4)]
    exact = math.log((3 * m[3] + 18 * m[2] * m[1] + 6 * m[1] ** 3) / 27)
    assert exact <= balls_in_bins.log_removed(noise, 3, 64)[3] <= exact + 1e-10


@pytest.mark.parametrize(("noise", "bins"), [(1.0, 10), (0.8, 300), (3.0, 1000), (0.5, 40)])
def test_the_first_moments_are_those_of_the_mean_of_lognormals(noise: float, bins: int) -> None:
    # E[Z^2] = 1 + (exp(1/s^2) - 1) / T, and E[1/Z] = int_0^inf E[exp(-u L / T)]^T du, by Simpson's rule over log u.
    variance = math.expm1(1 / noise**2) / bins
    removed = balls_in_bins.log_removed(noise, bins, 64)[2]
    assert removed == pytest.approx(math.log1p(variance), rel=1e-8, abs=1e-11)
    x, logs = np.linspace(-10, 10, 2001), np.linspace(-20, 8, 1401)
    loss = np.exp(x / noise - 1 / (2 * noise**2)) / bins
    transform = simpson(norm.pdf(x) * np.exp(-np.exp(logs)[:, None] * loss), x=x, axis=1)
    exact = math.log(float(simpson(np.exp(logs) * transform**bins, x=logs)))
    assert balls_in_bins.log_added(noise, bins, 63)[1] == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize(("noise", "bins"), [(1.0, 10), (2.0, 5)])
def test_simulated_moments_lie_where_they_are_computed(noise: float, bins: int) -> None:
    """z-tests at 1e-7 each; a moment less one that is a quarter off is missed with probability below 1e-7."""
    x = np.random.default_rng(0).standard_normal((400_000, bins))
    z = np.exp(x / noise - 1 / (2 * noise**2)).mean(axis=1)
    for power, found in (
        (2, balls_in_bins.log_removed(noise, bins, 64)[2]),
        (-1, balls_in_bins.log_added(noise, bins, 63)[1]),
        (-4, balls_in_bins.log_added(noise, bins, 63)[4]),
    ):
        values = z ** float(power)
        error = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - math.exp(found)) < norm.isf(5e-8) * error
        assert 2 * norm.isf(5e-8) * error < 0.25 * (math.exp(found) - 1)


def test_orders_between_whole_ones_lie_on_the_chord_or_below_and_never_above_no_sampling() -> None:
    event = {"noise_multiplier": 1.0, "bins": 100, "swapped": False}
    for order in (1.5, 2.5, 17.3, 100.7):
        found = balls_in_bins.divergence(order=order, **event)
        ends = [balls_in_bins.divergence(order=each, **event) for each in (max(2, math.floor(order)), math.ceil(order))]
        assert min(ends) * (1 - 1e-12) <= found <= ends[1] * (1 + 1e-12)
    for order in (1.1, 64.0, 65.0, 512.0, 513.0, 16384.0):
        assert balls_in_bins.divergence(order=order, **event) <= order / 2


def test_divergences_fall_with_bins_and_with_noise_and_rise_with_the_order() -> None:
    def at(noise: float = 1.0, bins: int = 100, order: float = 8.0) -> float:
        return balls_in_bins.divergence(noise_multiplier=noise, bins=bins, order=order, swapped=False)

    for values in (
        [at(bins=bins) for bins in (10**12, 10**6, 2000, 100, 3, 2, 1)],
        [at(noise=noise) for noise in (1e40, 100.0, 10.0, 2.0, 1.0, 0.5, 0.21, 0.19, 0.01)],
        [at(order=order) for order in (1.01, 2.0, 2.5, 64.0, 64.5, 512.0, 513.0)],
    ):
        assert values == sorted(values)
        assert all(math.isfinite(value) and value >= 0 for value in values)


@pytest.mark.parametrize("order", [1.5, 2.0, 3.0])
def test_a_replaced_unit_loses_no_more_than_its_bound(order: float) -> None:
    """Two bins, the unit's vector replaced by its opposite, integrated over both dimensions as defined."""
    noise = 1.2

    def log_mixture(x: float, y: float, sign: float) -> float:
        return math.log((math.exp(sign * x / noise) + math.exp(sign * y / noise)) / 2) - 1 / (2 * noise**2)

    def density(y: float, x: float) -> float:
        exponent = order * log_mixture(x, y, 1.0) + (1 - order) * log_mixture(x, y, -1.0) - (x * x + y * y) / 2
        return math.exp(exponent) / (2 * math.pi)

    reach = 9 + 2 * order / noise
    exact = math.log(dblquad(density, -reach, reach, -reach, reach, epsrel=1e-7)[0]) / (order - 1)
    found = balls_in_bins.divergence(noise_multiplier=noise, bins=2, order=order, swapped=True)
    assert exact <= found <= 4 * order / (2 * noise**2)


def simulated_delta(noise: float, bins: int, eps: float, draws: int) -> tuple[float, float]:
    """delta(eps) = E_P[(1 - exp(eps - Y))+] of one epoch when a unit is removed: estimate and standard error."""
    rng = np.random.default_rng(1)
    values = []
    for _ in range(10):
        x = rng.standard_normal((draws // 10, bins))
        x[:, 0] += 1 / noise
        z = np.exp(x / noise - 1 / (2 * noise**2)).mean(axis=1)
        values.append(np.maximum(1 - math.exp(eps) / z, 0))
    found = np.concatenate(values)
    return float(found.mean()), float(found.std()) / math.sqrt(draws)


@pytest.mark.parametrize(("noise", "bins"), [(1.0, 10), (0.6, 100)])
def test_an_epoch_costs_at_least_what_a_simulation_shows(noise: float, bins: int) -> None:
    """At the simulated epsilon for delta 1e-2 the simulated delta is 5.3 standard errors above the bound's own."""
    event = balls_in_bins_dp_sgd(noise_multiplier=noise, bins=bins, epochs=1)
    bound = epsilon(event, delta=1e-2)
    mean, error = simulated_delta(noise, bins, bound.upper, 100_000)
    assert mean - 5.3 * error <= 1e-2
    # A bound that is a tenth smaller would be seen.
    mean, error = simulated_delta(noise, bins, 0.9 * bound.upper, 100_000)
    assert mean - 5.3 * error > 1e-2


def test_the_lower_end_is_the_best_threshold_on_the_largest_sum() -> None:
    """One bin and epoch: Neyman and Pearson's test, so the lower end is the Gaussian's exact epsilon at delta."""
    # The epsilon of a single set is below that of the hockey stick: P(S) - exp(e) Q(S) = delta at the best S.
    noise, failure = 1.5, 1e-5
    exact = brentq(
        lambda e: ndtr(1 / (2 * noise) - e * noise) - math.exp(e) * ndtr(-1 / (2 * noise) - e * noise) - failure,
        0,
        20,
    )
    assert lower_epsilon(noise_multiplier=noise, bins=1, epochs=1, delta=failure) == pytest.approx(exact, abs=1e-5)
    assert lower_epsilon(noise_multiplier=noise, bins=1, epochs=1, delta=failure) <= exact


@pytest.mark.parametrize("noise", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("bins", [2, 100, 5000])
@pytest.mark.parametrize("epochs", [1, 10])
def test_the_ends_lie_in_order_and_within_what_everyone_knows(noise: float, bins: int, epochs: int) -> None:
    event = balls_in_bins_dp_sgd(noise_multiplier=noise, bins=bins, epochs=epochs)
    bounds = epsilon(event, delta=1e-6, certify=True)
    assert bounds.lower is not None
    assert 0 <= bounds.lower <= bounds.upper <= without_amplification(event, delta=1e-6).upper * (1 + 1e-9)


@pytest.mark.parametrize(("noise", "bins", "epochs"), [(1.0, 2, 1), (1.0, 10, 1), (1.0, 1000, 10), (2.0, 100, 20)])
def test_balls_in_bins_cost_no_more_than_poisson_sampling_at_the_same_rate(
    noise: float, bins: int, epochs: int
) -> None:
    """Found by simulation by Chua et al. 2024; both figures are bounds from above here, within 1 % of the truth."""
    ours = epsilon(balls_in_bins_dp_sgd(noise_multiplier=noise, bins=bins, epochs=epochs), delta=1e-6).upper
    steps = dp_sgd(sampling_rate=1 / bins, noise_multiplier=noise, steps=bins * epochs)
    assert 0.7 < ours / epsilon(steps, delta=1e-6).upper < 1.0


def test_divergences_are_nearly_those_of_poisson_sampling_at_the_same_rate() -> None:
    event = balls_in_bins_dp_sgd(noise_multiplier=1.0, bins=1000, epochs=10)
    steps = dp_sgd(sampling_rate=1e-3, noise_multiplier=1.0, steps=10_000)
    for order in (2.0, 5.0, 10.0):
        ours = renyi.divergence(event, order=order, neighbors="add-remove")
        assert ours == pytest.approx(renyi.divergence(steps, order=order, neighbors="add-remove"), rel=0.03)


@pytest.mark.parametrize(("noise", "bins"), [(0.3, 100), (0.5, 1000), (0.6, 2441), (1.0, 2), (1.0, 10)])
def test_the_two_ends_of_one_epoch_nearly_meet(noise: float, bins: int) -> None:
    bounds = epsilon(balls_in_bins_dp_sgd(noise_multiplier=noise, bins=bins, epochs=1), delta=1e-6, certify=True)
    assert bounds.lower is not None
    assert 0.99 * bounds.upper < bounds.lower <= bounds.upper


def test_renyi_gives_a_figure_where_losses_do_not_and_never_a_smaller_one_where_they_do() -> None:
    event = balls_in_bins_dp_sgd(noise_multiplier=0.8, bins=500, epochs=4)
    assert epsilon(event, delta=1e-6).upper < renyi.least_epsilon(event, delta=1e-6, neighbors="add-remove")
    for noise, bins in ((150.0, 100), (1.0, 10**8), (0.25, 10**6)):
        assert epsilon(balls_in_bins_dp_sgd(noise_multiplier=noise, bins=bins, epochs=2), delta=1e-6).method == "RDP"
    few = epsilon(balls_in_bins_dp_sgd(noise_multiplier=0.25, bins=2, epochs=1), delta=1e-6)
    assert few.method == "closed form, without amplification"


def test_epochs_compose_with_other_mechanisms_and_with_a_gaussian() -> None:
    event = balls_in_bins_dp_sgd(noise_multiplier=2.0, bins=100, epochs=5)
    alone = epsilon(event, delta=1e-6).upper
    tables = laplace(noise_multiplier=10.0)
    both = epsilon(composed(event, tables), delta=1e-6, certify=True)
    assert alone <= both.upper <= alone + 0.1 + 1e-3
    assert both.lower == lower_epsilon(noise_multiplier=2.0, bins=100, epochs=5, delta=1e-6)
    assert epsilon(composed(event, gaussian(noise_multiplier=50.0)), delta=1e-6).upper >= alone


def test_what_is_asked_back_is_what_was_asked() -> None:
    event = balls_in_bins_dp_sgd(noise_multiplier=1.0, bins=500, epochs=3)
    spent = epsilon(event, delta=1e-6)
    assert spent.method == "PLD"
    assert delta(event, epsilon=spent.upper).upper == pytest.approx(1e-6, rel=1e-6)


def test_calibration_keeps_the_budget_and_hardly_less_noise_would() -> None:
    budget = Budget(epsilon=2.0, delta=1e-6, unit="user")

    def make(noise: float) -> BallsInBinsDpEvent:
        return balls_in_bins_dp_sgd(noise_multiplier=noise, bins=2000, epochs=10)

    noise = calibrate.noise_multiplier(make, budget)
    assert epsilon(make(noise), delta=1e-6).upper <= 2.0 < epsilon(make(noise * 0.998), delta=1e-6).upper


def test_a_replaced_unit_costs_between_one_and_no_sampling() -> None:
    event = balls_in_bins_dp_sgd(noise_multiplier=1.0, bins=1000, epochs=10)
    one = epsilon(event, delta=1e-6).upper
    replaced = epsilon(event, delta=1e-6, neighbors="replace", certify=True)
    assert replaced.lower is None
    assert one < replaced.upper < without_amplification(event, delta=1e-6, neighbors="replace").upper


def test_an_owner_of_several_units_is_refused() -> None:
    with pytest.raises(UnknownEvent, match="owner of 2 units"):
        user_level(balls_in_bins_dp_sgd(noise_multiplier=1.0, bins=10, epochs=2), 2)


def test_many_epochs_are_explained_as_a_gaussian_of_nearly_their_variance() -> None:
    # The losses' variance is nearly E (exp(1/s^2) - 1) / T = mu^2.
    found = explain.gaussian_dp(balls_in_bins_dp_sgd(noise_multiplier=3.0, bins=20, epochs=40))
    assert found.mu == pytest.approx(math.sqrt(40 * math.expm1(1 / 9) / 20), rel=0.03)
    assert found.fit_error < 0.01


def test_rho_is_that_of_one_gaussian_an_epoch() -> None:
    event = balls_in_bins_dp_sgd(noise_multiplier=2.0, bins=1000, epochs=3)
    assert renyi.zcdp_rho(event, neighbors="add-remove") == pytest.approx(3 / 8)
    assert renyi.zcdp_rho(event, neighbors="replace") == pytest.approx(3 / 2)


def test_hardly_any_noise_is_no_privacy() -> None:
    assert epsilon(balls_in_bins_dp_sgd(noise_multiplier=0.05, bins=1000, epochs=1), delta=1e-6).upper == math.inf


def test_the_tests_of_the_moments_see_planted_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bin too many, and an integral without its tails, give moments below the true ones."""
    exact = [log_moment_of_two(1.0, power) for power in (2, -1)]
    assert balls_in_bins.log_removed(1.0, 3, 64)[2] < exact[0] - 1e-3
    assert balls_in_bins.log_added(1.0, 3, 63)[1] < exact[1] - 1e-3
    monkeypatch.setattr(balls_in_bins, "_log_transform", lambda *_: (np.arange(-2.0, 0.0, 0.05), np.full(40, -1.0)))
    monkeypatch.setattr(balls_in_bins, "_log_geometric", lambda ratio: np.full_like(ratio, -np.inf))
    assert balls_in_bins.log_added(1.0, 2, 63)[1] < exact[1] - 1e-3
