"""Tables from which noise on whole numbers is drawn: cumulative probabilities in 128 bits, in exact integer arithmetic.

A draw compares 128 random bits with the table, so that its law is within ``distance`` of the exact one in total
variation: at most ``entries 2^-128`` by rounding, and the tail beyond the table. That distance times the number of
draws is what a release adds to its delta. Of the bits the first 64 almost always decide; the others are drawn only
where they do not.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

_WORD = 64
_BITS = 128
"""Of a cumulative probability."""

_FIXED = 320
"""Bits behind the point while a table is made: what a million products lose is far below `_BITS`."""

_DIGITS = 110
"""Decimal digits of an exponential, more than `_FIXED` bits."""

MOST_ENTRIES = 1 << 21
"""Of one table: 32 MiB, and two seconds to make."""

DIGITS_AT_ONCE = 1 << 12
"""A geometric number is drawn as ``q m + r``, with r below this m: both tables are then small."""


@dataclass(frozen=True, eq=False)
class Table:
    """The law of a whole number k = 0, 1, ...: k is how many entries are at most 128 random bits.

    high, low: (entries,) the two words of ``floor(2^128 P[number < k])`` for k = 1, 2, ... distance: from the exact
    law, in total variation.
    """

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    distance: float

    @classmethod
    def of(cls, weights: Iterator[int]) -> "Table":
        """Returns the table of a law from its weights, as fixed-point numbers; the last is a bound on all beyond."""
        *kept, beyond = weights
        total = sum(kept)
        scaled = [(one << _BITS) // total for one in accumulate(kept)]
        scaled = [one for one in scaled if one >> _BITS == 0]  # the last are 1, which no draw reaches
        mask = (1 << _WORD) - 1
        tail = math.ldexp(beyond / total, 1)  # cut off, and spread over the others
        return cls(
            high=np.array([one >> _WORD for one in scaled], dtype=np.uint64),
            low=np.array([one & mask for one in scaled], dtype=np.uint64),
            distance=math.ldexp(len(kept), -_BITS) + tail,
        )


@lru_cache(maxsize=16)
def half_gaussian(noise_std: float) -> Table:
    """Returns the law of |Z| for ``P[Z = z] ~ exp(-z^2 / (2 noise_std^2))`` on the whole numbers."""
    variance = Fraction(noise_std) ** 2
    reach = math.ceil(noise_std * math.sqrt(2 * math.log(2) * (_BITS + 16))) + 2
    _check_entries(reach, "noise_std", noise_std)
    return Table.of(_half_gaussian(variance, reach))


def _half_gaussian(variance: Fraction, reach: int) -> Iterator[int]:
    ratio, square = _exp_minus(1 / (2 * variance)), _exp_minus(1 / variance)
    weight = 1 << _FIXED
    yield weight
    for _ in range(reach):
        weight = (weight * ratio) >> _FIXED  # exp(-k^2 / 2 s^2), whose ratio to the one before falls by ``square``
        ratio = (ratio * square) >> _FIXED
        yield 2 * weight
    weight = (weight * ratio) >> _FIXED
    yield 2 * (weight << _FIXED) // ((1 << _FIXED) - ratio)  # a geometric series bounds the rest


@lru_cache(maxsize=16)
def is_not_zero(rate: float) -> Table:
    """Returns the law of [Z != 0] for ``P[Z = z] ~ exp(-rate |z|)``: with a = exp(-rate), 2 a / (1 + a)."""
    ratio = _exp_minus(Fraction(rate))
    return Table.of(iter([(1 << _FIXED) - ratio, 2 * ratio, 0]))


@lru_cache(maxsize=16)
def geometric(rate: float) -> tuple[Table, Table | None, int]:
    """Returns (law of q, law of r, m) such that ``G = q m + r`` has ``P[G >= g] = exp(-rate g)``; without r m is 1.

    Both parts of a geometric number are independent: ``exp(-rate (q m + r))`` is a product.
    """
    exact = Fraction(rate)
    reach = math.ceil((_BITS + 16) * math.log(2) / rate) + 1
    if reach <= DIGITS_AT_ONCE:
        return Table.of(_powers(exact, reach, beyond=True)), None, 1
    whole = math.ceil(reach / DIGITS_AT_ONCE) + 1
    _check_entries(whole, "scale", 1 / rate)
    high = Table.of(_powers(exact * DIGITS_AT_ONCE, whole, beyond=True))
    return high, Table.of(_powers(exact, DIGITS_AT_ONCE, beyond=False)), DIGITS_AT_ONCE


def _powers(rate: Fraction, count: int, *, beyond: bool) -> Iterator[int]:
    """Yields exp(-rate k) for k = 0 .. count - 1, and at the end the sum of those after them, where they belong."""
    ratio, weight = _exp_minus(rate), 1 << _FIXED
    for _ in range(count):
        yield weight
        weight = (weight * ratio) >> _FIXED
    yield (weight << _FIXED) // ((1 << _FIXED) - ratio) if beyond else 0


def gaussian_distance(noise_std: float) -> float:
    """Returns the total variation distance of a `discrete_gaussian` draw from the exact law."""
    return half_gaussian(noise_std).distance


def laplace_distance(scale: float) -> float:
    """Returns the total variation distance of a `discrete_laplace` draw from the exact law."""
    high, low, _ = geometric(1 / scale)
    return is_not_zero(1 / scale).distance + high.distance + (0.0 if low is None else low.distance)


def _exp_minus(x: Fraction) -> int:
    """Returns exp(-x) as a fixed-point number."""
    with localcontext() as context:
        context.prec = _DIGITS
        power = (-Decimal(x.numerator) / Decimal(x.denominator)).exp()
        digits = int(power.scaleb(_DIGITS))
        fixed: int = (digits << _FIXED) // 10**_DIGITS
        return fixed


def _check_entries(entries: int, name: str, value: float) -> None:
    if entries > MOST_ENTRIES:
        raise ValueError(
            f"noise on whole numbers with {name} {value:g} needs too large a table: count in larger units, such as "
            "dozens or cents instead of thousandths"
        )
