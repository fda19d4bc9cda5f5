"""Tables that agree with each other: what several of them say about the same rows, put together by least squares.

Noise of its own makes each table say another number of rows. The best estimate of all cells that agrees (generalised
least squares, the least variance among unbiased linear ones) costs nothing, as only noisy numbers are read. It has two
closed forms here: tables by sets of public places, and one number by grids of which each refines the one before.

Values may be negative still. Cutting them off would bias every sum, so it is for show only and not done here.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from privads.signals.query import Floats, Grid, Part, Query
from privads.signals.table import NoisyTable


def consistent(tables: Sequence[NoisyTable]) -> tuple[NoisyTable, ...]:
    """Returns the tables with every measure such that those by the same parts have the same sums.

    tables: of one release, by sets of public places, all cells (`Query.dense`), with the same measures and the same
    noise in all cells of a table.

    A table by parts T is a sum of effects, one for every subset S of T, that are orthogonal (analysis of variance). A
    table's margin over S has noise variance ``s_T^2 n_{T-S}`` in each cell, n the number of places of the parts that
    were summed over, and so the best estimate of an effect is the mean over the tables with S in T weighted by its
    inverse, of variance v_S. A cell of the result has the variance
    ``sum_S v_S prod_{a in S} (1 - 1 / n_a) / n_{T-S}^2`` (compare Xiao et al. 2023, arXiv 2305.08175).
    """
    _check(tables)
    _check_one_release(tables)
    sizes: dict[Part, int] = {
        part: len(part.names) for table in tables for part in table.query.by if not isinstance(part, str)
    }
    order = {part: place for place, part in enumerate(sizes)}
    values: list[dict[str, Floats]] = [{} for _ in tables]
    stds: list[dict[str, Floats]] = [{} for _ in tables]
    for measure in tables[0].query.measures:
        effects = _effects(
            [(one.query.by, one.values[measure], float(one.noise_std[measure][0])) for one in tables], sizes, order
        )
        for place, table in enumerate(tables):
            parts = tuple(sorted(table.query.by, key=order.__getitem__))
            shape = tuple(sizes[part] for part in parts)
            total, variance = np.zeros(shape), 0.0
            for chosen in _subsets(parts):
                effect, margin = effects[chosen]
                rest = math.prod([sizes[part] for part in parts if part not in chosen])
                total += _spread(effect, chosen, parts) / rest
                variance += margin * math.prod([1 - 1 / sizes[part] for part in chosen]) / rest**2
            values[place][measure] = _transposed(total, parts, table.query.by).reshape(-1)
            stds[place][measure] = np.full(total.size, variance**0.5)
    return tuple(
        replace(table, values=own, noise_std=std, combined=True)
        for table, own, std in zip(tables, values, stds, strict=True)
    )


def _effects(
    tables: Sequence[tuple[tuple[Part, ...], Floats, float]], sizes: Mapping[Part, int], order: Mapping[Part, int]
) -> dict[tuple[Part, ...], tuple[Floats, float]]:
    """Returns of every set of parts (its effect, the variance of a cell of its margin)."""
    sums: dict[tuple[Part, ...], Floats] = {}
    precision: dict[tuple[Part, ...], float] = {}
    for by, flat, noise_std in tables:
        parts = tuple(sorted(by, key=order.__getitem__))
        cells = _transposed(flat.reshape([sizes[part] for part in by]), by, parts)
        for chosen in _subsets(parts):
            axes = tuple(axis for axis, part in enumerate(parts) if part not in chosen)
            rest = math.prod([sizes[parts[axis]] for axis in axes])
            weight = 1.0 / (max(noise_std, 1e-150) ** 2 * rest)
            sums[chosen] = sums.get(chosen, 0.0) + weight * cells.sum(axis=axes)
            precision[chosen] = precision.get(chosen, 0.0) + weight
    found = {}
    for chosen, total in sums.items():
        effect = np.asarray(total / precision[chosen])
        for axis in range(len(chosen)):  # what is left of a margin without its means is the effect of the whole set
            effect = effect - effect.mean(axis=axis, keepdims=True)
        found[chosen] = effect, 1.0 / precision[chosen]
    return found


def consistent_grids(tables: Sequence[NoisyTable]) -> tuple[NoisyTable, ...]:
    """Returns tables of one number, by grids from coarse to fine, such that each cell is the sum of those inside it.

    tables: each by one `Grid` on the same column, whose edges are all among the next one's, with the same outer edges.

    Two passes (Hay et al. 2010, VLDB, for any fan-out and unequal noise). From the leaves up, z_v is the mean of the
    own value and the children's sum, weighted by inverse variance; from the root down, what the parent has beyond its
    children's z is given to them in proportion to the variance of each. The missing values' cell is a tree of depth
    one. noise_std of the result is exact.
    """
    if len(tables) < 2:
        raise ValueError("consistency needs at least two tables")
    grids = [_own_grid(table) for table in tables]
    _check_one_release(tables)
    for coarse, fine in itertools.pairwise(grids):
        nested = set(coarse.edges) <= set(fine.edges) and coarse.edges[0] == fine.edges[0]
        if coarse.column != fine.column or not nested or coarse.edges[-1] != fine.edges[-1]:
            raise ValueError("grids must be on one column, from coarse to fine, each with all edges of the one before")
    starts = [np.searchsorted(fine.edges, coarse.edges[:-1]) for coarse, fine in itertools.pairwise(grids)]
    values: list[dict[str, Floats]] = [{} for _ in tables]
    stds: list[dict[str, Floats]] = [{} for _ in tables]
    for measure in tables[0].query.measures:
        own = [np.asarray(table.values[measure][:-1]) for table in tables]
        variances = [np.asarray(table.noise_std[measure][:-1]) ** 2 for table in tables]
        found, spread = _tree(own, variances, starts)
        weights = [1.0 / float(table.noise_std[measure][-1]) ** 2 for table in tables]
        missing = sum(w * float(table.values[measure][-1]) for w, table in zip(weights, tables, strict=True))
        for place in range(len(tables)):
            values[place][measure] = np.append(found[place], missing / sum(weights))
            stds[place][measure] = np.sqrt(np.append(spread[place], 1.0 / sum(weights)))
    return tuple(
        replace(table, values=one, noise_std=std, combined=True)
        for table, one, std in zip(tables, values, stds, strict=True)
    )


def _tree(
    own: Sequence[Floats], variances: Sequence[Floats], starts: Sequence[NDArray[np.int64]]
) -> tuple[list[Floats], list[Floats]]:
    """Returns (values, variances) by level, from the coarsest. starts: of each cell's children in the next level."""
    up, below = [own[-1]], [variances[-1]]
    for level in range(len(own) - 2, -1, -1):
        sums = np.add.reduceat(up[0], starts[level])
        noise = np.add.reduceat(below[0], starts[level])
        together = 1.0 / (1.0 / variances[level] + 1.0 / noise)
        up.insert(0, together * (own[level] / variances[level] + sums / noise))
        below.insert(0, together)
    found, spread = [up[0]], [below[0]]
    outside = np.full(len(own[0]), np.inf)  # the variance of what the rest of the tree says of a cell
    for level, start in enumerate(starts):
        counts = np.diff(np.append(start, len(up[level + 1])))
        parent = np.repeat(np.arange(len(start)), counts)
        noise = np.add.reduceat(below[level + 1], start)
        left = found[level] - np.add.reduceat(up[level + 1], start)
        found.append(up[level + 1] + left[parent] * below[level + 1] / noise[parent])
        above = 1.0 / (1.0 / variances[level] + 1.0 / outside)
        outside = above[parent] + noise[parent] - below[level + 1]
        spread.append(1.0 / (1.0 / below[level + 1] + 1.0 / outside))
    return found, spread


def check_consistent(queries: Sequence[Query]) -> None:
    """Refuse tables that `consistent` cannot put together, before they are paid for."""
    if len(queries) < 2:
        raise ValueError("consistency needs at least two tables")
    sets = {frozenset(query.by) for query in queries}
    if len(sets) < len(queries) or len({(query.measures, query.sums) for query in queries}) > 1:
        raise ValueError("consistent tables must be by different parts, and have the same measures")
    for query in queries:
        if not query.dense or len(set(query.by)) < len(query.by):
            raise ValueError("consistent tables must be by public places, each once, and have all their cells")


def _check(tables: Sequence[NoisyTable]) -> None:
    check_consistent([table.query for table in tables])
    for table in tables:
        for std in table.noise_std.values():
            if std.min() != std.max():
                raise ValueError("the cells of a table must have the same noise")


def _check_one_release(tables: Sequence[NoisyTable]) -> None:
    """A cell of the result is made of all tables, so it costs what all of them did, and carries one release's terms."""
    if any(one.terms != tables[0].terms for one in tables):
        raise ValueError("consistent tables must be of one release: of several, each would state the cost of its own")


def _own_grid(table: NoisyTable) -> Grid:
    if len(table.query.by) != 1 or not isinstance(table.query.by[0], Grid) or not table.query.dense:
        raise ValueError("grids are made consistent of tables that are by one grid each")
    return table.query.by[0]


def _subsets(parts: tuple[Part, ...]) -> list[tuple[Part, ...]]:
    return [chosen for size in range(len(parts) + 1) for chosen in itertools.combinations(parts, size)]


def _transposed(cells: Floats, before: tuple[Part, ...], after: tuple[Part, ...]) -> Floats:
    return np.transpose(cells, [before.index(part) for part in after]) if before else cells


def _spread(effect: Floats, chosen: tuple[Part, ...], parts: tuple[Part, ...]) -> Floats:
    """Returns the effect with an axis of one place for every part that it is not about."""
    return effect.reshape([effect.shape[chosen.index(part)] if part in chosen else 1 for part in parts])
