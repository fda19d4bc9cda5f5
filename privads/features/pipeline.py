"""`fit_features`: a pipeline fitted to a log under a budget, as one release and one charge: `Features`."""

import hashlib
import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from accounting import mechanisms
from accounting.budget import Budget
from accounting.ledger import Ledger
from accounting.report.phrase import bound
from privads.config import ConfigError, parse_model
from privads.features.fitted import Fitted
from privads.features.transforms import Pipeline
from privads.logs.encode import Part
from privads.logs.past import Past
from privads.logs.raw import Raw, raw_rows
from privads.logs.schema import Categorical, History, Numeric, Schema
from privads.signals.query import Source
from privads.signals.release import Release


class Cost(BaseModel):
    """What fitting cost: the event, and the budget that it keeps. noise_std: on every count that was read.

    entry: of the ledger that was charged; None on public data without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    event: str
    epsilon: float
    delta: float
    unit: str
    rows_per_unit: int
    noise_std: float
    entry: str | None = None

    def __str__(self) -> str:
        charged = "charged to no ledger" if self.entry is None else f"charged by itself as entry {self.entry}"
        cost = bound(self.epsilon, delta=self.delta, unit=self.unit, neighbors="add-remove", released="noisy counts")
        return f"{cost}, {charged}"


class Features(BaseModel):
    """A fitted pipeline. source: the schema of the rows it reads. pipeline: what was asked for. split: which rows were
    read. cost: None where it is free, as all its transforms are.

    `schema` is what a model is made from: the source's public facts, and the transforms' outputs in place of its
    columns. It saves to JSON and reads back to the same outputs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: Schema
    pipeline: Pipeline
    transforms: tuple[Fitted, ...]
    split: str = "all rows"
    cost: Cost | None = None

    @model_validator(mode="after")
    def _paid_for(self) -> Self:
        if self.cost is None and self.pipeline.queries(self.source):
            raise ValueError("these transforms read a log, but nothing says what that cost")
        return self

    @cached_property
    def schema(self) -> Schema:  # type: ignore[override]
        """The public facts of the rows as a model reads them."""
        numeric: dict[str, Numeric] = {}
        categorical: dict[str, Categorical] = {}
        for one in self.transforms:
            for name, field in one.outputs.items():
                if name in numeric or name in categorical:
                    raise ValueError(f"two transforms make the input {name!r}")
                history = _history_of(self.source, one)
                if isinstance(field, Numeric):
                    numeric[name] = field.model_copy(update={"history": history})
                else:
                    categorical[name] = field.model_copy(update={"history": history})
        return Schema.model_validate({**dict(self.source), "numeric": numeric, "categorical": categorical})

    @cached_property
    def pasts(self) -> tuple[Past, ...]:
        """Which of their unit's earlier rows the rows look back at."""
        return tuple(dict.fromkeys(past for one in self.transforms for past in one.pasts))

    def transform(self, raw: Raw) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Returns (dense (rows, numeric), ids (rows, categorical) in the fused table), each row by itself."""
        schema = self.schema
        made: dict[str, Any] = {}
        for one in self.transforms:
            made.update(zip(one.outputs, one.apply(raw), strict=True))
        dense = np.zeros((raw.rows, len(schema.numeric)), dtype=np.float32)
        for place, name in enumerate(schema.numeric):
            dense[:, place] = made[name]
        ids = np.zeros((raw.rows, len(schema.categorical)), dtype=np.int32)
        for place, name in enumerate(schema.categorical):
            ids[:, place] = made[name] + schema.bucket_starts[place]
        return dense, ids

    def encoded(self, part: Part) -> Part:
        """Returns a part that was encoded with ``raw`` as a model reads it."""
        dense, ids = self.transform(raw_rows(part, self.source))
        return replace(part, dense=dense, ids=ids)

    @property
    def sha256(self) -> str:
        """A fingerprint of the fitted pipeline."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the fitted pipeline as JSON."""
        Path(path).write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Returns the fitted pipeline that `save` wrote; raises `ConfigError` with one clear line."""
        try:
            stated = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError:
            raise ConfigError(f"{path} was changed: it is no fitted pipeline") from None
        return parse_model(cls, stated, source=str(path))


def fit_features(
    pipeline: Pipeline,
    source: Source,
    budget: Budget | None = None,
    *,
    ledger: Ledger | None = None,
    rows_per_unit: int = 1,
    insecure_seed: int | None = None,
) -> Features:
    """Returns the pipeline fitted to ``source``: all its tables in one release, which is one charge.

    budget: what it may cost; not needed, and not spent, where every transform is free. ledger: charged in full before
    the first row is read; `BudgetExceeded` where it does not suffice. rows_per_unit: rows of one unit that are counted;
    more rows count more, and need as many times the noise. insecure_seed: repeatable noise, on public data only.
    """
    release = plan_release(pipeline, source.schema, budget, rows_per_unit=rows_per_unit)
    return fit_planned(pipeline, source, release, ledger=ledger, insecure_seed=insecure_seed)


def fit_planned(
    pipeline: Pipeline,
    source: Source,
    release: Release | None,
    *,
    ledger: Ledger | None,
    insecure_seed: int | None = None,
) -> Features:
    """Returns the pipeline fitted by the release that `plan_release` made for it."""
    schema, cost, tables = source.schema, None, {}
    if release is not None:
        found = release.run(source, ledger=ledger, purpose="fit features", insecure_seed=insecure_seed)
        tables = dict(zip(release.queries, found.tables, strict=True))
        cost = Cost(
            event=mechanisms.to_json(release.event),
            epsilon=release.spent.upper,
            delta=release.budget.delta,
            unit=release.budget.unit,
            rows_per_unit=release.rows_per_unit,
            noise_std=release.noise_std,
            entry=found.entry,
        )
    made = tuple(one.fit(schema, tables) for one in pipeline.transforms)
    features = Features(source=schema, pipeline=pipeline, transforms=made, split=source.split_text, cost=cost)
    _ = features.schema  # two inputs of one name are refused here
    return features


def plan_release(
    pipeline: Pipeline, schema: Schema, budget: Budget | None, *, rows_per_unit: int = 1
) -> Release | None:
    """Returns what fitting would release, from public facts only; None where every transform is free."""
    queries = pipeline.queries(schema)
    if budget is not None:
        pipeline.check_unit(schema, budget.unit)
    if not queries:
        return None
    if budget is None:
        raise ValueError("these transforms read the log: say what that may cost, budget=Budget(...)")
    return Release.of(queries, budget, rows_per_unit=rows_per_unit)


def _history_of(source: Schema, transform: Fitted) -> History | None:
    """Returns the history of what a transform makes: whoever's rows entered one of its columns entered its outputs, and
    those of the row's own unit where it looks back at them.
    """
    fields: list[Numeric | Categorical] = [
        source.numeric[one] if one in source.numeric else source.categorical[one] for one in transform.sources
    ]
    histories = [field.history for field in fields if field.history is not None]
    histories += [History() for _ in transform.pasts]
    if len({history.of or source.unit for history in histories}) > 1:
        made = "*".join(transform.sources)
        raise ValueError(f"{made} crosses columns whose histories are of different rows: leave one out")
    if not histories:
        return None
    longest = None if any(one.rows is None for one in histories) else max(one.rows or 0 for one in histories)
    return History(of=histories[0].of, rows=longest)
