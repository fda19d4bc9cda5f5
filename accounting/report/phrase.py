"""How an epsilon is printed, in every report, on the command line and in every error.

A bound is rounded against us, and it never stands alone: `bound` puts delta, unit, neighbors and what was
released into the same line.
"""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

NOT_STATED = "not stated"
"""What is printed for anything missing; never a blank."""

_ANY_FLOAT = Context(prec=320)  # digits enough for the largest float with two decimals


def round_up(value: float) -> str:
    """Returns ``value`` rounded toward infinity: to 2 decimals, or to 3 significant digits below 0.1.

    Exact in the shortest decimal form of the float: 2.98 stays 2.98.

    >>> [round_up(x) for x in (2.98, 2.9801, 3.0, 0.01231)]
    ['2.98', '2.99', '3.00', '0.0124']
    """
    return _rounded(value, ROUND_CEILING)


def round_down(value: float) -> str:
    """Returns ``value`` rounded toward minus infinity, as `round_up` does upwards.

    >>> [round_down(x) for x in (2.98, 2.9899, 0.01239, 0.0)]
    ['2.98', '2.98', '0.0123', '0']
    """
    return _rounded(value, ROUND_FLOOR)


def bound(
    epsilon: float, *, delta: float | None, unit: str, neighbors: str, released: str, relation: str = "<="
) -> str:
    """Returns the one phrase in which an epsilon is ever printed; every other place calls this.

    ``relation`` is "<=" for an upper bound (rounded up), ">=" for a lower one and "=" for what is left of a
    budget (both rounded down). A delta is printed with 3 significant digits, rounded the same way.

    >>> bound(2.9801, delta=1e-6, unit="user", neighbors="add-remove", released="final model")
    'epsilon <= 2.99 (delta 1e-06, user, add/remove, final model)'
    """
    mode = ROUND_CEILING if relation == "<=" else ROUND_FLOOR
    stated_delta = NOT_STATED if delta is None else f"{_significant(delta, mode):.3g}"
    terms = f"delta {stated_delta}, {unit}, {neighbors.replace('-', '/')}, {released}"
    return f"epsilon {relation} {_rounded(epsilon, mode)} ({terms})"


def _rounded(value: float, mode: str) -> str:
    if math.isinf(value):
        return "infinity"
    exact = Decimal(repr(float(value)))
    if abs(exact) < Decimal("0.1"):
        return f"{_significant(value, mode):.3g}" if exact else "0"
    return f"{exact.quantize(Decimal('0.01'), mode, _ANY_FLOAT):f}"


def _significant(value: float, mode: str) -> float:
    exact = Decimal(repr(float(value)))
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 2), rounding=mode))
