"""A plan that lies about its sampler, or costs more than its budget, cannot be built."""

import dataclasses
import math

import pytest
from dp_accounting import dp_event

from accounting.accountant import epsilon
from accounting.budget import Budget
from privads.training.plan import TrainPlan, default_batch, default_steps

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


@pytest.mark.parametrize("sampler", ["shuffle", "fixed-size", "Poisson"])
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
    changed = {"budget", "clip_norm", "noise_multiplier"}
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
