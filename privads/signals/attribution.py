"""Reports of a log as an attribution interface makes them: planned from public facts, paid for, then read.

The ledger is charged in full before a row is read, and not for what the interface promises by its own unit, but for
what its report costs whoever owns the rows (`privads.signals.interfaces`).
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accounting import accountant
from accounting.budget import EXAMPLE, Budget
from accounting.ledger import Ledger
from privads.charge import charged, check_may_read
from privads.logs.database import Codes
from privads.logs.encode import unit_codes
from privads.logs.labels import DelayedLabel
from privads.logs.logs import Logs
from privads.logs.raw import Raw
from privads.logs.reader import telling_no_row
from privads.logs.schema import Schema
from privads.noise import Randomness
from privads.run_config import AttributionTable
from privads.signals.attribute import Converted, Shown, scaled
from privads.signals.interface import Interface
from privads.signals.interfaces import interface_of
from privads.signals.query import Key, check_categorical, check_numeric
from privads.signals.report import Report
from privads.signals.w3c import DAY

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_CELLS = 1 << 20

_LONGEST_HOURS = 1e6
"""The longest window that a label may have: how late a conversion counts is for the interface to say."""


@dataclass(frozen=True, kw_only=True)
class AttributionPlan:
    """A report that was asked for: what will be executed, and what it costs. Made by `of`, from public facts only."""

    asked: AttributionTable
    schema: Schema
    budget: Budget

    @classmethod
    def of(
        cls, asked: AttributionTable, schema: Schema, *, epsilon: float, delta: float, unit: str
    ) -> "AttributionPlan":
        """Returns the plan; raises ValueError where the schema does not allow it, or it costs more than ``epsilon``."""
        _check_columns(asked, schema)
        found = _interface(asked, schema)
        found.check()
        labels_only = found.neighbors == "replace-label"
        needed = EXAMPLE if labels_only else schema.protected_unit
        if unit != needed:
            why = "it protects the label of a row, no more" if labels_only else "a browser is whoever owns the rows"
            raise ValueError(f"plan.unit must be {needed!r} for api = {asked.api!r}, got {unit!r}: {why}")
        schema.check_history(unit)
        plan = cls(
            asked=asked,
            schema=schema,
            budget=Budget(epsilon=epsilon, delta=delta, unit=unit, neighbors=found.neighbors),
        )
        if plan.spent.upper > epsilon * (1 + 1e-9):
            raise ValueError(
                f"the report costs epsilon {plan.spent.upper:.6g} ({plan.budget.terms}), more than plan.epsilon, "
                f"{epsilon:g}: {found.remedy}"
            )
        return plan

    @cached_property
    def interface(self) -> Interface:
        """What is asked for."""
        return _interface(self.asked, self.schema)

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """The cells' keys, every combination of the declared values."""
        return tuple(itertools.product(*self.asked.keys.values()))

    @cached_property
    def spent(self) -> accountant.Bounds:
        """The epsilon of what is executed, at the budget's delta."""
        return accountant.epsilon(self.interface.loss.event, delta=self.budget.delta, neighbors=self.budget.neighbors)

    def run(self, logs: Logs, *, ledger: Ledger | None, insecure_seed: int | None = None) -> Report:
        """Returns the report: checks, charges the ledger, reads, in this order."""
        schema, made = self.schema, self.interface
        check_may_read(schema, ledger, insecure_seed=insecure_seed)
        timed, randomness = self._timed(logs), Randomness(insecure_seed=insecure_seed)
        event, cost = made.loss.event, self.spent.upper
        purpose = f"attribute {self.asked.api}"
        with (
            charged(ledger, schema.dataset, event, self.budget, epsilon=cost, purpose=purpose) as entry,
            telling_no_row("the rows cannot be attributed as the schema says", public=schema.public),
        ):
            answered = made.answered(*self._read(timed), randomness=randomness, insecure_seed=insecure_seed)
        return Report(
            api=self.asked.api,
            by=tuple(self.asked.keys),
            keys=self.keys,
            values=self._by_measure(answered.noisy),
            noise_std=self._by_measure(answered.noise_std),
            law=made.law,
            promise=made.promise(self.budget.unit),
            limits=made.limits_stated,
            event=event,
            budget=self.budget,
            epsilon=cost,
            entry=None if entry is None else str(entry.id),
            seen=answered.seen if schema.public else {},
        )

    def exact(self, logs: Logs, *, insecure_seed: int | None = None) -> dict[str, Floats]:
        """Returns the figures without noise, per measure (cells,), of a log that is declared public; of any other they
        are nobody's to see. Budgets and caps are kept all the same; under one seed, browsers draw as they do in `run`.
        """
        if not self.schema.public:
            raise ValueError(f"figures without noise are refused: {self.schema.dataset!r} is not declared public")
        rows, randomness = self._read(self._timed(logs)), Randomness(insecure_seed=insecure_seed)
        answered = self.interface.answered(*rows, randomness=randomness, insecure_seed=insecure_seed)
        return self._by_measure(answered.exact)

    def _by_measure(self, steps: Floats) -> dict[str, Floats]:
        return {name: steps[:, place] * unit for place, (name, unit) in enumerate(self.interface.units.items())}

    def _timed(self, logs: Logs) -> Logs:
        """Returns the log as it must be read to know when its conversions came; refuses missing files and columns."""
        if logs.features is not None:
            raise ValueError("these rows are read through fitted features: pass the log without them")
        if logs.source != self.schema:
            raise ValueError("the report was planned for a log of another schema: plan it for this one")
        if self.budget.neighbors == "replace-label" and not self.schema.public:
            logs.check_side()
        label = DelayedLabel(time=_label(self.asked, self.schema).time, within_hours=_LONGEST_HOURS, waiting=True)
        facts = self.schema.model_copy(update={"labels": {self.asked.label: label}, "reference": {}})
        found = Logs(logs.path, facts, split=logs.side)
        found.check()
        return found

    def _read(self, logs: Logs) -> tuple[Shown, Converted]:
        """Returns the impressions of the period and what they led to."""
        asked, pages, shops = self.asked, Codes(), Codes()
        start = pd.Timestamp(asked.start)
        start = start.tz_convert("UTC").tz_localize(None) if start.tzinfo else start
        first = int(start.to_datetime64().astype("datetime64[us]").astype(np.int64))
        columns: list[Ints] = [np.empty((4, 0), dtype=np.int64)]
        figures: list[Floats] = [np.empty((2, 0))]
        owners: list[list[NDArray[np.object_]]] = []
        for raw in logs.raw():
            times = raw.times.astype("datetime64[us]").astype(np.int64)
            inside = (times >= first) & (times < first + asked.days * DAY)
            page, shop = _numbers(raw, asked.impression_site, pages), _numbers(raw, asked.conversion_site, shops)
            columns.append(np.stack([times, self._cells(raw), page, shop])[:, inside])
            hours = np.where(raw.labels[asked.label] == 1, raw.hours[asked.label][:, 0], np.nan)
            value = np.ones(raw.rows)
            if asked.value is not None:
                value = scaled(raw.numbers[asked.value], _high(asked, self.schema))
            figures.append(np.stack([hours, value])[:, inside])
            owners.append([unit[inside] for unit in raw.units])
        times, cells, page, shop = np.concatenate(columns, axis=1)
        hours, value = np.concatenate(figures, axis=1)
        keys = [np.concatenate(one) for one in zip(*owners, strict=True)]
        browsers = unit_codes(keys) if keys else np.arange(len(times))
        known = ~np.isnan(hours)
        moments = times[known] + np.rint(hours[known] * 3.6e9).astype(np.int64)
        shown = Shown(browsers=browsers, times=times, cells=cells, pages=page, shops=shop)
        return shown, Converted(browsers=browsers[known], times=moments, shops=shop[known], values=value[known])

    def _cells(self, raw: Raw) -> Ints:
        """Returns (rows,) the place of each row's key; the number of keys where it is none of the declared."""
        cells, outside = np.zeros(raw.rows, dtype=np.int64), np.zeros(raw.rows, dtype=np.bool_)
        for column, values in self.asked.keys.items():
            codes, texts = raw.texts[column]
            known: dict[str | None, int] = {value: place for place, value in enumerate(values)}
            places = np.array([*(known.get(text, -1) for text in texts), -1])[codes]
            outside |= places < 0
            cells = cells * len(values) + places
        return np.where(outside, len(self.keys), cells)


def _interface(asked: AttributionTable, schema: Schema) -> Interface:
    return interface_of(asked, cells=math.prod(map(len, asked.keys.values())), high=_high(asked, schema))


def _high(asked: AttributionTable, schema: Schema) -> float:
    return 1.0 if asked.value is None else schema.numeric[asked.value].range[1]


def _label(asked: AttributionTable, schema: Schema) -> DelayedLabel:
    schema.check_event(asked.label)
    label = schema.labels[asked.label]
    if not isinstance(label, DelayedLabel):
        raise ValueError(
            f"{asked.label!r} does not say when its event came: attribution needs a label of the form "
            "{time = COLUMN, within_hours = H}"
        )
    return label


def _numbers(raw: Raw, column: str | None, codes: Codes) -> Ints:
    """Returns (rows,) a number for each row's value, 0 where it is missing, and for all where there is no column."""
    if column is None:
        return np.zeros(raw.rows, dtype=np.int64)
    own, texts = raw.texts[column]
    return np.append(codes.of(texts), np.int32(-1))[own].astype(np.int64) + 1


def _check_columns(asked: AttributionTable, schema: Schema) -> None:
    check_categorical(schema, *asked.keys)
    check_categorical(schema, *(one for one in (asked.conversion_site, asked.impression_site) if one is not None))
    _label(asked, schema)
    if asked.value is not None:
        check_numeric(schema, asked.value)
        if schema.numeric[asked.value].range[0] < 0:
            raise ValueError(f"the range of {asked.value!r} must begin at 0 or above: a conversion is worth something")
    cells = math.prod(map(len, asked.keys.values()))
    if cells > MOST_CELLS:
        raise ValueError(f"keys make {cells} cells, at most {MOST_CELLS} are shown")
    measures = _interface(asked, schema).units
    taken = {*measures, *(f"{one}_noise_std" for one in measures)} & set(asked.keys)
    if taken:
        raise ValueError(f"keys name {sorted(taken)[0]!r}, which is a figure of the report")
