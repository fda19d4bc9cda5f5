"""A conversion model from noisy tables: what is lost when nobody hands over rows.

A log's clicks are counted by ten columns, with noise that protects a row or a user; from then on only the tables are
looked at. One model is learned from them alone and one with the rows' features besides, and both are judged on
held-out rows, beside the same features with all labels in the clear. Where real mails are at hand (Hillstrom's, in
../shared/data), their visits are learned too. Offline, in under a minute.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet

from accounting.budget import Budget
from privads.evaluation.metrics import ScoreSums
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.logs.simulator import FIELDS, schema_toml, simulate
from privads.signals.encoding import Encoding, Features
from privads.signals.glm import learn
from privads.signals.learned import from_tables, places_of, with_features
from privads.signals.query import Grid, OneOf, singles_and_pairs
from privads.signals.release import Release
from privads.signals.statistics import public_labels

USERS = 50_000
MAILS = Path(__file__).resolve().parents[2] / "shared" / "data" / "hillstrom"
COLUMNS = ("campaign", "advertiser", "site", "device", "country", "hour", "creative_size", "age_band", "interest")
POSITION = Grid(column="ad_position", edges=tuple(float(i) for i in range(1, 11)))
MAIL_PARTS = (
    OneOf(column="zip_code", values=("Rural", "Surburban", "Urban")),
    OneOf(column="channel", values=("Phone", "Web", "Multichannel")),
    OneOf(column="segment", values=("Mens E-Mail", "Womens E-Mail", "No E-Mail")),
    Grid(column="recency", edges=tuple(float(i) for i in range(1, 13))),
    Grid(column="history", edges=(0.0, 50.0, 100.0, 200.0, 350.0, 500.0, 750.0, 1000.0)),
)


def entropy(labels: np.ndarray, scores: np.ndarray) -> float:
    """The normalized entropy of scores, 1 for the constant."""
    return ScoreSums.of(labels, scores).normalized_entropy


def labels_of(logs: Logs, task: str) -> tuple[np.ndarray, np.ndarray]:
    """The labels of the rows and whether each is known; the log is public."""
    parts = list(logs.raw())
    return np.concatenate([one.labels[task] for one in parts]), np.concatenate([one.observed[task] for one in parts])


def shares(train: Logs, test: Logs, parts: list, task: str, budget: Budget, rows_per_unit: int = 1) -> list[float]:
    """Print how much of what the clear labels tell each model knows; returns that of (tables alone, with features)."""
    queries = singles_and_pairs(parts, label=task)[: len(parts)]
    release = Release.of(queries, budget, rows_per_unit=rows_per_unit)
    tables = release.run(train, ledger=None, purpose="example", insecure_seed=1).tables
    truth, known = labels_of(test, task)
    rows = places_of(test, parts)[known]
    encoding = Encoding.of({part.column: len(part.names) for part in parts})
    own, seen = labels_of(train, task)
    granular = Features.of(encoding, places_of(train, parts)[seen], public=True)
    best = entropy(truth[known], learn(granular, public_labels(granular, own[seen])).predict(rows))
    print(f"\n{train.source.dataset}, {task}, by {len(parts)} columns; all labels in the clear: {best:.4f}")
    found = []
    for name, learned in (
        ("tables alone", from_tables(tables, label=task, independent=True)),
        ("with features", with_features(tables, train, features="unprotected", label=task)),
    ):
        reached = entropy(truth[known], learned.predict(rows))
        found.append((1 - reached) / (1 - best))
        print(f"  {name}: normalized entropy {reached:.4f}, {found[-1]:.0%} of the way\n    {learned.guarantee}")
    return found


def main() -> None:
    """Learn clicks of the simulator under single rows and under users, and the visits of real mails."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "impressions.parquet"
        pyarrow.parquet.write_table(simulate(USERS, seed=1), log)
        facts = schema_toml(USERS, public=True).replace("[labels]", '[labels]\nclick = "is_click"')
        train, test = Logs(log, Schema.parse(facts)).split(test_fraction=0.2)
        parts = [*(OneOf(column=name, values=FIELDS[name].names) for name in COLUMNS), POSITION]
        for unit, rows in (("example", 1), ("user", 8)):
            budget = Budget(epsilon=5.0, delta=1e-6, unit=unit)
            alone, _ = shares(train, test, parts, "click", budget, rows)
            assert alone > 0.5, "the tables' noise has eaten what they tell"
    if MAILS.is_dir():
        train, test = Logs(MAILS, Schema.load("hillstrom")).split(test_fraction=0.2)
        shares(train, test, list(MAIL_PARTS), "visit", Budget(epsilon=5.0, delta=1e-6, unit="example"))


if __name__ == "__main__":
    main()
