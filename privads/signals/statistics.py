"""Estimates of a log's sums of labels by cell, ``c = K' y``, each with its variance, from whatever told of the labels.

The log-likelihood of a logistic model with features K, ``theta . c - sum log(1 + exp(K theta))``, has the labels in c
only. So anything that estimates c without bias gives an unbiased objective, whatever it is:

    noisy sums          c_j + noise of standard deviation s_j               variance s_j^2
    randomized labels   (K'(y~ - a))_j / (1 - a - b)                        n_j a (1 - a) / (1 - 2a)^2 where a = b
    labeled sample      (K' y over the sample)_j / f                        n_j r (1 - f) / f

for n_j rows in the cell, a and b the chances that a 0 and a 1 are turned over, f the share that is sampled, r the rate
of positives. Estimates of one cell are put together in proportion to their inverse variances (Gauss and Markov), so
that sums stand for the large cells and labels for the small ones: with randomized response at epsilon, a noisy sum says
more than labels where ``n_j > s^2 (e^epsilon - 1)^2 / e^epsilon``. No variance here is a function of the labels of its
own cell: a cell that happened to be low would otherwise seem to be known better.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from accounting.budget import Neighbors
from privads.signals.encoding import Columns, Encoding, Features, Floats


@dataclass(frozen=True, kw_only=True)
class Source:
    """Who told of the labels. terms: what its release cost, such as a budget in words. neighbors: None: public rows."""

    kind: str
    neighbors: Neighbors | None
    terms: str = ""

    def __post_init__(self) -> None:
        if self.neighbors is not None and self.neighbors not in get_args(Neighbors):
            raise ValueError(f"neighbors must be one of {get_args(Neighbors)} or None, got {self.neighbors!r}")

    def __str__(self) -> str:
        said = self.terms or ("declared public" if self.neighbors is None else self.neighbors)
        return f"{self.kind} ({said})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistic:
    """Unbiased estimates of a log's sums of labels by cell.

    values, variance: (cells,); a variance is infinite where a cell is not told of. sources, weights: (sources, cells),
    how much of each estimate comes from each source. Values are as they came: a negative sum stays negative.
    """

    encoding: Encoding
    values: Floats
    variance: Floats
    sources: tuple[Source, ...]
    weights: Floats

    def __post_init__(self) -> None:
        cells = self.encoding.cells
        if self.values.shape != (cells,) or self.variance.shape != (cells,):
            raise ValueError(f"values and variance must be of shape ({cells},), got {self.values.shape}")
        if self.weights.shape != (len(self.sources), cells):
            raise ValueError(f"weights must be of shape {(len(self.sources), cells)}, got {self.weights.shape}")
        if not (np.isfinite(self.values).all() and (self.variance >= 0).all()):
            raise ValueError("values must be finite, and variances at least 0")

    @property
    def used(self) -> NDArray[np.int64]:
        """(cells,) the number of the source that says most about each cell; -1 where none does."""
        return np.where(np.isfinite(self.variance), self.weights.argmax(axis=0), -1)


def noisy_sums(
    encoding: Encoding, tables: Mapping[Columns, tuple[Floats, float]], *, neighbors: Neighbors, terms: str = ""
) -> Statistic:
    """Returns what noisy sums of positives tell. tables: columns -> (values by cell, the noise's standard deviation).

    All rows of the log are counted in each table. Tables of the encoding that are not there are not told of.
    """
    unknown = [table for table in tables if table not in encoding.tables]
    if unknown or not tables:
        raise ValueError(f"tables must be of {list(encoding.tables)}, got {list(tables)}")
    values, variance = np.zeros(encoding.cells), np.full(encoding.cells, np.inf)
    for table, part, length in zip(encoding.tables, encoding.parts, encoding.lengths, strict=True):
        if table not in tables:
            continue
        found, noise_std = tables[table]
        if found.size != length:
            raise ValueError(f"table {table} must have {length} cells, got {found.size}")
        if not 0 <= noise_std < np.inf:
            raise ValueError(f"noise_std must be finite and at least 0, got {noise_std}")
        values[part], variance[part] = found.ravel(), noise_std**2
    return _of_one(encoding, values, variance, Source(kind="noisy sums", neighbors=neighbors, terms=terms))


def public_labels(features: Features, labels: NDArray[np.generic]) -> Statistic:
    """Returns the sums themselves, of labels declared public: what a model without privacy is learned from."""
    values = features.sums(_binary(features, labels))
    source = Source(kind="public labels", neighbors=None)
    return _of_one(features.encoding, values, np.zeros(len(values)), source)


def randomized_labels(
    features: Features,
    answers: NDArray[np.generic],
    *,
    false_positive: float,
    false_negative: float,
    terms: str = "",
) -> Statistic:
    """Returns what (rows,) randomized labels in {0, 1} tell, of the rows of ``features``.

    false_positive, false_negative: the chances a, b that a 0 is answered as 1, and a 1 as 0. The variance is
    ``n_j ((1 - r) a (1 - a) + r b (1 - b)) / (1 - a - b)^2`` with r the rate of positives that all answers tell of.
    """
    told = 1 - false_positive - false_negative
    if not (0 <= false_positive < 1 and 0 <= false_negative < 1 and told > 0):
        raise ValueError(f"flip rates must be in [0, 1) and below 1 together, got {false_positive}, {false_negative}")
    debiased = (_binary(features, answers) - false_positive) / told
    rate = float(np.clip(debiased.mean(), 0, 1))
    of_a_row = (1 - rate) * false_positive * (1 - false_positive) + rate * false_negative * (1 - false_negative)
    source = Source(kind="randomized labels", neighbors="replace-label", terms=terms)
    return _of_one(features.encoding, features.sums(debiased), features.counts * of_a_row / told**2, source)


def flip_rates(*, states: int, positive_states: int, randomize_probability: float) -> tuple[float, float]:
    """Returns (false_positive, false_negative) of k-ary randomized response, where m of k states stand for a positive.

    With probability p a state is replaced by one drawn from all k: a 0 becomes one of the m with p m / k, and a 1 one
    of the others with p (k - m) / k.

    >>> flip_rates(states=4, positive_states=3, randomize_probability=0.2)
    (0.15000000000000002, 0.05)
    """
    if not 0 < positive_states < states:
        raise ValueError(f"positive_states must be from 1 to {states - 1}, got {positive_states}")
    if not 0 <= randomize_probability < 1:
        raise ValueError(f"randomize_probability must be in [0, 1), got {randomize_probability}")
    p = randomize_probability
    return p * positive_states / states, p * (states - positive_states) / states


def labeled_sample(
    features: Features,
    sample: Features,
    labels: NDArray[np.generic],
    *,
    sampling_rate: float,
    public: bool,
    noise_std: float = 0.0,
    neighbors: Neighbors | None = None,
    terms: str = "",
) -> Statistic:
    """Returns what (sampled rows,) labels of a sample of the rows of ``features`` tell, scaled up.

    sampling_rate: the chance f that a row is in the sample. Its rows are declared ``public``, or the sums of their
    labels had noise of ``noise_std`` added to each and were charged: then variance ``(noise_std / f)^2`` is on top, and
    ``neighbors`` says of what release.
    """
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"sampling_rate must be in (0, 1], got {sampling_rate}")
    if not public and (not 0 < noise_std < np.inf or neighbors is None):
        raise ValueError(
            "labels of rows that are not public need noise that was charged: state noise_std and neighbors"
        )
    if sample.encoding != features.encoding:
        raise ValueError("the sample must have the encoding of the features")
    positives = _binary(sample, labels)
    rate = positives.mean()
    sampled = features.counts * rate * (1 - sampling_rate) / sampling_rate
    source = Source(kind="labeled sample", neighbors=None if public else neighbors, terms=terms)
    values = sample.sums(positives)
    return _of_one(features.encoding, values / sampling_rate, sampled + (noise_std / sampling_rate) ** 2, source)


def combined(*statistics: Statistic) -> Statistic:
    """Returns one statistic of all: each cell the mean of its estimates, weighted by their inverse variances.

    It is unbiased with variance ``1 / sum_k 1 / v_k``, the least there is for independent estimates. Where one is
    exact, only it counts.
    """
    if not statistics:
        raise ValueError("there must be a statistic to combine")
    encoding = statistics[0].encoding
    if any(one.encoding != encoding for one in statistics):
        raise ValueError("statistics must be of the same tables")
    variance = np.stack([one.variance for one in statistics])
    exact = variance == 0
    with np.errstate(divide="ignore"):
        precision = np.where(exact.any(axis=0), exact.astype(np.float64), 1 / variance)
    total = precision.sum(axis=0)
    shares = np.divide(precision, total, out=np.zeros_like(precision), where=total > 0)
    with np.errstate(divide="ignore"):
        least = np.where(exact.any(axis=0), 0.0, 1 / total)
    return Statistic(
        encoding=encoding,
        values=np.sum([share * one.values for share, one in zip(shares, statistics, strict=True)], axis=0),
        variance=least,
        sources=tuple(source for one in statistics for source in one.sources),
        weights=np.concatenate([share * one.weights for share, one in zip(shares, statistics, strict=True)]),
    )


def as_in_sample(statistic: Statistic, features: Features, displayed: Statistic | None) -> Statistic:
    """Returns the sums as the rows of a sample would have them: ``c_j D_j / d_j``.

    A sample scaled up has D_j rows in a cell where the log has d_j, so what a model expects over the sample is too high
    by D_j / d_j. d_j is known from the sample, ``D_j`` with variance D_j scale, and from the noisy numbers of rows that
    were ``displayed``; both count by inverse variance. With no displayed numbers the sums stay. What is left open about
    d_j is added to the variance: ``(D_j / d_j)^2 (s_j^2 + r^2 Var d_j)``, r the log's rate of positives. (This is the
    coordinate-wise correction of the winners' aggregated logistic regression, AdKDD 2021, without its bias in cells of
    few rows.)
    """
    counts, scale = features.counts, features.scale
    own = (
        np.maximum(counts, scale) * scale
    )  # a cell that the sample missed may have about as many rows as one stands for
    precision = np.zeros_like(counts) if displayed is None else 1 / np.maximum(displayed.variance, 1e-12)
    known = precision + 1 / own
    rows = counts if displayed is None else (displayed.values * precision + counts / own) / known
    ratio = np.divide(counts, rows, out=np.zeros_like(counts), where=rows > 0)
    rate = float(np.clip(settled(statistic)[2] / features.rows, 0, 1))
    open_yet = (rate * ratio) ** 2 / known
    variance = np.where(np.isfinite(statistic.variance), ratio**2 * statistic.variance + open_yet, np.inf)
    return replace(statistic, values=statistic.values * ratio, variance=variance)


def without_empty(statistic: Statistic, features: Features) -> Statistic:
    """Returns the sums with 0, known exactly, in each cell that no row of `features` is in: there is noise only."""
    empty = (features.counts == 0) & np.isfinite(statistic.variance)
    return replace(
        statistic, values=np.where(empty, 0.0, statistic.values), variance=np.where(empty, 0.0, statistic.variance)
    )


def settled(statistic: Statistic) -> tuple[Floats, Floats, float]:
    """Returns (values, variance, total): the sums of the tables made to agree on how many positives there are.

    Each table's values sum to the number of positives, up to noise. The total is their mean weighted by inverse
    variance, and each table's values move to it in proportion to their variances: the generalized least squares of all
    of them. Tables that are not told of stay out.
    """
    parts = statistic.encoding.parts
    sums = np.array([statistic.values[part].sum() for part in parts])
    variances = np.array([statistic.variance[part].sum() for part in parts])
    if not np.isfinite(variances).any():
        raise ValueError("no table is told of whole: the number of positives is not known")
    with np.errstate(divide="ignore"):
        weights = np.where(variances == 0, 1.0, 0.0) if (variances == 0).any() else 1 / variances
    total = float(weights @ sums / weights.sum())
    values, variance = statistic.values.copy(), statistic.variance.copy()
    for part, own, spread in zip(parts, sums, variances, strict=True):
        if np.isfinite(spread):
            share = variance[part] / spread if spread > 0 else np.full(len(variance[part]), 1 / len(variance[part]))
            values[part] += (total - own) * share
    return values, variance, total


def _of_one(encoding: Encoding, values: Floats, variance: Floats, source: Source) -> Statistic:
    weights = np.isfinite(variance).astype(np.float64)[None]
    return Statistic(encoding=encoding, values=values, variance=variance, sources=(source,), weights=weights)


def _binary(features: Features, labels: NDArray[np.generic]) -> Floats:
    found = np.asarray(labels, dtype=np.float64)
    rows = features.places.shape[1]
    if features.scale != 1:
        raise ValueError(f"labels are of rows that stand for themselves: scale must be 1, got {features.scale}")
    if found.shape != (rows,):
        raise ValueError(f"labels must be of shape ({rows},), got {found.shape}")
    if not np.isin(found, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1")
    return found
