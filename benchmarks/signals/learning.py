"""How much of what a logistic model knows is learned from noisy sums of labels, and what modeling the noise is worth.

Each trial learns from the sums of positives by single column, or by column and pair of columns, of one log's training
rows, with Gaussian noise of one release of T tables: standard deviation ``z m sqrt(T)`` on each sum, z the noise
multiplier of the budget and m how many rows of a unit count. On held-out rows it takes the normalized log-likelihood
``1 - log loss / H(base rate)`` of four models: the constant (the training rows' rate), the granular logistic model with
the same features (the better of two: labels without noise with the penalty found from them, or with ridge 1, which is
scikit-learn's default), the one that models the noise, and the one that is told of none and has ridge 1. The share is

    (model - constant) / (granular - constant)

Sums have the sensitivity of add/remove where features are declared public. Where they are only not protected (neighbors
replace-label), a changed label moves each table by as much, and so does a unit of m rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.preprocessing import OneHotEncoder  # type: ignore[import-untyped]

from accounting import calibrate, mechanisms
from accounting.budget import Budget
from benchmarks.harness import Figure, Spread
from privads.evaluation.metrics import ScoreSums
from privads.logs.logs import Logs
from privads.logs.simulator import FIELDS, simulate
from privads.noise import Randomness
from privads.signals.encoding import Encoding, Features, Floats
from privads.signals.glm import learn
from privads.signals.statistics import Statistic, noisy_sums, public_labels

EPSILONS, DELTA = (5.0, 1.0), 1e-6
SEEDS = 5
USERS, TRAINING_SHARE = 300_000, 5 / 6
"""Of the simulated log: about 1.2 million impressions, of which one million are trained on."""

ROWS_PER_USER, POSITIVES_PER_USER = 10, 2
MOST_CELLS_OF_A_PAIR = 5_000
BINS = 20
"""Equal parts of [-1, 1], to which a format scales its numbers by their public ranges."""

REAL = {
    "avazu": ("avazu/avazu_random20k.csv.gz", "click"),
    "criteo": ("criteo-display/criteo_kaggle_first8000.tsv.gz", "click"),
    "hillstrom": ("hillstrom/hillstrom.csv.gz", "visit"),
}
"""By format: the rows, and the label."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """Rows as numbers of values by column, with labels and owners; which of them are trained on."""

    name: str
    sizes: dict[str, int]
    rows: NDArray[np.int32]
    labels: Floats
    users: NDArray[np.int64]
    training: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Normalized log-likelihoods on held-out rows. capped: what of a user is bounded, under unit user."""

    data: str
    tables: str
    unit: str
    capped: str
    epsilon: float
    seed: int
    noise_std: float
    constant: float
    granular: float
    aware: float
    ignorant: float | None

    @property
    def share(self) -> float:
        """What the model that knows the noise has of the granular model's gain."""
        return (self.aware - self.constant) / (self.granular - self.constant)

    def as_dict(self) -> dict[str, Any]:
        """Returns the trial as it stands in a table."""
        return {**asdict(self), "delta": DELTA, "share": self.share}


def simulated(label: str, seed: int, users: int = USERS) -> Data:
    """Returns the simulator's log with ten features: its nine categories and the ad's position."""
    log = simulate(users, seed=seed)
    columns = []
    for name, field in FIELDS.items():
        codes = {value: code for code, value in enumerate(field.names)}
        found = log[name].combine_chunks().dictionary_encode()
        own = np.array([*(codes[value] for value in found.dictionary.to_pylist()), field.size])
        columns.append(own[found.indices.fill_null(len(own) - 1).to_numpy()])
    columns.append(log["ad_position"].to_numpy() - 1)
    owners = log["user_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    clicked, converted = log["is_click"].to_numpy() == 1, ~np.isnat(log["converted_at"].to_numpy())
    return Data(
        name=f"simulator_{label}",
        sizes={**{name: field.size + 1 for name, field in FIELDS.items()}, "ad_position": 10},
        rows=np.stack(columns, axis=1).astype(np.int32),
        labels=(clicked if label == "click" else converted).astype(np.float64),
        users=owners,
        training=(np.random.default_rng([seed, 1]).random(users) < TRAINING_SHARE)[owners],
    )


def real(name: str, folder: Path, seed: int) -> Data:
    """Returns real rows of a format that privads knows: categories by their buckets, numbers in equal parts."""
    path, label = REAL[name]
    logs = Logs(folder / path, name)
    batch, schema = logs.take(np.arange(len(logs.units))), logs.schema
    ids = batch.ids.numpy().reshape(batch.rows, -1) - np.asarray(schema.bucket_starts[: len(schema.categorical)])
    numbers = np.clip((batch.dense.numpy() + 1) * BINS / 2, 0, BINS - 1)
    sizes = {column: category.buckets for column, category in schema.categorical.items()}
    return Data(
        name=f"{name}_{label}",
        sizes={**sizes, **dict.fromkeys(schema.numeric, BINS)},
        rows=np.concatenate([ids, numbers], axis=1).astype(np.int32),
        labels=batch.labels[label].numpy().astype(np.float64),
        users=logs.units,
        training=(np.random.default_rng([seed, 1]).random(int(logs.units.max()) + 1) < 0.8)[logs.units],
    )


def trials(
    data: Data, *, seed: int, most_cells_of_a_pair: int = 0, epsilons: Sequence[float] = EPSILONS, by_user: bool = False
) -> Iterator[Trial]:
    """Yields the trials of one log: under unit example, and under unit user by two bounds where ``by_user``."""
    encoding = Encoding.of(data.sizes, most_cells_of_a_pair=most_cells_of_a_pair)
    pairs = len(encoding.tables) > len(data.sizes)
    held, held_labels = data.rows[~data.training], data.labels[~data.training]
    rows, labels, users = data.rows[data.training], data.labels[data.training], data.users[data.training]
    features = Features.of(encoding, rows, public=False)
    exact = public_labels(features, labels)

    def value(p: Floats) -> float:
        return 1 - ScoreSums.of(held_labels, p).normalized_entropy

    constant = value(np.full(len(held), labels.mean()))
    ridges = (None,) if pairs else (None, 1.0)
    granular = max(value(learn(features, exact, ridge=ridge).predict(held)) for ridge in ridges)
    tasks = [("example", "", features, exact, 1.0)]
    if by_user:
        order = np.random.default_rng([seed, 2]).permutation(len(rows))
        kept = _first(users, order, ROWS_PER_USER)
        bounded = Features.of(encoding, rows[kept], public=False)
        tasks.append(("user", f"{ROWS_PER_USER} rows", bounded, public_labels(bounded, labels[kept]), ROWS_PER_USER))
        counted = np.zeros_like(labels)
        counted[_first(users, order[labels[order] == 1], POSITIVES_PER_USER)] = 1
        # k positives gone and k others come: sqrt(2) k in each table
        most = float(np.sqrt(2) * POSITIVES_PER_USER)
        tasks.append(("user", f"{POSITIVES_PER_USER} positives", features, public_labels(features, counted), most))
    for unit, capped, known, sums, sensitivity in tasks:
        for epsilon in epsilons:
            noise_std = _noise_multiplier(epsilon) * sensitivity * float(np.sqrt(len(encoding.tables)))
            told = _noisy(sums, noise_std, Randomness(insecure_seed=seed))
            ignorant = None
            if not pairs:
                unnoised = replace(told, variance=np.zeros_like(told.variance))
                ignorant = value(learn(known, unnoised, ridge=1.0).predict(held))
            yield Trial(
                data=data.name,
                tables="pairs" if pairs else "singles",
                unit=unit,
                capped=capped,
                epsilon=epsilon,
                seed=seed,
                noise_std=noise_std,
                constant=constant,
                granular=granular,
                aware=value(learn(known, told).predict(held)),
                ignorant=ignorant,
            )


def all_trials(folder: Path, *, seeds: int = SEEDS, users: int = USERS) -> Iterator[Trial]:
    """Yields every trial that is reported; real data where ``folder`` has it."""
    for seed in range(seeds):
        for label in ("click", "conversion"):
            data = simulated(label, seed, users)
            for most_cells in (0, MOST_CELLS_OF_A_PAIR):
                yield from trials(data, seed=seed, most_cells_of_a_pair=most_cells, by_user=True)
        for name, (path, _) in REAL.items():
            if (folder / path).exists():
                yield from trials(real(name, folder, seed), seed=seed)


def noise_off_figures(*, seeds: int = SEEDS, users: int = USERS) -> list[Figure]:
    """Returns how far the learner is below scikit-learn's logistic regression on the rows (the best of four penalties),
    where sums of labels have no noise.
    """
    below = []
    for seed in range(seeds):
        data = simulated("click", seed, users)
        held, rows, labels = data.rows[~data.training], data.rows[data.training], data.labels[data.training]
        encoder = OneHotEncoder(categories=[range(size) for size in data.sizes.values()]).fit(rows[:1])
        train, test = encoder.transform(rows), encoder.transform(held)
        fits = (LogisticRegression(C=c, max_iter=300).fit(train, labels) for c in (0.03, 0.1, 0.3, 1.0))
        features = Features.of(Encoding.of(data.sizes), rows, public=False)
        ours = learn(features, public_labels(features, labels)).predict(held)
        best = min(
            ScoreSums.of(data.labels[~data.training], fit.predict_proba(test)[:, 1]).normalized_entropy for fit in fits
        )
        below.append(ScoreSums.of(data.labels[~data.training], ours).normalized_entropy - best)
    spread, unit = Spread.of(below), "normalized log-likelihood"
    return [
        Figure(name="noise_off_below_logistic_regression", value=spread.mean, unit=unit, at_most=0.001),
        Figure(name="noise_off_below_logistic_regression_low", value=spread.low, unit=unit),
        Figure(name="noise_off_below_logistic_regression_high", value=spread.high, unit=unit),
    ]


def figures(found: Iterable[Trial]) -> list[Figure]:
    """Returns means over seeds with their intervals: shares, and at epsilon 1 what is above the constant and above a
    learner that is told of no noise.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in found:
        said = [trial.data, trial.tables, trial.unit, trial.capped.replace(" ", "_"), f"epsilon_{trial.epsilon:g}"]
        groups.setdefault("_".join(one for one in said if one), []).append(trial)
    made = []
    for name, group in groups.items():
        first = group[0]
        promised = first.data.startswith("simulator") and first.tables == "singles" and first.unit == "example"
        at_five = 0.75 if promised and first.epsilon == 5 else None
        made += _spread(f"{name}_share", [one.share for one in group], "ratio", at_least=at_five)
        above = [one.aware - one.constant for one in group]
        at_one = -0.005 if promised and first.epsilon == 1 else None
        made += _spread(f"{name}_above_constant", above, "normalized log-likelihood", at_least=at_one)
        gains = [one.aware - one.ignorant for one in group if one.ignorant is not None]
        if gains:
            least = 0.0 if promised and first.epsilon == 1 else None
            made += _spread(f"{name}_above_ignoring_noise", gains, "normalized log-likelihood", low_at_least=least)
    return made


def _spread(
    name: str, values: Sequence[float], unit: str, at_least: float | None = None, low_at_least: float | None = None
) -> list[Figure]:
    spread = Spread.of(values)
    return [
        Figure(name=name, value=spread.mean, unit=unit, at_least=at_least),
        Figure(name=f"{name}_low", value=spread.low, unit=unit, at_least=low_at_least),
        Figure(name=f"{name}_high", value=spread.high, unit=unit),
    ]


def _noise_multiplier(epsilon: float) -> float:
    budget = Budget(epsilon=epsilon, delta=DELTA, unit="example")
    return calibrate.noise_multiplier(lambda z: mechanisms.gaussian(noise_multiplier=z), budget)


def _noisy(exact: Statistic, noise_std: float, randomness: Randomness) -> Statistic:
    encoding = exact.encoding
    return noisy_sums(
        encoding,
        {
            table: (exact.values[part] + randomness.normal(length, noise_std=noise_std), noise_std)
            for table, part, length in zip(encoding.tables, encoding.parts, encoding.lengths, strict=True)
        },
        neighbors="add-remove",
    )


def _first(users: NDArray[np.int64], order: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Returns of the rows in ``order`` the first ``most`` of each user, as row numbers that rise."""
    by_user = order[np.argsort(users[order], kind="stable")]
    own = users[by_user]
    starts = np.flatnonzero(np.r_[True, own[1:] != own[:-1]])
    place = np.arange(len(own)) - np.repeat(starts, np.diff(np.r_[starts, len(own)]))
    return np.sort(by_user[place < most])
