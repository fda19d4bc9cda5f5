"""Renyi divergences against their definition, dp-accounting's, and the exchange with (epsilon, delta)."""

import itertools
import math

import numpy as np
import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.rdp import RdpAccountant
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import norm

from accounting import renyi
from accounting.accountant import epsilon
from accounting.budget import Budget, Neighbors
from accounting.mechanisms import (
    UnknownEvent,
    approximate_dp,
    composed,
    discrete_gaussian,
    discrete_laplace,
    dp_sgd,
    gaussian,
    joint_dp_sgd,
    laplace,
    non_private,
    private_selection,
    randomized_response,
    repeated,
    truncated_dp_sgd,
    user_dp_sgd,
    zcdp,
)
from accounting.renyi import (
    ORDERS,
    divergence,
    divergence_within,
    epsilon_of_renyi,
    epsilon_of_zcdp,
    least_delta,
    least_epsilon,
    rho_within,
    zcdp_rho,
)

SGD = dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=100)
ADD: Neighbors = "add-remove"


def by_definition(log_p: np.ndarray, log_q: np.ndarray, order: float) -> float:
    """log E_Q[(P/Q)^a] / (a - 1) of two distributions on finitely many outcomes."""
    return float(logsumexp(order * log_p + (1 - order) * log_q)) / (order - 1)


@pytest.mark.parametrize("order", [1.5, 2.0, 7.3, 40.0])
@pytest.mark.parametrize(("scale", "sensitivity"), [(0.5, 1), (2.0, 1), (2.0, 3), (10.0, 7)])
def test_discrete_laplace_is_summed_as_defined(order: float, scale: float, sensitivity: int) -> None:
    x = np.arange(-3000, 3000)
    log_p, log_q = -np.abs(x) / scale, -np.abs(x - sensitivity) / scale
    expected = by_definition(log_p - logsumexp(log_p), log_q - logsumexp(log_q), order)
    found = divergence(discrete_laplace(scale=scale, sensitivity=sensitivity), order=order, neighbors=ADD)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("order", [1.5, 2.0, 7.3, 40.0])
@pytest.mark.parametrize(("noise_std", "sensitivity"), [(0.4, 1), (2.0, 1), (3.0, 5)])
def test_discrete_gaussian_loses_no_more_than_its_bound(order: float, noise_std: float, sensitivity: int) -> None:
    x = np.arange(-400, 400)
    log_p, log_q = -(x**2) / (2 * noise_std**2), -((x - sensitivity) ** 2) / (2 * noise_std**2)
    exact = by_definition(log_p - logsumexp(log_p), log_q - logsumexp(log_q), order)
    found = divergence(discrete_gaussian(noise_std=noise_std, sensitivity=sensitivity), order=order, neighbors=ADD)
    assert exact <= found * (1 + 1e-12)
    assert found == pytest.approx(order * sensitivity**2 / (2 * noise_std**2))


@pytest.mark.parametrize("order", [1.5, 2.0, 7.3, 40.0])
@pytest.mark.parametrize(("randomized", "categories"), [(0.5, 2), (0.1, 10), (1.0, 3)])
def test_randomized_response_is_summed_as_defined(order: float, randomized: float, categories: int) -> None:
    p = np.full(categories, randomized / categories)
    q = p.copy()
    p[0] += 1 - randomized
    q[1] += 1 - randomized
    event = randomized_response(randomize_probability=randomized, categories=categories)
    found = divergence(event, order=order, neighbors="replace-label")
    assert found == pytest.approx(by_definition(np.log(p), np.log(q), order), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("order", [1.5, 3.0, 8.0])
def test_laplace_is_integrated_as_defined(order: float) -> None:
    def density(x: float) -> float:
        return 0.25 * math.exp(-order * abs(x) / 2 - (1 - order) * abs(x - 1) / 2)

    total = sum(quad(density, *ends)[0] for ends in ((-60, 0), (0, 1), (1, 60)))
    found = divergence(laplace(noise_multiplier=2.0), order=order, neighbors=ADD)
    assert found == pytest.approx(math.log(total) / (order - 1), rel=1e-6)


@pytest.mark.parametrize("order", [1.5, 2.0, 4.7, 11.0])
@pytest.mark.parametrize(("rate", "noise"), [(0.01, 1.0), (0.3, 2.0)])
def test_the_sampled_gaussian_is_integrated_as_defined(order: float, rate: float, noise: float) -> None:
    def density(z: float) -> float:
        ratio = 1 - rate + rate * math.exp((2 * z - 1) / (2 * noise**2))
        return float(norm.pdf(z, scale=noise)) * ratio**order

    total = quad(density, -12 * noise, 12 * noise + order, epsabs=1e-14, epsrel=1e-12, limit=500)[0]
    event = dp_sgd(sampling_rate=rate, noise_multiplier=noise, steps=1)
    assert divergence(event, order=order, neighbors=ADD) == pytest.approx(math.log(total) / (order - 1), rel=1e-6)


def mixture_divergence(p: dict[float, float], q: dict[float, float], noise: float, order: float) -> float:
    """D_a of mixtures of Gaussians {mean: chance}, by adaptive quadrature of ``P^a Q^(1-a)``."""

    def log_density(mixture: dict[float, float], z: float) -> float:
        return float(logsumexp([math.log(w) - (z - m) ** 2 / (2 * noise**2) for m, w in mixture.items()]))

    def integrand(z: float) -> float:
        return math.exp(order * log_density(p, z) + (1 - order) * log_density(q, z))

    far = order * max(map(abs, [*p, *q])) + 12 * noise
    cuts = np.linspace(-far, far, 41)
    total = sum(quad(integrand, a, b, epsabs=0, epsrel=1e-10, limit=200)[0] for a, b in itertools.pairwise(cuts))
    return math.log(total / (noise * math.sqrt(2 * math.pi))) / (order - 1)


@pytest.mark.parametrize("order", [1.5, 2.8, 8.0])
@pytest.mark.parametrize(("rate", "noise"), [(0.01, 1.0), (0.3, 2.0)])
def test_a_replaced_sampled_unit_is_integrated_as_defined(order: float, rate: float, noise: float) -> None:
    p, q = {0.0: 1 - rate, 1.0: rate}, {0.0: 1 - rate, -1.0: rate}
    event = dp_sgd(sampling_rate=rate, noise_multiplier=noise, steps=1)
    expected = mixture_divergence(p, q, noise, order)
    assert divergence(event, order=order, neighbors="replace") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("order", [1.5, 2.8, 8.0])
@pytest.mark.parametrize("records", [2, 5])
def test_an_owner_of_several_rows_is_integrated_as_defined(order: float, records: int) -> None:
    rate, noise = 0.05, 1.5
    p = {float(j): math.comb(records, j) * rate**j * (1 - rate) ** (records - j) for j in range(records + 1)}
    event = user_dp_sgd(sampling_rate=rate, noise_multiplier=noise, steps=1, records=records)
    expected = max(mixture_divergence(p, {0.0: 1.0}, noise, order), mixture_divergence({0.0: 1.0}, p, noise, order))
    assert divergence(event, order=order, neighbors=ADD) == pytest.approx(expected, rel=1e-6)


def test_mixed_divergences_lie_between_those_of_other_accountings() -> None:
    """An integral on too coarse a mesh, or a forgotten component, would fall below the PLD's epsilon."""
    user = user_dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=1000, records=4)
    for event, neighbors in ((user, ADD), (SGD, "replace")):
        tight = epsilon(event, delta=1e-6, neighbors=neighbors).upper
        assert tight <= least_epsilon(event, delta=1e-6, neighbors=neighbors) <= 1.7 * tight


def test_a_component_too_rare_for_a_float_counts_as_certain() -> None:
    rare = user_dp_sgd(sampling_rate=1e-5, noise_multiplier=10.0, steps=1, records=80)  # 1e-400 is 0 in floats
    assert divergence(rare, order=2.0, neighbors=ADD) == pytest.approx(2.0 * 8.0**2 / 2)


@pytest.mark.parametrize(
    ("event", "neighbors", "relation"),
    [
        (SGD, ADD, NeighboringRelation.ADD_OR_REMOVE_ONE),
        (joint_dp_sgd(sampling_rate=0.02, noise_multipliers=[1.5, 6.0], steps=9), ADD, None),
        (laplace(noise_multiplier=2.0), ADD, None),
        (zcdp(rho=0.3), ADD, None),
        (randomized_response(randomize_probability=0.5, categories=5), "replace", NeighboringRelation.REPLACE_ONE),
        (private_selection(SGD, mean_trials=10, shape=1), ADD, None),
        (private_selection(SGD, mean_trials=10, shape=0), ADD, None),
        (private_selection(SGD, mean_trials=10, shape=0.5), ADD, None),
        (private_selection(SGD, mean_trials=10, shape=math.inf), ADD, None),
        (private_selection(SGD, mean_trials=20, shape=2), ADD, None),
    ],
    ids=str,
)
def test_dp_accounting_agrees_at_every_order(
    event: dp_event.DpEvent, neighbors: Neighbors, relation: NeighboringRelation | None
) -> None:
    oracle = RdpAccountant(list(ORDERS), relation or NeighboringRelation.ADD_OR_REMOVE_ONE)
    oracle.compose(event)
    found = [divergence(event, order=order, neighbors=neighbors) for order in ORDERS]
    whole = [i for i, order in enumerate(ORDERS) if order.is_integer()]
    assert np.allclose(np.array(found)[whole], oracle._rdp[whole], rtol=1e-5, atol=1e-6)
    # Its series for sampled Gaussians of fractional orders adds up absolute values: a bound, looser than the integral.
    assert np.all(found <= oracle._rdp * (1 + 1e-6) + 1e-6)
    ours = least_epsilon(event, delta=1e-6, neighbors=neighbors)
    assert 0.99 * oracle.get_epsilon(1e-6) <= ours <= oracle.get_epsilon(1e-6) * (1 + 1e-5)
    assert least_delta(event, epsilon=ours, neighbors=neighbors) == pytest.approx(1e-6, rel=1e-4) or ours < 1e-6


def test_divergences_add_up() -> None:
    parts = [SGD, laplace(noise_multiplier=3.0), zcdp(rho=0.01)]
    alone = math.fsum(divergence(each, order=5.0, neighbors=ADD) for each in parts)
    together = divergence(composed(*parts, repeated(parts[1], 4)), order=5.0, neighbors=ADD)
    assert together == pytest.approx(alone + 4 * divergence(parts[1], order=5.0, neighbors=ADD))


def test_replacing_a_unit_doubles_the_sensitivity() -> None:
    for neighbors in ("replace", "replace-label"):
        assert divergence(gaussian(noise_multiplier=2.0), order=3.0, neighbors=neighbors) == pytest.approx(1.5)
        assert divergence(zcdp(rho=0.1), order=3.0, neighbors=neighbors) == pytest.approx(1.2)
        doubled = divergence(laplace(noise_multiplier=1.0), order=3.0, neighbors=ADD)
        assert divergence(laplace(noise_multiplier=2.0), order=3.0, neighbors=neighbors) == pytest.approx(doubled)


@pytest.mark.parametrize(
    ("event", "neighbors"),
    [
        (approximate_dp(epsilon=1.0, delta=1e-9), ADD),
        (user_dp_sgd(sampling_rate=0.1, noise_multiplier=1.0, steps=1, records=2), "replace"),
        (
            truncated_dp_sgd(sampling_rate=0.1, noise_multiplier=1.0, steps=1, population=100, largest_batch=20),
            ADD,
        ),
        (randomized_response(randomize_probability=0.5, categories=2), ADD),
        (private_selection(approximate_dp(epsilon=1.0, delta=1e-9), mean_trials=3, shape=1), ADD),
    ],
    ids=str,
)
def test_what_has_no_renyi_bound_is_refused(event: dp_event.DpEvent, neighbors: Neighbors) -> None:
    with pytest.raises(UnknownEvent):
        divergence(event, order=2.0, neighbors=neighbors)


def test_without_privacy_every_divergence_is_infinite() -> None:
    assert divergence(non_private(), order=2.0, neighbors=ADD) == math.inf
    assert zcdp_rho(non_private(), neighbors=ADD) == math.inf
    assert least_epsilon(composed(SGD, non_private()), delta=1e-6, neighbors=ADD) == math.inf


@pytest.mark.parametrize(
    ("event", "neighbors"),
    [
        (gaussian(noise_multiplier=1.3), ADD),
        (gaussian(noise_multiplier=1.3), "replace"),
        (SGD, ADD),
        (joint_dp_sgd(sampling_rate=0.5, noise_multipliers=[1.5, 6.0], steps=9), ADD),
        (laplace(noise_multiplier=0.2), ADD),
        (laplace(noise_multiplier=3.0), "replace"),
        (discrete_laplace(scale=2.0, sensitivity=3), ADD),
        (discrete_gaussian(noise_std=2.0, sensitivity=3), ADD),
        (approximate_dp(epsilon=0.01, delta=0), ADD),
        (approximate_dp(epsilon=5.0, delta=0), "replace"),
        (randomized_response(randomize_probability=0.2, categories=2), "replace-label"),
        (randomized_response(randomize_probability=0.9, categories=30), "replace-label"),
        (composed(SGD, laplace(noise_multiplier=2.0)), ADD),
    ],
    ids=str,
)
def test_rho_bounds_the_divergence_at_every_order(event: dp_event.DpEvent, neighbors: Neighbors) -> None:
    rho = zcdp_rho(event, neighbors=neighbors)
    for order in ORDERS:
        assert divergence(event, order=order, neighbors=neighbors) <= rho * order * (1 + 1e-6)


def test_rho_is_the_least_of_gaussians_and_of_laplace() -> None:
    assert zcdp_rho(repeated(gaussian(noise_multiplier=2.0), 3), neighbors=ADD) == pytest.approx(3 / 8)
    # The bound is met as the order falls to 1: there the divergence is e + exp(-e) - 1.
    near = divergence(laplace(noise_multiplier=0.5), order=1 + 1e-6, neighbors=ADD)
    assert zcdp_rho(laplace(noise_multiplier=0.5), neighbors=ADD) == pytest.approx(near, rel=1e-5)


def test_rho_of_several_sums_of_one_sample_is_that_of_their_merged_noise_for_a_replaced_unit_too() -> None:
    """A fixed bug: under replace, rho of several sums was that of add/remove, a quarter of the true one."""
    joint = joint_dp_sgd(sampling_rate=0.1, noise_multipliers=[3.0, 4.0], steps=7)
    merged = dp_sgd(sampling_rate=0.1, noise_multiplier=2.4, steps=7)
    for neighbors in ("add-remove", "replace"):
        assert zcdp_rho(joint, neighbors=neighbors) == pytest.approx(zcdp_rho(merged, neighbors=neighbors))


def test_rho_counts_no_sampling_and_no_records_away() -> None:
    assert zcdp_rho(SGD, neighbors=ADD) == pytest.approx(50.0)
    user = user_dp_sgd(sampling_rate=0.1, noise_multiplier=2.0, steps=10, records=3)
    assert zcdp_rho(user, neighbors=ADD) == pytest.approx(10 * 9 / 8)
    with pytest.raises(UnknownEvent, match="no zCDP bound"):
        zcdp_rho(approximate_dp(epsilon=1.0, delta=1e-9), neighbors=ADD)
    with pytest.raises(UnknownEvent, match="randomized response"):
        zcdp_rho(randomized_response(randomize_probability=0.5, categories=2), neighbors=ADD)


def exact_gaussian_delta(rho: float, epsilon: float) -> float:
    mu = math.sqrt(2 * rho)
    return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))


@pytest.mark.parametrize("rho", [1e-4, 0.01, 0.5, 3.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-15])
def test_epsilon_of_zcdp_is_above_a_gaussians_and_below_bun_and_steinkes(rho: float, delta: float) -> None:
    found = epsilon_of_zcdp(rho, delta)
    assert exact_gaussian_delta(rho, found) <= delta
    assert found <= rho + 2 * math.sqrt(rho * math.log(1 / delta))  # Bun and Steinke 2016, proposition 1.3
    orders = 1 + np.exp(np.linspace(-8, 12, 20_001))
    assert found <= min(epsilon_of_renyi(rho * order, order, delta) for order in orders) + 1e-9


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-9])
def test_the_largest_rho_and_divergence_keep_the_budget_and_are_the_largest(epsilon: float, delta: float) -> None:
    budget = Budget(epsilon=epsilon, delta=delta, unit="user")
    rho = rho_within(budget)
    assert epsilon_of_zcdp(rho, delta) <= epsilon < epsilon_of_zcdp(rho * (1 + 1e-8), delta)
    order = 1 + 2 * math.log(1 / delta) / epsilon
    largest = divergence_within(budget, order)
    assert epsilon_of_renyi(largest, order, delta) <= epsilon < epsilon_of_renyi(largest + 1e-10 * order, order, delta)


@pytest.mark.parametrize("noise", [1e-3, 1e-6, 1e-30])
def test_hardly_any_noise_takes_no_time_and_no_memory(noise: float) -> None:
    """A fixed bug: the integral took as many points as the noise is small, and all memory."""
    sampled = dp_sgd(sampling_rate=0.01, noise_multiplier=noise, steps=1)
    # One term of the sum over a whole order is a bound from below, and no sampling one from above.
    below = (2 * math.log(0.01) + 1 / noise**2) / (2 - 1)
    found = divergence(sampled, order=2.5, neighbors=ADD)
    assert below <= found <= 2.5 / (2 * noise**2) * (1 + 1e-9)


def test_an_order_too_small_for_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="choose a larger order"):
        divergence_within(Budget(epsilon=0.1, delta=1e-6, unit="user"), 2.0)


@pytest.mark.parametrize("order", [1.0, 0.5, math.inf, math.nan, True])
def test_an_order_that_is_none_is_refused(order: float) -> None:
    with pytest.raises(ValueError, match="order must be"):
        divergence(SGD, order=order, neighbors=ADD)


@pytest.mark.parametrize("rho", [-1.0, math.nan, math.inf])
def test_an_amount_that_is_none_is_refused(rho: float) -> None:
    with pytest.raises(ValueError, match="rho must be"):
        epsilon_of_zcdp(rho, 1e-6)
    if rho != math.inf:
        with pytest.raises(ValueError, match="divergence must be"):
            epsilon_of_renyi(rho, 2.0, 1e-6)


def test_nothing_spent_is_epsilon_0() -> None:
    assert epsilon_of_zcdp(0.0, 1e-6) == 0.0
    assert epsilon_of_renyi(0.0, 1e4, 0.5) == 0.0


def test_the_sensitivity_is_doubled_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: without that place, the figure under replace is the one under add/remove."""
    monkeypatch.setattr(renyi, "replaced", lambda leaf, neighbors: leaf)
    renyi._divergence.cache_clear()
    try:
        assert divergence(gaussian(noise_multiplier=2.0), order=3.0, neighbors="replace") == pytest.approx(0.375)
    finally:
        renyi._divergence.cache_clear()
