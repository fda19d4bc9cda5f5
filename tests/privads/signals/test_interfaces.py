"""What a report costs an owner of rows is the most that one can change it by, and what it promises is said in full."""

import math
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from accounting.accountant import epsilon as account
from privads.noise import Randomness
from privads.run_config import AttributionTable
from privads.signals.attribute import Converted, Shown, states_of
from privads.signals.interface import Interface, Loss
from privads.signals.interfaces import EventLevel, Summaries, W3c, interface_of
from privads.signals.w3c import DAY
from tests.privads.signals.test_attribute import START, drawn, without

BASE: dict[str, Any] = {"epsilon": 1.0, "label": "bought", "keys": {"site": ["a", "b", "c", "d"]}, "days": 7}
SITES = {"conversion_site": "shop", "keys": {"shop": [f"s{i}" for i in range(10)]}}


def table(api: str, **changes: Any) -> AttributionTable:
    return AttributionTable(**{**BASE, "api": api, "start": datetime(2026, 1, 1), **changes})


def made(api: str, **changes: Any) -> Interface:
    asked = table(api, **changes)
    return interface_of(asked, cells=math.prod(map(len, asked.keys.values())), high=1.0)


def w3c(**changes: Any) -> W3c:
    found = made("w3c", **changes)
    assert isinstance(found, W3c)
    return found


def exact(interface: Interface, shown: Shown, converted: Converted, seed: int = 0) -> np.ndarray:
    return interface.answered(shown, converted, randomness=Randomness(insecure_seed=0), insecure_seed=seed).exact


# What one unit loses


@pytest.mark.parametrize(
    ("changes", "epsilon"),
    [
        ({}, 2.0),  # 7 days lie in two epochs, with 1 each
        ({"epsilon": 0.25}, 2.0),  # what a report asks for does not matter: the budget does
        ({"days": 8}, 3.0),
        ({"days": 28, "epoch_days": 14, "site_budget": 0.5}, 1.5),
        (SITES, 8.0),  # ten sites, but half of 8 for all of them
        ({**SITES, "keys": {"shop": ["s0", "s1"]}}, 4.0),
        ({**SITES, "global_budget": 3.0}, 3.0),
    ],
)
def test_a_browser_loses_its_budgets_of_all_epochs_and_no_more(changes: dict[str, Any], epsilon: float) -> None:
    loss = w3c(**changes).loss
    assert loss.epsilon == pytest.approx(epsilon, rel=1e-9)
    assert account(loss.event, delta=1e-9).upper == pytest.approx(epsilon, rel=1e-3)


def reached(interface: W3c, shops: int) -> int:
    """The most that a browser adds which sees an ad of each shop twice, 7 days apart, and buys twice in each epoch."""
    shown = Shown(
        browsers=np.ones(2 * shops, np.int64),
        times=np.repeat([0, 7 * DAY - 1], shops).astype(np.int64),
        cells=np.tile(np.arange(shops), 2),
        pages=np.arange(2 * shops),
        shops=np.tile(np.arange(shops), 2),
    )
    bought = Converted(
        browsers=np.ones(8 * shops, np.int64),
        times=np.repeat([DAY // 2, 7 * DAY], 4 * shops).astype(np.int64),
        shops=np.tile(np.arange(shops), 8),
        values=np.ones(8 * shops),
    )
    # each browser begins its epochs at a random moment: by chance below 1e-12 none of 40 has a boundary between the two
    return max(int(exact(interface, shown, bought, seed).sum()) for seed in range(40))


def test_a_busy_browser_reaches_what_is_charged_for_it() -> None:
    one = w3c(lookback_days=1)
    assert reached(one, 1) == one.sensitivity == 4  # a site's budget: 2 reports of 1/2 in each of two epochs
    ten = w3c(**SITES, lookback_days=1, impression_site_quota=8.0)
    assert reached(ten, 10) == ten.sensitivity == 16  # the budget for all, 8, of which a report of 1/2 takes 1


@pytest.mark.parametrize("value", [None, "price"])
def test_no_browser_adds_more_to_the_w3c_sums_than_is_charged_for_it(value: str | None) -> None:
    interface = w3c(days=20, value=value)
    worst = 0.0
    for seed in range(40):
        shown, converted = drawn(seed, browsers=1, shown=60, converted=100)
        worst = max(worst, float(exact(interface, shown, converted, seed).sum()))
    assert 0.5 * interface.sensitivity < worst <= interface.sensitivity


@pytest.mark.parametrize("value", [None, "price"])
def test_no_browser_changes_the_summaries_by_more_than_is_charged_for_it(value: str | None) -> None:
    interface = made("summary", sources_per_unit=2, reports=3, value=value)
    worst = 0.0
    for seed in range(8):
        shown, converted = drawn(seed, browsers=4, shown=150, converted=150)
        whole = exact(interface, shown, converted)
        for who in range(4):
            rest: Any = (without(shown, who), without(converted, who))
            worst = max(worst, float(np.abs(whole - exact(interface, *rest)).sum()))
    assert 0.5 * 2 * 65_536 < worst <= 2 * 65_536


def test_a_rows_label_changes_two_states_at_most() -> None:
    interface = made("event", lookback_days=5, source_type="navigation", windows_days=[1, 5], reports=2)
    assert isinstance(interface, EventLevel)

    def states(shown: Shown, converted: Converted) -> np.ndarray:
        return states_of(shown, converted, reports=interface.reports, window_ends=[DAY, 5 * DAY], edges=[])

    rng, most = np.random.default_rng(0), 0
    for seed in range(40):
        shown, converted = drawn(seed, browsers=3, shown=60, converted=60)
        before = states(shown, converted)
        row = int(rng.integers(60))
        moved = converted.times.copy()
        moved[row] = START + rng.integers(0, 20 * DAY)
        after = states(
            shown,
            Converted(browsers=converted.browsers, times=moved, shops=converted.shops, values=converted.values),
        )
        most = max(most, int((before != after).sum()))
    assert most == 2
    assert account(interface.loss.event, delta=1e-9, neighbors="replace-label").upper == pytest.approx(2.0, rel=1e-9)


def test_a_summary_costs_a_unit_one_epsilon_for_each_source_that_counts() -> None:
    interface = made("summary", epsilon=2.0, sources_per_unit=3)
    assert account(interface.loss.event, delta=1e-9).upper == pytest.approx(6.0, rel=1e-3)


def test_noise_that_is_off_its_law_costs_delta_at_both_answers() -> None:
    loss = Loss(made=made("summary").loss.made, epsilon=1.0, distance=1e-5)
    assert account(loss.event, delta=1e-5 * (1 + math.e) * 1.001).upper <= 1.0 + 1e-9
    assert account(loss.event, delta=1e-5).upper > 1.0
    with pytest.raises(ValueError, match="epsilon 800 protects nobody"):
        _ = Loss(made=loss.made, epsilon=800.0, distance=1e-30).event


# What is said


def test_the_budgets_by_site_and_for_all_are_stated_together_with_their_weakness() -> None:
    interface = w3c(site_budget=0.5, global_budget=6.0)
    assert {"site_budget": 0.5, "global_budget": 6.0}.items() <= interface.limits_stated.items()
    said = interface.promise("user")
    for part in ("epsilon 0.5 of one browser", "all sites together 6", "no guarantee", "Big Bird", "who uses two"):
        assert part in said


def test_every_interface_says_whom_it_protects_and_what_a_person_with_many_ads_is() -> None:
    for api in ("event", "summary"):
        assert "who saw n ads is n such units" in made(api).promise("user")
    assert "Which ads were shown, and their keys, are not protected" in made("event").promise("example")


# Capacity: the published state counts and caps of ../shared/conformance/README.md


def test_an_answer_tells_no_more_bits_than_its_cap() -> None:
    data = {"value": "price", "value_edges": [i / 8 for i in range(1, 8)]}  # 8 trigger data
    interface = made("event", source_type="navigation", epsilon=14.0, **data)
    interface.check()  # 3 reports x 8 data x 3 windows: 11.46 bits of 11.5
    assert interface.limits_stated["capacity_bits"] == pytest.approx(11.461727965384876)
    view = made("event", epsilon=14.0, value="price", value_edges=[0.5])
    view.check()  # 1 report x 2 data x 1 window
    assert view.limits_stated["capacity_bits"] == pytest.approx(1.584926511508231)
    with pytest.raises(
        ValueError, match=r"2925 states tells 11.46 bits .* above the cap of 6.5 for source_type 'event'"
    ):
        made("event", epsilon=14.0, windows_days=[2, 7, 30], reports=3, **data).check()


def test_too_many_bits_are_refused_with_the_largest_epsilon_that_is_not() -> None:
    def asked(epsilon: float) -> Interface:
        return made("event", epsilon=epsilon, windows_days=[1, 2, 3, 4, 5], reports=5, keys={"site": ["a"]})

    with pytest.raises(ValueError, match=r"lower attribution.epsilon to ([\d.]+)") as refused:
        asked(14.0).check()
    least = float(str(refused.value).split("epsilon to ")[1].split(",")[0])
    asked(least).check()
    with pytest.raises(ValueError, match="above the cap"):
        asked(least + 0.01).check()


@pytest.mark.parametrize(
    ("api", "changes", "message"),
    [
        ("w3c", {"conversion_site": "shop"}, "name those to be shown, keys.shop"),
        ("w3c", {"keys": {"site": [str(i) for i in range(65_537)]}}, "a histogram has at most 65536 cells"),
        ("event", {"value": "price", "value_edges": [0.5, 2.0]}, "value_edges must be above 0 and at most 1"),
        (
            "event",
            {"keys": {"site": [str(i) for i in range(1 << 16)]}, "windows_days": [1, 2, 3, 4, 5], "reports": 8},
            "too many",
        ),
    ],
)
def test_what_an_interface_does_not_take_is_one_clear_line(api: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(api, **changes).check()


def test_a_summary_of_three_kinds_has_one_step_for_each() -> None:
    summary = made("summary", value="price", reports=2)
    assert isinstance(summary, Summaries)
    assert dict(summary.units) == {"conversions": 1 / 16_384, "price": 1 / 16_384}
