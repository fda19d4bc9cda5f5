"""Noisy tables: what one unit can change, how much noise is on it, what is shown, and what is charged when."""

import itertools
import sys
from collections import Counter
from pathlib import Path

import ibis
import numpy as np
import pyarrow as pa
import pytest
from dp_accounting import dp_event
from scipy.stats import chi2, norm

from accounting import mechanisms
from accounting.budget import Budget, BudgetExceeded
from accounting.ledger import Ledger
from privads.logs import database
from privads.logs.reader import LogError
from privads.logs.schema import History, Numeric
from privads.noise import Randomness
from privads.signals import release as release_module
from privads.signals.bounds import Bounds
from privads.signals.counting import Counted
from privads.signals.query import OTHER, Grid, OneOf, Query, Sum
from privads.signals.release import Release, selection_threshold
from privads.signals.rows import Warehouse
from privads.signals.table import NoisyTable
from tests.privads.signals.samples import Made, facts

DRAWING = (1 + np.e) * 2.0**-64
"""What 2^36 draws cost, each within 2^-100 of the law, at epsilon 1: `(1 + exp(epsilon)) draws distance`."""

BUDGET = Budget(epsilon=1.0, delta=1e-6, unit="user")
SITES = Query(by=("site",), label="click")
BIDS = Query(by=(Grid(column="bid", edges=(0.0, 1.0, 5.0, 10.0)),))


def many(rows: int = 400, users: int = 40, seed: int = 0) -> Made:
    rng = np.random.default_rng(seed)
    return Made(
        users=[f"u{i}" for i in rng.integers(0, users, rows)],
        sites=[["a", "b", "c", None][i] for i in rng.integers(0, 4, rows)],
        sizes=[["s", "t", None][i] for i in rng.integers(0, 3, rows)],
        clicks=[[0, 1, None][i] for i in rng.integers(0, 3, rows)],
        bids=[float(one) if one < 9 else float("nan") for one in rng.uniform(0, 10, rows)],
    )


def released(source: Made, *queries: Query, rows: int = 1, budget: Budget = BUDGET) -> list[NoisyTable]:
    return list(Release.of(queries, budget, rows_per_unit=rows).run(source, ledger=None, purpose="test").tables)


def cells(found: NoisyTable, measure: str) -> dict[tuple[str | int | None, ...], float]:
    return dict(zip(found.keys, found.values[measure].tolist(), strict=True))


@pytest.mark.usefixtures("no_noise")
def test_without_noise_every_cell_is_the_count_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_module, "selection_threshold", lambda **_: -1.0)
    source, both = many(), Query(by=("site", "size"))
    sites, bids, crossed = released(source, SITES, BIDS, both, rows=400)
    rows = list(zip(source.sites, source.sizes or [], source.clicks, source.bids or [], strict=True))
    for value, label in (("positives", 1), ("negatives", 0)):
        assert cells(sites, value) == Counter((site,) for site, _, click, _ in rows if click == label)
    places = [None if np.isnan(bid) else int(np.searchsorted([1.0, 5.0], bid, side="right")) for *_, bid in rows]
    assert cells(bids, "rows") == Counter((place,) for place in places)
    assert cells(crossed, "rows") == Counter((site, size) for site, size, *_ in rows)


@pytest.mark.usefixtures("no_noise")
def test_a_table_by_nothing_is_one_cell_of_all_rows() -> None:
    source = many()
    (found, rows) = released(source, Query(by=(), label="click"), Query(by=()), rows=400)
    assert (found.keys, found.threshold) == (((),), None)
    assert found.values["positives"].tolist() == [source.clicks.count(1)]
    assert rows.rows.tolist() == [len(source.users)]


@pytest.mark.usefixtures("no_noise")
def test_declared_cells_are_shown_without_a_row_and_others_never() -> None:
    query = Query(by=("site",), keys=(("a",), ("never",)))
    (found,) = released(many(), query, rows=400)
    assert found.keys == (("a",), ("never",))
    assert cells(found, "rows")[("never",)] == 0
    assert found.threshold is None


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("sites", [["a"] * 50, ["a", "b", "c", "own"] * 13], ids=["one cell", "several cells"])
def test_one_unit_changes_a_table_by_at_most_its_bound(
    rows: int, sites: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have one row each, so that what they bring is the same with and without the heavy unit."""
    monkeypatch.setattr(release_module, "selection_threshold", lambda **_: -1.0)
    users, others = [f"u{i}" for i in range(60)], ["a", "b", None] * 20
    without = Made(users=users, sites=others, clicks=[0] * 60)
    heavy = [*users, *["heavy"] * len(sites)]
    with_unit = Made(users=heavy, sites=[*others, *sites], clicks=[0] * 60 + [1] * len(sites))
    one, two = (released(each, SITES, rows=rows)[0] for each in (with_unit, without))
    difference = [
        cells(one, measure).get(key, 0.0) - cells(two, measure).get(key, 0.0)
        for measure in ("positives", "negatives")
        for key in {*one.keys, *two.keys}
    ]
    assert 0 < np.linalg.norm(difference) <= rows


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_of_each_unit_at_most_so_many_rows_are_counted(rows: int) -> None:
    source = many()
    query = Query(by=(Grid(column="bid", edges=(0.0, 10.0)),))
    (found,) = released(source, query, rows=rows)
    expected = sum(min(rows, count) for count in Counter(source.users).values())
    assert found.rows.sum() == expected


@pytest.mark.usefixtures("no_noise")
def test_the_bound_on_rows_is_what_keeps_the_sensitivity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: without the bound, a unit with 50 rows changes a table by 50."""
    query = Query(by=("site",), keys=(("a",),))
    source = Made(users=["heavy"] * 50, sites=["a"] * 50, clicks=[1] * 50)
    assert released(source, query, rows=2)[0].rows.tolist() == [2.0]
    monkeypatch.setattr(release_module, "_owners", lambda schema, unit: 0)
    assert released(source, query, rows=2)[0].rows.tolist() == [50.0]


@pytest.mark.parametrize("rows", [1, 4])
def test_the_noise_has_the_stated_deviation(rows: int) -> None:
    """Chi-square at alpha 1e-6 with 12,000 samples: noise 10 % off is missed with probability below 1e-6."""
    grid = Grid(column="bid", edges=tuple(np.linspace(0, 10, 12_000).tolist()))
    release = Release.of([Query(by=(grid,)), SITES], BUDGET, rows_per_unit=rows)
    (found, _) = release.run(Made(users=[], sites=[], clicks=[]), ledger=None, purpose="test").tables
    assert found.count_std == release.noise_std
    assert release.noise_std == pytest.approx(release.noise_multiplier * np.sqrt(2) * rows, rel=1e-12)  # two tables

    def within(values: np.ndarray) -> bool:
        total = float(np.square(values / found.count_std).sum())
        return bool(chi2.ppf(5e-7, len(values)) < total < chi2.isf(5e-7, len(values)))

    assert within(found.values["rows"])
    assert not within(found.values["rows"] / 2)  # half the noise is seen
    assert not within(found.values["rows"] * 1.1)


def test_the_release_is_the_gaussians_of_its_tables_and_the_price_of_finding_keys() -> None:
    release = Release.of([SITES, BIDS], BUDGET, rows_per_unit=3)
    z = release.noise_multiplier / np.sqrt(0.5)
    parts = mechanisms.parts(release.event)
    assert parts == mechanisms.parts(
        mechanisms.composed(
            mechanisms.gaussian(noise_multiplier=z),
            mechanisms.gaussian(noise_multiplier=z),
            mechanisms.approximate_dp(epsilon=0.0, delta=1e-7 + DRAWING),
        )
    )
    assert 0.999 < release.spent.upper <= 1.0
    declared = Release.of([BIDS], BUDGET, rows_per_unit=1)
    assert dict(mechanisms.parts(declared.event)) == {
        mechanisms.gaussian(noise_multiplier=declared.noise_multiplier): 1,
        mechanisms.approximate_dp(epsilon=0.0, delta=DRAWING): 1,
    }


def test_a_threshold_for_single_rows_is_the_normal_s_quantile() -> None:
    for noise_std, delta in itertools.product((0.5, 3.0, 60.0), (1e-5, 1e-9)):
        found = selection_threshold(noise_std=noise_std, bounds=Bounds(), delta=delta)
        assert found == pytest.approx(1 + noise_std * norm.isf(delta), rel=1e-9)


@pytest.mark.parametrize("rows", [2, 3, 5, 7])
@pytest.mark.parametrize("noise_std", [0.3, 2.0, 30.0])
def test_a_threshold_hides_every_way_to_spread_rows_over_own_keys(rows: int, noise_std: float) -> None:
    delta = 1e-6
    found = selection_threshold(noise_std=noise_std, bounds=Bounds(rows=rows), delta=delta)
    shown = [1 - np.prod(norm.cdf((found - np.array(counts)) / noise_std)) for counts in partitions(rows)]
    assert max(shown) <= delta * (1 + 1e-6)
    assert max(shown) >= delta * 0.99  # and no more is hidden than needed


def partitions(rows: int, largest: int | None = None) -> list[tuple[int, ...]]:
    if rows == 0:
        return [()]
    return [
        (first, *rest) for first in range(min(rows, largest or rows), 0, -1) for rest in partitions(rows - first, first)
    ]


def test_a_key_that_one_unit_has_is_not_shown_and_a_common_one_is() -> None:
    source = Made(users=[*(f"u{i}" for i in range(2000)), "rare"], sites=[*["common"] * 2000, "own"], clicks=[0] * 2001)
    (found,) = released(source, SITES)
    assert found.keys == ((None,), ("common",))  # a missing value is no secret: its cell is always shown
    assert found.threshold is not None
    assert found.threshold > 1


def test_the_order_of_keys_tells_nothing_of_the_order_of_rows() -> None:
    users, sites = [f"u{i}" for i in range(4000)], ["b", "a"] * 2000
    orders = {
        released(Made(users=users, sites=each, clicks=[0] * 4000), SITES)[0].keys for each in (sites, sites[::-1])
    }
    assert orders == {((None,), ("a",), ("b",))}


@pytest.mark.usefixtures("no_noise")
def test_no_text_is_too_odd_to_be_counted() -> None:
    """Whose text it is would be told by an error."""
    odd = ["", "\x00", "a\x00b", "a\x00c", "'; DROP TABLE kept; --", "\U0001f600", "x" * 1024, "A", "a", "a "]
    query = Query(by=("site",), keys=tuple((one,) for one in odd))
    (found,) = released(Made(users=[*odd, *odd], sites=[*odd, *odd], clicks=[0] * 2 * len(odd)), query, rows=2)
    assert found.rows.tolist() == [2.0] * len(odd)
    (found,) = released(Made(users=[*odd, *odd], sites=[*odd, *odd], clicks=[0] * 2 * len(odd)), query)
    assert found.rows.tolist() == [1.0] * len(odd)


def budgeted(folder: Path, epsilon: float) -> Ledger:
    limit = Budget(epsilon=epsilon, delta=1e-5, unit="user")
    return Ledger.init(f"sqlite:///{folder / 'budget.db'}", dataset="made-up", budget=limit)


def private_source() -> Made:
    made = many()
    made.schema = facts(public=False)
    return made


def test_a_release_that_the_ledger_refuses_reads_nothing(tmp_path: Path) -> None:
    source, ledger = private_source(), budgeted(tmp_path, 0.5)
    with pytest.raises(BudgetExceeded):
        Release.of([SITES], BUDGET, rows_per_unit=1).run(source, ledger=ledger, purpose="test")
    assert source.reads == 0
    assert ledger.balance("made-up").spent_epsilon == 0


def test_the_charge_stays_whatever_happens_to_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, ledger = private_source(), budgeted(tmp_path, 2.0)

    def broken() -> None:
        assert ledger.balance("made-up").spent_epsilon > 0.99, "charged before the first row"
        raise RuntimeError("row of user u17")

    monkeypatch.setattr(source, "raw", broken)
    with pytest.raises(LogError, match="cannot be counted as the schema says") as said:
        Release.of([SITES], BUDGET, rows_per_unit=1).run(source, ledger=ledger, purpose="test")
    assert "u17" not in str(said.value)
    assert ledger.balance("made-up").spent_epsilon > 0.99


def test_without_the_database_nothing_is_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed bug: the missing extra was found after the charge."""
    monkeypatch.setitem(sys.modules, "duckdb", None)
    ledger, source = budgeted(tmp_path, 2.0), private_source()
    with pytest.raises(ImportError, match="privads\\[signals\\]"):
        Release.of([SITES], BUDGET, rows_per_unit=1).run(source, ledger=ledger, purpose="test")
    assert (source.reads, ledger.balance("made-up").spent_epsilon) == (0, 0)


def test_one_release_is_one_entry(tmp_path: Path) -> None:
    ledger = budgeted(tmp_path, 2.0)
    found = Release.of([SITES, BIDS], BUDGET, rows_per_unit=2).run(private_source(), ledger=ledger, purpose="test")
    assert found.entry is not None
    assert 0.99 < ledger.balance("made-up").spent_epsilon <= 1.001


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (Query(by=("sitte",)), "'sitte' is no categorical column"),
        (Query(by=(Grid(column="bidd", edges=(0.0, 1.0)),)), "'bidd' is no numeric column"),
        (Query(by=("site",), label="buy"), "'buy' is no label"),
    ],
)
def test_a_table_of_what_the_schema_does_not_have_is_refused(query: Query, said: str) -> None:
    source = many()
    with pytest.raises(ValueError, match=said):
        released(source, query)
    assert source.reads == 0


def test_private_rows_need_a_ledger_and_take_no_seed() -> None:
    release = Release.of([SITES], BUDGET, rows_per_unit=1)
    with pytest.raises(ValueError, match="needs its ledger"):
        release.run(private_source(), ledger=None, purpose="test")
    with pytest.raises(ValueError, match="insecure_seed is refused"):
        release.run(private_source(), ledger=None, purpose="test", insecure_seed=1)


def test_a_column_made_from_other_rows_is_refused_where_single_rows_are_protected() -> None:
    """One row would be in the cells of others: more than the one cell that its noise is for."""
    source = many()
    bid = Numeric(range=(0.0, 10.0), history=History(rows=3))
    source.schema = source.schema.model_copy(update={"numeric": {"bid": bid}})
    with pytest.raises(ValueError, match="'bid' is made from other rows"):
        released(source, BIDS, budget=Budget(epsilon=1.0, delta=1e-6, unit="example"))
    assert source.reads == 0
    assert released(source, BIDS)  # a user owns those rows


def test_single_rows_are_counted_once_each() -> None:
    with pytest.raises(ValueError, match="rows_per_unit is 1"):
        Release.of([SITES], Budget(epsilon=1.0, delta=1e-6, unit="example"), rows_per_unit=2)


def test_edges_of_a_grid_must_rise() -> None:
    with pytest.raises(ValueError, match="must rise"):
        Grid(column="bid", edges=(0.0, 0.0, 1.0))


def test_a_cell_that_is_declared_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        Query(by=("site",), keys=(("a",), ("b",), ("a",)))


@pytest.mark.usefixtures("no_noise")
def test_very_long_values_of_one_unit_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "MEMORY", "100MB")
    sites = [f"{i:05}" + 50_000 * "x" for i in range(4_000)]
    long = Made(users=["u"] * 4_000, sites=sites, clicks=[1] * 4_000)
    (found,) = released(long, Query(by=("site",), label="click"), rows=4_000)
    assert found.keys == ((None,),)


@pytest.mark.usefixtures("no_noise")
def test_public_places_and_found_values_cross_in_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_module, "selection_threshold", lambda **_: -1.0)
    source = many()
    named = OneOf(column="size", values=("s", "never"))
    dense, mixed = released(source, Query(by=(named, BIDS.by[0])), Query(by=("site", named)), rows=400)
    sizes = [one if one in ("s", None) else OTHER for one in source.sizes or []]
    bids = [None if np.isnan(bid) else int(np.searchsorted([1.0, 5.0], bid, side="right")) for bid in source.bids or []]
    exact = Counter(zip(sizes, bids, strict=True))
    assert len(dense.keys) == 16
    assert cells(dense, "rows") == {
        key: exact[key] for key in itertools.product(("s", "never", OTHER, None), (0, 1, 2, None))
    }
    assert cells(mixed, "rows") == Counter(zip(source.sites, sizes, strict=True))


@pytest.mark.usefixtures("no_noise")
def test_sums_are_of_clipped_values_and_of_labels() -> None:
    bids = [9.0, float("nan"), 0.2, 2.5, 3.0]
    source = Made(users=list("uvwxy"), sites=["a"] * 5, clicks=[1, 1, None, 0, 1], bids=bids)
    sums = (Sum(column="bid", most=3.0, step=0.5), Sum(column="click"))
    (found,) = released(source, Query(by=(OneOf(column="site", values=("a", "b")),), sums=sums))
    assert found.values["sum of bid"].tolist() == [6 + 0 + 0 + 5 + 6, 0, 0, 0]
    assert found.values["sum of click"].tolist() == [3, 0, 0, 0]
    assert found.rows.tolist() == [5, 0, 0, 0]
    (alone,) = released(source, Query(by=(), counts=False, sums=sums[1:]))
    assert (alone.query.measures, alone.values["sum of click"].tolist()) == (("sum of click",), [3.0])


def test_each_part_has_the_noise_of_its_share_and_its_sensitivity() -> None:
    sums = (Sum(column="bid", most=4.0, step=0.5, most_of_unit=10.0),)
    queries = [Query(by=(), sums=sums), Query(by=(), label="click")]
    release = Release.of(queries, BUDGET, rows_per_unit=3, shares=[[0.5, 0.3], [0.2]])
    z = release.noise_multiplier
    # 3 rows in one cell; 8 steps a row, 20 a unit
    assert np.allclose(release.noise_stds[0], [3 * z / np.sqrt(0.5), 20 * z / np.sqrt(0.3)], rtol=1e-12)
    assert np.allclose(release.noise_stds[1], [3 * z / np.sqrt(0.2)], rtol=1e-12)
    (found, other) = release.run(many(), ledger=None, purpose="test").tables
    assert found.noise_std["sum of bid"].tolist() == [release.noise_stds[0][1]]
    assert other.noise_std["negatives"].tolist() == [release.noise_stds[1][0]]


def test_what_is_charged_is_what_the_noise_spends() -> None:
    """Each part is a Gaussian whose multiplier is its noise over its sensitivity; rho of all is 1 / (2 z^2)."""
    sums = (Sum(column="bid", most=4.0, step=0.5, most_of_unit=10.0),)
    queries = [Query(by=(), sums=sums), Query(by=(), label="click")]
    release = Release.of(queries, BUDGET, rows_per_unit=3, shares=[[0.5, 0.3], [0.2]])
    stds = [std for own in release.noise_stds for std in own]
    charged = sorted(
        one.noise_multiplier for one, _ in mechanisms.parts(release.event) if hasattr(one, "noise_multiplier")
    )
    assert np.allclose(charged, sorted(std / most for std, most in zip(stds, [3, 20, 3], strict=True)), rtol=1e-12)
    rho = sum((most / std) ** 2 / 2 for std, most in zip(stds, [3, 20, 3], strict=True))
    assert rho == pytest.approx(0.5 / release.noise_multiplier**2, rel=1e-9)
    assert release.spent.upper <= BUDGET.epsilon


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ([[0.5]], "one number for the counts"),
        ([[0.5], [0.2, 0.3]], "one number for the counts"),
        ([[0.5], [0.6]], "add up to 1, got 1.1"),
        ([[1.5], [-0.5]], "must be positive"),
        ([[1.0], [0.0]], "must be positive"),
        ([[float("nan")], [0.5]], "must be positive"),
    ],
)
def test_shares_that_are_no_shares_are_refused(shares: list[list[float]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Release.of([SITES, BIDS], BUDGET, rows_per_unit=1, shares=shares)


def test_a_table_that_is_asked_for_twice_has_the_threshold_of_its_own_noise() -> None:
    """A fixed bug: the second had the first's, so that the more noise of a smaller share let single units' keys by."""
    release = Release.of([SITES, SITES], BUDGET, rows_per_unit=1, shares=[[0.9], [0.1]])
    for stds, found in zip(release.noise_stds, release.thresholds, strict=True):
        assert found is not None
        tail = norm.sf((found - 1 - 2 / 2) / (stds[0] * np.sqrt(2)))  # two counts, each rounded by at most a half
        assert tail <= 1e-6 * 0.1 / 2
    assert release.thresholds[1] > 2.5 * release.thresholds[0]  # type: ignore[operator]


def test_cells_that_a_database_tells_apart_but_have_one_key_are_added() -> None:
    """A fixed bug: the last one stood, so that one unit's row in a cell of its own hid all the others'."""
    counted = Counted(
        places=np.zeros(2, dtype=np.int64),
        found={"site": np.array(["a", "a"], dtype=object)},
        values={"rows": np.array([100, 1])},
    )
    query = Query(by=("site",), keys=(("a",),))
    terms = released(many(), query)[0].terms
    found = release_module._with_noise(query, counted, [1e-9], None, Randomness(), "table", terms)
    assert found.rows.tolist() == [101.0]


def test_an_empty_cell_has_as_much_noise_as_a_full_one() -> None:
    """Chi-square at alpha 1e-6, 8,000 cells each; half the noise, or none, is missed with probability below 1e-9."""
    grid = Grid(column="bid", edges=tuple(np.linspace(0, 10, 8_001).tolist()))
    query = Query(by=(OneOf(column="site", values=()), grid))
    release = Release.of([query], BUDGET, rows_per_unit=1)
    centers = ((np.arange(8_000) + 0.5) * 10 / 8_000).tolist()
    source = Made(users=[f"u{i}" for i in range(8_000)], sites=["a"] * 8_000, clicks=[0] * 8_000, bids=centers)
    (found,) = release.run(source, ledger=None, purpose="test").tables
    noise = found.rows.reshape(2, 8_001)[:, :-1] - np.array([[1.0], [0.0]])  # all rows are of the other place
    for own in noise:
        assert chi2.ppf(5e-7, 8_000) < np.square(own / release.noise_std).sum() < chi2.isf(5e-7, 8_000)


def test_exact_noise_is_charged_as_zero_concentrated_and_is_for_declared_keys() -> None:
    pytest.importorskip("opendp")
    release = Release.of([BIDS, BIDS], BUDGET, rows_per_unit=2, shares=[[0.75], [0.25]], backend="opendp")
    z = release.noise_multiplier
    charged = [one.rho for one, _ in mechanisms.parts(release.event) if isinstance(one, dp_event.ZCDpEvent)]
    assert sorted(charged) == pytest.approx([0.125 / z**2, 0.375 / z**2], rel=1e-12)  # one of each part
    rho = sum(0.5 * (2 / stds[0]) ** 2 for stds in release.noise_stds)  # a unit moves each by 2
    assert rho == pytest.approx(0.5 / z**2, rel=1e-12)
    assert 0.99 < release.spent.upper <= 1.0
    assert z > Release.of([BIDS, BIDS], BUDGET, rows_per_unit=2).noise_multiplier
    (found, _) = release.run(many(), ledger=None, purpose="test").tables
    assert found.terms.law == "discrete-gaussian"
    with pytest.raises(ValueError, match="declared keys"):
        Release.of([SITES], BUDGET, rows_per_unit=1, backend="opendp")
    with pytest.raises(ValueError, match="cannot be repeated"):
        release.run(many(), ledger=None, purpose="test", insecure_seed=1)


def test_what_drawing_noise_costs_is_charged_and_must_be_small() -> None:
    release = Release.of([BIDS], BUDGET, rows_per_unit=1)
    delta = [one.delta for one, _ in mechanisms.parts(release.event) if hasattr(one, "delta")]
    assert delta == [pytest.approx(DRAWING, rel=1e-12)]
    with pytest.raises(ValueError, match="epsilon must be at most 25"):
        Release.of([BIDS], Budget(epsilon=40.0, delta=1e-6, unit="user"), rows_per_unit=1)


def test_an_error_of_a_warehouse_tells_no_row(tmp_path: Path) -> None:
    """The table's own expression fails on one row; that it did is charged, and nothing of the row is told."""
    connection = ibis.duckdb.connect()
    row = pa.table({"user": ["u"], "site": ["secret"], "size": ["s"], "click": [1], "bid": ["secret"]})
    connection.create_table("t", row)
    table = connection.table("t").mutate(bid=ibis._.bid.cast("float64"))
    ledger, source = budgeted(tmp_path, 2.0), Warehouse(table=table, schema=facts(public=False))
    with pytest.raises(LogError, match="cannot be counted as the schema says") as said:
        Release.of([BIDS], BUDGET, rows_per_unit=1).run(source, ledger=ledger, purpose="test")
    assert "secret" not in str(said.value)
    assert ledger.balance("made-up").spent_epsilon > 0.99


def test_a_warehouse_that_does_not_fit_the_schema_is_refused_before_the_charge(tmp_path: Path) -> None:
    ledger, table = budgeted(tmp_path, 2.0), ibis.memtable({"user": ["u"], "site": ["a"]})
    source = Warehouse(table=table, schema=facts(public=False))
    with pytest.raises(ValueError, match="no column 'bid'"):
        Release.of([BIDS], BUDGET, rows_per_unit=1).run(source, ledger=ledger, purpose="test")
    assert ledger.balance("made-up").spent_epsilon == 0
