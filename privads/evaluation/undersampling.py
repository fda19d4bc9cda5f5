"""What training on a share of the negatives does to probabilities, and how to undo it.

Keep every positive, and each negative independently with probability w. The odds of a positive then rise by 1/w:

    q / (1 − q) = (1/w) p / (1 − p),  so  p = q / (q + (1 − q) / w)  and  logit p = logit q + ln w

with p the probability in the whole log and q in the sample (He et al. 2014, ADKDD, section 6.3). The same for a model
whose logits are at hand: add ln w to the intercept. Or weigh the kept negatives by 1/w in the loss: then the model
predicts p itself, and nothing is to be corrected; never do both.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from privads.evaluation.metrics import Floats


def corrected(scores: ArrayLike, *, keep_rate: float) -> Floats:
    """Returns the probabilities in the whole log, p = q / (q + (1 − q) / w), of those in a sample.

    scores: (rows,) q in [0, 1]. keep_rate: w in (0, 1], the share of negatives that was kept.

    >>> corrected([0.5], keep_rate=0.25).tolist()  # odds 1 in the sample, 1/4 in the log
    [0.2]
    """
    _check_rate(keep_rate)
    sampled = _probabilities(scores)
    return np.asarray(keep_rate * sampled / (keep_rate * sampled + (1.0 - sampled)))


def distorted(scores: ArrayLike, *, keep_rate: float) -> Floats:
    """Returns the probabilities in a sample, q = p / (p + w (1 − p)), of those in the whole log: inverts `corrected`.

    >>> distorted([0.2], keep_rate=0.25).tolist()
    [0.5]
    """
    _check_rate(keep_rate)
    whole = _probabilities(scores)
    return np.asarray(whole / (whole + keep_rate * (1.0 - whole)))


def logit_shift(*, keep_rate: float) -> float:
    """Returns ln w, what to add to the logits of a model trained on the sample.

    >>> round(logit_shift(keep_rate=0.1), 4)
    -2.3026
    """
    _check_rate(keep_rate)
    return math.log(keep_rate)


def weights(labels: ArrayLike, *, keep_rate: float) -> Floats:
    """Returns what each kept row counts for, (rows,): 1 for a positive, 1/w for a negative.

    Sums with these weights are unbiased for the whole log's. With privacy a unit's bound holds for its weighted rows.

    >>> weights([1, 0], keep_rate=0.25).tolist()
    [1.0, 4.0]
    """
    _check_rate(keep_rate)
    label = np.asarray(labels, dtype=np.float64)
    if not np.all((label == 0.0) | (label == 1.0)):
        raise ValueError("labels must be 0 or 1")
    return np.where(label == 1.0, 1.0, 1.0 / keep_rate)


def _probabilities(scores: ArrayLike) -> Floats:
    found = np.asarray(scores, dtype=np.float64)
    if not np.all((found >= 0.0) & (found <= 1.0)):
        raise ValueError("scores must be probabilities in [0, 1]")
    return found


def _check_rate(keep_rate: float) -> None:
    if not 0.0 < keep_rate <= 1.0:
        raise ValueError(f"keep_rate must be in (0, 1], got {keep_rate}")
