"""Which limits a data set may get, and how they are held."""

import math
from pathlib import Path
from typing import Any

import pytest

from accounting.budget import Budget
from accounting.ledger import Ledger
from accounting.ledger.limits import ORDERS
from tests.accounting.ledger.helpers import ADS, budget, charge_of, refusal


def labels(unit: str = "example") -> Budget:
    return budget(unit=unit, neighbors="replace-label")


@pytest.mark.parametrize(
    ("limits", "fields", "why"),
    [
        ([budget(epsilon=1e-10)], {}, "a limit must be"),
        ([budget(delta=1e-19)], {}, "a limit must be"),
        ([budget(epsilon=1e10)], {}, "a limit must be"),
        ([budget(delta=1e-4)], {}, "below 0.0001 (by policy)"),
        ([budget(delta=1e-6)], {"population": 1_000_000}, "below 1e-06 (1 / population)"),
        ([budget(), budget(unit="example", delta=0.5)], {}, "below 0.0001 ("),
        ([budget()], {"population": 0}, "population must be"),
        ([budget()], {"population": 1e6}, "population must be"),
        ([budget(), budget(epsilon=2.0)], {}, "one limit of a kind"),
        ([budget(), budget(neighbors="replace")], {}, "one limit of a kind"),
        ([labels(), labels()], {}, "one limit of a kind"),
        ([budget(unit="user-day"), budget()], {}, "name the limit of user first"),
        ([budget(unit="example"), budget()], {}, "name the limit of user first"),
        ([budget()], {"rule": "moments"}, "rule must be"),
        ([budget()], {"rule": "zcdp", "order": 8.0}, "order belongs to rule 'rdp'"),
        ([budget()], {"rule": "rdp", "order": 1.0}, "order must be above 1"),
        ([budget()], {"rule": "rdp", "order": math.nan}, "order must be above 1"),
        ([budget(epsilon=0.5)], {"rule": "rdp", "order": 2.0}, "order"),
        ([budget()], {"block": "year"}, "block must be"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused_and_no_file_is_made(
    sqlite_url: str, path: Path, limits: list[Budget], fields: dict[str, Any], why: str
) -> None:
    message = refusal(Ledger.init, sqlite_url, dataset=ADS, budget=limits[0], also=limits[1:], **fields)
    assert why in message
    assert not path.exists()


def test_limits_round_down_to_the_units(url: str) -> None:
    ledger = Ledger.init(url, dataset=ADS, budget=budget(epsilon=1.0000000019, delta=2.9e-18))
    assert (ledger.balance(ADS).limit.epsilon, ledger.balance(ADS).limit.delta) == (1.000000001, 2e-18)


def test_a_delta_below_one_in_the_population_is_a_limit(url: str) -> None:
    Ledger.init(url, dataset=ADS, budget=budget(delta=9.9e-7), population=1_000_000)


def test_labels_and_all_the_rest_of_one_unit_may_each_have_a_limit(url: str) -> None:
    ledger = Ledger.init(url, dataset=ADS, budget=budget(unit="example"), also=[labels()])
    found = ledger.balances(ADS)
    assert [one.label_only for one in found] == [False, True]
    assert [one.limit for one in found] == [budget(unit="example"), labels()]


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0, 16.0])
def test_the_order_of_rule_rdp_has_most_room_for_gaussians(sqlite_url: str, epsilon: float) -> None:
    """A Gaussian's divergence is order / (2 s^2): the order whose limit is the most in terms of 1 / (2 s^2) is best.

    Limit of order a: epsilon - log(1 - 1/a) + log(delta a) / (a - 1) (Canonne, Kamath, Steinke 2020, proposition 12).
    """
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=budget(epsilon=epsilon), rule="rdp")

    def room(order: float) -> float:
        return (epsilon - math.log1p(-1 / order) + math.log(1e-6 * order) / (order - 1)) / order

    found = ledger.balance(ADS)
    assert found.order == max(ORDERS, key=room)
    assert found.loss_limit / found.order == pytest.approx(room(found.order), rel=1e-6)


@pytest.mark.parametrize("rule", ["zcdp", "rdp"])
def test_a_full_limit_converts_to_no_more_than_its_epsilon(sqlite_url: str, rule: Any) -> None:
    from accounting.mechanisms import zcdp

    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=budget(epsilon=2.0), rule=rule)
    empty = ledger.balance(ADS)
    assert (empty.spent_epsilon, empty.spent_delta) == (0.0, 0.0)
    rho = empty.loss_limit / (empty.order or 1)
    ledger.reserve(ADS, charge_of(zcdp(rho=rho * (1 - 1e-6)), delta=1e-6))
    full = ledger.balance(ADS)
    assert 1.999 < full.spent_epsilon <= 2.0
    assert full.spent_delta == 1e-6  # spent once, by turning the loss into epsilon
    assert full.left_epsilon == pytest.approx(2.0 - full.spent_epsilon, abs=1e-12)
