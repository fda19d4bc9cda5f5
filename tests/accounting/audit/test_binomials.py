"""Clopper and Pearson's limits: another library's, and the definition."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from accounting.audit.binomials import least, most, ratio


@pytest.mark.parametrize(("count", "trials"), [(0, 1), (1, 1), (0, 50), (3, 50), (49, 50), (50, 50), (700, 1000)])
@pytest.mark.parametrize("level", [0.001, 0.05, 0.4])
def test_limits_are_another_librarys(count: int, trials: int, level: float) -> None:
    below = binomtest(count, trials, alternative="greater").proportion_ci(1 - level, method="exact")
    above = binomtest(count, trials, alternative="less").proportion_ci(1 - level, method="exact")
    assert float(least(count, trials, level)) == pytest.approx(below.low, rel=1e-9, abs=1e-12)
    assert float(most(count, trials, level)) == pytest.approx(above.high, rel=1e-9, abs=1e-12)


def test_limits_of_many_counts_are_those_of_each() -> None:
    counts = np.arange(11)
    np.testing.assert_array_equal(least(counts, 10, 0.05), [float(least(c, 10, 0.05)) for c in counts])
    assert (np.diff(least(counts, 10, 0.05)) > 0).all()


def test_the_ratio_is_the_epsilon_that_the_two_chances_need() -> None:
    assert float(ratio(0.5, 0.1, 0.0)) == pytest.approx(math.log(5))
    assert float(ratio(0.5, 0.1, 0.2)) == pytest.approx(math.log(3))
    assert float(ratio(0.1, 0.5, 0.2)) == -math.inf
