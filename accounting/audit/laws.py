"""Two laws of one output: what a mechanism returns for either of two neighboring inputs, in bins.

What binned outputs show, outputs show. Each function states the laws that a mechanism of `accounting.mechanisms`
*should* have, and those it would have with less noise; an audit draws outputs and compares. The first input gives 0 and
the second ``shift``, the sensitivity, before the noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from accounting.audit.record import Floats

_REACH = 9.0
"""Standard deviations on either side of which a Gaussian has less than 10^-18."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Laws:
    """Bins ``(-inf, e_1], (e_1, e_2], ..., (e_k, inf)`` of an output, and the chance of each for either input.

    edges: (k,), rising. first, second: (k + 1,), chances that add up to 1. sharper: the same with f times less noise.

    >>> fair = randomized_response(randomize_probability=0.5, categories=2)
    >>> fair.first.round(3).tolist(), f"{fair.epsilon(0.0):.4f} {fair.sharper(2.0).epsilon(0.0):.4f}"
    ([0.75, 0.25], '1.0986 2.1972')
    """

    edges: Floats
    first: Floats
    second: Floats
    sharper: Callable[[float], "Laws"]

    def __post_init__(self) -> None:
        if self.edges.ndim != 1 or not np.isfinite(self.edges).all() or np.any(np.diff(self.edges) <= 0):
            raise ValueError("edges must be finite and rise")
        for name, chances in (("first", self.first), ("second", self.second)):
            if chances.shape != (self.edges.size + 1,):
                raise ValueError(f"{name} must have {self.edges.size + 1} chances, one a bin, got {chances.shape}")
            if not (chances >= 0).all() or abs(float(chances.sum()) - 1) > 1e-9:
                raise ValueError(f"{name} must be chances that add up to 1, got {float(chances.sum())}")

    def epsilon(self, delta: float) -> float:
        """Returns the least epsilon with ``sum (P - exp(epsilon) Q)+ <= delta`` both ways, to 10^-9: what bins show."""
        return max(_epsilon(self.first, self.second, delta), _epsilon(self.second, self.first, delta))


def randomized_response(*, randomize_probability: float, categories: int) -> Laws:
    """Returns the laws of a category, 0 or 1, that with this probability is replaced by a random one of all.

    Every category from 2 on is one bin. f times less noise: f times the epsilon.
    """
    if not 0 < randomize_probability <= 1 or categories < 2:
        raise ValueError(
            "randomize_probability must be in (0, 1] and categories at least 2, "
            f"got {randomize_probability} and {categories}"
        )
    epsilon = math.log1p((1 - randomize_probability) / randomize_probability * categories)
    return _answers(epsilon, categories)


def laplace(*, scale: float, shift: float) -> Laws:
    """Returns the laws of 0 and of ``shift``, each with noise of density ``exp(-|x| / scale) / (2 scale)``."""
    _check("scale", scale, shift)
    return _continuous(np.linspace(0.0, shift, 33), shift, scale, _laplace_cdf)


def gaussian(*, noise_std: float, shift: float) -> Laws:
    """Returns the laws of N(0, noise_std^2) and N(shift, noise_std^2)."""
    _check("noise_std", noise_std, shift)
    edges = np.linspace(-_REACH * noise_std, shift + _REACH * noise_std, 513)
    return _continuous(edges, shift, noise_std, lambda x: np.asarray(ndtr(x)))


def discrete_gaussian(*, noise_std: float, shift: int) -> Laws:
    """Returns the laws of 0 and of ``shift``, each with whole noise, ``~ exp(-x^2 / (2 noise_std^2))``."""
    _check("noise_std", noise_std, shift)
    reach = math.ceil(_REACH * noise_std)
    return _discrete(np.arange(-reach, shift + reach, dtype=np.float64), shift, noise_std, reach, lambda x: -(x**2) / 2)


def discrete_laplace(*, scale: float, shift: int) -> Laws:
    """Returns the laws of 0 and of ``shift``, each with whole noise, ``~ exp(-|x| / scale)``."""
    _check("scale", scale, shift)
    return _discrete(np.arange(shift, dtype=np.float64), shift, scale, math.ceil(40 * scale), lambda x: -np.abs(x))


def _answers(epsilon: float, categories: int) -> Laws:
    own = 1 / (1 + (categories - 1) * math.exp(-epsilon))
    other = own * math.exp(-epsilon)
    rest = [(categories - 2) * other][: categories - 2]
    return Laws(
        edges=np.array([0.5, 1.5][: min(categories, 3) - 1]),
        first=np.array([own, other, *rest]),
        second=np.array([other, own, *rest]),
        sharper=lambda factor: _answers(factor * epsilon, categories),
    )


def _continuous(edges: Floats, shift: float, scale: float, cdf: Callable[[Floats], Floats]) -> Laws:
    first, second = (np.diff(cdf((edges - at) / scale), prepend=0.0, append=1.0) for at in (0.0, shift))
    return Laws(
        edges=edges,
        first=first,
        second=second,
        sharper=lambda factor: _continuous(edges, shift, scale / factor, cdf),
    )


def _discrete(lasts: Floats, shift: int, scale: float, reach: int, log_chance: Callable[[Floats], Floats]) -> Laws:
    """Returns the laws in bins that end with ``lasts``, of noise ``~ exp(log_chance(x / scale))`` within ``reach``."""
    values = np.arange(-reach - shift, reach + shift + 1, dtype=np.float64)
    chances = np.exp(log_chance(values / scale))
    chances /= chances.sum()
    edges = lasts + 0.5
    first, second = (
        np.asarray(np.bincount(np.searchsorted(edges, values + at), weights=chances, minlength=edges.size + 1), float)
        for at in (0, shift)
    )
    return Laws(
        edges=edges,
        first=first,
        second=second,
        sharper=lambda factor: _discrete(lasts, shift, scale / factor, reach, log_chance),
    )


def _epsilon(first: Floats, second: Floats, delta: float) -> float:
    def spent(epsilon: float) -> float:
        return float(np.maximum(first - math.exp(epsilon) * second, 0.0).sum())

    if spent(0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while spent(high) > delta:
        low, high = high, 2 * high
        if high > _MOST:
            return math.inf
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) <= delta else (middle, high)
    return high


_MOST = 600.0


def _laplace_cdf(x: Floats) -> Floats:
    return np.where(x < 0, 0.5 * np.exp(np.minimum(x, 0.0)), 1 - 0.5 * np.exp(-np.maximum(x, 0.0)))


def _check(noise: str, amount: float, shift: float) -> None:
    for name, value in ((noise, amount), ("shift", shift)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
