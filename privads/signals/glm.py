"""A logistic model learned from noisy sums of labels, by what is known of the noise.

P(y = 1 | x) = sigmoid(b + K(x) theta), with K one 1 for each table (`encoding`). Minimized is, over b and theta,

    sum_rows log(1 + exp(b + K theta)) - b c_0 - theta . c + 1/2 sum_j l_j theta_j^2

in which labels stand in c = K'y only, so that any unbiased estimates of c do (`statistics`); c_0 is the number of
positives they agree on. The penalty knows the noise: with effects N(0, t), and c_j known with variance s_j^2,

    l_j = (1 + s_j^2 / h_j) / t,   h_j = sum p (1 - p) over the cell's rows

is where E[c | the noisy sums, theta] gives the same answer: c_j = mu_j + h_j / (h_j + s_j^2) (c^_j - mu_j), by the
Laplace approximation, exact where columns are independent. t comes from `evidence`, so no labelled row is ever looked
at, and nothing is cut off: a c_j below 0 is as good as any, and cutting it would bias all cells of few positives.

The minimum is found by Newton's method with conjugate gradients. The intercept is taken out of the features first; then
columns that are independent make the Hessian one block a table, a diagonal less one outer product, whose inverse is
known: the preconditioner.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

from accounting.budget import Neighbors
from privads.signals.encoding import Encoding, Features, Floats
from privads.signals.evidence import Effects, estimated_effects
from privads.signals.statistics import Source, Statistic, as_in_sample, settled, without_empty

NEWTON_STEPS = 20
DECREASE = 1e-8
"""Of the objective for each row, in nats, at which Newton's method is done."""

_MOST_INNER, _INNER_TOLERANCE = 100, 0.1
_LEAST_WEIGHT = 1e-9
"""Of a row: sums that no probabilities have can drive all of them to 0 or 1, under a ridge that is told of no noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisyLogistic:
    """A logistic model learned from sums of labels, and what it was learned from.

    coefficients, standard_errors: (cells,). The error of an effect is its posterior standard deviation, the others as
    they are: ``(1 / t + h^2 / (h + s^2))^(-1/2)``; under a fixed ridge l, ``(h + s^2)^(1/2) / (h + l)``, its sampling
    error. prior_variances: (tables,), 0 for a table that says nothing; None under a fixed ridge. used: for each source,
    in how many cells it said most.
    """

    encoding: Encoding
    intercept: float
    coefficients: Floats
    standard_errors: Floats
    prior_variances: Floats | None
    sources: tuple[Source, ...]
    used: tuple[int, ...]
    features_public: bool

    def __post_init__(self) -> None:
        cells = self.encoding.cells
        if self.coefficients.shape != (cells,) or self.standard_errors.shape != (cells,):
            raise ValueError(f"coefficients and standard_errors must be of shape ({cells},)")
        if not (np.isfinite(self.intercept) and np.isfinite(self.coefficients).all()):
            raise ValueError("a model's coefficients must be finite")
        if self.prior_variances is not None and self.prior_variances.shape != (len(self.encoding.tables),):
            raise ValueError(f"prior_variances must be of shape ({len(self.encoding.tables)},)")
        if len(self.used) != len(self.sources) or not self.sources:
            raise ValueError("a model must say for each of its sources in how many cells it was used")

    def logits(self, rows: NDArray[np.integer]) -> Floats:
        """Returns (rows,) log-odds. rows: (rows, columns) values, as in ``encoding.sizes``."""
        found = np.full(len(rows), self.intercept)
        for places, part in zip(self.encoding.places(rows), self.encoding.parts, strict=True):
            found += self.coefficients[part][places]
        return found

    def predict(self, rows: NDArray[np.integer]) -> Floats:
        """Returns (rows,) probabilities of a positive."""
        return np.asarray(expit(self.logits(rows)))

    @property
    def unprotected(self) -> tuple[str, ...]:
        """The columns whose values in the rows nothing protects, for they were read as they are."""
        columns = {name for table in self.encoding.tables for name in table}
        return () if self.features_public else tuple(name for name in self.encoding.sizes if name in columns)

    @property
    def neighbors(self) -> Neighbors | None:
        """The neighbors of the guarantee: labels only, unless features are public. None: all it saw is public."""
        told = {source.neighbors for source in self.sources} - {None}
        if told and self.unprotected:
            return "replace-label"
        weakest_first: tuple[Neighbors, ...] = ("replace-label", "add-remove", "replace")
        return next((one for one in weakest_first if one in told), None)

    @property
    def guarantee(self) -> str:
        """What was learned from, who is protected by it, and what is not."""
        sources = ", ".join(f"{source} in {cells} cells" for source, cells in zip(self.sources, self.used, strict=True))
        match self.neighbors:
            case None:
                protected = "the labels are public"
            case "replace-label":
                protected = "labels alone are protected (neighbors replace-label)"
            case neighbors:
                protected = f"neighbors {neighbors}"
        if self.unprotected:
            features = f"NOT protected are the features {', '.join(self.unprotected)} of the rows it read"
        else:
            features = "the features it read are declared public"
        return f"learned from {sources}; {protected}; {features}"

    def as_dict(self) -> dict[str, Any]:
        """Returns the model as JSON can hold it; `from_dict` reads it back."""
        return {
            "columns": [[name, size] for name, size in self.encoding.sizes.items()],
            "tables": [list(table) for table in self.encoding.tables],
            "intercept": self.intercept,
            "coefficients": self.coefficients.tolist(),
            "standard_errors": self.standard_errors.tolist(),
            "prior_variances": None if self.prior_variances is None else self.prior_variances.tolist(),
            "sources": [{"kind": one.kind, "neighbors": one.neighbors, "terms": one.terms} for one in self.sources],
            "used": list(self.used),
            "features_public": self.features_public,
            "guarantee": self.guarantee,
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "NoisyLogistic":
        """Returns the model that `as_dict` made; the guarantee is made anew from what is stated."""
        try:
            priors = found["prior_variances"]
            return cls(
                encoding=Encoding(sizes=dict(found["columns"]), tables=tuple(tuple(one) for one in found["tables"])),
                intercept=float(found["intercept"]),
                coefficients=np.array(found["coefficients"], dtype=np.float64),
                standard_errors=np.array(found["standard_errors"], dtype=np.float64),
                prior_variances=None if priors is None else np.array(priors, dtype=np.float64),
                sources=tuple(Source(**source) for source in found["sources"]),
                used=tuple(int(cells) for cells in found["used"]),
                features_public=found["features_public"] is True,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no model learned from sums: {error}") from None


def learn(
    features: Features, statistic: Statistic, *, ridge: float | None = None, displayed: Statistic | None = None
) -> NoisyLogistic:
    """Returns the logistic model of ``features`` that ``statistic`` makes likely.

    ridge: a fixed penalty on every coefficient, as in a ridge regression that is told of no noise; by default the
    penalty comes from the noise and from how much the sums vary beyond it. displayed: where ``features`` are a sample,
    the noisy numbers of rows by cell.
    """
    encoding = features.encoding
    if statistic.encoding != encoding:
        raise ValueError("statistic must be of the same tables as the features")
    if ridge is not None and not 0 < ridge < np.inf:
        raise ValueError(f"ridge must be positive and finite, got {ridge}")
    if displayed is not None and displayed.encoding != encoding:
        raise ValueError("displayed must be of the same tables as the features")
    told = statistic if features.scale == 1 else as_in_sample(statistic, features, displayed)
    values, variance, total = settled(without_empty(told, features))
    # Where the noise is larger than the number of positives, their sum can be below 0; half a positive is the least.
    total = float(np.clip(total, 0.5, features.rows - 0.5))
    constant = float(np.log(total / (features.rows - total)))
    if ridge is None:
        start = estimated_effects(features, values, variance, total)
        chosen = [table for table, variance_of in enumerate(start.variances) if variance_of > 0]
    else:
        start = Effects(intercept=constant, values=np.zeros(encoding.cells), variances=np.zeros(0))
        chosen = [table for table, part in enumerate(encoding.parts) if np.isfinite(variance[part]).all()]
    intercept, coefficients, errors = constant, np.zeros(encoding.cells), np.zeros(encoding.cells)
    if chosen:
        cells = np.concatenate([np.arange(encoding.cells)[encoding.parts[table]] for table in chosen])
        problem = Problem(
            matrix=features.matrix(chosen),
            scale=features.scale,
            lengths=tuple(encoding.lengths[table] for table in chosen),
            values=values[cells],
            total=total,
        )
        prior = None if ridge is not None else np.repeat(start.variances[chosen], problem.lengths)
        penalty = _penalty(problem.information(start.intercept, start.values[cells]), variance[cells], prior, ridge)
        intercept, coefficients[cells] = minimized(problem, penalty, start.intercept, start.values[cells])
        errors[cells] = _errors(problem.information(intercept, coefficients[cells]), variance[cells], prior, ridge)
    used = np.bincount(statistic.used[statistic.used >= 0], minlength=len(statistic.sources))
    return NoisyLogistic(
        encoding=encoding,
        intercept=intercept,
        coefficients=coefficients,
        standard_errors=errors,
        prior_variances=start.variances if ridge is None else None,
        sources=statistic.sources,
        used=tuple(used.tolist()),
        features_public=features.public,
    )


def _penalty(h: Floats, noise: Floats, prior: Floats | None, ridge: float | None) -> Floats:
    """Returns l, (cells,). noise: the variances s^2 that were added. A cell that no row is in has the prior alone."""
    if prior is None:
        return np.full(len(h), ridge, dtype=np.float64)
    return (1 + noise / np.where(h > 0, h, 1.0)) / prior


def _errors(h: Floats, noise: Floats, prior: Floats | None, ridge: float | None) -> Floats:
    """Returns the standard errors, (cells,), as `NoisyLogistic` states them."""
    if prior is None:
        return np.sqrt(h + noise) / (h + (ridge or 0.0))
    told = np.divide(h**2, h + noise, out=np.zeros_like(h), where=h > 0)
    return np.asarray((1 / prior + told) ** -0.5)


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What is minimized, but for the penalty. matrix: K of the tables that are learned from, (rows, cells)."""

    matrix: sparse.csr_matrix
    scale: float
    lengths: tuple[int, ...]
    values: Floats
    total: float

    @property
    def rows(self) -> float:
        """How many rows of the log the matrix stands for."""
        return self.scale * float(self.matrix.shape[0])

    def information(self, intercept: float, theta: Floats) -> Floats:
        """Returns h, (cells,): the variance of the sums of labels."""
        p = expit(intercept + self.matrix @ theta)
        return np.asarray(self.scale * (self.matrix.T @ (p * (1 - p))))

    def objective(self, logits: Floats, penalty: Floats, intercept: float, theta: Floats) -> float:
        """Returns the objective. logits: b + K theta, (rows,)."""
        data = self.scale * np.logaddexp(0, logits).sum() - intercept * self.total - theta @ self.values
        return float(data + penalty @ theta**2 / 2)

    def gradient(self, logits: Floats, penalty: Floats, theta: Floats) -> tuple[float, Floats]:
        """Returns the objective's derivatives in the intercept and in theta, (cells,)."""
        p = self.scale * expit(logits)
        return float(p.sum() - self.total), np.asarray(self.matrix.T @ p - self.values + penalty * theta)


def minimized(problem: Problem, penalty: Floats, intercept: float, theta: Floats) -> tuple[float, Floats]:
    """Returns (intercept, theta) at the objective's minimum, by Newton's method from a start."""
    firsts = np.cumsum([0, *problem.lengths[:-1]])

    def by_table(cells: Floats) -> Floats:
        return np.asarray(np.add.reduceat(cells, firsts))

    matrix = problem.matrix
    logits = intercept + matrix @ theta
    for _ in range(NEWTON_STEPS):
        # A table's effects may all move, and the intercept against them: the penalty alone says where they stand.
        shifts = by_table(penalty * theta) / by_table(penalty)
        theta, intercept = theta - np.repeat(shifts, problem.lengths), intercept + float(shifts.sum())
        p = expit(logits)
        weights = problem.scale * np.maximum(p * (1 - p), _LEAST_WEIGHT)
        h, whole = np.asarray(matrix.T @ weights), float(weights.sum())
        slope, gradient = problem.gradient(logits, penalty, theta)
        step = _solved(matrix, weights, h / whole, penalty, slope * h / whole - gradient, problem.lengths)
        along = -slope / whole - float(h @ step) / whole
        moved = matrix @ step + along
        size, here = 1.0, problem.objective(logits, penalty, intercept, theta)
        room = 1e-12 * abs(here)  # of rounding
        while (
            problem.objective(logits + size * moved, penalty, intercept + size * along, theta + size * step)
            > here + room
            and size > 1e-3
        ):
            size /= 2
        theta, intercept, logits = theta + size * step, intercept + size * along, logits + size * moved
        if -size * (gradient @ step + slope * along) < DECREASE * problem.rows:
            break
    return intercept, theta


def _solved(
    matrix: sparse.csr_matrix,
    weights: Floats,
    means: Floats,
    penalty: Floats,
    right: Floats,
    lengths: tuple[int, ...],
) -> Floats:
    """Returns x with ``((K - 1 m')' W (K - 1 m') + diag(l)) x = right`` up to a tenth, by conjugate gradients.

    means: m, the weighted means of the columns of K. The preconditioner is the Hessian for independent columns,
    inverted block by block (Sherman and Morrison): ``diag(h + l) - h h' / sum h`` with h the weights by cell.
    """
    whole = float(weights.sum())
    h = means * whole
    diagonal = h + penalty
    firsts = np.cumsum([0, *lengths[:-1]])
    left = np.add.reduceat(h * penalty / diagonal, firsts)

    def preconditioned(x: Floats) -> Floats:
        y = x / diagonal
        return y + np.repeat(np.add.reduceat(h * y, firsts) / left, lengths) * h / diagonal

    def product(x: Floats) -> Floats:
        u = weights * (matrix @ x - means @ x)
        return np.asarray(matrix.T @ u - means * u.sum() + penalty * x)

    x, rest = np.zeros_like(right), right.copy()
    near = preconditioned(rest)
    direction, size = near.copy(), float(rest @ near)
    enough = max(_INNER_TOLERANCE**2 * size, 1e-12 * whole)
    for _ in range(_MOST_INNER):
        if size <= enough:
            break
        image = product(direction)
        stride = size / float(direction @ image)
        x += stride * direction
        rest -= stride * image
        near = preconditioned(rest)
        before, size = size, float(rest @ near)
        direction = near + size / before * direction
    return x
