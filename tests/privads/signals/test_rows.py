"""Rows where they lie: DuckDB, PostgreSQL and Spark count the same query alike, and no row decides what is told."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom

from accounting.budget import Budget
from privads.logs.schema import Schema
from privads.signals.bounds import Bounds
from privads.signals.counting import Counted
from privads.signals.query import OTHER, Grid, OneOf, Query, Sum
from privads.signals.release import Release, _keys
from privads.signals.rows import Warehouse, count
from tests.privads.signals.conftest import Stored

KINDS = {"user": "text", "site": "text", "click": "bigint", "buys": "double", "bid": "double", "n": "bigint"}
ODD = [
    "a",
    "A",
    "a ",
    "it's",
    "back\\slash",
    '"',
    "a\nb",
    "%s",
    "{}",
    "\U0001f600",
    "=",
    "x" * 1024 + "y",
    "x" * 1024 + "z",
]
NOTHING = [None, "", "NA"]
NUMBERS = [
    -1e308,
    -3.0,
    -0.0,
    0.0,
    0.4,
    1.0,
    4.999,
    5.0,
    9.99,
    10.0,
    50.0,
    1e308,
    5e-324,
    math.nan,
    math.inf,
    -math.inf,
    None,
]
WHOLE = [None, -(2**63), -1, 0, 1, 2, 7, 300, 2**63 - 1]
EDGES = (0.0, 1.0, 5.0, 8.0)
NAMED = ("a", "it's", "back\\slash", "\U0001f600", "a\nb")

SCHEMA = Schema.load(
    {
        "dataset": "made-up",
        "population": 100,
        "unit": ["user"],
        "public": True,
        "labels": {"click": "click", "buys": {"value": "buys", "kind": "count", "most": 4}},
        "numeric": {"bid": {"range": [-1, 9]}, "n": {"range": [-10, 1000]}},
        "categorical": {"site": {"buckets": 8}},
    }
)
QUERIES = [
    Query(by=("site",), label="click", sums=(Sum(column="n", most=5.0),)),
    Query(
        by=(OneOf(column="site", values=NAMED), Grid(column="bid", edges=EDGES)),
        sums=(Sum(column="bid", most=2.0, step=0.25), Sum(column="buys", most=3.0), Sum(column="click")),
    ),
    Query(by=("site", Grid(column="n", edges=(0.0, 1.0, 100.0))), keys=(("a", 0), ("never", 1), (None, None))),
    Query(by=(), label="click"),
]


def made(rows: int = 600, users: int = 30, seed: int = 0) -> dict[str, list[Any]]:
    rng = np.random.default_rng(seed)

    def pick(values: Sequence[Any]) -> list[Any]:
        return [values[i] for i in rng.integers(0, len(values), rows)]

    return {
        "user": pick([*(f"u{i}" for i in range(users)), None, ""]),
        "site": pick([*ODD, *NOTHING]),
        "click": pick(WHOLE),
        "buys": pick(NUMBERS),
        "bid": pick(NUMBERS),
        "n": pick(WHOLE),
    }


def brute(rows: Mapping[str, Sequence[Any]], query: Query) -> dict[tuple[Any, ...], dict[str, int]]:
    """The definition, row by row."""
    found: dict[tuple[Any, ...], Counter[str]] = {}
    for row in (dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)):
        if row["user"] in NOTHING or (row["bid"] is not None and math.isinf(row["bid"])):
            continue
        click = row["click"] if row["click"] in (0, 1) else None
        if query.label is not None and click is None:
            continue
        values = {"click": click, "n": number(row["n"], -10, 1000), "bid": number(row["bid"], -1, 9)}
        buys = row["buys"]
        values["buys"] = buys if buys is not None and 0 <= buys < math.inf and float(buys).is_integer() else None
        site = None if row["site"] in NOTHING else row["site"][:1024]
        key: list[Any] = []
        for one in query.by:
            if isinstance(one, Grid):
                value = values[one.column]
                key.append(None if value is None else sum(value >= edge for edge in one.edges[1:-1]))
            elif isinstance(one, OneOf):
                key.append(site if site is None or site in one.values else OTHER)
            else:
                key.append(site)
        cell = found.setdefault(tuple(key), Counter())
        cell["rows" if query.label is None else ("negatives", "positives")[click or 0]] += 1
        for added in query.sums:
            value = values[added.column]
            cell[added.name] += math.floor(min(max(value or 0.0, 0.0), added.most) / added.step + 0.5)
    return {key: {measure: cell[measure] for measure in query.measures} for key, cell in found.items()}


def number(value: float | None, low: float, high: float) -> float | None:
    return None if value is None or math.isnan(value) else min(max(value, low), high)


def as_found(query: Query, one: Counted) -> dict[tuple[Any, ...], dict[str, int]]:
    keys = _keys(query, one)
    assert len(set(keys)) == len(keys)
    return {key: {m: int(one.values[m][i]) for m in query.measures} for i, key in enumerate(keys)}


def counts(
    table: Any, queries: Sequence[Query], bounds: Bounds, *, owners: int = 1
) -> list[dict[tuple[Any, ...], Any]]:
    source = Warehouse(table=table, schema=SCHEMA)
    source.check()
    found = count(source, queries, unit_columns=owners, bounds=bounds)
    return [as_found(query, one) for query, one in zip(queries, found, strict=True)]


@pytest.mark.parametrize("owners", [0, 1])
def test_the_same_query_counts_the_same_rows_everywhere(stored: Stored, owners: int) -> None:
    rows = made()
    found = counts(stored(rows, KINDS), QUERIES, Bounds(rows=10_000 if owners else 1), owners=owners)
    for query, cells in zip(QUERIES, found, strict=True):
        assert cells == brute(rows, query)


@pytest.mark.slow
def test_spark_bounds_and_counts(in_spark: Stored) -> None:
    """The quick one: all that differs between databases, in one release of few rows."""
    rows = made(rows=200)
    table = in_spark(rows, KINDS)
    assert counts(table, QUERIES[1:2], Bounds(rows=10_000)) == [brute(rows, QUERIES[1])]
    check_bounds(in_spark)


def check_bounds(stored: Stored) -> None:
    """What the bounds leave: of a unit with 30 rows in 3 cells, of one with a row in each of 10, and of one with 2."""
    rows = {
        "user": [*["heavy"] * 30, *["wide"] * 10, *["light"] * 2],
        "site": [*["a", "b", "c"] * 10, *(f"w{i}" for i in range(10)), "l", "l"],
        "n": [3] * 42,
    }
    rows |= {"click": [1] * 42, "buys": [0.0] * 42, "bid": [0.0] * 42}
    by_site = Query(by=("site",), sums=(Sum(column="n", most=3.0, most_of_unit=7.0),))
    for bounds in (
        Bounds(rows=5),
        Bounds(rows=5, rows_per_key=1),
        Bounds(rows=5, keys=2),
        Bounds(rows=6, rows_per_key=2, keys=2),
    ):
        (cells,) = counts(stored(rows, KINDS), [by_site], bounds)
        for owner, most_cells, most_rows in (("abc", 3, 30), ("w", 10, 10), ("l", 1, 2)):
            own = [cell for (site,), cell in cells.items() if isinstance(site, str) and site[0] in owner]
            taken, total = [cell["rows"] for cell in own], sum(cell["sum of n"] for cell in own)
            assert 0 < len(taken) <= min(bounds.most_keys, most_cells)
            assert max(taken) <= bounds.per_key
            assert sum(taken) <= min(bounds.rows, most_rows)
            assert total <= 7
            if not bounds.limits_keys:
                assert sum(taken) == min(bounds.rows, most_rows)
                assert total == (6 if owner == "l" else 7)


def test_bounds_hold_everywhere(stored: Stored) -> None:
    for _ in range(3):
        check_bounds(stored)


def test_every_row_of_a_unit_is_as_likely_to_be_counted(stored: Stored) -> None:
    """300 units of 4 rows, 2 counted: binomial with p = 1/2; four two-sided tests at alpha 1e-6 together. A row that is
    always left out is missed with probability 0.5^300; one that is counted in 3 of 4 units with probability 1e-4.
    """
    users = [f"u{i}" for i in range(300) for _ in range(4)]
    rows = {"user": users, "site": list("abcd") * 300, "click": [1] * 1200, "buys": [0.0] * 1200}
    rows |= {"bid": [0.0] * 1200, "n": [1] * 1200}
    table = stored(rows, KINDS)
    for bounds in (Bounds(rows=2), Bounds(rows=4, keys=2)):
        (cells,) = counts(table, [Query(by=("site",))], bounds)
        taken = [cells[(site,)]["rows"] for site in "abcd"]
        assert sum(taken) == 600
        for one in taken:
            assert binom.ppf(1.25e-7, 300, 0.5) <= one <= binom.isf(1.25e-7, 300, 0.5)


def test_a_table_and_the_files_it_was_made_from_count_alike(in_duckdb: Stored, no_noise: None) -> None:
    """NaN and texts that mean nothing are missing in both; numbers are clipped to their range in both."""
    from tests.privads.signals.samples import Made, facts

    sites, bids = ["a", "b", None, "a"] * 20, [0.5, 12.0, math.nan, -7.0] * 20
    users, clicks = [f"u{i}" for i in range(80)], [0, 1, None, 1] * 20
    queries = [Query(by=(OneOf(column="site", values=("a",)), Grid(column="bid", edges=(0.0, 1.0, 11.0, 20.0))))]
    source = Made(users=users, sites=sites, clicks=clicks, bids=np.clip(bids, 0.0, 10.0).tolist())
    kinds = {"user": "text", "site": "text", "size": "text", "click": "bigint", "bid": "double"}
    table = in_duckdb({"user": users, "site": sites, "size": sites, "click": clicks, "bid": bids}, kinds)
    release = Release.of(queries, Budget(epsilon=1.0, delta=1e-6, unit="user"), rows_per_unit=1)
    one, two = (
        release.run(each, ledger=None, purpose="test").tables[0]
        for each in (source, Warehouse(table=table, schema=facts()))
    )
    assert one.values["rows"].tolist() == two.values["rows"].tolist()


def test_a_category_that_compares_without_case_counts_each_row_once() -> None:
    """A fixed bug: both values matched, so that a row of a unit of its own moved two cells."""
    connection = ibis.duckdb.connect()
    connection.raw_sql('CREATE TABLE t ("user" text, site text COLLATE NOCASE, click int, buys int, bid int, n int)')
    connection.raw_sql("INSERT INTO t VALUES ('u', 'a', 1, 1, 1, 1)")
    (cells,) = counts(connection.table("t"), [Query(by=(OneOf(column="site", values=("a", "A")),))], Bounds(), owners=0)
    assert sum(cell["rows"] for cell in cells.values()) == 1


def test_owners_are_one_where_the_database_calls_them_equal(in_postgres: Stored, postgres: Any) -> None:
    """A fixed bug: as texts 1.0 and 1.00 were two owners, though they are one number."""
    with postgres.connect() as owner:
        owner.execute("CREATE TABLE numbered (owner numeric, site text, click int, buys int, bid int, n int)")
        owner.execute(
            "INSERT INTO numbered VALUES (1, 'a', 1, 1, 1, 1), (1.0, 'a', 1, 1, 1, 1), (1.00, 'a', 1, 1, 1, 1)"
        )
    like = in_postgres({one: [] for one in KINDS}, KINDS)
    table = like.op().source.table("numbered").rename(user="owner")
    (cells,) = counts(table, [Query(by=("site",))], Bounds(rows=2))
    assert cells == {("a",): {"rows": 2}}


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("bid", pa.array(["5", "secret"]), "'bid' must hold numbers"),
        ("click", pa.array(["1", "secret"]), "'click' must hold numbers"),
        ("site", pa.array([[1], [2]]), "'site' must hold texts"),
        ("site", pa.array([1.0, 2.0]), "'site' must hold texts"),
        ("user", pa.array([[1], [2]]), "'user' must hold texts"),
    ],
)
def test_a_column_whose_cast_one_row_could_break_is_refused_unread(column: str, values: pa.Array, said: str) -> None:
    """A fixed bug: one row decided whether the release failed, and databases log the text that they cannot cast."""
    rows = {one: pa.array([1, 1]) for one in KINDS} | {"user": pa.array(["u", "v"]), "site": pa.array(["a", "b"])}
    table = ibis.duckdb.connect().create_table("t", pa.table(rows | {column: values}))
    with pytest.raises(ValueError, match=said) as refused:
        Warehouse(table=table, schema=SCHEMA).check()
    assert "secret" not in str(refused.value)


def test_a_column_that_the_table_does_not_have_is_refused() -> None:
    table = ibis.memtable({"user": ["u"], "site": ["a"]})
    with pytest.raises(ValueError, match="no column 'bid', which the schema names; it has: user, site"):
        Warehouse(table=table, schema=SCHEMA).check()


def test_what_only_files_can_say_is_refused() -> None:
    table = ibis.memtable({"user": ["u"]})
    facts = SCHEMA.model_dump(exclude_defaults=True)
    later = Schema.load(facts | {"time": "t", "labels": {"buy": {"time": "b", "within_hours": 24}}})
    with pytest.raises(ValueError, match="'buy' comes later"):
        Warehouse(table=table, schema=later).check()
    parts = Schema.load(facts | {"time": "t", "categorical": {"hour": {"buckets": 25, "part": "hour"}}})
    with pytest.raises(ValueError, match="'hour' is made from a time"):
        Warehouse(table=table, schema=parts).check()
    with pytest.raises(ValueError, match="counted where they lie"):
        Warehouse(table=table, schema=SCHEMA).raw()


def test_labels_and_categories_may_be_yes_and_no(stored: Stored) -> None:
    rows = {one: [1, 1, 1] for one in KINDS} | {"user": ["u", "v", "w"], "click": [True, False, None]}
    rows |= {"site": [True, True, False], "bid": [True, False, None]}
    kinds = dict.fromkeys(KINDS, "bigint") | {"user": "text", "click": "boolean", "site": "boolean", "bid": "boolean"}
    queries = [Query(by=("site",), label="click"), Query(by=(Grid(column="bid", edges=EDGES),))]
    by_site, by_bid = counts(stored(rows, kinds), queries, Bounds())
    assert by_site == {("1",): {"positives": 1, "negatives": 1}}
    assert by_bid == {(1,): {"rows": 1}, (0,): {"rows": 1}, (None,): {"rows": 1}}


def test_nothing_is_left_in_the_database(in_duckdb: Stored) -> None:
    table = in_duckdb(made(rows=50), KINDS)
    connection = table.op().source
    before = tables_of(connection)
    counts(table, QUERIES, Bounds(rows=2))
    assert tables_of(connection) == before


def tables_of(connection: Any) -> list[Any]:
    return list(connection.raw_sql("SELECT table_name FROM duckdb_tables()").fetchall())
