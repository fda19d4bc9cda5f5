"""The model as an object: it draws the law it states, says what it was learned from, and is the same after a file."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from privads.signals.chains import Field, Tree
from privads.signals.maximum_entropy import Learned, MaximumEntropy

ALPHA = 1e-6
SIZES = (2, 3, 2)


Pairs = tuple[tuple[int, int], ...]
ALL, ONE = ((0, 1), (1, 2)), ((0, 2),)


def model(link: bool = True, pairs: Pairs = ALL, label_pairs: Pairs = ONE) -> MaximumEntropy:
    """Three columns with pairs, and pairs of the label; the tree knows none of it but, roughly, one pair."""
    rng = np.random.default_rng(3)
    mu = {(c,): 0.5 * rng.standard_normal(size) for c, size in enumerate(SIZES)}
    mu |= {(a, b): rng.standard_normal((SIZES[a], SIZES[b])) for a, b in pairs}
    theta = {(c,): 0.8 * rng.standard_normal(size) for c, size in enumerate(SIZES)}
    theta |= {(): np.array(-0.3)} | {(a, b): rng.standard_normal((SIZES[a], SIZES[b])) for a, b in label_pairs}
    law = np.array([[0.3, 0.1], [0.1, 0.1], [0.1, 0.3]])
    tree = Tree(singles=(np.array([0.5, 0.5]), law.sum(axis=1), law.sum(axis=0)), links=((1, 2, law),) if link else ())
    return MaximumEntropy(
        codings=(np.array([1, 0]), np.array([0, 2, 1, 2]), np.array([0, 1])),
        field=Field(sizes=SIZES, mu=mu, theta=theta),
        tree=tree,
        rows=1000.0,
        tables=(Learned(columns=(0, 1), measure="rows", cells=8, noise_std=2.5),),
        source="made up, epsilon 1",
    )


def cell_law(of: MaximumEntropy) -> NDArray[np.float64]:
    """(original values..., label): enumerated; a merged value's share is spread over its values."""
    shape = tuple(len(codes) for codes in of.codings)
    law = np.zeros((*shape, 2))
    for row in itertools.product(*(range(size) for size in shape)):
        merged = [int(codes[value]) for codes, value in zip(of.codings, row, strict=True)]
        spread = np.prod([np.sum(codes == code) for codes, code in zip(of.codings, merged, strict=True)])
        mu, theta = (
            sum(values[tuple(merged[c] for c in key)] for key, values in factors.items())
            for factors in (of.field.mu, of.field.theta)
        )
        law[row] = np.exp([mu, mu + theta]) / spread
    return law / law.sum()


@pytest.mark.parametrize(
    ("link", "pairs", "label_pairs"),
    [
        (True, ALL, ONE),
        (False, ALL, ONE),
        (True, (), ()),  # no column has a neighbor
        (True, ((0, 1),), ()),  # one by a pair of rows only
        (True, (), ((0, 2),)),  # one by a pair of the label only
        (True, ((1, 2),), ((1, 2),)),
        (False, ((0, 1),), ((0, 2),)),  # two, one in each way, and back
    ],
)
def test_a_sample_has_the_law_of_the_model(link: bool, pairs: Pairs, label_pairs: Pairs) -> None:
    """Chi-square over 32 cells at alpha 1e-6, 200,000 rows: a law that is off by w = sum (q - p)^2 / p has a
    noncentrality of 200,000 w; w = 1e-3, cells off by 3.2 %, is missed less than once in a million times.
    """
    of, count = model(link, pairs, label_pairs), 200_000
    rows, labels = of.sample(count, seed=0)
    law = cell_law(of)
    places = np.ravel_multi_index((*rows.T, labels), law.shape)
    found = np.bincount(places, minlength=law.size)
    assert stats.chisquare(found, count * law.ravel()).pvalue > ALPHA
    critical = stats.chi2.isf(ALPHA, law.size - 1)
    assert stats.ncx2.cdf(critical, law.size - 1, count * 1e-3) < ALPHA


def test_a_model_is_the_same_after_a_file(tmp_path: Path) -> None:
    of = model()
    of.save(tmp_path / "model.json")
    read = MaximumEntropy.read(tmp_path / "model.json")
    assert read.as_dict() == of.as_dict()
    assert (read.source, read.tables, read.rows) == ("made up, epsilon 1", of.tables, 1000.0)
    rows, labels = of.sample(1000, seed=1)
    again, labels_again = read.sample(1000, seed=1)
    assert (rows == again).all()
    assert (labels == labels_again).all()
    assert (of.predict(rows) == read.predict(rows)).all()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    for text in ("{", "[]", '{"format": 1}', json.dumps({**model().as_dict(), "theta": 3})):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="maximum-entropy model|format must be"):
            MaximumEntropy.read(path)


def test_rows_of_other_columns_or_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows must be \(rows, 3\), got \(1, 2\)"):
        model().predict(np.zeros((1, 2), dtype=np.int64))
    with pytest.raises(ValueError, match=r"codes of column 1 must be in \[0, 4\)"):
        model().predict(np.array([[0, 4, 0]]))
    with pytest.raises(ValueError, match="count must be at least 1"):
        model().sample(0, seed=0)
