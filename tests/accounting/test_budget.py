"""Budgets: nothing without its terms, nothing out of range."""

import doctest
import math

import pytest

from accounting import budget
from accounting.budget import Budget, check_delta, check_epsilon

GOOD = {"epsilon": 1.0, "delta": 1e-7, "unit": "user"}


def test_doctests_run() -> None:
    assert doctest.testmod(budget).failed == 0


@pytest.mark.parametrize("missing", ["epsilon", "delta", "unit"])
def test_epsilon_delta_and_unit_have_no_default(missing: str) -> None:
    with pytest.raises(TypeError, match=missing):
        Budget(**{key: value for key, value in GOOD.items() if key != missing})


def test_arguments_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        Budget(1.0, 1e-7, "user")  # type: ignore[misc]


def test_a_budget_is_frozen_and_comparable() -> None:
    assert Budget(**GOOD) == Budget(**GOOD)
    assert len({Budget(**GOOD), Budget(**GOOD)}) == 1
    with pytest.raises(AttributeError):
        Budget(**GOOD).epsilon = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "epsilon", [0, -1.0, math.nan, math.inf, -math.inf, 5e-324, "1", None, True, 10**400, -(10**400)]
)
def test_an_epsilon_that_is_no_positive_finite_number_is_refused(epsilon: object) -> None:
    with pytest.raises(ValueError, match="epsilon must be a positive finite number"):
        Budget(**{**GOOD, "epsilon": epsilon})  # type: ignore[arg-type]


@pytest.mark.parametrize("delta", [0, -1e-9, 1, 1.0, 2.0, math.nan, math.inf, "1e-6", False])
def test_a_delta_outside_0_and_1_is_refused(delta: object) -> None:
    with pytest.raises(ValueError, match="delta must be"):
        Budget(**{**GOOD, "delta": delta})  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", ["", "User", "user day", "user\n", "1user", None, ("user",)])
def test_a_unit_that_is_no_name_is_refused(unit: object) -> None:
    with pytest.raises(ValueError, match="unit must be a name"):
        Budget(**{**GOOD, "unit": unit})  # type: ignore[arg-type]


def test_unknown_neighbors_are_refused() -> None:
    with pytest.raises(ValueError, match="neighbors must be one of"):
        Budget(**GOOD, neighbors="swap")  # type: ignore[arg-type]


@pytest.mark.parametrize("epsilon", [1e-300, 0.5, 3, 1e9])
def test_positive_finite_epsilons_are_taken(epsilon: float) -> None:
    check_epsilon(epsilon)
    check_delta(1 - 1e-9)


def test_the_text_names_epsilon_delta_unit_and_neighbors() -> None:
    text = str(Budget(epsilon=2.5, delta=1e-6, unit="user-day"))
    assert text == "epsilon 2.5 (delta 1e-06, user-day, add/remove)"
