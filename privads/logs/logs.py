"""`Logs`: paths and public facts. Making and splitting one opens nothing; its rows are read when first asked for."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import pyarrow
from numpy.typing import NDArray

from privads.batch import Batch
from privads.logs.cache import CachedRows, cached, check_folder, check_kept, unit_keys
from privads.logs.database import check_database
from privads.logs.encode import Part, as_batch, encode, read_columns, uniform_of_key, waited_hours
from privads.logs.identifiers import hashed_keys
from privads.logs.labels import DelayedLabel
from privads.logs.past import looking_back
from privads.logs.raw import Raw, batch_of, raw_rows
from privads.logs.reader import LogError, check_columns, find_files, read_batches, telling_no_row
from privads.logs.schema import Schema

if TYPE_CHECKING:
    from privads.features.pipeline import Features


@dataclass(frozen=True, kw_only=True)
class Split:
    """One side of a split that each row takes by itself: by a stated time, or by a salted hash of its unit's key."""

    side: Literal["train", "test"]
    after: datetime | None = None
    test_fraction: float | None = None
    salt: str = ""

    def __str__(self) -> str:
        if self.after is not None:
            return f"rows {'before' if self.side == 'train' else 'at or after'} {self.after.isoformat()}"
        share = self.test_fraction if self.test_fraction is not None else 0.0
        share = share if self.side == "test" else 1 - share
        return f"units whose salted hash (salt {self.salt!r}) falls in the {self.side} share of {share:.4g}"


class Logs:
    """An ads log on disk with its public facts.

    path: a Parquet, CSV or TSV file (text may be compressed), a folder of them, or a pattern.
    schema: a TOML file, a `Schema`, or the name of a format that privads knows, such as "avazu".
    Nothing is opened before `check` (names only) or before `units` and `take` (rows). Then all rows are encoded once,
    into a file in the folder ``cache`` (by default where the system keeps temporary files), and from there on read by
    number. They are numbered by unit: all rows of unit 0, in the order of the files, then those of unit 1, and so on.
    features: fitted transforms (`fit_features`); the model then reads their outputs, and ``schema`` is theirs, while
    ``source`` stays what the files hold.
    keep_cache: the file stays in ``cache``, for this log, schema and side to be read again; else it has no name and
    is gone with its readers.
    """

    def __init__(
        self,
        path: str | Path,
        schema: "str | Path | Schema",
        *,
        split: Split | None = None,
        cache: str | Path | None = None,
        keep_cache: bool = False,
        features: "Features | None" = None,
    ) -> None:
        if keep_cache and cache is None:
            raise ValueError("keep_cache needs the folder to keep the rows in: pass cache=FOLDER")
        self.path = str(path)
        self.source = Schema.load(schema)
        if features is not None and features.source != self.source:
            raise ValueError("the features were fitted to a log of another schema: fit them to this one")
        self.features = features
        self.schema = self.source if features is None else features.schema
        self.side = split
        self.cache = None if cache is None else Path(cache)
        self.keep_cache = keep_cache

    def __repr__(self) -> str:
        return f"Logs({self.path!r}, dataset={self.schema.dataset!r}, {self.split_text})"

    @property
    def split_text(self) -> str:
        """Which rows of the files these are, in words; made of public constants only."""
        return "all rows" if self.side is None else str(self.side)

    @property
    def split_by_all(self) -> bool:
        """Whether all that a row holds, its labels too, decides on which side it is."""
        return self.side is not None and self.side.after is None and not self.source.unit

    def check_side(self) -> None:
        """Refuse a split in which labels take part, for whoever promises that only labels are protected."""
        if self.split_by_all:
            raise ValueError("rows without unit columns are split by all they hold, labels too: split them by time")

    def split(
        self,
        *,
        after: str | datetime | None = None,
        test_fraction: float | None = None,
        salt: str = "privads",
    ) -> tuple["Logs", "Logs"]:
        """Returns (train, test), split at the time ``after`` or by a salted hash of the unit's key. Opens nothing.

        after: rows at or after it are for testing. A delayed label whose window had not closed before is unobserved
        in training, as it would have been on the day; one that waits is what it was then, with how long it had waited.
        test_fraction: in (0, 1).
        """
        if self.side is not None:
            raise ValueError(f"these are already one side of a split ({self.side}): split the whole log")
        if (after is None) == (test_fraction is None):
            raise ValueError("split takes either after=TIME or test_fraction=SHARE")
        if after is not None:
            if self.schema.time is None:
                raise ValueError("a split by time needs the time column: add time = COLUMN to the schema")
            sides = [Split(side=side, after=_utc(after)) for side in ("train", "test")]
        else:
            if test_fraction is None or not 0 < test_fraction < 1:
                raise ValueError(f"test_fraction must be in (0, 1), got {test_fraction}")
            sides = [Split(side=side, test_fraction=test_fraction, salt=salt) for side in ("train", "test")]
        train, test = (
            Logs(
                self.path,
                self.source,
                split=side,
                cache=self.cache,
                keep_cache=self.keep_cache,
                features=self.features,
            )
            for side in sides
        )
        return train, test

    def with_features(self, features: "Features") -> "Logs":
        """Returns the same rows as fitted ``features`` make a model read them; its schema is theirs. Opens nothing."""
        return Logs(
            self.path, self.source, split=self.side, cache=self.cache, keep_cache=self.keep_cache, features=features
        )

    def check(self) -> None:
        """Refuse missing files and columns, and a folder that the cache cannot be written to. Reads no row."""
        for file in find_files(self.path):
            check_columns(file, self.source, self.source.columns)
        if self.features is not None and self.features.pasts:
            check_database()
        if self.cache is not None:
            check_folder(self.cache, keep=self.keep_cache)
            if self._kept_name is not None:
                check_kept(self.cache / self._kept_name)

    @property
    def units(self) -> NDArray[np.int64]:
        """(rows,) who owns each row, as numbers from 0, rising. Reads the rows."""
        return self._rows.units

    def identifiers(self, key: bytes) -> NDArray[np.uint64]:
        """Returns (units, 2) a keyed hash of each unit's key: equal for equal keys in any log, and else different.

        BLAKE2b of 128 bits; who does not know ``key``, 16 to 64 bytes, cannot tell a key from it. Reads the rows, once
        more than a first use of them does.
        """
        if not 16 <= len(key) <= 64:
            raise ValueError(f"key must have 16 to 64 bytes, got {len(key)}")
        if not self.source.unit:
            raise ValueError("identifiers need unit columns: add unit = [COLUMN] to the schema")
        self.check()
        with telling_no_row(self._unreadable, public=self.schema.public):
            found = [hashed_keys(keys, key=key) for keys in unit_keys(self._parts(), self.schema, folder=self.cache)]
        return np.concatenate([*found, np.zeros((0, 2), dtype=np.uint64)])

    def take(self, row_numbers: NDArray[np.int64]) -> Batch:
        """Returns these rows as a `Batch`. Reads the rows."""
        return as_batch(self._rows, row_numbers)

    def reference(self, task: str) -> NDArray[np.float64] | None:
        """Returns (rows,) another predictor's probability of ``task``, where the schema names one. Reads the rows."""
        return self._rows.reference.get(task)

    @cached_property
    def _rows(self) -> CachedRows:
        self.check()
        with telling_no_row(self._unreadable, public=self.schema.public):
            return cached(self._parts, self.schema, folder=self.cache, name=self._kept_name)

    def raw(self) -> Iterator[Raw]:
        """Yields the rows with their columns as the files have them, in their order. Reads the rows."""
        self.check()
        with telling_no_row(self._unreadable, public=self.schema.public):
            yield from (raw_rows(part, self.source) for part in self._read(raw=True))

    def judged(self) -> Iterator[tuple[Raw, Batch]]:
        """Yields the rows as the files have them, and as a model reads them, in their order. Reads the rows."""
        for raw in self.raw():
            if self.features is None:
                dense, ids = read_columns(raw.numbers, raw.texts, self.source, rows=raw.rows)
            else:
                dense, ids = self.features.transform(raw)
            yield raw, batch_of(raw, dense, ids)

    def _parts(self) -> Iterator[Part]:
        if self.features is None:
            return self._read(raw=False)
        return map(self.features.encoded, self._read(raw=True))

    def _read(self, *, raw: bool) -> Iterator[Part]:
        """Yields the rows of the files that are on this side."""
        schema, side = self.source, self.side
        pasts = self.features.pasts if raw and self.features is not None else ()
        both_sides = (part for _, part in self._encoded(raw=True))
        with looking_back(both_sides, pasts, unit_columns=len(schema.unit)) as look_back:
            for batch, part in self._encoded(raw=raw):
                chosen = part.fits if side is None else part.fits & self._on_side(part, batch)
                part = look_back(part)
                if side is not None and side.side == "train" and side.after is not None:
                    part = _as_known_at(part, schema, side.after)
                yield _select(part, chosen)

    def _encoded(self, *, raw: bool) -> Iterator[tuple[pyarrow.RecordBatch, Part]]:
        """Yields the rows of the files, on either side."""
        for file in find_files(self.path):
            for batch in read_batches(file, self.source, self.source.columns):
                yield batch, encode(batch, self.source, raw=raw)

    @property
    def _unreadable(self) -> str:
        return f"the rows of {self.path} cannot be read as the schema says"

    @property
    def _kept_name(self) -> str | None:
        """The name of the kept rows: of these files as they are now, this schema, this side and this version."""
        if not self.keep_cache:
            return None
        files = [
            (str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in find_files(self.path)
        ]
        fitted = None if self.features is None else self.features.sha256
        made_of = repr((version("privads"), self.source.sha256, fitted, self.side, files))
        return f"{hashlib.sha256(made_of.encode()).hexdigest()[:32]}.rows"

    def _on_side(self, part: Part, batch: object) -> NDArray[np.bool_]:
        side = self.side
        if side is None:
            raise LogError("these rows are not split")
        if side.after is not None:
            testing = part.times >= np.datetime64(side.after, "us")
        else:
            testing = uniform_of_key(part, batch, self.source, salt=side.salt) < (side.test_fraction or 0.0)
        return np.asarray(testing if side.side == "test" else ~testing)


def _utc(after: str | datetime) -> datetime:
    if not isinstance(after, str | datetime):
        raise ValueError(f"after must be a time, got {after!r}")
    try:
        stamp = pd.Timestamp(after)
    except ValueError:
        raise ValueError(f"after must be a time such as 2026-11-15T00:00:00, got {after!r}") from None
    if pd.isna(stamp):
        raise ValueError(f"after must be a time, got {after!r}")
    return (stamp.tz_convert("UTC").tz_localize(None) if stamp.tzinfo else stamp).to_pydatetime()


def _select(part: Part, chosen: NDArray[np.bool_]) -> Part:
    return Part(
        dense=part.dense[chosen],
        ids=part.ids[chosen],
        labels={task: label[chosen] for task, label in part.labels.items()},
        observed={task: known[chosen] for task, known in part.observed.items()},
        reference={task: scores[chosen] for task, scores in part.reference.items()},
        units=[unit[chosen] for unit in part.units],
        times=part.times[chosen],
        fits=part.fits[chosen],
        hours={task: waited[chosen] for task, waited in part.hours.items()},
        numbers={name: values[chosen] for name, values in part.numbers.items()},
        texts={name: (codes[chosen], values) for name, (codes, values) in part.texts.items()},
        pasts={past: found[chosen] for past, found in part.pasts.items()},
    )


def _as_known_at(part: Part, schema: Schema, moment: datetime) -> Part:
    """Returns the rows with their delayed labels as they were at ``moment``: unobserved while the window was open, or
    where they wait, 0 until the event had come.
    """
    labels, observed, hours = dict(part.labels), dict(part.observed), dict(part.hours)
    now = np.datetime64(moment, "us")
    for task, label in schema.labels.items():
        if not isinstance(label, DelayedLabel):
            continue
        if label.waiting:
            elapsed = (now - part.times) / np.timedelta64(1, "h")
            delay = np.where(part.labels[task] == 1, part.hours[task][:, 0], np.nan)
            seen = np.where(delay < elapsed, delay, np.nan)  # an event at the moment itself is none yet
            labels[task] = (~np.isnan(seen)).astype(np.float32)
            hours[task] = waited_hours(seen, elapsed, label)
        else:
            closes = part.times + np.timedelta64(round(label.within_hours * 3.6e9), "us")
            observed[task] = observed[task] & (closes < now)  # an event at the moment itself is of the other side
    return replace(part, labels=labels, observed=observed, hours=hours)
