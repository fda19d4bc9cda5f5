"""Models from released tables: what they read, what they promise, and that they come back as they were."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dp_accounting import dp_event
from scipy.optimize import brentq
from scipy.stats import norm

from accounting import accountant, mechanisms
from accounting.budget import Budget
from privads.config import ConfigError
from privads.logs.logs import Logs
from privads.logs.raw import Raw
from privads.logs.schema import History, Numeric
from privads.signals.learned import (
    Learned,
    from_tables,
    label_of,
    places_of,
    releases,
    under_labels,
    with_features,
    with_report,
)
from privads.signals.learning_job import LearnedRun
from privads.signals.query import Grid, OneOf, Query, Sum
from privads.signals.release import Release
from privads.signals.report import Report
from privads.signals.rows import count
from privads.signals.table import NoisyTable
from tests.privads.signals.samples import Made, facts

SITE = OneOf(column="site", values=("a", "b"))
SIZE = OneOf(column="size", values=("s", "t"))
BID = Grid(column="bid", edges=(0.0, 2.0, 5.0, 10.0))
PARTS = (SITE, SIZE, BID)
USERS = 4_000


@pytest.fixture(scope="module")
def log() -> Made:
    """Clicks at .5 on site a and at .1 elsewhere; sizes and bids say nothing."""
    rng = np.random.default_rng(0)
    sites = rng.choice(["a", "b", "c"], USERS)
    rate = np.where(sites == "a", 0.5, 0.1)
    return Made(
        users=[f"u{i}" for i in range(USERS)],
        sites=sites.tolist(),
        sizes=[[None, "s", "t"][i] for i in rng.integers(0, 3, USERS)],
        clicks=(rng.random(USERS) < rate).astype(int).tolist(),
        bids=rng.uniform(0, 10, USERS).tolist(),
    )


def released(log: Made, *queries: Query, unit: str = "user", rows: int = 1) -> tuple[NoisyTable, ...]:
    budget = Budget(epsilon=3.0, delta=1e-6, unit=unit)
    return Release.of(queries, budget, rows_per_unit=rows).run(log, ledger=None, purpose="test").tables


@pytest.fixture(scope="module")
def tables(log: Made) -> tuple[NoisyTable, ...]:
    pairs = ((BID, SITE), (SIZE, SITE), (SIZE, BID))  # not in the order of the columns
    return released(log, *(Query(by=by, label="click") for by in (*((part,) for part in PARTS), *pairs)))


def rates(learned: Learned) -> tuple[float, float]:
    """What it predicts on site a and on others, with all else in the middle."""
    rows = np.array([[0, 1, 1], [2, 1, 1]])
    a, other = learned.predict(rows)
    return float(a), float(other)


def test_both_ways_find_the_rates(log: Made, tables: tuple[NoisyTable, ...]) -> None:
    """With noise of about 9 on counts of 1,300 rates are known to .02; .1 is five of that."""
    for learned in (from_tables(tables), with_features(tables, log, features="public")):
        a, other = rates(learned)
        assert a == pytest.approx(0.5, abs=0.1)
        assert other == pytest.approx(0.1, abs=0.1)
        assert learned.label == "click"


def test_columns_that_no_table_has_both_of_are_taken_to_be_independent_only_where_that_is_stated(
    tables: tuple[NoisyTable, ...],
) -> None:
    """A fixed bug: where columns determined each other, models of single columns were far worse than a constant."""
    for missing, named in ((tables[:3], "'site' and 'size'"), (tables[:5], "'size' and 'bid'")):
        with pytest.raises(ValueError, match=f"no table is by both {named}.*learn.independent"):
            from_tables(missing)
    assert "taken to be independent" in from_tables(tables[:3], independent=True).guarantee
    assert "independent" not in from_tables(tables[:1]).guarantee  # one column has nothing to be tied to


def test_from_tables_alone_no_row_is_read(log: Made, tables: tuple[NoisyTable, ...]) -> None:
    before = log.reads
    from_tables(tables).sample(50, seed=0)
    assert log.reads == before


def test_features_are_read_and_labels_are_not(log: Made, tables: tuple[NoisyTable, ...]) -> None:
    class Blind(Made):
        def raw(self) -> Iterator[Raw]:
            for one in super().raw():
                yield replace(one, labels={}, observed={})

    blind = Blind(users=log.users, sites=log.sites, clicks=log.clicks, bids=log.bids, sizes=log.sizes)
    assert rates(with_features(tables, blind, features="unprotected"))[0] == pytest.approx(0.5, abs=0.1)


def test_what_is_not_protected_is_said(log: Made, tables: tuple[NoisyTable, ...]) -> None:
    alone = from_tables(tables).guarantee
    assert "epsilon <= 3.00 (delta 1e-06, user, add/remove, all tables)" in alone
    assert alone.endswith("no row was read")
    public = with_features(tables, log, features="public").guarantee
    assert "epsilon <= 3.00 (delta 1e-06, user, add/remove, all tables)" in public
    blind = with_features(tables, log, features="unprotected").guarantee
    assert "add/remove" not in blind
    assert "NOT protected are the features site, size, bid" in blind
    assert "replace/label" in blind


def test_a_feature_that_may_be_made_of_labels_is_refused(log: Made, tables: tuple[NoisyTable, ...]) -> None:
    """How often a user had clicked, read as it is, tells the labels that the model promises to protect."""
    clicked = Numeric(range=(0.0, 10.0), history=History())
    schema = log.schema.model_copy(update={"numeric": {"bid": clicked}})
    told = replace(log, schema=schema, reads=0)
    with pytest.raises(ValueError, match="'bid' is made from other rows"):
        with_features(tables, told, features="unprotected")
    assert told.reads == 0
    assert with_features(tables, told, features="public")


def test_rows_that_a_label_puts_on_a_side_are_not_read(tables: tuple[NoisyTable, ...], tmp_path: Path) -> None:
    """Whether a row is among those whose features are read as they are would tell its label."""
    columns = {"user": ["u"], "site": ["a"], "size": ["s"], "bid": [1.0], "click": [1]}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    terms = replace(tables[0].terms, budget=replace(tables[0].terms.budget, unit="example"))
    own = [replace(one, terms=terms) for one in tables]
    private = facts(public=False, unit=())
    for schema in (private, private.without_labels()):
        rows = Logs(tmp_path / "log.parquet", schema).split(test_fraction=0.5)[0]
        for declared in ("public", "unprotected"):
            with pytest.raises(ValueError, match="split them by time"):
                with_features(own, rows, features=declared)


def test_whose_rows_were_read_is_said_not_to_be_protected(log: Made, tables: tuple[NoisyTable, ...]) -> None:
    assert "whose rows they are (user) is NOT protected" in with_features(tables, log, features="unprotected").guarantee
    assert "(user) is taken to be public" in with_features(tables, log, features="public").guarantee
    days = replace(log, schema=log.schema.model_copy(update={"unit_name": "user-day"}), reads=0)
    with pytest.raises(ValueError, match="unit must be 'example' or 'user-day'"):
        with_features(tables, days, features="unprotected")
    assert days.reads == 0


def test_of_several_releases_what_they_cost_together_is_said(log: Made) -> None:
    """Two Gaussians are one of z / sqrt(2), whose epsilon is from its closed form (Balle and Wang 2018, theorem 8)."""
    budget = Budget(epsilon=3.0, delta=1e-6, unit="user")
    plans = [Release.of([Query(by=(part,), label="click")], budget, rows_per_unit=1) for part in (SITE, SIZE)]
    one, two = (plan.run(log, ledger=None, purpose="test").tables[0] for plan in plans)
    assert one.terms == two.terms
    assert len(releases([one, two])) == len(releases([one, one])) == 2  # alike, and still two

    def together(z: float) -> float:
        def delta(epsilon: float) -> float:
            return float(norm.cdf(0.5 / z - epsilon * z) - np.exp(epsilon) * norm.cdf(-0.5 / z - epsilon * z))

        return float(brentq(lambda epsilon: delta(epsilon) - 2e-6, 0.0, 50.0))

    for said, z in (
        (with_features([one, two], log, features="unprotected").guarantee, plans[0].noise_multiplier / 2),
        (from_tables([one, two], independent=True).guarantee, plans[0].noise_multiplier / np.sqrt(2)),
    ):
        found = re.search(r"epsilon <= ([0-9.]+) \(delta 2e-06, user, [a-z/]+, all 2 releases together\)", said)
        assert found is not None
        assert together(z) <= float(found[1]) <= together(z) * 1.01 + 0.01


def test_keys_that_a_known_label_makes_the_unit_s_own_are_accounted_on_both_sides(log: Made) -> None:
    found = released(log, Query(by=("site",), label="click"))[0].terms
    for event, _ in mechanisms.parts(found.event):
        if isinstance(event, mechanisms.ApproximateDpEvent):
            price = mechanisms.approximate_dp(epsilon=-np.log1p(-event.delta), delta=event.delta)
    assert (price, 1) in mechanisms.parts(under_labels(found))
    drawing = mechanisms.approximate_dp(epsilon=0.0, delta=(1 + np.exp(6.0)) * 2.0**-64)
    assert (drawing, 1) in mechanisms.parts(under_labels(found))


def test_the_label_s_epsilon_is_that_of_a_gaussian_with_root_two_less_noise(tables: tuple[NoisyTable, ...]) -> None:
    terms = tables[0].terms
    z = [one.noise_multiplier for one, _ in mechanisms.parts(terms.event) if isinstance(one, dp_event.GaussianDpEvent)]
    found = [one for one in mechanisms.parts(under_labels(terms)) if isinstance(one[0], dp_event.GaussianDpEvent)]
    assert [(one.noise_multiplier, times) for one, times in found] == [(pytest.approx(z[0] / np.sqrt(2)), len(tables))]
    assert accountant.epsilon(under_labels(terms), delta=1e-6).upper > 3.0


@pytest.mark.parametrize("sums", [(), (Sum(column="click", most_of_unit=2.0),)], ids=["counts", "two positives"])
def test_changing_a_unit_s_labels_moves_a_part_by_at_most_root_two_of_its_sensitivity(sums: tuple[Sum, ...]) -> None:
    """All labels of a user with three rows, exactly, against others of one row each; all rows are counted."""
    query = Query(by=(SITE,), label="click", sums=sums)
    bounds = Release.of([query], Budget(epsilon=3.0, delta=1e-6, unit="user"), rows_per_unit=3).bounds
    others = Made(users=["o"], sites=["a"], clicks=[1])

    def vectors(clicks: tuple[int, ...]) -> list[np.ndarray]:
        made = Made(users=[*others.users, *["u"] * 3], sites=["a", "a", "a", "b"], clicks=[*others.clicks, *clicks])
        (found,) = count(made, [query], unit_columns=1, bounds=bounds)
        cells = np.zeros((len(query.measures), query.cells))
        for row, measure in enumerate(query.measures):
            cells[row, found.places] = found.values[measure]
        return [cells[:2].ravel(), *cells[2:]]

    all_ways = {clicks: vectors(clicks) for clicks in itertools.product((0, 1), repeat=3)}
    moves = [bounds.sensitivity(), *(bounds.sensitivity(row=1, total=2) for _ in sums)]
    largest = [
        max(np.linalg.norm(one[part] - two[part]) for one, two in itertools.product(all_ways.values(), repeat=2))
        for part in range(len(moves))
    ]
    assert all(0 < found <= np.sqrt(2) * most + 1e-9 for found, most in zip(largest, moves, strict=True))
    assert largest[0] > moves[0]  # the root is needed


def test_of_a_unit_as_many_rows_are_read_as_are_counted(tables: tuple[NoisyTable, ...]) -> None:
    heavy = Made(users=["u"] * 50 + ["v"], sites=["a"] * 51, clicks=[1] * 51)
    terms = replace(tables[0].terms, bounds=replace(tables[0].terms.bounds, rows=3))
    assert len(places_of(heavy, PARTS, bound_of=terms)) == 4
    assert len(places_of(heavy, PARTS)) == 51


def test_a_model_comes_back_from_its_file(log: Made, tables: tuple[NoisyTable, ...], tmp_path: Path) -> None:
    for number, learned in enumerate((from_tables(tables), with_features(tables, log, features="unprotected"))):
        learned.save(tmp_path / f"{number}.json")
        found = Learned.load(tmp_path / f"{number}.json")
        assert (found.parts, found.label, found.guarantee) == (learned.parts, learned.label, learned.guarantee)
        assert rates(found) == pytest.approx(rates(learned))
    (tmp_path / "bad.json").write_text('{"format": "other"}', encoding="utf-8")
    for name, said in (("bad.json", "holds no model"), ("none.json", "cannot read")):
        with pytest.raises(ConfigError, match=said):
            Learned.load(tmp_path / name)


def test_names_in_a_stranger_s_tables_do_not_reach_the_terminal_as_they_are(tables: tuple[NoisyTable, ...]) -> None:
    run = LearnedRun(
        learned=replace(from_tables(tables), label="\x1b[2Jclick"), reading=None, metrics=None, sample=None
    )
    assert all(line.isprintable() for line in run.in_words())
    with pytest.raises(ValueError, match="not 'buy'") as refused:
        label_of([replace(tables[0], query=replace(tables[0].query, label="\x1b[2Jclick"))], "buy")
    assert str(refused.value).isprintable()


def test_a_synthetic_log_has_the_columns_and_the_rates(tables: tuple[NoisyTable, ...]) -> None:
    """20,000 rows: a rate of about 7,000 of them is off by .03 with probability below 1e-6."""
    learned = from_tables(tables)
    drawn = learned.sample(20_000, seed=1).to_pandas()
    assert list(drawn.columns) == ["site", "size", "bid", "click"]
    assert set(drawn["site"].dropna()) <= {"a", "b", "other"}
    assert set(drawn["bid"].dropna()) <= {1.0, 3.5, 7.5}
    assert drawn["click"][drawn["site"] == "a"].mean() == pytest.approx(0.5, abs=0.13)
    drawn_facts = learned.sample_schema("made-up", 20_000)
    assert drawn_facts["public"] is True
    assert drawn_facts["numeric"] == {"bid": {"range": [0.0, 10.0]}}


def test_what_cannot_be_learned_from_is_refused(log: Made, tables: tuple[NoisyTable, ...]) -> None:
    found = released(log, Query(by=("site",), label="click"))
    other = released(log, Query(by=(OneOf(column="site", values=("a",)),), label="click"))
    with pytest.raises(ValueError, match="values of 'site' were found in the log"):
        from_tables(found)
    with pytest.raises(ValueError, match="not 'buy'"):
        from_tables(tables, label="buy")
    with pytest.raises(ValueError, match="same places of a column"):
        with_features((*tables, *other), log, features="public")
    with pytest.raises(ValueError, match="no label"):
        from_tables(released(log, Query(by=(SITE,))))
    with pytest.raises(ValueError, match="drawn from a model of tables alone"):
        with_features(tables, log, features="public").sample(5, seed=0)


def reported(log: Made, *, neighbors: str = "add-remove") -> Report:
    """What an interface would report of the clicks by site, of two sites, with Laplace noise of scale 10."""
    noise = np.random.default_rng(3).laplace(0, 10.0, 2)
    clicks = [sum(c for s, c in zip(log.sites, log.clicks, strict=True) if s == site) for site in ("a", "b")]
    return Report(
        api="summary",
        by=("site",),
        keys=(("a",), ("b",)),
        values={"conversions": np.array(clicks) + noise},
        noise_std={"conversions": np.full(2, 10.0 * np.sqrt(2))},
        law="Laplace",
        promise="",
        limits={},
        event=mechanisms.laplace(noise_multiplier=10.0),
        budget=Budget(epsilon=0.1, delta=1e-6, unit="user", neighbors=neighbors),
        epsilon=0.1,
        entry=None,
        seen={},
    )


def test_an_attribution_report_is_learned_from_like_a_table(log: Made) -> None:
    """Noise of 14 on 1,300 rows of a site is .011 in its rate: .06 is five of that; site c is not reported."""
    learned = with_report(reported(log), log, measure="conversions", features="public", label="click")
    a, b = learned.predict(np.array([[0], [1]]))
    assert (a, b) == (pytest.approx(0.5, abs=0.06), pytest.approx(0.1, abs=0.06))
    assert "epsilon <= 0.10 (delta 1e-06, user, add/remove, summary report)" in learned.guarantee
    blind = with_report(reported(log), log, measure="conversions", features="unprotected", label="click").guarantee
    assert "epsilon <= 0.20 (delta 2.11e-06, user, replace/label, summary report)" in blind
    assert "add/remove" not in blind
    own = with_report(
        reported(log, neighbors="replace-label"), log, measure="conversions", features="unprotected", label="click"
    )
    assert "epsilon <= 0.10 (delta 1e-06, user, replace/label" in own.guarantee
    with pytest.raises(ValueError, match="no measure 'sales'"):
        with_report(reported(log), log, measure="sales", features="public", label="click")
    often = log.schema.categorical["site"].model_copy(update={"history": History()})
    told = replace(log, schema=log.schema.model_copy(update={"categorical": {"site": often}}))
    with pytest.raises(ValueError, match="'site' is made from other rows"):
        with_report(reported(log), told, measure="conversions", features="unprotected", label="click")
