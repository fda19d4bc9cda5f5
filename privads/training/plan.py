"""`TrainPlan`: sampler, clip, noise and event in one frozen value, so that they cannot disagree."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

from dp_accounting import dp_event

from accounting import calibrate, mechanisms
from accounting.accountant import Bounds, epsilon
from accounting.budget import EXAMPLE, Budget, PrivacyUnit

Sampler = Literal["poisson", "truncated-poisson"]
"""`privads.training.sampling` says what each means."""

TableNoise = Literal["dense", "lazy"]
"""`privads.training.tables` says what each means."""

CLIP_NORM = 0.8
"""Bound on a unit's gradient. A row's input has a length of about 1 and its error is below 1, so few rows are clipped:
smaller bounds rank as well, but push predictions far below the observed rate."""

LEAST_CLIP_NORM = 1e-6
"""Far above where squares of float32 numbers underflow to 0, and with them the norms."""

AVERAGING = 0.25
SMALL_BATCH = 8192
LARGEST_DEFAULT_BATCH = 32_768
ROWS_PER_UNIT = 8

COUNT_SHARE = 0.01
"""The share of a budget that pays for knowing that a log has at most ``most_units`` units."""


def default_batch(population: int) -> int:
    """Returns ``min(max(population / 5, min(population / 2, 8192)), 32768)``.

    At the same number of rows large batches need less noise in all; small populations can afford half of their units.
    """
    return max(1, min(max(population // 5, min(population // 2, SMALL_BATCH)), LARGEST_DEFAULT_BATCH))


def default_largest_batch(batch: int, population: int, most_units: int) -> int:
    """Returns ``min(ceil(b + 6 sqrt(b)), most_units)``, b = batch most_units / population: hardly ever is one cut."""
    expected = batch * most_units / population
    return min(math.ceil(expected + 6 * math.sqrt(expected)), most_units)


def count_margin(*, epsilon: float, delta: float) -> int:
    """Returns ``ceil(ln(2 / delta) / epsilon)``: by how much a private count of the units may be off.

    The released count is the true one, plus this margin, plus noise that is beyond the margin on either side with a
    probability below ``delta / 2`` (`privads.training.sampling.at_most`).
    """
    return math.ceil(math.log(2 / delta) / epsilon)


def default_steps(population: int) -> int:
    """Returns ``min(300 max(1, sqrt(population / 100000)), 6000)``: about 5 epochs at 40 million units."""
    return min(round(300 * max(1.0, math.sqrt(population / 1e5))), 6000)


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Everything that decides what a training run costs, and nothing computed from private rows.

    Each of ``steps`` times, every unit joins the batch with probability ``sampling_rate = batch / population``; the
    update is ``(sum over units of clip(gradient, clip_norm) + N(0, (noise_multiplier clip_norm)^2)) / batch``.

    budget: what the run may cost; None for the twin without privacy. population: declared public number of units.
    batch: expected units per step. rows_per_unit: most rows that a unit brings to a batch. clip_norm: bound on a
    unit's gradient. noise_multiplier: noise std / clip_norm. learning_rate: of the default optimizer; None takes its
    own rule. averaging: the share of the last iterates whose mean is the model; 0 takes the last iterate.
    table_noise: "dense" noises every row of every table at every step; "lazy" owes a row its noise until it is next
    read, for plain SGD on tables and the last iterate. The released model has the same law, and the event is the same.

    sampler: "truncated-poisson" gives every batch one shape: of more than ``largest_batch`` units a random
    ``largest_batch`` stay, of fewer the rest is padding. Then one unit can push another one out, and how often depends
    on how many units there really are. So ``most_units`` states how many there are at most, above the population; a
    hundredth of the budget pays for a private count, and a log of more units is thinned at random to fewer than that.

    A plan that costs more than its budget, or whose sampler is not the one its event describes, cannot be built.
    """

    budget: Budget | None
    population: int
    batch: int
    steps: int
    rows_per_unit: int
    clip_norm: float
    noise_multiplier: float
    learning_rate: float | None = None
    averaging: float = AVERAGING
    sampler: Sampler = "poisson"
    table_noise: TableNoise = "dense"
    largest_batch: int | None = None
    most_units: int | None = None

    def __post_init__(self) -> None:
        if self.sampler not in get_args(Sampler):
            raise ValueError(
                f"sampler {self.sampler!r} cannot be accounted for: a plan samples by 'poisson' or "
                "'truncated-poisson'. Shuffled or fixed batches cost several times the epsilon of Poisson sampling at "
                "the same noise"
            )
        if self.table_noise not in get_args(TableNoise):
            raise ValueError(f"table_noise must be 'dense' or 'lazy', got {self.table_noise!r}")
        if self.table_noise == "lazy" and self.averaging:
            raise ValueError(
                f"table_noise 'lazy' releases the last iterate: give averaging=0 with it, got {self.averaging}"
            )
        for name in ("population", "batch", "steps", "rows_per_unit"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.batch > self.population:
            raise ValueError(f"batch must be at most the population of {self.population}, got {self.batch}")
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging must be in [0, 1), got {self.averaging}")
        self._check_truncation()
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.budget is None:
            if self.noise_multiplier != 0 or not math.isinf(self.clip_norm):
                raise ValueError("a plan without a budget neither clips nor adds noise: use TrainPlan.without_privacy")
            return
        if not LEAST_CLIP_NORM <= self.clip_norm < math.inf:
            raise ValueError(f"clip_norm must be finite and at least {LEAST_CLIP_NORM}, got {self.clip_norm}")
        _check_budget(self.budget, self.population, self.most_units)
        if self.budget.unit == EXAMPLE and self.rows_per_unit != 1:
            raise ValueError(
                f"under unit 'example' a unit is one row: rows_per_unit must be 1, got {self.rows_per_unit}"
            )
        if self.spent.upper > self.budget.epsilon:
            raise ValueError(f"this plan costs epsilon {self.spent.upper:.4g}, more than its budget of {self.budget}")

    @classmethod
    def for_budget(
        cls,
        budget: Budget,
        *,
        population: int,
        batch: int | None = None,
        epochs: float | None = None,
        rows_per_unit: int | None = None,
        clip_norm: float | None = None,
        learning_rate: float | None = None,
        averaging: float | None = None,
        table_noise: TableNoise = "dense",
        sampler: Sampler = "poisson",
        largest_batch: int | None = None,
        most_units: int | None = None,
    ) -> Self:
        """Returns the plan with the least noise that keeps ``budget``.

        batch: expected units per step. epochs: ``steps = epochs * population / batch``. What is not given comes from
        `default_batch` and its neighbors above, whose formulas read public facts only.
        """
        if not isinstance(population, int) or population < 1:
            raise ValueError(f"population must be a whole number of at least 1, got {population!r}")
        _check_budget(budget, population, most_units)
        batch, steps = _schedule(population, batch, epochs)
        # Noise is found last: a plan without privacy is one that differs in nothing but what privacy adds.
        twin = cls.without_privacy(
            population=population,
            unit=budget.unit,
            batch=batch,
            epochs=epochs,
            rows_per_unit=rows_per_unit,
            learning_rate=learning_rate,
            averaging=averaging,
            table_noise=table_noise,
            sampler=sampler,
            largest_batch=largest_batch,
            most_units=most_units,
        )
        clip_norm = CLIP_NORM if clip_norm is None else clip_norm
        noise_multiplier = calibrate.noise_multiplier(lambda s: twin._event(budget, s, steps), budget)
        return replace(twin, budget=budget, clip_norm=clip_norm, noise_multiplier=noise_multiplier)

    @classmethod
    def without_privacy(
        cls,
        *,
        population: int,
        unit: PrivacyUnit = EXAMPLE,
        batch: int | None = None,
        epochs: float | None = None,
        rows_per_unit: int | None = None,
        learning_rate: float | None = None,
        averaging: float | None = None,
        table_noise: TableNoise = "dense",
        sampler: Sampler = "poisson",
        largest_batch: int | None = None,
        most_units: int | None = None,
    ) -> Self:
        """Returns the twin without privacy: the same sampler, model and loop, no clipping and no noise.

        Its event is `NonPrivateDpEvent`, which every ledger refuses; it runs only on data declared public.
        """
        batch, steps = _schedule(population, batch, epochs)
        if sampler == "truncated-poisson" and largest_batch is None and most_units is not None:
            largest_batch = default_largest_batch(batch, population, most_units)
        return cls(
            budget=None,
            population=population,
            batch=batch,
            steps=steps,
            rows_per_unit=_rows_per_unit(unit, rows_per_unit),
            clip_norm=math.inf,
            noise_multiplier=0.0,
            learning_rate=learning_rate,
            averaging=_averaging(table_noise) if averaging is None else averaging,
            table_noise=table_noise,
            sampler=sampler,
            largest_batch=largest_batch,
            most_units=most_units,
        )

    @property
    def private(self) -> bool:
        """Whether the run is differentially private."""
        return self.budget is not None

    @property
    def sampling_rate(self) -> float:
        """Poisson inclusion probability q = batch / population."""
        return self.batch / self.population

    @property
    def event(self) -> dp_event.DpEvent:
        """What the run executes, for any accountant."""
        return self.event_after(self.steps)

    def event_after(self, steps: int) -> dp_event.DpEvent:
        """Returns what was executed after the first ``steps`` steps."""
        if self.budget is None:
            return mechanisms.non_private()
        return self._event(self.budget, self.noise_multiplier, steps)

    @property
    def spent(self) -> Bounds:
        """Bounds on the epsilon of the whole run, at the budget's delta."""
        if self.budget is None:
            raise ValueError("a plan without privacy has no epsilon")
        return epsilon(self.event, delta=self.budget.delta)

    def _event(self, budget: Budget, noise_multiplier: float, steps: int) -> dp_event.DpEvent:
        rate = self.sampling_rate
        if self.largest_batch is None or self.most_units is None:
            return mechanisms.dp_sgd(sampling_rate=rate, noise_multiplier=noise_multiplier, steps=steps)
        counted = mechanisms.approximate_dp(epsilon=COUNT_SHARE * budget.epsilon, delta=COUNT_SHARE * budget.delta)
        trained = mechanisms.truncated_dp_sgd(
            sampling_rate=rate,
            noise_multiplier=noise_multiplier,
            steps=steps,
            population=self.most_units,
            largest_batch=self.largest_batch,
        )
        return mechanisms.composed(counted, trained)

    def _check_truncation(self) -> None:
        """Refuse limits that another sampler has no use for, and those under which the event would not hold."""
        given = {"largest_batch": self.largest_batch, "most_units": self.most_units}
        if self.sampler == "poisson":
            for name, value in given.items():
                if value is not None:
                    raise ValueError(f"{name} is for sampler 'truncated-poisson' only, got {value!r}")
            return
        for name, value in given.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"sampler 'truncated-poisson' needs {name}, a whole number of at least 1, got {value!r}"
                )
        if self.largest_batch is None or self.most_units is None:
            return
        if self.most_units <= self.population:
            raise ValueError(f"most_units must be above the population of {self.population}, got {self.most_units}")
        if self.largest_batch > self.most_units:
            raise ValueError(f"largest_batch must be at most most_units = {self.most_units}, got {self.largest_batch}")


def _check_budget(budget: Budget, population: int, most_units: int | None) -> None:
    if budget.neighbors != "add-remove":
        raise ValueError(f"training is accounted for neighbors 'add-remove', not {budget.neighbors!r}")
    if budget.delta >= 1 / population:
        raise ValueError(
            f"delta must be below 1 / population = {1 / population:.3g}, got {budget.delta}: "
            "a larger one would allow one unit to be published outright"
        )
    margin = 2 * count_margin(epsilon=COUNT_SHARE * budget.epsilon, delta=COUNT_SHARE * budget.delta)
    if isinstance(most_units, int) and most_units <= population + margin:
        raise ValueError(
            f"most_units must be above the population of {population} and the {margin} that a private count of it may "
            f"be too high, got {most_units}"
        )


def _averaging(table_noise: TableNoise) -> float:
    return 0.0 if table_noise == "lazy" else AVERAGING


def _rows_per_unit(unit: PrivacyUnit, rows_per_unit: int | None) -> int:
    if rows_per_unit is not None:
        return rows_per_unit
    return 1 if unit == EXAMPLE else ROWS_PER_UNIT


def _schedule(population: int, batch: int | None, epochs: float | None) -> tuple[int, int]:
    """Returns (batch, steps)."""
    batch = default_batch(population) if batch is None else batch
    if not isinstance(batch, int) or not 1 <= batch <= population:
        raise ValueError(f"batch must be a whole number in [1, population = {population}], got {batch!r}")
    if epochs is None:
        return batch, default_steps(population)
    if not 0 < epochs < math.inf:
        raise ValueError(f"epochs must be positive, got {epochs}")
    return batch, max(1, round(epochs * population / batch))
