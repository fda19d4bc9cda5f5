"""Whole units: exact for the printed decimal, rounded as asked, and never flattering on the way back."""

import math
import random
from fractions import Fraction

from accounting.ledger.amounts import DELTA_PLACES, EPSILON_PLACES, at_least, at_most, to_units


def test_units_are_the_printed_decimal_rounded_as_asked() -> None:
    source = random.Random(17)
    for _ in range(2000):
        amount = source.random() * 10 ** source.uniform(-12, 3)
        exact = Fraction(repr(amount)) * 10**9
        up = to_units(amount, EPSILON_PLACES, math.ceil)
        assert up - 1 < exact <= up
        assert abs(exact - Fraction(amount) * 10**9) <= Fraction(math.ulp(amount)) * 10**9 / 2


def test_floats_of_units_never_flatter() -> None:
    source = random.Random(17)
    for _ in range(2000):
        units = source.randrange(2**63)
        for places in (EPSILON_PLACES, DELTA_PLACES):
            exact = Fraction(units, 10**places)
            assert Fraction(repr(at_most(units, places))) <= exact <= Fraction(repr(at_least(units, places)))
            assert at_least(units, places) - at_most(units, places) <= 2 * math.ulp(float(exact))


def test_ten_tenths_are_one() -> None:
    assert 10 * to_units(0.1, EPSILON_PLACES, math.ceil) == to_units(1.0, EPSILON_PLACES, math.floor)
