"""How a release's budget is best shared among its tables and sums, and where a value is best cut off.

Everything here is computed from public figures or from tables that were released before, never from true counts: the
shares decide how much noise each part gets, and are seen by everyone.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from privads.signals.bounds import Bounds
from privads.signals.query import Query
from privads.signals.table import NoisyTable, sensitivities


def relative_weight(expected: ArrayLike, *, least: float) -> float:
    """Returns the weight of a part whose error counts relative to its cells: ``mean_c 1 / max(|T_c|, least)^2``.

    With noise variance s^2, weight times s^2 is the square of RMSRE at threshold ``least`` (root mean square relative
    error; Aksu et al. 2024, PoPETs 2024(4)). expected: (cells,) about how large each cell's value is, in what the noise
    is added to (a sum's in steps). least: below it a cell's error counts as if the cell were so large; positive.
    """
    sizes = np.abs(np.asarray(expected, dtype=np.float64))
    if not (0 < least < math.inf) or not len(sizes) or not np.isfinite(sizes).all():
        raise ValueError("expected values must be finite numbers, at least one, and least must be positive")
    return float(np.mean(1.0 / np.maximum(sizes, least) ** 2))


def shares(
    queries: Sequence[Query], bounds: Bounds, weights: Sequence[Sequence[float]]
) -> tuple[tuple[float, ...], ...]:
    """Returns the shares with the least ``sum_p weight_p s_p^2``, for `Release.of`.

    weights: per table, of its counts and of each sum, such as `relative_weight`; positive. A part's noise is
    ``s_p = z D_p / sqrt(a_p)`` with D_p the most that one unit moves it, so by Cauchy and Schwarz the best shares are
    ``a_p ~ D_p sqrt(weight_p)``.
    """
    made = []
    for query, own in zip(queries, weights, strict=True):
        moves = sensitivities(query, bounds)
        if len(own) != len(moves) or not all(0 < one < math.inf for one in own):
            raise ValueError("weights must be positive, one for the counts and one for each sum of a table")
        made.append([moved * math.sqrt(one) for moved, one in zip(moves, own, strict=True)])
    total = sum(map(sum, made))
    return tuple(tuple(one / total for one in own) for own in made)


def shares_by(
    queries: Sequence[Query], bounds: Bounds, tables: Sequence[NoisyTable], *, least: float
) -> tuple[tuple[float, ...], ...]:
    """Returns the shares with the least RMSRE, summed in squares over parts, if cells are about as in ``tables``.

    tables: released before, of the same columns and measures, such as last week's: their noise is paid for. least: see
    `relative_weight`; at least the noise of those tables, or it is the noise that decides.
    """
    known = {(table.query.columns, measure): table for table in tables for measure in table.query.measures}
    weights = []
    for query in queries:
        own = []
        for part in query.parts:
            missing = next((measure for measure in part if (query.columns, measure) not in known), None)
            if missing is not None:
                by = ", ".join(query.columns) or "nothing"
                raise ValueError(f"no earlier table by {by} has {missing!r}, which its share depends on")
            cells = [known[query.columns, measure].values[measure] for measure in part]
            own.append(relative_weight(np.concatenate(cells), least=least))
        weights.append(own)
    return shares(queries, bounds, weights)


def split_of_contributions(expected: ArrayLike) -> tuple[float, ...]:
    """Returns how a source's contribution budget is best split among several counts of a summary report.

    A count of about T_j that gets the share a_j of the budget has the relative error ``~ 1 / (a_j T_j)``, as noise does
    not depend on the shares, so ``sum_j 1 / (a_j T_j)^2`` is least for ``a_j ~ T_j^(-2/3)``. expected: (counts,)
    positive.
    """
    sizes = np.asarray(expected, dtype=np.float64)
    if sizes.ndim != 1 or not len(sizes) or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError("expected counts must be positive and finite, at least one")
    parts = sizes ** (-2 / 3)
    return tuple((parts / parts.sum()).tolist())


def best_cap(values: ArrayLike, counts: ArrayLike, *, noise_multiplier: float, cells: int) -> float:
    """Returns the cap ``most`` of a `Sum` with the least expected squared error of a cell.

    values, counts: (values,) how often each value comes in the log, from a public figure or a released table; what is
    beyond the largest value is not known and not looked at. noise_multiplier: of this sum, noise std over sensitivity.
    cells: among which the rows are spread, here evenly. Cutting off at C loses ``B = sum_v n_v (v - C)+ / cells`` and
    needs noise of std ``noise_multiplier C``: the best C has the least ``B^2 + (noise_multiplier C)^2``, which is
    convex in C and has its least at a value or where B is linear between two.
    """
    value, count = np.asarray(values, dtype=np.float64), np.maximum(np.asarray(counts, dtype=np.float64), 0.0)
    if value.shape != count.shape or value.ndim != 1 or not (value > 0).any() or cells < 1 or noise_multiplier < 0:
        raise ValueError("values and counts must be of one length, with a value above 0, and cells at least 1")
    order = np.argsort(value)
    value, count = value[order], count[order]
    best, least = float(value[-1]), math.inf
    lower = 0.0
    for place, upper in enumerate(value.tolist()):
        # On [lower, upper] the loss is B(C) = (A - N C) / cells, with N rows above.
        if upper <= lower:
            continue
        rows, total = float(count[place:].sum()) / cells, float((count * value)[place:].sum()) / cells
        found = min(max(rows * total / (rows**2 + noise_multiplier**2 or 1.0), lower), upper) or upper
        error = (total - rows * found) ** 2 + (noise_multiplier * found) ** 2
        if error < least:
            best, least = found, error
        lower = upper
    return best
