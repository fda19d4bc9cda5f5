"""Files: the same rows from every format, one clear line for what cannot be read, and a line is a row."""

import gzip
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from privads.logs import reader
from privads.logs.reader import LogError, check_columns, find_files, read_batches
from privads.logs.schema import Schema

COLUMNS = ("y", "n", "c")


def schema(**changes: object) -> Schema:
    facts = {"dataset": "x", "population": 10, "labels": {"y": "y"}, "numeric": {"n": {"range": [0, 10]}}}
    return Schema.load({**facts, "categorical": {"c": {"buckets": 100}}, **changes})


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def categories(file: Path, facts: Schema | None = None) -> list[object]:
    batches = read_batches(file, facts or schema(), COLUMNS)
    return [value for batch in batches for value in batch["c"].to_pylist()]


def refusal(file: Path, facts: Schema | None = None) -> str:
    with pytest.raises(LogError) as caught:
        categories(file, facts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Which files


def test_a_path_a_folder_and_a_pattern_name_files_in_order(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", ".hidden.csv", "_SUCCESS"):
        write(tmp_path / name, b"y,n,c\n")
    (tmp_path / "folder.csv").mkdir()
    expected = (tmp_path / "a.csv", tmp_path / "b.csv")
    assert find_files(tmp_path) == expected
    assert find_files(str(tmp_path / "*.csv")) == expected
    assert find_files(tmp_path / "b.csv") == expected[1:]


def test_a_file_whose_name_looks_like_a_pattern_is_found(tmp_path: Path) -> None:
    """A fixed bug: brackets in the name of an existing file were read as a pattern."""
    file = write(tmp_path / "data[1].csv", b"y,n,c\n1,2,a\n")
    assert find_files(file) == (file,)


@pytest.mark.parametrize("name", ["none.csv", "none/*.parquet", ""])
def test_missing_files_are_one_clear_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(LogError, match=r"no such file: .*the working directory is") as caught:
        find_files(tmp_path / name)
    assert "\n" not in str(caught.value)


# Which columns


def test_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    text = write(tmp_path / "a.csv", b"y,n,cc\n1,2,a\n")
    parquet = tmp_path / "a.parquet"
    pq.write_table(pa.table({"y": [1], "n": [2], "cc": ["a"]}), parquet)
    for file, facts in ((text, schema(public=True)), (parquet, schema())):
        with pytest.raises(
            LogError, match=re.escape(f"{file}: no column 'c'; did you mean 'cc'?; the schema names it")
        ):
            check_columns(file, facts, COLUMNS)


def test_the_row_of_a_file_without_a_header_is_never_shown(tmp_path: Path) -> None:
    """A fixed bug: the first person's row was taken for column names, and the nearest was quoted."""
    file = write(tmp_path / "a.csv", b"alice-user-id@x,1,2\n")
    with pytest.raises(LogError) as caught:
        check_columns(file, schema(), ("user-id@x", "n"))
    hint = "if the file has no header line, add text.columns to the schema"
    assert str(caught.value) == f"{file}: no column 'user-id@x'; {hint}"


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("content", [b"y,n,c\r1,2,a\r0,3,b\r", b"y,n,c" + b"c" * 200_000 + b"\n1,2,a\n"])
def test_a_first_line_that_is_no_header_is_one_clear_line(tmp_path: Path, content: bytes, public: bool) -> None:
    """A fixed bug: line ends of a carriage return alone, and long names, showed the library's own error."""
    with pytest.raises(LogError, match="the first line (holds a carriage return|cannot be read)") as caught:
        check_columns(write(tmp_path / "a.csv", content), schema(public=public), COLUMNS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "head",
    [b"y,n,c", b'"y","n","c"', b'"y",n,"q,q",c', b"\xef\xbb\xbfy,n,c", b"y,n,c\r", b"extra,c,n,y", b'"a ""b""",y,n,c'],
)
def test_header_lines_of_every_kind_are_read(tmp_path: Path, head: bytes) -> None:
    count = len(re.sub(rb'"[^"]*"', b"", head).split(b","))
    file = write(tmp_path / "a.csv", head + b"\n" + b",".join([b"1"] * count) + b"\n")
    check_columns(file, schema(), COLUMNS)
    assert categories(file) == [b"1"]


def test_a_header_with_spaces_is_refused_by_the_check_and_not_later(tmp_path: Path) -> None:
    """A fixed bug: the check took ' n' for 'n', and reading failed after the charge."""
    file = write(tmp_path / "a.csv", b"y, n,c\n1,2,a\n")
    with pytest.raises(LogError, match="no column 'n'; did you mean ' n'"):
        check_columns(file, schema(public=True), COLUMNS)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_named_twice_is_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"a.{kind}"
    if kind == "csv":
        write(file, b"y,n,c,c\n1,2,a,b\n")
    else:
        pq.write_table(pa.table([[1], [2], ["a"], ["b"]], names=["y", "n", "c", "c"]), file)
    with pytest.raises(LogError, match="2 columns are named 'c'"):
        check_columns(file, schema(), COLUMNS)


def test_a_column_of_lists_is_refused_by_the_check(tmp_path: Path) -> None:
    pq.write_table(pa.table({"y": [1], "n": [2], "c": [["a", "b"]]}), tmp_path / "a.parquet")
    with pytest.raises(LogError, match="column 'c' holds lists or records"):
        check_columns(tmp_path / "a.parquet", schema(), COLUMNS)


def test_the_check_reads_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("rows were read")

    file = write(tmp_path / "a.csv.gz", b"y,n,c\n" + b"1,2,a\n" * 10)
    pq.write_table(pa.table({"y": [1], "n": [2], "c": ["a"]}), tmp_path / "a.parquet")
    monkeypatch.setattr(reader.pyarrow.csv, "read_csv", never)
    monkeypatch.setattr(reader.pyarrow.parquet, "ParquetFile", never)
    monkeypatch.setattr(reader.pyarrow.parquet, "read_table", never)
    check_columns(file, schema(), COLUMNS)
    check_columns(tmp_path / "a.parquet", schema(), COLUMNS)


# Which rows


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.tsv.gz", "A.TSV", "a.2026.txt"])
def test_text_is_read_plain_or_compressed_with_a_comma_or_a_tab(tmp_path: Path, name: str) -> None:
    separator = b"\t" if ".tsv" in name.lower() else b","
    file = write(tmp_path / name, b"y,n,c\n1,2,a\n0,,\n".replace(b",", separator))
    assert categories(file) == [b"a", None]


def test_a_stated_delimiter_and_stated_columns_win(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", b"1|2|a\n0|3|b\n")
    facts = schema(text={"delimiter": "|", "columns": COLUMNS})
    check_columns(file, facts, COLUMNS)
    assert categories(file, facts) == [b"a", b"b"]


@pytest.mark.parametrize("content", [b"y,n,c", b"y,n,c\n", b"y,n,c\n\n\n", b"y,n,c\r\n"])
def test_a_file_without_rows_is_no_error(tmp_path: Path, content: bytes) -> None:
    assert categories(write(tmp_path / "a.csv", content)) == []


def test_an_empty_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no column 'y'"):
        check_columns(write(tmp_path / "a.csv", b""), schema(), COLUMNS)


LINES = [b'1,2,"a,1"', b"0,3,b", b'1,4,"say ""hi"""', b'0,5,5" screen', b'1,6,"closed"tail', b"0,7,"]
VALUES = [b"a,1", b"b", b'say "hi"', b'5" screen', b"closedtail", None]
ODD = {
    "too few cells": b"1,2",
    "too many cells": b"1,2,a,b",
    "an open quote": b'1,2,"a',
    "an open quote after a closed one": b'1,2,"a"",b',
    "an open quote in the first cell": b'"1,2,a',
    "a quote opened after a line feed": b'1,2,a\r"b,c',
    "a mid-cell quote and an open one": b'1,x"y,"a',
    "a carriage return": b"1,2,a\r0,3,b",
    "a carriage return in quotes": b'1,2,"a\rb"',
    "a line that is too long": b"1,2," + b"a" * 1000,
    "a line that is too long and has an open quote": b'1,2,"' + b"a" * 1000,
    "nothing": b"",
}
LONGEST = 900


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r\r\n"], ids=["lf", "crlf", "crcrlf"])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("block_bytes", [1 << 24, 7], ids=["one block", "blocks of 7 bytes"])
def test_an_odd_line_changes_no_other_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: bytes, end: bytes, block_bytes: int
) -> None:
    """A fixed bug: a quote that one line left open swallowed the rows that followed, whoever owned them."""
    monkeypatch.setattr(reader, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(reader, "_LINE_BYTES", LONGEST)
    assert categories(write(tmp_path / "a.csv", end.join([b"y,n,c", *LINES]))) == VALUES
    for position in range(len(LINES) + 1):
        lines = [b"y,n,c", *LINES[:position], odd, *LINES[position:]]
        assert categories(write(tmp_path / "a.csv", end.join(lines) + end)) == VALUES


@pytest.mark.parametrize("odd", [one for name, one in ODD.items() if name != "nothing"])
def test_an_odd_line_in_public_data_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: bytes
) -> None:
    monkeypatch.setattr(reader, "_LINE_BYTES", LONGEST)
    file = write(tmp_path / "a.csv", b"\n".join([b"y,n,c", *LINES, odd, b""]))
    assert refusal(file, schema(public=True)).startswith(f"{file}: ")


@pytest.mark.parametrize("content", [b"garbage", gzip.compress(b"y,n,c\n" + bytes(range(33, 120)) * 9000)[:-200]])
def test_a_damaged_file_is_one_clear_line_that_shows_no_row(tmp_path: Path, content: bytes) -> None:
    for name in ("a.csv.gz", "a.parquet"):
        (tmp_path / name).write_bytes(content)
        assert refusal(tmp_path / name).startswith(str(tmp_path / name))


def test_damage_inside_a_parquet_file_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    names = [f"name {number}" for number in range(10_000)]
    pq.write_table(pa.table({"y": [1] * 10_000, "n": [2] * 10_000, "c": names}), file)
    content = bytearray(file.read_bytes())
    content[10:-4000] = b"\xff" * len(content[10:-4000])
    file.write_bytes(content)
    check_columns(file, schema(), COLUMNS)
    assert refusal(file) == f"{file}: cannot be read as Parquet"


def test_a_missing_text_is_missing_quoted_or_not(tmp_path: Path) -> None:
    lines = b'y,n,c\n1,2,NA\n1,2,"NA"\n1,2,""\n1,2,null\n1,2,"None"\n1,2,nan\n1,2,x\n'
    assert categories(write(tmp_path / "a.csv", lines)) == [None] * 6 + [b"x"]


def test_a_missing_code_is_missing_where_the_schema_names_it(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", b'y,n,c\n1,2,-1\n1,2,"-1"\n1,2,-1.0\n1,2, -1\n1,2,NA\n')
    assert categories(file) == [b"-1", b"-1", b"-1.0", b" -1", None]
    assert categories(file, schema(text={"missing": ["-1"]})) == [None, None, b"-1.0", b" -1", None]


def test_words_for_true_and_false_are_numbers_cell_by_cell_but_never_a_unit(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", b"y,n,c\nYes,2,Yes\nNo,3,No\n1,Yes,no\nNA,1,\n")
    facts = {"text": {"true": ["Yes"], "false": ["No"]}}
    (batch,) = read_batches(file, schema(**facts), COLUMNS)
    assert batch.schema.names == list(COLUMNS)
    assert batch["y"].to_pylist() == [b"1", b"0", b"1", None]
    assert batch["n"].to_pylist() == [b"2", b"3", b"1", b"1"]
    assert categories(file, schema(**facts)) == [b"1", b"0", b"no", None]
    assert categories(file, schema(**facts, unit=["c"])) == [b"Yes", b"No", b"no", None]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r\r\n", b"\r\r\r\n"])
@pytest.mark.parametrize("plain", [b"1,2,a", b"1,2,a\r0,3,b", b"1,2", b"\xef\xbb\xbf1,2,a"])
def test_whether_a_line_is_a_row_depends_on_no_other_line(tmp_path: Path, plain: bytes, end: bytes) -> None:
    """A fixed bug: lines with a carriage return were rows, or two, as long as nobody in the file wrote a quote."""
    lines = [b"y,n,c", plain, plain, b""]
    without = categories(write(tmp_path / "a.csv", end.join(lines)))
    for quoted in (b'0,1,"q"', b'0,1,"q', b'0,1,"q\rr"'):
        found = categories(write(tmp_path / "a.csv", end.join([*lines[:2], quoted, *lines[2:]])))
        assert [one for one in found if one != b"q"] == without


def test_a_cell_of_3_mb_costs_its_own_row_only(tmp_path: Path) -> None:
    """A fixed bug: a cell larger than the parser's block made the file unreadable, after the charge."""
    longest = b"1,2," + b"a" * (reader._LINE_BYTES - 4)
    for size, count in ((3_000_000, 0), (40_000_000, 0), (len(longest) - 4, 1), (len(longest) - 3, 0)):
        lines = [b"y,n,c", b"1,2,x", b"1,2," + b"a" * size, b"1,2,y", longest, b"1,2,z"]
        found = categories(write(tmp_path / "a.csv", b"\n".join(lines)))
        assert len(found) == 4 + count
        assert [one for one in found if len(str(one)) < 9] == [b"x", b"y", b"z"]


def test_a_byte_order_mark_is_no_part_of_the_first_value(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", b"\xef\xbb\xbfa,1,2\nb,1,2\n")
    assert categories(file, schema(text={"columns": ["c", "n", "y"]})) == [b"a", b"b"]
