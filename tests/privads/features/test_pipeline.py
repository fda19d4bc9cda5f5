"""Transforms and pipelines: what they make, what they cost, and that they save and read back to the same."""

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

import privads as pa
from accounting import mechanisms
from privads.config import ConfigError
from privads.features import fitted
from privads.features.fitted import ODDS_LIMIT
from privads.features.transforms import (
    Hashed,
    Imputed,
    Missing,
    Quantiles,
    Rate,
    Scaled,
    Standardized,
    Vocabulary,
)
from privads.logs.schema import Schema
from privads.logs.simulator import schema_toml, simulate
from privads.noise import Randomness
from privads.signals.query import grid_of
from privads.training.checkpoint import load, load_features
from privads.training.scores import write_scores
from tests.privads.signals.samples import Made, facts

BUDGET = pa.Budget(epsilon=1.0, delta=1e-6, unit="user")
ALL = pa.Pipeline(
    transforms=(
        Vocabulary(columns=("site",), label="conversion"),
        Rate(columns=("campaign",), label="conversion"),
        Rate(columns=("interest", "device"), label="conversion"),
        Hashed(columns=("device", "creative_size"), buckets=64),
        Quantiles(column="price_usd", buckets=8),
        Quantiles(column="bid_usd"),
        Standardized(column="price_usd"),
        Scaled(column="bid_usd"),
        Scaled(column="bid_usd", log=True),
        Imputed(column="price_usd"),
        Imputed(column="bid_usd", value=2.5),
        Missing(column="price_usd"),
        Missing(column="country"),
    )
)


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Randomness, "rounded_gaussian", lambda self, count, *, noise_std: np.zeros(count, np.int64))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> pa.Logs:
    folder = tmp_path_factory.mktemp("log")
    pyarrow.parquet.write_table(simulate(2_000, seed=0), folder / "log.parquet")
    (folder / "ads.toml").write_text(schema_toml(2_000, public=True), encoding="utf-8")
    return pa.Logs(folder / "log.parquet", folder / "ads.toml")


def only(transform: object, source: Made, rows: int = 1) -> tuple[np.ndarray, np.ndarray, Schema]:
    features = pa.fit_features(pa.Pipeline(transforms=(transform,)), source, BUDGET, rows_per_unit=rows)
    (raw,) = small(source).raw()
    dense, ids = features.transform(raw)
    return dense, ids, features.schema


def small(source: Made) -> Made:
    part = slice(0, 7)
    return Made(
        users=source.users[part],
        sites=source.sites[part],
        clicks=source.clicks[part],
        bids=(source.bids or [0.0] * 7)[part],
        sizes=(source.sizes or [None] * 7)[part],
    )


def people(sites: list[str | None], clicks: list[int | None], bids: list[float] | None = None) -> Made:
    return Made(users=[f"u{i}" for i in range(len(sites))], sites=sites, clicks=clicks, bids=bids)


@pytest.mark.usefixtures("no_noise")
def test_a_vocabulary_has_places_for_missing_and_unknown_values() -> None:
    source = people(["rare", None, *["b", "a"] * 2000], [0] * 4002)
    _, ids, schema = only(Vocabulary(columns=("site",)), source)
    assert schema.categorical["site.vocabulary"].buckets == 4
    assert ids.ravel().tolist() == [1, 0, 3, 2, 3, 2, 3]


@pytest.mark.usefixtures("no_noise")
def test_a_vocabulary_keeps_its_most_frequent_values() -> None:
    source = people([*["a"] * 3, *["b"] * 900, *["a"] * 2000, *["c"] * 1000], [0] * 3903)
    features = pa.fit_features(pa.Pipeline(transforms=(Vocabulary(columns=("site",), most=2),)), source, BUDGET)
    assert features.transforms[0].model_dump()["values"] == (("a",), ("c",))


@pytest.mark.usefixtures("no_noise")
def test_a_rate_is_the_log_odds_beside_the_whole_log_s() -> None:
    rows = 20_000
    source = people([*["a", "b"] * rows], [*[1, 0, 0, 0, 0, 0] * (2 * rows // 6), 0, 0, 0, 0][: 2 * rows])
    dense, _, schema = only(Rate(columns=("site",), label="click"), source)
    assert tuple(schema.numeric) == ("site.click.rate", "site.click.count")
    # a clicks in a third of its rows, b never: its rate is at the least one, a twentieth of the whole log's
    overall = np.log((1 / 6) / (5 / 6))
    assert dense[0, 0] * ODDS_LIMIT == pytest.approx(np.log((1 / 3) / (2 / 3)) - overall, abs=0.02)
    least = 1 / 6 / 20
    assert dense[1, 0] * ODDS_LIMIT == pytest.approx(np.log(least / (1 - least)) - overall, abs=0.02)


@pytest.mark.usefixtures("no_noise")
def test_quantile_buckets_are_of_equal_size_and_0_is_missing() -> None:
    bids = np.random.default_rng(0).uniform(0, 10, 4000)
    bids[0] = np.nan
    source = people(["a"] * 4000, [0] * 4000, bids.tolist())
    features = pa.fit_features(
        pa.Pipeline(transforms=(Quantiles(column="bid", buckets=4), Quantiles(column="bid"))), source, BUDGET
    )
    dense, ids = np.concatenate([features.transform(raw)[0] for raw in source.raw()]), None
    ids = np.concatenate([features.transform(raw)[1] for raw in source.raw()])
    assert ids[0, 0] == 0
    assert dense[0, 0] == 0.0
    assert np.bincount(ids[1:, 0], minlength=5)[1:].tolist() == pytest.approx([1000] * 4, abs=40)
    expected = 2 * (np.argsort(np.argsort(bids[1:])) + 0.5) / 3999 - 1
    assert np.abs(dense[1:, 0] - expected).max() < 0.03


@pytest.mark.usefixtures("no_noise")
def test_standardized_is_the_distance_to_the_mean_and_a_missing_one_the_median() -> None:
    bids = np.random.default_rng(1).uniform(0, 10, 6000)
    source = people(["a"] * 6000, [0] * 6000, [float("nan"), *bids.tolist()[1:]])
    dense, _, _ = only(Standardized(column="bid", limit=2.0), source)
    expected = np.clip((np.array([5.0, *bids[1:7]]) - 5.0) / (2 * 10 / 12**0.5), -1, 1)
    assert dense[:, 0] == pytest.approx(expected, abs=0.03)


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("log", [False, True])
def test_a_missing_number_is_imputed_by_the_median_and_a_known_one_is_scaled(log: bool) -> None:
    bids = np.random.default_rng(2).uniform(0, 10, 6000) ** 2 / 10  # its median is 2.5, its mean 3.3
    source = people(["a"] * 6000, [0] * 6000, [float("nan"), *bids.tolist()[1:]])
    dense, _, schema = only(Imputed(column="bid", log=log), source)
    known = np.array([float(np.median(bids[1:])), *bids[1:7]])
    expected = np.log1p(known) / np.log1p(10) if log else known / 10
    assert dense[0, 0] == pytest.approx(2 * expected[0] - 1, abs=0.03)
    assert dense[1:, 0] == pytest.approx(2 * expected[1:] - 1, abs=1e-6)
    assert tuple(schema.numeric) == ("bid.log" if log else "bid.imputed",)


def test_imputing_by_the_median_is_charged_as_a_table_and_by_a_public_value_is_free() -> None:
    source = people(["a"] * 40, [0] * 40, [float("nan"), 7.5] * 20)
    free = pa.fit_features(pa.Pipeline(transforms=(Imputed(column="bid", value=2.5), Missing(column="bid"))), source)
    assert (source.reads, free.cost) == (0, None)
    dense, _ = free.transform(next(iter(source.raw())))
    assert dense[:2].tolist() == [[-0.5, 1.0], [0.5, -1.0]]
    with pytest.raises(ValueError, match="say what that may cost"):
        pa.fit_features(pa.Pipeline(transforms=(Imputed(column="bid"),)), source)
    both = pa.Pipeline(transforms=(Imputed(column="bid"), Quantiles(column="bid")))
    assert len(both.queries(source.schema)) == 1
    apart = pa.Pipeline(transforms=(Imputed(column="bid", label="click"), Quantiles(column="bid")))
    assert len(apart.queries(source.schema)) == 2


def test_free_transforms_read_nothing_and_cost_nothing() -> None:
    source = people(["a", None], [0, 1], [0.0, float("nan")])
    free = pa.Pipeline(
        transforms=(
            Hashed(columns=("site",), buckets=8),
            Scaled(column="bid"),
            Missing(column="bid"),
            Missing(column="site"),
        )
    )
    features = pa.fit_features(free, source)
    assert source.reads == 0
    assert features.cost is None
    (raw,) = source.raw()
    dense, ids = features.transform(raw)
    assert dense.tolist() == [[-1.0, -1.0, -1.0], [0.0, 1.0, 1.0]]
    assert ids[1, 0] == 0


def test_the_schema_s_own_reading_is_hashed_and_log_scaled(log: pa.Logs) -> None:
    schema = log.schema
    same = pa.Pipeline(
        transforms=(
            *(Scaled(column=name, log=True) for name in schema.numeric),
            *(Hashed(columns=(name,), buckets=field.buckets) for name, field in schema.categorical.items()),
        )
    )
    one, two = (each.take(np.arange(500)) for each in (log, log.with_features(pa.fit_features(same, log))))
    assert (one.dense == two.dense).all()
    assert (one.ids == two.ids).all()


def test_a_pipeline_is_one_release_and_two_transforms_share_a_table(log: pa.Logs) -> None:
    queries = ALL.queries(log.source)
    assert len(queries) == 5  # site, campaign, interest and device, price (for two), bid
    features = pa.fit_features(ALL, log, BUDGET, rows_per_unit=2)
    assert features.cost is not None
    assert sum(count for _, count in mechanisms.parts(mechanisms.from_json(features.cost.event))) == 5 + 1
    assert features.cost.epsilon <= 1.0


def test_a_pipeline_reads_back_to_the_same_outputs(log: pa.Logs, tmp_path: Path) -> None:
    features = pa.fit_features(ALL, log, BUDGET)
    features.save(tmp_path / "features.json")
    back = pa.Features.load(tmp_path / "features.json")
    assert back == features
    assert back.schema == features.schema
    one, two = (log.with_features(each).take(np.arange(800)) for each in (features, back))
    assert (one.dense == two.dense).all()
    assert (one.ids == two.ids).all()
    assert float(one.dense.abs().max()) <= 1.0
    starts = features.schema.bucket_starts
    ids = one.ids.view(800, -1)
    for field in range(ids.shape[1]):
        assert starts[field] <= int(ids[:, field].min()) <= int(ids[:, field].max()) < starts[field + 1]


def test_a_changed_file_of_features_is_refused(tmp_path: Path) -> None:
    (tmp_path / "features.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="was changed"):
        pa.Features.load(tmp_path / "features.json")


def test_a_row_s_features_depend_on_no_other_row(log: pa.Logs) -> None:
    features = pa.fit_features(ALL, log, BUDGET)
    raw = next(iter(log.raw()))
    dense, ids = features.transform(raw)
    for row in (0, 17, 300):
        alone = type(raw)(
            numbers={name: one[[row]] for name, one in raw.numbers.items()},
            texts={name: (codes[[row]], values) for name, (codes, values) in raw.texts.items()},
            labels={},
            observed={},
            units=[],
            times=raw.times[[row]],
        )
        own = features.transform(alone)
        assert (own[0][0] == dense[row]).all()
        assert (own[1][0] == ids[row]).all()


def test_a_run_keeps_its_features_and_predicts_with_them(log: pa.Logs, tmp_path: Path) -> None:
    train, test = log.split(after="2026-11-14")
    features = pa.fit_features(ALL, train, BUDGET)
    train, test = train.with_features(features), test.with_features(features)
    plan = pa.TrainPlan.for_budget(
        pa.Budget(epsilon=3.0, delta=1e-6, unit="user"), population=2_000, rows_per_unit=2, epochs=2
    )
    run = pa.fit(pa.models.Logistic(train.schema), train, plan, test=test)
    assert (
        "its features by themselves: epsilon <= 1.00 (delta 1e-06, user, add/remove, noisy counts)"
        in run.report().headline
    )
    run.save(tmp_path / "run")
    model, schema = load(tmp_path / "run")
    found = load_features(tmp_path / "run")
    assert found == features
    write_scores(model, schema, log.path, tmp_path / "scores.parquet", features=found)
    scores = np.sort(pyarrow.parquet.read_table(tmp_path / "scores.parquet")["conversion_probability"].to_numpy())
    own = np.sort(run.predict(log.with_features(features))["conversion"])
    assert scores == pytest.approx(own, abs=1e-6)
    (tmp_path / "run" / "features.json").write_text(
        features.model_copy(update={"cost": features.cost.model_copy(update={"epsilon": 0.1})}).model_dump_json(),
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match="was changed"):
        load_features(tmp_path / "run")


def test_an_input_keeps_the_history_of_its_column() -> None:
    """Else a feature made from other rows would pass under unit example, where one row enters others' gradients."""
    source = facts().model_copy(
        update={"numeric": Schema.load({**SEEN, "numeric": {"bid": {"range": [0, 1], "history": {"rows": 3}}}}).numeric}
    )
    features = pa.fit_features(pa.Pipeline(transforms=(Scaled(column="bid"),)), Made([], [], [], schema=source))
    assert features.schema.records_of_row() == 7
    with pytest.raises(ValueError, match="made from other rows"):
        features.schema.check_history("example")


SEEN = {
    "dataset": "made-up",
    "population": 100,
    "unit": ["user"],
    "labels": {"click": "click"},
}


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (Vocabulary(columns=("sight",)), "'sight' is no categorical column"),
        (Rate(columns=("site",), label="buy"), "'buy' is no label"),
        (Scaled(column="bit"), "'bit' is no numeric column"),
        (Quantiles(column="site"), "'site' is no numeric column"),
        (Imputed(column="site"), "'site' is no numeric column"),
        (Imputed(column="site", value=1.0), "'site' is no numeric column"),
        (Imputed(column="bid", value=11.0), r"in the range of 'bid', \[0, 10\], got 11"),
        (Imputed(column="bid", value=float("nan")), "in the range of 'bid'"),
        (Imputed(column="bid", label="buy"), "'buy' is no label"),
    ],
)
def test_what_the_schema_does_not_have_is_refused_before_a_row_is_read(transform: object, said: str) -> None:
    source = people(["a"], [0])
    with pytest.raises(ValueError, match=said):
        pa.fit_features(pa.Pipeline(transforms=(transform,)), source, BUDGET)
    assert source.reads == 0


def test_a_label_beside_a_public_value_is_refused() -> None:
    with pytest.raises(ValueError, match="leave one out"):
        Imputed(column="bid", value=1.0, label="click")


def test_a_fit_that_reads_rows_needs_a_budget() -> None:
    with pytest.raises(ValueError, match="say what that may cost"):
        pa.fit_features(pa.Pipeline(transforms=(Vocabulary(columns=("site",)),)), people(["a"], [0]))


def test_the_same_transform_twice_and_two_inputs_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        pa.Pipeline(transforms=(Scaled(column="bid"), Scaled(column="bid")))
    two = pa.Pipeline(transforms=(Hashed(columns=("site",), buckets=4), Hashed(columns=("site",), buckets=8)))
    with pytest.raises(ValueError, match="two transforms make the input 'site'"):
        pa.fit_features(two, people(["a"], [0]))


def test_features_of_another_schema_are_refused(log: pa.Logs) -> None:
    features = pa.fit_features(pa.Pipeline(transforms=(Scaled(column="bid"),)), people(["a"], [0]))
    with pytest.raises(ValueError, match="another schema"):
        log.with_features(features)


def test_a_log_that_is_read_through_features_is_refused_before_it_is_read(log: pa.Logs) -> None:
    """A fixed bug: its schema has columns that its files do not have, which was found after the charge."""
    through = log.with_features(pa.fit_features(pa.Pipeline(transforms=(Scaled(column="bid_usd"),)), log))
    with pytest.raises(ValueError, match="pass the log without them"):
        pa.fit_features(pa.Pipeline(transforms=(Standardized(column="bid_usd.scaled"),)), through, BUDGET)


def test_a_grid_covers_the_public_range() -> None:
    edges = grid_of(facts(), "bid", cells=128).edges
    assert (edges[0], edges[-1], len(edges)) == (0.0, 10.0, 129)


def test_values_that_hold_the_separator_stay_different_crosses() -> None:
    values = (("x\x1fy", "z"), ("x", "y\x1fz"), ("x\x1e1y", "z"))
    words = fitted.Words(columns=("site", "size"), values=values)
    first, second = zip(*values, strict=True)
    source = Made(users=["u"] * 3, sites=first, sizes=second, clicks=[1] * 3)
    (raw,) = source.raw()
    assert words.apply(raw)[0].tolist() == [2, 3, 4]


def test_fitted_features_that_state_no_cost_are_refused(tmp_path: Path) -> None:
    source = Made(users=["u"] * 3, sites=["a"] * 3, clicks=[1] * 3)
    features = pa.fit_features(pa.Pipeline(transforms=(Vocabulary(columns=("site",)),)), source, BUDGET)
    features.model_copy(update={"cost": None}).save(tmp_path / "features.json")
    with pytest.raises(ConfigError, match="what that cost"):
        pa.Features.load(tmp_path / "features.json")
