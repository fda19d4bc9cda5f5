"""A bound on epsilon for a mechanism whose output law is known: randomized response, Laplace, a discrete Gaussian.

Outputs are drawn for a fixed pair of neighboring inputs. By Neyman and Pearson (1933) the event that tells the two laws
apart best is one where their ratio is large; which of these is told by the laws, before any output is seen. How often
it happens for either input is counted, and bounded by Clopper and Pearson's limits. The laws only choose the event and
say what a correct mechanism would show: the bound holds whatever the mechanism really does.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from accounting.audit import ideal
from accounting.audit.binomials import least, most, ratio
from accounting.audit.laws import Laws
from accounting.audit.record import DETECTED, Audit, Floats, as_scores, check_claim


def likelihood_ratio(
    outputs_first: ArrayLike,
    outputs_second: ArrayLike,
    laws: Laws,
    *,
    claimed_epsilon: float,
    delta: float,
    significance: float = 0.05,
) -> Audit:
    """Returns the audit by one event, the one that would prove most if the mechanism kept to ``laws``.

    outputs_first, outputs_second: (draws,), (draws,), independent outputs of the mechanism for either input, in any
    number. ``power`` is what the expected counts prove; ``detectable`` the least epsilon at which the event, as likely
    as it should be for one input and ``exp(epsilon)`` times less likely for the other (but for delta), is flagged.
    ``guesses`` are the draws that met the event, ``correct`` those of the input it speaks for. delta may be 0. Raises
    ValueError for NaN or terms out of range.

    >>> rng = np.random.default_rng(1)
    >>> answers = [np.where(rng.random(10000) < 0.2, rng.integers(0, 2, 10000), bit) for bit in (0, 1)]
    >>> from accounting.audit import laws
    >>> fair = laws.randomized_response(randomize_probability=0.5, categories=2)  # epsilon log 3 = 1.0986
    >>> found = likelihood_ratio(*answers, fair, claimed_epsilon=1.0987, delta=0.0)
    >>> found.verdict, f"{found.lower:.2f} {found.power:.2f}", found.correct, found.guesses
    ('violation', '2.14 1.05', 9037, 10031)
    """
    check_claim(claimed_epsilon, delta, significance)
    first, second = as_scores("outputs_first", outputs_first), as_scores("outputs_second", outputs_second)
    share = significance / 2
    event = max(
        _best_event(laws.first, laws.second, first.size, second.size, delta, share, swapped=False),
        _best_event(laws.second, laws.first, second.size, first.size, delta, share, swapped=True),
        key=lambda event: event.proves,
    )
    near, far = (second, first) if event.swapped else (first, second)
    right, wrong = (int(event.bins[np.searchsorted(laws.edges, outputs, side="left")].sum()) for outputs in (near, far))

    def bound(right: float, wrong: float) -> float:
        return float(ratio(least(right, near.size, share), most(wrong, far.size, share), delta))

    def detected(true: float) -> bool:
        rare = max(0.0, event.likely - delta) * math.exp(-true)
        miss = (1 - DETECTED) / 2
        return bound(binom.ppf(miss, near.size, event.likely), binom.ppf(1 - miss, far.size, rare)) > claimed_epsilon

    return Audit(
        method="likelihood ratio",
        claimed_epsilon=claimed_epsilon,
        delta=delta,
        significance=significance,
        lower=max(0.0, bound(right, wrong)),
        kind="bound",
        canaries=first.size + second.size,
        guesses=right + wrong,
        correct=right,
        power=max(0.0, event.proves),
        ceiling=max(0.0, bound(near.size, 0)),
        detectable=ideal.least_detected(detected, claimed_epsilon),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Event:
    """Bins that speak for one input, the chance of them there, and the bound that the expected counts prove."""

    bins: NDArray[np.bool_]
    likely: float
    proves: float
    swapped: bool


def _best_event(
    near: Floats, far: Floats, near_size: int, far_size: int, delta: float, share: float, *, swapped: bool
) -> _Event:
    """Returns the best of the events "one of the bins with the largest ratios", each longer by one bin."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(near + far > 0, near / (near + far), 0.0)
    order = np.argsort(-ratios, kind="stable")
    likely, rare = np.cumsum(near[order]).clip(max=1.0), np.cumsum(far[order]).clip(max=1.0)
    usual = np.floor(near_size * likely), np.ceil(far_size * rare)
    proves = ratio(least(usual[0], near_size, share), most(usual[1], far_size, share), delta)
    best = int(np.argmax(proves))
    bins = np.zeros(near.size, dtype=np.bool_)
    bins[order[: best + 1]] = True
    return _Event(bins=bins, likely=float(likely[best]), proves=float(proves[best]), swapped=swapped)
