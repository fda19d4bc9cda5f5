"""Record batches into the arrays that a model is fed from.

Everything here is a function of one row and the schema. A row that does not fit the schema (a number that is none,
a missing unit) is left out, and a label that does not fit is unobserved: both contribute zero. What single rows hold
decides nothing visible, unless the schema says that the data are public; then a misfit is an error.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import torch
from numpy.typing import NDArray

from privads.batch import Batch
from privads.features.stateless import hash_buckets, log_scale
from privads.logs.labels import DelayedLabel, ValueLabel
from privads.logs.past import Earlier, Past
from privads.logs.reader import MISSING_TEXTS, LogError, read_batches
from privads.logs.schema import EPOCH_SECONDS, Schema

MISSING = -1
Texts = tuple[NDArray[np.int64], list[str | None]]
"""(rows,) codes, `MISSING` where there is no value, and the text that each code stands for."""

_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)\.0")
_BELOW_MICROS = re.compile(r"([.,][0-9]{6})[0-9]+")
_NOTHING: dict[str, str | None] = dict.fromkeys(MISSING_TEXTS)
_WORDS = {**_NOTHING, "true": "1", "True": "1", "false": "0", "False": "0"}
"""What a text file writes for a value that Parquet holds as missing, true or false."""


class Columns(Protocol):
    """What a `Batch` is made of: in memory (`Part`), or in a mapped file."""

    @property
    def dense(self) -> NDArray[np.float32]:
        """(rows, numeric)."""
        ...

    @property
    def ids(self) -> NDArray[np.int32]:
        """(rows, categorical), rows of the fused table."""
        ...

    @property
    def labels(self) -> Mapping[str, NDArray[np.float32]]:
        """Per task (rows,)."""
        ...

    @property
    def observed(self) -> Mapping[str, NDArray[np.bool_]]:
        """Per task (rows,)."""
        ...

    @property
    def hours(self) -> Mapping[str, NDArray[np.floating[Any]]]:
        """Per task that waits (rows, 2), as `Batch` has them."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Some encoded rows. dense: (rows, numeric). ids: (rows, categorical), rows of the fused table. units: per unit
    column (rows,) text or None. times: (rows,) datetime64[us], NaT where unknown. fits: (rows,) bool. hours: per task
    that waits (rows, 2), as `Batch` has them.
    numbers, texts: the columns before they are encoded, as `Raw` has them; only where asked for, and then in place of
    dense and ids, which are empty. pasts: what the rows look back at, where it was looked for (`past.looking_back`).
    """

    dense: NDArray[np.float32]
    ids: NDArray[np.int32]
    labels: dict[str, NDArray[np.float32]]
    observed: dict[str, NDArray[np.bool_]]
    reference: dict[str, NDArray[np.float64]]
    units: list[NDArray[np.object_]]
    times: NDArray[np.datetime64]
    fits: NDArray[np.bool_]
    hours: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    numbers: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    texts: dict[str, Texts] = field(default_factory=dict)
    pasts: dict[Past, Earlier] = field(default_factory=dict)


def encoded(files: Iterable[Path], schema: Schema, *, raw: bool = False) -> Iterator[Part]:
    """Yields the rows of whole files, in their order, as `encode` returns them."""
    for file in files:
        for batch in read_batches(file, schema, schema.columns):
            yield encode(batch, schema, raw=raw)


def encode(batch: pa.RecordBatch, schema: Schema, *, raw: bool = False) -> Part:
    """Returns the rows of ``batch`` as the schema reads them; with ``raw``, their columns before they are encoded."""
    rows = batch.num_rows
    fits = np.ones(rows, dtype=np.bool_)
    misfits: dict[str, int] = {}

    def mark(column: str, bad: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if bad.any():
            misfits[column] = int(bad.sum())
        return ~bad

    kept_numbers: dict[str, NDArray[np.float64]] = {}
    kept_texts: dict[str, Texts] = {}
    for name, numeric in schema.numeric.items():
        values, bad = _numbers(batch[name])
        fits &= mark(name, bad)
        kept_numbers[name] = np.clip(values, *numeric.range)
    times = np.full(rows, "NaT", dtype="datetime64[us]")
    if schema.time is not None:
        times, _ = _times(batch[schema.time], schema.time_format)
        fits &= mark(schema.time, np.isnat(times))
    for name, categorical in schema.categorical.items():
        if categorical.part is None:
            codes, distinct = _dictionary(batch[name])
            texts, bad = _distinct_texts(distinct)
            fits &= mark(name, bad[codes])
        else:
            codes, texts = _time_parts(times, categorical.part)
        missing = np.array([one is None for one in texts])
        kept_texts[name] = (np.where(missing[codes], MISSING, codes), list(texts))
    units = []
    for name in schema.unit:
        unit, bad = _texts(batch[name], exact=True)
        fits &= mark(name, bad | pd.isna(unit))
        units.append(unit)
    labels, observed, hours = _labels(batch, schema, times, mark)
    if schema.public and misfits:
        column, count = next(iter(misfits.items()))
        raise LogError(
            f"column {column!r}: {count} values do not fit the schema (the data are public, so this is an error)"
        )
    reference = {task: _numbers(batch[column])[0] for task, column in schema.reference.items()}
    dense, ids = np.zeros((rows, 0), dtype=np.float32), np.zeros((rows, 0), dtype=np.int32)
    if not raw:
        dense, ids = read_columns(kept_numbers, kept_texts, schema, rows=rows)
    return Part(
        dense=dense,
        ids=ids,
        labels=labels,
        observed=observed,
        reference=reference,
        units=units,
        times=times,
        fits=fits,
        hours=hours,
        numbers=kept_numbers if raw else {},
        texts=kept_texts if raw else {},
    )


def read_columns(
    numbers: Mapping[str, NDArray[np.float64]], texts: Mapping[str, Texts], schema: Schema, *, rows: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Returns (dense (rows, numeric), ids (rows, categorical) in the fused table) as the schema itself reads them."""
    dense = np.zeros((rows, len(schema.numeric)), dtype=np.float32)
    for place, (name, numeric) in enumerate(schema.numeric.items()):
        low, high = numeric.range
        dense[:, place] = log_scale(numbers[name], low=low, high=high)
    ids = np.zeros((rows, len(schema.categorical)), dtype=np.int32)
    for place, (name, categorical) in enumerate(schema.categorical.items()):
        codes, distinct = texts[name]  # a missing value's code points to the last text, which is None
        own = hash_buckets(np.array(distinct, dtype=object), field=name, buckets=categorical.buckets)[codes]
        ids[:, place] = schema.bucket_starts[place] + own
    return dense, ids


def as_batch(columns: Columns, row_numbers: NDArray[np.int64]) -> Batch:
    """Returns these rows as a `Batch`; every categorical field is a bag of length 1."""
    fields = columns.ids.shape[1]
    hours = {task: waited[row_numbers].astype(np.float32) for task, waited in columns.hours.items()}
    return Batch(
        dense=torch.from_numpy(columns.dense[row_numbers]),
        ids=torch.from_numpy(columns.ids[row_numbers].ravel().astype(np.int64)),
        offsets=torch.arange(len(row_numbers) * fields + 1),
        labels={task: torch.from_numpy(label[row_numbers]) for task, label in columns.labels.items()},
        observed={task: torch.from_numpy(known[row_numbers]) for task, known in columns.observed.items()},
        weights=torch.ones(len(row_numbers)),
        hours={task: torch.from_numpy(waited) for task, waited in hours.items()},
    )


def unit_codes(keys: Sequence[NDArray[np.object_]]) -> NDArray[np.int64]:
    """Returns (rows,) numbers from 0, in order of appearance, that are equal exactly where all ``keys`` are equal.

    keys: per unit column (rows,) text. No hash stands in for a key: two users that shared a code would be one unit,
    and removing one of them would change more than the sensitivity allows.
    """
    if not keys:
        raise ValueError("the schema names no unit columns")
    codes = pd.factorize(keys[0])[0].astype(np.int64)
    for key in keys[1:]:
        own, uniques = pd.factorize(key)
        codes = pd.factorize(codes * len(uniques) + own)[0].astype(np.int64)
    return codes


def uniform_of_key(part: Part, batch: pa.RecordBatch, schema: Schema, *, salt: str) -> NDArray[np.float64]:
    """Returns (rows,) numbers in [0, 1): a salted hash of the unit's key, or of the whole row where it is the unit."""
    keys = part.units or [_texts(batch[name])[0] for name in schema.columns]
    total = np.zeros(batch.num_rows, dtype=np.uint64)
    for position, key in enumerate(keys):
        text = np.where(pd.isna(key), "", key)
        hash_key = hashlib.sha256(f"{position}:{salt}".encode()).hexdigest()[:16]
        total = total * np.uint64(0x9E3779B97F4A7C15) + pd.util.hash_array(text, hash_key=hash_key, categorize=False)
    mixed = pd.util.hash_array(total)
    return np.asarray(mixed >> np.uint64(11), dtype=np.float64) / 2.0**53


def _labels(
    batch: pa.RecordBatch,
    schema: Schema,
    times: NDArray[np.datetime64],
    mark: Callable[[str, NDArray[np.bool_]], NDArray[np.bool_]],
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.bool_]], dict[str, NDArray[np.float64]]]:
    labels, observed, hours = {}, {}, {}
    for task, label in schema.labels.items():
        if isinstance(label, ValueLabel):
            given, bad = _numbers(batch[label.value])
            known = _is_value(given, label)
            values = np.where(known, np.minimum(given, label.most), 0.0)
            mark(label.value, bad | (~known & ~np.isnan(given)))
        elif isinstance(label, DelayedLabel):
            events, bad = _times(batch[label.time], schema.time_format)
            delay_hours = (events - times) / np.timedelta64(1, "h")
            known = ~bad & ~(delay_hours < 0)  # an event before its impression is a misfit
            values = delay_hours <= label.within_hours
            mark(label.time, ~known)
            if label.waiting:
                hours[task] = waited_hours(delay_hours, np.full(len(times), label.within_hours), label)
        else:
            column = label if isinstance(label, str) else label.column
            given, bad = _numbers(batch[column])
            values = given == 1
            known = values | (given == 0)
            mark(column, bad | (~known & ~np.isnan(given)))
        labels[task] = np.where(known, values, 0).astype(np.float32)
        observed[task] = known
    return labels, observed, hours


def waited_hours(
    delay_hours: NDArray[np.float64], elapsed_hours: NDArray[np.float64], label: DelayedLabel
) -> NDArray[np.float64]:
    """Returns (rows, 2) the hours of a label that waits, as `Batch` has them.

    delay_hours: (rows,) until the event, NaN where there is none. elapsed_hours: (rows,) until now.
    """
    elapsed = np.clip(elapsed_hours, 0.0, label.within_hours)
    return np.stack([np.clip(np.fmin(delay_hours, elapsed), 0.0, None), elapsed], axis=1)


def _is_value(given: NDArray[np.float64], label: ValueLabel) -> NDArray[np.bool_]:
    """Returns (rows,) whether a number is one that the label can be; False where it is missing."""
    fits = given >= (1 if label.kind == "ordinal" else 0)
    if label.kind != "log-normal":
        fits &= given == np.floor(given)
    if label.kind == "ordinal":
        fits &= given <= label.most
    return np.asarray(fits)


def _dictionary(column: pa.Array, *, exact: bool = False) -> tuple[NDArray[np.int64], list[Any]]:
    """Returns (rows,) codes, -1 where missing, and the distinct values; text that cannot be decoded stays bytes, and
    a time is its text. exact: the words for true and false are left as they are.
    """
    encoded = column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
    codes = np.asarray(encoded.indices.fill_null(MISSING).to_numpy(zero_copy_only=False), dtype=np.int64)
    values = encoded.dictionary
    if _is_text(values.type):
        words = _NOTHING if exact else _WORDS
        return codes, [words.get(one, one) for one in _decoded(values)]
    if pa.types.is_temporal(values.type):
        return codes, _time_texts(values)
    return codes, [None if isinstance(one, float) and math.isnan(one) else one for one in values.to_pylist()]


def _time_texts(values: pa.Array) -> list[Any]:
    """Returns dates and times as text. Python's own types cannot hold all of them, and fail on the one that is not."""
    kind = values.type
    if pa.types.is_timestamp(kind):
        values = values.cast(pa.timestamp(kind.unit))
    elif not pa.types.is_date(kind):  # a time of the day and a duration are numbers
        values = values.cast(pa.int32() if pa.types.is_time32(kind) else pa.int64())
    texts = values.cast(pa.large_string()).to_pylist()
    return [one.rstrip("0").rstrip(".") if one is not None and "." in one else one for one in texts]


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())


def _decoded(values: pa.Array) -> list[Any]:
    raw = values.cast(pa.large_binary())
    try:
        return list(raw.cast(pa.large_string()).to_pylist())
    except pa.ArrowInvalid:  # some value is no UTF-8
        return [one if one is None or not _is_utf8(one) else one.decode() for one in raw.to_pylist()]


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _texts(column: pa.Array, *, exact: bool = False) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    """Returns (rows,) text, None where missing, and where it cannot be decoded. The number 5 is "5" in a text file and
    in Parquet, as 5 or as 5.0; true is "1". exact: text stays as it is, so that different texts stay different.
    """
    codes, values = _dictionary(column, exact=exact)
    texts, bad = _distinct_texts(values, exact=exact)
    return texts[codes], bad[codes]


def _distinct_texts(values: list[Any], *, exact: bool = False) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    """Returns the texts of ``values`` and at the end None, which is where the code of a missing value points."""
    made = [value if exact and isinstance(value, str) else _text(value) for value in values]
    texts = np.array([*made, None], dtype=object)
    return texts, np.array([*(isinstance(value, bytes) for value in values), False])


def _text(value: Any) -> str | None:
    match value:
        case None | bytes():
            return None
        case bool():
            return str(int(value))
        case float():
            return str(int(value)) if value.is_integer() else repr(value)
        case str() if _WHOLE.fullmatch(value):
            return "0" if value == "-0.0" else value[:-2]
    return str(value)


def _numbers(column: pa.Array) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Returns (rows,) floats, NaN where missing, and where a value is present but is no finite number."""
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        values = np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
        bad = np.isinf(values)
    else:
        codes, texts = _dictionary(column)
        parsed = np.array([*(_number(text) for text in texts), math.nan], dtype=np.float64)
        values = parsed[codes]
        bad = (_present(texts) & ~np.isfinite(parsed))[codes]
    return np.where(bad, np.nan, values), bad


def _number(value: Any) -> float:
    """Returns the number that a value is, alone: pandas reads a column's numbers as one type, which one row decides."""
    if value is None or (isinstance(value, str) and "_" in value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _time_parts(times: NDArray[np.datetime64], part: str) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """Returns (rows,) codes of the hour of the day or the weekday (0 is Monday), and the texts they stand for; the last
    of these is None, which is where the code of an unknown time, -1, points.
    """
    stamps = pd.DatetimeIndex(times)
    found = stamps.hour if part == "hour" else stamps.day_of_week
    texts = np.array([*map(str, range(24 if part == "hour" else 7)), None], dtype=object)
    return np.where(np.isnat(times), MISSING, found).astype(np.int64), texts


def _times(column: pa.Array, time_format: str | None) -> tuple[NDArray[np.datetime64], NDArray[np.bool_]]:
    """Returns (rows,) datetime64[us] in UTC, NaT where missing, and where a value is present but is no time."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        micros = column.cast(pa.timestamp("us"), safe=False)
        times = np.asarray(micros.to_numpy(zero_copy_only=False), dtype="datetime64[us]")
        return times, np.zeros(len(times), dtype=np.bool_)
    if time_format == EPOCH_SECONDS:
        return _times_of_seconds(*_numbers(column))
    codes, values = _dictionary(column)
    texts, _ = _distinct_texts(values)
    distinct = _parsed_times(texts, time_format)
    return distinct[codes], (_present(values) & np.isnat(distinct))[codes]


def _times_of_seconds(
    seconds: NDArray[np.float64], bad: NDArray[np.bool_]
) -> tuple[NDArray[np.datetime64], NDArray[np.bool_]]:
    """Returns the times so many seconds after 1970 began, rounded down to microseconds, and the misfits: ``bad`` ones
    and those before the year 1 or after 9999, which no calendar here can hold.
    """
    first, end = np.array(["0001-01-01", "9999-12-31"], dtype="datetime64[s]").astype(np.float64)
    known = (seconds >= first) & (seconds < end)
    kept = np.where(known, seconds, 0.0)
    whole = np.floor(kept)  # apart: the product of a large number of seconds and a million is no float
    micros = whole.astype(np.int64) * 1_000_000 + np.floor((kept - whole) * 1e6).astype(np.int64)
    times = np.where(known, micros.astype("datetime64[us]"), np.datetime64("NaT", "us"))
    return times, bad | (~known & ~np.isnan(seconds))


def _parsed_times(texts: NDArray[np.object_], time_format: str | None) -> NDArray[np.datetime64]:
    """Returns each text's time, rounded down to microseconds, as if it were alone.

    pandas reads a column in one unit: a single text with nanoseconds would make the years before 1678 and after 2262
    of all others unreadable.
    """
    if time_format is None or ".%f" in time_format:
        texts = np.array([None if one is None else _BELOW_MICROS.sub(r"\1", one) for one in texts], dtype=object)
    parsed = _by_pandas(texts, time_format)
    if parsed.dtype == np.dtype("datetime64[ns]"):  # a format with another sign before the fraction
        return np.array([_by_pandas(texts[[row]], time_format)[0] for row in range(len(texts))], dtype="datetime64[us]")
    return parsed.astype("datetime64[us]")


def _by_pandas(texts: NDArray[np.object_], time_format: str | None) -> NDArray[np.datetime64]:
    series = pd.Series(texts, dtype=object)
    return np.asarray(
        pd.to_datetime(series, format=time_format or "ISO8601", errors="coerce", utc=True).dt.tz_localize(None)
    )


def _present(values: list[Any]) -> NDArray[np.bool_]:
    return np.array([*(value is not None for value in values), False])
