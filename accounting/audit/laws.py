"""Two laws of one output: what a mechanism returns for either of two neighboring inputs, in bins.

Binning an output loses privacy to nobody: what is shown of the bin is shown of the output. Each function states the
laws that a mechanism of `accounting.mechanisms` *should* have; an audit draws outputs and compares. The first input
gives 0 and the second ``shift``, the sensitivity, before the noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from accounting.audit.record import Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Laws:
    """Bins ``(-inf, e_1], (e_1, e_2], ..., (e_k, inf)`` of an output, and the chance of each for either input.

    edges: (k,), rising. first, second: (k + 1,), chances that add up to 1.
    """

    edges: Floats
    first: Floats
    second: Floats

    def __post_init__(self) -> None:
        if self.edges.ndim != 1 or np.any(np.diff(self.edges) <= 0) or not np.isfinite(self.edges).all():
            raise ValueError("edges must be finite and rise")
        for name, chances in (("first", self.first), ("second", self.second)):
            if chances.shape != (self.edges.size + 1,):
                raise ValueError(
                    f"{name} must have a chance for each of {self.edges.size + 1} bins, got {chances.shape}"
                )
            if not (chances >= 0).all() or abs(float(chances.sum()) - 1) > 1e-9:
                raise ValueError(f"{name} must be chances that add up to 1, got {float(chances.sum())}")


def randomized_response(*, randomize_probability: float, categories: int) -> Laws:
    """Returns the laws of a category, 0 or 1, that with this probability is replaced by a random one of all.

    Every category from 2 on is one bin.
    """
    if not 0 < randomize_probability <= 1 or categories < 2:
        raise ValueError(
            "randomize_probability must be in (0, 1] and categories at least 2, "
            f"got {randomize_probability} and {categories}"
        )
    other = randomize_probability / categories
    own = 1 - randomize_probability + other
    if categories == 2:
        return Laws(edges=np.array([0.5]), first=np.array([own, other]), second=np.array([other, own]))
    rest = (categories - 2) * other
    return Laws(edges=np.array([0.5, 1.5]), first=np.array([own, other, rest]), second=np.array([other, own, rest]))


def laplace(*, scale: float, shift: float) -> Laws:
    """Returns the laws of 0 and of ``shift``, each with noise of density ``exp(-|x| / scale) / (2 scale)``."""
    _check("scale", scale, shift)
    return _continuous(np.linspace(0.0, shift, 33), shift, lambda x: _laplace_cdf(x / scale))


def gaussian(*, noise_std: float, shift: float) -> Laws:
    """Returns the laws of N(0, noise_std^2) and N(shift, noise_std^2)."""
    _check("noise_std", noise_std, shift)
    edges = np.linspace(-_REACH * noise_std, shift + _REACH * noise_std, 513)
    return _continuous(edges, shift, lambda x: np.asarray(ndtr(x / noise_std)))


def discrete_gaussian(*, noise_std: float, shift: int) -> Laws:
    """Returns the laws of 0 and of ``shift``, each with whole noise of probability ``~ exp(-x^2 / (2 s^2))``."""
    _check("noise_std", noise_std, shift)
    return _discrete(math.ceil(_REACH * noise_std) + 1, shift, lambda x: -(x**2) / (2 * noise_std**2))


def discrete_laplace(*, scale: float, shift: int) -> Laws:
    """Returns the laws of 0 and of ``shift``, each with whole noise of probability ``~ exp(-|x| / b)``."""
    _check("scale", scale, shift)
    return _discrete(math.ceil(40 * scale) + 1, shift, lambda x: -np.abs(x) / scale)


_REACH = 9.0
"""Standard deviations on either side of which a Gaussian has less than 10^-18."""


def _continuous(edges: Floats, shift: float, cdf: Callable[[Floats], Floats]) -> Laws:
    first, second = (np.diff(cdf(edges - at), prepend=0.0, append=1.0) for at in (0.0, shift))
    return Laws(edges=edges, first=first, second=second)


def _discrete(reach: int, shift: int, log_chance: Callable[[Floats], Floats]) -> Laws:
    values = np.arange(-reach - shift, reach + shift + 1, dtype=np.float64)
    chances = np.exp(log_chance(values))
    chances /= chances.sum()
    nothing = np.zeros(shift)
    first, second = np.concatenate((chances, nothing)), np.concatenate((nothing, chances))  # from -reach - shift up
    edges = np.arange(-reach - shift, reach + 2 * shift, dtype=np.float64) + 0.5
    return Laws(edges=edges, first=first, second=second)


def _laplace_cdf(x: Floats) -> Floats:
    return np.where(x < 0, 0.5 * np.exp(np.minimum(x, 0.0)), 1 - 0.5 * np.exp(-np.maximum(x, 0.0)))


def _check(noise: str, amount: float, shift: float) -> None:
    for name, value in ((noise, amount), ("shift", shift)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
