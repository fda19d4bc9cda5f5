"""Stateless transforms: functions of one value and public constants, the same everywhere and for ever."""

import doctest
import hashlib
import math
import struct

import numpy as np
import pytest
from scipy import stats

from privads.features import stateless
from privads.features.stateless import hash_buckets, log_scale


def siphash(data: bytes, key: bytes) -> int:
    """SipHash-2-4 as published (Aumasson and Bernstein 2012), 64 bits."""
    mask = 2**64 - 1
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rotated(x: int, bits: int) -> int:
        return ((x << bits) | (x >> (64 - bits))) & mask

    def rounds(times: int) -> None:
        for _ in range(times):
            v[0] = (v[0] + v[1]) & mask
            v[1] = rotated(v[1], 13) ^ v[0]
            v[0] = rotated(v[0], 32)
            v[2] = (v[2] + v[3]) & mask
            v[3] = rotated(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & mask
            v[3] = rotated(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & mask
            v[1] = rotated(v[1], 17) ^ v[2]
            v[2] = rotated(v[2], 32)

    whole = len(data) - len(data) % 8
    words = [struct.unpack_from("<Q", data, at)[0] for at in range(0, whole, 8)]
    words.append(int.from_bytes(data[whole:], "little") | (len(data) & 0xFF) << 56)
    for word in words:
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def mix(x: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def buckets_of(values: list[str | None], *, field: str = "site", buckets: int = 1000) -> list[int]:
    return hash_buckets(np.array(values, dtype=object), field=field, buckets=buckets).tolist()


WORDS: list[str | None] = ["", "a", "5", "campaign-17", "exactly8", "ünïcode ✓", "x" * 100]


def test_doctests_run() -> None:
    assert doctest.testmod(stateless).failed == 0


def test_siphash_here_is_the_published_one() -> None:
    # The test vector of the paper's appendix A.
    assert siphash(bytes(range(15)), bytes(range(16))) == 0xA129CA6149BE45E5


@pytest.mark.parametrize("field", ["site", "campaign", "a field with spaces", "ü"])
@pytest.mark.parametrize("buckets", [2, 8, 4096, 2**31 - 1])
def test_buckets_are_pandas_hash_keyed_with_the_field(field: str, buckets: int) -> None:
    key = hashlib.sha256(field.encode()).hexdigest()[:16].encode()
    expected = [1 + mix(siphash(str(word).encode(), key)) % (buckets - 1) for word in WORDS]
    assert buckets_of(WORDS, field=field, buckets=buckets) == expected


def test_golden_buckets_never_change() -> None:
    """A model on disk holds these numbers: a change of them is a change of format."""
    assert buckets_of(["a", "b", "5", None, ""], field="site", buckets=256) == [48, 192, 78, 0, 105]


def test_missing_is_bucket_0_and_nothing_else_is() -> None:
    assert buckets_of([None, float("nan"), None]) == [0, 0, 0]  # type: ignore[list-item]
    many = buckets_of([str(number) for number in range(20_000)], buckets=16)
    assert min(many) == 1
    assert max(many) == 15


def test_a_bucket_depends_on_its_own_value_only() -> None:
    alone = [buckets_of([word])[0] for word in WORDS]
    assert buckets_of([*WORDS, None, "unseen"])[: len(WORDS)] == alone
    assert buckets_of(WORDS[::-1]) == alone[::-1]


def test_two_fields_hash_the_same_text_unrelatedly() -> None:
    words: list[str | None] = [str(number) for number in range(5000)]
    one, two = (np.array(buckets_of(words, field=field, buckets=101)) for field in ("site", "page"))
    same = (one == two).sum()  # Binomial(5000, 1/100): mean 50
    assert stats.binom.sf(same, 5000, 1 / 100) > 1e-6  # fails with probability 1e-6
    assert same != 5000


def test_buckets_are_uniform() -> None:
    counts = np.bincount(buckets_of([f"c{number}" for number in range(100_000)], buckets=257), minlength=257)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-6  # over fields, fails with probability 1e-6


@pytest.mark.parametrize("buckets", [1, 0, -3])
def test_fewer_than_two_buckets_are_refused(buckets: int) -> None:
    with pytest.raises(ValueError, match="buckets must be at least 2"):
        buckets_of(["a"], buckets=buckets)


def test_no_rows_give_no_buckets() -> None:
    assert buckets_of([]) == []


def signed_log(x: float) -> float:
    return math.copysign(math.log(1 + abs(x)), x)


@pytest.mark.parametrize(("low", "high"), [(0, 50), (-2, 10_000), (-100, 100), (5, 6), (-1e12, 1e12), (0, 1e300)])
def test_log_scale_is_its_formula(low: float, high: float) -> None:
    values = np.linspace(low, high, 17)
    bottom, top = signed_log(low), signed_log(high)
    expected = [2 * (signed_log(x) - bottom) / (top - bottom) - 1 for x in values]
    np.testing.assert_allclose(log_scale(values, low=low, high=high), expected, atol=1e-6)


def test_log_scale_is_monotone_and_in_minus_1_to_1() -> None:
    values = np.array([-np.inf, -1e300, -3, -2, -1, 0, 0.5, 1, 10, 9999, 1e4, 1e4 + 1, 1e300, np.inf])
    scaled = log_scale(values, low=-2, high=1e4)
    assert (np.diff(scaled) >= 0).all()
    assert (scaled[0], scaled[-1]) == (-1.0, 1.0)
    assert (np.abs(scaled) <= 1).all()
    assert scaled.dtype == np.float32


def test_log_scale_puts_a_missing_value_in_the_middle() -> None:
    assert log_scale(np.array([np.nan, 7.0]), low=0, high=7).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (math.nan, 1)])
def test_a_range_without_width_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low must be below high"):
        log_scale(np.zeros(1), low=low, high=high)
