"""What a report promises is the accountant's upper end, under the relation and the unit that the budget states."""

import math

import pytest
from dp_accounting import dp_event

from accounting import mechanisms
from accounting.accountant import epsilon
from accounting.budget import Budget, Neighbors
from accounting.report.guarantee import Guarantee
from privads.promise import guarantee, plain


def promised(noise_multiplier: float, budget: Budget, *, steps: int = 1) -> Guarantee:
    def event_after(done: int) -> dp_event.DpEvent:
        return mechanisms.repeated(mechanisms.gaussian(noise_multiplier=noise_multiplier), done)

    return guarantee(
        event_after,
        steps,
        budget,
        epsilon(event_after(steps), delta=budget.delta, neighbors=budget.neighbors),
        population=50_000,
        owned="all rows of one user",
        unit_columns=("user",),
        released="model",
    )


@pytest.mark.parametrize(("neighbors", "differ"), [("add-remove", "more than the other"), ("replace", "replaced by")])
def test_a_promise_is_stated_for_its_neighbors(neighbors: Neighbors, differ: str) -> None:
    budget = Budget(epsilon=9.0, delta=1e-5, unit="user", neighbors=neighbors)
    spent = epsilon(mechanisms.gaussian(noise_multiplier=2.0), delta=1e-5, neighbors=neighbors)
    found = promised(2.0, budget)
    assert (found.epsilon, found.neighbors) == (spent.upper, neighbors)
    assert f"all rows of one user {differ}" in found.neighbors_definition
    assert found.epsilon_without_amplification == pytest.approx(spent.upper)  # nothing is sampled
    assert [point.delta for point in found.profile] == [1e-5, 1e-6, 1e-7]
    assert found.profile[0].epsilon == pytest.approx(spent.upper)
    assert found.profile[0].epsilon < found.profile[1].epsilon < found.profile[2].epsilon


def test_replacing_a_user_costs_more_than_removing_one() -> None:
    """dp-accounting's PLD at noise 2, delta 1e-5: sensitivity 1, and 2 for a replaced user."""
    found = []
    for neighbors in ("add-remove", "replace"):
        budget = Budget(epsilon=9.0, delta=1e-5, unit="user", neighbors=neighbors)
        found.append(promised(2.0, budget).epsilon)
    assert found == pytest.approx([1.99, 4.38], abs=0.01)


def test_a_promise_is_also_stated_over_its_steps_and_in_other_terms() -> None:
    """A Gaussian mechanism of noise 8, 16 times: that of noise 2, whose mu, rho and divergences are closed forms."""
    found = promised(8.0, Budget(epsilon=9.0, delta=1e-5, unit="user"), steps=16)
    assert [at.steps for at in found.over_steps] == [2, 4, 6, 8, 10, 12, 14, 16]
    for at in found.over_steps:
        alone = epsilon(mechanisms.gaussian(noise_multiplier=8 / math.sqrt(at.steps)), delta=1e-5)
        assert at.epsilon == pytest.approx(alone.upper)
    assert found.over_steps[-1].epsilon == found.epsilon
    assert found.gaussian is not None
    assert found.gaussian.mu == pytest.approx(0.5, rel=1e-6)
    assert found.zcdp_rho == pytest.approx(1 / 8)
    assert [(one.order, one.divergence) for one in found.renyi] == [
        (order, pytest.approx(order / 8)) for order in (2, 4, 8, 16)
    ]
    assert [one.false_positive_rate for one in found.detection] == [0.001, 0.01]
    assert "2e-05" in found.delta_reason
    assert found.unprotected == ()
    alone = promised(2.0, Budget(epsilon=9.0, delta=1e-5, unit="example"))
    assert "several rows of one owner" in str(alone.unprotected)
    assert [at.steps for at in alone.over_steps] == [1]


def test_a_promise_states_a_certified_lower_end_where_there_is_one() -> None:
    """dp-accounting's PLD of this run is 6.907; nothing is certified of truncated batches."""
    budget = Budget(epsilon=9.0, delta=1e-6, unit="user")
    event = mechanisms.dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=10_000)
    truncated = mechanisms.truncated_dp_sgd(
        sampling_rate=0.01, noise_multiplier=2.0, steps=1, population=1000, largest_batch=50
    )
    found = []
    for one in (event, truncated):
        spent = epsilon(one, delta=1e-6)
        whole = guarantee(
            lambda _, one=one: one, 1, budget, spent, population=9, owned="one", unit_columns=(), released="model"
        )
        found.append(whole.epsilon_lower)
    assert found[0] is not None
    assert 6.84 < found[0] < 6.907
    assert found[1] is None


def test_settings_become_plain_json() -> None:
    assert plain({"a": (1, math.inf), "b": {"c": None}, 3: True}) == {"a": [1, "inf"], "b": {"c": None}, "3": True}
