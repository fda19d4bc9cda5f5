"""`Report`: what an attribution interface shows of a log, with everything that must be known to read it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from dp_accounting import dp_event
from numpy.typing import NDArray

from accounting import mechanisms
from accounting.budget import Budget
from accounting.report.phrase import bound
from privads.signals.query import Key

Floats = NDArray[np.float64]
MOST_LINES = 20
"""Cells that are printed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """Noisy figures by key, and their noise.

    by: the columns whose values are a cell's key. values: per measure (cells,). noise_std: per measure (cells,), the
    standard deviation of the noise on each value. law: the noise's. promise: whom the interface itself promises what,
    and what that leaves open. limits: its budgets and caps. event: what was executed, as an owner of rows under
    ``budget`` loses it; epsilon: its cost at the budget's delta. entry: of the ledger. seen: what the devices of a log
    that is public show beside it; empty for any other.
    """

    api: str
    by: tuple[str, ...]
    keys: tuple[Key, ...]
    values: Mapping[str, Floats]
    noise_std: Mapping[str, Floats]
    law: str
    promise: str
    limits: Mapping[str, float]
    event: dp_event.DpEvent
    budget: Budget
    epsilon: float
    entry: str | None
    seen: Mapping[str, float]

    @property
    def cost(self) -> str:
        """What the report costs an owner of rows, in one phrase."""
        return bound(
            self.epsilon,
            delta=self.budget.delta,
            unit=self.budget.unit,
            neighbors=self.budget.neighbors,
            released=f"{self.api} report",
        )

    def facts(self) -> dict[str, Any]:
        """Returns all but the figures, as JSON can hold it."""
        return {
            "api": self.api,
            "by": list(self.by),
            "measures": list(self.values),
            "law": self.law,
            "promise": self.promise,
            "limits": dict(self.limits),
            "event": mechanisms.to_dict(self.event),
            "epsilon": self.epsilon,
            "delta": self.budget.delta,
            "unit": self.budget.unit,
            "neighbors": self.budget.neighbors,
            "cost": self.cost,
            "entry": self.entry,
            "seen": dict(self.seen),
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns the whole report, as JSON can hold it; every cell is one object."""
        cells = [
            {
                "key": list(key),
                "values": {name: float(value[place]) for name, value in self.values.items()},
                "noise_std": {name: float(std[place]) for name, std in self.noise_std.items()},
            }
            for place, key in enumerate(self.keys)
        ]
        return {**self.facts(), "cells": cells}

    def save(self, file: Path) -> None:
        """Write the report: as one JSON object, or as Parquet, a row for each cell, with its facts as metadata."""
        check_format(file)
        if file.suffix == ".json":
            file.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
            return
        columns: dict[str, Any] = {
            name: pa.array([key[place] for key in self.keys], pa.string()) for place, name in enumerate(self.by)
        }
        for name, value in self.values.items():
            columns |= {name: pa.array(value), f"{name}_noise_std": pa.array(self.noise_std[name])}
        table = pa.table(columns).replace_schema_metadata({"privads.report": json.dumps(self.facts())})
        pyarrow.parquet.write_table(table, file)

    def in_words(self) -> list[str]:
        """Returns the lines for people: the cells with their noise, whom it protects, and what it costs."""
        lines = []
        for place, key in enumerate(self.keys[:MOST_LINES]):
            shown = ", ".join(
                f"{name} {value[place]:,.6g} +- {self.noise_std[name][place]:,.4g}"
                for name, value in self.values.items()
            )
            lines.append(f"{printable(' / '.join(map(str, key)))}: {shown}")
        if len(self.keys) > MOST_LINES:
            lines.append(f"and {len(self.keys) - MOST_LINES} more cells")
        lines += [f"noise: {self.law}", self.promise]
        lines += ["limits: " + ", ".join(f"{name} {value:g}" for name, value in self.limits.items())]
        if self.seen:
            lines.append("on the devices (public rows): " + ", ".join(f"{k} {v:,g}" for k, v in self.seen.items()))
        return [*lines, self.cost]


def check_format(file: Path) -> None:
    """Refuse a file whose name says neither Parquet nor JSON."""
    if file.suffix not in (".parquet", ".json"):
        raise ValueError(f"a report is written as .parquet or .json, got {str(file)!r}")


def printable(text: str) -> str:
    """A key as a terminal may show it: what would move its cursor or change its colors is told by number."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
