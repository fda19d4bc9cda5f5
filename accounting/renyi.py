"""Renyi divergences of events, and the exact exchange between them, zCDP and (epsilon, delta).

The Renyi divergence of order a > 1 is ``D_a(P|Q) = log(E_Q[(P/Q)^a]) / (a - 1)``; a mechanism's is the largest over
neighboring data sets (Mironov 2017). It adds up under composition, adaptively chosen or not, at each order, which
makes it the currency of filters; privacy loss distributions give tighter figures where the events are fixed.

All are closed forms, finite sums or integrals to machine precision; dp-accounting's RDP accountant, whose series for
fractional orders is an upper bound, agrees at whole ones. All amounts are rounded against us by a part in 10^12, more
than their floating-point error.
"""

import math
from functools import lru_cache

import numpy as np
from dp_accounting import dp_event
from scipy.optimize import brentq, minimize_scalar
from scipy.special import gammaln, logsumexp

from accounting import balls_in_bins
from accounting.budget import Budget, Neighbors, check_delta
from accounting.mechanisms import (
    BallsInBinsDpEvent,
    DiscreteGaussianDpEvent,
    UnknownEvent,
    from_json,
    merged_noise,
    parts,
    pure_epsilon,
    replaced,
    to_dict,
    to_json,
    unsampled,
)
from accounting.pairs import GaussianPair, pairs

ORDERS: tuple[float, ...] = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in range(11, 64)),
    *(float(2**power) for power in range(6, 15)),
)
"""Orders among which an (epsilon, delta) figure takes the best."""

_SLACK = 1e-12
_MOST_INTEGRATED = 64
_MOST_SUMMED = 2**20
_LEAST_INTEGRATED_NOISE = 0.01
_LEAST_CHANCE = 1e-290


def divergence(event: dp_event.DpEvent, *, order: float, neighbors: Neighbors) -> float:
    """Returns an upper bound on the event's Renyi divergence of ``order`` > 1.

    Exact for the Gaussian ``a / (2 s^2)``, Laplace (Mironov 2017, proposition 6), the discrete Laplace, randomized
    response and the sampled Gaussian (Mironov, Talwar, Zhang 2019); an upper bound for the discrete Gaussian
    (Canonne, Kamath, Steinke 2020, theorem 4), balls in bins, pure DP and private selection. Sampled Gaussians under
    ``replace`` and mixtures of Gaussians are integrated. Raises `UnknownEvent` for what has no Renyi bound here:
    (epsilon, delta)-DP with delta > 0, truncated batches, and mixtures of Gaussians under ``replace``.
    """
    _check_order(order)
    total = math.fsum(count * _divergence(to_json(leaf), float(order), neighbors) for leaf, count in parts(event))
    return total * (1 + _SLACK)


def zcdp_rho(event: dp_event.DpEvent, *, neighbors: Neighbors) -> float:
    """Returns the least known rho with ``D_a <= rho a`` for all orders a > 1 (Bun and Steinke 2016, definition 1.1).

    Gaussian ``1 / (2 s^2)``; Laplace ``e + exp(-e) - 1`` and pure e-DP ``e tanh(e/2)`` (Harrison and Manurangsi 2025).
    Sampling helps no rho: large orders see every unit in every batch. Raises `UnknownEvent` where no rho is known.
    """
    total = math.fsum(count * _rho(replaced(leaf, neighbors), neighbors) for leaf, count in parts(event))
    return total * (1 + _SLACK)


def epsilon_of_renyi(divergence: float, order: float, delta: float) -> float:
    """Returns the least epsilon that a divergence of ``order`` gives at ``delta``.

    ``epsilon = D + log(1 - 1/a) - log(delta a) / (a - 1)`` (Canonne, Kamath, Steinke 2020, proposition 12), at least 0.
    """
    _check_order(order)
    check_delta(delta)
    if math.isnan(divergence) or divergence < 0:
        raise ValueError(f"divergence must be at least 0, got {divergence}")
    epsilon = divergence + _exchange(order, delta)
    return max(0.0, epsilon + _SLACK * max(1.0, abs(epsilon)))


def divergence_within(budget: Budget, order: float) -> float:
    """Returns the largest divergence of ``order`` that keeps ``budget``; raises ValueError where none does."""
    _check_order(order)
    largest = budget.epsilon - _exchange(order, budget.delta)
    largest -= 4 * _SLACK * max(1.0, budget.epsilon, abs(largest))
    if largest <= 0:
        raise ValueError(f"no divergence of order {order:g} keeps {budget}: choose a larger order")
    return largest


def epsilon_of_zcdp(rho: float, delta: float) -> float:
    """Returns the least epsilon that rho-zCDP gives at ``delta``: the best `epsilon_of_renyi` of ``rho a`` over all a.

    Any order gives a true bound, so an imperfect minimum is loose and never wrong.
    """
    check_delta(delta)
    if not (math.isfinite(rho) and rho >= 0):
        raise ValueError(f"rho must be finite and at least 0, got {rho}")
    if rho == 0:
        return 0.0

    def at(log_order_less_one: float) -> float:
        order = 1 + math.exp(log_order_less_one)
        return rho * order + _exchange(order, delta)

    start = 0.5 * math.log(math.log(1 / delta) / rho + 1e-300)
    found = minimize_scalar(at, bounds=(start - 8, start + 8), method="bounded", options={"xatol": 1e-9})
    return max(0.0, float(found.fun) + _SLACK * max(1.0, abs(float(found.fun))))


def rho_within(budget: Budget) -> float:
    """Returns the largest rho, rounded down by less than 10^-9 of it, for which rho-zCDP keeps ``budget``."""
    high = 1.0
    while epsilon_of_zcdp(high, budget.delta) <= budget.epsilon:
        high *= 2
    low = high / 2
    while epsilon_of_zcdp(low, budget.delta) > budget.epsilon:
        low /= 2
    rho = brentq(lambda r: epsilon_of_zcdp(r, budget.delta) - budget.epsilon, low, high, xtol=1e-300, rtol=1e-12)
    while epsilon_of_zcdp(rho, budget.delta) > budget.epsilon:
        rho *= 1 - 1e-10
    return float(rho)


def least_epsilon(event: dp_event.DpEvent, *, delta: float, neighbors: Neighbors) -> float:
    """Returns the least epsilon at ``delta`` over `ORDERS`."""
    return min(epsilon_of_renyi(spent, order, delta) for order, spent in _curve(to_json(event), neighbors).items())


def least_delta(event: dp_event.DpEvent, *, epsilon: float, neighbors: Neighbors) -> float:
    """Returns the least delta at ``epsilon`` over `ORDERS`; at most 1.

    Proposition 12 turned round: ``log delta = (a - 1) (D - epsilon + log(1 - 1/a)) - log a``.
    """
    logs = [
        (order - 1) * (spent - epsilon + math.log1p(-1 / order)) - math.log(order)
        for order, spent in _curve(to_json(event), neighbors).items()
    ]
    return min(1.0, math.exp(min(0.0, *logs)) * (1 + 1e-9))


@lru_cache(maxsize=256)
def _curve(event_json: str, neighbors: Neighbors) -> dict[float, float]:
    event = from_json(event_json)
    return {order: divergence(event, order=order, neighbors=neighbors) for order in ORDERS}


def _exchange(order: float, delta: float) -> float:
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def _check_order(order: float) -> None:
    if isinstance(order, bool) or not isinstance(order, int | float) or not 1 < order < math.inf:
        raise ValueError(f"order must be a finite number above 1, got {order!r}")


@lru_cache(maxsize=16384)
def _divergence(leaf_json: str, order: float, neighbors: Neighbors) -> float:
    """Returns the divergence of one execution of a leaf."""
    leaf = replaced(from_json(leaf_json), neighbors)
    match leaf:
        case dp_event.NonPrivateDpEvent():
            return math.inf
        case dp_event.GaussianDpEvent(noise_multiplier=noise):
            return float(order / (2 * noise**2))
        case DiscreteGaussianDpEvent(noise_std=noise_std, sensitivity=sensitivity):
            return float(order * sensitivity**2 / (2 * noise_std**2))
        case dp_event.ZCDpEvent(rho=rho):
            return float(order * rho)
        case dp_event.PoissonSampledDpEvent(sampling_probability=rate, event=inner):
            if rate < 1 and neighbors != "add-remove":
                return _mixed(leaf, order, neighbors)
            noise = merged_noise(replaced(inner, neighbors))
            return _sampled_gaussian(rate, noise, order)
        case dp_event.MixtureOfGaussiansDpEvent():
            return _mixed(leaf, order, neighbors)
        case BallsInBinsDpEvent(noise_multiplier=noise, bins=bins):
            swapped = neighbors != "add-remove"
            return balls_in_bins.divergence(noise_multiplier=noise, bins=bins, order=order, swapped=swapped)
        case dp_event.LaplaceDpEvent(noise_multiplier=scale):
            return _laplace(1 / scale, order)
        case dp_event.DiscreteLaplaceDpEvent(noise_parameter=rate, sensitivity=sensitivity):
            return _discrete_laplace(rate, int(sensitivity), order)
        case dp_event.RandomizedResponseDpEvent(noise_parameter=randomized, num_buckets=categories):
            check_replaced(leaf, neighbors)
            return _randomized_response(randomized, int(categories), order)
        case dp_event.RepeatAndSelectDpEvent():
            return _selection(leaf, order, neighbors)
    pure = pure_epsilon(leaf)
    if pure is None:
        raise UnknownEvent(f"no Renyi bound is known for {to_dict(leaf)['event']}")
    return _randomized_response(2 / (1 + math.exp(pure)), 2, order) if pure else 0.0


def check_replaced(leaf: dp_event.DpEvent, neighbors: Neighbors) -> None:
    """Refuse randomized response under add/remove: it has no bound, as an answer tells that somebody answered."""
    if isinstance(leaf, dp_event.RandomizedResponseDpEvent) and neighbors == "add-remove":
        raise UnknownEvent(
            "randomized response is private for neighbors 'replace' or 'replace-label', not 'add-remove'"
        )


def _rho(leaf: dp_event.DpEvent, neighbors: Neighbors) -> float:
    check_replaced(leaf, neighbors)
    full = unsampled(leaf)
    if full != leaf:
        full = replaced(full, neighbors)
    match full:
        case dp_event.NonPrivateDpEvent():
            return math.inf
        case dp_event.GaussianDpEvent(noise_multiplier=noise):
            return float(1 / (2 * noise**2))
        case dp_event.ComposedDpEvent():
            return 1 / (2 * merged_noise(full) ** 2)
        case DiscreteGaussianDpEvent(noise_std=noise_std, sensitivity=sensitivity):
            return float(sensitivity**2 / (2 * noise_std**2))
        case dp_event.ZCDpEvent(rho=rho):
            return float(rho)
        case dp_event.LaplaceDpEvent(noise_multiplier=scale):
            return float(1 / scale + math.expm1(-1 / scale))
    pure = pure_epsilon(full)
    if pure is None:
        raise UnknownEvent(f"no zCDP bound is known for {to_dict(leaf)['event']}")
    return pure * math.tanh(pure / 2)


def _sampled_gaussian(rate: float, noise: float, order: float) -> float:
    """Returns ``log E_{z~N(0,s^2)}[(1 - q + q exp((2z - 1) / (2 s^2)))^a] / (a - 1)``.

    For whole a it is ``sum_i binom(a, i) (1-q)^(a-i) q^i exp((i^2 - i) / (2 s^2))``. Between small whole orders it is
    integrated by the trapezoidal rule, whose error falls exponentially with the step for a function that is analytic
    in a strip, here of width ``pi s^2``. Where that takes too many points, the logarithm, convex in a and 0 at 1, is
    bounded by its chord, and where the sum is too long, by that without sampling.
    """
    whole = order / (2 * noise**2)
    if rate == 1 or order > _MOST_SUMMED:
        return whole
    if not order.is_integer() and (order > _MOST_INTEGRATED or noise < _LEAST_INTEGRATED_NOISE):
        below, above = math.floor(order), math.ceil(order)
        ends = [(a - 1) * _sampled_gaussian(rate, noise, float(a)) if a > 1 else 0.0 for a in (below, above)]
        return min(whole, (ends[0] + (order - below) * (ends[1] - ends[0])) / (order - 1))
    if order.is_integer():
        i = np.arange(order + 1)
        binomials = gammaln(order + 1) - gammaln(i + 1) - gammaln(order - i + 1)
        terms = binomials + i * math.log(rate) + (order - i) * math.log1p(-rate) + (i * i - i) / (2 * noise**2)
    else:
        step = min(noise, noise**2) / 10
        z = np.arange(-40 * noise, order + 40 * noise, step)
        ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * z - 1) / (2 * noise**2))
        terms = order * ratio - z**2 / (2 * noise**2) + math.log(step / (noise * math.sqrt(2 * math.pi)))
    error = _SLACK * order  # more than the rounding of gammaln, which is the largest
    return max(0.0, float(logsumexp(terms)) + error) / (order - 1)


def _mixed(leaf: dp_event.DpEvent, order: float, neighbors: Neighbors) -> float:
    """Returns the divergence between mixtures of Gaussians: a sampled unit that is replaced, an owner of k rows.

    A dominating pair bounds every divergence (Zhu, Dong, Wang 2022), so it is the largest over the pairs, integrated;
    and no more than that of the pair's outermost Gaussians, as ``exp((a - 1) D_a)`` is convex in (P, Q) together.
    Where a component is so rare that its float is no longer exact, only the latter holds.
    """
    noise = merged_noise(replaced(unsampled(leaf), neighbors))
    whole = order / (2 * noise**2)
    chances = leaf.sampling_probs if isinstance(leaf, dp_event.MixtureOfGaussiansDpEvent) else ()
    if min(chances, default=1.0) < _LEAST_CHANCE:
        return whole
    logs = [pair.log_moment(order) for pair in pairs(leaf, neighbors) if isinstance(pair, GaussianPair)]
    return float(min(whole, (max(0.0, *logs) + 1e-10 * order) / (order - 1)))


def _laplace(epsilon: float, order: float) -> float:
    """Returns ``log(a/(2a-1) exp((a-1) e) + (a-1)/(2a-1) exp(-a e)) / (a-1)`` (Mironov 2017, proposition 6)."""
    weights = [order / (2 * order - 1), (order - 1) / (2 * order - 1)]
    return float(logsumexp([(order - 1) * epsilon, -order * epsilon], b=weights)) / (order - 1)


def _discrete_laplace(rate: float, sensitivity: int, order: float) -> float:
    """Returns the divergence of ``P[x] ~ exp(-r |x|)`` from its shift by the sensitivity k, summed exactly.

    With a the order, the sum of ``P^a Q^(1-a)`` is ``exp(r (a-1) k)`` times the mass of x <= 0, plus ``exp(-r a k)``
    times the same mass for x >= k, plus a geometric sum between the two.
    """
    log_outside = -math.log1p(math.exp(-rate))
    log_norm = math.log(-math.expm1(-rate)) - math.log1p(math.exp(-rate))
    terms = [rate * (order - 1) * sensitivity + log_outside, -rate * order * sensitivity + log_outside]
    step = rate * (2 * order - 1)
    if sensitivity > 1:
        between = -step + math.log(-math.expm1(-step * (sensitivity - 1))) - math.log(-math.expm1(-step))
        terms.append(log_norm + rate * (order - 1) * sensitivity + between)
    return max(0.0, float(logsumexp(terms))) / (order - 1)


def _randomized_response(randomized: float, categories: int, order: float) -> float:
    """Returns the divergence between the answers of two units with different true categories.

    The truth is told with probability ``t = 1 - p + p/k``, every other category with ``o = p/k``:
    ``log(t^a o^(1-a) + o^a t^(1-a) + (k-2) o) / (a-1)``.
    """
    log_other = math.log(randomized) - math.log(categories)
    log_truth = math.log1p(-randomized * (categories - 1) / categories)
    terms = [order * log_truth + (1 - order) * log_other, order * log_other + (1 - order) * log_truth]
    if categories > 2:
        terms.append(math.log(categories - 2) + log_other)
    return max(0.0, float(logsumexp(terms))) / (order - 1)


def _selection(leaf: dp_event.DpEvent, order: float, neighbors: Neighbors) -> float:
    """Returns a bound for the best of a random number of runs (Papernot and Steinke 2022, theorems 2 and 6).

    Poisson: ``D_a + mean delta' + log(mean) / (a-1)`` where one run is ``(log(1 + 1/(a-1)), delta')``-DP. Truncated
    negative binomial: ``D_a + (1 + shape) min_b ((1 - 1/b) D_b + log(1/gamma) / b) + log(mean) / (a-1)``. A divergence
    never falls with its order, so that of any larger order is a bound as well.
    """
    inner, mean, shape = leaf.event, leaf.mean, leaf.shape
    curve = _curve(to_json(inner), neighbors)
    own = {order: divergence(inner, order=order, neighbors=neighbors)} | {a: d for a, d in curve.items() if a > order}
    if shape == math.inf:
        lost = mean * least_delta(inner, epsilon=-math.log1p(-1 / order), neighbors=neighbors)
        return max(0.0, own[order] + float(lost) + math.log(mean) / (order - 1))
    log_gamma = math.log(_stopping(mean, shape))
    other = min((1 - 1 / b) * spent - log_gamma / b for b, spent in curve.items())
    return float(1 + shape) * other + min(spent + math.log(mean) / (a - 1) for a, spent in own.items())


def _stopping(mean: float, shape: float) -> float:
    """Returns the gamma, rounded down, with which the truncated negative binomial has this mean.

    ``mean = shape (1/gamma - 1) / (1 - gamma^shape)``, and ``(1/gamma - 1) / log(1/gamma)`` for shape 0; it falls in
    gamma. A smaller gamma only loosens the bound.
    """

    def excess(log_gamma: float) -> float:
        odds = math.expm1(-log_gamma)
        given = odds / -log_gamma if shape == 0 else shape * odds / -math.expm1(shape * log_gamma)
        return given - mean

    if mean == 1:
        return 1.0
    low = -1.0
    while excess(low) < 0:
        low *= 2
    found = brentq(excess, low, -1e-15 if excess(-1e-15) < 0 else -1e-300, xtol=1e-14)
    return math.exp(found - 1e-9)
