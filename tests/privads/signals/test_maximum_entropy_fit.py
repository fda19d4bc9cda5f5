"""The model from tables alone: the exact maximum-entropy solution by enumeration, and what noise may do to it."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from privads.signals.margins import Margin
from privads.signals.maximum_entropy import MaximumEntropy
from privads.signals.maximum_entropy_fit import fit_maximum_entropy

Floats = NDArray[np.float64]
SIZES = (3, 4, 2)
ROWS = 2_000_000
KEYS = ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2))


def world(seed: int) -> Floats:
    """A law (3, 4, 2, 2) of rows and a label; its columns depend on one another, also three at a time."""
    rng = np.random.default_rng(seed)
    law = np.exp(0.7 * rng.standard_normal((*SIZES, 2))) * np.array([0.8, 0.2])
    return np.asarray(law / law.sum())


def summed_to(law: Floats, key: Sequence[int]) -> Floats:
    return np.asarray(law.sum(axis=tuple(set(range(law.ndim)) - set(key))))


def tables(law: Floats, label_keys: Sequence[tuple[int, ...]]) -> tuple[list[Margin], list[Margin]]:
    rows = [Margin(columns=key, values=ROWS * summed_to(law.sum(axis=-1), key), noise_std=0.0) for key in KEYS]
    hits = [Margin(columns=key, values=ROWS * summed_to(law[..., 1], key), noise_std=0.0) for key in label_keys]
    return rows, hits


def proportionally_fitted(law: Floats, label_keys: Sequence[tuple[int, ...]]) -> Floats:
    """Iterative proportional fitting from the uniform law: it ends in the maximum-entropy law of these margins."""
    found = np.full(law.shape, 1 / law.size)
    for _ in range(2000):
        for key in KEYS:
            ratio = summed_to(law.sum(axis=-1), key) / summed_to(found.sum(axis=-1), key)
            found = found * np.expand_dims(ratio, tuple(set(range(found.ndim)) - set(key)))
        for key in label_keys:
            ratio = summed_to(law[..., 1], key) / summed_to(found[..., 1], key)
            found[..., 1] *= np.expand_dims(ratio, tuple(set(range(found.ndim - 1)) - set(key)))
            ratio = law[..., 0].sum() / found[..., 0].sum()
            found[..., 0] *= ratio
    return found


def every_row() -> NDArray[np.int64]:
    return np.array(list(itertools.product(*(range(size) for size in SIZES))))


def law_of(model: MaximumEntropy) -> Floats:
    """The model's law by enumeration: exp(K mu + y K theta) / Z."""
    law = np.zeros((*SIZES, 2))
    for row in itertools.product(*(range(size) for size in SIZES)):
        for y in (0, 1):
            mu = sum(values[tuple(row[c] for c in key)] for key, values in model.field.mu.items())
            theta = sum(values[tuple(row[c] for c in key)] for key, values in model.field.theta.items())
            law[(*row, y)] = np.exp(mu + y * theta)
    return law / law.sum()


@pytest.mark.parametrize("label_keys", [KEYS[:3], KEYS], ids=["singles", "pairs"])
def test_without_noise_it_is_the_law_of_greatest_entropy(label_keys: Sequence[tuple[int, ...]]) -> None:
    law = world(1)
    exact = proportionally_fitted(law, label_keys)
    model = fit_maximum_entropy(*tables(law, label_keys), source="made up", seed=0)
    found = law_of(model)
    # 100,000 chains over several steps: a cell of share p errs by about sqrt(p / 100,000) < 0.001
    assert np.abs(found - exact).max() < 0.004
    assert np.abs(found - law).max() > 2 * np.abs(found - exact).max()  # the law itself is another one
    p = exact[..., 1] / exact.sum(axis=-1)
    assert np.abs(model.predict(every_row()) - p.ravel()).max() < 0.025


def test_what_it_predicts_is_what_its_law_says_of_the_label() -> None:
    model = fit_maximum_entropy(*tables(world(2), KEYS), source="made up", seed=0, chains=5_000, turns=1)
    law = law_of(model)
    given_row = (law[..., 1] / law.sum(axis=-1)).ravel()
    assert model.predict(every_row()) == pytest.approx(given_row, abs=1e-12)


def test_progress_tells_of_steps_and_of_nothing_in_the_tables() -> None:
    told: list[list[tuple[int, int]]] = []
    for seed, keys in ((2, KEYS), (3, KEYS[:3])):
        told.append([])
        model = fit_maximum_entropy(
            *tables(world(seed), keys),
            source="made up",
            seed=0,
            chains=500,
            progress=lambda done, of: told[-1].append((done, of)),
        )
    assert told[0] == told[1] == [(step, len(told[0])) for step in range(1, len(told[0]) + 1)]
    drawn: list[tuple[int, int]] = []
    model.sample(10, seed=0, burn_in=3, progress=lambda done, of: drawn.append((done, of)))
    assert drawn == [(1, 3), (2, 3), (3, 3)]


def noisy(
    counts: Floats, hits: Floats, noise_std: float, rng: np.random.Generator, told: float
) -> tuple[list[Margin], list[Margin]]:
    found: tuple[list[Margin], list[Margin]] = ([], [])
    for tables_of, exact in zip(found, (counts, hits), strict=True):
        for column in range(counts.shape[0]):
            values = exact[column] + noise_std * rng.standard_normal(exact.shape[1])
            tables_of.append(Margin(columns=(column,), values=values, noise_std=told))
    return found


def test_knowing_the_noise_beats_ignoring_it() -> None:
    """Expected log loss under the true law, which is exact: six independent columns of 40 values, noise as large as a
    value's positives. Over five seeds of noise the gap is many of its standard deviations.
    """
    rng = np.random.default_rng(5)
    columns, values, count = 6, 40, 60_000
    rows = rng.integers(0, values, (count, columns))
    effects = 0.4 * rng.standard_normal((columns, values))
    p = expit(-2.5 + effects[np.arange(columns), rows].sum(axis=1))
    y = rng.random(count) < p
    counts = np.stack([np.bincount(rows[:, c], minlength=values) for c in range(columns)]).astype(np.float64)
    hits = np.stack([np.bincount(rows[:, c], y, minlength=values) for c in range(columns)])
    gains = []
    for seed in range(5):
        losses = []
        for told in (80.0, 0.0):
            tables_of = noisy(counts, hits, 80.0, np.random.default_rng(seed), told)
            model = fit_maximum_entropy(*tables_of, source="made up", seed=0, chains=5_000, turns=1)
            q = np.clip(model.predict(rows), 1e-4, 1 - 1e-4)
            losses.append(float(-(p * np.log(q) + (1 - p) * np.log(1 - q)).mean()))
        gains.append(losses[1] - losses[0])
    assert min(gains) > 0.002


def tied(seed: int, count: int = 8_000) -> tuple[NDArray[np.int64], Floats, NDArray[np.bool_]]:
    """Rows (count, 5), their true rates, and labels. A row is of a site or of an app, which determine the other columns
    nearly, each in its own way: no tree of pairs has their law.
    """
    rng = np.random.default_rng(seed)
    site, app = (np.minimum((rng.pareto(0.8, count) * 2).astype(np.int64), most) for most in (29, 19))
    in_app = rng.random(count) < 0.4
    kind = np.where(rng.random(count) < 0.98, np.where(in_app, 3 * app + 1, 2 * site) % 4, rng.integers(0, 4, count))
    form = np.where(rng.random(count) < 0.98, (kind + np.where(in_app, app, site) // 2) % 4, rng.integers(0, 4, count))
    named = [np.where(in_app, 0, 1 + site), np.where(in_app, 1 + app, 0), np.where(in_app, 0, 1 + site % 5)]
    rows = np.stack([*named, kind, form], axis=1)
    effects = 0.6 * rng.standard_normal((2, 31))
    p = expit(-1.6 + effects[0, rows[:, 0]] + effects[1, rows[:, 1]])
    return rows, p, rng.random(count) < p


def counted(rows: NDArray[np.int64], labels: NDArray[np.bool_], noise_std: float) -> tuple[list[Margin], list[Margin]]:
    rng, sizes = np.random.default_rng(0), rows.max(axis=0) + 1
    found: tuple[list[Margin], list[Margin]] = ([], [])
    columns = range(rows.shape[1])
    for key in (*((column,) for column in columns), *itertools.combinations(columns, 2)):
        shape = tuple(sizes[list(key)])
        for own, chosen in zip(found, (rows, rows[labels]), strict=True):
            exact = np.zeros(shape)
            np.add.at(exact, tuple(chosen[:, column] for column in key), 1.0)
            own.append(Margin(columns=key, values=exact + noise_std * rng.standard_normal(shape), noise_std=noise_std))
    return found


def gain(p: Floats, q: Floats) -> float:
    """The share of what is known by the true rates p, above their mean, that predictions q know."""

    def loss(q: Floats) -> float:
        return float(-(p * np.log(q) + (1 - p) * np.log1p(-q)).mean())

    constant = loss(np.full(len(p), p.mean()))
    return (constant - loss(np.clip(q, 1e-9, 1 - 1e-9))) / (constant - loss(p))


@pytest.mark.parametrize(("seed", "noise_std"), [(0, 0.0), (2, 5.0)])
def test_columns_that_determine_each_other_count_one_effect_once(seed: int, noise_std: float) -> None:
    """A fixed bug, of a real log: where the chains' rows did not have a pair's law, its positives were taken for
    effects, of hundreds, and the loss was far above the constant's (gains of -169 and -222 here).
    """
    rows, p, labels = tied(seed)
    model = fit_maximum_entropy(*counted(rows, labels, noise_std), source="made up", seed=0, chains=5_000)
    assert gain(p, model.predict(rows)) > 0.75
    assert max(float(np.abs(theta).max()) for theta in model.field.theta.values()) < 3


@pytest.mark.parametrize(
    ("rows", "hits", "message"),
    [
        ([(0,)], [], r"there must be a table of positives for each column, none for \[\(0,\)\]"),
        ([(0,), (0,)], [(0,)], "one table of rows by the same columns"),
        ([(1,)], [(1,)], r"table of rows for each column, none for \[\(0,\)\]"),
        ([(0,)], [(0,), (1,)], "table of rows for each column of positives, got 1"),
    ],
)
def test_tables_that_do_not_fit_are_refused(rows: list[tuple[int]], hits: list[tuple[int]], message: str) -> None:
    made = [[Margin(columns=key, values=np.full(2, 50.0), noise_std=1.0) for key in keys] for keys in (rows, hits)]
    with pytest.raises(ValueError, match=message):
        fit_maximum_entropy(made[0], made[1], source="made up", seed=0)
