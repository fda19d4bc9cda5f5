"""A log's rows scored by the model that `privads learn` wrote, in the log's order."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from privads.config import ConfigError, parse_model
from privads.logs.encode import encoded
from privads.logs.raw import raw_rows
from privads.logs.reader import check_columns, find_files
from privads.logs.schema import Schema
from privads.new_folder import new_file
from privads.signals.learned import Learned, check_parts, places_in

MODEL, LEARNED, SCHEMA = "model.json", "learned.json", "schema.json"
"""In a folder: the model; what is said of it; and how a log is read, where that was known."""


def is_learned(folder: Path) -> bool:
    """Whether `privads learn` wrote the folder."""
    return (folder / LEARNED).is_file()


def score_log(folder: Path, path: str | Path, out: Path) -> int:
    """Returns how many rows were scored: for each row at ``path``, in its order, to Parquet ``out``, with the column
    {label}_probability.

    Labels are not needed. A row that does not fit the schema gets null. ``out`` is written whole or not at all.
    """
    learned = Learned.load(folder / MODEL)
    read = _schema(folder, learned).without_labels()
    check_parts(read, learned.parts)
    files = find_files(path)
    for file in files:
        check_columns(file, read, read.columns)
    columns = pa.schema([(f"{learned.label}_probability", pa.float64())])
    rows = 0
    with new_file(out) as draft, pyarrow.parquet.ParquetWriter(draft, columns) as writer:
        for part in encoded(files, read, raw=True):
            scores = learned.predict(places_in(raw_rows(part, read), learned.parts))
            writer.write_table(pa.table([pa.array(scores, mask=~part.fits)], schema=columns))
            rows += len(scores)
    return rows


def reading_of(schema: Schema, learned: Learned) -> Schema:
    """Returns what of a log's schema says how the model's columns are read."""
    columns = {part.column for part in learned.parts}
    return schema.model_copy(
        update={
            "numeric": {name: one for name, one in schema.numeric.items() if name in columns},
            "categorical": {name: one for name, one in schema.categorical.items() if name in columns},
        }
    )


def _schema(folder: Path, learned: Learned) -> Schema:
    """Returns how the log is read; of a model that was learned where its schema was not, the model's own columns."""
    file = folder / SCHEMA
    if not file.is_file():
        return Schema.load(learned.sample_schema("learned", 1))
    try:
        return parse_model(Schema, json.loads(file.read_text(encoding="utf-8")), source=str(file))
    except json.JSONDecodeError:
        raise ConfigError(f"{file} was changed: it is no schema that `privads learn` wrote") from None
