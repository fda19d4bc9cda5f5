"""Balls in bins: moments against their definition, and epsilon against the exact curve where it can be integrated."""

import itertools
import math

import numpy as np
import pytest

from accounting import allocation, calibrate, mechanisms
from accounting.accountant import epsilon, without_amplification
from accounting.budget import Budget
from accounting.mechanisms import UnknownEvent, balls_in_bins_dp_sgd, dp_sgd, gaussian, repeated


def exact_moment(noise: float, bins: int, order: int) -> float:
    """E[Z^a] by its definition: the mean over all T^a choices of bins of E[prod over bins of L^(times chosen)]."""
    total = 0.0
    for chosen in itertools.product(range(bins), repeat=order):
        times = np.bincount(chosen, minlength=bins)
        total += math.exp(float((times * times - times).sum()) / (2 * noise**2))
    return total / bins**order


@pytest.mark.parametrize(("noise", "bins", "order"), [(1.0, 1, 6), (1.0, 2, 5), (0.7, 3, 4), (2.0, 5, 3), (1.3, 40, 2)])
def test_moments_of_the_removed_unit_are_those_of_the_definition(noise: float, bins: int, order: int) -> None:
    found = allocation._positive(noise, bins)[order - 1]
    assert found == pytest.approx(math.log(exact_moment(noise, bins, order)), rel=1e-10)


def in_two_bins(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """(Z, its probability under Q) on a grid of two independent normals: sums over it are integrals to 1e-12."""
    x = np.arange(-14.0, 14.0, 0.02)
    ratio = np.exp(x / noise - 1 / (2 * noise**2))
    weights = np.exp(-(x**2) / 2) * 0.02 / math.sqrt(2 * math.pi)
    return (ratio[:, None] + ratio) / 2, weights[:, None] * weights


@pytest.mark.parametrize("noise", [0.8, 1.0, 2.5])
def test_moments_of_the_added_unit_are_those_of_the_definition(noise: float) -> None:
    z, weights = in_two_bins(noise)
    for order in (2, 3, 5):
        expected = math.log(float((weights * z ** (1 - order)).sum()))
        assert allocation._moments(noise, 2)[1][order - 1] == pytest.approx(expected, rel=1e-9)
    one = allocation._moments(noise, 1)[1]  # log E[L^-s] = s (s + 1) / (2 s^2)
    orders = np.arange(1, allocation.MOST_ORDER + 1)
    assert one == pytest.approx(orders * (orders - 1) / (2 * noise**2), rel=1e-11)


def test_moments_of_many_bins_agree_with_draws() -> None:
    # 200,000 draws: a mean within 6 standard errors, exceeded by chance with probability below 1e-8
    rng, noise, bins = np.random.default_rng(0), 1.0, 50
    z = np.concatenate([np.exp(rng.normal(-1 / (2 * noise**2), 1 / noise, (20_000, bins))).mean(1) for _ in range(10)])
    positive, negative = allocation._moments(noise, bins)
    for order in (2, 3):
        for values, found in ((z**order, positive[order - 1]), (z ** (1.0 - order), negative[order - 1])):
            assert abs(values.mean() - math.exp(found)) < 6 * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("order", [1.2, 1.5, 2.7, 9.5])
def test_between_whole_orders_the_bound_holds(order: float) -> None:
    z, weights = in_two_bins(1.0)
    true = max(math.log(float((weights * z**power).sum())) for power in (order, 1 - order))
    found = allocation.log_moment(1.0, 2, order)
    assert true <= found <= order * (order - 1) / 2 * (1 + 1e-9)


def true_delta(noise: float, eps: float) -> float:
    """The exact delta of one epoch of two bins, the larger of both directions, integrated."""
    z, weights = in_two_bins(noise)
    removed = float((weights * np.maximum(z - math.exp(eps), 0)).sum())
    added = float((weights * np.maximum(1 - math.exp(eps) * z, 0)).sum())
    return max(removed, added)


@pytest.mark.parametrize("noise", [0.8, 1.0, 2.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_the_epsilon_of_an_epoch_is_never_below_the_exact_one(noise: float, delta: float) -> None:
    found = epsilon(balls_in_bins_dp_sgd(noise_multiplier=noise, bins=2, epochs=1), delta=delta)
    assert found.method == "RDP"
    assert true_delta(noise, found.upper) <= delta
    assert true_delta(noise, 0.75 * found.upper) > delta  # and not far above it


def test_moments_without_the_largest_term_would_promise_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    # The fault: as if a unit were in a random bin anew at every release, so that no bin had its whole vector.
    monkeypatch.setattr(allocation, "log_moment", lambda noise, bins, order: order * (order - 1) / (2 * noise**2 * 8))
    found = epsilon(balls_in_bins_dp_sgd(noise_multiplier=0.83, bins=2, epochs=1), delta=1e-6)
    assert true_delta(0.83, found.upper) > 1e-6


def test_it_is_amplified_and_never_more_than_every_unit_in_every_batch() -> None:
    event = balls_in_bins_dp_sgd(noise_multiplier=1.0, bins=1000, epochs=10)
    found = epsilon(event, delta=1e-6).upper
    poisson = epsilon(dp_sgd(sampling_rate=1e-3, noise_multiplier=1.0, steps=10_000), delta=1e-6).upper
    alone = without_amplification(event, delta=1e-6).upper
    assert poisson < found < 2 * poisson
    assert found < alone / 10
    assert alone == epsilon(repeated(gaussian(noise_multiplier=1.0), 10), delta=1e-6).upper
    huge = allocation.log_moment(0.5, 10, 1000.0)
    assert huge == 1000 * 999 / (2 * 0.5**2)


def test_more_noise_more_bins_and_fewer_epochs_cost_less() -> None:
    def cost(noise: float, bins: int, epochs: int) -> float:
        made = balls_in_bins_dp_sgd(noise_multiplier=noise, bins=bins, epochs=epochs)
        return epsilon(made, delta=1e-6).upper

    for one, two in itertools.pairwise([(0.8, 100, 4), (1.0, 100, 4), (1.0, 400, 4), (1.0, 400, 2), (1.5, 400, 2)]):
        assert cost(*two) < cost(*one)


def test_one_bin_is_the_gaussian_mechanism() -> None:
    assert balls_in_bins_dp_sgd(noise_multiplier=2.0, bins=1, epochs=3) == repeated(gaussian(noise_multiplier=2.0), 3)


def test_noise_is_found_for_a_budget() -> None:
    budget = Budget(epsilon=1.0, delta=1e-6, unit="user")

    def event(noise: float) -> object:
        return balls_in_bins_dp_sgd(noise_multiplier=noise, bins=2000, epochs=10)

    noise = calibrate.noise_multiplier(event, budget)  # type: ignore[arg-type]
    assert 0.995 < epsilon(event(noise), delta=1e-6).upper <= 1.0  # type: ignore[arg-type]


def test_what_is_not_proved_is_refused() -> None:
    event = balls_in_bins_dp_sgd(noise_multiplier=1.0, bins=10, epochs=2)
    with pytest.raises(UnknownEvent, match="nothing accounts for balls-in-bins-gaussian under neighbors 'replace'"):
        epsilon(event, delta=1e-6, neighbors="replace")
    with pytest.raises(UnknownEvent, match="state it for the owner"):
        mechanisms.user_level(event, 2)
