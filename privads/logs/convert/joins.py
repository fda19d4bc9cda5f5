"""Logs whose items are described in a file of their own, joined: the Open Bandit Dataset and Alibaba's events."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from privads.logs.convert.source import Converted, buckets_for, one_file, table_batches
from privads.logs.reader import LogError

BANDIT_LOG: Mapping[str, pa.DataType] = {
    "timestamp": pa.string(),
    "item_id": pa.int64(),
    "position": pa.int64(),
    "click": pa.int64(),
    "propensity_score": pa.float64(),
    **{f"user_feature_{number}": pa.string() for number in range(4)},
}
BANDIT_ITEMS: Mapping[str, pa.DataType] = {
    "item_id": pa.int64(),
    "item_feature_0": pa.float64(),
    **{f"item_feature_{number}": pa.string() for number in (1, 2, 3)},
}
ALIBABA_EDGES: Mapping[str, pa.DataType] = dict.fromkeys(("user", "item", "type", "day"), pa.int64())
ALIBABA_ITEMS: Mapping[str, pa.DataType] = {
    "item": pa.int64(),
    **{f"item_feature_{number}": pa.int64() for number in (1, 2, 3)},
    "price": pa.float64(),
}
EVENTS = {"click": 1, "collect": 2, "cart": 3, "buy": 4}


def open_bandit(source: Path) -> Converted:
    """Returns the impressions of one policy and campaign of the Open Bandit Dataset, with their item's features.

    source: the folder, such as obd/bts/men, with the log and item_context.csv. Users are not named, so a row is its
    own unit. The propensity score stays a column, for off-policy work, and is no feature. The affinities of a user to
    each item are left out: they count the same user's other clicks.
    """
    items = _items(one_file(source, "item_context.csv*"), BANDIT_ITEMS)
    log = one_file(source, "*.csv*", but="item_context")
    columns = pa.schema([*BANDIT_LOG.items(), *list(BANDIT_ITEMS.items())[1:]])
    texts = (*(f"user_feature_{number}" for number in range(4)), *(f"item_feature_{number}" for number in (1, 2, 3)))
    facts = {
        "dataset": "open-bandit",
        "time": "timestamp",
        "labels": {"click": "click"},
        "numeric": {"item_feature_0": {"range": [-5, 5]}},
        "categorical": {
            "hour_of_day": {"part": "hour", "buckets": 64},
            "item_id": {"buckets": buckets_for(items.num_rows)},
            "position": {"buckets": 16},
            **{name: {"buckets": 64} for name in texts},
        },
    }
    batches = (_joined(batch, items, "item_id", columns) for batch in table_batches(log, BANDIT_LOG))
    return Converted(columns=columns, batches=batches, facts=facts)


def alibaba(source: Path) -> Converted:
    """Returns a row for each event of a user and an item, with the item's features; the labels say which event it was.

    source: the folder with edges.tsv (user, item, type 1 to 4, day as YYYYMMDD) and items.tsv (item, three codes,
    price), tab-separated, without header lines. The file of the users' own features is not opened.
    """
    items = _items(one_file(source, "items.tsv*"), ALIBABA_ITEMS, header=False, delimiter="\t")
    edges = one_file(source, "edges.tsv*")
    labels = [(name, pa.int8()) for name in EVENTS]
    columns = pa.schema([*ALIBABA_EDGES.items(), *list(ALIBABA_ITEMS.items())[1:], *labels])
    users: set[int] = set()
    facts = {
        "dataset": "alibaba-events",
        "unit": ["user"],
        "time": "day",
        "time_format": "%Y%m%d",
        "labels": {name: name for name in EVENTS},
        "numeric": {"price": {"range": [0, 100000]}},
        "categorical": {
            "weekday": {"part": "weekday", "buckets": 32},
            "item": {"buckets": 16384},
            **{f"item_feature_{number}": {"buckets": 4096} for number in (1, 2, 3)},
        },
    }
    return Converted(
        columns=columns, batches=_events(edges, items, columns, users), facts=facts, units=lambda: len(users)
    )


def _events(edges: Path, items: pa.Table, columns: pa.Schema, users: set[int]) -> Iterator[pa.RecordBatch]:
    for batch in table_batches(edges, ALIBABA_EDGES, header=False, delimiter="\t"):
        users.update(pc.unique(batch["user"]).to_pylist())
        known = pc.is_in(batch["type"], pa.array(list(EVENTS.values()), pa.int64()))
        if not pc.all(known).as_py():
            raise LogError(f"{edges}: the third column, the kind of event, must be 1, 2, 3 or 4")
        labels = {name: pc.equal(batch["type"], kind).cast(pa.int8()) for name, kind in EVENTS.items()}
        yield _joined(batch, items, "item", columns, **labels)


def _items(file: Path, types: Mapping[str, pa.DataType], *, header: bool = True, delimiter: str = ",") -> pa.Table:
    """Returns the items' features, which fit into memory; raises `LogError` where an item has two lines."""
    batches = list(table_batches(file, types, header=header, delimiter=delimiter))
    found = pa.Table.from_batches(batches, pa.schema(list(types.items()))).combine_chunks()
    key = next(iter(types))
    if pc.count_distinct(found[key]).as_py() < found.num_rows:
        raise LogError(f"{file}: an item has two lines; one line is one item")
    return found


def _joined(batch: pa.RecordBatch, items: pa.Table, key: str, columns: pa.Schema, **more: pa.Array) -> pa.RecordBatch:
    """Returns the rows with their item's features: missing where the item has no line."""
    found = items.take(pc.index_in(batch[key], items[key].combine_chunks()))
    features = {name: found[name].combine_chunks() for name in items.column_names if name != key}
    own = {name: batch[name] for name in batch.schema.names}
    return pa.record_batch([{**own, **features, **more}[name] for name in columns.names], columns)
