"""A plan that lies about its sampler, or costs more than its budget, cannot be built."""

import dataclasses
import math

import pytest
from dp_accounting import dp_event

from accounting import mechanisms
from accounting.accountant import epsilon
from accounting.budget import Budget
from privads.job import make_plan
from privads.logs.schema import Schema
from privads.run_config import PlanTable
from privads.training.plan import TrainPlan
from privads.training.sizes import default_batch, default_largest_batch, default_steps

BUDGET = Budget(epsilon=3.0, delta=1e-5, unit="user")


def plan(**changes: object) -> TrainPlan:
    made = TrainPlan.for_budget(BUDGET, population=10_000, batch=500, epochs=2)
    return dataclasses.replace(made, **changes) if changes else made


def test_the_event_says_what_the_plan_executes() -> None:
    made = plan()
    event = made.event
    assert isinstance(event, dp_event.SelfComposedDpEvent)
    assert event.count == made.steps == 40
    assert event.event == dp_event.PoissonSampledDpEvent(0.05, dp_event.GaussianDpEvent(made.noise_multiplier))


def test_a_plan_for_a_budget_keeps_it_and_wastes_little() -> None:
    assert 2.95 < plan().spent.upper <= 3.0


def test_spent_is_the_accountants_figure_for_the_event() -> None:
    made = plan()
    assert made.spent == epsilon(made.event, delta=1e-5)


@pytest.mark.parametrize("sampler", ["shuffle", "fixed-size", "sequential", "Poisson"])
def test_another_sampler_than_the_events_cannot_be_built(sampler: str) -> None:
    with pytest.raises(ValueError, match="cannot be accounted for"):
        plan(sampler=sampler)


def test_less_noise_or_more_steps_or_a_larger_batch_cannot_be_built() -> None:
    made = plan()
    for change in (
        {"noise_multiplier": made.noise_multiplier * 0.9},
        {"steps": made.steps * 2},
        {"batch": made.batch * 2},
        {"population": made.population // 2},
    ):
        with pytest.raises(ValueError, match="more than its budget"):
            dataclasses.replace(made, **change)


def test_a_plan_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan().noise_multiplier = 0.1  # type: ignore[misc]


@pytest.mark.parametrize("delta", [1e-4, 1e-3])
def test_a_delta_of_one_over_the_population_or_more_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match=r"delta must be below 1 / population = 0.0001"):
        TrainPlan.for_budget(Budget(epsilon=1.0, delta=delta, unit="user"), population=10_000)


@pytest.mark.parametrize(
    "arguments",
    [
        {"population": 0},
        {"population": 100, "batch": 101},
        {"population": 100, "batch": 0},
        {"population": 100, "epochs": 0},
        {"population": 100, "epochs": math.inf},
        {"population": 100, "clip_norm": -1.0},
        {"population": 100, "clip_norm": math.inf},
        {"population": 100, "clip_norm": math.nan},
        {"population": 100, "learning_rate": 0.0},
        {"population": 100, "averaging": 1.0},
        {"population": 100, "rows_per_unit": 0},
    ],
)
def test_bad_numbers_are_refused_in_one_line(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*(must be|epochs)[^\n]*$"):
        TrainPlan.for_budget(BUDGET, **arguments)  # type: ignore[arg-type]


def test_single_rows_cannot_bring_more_than_themselves() -> None:
    with pytest.raises(ValueError, match="rows_per_unit must be 1"):
        TrainPlan.for_budget(Budget(epsilon=1.0, delta=1e-6, unit="example"), population=1000, rows_per_unit=2)


def test_the_twin_without_privacy_differs_in_noise_and_clip_alone() -> None:
    private, twin = plan(), TrainPlan.without_privacy(population=10_000, unit="user", batch=500, epochs=2)
    assert not twin.private
    assert isinstance(twin.event, dp_event.NonPrivateDpEvent)
    assert math.isinf(epsilon(twin.event, delta=1e-5).upper)
    changed = {"budget", "clip_norm", "noise_multiplier"}  # and what is None where neither is asked for
    for field in dataclasses.fields(TrainPlan):
        if field.name not in changed:
            assert getattr(private, field.name) == getattr(twin, field.name), field.name


def test_a_plan_without_a_budget_cannot_pretend_to_clip() -> None:
    with pytest.raises(ValueError, match="without_privacy"):
        dataclasses.replace(plan(), budget=None)


def test_defaults_are_the_documented_formulas() -> None:
    assert [default_batch(n) for n in (1, 10_000, 40_000, 60_000, 40_000_000)] == [1, 5000, 8192, 12_000, 32_768]
    assert [default_steps(n) for n in (10_000, 100_000, 400_000, 40_000_000)] == [300, 300, 600, 6000]


def test_defaults_read_the_population_and_not_the_data() -> None:
    one, two = (TrainPlan.for_budget(BUDGET, population=20_000) for _ in range(2))
    assert one == two


# A largest batch


TRUNCATED = TrainPlan(
    budget=Budget(epsilon=3.0, delta=1e-5, unit="user"),
    population=10_000,
    batch=500,
    steps=40,
    rows_per_unit=8,
    clip_norm=1.0,
    noise_multiplier=1.0,
    sampler="truncated-poisson",
    largest_batch=700,
    most_units=12_000,
)


def test_the_event_of_a_largest_batch_counts_the_most_units_and_the_count() -> None:
    event = TRUNCATED.event
    assert isinstance(event, dp_event.ComposedDpEvent)
    counted, trained = event.events
    assert counted == mechanisms.approximate_dp(epsilon=0.01 * 3.0, delta=0.01 * 1e-5)  # a hundredth of the budget
    assert trained == dp_event.SelfComposedDpEvent(
        dp_event.TruncatedSubsampledGaussianDpEvent(
            dataset_size=12_000, sampling_probability=0.05, truncated_batch_size=700, noise_multiplier=1.0
        ),
        40,
    )


def test_a_largest_batch_costs_more_than_none_and_a_smaller_one_still_more() -> None:
    plain = dataclasses.replace(TRUNCATED, sampler="poisson", largest_batch=None, most_units=None)
    generous = dataclasses.replace(TRUNCATED.budget, epsilon=1000.0)
    tight = dataclasses.replace(TRUNCATED, budget=generous, largest_batch=600)
    assert plain.spent.upper < TRUNCATED.spent.upper < 3.0
    assert TRUNCATED.spent.upper < 0.9 * tight.spent.upper


def test_a_plan_with_a_largest_batch_for_a_budget_keeps_it_and_costs_little_noise() -> None:
    settings = {"population": 10_000, "batch": 500, "epochs": 1}
    made = TrainPlan.for_budget(BUDGET, **settings, sampler="truncated-poisson", most_units=12_000)
    plain = TrainPlan.for_budget(BUDGET, **settings)
    assert made.largest_batch == default_largest_batch(500, 10_000, 12_000) == math.ceil(600 + 6 * math.sqrt(600))
    assert 2.95 < made.spent.upper <= 3.0
    assert plain.noise_multiplier < made.noise_multiplier < 1.02 * plain.noise_multiplier


def test_more_units_than_stated_would_cost_more() -> None:
    generous = dataclasses.replace(TRUNCATED.budget, epsilon=1000.0)
    costs = [
        dataclasses.replace(TRUNCATED, budget=generous, most_units=units, largest_batch=650).spent.upper
        for units in (12_000, 12_500, 13_000, 26_000)
    ]
    assert costs == sorted(costs)
    assert costs[0] < costs[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "poisson", "most_units": None}, "largest_batch is for sampler 'truncated-poisson' only, got 700"),
        ({"sampler": "poisson", "largest_batch": None}, "most_units is for sampler 'truncated-poisson' only"),
        ({"largest_batch": None}, "needs largest_batch, a whole number"),
        ({"largest_batch": 0}, "needs largest_batch, a whole number"),
        ({"largest_batch": 700.0}, "needs largest_batch, a whole number"),
        ({"most_units": None}, "needs most_units, a whole number"),
        ({"most_units": 10_000}, "most_units must be above the population of 10000"),
        ({"most_units": 10_900}, "the 1122 that a private count of it may be too high, got 10900"),
        ({"largest_batch": 12_001}, "largest_batch must be at most most_units = 12000"),
        ({"noise_multiplier": 0.5}, "more than its budget"),
        ({"batch": 1000}, "more than its budget"),
    ],
    ids=str,
)
def test_a_largest_batch_that_the_event_would_not_describe_cannot_be_built(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        dataclasses.replace(TRUNCATED, **change)
    assert "\n" not in str(caught.value)


def test_the_most_units_have_no_default() -> None:
    with pytest.raises(ValueError, match="needs most_units"):
        TrainPlan.for_budget(BUDGET, population=10_000, sampler="truncated-poisson", largest_batch=700)


def test_a_run_file_states_the_largest_batch_and_the_most_units() -> None:
    schema = Schema.load(
        {"dataset": "x", "population": 10_000, "unit": ["u"], "labels": {"y": "y"}, "numeric": {"n": {"range": [0, 1]}}}
    )
    table = {"unit": "user", "without_privacy": True, "batch": 500, "sampler": "truncated-poisson"}
    made = make_plan(PlanTable.model_validate({**table, "most_units": 12_000, "largest_batch": 700}), schema)
    assert (made.sampler, made.largest_batch, made.most_units) == ("truncated-poisson", 700, 12_000)
    with pytest.raises(ValueError, match="needs most_units"):
        make_plan(PlanTable.model_validate({**table, "largest_batch": 700}), schema)


# Several sums of one sample, and other units than those sampled


def test_a_count_of_clipped_units_is_part_of_every_steps_event() -> None:
    made = TrainPlan.for_budget(BUDGET, population=10_000, batch=500, epochs=2, clip_quantile=0.5)
    assert made.count_noise_multiplier == 50.0  # noise of batch / 20 on a count with sensitivity 1/2
    inner = made.event.event.event  # type: ignore[attr-defined]
    assert {one.noise_multiplier for one in inner.events} == {made.noise_multiplier, 50.0}
    assert 2.95 < made.spent.upper <= 3.0
    together = (made.noise_multiplier**-2 + 50.0**-2) ** -0.5  # Andrew et al. 2021, theorem 1
    assert together == pytest.approx(plan().noise_multiplier, rel=1e-3)


def test_a_small_batch_counts_under_noise_that_a_budget_can_pay() -> None:
    made = TrainPlan.for_budget(BUDGET, population=1000, batch=20, epochs=2, clip_quantile=0.5)
    assert made.count_noise_multiplier == pytest.approx(4.0 * made.noise_multiplier)


def test_adafest_releases_counts_of_used_rows_beside_the_gradients_at_every_step() -> None:
    made = TrainPlan.for_budget(BUDGET, population=10_000, batch=500, epochs=2, table_noise="adafest")
    inner = made.event.event.event  # type: ignore[attr-defined]
    assert {one.noise_multiplier for one in inner.events} == {made.noise_multiplier, made.selection_noise_multiplier}
    assert made.selection_noise_multiplier == pytest.approx(3.0 * made.noise_multiplier)
    assert made.noise_multiplier == pytest.approx(plan().noise_multiplier * math.sqrt(1 + 1 / 9), rel=1e-3)
    assert made.averaging == 0.0


def test_fest_selects_once_for_a_twentieth_of_the_budget() -> None:
    made = TrainPlan.for_budget(BUDGET, population=10_000, batch=500, epochs=2, table_noise="fest")
    once, trained = made.event.events  # type: ignore[attr-defined]
    assert once == dp_event.GaussianDpEvent(made.selection_noise_multiplier)
    assert 0.05 * 3.0 * 0.99 < epsilon(once, delta=0.05 * 1e-5).upper <= 0.05 * 3.0
    assert trained.event.sampling_probability == 0.05
    assert made.noise_multiplier < 1.02 * plan().noise_multiplier


def test_with_records_the_event_is_that_of_an_owner_of_so_many_rows() -> None:
    made = TrainPlan.for_budget(BUDGET, population=10_000, batch=500, epochs=2, records=4)
    assert made.rows_per_unit == 1
    one = mechanisms.user_dp_sgd(
        sampling_rate=0.05, noise_multiplier=made.noise_multiplier, steps=made.steps, records=4
    )
    assert made.event == one
    assert made.noise_multiplier > 1.5 * plan().noise_multiplier


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_quantile": 0.5}, "clip_quantile needs count_noise_multiplier"),
        ({"count_noise_multiplier": 5.0}, "count_noise_multiplier is for clip_quantile only"),
        ({"clip_quantile": 1.0, "count_noise_multiplier": 50.0}, r"clip_quantile must be in \(0, 1\), got 1.0"),
        ({"clip_quantile": 0.5, "count_noise_multiplier": 1.0}, "more than its budget"),
        ({"table_noise": "adafest"}, "needs selection_noise_multiplier, a positive number, got None"),
        ({"table_noise": "fest", "selection_noise_multiplier": -1.0}, "a positive number, got -1.0"),
        ({"table_noise": "adafest", "selection_noise_multiplier": 0.5}, "more than its budget"),
        ({"table_noise": "fest", "selection_noise_multiplier": 0.5}, "more than its budget"),
        ({"selection_noise_multiplier": 5.0}, "is for table_noise 'adafest' and 'fest' only"),
        ({"selection_threshold": 5.0}, "selection_threshold is for table_noise"),
        ({"table_noise": "sparse"}, "table_noise must be 'dense', 'lazy', 'adafest' or 'fest', got 'sparse'"),
        ({"clipping": "per-layer"}, "clipping must be 'flat' or 'per-group', got 'per-layer'"),
        ({"records": 0, "rows_per_unit": 1}, "records must be a whole number of at least 1, got 0"),
        ({"records": 2000, "rows_per_unit": 1}, "records must be at most 1000"),
        ({"records": 4}, "rows_per_unit must be 1, got 8"),
        ({"records": 4, "rows_per_unit": 1}, "more than its budget"),
        ({"rows_at_once": 4}, "rows_at_once must be at least rows_per_unit = 8"),
        ({"rows_at_once": 1.5}, "rows_at_once must be a whole number"),
    ],
    ids=str,
)
def test_settings_that_the_event_would_not_describe_cannot_be_built(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        plan(**change)
    assert "\n" not in str(caught.value)


def test_the_clip_norm_of_groups_does_not_follow_a_quantile() -> None:
    with pytest.raises(ValueError, match="give clipping='flat'"):
        TrainPlan.for_budget(BUDGET, population=10_000, clipping="per-group", clip_quantile=0.5)


def test_records_are_not_accounted_for_other_samplers() -> None:
    settings = {"population": 10_000, "batch": 500, "most_units": 12_000}
    with pytest.raises(ValueError, match="records above 1 are accounted for sampler 'poisson' only"):
        TrainPlan.for_budget(BUDGET, **settings, sampler="truncated-poisson", records=2)


# Balls in bins


def test_the_event_of_balls_in_bins_has_an_epochs_bins_and_pays_for_an_unfinished_one_whole() -> None:
    made = TrainPlan.for_budget(BUDGET, population=10_000, batch=500, epochs=2.5, sampler="balls-in-bins")
    assert (made.bins, made.steps, made.sampling_rate) == (20, 50, 0.05)
    assert made.event == mechanisms.balls_in_bins_dp_sgd(noise_multiplier=made.noise_multiplier, bins=20, epochs=3)
    assert 2.9 < made.spent.upper <= 3.0


def test_a_run_file_states_everything_that_a_plan_takes() -> None:
    fields = {one.name for one in dataclasses.fields(TrainPlan)}
    found = {"noise_multiplier", "count_noise_multiplier", "steps", "budget"}  # what calibration and epochs decide
    assert fields - found == set(PlanTable.model_fields) - {"epsilon", "delta", "unit", "without_privacy", "epochs"}


def test_a_run_file_with_records_counts_rows() -> None:
    schema = Schema.load(
        {
            "dataset": "x",
            "population": 1000,
            "rows": 10_000,
            "unit": ["u"],
            "labels": {"y": "y"},
            "numeric": {"n": {"range": [0, 1]}},
        }
    )
    table = {"unit": "user", "epsilon": 3.0, "delta": 1e-5, "batch": 500, "epochs": 1, "records": 4}
    made = make_plan(PlanTable.model_validate(table), schema)
    assert (made.population, made.records, made.rows_per_unit) == (10_000, 4, 1)
