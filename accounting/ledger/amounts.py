"""Amounts as the ledger counts them: whole numbers, rounded against whoever spends.

Losses (epsilon, rho, a Renyi divergence) are counted in units of 1e-9, deltas in units of 1e-18; a charge is rounded
up to the next unit, a limit down. A float is taken for the decimal number that it prints as, so 0.1 is one tenth.
Hence ten charges of 0.1 fill a limit of 1.0 exactly, and a charge of the limit's own figures fits. (Read as its exact
binary value, 0.1 is 5.6e-18 above one tenth, and neither would fit. The decimal differs from it by at most half a
unit in the float's last place, a relative 1.2e-16: far below any accountant's own error.)
"""

import math
from collections.abc import Callable
from fractions import Fraction

EPSILON_PLACES = 9
DELTA_PLACES = 18
"""Decimal places of the ledger's units: amounts up to 9.2e9 and 9.2 are 64-bit integers."""

MOST_UNITS = 2**63 - 1


def to_units(amount: float, places: int, rounding: Callable[[Fraction], int]) -> int:
    """Returns ``rounding(amount * 10**places)``, exactly, for the decimal number that ``amount`` prints as.

    >>> to_units(0.1, EPSILON_PLACES, math.ceil), to_units(1e-10, EPSILON_PLACES, math.ceil)
    (100000000, 1)
    """
    return rounding(Fraction(repr(float(amount))) * 10**places)


def at_least(units: int, places: int) -> float:
    """Returns the least float that prints as no less than ``units / 10**places``."""
    exact = Fraction(units, 10**places)
    value = float(exact)
    while Fraction(repr(value)) < exact:
        value = math.nextafter(value, math.inf)
    return value


def at_most(units: int, places: int) -> float:
    """Returns the largest float that prints as no more than ``units / 10**places``."""
    exact = Fraction(units, 10**places)
    value = float(exact)
    while Fraction(repr(value)) > exact:
        value = math.nextafter(value, -math.inf)
    return value
