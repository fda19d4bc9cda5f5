"""A bound on epsilon for a mechanism whose output law is known: randomized response, Laplace, a discrete Gaussian.

Outputs are drawn for a fixed pair of neighboring inputs. By Neyman and Pearson (1933) the event that tells the two laws
apart best is one where their ratio is large; which of these is told by the laws, before any output is seen. How often
it happens for either input is counted, and bounded by Clopper and Pearson's limits. The laws only choose the event and
say what a correct mechanism would show: the bound holds whatever the mechanism really does.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from accounting.audit import ideal
from accounting.audit.binomials import least, most, ratio
from accounting.audit.laws import Laws
from accounting.audit.record import BACKWARDS, DETECTED, Audit, Floats, as_scores, check_claim


def likelihood_ratio(
    outputs_first: ArrayLike,
    outputs_second: ArrayLike,
    laws: Laws,
    *,
    claimed_epsilon: float,
    delta: float,
    significance: float = 0.05,
) -> Audit:
    """Returns the audit by the one event that would show the least fault of a mechanism that should keep ``laws``.

    outputs_first, outputs_second: (draws,), (draws,), independent outputs of the mechanism for either input, in any
    number. delta may be 0. ``power`` is what the median counts of the laws prove; ``detectable`` the epsilon of the
    same laws with the noise divided by the least factor that shows in 95 % of all cases. ``guesses`` are the draws that
    met the event, ``correct`` those of the input it speaks for. Raises ValueError for NaN or terms out of range.

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
    event = _event(laws, first.size, second.size, claimed_epsilon, delta, share)
    near, far = (second, first) if event.swapped else (first, second)
    right, wrong = (int(event.bins[np.searchsorted(laws.edges, outputs, side="left")].sum()) for outputs in (near, far))
    detectable, opposite = event.detectable, _proven(wrong, right, far.size, near.size, delta, BACKWARDS)
    if right + wrong in (0, near.size + far.size) or opposite > 0:  # other units than the laws', or inputs confused
        detectable = math.inf
    return Audit(
        method="likelihood ratio",
        claimed_epsilon=claimed_epsilon,
        delta=delta,
        significance=significance,
        lower=_proven(right, wrong, near.size, far.size, delta, share),
        kind="bound",
        canaries=first.size + second.size,
        guesses=right + wrong,
        correct=right,
        power=event.power,
        ceiling=_proven(near.size, 0, near.size, far.size, delta, share),
        detectable=detectable,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Event:
    """Bins that speak for one input (the second, where swapped), and what counting them would show."""

    bins: NDArray[np.bool_]
    swapped: bool
    power: float
    detectable: float


@lru_cache(maxsize=32)
def _event(laws: Laws, first_size: int, second_size: int, epsilon: float, delta: float, share: float) -> _Event:
    """Returns, of all events "one of the bins with the largest ratios", the one that shows the least fault.

    A fault is less noise. It shows if the event comes up as often for its input as in 97.5 % of all cases, as seldom
    for the other as in 97.5 %, and this contradicts the claim: so in 95 % of all cases. Where no fault shows, the event
    is the one with the most power.
    """
    sizes = first_size, second_size
    orders = [_by_ratio(laws.first, laws.second), _by_ratio(laws.second, laws.first)]
    miss = (1 - DETECTED) / 2

    def proven(sharper: Laws, often: float, seldom: float) -> list[Floats]:
        """Returns what each event proves, of both inputs, at these quantiles of its counts."""
        chances = sharper.first, sharper.second
        found = []
        for input_, order in enumerate(orders):
            likely, rare = (np.cumsum(chances[i][order]).clip(max=1.0) for i in (input_, 1 - input_))
            near, far = sizes[input_], sizes[1 - input_]
            right, wrong = binom.ppf(often, near, likely), binom.ppf(seldom, far, rare)
            found.append(ratio(least(right, near, share), most(wrong, far, share), delta))
        return found

    def detected(factor: float) -> bool:
        return bool(max(map(np.max, proven(laws.sharper(factor), miss, 1 - miss))) > epsilon)

    factor = ideal.least_detected(detected, 1.0)
    usual = proven(laws, 0.5, 0.5)
    shown = usual if math.isinf(factor) else proven(laws.sharper(factor), miss, 1 - miss)
    swapped = int(np.max(shown[1]) > np.max(shown[0]))
    best = int(np.argmax(shown[swapped]))
    bins = np.zeros(laws.first.size, dtype=np.bool_)
    bins[orders[swapped][: best + 1]] = True
    return _Event(
        bins=bins,
        swapped=bool(swapped),
        power=max(0.0, float(usual[swapped][best])),
        detectable=factor if math.isinf(factor) else laws.sharper(factor).epsilon(delta),
    )


def _by_ratio(near: Floats, far: Floats) -> NDArray[np.int64]:
    share = near / np.maximum(near + far, np.finfo(float).tiny)
    return np.argsort(-share, kind="stable")


def _proven(right: int, wrong: int, near: int, far: int, delta: float, share: float) -> float:
    return max(0.0, float(ratio(least(right, near, share), most(wrong, far, share), delta)))
