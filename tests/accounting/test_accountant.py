"""The accountant against closed forms, published figures and another library."""

import doctest
import math
import re
import time

import pytest
from dp_accounting import dp_event
from opacus.accountants import PRVAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from accounting import accountant, methods
from accounting.accountant import COARSE_GRID, GRID, LEAST_NOISE, delta, epsilon, over_steps, profile
from accounting.budget import Neighbors
from accounting.composition import TooFine
from accounting.mechanisms import (
    UnknownEvent,
    approximate_dp,
    composed,
    dp_sgd,
    gaussian,
    joint_dp_sgd,
    laplace,
    non_private,
    randomized_response,
    repeated,
    truncated_dp_sgd,
    user_dp_sgd,
    zcdp,
)
from accounting.renyi import least_epsilon

PHASES = [dp_sgd(sampling_rate=0.001 * i, noise_multiplier=0.8 + 0.05 * (i - 1), steps=500) for i in range(1, 21)]


def gaussian_epsilon(noise: float, delta: float) -> float:
    """Balle and Wang 2018, theorem 8: the exact epsilon of the Gaussian mechanism with sensitivity 1."""

    def excess(eps: float) -> float:
        far = norm.logcdf(-1 / (2 * noise) - eps * noise) + eps
        return float(norm.cdf(1 / (2 * noise) - eps * noise) - math.exp(far) - delta)

    return float(brentq(excess, 0.0, 1e4, xtol=1e-12))


def upper(*, q: float, noise: float, steps: int, delta: float, grid: float | None = None) -> float:
    return epsilon(dp_sgd(sampling_rate=q, noise_multiplier=noise, steps=steps), delta=delta, grid=grid).upper


@pytest.fixture
def _fresh() -> None:
    accountant._figure.cache_clear()
    methods._loss.cache_clear()
    methods._composition.cache_clear()


def test_doctests_run() -> None:
    assert doctest.testmod(accountant).failed == 0


def test_golden_figure_of_dp_sgd() -> None:
    # The optimistic and the pessimistic end of dp-accounting's and Opacus's accountants enclose 6.906.
    assert 6.906 <= upper(q=0.01, noise=1.0, steps=10_000, delta=1e-6) <= 6.915


@pytest.mark.usefixtures("_fresh")
def test_golden_figure_of_a_million_steps_in_time() -> None:
    started = time.monotonic()
    # The PRV accountant of Gopi et al. gives [1.911, 1.931]; dp-accounting on a grid of 1e-5, 1.9208.
    assert 1.9207 <= upper(q=1e-4, noise=0.6, steps=1_000_000, delta=1e-6) <= 1.930
    assert time.monotonic() - started < 3.0


@pytest.mark.usefixtures("_fresh")
def test_golden_figure_of_twenty_phases_in_time() -> None:
    started = time.monotonic()
    # The PRV accountant of Gopi et al. gives [4.618, 4.639]; dp-accounting on a grid of 1e-5, 4.6285.
    assert 4.628 <= epsilon(composed(*PHASES), delta=1e-6).upper <= 4.640
    assert time.monotonic() - started < 5.0


@pytest.mark.usefixtures("_fresh")
def test_fifty_distinct_runs_are_composed_in_time() -> None:
    runs = [dp_sgd(sampling_rate=0.0005 * i, noise_multiplier=0.8 + 0.05 * i, steps=500) for i in range(1, 51)]
    started = time.monotonic()
    found = epsilon(composed(*runs), delta=1e-6).upper
    assert time.monotonic() - started < 20.0
    assert max(epsilon(run, delta=1e-6).upper for run in runs) < found
    assert found < least_epsilon(composed(*runs), delta=1e-6, neighbors="add-remove")


@pytest.mark.parametrize("noise", [0.11, 0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("failure", [1e-3, 1e-6, 1e-10])
def test_the_gaussian_mechanism_has_a_closed_form(noise: float, failure: float) -> None:
    exact = gaussian_epsilon(noise, failure)
    found = epsilon(gaussian(noise_multiplier=noise), delta=failure)
    assert found.method == "closed form"
    assert found.lower is not None
    assert found.lower <= exact * (1 + 1e-10)
    assert exact * (1 - 1e-10) <= found.upper <= exact * (1 + 1e-8) + 1e-11


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 4), (8.0, 50), (30.0, 1000)])
def test_composed_gaussians_are_one_gaussian_with_less_noise(noise: float, steps: int) -> None:
    exact = gaussian_epsilon(noise / math.sqrt(steps), 1e-6)
    assert upper(q=1.0, noise=noise, steps=steps, delta=1e-6) == pytest.approx(exact, rel=1e-7)
    event = joint_dp_sgd(sampling_rate=1.0, noise_multipliers=[noise, noise], steps=steps)
    half = gaussian_epsilon(noise / math.sqrt(2 * steps), 1e-6)
    assert epsilon(event, delta=1e-6).upper == pytest.approx(half, rel=1e-7)


def test_the_gaussian_delta_is_the_inverse_of_its_epsilon() -> None:
    for noise in (0.2, 1.0, 30.0, 1e5):
        event = gaussian(noise_multiplier=noise)
        for failure in (1e-2 / noise, 1e-9 / noise, 1e-40):
            eps = epsilon(event, delta=failure).upper
            assert delta(event, epsilon=eps).upper == pytest.approx(failure, rel=1e-6)


def test_the_pld_of_a_gaussian_agrees_with_its_closed_form() -> None:
    for noise in (0.3, 1.0, 20.0):
        leaves = ((gaussian(noise_multiplier=noise), 1),)
        pld = methods._pld(leaves, methods.Question("epsilon", 1e-6, "add-remove"))
        exact = gaussian_epsilon(noise, 1e-6)
        assert exact <= pld.value <= exact + 2e-4


@pytest.mark.parametrize(
    ("q", "noise", "steps", "failure"), [(0.01, 1.0, 1000, 1e-6), (0.1, 2.0, 200, 1e-5), (0.002, 0.8, 5000, 1e-7)]
)
def test_opacus_prv_accountant_agrees(q: float, noise: float, steps: int, failure: float) -> None:
    oracle = PRVAccountant()
    oracle.history = [(noise, q, steps)]
    middle = oracle.get_epsilon(failure, eps_error=0.01)
    assert upper(q=q, noise=noise, steps=steps, delta=failure) == pytest.approx(middle, abs=0.02)


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


@pytest.mark.parametrize(("q", "noise", "steps"), [(1e-4, 5.0, 100_001), (1e-3, 50.0, 1000), (1e-5, 2.0, 10**6)])
def test_a_small_loss_gets_a_grid_fine_enough_for_it(q: float, noise: float, steps: int) -> None:
    event = dp_sgd(sampling_rate=q, noise_multiplier=noise, steps=steps)
    bounds = epsilon(event, delta=1e-6)
    assert bounds.grid is not None
    assert bounds.grid < GRID
    finest = epsilon(event, delta=1e-6, grid=bounds.grid / 4).upper
    assert finest <= bounds.upper <= finest * 1.02


def test_bounds_say_how_they_were_found() -> None:
    bounds = epsilon(dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=100), delta=1e-5)
    assert (bounds.method, bounds.delta, bounds.epsilon, bounds.grid, bounds.lower) == ("PLD", 1e-5, None, GRID, None)
    assert bounds.neighbors == "add-remove"
    assert re.fullmatch(r"privads \S+ on dp-accounting \S+", bounds.library)
    turned = delta(dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=100), epsilon=1.0)
    assert (turned.delta, turned.epsilon) == (None, 1.0)


def test_an_event_without_privacy_costs_infinity() -> None:
    for event in (non_private(), repeated(non_private(), 3), composed(PHASES[0], non_private())):
        assert epsilon(event, delta=1e-6).upper == math.inf
        assert delta(event, epsilon=3.0).upper == 1.0


@pytest.mark.parametrize("noise", [LEAST_NOISE / 1.01, 0.01, 1e-6])
def test_next_to_no_noise_costs_infinity_at_once(noise: float) -> None:
    """A fixed bug: noise of 0.01 took hours, and 0.001 asked for 76 GiB."""
    started = time.monotonic()
    assert upper(q=0.01, noise=noise, steps=1000, delta=1e-6) == math.inf
    assert time.monotonic() - started < 1.0


def test_little_noise_is_accounted_in_time() -> None:
    started = time.monotonic()
    found = upper(q=0.01, noise=LEAST_NOISE, steps=1000, delta=1e-6)
    # A unit is in at least one batch with near certainty, and one batch alone loses about 1 / (2 noise^2).
    assert 50 < found < math.inf
    assert time.monotonic() - started < 5.0


@pytest.mark.usefixtures("_fresh")
def test_losses_that_do_not_fit_into_memory_are_left_to_rdp(monkeypatch: pytest.MonkeyPatch) -> None:
    event = dp_sgd(sampling_rate=0.011, noise_multiplier=1.0, steps=17)
    for error in (MemoryError, TooFine):

        def full(*_: object, **__: object) -> None:
            raise error  # noqa: B023 - called before the next round

        monkeypatch.setattr(methods, "Composition", full)
        accountant._figure.cache_clear()
        bounds = epsilon(event, delta=1e-6)
        assert bounds.method == "RDP"
        assert bounds.upper == least_epsilon(event, delta=1e-6, neighbors="add-remove")
    accountant._figure.cache_clear()


@pytest.mark.parametrize(
    ("event", "neighbors"),
    [
        (dp_event.NoOpDpEvent(), "add-remove"),
        (
            dp_event.PoissonSampledDpEvent(0.1, dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(1.0), 3)),
            "add-remove",
        ),
        (dp_event.PoissonSampledDpEvent(0.1, dp_event.NonPrivateDpEvent()), "add-remove"),
        (dp_event.PoissonSampledDpEvent(0.0, dp_event.GaussianDpEvent(1.0)), "add-remove"),
        (dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(1.0), 0), "add-remove"),
        (randomized_response(randomize_probability=0.5, categories=2), "add-remove"),
        (user_dp_sgd(sampling_rate=0.1, noise_multiplier=1.0, steps=3, records=2), "replace"),
    ],
    ids=str,
)
def test_what_cannot_be_accounted_is_refused(event: dp_event.DpEvent, neighbors: Neighbors) -> None:
    with pytest.raises(UnknownEvent):
        epsilon(event, delta=1e-6, neighbors=neighbors)
    with pytest.raises(UnknownEvent):
        delta(composed(gaussian(noise_multiplier=1.0), event), epsilon=1.0, neighbors=neighbors)


@pytest.mark.parametrize("failure", [0.0, 1.0, -1e-6, math.nan])
def test_a_delta_outside_0_and_1_is_refused(failure: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon(dp_event.GaussianDpEvent(1.0), delta=failure)


def test_other_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="epsilon must be"):
        delta(PHASES[0], epsilon=0.0)
    with pytest.raises(ValueError, match="neighbors must be"):
        epsilon(PHASES[0], delta=1e-6, neighbors="replace-one")  # type: ignore[arg-type]
    for grid in (0.0, -1.0, math.nan, 2.0):
        with pytest.raises(ValueError, match="grid must be"):
            epsilon(PHASES[0], delta=1e-6, grid=grid)


def test_without_amplification_every_unit_is_in_every_batch() -> None:
    sampled = dp_sgd(sampling_rate=0.01, noise_multiplier=10.0, steps=100)
    found = accountant.without_amplification(sampled, delta=1e-6).upper
    assert found == pytest.approx(gaussian_epsilon(1.0, 1e-6), rel=1e-6)
    assert found > epsilon(sampled, delta=1e-6).upper
    truncated = truncated_dp_sgd(
        sampling_rate=0.01, noise_multiplier=10.0, steps=100, population=1000, largest_batch=100
    )
    assert accountant.without_amplification(truncated, delta=1e-6).upper == pytest.approx(
        gaussian_epsilon(0.5, 1e-6), rel=1e-6
    )


def test_a_guarantee_known_by_itself_is_given_back_as_it_is() -> None:
    event = approximate_dp(epsilon=1.0, delta=1e-6)
    assert epsilon(event, delta=1e-6).upper == 1.0
    assert delta(event, epsilon=1.0).upper == 1e-6
    assert epsilon(approximate_dp(epsilon=0.3, delta=0.0), delta=1e-9).upper <= 0.3
    assert epsilon(laplace(noise_multiplier=2.0), delta=1e-300).upper <= 0.5
    # Replacing a unit is a group of two: (2 epsilon, (1 + e^epsilon) delta).
    assert delta(event, epsilon=2.0, neighbors="replace").upper == pytest.approx((1 + math.e) * 1e-6)


def test_many_small_guarantees_cost_less_than_their_sum() -> None:
    event = repeated(approximate_dp(epsilon=0.01, delta=1e-12), 1000)
    found = epsilon(event, delta=1e-6)
    assert found.method == "PLD"
    # Dwork, Rothblum, Vadhan 2010, theorem III.3 (advanced composition).
    slack = 1e-6 - 1000 * 1e-12
    advanced = 0.01 * math.sqrt(2 * 1000 * math.log(1 / slack)) + 1000 * 0.01 * (math.exp(0.01) - 1)
    assert found.upper < advanced < 10.0


def test_a_mix_that_neither_covers_is_joined_by_name() -> None:
    event = composed(zcdp(rho=0.02), approximate_dp(epsilon=0.1, delta=1e-9))
    for figure, given in ((epsilon, {"delta": 1e-6}), (delta, {"epsilon": 2.0})):
        bounds = figure(event, **given)  # type: ignore[operator]
        assert "RDP, joined by basic composition with" in bounds.method
        assert bounds.lower is None
    found = epsilon(event, delta=1e-6).upper
    rdp = least_epsilon(zcdp(rho=0.02), delta=1e-6 - 1e-9, neighbors="add-remove")
    assert rdp + 0.1 <= found <= 1.05 * (rdp + 0.1)


def test_what_rdp_covers_whole_is_never_worse_than_a_join() -> None:
    event = composed(zcdp(rho=0.1), dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=1000))
    found = epsilon(event, delta=1e-6)
    assert found.upper <= least_epsilon(event, delta=1e-6, neighbors="add-remove")
    assert found.upper >= epsilon(composed(event.events[1]), delta=1e-6).upper


def test_answers_that_tell_nothing_cost_nothing() -> None:
    """A fixed bug: randomized response that is all noise ended in a math domain error."""
    silent = repeated(randomized_response(randomize_probability=1.0, categories=3), 5)
    assert epsilon(silent, delta=1e-6, neighbors="replace", certify=True).upper == 0.0
    assert delta(silent, epsilon=0.1, neighbors="replace").upper == 0.0


def test_delta_and_epsilon_are_inverse() -> None:
    events: list[dp_event.DpEvent] = [PHASES[0], composed(PHASES[0], laplace(noise_multiplier=3.0)), zcdp(rho=0.1)]
    for event in events:
        found = epsilon(event, delta=1e-6).upper
        assert delta(event, epsilon=found).upper == pytest.approx(1e-6, rel=0.02)


def test_the_profile_falls_and_steps_add() -> None:
    found = [each.upper for each in profile(PHASES[3], deltas=[1e-3, 1e-6, 1e-9])]
    assert found == sorted(found)
    assert found[1] == epsilon(PHASES[3], delta=1e-6).upper

    def after(steps: int) -> dp_event.DpEvent:
        return dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=steps)

    rising = over_steps(after, [1, 10, 100], delta=1e-6)
    assert [each.upper for each in rising] == [epsilon(after(n), delta=1e-6).upper for n in (1, 10, 100)]
    assert rising[0].upper < rising[1].upper < rising[2].upper


def test_a_certified_interval_encloses_another_accountant() -> None:
    event = dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=1000)
    oracle = PRVAccountant()
    oracle.history = [(1.0, 0.01, 1000)]
    bounds = epsilon(event, delta=1e-6, certify=True)
    assert bounds.lower is not None
    assert bounds.lower <= oracle.get_epsilon(1e-6, eps_error=0.01)
    assert bounds.lower <= bounds.upper <= bounds.lower + 0.02
    turned = delta(event, epsilon=bounds.upper, certify=True)
    assert turned.lower is not None
    assert 0.3e-6 < turned.lower <= turned.upper <= 1.001e-6


def test_where_no_lower_end_is_certified_it_is_unknown() -> None:
    event = zcdp(rho=0.1)
    assert epsilon(event, delta=1e-6, certify=True).lower is None
    assert delta(event, epsilon=1.0, certify=True).lower is None
