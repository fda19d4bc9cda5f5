"""The public facts about a log: everything that may be known before a private row is read.

A schema is written by people who do not look at the rows (or who paid for looking). Nothing in it is computed here
from data. Rows that do not fit it contribute nothing; they are errors only where the schema says the data are public.
"""

import hashlib
import math
import re
import tomllib
from collections.abc import Mapping
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from accounting.budget import EXAMPLE, PrivacyUnit
from privads.config import ConfigError, nearest_name, parse_model
from privads.logs.labels import DelayedLabel, Facts, Label, ValueLabel

EPOCH_SECONDS = "epoch-seconds"
"""The time format of a column that counts seconds, from 1970 or from the start of the log."""

MOST_BUCKETS = 2**31 - 1
"""Rows of the fused table are numbered in 32 bits."""


class History(Facts):
    """A column that was made from other rows, such as how often a user had clicked before.

    of: the columns whose values those rows share; empty for the unit columns. rows: a row's value enters this column of
    at most so many later rows; None where that is not known.
    """

    of: tuple[str, ...] = ()
    rows: int | None = Field(default=None, gt=0)


class Numeric(Facts):
    """A number and the range it is clipped to: a public statement, never measured. history: made from other rows."""

    range: tuple[float, float]
    history: History | None = None

    @field_validator("range")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        low, high = value
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"range must be two finite numbers, the smaller one first, got {list(value)}")
        return value


class Categorical(Facts):
    """A category, hashed into ``buckets`` - 1 buckets; bucket 0 is for missing values.

    part: instead of a column of its own, the hour of the day or the weekday of the impression's time.
    history: made from other rows.
    """

    buckets: int = Field(ge=2)
    part: Literal["hour", "weekday"] | None = None
    history: History | None = None


class Text(Facts):
    """How a delimited text file is to be read: a line is a row, and values may be quoted.

    delimiter: one ASCII character; a comma unless stated, in a .tsv file a tab. columns: their names, where the file
    has no header line. missing: what a cell holds, besides nothing and NA, where its value is missing, such as -1.
    true, false: what it holds in place of 1 and 0. All are compared with the whole cell, spaces included; true and
    false leave unit columns as they are.
    """

    delimiter: str | None = Field(default=None, pattern=r"^[\x01-\x09\x0b\x0c\x0e-\x21\x23-\x7f]$")
    columns: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    true: tuple[str, ...] = ()
    false: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_meaning_each(self) -> Self:
        words = [*self.missing, *self.true, *self.false]
        twice = next((word for word in words if words.count(word) > 1), None)
        if twice is not None:
            raise ValueError(f"missing, true and false name {twice!r} twice")
        return self


class Schema(Facts):
    """Public facts about one data set.

    dataset: its name in the ledger. population: declared number of units; a wrong one costs accuracy, not privacy.
    rows: declared number of rows, needed only to protect single rows of a log that has unit columns.
    unit: the columns that together name who owns a row; empty where each row is its own unit.
    unit_name: what to call that unit in budgets and reports; `user` for a single column.
    time: the column with the time of the impression. time_format: strptime format where it is text, "epoch-seconds"
    where it is a number of seconds.
    public: the rows may be known to everyone. reference: per label a column with another predictor's probability;
    reference_name: what reports call that predictor.
    """

    dataset: str = Field(min_length=1)
    population: int = Field(gt=0)
    rows: int | None = Field(default=None, gt=0)
    unit: tuple[str, ...] = ()
    unit_name: str | None = None
    time: str | None = None
    time_format: str | None = None
    public: bool = False
    text: Text = Text()
    labels: dict[str, Label]
    reference: dict[str, str] = Field(default_factory=dict)
    reference_name: str = "reference"
    numeric: dict[str, Numeric] = Field(default_factory=dict)
    categorical: dict[str, Categorical] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.unit) > 1 and self.unit_name is None:
            raise ValueError('a unit of several columns needs a name, such as unit_name = "user-day"')
        if self.unit_name is not None and not re.fullmatch(r"[a-z][a-z0-9-]*", self.unit_name):
            raise ValueError(f"unit_name must be a lower-case word such as 'user-day', got {self.unit_name!r}")
        if self.unit_name == EXAMPLE:
            raise ValueError("unit_name 'example' is reserved for single rows")
        if len(set(self.unit)) < len(self.unit):
            raise ValueError(f"unit names a column twice: {list(self.unit)}")
        if not self.numeric and not self.categorical:
            raise ValueError("the schema names no feature: add a [numeric] or [categorical] table")
        if not self.labels:
            raise ValueError("the schema names no label: add a [labels] table")
        if self.time_format is not None:
            _check_time_format(self.time_format)
        if self.time is None and any(isinstance(label, DelayedLabel) for label in self.labels.values()):
            raise ValueError("a label with within_hours needs the time of the impression: add time = COLUMN")
        if self.bucket_starts[-1] > MOST_BUCKETS:
            raise ValueError(f"all buckets together must be at most {MOST_BUCKETS}, got {self.bucket_starts[-1]}")
        unknown = set(self.reference) - set(self.events)
        if unknown:
            raise ValueError(f"[reference] names {sorted(unknown)}, which is no label of yes or no")
        if self.time is None and any(field.part for field in self.categorical.values()):
            raise ValueError("a part of the time needs the time of the impression: add time = COLUMN")
        for name, history in self._histories().items():
            if not (history.of or self.unit):
                raise ValueError(f"{name!r} has a history, but the rows have no unit columns: say whose, history.of")
        leaked = set(self.label_columns) & (set(self.numeric) | set(self.categorical))
        if leaked:
            raise ValueError(
                f"column {sorted(leaked)[0]!r} is both a label and a feature: the model would see the answer"
            )
        return self

    @property
    def protected_unit(self) -> PrivacyUnit:
        """The name of the unit that the unit columns stand for; `example` where there are none."""
        if not self.unit:
            return EXAMPLE
        return self.unit_name or "user"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The labels' names, in the order of the schema."""
        return tuple(self.labels)

    @property
    def events(self) -> tuple[str, ...]:
        """The tasks whose label is yes or no, and whose prediction is a probability."""
        return tuple(task for task, label in self.labels.items() if not isinstance(label, ValueLabel))

    @property
    def waiting(self) -> dict[str, DelayedLabel]:
        """The labels that are learned from while their window is open."""
        labels = self.labels.items()
        return {task: label for task, label in labels if isinstance(label, DelayedLabel) and label.waiting}

    def check_event(self, task: str) -> None:
        """Refuse a task that is no label, or whose label is no yes or no."""
        if task not in self.labels:
            raise ValueError(f"{task!r} is no label of the schema; known: {', '.join(self.labels)}")
        if task not in self.events:
            raise ValueError(f"{task!r} is a number, and this needs a label of yes or no{_one_of(self.events)}")

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns from which labels and references are made."""
        labels = [label if isinstance(label, str) else label.column for label in self.labels.values()]
        return (*labels, *self.reference.values())

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that a reader needs, each once."""
        time = () if self.time is None else (self.time,)
        features = (*self.numeric, *(name for name, field in self.categorical.items() if field.part is None))
        return tuple(dict.fromkeys((*self.unit, *time, *self.label_columns, *features)))

    @property
    def fields(self) -> int:
        """The number of features, numeric and categorical."""
        return len(self.numeric) + len(self.categorical)

    @property
    def bucket_starts(self) -> tuple[int, ...]:
        """The first row of each categorical field in the fused table, and at the end the number of rows."""
        starts = [0]
        for field in self.categorical.values():
            starts.append(starts[-1] + field.buckets)
        return tuple(starts)

    def population_of(self, unit: PrivacyUnit) -> int:
        """Returns the declared public number of ``unit``s; raises ValueError where the schema does not state it."""
        self.check_unit(unit)
        if unit == self.protected_unit:
            return self.population
        if self.rows is None:
            raise ValueError(
                "protecting or sampling single rows needs their declared number: add rows = NUMBER to the schema "
                f"(population counts {self.protected_unit}s)"
            )
        return self.rows

    def check_unit(self, unit: PrivacyUnit) -> None:
        """Refuse a unit that this log cannot protect."""
        if unit not in (EXAMPLE, self.protected_unit):
            if not self.unit:
                raise ValueError(f"unit {unit!r} needs unit columns: add unit = [COLUMN] to the schema")
            raise ValueError(f"unit must be 'example' or {self.protected_unit!r}, as the schema says, got {unit!r}")

    def records_of_row(self) -> int | None:
        """Returns how many rows come or go with one row, None where it is not stated: 1, and 2 for each later row whose
        [history] its value enters.

        Without the row, those h later rows have other values: h + 1 rows are gone and h have come, 2 h + 1 in all.
        Windows over the same columns are nested, those over different columns are not: their lengths add up.
        """
        windows: dict[tuple[str, ...], int] = {}
        for history in self._histories().values():
            if history.rows is None:
                return None
            of = tuple(sorted(history.of or self.unit))
            windows[of] = max(windows.get(of, 0), history.rows)
        return 1 + 2 * sum(windows.values())

    def check_history(self, unit: PrivacyUnit, *, records: int = 1) -> None:
        """Refuse features made from rows that another ``unit`` may own: one unit's row would enter its gradient.

        All rows with the same unit columns are one unit, so a history of rows that share those (and perhaps more) stays
        inside it. A single row's value may enter at most ``(records - 1) / 2`` later rows.
        """
        if unit == EXAMPLE:
            needed = self.records_of_row()
            if needed is not None and needed <= records:
                return
            for name, history in self._histories().items():
                how = (
                    f"state in how many later rows a row's value may be (history.rows), or protect {self._owner()}"
                    if history.rows is None
                    else f"plan with records = {needed}, or protect {self._owner()}"
                )
                raise ValueError(f"{name!r} is made from other rows, which unit 'example' does not protect: {how}")
        for name, history in self._histories().items():
            if not set(self.unit) <= set(history.of or self.unit):
                raise ValueError(
                    f"{name!r} is made from rows that share {list(history.of)}, but a {unit} owns only those that "
                    f"share {list(self.unit)}: make the unit coarser, or leave the column out"
                )

    def _histories(self) -> dict[str, History]:
        fields: dict[str, Numeric | Categorical] = {**self.numeric, **self.categorical}
        return {name: field.history for name, field in fields.items() if field.history is not None}

    def _owner(self) -> str:
        return repr(self.protected_unit) if self.unit else "a unit that owns those rows"

    def without_labels(self, *, with_owners: bool = False) -> "Schema":
        """Returns what is needed to read the features alone, of rows whose unit, time and labels may be missing.

        with_owners: unit and time are needed too.
        """
        kept = with_owners or any(field.part for field in self.categorical.values())
        unit, time = self.unit if with_owners else (), self.time if kept else None
        return self.model_copy(update={"labels": {}, "reference": {}, "unit": unit, "time": time, "public": False})

    @property
    def sha256(self) -> str:
        """A fingerprint of these public facts."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @classmethod
    def parse(cls, text: str, *, source: str = "schema") -> Self:
        """Returns the schema written in TOML; raises `ConfigError` with one clear line."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{source}: not valid TOML: {error}") from None
        return parse_model(cls, data, source=source)

    @classmethod
    def load(cls, source: "str | Path | Schema | Mapping[str, Any]") -> "Schema":
        """Returns a schema from a TOML file, or from the name of a format that privads knows (`known_formats`)."""
        match source:
            case Schema():
                return source
            case Mapping():
                return parse_model(cls, dict(source), source="schema")
        path = Path(source)
        if path.is_file():
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(f"{path}: not valid TOML: {error}") from None
            return cls.parse(text, source=str(path))
        if str(source) in known_formats():
            text = (resources.files("privads.logs") / "formats" / f"{source}.toml").read_text(encoding="utf-8")
            return cls.parse(text, source=f"format {source}")
        raise ConfigError(
            f"schema {str(source)!r} is neither a file nor one of the formats {', '.join(known_formats())}"
            f"{nearest_name(str(source), known_formats())}"
        )


def known_formats() -> tuple[str, ...]:
    """The public ads data sets whose schema comes with privads."""
    folder = resources.files("privads.logs") / "formats"
    return tuple(sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml")))


def _one_of(tasks: tuple[str, ...]) -> str:
    return f": {', '.join(tasks)}" if tasks else ""


def _check_time_format(time_format: str) -> None:
    try:
        datetime.strptime("", time_format)
    except ValueError as error:
        if "bad directive" in str(error) or "stray" in str(error):
            raise ValueError(f"time_format {time_format!r} is no strptime format: {error}") from None
