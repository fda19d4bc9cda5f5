"""The maximum-entropy model from noisy tables alone: no row is read, so whatever it does is free of privacy cost.

With counts r of rows and c of positives by column and by pair, and N rows, the field of `maximum_entropy` has
N E[K(x)] = r and N E[y K(x)] = c. What noise of variance s^2 on each count leaves of that:

    mu      values and laws of pairs are first made of the noisy tables as `margins` says; a pair that says no more than
            its columns is left out. Then mu follows the gradient, the law less what persistent chains show (stochastic
            approximation), each cell by its own curvature.
    theta   on rows that the chains drew, weighted to have the single columns' laws exactly, it maximizes
                theta c - N E log(1 + exp(K theta)) - sum_j lambda_j theta_j^2 / 2,
                lambda_j = (1 + s_j^2 / V_j) / v,      V_j = N E[p (1 - p); x has j],
            v the variance of a table's effects, which the table tells itself: of a column by moments and then, in the
            first turn only, by EM; of a pair by moments, in the turn in which it is found to say more. This is the
            posterior mode of an effect N(0, v) whose statistic is N(C_j(theta), V_j + s_j^2), coordinate by coordinate:
            noise pulls effects to 0 and biases none, and a negative count is as good as any other. What a pair says
            more is judged by its own noisy rows: where chains have others, that is no effect.

The two take turns. Noise of rows and of positives is treated as independent, as it is in separate tables.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.special import expit

from privads.signals.chains import Codes, Factors, Field, Floats, Tree, margin, summed, sweep
from privads.signals.margins import Cells, Margin, coding, merge, pair_law, says_more, signal_var, total, with_margins
from privads.signals.maximum_entropy import Learned, MaximumEntropy, Progress

CHAINS = 100_000
TURNS = 2
SWEEPS = 10
"""Steps of the chains in one turn of mu."""

KEPT = 3
"""Of a turn's last steps, how many rows of each chain theta is fitted on."""

RAKING = 10
"""Rounds of weighting the rows by all columns and pairs."""

MOST_FACTOR = 10.0
"""By which one round multiplies or divides the weight of a row for one table."""

EM_STEPS = 3
LEAST_VAR, MOST_VAR = 1e-6, 4.0
"""Of a table's effects: one that says nothing has the least, and more than the most is no effect but a misfit."""

Key = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tables:
    """The noisy tables by merged values, as `_consistent` makes them, and the totals of rows and of positives."""

    rows: Mapping[Key, Cells]
    positives: Mapping[Key, Cells]
    count: float
    hit: float


def fit_maximum_entropy(
    rows: Sequence[Margin],
    positives: Sequence[Margin],
    *,
    source: str,
    seed: int,
    chains: int = CHAINS,
    turns: int = TURNS,
    progress: Progress | None = None,
) -> MaximumEntropy:
    """Returns the model of noisy counts of rows and of positives by each column, and by any pairs of columns.

    source: what the tables are, in words: whose event, budget and unit. seed: of the chains. chains: rows that the
    expectations are taken over; their error is that of a log of so many rows. progress: of turns and steps of chains.
    """
    columns = _checked(rows, positives)
    singles = {one.columns[0]: one for one in rows if one.order == 1}
    codings = tuple(coding(singles[column]) for column in range(columns))
    seen, hits = _consistent(rows, codings), _consistent(positives, codings)
    count = max(total([cells for key, cells in seen.items() if len(key) == 1]), 1.0)
    hit = float(np.clip(total([cells for key, cells in hits.items() if len(key) == 1]), 0.5, count - 0.5))
    laws = _laws(seen, count)
    tree = _tree(laws, columns)
    rng = np.random.default_rng(seed)
    state = tree.draw(chains, rng)
    sizes = tuple(len(laws[column,]) for column in range(columns))
    none: dict[Key, Floats] = {(column,): np.zeros(size) for column, size in enumerate(sizes)}
    constant = np.array(np.log(hit / (count - hit)))
    field = Field(sizes=sizes, mu=_start(laws, tree), theta={(): constant, **none})
    variances: dict[Key, float] = {
        key: _first_var(cells, laws[key], count, hit / count) for key, cells in hits.items() if len(key) == 1
    }
    known = _Tables(rows=seen, positives=hits, count=count, hit=hit)
    kept = [state]
    steps = itertools.count(1)

    def stepped() -> None:
        if progress is not None:
            progress(next(steps), turns * (1 + SWEEPS) + 1)

    for _ in range(turns):
        field, variances = _label_turn(field, kept, laws, known, variances)
        stepped()
        field, kept = _row_turn(field, tree, kept[-1], laws, rng, stepped)
    field, _ = _label_turn(field, kept, laws, known, variances)
    stepped()
    learned = [
        Learned(columns=one.columns, measure=measure, cells=one.values.size, noise_std=one.noise_std)
        for measure, tables in (("rows", rows), ("positives", positives))
        for one in tables
    ]
    return MaximumEntropy(codings=codings, field=field, tree=tree, rows=count, tables=tuple(learned), source=source)


def _checked(rows: Sequence[Margin], positives: Sequence[Margin]) -> int:
    """Returns the number of columns."""
    columns = 1 + max((max(one.columns) for one in rows), default=-1)
    for measure, tables in (("rows", rows), ("positives", positives)):
        keys = [one.columns for one in tables]
        missing = {(column,) for column in range(columns)} - set(keys)
        if missing or not columns:
            raise ValueError(f"there must be a table of {measure} for each column, none for {sorted(missing)}")
        if len(set(keys)) != len(keys):
            raise ValueError(f"there must be one table of {measure} by the same columns, got several")
        if max(max(key) for key in keys) >= columns:
            raise ValueError(f"there must be a table of rows for each column of positives, got {columns}")
    return columns


def _consistent(tables: Sequence[Margin], codings: Sequence[Codes]) -> dict[Key, Cells]:
    """Returns the tables by merged values: single columns have one sum, and pairs have single columns' counts."""
    merged = {one.columns: merge(one, codings) for one in tables}
    known = total([cells for key, cells in merged.items() if len(key) == 1])
    found: dict[Key, Cells] = {key: cells.moved_to(known) for key, cells in merged.items() if len(key) == 1}
    for key, cells in merged.items():
        if len(key) == 2:
            found[key] = with_margins(cells, found[key[:1]].values, found[key[1:]].values)
    return found


def _laws(seen: Mapping[Key, Cells], count: float) -> dict[Key, Floats]:
    """Returns the laws of columns, and of those pairs that say more."""
    laws: dict[Key, Floats] = {}
    for key, cells in seen.items():
        if len(key) == 1:
            positive = np.maximum(cells.values, 1.0)  # all values are well above noise, but for one alone
            laws[key] = positive / positive.sum()
    for key, cells in seen.items():
        if len(key) == 2:
            law = pair_law(cells, laws[key[:1]], laws[key[1:]], count)
            if law is not None:
                laws[key] = law
    return laws


def _tree(laws: Mapping[Key, Floats], columns: int) -> Tree:
    """Returns the tree of pairs with the greatest mutual information, of the pairs that have a law."""
    told = np.zeros((columns, columns))
    for key, law in laws.items():
        if len(key) == 2:
            lift = np.log(law / np.outer(law.sum(axis=1), law.sum(axis=0)))
            told[key] = -max(float((law * lift).sum()), 1e-12)
    spanned = minimum_spanning_tree(told)
    links: list[tuple[int, int, Floats]] = []
    placed: set[int] = set()
    for root in range(columns):
        if root in placed:
            continue
        order, parents = breadth_first_order(spanned, root, directed=False)
        placed |= set(order.tolist())
        for child in order[1:].tolist():
            parent = int(parents[child])
            links.append((parent, child, laws[parent, child] if parent < child else laws[child, parent].T))
    return Tree(singles=tuple(laws[column,] for column in range(columns)), links=tuple(links))


def _start(laws: Mapping[Key, Floats], tree: Tree) -> dict[Key, Floats]:
    """Returns the mu of the tree's law, with a 0 for every other pair."""
    mu = {key: np.log(law) if len(key) == 1 else np.zeros_like(law) for key, law in laws.items()}
    for parent, child, law in tree.links:
        lift = np.log(law / np.outer(law.sum(axis=1), law.sum(axis=0)))
        mu[min(parent, child), max(parent, child)] = lift if parent < child else lift.T
    return mu


def _row_turn(
    field: Field,
    tree: Tree,
    state: Codes,
    laws: Mapping[Key, Floats],
    rng: np.random.Generator,
    stepped: Callable[[], None],
) -> tuple[Field, list[Codes]]:
    """Returns the field with mu moved to the laws, and the chains of the last steps. stepped: called after each."""
    chains = len(state)
    degree = max(len(field.neighbors(column)) for column in range(len(field.sizes)))
    mu, kept = dict(field.mu), []
    for step in range(SWEEPS):
        state = sweep(replace(field, mu=mu), tree, state, rng)
        kept.append(state)
        rate = 2.0 / (2 + degree) / (1 + step / 3)
        for key, law in laws.items():
            shown = margin(state, key, field.sizes) / chains
            mu[key] = mu[key] + rate * np.clip((law - shown) / (np.maximum(law, shown) + 1 / chains), -1, 1)
        stepped()
    return replace(field, mu=mu), kept[-KEPT:]


def _label_turn(
    field: Field,
    kept: Sequence[Codes],
    laws: Mapping[Key, Floats],
    tables: _Tables,
    variances: Mapping[Key, float],
) -> tuple[Field, dict[Key, float]]:
    """Returns the field with theta fitted to the rows in ``kept``, and the variances of effects."""
    rows = np.concatenate(kept)
    weights = tables.count * _weights(rows, laws, field.sizes)
    found, theta, hit = dict(variances), field.theta, tables.hit
    hits = _of_these_rows(tables, rows, weights, expit(summed(theta, rows)), field.sizes)
    for _ in range(EM_STEPS if len(kept) == 1 else 1):
        theta, new = _em_step(theta, rows, weights, field.sizes, hits, hit, found)
        found = new if len(kept) == 1 else found
    p = expit(summed(theta, rows))
    hits = _of_these_rows(tables, rows, weights, p, field.sizes)
    for key, cells in hits.items():
        if key in found:
            continue
        expected, slope = (margin(rows, key, field.sizes, weights * one) for one in (p, p * (1 - p)))
        drawn = margin(rows, key, field.sizes, (weights * p) ** 2)
        variance, misfit = np.maximum(slope, 1e-9) + cells.noise_var + drawn, cells.values - expected
        if says_more(misfit, variance):
            found[key] = float(np.clip(signal_var(misfit, slope, variance), LEAST_VAR, MOST_VAR))
            theta = {**theta, key: np.zeros(cells.values.shape)}
    if len(found) > len(variances):
        theta, _ = _em_step(theta, rows, weights, field.sizes, hits, hit, found)
    return replace(field, mu=_held(field, theta, rows, weights), theta=theta), found


def _of_these_rows(
    tables: _Tables, rows: Codes, weights: Floats, p: Floats, sizes: tuple[int, ...]
) -> dict[Key, Cells]:
    """Returns the positives as they would be if a pair's cells had the rows' weights: c - q (r - weight), q the mean
    of p in the cell.

    What the rows of a pair's law lack or have too much of is then not taken for an effect on the label; r is noisy,
    and so is what this adds.
    """
    found = dict(tables.positives)
    for key, cells in tables.positives.items():
        counted = tables.rows.get(key)
        if len(key) == 1 or counted is None:
            continue
        weight = margin(rows, key, sizes, weights)
        rate = margin(rows, key, sizes, weights * p) / np.maximum(weight, 1e-9)
        found[key] = Cells(
            columns=key,
            values=cells.values - rate * (counted.values - weight),
            noise_var=cells.noise_var + rate**2 * counted.noise_var,
        )
    return found


def _em_step(
    theta: Factors,
    rows: Codes,
    weights: Floats,
    sizes: tuple[int, ...],
    hits: Mapping[Key, Cells],
    hit: float,
    variances: Mapping[Key, float],
) -> tuple[Factors, dict[Key, float]]:
    """Returns theta under these variances of effects, and the variances that it shows: the mean of theta_j^2 and of
    what is not known of theta_j, 1 / (V_j^2 / (V_j + s_j^2) + 1 / v).
    """
    p = expit(summed(theta, rows))
    slopes = {key: np.maximum(margin(rows, key, sizes, weights * p * (1 - p)), 1e-9) for key in variances}
    told = {key: slopes[key] ** 2 / (slopes[key] + hits[key].noise_var) for key in variances}
    penalties = {key: slopes[key] / told[key] / variances[key] for key in variances}
    fitted = _ridge(theta, rows, weights, {key: hits[key].values for key in variances}, hit, slopes, penalties)
    found = {}
    for key, variance in variances.items():
        unknown = 1 / (told[key] + 1 / variance)
        found[key] = float(np.clip((fitted[key] ** 2 + unknown).mean(), LEAST_VAR, MOST_VAR))
    return fitted, found


def _ridge(
    theta: Factors,
    rows: Codes,
    weights: Floats,
    statistics: Mapping[Key, Floats],
    hit: float,
    slopes: Mapping[Key, Floats],
    penalties: Mapping[Key, Floats],
) -> Factors:
    """Returns the theta that maximizes the module's concave objective; the constant is not pulled."""
    keys = ((), *statistics)
    shapes = {key: theta[key].shape for key in keys}
    ends = np.cumsum([theta[key].size for key in keys])
    slices = {key: slice(end - theta[key].size, end) for key, end in zip(keys, ends, strict=True)}
    places = {key: np.ravel_multi_index(tuple(rows[:, c] for c in key), shapes[key]) for key in statistics}
    statistic = np.concatenate([[hit], *(statistics[key].ravel() for key in statistics)])
    penalty = np.concatenate([[0.0], *(penalties[key].ravel() for key in statistics)])
    slope = np.concatenate([[hit], *(slopes[key].ravel() for key in statistics)])
    scale = 1 / np.sqrt(slope + penalty)  # each parameter in its own curvature
    size = weights.sum()

    def loss(scaled: Floats) -> tuple[float, Floats]:
        flat = scaled * scale
        logit = np.full(len(rows), flat[0])
        for key, place in places.items():
            logit += flat[slices[key]][place]
        mean = weights * expit(logit)
        gradient = penalty * flat - statistic
        gradient[0] += mean.sum()
        for key, place in places.items():
            gradient[slices[key]] += np.bincount(place, mean, minlength=theta[key].size)
        value = weights @ np.logaddexp(0.0, logit) - statistic @ flat + penalty @ flat**2 / 2
        return float(value) / size, gradient * scale / size

    start = np.concatenate([theta[key].ravel() for key in keys]) / scale
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 100, "ftol": 1e-10, "gtol": 1e-8})
    flat = found.x * scale
    return {key: flat[slices[key]].reshape(shapes[key]) for key in keys}


def _first_var(cells: Cells, law: Floats, count: float, rate: float) -> float:
    """Returns the variance of a column's effects that its positives show by themselves, by moments."""
    slope = count * law * rate * (1 - rate)
    return max(signal_var(cells.values - count * law * rate, slope, slope + cells.noise_var), LEAST_VAR)


def _weights(rows: Codes, laws: Mapping[Key, Floats], sizes: tuple[int, ...]) -> Floats:
    """Returns (rows,) weights of sum 1 that give pairs nearly their laws and every column exactly its own.

    By iterative proportional fitting, pairs before columns. Chains may not have reached the laws of pairs, and where
    columns are tied what is left would count one effect several times.
    """
    weights = np.full(len(rows), 1 / len(rows))
    for _ in range(RAKING):
        for key in sorted(laws, key=len, reverse=True):
            shown = margin(rows, key, sizes, weights)
            factor = np.clip(laws[key] / np.maximum(shown, 1e-300), 1 / MOST_FACTOR, MOST_FACTOR)
            weights = weights * factor[tuple(rows[:, column] for column in key)]
    return np.asarray(weights / weights.sum())


def _held(field: Field, theta: Factors, rows: Codes, weights: Floats) -> Factors:
    """Returns the mu under which columns keep their laws as theta becomes another one, to first order.

    The label summed out gives a row ln(1 + exp(K theta)); what its mean by a column's values gains, mu loses.
    """
    gain = np.logaddexp(0.0, summed(theta, rows)) - np.logaddexp(0.0, summed(field.theta, rows))
    gain = gain - weights @ gain / weights.sum()
    mu = dict(field.mu)
    for column in range(len(field.sizes)):
        mass = margin(rows, (column,), field.sizes, weights)
        mu[column,] = mu[column,] - margin(rows, (column,), field.sizes, weights * gain) / np.maximum(mass, 1e-9)
    return mu
