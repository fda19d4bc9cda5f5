"""A plan's event is what its rounds execute, and costs what papers and dp-accounting say."""

import dataclasses
import math
from typing import Any

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation

from accounting import mechanisms
from accounting.budget import Budget
from federation.plan import FederatedPlan
from tests.federation.helpers import calibrated, twin

LARGE = Budget(epsilon=1e4, delta=1e-6, unit="user")


def thousand_rounds(**settings: Any) -> FederatedPlan:
    """q = 0.01, z = 1, 1,000 rounds: the run of the research page."""
    given = {
        "budget": LARGE,
        "population": 100_000,
        "cohort": 1000,
        "rounds": 1000,
        "clip_norm": 1.0,
        "noise_multiplier": 1.0,
        **settings,
    }
    return FederatedPlan(**given)


@pytest.mark.parametrize(("silos", "epsilon"), [(1, 2.13), (2, 4.55), (5, 13.0)])
def test_a_user_in_several_silos_costs_what_the_mixture_of_gaussians_costs(silos: int, epsilon: float) -> None:
    assert thousand_rounds(silos=silos).spent.upper == pytest.approx(epsilon, rel=0.004)


def test_over_selection_is_accounted_by_the_rate_at_which_users_are_asked() -> None:
    more = thousand_rounds(over_selection=0.3)
    assert more.sampling_rate == pytest.approx(0.013)
    assert more.cohort == 1000
    assert more.spent.upper == pytest.approx(2.80, rel=0.004)


def test_the_event_is_dp_sgd_on_users() -> None:
    found = calibrated(rounds=7)
    expected = mechanisms.dp_sgd(sampling_rate=0.1, noise_multiplier=found.noise_multiplier, steps=7)
    assert mechanisms.to_json(found.event) == mechanisms.to_json(expected)
    assert mechanisms.to_dict(found.event_after(3))["count"] == 3


def test_following_a_quantile_costs_what_the_paper_says() -> None:
    """Andrew et al. 2021, theorem 1: z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2) gives z together with the count."""
    z, sigma_b = 1.0, 50.0
    z_delta = (z**-2 - (2 * sigma_b) ** -2) ** -0.5
    found = thousand_rounds(noise_multiplier=z_delta, clip_quantile=0.5, count_noise_multiplier=2 * sigma_b)
    assert found.spent.upper == pytest.approx(thousand_rounds().spent.upper, rel=1e-3)
    assert found.spent.upper > thousand_rounds(noise_multiplier=z_delta).spent.upper


def test_lazy_noise_costs_what_dense_noise_costs() -> None:
    dense, lazy = (thousand_rounds(table_noise=noise, silos=2) for noise in ("dense", "lazy"))
    assert mechanisms.to_json(lazy.event) == mechanisms.to_json(dense.event)
    assert lazy.spent == dense.spent


def test_selected_rows_cost_what_dp_accounting_says_of_sums_and_counts_together() -> None:
    """Two sums of one sample, z = 1 and s = 3: one Gaussian of (1 + 1/9)^(-1/2), also of a user of two silos."""
    found = thousand_rounds(table_noise="adafest", selection_noise_multiplier=3.0, rounds=100)
    noise = (1 + 1 / 9) ** -0.5
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=2e-3)
    accountant.compose(dp_event.PoissonSampledDpEvent(0.01, dp_event.GaussianDpEvent(noise)), 100)
    assert found.spent.upper == pytest.approx(accountant.get_epsilon(1e-6), rel=0.004)
    assert found.spent.upper > thousand_rounds(rounds=100).spent.upper
    two, together = (dataclasses.replace(one, silos=2) for one in (found, thousand_rounds(noise_multiplier=noise)))
    assert two.spent.upper == pytest.approx(dataclasses.replace(together, rounds=100).spent.upper, rel=0.004)


def test_adafest_for_a_budget_pays_for_the_counts() -> None:
    found = calibrated(epsilon=3.0, table_noise="adafest", clip_quantile=0.5, selection_threshold=4.0)
    assert found.selection_noise_multiplier == pytest.approx(3 * found.noise_multiplier)
    assert found.selection_threshold == 4.0
    assert 0.995 * 3.0 <= found.spent.upper <= 3.0
    assert found.noise_multiplier > 1.03 * calibrated(epsilon=3.0).noise_multiplier


def test_for_budget_uses_the_budget_up_and_keeps_it() -> None:
    for settings in ({"silos": 3}, {"clip_quantile": 0.5}, {"over_selection": 0.5}):
        found = calibrated(epsilon=3.0, **settings)
        assert 0.995 * 3.0 <= found.spent.upper <= 3.0


def test_local_noise_is_accounted_for_every_update_that_a_user_sends_without_help_from_sampling() -> None:
    """n Gaussians of a replaced update, whose sensitivity is 2 C: one of noise z / (2 sqrt(n)), Balle and Wang 2018."""
    found = calibrated(epsilon=5.0, neighbors="replace", mechanism="local", participations=4, rounds=50)
    mu = 2 * math.sqrt(4) / found.noise_multiplier

    def cdf(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    epsilon = found.spent.upper
    delta = cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * cdf(-mu / 2 - epsilon / mu)
    assert delta == pytest.approx(1e-5, rel=1e-3)
    more = dataclasses.replace(found, budget=dataclasses.replace(found.budget, epsilon=100.0), participations=8)
    assert more.spent.upper > found.spent.upper
    rarer = dataclasses.replace(found, cohort=10)
    assert rarer.spent.upper == found.spent.upper


def test_local_participations_leave_hardly_anyone_out_by_default() -> None:
    found = calibrated(neighbors="replace", mechanism="local", rounds=1000)
    assert found.participations == 160  # 100 expected, and six times their square root


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "fixed-size"}, "sampler 'fixed-size' cannot be accounted for"),
        ({"mechanism": "secure"}, "mechanism must be"),
        ({"neighbors": "replace"}, "'central' is accounted for neighbors 'add-remove'"),
        ({"mechanism": "local"}, "'local' is accounted for neighbors 'replace'"),
        ({"mechanism": "local", "neighbors": "replace", "silos": 2}, "one clip norm and one silo"),
        ({"mechanism": "local", "neighbors": "replace", "clip_quantile": 0.5}, "one clip norm and one silo"),
        ({"mechanism": "local", "neighbors": "replace", "participations": 6}, "at most rounds = 5, got 6"),
        ({"participations": 3}, "only there"),
        ({"clip_norm": 0.0}, "clip_norm must be finite and at least"),
        ({"clip_norm": math.nan}, "clip_norm must be finite and at least"),
        ({"clip_quantile": 1.5}, r"clip_quantile must be in \(0, 1\)"),
        ({"cohort": 500}, "must be at most the population of 400, got 500"),
        ({"cohort": 390, "over_selection": 0.1}, "must be at most the population of 400, got 429"),
        ({"over_selection": -0.1}, "over_selection must be at least 0"),
        ({"rounds": 0}, "rounds must be a whole number of at least 1, got 0"),
        ({"table_noise": "fest"}, "table_noise must be 'dense', 'lazy' or 'adafest', got 'fest'"),
        ({"mechanism": "local", "neighbors": "replace", "table_noise": "lazy"}, "must be 'dense' with it, got 'lazy'"),
        ({"selection_noise_multiplier": 3.0}, "must be given for table_noise 'adafest', and only there"),
        ({"selection_threshold": 3.0}, "selection_threshold needs table_noise 'adafest'"),
        ({"table_noise": "adafest", "selection_threshold": math.nan}, "selection_threshold must be finite"),
        ({"silos": True}, "silos must be a whole number of at least 1, got True"),
        ({"population": 200_000}, "delta must be below 1 / population"),
    ],
)
def test_what_cannot_be_accounted_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrated(**settings)


def test_the_unit_is_never_a_row() -> None:
    with pytest.raises(ValueError, match="protects users"):
        thousand_rounds(budget=Budget(epsilon=1.0, delta=1e-6, unit="example"))


def test_a_plan_above_its_budget_cannot_be_built() -> None:
    found = calibrated()
    with pytest.raises(ValueError, match="more than its budget"):
        dataclasses.replace(found, noise_multiplier=0.9 * found.noise_multiplier)
    with pytest.raises(ValueError, match="more than its budget"):
        dataclasses.replace(found, cohort=2 * found.cohort)
    with pytest.raises(ValueError, match="must be given together"):
        dataclasses.replace(found, clip_quantile=0.5)


def test_without_privacy_nothing_is_accounted() -> None:
    assert isinstance(twin().event, dp_event.NonPrivateDpEvent)
    with pytest.raises(ValueError, match="no epsilon"):
        twin().spent  # noqa: B018
    with pytest.raises(ValueError, match="neither clips nor adds noise"):
        dataclasses.replace(twin(), noise_multiplier=1.0)
