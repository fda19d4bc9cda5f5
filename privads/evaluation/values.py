"""How well a number is predicted: what ads teams ask of a value model, with intervals over the units who own the rows.

Rows i have a number y_i >= 0, a predicted mean p_i >= 0 and a weight 1. With m = (1/n) Σ y_i:

    calibration             Σ p_i / Σ y_i
    relative squared error  Σ (y_i − p_i)² / Σ (y_i − m)²; 1 for the rows' own mean, below 1 is better
    normalized Gini         G(p) / G(y) with G(s) = 2 Σ_ij y_i (1[s_i > s_j] + 1[s_i = s_j]/2) / (n Σ y_i) − 1

G(s) is the Gini coefficient of the numbers in the order of s (Wang et al. 2019, arXiv 1912.07753, section 4.3): the
normalized one is 1 for the right order, 0 for no order, and 2 AUC − 1 where the numbers are 0 and 1. A metric that the
rows do not define is `math.nan`: all of them where every number is 0, the error and the Gini where all are one number.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from privads.evaluation.metrics import (
    Floats,
    Interval,
    check_bootstrap,
    codes_of_units,
    concordance,
    interval,
    multiplicities,
    ratio,
)

_ROUNDING = 1e-12
"""A variance below this part of the mean square is what rounding leaves of none."""


@dataclass(frozen=True)
class ValueMetrics:
    """One number's metrics on one set of rows. mean: of the numbers themselves."""

    rows: int
    mean: Interval
    calibration: Interval
    relative_squared_error: Interval
    normalized_gini: Interval


def evaluate_value(
    labels: ArrayLike,
    predicted: ArrayLike,
    units: ArrayLike,
    *,
    level: float = 0.95,
    replicates: int = 200,
    seed: int = 0,
) -> ValueMetrics:
    """Returns the metrics of predicted means, with intervals from a bootstrap over units, as `evaluate` has them.

    labels, predicted: (rows,) finite and not negative. units: (rows,) integer codes of who owns each row.

    >>> evaluate_value([0.0, 1.0, 5.0], [1.0, 2.0, 3.0], [0, 1, 2]).calibration.value
    1.0
    """
    check_bootstrap(level, replicates)
    label, mean = np.asarray(labels, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if label.ndim != 1 or mean.shape != label.shape:
        raise ValueError(f"labels and predicted must have one shape (rows,), got {label.shape} and {mean.shape}")
    for name, array in (("labels", label), ("predicted", mean)):
        if not np.all(np.isfinite(array) & (array >= 0)):
            raise ValueError(f"{name} must be finite and not negative")
    codes = codes_of_units(units, len(label))
    columns = (np.ones_like(label), label, label**2, mean, (label - mean) ** 2)
    per_unit = np.stack([np.bincount(codes, column) for column in columns])  # (5, units)
    ones = np.ones_like(label)
    by_prediction, by_label = (concordance(label, ones, score, codes) for score in (mean, label))

    def measured(times: Floats) -> tuple[float, ...]:
        count, total, squares, predictions, errors = np.einsum("su,u->s", per_unit, times).tolist()
        spread = squares - ratio(total**2, count)
        gini, best = (2 * one(times) - 1 for one in (by_prediction, by_label))
        return (
            ratio(total, count),
            ratio(predictions, total),
            ratio(errors, spread) if spread > _ROUNDING * squares else math.nan,
            ratio(gini, best) if best > 0 else math.nan,
        )

    found = np.array([measured(times) for times in multiplicities(codes, replicates, seed)])
    return ValueMetrics(len(label), *(interval(found[:, column], level) for column in range(found.shape[1])))
