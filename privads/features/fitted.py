"""Fitted transforms: frozen values that turn rows into a model's inputs, one row by itself, and save as JSON.

What a row looks back at (`past.Earlier`) comes with it: no transform looks for other rows.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from privads.features.stateless import hash_buckets, log_scale
from privads.logs.past import Earlier, Past
from privads.logs.raw import Raw
from privads.logs.schema import Categorical, Numeric

Dense = NDArray[np.float32]
Ids = NDArray[np.int32]
UNIT_RANGE = (-1.0, 1.0)
CROSS = "\x1f"
"""What stands between the values of crossed columns: the separator that ASCII has for that."""

_ESCAPE = "\x1e"
"""What stands, with a digit after it, for the separator and for itself inside a value: no two crosses are one text."""

ODDS_LIMIT = 4.0
"""Log-odds that far from the whole log's are the largest that a counter tells apart."""


class _Fitted(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def pasts(self) -> tuple[Past, ...]:
        """What its rows look back at."""
        past: Past | None = getattr(self, "past", None)
        return () if past is None else (past,)

    @property
    def sources(self) -> tuple[str, ...]:
        """The columns that it reads."""
        if self.pasts:
            return self.pasts[0].columns
        columns: tuple[str, ...] = getattr(self, "columns", ())
        return columns or (self.column,)  # type: ignore[attr-defined]


class Hash(_Fitted):
    """Bucket ``hash_buckets`` of one column's value, or of several columns' values together."""

    kind: Literal["hash"] = "hash"
    columns: tuple[str, ...]
    buckets: int

    @property
    def outputs(self) -> dict[str, Numeric | Categorical]:
        """The model's input that it makes."""
        return {"*".join(self.columns): Categorical(buckets=self.buckets)}

    def apply(self, raw: Raw) -> list[Dense | Ids]:
        """Returns (rows,) buckets; 0 where any of the columns is missing."""
        codes, values = _crossed(raw, self.columns)
        hashed = hash_buckets(
            np.array([*values, None], dtype=object), field="*".join(self.columns), buckets=self.buckets
        )
        return [hashed[codes]]


class Scale(_Fitted):
    """``2 (g(x) - g(low)) / (g(high) - g(low)) - 1`` clipped to [-1, 1]; g the identity, or sign(x) log(1 + abs(x)).

    missing: what stands for a missing number; None puts it at 0, the middle.
    """

    kind: Literal["scale"] = "scale"
    column: str
    low: float
    high: float
    log: bool
    missing: float | None = None
    name: str = "scaled"

    @property
    def outputs(self) -> dict[str, Numeric | Categorical]:
        """The model's input that it makes."""
        return {f"{self.column}.{'log' if self.log else self.name}": Numeric(range=UNIT_RANGE)}

    def apply(self, raw: Raw) -> list[Dense | Ids]:
        """Returns (rows,) numbers in [-1, 1]."""
        values = raw.numbers[self.column]
        if self.missing is not None:
            values = np.where(np.isnan(values), self.missing, values)
        if self.log:
            return [log_scale(values, low=self.low, high=self.high)]
        even = np.clip(2.0 * (values - self.low) / (self.high - self.low) - 1.0, -1.0, 1.0)
        return [np.nan_to_num(even, nan=0.0).astype(np.float32)]


class IsMissing(_Fitted):
    """1 where the column is missing, else -1."""

    kind: Literal["is-missing"] = "is-missing"
    column: str
    numeric: bool

    @property
    def outputs(self) -> dict[str, Numeric | Categorical]:
        """The model's input that it makes."""
        return {f"{self.column}.missing": Numeric(range=UNIT_RANGE)}

    def apply(self, raw: Raw) -> list[Dense | Ids]:
        """Returns (rows,) of 1 and -1."""
        gone = np.isnan(raw.numbers[self.column]) if self.numeric else raw.texts[self.column][0] < 0
        return [np.where(gone, 1.0, -1.0).astype(np.float32)]


class Words(_Fitted):
    """The place in a vocabulary: 0 where a column is missing, 1 for a value that is not in it, then its values."""

    kind: Literal["words"] = "words"
    columns: tuple[str, ...]
    values: tuple[tuple[str | None, ...], ...]

    @property
    def outputs(self) -> dict[str, Numeric | Categorical]:
        """The model's input that it makes."""
        return {f"{'*'.join(self.columns)}.vocabulary": Categorical(buckets=2 + len(self.values))}

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(_joined(self.values), dtype=object)

    def apply(self, raw: Raw) -> list[Dense | Ids]:
        """Returns (rows,) places."""
        codes, values = _crossed(raw, self.columns)
        places = np.append(self._index.get_indexer(pd.Index(values, dtype=object)) + 2, 0).astype(np.int32)
        return [places[codes]]


class Counter(_Fitted):
    """A label's log-odds at a value less those of the whole log, over `ODDS_LIMIT`, and its count's logarithm."""

    kind: Literal["counter"] = "counter"
    columns: tuple[str, ...]
    label: str
    values: tuple[tuple[str | None, ...], ...]
    log_odds: tuple[float, ...]
    log_rows: tuple[float, ...]

    @property
    def outputs(self) -> dict[str, Numeric | Categorical]:
        """The model's inputs that it makes."""
        name = f"{'*'.join(self.columns)}.{self.label}"
        return {f"{name}.rate": Numeric(range=UNIT_RANGE), f"{name}.count": Numeric(range=UNIT_RANGE)}

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(_joined(self.values), dtype=object)

    def apply(self, raw: Raw) -> list[Dense | Ids]:
        """Returns (rows,) log-odds, 0 for an unknown value, and (rows,) counts, -1 for an unknown value."""
        codes, values = _crossed(raw, self.columns, missing="")
        places = self._index.get_indexer(pd.Index(values, dtype=object))  # -1, the last one, for an unknown value
        odds = np.clip(np.append(self.log_odds, 0.0) / ODDS_LIMIT, -1.0, 1.0)[places]
        rows = np.append(2.0 * np.array(self.log_rows) - 1.0, -1.0)[places]
        return [odds[codes].astype(np.float32), rows[codes].astype(np.float32)]


class Buckets(_Fitted):
    """A number's bucket between ``edges``: 0 where it is missing, then from low to high."""

    kind: Literal["buckets"] = "buckets"
    column: str
    edges: tuple[float, ...]

    @property
    def outputs(self) -> dict[str, Numeric | Categorical]:
        """The model's input that it makes."""
        return {f"{self.column}.buckets": Categorical(buckets=2 + len(self.edges))}

    def apply(self, raw: Raw) -> list[Dense | Ids]:
        """Returns (rows,) buckets."""
        values = raw.numbers[self.column]
        return [np.where(np.isnan(values), 0, 1 + np.searchsorted(self.edges, values, side="right")).astype(np.int32)]


class Curve(_Fitted):
    """``2 F(x) - 1`` for the distribution F through ``points`` and ``shares``, linear between them; missing is 0."""

    kind: Literal["curve"] = "curve"
    column: str
    points: tuple[float, ...]
    shares: tuple[float, ...]

    @property
    def outputs(self) -> dict[str, Numeric | Categorical]:
        """The model's input that it makes."""
        return {f"{self.column}.quantile": Numeric(range=UNIT_RANGE)}

    def apply(self, raw: Raw) -> list[Dense | Ids]:
        """Returns (rows,) numbers in [-1, 1]."""
        shares = np.interp(raw.numbers[self.column], self.points, self.shares)
        return [np.nan_to_num(2.0 * shares - 1.0, nan=0.0).astype(np.float32)]


class EarlierRows(_Fitted):
    """How many earlier rows there are, in [-1, 1] on a logarithmic scale from 0 to ``most``."""

    kind: Literal["earlier-rows"] = "earlier-rows"
    past: Past
    most: int

    @property
    def outputs(self) -> dict[str, Numeric | Categorical]:
        """The model's input that it makes."""
        return {_back_name(self.past, "frequency"): Numeric(range=UNIT_RANGE)}

    def apply(self, raw: Raw) -> list[Dense | Ids]:
        """Returns (rows,) numbers in [-1, 1]."""
        return [log_scale(_earlier(raw, self.past).rows.astype(np.float64), low=0.0, high=self.most)]


class SinceEarlier(_Fitted):
    """The hours since the latest earlier row, in [-1, 1] on a logarithmic scale from 0 to ``longest_hours``, and 1
    where there is none, else -1. Where there is none the first is 1 too: longer ago than any.
    """

    kind: Literal["since-earlier"] = "since-earlier"
    past: Past
    longest_hours: float

    @property
    def outputs(self) -> dict[str, Numeric | Categorical]:
        """The model's inputs that it makes."""
        name = _back_name(self.past, "recency")
        return {name: Numeric(range=UNIT_RANGE), f"{name}.missing": Numeric(range=UNIT_RANGE)}

    def apply(self, raw: Raw) -> list[Dense | Ids]:
        """Returns (rows,) numbers in [-1, 1], and (rows,) of 1 and -1."""
        hours = _earlier(raw, self.past).hours
        none = np.isnan(hours)
        scaled = log_scale(np.where(none, self.longest_hours, hours), low=0.0, high=self.longest_hours)
        return [scaled, np.where(none, 1.0, -1.0).astype(np.float32)]


Fitted = Annotated[
    Hash | Scale | IsMissing | Words | Counter | Buckets | Curve | EarlierRows | SinceEarlier,
    Field(discriminator="kind"),
]


def _back_name(past: Past, what: str) -> str:
    same = ["*".join(past.columns)] if past.columns else []
    return ".".join([*same, what, *([] if past.within_hours is None else [f"{past.within_hours:g}h"])])


def _earlier(raw: Raw, past: Past) -> Earlier:
    if past not in raw.pasts:
        raise ValueError("these rows do not know their unit's earlier ones: take them from log.with_features(...)")
    return raw.pasts[past]


def _joined(values: tuple[tuple[str | None, ...], ...]) -> list[str]:
    return [_cross(["" if one is None else one for one in value]) for value in values]


def _cross(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else CROSS.join(map(_escaped, parts))


def _escaped(text: str) -> str:
    return text.replace(_ESCAPE, _ESCAPE + "0").replace(CROSS, _ESCAPE + "1")


def _crossed(raw: Raw, columns: tuple[str, ...], *, missing: str | None = None) -> tuple[NDArray[np.int64], list[str]]:
    """Returns (rows,) codes, -1 where a column is missing, and the text each stands for, crossed columns joined.

    missing: the text of a missing value, where it is one of the values.
    """
    first, *others = (_filled(raw, column, missing) for column in columns)
    codes, values = first
    if others:
        values = [_escaped(one) for one in values]
    for own, texts in others:
        pairs = np.where((codes < 0) | (own < 0), -1, codes * len(texts) + own)
        distinct, codes = np.unique(pairs, return_inverse=True)
        escaped = [_escaped(one) for one in texts]
        crossed = distinct[distinct >= 0]
        values = [values[pair // len(texts)] + CROSS + escaped[pair % len(texts)] for pair in crossed]
        codes = codes - int((distinct < 0).any())
    return codes, values


def _filled(raw: Raw, column: str, missing: str | None) -> tuple[NDArray[np.int64], list[str]]:
    codes, values = raw.texts[column]
    texts = ["" if one is None else one for one in values]
    if missing is None:
        return codes, texts
    return np.where(codes < 0, len(texts), codes), [*texts, missing]
