"""Tables from which noise on whole numbers is drawn: cumulative probabilities in 128 bits, in exact integer arithmetic.

A draw compares 128 random bits with the table, so that its law is within ``distance`` of the exact one in total
variation: at most ``entries 2^-128`` by rounding, and the tail beyond the table. That distance times the number of
draws is what a release adds to its delta. Of the bits the first 64 almost always decide; the others are drawn only
where they do not.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

import mpmath
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
"""Of one table: 32 MiB, and 2 to 20 seconds to make."""

_LEAST_SERIES = 4
"""Standard deviations from here on are integrated by a series."""

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
        scaled = [(one << _BITS) // total for one in itertools.accumulate(kept)]
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
    check_noise_std(noise_std)
    return Table.of(_half_gaussian(variance, _reach(noise_std)))


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


@lru_cache(maxsize=64)
def rounded_half_gaussian(noise_std: float) -> Table:
    """Returns the law of |round(g)| for g from N(0, noise_std^2).

    A whole number plus round(g) is the rounding of that number plus g: what is done to the Gaussian mechanism's result
    afterwards. So its privacy is exactly that mechanism's, for vectors too, which the discrete Gaussian's is not known
    to be.
    """
    check_noise_std(noise_std)
    return Table.of(_rounded_half_gaussian(Fraction(noise_std), _reach(noise_std)))


def _rounded_half_gaussian(noise_std: Fraction, reach: int) -> Iterator[int]:
    """Yields ``integral of exp(-x^2 / 2) dx`` over s x in [k - 1/2, k + 1/2] for k = 0, 1, ..., twice that for k > 0.

    At x = k / s, with u = 1 / (2 s) and Hermite's polynomials: ``exp(-x^2 / 2) sum_n He_2n(x) 2 u^(2n+1) / (2n+1)!``,
    the Taylor series of the density integrated term by term, which converges fast where s is a few units. Below that
    mpmath's error function gives the few entries that there are.
    """
    if noise_std < _LEAST_SERIES:
        yield from _by_error_function(noise_std, reach)
        return
    half = (1 << _FIXED) * noise_std.denominator // (2 * noise_std.numerator)  # u
    square = (half * half) >> _FIXED
    coefficients = [2 * half]
    while coefficients[-1]:
        n = len(coefficients)
        coefficients.append(((coefficients[-1] * square) >> _FIXED) // (2 * n * (2 * n + 1)))
    ratio, change = _exp_minus(1 / (2 * noise_std**2)), _exp_minus(1 / noise_std**2)
    density = 1 << _FIXED
    for k in range(reach + 1):
        if density >> (_FIXED - _BITS - 64) == 0:
            yield 0  # so far in the tail that no bit is left of it
        else:
            total, two, one = coefficients[0], 1 << _FIXED, 2 * k * half  # the sum, He_0 and He_1
            x = one
            for n, coefficient in enumerate(coefficients[1:], start=1):
                two = ((x * one) >> _FIXED) - (2 * n - 1) * two  # He_2n from the two below it
                total += (coefficient * two) >> _FIXED
                one = ((x * two) >> _FIXED) - 2 * n * one
            yield (density * total) >> _FIXED << (1 if k else 0)
        last, density, ratio = density, (density * ratio) >> _FIXED, (ratio * change) >> _FIXED
    yield 2 * last  # a normal's upper tail is below its density


def _by_error_function(noise_std: Fraction, reach: int) -> Iterator[int]:
    with mpmath.workprec(_FIXED):
        width = mpmath.mpf(noise_std.numerator) / noise_std.denominator * mpmath.sqrt(2)
        above = [mpmath.erfc((k + mpmath.mpf(0.5)) / width) for k in range(reach + 1)]
        yield int(mpmath.ldexp(1 - above[0], _FIXED))
        for before, after in itertools.pairwise(above):
            yield int(mpmath.ldexp(before - after, _FIXED))
        yield int(mpmath.ldexp(above[-1], _FIXED))


@lru_cache(maxsize=16)
def is_not_zero(rate: float) -> Table:
    """Returns the law of [Z != 0] for ``P[Z = z] ~ exp(-rate |z|)``: with a = exp(-rate), 2 a / (1 + a)."""
    ratio = _exp_minus(Fraction(rate))
    return Table.of(iter([(1 << _FIXED) - ratio, 2 * ratio, 0]))


@lru_cache(maxsize=16)
def bernoulli(states: int, epsilon: float) -> Table:
    """Returns the law of a coin that is 1 with probability ``states / (states + exp(epsilon) - 1)``."""
    ratio = _exp_minus(Fraction(epsilon))  # both sides times exp(-epsilon)
    return Table.of(iter([(1 << _FIXED) - ratio, states * ratio, 0]))


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


def check_noise_std(noise_std: float) -> None:
    """Refuse what a table of a Gaussian is too large for."""
    _check_entries(_reach(noise_std), "noise_std", noise_std)


def gaussian_distance(noise_std: float) -> float:
    """Returns the total variation distance of a `discrete_gaussian` draw from the exact law."""
    return half_gaussian(noise_std).distance


def rounded_gaussian_distance(noise_std: float) -> float:
    """Returns the total variation distance of a `rounded_gaussian` draw from the exact law."""
    return rounded_half_gaussian(noise_std).distance


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


def _reach(noise_std: float) -> int:
    """Returns from which number on a Gaussian's tail is below the last bit of a table."""
    return math.ceil(noise_std * math.sqrt(2 * math.log(2) * (_BITS + 16))) + 2


def _check_entries(entries: int, name: str, value: float) -> None:
    if entries > MOST_ENTRIES:
        raise ValueError(
            f"noise on whole numbers with {name} {value:g} needs too large a table: count in larger units, such as "
            "dozens or cents instead of thousandths"
        )
