"""Summary reports of the Attribution Reporting API (historical): sums by key, with noise, of bounded contributions.

A source (an ad that was shown) may add at most `CONTRIBUTION_BUDGET` to all sums together, over all its reports; a
report that would go beyond what is left of it is dropped whole. Each declared key gets its sum and one draw of discrete
Laplace noise, ``P[z] ~ exp(-|z| epsilon / CONTRIBUTION_BUDGET)``, also where nothing was added: which keys are shown
tells nothing. What is protected is one source, not a person, who may have seen many.
"""

import math
from collections.abc import Sequence

import numpy as np
from dp_accounting import dp_event
from numpy.typing import ArrayLike, NDArray

from accounting import mechanisms
from privads.noise import Randomness

CONTRIBUTION_BUDGET = 65_536
"""What one source may add to all sums together."""

MOST_REPORTS = 20
"""Reports of a source; later ones are dropped."""

MOST_CONTRIBUTIONS = 20
"""Contributions of a report; one with more is refused by the browser, and dropped here."""


def event(*, epsilon: float) -> dp_event.DpEvent:
    """Returns the mechanism of one summary, for one source more or less."""
    _check(epsilon)
    return mechanisms.discrete_laplace(scale=CONTRIBUTION_BUDGET / epsilon, sensitivity=CONTRIBUTION_BUDGET)


def noise_std(*, epsilon: float) -> float:
    """Returns the noise's standard deviation, ``sqrt(2 a) / (1 - a)`` with ``a = exp(-epsilon / budget)``."""
    _check(epsilon)
    rate = epsilon / CONTRIBUTION_BUDGET
    return math.sqrt(2 * math.exp(-rate)) / -math.expm1(-rate)


def within_budget(sources: ArrayLike, reports: ArrayLike, values: ArrayLike) -> NDArray[np.bool_]:
    """Returns (contributions,) which of them count, of those in the order in which the reports were made.

    sources, reports: (contributions,) whose each is, and which report of its source it belongs to. values:
    (contributions,) whole numbers of at least 1. A report is kept where it has at most `MOST_CONTRIBUTIONS`, its source
    has fewer than `MOST_REPORTS` before it, and its values fit in what the source has left.
    """
    source, report, value = np.asarray(sources), np.asarray(reports), np.asarray(values)
    if not (source.shape == report.shape == value.shape == (len(source),)):
        raise ValueError("sources, reports and values must have one shape (contributions,)")
    if len(value) and (value.min() < 1 or not np.issubdtype(value.dtype, np.integer)):
        raise ValueError("values must be whole numbers of at least 1")
    rows: dict[tuple[object, object], list[int]] = {}
    for row, key in enumerate(zip(source.tolist(), report.tolist(), strict=True)):
        rows.setdefault(key, []).append(row)
    kept = np.zeros(len(value), dtype=np.bool_)
    left: dict[object, tuple[int, int]] = {}  # of each source: budget and reports
    for (owner, _), own in rows.items():
        budget, count = left.get(owner, (CONTRIBUTION_BUDGET, MOST_REPORTS))
        total = sum(value[own].tolist())  # of Python's integers, which do not overflow
        if count and len(own) <= MOST_CONTRIBUTIONS and total <= budget:
            kept[own] = True
            left[owner] = budget - total, count - 1
    return kept


def summarized(
    sources: ArrayLike,
    reports: ArrayLike,
    keys: ArrayLike,
    values: ArrayLike,
    *,
    declared: Sequence[int],
    epsilon: float,
    randomness: Randomness,
) -> NDArray[np.int64]:
    """Returns (declared,) the sum of each declared key's contributions, bounded by `within_budget`, with noise.

    keys: (contributions,) 128 bits fit as Python's integers. declared: the keys to show, each once, from public facts.
    Other keys are left out, and still use their source's budget.
    """
    _check(epsilon)
    if len(set(declared)) < len(declared):
        raise ValueError("declared names a key twice: each gets one draw of noise")
    places = {key: place for place, key in enumerate(declared)}
    total = np.zeros(len(declared), dtype=np.int64)
    rows = zip(np.asarray(keys, dtype=object).tolist(), np.asarray(values).tolist(), strict=True)
    for (key, value), counts in zip(rows, within_budget(sources, reports, values).tolist(), strict=True):
        if counts and key in places:
            total[places[key]] += value
    return total + randomness.discrete_laplace(len(total), scale=CONTRIBUTION_BUDGET / epsilon)


def _check(epsilon: float) -> None:
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be positive and finite, got {epsilon}")
