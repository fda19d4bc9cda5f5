"""Summary reports of the Attribution Reporting API (historical): sums by key, with noise, of bounded contributions.

A source (an ad that was shown) may add at most `CONTRIBUTION_BUDGET` to all sums together, over all its reports; a
report that would go beyond what is left of it is dropped whole. Each declared key gets its sum and one draw of discrete
Laplace noise, ``P[z] ~ exp(-|z| epsilon / CONTRIBUTION_BUDGET)``, also where nothing was added: which keys are shown
tells nothing. What is protected is one source, not a person, who may have seen many.

How many reports were sent would tell of sources too. So a conversion without a report of its own may send a null one,
which adds nothing (`null_reports`), and every report has as many contributions as any other (`padded`).
"""

import math
from collections.abc import Sequence
from typing import Literal

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

NULL_RATE = 0.05
"""Of a conversion without a report: a null one's probability, where reports do not say when their source was shown."""

NULL_RATE_OF_DAY = 0.008
"""Of each day of look-back but the true one, where they do."""

MOST_LOOKBACK_DAYS = 30
"""How long a source lives; the day of the conversion itself is one day more."""


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
    total = summed(sources, reports, keys, values, declared=declared)
    return total + randomness.discrete_laplace(len(total), scale=CONTRIBUTION_BUDGET / epsilon)


def summed(
    sources: ArrayLike, reports: ArrayLike, keys: ArrayLike, values: ArrayLike, *, declared: Sequence[int]
) -> NDArray[np.int64]:
    """Returns (declared,) the sums before their noise; they are as private as what they are made of."""
    if len(set(declared)) < len(declared):
        raise ValueError("declared names a key twice: each gets one draw of noise")
    places = {key: place for place, key in enumerate(declared)}
    total = np.zeros(len(declared), dtype=np.int64)
    rows = zip(np.asarray(keys, dtype=object).tolist(), np.asarray(values).tolist(), strict=True)
    for (key, value), counts in zip(rows, within_budget(sources, reports, values).tolist(), strict=True):
        if counts and key in places:
            total[places[key]] += value
    return total


def null_reports(
    source_days: ArrayLike, *, source_time: Literal["excluded", "included"], randomness: Randomness
) -> NDArray[np.bool_]:
    """Returns (conversions, days) which null reports are sent beside the real ones.

    source_days: (conversions,) how many days before its conversion the source of each real report was registered, from
    0 to `MOST_LOOKBACK_DAYS`; -1 for a conversion without one. source_time: whether reports say that day. "excluded":
    one column, a null report with probability `NULL_RATE` for a conversion without a real one. "included": a column for
    each day, a null report with `NULL_RATE_OF_DAY` that claims it, for every day but the real report's (WICG
    attribution-reporting-api, AGGREGATE.md, "Hide the true number of attribution reports", and Chromium's parameters).
    Probabilities are exact to 2^-52.
    """
    days = np.asarray(source_days)
    whole = days.ndim == 1 and (np.issubdtype(days.dtype, np.integer) or not len(days))
    if not whole or (len(days) and not -1 <= days.min() <= days.max() <= MOST_LOOKBACK_DAYS):
        raise ValueError(f"source_days must be (conversions,) whole numbers from -1 to {MOST_LOOKBACK_DAYS}")
    if source_time == "excluded":
        return ((randomness.uniforms(len(days)) <= NULL_RATE) & (days < 0))[:, None]
    if source_time != "included":
        raise ValueError(f"source_time must be 'excluded' or 'included', got {source_time!r}")
    shape = len(days), MOST_LOOKBACK_DAYS + 1
    drawn = randomness.uniforms(shape[0] * shape[1]).reshape(shape) <= NULL_RATE_OF_DAY
    return np.asarray(drawn & (days[:, None] != np.arange(shape[1])))


def padded(contributions: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns a report's (key, value) with null ones, (0, 0), behind them, `MOST_CONTRIBUTIONS` in all; a null report
    has no others. Its size then tells nothing.

    >>> padded([(7, 100)])[:2], len(padded([]))
    ([(7, 100), (0, 0)], 20)
    """
    if len(contributions) > MOST_CONTRIBUTIONS:
        raise ValueError(f"a report has at most {MOST_CONTRIBUTIONS} contributions, got {len(contributions)}")
    return [*contributions, *[(0, 0)] * (MOST_CONTRIBUTIONS - len(contributions))]


def _check(epsilon: float) -> None:
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be positive and finite, got {epsilon}")
