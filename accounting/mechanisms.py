"""Every mechanism that privads executes, as an event an accountant can read.

An event is a frozen `DpEvent`, made by a named function here, never by hand, so that what a plan executes and what
the ledger is charged for are one value.

Sensitivities are stated under add/remove: by how much one unit's presence changes the exact answer.
``noise_multiplier`` is the noise's scale (a standard deviation, for Laplace the scale b) divided by that sensitivity.
Replacing a unit is removing one and adding another, so under ``replace`` the same event has twice the sensitivity:
`replaced` says so, in one place, for every accountant. ``replace-label`` is accounted as ``replace``.

`parts` flattens a composition, `user_level` turns the guarantee of a unit into that of an owner of several.
"""

import math
from collections.abc import Sequence

from dp_accounting import dp_event
from scipy.stats import binom

from accounting.budget import Neighbors
from accounting.event_json import (
    LEAST_AMOUNT,
    MOST_AMOUNT,
    MOST_COUNT,
    ApproximateDpEvent,
    BallsInBinsDpEvent,
    DiscreteGaussianDpEvent,
    UnknownEvent,
    build,
    from_dict,
    from_json,
    to_dict,
    to_json,
)

__all__ = [
    "ApproximateDpEvent",
    "BallsInBinsDpEvent",
    "DiscreteGaussianDpEvent",
    "UnknownEvent",
    "approximate_dp",
    "balls_in_bins_dp_sgd",
    "composed",
    "discrete_gaussian",
    "discrete_laplace",
    "dp_sgd",
    "from_dict",
    "from_json",
    "gaussian",
    "joint_dp_sgd",
    "laplace",
    "non_private",
    "parts",
    "private_selection",
    "pure_epsilon",
    "randomized_response",
    "repeated",
    "replaced",
    "to_dict",
    "to_json",
    "truncated_dp_sgd",
    "unsampled",
    "user_dp_sgd",
    "user_level",
    "zcdp",
]


MOST_RECORDS = 1000
"""Rows of one owner, each clipped by itself. More cost too much to be of use, and their accounting takes hours."""


def dp_sgd(*, sampling_rate: float, noise_multiplier: float, steps: int) -> dp_event.DpEvent:
    """Returns the event of DP-SGD under Poisson sampling (Abadi et al. 2016, algorithm 1).

    Each of ``steps`` times: every unit joins the batch independently with probability ``sampling_rate`` = q;
    the released value is ``sum_u clip(g_u, C) + N(0, (noise_multiplier C)^2 I)``. L2 sensitivity C.

    >>> print(to_json(dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=100)))
    {"count":100,"event":"self-composed","of":{"event":"poisson-sampled","of":{"event":"gaussian",\
"noise_multiplier":1.0},"sampling_rate":0.01}}
    """
    return _times(steps, "poisson-sampled", sampling_rate=sampling_rate, of=gaussian(noise_multiplier=noise_multiplier))


def joint_dp_sgd(*, sampling_rate: float, noise_multipliers: Sequence[float], steps: int) -> dp_event.DpEvent:
    """Returns the event of DP-SGD that releases several noisy sums of one Poisson sample in each step.

    As `dp_sgd`, with ``sum_u v_i(u) + N(0, (s_i C_i)^2 I)`` and ``|v_i(u)| <= C_i`` for every noise multiplier s_i:
    the gradients and the count of unclipped ones (Andrew et al. 2021), or of used embedding rows (Ghazi et al. 2023).
    Together they lose what one Gaussian with ``s = (sum_i s_i^-2)^(-1/2)`` does.
    """
    inner = build("composed", of=tuple(gaussian(noise_multiplier=s) for s in noise_multipliers))
    return _times(steps, "poisson-sampled", sampling_rate=sampling_rate, of=inner)


def truncated_dp_sgd(
    *, sampling_rate: float, noise_multiplier: float, steps: int, population: int, largest_batch: int
) -> dp_event.DpEvent:
    """Returns the event of DP-SGD under Poisson sampling with a largest batch (Ganesh 2025, arXiv 2508.15089).

    As `dp_sgd`, but of more than ``largest_batch`` = B sampled units a uniformly random B stay. A unit can then push
    another one out, so how often a batch is full matters. ``population`` must be an UPPER bound on the number of
    units: the guarantee does not hold for more units than that. L2 sensitivity C of one unit's clipped gradient.
    """
    return _times(
        steps,
        "truncated-poisson-gaussian",
        sampling_rate=sampling_rate,
        noise_multiplier=noise_multiplier,
        population=population,
        largest_batch=largest_batch,
    )


def balls_in_bins_dp_sgd(*, noise_multiplier: float, bins: int, epochs: int) -> dp_event.DpEvent:
    """Returns the event of DP-SGD in which every unit is in exactly one batch of each epoch (Chua et al. 2024).

    In each of ``epochs``, every unit joins one of ``bins`` = T batches, chosen uniformly and independently of all
    else; then T times the released value is ``sum_u clip(g_u, C) + N(0, (noise_multiplier C)^2 I)`` over a batch. An
    epoch that ends early releases less and is charged whole. Shuffling is another mechanism: there, batches have a
    fixed size, and one unit's place tells of another's. L2 sensitivity C; arXiv 2412.16802, there "balls-and-bins",
    and arXiv 2502.08202, "random allocation".

    >>> print(to_json(balls_in_bins_dp_sgd(noise_multiplier=1.0, bins=1000, epochs=10)))
    {"count":10,"event":"self-composed","of":{"bins":1000,"event":"balls-in-bins-gaussian","noise_multiplier":1.0}}
    """
    _check_count("epochs", epochs)
    return repeated(build("balls-in-bins-gaussian", noise_multiplier=noise_multiplier, bins=bins), epochs)


def user_dp_sgd(*, sampling_rate: float, noise_multiplier: float, steps: int, records: int) -> dp_event.DpEvent:
    """Returns the event of DP-SGD on records, as an owner of at most ``records`` = k of them loses it.

    Each step samples records independently and clips each to C, so the owner changes the sum by at most jC where
    ``j ~ Binomial(k, q)``: the pair ``N(0, s^2)`` against ``sum_j P[j] N(j, s^2)`` (mixture of Gaussians;
    Choquette-Choo et al. 2023, arXiv 2310.15526; Charles et al. 2024, arXiv 2407.07737). Protects the owner under
    add/remove only.
    """
    event = dp_sgd(sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=steps)
    return user_level(event, records)


def gaussian(*, noise_multiplier: float) -> dp_event.DpEvent:
    """Returns the event of the Gaussian mechanism: ``f(D) + N(0, (noise_multiplier C)^2 I)``, L2 sensitivity C."""
    return build("gaussian", noise_multiplier=noise_multiplier)


def laplace(*, noise_multiplier: float) -> dp_event.DpEvent:
    """Returns the event of the Laplace mechanism: ``f(D) + z``, density of each z_i ``exp(-|z_i|/b) / (2b)``.

    ``noise_multiplier`` = b / C for an L1 sensitivity C: (C/b)-DP (Dwork et al. 2006).
    """
    return build("laplace", noise_multiplier=noise_multiplier)


def discrete_laplace(*, scale: float, sensitivity: int) -> dp_event.DpEvent:
    """Returns the event of the discrete Laplace mechanism on whole numbers: ``P[z_i] ~ exp(-|z_i| / scale)``.

    ``sensitivity`` is the L1 sensitivity, a whole number (Ghosh, Roughgarden, Sundararajan 2009).
    """
    if not (isinstance(scale, int | float) and LEAST_AMOUNT <= scale <= MOST_AMOUNT):
        raise ValueError(f"scale must be from {LEAST_AMOUNT} to {MOST_AMOUNT}, got {scale}")
    return build("discrete-laplace", noise_parameter=1 / scale, sensitivity=sensitivity)


def discrete_gaussian(*, noise_std: float, sensitivity: int) -> dp_event.DpEvent:
    """Returns the event of the discrete Gaussian mechanism: ``P[z] ~ exp(-z^2 / (2 noise_std^2))`` on whole numbers.

    One whole number is released, and one unit changes it by at most ``sensitivity`` (Canonne, Kamath, Steinke 2020,
    definition 1). A vector that one unit changes in several places is a composition of its coordinates.
    """
    return build("discrete-gaussian", noise_std=noise_std, sensitivity=sensitivity)


def randomized_response(*, randomize_probability: float, categories: int) -> dp_event.DpEvent:
    """Returns the event of k-ary randomized response: the true category, or with probability p a uniform one of k.

    ``p = randomize_probability``, ``k = categories``; a uniform draw may give the true one again. Loses
    ``log(1 + k (1-p) / p)`` (Warner 1965; Kairouz et al. 2016). It has neighbors ``replace`` and ``replace-label``
    only: nobody answers without being there. Nothing is doubled, as the answer of one unit is replaced.
    """
    return build("randomized-response", randomize_probability=randomize_probability, categories=categories)


def approximate_dp(*, epsilon: float, delta: float) -> dp_event.DpEvent:
    """Returns the event of any mechanism known to be (epsilon, delta)-DP under add/remove; delta 0 is pure DP."""
    return build("approximate-dp", epsilon=epsilon, delta=delta)


def zcdp(*, rho: float) -> dp_event.DpEvent:
    """Returns the event of any mechanism known to be rho-zCDP under add/remove (Bun and Steinke 2016).

    Its Renyi divergence of every order a > 1 is at most ``rho a``.
    """
    return build("zcdp", rho=rho)


def private_selection(event: dp_event.DpEvent, *, mean_trials: float, shape: float) -> dp_event.DpEvent:
    """Returns the event of running ``event`` a random number of times and releasing the best run only.

    The number of trials is truncated negative binomial with this mean and ``shape`` (1 geometric, 0 logarithmic), or
    Poisson where shape is infinite, drawn independently of the data; runs not chosen stay secret, and so does the
    number (Papernot and Steinke 2022, theorems 2 and 6). The mean is at least 1: theorem 6 fails below.
    """
    return build("private-selection", mean_trials=mean_trials, shape=shape, of=event)


def composed(*events: dp_event.DpEvent) -> dp_event.DpEvent:
    """Returns the event of all ``events`` on the same units, each chosen in advance or after seeing earlier outputs."""
    return build("composed", of=events)


def repeated(event: dp_event.DpEvent, count: int) -> dp_event.DpEvent:
    """Returns the event of ``event`` executed ``count`` times with fresh randomness."""
    return build("self-composed", count=count, of=event)


def non_private() -> dp_event.DpEvent:
    """Returns the event of a run without privacy: its epsilon is infinite and every ledger refuses it."""
    return build("non-private")


def parts(event: dp_event.DpEvent) -> list[tuple[dp_event.DpEvent, int]]:
    """Returns the mechanisms that ``event`` composes, each once, with how often it is executed, in order of their JSON.

    Two events have the same parts exactly if they execute the same mechanisms equally often.
    """
    counts: dict[str, int] = {}
    leaves: dict[str, dp_event.DpEvent] = {}
    to_dict(event)
    pending = [(event, 1)]
    while pending:
        each, count = pending.pop()
        match each:
            case dp_event.SelfComposedDpEvent(event=inner, count=times):
                pending.append((inner, count * times))
            case dp_event.ComposedDpEvent(events=events):
                pending.extend((inner, count) for inner in events)
            case _:
                text = to_json(each)
                leaves[text] = each
                counts[text] = counts.get(text, 0) + count
                if counts[text] > MOST_COUNT:
                    raise UnknownEvent(f"more than 2^53 executions of {text} cannot be accounted")
    return [(leaves[text], counts[text]) for text in sorted(counts)]


def user_level(event: dp_event.DpEvent, records: int) -> dp_event.DpEvent:
    """Returns the event as one owner of at most ``records`` = k of its units loses it, under the same relation.

    A sum that each unit changes by C is changed by kC: Gaussian and Laplace noise counts for 1/k of what it did, a
    discrete sensitivity is k times as large. Sampled Gaussians become `user_dp_sgd`'s mixture. rho-zCDP becomes
    ``k^2 rho`` (Bun and Steinke 2016, prop. 27), (epsilon, delta)-DP becomes
    ``(k epsilon, delta (e^(k epsilon) - 1) / (e^epsilon - 1))`` (group privacy), and the k answers of randomized
    response are k executions. Anything else with k > 1 raises `UnknownEvent`.
    """
    _check_count("records", records)
    to_dict(event)
    if records == 1:
        return event
    match event:
        case dp_event.ComposedDpEvent(events=events):
            return composed(*(user_level(each, records) for each in events))
        case dp_event.SelfComposedDpEvent(event=inner, count=count):
            return repeated(user_level(inner, records), count)
        case dp_event.PoissonSampledDpEvent(sampling_probability=rate, event=inner):
            return _mixture(rate, merged_noise(inner), records)
        case dp_event.RandomizedResponseDpEvent():
            return repeated(event, records)
        case dp_event.NonPrivateDpEvent():
            return event
    grown = _grown(event, records)
    if grown is None:
        tag = to_dict(event)["event"]
        raise UnknownEvent(f"no guarantee for an owner of {records} units is known for {tag}: state it for the owner")
    return grown


def replaced(event: dp_event.DpEvent, neighbors: Neighbors) -> dp_event.DpEvent:
    """Returns the mechanism as it is to be accounted under add/remove so that the figure holds for ``neighbors``.

    Under add/remove, that is the mechanism itself. A replaced unit is a group of two, one gone and one come: twice the
    sensitivity, and `user_level`'s rules with k = 2. Not for sampled mechanisms, whose relation is no change of
    sensitivity, nor for randomized response, which is stated for a replaced unit: they come back as they are.
    """
    if neighbors == "add-remove":
        return event
    if isinstance(event, dp_event.ComposedDpEvent):
        return composed(*(replaced(each, neighbors) for each in event.events))
    return _grown(event, 2) or event


def unsampled(event: dp_event.DpEvent) -> dp_event.DpEvent:
    """Returns the event that would be executed if every unit were in every batch.

    A truncated batch becomes a Gaussian with twice the sensitivity, as a unit can still push another one out. An epoch
    of balls in bins becomes one Gaussian, as if the unit's bin were known: no unit is in two of them.
    """
    match event:
        case dp_event.ComposedDpEvent(events=events):
            return composed(*(unsampled(each) for each in events))
        case dp_event.SelfComposedDpEvent(event=inner, count=count):
            return repeated(unsampled(inner), count)
        case dp_event.PoissonSampledDpEvent(event=inner):
            return inner
        case dp_event.MixtureOfGaussiansDpEvent(standard_deviation=noise_std, sensitivities=shifts):
            return gaussian(noise_multiplier=noise_std / max(shifts))
        case dp_event.TruncatedSubsampledGaussianDpEvent(noise_multiplier=noise):
            return gaussian(noise_multiplier=noise / 2)
        case BallsInBinsDpEvent(noise_multiplier=noise):
            return gaussian(noise_multiplier=noise)
        case dp_event.RepeatAndSelectDpEvent(event=inner, mean=mean, shape=shape):
            return private_selection(unsampled(inner), mean_trials=mean, shape=shape)
    return event


def merged_noise(event: dp_event.DpEvent) -> float:
    """Returns the noise multiplier of the one Gaussian that loses what these Gaussians lose together.

    ``s = (sum_i s_i^-2)^(-1/2)``: scaled to equal noise, the outputs are one vector whose shift has this length.
    """
    inner = event.events if isinstance(event, dp_event.ComposedDpEvent) else (event,)
    return merged([each.noise_multiplier for each in inner])


def merged(noise_multipliers: Sequence[float]) -> float:
    """Returns ``(sum_i s_i^-2)^(-1/2)``, see `merged_noise`."""
    return float(math.fsum(noise**-2 for noise in noise_multipliers) ** -0.5)


def pure_epsilon(event: dp_event.DpEvent) -> float | None:
    """Returns the epsilon of the mechanism's pure DP, as stated for its own relation; None where it has none.

    A logarithm is rounded up by more than its error.
    """
    match event:
        case dp_event.LaplaceDpEvent(noise_multiplier=noise):
            return float(1 / noise)
        case dp_event.DiscreteLaplaceDpEvent(noise_parameter=rate, sensitivity=sensitivity):
            return float(rate * sensitivity)
        case dp_event.RandomizedResponseDpEvent(noise_parameter=randomized, num_buckets=categories):
            return math.log1p(categories * (1 - randomized) / randomized) * (1 + 1e-15)
        case ApproximateDpEvent(epsilon=epsilon, delta=0.0):
            return float(epsilon)
    return None


def _grown(event: dp_event.DpEvent, records: int) -> dp_event.DpEvent | None:
    """Returns the mechanism with ``records`` times the sensitivity; None where that is not all that changes."""
    match event:
        case dp_event.GaussianDpEvent(noise_multiplier=noise):
            return gaussian(noise_multiplier=noise / records)
        case dp_event.LaplaceDpEvent(noise_multiplier=noise):
            return laplace(noise_multiplier=noise / records)
        case dp_event.DiscreteLaplaceDpEvent(noise_parameter=rate, sensitivity=sensitivity):
            return build("discrete-laplace", noise_parameter=rate, sensitivity=sensitivity * records)
        case DiscreteGaussianDpEvent(noise_std=noise_std, sensitivity=sensitivity):
            return discrete_gaussian(noise_std=noise_std, sensitivity=sensitivity * records)
        case dp_event.ZCDpEvent(rho=rho):
            return zcdp(rho=rho * records**2)
        case ApproximateDpEvent(epsilon=epsilon, delta=delta):
            growth = math.fsum(math.exp(min(i * epsilon, 700.0)) for i in range(records)) if delta else 0.0
            if delta * growth >= 1:
                return non_private()
            return approximate_dp(epsilon=records * epsilon, delta=delta * growth)
    return None


def _mixture(sampling_rate: float, noise_multiplier: float, records: int) -> dp_event.DpEvent:
    if records > MOST_RECORDS:
        raise UnknownEvent(
            f"an owner of {records} rows that are clipped one by one is not accounted for, {MOST_RECORDS} are: clip "
            "all rows of an owner together"
        )
    chances = binom.pmf(range(records + 1), records, sampling_rate)
    return build(
        "mixture-of-gaussians",
        noise_multiplier=noise_multiplier,
        sensitivities=tuple(float(j) for j in range(records + 1)),
        sampling_probs=tuple(float(chance) for chance in chances / chances.sum()),
    )


def _times(steps: int, tag: str, **fields: object) -> dp_event.DpEvent:
    _check_count("steps", steps)
    return repeated(build(tag, **fields), steps)


def _check_count(name: str, count: int) -> None:
    if isinstance(count, bool) or not 1 <= count <= MOST_COUNT or count != int(count):
        raise ValueError(f"{name} must be a whole number from 1 to 2^53, got {count}")
