"""Files into record batches: Parquet, and delimited text (plain or compressed), by name only until asked for rows.

In text a line is a row, whatever it holds, and whether it is one depends on no other line. A quote that a line opens
and does not close would swallow the lines of other people, and a carriage return inside a line would make two rows of
it, so such a line is left out, as one that is too long or has too few or too many cells is.
"""

import csv
import glob
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from privads.config import nearest_name
from privads.logs.schema import Schema

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".data")
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".zst", ".lz4")
MISSING_TEXTS = ["", "NA", "NaN", "nan", "null", "NULL", "None"]
_BATCH_ROWS = 1 << 16
_BLOCK_BYTES = 1 << 24
_LINE_BYTES = 1 << 20
"""A longer line is left out."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"(?<!\r)\r++$", re.MULTILINE)
_TWO_LINES_IN_ONE = re.compile(rb"^[^\r\n]*+\r.*\n?", re.MULTILINE)


class LogError(ValueError):
    """A log that cannot be read as its schema says; the message is one line with the remedy."""


def find_files(path: str | Path) -> tuple[Path, ...]:
    """Returns the files that a path, folder or glob pattern stands for, sorted; raises `LogError` if there are none."""
    text = str(path)
    if Path(text).is_file():  # before the pattern: a file's name may hold brackets
        found = [Path(text)]
    elif Path(text).is_dir():
        found = [entry for entry in Path(text).iterdir() if entry.is_file() and not entry.name.startswith((".", "_"))]
    else:
        names = glob.glob(text, recursive=True)  # noqa: PTH207 - absolute patterns too
        found = [Path(name) for name in names if Path(name).is_file()]
    if not found:
        raise LogError(f"no such file: {text} (the working directory is {Path.cwd()})")
    return tuple(sorted(found))


def check_columns(file: Path, schema: Schema, needed: tuple[str, ...]) -> None:
    """Refuse a file that lacks one of the ``needed`` columns. Reads names only: a Parquet footer or a header line."""
    names, nested = _column_names(file, schema)
    for column in needed:
        if column not in names:
            raise LogError(f"{file}: no column {column!r}{_missing_hint(file, schema, column, names)}")
        if names.count(column) > 1:
            raise LogError(f"{file}: {names.count(column)} columns are named {column!r}; rename all but one")
        if column in nested:
            raise LogError(f"{file}: column {column!r} holds lists or records; a feature is one value a row")


def _missing_hint(file: Path, schema: Schema, column: str, names: list[str]) -> str:
    if _is_text(file) and not schema.public and not schema.text.columns:  # the "names" may be a person's row
        return "; if the file has no header line, add text.columns to the schema"
    return f"{nearest_name(column, names)}; the schema names it"


def read_batches(file: Path, schema: Schema, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """Yields the file's rows with these columns. Columns of text files come as undecoded bytes, None where missing."""
    if _is_text(file):
        yield from _read_text(file, schema, columns)
        return
    # Not as a dataset, and without a buffer: those read so far ahead that a large log does not fit into memory.
    with (
        _one_line(f"{file}: cannot be read as Parquet", public=schema.public),
        pyarrow.parquet.ParquetFile(str(file), pre_buffer=False) as opened,
    ):
        yield from opened.iter_batches(_BATCH_ROWS, columns=list(columns))


def _read_text(file: Path, schema: Schema, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    names, _ = _column_names(file, schema)
    delimiter = _delimiter(file, schema)
    convert = pyarrow.csv.ConvertOptions(
        column_types={name: pa.binary() for name in columns},
        include_columns=list(columns),
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
        null_values=[*MISSING_TEXTS, *schema.text.missing],
        check_utf8=False,
    )
    # A line with too few or too many cells belongs to one person: it is left out, and decides nothing visible.
    parse = pyarrow.csv.ParseOptions(
        delimiter=delimiter, invalid_row_handler=lambda row: "error" if schema.public else "skip"
    )
    read = pyarrow.csv.ReadOptions(column_names=names, block_size=4 * _LINE_BYTES)  # no line is longer than a block
    unclosed = _unclosed_line(delimiter)
    with _one_line(f"{file}: not a well-formed {delimiter!r}-delimited file", public=schema.public):
        for block in _blocks_of_lines(file, header=not schema.text.columns):
            lines, wrong = _good_lines(block, unclosed)
            if schema.public and wrong:
                raise LogError(f"{file}: {wrong}")
            if lines.strip():
                # The line feed in front is an empty line: without it a mark at the start of a block would be dropped.
                table = pyarrow.csv.read_csv(pa.BufferReader(b"\n" + lines), read, parse, convert)
                for batch in table.combine_chunks().to_batches():
                    yield _with_numbers(batch, schema)


def _with_numbers(batch: pa.RecordBatch, schema: Schema) -> pa.RecordBatch:
    """Returns the rows with 1 and 0 for the words that the schema says stand for them. Each cell is looked at alone."""
    for words, number in ((schema.text.true, b"1"), (schema.text.false, b"0")):
        if words:
            of = pa.array([word.encode() for word in words], pa.binary())
            for name in set(batch.schema.names) - set(schema.unit):
                said = pyarrow.compute.is_in(batch[name], of)
                cells = pyarrow.compute.if_else(said, pa.scalar(number, pa.binary()), batch[name])
                batch = batch.set_column(batch.schema.get_field_index(name), name, cells)
    return batch


def _good_lines(block: bytes, unclosed: re.Pattern[bytes]) -> tuple[bytes, str]:
    """Returns the lines that are rows, each ended by a line feed, and what is wrong with some other line, or "".

    Each step looks at one line at a time; what is asked of the whole block only says that no line needs the step.
    """
    wrong = ""
    half = _LINE_BYTES // 2  # a line that is too long has no line feed in one of these
    if any(block.find(b"\n", start, start + half) < 0 for start in range(0, len(block), half)):
        short = re.sub(rb"^[^\n]{%d,}+\n?" % (_LINE_BYTES + 1), b"", block, flags=re.MULTILINE)
        wrong = wrong or (f"a line is longer than {_LINE_BYTES} bytes" if short != block else "")
        block = short
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
        block = _LINE_END.sub(b"", block) if b"\r" in block else block
        single = _TWO_LINES_IN_ONE.sub(b"", block) if b"\r" in block else block
        wrong = wrong or ("a line holds a carriage return; end lines with a line feed" if single != block else "")
        block = single
    if b'"' in block:
        closed = unclosed.sub(b"", block)
        wrong = wrong or ("a line ends inside quotes; a line is a row" if closed != block else "")
        block = closed
    return block, wrong


def _blocks_of_lines(file: Path, *, header: bool) -> Iterator[bytes]:
    """Yields the file's bytes in blocks of whole lines, without the ``header`` line."""
    with pa.input_stream(str(file)) as stream:
        rest = b""
        if not header:
            rest = stream.read(len(_BYTE_ORDER_MARK)).removeprefix(_BYTE_ORDER_MARK)
        while part := stream.read(_BLOCK_BYTES):
            lines, newline, rest = (rest + part).rpartition(b"\n")
            rest = rest[: _LINE_BYTES + 1]  # too long already: whatever else it holds, it is left out
            block = lines + newline
            if header and newline:
                block, header = block.partition(b"\n")[2], False
            yield block
        yield b"" if header else rest


def _unclosed_line(delimiter: str) -> re.Pattern[bytes]:
    """Returns what matches each line that leaves a quote open. For the parser a quote opens at a cell's start only."""
    d = re.escape(delimiter).encode()
    plain = rb"[^%b\n]*+" % d
    cell = rb'(?:"(?:[^"\n]++|"")*+"%b|(?!")%b)' % (plain, plain)
    return re.compile(rb"^(?!%b(?:%b%b)*+$).*\n?" % (cell, d, cell), re.MULTILINE)


@contextmanager
def telling_no_row(message: str, *, public: bool) -> Iterator[None]:
    """Turns whatever goes wrong with private rows into a `LogError` of this message; one that is raised stays.

    What failed may be one person's row, so neither its text nor the place is told.
    """
    try:
        yield
    except LogError:
        raise
    except Exception:
        if public:
            raise
        raise LogError(message) from None


@contextmanager
def _one_line(message: str, *, public: bool) -> Iterator[None]:
    """Turns the reading library's errors into one line; what a row holds is told only of public data."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise LogError(f"{message}: {_short(error)}" if public else message) from None


def _column_names(file: Path, schema: Schema) -> tuple[list[str], set[str]]:
    """Returns the names of the file's columns, and which of them hold more than one value a row."""
    if not _is_text(file):
        with _one_line(f"{file}: cannot be opened as Parquet", public=True):
            found = pyarrow.parquet.read_schema(str(file))
        return list(found.names), {field.name for field in found if pa.types.is_nested(field.type)}
    if schema.text.columns:
        return list(schema.text.columns), set()
    with _one_line(f"{file}: cannot be opened as text", public=True), pa.input_stream(str(file)) as stream:
        line = _first_line(stream)
    if "\r" in line:
        raise LogError(f"{file}: the first line holds a carriage return; end lines with a line feed")
    try:
        return next(csv.reader([line.lstrip("\ufeff")], delimiter=_delimiter(file, schema)), []), set()
    except csv.Error:
        raise LogError(f"{file}: the first line cannot be read as a header line") from None


def _delimiter(file: Path, schema: Schema) -> str:
    return schema.text.delimiter or ("\t" if ".tsv" in _suffixes(file) else ",")


def _first_line(stream: pa.NativeFile) -> str:
    head = b""
    while b"\n" not in head and len(head) <= _LINE_BYTES:
        part = stream.read(4096)
        if not part:
            break
        head += part
    return head.split(b"\n", 1)[0].decode("utf-8", "replace").rstrip("\r")


def _is_text(file: Path) -> bool:
    return any(suffix in TEXT_SUFFIXES for suffix in _suffixes(file))


def _suffixes(file: Path) -> list[str]:
    """Returns the last suffix, and the one before it where the last says how the file is compressed."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    return suffixes[-2:] if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES else suffixes[-1:]


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
