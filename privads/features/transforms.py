"""Transforms, as they are asked for: what each counts in a log, and what it becomes when its tables are there.

Free ones look at one row and public constants only; `Frequency` and `Recency` at earlier rows of the same unit too.
Fitted ones read `NoisyTable`s; two that ask for the same table share it. Every one is a frozen value that can be
written in a `run.toml`.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from accounting.budget import PrivacyUnit
from privads.features import fitted, readings
from privads.logs.past import Past
from privads.logs.schema import Schema
from privads.signals.query import Query, check_categorical, check_numeric, grid_of
from privads.signals.table import NoisyTable

Tables = Mapping[Query, NoisyTable]

CELLS = 128
"""Cells of the grid that quantiles and moments are read from: more show finer, and each brings its noise to sums."""


A_YEAR = 8760.0
"""In hours: what is longer ago than that is as good as never."""


class _Transform(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hashed(_Transform):
    """A category's hash bucket (`stateless.hash_buckets`): free. Several columns are crossed before they are hashed."""

    kind: Literal["hashed"] = "hashed"
    columns: tuple[str, ...] = Field(min_length=1)
    buckets: int = Field(ge=2)

    def queries(self, schema: Schema) -> tuple[Query, ...]:
        """Returns the tables it reads: none."""
        check_categorical(schema, *self.columns)
        return ()

    def fit(self, schema: Schema, tables: Tables) -> fitted.Hash:
        """Returns itself, ready."""
        return fitted.Hash(columns=self.columns, buckets=self.buckets)


class Scaled(_Transform):
    """A number in [-1, 1], by its public range: free. log: on the scale of sign(x) log(1 + abs(x))."""

    kind: Literal["scaled"] = "scaled"
    column: str
    log: bool = False

    def queries(self, schema: Schema) -> tuple[Query, ...]:
        """Returns the tables it reads: none."""
        check_numeric(schema, self.column)
        return ()

    def fit(self, schema: Schema, tables: Tables) -> fitted.Scale:
        """Returns the scale of the column's range."""
        low, high = schema.numeric[self.column].range
        return fitted.Scale(column=self.column, low=low, high=high, log=self.log)


class Missing(_Transform):
    """1 where a number or a category is missing, -1 where it is there: free."""

    kind: Literal["missing"] = "missing"
    column: str

    def queries(self, schema: Schema) -> tuple[Query, ...]:
        """Returns the tables it reads: none."""
        if self.column not in schema.numeric:
            check_categorical(schema, self.column)
        return ()

    def fit(self, schema: Schema, tables: Tables) -> fitted.IsMissing:
        """Returns itself, ready."""
        return fitted.IsMissing(column=self.column, numeric=self.column in schema.numeric)


class Vocabulary(_Transform):
    """A category's place in a vocabulary that was found privately: bucket 0 missing, 1 unknown, then the known ones.

    Several columns are crossed. most: the vocabulary keeps so many of the values with the largest noisy counts.
    """

    kind: Literal["vocabulary"] = "vocabulary"
    columns: tuple[str, ...] = Field(min_length=1)
    label: str | None = None
    most: int = Field(default=100_000, ge=1)

    def queries(self, schema: Schema) -> tuple[Query, ...]:
        """Returns the table of its values."""
        check_categorical(schema, *self.columns)
        return (Query(by=self.columns, label=self.label),)

    def fit(self, schema: Schema, tables: Tables) -> fitted.Words:
        """Returns the vocabulary of the values that the release shows."""
        table = tables[Query(by=self.columns, label=self.label)]
        shown = np.array([None not in key for key in table.keys], dtype=np.bool_)
        places = np.flatnonzero(shown)
        largest = np.sort(places[np.argsort(-table.rows[places], kind="stable")][: self.most])
        return fitted.Words(columns=self.columns, values=tuple(_words(table.keys[place]) for place in largest))


class Rate(_Transform):
    """The log-odds of a label's rate at a category (target encoding, CTR or CVR counter), and how often it came.

    Two numbers in [-1, 1]: the shrunk rate's log-odds beside those of the whole log, and the noisy count's logarithm.
    An unknown category has the whole log's rate.
    """

    kind: Literal["rate"] = "rate"
    columns: tuple[str, ...] = Field(min_length=1)
    label: str

    def queries(self, schema: Schema) -> tuple[Query, ...]:
        """Returns the table of the label by category."""
        check_categorical(schema, *self.columns)
        return (Query(by=self.columns, label=self.label),)

    def fit(self, schema: Schema, tables: Tables) -> fitted.Counter:
        """Returns the rates, shrunk by what their noise leaves unknown."""
        table = tables[Query(by=self.columns, label=self.label)]
        found = readings.rates(table)
        odds = np.log(found.rates / (1 - found.rates)) - np.log(found.overall / (1 - found.overall))
        rows = np.log1p(np.maximum(table.rows, 0.0))
        return fitted.Counter(
            columns=self.columns,
            label=self.label,
            values=tuple(_words(key) for key in table.keys),
            log_odds=tuple(odds.tolist()),
            log_rows=tuple((rows / max(float(rows.max(initial=0.0)), 1.0)).tolist()),
        )


class Quantiles(_Transform):
    """A number's quantile: as one of ``buckets`` categories, or where that is not given as a number in [-1, 1].

    Missing values have a bucket of their own; as a number they are 0, the median.
    """

    kind: Literal["quantiles"] = "quantiles"
    column: str
    buckets: int | None = Field(default=None, ge=2, le=CELLS)
    label: str | None = None

    def queries(self, schema: Schema) -> tuple[Query, ...]:
        """Returns the table of its grid."""
        return (_grid_query(schema, self.column, self.label),)

    def fit(self, schema: Schema, tables: Tables) -> "fitted.Buckets | fitted.Curve":
        """Returns the edges between buckets, or the distribution's curve."""
        found = _distribution(schema, self.column, self.label, tables)
        if self.buckets is None:
            shares = np.linspace(0, 1, 65)
            points = np.maximum.accumulate([found.quantile(float(share)) for share in shares])
            return fitted.Curve(column=self.column, points=tuple(points.tolist()), shares=tuple(shares.tolist()))
        edges = [found.quantile(i / self.buckets) for i in range(1, self.buckets)]
        return fitted.Buckets(column=self.column, edges=tuple(np.unique(edges).tolist()))


class Standardized(_Transform):
    """A number less its mean, over ``limit`` standard deviations, clipped to [-1, 1]; a missing one is its median."""

    kind: Literal["standardized"] = "standardized"
    column: str
    limit: float = Field(default=3.0, gt=0)
    label: str | None = None

    def queries(self, schema: Schema) -> tuple[Query, ...]:
        """Returns the table of its grid."""
        return (_grid_query(schema, self.column, self.label),)

    def fit(self, schema: Schema, tables: Tables) -> fitted.Scale:
        """Returns the scale, and what stands for a missing number."""
        found = _distribution(schema, self.column, self.label, tables)
        mean, std = found.moments()
        low, high = schema.numeric[self.column].range
        half = self.limit * max(std, (high - low) / CELLS)
        return fitted.Scale(
            column=self.column, low=mean - half, high=mean + half, log=False, missing=found.quantile(0.5), name="std"
        )


class Imputed(_Transform):
    """A number in [-1, 1] by its public range, where a missing one is its private median, or a public ``value``: then
    it is free. `Missing` beside it tells the model which were missing. log: as in `Scaled`.
    """

    kind: Literal["imputed"] = "imputed"
    column: str
    value: Literal["median"] | float = "median"
    log: bool = False
    label: str | None = None

    @model_validator(mode="after")
    def _label_of_a_table(self) -> Self:
        if self.label is not None and self.value != "median":
            raise ValueError("label says which table the median is read from, and value is a number: leave one out")
        return self

    def queries(self, schema: Schema) -> tuple[Query, ...]:
        """Returns the table of its grid, where it reads one."""
        if self.value == "median":
            return (_grid_query(schema, self.column, self.label),)
        check_numeric(schema, self.column)
        low, high = schema.numeric[self.column].range
        if not low <= self.value <= high:
            raise ValueError(f"value must be in the range of {self.column!r}, [{low:g}, {high:g}], got {self.value:g}")
        return ()

    def fit(self, schema: Schema, tables: Tables) -> fitted.Scale:
        """Returns the scale of the column's range, and what stands for a missing number."""
        low, high = schema.numeric[self.column].range
        value = self.value
        if value == "median":
            value = _distribution(schema, self.column, self.label, tables).quantile(0.5)
        return fitted.Scale(column=self.column, low=low, high=high, log=self.log, missing=value, name="imputed")


class Frequency(_Transform):
    """How often a row's own unit (its user) was there before: the number of its strictly earlier rows, free.

    columns: only rows with the same values there are counted. within_hours: only so recent ones. most: more are taken
    for so many. It looks at the unit's own rows and at no label, so it needs a budget of that unit.
    """

    kind: Literal["frequency"] = "frequency"
    columns: tuple[str, ...] = ()
    within_hours: float | None = Field(default=None, gt=0, le=1e6)
    most: int = Field(default=100, ge=1)

    def queries(self, schema: Schema) -> tuple[Query, ...]:
        """Returns the tables it reads: none."""
        _check_past(schema, self.kind, self.columns)
        return ()

    def fit(self, schema: Schema, tables: Tables) -> fitted.EarlierRows:
        """Returns itself, ready."""
        return fitted.EarlierRows(past=Past(columns=self.columns, within_hours=self.within_hours), most=self.most)


class Recency(_Transform):
    """How long ago a row's own unit (its user) was last there, of its strictly earlier rows, and whether it was: free.

    columns, within_hours: as in `Frequency`; without within_hours what is longer ago than `A_YEAR` is taken for that.
    """

    kind: Literal["recency"] = "recency"
    columns: tuple[str, ...] = ()
    within_hours: float | None = Field(default=None, gt=0, le=1e6)

    def queries(self, schema: Schema) -> tuple[Query, ...]:
        """Returns the tables it reads: none."""
        _check_past(schema, self.kind, self.columns)
        return ()

    def fit(self, schema: Schema, tables: Tables) -> fitted.SinceEarlier:
        """Returns itself, ready."""
        past = Past(columns=self.columns, within_hours=self.within_hours)
        return fitted.SinceEarlier(past=past, longest_hours=self.within_hours or A_YEAR)


Transform = Annotated[
    Hashed | Scaled | Missing | Vocabulary | Rate | Quantiles | Standardized | Imputed | Frequency | Recency,
    Field(discriminator="kind"),
]


class Pipeline(_Transform):
    """Transforms in the order of the model's inputs, not fitted yet."""

    transforms: tuple[Transform, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _no_two_alike(self) -> Self:
        for place, one in enumerate(self.transforms):
            if one in self.transforms[:place]:
                raise ValueError(f"the pipeline has this transform twice: {one!r}")
        return self

    def queries(self, schema: Schema) -> tuple[Query, ...]:
        """Returns the tables that the transforms read, each once; refuses columns that the schema does not have."""
        return tuple(dict.fromkeys(query for one in self.transforms for query in one.queries(schema)))

    def check_unit(self, schema: Schema, unit: PrivacyUnit) -> None:
        """Refuse transforms that look at rows of the same owner where ``unit`` is less than that owner: one unit's row
        would enter another's features.
        """
        for one in self.transforms:
            if isinstance(one, Frequency | Recency) and unit != schema.protected_unit:
                raise ValueError(
                    f"{one.kind} looks at other rows of the same {schema.protected_unit}, which unit {unit!r} does not "
                    f"protect: protect {schema.protected_unit!r}, or leave it out"
                )


def _grid_query(schema: Schema, column: str, label: str | None) -> Query:
    return Query(by=(grid_of(schema, column, cells=CELLS),), label=label)


def _distribution(schema: Schema, column: str, label: str | None, tables: Tables) -> readings.Distribution:
    return readings.distribution(tables[_grid_query(schema, column, label)])


def _check_past(schema: Schema, kind: str, columns: tuple[str, ...]) -> None:
    check_categorical(schema, *columns)
    if not schema.unit:
        raise ValueError(f"{kind} looks at earlier rows of the same owner: add unit = [COLUMN] to the schema")
    if schema.time is None:
        raise ValueError(f"{kind} looks at earlier rows: add time = COLUMN to the schema")


def _words(key: tuple[str | int | None, ...]) -> tuple[str | None, ...]:
    return tuple(None if one is None else str(one) for one in key)
