"""What every converter reads from and returns: lines or tables of files that may be compressed, and rows in batches."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from privads.logs.reader import LogError

BATCH_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Rows to be written, and what their schema says.

    columns: the Parquet columns. batches: the rows, made as they are asked for. units: how many units they had, known
    once all rows were made. facts: the schema's keys but population, rows and public.
    """

    columns: pa.Schema
    batches: Iterator[pa.RecordBatch]
    facts: Mapping[str, Any]
    units: Callable[[], int] = lambda: 0


def one_file(folder: Path, pattern: str, *, but: str = "\0") -> Path:
    """Returns the only file in ``folder`` that matches ``pattern`` and whose name does not begin with ``but``."""
    if not folder.is_dir():
        raise LogError(f"{folder} is no folder; the source is the folder that holds {pattern} and what it is joined to")
    found = sorted(file for file in folder.glob(pattern) if not file.name.startswith(but))
    if len(found) != 1:
        raise LogError(f"{folder}: needs one file {pattern}, found {len(found)}")
    return found[0]


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yields each line that is not blank, with its number from 1."""
    try:
        with pa.input_stream(str(file)) as stream, io.TextIOWrapper(stream, encoding="utf-8") as opened:
            for number, line in enumerate(opened, start=1):
                if text := line.strip():
                    yield number, text
    except UnicodeDecodeError as error:
        raise LogError(f"{file}: is no text in UTF-8: {error}") from None
    except OSError as error:
        if error.filename is None and error.errno is None:  # of the library that decompresses
            raise LogError(f"{file}: cannot be read: {str(error).splitlines()[0][:200]}") from None
        raise


def table_batches(
    file: Path, types: Mapping[str, pa.DataType], *, header: bool = True, delimiter: str = ","
) -> Iterator[pa.RecordBatch]:
    """Yields the columns ``types`` of a delimited file. Without a header line they are all of its columns, in order."""
    names = None if header else list(types)
    try:
        with pyarrow.csv.open_csv(
            str(file),
            pyarrow.csv.ReadOptions(column_names=names),
            pyarrow.csv.ParseOptions(delimiter=delimiter),
            pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(types), strings_can_be_null=True),
        ) as reader:
            yield from reader
    except (pa.ArrowException, KeyError):
        # The library's own words would quote the line, and with it a user.
        raise LogError(f"{file}: not a {delimiter!r}-delimited file of the columns {', '.join(types)}") from None


def batches_of_rows(rows: Iterator[Sequence[Any]], columns: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yields rows of Python values in record batches."""
    held: list[Sequence[Any]] = []
    for row in rows:
        held.append(row)
        if len(held) == BATCH_ROWS:
            yield _batch(held, columns)
            held = []
    if held:
        yield _batch(held, columns)


def _batch(rows: list[Sequence[Any]], columns: pa.Schema) -> pa.RecordBatch:
    by_column = zip(*rows, strict=True)
    return pa.record_batch(
        [pa.array(values, field.type) for values, field in zip(by_column, columns, strict=True)], columns
    )


def buckets_for(values: int) -> int:
    """Returns a power of two that is at least twice the number of ``values``, from 16 to 16384."""
    return int(min(max(1 << (2 * values).bit_length(), 16), 1 << 14))
