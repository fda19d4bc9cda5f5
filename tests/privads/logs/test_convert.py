"""Converters: what they write is what the source says, `Logs` reads it, and nothing is half-written."""

import doctest
import gzip
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from privads.config import ConfigError
from privads.logs import convert as convert_module
from privads.logs.convert import CONVERTERS, convert, toml
from privads.logs.logs import Logs
from privads.logs.reader import LogError
from privads.logs.schema import Schema

DATA = Path(__file__).parents[4] / "shared" / "data"
FEATURES = "weekday:2\t0\nhour:18\t1\nhour:19\t2\nIP:1.2.3.*\t3\nIP:1.2.4.*\t4\ndomain:a:b\t5\n"


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def converted(name: str, source: Path, folder: Path) -> tuple[list[dict[str, object]], Schema]:
    """The rows that were written and their schema, which `Logs` reads all of."""
    rows = convert(name, source, folder / "out" / "log.parquet")
    table = pq.read_table(folder / "out" / "log.parquet")
    assert rows == table.num_rows
    logs = Logs(folder / "out" / "log.parquet", folder / "out" / "ads.toml")
    assert len(logs.units) == rows
    assert logs.schema.population == logs.units[-1] + 1
    assert logs.schema.population_of("example") == rows
    assert logs.schema.public
    assert sorted(file.name for file in (folder / "out").iterdir()) == ["ads.toml", "log.parquet"]
    return table.to_pylist(), logs.schema


def test_doctests_run() -> None:
    assert doctest.testmod(convert_module).failed == 0


def test_every_converter_stands_on_the_page() -> None:
    page = (Path(__file__).parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")
    for name in CONVERTERS:
        assert f"| `{name}` |" in page, name


def test_the_schema_that_is_written_is_the_one_that_was_meant() -> None:
    facts = {
        "dataset": 'a "b" é',
        "population": 3,
        "public": True,
        "unit": ["u"],
        "labels": {"y": "y"},
        "numeric": {"n, n": {"range": [-5, 0.5]}},
        "categorical": {"a.b": {"buckets": 8}, "hour": {"part": "hour", "buckets": 32}},
        "time": "t",
    }
    assert Schema.parse(toml(facts)) == Schema.load(facts)


# libfm


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_libfm_with_an_index_has_its_fields_without_the_ip(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "ipinyou" / f"featindex.fm.txt{suffix}", FEATURES)
    write(tmp_path / "ipinyou" / f"train.fm.txt{suffix}", "0 0:1 1:1 3:1 5:1\n1 0:1 2:1 4:1\n")
    rows, schema = converted("libfm", tmp_path / "ipinyou", tmp_path)
    assert rows == [
        {"label": 0, "weekday": 0, "hour": 1, "domain": 5},
        {"label": 1, "weekday": 0, "hour": 2, "domain": None},
    ]
    assert list(schema.categorical) == ["weekday", "hour", "domain"]
    assert (schema.protected_unit, schema.tasks, schema.dataset) == ("example", ("click",), "ipinyou")


def test_libfm_fields_are_those_of_the_line_or_places(tmp_path: Path) -> None:
    rows, _ = converted("libfm", write(tmp_path / "a.ffm", "1 0:7:1 2:9:1\n\n-1 2:8:1.0\n"), tmp_path)
    assert rows == [{"label": 1, "field_0": 7, "field_2": 9}, {"label": 0, "field_0": None, "field_2": 8}]
    rows, _ = converted("libfm", write(tmp_path / "b" / "a.fm", "1 7:1 9:1\n0 6:1 8:1\n"), tmp_path / "b")
    assert rows == [{"label": 1, "field_0": 7, "field_1": 9}, {"label": 0, "field_0": 6, "field_1": 8}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 0:7:1\n2 0:7:1\n", "line 2: the label must be 1, 0 or -1"),
        ("1 0:7:1 1:3:0.5\n", "line 1: only values of 1 are categories"),
        ("1 0:7:1 0:8:1\n", "line 1: two values of field field_0"),
        ("1 seven:1\n", "line 1: expected INDEX:VALUE or FIELD:INDEX:VALUE"),
        ("1 7\n", "line 1: only values of 1"),
        ("1\n0\n", "holds no features"),
        ("", "holds no features"),
    ],
)
def test_what_is_no_libfm_is_one_clear_line_and_writes_nothing(tmp_path: Path, text: str, message: str) -> None:
    source = write(tmp_path / "a.fm", text)
    with pytest.raises(LogError, match=message) as caught:
        convert("libfm", source, tmp_path / "out" / "log.parquet")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


# Interactions


def chosen(rows: list[dict[str, object]], user: str, engaged: int) -> list[object]:
    return [row["item"] for row in rows if (row["user"], row["engaged"]) == (user, engaged)]


LINES = ["ann " + " ".join(map(str, range(10))), "bob 3 30 3", "cy " + " ".join(map(str, range(10, 40)))]


def test_interactions_are_what_users_chose_and_as_much_of_what_they_did_not(tmp_path: Path) -> None:
    rows, schema = converted("interactions", write(tmp_path / "train.txt", "\n".join(LINES)), tmp_path)
    assert chosen(rows, "ann", 1) == [str(item) for item in range(10)]
    assert chosen(rows, "bob", 1) == ["3", "30"]
    for user, others in (("ann", 10), ("bob", 2), ("cy", 10)):  # cy has 30 of the 40 items: 10 are left
        negatives = chosen(rows, user, 0)
        assert len(set(negatives)) == len(negatives) == others
        assert not set(negatives) & set(chosen(rows, user, 1))
    assert schema.unit == ("user",)
    assert "user" not in schema.categorical


def test_a_users_drawn_items_are_seeded_and_depend_on_no_other_user(tmp_path: Path) -> None:
    first, _ = converted("interactions", write(tmp_path / "a" / "train.txt", "\n".join(LINES)), tmp_path / "a")
    again, _ = converted("interactions", write(tmp_path / "b" / "train.txt", "\n".join(LINES)), tmp_path / "b")
    assert first == again
    other = ["zed 0 39", *reversed(LINES)]  # another user and another order, the same items
    third, _ = converted("interactions", write(tmp_path / "c" / "train.txt", "\n".join(other)), tmp_path / "c")
    for user in ("ann", "bob", "cy"):
        assert chosen(third, user, 0) == chosen(first, user, 0)
    (source,) = (batch.to_pylist() for batch in convert_module.interactions(tmp_path / "a/train.txt", seed=1).batches)
    assert chosen(source, "ann", 0) != chosen(first, "ann", 0)


def test_a_user_with_two_lines_is_refused_without_being_named(tmp_path: Path) -> None:
    source = write(tmp_path / "train.txt", "ann 1 2\nbob 3\nann 3\n")
    with pytest.raises(LogError, match="line 3: this user has a line already") as caught:
        convert("interactions", source, tmp_path / "out" / "log.parquet")
    assert "ann" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


# Joins


BANDIT = (
    ",timestamp,item_id,position,click,propensity_score,user_feature_0,user_feature_1,user_feature_2,user_feature_3"
)
BANDIT_LOG = f"""{BANDIT},user-item_affinity_0,user-item_affinity_1
0,2019-11-24 00:01:03.979311+00:00,1,2,0,0.25,a,b,c,d,0.0,1.0
1,2019-11-24 00:01:03+00:00,0,1,1,0.5,a,b,c,e,0.0,0.0
2,2019-11-24 00:02:00+00:00,7,3,0,0.5,a,b,c,e,0.0,0.0
"""
BANDIT_ITEMS = """,item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3
0,0,-0.5,p,q,r
1,1,0.75,s,q,r
"""


def test_the_open_bandit_log_has_its_items_features_and_no_affinity(tmp_path: Path) -> None:
    write(tmp_path / "men" / "men.csv", BANDIT_LOG)
    write(tmp_path / "men" / "item_context.csv", BANDIT_ITEMS)
    rows, schema = converted("open-bandit", tmp_path / "men", tmp_path)
    assert [(row["item_id"], row["click"], row["item_feature_0"], row["item_feature_1"]) for row in rows] == [
        (1, 0, 0.75, "s"),
        (0, 1, -0.5, "p"),
        (7, 0, None, None),  # not among the items
    ]
    assert rows[0]["propensity_score"] == 0.25
    assert not {name for name in (*rows[0], *schema.columns) if "affinity" in name}
    assert "propensity_score" not in schema.columns
    assert schema.protected_unit == "example"


def test_alibabas_events_have_their_items_features_and_no_users(tmp_path: Path) -> None:
    write(
        tmp_path / "ali" / "edges.tsv.gz",
        "5\t11\t1\t20190616\n5\t12\t4\t20190617\n6\t11\t3\t20190616\n6\t13\t2\t20190616\n",
    )
    write(tmp_path / "ali" / "items.tsv.gz", "12\t33\t50\t0\t21.8\n11\t33\t51\t9\t145\n")
    rows, schema = converted("alibaba", tmp_path / "ali", tmp_path)  # there is no users.tsv
    assert [(row["item"], row["price"], row["item_feature_2"]) for row in rows] == [
        (11, 145.0, 51),
        (12, 21.8, 50),
        (11, 145.0, 51),
        (13, None, None),
    ]
    assert [[row[task] for task in schema.tasks] for row in rows] == [
        [1, 0, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 1, 0],
        [0, 1, 0, 0],
    ]
    assert (schema.unit, schema.population) == (("user",), 2)
    train, test = Logs(tmp_path / "out" / "log.parquet", schema).split(after="2019-06-17")
    assert (len(train.units), len(test.units)) == (3, 1)


@pytest.mark.parametrize(
    ("edges", "items", "message"),
    [
        ("5\t11\t9\t20190616\n", "11\t1\t1\t1\t1\n", "must be 1, 2, 3 or 4"),
        ("5\t11\tx\t20190616\n", "11\t1\t1\t1\t1\n", "of the columns user, item, type, day$"),
        ("5\t11\t1\n", "11\t1\t1\t1\t1\n", "of the columns user, item, type, day$"),
        ("5\t11\t1\t20190616\n", "11\t1\t1\t1\t1\n11\t1\t1\t1\t1\n", "an item has two lines"),
        ("5\t11\t1\t20190616\n", None, r"needs one file items.tsv\*, found 0"),
    ],
)
def test_a_join_that_cannot_be_is_one_clear_line(tmp_path: Path, edges: str, items: str | None, message: str) -> None:
    write(tmp_path / "ali" / "edges.tsv", edges)
    if items is not None:
        write(tmp_path / "ali" / "items.tsv", items)
    with pytest.raises(LogError, match=message) as caught:
        convert("alibaba", tmp_path / "ali", tmp_path / "log.parquet")
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["ali"]


# Whole or nothing


def test_a_fault_in_the_last_row_leaves_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "a.ffm", "1 0:7:1\n" * 70_000 + "5 0:7:1\n")  # the first batch was written by then
    with pytest.raises(LogError, match="line 70001"):
        convert("libfm", source, tmp_path / "log.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["a.ffm"]


def test_what_exists_is_never_overwritten(tmp_path: Path) -> None:
    source = write(tmp_path / "a.ffm", "1 0:7:1\n")
    for name in ("log.parquet", "ads.toml"):
        file = write(tmp_path / name / name, "precious")
        with pytest.raises(ConfigError, match="exists and is not overwritten"):
            convert("libfm", source, file.parent / "log.parquet")
        assert file.read_text() == "precious"
        assert len(list(file.parent.iterdir())) == 1


# The real files


REAL = {
    "alibaba": ("alibaba-ecomm", 59_975, 1_037, {"cart": 10_808 / 59_975, "buy": 4_776 / 59_975}),
    "interactions": ("pinterest-10core/train.txt.gz", 2 * 790_006, 37_501, {"engaged": 0.5}),  # 805,742 with repeats
    "libfm": ("ipinyou-deepctr", 26_773, 26_773, {"click": 0.0095}),
    "open-bandit": ("obd-small/bts/men", 10_000, 10_000, {"click": 0.0069}),
}


@pytest.mark.parametrize("name", CONVERTERS)
def test_the_real_source_has_the_rows_users_and_rates_that_its_notes_say(name: str, tmp_path: Path) -> None:
    source, rows, units, rates = REAL[name]
    if not (DATA / source).exists():
        pytest.skip(f"the real logs are not part of the repository: no ../shared/data/{source}")
    assert convert(name, DATA / source, tmp_path / "log.parquet") == rows
    logs = Logs(tmp_path / "log.parquet", tmp_path / "ads.toml")
    assert logs.units[-1] + 1 == logs.schema.population == units
    batch = logs.take(np.arange(rows))
    for task, rate in rates.items():
        assert float(batch.labels[task].double().mean()) == pytest.approx(rate, rel=0.01)
    assert not {"IP", "user"} & set(logs.schema.categorical)
