"""Time blocks, and how units nest in them and in each other.

A data set may be cut into blocks of one period: hours, days, ISO weeks or months. A charge that reads the rows of some
blocks only costs nothing to whoever has no rows in them. So where each unit lies in one block, the charges to
different blocks compose in parallel and cost their maximum (McSherry 2009); everywhere else they add up.

A unit's name says what is known of it: `example` is one row, which has one time; `user-day` is what one `user` does
on one day, so it lies in a `user`, in a day, and in no week but one.
"""

import re
from collections.abc import Sequence
from datetime import date, datetime
from typing import Literal, get_args

from accounting.budget import EXAMPLE, Neighbors, PrivacyUnit

Block = Literal["hour", "day", "week", "month"]

_WITHIN: dict[str, tuple[Block, ...]] = {
    "hour": ("hour", "day", "week", "month"),
    "day": ("day", "week", "month"),
    "week": ("week",),
    "month": ("month",),
}
"""Which blocks hold a whole hour, day, week, month. A week may lie in two months, and a month lies in no week."""

_SHAPES: dict[Block, tuple[str, str]] = {
    "hour": ("%Y-%m-%dT%H", "2026-11-22T07"),
    "day": ("%Y-%m-%d", "2026-11-22"),
    "week": ("", "2026-W47"),
    "month": ("%Y-%m", "2026-11"),
}


def check_block(block: str | None) -> None:
    """Refuse a period that no block has."""
    if block is not None and block not in get_args(Block):
        raise ValueError(
            f"block must be one of {get_args(Block)}, or None for a data set without blocks, got {block!r}"
        )


def check_names(names: Sequence[str], block: Block | None) -> None:
    """Refuse blocks that a data set cut by ``block`` does not have, and blocks named twice."""
    if not names:
        return
    if block is None:
        raise ValueError("the data set has no blocks, since none were asked for when it was made: charge all of it")
    for name in names:
        if not _is_name(name, block):
            raise ValueError(f"a block of this data set is one {block}, such as {_SHAPES[block][1]!r}; got {name!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"each block is named once, got {', '.join(names)}")


def lies_in_one_block(unit: PrivacyUnit, neighbors: Neighbors, block: Block | None) -> bool:
    """Says whether charges to different blocks cost a unit no more than the dearest of them.

    Never under `replace`: a unit may be replaced by one that lies in another block, and then two blocks change.

    >>> lies_in_one_block("user-day", "add-remove", "week"), lies_in_one_block("user", "add-remove", "week")
    (True, False)
    """
    if block is None or neighbors == "replace":
        return False
    return unit == EXAMPLE or block in _WITHIN.get(split_unit(unit)[1], ())


def split_unit(unit: PrivacyUnit) -> tuple[str, str]:
    """Returns whose data and in which period: ("user", "day") of `user-day`, ("user", "") of `user`."""
    base, dash, period = unit.rpartition("-")
    return (base, period) if dash and base and period in _WITHIN else (unit, "")


def within(unit: PrivacyUnit, other: PrivacyUnit, order: Sequence[PrivacyUnit]) -> bool | None:
    """Says whether each ``unit`` lies in one ``other``: by their names, or else by ``order``, coarse to fine.

    False: the other way round. None: neither is known to lie in the other.

    >>> within("user-day", "user", ()), within("user", "user-day", ()), within("visit", "user", ())
    (True, False, None)
    """
    if unit in (other, EXAMPLE):
        return True
    if other == EXAMPLE:
        return False
    (base, period), (other_base, other_period) = split_unit(unit), split_unit(other)
    if base == other_base:
        if not other_period or other_period in _WITHIN.get(period, ()):
            return True
        return False if not period or period in _WITHIN[other_period] else None
    if unit in order and other in order:
        return order.index(unit) > order.index(other)
    if period and not other_period and within(base, other, order):
        return True
    if other_period and not period and within(other_base, unit, order):
        return False
    return None


def _is_name(name: object, block: Block) -> bool:
    if not isinstance(name, str) or not name.isascii():
        return False
    if block == "week":
        found = re.fullmatch(r"(\d{4})-W(\d{2})", name)
        try:
            return found is not None and bool(date.fromisocalendar(int(found[1]), int(found[2]), 1))
        except ValueError:
            return False
    shape = _SHAPES[block][0]
    try:
        return datetime.strptime(name, shape).strftime(shape) == name
    except ValueError:
        return False
