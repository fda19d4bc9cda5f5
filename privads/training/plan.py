"""`TrainPlan`: sampler, clip, noise and event in one frozen value, so that they cannot disagree."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

from dp_accounting import dp_event

from accounting import calibrate, mechanisms
from accounting.accountant import Bounds, epsilon
from accounting.budget import EXAMPLE, Budget, PrivacyUnit
from privads.training.event import COUNT_SHARE, Noises, count_margin, event_of, noises_for
from privads.training.sizes import ROWS_PER_UNIT, default_largest_batch, schedule

Sampler = Literal["poisson", "truncated-poisson", "balls-in-bins"]
"""`privads.training.sampling` says what each means."""

TableNoise = Literal["dense", "lazy", "adafest", "fest"]
"""`privads.training.tables` says what the first two mean, `privads.training.selection` the others."""

Combined = Literal["sum", "mean"]
"""What is clipped of a unit with several rows in a batch: the sum of their gradients, or their mean."""

Clipping = Literal["flat", "per-group"]
"""One bound on a unit's whole gradient, or ``1 / sqrt(2)`` of it each on its part in tables and in the network."""

CLIP_NORM = 0.8
"""Bound on a unit's gradient. A row's input has a length of about 1 and its error is below 1, so few rows are clipped:
smaller bounds rank as well, but push predictions far below the observed rate."""

LEAST_CLIP_NORM = 1e-6
"""Far above where squares of float32 numbers underflow to 0, and with them the norms."""

AVERAGING = 0.25


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Everything that decides what a training run costs, and nothing computed from private rows.

    Each of ``steps`` times, every unit joins the batch with probability ``sampling_rate = batch / population``; the
    update is ``(sum over units of clip(gradient, clip_norm) + N(0, (noise_multiplier clip_norm)^2)) / batch``.

    budget: what the run may cost; None for the twin without privacy. population: declared public number of units.
    batch: expected units per step. rows_per_unit: most rows that a unit brings to a batch. clip_norm: bound on a
    unit's gradient. noise_multiplier: noise std / clip_norm. learning_rate: of the default optimizer; None takes its
    own rule. averaging: the share of the last iterates whose mean is the model; 0 takes the last iterate.
    rows_at_once: a batch of more rows is read, and its gradients summed, in parts of at most so many.

    records: above 1, rows are sampled and clipped one by one, and a unit has at most ``records`` of them, a choice made
    once; population and batch then count rows. Under unit `example` it counts the rows that come or go with one,
    see `Schema.check_history`. The event is `accounting.mechanisms.user_level` of that of single rows.

    combined: "mean" clips the mean over a unit's rows in place of their sum, so that units with many rows weigh as much
    as those with few.
    clipping: "per-group" bounds a unit's gradient in tables and in the network by ``clip_norm / sqrt(2)`` each.
    clip_quantile: the clip norm starts at ``clip_norm`` and follows this quantile of the units' norms
    (`privads.training.adaptive`), from a count of clipped units whose noise is ``count_noise_multiplier / 2``.

    table_noise: "dense" noises every row of every table at every step; "lazy" owes a row its noise until it is next
    read, for plain SGD on tables and the last iterate: the released model has the same law, and the event is the same.
    "adafest" changes only the rows that enough units of a batch use, "fest" those that enough units of the whole log
    use: the counts of uses, to which a unit adds a vector of length at most 1, get noise of
    ``selection_noise_multiplier``, and a row is used where its count is at least ``selection_threshold`` (None:
    `privads.training.selection.default_threshold`).

    sampler: "truncated-poisson" gives every batch one shape: of more than ``largest_batch`` units a random
    ``largest_batch`` stay, of fewer the rest is padding. Then one unit can push another one out, and how often depends
    on how many units there really are. So ``most_units`` states how many there are at most, above the population; a
    hundredth of the budget pays for a private count, and a log of more units is thinned at random to fewer than that.
    "balls-in-bins" deals all units out to ``population / batch`` batches at random, and again in each epoch.

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
    rows_at_once: int | None = None
    records: int = 1
    clipping: Clipping = "flat"
    combined: Combined = "sum"
    clip_quantile: float | None = None
    count_noise_multiplier: float | None = None
    selection_noise_multiplier: float | None = None
    selection_threshold: float | None = None

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        self._check_truncation()
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
        self._check_other_noises()
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
        rows_at_once: int | None = None,
        records: int = 1,
        combined: Combined = "sum",
        clipping: Clipping = "flat",
        clip_quantile: float | None = None,
        selection_noise_multiplier: float | None = None,
        selection_threshold: float | None = None,
    ) -> Self:
        """Returns the plan with the least noise that keeps ``budget``.

        batch: expected units per step. epochs: ``steps = epochs * population / batch``. What is not given comes from
        `privads.training.sizes` and the constants above, whose formulas read public facts only.
        """
        if not isinstance(population, int) or population < 1:
            raise ValueError(f"population must be a whole number of at least 1, got {population!r}")
        _check_budget(budget, population, most_units)
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
            rows_at_once=rows_at_once,
            records=records,
            combined=combined,
        )
        noises = noises_for(twin, budget, counting=clip_quantile is not None, selection=selection_noise_multiplier)
        found = noises(calibrate.noise_multiplier(lambda s: event_of(twin, budget, noises(s), twin.steps), budget))
        return replace(
            twin,
            budget=budget,
            clip_norm=CLIP_NORM if clip_norm is None else clip_norm,
            noise_multiplier=found.gradients,
            clipping=clipping,
            clip_quantile=clip_quantile,
            count_noise_multiplier=found.count,
            selection_noise_multiplier=found.selection,
            selection_threshold=selection_threshold,
        )

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
        rows_at_once: int | None = None,
        records: int = 1,
        combined: Combined = "sum",
    ) -> Self:
        """Returns the twin without privacy: the same sampler, model and loop, no clipping, no selection, no noise.

        Its event is `NonPrivateDpEvent`, which every ledger refuses; it runs only on data declared public.
        """
        batch, steps = schedule(population, batch, epochs)
        if sampler == "truncated-poisson" and largest_batch is None and most_units is not None:
            largest_batch = default_largest_batch(batch, population, most_units)
        if rows_per_unit is None:
            rows_per_unit = 1 if unit == EXAMPLE or records > 1 else ROWS_PER_UNIT
        if averaging is None:
            averaging = AVERAGING if table_noise == "dense" else 0.0
        return cls(
            budget=None,
            population=population,
            batch=batch,
            steps=steps,
            rows_per_unit=rows_per_unit,
            clip_norm=math.inf,
            noise_multiplier=0.0,
            learning_rate=learning_rate,
            averaging=averaging,
            table_noise=table_noise,
            sampler=sampler,
            largest_batch=largest_batch,
            most_units=most_units,
            rows_at_once=rows_at_once,
            records=records,
            combined=combined,
        )

    @property
    def private(self) -> bool:
        """Whether the run is differentially private."""
        return self.budget is not None

    @property
    def sampling_rate(self) -> float:
        """Probability q with which a unit joins a batch: batch / population, or 1 / bins."""
        return 1 / self.bins if self.sampler == "balls-in-bins" else self.batch / self.population

    @property
    def bins(self) -> int:
        """Batches in an epoch, ``population / batch`` rounded down."""
        return self.population // self.batch

    @property
    def event(self) -> dp_event.DpEvent:
        """What the run executes, for any accountant."""
        return self.event_after(self.steps)

    def event_after(self, steps: int) -> dp_event.DpEvent:
        """Returns what was executed after the first ``steps`` steps."""
        if self.budget is None:
            return mechanisms.non_private()
        return event_of(self, self.budget, self._noises, steps)

    def event_of_rest(self, steps_done: int) -> dp_event.DpEvent:
        """Returns what the steps after the first ``steps_done`` execute, without what is done once, before them all."""
        if self.budget is None:
            return mechanisms.non_private()
        return event_of(self, self.budget, self._noises, self.steps - steps_done, once=False)

    @property
    def spent(self) -> Bounds:
        """Bounds on the epsilon of the whole run, at the budget's delta."""
        if self.budget is None:
            raise ValueError("a plan without privacy has no epsilon")
        return epsilon(self.event, delta=self.budget.delta)

    @property
    def _noises(self) -> Noises:
        return Noises(
            gradients=self.noise_multiplier,
            count=self.count_noise_multiplier,
            selection=self.selection_noise_multiplier,
        )

    @property
    def other_noise_multipliers(self) -> tuple[float, ...]:
        """Of what a step releases of its sample beside the gradients: the counts of clipped units and of used rows."""
        return self._noises.of_a_step(selecting=self.table_noise == "adafest")[1:]

    def _check_choices(self) -> None:
        if self.sampler not in get_args(Sampler):
            raise ValueError(
                f"sampler {self.sampler!r} cannot be accounted for: a plan samples by {_one_of(Sampler)}. Shuffled or "
                "fixed batches cost several times the epsilon of Poisson sampling at the same noise"
            )
        for name, known in (("table_noise", TableNoise), ("clipping", Clipping), ("combined", Combined)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} must be {_one_of(known)}, got {getattr(self, name)!r}")
        if self.table_noise == "lazy" and self.averaging:
            raise ValueError(
                f"table_noise 'lazy' releases the last iterate: give averaging=0 with it, got {self.averaging}"
            )
        if self.records != 1 and self.sampler != "poisson":
            raise ValueError(f"records above 1 are accounted for sampler 'poisson' only, not {self.sampler!r}")
        if self.records != 1 and self.rows_per_unit != 1:
            raise ValueError(
                f"with records above 1 rows are sampled one by one: rows_per_unit must be 1, got {self.rows_per_unit}"
            )

    def _check_numbers(self) -> None:
        for name in ("population", "batch", "steps", "rows_per_unit", "records"):
            _check_count(name, getattr(self, name))
        if self.records > mechanisms.MOST_RECORDS:
            raise ValueError(f"records must be at most {mechanisms.MOST_RECORDS}, got {self.records}")
        if self.batch > self.population:
            raise ValueError(f"batch must be at most the population of {self.population}, got {self.batch}")
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging must be in [0, 1), got {self.averaging}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.rows_at_once is not None:
            _check_count("rows_at_once", self.rows_at_once)
            if self.rows_at_once < self.rows_per_unit:
                raise ValueError(
                    f"rows_at_once must be at least rows_per_unit = {self.rows_per_unit}, as a unit's rows are summed "
                    f"together, got {self.rows_at_once}"
                )

    def _check_truncation(self) -> None:
        """Refuse limits that another sampler has no use for, and those under which the event would not hold."""
        given = {"most_units": self.most_units, "largest_batch": self.largest_batch}
        if self.sampler != "truncated-poisson":
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

    def _check_other_noises(self) -> None:
        """Refuse a count without its noise, and noise for a count that is never made."""
        selects = self.table_noise in ("adafest", "fest")
        for name, needed, why in (
            ("count_noise_multiplier", self.clip_quantile is not None, "clip_quantile"),
            ("selection_noise_multiplier", selects, "table_noise 'adafest' and 'fest'"),
        ):
            value = getattr(self, name)
            if needed and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ValueError(f"{why} needs {name}, a positive number, got {value!r}")
            if not needed and value is not None:
                raise ValueError(f"{name} is for {why} only, got {value!r}")
        if self.selection_threshold is not None:
            if not selects:
                raise ValueError("selection_threshold is for table_noise 'adafest' and 'fest' only")
            if not math.isfinite(self.selection_threshold):
                raise ValueError(f"selection_threshold must be finite, got {self.selection_threshold}")
        if self.clip_quantile is None:
            return
        if not 0 < self.clip_quantile < 1:
            raise ValueError(f"clip_quantile must be in (0, 1), got {self.clip_quantile}")
        if self.clipping == "per-group":
            raise ValueError("clip_quantile follows the norm of whole gradients: give clipping='flat' with it")


def _check_budget(budget: Budget, population: int, most_units: int | None) -> None:
    if budget.neighbors != "add-remove":
        raise ValueError(f"training is accounted for neighbors 'add-remove', not {budget.neighbors!r}")
    budget.check_population(population)
    margin = 2 * count_margin(epsilon=COUNT_SHARE * budget.epsilon, delta=COUNT_SHARE * budget.delta)
    if isinstance(most_units, int) and most_units <= population + margin:
        raise ValueError(
            f"most_units must be above the population of {population} and the {margin} that a private count of it may "
            f"be too high, got {most_units}"
        )


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _one_of(known: object) -> str:
    *most, last = (repr(one) for one in get_args(known))
    return f"{', '.join(most)} or {last}"
