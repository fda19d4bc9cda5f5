"""The traps of dp-accounting 0.6.0, each with the figure it gets wrong, and every event by two ways of accounting.

The library's own figure stands beside ours where it falls into the trap: the test shows that the trap is there.
"""

import math

import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.stats import binom

from accounting import accountant, methods, renyi
from accounting.accountant import delta, epsilon
from accounting.budget import Neighbors
from accounting.losses import privacy_loss
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
    parts,
    private_selection,
    randomized_response,
    repeated,
    truncated_dp_sgd,
    user_dp_sgd,
    zcdp,
)

ANSWER = randomized_response(randomize_probability=0.5, categories=2)
ADD, REPLACE, LABEL = "add-remove", "replace", "replace-label"

EVERY: dict[str, tuple[dp_event.DpEvent, Neighbors]] = {
    "dp-sgd": (dp_sgd(sampling_rate=0.05, noise_multiplier=1.0, steps=1), ADD),
    "dp-sgd, replace": (dp_sgd(sampling_rate=0.05, noise_multiplier=1.0, steps=1), REPLACE),
    "joint": (joint_dp_sgd(sampling_rate=0.05, noise_multipliers=[1.1, 4.0], steps=1), ADD),
    "truncated": (
        truncated_dp_sgd(sampling_rate=0.05, noise_multiplier=1.0, steps=1, population=1000, largest_batch=80),
        ADD,
    ),
    "truncated, replace": (
        truncated_dp_sgd(sampling_rate=0.05, noise_multiplier=1.0, steps=1, population=1000, largest_batch=80),
        REPLACE,
    ),
    "user": (user_dp_sgd(sampling_rate=0.05, noise_multiplier=2.0, steps=1, records=4), ADD),
    "gaussian": (gaussian(noise_multiplier=5.0), ADD),
    "gaussian, replace": (gaussian(noise_multiplier=5.0), REPLACE),
    "laplace": (laplace(noise_multiplier=4.0), ADD),
    "laplace, replace": (laplace(noise_multiplier=4.0), REPLACE),
    "discrete laplace": (discrete_laplace(scale=4.0, sensitivity=1), ADD),
    "discrete laplace, replace": (discrete_laplace(scale=4.0, sensitivity=1), REPLACE),
    "discrete gaussian": (discrete_gaussian(noise_std=5.0, sensitivity=1), ADD),
    "discrete gaussian, replace": (discrete_gaussian(noise_std=5.0, sensitivity=1), REPLACE),
    "randomized response": (ANSWER, LABEL),
    "randomized response of 5": (randomized_response(randomize_probability=0.7, categories=5), REPLACE),
    "pure": (approximate_dp(epsilon=0.2, delta=0), ADD),
    "approximate": (approximate_dp(epsilon=0.2, delta=1e-9), ADD),
    "approximate, replace": (approximate_dp(epsilon=0.2, delta=1e-9), REPLACE),
    "zcdp": (zcdp(rho=0.01), ADD),
    "zcdp, replace": (zcdp(rho=0.01), REPLACE),
    "selection": (
        private_selection(dp_sgd(sampling_rate=0.05, noise_multiplier=2.0, steps=10), mean_trials=3, shape=1),
        ADD,
    ),
}


def forget() -> None:
    """Clear every figure that was computed with the functions as they were."""
    for cached in (accountant._figure, methods._loss, methods._composition, renyi._divergence, renyi._curve):
        cached.cache_clear()


def test_randomized_response_counts_every_answer() -> None:
    """The trap: the PLD accountant ignores the count and gives 1.099 for a hundred answers."""
    library = PLDAccountant(NeighboringRelation.REPLACE_ONE)
    library.compose(repeated(ANSWER, 100))
    assert library.get_epsilon(1e-6) == pytest.approx(math.log(3), abs=1e-3)

    def exact(eps: float) -> float:
        """The true answers of n are binomial: delta = sum_j [P(j) - e^eps Q(j)]+ with P, Q swapped."""
        p = binom.pmf(range(101), 100, 0.75)
        return sum(max(0.0, float(a - math.exp(eps) * b)) for a, b in zip(p, p[::-1], strict=True))

    for neighbors in (LABEL, REPLACE):
        found = epsilon(repeated(ANSWER, 100), delta=1e-6, neighbors=neighbors).upper
        assert found == pytest.approx(94.3, abs=0.05)
        assert exact(found) <= 1e-6 < exact(found - 0.02)


def test_both_accountants_double_the_sensitivity_of_a_replaced_unit() -> None:
    """The trap: the library's PLD accountant doubles it (294.2) and its RDP accountant does not (100.7)."""
    event = repeated(gaussian(noise_multiplier=1.0), 100)
    library = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    library.compose(event)
    assert library.get_epsilon(1e-6) == pytest.approx(100.7, abs=0.1)
    assert epsilon(event, delta=1e-6, neighbors=REPLACE).upper == pytest.approx(294.2, abs=0.05)
    assert renyi.least_epsilon(event, delta=1e-6, neighbors=REPLACE) >= 294.17
    assert epsilon(event, delta=1e-6).upper == pytest.approx(94.3 + 1.8, abs=2.0)


def test_without_the_doubling_the_figure_would_be_that_of_add_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: the one place that doubles, taken away, is seen by the test above."""
    event = repeated(gaussian(noise_multiplier=1.0), 100)
    for module in (methods, renyi):
        monkeypatch.setattr(module, "replaced", lambda leaf, neighbors: leaf)
    forget()
    assert epsilon(event, delta=1e-6, neighbors=REPLACE).upper < 101
    assert renyi.least_epsilon(event, delta=1e-6, neighbors=REPLACE) < 101
    monkeypatch.undo()
    forget()
    assert epsilon(event, delta=1e-6, neighbors=REPLACE).upper > 294


@pytest.mark.parametrize("failure", [1e-12, 1e-15, 1e-18, 1e-30])
def test_a_tiny_delta_has_a_finite_epsilon(failure: float) -> None:
    """The trap: the library cuts tails of mass 1e-15 off and calls epsilon infinite below."""
    event = dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=10_000)
    library = PLDAccountant()
    library.compose(event)
    assert (library.get_epsilon(failure) == math.inf) == (failure <= 1e-15)
    found = epsilon(event, delta=failure)
    assert found.method == "PLD"
    rdp = renyi.least_epsilon(event, delta=failure, neighbors=ADD)
    assert 0.9 * rdp < found.upper < rdp
    assert delta(event, epsilon=found.upper).upper == pytest.approx(failure, rel=1e-3)


def test_a_lower_end_never_collapses() -> None:
    """The trap: the library's optimistic figure is 0 here; an uncertified lower end is unknown, not 0."""
    event = dp_sgd(sampling_rate=1e-4, noise_multiplier=0.6, steps=1_000_000)
    assert epsilon(event, delta=1e-6).lower is None
    for name in ("zcdp", "selection", "approximate"):
        each, neighbors = EVERY[name]
        assert epsilon(each, delta=1e-6, neighbors=neighbors).lower is None


def test_randomized_response_has_no_figure_under_add_remove() -> None:
    with pytest.raises(UnknownEvent, match="'replace' or 'replace-label'"):
        epsilon(ANSWER, delta=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_a_count_is_a_loop(name: str) -> None:
    """Seven times by count, seven times listed, and seven convolutions of the library's, one after the other."""
    event, neighbors = EVERY[name]
    by_count = epsilon(repeated(event, 7), delta=1e-5, neighbors=neighbors)
    assert epsilon(composed(*[event] * 7), delta=1e-5, neighbors=neighbors) == by_count
    assert by_count.upper > 1.3 * epsilon(event, delta=1e-5, neighbors=neighbors).upper
    ((leaf, count),) = parts(event)
    try:
        one = privacy_loss(leaf, neighbors=neighbors, grid=1e-3)
    except UnknownEvent:
        curve = [7 * count * renyi.divergence(leaf, order=a, neighbors=neighbors) for a in renyi.ORDERS]
        loop = min(renyi.epsilon_of_renyi(d, a, 1e-5) for a, d in zip(renyi.ORDERS, curve, strict=True))
    else:
        composition = one
        for _ in range(7 * count - 1):
            composition = composition.compose(one, tail_mass_truncation=0)
        loop = composition.get_epsilon_for_delta(1e-5)
    assert by_count.upper <= loop * (1 + 1e-9) + 1e-9
    assert by_count.upper == pytest.approx(loop, rel=0.01, abs=0.005)


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("name", EVERY)
def test_pld_is_tighter_than_rdp_and_not_by_much(name: str, count: int) -> None:
    event, neighbors = EVERY[name]
    whole = repeated(event, count)
    try:
        rdp = renyi.least_epsilon(whole, delta=1e-5, neighbors=neighbors)
    except UnknownEvent:
        assert name in {
            "dp-sgd, replace",
            "truncated",
            "truncated, replace",
            "user",
            "approximate",
            "approximate, replace",
        }
        return
    found = epsilon(whole, delta=1e-5, neighbors=neighbors).upper
    assert found <= rdp * (1 + 1e-9)
    assert found >= rdp / 2.5
