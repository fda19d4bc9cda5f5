"""`[learn]` of run.toml as a model: which tables, which rows, and how good it is where rows are public."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from privads.config import ConfigError
from privads.evaluation.metrics import ScoreSums, auc
from privads.job import open_logs, split_of
from privads.logs.convert import toml
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.new_folder import new_folder
from privads.run_config import LearnTable, RunConfig
from privads.signals.learned import Learned, check_parts, from_tables, places_in, with_features
from privads.signals.maximum_entropy import Progress
from privads.signals.report import printable
from privads.signals.saved import load_tables
from privads.signals.scoring import LEARNED, MODEL, SCHEMA, reading_of
from privads.signals.table import NoisyTable

Stage = Callable[[str], Progress]


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedRun:
    """A learned model. reading: how a log is read for it, None where its schema is not here. metrics: on held-out rows,
    of a public log that is split. sample: a drawn log, its schema.
    """

    learned: Learned
    reading: Schema | None
    metrics: dict[str, float] | None
    sample: tuple[pa.Table, str] | None

    def as_dict(self) -> dict[str, Any]:
        """Returns what was learned, without the model's numbers."""
        rows = 0 if self.sample is None else self.sample[0].num_rows
        columns = [part.column for part in self.learned.parts]
        return {
            "label": self.learned.label,
            "columns": columns,
            "guarantee": self.learned.guarantee,
            "metrics": self.metrics,
            "synthetic_rows": rows,
        }

    def in_words(self) -> list[str]:
        """Returns the same for people."""
        said = [
            f"{self.learned.label} by {', '.join(part.column for part in self.learned.parts)}",
            self.learned.guarantee,
        ]
        if self.metrics is not None:
            said.append(
                "held-out rows, which are public: AUC {auc:.4f}, normalized entropy {normalized_entropy:.4f}, "
                "calibration {calibration:.3f}".format(**self.metrics)
            )
        return [printable(one) for one in said]  # names of a stranger's tables, too

    def save(self, folder: Path) -> None:
        """Write the new folder: model.json, schema.json, and of a log that was drawn synthetic.parquet and ads.toml."""
        with new_folder(folder) as draft:
            self.learned.save(draft / MODEL)
            (draft / LEARNED).write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")
            if self.reading is not None:
                (draft / SCHEMA).write_text(self.reading.model_dump_json(indent=2) + "\n", encoding="utf-8")
            if self.sample is not None:
                pq.write_table(self.sample[0], draft / "synthetic.parquet")
                (draft / "ads.toml").write_text(self.sample[1], encoding="utf-8")


def learn_from(config: RunConfig, table: LearnTable, stage: Stage = lambda doing: lambda done, of: None) -> LearnedRun:
    """Returns the model that ``[learn]`` asks for. It reads rows only with features, or to judge on public ones.

    stage: called with what is begun, and what it returns then with how far that is.
    """
    tables = [one for place in table.tables for one in load_tables(Path(place))]
    seed = config.run.seed
    _check_same_log(config, table, tables)
    if table.features == "none":
        progress = stage("learning from the tables")
        learned = from_tables(tables, label=table.label, independent=table.independent, seed=seed, progress=progress)
    else:
        if table.independent:
            raise ConfigError("learn.independent is for tables alone: with the rows' features ties are seen in them")
        if table.sample:
            raise ConfigError("learn.sample draws from a model of tables alone: leave learn.features out")
        rows = _features(config)
        stage("learning with the rows' features")  # how many there are, or how far it is, would tell of them
        learned = with_features(tables, rows, features=table.features, label=table.label, seed=seed)
    sample = None
    if table.sample:
        drawn = learned.sample(table.sample, seed=seed, progress=stage("drawing a synthetic log"))
        sample = drawn, toml(learned.sample_schema(tables[0].terms.dataset, table.sample))
    stage("judging on public rows")
    return LearnedRun(
        learned=learned,
        reading=_reading(config, learned, tables[0].terms.dataset),
        metrics=_metrics(config, learned),
        sample=sample,
    )


def _check_same_log(config: RunConfig, table: LearnTable, tables: Sequence[NoisyTable]) -> None:
    names = sorted({one.terms.dataset for one in tables})
    if len(names) > 1:
        raise ConfigError(f"the tables are of several logs, {', '.join(names)}: learn from those of one")
    own = names[0] if table.features == "none" else Schema.load(config.data.schema_).dataset
    if own != names[0]:
        raise ConfigError(f"the tables are of data set {names[0]!r}, and data.schema is of {own!r}")


def _features(config: RunConfig) -> Logs:
    """Returns the rows for training, of which the labels are not read."""
    schema = Schema.load(config.data.schema_)
    logs = Logs(config.data.path, schema.without_labels(with_owners=bool(schema.unit) or schema.time is not None))
    if schema.public and split_of(logs, config.data)[0].split_by_all:
        logs = Logs(config.data.path, schema)  # without their labels other rows would be on this side than were counted
    logs.check()
    return split_of(logs, config.data)[0]


def _reading(config: RunConfig, learned: Learned, dataset: str) -> Schema | None:
    """Returns how the log is read; None where its schema is not at hand, which tables alone do not need."""
    try:
        schema = Schema.load(config.data.schema_)
    except ConfigError:
        return None
    return reading_of(schema, learned) if schema.dataset == dataset else None


def _metrics(config: RunConfig, learned: Learned) -> dict[str, float] | None:
    if config.data.test_after is None and config.data.test_fraction is None:
        return None
    if not Schema.load(config.data.schema_).public:
        return None  # metrics of private rows are a release of their own: `privads evaluate`
    _, test = open_logs(config)
    if test is None or learned.label not in test.schema.labels:
        return None
    check_parts(test.schema, learned.parts)
    own, places = [], []
    for raw in test.raw():
        known = raw.observed[learned.label]
        own.append(raw.labels[learned.label][known])
        places.append(places_in(raw, learned.parts)[known])
    labels, scores = np.concatenate(own), learned.predict(np.concatenate(places))
    sums = ScoreSums.of(labels, scores)
    return {
        "auc": auc(labels, scores),
        "log_loss": sums.log_loss,
        "normalized_entropy": sums.normalized_entropy,
        "calibration": sums.calibration,
        "rows": float(len(labels)),
    }
