"""Noisy tables in files: they come back as they were, and what is not whole is refused in one line."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from accounting import mechanisms
from accounting.budget import Budget
from privads.config import ConfigError
from privads.signals.consistency import consistent
from privads.signals.query import Grid, OneOf, Query, Sum
from privads.signals.release import Release
from privads.signals.saved import METADATA, load_table, load_tables, save_table, save_tables
from privads.signals.table import NoisyTable
from tests.privads.signals.samples import Made

BUDGET = Budget(epsilon=1.0, delta=1e-6, unit="user")
BID = Grid(column="bid", edges=(0.0, 1.0, 5.0, 10.0))
SITE = OneOf(column="site", values=("a", '=HYPERLINK("x")'))
QUERIES = (
    Query(by=("site",), label="click"),
    Query(by=(SITE, BID), label="click", sums=(Sum(column="bid", most=5.0, step=0.5, most_of_unit=7.0),)),
    Query(by=("site", BID), keys=(("a", 0), (None, None), ("=1+1", 2))),
    Query(by=(), sums=(Sum(column="click"),), counts=False),
    Query(by=("site", BID)),
    Query(by=(SITE,)),
    Query(by=(BID,)),
)


@pytest.fixture(scope="module")
def tables() -> tuple[NoisyTable, ...]:
    users = [f"u{i}" for i in range(3000)]
    source = Made(users=users, sites=["a", "=1+1", None] * 1000, clicks=[0, 1, None] * 1000, bids=[2.0, 9.0] * 1500)
    return Release.of(QUERIES, BUDGET, rows_per_unit=2).run(source, ledger=None, purpose="test").tables


def same(one: NoisyTable, two: NoisyTable) -> bool:
    numbers = all(
        np.array_equal(one.values[name], two.values[name]) and np.array_equal(one.noise_std[name], two.noise_std[name])
        for name in one.query.measures
    )
    return numbers and (one.query, one.terms, one.threshold, one.keys) == (
        two.query,
        two.terms,
        two.threshold,
        two.keys,
    )


def test_tables_come_back_as_they_were_in_their_order(tables: tuple[NoisyTable, ...], tmp_path: Path) -> None:
    save_tables(tables, tmp_path / "out")
    found = load_tables(tmp_path / "out")
    assert len(found) == len(QUERIES)
    assert all(same(one, two) for one, two in zip(tables, found, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".parquet"}


def test_tables_made_consistent_keep_the_noise_of_each_cell(tables: tuple[NoisyTable, ...], tmp_path: Path) -> None:
    made = consistent(tables[5:])
    for number, one in enumerate(made):
        save_table(one, tmp_path / f"{number}.parquet")
        assert same(one, load_table(tmp_path / f"{number}.parquet"))


def test_tables_with_exact_noise_come_back_each_by_itself(tmp_path: Path) -> None:
    """They did not: the whole release's rho was held against one table's noise."""
    pytest.importorskip("opendp")
    release = Release.of([QUERIES[1], QUERIES[5]], BUDGET, rows_per_unit=2, backend="opendp")
    source = Made(users=["u", "v"], sites=["a", None], clicks=[0, 1], bids=[2.0, 9.0])
    made = release.run(source, ledger=None, purpose="test").tables
    save_tables(made, tmp_path / "out")
    assert all(same(one, two) for one, two in zip(made, load_tables(tmp_path / "out"), strict=True))


def test_a_saved_table_is_read_by_anything_that_reads_parquet(tables: tuple[NoisyTable, ...], tmp_path: Path) -> None:
    save_table(tables[0], tmp_path / "t.parquet")
    read = pd.read_parquet(tmp_path / "t.parquet")
    assert list(read.columns) == ["by site", "positives", "negatives"]
    assert [None if pd.isna(one) else one for one in read["by site"]] == [key[0] for key in tables[0].keys]


def test_pandas_shows_what_cells_are_and_what_their_noise_is(tables: tuple[NoisyTable, ...], tmp_path: Path) -> None:
    save_table(tables[1], tmp_path / "t.parquet")
    read = pd.read_parquet(tmp_path / "t.parquet")
    assert list(read.columns[:4]) == ["by site", "value of site", "by bid (2)", "value of bid (2)"]
    sites, bids = ["a", '=HYPERLINK("x")', "any other", None], ["below 1", "1 to below 5", "5 or more", None]
    shown = read[["value of site", "value of bid (2)"]].astype(object)
    named = list(shown.where(shown.notna(), None).itertuples(index=False, name=None))
    assert named == [(site, bid) for site in sites for bid in bids]
    assert read.attrs["noise_std"]["positives"] == tables[1].noise_std["positives"][0]
    assert read.attrs["budget"] == {"epsilon": 1.0, "delta": 1e-6, "unit": "user", "neighbors": "add-remove"}


def test_nothing_is_written_over(tables: tuple[NoisyTable, ...], tmp_path: Path) -> None:
    save_table(tables[0], tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="exists already"):
        save_table(tables[0], tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="exists already"):
        save_tables(tables, tmp_path)


def test_a_draft_that_a_killed_process_left_is_not_in_the_way(tables: tuple[NoisyTable, ...], tmp_path: Path) -> None:
    """A fixed bug."""
    (tmp_path / f".out.{os.getpid()}").mkdir()
    save_tables(tables[:2], tmp_path / "out")
    assert len(load_tables(tmp_path / "out")) == 2


Change = Callable[[pa.Table, dict[str, Any]], pa.Table]


def without(table: pa.Table, facts: dict[str, Any]) -> pa.Table:
    del facts["event"]
    return table


def said(**changed: Any) -> Change:
    def change(table: pa.Table, facts: dict[str, Any]) -> pa.Table:
        facts.update(changed)
        return table

    return change


def column(name: str, values: Callable[[np.ndarray], Any]) -> Change:
    def change(table: pa.Table, facts: dict[str, Any]) -> pa.Table:
        place = table.column_names.index(name)
        return table.set_column(place, name, pa.array(values(table.column(name).to_numpy())))

    return change


def with_fewer(table: pa.Table, facts: dict[str, Any]) -> pa.Table:
    """The counts and the sum of the table say that they are of one Gaussian, which costs less than two."""
    event = mechanisms.from_json(facts["event"])
    kept = [one for one, _ in mechanisms.parts(event)]
    assert len(kept) == 2  # all alike, and what drawing and finding keys costs
    facts["event"] = mechanisms.to_json(mechanisms.composed(*kept))
    return table


def quieter(measure: str) -> Change:
    def change(table: pa.Table, facts: dict[str, Any]) -> pa.Table:
        facts["noise_std"][measure] = 1e-9
        return table

    return change


def without_price_of_keys(table: pa.Table, facts: dict[str, Any]) -> pa.Table:
    event = mechanisms.from_json(facts["event"])
    kept = [mechanisms.repeated(one, n) for one, n in mechanisms.parts(event) if not hasattr(one, "delta")]
    facts["event"] = mechanisms.to_json(mechanisms.composed(*kept))
    return table


GAUSSIAN = mechanisms.to_json(mechanisms.gaussian(noise_multiplier=30.0))


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (1, lambda table, facts: facts.clear(), "no noisy table"),
        (1, without, "missing key 'event'"),
        (1, said(format=2), "format"),
        (1, said(epsilom=1.0), "unknown key 'epsilom'"),
        (1, said(event='{"event":"made-up"}'), "made-up"),
        (1, said(event=GAUSSIAN), "its event is of other noise"),
        (5, said(noise_std={"rows": 20.0}), "its event is of other noise"),
        (1, said(law="discrete-gaussian"), "not of discrete-gaussian noise"),
        (1, said(bounds={"rows": 1}), "its event is of other noise"),
        (1, said(budget={"epsilon": 0.9, "delta": 1e-6, "unit": "user", "neighbors": "add-remove"}), "costs epsilon"),
        (1, said(budget={"epsilon": 1.0, "delta": 1e-9, "unit": "user", "neighbors": "add-remove"}), "costs epsilon"),
        (1, said(noise_std={"positives": 1.0, "negatives": 1.0, "sum of bid": 1.0}), "its event is of other noise"),
        (1, said(noise_std={"positives": -1.0}), "positive and finite"),
        (1, said(noise_std={"positives": float("inf")}), "positive and finite"),
        (1, lambda table, facts: table.slice(1), "not in the order|cells"),
        (1, lambda table, facts: table.take(list(range(len(table)))[::-1]), "not in the order"),
        (1, lambda table, facts: table.drop_columns(["negatives"]), "no column 'negatives'"),
        (1, column("positives", lambda x: np.where(x == x[0], np.nan, x)), "must be finite"),
        (1, column("positives", lambda x: np.where(x == x[0], np.inf, x)), "must be finite"),
        (1, column("positives", lambda x: [None, *x[1:].tolist()]), "none missing"),
        (1, column("positives", lambda x: ["=1+1"] * len(x)), "must be numbers"),
        (1, column("by site", lambda x: x + 100), "a place that there is not"),
        (0, column("by site", lambda x: np.ones(len(x))), "must be text"),
        (0, column("by site", lambda x: ["same"] * len(x)), "a key comes twice"),
        (1, with_fewer, "fewer counts and sums"),
        (1, quieter("negatives"), "its event is of other noise"),
        (1, said(law="discrete-laplace"), "law"),
        (1, said(combined=True, noise_std=dict.fromkeys(("positives", "negatives", "sum of bid"), 0.01)), "less than"),
        (1, said(threshold=5.0), "its keys were declared"),
        (0, said(threshold=None), "shown from None rows on"),
        (0, said(threshold=5.0), "shown from 5.0 rows on"),
        (0, without_price_of_keys, "rows on, which its event is not of"),
        (0, column("positives", lambda x: np.full(len(x), -1e4)), "fewer rows than the threshold"),
    ],
)  # fmt: skip
def test_what_is_not_whole_is_refused_in_one_line(
    tables: tuple[NoisyTable, ...], tmp_path: Path, number: int, change: Change, message: str
) -> None:
    save_table(tables[number], tmp_path / "good.parquet")
    stored = pq.read_table(tmp_path / "good.parquet")
    facts = json.loads(stored.schema.metadata[METADATA])
    made = change(stored, facts)
    made = stored if made is None else made
    pq.write_table(
        made.replace_schema_metadata({METADATA: json.dumps(facts)} if facts else None), tmp_path / "bad.parquet"
    )
    with pytest.raises(ConfigError, match=message) as refused:
        load_table(tmp_path / "bad.parquet")
    assert "\n" not in str(refused.value)


def test_what_is_no_table_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("not a table")
    for place, message in ((tmp_path / "t.parquet", "t.parquet"), (tmp_path / "none", "no file or folder")):
        with pytest.raises(ConfigError, match=message):
            load_tables(place)
    deep = pa.table({"rows": [1.0]}).replace_schema_metadata({METADATA: "[" * 100_000})
    pq.write_table(deep, tmp_path / "deep.parquet")
    with pytest.raises(ConfigError, match=r"deep.parquet"):
        load_table(tmp_path / "deep.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no table"):
        load_tables(tmp_path / "empty")


def test_more_noise_than_the_event_accounts_is_seen_in_tables_made_consistent(
    tables: tuple[NoisyTable, ...], tmp_path: Path
) -> None:
    one = consistent(tables[5:])[0]
    save_table(replace(one, noise_std={name: 40 * std for name, std in one.noise_std.items()}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="more than its event is of"):
        load_table(tmp_path / "t.parquet")


def test_more_tables_than_their_event_is_of_are_seen(tables: tuple[NoisyTable, ...], tmp_path: Path) -> None:
    """Two releases under one entry would say that both cost what one did."""
    both = [replace(one, terms=replace(one.terms, entry="7")) for one in (*tables, *tables)]
    save_tables(both, tmp_path / "both")
    with pytest.raises(ConfigError, match="tables of 7: .*fewer counts and sums"):
        load_tables(tmp_path / "both")
    save_tables(both[1:4], tmp_path / "some")
    assert len(load_tables(tmp_path / "some")) == 3


def test_several_tables_of_exact_noise_come_back(tmp_path: Path) -> None:
    """A fixed bug: they were paid for, saved, and then refused, as their event had one part for all of them."""
    pytest.importorskip("opendp")
    source = Made(users=["u"], sites=["a"], clicks=[1])
    release = Release.of(QUERIES[5:], BUDGET, rows_per_unit=2, backend="opendp")
    save_tables(release.run(source, ledger=None, purpose="test").tables, tmp_path / "exact")
    assert len(load_tables(tmp_path / "exact")) == 2
