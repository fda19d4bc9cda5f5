"""The event of a training run, from its plan: which sums are released of which sample, under which noise."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dp_accounting import dp_event

from accounting import calibrate, mechanisms
from accounting.budget import Budget

if TYPE_CHECKING:
    from privads.training.plan import TrainPlan

COUNT_SHARE = 0.01
"""The share of a budget that pays for knowing that a log has at most ``most_units`` units."""

SELECTION_SHARE = 0.05
"""The share of a budget that a selection of rows made once, before training, may cost."""

SELECTION_RATIO = 3.0
"""Noise on the counts of used rows, in multiples of the gradients': beside them those need 5 % more than alone."""

QUANTILE_NOISE = 0.1
"""Noise on the count of clipped units, in multiples of its sensitivity of 1/2 and of the batch: that of batch / 20
(Andrew et al. 2021, section 3.1). In small batches it is `LEAST_RATIO` times that of the gradients."""

LEAST_RATIO = 4.0


def count_margin(*, epsilon: float, delta: float) -> int:
    """Returns ``ceil(ln(2 / delta) / epsilon)``: by how much a private count of the units may be off.

    The released count is the true one, plus this margin, plus noise that is beyond the margin on either side with a
    probability below ``delta / 2`` (`privads.training.sampling.at_most`).
    """
    return math.ceil(math.log(2 / delta) / epsilon)


@dataclass(frozen=True, kw_only=True)
class Noises:
    """Noise multipliers of what a plan releases: the gradients, the count of clipped units, the counts of used rows."""

    gradients: float
    count: float | None = None
    selection: float | None = None

    def of_a_step(self, *, selecting: bool) -> tuple[float, ...]:
        """Returns those of the sums that every step releases; selecting: rows are chosen at every step."""
        others = (self.count, self.selection if selecting else None)
        return (self.gradients, *(one for one in others if one is not None))


def noises_for(
    plan: "TrainPlan", budget: Budget, *, counting: bool, selection: float | None
) -> Callable[[float], Noises]:
    """Returns which other noises go with that of the gradients, as the plan's docstring and the constants above say.

    counting: clipped units are counted at every step. selection: the noise on the counts of used rows, where given.
    """
    if plan.table_noise == "fest" and selection is None:
        share = replace(budget, epsilon=SELECTION_SHARE * budget.epsilon, delta=SELECTION_SHARE * budget.delta)
        once = calibrate.noise_multiplier(lambda s: mechanisms.gaussian(noise_multiplier=s), share)
        selection = once * plan.records

    def noises(gradients: float) -> Noises:
        return Noises(
            gradients=gradients,
            count=max(QUANTILE_NOISE * plan.batch, LEAST_RATIO * gradients) if counting else None,
            selection=SELECTION_RATIO * gradients if plan.table_noise == "adafest" and selection is None else selection,
        )

    return noises


def event_of(plan: "TrainPlan", budget: Budget, noises: Noises, steps: int, *, once: bool = True) -> dp_event.DpEvent:
    """Returns what ``steps`` steps of the plan execute under these noises, whatever the plan's own are.

    once: with what is done once, before the first step.
    """
    trained = _sampled(plan, noises.of_a_step(selecting=plan.table_noise == "adafest"), steps)
    before = _before(plan, budget, noises) if once else []
    whole = mechanisms.composed(*before, trained) if before else trained
    return mechanisms.user_level(whole, plan.records)


def _before(plan: "TrainPlan", budget: Budget, noises: Noises) -> list[dp_event.DpEvent]:
    """Returns what is released of the log before the first step."""
    found = []
    if plan.table_noise == "fest" and noises.selection is not None:
        found.append(mechanisms.gaussian(noise_multiplier=noises.selection))
    if plan.most_units is not None:
        epsilon, delta = COUNT_SHARE * budget.epsilon, COUNT_SHARE * budget.delta
        found.append(mechanisms.approximate_dp(epsilon=epsilon, delta=delta))
    return found


def _sampled(plan: "TrainPlan", noises: tuple[float, ...], steps: int) -> dp_event.DpEvent:
    """Returns the event of ``steps`` batches, each of which releases several sums, one for each of ``noises``."""
    rate = plan.sampling_rate
    if plan.sampler == "poisson":
        if len(noises) == 1:
            return mechanisms.dp_sgd(sampling_rate=rate, noise_multiplier=noises[0], steps=steps)
        return mechanisms.joint_dp_sgd(sampling_rate=rate, noise_multipliers=noises, steps=steps)
    # Scaled to equal noise, a unit's parts of all sums are one vector, and the sums one Gaussian mechanism.
    together = noises[0] if len(noises) == 1 else mechanisms.merged(noises)
    if plan.largest_batch is None or plan.most_units is None:
        epochs = math.ceil(steps / plan.bins)  # an unfinished epoch costs as a finished one
        return mechanisms.balls_in_bins_dp_sgd(noise_multiplier=together, bins=plan.bins, epochs=epochs)
    return mechanisms.truncated_dp_sgd(
        sampling_rate=rate,
        noise_multiplier=together,
        steps=steps,
        population=plan.most_units,
        largest_batch=plan.largest_batch,
    )
