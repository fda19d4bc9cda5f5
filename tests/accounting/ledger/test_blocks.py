"""Which blocks there are, and which units lie in one of them."""

import pytest

from accounting.ledger.blocks import check_block, check_names, lies_in_one_block, within

GOOD = {"hour": "2026-11-22T07", "day": "2026-11-22", "week": "2026-W47", "month": "2026-11"}
BAD = [
    "2026-13",
    "2026-02-30",
    "2026-W54",
    "2025-W53",
    "2026-11-22T24",
    "2026-1-2",
    "26-11",
    "",
    "\uff12026-11",
    "2026-11 ",
]


@pytest.mark.parametrize("block", GOOD)
def test_a_block_is_named_by_its_period_and_by_nothing_else(block: str) -> None:
    check_names((GOOD[block],), block)  # type: ignore[arg-type]
    for other in [name for period, name in GOOD.items() if period != block] + BAD:
        with pytest.raises(ValueError, match=f"one {block}"):
            check_names((other,), block)  # type: ignore[arg-type]


def test_a_year_has_53_weeks_where_the_calendar_says_so() -> None:
    check_names(("2026-W53",), "week")  # 2026 begins on a Thursday


def test_a_data_set_without_blocks_has_none() -> None:
    check_names((), None)
    with pytest.raises(ValueError, match="no blocks"):
        check_names(("2026-11-22",), None)


def test_a_block_is_named_once() -> None:
    with pytest.raises(ValueError, match="once"):
        check_names(("2026-11-22", "2026-11-22"), "day")


def test_other_periods_are_refused() -> None:
    with pytest.raises(ValueError, match="block must be"):
        check_block("year")


@pytest.mark.parametrize(
    ("unit", "inside"),
    [
        ("example", {"hour", "day", "week", "month"}),
        ("user-hour", {"hour", "day", "week", "month"}),
        ("user-day", {"day", "week", "month"}),
        ("user-week", {"week"}),
        ("user-month", {"month"}),
        ("user", set()),
        ("day", set()),
        ("holi-days", set()),
    ],
)
def test_a_unit_lies_in_one_block_only_if_its_period_does(unit: str, inside: set[str]) -> None:
    for block in ("hour", "day", "week", "month"):
        assert lies_in_one_block(unit, "add-remove", block) == (block in inside)
        assert lies_in_one_block(unit, "replace-label", block) == (block in inside)
    assert not lies_in_one_block(unit, "add-remove", None)


def test_a_replaced_unit_may_move_to_another_block() -> None:
    assert not lies_in_one_block("user-day", "replace", "day")
    assert not lies_in_one_block("example", "replace", "day")


@pytest.mark.parametrize(
    ("unit", "other", "answer"),
    [
        ("user", "user", True),
        ("example", "user", True),
        ("user", "example", False),
        ("user-day", "user", True),
        ("user", "user-day", False),
        ("user-day", "user-week", True),
        ("user-week", "user-day", False),
        ("user-week", "user-month", None),  # a week may lie in two months
        ("user-month", "user-week", None),
        ("visit", "user", None),
        ("visit", "household", True),  # by the order given below
        ("household", "visit", False),
        ("visit-day", "household", True),
        ("household", "visit-day", False),
        ("household-day", "visit", None),
    ],
)
def test_units_lie_in_each_other_by_name_or_else_by_order(unit: str, other: str, answer: bool | None) -> None:
    assert within(unit, other, ("household", "visit")) is answer
