"""Draws from a Markov random field of rows and a label: P(x, y) ~ exp(K(x) mu + y K(x) theta).

K(x) is one-hot, of columns and of pairs. Many chains take the same step at once. In a step every column j is drawn
anew, given the others, with the label summed out: with A_v = exp(what mu gives to value v),
B_v = A_v exp(what theta gives to v), and t the part of K(x) theta that j has no part in,

    P(y = 1 | others) = sigmoid(t + ln sum B - ln sum A),   then   v ~ A or B, by y: a joint draw of (x_j, y).

That is Gibbs sampling. Where columns nearly determine each other it would stand still, so each step begins with a
proposal of a whole row from a tree of pairs, which is accepted with the odds of Metropolis and Hastings. The chains
start there too: the tree has the strongest pairs exactly (Chow and Liu 1968), and can be drawn from without chains.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Factors = Mapping[tuple[int, ...], Floats]
"""By columns, none, one or two, rising: a number for each value. () is the constant."""

BLOCK = 2_000_000
"""Numbers that one step of a column with several neighbors holds at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Field:
    """The parameters. sizes: values per column. mu, theta: their factors, in log-odds."""

    sizes: tuple[int, ...]
    mu: Factors
    theta: Factors

    def neighbors(self, column: int) -> tuple[int, ...]:
        """Returns the columns that share a pair with this one."""
        pairs = {key for factors in (self.mu, self.theta) for key in factors if len(key) == 2 and column in key}
        return tuple(sorted({other for key in pairs for other in key} - {column}))

    def log_weight(self, rows: Codes) -> Floats:
        """Returns (rows,) the log of P(x), the label summed out, up to a constant."""
        return np.asarray(summed(self.mu, rows) + np.logaddexp(0.0, summed(self.theta, rows)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Tree:
    """A law of rows that is drawn from at once. singles: per column its law. links: (parent, child, law of the pair),
    a parent before its children; a column that is nobody's child stands by itself.
    """

    singles: tuple[Floats, ...]
    links: tuple[tuple[int, int, Floats], ...]

    def draw(self, count: int, rng: np.random.Generator) -> Codes:
        """Returns (count, columns) rows."""
        rows = np.empty((count, len(self.singles)), dtype=np.int64)
        children = {child for _, child, _ in self.links}
        for column in set(range(len(self.singles))) - children:
            nobody = np.zeros(count, dtype=np.int64)
            rows[:, column] = _draw_each(self.singles[column][None, :], nobody, rng)
        for parent, child, law in self.links:
            rows[:, child] = _draw_each(law, rows[:, parent], rng)
        return rows

    def log_weight(self, rows: Codes) -> Floats:
        """Returns (rows,) the log of their probability."""
        found = sum(np.log(law)[rows[:, column]] for column, law in enumerate(self.singles))
        for parent, child, law in self.links:
            lift = np.log(law) - np.log(law.sum(axis=1))[:, None] - np.log(self.singles[child])
            found = found + lift[rows[:, parent], rows[:, child]]
        return np.asarray(found)


def summed(factors: Factors, rows: Codes) -> Floats:
    """Returns (rows,) the sum of the factors at each row: K(x) mu or K(x) theta."""
    total = np.zeros(len(rows))
    for key, values in factors.items():
        total += values[tuple(rows[:, column] for column in key)]
    return total


def margin(rows: Codes, columns: tuple[int, ...], sizes: tuple[int, ...], weights: Floats | None = None) -> Floats:
    """Returns the sums of the weights by the values of one or two columns, or the counts of rows."""
    shape = tuple(sizes[column] for column in columns)
    places = np.ravel_multi_index(tuple(rows[:, column] for column in columns), shape)
    return np.bincount(places, weights, minlength=int(np.prod(shape))).reshape(shape).astype(np.float64)


def sweep(field: Field, tree: Tree, rows: Codes, rng: np.random.Generator) -> Codes:
    """Returns the chains after one step; the rows that are passed are left as they are."""
    rows = _leap(field, tree, rows, rng)
    logit = summed(field.theta, rows)
    for column in range(len(field.sizes)):
        own = {key: values for key, values in field.theta.items() if column in key}
        others = logit - summed(own, rows)
        rows[:, column] = _redraw(field, column, rows, others, rng)
        logit = others + summed(own, rows)
    return rows


def _leap(field: Field, tree: Tree, rows: Codes, rng: np.random.Generator) -> Codes:
    proposed = tree.draw(len(rows), rng)
    odds = field.log_weight(proposed) - tree.log_weight(proposed) - field.log_weight(rows) + tree.log_weight(rows)
    return np.where((np.log(rng.random(len(rows))) < odds)[:, None], proposed, rows)


def _redraw(field: Field, column: int, rows: Codes, others: Floats, rng: np.random.Generator) -> Codes:
    neighbors = field.neighbors(column)
    if len(neighbors) > 1:
        return _drawn_by_row(field, column, neighbors, rows, others, rng)
    # With at most one neighbor there are few laws, one for each of its values: they are made once, not per row.
    beside = rows[:, neighbors[0]] if neighbors else np.zeros(len(rows), dtype=np.int64)
    silent, tilt = (_by_neighbor(factors, column, neighbors) for factors in (field.mu, field.theta))
    labeled = silent + tilt  # (values of the neighbor, values)
    silent = np.broadcast_to(silent, labeled.shape)
    lift = logsumexp(labeled, axis=1) - logsumexp(silent, axis=1)
    y = rng.random(len(rows)) < expit(others + lift[beside])
    laws = np.concatenate([silent, labeled])
    return _draw_each(np.exp(laws - laws.max(axis=1, keepdims=True)), beside + y * len(silent), rng)


def _by_neighbor(factors: Factors, column: int, neighbors: tuple[int, ...]) -> Floats:
    """Returns what a column's values get, (values of the one neighbor, values), or (1, values) without one."""
    own = factors[column,][None, :]
    for other in neighbors:
        own = own + _beside(factors, column, other)
    return own


def _beside(factors: Factors, column: int, other: int) -> Floats:
    """Returns the factor of a pair as (values of the other, values); zero where there is none."""
    pair = factors.get((min(column, other), max(column, other)), np.zeros((1, 1)))
    return pair.T if column < other else pair


def _drawn_by_row(
    field: Field, column: int, neighbors: tuple[int, ...], rows: Codes, others: Floats, rng: np.random.Generator
) -> Codes:
    """Draws a column with several neighbors: each row has a law of its own, (block, values)."""
    size, found = field.sizes[column], np.empty(len(rows), dtype=np.int64)
    silent = {other: _beside(field.mu, column, other) for other in neighbors if _has(field.mu, column, other)}
    labeled = {other: _beside(field.theta, column, other) for other in neighbors if _has(field.theta, column, other)}
    for start in range(0, len(rows), max(1, BLOCK // size)):
        block = slice(start, start + max(1, BLOCK // size))
        plain = np.tile(field.mu[column,], (len(rows[block]), 1))
        for other, pair in silent.items():
            plain += pair[rows[block, other]]
        plain = np.exp(plain - plain.max(axis=1, keepdims=True))
        tilt = field.theta[column,][None, :]
        for other, pair in labeled.items():
            tilt = tilt + pair[rows[block, other]]
        tilted = plain * np.exp(tilt)
        lift = np.log(tilted.sum(axis=1)) - np.log(plain.sum(axis=1))
        y = rng.random(len(plain)) < expit(others[block] + lift)
        steps = np.cumsum(np.where(y[:, None], tilted, plain), axis=1)
        reach = rng.random(len(plain)) * steps[:, -1]
        found[block] = np.count_nonzero(steps <= reach[:, None], axis=1)
    return np.minimum(found, size - 1)


def _has(factors: Factors, column: int, other: int) -> bool:
    return (min(column, other), max(column, other)) in factors


def _draw_each(laws: Floats, which: Codes, rng: np.random.Generator) -> Codes:
    """Returns for each row one draw from the law it names. laws: (laws, values), positive sums."""
    size = laws.shape[1]
    steps = np.cumsum(laws, axis=1)
    steps = steps / steps[:, -1:] + np.arange(len(laws))[:, None]  # one rising line: law i lies in (i, i + 1]
    found = np.searchsorted(steps.ravel(), which + rng.random(len(which)), side="right")
    return np.asarray(np.minimum(found - which * size, size - 1), dtype=np.int64)
