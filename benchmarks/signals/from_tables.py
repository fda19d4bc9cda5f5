"""What a model learned from noisy tables alone is worth, beside logistic regression on the rows with the same columns.

Figures are shares of the log-likelihood distance between the constant and the granular logistic regression, and
normalized log-likelihoods 1 - LL / H, H that of the constant, on held-out users. Every table is of positives and of
negatives: a row changes one of all these counts by 1, so T tables with noise z sqrt(T) are one Gaussian mechanism of
noise multiplier z; a user of at most m rows makes it m z sqrt(T). With pairs, columns get `SINGLES_SHARE` of 1 / z^2.
"""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.preprocessing import OneHotEncoder  # type: ignore[import-untyped]

from accounting import calibrate, mechanisms
from accounting.budget import Budget
from benchmarks.harness import Figure, Spread
from privads.logs.logs import Logs
from privads.logs.simulator import FIELDS, simulate
from privads.signals.margins import Margin
from privads.signals.maximum_entropy_fit import CHAINS, fit_maximum_entropy

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

COLUMNS = (
    "campaign", "site", "device", "country", "hour", "creative_size", "age_band", "interest", "ad_position",
    "user_recency_hours",
)  # fmt: skip
"""The ten whose absence costs logistic regression most; `advertiser` follows from `campaign`."""

TIED = (
    "campaign", "advertiser", "site", "device", "creative_size", "age_band", "interest", "ad_position", "bid_usd",
    "country",
)  # fmt: skip
"""Ten of which one column determines another, and bids move positions."""

EDGES = {"user_recency_hours": (1, 3, 6, 12, 24, 48, 96), "ad_position": range(2, 11), "bid_usd": (1, 2, 3, 4, 6, 10)}

REAL = {
    "hillstrom": (
        "hillstrom/hillstrom.csv.gz",
        ("history_segment", "mens", "womens", "zip_code", "newbie", "channel", "segment"),
        "visit",
    ),
    "avazu": (
        "avazu/avazu_random20k.csv.gz",
        ("C1", "banner_pos", "site_category", "app_category", "site_id", "app_id", "device_type", "device_conn_type",
         "C16", "C18"),
        "click",
    ),
    "criteo": (
        "criteo-display/criteo_kaggle_first8000.tsv.gz",
        ("C2", "C5", "C6", "C8", "C9", "C14", "C17", "C20", "C22", "C23"),
        "click",
    ),
}  # fmt: skip
"""By format: the rows, the columns, and the label."""

USERS = 300_000
"""Of the simulated log: about 1.2 million impressions, of which one million are learned from."""

SINGLES_SHARE = 0.5
ROWS_PER_USER = 10
DELTA = 1e-6
SEEDS = 5
SHARE_WANTED, LOSS_ALLOWED, SECONDS_ALLOWED = 0.75, -0.005, 120.0


@dataclass(frozen=True, kw_only=True)
class Split:
    """Rows (rows, columns) of codes, their labels and users, to learn from and to judge by."""

    sizes: tuple[int, ...]
    rows: Codes
    labels: Floats
    users: Codes
    test_rows: Codes
    test_labels: Floats


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What came of one fit: normalized log-likelihood, its share of the granular model's, and the seconds it took."""

    likelihood: float
    share: float
    seconds: float


def split(columns: Sequence[Codes], labels: Floats, users: Codes) -> Split:
    """Returns every sixth user for judging."""
    rows, held = np.stack(columns, axis=1), users % 6 == 0
    return Split(
        sizes=tuple(int(column.max()) + 1 for column in columns),
        rows=rows[~held],
        labels=labels[~held],
        users=users[~held],
        test_rows=rows[held],
        test_labels=labels[held],
    )


def simulated(users: int, columns: Sequence[str], *, seed: int) -> Split:
    """Returns a simulated log with its clicks; numbers are cut at public edges, a missing value is its own."""
    log = simulate(users, seed=seed)
    return split(
        [_codes(log, name) for name in columns],
        log["is_click"].to_numpy().astype(np.float64),
        log["user_id"].to_pandas().astype("category").cat.codes.to_numpy().astype(np.int64),
    )


def of_log(logs: Logs, columns: Sequence[str], task: str) -> Split:
    """Returns a public log by the given columns; each row is its own user."""
    parts = list(logs.raw())
    found = []
    for name in columns:
        texts = pd.concat([_texts(*part.texts[name]) for part in parts])
        found.append(pd.factorize(texts, use_na_sentinel=False)[0].astype(np.int64))
    labels = np.concatenate([part.labels[task] for part in parts]).astype(np.float64)
    order = np.random.default_rng(0).permutation(len(labels)).astype(np.int64)
    return split(found, labels, order)


def bounded(log: Split, rows_per_user: int, rng: np.random.Generator) -> Split:
    """Returns at most so many rows of each user to learn from, chosen at random."""
    order = np.lexsort((rng.random(len(log.users)), log.users))
    users = log.users[order]
    place = np.arange(len(users)) - np.searchsorted(users, users)
    kept = order[place < rows_per_user]
    return Split(
        sizes=log.sizes,
        rows=log.rows[kept],
        labels=log.labels[kept],
        users=log.users[kept],
        test_rows=log.test_rows,
        test_labels=log.test_labels,
    )


def released(
    log: Split, pairs: Sequence[tuple[int, int]], *, epsilon: float, rows_per_user: int, rng: np.random.Generator
) -> tuple[list[Margin], list[Margin]]:
    """Returns noisy tables of rows and of positives, by every column and by the pairs."""
    budget = Budget(epsilon=epsilon, delta=DELTA, unit="example")
    z = calibrate.noise_multiplier(lambda s: mechanisms.gaussian(noise_multiplier=s), budget)
    share, singles = (SINGLES_SHARE if pairs else 1.0), len(log.sizes)
    rows, hits = [], []
    for key in (*((column,) for column in range(singles)), *pairs):
        tables = singles / share if len(key) == 1 else len(pairs) / (1 - share)
        noise_std, shape = rows_per_user * z * math.sqrt(tables), tuple(log.sizes[column] for column in key)
        places = np.ravel_multi_index(tuple(log.rows[:, column] for column in key), shape)
        counted = (np.bincount(places, one, minlength=math.prod(shape)) for one in (log.labels, 1 - log.labels))
        positives, negatives = (one.reshape(shape) + noise_std * rng.standard_normal(shape) for one in counted)
        rows.append(Margin(columns=key, values=positives + negatives, noise_std=noise_std * math.sqrt(2)))
        hits.append(Margin(columns=key, values=positives, noise_std=noise_std))
    return rows, hits


def as_if_exact(rows: Sequence[Margin], hits: Sequence[Margin]) -> tuple[list[Margin], list[Margin]]:
    """Returns the tables as whoever ignores noise must make them: no count negative, no more positives than rows, and
    one total. Left as they are, no law has them, and a model that is told of no noise ends anywhere.
    """
    made: tuple[list[Margin], list[Margin]] = ([], [])
    hit_cells = [np.maximum(one.values, 0.0) for one in hits]
    row_cells = [np.maximum(one.values, cells) for one, cells in zip(rows, hit_cells, strict=True)]
    for side, tables, all_cells in zip(made, (rows, hits), (row_cells, hit_cells), strict=True):
        total = float(np.mean([cells.sum() for cells in all_cells]))
        for one, cells in zip(tables, all_cells, strict=True):
            side.append(Margin(columns=one.columns, values=cells * (total / cells.sum()), noise_std=0.0))
    return made


def all_pairs(log: Split) -> list[tuple[int, int]]:
    """Returns every pair of columns."""
    return list(itertools.combinations(range(len(log.sizes)), 2))


def likelihood(log: Split, p: Floats) -> float:
    """Returns the normalized log-likelihood of predictions for the held-out rows."""
    y, constant = log.test_labels, np.full(len(p), log.labels.mean())
    loss, most = (-(y * np.log(q) + (1 - y) * np.log1p(-q)).mean() for q in (np.clip(p, 1e-9, 1 - 1e-9), constant))
    return float(1 - loss / most)


def granular(log: Split) -> float:
    """Returns the normalized log-likelihood of logistic regression on the rows, of the best of four penalties."""
    encoder = OneHotEncoder(categories=[range(size) for size in log.sizes]).fit(log.rows[:1])
    train, test = encoder.transform(log.rows), encoder.transform(log.test_rows)
    fits = (LogisticRegression(C=c, max_iter=300).fit(train, log.labels) for c in (0.03, 0.1, 0.3, 1.0))
    return max(likelihood(log, fit.predict_proba(test)[:, 1]) for fit in fits)


def worth(
    log: Split,
    best: float,
    pairs: Sequence[tuple[int, int]],
    *,
    epsilon: float,
    seed: int,
    rows_per_user: int = 1,
    told: bool = True,
    chains: int = CHAINS,
) -> Worth:
    """Returns what one release and fit are worth. told: whether the model is told how noisy the tables are.

    Else it learns from them made `as_if_exact`.
    """
    rng = np.random.default_rng([seed, 1])
    seen = bounded(log, rows_per_user, rng) if rows_per_user > 1 else log
    tables = released(seen, pairs, epsilon=epsilon, rows_per_user=rows_per_user, rng=rng)
    if not told:
        tables = as_if_exact(*tables)
    started = time.perf_counter()
    model = fit_maximum_entropy(
        *tables, source=f"simulated, epsilon {epsilon}, delta {DELTA}", seed=seed, chains=chains
    )
    seconds = time.perf_counter() - started
    found = likelihood(log, model.predict(log.test_rows))
    return Worth(likelihood=found, share=found / best, seconds=seconds)


def simulated_figures(users: int, *, seeds: int = SEEDS, pairs: bool = True, chains: int = CHAINS) -> Iterator[Figure]:
    """Yields the figures on simulated logs, a world a seed; about four rows a user, five sixths to learn from."""
    kinds: list[tuple[str, float, int, bool, bool]] = [
        ("example_epsilon_5", 5.0, 1, True, False),
        ("example_epsilon_1", 1.0, 1, True, False),
        ("example_epsilon_1_ignoring_noise", 1.0, 1, False, False),
        ("user_epsilon_5", 5.0, ROWS_PER_USER, True, False),
        *([("example_epsilon_5_all_pairs", 5.0, 1, True, True)] if pairs else []),
    ]
    found: dict[str, list[Worth]] = {name: [] for name, *_ in kinds}
    for seed in range(seeds):
        log = simulated(users, COLUMNS, seed=seed)
        best = granular(log)
        for name, epsilon, m, told, paired in kinds:
            chosen = all_pairs(log) if paired else []
            found[name].append(
                worth(log, best, chosen, epsilon=epsilon, seed=seed, rows_per_user=m, told=told, chains=chains)
            )
    for name, ones in found.items():
        wanted = SHARE_WANTED if name == "example_epsilon_5" else None
        least = LOSS_ALLOWED if name == "example_epsilon_1" else None
        yield from _spread(f"from_tables_share_{name}", [one.share for one in ones], at_least=wanted)
        yield from _spread(f"from_tables_likelihood_{name}", [one.likelihood for one in ones], at_least=least)
        most = max(one.seconds for one in ones)
        yield Figure(name=f"from_tables_fit_{name}", value=most, unit="s", at_most=SECONDS_ALLOWED)
    ways = (found["example_epsilon_1"], found["example_epsilon_1_ignoring_noise"])
    gains = [aware.likelihood - ignorant.likelihood for aware, ignorant in zip(*ways, strict=True)]
    yield from _spread("from_tables_above_ignoring_noise_epsilon_1", gains, lower_end_at_least=0.0)


def real_figures(folder: Path, *, seeds: int = SEEDS) -> Iterator[Figure]:
    """Yields the figures of those real logs that ``folder`` has."""
    for name, (path, columns, task) in REAL.items():
        if (folder / path).exists():
            yield from log_figures(name, of_log(Logs(folder / path, name), columns, task), seeds=seeds)


def log_figures(name: str, log: Split, *, seeds: int = SEEDS) -> Iterator[Figure]:
    """Yields the share on a real log, of columns only at epsilon 5 and with all pairs, over seeds of the noise."""
    best, every = granular(log), all_pairs(log)
    yield Figure(name=f"from_tables_granular_{name}", value=best, unit="normalized log-likelihood")
    for kind, pairs, epsilon in (("columns", [], 5.0), ("all_pairs", every, 5.0), ("all_pairs_epsilon_1", every, 1.0)):
        shares = [worth(log, best, pairs, epsilon=epsilon, seed=seed).share for seed in range(seeds)]
        yield from _spread(f"from_tables_share_{name}_{kind}", shares)


def _spread(
    name: str, values: Sequence[float], *, at_least: float | None = None, lower_end_at_least: float | None = None
) -> Iterator[Figure]:
    of = Spread.of(values)
    yield Figure(name=name, value=of.mean, unit="mean", at_least=at_least)
    yield Figure(name=f"{name}_low", value=of.low, unit="95 % interval", at_least=lower_end_at_least)
    yield Figure(name=f"{name}_high", value=of.high, unit="95 % interval")


def _texts(codes: Codes, values: Sequence[str | None]) -> pd.Series:
    return pd.Series([None if code < 0 else values[code] for code in codes.tolist()], dtype=object)


def _codes(log: pyarrow.Table, name: str) -> Codes:
    if name in FIELDS:
        names = {text: code for code, text in enumerate(FIELDS[name].names)}
        found = log[name].to_pandas().map(names).fillna(len(names)).to_numpy()
        return np.asarray(found, dtype=np.int64)
    numbers, edges = log[name].to_pandas().to_numpy(dtype=np.float64), list(EDGES[name])
    return np.asarray(np.where(np.isnan(numbers), len(edges) + 1, np.digitize(numbers, edges)), dtype=np.int64)
