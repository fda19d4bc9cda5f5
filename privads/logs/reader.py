"""Files into record batches: Parquet, and delimited text (plain or compressed), by name only until asked for rows."""

import glob
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet

from privads.config import nearest_name
from privads.logs.schema import Schema

TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".zst", ".lz4")
MISSING_TEXTS = ["", "NA", "NaN", "nan", "null", "NULL", "None"]
_BLOCK_BYTES = 1 << 24


class LogError(ValueError):
    """A log that cannot be read as its schema says; the message is one line with the remedy."""


def find_files(path: str | Path) -> tuple[Path, ...]:
    """Returns the files that a path, folder or glob pattern stands for, sorted; raises `LogError` if there are none."""
    text = str(path)
    if Path(text).is_dir():
        found = [entry for entry in Path(text).iterdir() if entry.is_file() and not entry.name.startswith((".", "_"))]
    else:
        found = [Path(name) for name in glob.glob(text, recursive=True)]  # noqa: PTH207 - absolute patterns too
    if not found:
        raise LogError(f"no such file: {text} (the working directory is {Path.cwd()})")
    return tuple(sorted(found))


def check_columns(file: Path, schema: Schema, needed: tuple[str, ...]) -> None:
    """Refuse a file that lacks one of the ``needed`` columns. Reads names only: a Parquet footer or a header line."""
    names = _column_names(file, schema)
    for column in needed:
        if column not in names:
            raise LogError(f"{file}: no column {column!r}{nearest_name(column, names)}; the schema names it")


def read_batches(file: Path, schema: Schema, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """Yields the file's rows with these columns. Columns of text files come as undecoded bytes, None where missing."""
    if not _is_text(file):
        dataset = pyarrow.dataset.dataset(str(file), format="parquet")
        yield from dataset.to_batches(columns=list(columns))
        return
    convert = pyarrow.csv.ConvertOptions(
        column_types={name: pa.binary() for name in columns},
        include_columns=list(columns),
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
        null_values=MISSING_TEXTS,
        check_utf8=False,
    )
    # A line with too few or too many cells belongs to one person: it is left out, and decides nothing visible.
    parse = pyarrow.csv.ParseOptions(
        delimiter=schema.text.delimiter,
        invalid_row_handler=lambda row: "error" if schema.public else "skip",
    )
    read = pyarrow.csv.ReadOptions(column_names=list(schema.text.columns) or None, block_size=_BLOCK_BYTES)
    try:
        with pyarrow.csv.open_csv(str(file), read_options=read, parse_options=parse, convert_options=convert) as reader:
            yield from reader
    except pa.ArrowInvalid as error:
        detail = f": {str(error).splitlines()[0]}" if schema.public else ""
        raise LogError(f"{file}: not a well-formed {schema.text.delimiter!r}-delimited file{detail}") from None


def _column_names(file: Path, schema: Schema) -> list[str]:
    try:
        if not _is_text(file):
            return list(pyarrow.parquet.read_schema(str(file)).names)
        if schema.text.columns:
            return list(schema.text.columns)
        with pa.input_stream(str(file)) as stream:
            line = _first_line(stream)
        return [name.strip().strip('"') for name in line.lstrip("\ufeff").split(schema.text.delimiter)]
    except (pa.ArrowInvalid, OSError) as error:
        raise LogError(
            f"{file}: cannot be opened as {'text' if _is_text(file) else 'Parquet'}: {_short(error)}"
        ) from None


def _first_line(stream: pa.NativeFile) -> str:
    head = b""
    while b"\n" not in head and len(head) < _BLOCK_BYTES:
        part = stream.read(4096)
        if not part:
            break
        head += part
    return head.split(b"\n", 1)[0].decode("utf-8", "replace").rstrip("\r")


def _is_text(file: Path) -> bool:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in TEXT_SUFFIXES


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
