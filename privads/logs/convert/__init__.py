"""Public data sets that are no table of one value a cell, into a Parquet log and the schema to read it.

They are read as what they are, public: their rows and users are counted, and the schema that is written says
``public = true``. A private log needs a schema that was written without looking.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.parquet

from privads.config import ConfigError, nearest_name
from privads.logs.convert.interactions import interactions
from privads.logs.convert.joins import alibaba, open_bandit
from privads.logs.convert.libfm import libfm
from privads.logs.convert.source import Converted
from privads.logs.reader import LogError
from privads.logs.schema import Schema

CONVERTERS: Mapping[str, Callable[[Path], Converted]] = {
    "alibaba": alibaba,
    "interactions": interactions,
    "libfm": libfm,
    "open-bandit": open_bandit,
}


def convert(name: str, source: Path, out: Path) -> int:
    """Writes ``source`` to the Parquet file ``out`` and its schema to ads.toml beside it; returns the number of rows.

    Both or neither: they are written under other names first. Nothing that exists is overwritten.
    """
    if name not in CONVERTERS:
        raise ConfigError(
            f"no converter {name!r}: there are {', '.join(CONVERTERS)}{nearest_name(name, CONVERTERS)} (a format "
            "of one value a cell needs none, see docs/formats.md)"
        )
    schema_file = check_out(out)
    if not source.exists():
        raise LogError(f"no such file or folder: {source} (the working directory is {Path.cwd()})")
    converted = CONVERTERS[name](source)
    out.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{uuid4().hex}.part"
    parts = {out: out.with_name(f".{out.name}{mark}"), schema_file: schema_file.with_name(f".ads.toml{mark}")}
    try:
        rows = 0
        with pyarrow.parquet.ParquetWriter(parts[out], converted.columns) as writer:
            for batch in converted.batches:
                writer.write_batch(batch)
                rows += batch.num_rows
        facts = schema_facts(converted, rows=rows)
        Schema.load(facts)  # a schema that cannot be read is not written
        parts[schema_file].write_text(toml(facts), encoding="utf-8")
        for file, part in parts.items():
            os.replace(part, file)  # noqa: PTH105 - it says that it replaces
    except BaseException:
        for file in (*parts, *parts.values()):  # none of them was there before
            file.unlink(missing_ok=True)
        raise
    return rows


def check_out(out: Path) -> Path:
    """Returns the schema file beside the Parquet file ``out``; refuses either where it is there already."""
    if out.suffix != ".parquet":
        raise ConfigError(f"--out must name a .parquet file, got {str(out)!r}")
    schema_file = out.parent / "ads.toml"
    for file in (out, schema_file):
        if file.exists():
            raise ConfigError(f"{file} exists and is not overwritten: choose another folder")
    return schema_file


def schema_facts(converted: Converted, *, rows: int) -> dict[str, Any]:
    """Returns the schema of the written rows: the converter's facts, and how many rows and units it found."""
    if not rows:
        raise ConfigError("the source holds no rows")
    facts = converted.facts
    owned = bool(facts.get("unit"))
    counts = {"population": converted.units(), "rows": rows} if owned else {"population": rows}
    return {"dataset": facts["dataset"], **counts, "public": True, **facts}


def toml(facts: Mapping[str, Any]) -> str:
    """Returns the TOML of a schema's facts: plain keys first, then a table for each mapping.

    >>> print(toml({"unit": ["u"], "labels": {"click": "y"}, "categorical": {"c d": {"buckets": 8}}}))
    unit = ["u"]
    <BLANKLINE>
    [labels]
    click = "y"
    <BLANKLINE>
    [categorical]
    "c d" = {buckets = 8}
    <BLANKLINE>
    """
    plain = [f"{_key(key)} = {_value(value)}" for key, value in facts.items() if not isinstance(value, Mapping)]
    parts = ["\n".join(plain)]
    for key, table in facts.items():
        if isinstance(table, Mapping) and table:
            entries = (f"{_key(name)} = {_value(value)}" for name, value in table.items())
            parts.append("\n".join([f"[{_key(key)}]", *entries]))
    return "\n\n".join(parts) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(one)}" for key, one in value.items()) + "}"
    return json.dumps(value)  # what TOML writes alike: texts, numbers, truth values and lists of them
