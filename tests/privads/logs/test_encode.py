"""Encoding: the same rows give the same arrays from every format, and a row decides nothing beyond itself."""

import datetime as dt
import decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from privads.features.stateless import hash_buckets, log_scale
from privads.logs.encode import Part, as_batch, encode, uniform_of_key, unit_codes
from privads.logs.logs import Logs
from privads.logs.reader import LogError
from privads.logs.schema import Schema

DAY = dt.datetime(2026, 11, 15)


def schema(**changes: object) -> Schema:
    facts = {
        "dataset": "x",
        "population": 10,
        "unit": ["u"],
        "time": "t",
        "labels": {"click": "y", "conversion": {"time": "e", "within_hours": 24}},
        "numeric": {"n": {"range": [0, 10]}},
        "categorical": {"c": {"buckets": 1000}, "d": {"buckets": 50}},
    }
    return Schema.load({**facts, **changes})


def rows(**columns: list[object] | pa.Array) -> pa.RecordBatch:
    """A batch of good rows with these columns in place of the usual ones."""
    count = max([len(values) for values in columns.values()], default=1)
    usual = {"u": "u1", "t": DAY, "y": 1, "e": None, "n": 5.0, "c": "a", "d": "b"}
    types = {"t": pa.timestamp("us"), "e": pa.timestamp("us")}
    made = {name: pa.array([value] * count, types.get(name)) for name, value in usual.items()}
    given = {name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()}
    return pa.RecordBatch.from_pydict({**made, **given})


def arrays(part: Part) -> list[np.ndarray]:
    tasks = [*part.labels.values(), *part.observed.values()]
    return [part.dense, part.ids, part.times, part.fits, *part.units, *tasks, *part.reference.values()]


def same(one: Logs, two: Logs) -> bool:
    batches = [logs.take(np.arange(len(logs.units))) for logs in (one, two)]
    tensors = [[each.dense, each.ids, *each.labels.values(), *each.observed.values()] for each in batches]
    return all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


# One row, one encoding, whatever the file


FRAME = pd.DataFrame(
    {
        "u": ["u1", "u2", "ü 3", 'say "x", y'],
        "t": pd.to_datetime(["2026-11-15", "2026-11-15T01:02:03.000004", "2026-11-16", "2026-11-17"], format="ISO8601"),
        "y": [1, 0, 1, 0],
        "e": pd.to_datetime(["2026-11-15T05:00:00", None, "2026-11-19", None], format="ISO8601"),
        "n": [0.5, np.nan, 3.0, 1e9],
        "c": pd.array([5, None, 7, 123456789], dtype="Int64"),
        "d": ["x", None, "a,b", "5.0"],
        "whole": [5.0, np.nan, -3.0, 123456789.0],
        "part": [5.5, 0.1, 1 / 3, np.nan],
        "flag": [True, False, True, False],
    }
)
CATEGORICAL = {name: {"buckets": 1000} for name in ("c", "d", "whole", "part", "flag")}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    names = ("a.parquet", "strings.parquet", "floats.parquet", "pandas.csv", "pandas.tsv", "pandas.csv.gz", "arrow.csv")
    made = {name: folder / name for name in names}
    table = pa.Table.from_pandas(FRAME, preserve_index=False)
    pq.write_table(table, made["a.parquet"])
    FRAME.to_csv(made["pandas.csv"], index=False, date_format="%Y-%m-%dT%H:%M:%S.%f")
    FRAME.to_csv(made["pandas.csv.gz"], index=False, date_format="%Y-%m-%dT%H:%M:%S.%f")
    FRAME.to_csv(made["pandas.tsv"], index=False, date_format="%Y-%m-%dT%H:%M:%S.%f", sep="\t")
    pyarrow.csv.write_csv(table, made["arrow.csv"])
    texts = pd.read_csv(made["pandas.csv"], dtype=str)
    pq.write_table(pa.Table.from_pandas(texts, preserve_index=False), made["strings.parquet"])
    floats = FRAME.assign(c=FRAME["c"].astype(float), y=FRAME["y"].astype(bool), flag=FRAME["flag"].astype(float))
    dictionaries = floats.assign(d=floats["d"].astype("category"), u=floats["u"].astype("category"))
    pq.write_table(pa.Table.from_pandas(dictionaries, preserve_index=False), made["floats.parquet"])
    return made


@pytest.mark.parametrize(
    "name", ["strings.parquet", "floats.parquet", "pandas.csv", "pandas.tsv", "pandas.csv.gz", "arrow.csv"]
)
def test_every_format_gives_identical_encodings(files: dict[str, Path], name: str) -> None:
    facts = schema(categorical=CATEGORICAL)
    one, two = (Logs(files[file], facts) for file in ("a.parquet", name))
    assert len(one.units) == 4
    assert np.array_equal(one.units, two.units)
    assert same(one, two)


def test_encodings_are_those_of_the_stateless_transforms(files: dict[str, Path]) -> None:
    facts = schema(categorical=CATEGORICAL)
    batch = Logs(files["a.parquet"], facts).take(np.arange(4))
    texts = {
        "c": ["5", None, "7", "123456789"],
        "d": ["x", None, "a,b", "5"],
        "whole": ["5", None, "-3", "123456789"],
        "part": ["5.5", "0.1", "0.3333333333333333", None],
        "flag": ["1", "0", "1", "0"],
    }
    for position, (field, values) in enumerate(texts.items()):
        expected = 1000 * position + hash_buckets(np.array(values, dtype=object), field=field, buckets=1000)
        assert batch.ids.view(4, 5)[:, position].tolist() == expected.tolist()
    assert batch.dense[:, 0].tolist() == log_scale(FRAME["n"].to_numpy(), low=0, high=10).tolist()
    assert batch.labels["click"].tolist() == [1, 0, 1, 0]
    assert batch.labels["conversion"].tolist() == [1, 0, 0, 0]


def test_a_missing_category_is_bucket_0_of_its_field() -> None:
    part = encode(rows(c=pa.array([None, "a"]), d=pa.array(["b", None])), schema())
    assert part.ids[0, 0] == 0
    assert part.ids[1, 1] == 1000
    assert part.fits.all()


@pytest.mark.parametrize("values", [pa.nulls(2), pa.array([decimal.Decimal("1.50"), None]), pa.array(["1.5", " 1.5"])])
def test_numbers_of_every_type_are_read(values: pa.Array) -> None:
    part = encode(rows(n=values), schema())
    expected = log_scale(np.array([np.nan if one is None else 1.5 for one in values.to_pylist()]), low=0, high=10)
    assert part.dense[:, 0].tolist() == expected.tolist()
    assert part.fits.all()


def test_hour_and_weekday_come_from_the_impression_time() -> None:
    fields = {"hour": {"buckets": 100, "part": "hour"}, "day": {"buckets": 100, "part": "weekday"}}
    part = encode(rows(t=[dt.datetime(2026, 11, 15, 23, 59), dt.datetime(2026, 11, 16)]), schema(categorical=fields))
    hours = hash_buckets(np.array(["23", "0"], dtype=object), field="hour", buckets=100)
    days = hash_buckets(np.array(["6", "0"], dtype=object), field="day", buckets=100)  # a Sunday, a Monday
    assert part.ids.tolist() == np.stack([hours, 100 + days], axis=1).tolist()


# Times


@pytest.mark.parametrize(
    "times",
    [
        pa.array([dt.datetime(2026, 11, 15, 10)], pa.timestamp("s")),
        pa.array([dt.datetime(2026, 11, 15, 10)], pa.timestamp("ns")),
        pa.array(
            [dt.datetime(2026, 11, 15, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))], pa.timestamp("us", "+02:00")
        ),
        pa.array(["2026-11-15T10:00:00"]),
        pa.array(["2026-11-15 10:00"]),
        pa.array(["2026-11-15T12:00:00+02:00"]),
        pa.array([b"2026-11-15T10:00:00Z"]),
    ],
    ids=lambda one: str(one.type) + str(one[0]),
)
def test_times_of_every_type_are_utc(times: pa.Array) -> None:
    assert encode(rows(t=times), schema()).times.tolist() == [dt.datetime(2026, 11, 15, 10)]


def test_a_time_format_reads_text_and_numbers() -> None:
    for times in (pa.array(["14102123"]), pa.array([14102123]), pa.array([14102123.0])):
        part = encode(rows(t=times), schema(time_format="%y%m%d%H", labels={"click": "y"}))
        assert part.times.tolist() == [dt.datetime(2014, 10, 21, 23)]


def test_epoch_seconds_are_times_in_text_and_as_numbers() -> None:
    facts = schema(time_format="epoch-seconds", labels={"click": "y"})
    moment = dt.datetime(2017, 5, 6, 1, 2, 3)
    seconds = int(moment.replace(tzinfo=dt.UTC).timestamp())
    for times in ([seconds], [float(seconds)], [str(seconds)], [f"{seconds}.0"], pa.array([str(seconds).encode()])):
        assert encode(rows(t=times), facts).times.tolist() == [moment]
    part = encode(rows(t=pa.array(["0", "-0.25", "253402214399", "1.0000009"])), facts)
    assert part.fits.all()
    assert part.times.tolist() == [
        dt.datetime(1970, 1, 1),
        dt.datetime(1969, 12, 31, 23, 59, 59, 750000),
        dt.datetime(9999, 12, 30, 23, 59, 59),
        dt.datetime(1970, 1, 1, 0, 0, 1),
    ]


@pytest.mark.parametrize("bad", ["2017-05-06", "", "inf", "1e300", "-1e12", "253402300801"])
def test_epoch_seconds_that_are_no_time_are_misfits_and_change_no_other_row(bad: str) -> None:
    facts = {"time_format": "epoch-seconds", "labels": {"conversion": {"time": "e", "within_hours": 1}}}
    part = encode(rows(t=["3600", bad], e=["7200", "7200"]), schema(**facts))
    assert part.fits.tolist() == [True, False]
    assert (part.labels["conversion"][0], part.observed["conversion"][0]) == (True, True)
    with pytest.raises(LogError, match="column 't': 1 values do not fit"):
        encode(rows(t=["3600", bad], e=["7200", "7200"]), schema(**facts, public=True))


def test_a_date_is_its_midnight() -> None:
    assert encode(rows(t=[dt.date(2026, 11, 15)]), schema()).times.tolist() == [DAY]


# Labels


def conversions(events: list[object], **changes: object) -> tuple[list[float], list[bool]]:
    part = encode(rows(e=pa.array(events, pa.timestamp("us"))), schema(**changes))
    assert part.fits.all()  # a label that does not fit costs the label, not the row
    return part.labels["conversion"].tolist(), part.observed["conversion"].tolist()


def test_a_delayed_label_is_1_up_to_the_end_of_its_window() -> None:
    tick, hour = dt.timedelta(microseconds=1), dt.timedelta(hours=1)
    labels, observed = conversions([DAY, DAY + tick, DAY + 24 * hour, DAY + 24 * hour + tick, DAY + 99 * hour, None])
    assert labels == [1, 1, 1, 0, 0, 0]
    assert observed == [True] * 6


def test_an_event_before_its_impression_is_unobserved() -> None:
    assert conversions([DAY - dt.timedelta(microseconds=1), DAY]) == ([0, 1], [False, True])


def test_the_window_is_the_schema_s() -> None:
    events = [DAY + dt.timedelta(minutes=minutes) for minutes in (5, 6, 7)]
    labels = {"conversion": {"time": "e", "within_hours": 0.1}}
    assert conversions(events, labels=labels)[0] == [1, 1, 0]


def test_no_event_in_text_is_no_conversion() -> None:
    """A fixed bug: an empty text in Parquet was an event that could not be read."""
    for nothing in ("", None, "NaN"):
        part = encode(rows(e=pa.array([nothing], pa.string())), schema(public=True))
        assert (part.labels["conversion"].tolist(), part.observed["conversion"].tolist()) == ([0], [True])


def test_a_plain_label_is_0_or_1_or_unobserved() -> None:
    part = encode(rows(y=pa.array([1.0, 0.0, None, 2.0, 0.5, float("nan"), float("inf")])), schema())
    assert part.labels["click"].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert part.observed["click"].tolist() == [True, True, False, False, False, False, False]
    assert part.fits.all()


@pytest.mark.parametrize("values", [pa.array([True, False]), pa.array(["true", "False"]), pa.array(["1.0", "0"])])
def test_a_label_may_be_written_as_a_truth_value(values: pa.Array) -> None:
    part = encode(rows(y=values), schema())
    assert part.labels["click"].tolist() == [1, 0]
    assert part.observed["click"].all()


# Rows that do not fit


MISFITS = {
    "an infinite number": {"n": [5.0, float("inf")]},
    "minus infinity": {"n": [5.0, float("-inf")]},
    "infinity as text": {"n": ["5", "inf"]},
    "an overflowing number": {"n": ["5", "1e999"]},
    "text for a number": {"n": ["5", "five"]},
    "a missing unit": {"u": ["u1", None]},
    "an empty unit": {"u": ["u1", ""]},
    "a unit that is no UTF-8": {"u": pa.array([b"u1", b"\xff"])},
    "a category that is no UTF-8": {"c": pa.array([b"a", b"\xff"])},
    "a missing time": {"t": pa.array([DAY, None], pa.timestamp("us"))},
    "a bad time": {"t": ["2026-11-15", "yesterday"]},
    "a time that is no UTF-8": {"t": pa.array([b"2026-11-15", b"\xff"])},
}
MISFIT_LABELS = {
    "a label of 2": {"y": [1, 2]},
    "a label of text": {"y": ["1", "yes"]},
    "an event that is no time": {"e": ["", "soon"]},
    "an event before its impression": {"e": ["", "2026-11-14"]},
}


@pytest.mark.parametrize("columns", MISFITS.values(), ids=MISFITS)
def test_a_misfit_is_left_out_silently_and_changes_no_other_row(columns: dict[str, list[object]]) -> None:
    part = encode(rows(**columns), schema())
    assert part.fits.tolist() == [True, False]
    alone = encode(rows(**columns).slice(0, 1), schema())
    assert alone.fits.tolist() == [True]
    assert np.array_equal(part.ids[:1], alone.ids)
    assert np.array_equal(part.dense[:1], alone.dense)
    assert np.isfinite(part.dense).all()


@pytest.mark.parametrize("columns", MISFIT_LABELS.values(), ids=MISFIT_LABELS)
def test_a_misfit_label_is_unobserved_silently(columns: dict[str, list[object]]) -> None:
    part = encode(rows(**columns), schema())
    assert part.fits.all()
    (name,) = columns
    task = "click" if name == "y" else "conversion"
    assert part.observed[task].tolist() == [True, False]
    assert part.labels[task][1] == 0


@pytest.mark.parametrize("columns", [*MISFITS.values(), *MISFIT_LABELS.values()], ids=[*MISFITS, *MISFIT_LABELS])
def test_a_misfit_in_public_data_is_one_clear_line(columns: dict[str, list[object]]) -> None:
    (name,) = columns
    with pytest.raises(LogError, match=f"column '{name}': 1 values do not fit the schema") as caught:
        encode(rows(**columns), schema(public=True))
    assert "\n" not in str(caught.value)


# A row's reading is its own


LONG = "7" * 5000
TEXTS = {
    "u": ["u1", "5", "5.0", "true", "1", "NA", "", None, LONG, LONG + ".0", "-0.0", b"\xff", "a\0"],
    "t": [
        "2026-11-15",
        "2026-11-15T01:02:03.1234567",
        "2026-11-15 01:02:03,123456789Z",
        "2500-01-01T00:00:00",
        "9999-12-31",
        "0001-01-01",
        "2262-05-01T00:00:00.000000001",
        "2026-11-15T00:00:00+02:00",
        "2026-11-15T00:00+99:00",
        "20261115",
        LONG,
        "some day",
        "",
        None,
        b"\xff",
    ],
    "y": ["1", "0", "1.0", "true", "False", "2", "-1", "18446744073709551615", LONG, "yes", "NA", None, b"\xff"],
    "n": [
        *("1", "-1", "1.5", "9007199254740993", "18446744073709551615", "1e400", "1e-400", "nan", "inf", "1_000"),
        *("True", LONG, LONG + ".0", "five", " 2 ", "0x10", "", None, b"\xff"),
    ],
    "c": ["a", "5", "5.0", "-0.0", LONG, LONG + ".0", "true", "NaN", "", None, b"\xff", "2026-11-15"],
}
TEXTS["e"] = TEXTS["t"]
EXTREMES = [0, 1, -1, 123456789, 2**31 - 1, -(2**31), 2**62, -(2**62), 2**63 - 1, -(2**63) + 1, None]
INT32S = [one for one in EXTREMES if one is None or abs(one) <= 2**31]
TEMPORAL = [
    *(pa.array(EXTREMES, pa.int64()).cast(pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
    *(pa.array(EXTREMES, pa.int64()).cast(pa.timestamp(unit, "Europe/Paris")) for unit in ("s", "us")),
    *(pa.array(EXTREMES, pa.int64()).cast(pa.duration(unit)) for unit in ("s", "us", "ns")),
    *(pa.array(EXTREMES, pa.int64()).view(kind) for kind in (pa.time64("us"), pa.time64("ns"), pa.date64())),
    *(pa.array(INT32S, pa.int32()).view(kind) for kind in (pa.time32("s"), pa.time32("ms"), pa.date32())),
]
TYPED = [
    *TEMPORAL,
    pa.array(EXTREMES, pa.int64()),
    pa.array([0.0, -0.0, 5.0, 0.1, 1e300, float("nan"), float("inf"), None]),
    pa.array([True, False, None]),
    pa.array([decimal.Decimal("1.50"), decimal.Decimal("-9" + "0" * 30), None]),
]
NASTY = {
    **{f"{name} as text": {name: pa.array(values, pa.binary())} for name, values in TEXTS.items()},
    **{f"{name} {values.type}": {name: values} for name in "utnce" for values in TYPED},
    **{f"{name} {values.type} coded": {name: values.dictionary_encode()} for name in "utnc" for values in TEMPORAL},
}


@pytest.mark.parametrize("columns", NASTY.values(), ids=NASTY)
@pytest.mark.parametrize("time_format", [None, "%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S%f", "epoch-seconds"])
def test_a_row_is_read_as_if_it_were_alone(columns: dict[str, pa.Array], time_format: str | None) -> None:
    """Fixed bugs: a time with nanoseconds made other rows' times unreadable; a date that Python cannot hold and a
    number of 5,000 digits made the whole log unreadable.
    """
    batch = rows(**columns)
    facts = schema(time_format=time_format)
    whole = encode(batch, facts)
    for row in range(batch.num_rows):
        alone = encode(batch.slice(row, 1).take(pa.array([0])), facts)
        for one, two in zip(arrays(whole), arrays(alone), strict=True):
            np.testing.assert_array_equal(one[row : row + 1], two)


def test_nanoseconds_are_cut_off() -> None:
    texts = ["2026-11-15T00:00:00.1234569", "2500-01-01", "2026-11-15T00:00:00.5"]
    expected = ["2026-11-15T00:00:00.123456", "2500-01-01", "2026-11-15T00:00:00.500000"]
    assert encode(rows(t=texts), schema()).times.tolist() == np.array(expected, "datetime64[us]").tolist()


def test_a_date_is_the_same_unit_in_text_and_in_parquet() -> None:
    facts = schema()
    columns = [pa.array([dt.date(2026, 11, 15)]), pa.array([b"2026-11-15"]), pa.array([2**31 - 7], pa.date32())]
    keys = [encode(rows(u=values), facts).units[0] for values in columns]
    assert unit_codes([np.concatenate(keys)]).tolist() == [0, 0, 1]
    days = pa.array([2**31 - 7, 2**31 - 8, -(2**31), 0], pa.date32())
    assert unit_codes(encode(rows(u=days), facts).units).tolist() == [0, 1, 2, 3]


def test_whole_seconds_are_one_category_in_every_resolution() -> None:
    times = [pa.array([DAY], pa.timestamp(unit)) for unit in ("s", "us", "ns")]
    ids = [encode(rows(c=values), schema()).ids.tolist() for values in (*times, pa.array(["2026-11-15 00:00:00"]))]
    assert ids == [ids[0]] * 4


# Units


def codes(*columns: list[object]) -> list[int]:
    names = [f"k{number}" for number in range(len(columns))]
    facts = schema(unit=names, unit_name="unit")
    keys = {name: pa.array(values) for name, values in zip(names, columns, strict=True)}
    batch = rows(**keys)
    return unit_codes(encode(batch, facts).units).tolist()


def test_unit_codes_count_from_0_in_order_of_appearance() -> None:
    assert codes(["b", "a", "b", "c"]) == [0, 1, 0, 2]


def test_unit_codes_of_several_columns_are_exact() -> None:
    assert codes(["a", "a,b", "a", "a,b"], ["b,c", "c", "b,c", "b,c"]) == [0, 1, 0, 2]
    assert codes(["1", "11", "1"], ["11", "1", "1"]) == [0, 1, 2]
    assert codes(["a\0", "a"], ["b", "\0b"]) == [0, 1]


def test_unit_codes_agree_with_pandas_group_numbers() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.integers(0, 12, (3000, 3))).astype(str)
    expected = frame.groupby([0, 1, 2], sort=False).ngroup().tolist()
    assert codes(*(frame[column].tolist() for column in frame)) == expected


def test_one_unit_written_as_a_number_and_as_text_is_one_unit() -> None:
    facts = schema()
    columns = ([5, 6], [5.0, 7.0], ["5", "6"], [b"5", b"7"])
    keys = [encode(rows(u=pa.array(values)), facts).units[0] for values in columns]
    assert unit_codes([np.concatenate(keys)]).tolist() == [0, 1, 0, 2, 0, 1, 0, 2]


def test_texts_that_only_look_alike_are_different_units() -> None:
    """A fixed bug: "5" and "5.0", "true" and "1" were one unit, so removing two people changed one unit."""
    alike = ["5", "5.0", "05", "5.00", "5e0", " 5", "5.5", "A", "a", "0", "-0.0", "0.0", "1", "true", "True", "false"]
    assert codes(alike) == list(range(len(alike)))


def test_units_that_are_no_utf8_never_share_a_code() -> None:
    """A fixed bug: two undecodable names became the same replacement sign, and so the same unit."""
    facts = schema()
    part = encode(rows(u=pa.array([b"\xff", b"\xfe", b"ok"])), facts)
    assert part.fits.tolist() == [False, False, True]


# The salted hash


def uniforms(facts: Schema, batch: pa.RecordBatch, salt: str = "privads") -> np.ndarray:
    return uniform_of_key(encode(batch, facts), batch, facts, salt=salt)


def test_the_salted_hash_is_uniform_and_independent_of_the_salt() -> None:
    batch = rows(u=[f"u{number}" for number in range(20_000)])
    one, two = (uniforms(schema(), batch, salt) for salt in ("privads", "other"))
    assert ((one >= 0) & (one < 1)).all()
    assert stats.kstest(one, "uniform").pvalue > 1e-6  # over salts, each fails with probability 1e-6
    assert stats.kstest((one - two) % 1, "uniform").pvalue > 1e-6
    assert abs(np.corrcoef(one, two)[0, 1]) * 20_000**0.5 < stats.norm.isf(5e-7)


@pytest.mark.parametrize(
    ("one", "two"), [("a", "b"), ("a-long-salt-of-2026", "b-long-salt-of-2026"), ("", "0"), ("1", "10")]
)
def test_every_part_of_the_salt_counts(one: str, two: str) -> None:
    """A fixed bug: only the last eight bytes of the salt were used."""
    batch = rows(u=["u1", "u2"])
    assert not np.isclose(uniforms(schema(), batch, one), uniforms(schema(), batch, two)).any()


def test_the_salted_hash_is_of_the_unit_alone() -> None:
    batch = rows(u=["u1", "u2", "u1"], c=["a", "b", "c"], n=[1.0, 2.0, 3.0])
    found = uniforms(schema(), batch)
    assert found[0] == found[2] != found[1]
    assert uniforms(schema(), batch.slice(1, 1))[0] == found[1]


def test_the_salted_hash_tells_the_unit_s_columns_apart() -> None:
    facts = schema(unit=["c", "d"], unit_name="unit")
    found = uniforms(facts, rows(c=["a", "b", "a,b", "a"], d=["b", "a", "c", "b,c"]))
    assert len(set(found.tolist())) == 4


def test_without_units_the_salted_hash_is_of_the_whole_row() -> None:
    facts = schema(unit=[])
    batch = rows(c=["a", "a", "a", "z"], n=[1.0, 2.0, 1.0, 1.0])
    found = uniforms(facts, batch)
    assert found[0] == found[2]
    assert len(set(found.tolist())) == 3


# Batches


def test_a_batch_holds_the_asked_rows_in_the_asked_order() -> None:
    facts = schema()
    part = encode(rows(u=["a", "b", "c"], c=["x", "y", "z"], n=[1.0, 2.0, 3.0], y=[0, 1, 0]), facts)
    batch = as_batch(part, np.array([2, 0, 2]))
    assert batch.rows == 3
    assert batch.dense[:, 0].tolist() == part.dense[[2, 0, 2], 0].tolist()
    assert batch.ids.view(3, 2).tolist() == part.ids[[2, 0, 2]].tolist()
    assert batch.offsets.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert batch.labels["click"].tolist() == [0, 0, 0]
    assert batch.weights.tolist() == [1, 1, 1]
