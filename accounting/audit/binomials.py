"""What counts prove of a probability: Clopper and Pearson's limits, exact at any number of trials, one-sided."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

from accounting.audit.record import Floats


def least(count: ArrayLike, trials: int, significance: float) -> Floats:
    """Returns the p below which ``count`` or more of ``trials`` come up in less than ``significance`` of all cases.

    >>> float(least(5, 5, 0.05).round(3))  # 0.05 ** (1 / 5)
    0.549
    """
    seen = np.asarray(count, dtype=np.float64)
    return np.where(seen > 0, betaincinv(np.maximum(seen, 1), trials - np.maximum(seen, 1) + 1, significance), 0.0)


def most(count: ArrayLike, trials: int, significance: float) -> Floats:
    """Returns the p above which ``count`` or fewer of ``trials`` come up in less than ``significance`` of all cases.

    >>> float(most(0, 5, 0.05).round(3))  # 1 - 0.05 ** (1 / 5)
    0.451
    """
    return 1 - least(trials - np.asarray(count, dtype=np.float64), trials, significance)


def ratio(likely: ArrayLike, rare: ArrayLike, delta: float) -> Floats:
    """Returns the epsilon of an event with at least ``likely`` against at most ``rare``: ``log((a - delta) / b)``.

    -inf where ``likely`` is not above delta. (epsilon, delta)-DP says ``a <= exp(epsilon) b + delta``.
    """
    above = np.asarray(likely, dtype=np.float64) - delta
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.maximum(above, 0.0)) - np.log(np.asarray(rare, dtype=np.float64)))
