"""Noise on whole numbers: the tables are the law to 128 bits, and what is drawn from them has it."""

import itertools
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from privads.noise import Randomness
from privads.noise_tables import (
    DIGITS_AT_ONCE,
    Table,
    gaussian_distance,
    geometric,
    half_gaussian,
    is_not_zero,
    laplace_distance,
    rounded_gaussian_distance,
    rounded_half_gaussian,
)

mpmath.mp.dps = 80
SAMPLES = 50_000  # a chi-square test at alpha 1e-6 then sees a scale that is 5 % off with miss probability < 1e-6
ALPHA = 1e-6


def probabilities(table: Table) -> list[mpmath.mpf]:
    """The law that a table has when all its 128 bits are drawn."""
    bounds = [0, *((int(high) << 64) + int(low) for high, low in zip(table.high, table.low, strict=True)), 1 << 128]
    return [mpmath.mpf(end - start) / 2**128 for start, end in itertools.pairwise(bounds)]


def distance(table: Table, law: Callable[[int], mpmath.mpf]) -> mpmath.mpf:
    found = probabilities(table)
    exact = [law(k) for k in range(len(found))]
    return (sum(abs(a - b) for a, b in zip(found, exact, strict=True)) + abs(1 - sum(exact))) / 2


@pytest.mark.parametrize("noise_std", [0.2, 1.0, 17.0, 333.3])
def test_the_gaussian_s_table_is_within_its_distance_of_the_law(noise_std: float) -> None:
    variance = mpmath.mpf(noise_std) ** 2
    weights = [mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * variance)) for k in range(int(25 * noise_std) + 9)]
    total = 2 * sum(weights) - 1
    table = half_gaussian(noise_std)
    assert distance(table, lambda k: (2 if k else 1) * weights[k] / total) <= table.distance
    assert gaussian_distance(noise_std) == table.distance < 2**-100


@pytest.mark.parametrize("noise_std", [0.05, 0.3, 1.0, 3.999, 4.0, 17.0, 333.3])
def test_the_rounded_gaussian_s_table_is_within_its_distance_of_the_law(noise_std: float) -> None:
    width = mpmath.mpf(noise_std) * mpmath.sqrt(2)
    above = [mpmath.erfc((k + mpmath.mpf(0.5)) / width) for k in range(int(25 * noise_std) + 9)]
    table = rounded_half_gaussian(noise_std)
    assert distance(table, lambda k: above[k - 1] - above[k] if k else 1 - above[0]) <= table.distance
    assert rounded_gaussian_distance(noise_std) == table.distance < 2**-100


@pytest.mark.parametrize("rate", [2.0, 0.3, 1 / 5000, 1 / 65536])
def test_the_geometric_s_tables_are_within_their_distances_of_the_law(rate: float) -> None:
    high, low, digits = geometric(rate)
    step = mpmath.mpf(rate) * digits
    assert distance(high, lambda q: mpmath.exp(-step * q) * -mpmath.expm1(-step)) <= high.distance
    assert (low is None) == (digits == 1)
    if low is not None:
        assert digits == DIGITS_AT_ONCE == len(low.high) + 1
        rest = mpmath.mpf(rate)
        whole = mpmath.expm1(-rest) / mpmath.expm1(-rest * digits)
        assert distance(low, lambda r: mpmath.exp(-rest * r) * whole) <= low.distance
    ratio = mpmath.exp(-mpmath.mpf(rate))
    nonzero = is_not_zero(rate)
    assert distance(nonzero, lambda k: (2 * ratio if k else 1 - ratio) / (1 + ratio)) <= nonzero.distance
    assert laplace_distance(1 / rate) < 2**-100


def test_the_largest_tables_stay_within_2_to_the_minus_100() -> None:
    assert gaussian_distance(20_000.0) < 2**-100
    assert laplace_distance(2.0**22) < 2**-100


Draw = Callable[[int, float], NDArray[np.int64]]


def gaussian(count: int, noise_std: float) -> NDArray[np.int64]:
    return Randomness().discrete_gaussian(count, noise_std=noise_std)


def rounded(count: int, noise_std: float) -> NDArray[np.int64]:
    return Randomness().rounded_gaussian(count, noise_std=noise_std)


def laplace(count: int, scale: float) -> NDArray[np.int64]:
    return Randomness().discrete_laplace(count, scale=scale)


def gaussian_law(z: NDArray[np.float64], noise_std: float) -> NDArray[np.float64]:
    weight = np.exp(-(z**2) / (2 * noise_std**2))
    return np.asarray(weight / weight.sum())


def rounded_law(z: NDArray[np.float64], noise_std: float) -> NDArray[np.float64]:
    return np.asarray(stats.norm.cdf((z + 0.5) / noise_std) - stats.norm.cdf((z - 0.5) / noise_std))


def laplace_law(z: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    return np.asarray(stats.dlaplace.pmf(z, 1 / scale))


def has_law(drawn: NDArray[np.int64], law: NDArray[np.float64], reach: int) -> bool:
    """A chi-square test over at most 60 bins of neighboring numbers, each expected at least 20 times."""
    places = np.cumsum(law)
    bins = np.minimum((places - law / 2) * 60, 59.999).astype(int)
    expected = np.bincount(bins, law, 60) * len(drawn)
    seen = np.bincount(bins[np.clip(drawn + reach, 0, len(law) - 1)], minlength=60)
    used = expected >= 20
    statistic = ((seen[used] - expected[used]) ** 2 / expected[used]).sum()
    return bool(statistic < stats.chi2.isf(ALPHA, used.sum() - 1)) and seen[~used].sum() < 20 + 6 * 20**0.5


CASES = [
    *((gaussian, gaussian_law, std) for std in (0.4, 1.0, 17.0, 2000.0)),
    *((rounded, rounded_law, std) for std in (0.4, 1.0, 17.0, 2000.0)),
    *((laplace, laplace_law, scale) for scale in (0.4, 3.0, 5000.0, 65536.0)),
]


@pytest.mark.parametrize(("draw", "law", "scale"), CASES)
def test_what_is_drawn_has_the_law(draw: Draw, law: Callable[..., NDArray[np.float64]], scale: float) -> None:
    reach = int(40 * scale) + 5
    z = np.arange(-reach, reach + 1, dtype=np.float64)
    drawn = draw(SAMPLES, scale)
    assert has_law(drawn, law(z, scale), reach)
    if scale >= 1:
        for wrong in (0.93, 1.07):
            assert not has_law(drawn, law(z, wrong * scale), reach)
    # what bins of neighbors would not see of the larger scales
    for chosen, numbers in ((drawn % 2 == 0, z % 2 == 0), (drawn > 0, z > 0)):
        assert stats.binomtest(int(chosen.sum()), SAMPLES, float(law(z, scale)[numbers].sum())).pvalue > ALPHA


def test_where_64_bits_are_equal_the_next_64_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(high=np.array([5, 5, 9], dtype=np.uint64), low=np.array([10, 20, 0], dtype=np.uint64), distance=0.0)
    asked = [np.array([4, 5, 5, 5, 5, 9, 10], dtype=np.uint64), np.array([9, 10, 19, 20, 0], dtype=np.uint64)]
    source = Randomness(insecure_seed=0)
    monkeypatch.setattr(source, "_words", lambda count: asked.pop(0))
    # k counts the entries 5:10, 5:20 and 9:0 that are at most the word and its low word
    assert source._drawn(table, 7).tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert asked == []


def test_a_seed_repeats_noise_and_none_does_not() -> None:
    one, two = (Randomness(insecure_seed=3).discrete_laplace(50, scale=900.0) for _ in range(2))
    assert (one == two).all()
    fresh = [Randomness().discrete_gaussian(50, noise_std=900.0) for _ in range(2)]
    assert (fresh[0] != fresh[1]).any()


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_opendp_draws_from_the_same_law(kind: str) -> None:
    pytest.importorskip("opendp", reason="the extra opendp is not installed")
    source, count = Randomness(), 20_000
    if kind == "gaussian":
        ours, theirs = (source.discrete_gaussian(count, noise_std=4.0, backend=one) for one in ("table", "opendp"))
    else:
        ours, theirs = (source.discrete_laplace(count, scale=3.0, backend=one) for one in ("table", "opendp"))
    edges = np.arange(-8, 9)
    table = [np.bincount(np.searchsorted(edges, one), minlength=18) for one in (ours, theirs)]
    assert stats.chi2_contingency(table).pvalue > ALPHA


def test_opendp_s_noise_cannot_be_repeated() -> None:
    with pytest.raises(ValueError, match="noise by OpenDP cannot be repeated"):
        Randomness(insecure_seed=1).discrete_gaussian(5, noise_std=1.0, backend="opendp")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="noise_std must be positive and finite"):
        Randomness().discrete_gaussian(1, noise_std=scale)
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        Randomness().discrete_laplace(1, scale=scale)


def test_too_large_a_table_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="noise_std 1e\\+09 needs too large a table: count in larger units"):
        Randomness().discrete_gaussian(1, noise_std=1e9)
