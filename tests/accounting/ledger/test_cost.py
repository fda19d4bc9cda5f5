"""What a charge costs units that are not its own; expected figures are closed forms of the Gaussian and of counting."""

import itertools
import math
from functools import partial
from typing import Any

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from accounting.budget import Budget
from accounting.ledger import Ledger
from accounting.ledger.columns import Account, Column
from accounting.ledger.cost import costs, group_epsilon
from accounting.mechanisms import (
    approximate_dp,
    gaussian,
    laplace,
    private_selection,
    randomized_response,
    truncated_dp_sgd,
    user_dp_sgd,
    zcdp,
)
from tests.accounting.ledger.helpers import ADS, budget, charge_of, refusal

DELTA = 1e-6
TEN = gaussian(noise_multiplier=10.0)
WIDE = partial(budget, epsilon=1e6, delta=9e-5)


def gaussian_epsilon(noise: float, delta: float = DELTA) -> float:
    """The root of ``Phi(1/(2s) - e s) - exp(e) Phi(-1/(2s) - e s) = delta`` (Balle and Wang 2018, theorem 8)."""

    def excess(epsilon: float) -> float:
        tail = norm.logcdf(-0.5 / noise - epsilon * noise) + epsilon
        return float(norm.cdf(0.5 / noise - epsilon * noise) - math.exp(tail) - delta)

    return float(brentq(excess, 0.0, 200.0, xtol=1e-14))


def cost(url: str, event: Any, limits: list[Budget], *, rule: Any = "basic", block: Any = None, **fields: Any) -> Any:
    """What each column pays, by (unit, neighbors)."""
    ledger = Ledger.init(url, dataset=ADS, budget=limits[0], also=limits[1:], rule=rule, block=block)
    entry = ledger.reserve(ADS, charge_of(event, **{"delta": DELTA, **fields}))
    return {one.column: one.loss for one in entry.costs}


def exactly(noise: float) -> Any:
    return pytest.approx(gaussian_epsilon(noise), rel=1e-6)


# --- units -------------------------------------------------------------------------------------------------


def test_a_charge_in_the_columns_own_terms_is_taken_as_it_is(sqlite_url: str) -> None:
    assert cost(sqlite_url, TEN, [WIDE()]) == {("user", "add-remove"): exactly(10.0)}


def test_an_owner_of_four_loses_what_a_quarter_of_the_noise_costs(sqlite_url: str) -> None:
    found = cost(sqlite_url, TEN, [WIDE(), WIDE(unit="example")], unit="example", records={"user": 4})
    assert found == {("user", "add-remove"): exactly(2.5), ("example", "add-remove"): exactly(10.0)}


def test_a_finer_unit_without_a_bound_on_its_owners_is_refused(sqlite_url: str) -> None:
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=WIDE())
    for unit in ("example", "user-day", "visit"):
        message = refusal(ledger.reserve, ADS, charge_of(TEN, unit=unit))
        assert "records={'user': k}" in message
        assert unit in message
        refusal(ledger.reserve, ADS, charge_of(TEN, unit=unit, records={"household": 2}))
    assert ledger.history(ADS) == []


def test_a_part_of_a_coarser_unit_pays_for_replacing_it(sqlite_url: str) -> None:
    """Who takes a day away from a user changes what the user adds to the sum by up to 2 C: twice the sensitivity."""
    found = cost(sqlite_url, TEN, [WIDE(), WIDE(unit="user-day"), WIDE(unit="example")])
    assert found == {
        ("user", "add-remove"): exactly(10.0),
        ("user-day", "add-remove"): exactly(5.0),
        ("example", "add-remove"): exactly(5.0),
    }


def test_the_order_of_the_columns_says_which_unit_is_coarser(sqlite_url: str) -> None:
    limits = [WIDE(unit="household"), WIDE(unit="device")]
    assert cost(sqlite_url, TEN, limits, unit="household")["device", "add-remove"] == exactly(5.0)
    ledger = Ledger.open(sqlite_url)
    assert "records={'household': k}" in refusal(ledger.reserve, ADS, charge_of(TEN, unit="device"))


@pytest.mark.parametrize(("unit", "column"), [("user-week", "user-month"), ("user-month", "user-week")])
def test_units_that_overlap_are_refused(sqlite_url: str, unit: str, column: str) -> None:
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=WIDE(unit=column))
    assert "may lie in two" in refusal(ledger.reserve, ADS, charge_of(TEN, unit=unit, records={column: 5}))


def test_a_replaced_part_of_a_coarser_unit_may_become_a_part_of_another(sqlite_url: str) -> None:
    """A day of one user is replaced by a day of another one: both change what they add by up to 2 C."""
    limits = [WIDE(neighbors="replace"), WIDE(unit="user-day", neighbors="replace")]
    assert cost(sqlite_url, TEN, limits) == {("user", "replace"): exactly(5.0), ("user-day", "replace"): exactly(2.5)}
    mixture = user_dp_sgd(sampling_rate=0.1, noise_multiplier=40.0, steps=5, records=2)
    four = group_epsilon(mixture, group=4, delta=DELTA, neighbors="add-remove")
    assert cost(sqlite_url + "2", mixture, limits)["user-day", "replace"] == pytest.approx(four, abs=2e-9)


def test_a_unit_that_may_have_several_owners_is_replaced_not_removed(sqlite_url: str) -> None:
    """Without a user, the 3 campaigns that saw the user stay, each with up to 2 C another sum."""
    reach = {"unit": "campaign", "records": {"user": 3}}
    assert cost(sqlite_url, TEN, [WIDE()], **reach) == {("user", "add-remove"): exactly(10 / 6)}
    found = cost(sqlite_url + "2", TEN, [WIDE(neighbors="replace")], **reach)
    assert found == {("user", "replace"): exactly(10 / 12)}


def test_a_finer_unit_by_the_order_of_the_columns_is_removed_with_its_owner(sqlite_url: str) -> None:
    limits = [WIDE(unit="household"), WIDE(unit="device")]
    found = cost(sqlite_url, TEN, limits, unit="device", records={"household": 4})
    assert found == {("household", "add-remove"): exactly(2.5), ("device", "add-remove"): exactly(10.0)}


# --- units within blocks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["user", "user-day", "user-week"])
def test_within_one_block_a_user_is_a_user_day(sqlite_url: str, unit: str) -> None:
    limits = [WIDE(), WIDE(unit="user-week"), WIDE(unit="user-day")]
    found = cost(sqlite_url, TEN, limits, block="day", unit=unit, blocks=("2026-11-22",))
    assert list(found.values()) == [exactly(10.0)] * 3


def test_a_user_has_one_user_day_in_each_day(sqlite_url: str) -> None:
    days = ("2026-11-20", "2026-11-21", "2026-11-22", "2026-11-23", "2026-11-24")
    assert cost(sqlite_url, TEN, [WIDE()], block="day", unit="user-day", blocks=days) == {
        ("user", "add-remove"): exactly(2.0)
    }


def test_a_stated_bound_below_the_number_of_days_is_taken(sqlite_url: str) -> None:
    days = ("2026-11-20", "2026-11-21", "2026-11-22", "2026-11-23", "2026-11-24")
    found = cost(sqlite_url, TEN, [WIDE()], block="day", unit="user-day", blocks=days, records={"user": 2})
    assert found == {("user", "add-remove"): exactly(5.0)}


def test_in_a_day_a_user_has_many_user_hours(sqlite_url: str) -> None:
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=WIDE(), also=[WIDE(unit="user-hour")], block="day")
    day = {"blocks": ("2026-11-22",)}
    assert "records={'user': k}" in refusal(ledger.reserve, ADS, charge_of(TEN, unit="user-hour", **day))
    entry = ledger.reserve(ADS, charge_of(TEN, unit="user", **day))
    assert [one.loss for one in entry.costs] == [exactly(10.0), exactly(5.0)]


# --- the definition ----------------------------------------------------------------------------------------

DAYS = ("2026-11-21", "2026-11-22")
ROWS = {(user, day, number) for user in "ab" for day in DAYS for number in range(2)}
LENGTH = {"user": 1, "user-day": 2, "example": 3}
"""How much of a row, which is (user, day, number), names its unit."""


def _units(rows: set[Any], unit: str) -> dict[Any, set[Any]]:
    found: dict[Any, set[Any]] = {}
    for row in rows:
        found.setdefault(row[: LENGTH[unit]], set()).add(row)
    return found


def _farthest(unit: str, limit: Budget, blocks: tuple[str, ...]) -> int:
    """How far a sum over ``unit``s of vectors of length 1 moves at most, over all data sets within two users' rows."""

    def moved(rows: set[Any], others: set[Any]) -> int:
        read = [{row for row in one if not blocks or row[1] in blocks} for one in (rows, others)]
        before, after = (_units(one, unit) for one in read)
        return sum(
            (name in before) + (name in after) for name in {*before, *after} if before.get(name) != after.get(name)
        )

    most = 0
    for kept in (ROWS, {row for row in ROWS if row[0] == "a" or row[1:] == (DAYS[0], 0)}):
        for gone in _units(kept, limit.unit).values():
            rest = kept - gone
            come = [new for other, new in _units(ROWS, limit.unit).items() if other not in _units(rest, limit.unit)]
            stranger = {("c", *row[1:]) for row in ROWS}
            come += [*_units(stranger, limit.unit).values(), {min(gone)}]
            ends = [rest] if limit.neighbors == "add-remove" else [rest | new for new in come]
            most = max([most, *(moved(kept, end) for end in ends)])
    return most


@pytest.mark.parametrize("neighbors", ["add-remove", "replace"])
@pytest.mark.parametrize("blocks", [(), DAYS[:1], DAYS])
def test_no_unit_moves_a_sum_farther_than_its_column_pays_for(neighbors: Any, blocks: tuple[str, ...]) -> None:
    """Laplace noise of scale 10: a sum that moves by m costs m / 10, and no column may pay less."""
    for unit, protected in itertools.product(LENGTH, LENGTH):
        column = Column(
            limit=WIDE(unit=protected, neighbors=neighbors), rule="basic", order=None, loss_limit=1, delta_limit=1
        )
        rows = {"user": 2 * len(DAYS) if unit == "example" else len(DAYS), "user-day": 2}
        asked = charge_of(laplace(noise_multiplier=10.0), 1e-15, unit=unit, records=rows, blocks=blocks)
        (paid,) = costs(asked, Account("day", (column,), {}))
        assert paid.loss >= _farthest(unit, column.limit, blocks) / 10 * (1 - 1e-3), (unit, protected)


# --- neighbors ---------------------------------------------------------------------------------------------


def test_a_replaced_unit_costs_twice_the_sensitivity(sqlite_url: str) -> None:
    assert cost(sqlite_url, TEN, [WIDE(neighbors="replace")]) == {("user", "replace"): exactly(5.0)}


def test_a_replaced_owner_of_two_costs_four_times_the_sensitivity(sqlite_url: str) -> None:
    found = cost(sqlite_url, TEN, [WIDE(neighbors="replace")], unit="example", records={"user": 2})
    assert found == {("user", "replace"): exactly(2.5)}


def test_replace_says_nothing_about_add_and_remove(sqlite_url: str) -> None:
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=WIDE())
    message = refusal(ledger.reserve, ADS, charge_of(TEN, neighbors="replace"))
    assert "under 'replace'" in message
    assert "'add-remove'" in message


@pytest.mark.parametrize(
    "terms",
    [
        {"unit": "example", "records": {"user": 8}},  # the new user may have other than 8 rows
        {"unit": "user-day", "blocks": ("2026-11-22",)},
        {"unit": "user", "blocks": ("2026-11-22",)},  # the new user may come on another day
    ],
)
def test_replace_says_nothing_where_the_number_of_units_changes(sqlite_url: str, terms: dict[str, Any]) -> None:
    """One answer of each unit is released: whoever counts the answers knows how many units there are."""
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=WIDE(neighbors="replace"), block="day")
    coin = randomized_response(randomize_probability=0.5, categories=2)
    assert "under 'replace'" in refusal(ledger.reserve, ADS, charge_of(coin, neighbors="replace", **terms))
    (paid,) = ledger.reserve(ADS, charge_of(coin, neighbors="replace", delta=1e-12)).costs
    assert paid.loss == pytest.approx(math.log(3), abs=1e-3)


def test_labels_pay_to_the_label_column_and_to_no_other(sqlite_url: str) -> None:
    """Randomized response over 2 values that answers at random half of the time: epsilon = log(0.75 / 0.25)."""
    coin = randomized_response(randomize_probability=0.5, categories=2)
    limits = [WIDE(), WIDE(unit="example", neighbors="replace-label")]
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=limits[0], also=limits[1:])
    labels = {"unit": "example", "neighbors": "replace-label", "delta": 1e-12}
    entry = ledger.reserve(ADS, charge_of(coin, **labels))
    (paid,) = entry.costs
    assert paid.column == ("example", "replace-label")
    assert paid.loss == pytest.approx(math.log(3), abs=1e-3)
    ledger.reserve(ADS, charge_of(TEN))
    rest, label_only = ledger.balances(ADS)
    assert rest.spent_epsilon == exactly(10.0)
    assert (label_only.label_only, label_only.spent_epsilon) == (True, paid.loss)


def test_labels_without_a_column_are_refused_and_so_is_the_rest_on_a_label_column(sqlite_url: str) -> None:
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=WIDE())
    coin = randomized_response(randomize_probability=0.5, categories=2)
    assert "labels only" in refusal(ledger.reserve, ADS, charge_of(coin, neighbors="replace-label"))
    Ledger.init(sqlite_url, dataset="labels", budget=WIDE(unit="example", neighbors="replace-label"))
    assert "more than labels" in refusal(ledger.reserve, "labels", charge_of(TEN, unit="example"))


# --- group privacy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [2, 5])
def test_group_privacy_takes_an_inner_delta_that_is_enough_and_nearly_the_largest(group: int) -> None:
    """(e, d)-DP for one is (k e, d (e^(k e) - 1) / (e^e - 1))-DP for k; the least k e over all d is known by trying."""

    def outer(inner: float) -> float:
        one = gaussian_epsilon(10.0, inner)
        return inner * math.expm1(group * one) / math.expm1(one)

    largest = math.exp(
        brentq(lambda log_inner: outer(math.exp(log_inner)) - DELTA, math.log(1e-12), math.log(DELTA) + 1e-9)
    )
    found = group_epsilon(TEN, group=group, delta=DELTA, neighbors="add-remove")
    assert group * gaussian_epsilon(10.0, largest) * (1 - 1e-6) <= found <= group * gaussian_epsilon(10.0, largest / 2)
    assert found >= gaussian_epsilon(10.0 / group) * (1 - 1e-6)  # never below what the group truly loses


def test_pure_privacy_of_a_group_adds_up(sqlite_url: str) -> None:
    found = cost(sqlite_url, laplace(noise_multiplier=10.0), [WIDE()], unit="example", records={"user": 3}, delta=1e-15)
    assert found["user", "add-remove"] == pytest.approx(0.3, abs=1e-3)


def test_what_has_no_user_level_event_is_charged_by_group_privacy(sqlite_url: str) -> None:
    search = private_selection(gaussian(noise_multiplier=20.0), mean_trials=2.0, shape=1.0)
    found = cost(sqlite_url, search, [WIDE(), WIDE(unit="example")], unit="example", records={"user": 2})
    one, two = found["example", "add-remove"], found["user", "add-remove"]
    assert 2 * one < two < 4 * one
    assert two == pytest.approx(group_epsilon(search, group=2, delta=DELTA, neighbors="add-remove"), abs=1e-9)


def test_a_group_that_no_inner_delta_serves_is_refused(sqlite_url: str) -> None:
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=WIDE())
    search = private_selection(gaussian(noise_multiplier=1.0), mean_trials=2.0, shape=1.0)
    message = refusal(ledger.reserve, ADS, charge_of(search, unit="example", records={"user": 1000}))
    assert "no finite epsilon" in message


# --- other rules -------------------------------------------------------------------------------------------


def test_zcdp_charges_rho(sqlite_url: str) -> None:
    """A Gaussian is 1/(2 s^2)-zCDP, and k^2 rho for a group of k (Bun and Steinke 2016); replaced is twice as far."""
    limits = [WIDE(), WIDE(unit="example")]
    found = cost(sqlite_url, TEN, limits, rule="zcdp", unit="example", records={"user": 3})
    assert found["example", "add-remove"] == pytest.approx(0.005, abs=1.5e-9)
    assert found["user", "add-remove"] == pytest.approx(0.045, abs=1.5e-9)
    assert found["example", "add-remove"] >= 0.005


def test_zcdp_charges_a_coarser_unit_four_times(sqlite_url: str) -> None:
    found = cost(sqlite_url, zcdp(rho=0.01), [WIDE(), WIDE(unit="user-day")], rule="zcdp")
    assert found["user", "add-remove"] == pytest.approx(0.01, abs=1.5e-9)
    assert found["user-day", "add-remove"] == pytest.approx(0.04, abs=1.5e-9)


def test_rdp_charges_the_divergence_of_its_order(sqlite_url: str) -> None:
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=budget(epsilon=2.0), rule="rdp", order=20.0)
    (paid,) = ledger.reserve(ADS, charge_of(TEN)).costs
    assert paid.loss == pytest.approx(20 / (2 * 100), abs=1.5e-9)
    assert (paid.loss >= 0.1, paid.delta_units) == (True, 0)


@pytest.mark.parametrize("rule", ["zcdp", "rdp"])
def test_what_has_no_loss_under_the_rule_is_refused_with_the_remedy(sqlite_url: str, rule: Any) -> None:
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=budget(), rule=rule)
    approximate = approximate_dp(epsilon=0.1, delta=1e-8)
    assert "rule is 'basic'" in refusal(ledger.reserve, ADS, charge_of(approximate))
    assert "at most the limit's" in refusal(ledger.reserve, ADS, charge_of(TEN, delta=1e-5))
    assert ledger.history(ADS) == []


def test_zcdp_of_a_group_without_an_event_of_its_own_grows_with_its_square(sqlite_url: str) -> None:
    truncated = truncated_dp_sgd(sampling_rate=0.01, noise_multiplier=9.0, steps=2, population=1000, largest_batch=30)
    found = cost(
        sqlite_url, truncated, [WIDE(), WIDE(unit="example")], rule="zcdp", unit="example", records={"user": 3}
    )
    assert found["user", "add-remove"] == pytest.approx(9 * found["example", "add-remove"], abs=1e-8)


def test_replacing_is_removing_and_adding_where_nothing_better_is_known(sqlite_url: str) -> None:
    mixture = user_dp_sgd(sampling_rate=0.1, noise_multiplier=20.0, steps=5, records=2)
    found = cost(sqlite_url, mixture, [WIDE(neighbors="replace")])
    two = group_epsilon(mixture, group=2, delta=DELTA, neighbors="add-remove")
    assert found == {("user", "replace"): pytest.approx(two, abs=2e-9)}
    rows = cost(sqlite_url + "2", mixture, [WIDE(neighbors="replace")], unit="example", records={"user": 3})
    six = group_epsilon(mixture, group=6, delta=DELTA, neighbors="add-remove")
    assert rows == {("user", "replace"): pytest.approx(six, abs=2e-9)}
