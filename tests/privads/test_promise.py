"""What a report promises is the accountant's upper end, under the relation and the unit that the budget states."""

import math

import pytest

from accounting import mechanisms
from accounting.accountant import epsilon
from accounting.budget import Budget, Neighbors
from privads.promise import guarantee, plain


@pytest.mark.parametrize(("neighbors", "differ"), [("add-remove", "more than the other"), ("replace", "replaced by")])
def test_a_promise_is_stated_for_its_neighbors(neighbors: Neighbors, differ: str) -> None:
    budget = Budget(epsilon=9.0, delta=1e-5, unit="user", neighbors=neighbors)
    event = mechanisms.gaussian(noise_multiplier=2.0)
    spent = epsilon(event, delta=1e-5, neighbors=neighbors)
    found = guarantee(event, budget, spent, owned="all rows of one user", unit_columns=("user",), released="model")
    assert (found.epsilon, found.neighbors) == (spent.upper, neighbors)
    assert f"all rows of one user {differ}" in found.neighbors_definition
    assert found.epsilon_without_amplification == pytest.approx(spent.upper)  # nothing is sampled
    assert [point.delta for point in found.profile] == [1e-5, 1e-6, 1e-7]
    assert found.profile[0].epsilon == pytest.approx(spent.upper)
    assert found.profile[0].epsilon < found.profile[1].epsilon < found.profile[2].epsilon


def test_replacing_a_user_costs_more_than_removing_one() -> None:
    """dp-accounting's PLD at noise 2, delta 1e-5: sensitivity 1, and 2 for a replaced user."""
    event = mechanisms.gaussian(noise_multiplier=2.0)
    promised = []
    for neighbors in ("add-remove", "replace"):
        budget = Budget(epsilon=9.0, delta=1e-5, unit="user", neighbors=neighbors)
        spent = epsilon(event, delta=1e-5, neighbors=neighbors)
        promised.append(guarantee(event, budget, spent, owned="one", unit_columns=("user",), released="model").epsilon)
    assert promised == pytest.approx([1.99, 4.38], abs=0.01)


def test_settings_become_plain_json() -> None:
    assert plain({"a": (1, math.inf), "b": {"c": None}, 3: True}) == {"a": [1, "inf"], "b": {"c": None}, "3": True}
