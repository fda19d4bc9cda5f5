"""`Logs`: lazy, split row by row, and about the real files that people use."""

import builtins
import datetime as dt
import io
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from privads.batch import Batch
from privads.features.pipeline import fit_features
from privads.features.transforms import Pipeline
from privads.logs import cache, reader
from privads.logs import logs as logs_module
from privads.logs.logs import Logs
from privads.logs.reader import LogError
from privads.logs.schema import Schema

DATA = Path(__file__).parents[4] / "shared" / "data"
MOMENT = dt.datetime(2026, 11, 15)
HOUR = dt.timedelta(hours=1)


def schema(**changes: object) -> Schema:
    facts = {
        "dataset": "ads",
        "population": 100,
        "unit": ["u"],
        "time": "t",
        "labels": {"y": "y", "conversion": {"time": "e", "within_hours": 24}},
        "numeric": {"n": {"range": [0, 1000]}},
    }
    return Schema.load({**facts, **changes})


def write(path: Path, **columns: list[object]) -> Path:
    count = max(len(values) for values in columns.values())
    usual = {"u": "u1", "t": MOMENT, "e": None, "y": 1, "n": 5.0}
    frame = pd.DataFrame({name: columns.get(name, [value] * count) for name, value in usual.items()})
    table = pa.Table.from_pandas(frame.assign(e=pd.to_datetime(frame["e"])), preserve_index=False)
    pq.write_table(table, path)
    return path


def numbers(logs: Logs) -> list[int]:
    """Which rows ``logs`` has, told by their column n."""
    dense = logs.take(np.arange(len(logs.units))).dense[:, 0].double().numpy()
    return np.round(np.expm1((dense + 1) / 2 * np.log1p(1000))).astype(int).tolist()


# Laziness


def test_making_and_splitting_opens_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened")

    facts = schema()
    for place, name in (
        (builtins, "open"),
        (io, "open"),
        (Path, "open"),
        (Path, "is_dir"),
        (Path, "iterdir"),
        (reader.glob, "glob"),
        (reader.pa, "input_stream"),
        (reader.pyarrow.csv, "read_csv"),
        (reader.pyarrow.parquet, "ParquetFile"),
        (reader.pyarrow.parquet, "read_schema"),
    ):
        monkeypatch.setattr(place, name, never)
    logs = Logs(tmp_path / "missing.parquet", facts)
    train, test = logs.split(after="2026-11-15")
    few, most = logs.split(test_fraction=0.25)
    for one in (logs, train, test, few, most):
        assert "ads" in repr(one)
        assert one.split_text
    with pytest.raises(AssertionError, match="a file was opened"):
        logs.check()


def test_check_reads_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("rows were read")

    logs = Logs(write(tmp_path / "a.parquet", n=[1.0]), schema(public=True))
    monkeypatch.setattr(logs_module, "read_batches", never)
    logs.check()
    with pytest.raises(AssertionError, match="rows were read"):
        _ = logs.units


def test_rows_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = Logs(write(tmp_path / "a.parquet", n=[1.0, 2.0]), schema())
    assert numbers(logs) == [1, 2]
    monkeypatch.setattr(logs_module, "read_batches", None)
    assert numbers(logs) == [1, 2]


@pytest.mark.parametrize("side", [0, 1, None])
@pytest.mark.parametrize("fitted", [False, True])
def test_rows_read_one_by_one_are_those_that_are_taken(tmp_path: Path, fitted: bool, side: int | None) -> None:
    """The oracle is the file of encoded rows, which are grouped by unit; here each row is told by its number n."""
    rng = np.random.default_rng(0)
    write(
        tmp_path / "a.parquet",
        u=[f"u{number}" for number in rng.integers(0, 40, 300)],
        t=[MOMENT + int(hours) * HOUR for hours in rng.integers(-50, 50, 300)],
        e=[MOMENT if known else None for known in rng.integers(0, 2, 300)],
        y=rng.choice([0.0, 1.0, np.nan], 300).tolist(),
        n=rng.permutation(300).astype(float).tolist(),
    )
    facts = schema(categorical={"y2": {"buckets": 9}, "hour": {"buckets": 30, "part": "hour"}})
    frame = pq.read_table(tmp_path / "a.parquet").to_pandas()
    frame["y2"] = [None if one % 7 == 0 else f"c{one % 5}" for one in range(300)]
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), tmp_path / "a.parquet")
    logs = Logs(tmp_path / "a.parquet", facts)
    if fitted:
        hashed = [{"kind": "hashed", "columns": ["y2"], "buckets": 5}, {"kind": "scaled", "column": "n"}]
        hashed += [{"kind": "frequency"}, {"kind": "recency", "columns": ["y2"]}]  # of both sides' earlier rows
        logs = logs.with_features(fit_features(Pipeline.model_validate({"transforms": hashed}), logs))
    logs = logs if side is None else logs.split(after=MOMENT)[side]
    parts = [batch for _, batch in logs.judged()]
    taken = logs.take(np.arange(len(logs.units)))

    def rows(batches: list[Batch]) -> list[list[float]]:
        fields = len(logs.schema.categorical)
        found = []
        for one in batches:
            columns = [one.dense, one.ids.reshape(one.rows, fields)]
            columns += [each[task].float()[:, None] for each in (one.labels, one.observed) for task in one.labels]
            found += np.concatenate([column.numpy() for column in columns], axis=1).tolist()
        return sorted(found)

    assert rows(parts) == rows([taken])
    assert len(rows(parts)) > 50


@pytest.mark.parametrize("use", ["check", "units", "take"])
def test_a_missing_file_or_column_is_one_clear_line(tmp_path: Path, use: str) -> None:
    """A fixed bug: reading without `check` showed the library's own error."""
    pq.write_table(pa.table({"u": ["a"], "t": [MOMENT], "ee": [None], "y": [1], "n": [1.0]}), tmp_path / "a.parquet")
    uses = {"check": Logs.check, "units": lambda logs: logs.units, "take": lambda logs: logs.take(np.arange(1))}
    with pytest.raises(LogError, match=r"a\.parquet: no column 'e'; did you mean 'ee'") as caught:
        uses[use](Logs(tmp_path / "a.parquet", schema()))
    assert "\n" not in str(caught.value)
    with pytest.raises(LogError, match="no such file"):
        uses[use](Logs(tmp_path / "b.parquet", schema()))


def test_several_files_are_one_log_in_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", n=[3.0, 4.0], u=["y", "x"])
    write(tmp_path / "a.parquet", n=[1.0, 2.0], u=["x", "y"])
    logs = Logs(tmp_path, schema())
    assert numbers(logs) == [1, 4, 2, 3]  # the rows of x and then those of y
    assert logs.units.tolist() == [0, 0, 1, 1]


def test_a_log_without_fitting_rows_is_empty_and_no_error(tmp_path: Path) -> None:
    logs = Logs(write(tmp_path / "a.parquet", u=[None, ""]), schema())
    assert logs.units.tolist() == []
    assert logs.take(np.zeros(0, dtype=np.int64)).rows == 0


def test_without_unit_columns_every_row_is_its_own_unit(tmp_path: Path) -> None:
    logs = Logs(write(tmp_path / "a.parquet", u=["x", "x", "y"]), schema(unit=[]))
    assert logs.units.tolist() == [0, 1, 2]


def test_the_reference_is_read_where_there_is_one(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", n=[0.25, 0.5])
    logs = Logs(file, schema(numeric={}, categorical={"u": {"buckets": 8}}, reference={"y": "n"}))
    reference = logs.reference("y")
    assert reference is not None
    assert reference.tolist() == [0.25, 0.5]
    assert logs.reference("conversion") is None


@pytest.mark.parametrize("function", ["read_batches", "encode", "unit_codes"])
def test_what_goes_wrong_with_private_rows_is_never_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """A fixed bug: an unforeseen error showed a person's value, in the message or in the traceback."""

    def fail(*_: object, **__: object) -> None:
        raise OverflowError("alice")

    monkeypatch.setattr(cache if function == "unit_codes" else logs_module, function, fail)
    file = write(tmp_path / "a.parquet", n=[1.0])
    with pytest.raises(LogError) as caught:
        _ = Logs(file, schema()).units
    assert str(caught.value) == f"the rows of {file} cannot be read as the schema says"
    assert "alice" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(OverflowError, match="alice"):
        _ = Logs(file, schema(public=True)).units


# Splits by time


TICK = dt.timedelta(microseconds=1)


@pytest.mark.parametrize(
    "after",
    [
        "2026-11-15",
        "2026-11-15T00:00:00",
        MOMENT,
        "2026-11-15T02:00:00+02:00",
        dt.datetime(2026, 11, 14, 19, tzinfo=dt.timezone(dt.timedelta(hours=-5))),
    ],
    ids=str,
)
def test_a_row_exactly_at_the_time_is_a_test_row(tmp_path: Path, after: str | dt.datetime) -> None:
    times = [MOMENT - HOUR, MOMENT - TICK, MOMENT, MOMENT + TICK]
    train, test = Logs(write(tmp_path / "a.parquet", t=times, n=[1.0, 2.0, 3.0, 4.0]), schema()).split(after=after)
    assert (numbers(train), numbers(test)) == ([1, 2], [3, 4])


def test_times_with_a_zone_are_compared_in_utc(tmp_path: Path) -> None:
    east = dt.timezone(dt.timedelta(hours=2))
    times = [dt.datetime(2026, 11, 15, 1, 59, tzinfo=east), dt.datetime(2026, 11, 15, 2, tzinfo=east)]
    train, test = Logs(write(tmp_path / "a.parquet", t=times, n=[1.0, 2.0]), schema()).split(after=MOMENT)
    assert (numbers(train), numbers(test)) == ([1], [2])


def test_in_training_a_label_is_unobserved_until_its_window_closes(tmp_path: Path) -> None:
    shown = [
        MOMENT - 24 * HOUR - TICK,
        MOMENT - 24 * HOUR,
        MOMENT - 24 * HOUR + TICK,
        MOMENT - HOUR,
        MOMENT - 30 * HOUR,
    ]
    # the second is a fixed bug: its event, at the split itself, was taken for known in training
    events = [shown[0] + HOUR, MOMENT, None, shown[3] + TICK, MOMENT + HOUR]
    file = write(tmp_path / "a.parquet", t=shown, e=events)
    batches = {}
    for name, logs in zip(("train", "test"), Logs(file, schema()).split(after=MOMENT), strict=True):
        batches[name] = logs.take(np.arange(len(logs.units)))
    assert batches["train"].observed["conversion"].tolist() == [True, False, False, False, True]
    assert batches["train"].labels["conversion"][[0, 4]].tolist() == [1, 0]
    assert batches["train"].observed["y"].all()  # a label without a window is known at once
    everything = Logs(file, schema()).take(np.arange(5))
    assert everything.observed["conversion"].all()


def test_in_testing_every_label_is_observed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", t=[MOMENT, MOMENT + HOUR], e=[MOMENT + 2 * HOUR, None])
    batch = Logs(file, schema()).split(after=MOMENT)[1].take(np.arange(2))
    assert batch.observed["conversion"].tolist() == [True, True]
    assert batch.labels["conversion"].tolist() == [1, 0]


# Splits by a salted hash


@pytest.fixture(scope="module")
def population(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    users = rng.integers(0, 3000, 9000)
    return pd.DataFrame({"u": [f"u{number}" for number in users], "n": np.arange(9000) % 1000})


def sides(folder: Path, frame: pd.DataFrame, **split: object) -> dict[str, str]:
    """Which side each unit of ``frame`` falls on; asserts that it is one side."""
    file = write(folder / "sides.parquet", u=frame["u"].tolist(), n=frame["n"].astype(float).tolist())
    facts = schema(categorical={"u": {"buckets": 2**30}})
    found: dict[str, str] = {}
    names = {}
    everything = Logs(file, facts)
    by_unit = frame["u"].iloc[frame.groupby("u", sort=False).ngroup().argsort(kind="stable")]
    for unit, bucket in zip(by_unit, everything.take(np.arange(len(frame))).ids.tolist(), strict=True):
        names[bucket] = unit
    assert len(names) == frame["u"].nunique()
    total = 0
    for name, logs in zip(("train", "test"), everything.split(**split), strict=True):  # type: ignore[arg-type]
        buckets = logs.take(np.arange(len(logs.units))).ids.tolist()
        total += len(buckets)
        for bucket in buckets:
            assert found.setdefault(names[bucket], name) == name, "a unit is on both sides"
    assert total == len(frame)
    return found


def test_a_salted_split_keeps_each_unit_on_one_side_in_the_stated_share(
    tmp_path: Path, population: pd.DataFrame
) -> None:
    found = sides(tmp_path, population, test_fraction=0.3)
    testing, units = sum(side == "test" for side in found.values()), len(found)
    # Over salts, fails with probability 1e-6; a share off by 0.08 is missed with probability 1e-5 at 2,850 units.
    assert stats.binomtest(testing, units, 0.3).pvalue > 1e-6


def test_removing_or_adding_rows_changes_no_other_unit_s_side(tmp_path: Path, population: pd.DataFrame) -> None:
    whole = sides(tmp_path, population, test_fraction=0.3)
    gone = population["u"].isin(population["u"].unique()[::3])
    part = sides(tmp_path, population[~gone], test_fraction=0.3)
    backwards = sides(tmp_path, population[::-1], test_fraction=0.3)
    assert part == {unit: whole[unit] for unit in part}
    assert backwards == whole


def test_the_salt_changes_the_split(tmp_path: Path, population: pd.DataFrame) -> None:
    one, two = (sides(tmp_path, population, test_fraction=0.5, salt=salt) for salt in ("one", "two"))
    agree = sum(one[unit] == two[unit] for unit in one)
    assert stats.binomtest(agree, len(one), 0.5).pvalue > 1e-6  # fails with probability 1e-6


def test_splits_of_other_shares_are_nested(tmp_path: Path, population: pd.DataFrame) -> None:
    few, many = (sides(tmp_path, population, test_fraction=share) for share in (0.1, 0.4))
    assert all(many[unit] == "test" for unit, side in few.items() if side == "test")


# Splits that are refused


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({}, "split takes either after=TIME or test_fraction=SHARE"),
        ({"after": MOMENT, "test_fraction": 0.5}, "split takes either"),
        ({"test_fraction": 0.0}, r"test_fraction must be in \(0, 1\), got 0.0"),
        ({"test_fraction": 1.0}, "test_fraction must be in"),
        ({"test_fraction": float("nan")}, "test_fraction must be in"),
        ({"after": "yesterday-ish"}, "after must be a time such as 2026-11-15T00:00:00, got 'yesterday-ish'"),
        ({"after": "NaT"}, "after must be a time"),
        ({"after": 2026}, "after must be a time, got 2026"),
    ],
    ids=str,
)
def test_a_split_that_cannot_be_made_is_refused(split: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Logs("a.parquet", schema()).split(**split)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_split_by_time_needs_a_time() -> None:
    facts = schema(time=None, labels={"y": "y"})
    with pytest.raises(ValueError, match="a split by time needs the time column"):
        Logs("a.parquet", facts).split(after=MOMENT)


def test_a_side_is_not_split_again() -> None:
    """A fixed bug: the second split forgot the first, and put test rows into training."""
    train, _ = Logs("a.parquet", schema()).split(after=MOMENT)
    with pytest.raises(ValueError, match="already one side of a split .*: split the whole log"):
        train.split(test_fraction=0.5)


def test_the_split_is_told_in_public_constants() -> None:
    logs = Logs("a.parquet", schema())
    assert logs.split_text == "all rows"
    assert [one.split_text for one in logs.split(after=MOMENT)] == [
        "rows before 2026-11-15T00:00:00",
        "rows at or after 2026-11-15T00:00:00",
    ]
    told = [one.split_text for one in logs.split(test_fraction=0.2, salt="s")]
    assert told[0] == "units whose salted hash (salt 's') falls in the train share of 0.8"
    assert told[1] == "units whose salted hash (salt 's') falls in the test share of 0.2"


# Nothing visible depends on a row


def test_a_misfit_row_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    good = "u,t,e,y,n\nu1,2026-11-14,,1,1\nu2,2026-11-14T05:00:00,2026-11-14T06:00:00,0,2\n"
    bad = [
        "u3,2026-11-14,,1,inf\n",
        "u3,2026-11-14,,1,many\n",
        ",2026-11-14,,1,3\n",
        "u3,some day,,1,3\n",
        "u3,,,1,3\n",
        "u3,2026-11-14\n",
        'u3,2026-11-14,,1,"3\n',
        "\udcff\udcfe,2026-11-14,,1,3\n",
    ]
    (tmp_path / "good.csv").write_text(good)
    expected = Logs(tmp_path / "good.csv", schema())
    for number, line in enumerate(bad):
        head, first, second = good.splitlines(keepends=True)
        text = head + first + line + second
        (tmp_path / "bad.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
        found = Logs(tmp_path / "bad.csv", schema())
        assert found.units.tolist() == expected.units.tolist(), number
        assert numbers(found) == numbers(expected) == [1, 2]
        for split in ({"after": "2026-11-14T03:00"}, {"test_fraction": 0.5}):
            for side, without in zip(found.split(**split), expected.split(**split), strict=True):  # type: ignore[arg-type]
                assert numbers(side) == numbers(without)
        with pytest.raises(LogError) as caught:
            _ = Logs(tmp_path / "bad.csv", schema(public=True)).units
        assert "\n" not in str(caught.value)


# Real files


def real(path: str, name: str) -> Logs:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not here: it holds real data that may not be redistributed")
    logs = Logs(DATA / path, name)
    logs.check()
    return logs


@pytest.mark.parametrize(
    ("path", "name", "rows", "task", "rate"),
    [
        ("avazu/avazu_random20k.csv.gz", "avazu", 16_160, "click", 0.168),
        ("avazu/avazu_first10k.csv.gz", "avazu", 9_999, "click", 0.171),
        ("criteo-display/criteo_kaggle_first8000.tsv.gz", "criteo", 8_000, "click", 0.216),
        ("talkingdata-adtracking/clicks.csv.gz", "talkingdata", 71_439, "conversion", 0.0024),
    ],
)
def test_real_files_read_whole_with_the_known_label_rate(
    path: str, name: str, rows: int, task: str, rate: float
) -> None:
    logs = real(path, name)
    batch = logs.take(np.arange(rows))
    assert len(logs.units) == rows
    assert batch.observed[task].all()
    assert batch.labels[task].mean().item() == pytest.approx(rate, rel=0.03)
    assert batch.dense.abs().max().item() <= 1 if batch.dense.numel() else True
    starts = logs.schema.bucket_starts
    fields = batch.ids.view(rows, -1).numpy()
    assert (fields >= starts[:-1]).all()
    assert (fields < starts[1:]).all()


def test_talkingdata_protects_a_device_and_not_only_an_ip() -> None:
    logs = real("talkingdata-adtracking/clicks.csv.gz", "talkingdata")
    frame = pd.read_csv(DATA / "talkingdata-adtracking/clicks.csv.gz")
    expected = frame.groupby(["ip", "device", "os"], sort=False).ngroup().to_numpy()
    assert np.array_equal(logs.units, np.sort(expected))
    assert logs.schema.protected_unit == "device"
    assert "ip" not in logs.schema.categorical
    assert logs.schema.population == pytest.approx(expected.max() + 1, rel=0.05)


def test_avazu_splits_by_its_hour() -> None:
    train, test = real("avazu/avazu_random20k.csv.gz", "avazu").split(after="2014-10-27")
    hours = pd.read_csv(DATA / "avazu/avazu_random20k.csv.gz")["hour"]
    assert len(train.units) == (hours < 14102700).sum()
    assert len(test.units) == (hours >= 14102700).sum()
