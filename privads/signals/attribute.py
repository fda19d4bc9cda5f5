"""One log's impressions and conversions as the browsers of that log would report them, by each of three interfaces.

Every function here is a map of arrays and holds back nothing: what it returns is as private as the rows, until noise is
added (`privads.signals.attribution` pays for it, adds it and says what it hides). A browser is whoever owns the rows.

- `w3c_sums`: W3C Attribution Level 1. Each browser that converts is played through `w3c.Browser`, budgets and all.
- `states_of`, `estimated`: event-level reports. What each source led to, and unbiased counts from randomized answers.
- `contributions_of`: summary reports. What each conversion adds to which key, inside its source's budget.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from privads.signals.event_reports import EventReports
from privads.signals.summary_reports import CONTRIBUTION_BUDGET
from privads.signals.w3c import DAY, Browser, Conversion, Limits, Spent

MOST_SHOWN = 10_000
"""Impressions that a browser keeps, the latest before its last conversion: one row after the other is compared."""

MOST_CONVERTED = 1000
"""Conversions that a browser measures, its first."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """Impressions, each array (impressions,) of whole numbers. browsers: who saw it. times: in microseconds. cells: the
    place of its key among the declared ones, any larger number for none of them. pages: the site that showed it. shops:
    the site whose conversions it may lead to.
    """

    browsers: Ints
    times: Ints
    cells: Ints
    pages: Ints
    shops: Ints

    def __post_init__(self) -> None:
        _check(self.browsers, self.times, self.cells, self.pages, self.shops)
        if len(self.cells) and self.cells.min() < 0:
            raise ValueError("cells must be at least 0")


@dataclass(frozen=True, kw_only=True, eq=False)
class Converted:
    """Conversions, each array (conversions,): whose, when, at which site, and what each is worth, from 0 to 1."""

    browsers: Ints
    times: Ints
    shops: Ints
    values: Floats

    def __post_init__(self) -> None:
        _check(self.browsers, self.times, self.shops)
        if self.values.shape != self.times.shape or not ((self.values >= 0) & (self.values <= 1)).all():
            raise ValueError("values must be (conversions,) from 0 to 1")


@dataclass(frozen=True)
class OnDevices:
    """What the browsers' own ledgers show. reports: that were made; empty: of them all zeros, for want of an impression
    of a declared key or of budget. most: the most that any browser spent in an epoch, of a site's budget and of all's.
    """

    reports: int
    empty: int
    most: Spent


def w3c_sums(
    shown: Shown,
    converted: Converted,
    *,
    cells: int,
    asked: Conversion,
    limits: Limits,
    draw: Callable[[], float],
) -> tuple[Ints, OnDevices]:
    """Returns (cells,) the sum of the histograms of all reports, before its noise, and what the devices' ledgers show.

    asked: what each conversion asks for; its value is ``round(value asked.most_value)``, and one that is 0 asks for
    nothing. draw: random numbers in [0, 1). A browser without a conversion reports nothing and is left out.
    """
    total = np.zeros(cells, dtype=np.int64)
    worth = np.rint(converted.values * asked.most_value).astype(np.int64)
    reports, empty, of_site, of_all = 0, 0, 0, 0
    for own, asks in _of_browsers(shown, converted):
        browser = Browser(limits, draw=draw)
        known = [cell for cell in dict.fromkeys(shown.cells[own].tolist()) if cell < cells]
        # a histogram of the browser's own cells is enough; any other impression has its place beyond the end
        places, size = {cell: place for place, cell in enumerate(known)}, max(len(known), 1)
        for row, conversion in _in_time(shown.times[own], converted.times[asks]):
            if not conversion:
                at = own[row]
                browser.save_impression(
                    int(shown.times[at]),
                    f"p{shown.pages[at]}.example",
                    histogram_index=places.get(int(shown.cells[at]), size),
                    conversion_sites=[f"s{shown.shops[at]}.example"],
                )
                continue
            at = asks[row]
            if worth[at] == 0:
                continue
            one = replace(asked, value=int(worth[at]), histogram_size=size)
            found = browser.measure_conversion(int(converted.times[at]), f"s{converted.shops[at]}.example", one)
            reports, empty = reports + 1, empty + (not any(found))
            for cell, credit in zip(known, found, strict=False):  # without strict: of no known cell there is one zero
                total[cell] += credit
        of_site, of_all = max(of_site, browser.most_spent.site), max(of_all, browser.most_spent.everyone)
    return total, OnDevices(reports=reports, empty=empty, most=Spent(site=of_site, everyone=of_all))


def sources_of(shown: Shown, converted: Converted, *, lookback: int) -> Ints:
    """Returns (conversions,) the impression that each conversion is credited to: the browser's latest for that shop, at
    most ``lookback`` microseconds before; -1 for none.
    """
    left = pd.DataFrame({"browser": converted.browsers, "shop": converted.shops, "time": converted.times})
    right = pd.DataFrame({"browser": shown.browsers, "shop": shown.shops, "time": shown.times})
    right["source"] = np.arange(len(right))
    left["row"] = np.arange(len(left))
    found = pd.merge_asof(
        left.sort_values("time", kind="stable"),
        right.sort_values("time", kind="stable"),
        on="time",
        by=["browser", "shop"],
        tolerance=lookback,
    )
    return np.asarray(found.sort_values("row")["source"].fillna(-1).to_numpy(dtype=np.int64))


def states_of(
    shown: Shown, converted: Converted, *, reports: EventReports, window_ends: Sequence[int], edges: Sequence[float]
) -> Ints:
    """Returns (impressions,) the state of each source, as `EventReports` numbers them.

    window_ends: in microseconds after the source, rising; a conversion in no window is not reported. edges: rising; a
    conversion's trigger datum is how many of them its value has reached. Of a source the first ``reports.most`` count.
    """
    source = sources_of(shown, converted, lookback=window_ends[-1])
    order = np.lexsort((converted.times, source))
    order = order[source[order] >= 0]
    of = source[order]
    first = np.flatnonzero(np.diff(of, prepend=-1))  # of each source that anything is credited to
    rank = np.arange(len(of)) - np.repeat(first, np.diff(first, append=len(of)))
    order, of = order[rank < reports.most], of[rank < reports.most]
    window = np.searchsorted(np.asarray(window_ends), converted.times[order] - shown.times[of], side="left")
    datum = np.searchsorted(np.asarray(edges, dtype=np.float64), converted.values[order], side="right")
    number = {row.tobytes(): place for place, row in enumerate(reports.counts)}
    states = np.full(len(shown.times), number[np.zeros(reports.counts.shape[1], dtype=np.int64).tobytes()])
    sources, place = np.unique(of, return_inverse=True)
    counts = np.zeros((len(sources), reports.counts.shape[1]), dtype=np.int64)
    np.add.at(counts, (place, datum * len(window_ends) + window), 1)
    states[sources] = [number[row.tobytes()] for row in counts]
    return states


def estimated(
    cells_of: Ints, answers: Ints, *, cells: int, reports: EventReports, epsilon: float, measures: Floats
) -> tuple[Floats, Floats]:
    """Returns (cells, measures) unbiased sums over each cell's sources, and the standard deviations of their noise.

    cells_of, answers: (sources,). measures: (states, measures) what a source of each state counts for, g. An answer is
    the state x with 1 - p, and else uniform, so that ``(g(answer) - p mean(g)) / (1 - p)`` has the mean g(x) and the
    variance ``v(x) = p ((1 - p) g^2 + mean(g^2) - p mean(g)^2 - 2 (1 - p) g mean(g)) / (1 - p)^2``. How many sources
    are in each state is known from the answers alone, so v is estimated as g is, and is no less than its least.
    """
    p = reports.randomize_probability(epsilon)
    mean, square = measures.mean(axis=0), (measures**2).mean(axis=0)
    variance = p * ((1 - p) * (measures**2 - 2 * measures * mean) + square - p * mean**2) / (1 - p) ** 2
    inside = cells_of < cells
    number = cells_of[inside] * reports.states + answers[inside]
    seen = np.bincount(number, minlength=cells * reports.states).reshape(cells, reports.states)
    sources = seen.sum(axis=1, keepdims=True)
    in_state = (seen - sources * p / reports.states) / (1 - p)  # `EventReports.debiased`, for every cell
    spread = np.maximum(in_state @ variance, sources * variance.min(axis=0))
    return in_state @ measures, np.sqrt(spread)


@dataclass(frozen=True, kw_only=True, eq=False)
class Contributions:
    """What conversions add to keys, in the order of time: (contributions,) each. source_days: (conversions,) how many
    days before it the source was shown, -1 where nothing is reported.
    """

    sources: Ints
    reports: Ints
    keys: Ints
    values: Ints
    source_days: Ints


def contributions_of(
    shown: Shown,
    converted: Converted,
    *,
    lookback: int,
    sources_per_browser: int,
    count: int,
    value: int | None,
    cells: int,
) -> Contributions:
    """Returns the contributions of all reports, one report for a conversion.

    A conversion adds ``count`` to its source's cell, and with ``value`` also ``round(value times its own)``, where that
    is not 0, to the key ``cells`` + cell. Of each browser only the first ``sources_per_browser`` that something is
    credited to report anything: a browser without its rows then takes at most that many budgets with it.
    """
    source = sources_of(shown, converted, lookback=lookback)
    order = np.argsort(converted.times, kind="stable")
    order = order[source[order] >= 0]
    frame = pd.DataFrame({"browser": converted.browsers[order], "source": source[order]})
    new = ~frame.duplicated()
    nth = new.groupby(frame["browser"]).cumsum()  # sources of the browser so far, this one included
    rank = nth.where(new).groupby([frame["browser"], frame["source"]]).transform("first")
    order = order[rank.to_numpy() <= sources_per_browser]
    of = source[order]
    worth = np.zeros(len(of), np.int64) if value is None else np.rint(converted.values[order] * value).astype(np.int64)
    cell = np.minimum(shown.cells[of], cells)
    added = np.stack([np.full(len(of), count), worth], axis=1)
    keys = np.stack([cell, cells + cell], axis=1)
    keys[cell == cells] = 2 * cells  # none of the declared ones
    there = added > 0
    days = np.full(len(source), -1)
    days[order] = converted.times[order] // DAY - shown.times[of] // DAY
    return Contributions(
        sources=np.repeat(of, 2).reshape(-1, 2)[there],
        reports=np.repeat(order, 2).reshape(-1, 2)[there],
        keys=keys[there],
        values=added[there],
        source_days=days,
    )


def share_of_budget(reports: int, *, with_value: bool) -> int:
    """Returns what one of a source's ``reports`` may add to a key: of its budget an equal part, halved for a value."""
    return CONTRIBUTION_BUDGET // (reports * (2 if with_value else 1))


def _of_browsers(shown: Shown, converted: Converted) -> Iterator[tuple[Ints, Ints]]:
    """Yields each converting browser's impressions and conversions, by number, in the order of time."""
    by_shown = np.lexsort((shown.times, shown.browsers))
    by_converted = np.lexsort((converted.times, converted.browsers))
    who, starts, asked = np.unique(converted.browsers[by_converted], return_index=True, return_counts=True)
    owners = shown.browsers[by_shown]
    first, last = np.searchsorted(owners, who, side="left"), np.searchsorted(owners, who, side="right")
    for start, count, low, high in zip(starts, asked, first, last, strict=True):
        asks = by_converted[start : start + min(count, MOST_CONVERTED)]
        own = by_shown[low:high]
        own = own[shown.times[own] <= converted.times[asks[-1]]]
        yield own[-MOST_SHOWN:], asks


def _in_time(shown: Ints, converted: Ints) -> Iterator[tuple[int, bool]]:
    """Yields (place, whether it is a conversion) of both in one order; an impression comes before what it led to."""
    kinds = np.repeat([False, True], [len(shown), len(converted)])
    order = np.lexsort((kinds, np.concatenate([shown, converted])))
    for at in order.tolist():
        yield (at, False) if at < len(shown) else (at - len(shown), True)


def _check(*columns: Ints) -> None:
    for one in columns:
        if one.ndim != 1 or one.dtype != np.int64 or len(one) != len(columns[0]):
            raise ValueError("every column must be (rows,) whole numbers of 64 bits, and all must be of one length")


def scaled(values: Floats, high: float) -> Floats:
    """Returns values as shares of ``high``, 0 where one is missing."""
    return np.where(np.isnan(values), 0.0, np.clip(values, 0.0, high) / high)


def std_of_discrete_laplace(scale: float) -> float:
    """Returns the standard deviation of ``P[z] ~ exp(-|z| / scale)``: ``sqrt(2 a) / (1 - a)``, a = exp(-1 / scale)."""
    return math.sqrt(2 * math.exp(-1 / scale)) / -math.expm1(-1 / scale)
