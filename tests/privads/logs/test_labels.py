"""Labels that are numbers, and labels that wait: what a row holds, and that nothing after the split leaks into it."""

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from privads.batch import Batch, joined, padding
from privads.logs.logs import Logs
from privads.logs.reader import LogError
from privads.logs.schema import Schema
from privads.signals.query import Query

MOMENT = dt.datetime(2026, 11, 15)
HOUR = dt.timedelta(hours=1)
TICK = dt.timedelta(microseconds=1)
WINDOW = 24

NUMBERS = {
    "orders": {"value": "orders", "kind": "count", "most": 5},
    "spend": {"value": "spend", "kind": "log-normal", "most": 100},
    "stars": {"value": "stars", "kind": "ordinal", "most": 3},
}
WAITS = {"buy": {"time": "bought", "within_hours": WINDOW, "waiting": True}, "click": "click"}


def schema(labels: object, **changes: object) -> Schema:
    facts = {
        "dataset": "ads",
        "population": 100,
        "unit": ["user"],
        "time": "shown",
        "labels": labels,
        "numeric": {"n": {"range": [0, 1000]}},
    }
    return Schema.load({**facts, **changes})


def rows_of(logs: Logs) -> Batch:
    return logs.take(np.arange(len(logs.units)))


# Numbers


def number_log(folder: Path, **changes: list[object]) -> Path:
    columns: dict[str, list[object]] = {
        "orders": [0, 5, 9, 1.5, -1, None],
        "spend": [0.0, 12.5, 1e6, -0.01, float("inf"), None],
        "stars": [1, 3, 4, 0, 2.5, None],
    }
    columns |= changes
    count = len(columns["orders"])
    columns |= {"user": [f"u{row}" for row in range(count)], "shown": [MOMENT] * count, "n": [1.0] * count}
    pq.write_table(pa.table(columns), folder / "log.parquet")
    return folder / "log.parquet"


def test_numbers_are_clipped_to_what_is_stated_and_misfits_are_not_observed(tmp_path: Path) -> None:
    batch = rows_of(Logs(number_log(tmp_path), schema(NUMBERS)))
    assert batch.observed["orders"].tolist() == [True, True, True, False, False, False]
    assert batch.labels["orders"].tolist() == [0, 5, 5, 0, 0, 0]
    assert batch.observed["spend"].tolist() == [True, True, True, False, False, False]
    assert batch.labels["spend"].tolist() == [0, 12.5, 100, 0, 0, 0]
    assert batch.observed["stars"].tolist() == [True, True, False, False, False, False]
    assert batch.labels["stars"].tolist() == [1, 3, 0, 0, 0, 0]
    assert batch.hours == {}


def test_a_text_file_s_numbers_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "user,shown,n,orders,spend,stars\nu0,2026-11-15,1,2,12.5,3\nu1,2026-11-15,1,x,NA,1.0\n"
    )
    batch = rows_of(Logs(tmp_path / "log.csv", schema(NUMBERS)))
    assert [batch.labels[task].tolist() for task in NUMBERS] == [[2, 0], [12.5, 0], [3, 1]]
    assert [batch.observed[task].tolist() for task in NUMBERS] == [[True, False], [True, False], [True, True]]


def test_misfits_of_public_data_are_an_error(tmp_path: Path) -> None:
    file = number_log(tmp_path)
    with pytest.raises(LogError, match="column 'orders': 2 values do not fit the schema"):
        rows_of(Logs(file, schema({"orders": NUMBERS["orders"]}, public=True)))


def test_a_number_is_no_table_s_label() -> None:
    with pytest.raises(ValueError, match="'spend' is a number, and this needs a label of yes or no: click"):
        Query(by=(), label="spend").check(schema({**NUMBERS, "click": "click"}))


def test_a_number_is_no_feature_and_has_no_reference() -> None:
    with pytest.raises(ValueError, match="'spend' is both a label and a feature"):
        schema(NUMBERS, numeric={"spend": {"range": [0, 1]}})
    with pytest.raises(ValueError, match=r"\[reference\] names \['spend'\], which is no label of yes or no"):
        schema(NUMBERS, reference={"spend": "other"})


def test_a_stated_rate_changes_no_label(tmp_path: Path) -> None:
    file, _ = waiting_log(tmp_path)
    plain = {"click": "click", "buy": {"time": "bought", "within_hours": WINDOW}}
    stated = {"click": {"column": "click", "rate": 0.9}, "buy": {**plain["buy"], "rate": 0.1}}  # type: ignore[dict-item]
    one, two = (rows_of(Logs(file, schema(labels))) for labels in (plain, stated))
    for task in plain:
        assert one.labels[task].equal(two.labels[task])
        assert one.observed[task].equal(two.observed[task])


# Labels that wait


def waiting_log(folder: Path) -> tuple[Path, list[tuple[dt.datetime, dt.datetime | None]]]:
    """Rows around the moment, and events around it and around the end of the window."""
    shown = [MOMENT - hours * HOUR for hours in (100, 24, 10, 3, 1, 0, -2)] + [MOMENT - 24 * HOUR - TICK]
    delays = [None, TICK, HOUR, 3 * HOUR, 3 * HOUR - TICK, 24 * HOUR, 24 * HOUR + TICK, 60 * HOUR]
    rows = [(one, None if delay is None else one + delay) for one in shown for delay in delays]
    table = pa.table(
        {
            "user": [f"u{row}" for row in range(len(rows))],
            "shown": pa.array([one for one, _ in rows], pa.timestamp("us")),
            "bought": pa.array([one for _, one in rows], pa.timestamp("us")),
            "click": [1] * len(rows),
            "n": [1.0] * len(rows),
        }
    )
    pq.write_table(table, folder / "log.parquet")
    return folder / "log.parquet", rows


@pytest.mark.parametrize("keep", [False, True])
def test_in_training_a_label_that_waits_is_what_was_known_at_the_split(tmp_path: Path, keep: bool) -> None:
    file, rows = waiting_log(tmp_path)
    cache = {"cache": tmp_path / "rows", "keep_cache": True} if keep else {}
    train, test = Logs(file, schema(WAITS), **cache).split(after=MOMENT)
    batch = rows_of(train)
    before = [(shown, bought) for shown, bought in rows if shown < MOMENT]
    assert batch.observed["buy"].all()
    for row, (shown, bought) in enumerate(before):  # each row by the definition
        known = bought is not None and bought < MOMENT and bought - shown <= WINDOW * HOUR
        until_now = min((MOMENT - shown) / HOUR, WINDOW)
        assert batch.labels["buy"][row] == known
        expected = [(bought - shown) / HOUR if known and bought is not None else until_now, until_now]
        assert batch.hours["buy"][row].tolist() == pytest.approx(expected, rel=1e-6)
    later = rows_of(test)
    for row, (shown, bought) in enumerate(pair for pair in rows if pair[0] >= MOMENT):
        in_time = bought is not None and bought - shown <= WINDOW * HOUR
        assert later.labels["buy"][row] == in_time
        expected = [(bought - shown) / HOUR if in_time and bought is not None else WINDOW, WINDOW]
        assert later.hours["buy"][row].tolist() == pytest.approx(expected, rel=1e-6)


def test_no_event_after_the_split_changes_a_row_of_training(tmp_path: Path) -> None:
    file, rows = waiting_log(tmp_path)
    table = pq.read_table(file)
    hidden = [None if bought is None or bought >= MOMENT else bought for _, bought in rows]
    column = table.schema.get_field_index("bought")
    pq.write_table(table.set_column(column, "bought", pa.array(hidden, pa.timestamp("us"))), tmp_path / "then.parquet")
    now, then = (rows_of(Logs(one, schema(WAITS)).split(after=MOMENT)[0]) for one in (file, tmp_path / "then.parquet"))
    assert now.labels["buy"].equal(then.labels["buy"])
    assert now.hours["buy"].equal(then.hours["buy"])


def test_for_tables_a_label_that_waits_is_observed_once_its_window_has_closed(tmp_path: Path) -> None:
    file, rows = waiting_log(tmp_path)
    train, _ = Logs(file, schema(WAITS)).split(after=MOMENT)
    observed = np.concatenate([raw.observed["buy"] for raw in train.raw()])
    assert observed.tolist() == [shown <= MOMENT - WINDOW * HOUR for shown, _ in rows if shown < MOMENT]


def test_hours_travel_with_their_rows(tmp_path: Path) -> None:
    batch = rows_of(Logs(waiting_log(tmp_path)[0], schema(WAITS)))
    empty = padding(schema(WAITS), 2)
    both = joined(batch, empty)
    assert both.hours["buy"].shape == (batch.rows + 2, 2)
    assert both.hours["buy"][: batch.rows].equal(batch.hours["buy"])
    assert batch.to("cpu").hours["buy"].equal(batch.hours["buy"])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"value": "v", "kind": "ordinal", "most": 2.5}, "most must be the number of levels, from 2 to 100, got 2.5"),
        ({"value": "v", "kind": "ordinal", "most": 3, "typical": 1}, "typical is about counts and amounts"),
        ({"value": "v", "kind": "count", "most": 3, "typical": 4}, "typical must be below most, 3, got 4"),
        ({"value": "v", "kind": "poisson", "most": 3}, "labels.y.kind: Input should be 'count'"),
        ({"value": "v", "kind": "count"}, "missing key 'labels.y.most'"),
        ({"value": "v", "kind": "count", "mos": 3}, "unknown key 'labels.y.mos'; did you mean 'most'"),
        ({"value": "v", "kind": "count", "most": 3, "time": "e"}, "unknown key 'labels.y.time'"),
        (
            {"value": "v", "kind": "count", "most": 3, "waiting": True},
            "unknown key 'labels.y.waiting'; known: value, kind, most, typical",
        ),
        ({"time": "e", "within_hours": 4, "median_hours": 2}, "add waiting = true"),
        ({"column": "c", "rate": 1.0}, "labels.y.rate: Input should be less than 1"),
        ({"column": "c", "rat": 0.1}, "unknown key 'labels.y.rat'; did you mean 'rate'?"),
        ({"time": "e", "within_hours": 4, "median_hours": 3, "waiting": True}, "at most half of within_hours"),
    ],
    ids=str,
)
def test_a_label_that_makes_no_sense_is_one_clear_line(label: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        schema({"y": label})
    assert message in str(caught.value)
    assert "did you mean 'time'" not in str(caught.value)  # the key that is there, of the other kind of label
