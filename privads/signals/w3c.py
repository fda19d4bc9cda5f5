"""W3C Attribution Level 1: what a browser stores, what a conversion's report holds, and which budgets it takes.

A `Browser` saves impressions and turns each conversion into a histogram of whole numbers, of which only the sum over
many browsers is ever shown, with noise (`aggregate`). It follows the algorithms of the working draft of 2026
(https://www.w3.org/TR/attribution-level-1/), whose names it keeps.

What is protected is what one site learns of one browser in one epoch, by individual differential privacy: a browser
without a matching impression pays nothing, and only the browser itself knows what is left. Budgets by site are no
guarantee where sites act together or adapt to each other (Big Bird, arXiv 2506.05290): that is what the global budget
and the quotas are for, and a report that names the one names the other (`Spent`).
"""

import math
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from privads.noise import Randomness
from privads.signals.sites import NoSiteError, site_of

DAY = 86_400_000_000
"""In microseconds, as all times here."""

HOUR = 3_600_000_000
MICRO = 1_000_000
"""A budget's unit is a millionth of an epsilon."""

MOST_EPSILON = 4294
"""The largest whose micro-epsilons fit in 32 bits."""

MOST_INTEGER = 2**32 - 1


class RefusedError(ValueError):
    """A call that the API refuses. name: of the web's error, such as RangeError."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an implementation chooses. Budgets are in micro-epsilon, for each epoch.

    epoch_start: at which part of an epoch the first call falls; None draws it, and rounds to a full hour. credit_draw:
    stands for every random number of `fairly_allocate_credit`; None draws them.
    """

    aggregation_services: Collection[str]
    site_budget: int = MICRO
    global_budget: int = 8 * MICRO
    impression_site_quota: int = 4 * MICRO
    epoch_days: int = 7
    most_lookback_days: int = 30
    most_histogram_size: int = 1 << 16
    most_credits: int = 10
    most_match_values: int = 30
    most_conversion_sites: int = 5
    most_conversion_callers: int = 10
    most_impression_sites: int = 30
    most_impression_callers: int = 10
    epoch_start: float | None = None
    credit_draw: float | None = None


@dataclass(frozen=True, kw_only=True)
class Impression:
    """What the browser keeps of one ad that was shown. time: in microseconds."""

    site: str
    intermediary: str | None
    histogram_index: int
    match_value: int
    conversion_sites: frozenset[str]
    conversion_callers: frozenset[str]
    lifetime: int
    priority: int
    time: int

    @property
    def caller(self) -> str:
        """Who saved it."""
        return self.site if self.intermediary is None else self.intermediary


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a site asks for when somebody converts. ``epsilon``, ``histogram_size`` and ``most_value`` must be the same
    for all conversions that are summed.

    credit: what the latest impressions get, the first the most recent of the highest priority. lookback_days: None for
    as long as there is.
    """

    aggregation_service: str
    histogram_size: int
    epsilon: float = 1.0
    value: int = 1
    most_value: int = 1
    credit: Sequence[float] = (1.0,)
    lookback_days: int | None = None
    match_values: Collection[int] = ()
    impression_sites: Sequence[str] = ()
    impression_callers: Sequence[str] = ()


@dataclass(frozen=True)
class Spent:
    """What one site has taken of a browser's budgets in one epoch, in micro-epsilon, and what all have taken."""

    site: int
    everyone: int


@dataclass(eq=False)
class Browser:
    """One browser's impressions and budgets. Times are whole microseconds since 1970; calls come in their order."""

    limits: Limits
    enabled: bool = True
    draw: Callable[[], float] = field(default_factory=lambda: random.SystemRandom().random)
    _impressions: list[Impression] = field(default_factory=list)
    _site_budgets: dict[tuple[int, str], int] = field(default_factory=dict)
    _global_budgets: dict[int, int] = field(default_factory=dict)
    _quotas: dict[tuple[int, str], int] = field(default_factory=dict)
    _start: int | None = None
    _cleared: int | None = None

    def save_impression(
        self,
        now: int,
        site: str,
        *,
        histogram_index: int,
        intermediary: str | None = None,
        match_value: int = 0,
        conversion_sites: Sequence[str] = (),
        conversion_callers: Sequence[str] = (),
        lifetime_days: int = 30,
        priority: int = 0,
    ) -> None:
        """Keep an impression, unless the API is disabled, which the caller is not told."""
        limits = self.limits
        top, frame = _site(site), _frame(site, intermediary)
        if not 0 <= histogram_index < limits.most_histogram_size:
            raise RefusedError("RangeError", f"histogram_index must be below {limits.most_histogram_size}")
        if lifetime_days < 1:
            raise RefusedError("RangeError", "lifetime_days must be at least 1")
        impression = Impression(
            site=top,
            intermediary=frame,
            histogram_index=histogram_index,
            match_value=match_value,
            conversion_sites=_sites("conversion_sites", conversion_sites, limits.most_conversion_sites),
            conversion_callers=_sites("conversion_callers", conversion_callers, limits.most_conversion_callers),
            lifetime=min(lifetime_days, limits.most_lookback_days) * DAY,
            priority=priority,
            time=now,
        )
        if self.enabled:
            self._impressions.append(impression)

    def measure_conversion(
        self, now: int, site: str, conversion: Conversion, *, intermediary: str | None = None
    ) -> list[int]:
        """Returns the histogram of a conversion's report, which is all zeros where nothing matched, where no budget was
        left, and where the API is disabled.
        """
        top, frame = _site(site), _frame(site, intermediary)
        asked = _Asked.of(conversion, self.limits)
        nothing = [0] * conversion.histogram_size
        if not self.enabled:
            return nothing
        return self._attributed(now, top, top if frame is None else frame, asked) or nothing

    def clear_impressions_of(self, site: str) -> None:
        """What a site may ask for: drop the impressions it saved, and itself from where others let it convert."""
        site = _site(site)
        kept = []
        for one in self._impressions:
            if one.caller == site:
                continue
            sites, callers = one.conversion_sites - {site}, one.conversion_callers - {site}
            if (one.conversion_sites and not sites) or (one.conversion_callers and not callers):
                continue  # an empty set would let everyone convert
            kept.append(replace(one, conversion_sites=sites, conversion_callers=callers))
        self._impressions = kept

    def clear_history(self, now: int, sites: Collection[str], *, forget_visits: bool) -> None:
        """What a person may ask for. forget_visits: as if the sites (all, where none is named) had never been seen; no
        earlier epoch is used again. Else their budgets are spent.
        """
        named = {_site(one) for one in sites}
        if not forget_visits:
            if not named:
                raise ValueError("without forget_visits name the sites whose budgets are to be spent")
            epochs = range(self._first_epoch(now), self._epoch(now) + 1)
            self._site_budgets |= {(epoch, site): 0 for epoch in epochs for site in named}
            return
        if named:  # what all have spent together stays spent
            self._impressions = [one for one in self._impressions if one.site not in named]
            self._site_budgets = {key: left for key, left in self._site_budgets.items() if key[1] not in named}
            self._quotas = {key: left for key, left in self._quotas.items() if key[1] not in named}
        else:
            for store in (self._impressions, self._site_budgets, self._quotas, self._global_budgets):
                store.clear()
        self._cleared = now

    def spent(self, site: str, now: int) -> Spent:
        """Returns what ``site`` has taken in the epoch of ``now``, and beside it what all sites have."""
        epoch, limits = self._epoch(now), self.limits
        return Spent(
            site=limits.site_budget - self._site_budgets.get((epoch, _site(site)), limits.site_budget),
            everyone=limits.global_budget - self._global_budgets.get(epoch, limits.global_budget),
        )

    @property
    def most_spent(self) -> Spent:
        """The most that any site has taken in any epoch, and the most that all have."""
        limits = self.limits
        return Spent(
            site=limits.site_budget - min(self._site_budgets.values(), default=limits.site_budget),
            everyone=limits.global_budget - min(self._global_budgets.values(), default=limits.global_budget),
        )

    # Attribution

    def _attributed(self, now: int, site: str, caller: str, asked: "_Asked") -> list[int] | None:
        current = self._epoch(now)  # before all others: a browser's first look at an epoch sets where they start
        first = self._first_epoch(now)
        by_epoch: dict[int, list[Impression]] = {}
        for one in self._matching(now, site, caller, asked):
            by_epoch.setdefault(self._epoch(one.time), []).append(one)
        if current == self._epoch(now - asked.lookback):  # no other epoch can be in the report
            found = by_epoch.get(current, []) if first <= current else []
            filled = self._filled(found, asked) if found else []
            return filled if found and self._deduct(current, site, found, asked, l1_norm=sum(filled)) else None
        matched: list[Impression] = []
        for epoch in range(first, current + 1):
            found = by_epoch.get(epoch, [])
            if found and self._deduct(epoch, site, found, asked, l1_norm=None):
                matched += found
        return self._filled(matched, asked) if matched else None

    def _matching(self, now: int, site: str, caller: str, asked: "_Asked") -> Iterator[Impression]:
        for one in self._impressions:
            if (
                now <= one.time + min(one.lifetime, asked.lookback)
                and (not one.conversion_sites or site in one.conversion_sites)
                and (not one.conversion_callers or caller in one.conversion_callers)
                and (not asked.match_values or one.match_value in asked.match_values)
                and (not asked.impression_sites or one.site in asked.impression_sites)
                and (not asked.impression_callers or one.caller in asked.impression_callers)
            ):
                yield one

    def _filled(self, matched: Sequence[Impression], asked: "_Asked") -> list[int]:
        """Returns the histogram of last-n-touch attribution."""
        latest = sorted(matched, key=lambda one: (one.priority, one.time), reverse=True)
        credit = asked.conversion.credit[: len(latest)]
        fixed = self.limits.credit_draw
        shares = fairly_allocate_credit(credit, asked.conversion.value, self.draw if fixed is None else lambda: fixed)
        histogram = [0] * asked.conversion.histogram_size
        for one, share in zip(latest, shares, strict=False):  # without strict: more impressions than credits
            if one.histogram_index < len(histogram):
                histogram[one.histogram_index] += share
        return histogram

    # Budgets

    def _deduct(
        self, epoch: int, site: str, matched: Sequence[Impression], asked: "_Asked", *, l1_norm: int | None
    ) -> bool:
        """Takes an epoch's budgets; returns whether they sufficed, and else takes none.

        l1_norm: of the histogram, where only this epoch can be in it: then another impression could change the report
        by no more. Where several epochs are, one of them can move the whole value from one bucket to another.
        """
        scale = noise_scale(epsilon=asked.conversion.epsilon, most_value=asked.conversion.most_value)
        by_value = math.ceil(2 * asked.conversion.value / scale * MICRO)
        of_site = by_value if l1_norm is None else math.ceil(l1_norm / scale * MICRO)
        limits, quotas = self.limits, {(epoch, one.site) for one in matched}
        left = self._site_budgets.get((epoch, site), limits.site_budget)
        of_all = self._global_budgets.get(epoch, limits.global_budget)
        of_quotas = {key: self._quotas.get(key, limits.impression_site_quota) for key in quotas}
        if of_site > left or by_value > min([of_all, *of_quotas.values()]):
            return False
        self._site_budgets[epoch, site] = left - of_site
        self._global_budgets[epoch] = of_all - by_value
        self._quotas |= {key: one - by_value for key, one in of_quotas.items()}
        return True

    # Epochs

    def _epoch(self, now: int) -> int:
        period = self.limits.epoch_days * DAY
        if self._start is None:
            stated = self.limits.epoch_start
            if stated is None:
                self._start = (now - int(self.draw() * period)) // HOUR * HOUR
            else:
                self._start = now - round(stated * period)
        return (now - self._start) // period

    def _first_epoch(self, now: int) -> int:
        """Returns the first epoch that may be looked at: none from before history was cleared."""
        first = self._epoch(now - self.limits.most_lookback_days * DAY)
        return first if self._cleared is None else max(first, self._epoch(self._cleared) + 1)


def aggregate(
    reports: Sequence[Sequence[int]], *, epsilon: float, most_value: int, randomness: Randomness
) -> NDArray[np.int64]:
    """Returns (buckets,) the sum of histograms with discrete Laplace noise of scale ``2 most_value / epsilon``.

    reports: histograms of conversions that all stated this epsilon and this ``most_value``, each used once. Refuses one
    that no browser would make, whose weight the noise does not hide. Of no reports it is the noise alone, (0,).
    """
    if len({len(one) for one in reports}) > 1:
        raise ValueError("reports of different sizes are of different measurements: sum those of one")
    table = np.array(reports, dtype=np.int64).reshape(len(reports), -1)
    if (table < 0).any() or (table.sum(axis=1) > most_value).any():
        raise ValueError("a report's sum must be from 0 to most_value, and none of its buckets below 0")
    total: NDArray[np.int64] = table.sum(axis=0)
    return total + randomness.discrete_laplace(len(total), scale=noise_scale(epsilon=epsilon, most_value=most_value))


def noise_scale(*, epsilon: float, most_value: int) -> float:
    """Returns the scale of the noise that is added to a sum, ``2 most_value / epsilon``."""
    return 2 * most_value / epsilon


def fairly_allocate_credit(credit: Sequence[float], value: int, draw: Callable[[], float]) -> list[int]:
    """Returns whole numbers that add up to ``value``, each within 1 of ``value credit_i / sum(credit)``, and that on
    average: neighbors are rounded in pairs, one to a whole number, so that the pair's sum stays.

    draw: random numbers in [0, 1).

    >>> fairly_allocate_credit([1, 1], 3, lambda: 0.25)
    [2, 1]
    """
    total = sum(credit)
    shares = [value * one / total for one in credit]
    open_ = 0  # the one that may still have a fraction
    for other in range(1, len(shares)):
        first, second = (shares[at] - math.floor(shares[at]) for at in (open_, other))
        if first == 0 and second == 0:
            continue
        # both up or both down, whichever keeps what is left of the pair between 0 and 1
        up = first + second > 1
        to_first, to_second = (1 - first, 1 - second) if up else (-first, -second)
        if draw() < to_second / (to_first + to_second):  # the open one becomes whole, and the other stays open
            step, open_, other = to_first, other, open_
        else:
            step = to_second
        shares[other] += step
        shares[open_] -= step
    return [math.floor(one + 0.5) for one in shares]  # what is left of fractions is rounding


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A conversion whose options were checked."""

    conversion: Conversion
    lookback: int
    match_values: frozenset[int]
    impression_sites: frozenset[str]
    impression_callers: frozenset[str]

    @classmethod
    def of(cls, one: Conversion, limits: Limits) -> "_Asked":
        if one.aggregation_service not in limits.aggregation_services:
            raise RefusedError("ReferenceError", f"{one.aggregation_service!r} is no known aggregation service")
        lookback = limits.most_lookback_days if one.lookback_days is None else one.lookback_days
        for holds, message in (
            (0 < one.epsilon <= MOST_EPSILON, f"epsilon must be above 0 and at most {MOST_EPSILON}"),
            (
                1 <= one.histogram_size <= limits.most_histogram_size,
                f"histogram_size must be from 1 to {limits.most_histogram_size}",
            ),
            (1 <= one.value <= one.most_value, "value must be from 1 to most_value"),
            (one.most_value <= MOST_INTEGER, f"most_value must be at most {MOST_INTEGER}"),
            (1 <= len(one.credit) <= limits.most_credits, f"credit must have from 1 to {limits.most_credits} numbers"),
            (all(0 < part < math.inf for part in one.credit), "credit must be finite and above 0"),
            (lookback >= 1, "lookback_days must be at least 1"),
            (
                len(one.match_values) <= limits.most_match_values,
                f"match_values must be at most {limits.most_match_values}",
            ),
        ):
            if not holds:
                raise RefusedError("RangeError", message)
        return cls(
            conversion=one,
            lookback=min(lookback, limits.most_lookback_days) * DAY,
            match_values=frozenset(one.match_values),
            impression_sites=_sites("impression_sites", one.impression_sites, limits.most_impression_sites),
            impression_callers=_sites("impression_callers", one.impression_callers, limits.most_impression_callers),
        )


def _site(host: str) -> str:
    try:
        return site_of(host)
    except NoSiteError as error:
        raise RefusedError("SyntaxError", str(error)) from None


def _frame(site: str, intermediary: str | None) -> str | None:
    """Returns the intermediary's site; a frame of the page's own site is none."""
    if intermediary is None:
        return None
    frame = _site(intermediary)
    return None if frame == _site(site) else frame


def _sites(name: str, hosts: Sequence[str], most: int) -> frozenset[str]:
    if len(hosts) > most:
        raise RefusedError("RangeError", f"{name} must be at most {most}")
    return frozenset(map(_site, hosts))
