"""libfm and libffm files: `label index:value ...` or `label field:index:value ...`, one column for each field."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from privads.logs.convert.source import Converted, batches_of_rows, buckets_for, lines, one_file
from privads.logs.reader import LogError

PERSONAL = ("IP",)
"""Fields that name who is behind a row, which are dropped."""

LABELS = {"1": 1, "+1": 1, "1.0": 1, "0": 0, "-1": 0, "0.0": 0, "-1.0": 0}
UNKNOWN_BUCKETS = 4096


def libfm(source: Path) -> Converted:
    """Returns the rows of a libfm or libffm file whose values are all 1: each field's index is a category.

    source: the file; its fields are `field_0`, `field_1`, ..., by the field's number or, in lines without one, by
    place. Or a folder with train*.txt and featindex*.txt (lines `field:value TAB index`, as make-ipinyou-data writes
    them), by which an index has the field's name. A row is its own unit.
    """
    named: dict[str, str] = {}
    file = source
    if source.is_dir():
        file = one_file(source, "train*.txt*")
        named = _fields_of_indices(one_file(source, "featindex*.txt*"))
    kept = Counter(field for field in named.values() if field not in PERSONAL)
    buckets = {field: buckets_for(values) for field, values in kept.items()}
    if not named:
        buckets = {f"field_{number}": UNKNOWN_BUCKETS for number in _field_numbers(file)}
    columns = pa.schema([("label", pa.int8()), *((field, pa.int64()) for field in buckets)])
    facts = {
        "dataset": source.resolve().name.partition(".")[0],
        "labels": {"click": "label"},
        "categorical": {field: {"buckets": size} for field, size in buckets.items()},
    }
    return Converted(columns=columns, batches=batches_of_rows(_rows(file, list(buckets), named), columns), facts=facts)


def _fields_of_indices(file: Path) -> dict[str, str]:
    named = {}
    for number, line in lines(file):
        name, tab, index = line.rpartition("\t")
        field, colon, _ = name.partition(":")
        if not (tab and colon and index.isdecimal()):
            raise LogError(f"{file}, line {number}: expected FIELD:VALUE, a tab and an index")
        named[index] = field
    return named


def _field_numbers(file: Path) -> list[int]:
    found: set[int] = set()
    for number, line in lines(file):
        found.update(field for field, _ in _cells(file, number, line.split()[1:]))
    if not found:
        raise LogError(f"{file}: holds no features")
    return sorted(found)


def _rows(file: Path, fields: list[str], named: dict[str, str]) -> Iterator[list[int | None]]:
    position = {field: place for place, field in enumerate(fields, start=1)}
    for number, line in lines(file):
        label, *cells = line.split()
        if label not in LABELS:
            raise LogError(f"{file}, line {number}: the label must be 1, 0 or -1")
        row: list[int | None] = [LABELS[label], *([None] * len(fields))]
        for place, index in _cells(file, number, cells):
            field = named.get(index) if named else f"field_{place}"
            if field in PERSONAL:
                continue
            if field is None:
                raise LogError(f"{file}, line {number}: index {index} is not in the index of features")
            if row[position[field]] is not None:
                raise LogError(f"{file}, line {number}: two values of field {field}, which is one value a row here")
            row[position[field]] = int(index)
        yield row


def _cells(file: Path, number: int, cells: list[str]) -> Iterator[tuple[int, str]]:
    """Yields each cell's field, its place where the line names none, and index."""
    for place, cell in enumerate(cells):
        field, index, value = cell.split(":") if cell.count(":") == 2 else (str(place), *cell.partition(":")[::2])
        if not (field.isdecimal() and index.isdecimal()):
            raise LogError(f"{file}, line {number}: expected INDEX:VALUE or FIELD:INDEX:VALUE")
        if value not in ("1", "1.0"):
            raise LogError(f"{file}, line {number}: only values of 1 are categories, and this one is not")
        yield int(field), index
