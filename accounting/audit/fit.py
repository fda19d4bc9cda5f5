"""An estimate of epsilon from scores that are taken to be normal numbers. It proves nothing: use it beside a bound.

If scores of included canaries are N(a, s^2) and those of the others N(b, s^2), the two differ by mu = (a - b) / s
standard deviations, which is the epsilon of the Gaussian mechanism with that mu (Andrew et al. 2024, arXiv 2302.03098,
for canary clients of a federation; Nasr et al. 2023, arXiv 2302.07956). The estimate uses every score, and so tells far
more than a bound does; but a leak in the tails alone, or canaries that disturb each other, are not in its picture.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from accounting.audit import ideal
from accounting.audit.record import BACKWARDS, DETECTED, Audit, as_scores, check_claim


def gaussian_fit(
    scores_in: ArrayLike,
    scores_out: ArrayLike,
    *,
    claimed_epsilon: float,
    delta: float,
    significance: float = 0.05,
) -> Audit:
    """Returns the estimate: epsilon at delta of the lower confidence limit of mu.

    With the means, and s pooled over both: ``mu - z(significance) sqrt(1/n + 1/k + mu^2 / (2 (n + k - 2)))`` (Hedges
    1981, for large samples). ``kind`` is "estimate" and ``verdict`` never "violation".

    scores_in, scores_out: (n,), (k,), of canaries included and not, together at least 4; higher speaks for "included".
    delta is in (0, 1). ``correct`` counts the scores on their side of the middle between the means. Raises ValueError
    for NaN and infinite scores, for scores that are all the same, or terms out of range.

    >>> rng = np.random.default_rng(1)
    >>> found = gaussian_fit(rng.normal(1.0, size=500), rng.normal(size=500), claimed_epsilon=4.38, delta=1e-5)
    >>> found.verdict, f"{found.lower:.2f} {found.power:.2f}"
    ('consistent', '4.07 3.83')
    """
    check_claim(claimed_epsilon, delta, significance, pure=False)
    inside, outside = as_scores("scores_in", scores_in), as_scores("scores_out", scores_out)
    total = inside.size + outside.size
    if total < 4:
        raise ValueError(f"scores_in and scores_out must have at least 4 numbers together, got {total}")
    if not (np.isfinite(inside).all() and np.isfinite(outside).all()):
        raise ValueError("scores_in and scores_out must be finite: an infinite score has no mean")
    squares = inside.size * inside.var() + outside.size * outside.var()
    if not 0 < squares < math.inf:
        raise ValueError(f"scores_in and scores_out must be spread out, not each all the same, got variance {squares}")
    gap = float((inside.mean() - outside.mean()) / math.sqrt(squares / (total - 2)))
    middle = (inside.mean() + outside.mean()) / 2
    right = int((inside > middle).sum() + (outside <= middle).sum())

    def lower(mu: float, certainty: float) -> float:
        spread = math.sqrt(1 / inside.size + 1 / outside.size + mu**2 / (2 * (total - 2)))
        return mu + float(ndtri(1 - certainty)) * spread

    def detected(true: float) -> bool:
        return lower(lower(ideal.gaussian_mu(true, delta), DETECTED), 1 - significance) > claimed_mu

    claimed_mu = ideal.gaussian_mu(claimed_epsilon, delta)
    backwards = lower(-gap, 1 - BACKWARDS) > 0
    return Audit(
        method="Gaussian fit",
        claimed_epsilon=claimed_epsilon,
        delta=delta,
        significance=significance,
        lower=ideal.epsilon_of_mu(lower(gap, 1 - significance), delta),
        kind="estimate",
        canaries=total,
        guesses=total,
        correct=right,
        power=ideal.epsilon_of_mu(lower(claimed_mu, 1 - significance), delta),
        ceiling=math.inf,
        detectable=math.inf if backwards else ideal.least_detected(detected, claimed_epsilon),
    )
