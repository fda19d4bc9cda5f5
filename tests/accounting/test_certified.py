"""Two-sided bounds against exact epsilons, published brackets and Opacus; and faults planted in them."""

import dataclasses
import math

import numpy as np
import pytest
from dp_accounting import dp_event
from opacus.accountants import PRVAccountant
from scipy.optimize import brentq
from scipy.stats import binom, norm

from accounting import certified
from accounting.certified import bounds
from accounting.mechanisms import approximate_dp, gaussian, laplace, parts, randomized_response, user_dp_sgd, zcdp

Parts = list[tuple[dp_event.DpEvent, int]]


def sampled(q: float, noise: float) -> dp_event.DpEvent:
    return dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(noise))


def ends(composition: Parts, delta: float = 1e-6, neighbors: str = "add-remove") -> tuple[float, float]:
    found = bounds(composition, delta=delta, neighbors=neighbors)  # type: ignore[arg-type]
    assert found is not None
    assert found[0] <= found[1]
    return found


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Balle and Wang 2018, theorem 8."""

    def excess(epsilon: float) -> float:
        far = norm.logcdf(-mu / 2 - epsilon / mu) + epsilon
        return float(math.log(norm.cdf(mu / 2 - epsilon / mu) - math.exp(far)) - math.log(delta))

    return float(brentq(excess, 1e-9, mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta)), xtol=1e-12))


@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-12])
@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (10.0, 50), (100.0, 10_000)])
def test_the_fourier_transform_brackets_composed_gaussians(noise: float, steps: int, delta: float) -> None:
    # A sampling rate of 1 takes the general way; the answer is a Gaussian with less noise.
    lower, upper = ends([(sampled(1.0, noise), steps)], delta)
    exact = gaussian_epsilon(math.sqrt(steps) / noise, delta)
    assert lower <= exact <= upper
    assert upper - lower <= 0.013 * max(1.0, exact / 10)


def test_gaussians_alone_are_exact() -> None:
    lower, upper = ends([(gaussian(noise_multiplier=10.0), 50), (gaussian(noise_multiplier=3.0), 2)])
    exact = gaussian_epsilon(math.sqrt(50 / 100 + 2 / 9), 1e-6)
    assert lower <= exact <= upper
    assert upper - lower < 1e-7
    assert ends([(gaussian(noise_multiplier=1.0), 1)], neighbors="replace")[0] == pytest.approx(
        gaussian_epsilon(2, 1e-6)
    )


def test_the_golden_runs() -> None:
    # prv-accountant 0.2.0 at eps_error 0.01: [6.897, 6.918] and [4.618, 4.639].
    lower, upper = ends([(sampled(0.01, 1.0), 10_000)])
    assert 6.897 <= lower <= 6.9075 <= upper <= 6.918
    phases = [(sampled(0.001 * i, 0.8 + 0.05 * (i - 1)), 500) for i in range(1, 21, 5)]
    oracle = PRVAccountant()
    oracle.history = [(leaf.event.noise_multiplier, leaf.sampling_probability, n) for leaf, n in phases]
    lower, upper = ends(phases)
    assert lower <= oracle.get_epsilon(1e-6, eps_error=0.01) <= upper + 0.02


@pytest.mark.slow
def test_the_golden_run_of_a_million_steps_and_that_of_twenty_phases() -> None:
    lower, upper = ends([(sampled(1e-4, 0.6), 1_000_000)])
    assert 1.911 <= lower <= 1.9207 <= upper <= 1.931  # prv-accountant 0.2.0
    lower, upper = ends([(sampled(0.001 * i, 0.8 + 0.05 * (i - 1)), 500) for i in range(1, 21)])
    assert 4.618 <= lower <= 4.6285 <= upper <= 4.639


@pytest.mark.parametrize(("steps", "delta"), [(5, 1e-3), (100, 1e-6)])
def test_randomized_response_is_a_binomial(steps: int, delta: float) -> None:
    """k answers out of n true: a loss of (2k - n) log 3, with k ~ Binomial(n, 3/4)."""

    def excess(epsilon: float) -> float:
        k = np.arange(steps + 1)
        gain = np.maximum(0, -np.expm1(np.minimum(epsilon - (2 * k - steps) * math.log(3), 0.0)))
        return float(binom.pmf(k, steps, 0.75) @ gain - delta)

    exact = brentq(excess, 0.0, steps * math.log(3) - 1e-9)
    lower, upper = ends([(randomized_response(randomize_probability=0.5, categories=2), steps)], delta, "replace")
    assert lower <= exact <= upper
    assert upper - lower <= 0.002 * exact + 0.012


def test_one_randomized_response_is_exact() -> None:
    found = ends([(randomized_response(randomize_probability=0.5, categories=4), 1)], 1e-3, "replace-label")
    assert found == pytest.approx((math.log(0.624 / 0.125),) * 2)


def test_one_laplace_is_bracketed() -> None:
    lower, upper = ends([(laplace(noise_multiplier=2.0), 1)], 1e-3)
    exact = 0.5 + 2 * math.log1p(-1e-3)  # delta = 1 - exp((epsilon - 1/b) / 2)
    assert lower <= exact <= upper <= lower + 0.005


@pytest.mark.parametrize("delta", [1e-2, 1e-6, 1e-12, 1e-18])
def test_the_ends_stay_close_at_every_delta(delta: float) -> None:
    lower, upper = ends([(sampled(0.02, 1.0), 500)], delta)
    assert 0 < upper - lower <= 0.02


@pytest.mark.parametrize("wanted_error", [0.02, 0.1])
def test_quicker_ends_are_wider_and_hold_the_tight_ones(wanted_error: float) -> None:
    steps = [(sampled(0.01, 1.0), 2000)]
    low, high = ends(steps)
    found = certified.bounds(steps, delta=1e-6, neighbors="add-remove", wanted_error=wanted_error)
    assert found is not None
    assert found[0] < low < high < found[1]
    assert found[1] - found[0] == pytest.approx(2 * wanted_error, rel=0.3)


def test_mixed_mechanisms_lie_above_each_and_below_their_sum() -> None:
    mixed: Parts = [
        (sampled(0.01, 1.0), 200),
        (laplace(noise_multiplier=4.0), 2),
        (randomized_response(randomize_probability=0.5, categories=2), 1),
    ]
    lower, upper = ends(mixed, neighbors="replace")
    alone = [ends([part], 1e-6, "replace") for part in mixed]
    assert max(low for low, _ in alone) < lower <= upper < sum(high for _, high in alone)


def test_users_of_many_records_are_bracketed() -> None:
    for records, expected in ((2, 15.8325), (5, 52.8898), (20, 446.096)):  # the pessimistic PLD at grid 1e-4
        steps = parts(user_dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=10_000, records=records))
        lower, upper = ends(steps)
        assert lower <= expected <= upper + 1e-3
        assert upper - lower <= 0.001 * expected


def test_hardly_any_loss_is_bracketed() -> None:
    lower, upper = ends([(sampled(1e-6, 5.0), 1)], 1e-12)
    assert 0 < lower < upper < 1e-5
    assert upper - lower < 0.03 * upper


@pytest.mark.parametrize("leaf", [approximate_dp(epsilon=1.0, delta=0.0), zcdp(rho=0.1)], ids=str)
def test_no_lower_end_is_claimed_where_none_is_known(leaf: dp_event.DpEvent) -> None:
    assert bounds([(gaussian(noise_multiplier=1.0), 1), (leaf, 1)], delta=1e-6, neighbors="add-remove") is None


def misses(
    monkeypatch: pytest.MonkeyPatch, name: str, fault: object, noise: float = 100.0, steps: int = 10_000
) -> bool:
    """Returns whether the bracket of composed Gaussians misses the truth once ``fault`` is planted."""
    monkeypatch.setattr(certified, name, fault)
    lower, upper = ends([(sampled(1.0, noise), steps)])
    return not lower <= gaussian_epsilon(math.sqrt(steps) / noise, 1e-6) <= upper


def test_the_shift_that_keeps_the_mean_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = certified._round
    half_up = lambda pair, plan: dataclasses.replace(right(pair, plan), shift=plan.mesh / 2)  # noqa: E731
    assert misses(monkeypatch, "_round", half_up)


def test_the_error_of_the_rounding_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = certified._plan
    coarse = lambda *asked: dataclasses.replace(right(*asked), mesh=0.7, error=0.0)  # noqa: E731
    assert misses(monkeypatch, "_plan", coarse, noise=1.0, steps=1)


def test_the_bound_on_what_wraps_around_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = certified._plan

    def narrow(terms: certified.Terms, delta: float, wanted_error: float) -> certified._Plan:
        plan = right(terms, delta, wanted_error)
        exact = gaussian_epsilon(1.0, 1e-6)
        return dataclasses.replace(plan, low=exact - 0.1, high=exact + 0.5)

    monkeypatch.setattr(certified, "_plan", narrow)
    honest = ends([(sampled(1.0, 100.0), 10_000)])
    assert honest == (0.0, math.inf)  # nothing is known of a range this narrow, and nothing is claimed
    assert misses(monkeypatch, "_outside", lambda *_: 0.0)


def test_both_directions_count() -> None:
    leaf = sampled(0.3, 0.7)
    both = certified.pairs(leaf, "add-remove")
    alone = [certified._ends([(pair, 1)], 1e-3, certified.WANTED_ERROR) for pair in both]
    assert alone[0][0] > alone[1][1] + 0.1  # removing a unit is worse than adding one
    assert ends([(leaf, 1)], 1e-3) == alone[0]
