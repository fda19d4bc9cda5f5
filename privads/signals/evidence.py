"""How large a table's effects are, found from noisy sums alone: the prior that a model from aggregates needs.

Effects of a table's cells are taken as N(0, t), and t is chosen as the one under which the sums are most likely. At
given effects, let cell j have expected positives mu_j and information ``h_j = sum p (1 - p)`` over its rows. Its sum
then has variance h_j from the labels and s_j^2 from what was added to it, so that

    z_j = theta_j + (c_j - mu_j) / h_j  ~  N(m, t + v_j),   v_j = (h_j + s_j^2) / h_j^2

with m the table's common shift, which the intercept takes. The derivative of this likelihood in t needs no second
labelled set, and no normal noise: each of its terms has mean 0 where t is right (empirical Bayes, Efron and Morris
1973).

Tables come in order, those of fewer columns and of fewer cells first, and each explains what is left by those before:
an advertiser's effect goes to the advertiser, and not to its campaigns; a pair is given what its columns do not say. A
table that does not make its sums more likely by more than `LEAST_GAIN` is left out.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from privads.signals.encoding import Features, Floats

LEAST_GAIN = 2.0
"""In log-likelihood. One number, t, is fitted for it; Akaike's measure would ask for 1."""

SWEEPS = 2
"""Of all tables. A later table's effects are not known when an earlier one is seen first."""

LEAST, MOST = 1e-6, 25.0
"""Of the variances t that are looked for: effects of a thousandth, and of 5, in log-odds."""

_HALVINGS = 40


@dataclass(frozen=True, kw_only=True, eq=False)
class Effects:
    """An intercept, (cells,) effects, and (tables,) their variances, 0 for a table that is left out."""

    intercept: float
    values: Floats
    variances: Floats


def prior_variance(z: Floats, v: Floats) -> float:
    """Returns the t at which ``z_j ~ N(m, t + v_j)`` are most likely, with m unknown; 0 where that is hardly so.

    Solves ``sum_j w_j^2 ((z_j - m)^2 - 1 / w_j) + sum_j w_j^2 / sum_j w_j = 0`` with ``w_j = 1 / (t + v_j)`` and m the
    mean of z weighted by w (the last term is for having fitted m), by bisection. z, v: (cells,).
    """
    if len(z) < 2 or _slope(LEAST, z, v) <= 0:
        return 0.0
    low, high = LEAST, MOST
    if _slope(MOST, z, v) > 0:
        low = MOST
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if _slope(middle, z, v) > 0 else (low, middle)
    return low if _likelihood(low, z, v) - _likelihood(0.0, z, v) > LEAST_GAIN else 0.0


def estimated_effects(features: Features, values: Floats, variance: Floats, total: float) -> Effects:
    """Returns the variances of all tables' effects, and effects near the most likely ones to start from.

    values, variance: (cells,) sums that agree on the number of positives, ``total``.
    """
    encoding = features.encoding
    intercept = float(np.log(total / (features.rows - total)))
    effects, variances = np.zeros(encoding.cells), np.full(len(encoding.tables), MOST)
    logits = np.full(features.places.shape[1], intercept)
    order = sorted(range(len(encoding.tables)), key=lambda t: (len(encoding.tables[t]), encoding.lengths[t]))
    for sweep in range(SWEEPS):
        for table in order:
            part = encoding.parts[table]
            if variances[table] == 0 or not np.isfinite(variance[part]).all():
                variances[table] = 0.0
                continue
            p = expit(logits)
            mean, information = features.sums_of(table, p), features.sums_of(table, p * (1 - p))
            whole, missing = information.sum(), total - mean.sum()
            seen = information > 0
            h = np.where(seen, information, 1.0)
            v = (h + variance[part]) / h**2
            z = effects[part] + np.where(seen, values[part] - mean - information / whole * missing, 0.0) / h
            found = prior_variance(z[seen], v[seen])
            # The effects of nested tables can grow against one another: what a table had alone is its most.
            variances[table] = found if sweep == 0 else min(found, variances[table])
            after = _shrunk(z, v, seen, variances[table])
            step = after - effects[part]
            shift = float(missing - information @ step) / whole
            effects[part] = after
            intercept += shift
            logits += step[features.places[table]] + shift
    return Effects(intercept=intercept, values=effects, variances=variances)


def _shrunk(z: Floats, v: Floats, seen: np.ndarray, t: float) -> Floats:
    """Returns the effects' posterior means, ``(z_j - m) t / (t + v_j)``; 0 in cells that no row is in."""
    if t == 0:
        return np.zeros_like(z)
    w = np.where(seen, 1 / (t + v), 0.0)
    return np.asarray((z - w @ z / w.sum()) * t * w)


def _slope(t: float, z: Floats, v: Floats) -> float:
    """Returns the derivative of the likelihood in t, times 2."""
    w = 1 / (t + v)
    off = z - w @ z / w.sum()
    return float(w**2 @ (off**2 - 1 / w) + w @ w / w.sum())


def _likelihood(t: float, z: Floats, v: Floats) -> float:
    """Returns the log-likelihood at t and the best m, up to a constant."""
    w = 1 / (t + v)
    off = z - w @ z / w.sum()
    return float(np.log(w).sum() - w @ off**2) / 2
