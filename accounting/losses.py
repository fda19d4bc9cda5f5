"""The privacy loss of one execution of a mechanism, rounded against us onto a grid.

A loss Y between two grid points is moved to both, so that the masses that P and Q have there are kept. The curve
``delta(epsilon) = E[(1 - exp(epsilon - Y))+]`` is then the true one at the points, and above it between them: it is
convex in exp(epsilon), and the rounded one is its chord. This is the tightest pessimistic rounding onto the grid
("connect the dots", Doroshenko et al. 2022), and it composes: what dominates each step dominates their composition.
"""

import math

import numpy as np
from dp_accounting import dp_event
from dp_accounting.pld.pld_pmf import DensePLDPmf, PLDPmf, SparsePLDPmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from scipy.stats import binom

from accounting import bin_losses
from accounting.budget import Neighbors
from accounting.mechanisms import BallsInBinsDpEvent, UnknownEvent
from accounting.pairs import NEGLIGIBLE, Array, Cells, Pair, check, pairs, sampled_pairs

MOST_POINTS = 2**26
"""Grid points of one distribution: half a gigabyte."""

FEW_POINTS = 100
"""A distribution on so few points is kept as a list of points: dp-accounting composes short lists exactly."""


def covers(leaf: dp_event.DpEvent, neighbors: Neighbors) -> bool:
    """Returns whether `privacy_loss` knows the mechanism under this relation."""
    if isinstance(leaf, BallsInBinsDpEvent):
        return neighbors == "add-remove" and bin_losses.covers(leaf.noise_multiplier, leaf.bins)
    try:
        if not isinstance(leaf, dp_event.TruncatedSubsampledGaussianDpEvent):
            check(leaf, neighbors)
    except UnknownEvent:
        return False
    return True


def privacy_loss(leaf: dp_event.DpEvent, *, neighbors: Neighbors, grid: float) -> PrivacyLossDistribution:
    """Returns the distribution of the privacy loss of one execution of ``leaf``, pessimistic, on multiples of ``grid``.

    Never below the truth: Y is rounded as the module says. A cell may end at a loss up to r = 1e-9 beside its grid
    point; as the masses are those of the cell as it is, delta(epsilon) loses half of r^2 times the density of Y there.
    The split within a cell is known up to the error that `Cells` states. The split is moved up by more than both.
    Mass beyond the range (1e-40) is given an infinite loss.
    Knows what `pairs` knows, truncated Poisson sampling and, under add/remove, balls in bins; raises `UnknownEvent` for
    the rest, and MemoryError where the losses range over more than `MOST_POINTS` grid points.
    """
    if isinstance(leaf, dp_event.TruncatedSubsampledGaussianDpEvent):
        return _truncated(leaf, neighbors, grid)
    if isinstance(leaf, BallsInBinsDpEvent) and covers(leaf, neighbors):
        return _rounded(bin_losses.outcomes(leaf.noise_multiplier, leaf.bins), grid)
    return _rounded(pairs(leaf, neighbors), grid)


def _rounded(both: tuple[Pair, ...], grid: float) -> PrivacyLossDistribution:
    return PrivacyLossDistribution(*(_on_grid(pair, grid) for pair in both))


def _truncated(
    leaf: dp_event.TruncatedSubsampledGaussianDpEvent, neighbors: Neighbors, grid: float
) -> PrivacyLossDistribution:
    """Returns the loss of Poisson sampling whose batch is cut to B units at random (dp-accounting, supplement 4.3).

    Where the other n - 1 units do not fill the batch, nothing is cut and the loss is that of Poisson sampling. Where
    they do (probability t), a sampled unit replaces another one: twice the sensitivity, and sampled with the
    probability r of being in a cut batch. The loss of knowing which case it was is the mixture of both. t is largest
    if all N stated units are there, but r is smaller then than if there are fewer, which nobody knows; r is at most q.
    """
    n, q, most = leaf.dataset_size, leaf.sampling_probability, leaf.truncated_batch_size
    shift = 1 / leaf.noise_multiplier
    whole = _rounded(sampled_pairs(q, shift, neighbors), grid)
    full = float(binom.sf(most - 1, n - 1, q))
    if full == 0:
        return whole
    cut = _rounded(sampled_pairs(q, 2 * shift, "replace"), grid)
    return cut.compute_mixture(whole, full)


def _on_grid(pair: Pair, grid: float) -> PLDPmf:
    low, high = pair.support(NEGLIGIBLE)
    first, last = math.floor(low / grid), math.ceil(high / grid) + 1
    if last - first > MOST_POINTS:
        raise MemoryError(f"losses from {low:.3g} to {high:.3g} need a grid coarser than {grid:g}")
    masses = np.zeros(last - first + 1)
    _add_atoms(masses, first, grid, *pair.atoms())
    cells = pair.cells(np.arange(first, last + 1, dtype=np.float64) * grid)
    share = _upper_share(cells, np.arange(first, last, dtype=np.float64) * grid, grid)
    masses[:-1] += cells.upper * (1 - share)
    masses[1:] += cells.upper * share
    infinite = pair.infinite + (2 * NEGLIGIBLE if pair.steepest else 0.0)
    points = np.flatnonzero(masses)
    if len(points) <= FEW_POINTS:
        return SparsePLDPmf({first + int(i): float(masses[i]) for i in points}, grid, infinite, True)
    return DensePLDPmf(grid, first, masses, infinite, True)


def _upper_share(cells: Cells, ends: Array, grid: float) -> Array:
    """Returns the part of each cell's mass U of P that goes to its upper end, so that the mass V of Q is kept.

    ``U - V exp(lower end) = share U (1 - exp(-grid))``; rounded up, as `privacy_loss` says.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        kept = np.where(cells.upper > 0, cells.lower * np.exp(ends) / cells.upper, 0.0)
    share = np.nan_to_num((1 - kept) / -math.expm1(-grid), nan=1.0, posinf=1.0)
    return np.asarray(np.clip(share + 2 * cells.error / grid + (1e-9 / grid) ** 2, 0.0, 1.0))


def _add_atoms(masses: Array, first: int, grid: float, losses: Array, weights: Array) -> None:
    """Splits each atom between its neighboring grid points so that both E[1] and E[exp(-Y)] are kept."""
    below = np.floor(losses / grid)
    # An ulp or two of the loss are added: rounding in the division must not move it down.
    above = np.clip(losses - below * grid + 4e-16 * np.abs(losses), 0.0, grid)
    share = np.expm1(-above) / math.expm1(-grid)
    index = below.astype(np.int64) - first
    masses += np.bincount(index, weights * (1 - share), len(masses))
    masses += np.bincount(index + 1, weights * share, len(masses))
