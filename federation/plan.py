"""`FederatedPlan`: who takes part, clip, noise and event in one frozen value, so that they cannot disagree."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

from dp_accounting import dp_event

from accounting import calibrate, mechanisms
from accounting.accountant import Bounds, epsilon
from accounting.budget import EXAMPLE, Budget, Neighbors
from privads.training.event import LEAST_RATIO, QUANTILE_NOISE, SELECTION_RATIO, Noises
from privads.training.plan import LEAST_CLIP_NORM

Sampler = Literal["poisson"]
"""Every registered user joins every round independently with the same probability. Nothing else is amplified."""

Mechanism = Literal["central", "local"]
"""Who adds the noise: the server to the sum, which it is trusted with, or every user to what they send."""

TableNoise = Literal["dense", "lazy", "adafest"]
"""Which rows of tables a round noises: `FederatedPlan` says what each means."""

_NEIGHBORS: dict[str, Neighbors] = {"central": "add-remove", "local": "replace"}

_SIGMAS = 6.0
"""Standard deviations beyond the expected number of rounds that a user may send an update in, where nobody says."""


@dataclass(frozen=True, kw_only=True)
class FederatedPlan:
    """Everything that decides what a federated run costs, and nothing computed from private rows.

    Each of ``rounds`` times, every user joins with probability ``sampling_rate = (1 + over_selection) cohort /
    population``, and the server's optimizer is given ``(sum over users of clip(update, clip_norm) + N(0,
    (noise_multiplier clip_norm)^2)) / cohort`` as the gradient. cohort is a public number: users who drop out count as
    zero and do not change it.

    budget: what the run may cost; None for the twin without privacy. population: declared public number of users.
    cohort: users whose updates a round is planned to sum. over_selection: the share by which more are asked, because
    some drop out; it is accounted as if nobody did. silos: a user's rows lie in at most so many silos, each of which
    samples and clips its users by itself. Then a user moves the sum by up to j clip_norm with probability
    ``Binomial(silos, q)[j]``, the mixture of `accounting.mechanisms.user_dp_sgd`; population and cohort count users of
    all silos, one of two silos twice.

    clip_quantile: the clip norm starts at ``clip_norm`` and follows this quantile of the updates' norms
    (`federation.clipping`), from a count whose noise is ``count_noise_multiplier / 2``. With noise multipliers z_1 of
    the updates and ``z_2 = count_noise_multiplier`` a round costs what one Gaussian with
    ``(z_1^-2 + z_2^-2)^(-1/2)`` does: z_1 is the paper's z_Delta, and z_2 / 2 its sigma_b (Andrew et al. 2021,
    theorem 1).

    mechanism: under "local" every user adds N(0, (noise_multiplier clip_norm)^2) to their own clipped update, and takes
    part at most ``participations`` times, whatever is drawn. The guarantee is about what one user sends in the whole
    run, seen by a server that knows who sends when: neighbors "replace", no amplification by sampling, and an epsilon
    that adds up over a user's own participations.

    table_noise: "dense" noises every row of every table in every round. "lazy" owes a row its noise until it is next
    sent, for plain SGD of the server on tables: a round's parties name the rows that their cohort will read, those are
    settled and sent, and what is sent and the last model have the same law and the same event. "adafest" changes only
    the rows that enough users of a round's cohort read: to the counts of readers a user adds a vector of length at most
    1, they get noise of ``selection_noise_multiplier``, and a row is stepped where its count is at least
    ``selection_threshold`` (None: `privads.training.selection.default_threshold`); their cost is in the event.

    A plan that costs more than its budget, or whose sampler is not the one its event describes, cannot be built.
    """

    budget: Budget | None
    population: int
    cohort: int
    rounds: int
    clip_norm: float
    noise_multiplier: float
    over_selection: float = 0.0
    silos: int = 1
    sampler: Sampler = "poisson"
    mechanism: Mechanism = "central"
    participations: int | None = None
    clip_quantile: float | None = None
    count_noise_multiplier: float | None = None
    table_noise: TableNoise = "dense"
    selection_noise_multiplier: float | None = None
    selection_threshold: float | None = None

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        if self.budget is None:
            if self.noise_multiplier != 0 or not math.isinf(self.clip_norm):
                raise ValueError(
                    "a plan without a budget neither clips nor adds noise: use FederatedPlan.without_privacy"
                )
            return
        _check_budget(self.budget, self.population, self.mechanism)
        if not LEAST_CLIP_NORM <= self.clip_norm < math.inf:
            raise ValueError(f"clip_norm must be finite and at least {LEAST_CLIP_NORM}, got {self.clip_norm}")
        if self.spent.upper > self.budget.epsilon:
            raise ValueError(f"this plan costs epsilon {self.spent.upper:.4g}, more than its budget of {self.budget}")

    @classmethod
    def for_budget(
        cls,
        budget: Budget,
        *,
        population: int,
        cohort: int,
        rounds: int,
        clip_norm: float,
        over_selection: float = 0.0,
        silos: int = 1,
        sampler: Sampler = "poisson",
        mechanism: Mechanism = "central",
        participations: int | None = None,
        clip_quantile: float | None = None,
        table_noise: TableNoise = "dense",
        selection_noise_multiplier: float | None = None,
        selection_threshold: float | None = None,
    ) -> Self:
        """Returns the plan with the least noise that keeps ``budget``.

        participations: by default six standard deviations above the expected number, so that hardly anyone is left out.
        The count of unclipped updates gets noise of a twentieth of the cohort (Andrew et al. 2021, section 3.1), in
        small cohorts four times that of the updates. The counts of readers of rows get three times that of the updates
        where ``selection_noise_multiplier`` does not say otherwise.
        """
        twin = cls.without_privacy(
            population=population,
            cohort=cohort,
            rounds=rounds,
            over_selection=over_selection,
            silos=silos,
            sampler=sampler,
            table_noise=table_noise,
        )
        _check_budget(budget, population, mechanism)
        if mechanism == "local" and participations is None:
            mean = twin.sampling_rate * rounds
            participations = min(rounds, math.ceil(mean + _SIGMAS * math.sqrt(mean)))
        twin = replace(twin, mechanism=mechanism, participations=participations)

        selecting = table_noise == "adafest" and selection_noise_multiplier is None

        def noises(noise: float) -> Noises:
            return Noises(
                gradients=noise,
                count=None if clip_quantile is None else max(QUANTILE_NOISE * cohort, LEAST_RATIO * noise),
                selection=SELECTION_RATIO * noise if selecting else selection_noise_multiplier,
            )

        def event(noise: float) -> dp_event.DpEvent:
            return _event_of(twin, noises(noise), rounds)

        found = noises(calibrate.noise_multiplier(event, budget))
        return replace(
            twin,
            budget=budget,
            clip_norm=clip_norm,
            noise_multiplier=found.gradients,
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
        cohort: int,
        rounds: int,
        over_selection: float = 0.0,
        silos: int = 1,
        sampler: Sampler = "poisson",
        table_noise: TableNoise = "dense",
    ) -> Self:
        """Returns the twin without privacy: the same rounds, no clipping, no noise.

        Its event is `NonPrivateDpEvent`, which every ledger refuses; it runs only on data declared public.
        """
        return cls(
            budget=None,
            population=population,
            cohort=cohort,
            rounds=rounds,
            clip_norm=math.inf,
            noise_multiplier=0.0,
            over_selection=over_selection,
            silos=silos,
            sampler=sampler,
            table_noise=table_noise,
        )

    @property
    def private(self) -> bool:
        """Whether the run is differentially private."""
        return self.budget is not None

    @property
    def sampling_rate(self) -> float:
        """Probability q with which a user is asked to join a round, in each of their silos."""
        return (1 + self.over_selection) * self.cohort / self.population

    @property
    def steps(self) -> int:
        """The rounds, by the name that they have in any plan."""
        return self.rounds

    @property
    def records(self) -> int:
        """How often a user may be in a round: once for each of their silos."""
        return self.silos

    @property
    def batch(self) -> int:
        """The cohort, by the name that it has in any plan."""
        return self.cohort

    @property
    def event(self) -> dp_event.DpEvent:
        """What the run executes, for any accountant."""
        return self.event_after(self.rounds)

    def event_after(self, rounds: int) -> dp_event.DpEvent:
        """Returns what was executed after the first ``rounds`` rounds, empty cohorts among them."""
        if self.budget is None:
            return mechanisms.non_private()
        return _event_of(self, self._noises, rounds)

    @property
    def _noises(self) -> Noises:
        return Noises(
            gradients=self.noise_multiplier,
            count=self.count_noise_multiplier,
            selection=self.selection_noise_multiplier,
        )

    def event_of_rest(self, rounds_done: int) -> dp_event.DpEvent:
        """Returns what the rounds after the first ``rounds_done`` execute."""
        return self.event_after(self.rounds - rounds_done)

    @property
    def spent(self) -> Bounds:
        """Bounds on the epsilon of the whole run, at the budget's delta."""
        if self.budget is None:
            raise ValueError("a plan without privacy has no epsilon")
        return epsilon(self.event, delta=self.budget.delta, neighbors=self.budget.neighbors)

    def _check_choices(self) -> None:
        if self.sampler not in get_args(Sampler):
            raise ValueError(
                f"sampler {self.sampler!r} cannot be accounted for: a plan samples users by 'poisson'. Cohorts of a "
                "fixed size, or of whoever is there, cost several times the epsilon of Poisson sampling at equal noise"
            )
        _check_mechanism(self.mechanism)
        local = self.mechanism == "local"
        if local != (self.participations is not None):
            raise ValueError(
                "participations must be given for mechanism 'local', and only there: how often a user sends an update, "
                f"got {self.participations!r} with {self.mechanism!r}"
            )
        if local and (self.clip_quantile is not None or self.silos != 1):
            raise ValueError("mechanism 'local' has one clip norm and one silo: leave out clip_quantile and silos")
        if self.table_noise not in get_args(TableNoise):
            raise ValueError(f"table_noise must be 'dense', 'lazy' or 'adafest', got {self.table_noise!r}")
        if local and self.table_noise != "dense":
            raise ValueError(
                "mechanism 'local' noises whole tables at the users: table_noise must be 'dense' with it, got "
                f"{self.table_noise!r}"
            )
        selects = self.private and self.table_noise == "adafest"
        if selects != (self.selection_noise_multiplier is not None):
            raise ValueError(
                "selection_noise_multiplier must be given for table_noise 'adafest', and only there, got "
                f"{self.selection_noise_multiplier!r} with {self.table_noise!r}"
            )
        if self.selection_threshold is not None and not selects:
            raise ValueError("selection_threshold needs table_noise 'adafest'")
        if (self.clip_quantile is None) != (self.count_noise_multiplier is None):
            raise ValueError(
                "clip_quantile and count_noise_multiplier must be given together, got "
                f"{self.clip_quantile!r} and {self.count_noise_multiplier!r}"
            )

    def _check_numbers(self) -> None:
        for name in ("population", "cohort", "rounds", "silos", "participations"):
            value = getattr(self, name)
            if name == "participations" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.silos > mechanisms.MOST_RECORDS:
            raise ValueError(f"silos must be at most {mechanisms.MOST_RECORDS}, got {self.silos}")
        if not 0 <= self.over_selection < math.inf:
            raise ValueError(f"over_selection must be at least 0, got {self.over_selection}")
        if self.sampling_rate > 1:
            raise ValueError(
                f"(1 + over_selection) cohort must be at most the population of {self.population}, got "
                f"{(1 + self.over_selection) * self.cohort:g}"
            )
        if self.participations is not None and self.participations > self.rounds:
            raise ValueError(f"participations must be at most rounds = {self.rounds}, got {self.participations}")
        if self.selection_noise_multiplier is not None and not 0 < self.selection_noise_multiplier < math.inf:
            raise ValueError(f"selection_noise_multiplier must be positive, got {self.selection_noise_multiplier}")
        if self.selection_threshold is not None and not math.isfinite(self.selection_threshold):
            raise ValueError(f"selection_threshold must be finite, got {self.selection_threshold}")
        if self.clip_quantile is not None and not 0 < self.clip_quantile < 1:
            raise ValueError(f"clip_quantile must be in (0, 1), got {self.clip_quantile}")


def _event_of(plan: FederatedPlan, noises: Noises, rounds: int) -> dp_event.DpEvent:
    """Returns what ``rounds`` rounds of the plan execute under these noises, whatever the plan's own are."""
    if plan.participations is not None:
        once = mechanisms.gaussian(noise_multiplier=noises.gradients)
        return mechanisms.repeated(once, min(rounds, plan.participations))
    rate, all_noises = plan.sampling_rate, noises.of_a_step(selecting=plan.table_noise == "adafest")
    if len(all_noises) == 1:
        event = mechanisms.dp_sgd(sampling_rate=rate, noise_multiplier=noises.gradients, steps=rounds)
    else:
        event = mechanisms.joint_dp_sgd(sampling_rate=rate, noise_multipliers=all_noises, steps=rounds)
    return mechanisms.user_level(event, plan.silos)


def _check_budget(budget: Budget, population: int, mechanism: str) -> None:
    if budget.unit == EXAMPLE:
        raise ValueError("a federated run protects users: the unit must be their name in the schema, such as 'user'")
    _check_mechanism(mechanism)
    needed = _NEIGHBORS[mechanism]
    if budget.neighbors != needed:
        raise ValueError(f"mechanism {mechanism!r} is accounted for neighbors {needed!r}, not {budget.neighbors!r}")
    budget.check_population(population)


def _check_mechanism(mechanism: str) -> None:
    if mechanism not in get_args(Mechanism):
        raise ValueError(f"mechanism must be 'central' or 'local', got {mechanism!r}")
