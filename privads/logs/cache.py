"""A log's encoded rows on disk, grouped by unit: any number of rows is written in bounded memory and gathered at once.

The file holds one record of fixed width for each row, so that a row is one place in the file, and a unit's rows lie
side by side. Behind the records stands who owns each row. Nothing of it is in memory but what was just gathered.

The rows are private. The file has no name: nobody else can open it, and the system frees it when its last reader ends,
in whatever way. Only a kept file has a name; it is written whole before it gets one, with mode 0600, in a folder of
mode 0700.
"""

import errno
import json
import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from privads.logs.encode import Part, unit_codes
from privads.logs.reader import LogError
from privads.logs.schema import Schema

Records = NDArray[np.void]
"""(rows,) records of `record_type`."""

_MEMORY_BYTES = 1 << 26
"""Encoded rows held in memory before they are spread over `_PARTS` parts of the disk, each of whole units."""

_PARTS = 256
_KEY_BYTES = 100
_BLOCK = 1 << 20
_HEADER_BYTES = 4096
_MAGIC = b"privads rows 1\n"


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedRows:
    """Encoded rows in a mapped file, read only; the arrays are those of `Part`. units: (rows,) owners, rising."""

    dense: NDArray[np.float32]
    ids: NDArray[np.int32]
    labels: Mapping[str, NDArray[np.float32]]
    observed: Mapping[str, NDArray[np.bool_]]
    hours: Mapping[str, NDArray[np.float32]]
    reference: Mapping[str, NDArray[np.float64]]
    units: NDArray[np.int64]


def cached(
    parts: Callable[[], Iterable[Part]], schema: Schema, *, folder: Path | None, name: str | None = None
) -> CachedRows:
    """Returns the encoded rows of ``parts``, grouped by unit, from a file in ``folder`` (None: where the system keeps
    temporary files).

    Units are numbered from 0, and the rows of one keep their order. name: the file stays in ``folder`` under it, and
    one that is there whole already is read in place of ``parts``; without a name it is gone with its last reader.
    """
    layout = record_type(schema)
    path = None if folder is None or name is None else folder / name
    if path is not None:
        check_kept(path)
        found = _kept(path, layout, schema)
        if found is not None:
            return found
    place = Path(tempfile.gettempdir()) if folder is None else folder
    with _one_line(place):
        file = _nameless(place)
    with file:
        rows = _write(file, _grouped(parts(), schema, layout, place), layout, place)
        if path is not None:
            with _one_line(place):
                _seal(file, rows, layout)
                _publish(file, path)
        return _mapped(file, rows, layout, schema)


def check_folder(folder: Path, *, keep: bool) -> None:
    """Refuse a folder that the rows cannot be written to; one for kept rows is made, for its owner alone."""
    with _one_line(folder):
        if keep:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _nameless(folder).close()
    if keep and folder.stat().st_mode & 0o077:
        raise LogError(f"{folder} is to keep private rows and others can open it: chmod 700 {folder}")


def check_kept(path: Path) -> None:
    """Refuse to write over a file that privads did not write. Reads no row."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) == _MAGIC:
                return
    if path.exists():
        raise LogError(f"{path} is in the way of the kept rows and holds something else: move it")


def record_type(schema: Schema) -> np.dtype[np.void]:
    """Returns the layout of one row: every number a model or a report reads of it, in as many bytes for each row."""
    tasks, fields = len(schema.tasks), len(schema.categorical)
    return np.dtype(
        [
            ("reference", np.float64, (len(schema.reference),)),
            ("dense", np.float32, (len(schema.numeric),)),
            ("ids", np.int32, (fields,)),
            ("labels", np.float32, (tasks,)),
            ("hours", np.float32, (len(schema.waiting), 2)),
            ("observed", np.bool_, (tasks,)),
        ],
        align=True,
    )


def _packed(part: Part, layout: np.dtype[np.void]) -> Records:
    records = np.zeros(len(part.fits), dtype=layout)
    records["dense"], records["ids"] = part.dense, part.ids
    for name in ("labels", "observed", "reference", "hours"):
        for position, column in enumerate(getattr(part, name).values()):
            records[name][:, position] = column
    return records


def _mapped(file: BinaryIO, rows: int, layout: np.dtype[np.void], schema: Schema) -> CachedRows:
    file.flush()
    view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    records = np.frombuffer(view, layout, rows, _HEADER_BYTES)
    units = np.frombuffer(view, np.int64, rows, _units_start(rows, layout))

    def columns(name: str, names: Iterable[str]) -> dict[str, Any]:
        return {task: records[name][:, position] for position, task in enumerate(names)}

    return CachedRows(
        dense=records["dense"],
        ids=records["ids"],
        labels=columns("labels", schema.tasks),
        observed=columns("observed", schema.tasks),
        hours=columns("hours", schema.waiting),
        reference=columns("reference", schema.reference),
        units=units,
    )


# Writing


def _grouped(
    parts: Iterable[Part], schema: Schema, layout: np.dtype[np.void], folder: Path
) -> Iterator[tuple[Records, NDArray[np.int64]]]:
    """Yields (records, how many of them each unit has), whole units at a time."""
    if not schema.unit:
        for part in parts:
            yield _packed(part, layout), np.ones(len(part.fits), dtype=np.int64)
        return
    for records, keys in _whole_units(parts, schema, layout, folder):
        codes = unit_codes(keys)
        yield _taken(records, np.argsort(codes, kind="stable")), np.bincount(codes).astype(np.int64)


def unit_keys(parts: Iterable[Part], schema: Schema, *, folder: Path | None) -> Iterator[list[NDArray[np.object_]]]:
    """Yields, some units at a time and in the order in which `cached` numbers them, each unit's key: a text or None for
    each unit column.

    Reads the rows once more, and packs them all, because where they are spilled to the disk decides the order.
    """
    place = Path(tempfile.gettempdir()) if folder is None else folder
    for _, keys in _whole_units(parts, schema, record_type(schema), place):
        codes = unit_codes(keys)
        first = np.unique(codes, return_index=True)[1]
        yield [key[first] for key in keys]


def _whole_units(
    parts: Iterable[Part], schema: Schema, layout: np.dtype[np.void], folder: Path
) -> Iterator[tuple[Records, list[NDArray[np.object_]]]]:
    """Yields (records, per unit column their keys), all rows of a unit in one of the yields."""
    held: list[tuple[Records, list[NDArray[np.object_]]]] = []
    size, spill = 0, None
    for part in parts:
        held.append((_packed(part, layout), part.units))
        size += len(part.fits) * (layout.itemsize + _KEY_BYTES * len(schema.unit))
        if size > _MEMORY_BYTES:
            spill = _Spill(folder, layout, len(schema.unit)) if spill is None else spill
            spill.add(*_joined(held))
            held, size = [], 0
    if spill is None:
        yield from [_joined(held)] if held else []
    else:
        if held:
            spill.add(*_joined(held))
        yield from spill.parts()


def _joined(
    held: Sequence[tuple[Records, list[NDArray[np.object_]]]],
) -> tuple[Records, list[NDArray[np.object_]]]:
    columns = zip(*(keys for _, keys in held), strict=True)
    # as words: numpy leaves what lies between a record's fields to whatever the memory held, and that reaches the disk
    words = np.concatenate([_words(records) for records, _ in held])
    return words.view(held[0][0].dtype).reshape(-1), [np.concatenate(column) for column in columns]


def _taken(records: Records, chosen: NDArray[np.int64]) -> Records:
    return np.take(_words(records), chosen, axis=0).view(records.dtype).reshape(-1)


def _words(records: Records) -> NDArray[np.int32]:
    """Returns (rows, words) the same memory as numbers, which numpy gathers far faster than records."""
    return records.view(np.int32).reshape(len(records), records.itemsize // 4)


class _Spill:
    """Rows spread over parts of a nameless file by a hash of their unit's key, so that a part holds whole units.

    The hash decides the part only: inside a part units are told apart by their keys, exactly.
    """

    def __init__(self, folder: Path, layout: np.dtype[np.void], columns: int) -> None:
        self._layout, self._folder = layout, folder
        keys = [(f"key{number}", pa.large_string()) for number in range(columns)]
        self._schema = pa.schema([*keys, ("record", pa.binary(layout.itemsize))])
        self._chunks: list[list[tuple[int, int]]] = [[] for _ in range(_PARTS)]
        with _one_line(folder):
            self._file = _nameless(folder)

    def add(self, records: Records, keys: list[NDArray[np.object_]]) -> None:
        """Append rows to their parts."""
        which = _part_of(keys)
        order = np.argsort(which, kind="stable")
        bounds = np.searchsorted(which[order], np.arange(_PARTS + 1))
        for part in range(_PARTS):
            chosen = order[bounds[part] : bounds[part + 1]]
            if len(chosen):
                self._append(part, _taken(records, chosen), [key[chosen] for key in keys])

    def parts(self) -> Iterator[tuple[Records, list[NDArray[np.object_]]]]:
        """Yields each part's rows, in the order in which they were added, and frees the disk at the end."""
        with self._file as file:
            for chunks in self._chunks:
                batches = []
                for start, length in chunks:
                    file.seek(start)
                    batches.append(pa.ipc.read_record_batch(pa.py_buffer(file.read(length)), self._schema))
                if batches:
                    table = pa.Table.from_batches(batches)
                    raw = [chunk.buffers()[1] for chunk in table["record"].chunks]
                    records = np.concatenate([np.frombuffer(one, self._layout) for one in raw])
                    yield records, [column.to_numpy() for column in table.columns[:-1]]

    def _append(self, part: int, records: Records, keys: list[NDArray[np.object_]]) -> None:
        raw = pa.Array.from_buffers(pa.binary(self._layout.itemsize), len(records), [None, pa.py_buffer(records)])
        columns = [*(pa.array(key, pa.large_string()) for key in keys), raw]
        data = pa.record_batch(columns, schema=self._schema).serialize()
        with _one_line(self._folder):
            self._chunks[part].append((self._file.tell(), len(data)))
            self._file.write(data)


def _part_of(keys: list[NDArray[np.object_]]) -> NDArray[np.uint8]:
    total = np.zeros(len(keys[0]), dtype=np.uint64)
    for key in keys:
        total = total * np.uint64(0x9E3779B97F4A7C15) + pd.util.hash_array(key, categorize=False)
    return np.asarray(pd.util.hash_array(total) % np.uint64(_PARTS), dtype=np.uint8)


def _write(
    file: BinaryIO,
    groups: Iterable[tuple[Records, NDArray[np.int64]]],
    layout: np.dtype[np.void],
    folder: Path,
) -> int:
    """Write the records and then their units; returns how many rows there are."""
    counts, rows = [], 0
    with _one_line(folder):
        file.write(bytes(_HEADER_BYTES))
    for records, many in groups:
        with _one_line(folder):
            file.write(records.view(np.uint8).data)
        counts.append(many)
        rows += len(records)
    with _one_line(folder):
        file.write(bytes(_units_start(rows, layout) - file.tell()))
        first = 0
        for many in counts:
            for start in range(0, len(many), _BLOCK):
                some = many[start : start + _BLOCK]
                file.write(np.repeat(np.arange(first, first + len(some)), some).data)
                first += len(some)
        file.flush()
    return rows


def _units_start(rows: int, layout: np.dtype[np.void]) -> int:
    return -(-(_HEADER_BYTES + rows * layout.itemsize) // 8) * 8


# Files without a name, and kept ones


def _nameless(folder: Path) -> BinaryIO:
    """Returns a new file that only its holder can open, and that is gone when its holder ends."""
    if hasattr(os, "O_TMPFILE"):
        try:
            return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600), "w+b")
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT) or not folder.is_dir():
                raise
    handle, name = tempfile.mkstemp(dir=folder)
    os.unlink(name)  # noqa: PTH108 - a name that was never a Path
    return os.fdopen(handle, "w+b")


def _seal(file: BinaryIO, rows: int, layout: np.dtype[np.void]) -> None:
    """Write at the head of a file how many rows it has, how one lies in it, and what its bytes sum to."""
    file.flush()
    head = _MAGIC + json.dumps({"rows": rows, "layout": str(layout), "checksum": _checksum(file)}).encode()
    file.seek(0)
    file.write(head.ljust(_HEADER_BYTES))
    file.flush()
    os.fsync(file.fileno())


def _publish(file: BinaryIO, path: Path) -> None:
    """Give the whole file its name, in place of one that was damaged."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    os.close(handle)
    draft = Path(name)
    try:
        draft.unlink()
        try:
            _name_it(file, draft)
        except OSError:  # a system that cannot name it: then its bytes are copied
            with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as copy:
                file.seek(0)
                shutil.copyfileobj(file, copy, _BLOCK)
                copy.flush()
                os.fsync(copy.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _name_it(file: BinaryIO, path: Path) -> None:
    opened = os.open("/proc/self/fd", os.O_RDONLY)
    try:  # without a folder's number os.link does not follow the symbolic link, and cannot name the file
        os.link(str(file.fileno()), path, src_dir_fd=opened, follow_symlinks=True)
    finally:
        os.close(opened)


def _kept(path: Path, layout: np.dtype[np.void], schema: Schema) -> CachedRows | None:
    """Returns the rows of a kept file that is as it was written; None where it is damaged, not there, or of another
    layout, which an earlier version had for the same schema.
    """
    try:
        with path.open("rb") as file:
            head = json.loads(file.read(_HEADER_BYTES).removeprefix(_MAGIC))
            rows = int(head["rows"])
            size = _units_start(rows, layout) + 8 * rows
            if head["layout"] != str(layout):
                return None
            if os.fstat(file.fileno()).st_size != size or _checksum(file) != head["checksum"]:
                return None
            return _mapped(file, rows, layout, schema)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return None
    except OSError as error:
        raise LogError(f"cannot read the kept rows {path} ({error.strerror}): delete them") from None


def _checksum(file: BinaryIO) -> int:
    total = 0
    file.seek(_HEADER_BYTES)
    while block := file.read(_BLOCK):
        total = zlib.crc32(block, total)
    return total


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """Turns what the disk says into one line, which names no row and no size."""
    try:
        yield
    except OSError as error:
        raise LogError(
            f"cannot write the encoded rows to {folder} ({error.strerror}): free space there, or name another folder"
        ) from None
