"""What an audit found, and what it may conclude.

An audit plays a game whose outcome privacy limits (which canaries were included, which of two inputs was used) and
turns how often it was right into a lower bound on epsilon. That bound stands beside the claim, and beside what the same
audit can show at all: a bound far below the claim means little where the audit is blunt.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr

from accounting.budget import check_epsilon

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

Method = Literal["one-run", "one-run f-DP", "Clopper-Pearson", "Gaussian fit", "likelihood ratio"]
Kind = Literal["bound", "estimate"]
Verdict = Literal["consistent", "violation", "inconclusive"]

GROSS = 5.0
"""An audit is conclusive if it exceeds the claim at this many times the claimed epsilon; a Gaussian with a quarter of
the claimed noise has 4.3 to 6.6 times the claimed epsilon, for claims from 0.1 to 10 and delta from 1e-7 to 1e-5."""
DETECTED = 0.95
"""... in at least this share of its runs."""
BACKWARDS = 1e-9
"""Scores that speak for the opposite of the truth, more than chance would in this share of cases, show no leak."""
_UNFAIR = 1e-9
_MOST_CLAIM = 1e6
_LEAST_DELTA = 1e-50


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The outcome of an audit of the claim that a mechanism is (``claimed_epsilon``, ``delta``)-DP.

    lower: with probability at least ``1 - significance`` over the audit's coins and the mechanism's, the mechanism is
    not (e, delta)-DP for any e below it; 0 where nothing is shown. By "one-run f-DP" what it is not is weaker: covered
    by the curve of a Gaussian with (e, delta). One that is (e, delta)-DP by another curve, such as randomized response,
    is contradicted too. kind: "bound" where that is proven; "estimate" where it rests on a shape of the scores' law,
    which nothing enforces.

    canaries: coins tossed: canaries of one run, runs of many, draws of outputs. guesses, correct: how many the bound
    rests on, and those that were right.

    power: the ``lower`` to expect of a *correct* mechanism that spends the whole claim, with ideal canaries: each alone
    is seen through a Gaussian with the claimed (epsilon, delta), or for delta 0 through randomized response; where the
    law of the output is known, through that law. ceiling: ``lower`` if every guess were right: a claim from there on
    cannot be contradicted. detectable: the least true epsilon (at delta) of such canaries, or with less noise in such a
    law, whose ``lower`` is above the claim in 95 % of runs; infinite where there is none. All three follow from the
    claim and public numbers alone; no score is in them, but that ``detectable`` counts no guess that rests on none: it
    is infinite where scores are all alike, or met by no event, and where they speak for the opposite of the truth.
    """

    method: Method
    claimed_epsilon: float
    delta: float
    significance: float
    lower: float
    kind: Kind
    canaries: int
    guesses: int
    correct: int
    power: float
    ceiling: float
    detectable: float

    @property
    def verdict(self) -> Verdict:
        """What follows. "consistent" means "no gross fault seen", never "epsilon confirmed".

        - "violation": a bound is above the claim. A claim that holds is called so with probability at most
          ``significance``; by "one-run f-DP", a claim that a Gaussian's curve holds.
        - "inconclusive": the audit is too blunt to say anything, as even ideal canaries with `GROSS` times the claimed
          epsilon would be missed in more than one run of twenty; or an estimate, which proves nothing, is above it.
        - "consistent": neither. Faults finer than ``detectable``, or that the canaries do not meet, remain possible.
        """
        if self.lower > self.claimed_epsilon:
            return "violation" if self.kind == "bound" else "inconclusive"
        return "consistent" if self.detectable <= GROSS * self.claimed_epsilon else "inconclusive"


def check_claim(claimed_epsilon: float, delta: float, significance: float = 0.05, *, pure: bool = True) -> None:
    """Refuse terms that are no claim, or beyond what the arithmetic here can tell; ``pure``: whether delta may be 0."""
    check_epsilon(claimed_epsilon)
    if claimed_epsilon > _MOST_CLAIM:
        raise ValueError(f"claimed_epsilon must be at most {_MOST_CLAIM:g}, got {claimed_epsilon}: it claims nothing")
    if not (_LEAST_DELTA <= delta < 1 or (pure and delta == 0)):
        raise ValueError(f"delta must be {'0 or ' * pure}in [{_LEAST_DELTA:g}, 1), got {delta}")
    if not 0 < significance < 0.5:
        raise ValueError(f"significance must be in (0, 0.5), got {significance}")


def as_scores(name: str, values: ArrayLike) -> Floats:
    """Returns the scores as floats; refuses what is no single row of at least one number, or holds NaN."""
    scores = np.asarray(values)
    if scores.ndim != 1 or not scores.size:
        raise ValueError(f"{name} must be one row of at least one number, got shape {scores.shape}")
    if scores.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be numbers, got {scores.dtype}")
    scores = scores.astype(np.float64)
    missing = int(np.isnan(scores).sum())
    if missing:
        raise ValueError(f"{name} must not be NaN, got {missing} of {scores.size}: a run that diverged has no audit")
    return scores


def as_coins(included: ArrayLike, size: int) -> Flags:
    """Returns who was included; refuses what is not one flag per score, or was not tossed with fair coins.

    Coins are called unfair if so many or so few of ``size`` fair ones come up in less than one of 10^9 tosses.
    """
    flags = np.asarray(included)
    if flags.shape != (size,):
        raise ValueError(f"included must be one flag for each of {size} scores, got shape {flags.shape}")
    if flags.dtype.kind != "b" and not (flags.dtype.kind in "fiu" and np.isin(flags, (0, 1)).all()):
        raise ValueError(f"included must be true or false (or 1 or 0), got {flags.dtype}")
    flags = flags.astype(np.bool_)
    count = int(flags.sum())
    if count in (0, size):
        raise ValueError(f"included must be tossed by fair coins, got {count} of {size}: nothing can be told apart")
    if 2 * bdtr(min(count, size - count), size, 0.5) < _UNFAIR:
        raise ValueError(f"included must be tossed by fair coins, got {count} of {size}: the bound would be void")
    return flags
