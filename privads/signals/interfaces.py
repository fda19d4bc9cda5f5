"""The attribution interfaces, each an `Interface`: `W3c`, `EventLevel` and `Summaries`, and what their reports cost.

What an interface promises by its own unit, and what its report costs an owner of the log's rows, are two figures. With
one owner's rows gone, no other browser reports anything else, so it is enough to bound what one browser adds.

- W3C. A report with the sum l takes at least ``l / scale`` epsilon of its site's budget in at least one epoch, and at
  least ``2 l / scale`` of the budget for all sites (a value is no less than what it is divided into). So a browser adds
  to all sums of S sites at most ``scale epochs min(S site_budget, global_budget / 2)``. Its own ledger, which charges
  what a report really holds, mostly shows far less: but what that is nobody outside may know, so the most is charged.
  Impressions of D days lie in at most ``ceil(D / epoch_days) + 1`` epochs, as each browser begins its own at random.
- Event-level reports. Every source answers, so that their number and keys are in the open: only labels are protected,
  under replace-label. One row's label decides at most two states, of the source that a conversion is taken from and of
  the one that it is given to, so it costs two randomized responses.
- Summary reports. A source adds at most 65,536 to all sums, and of a browser at most ``sources_per_unit`` add anything.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from accounting import mechanisms
from accounting.budget import Neighbors
from privads.noise import Randomness
from privads.noise_tables import bernoulli, laplace_distance
from privads.run_config import AttributionTable
from privads.signals.attribute import (
    Converted,
    Shown,
    contributions_of,
    estimated,
    share_of_budget,
    states_of,
    w3c_sums,
)
from privads.signals.event_reports import EventReports, largest_epsilon
from privads.signals.interface import Answered, Interface, Loss, laplace_law, with_laplace
from privads.signals.summary_reports import CONTRIBUTION_BUDGET, null_reports, summed
from privads.signals.w3c import DAY, MICRO, Conversion, Limits, noise_scale

Floats = NDArray[np.float64]

CAPS_BITS = {"navigation": 11.5, "event": 6.5}
"""What one answer may tell of a source, by how it was shown: a click, or a view."""

_MOST_SEEN = 1 << 26
"""Cells times states of an event-level report, which are counted side by side."""

_SERVICE = "https://sums.example"


def interface_of(asked: AttributionTable, *, cells: int, high: float) -> Interface:
    """Returns the interface that is asked for. cells: that are shown. high: the largest value of a conversion."""
    if asked.api == "w3c":
        return W3c(asked=asked, cells=cells, high=high)
    if asked.api == "event":
        return EventLevel(asked=asked, cells=cells, high=high)
    return Summaries(asked=asked, cells=cells, high=high)


@dataclass(frozen=True, kw_only=True)
class W3c:
    """W3C Attribution Level 1: histograms of browsers with budgets of their own, and noise on their sum."""

    asked: AttributionTable
    cells: int
    high: float
    neighbors: Neighbors = "add-remove"

    @property
    def units(self) -> Mapping[str, float]:
        """Conversions, or steps of their value."""
        asked = self.asked
        return {"conversions": 1.0} if asked.value is None else {asked.value: self.high / asked.value_steps}

    @property
    def scale(self) -> float:
        """Of the noise on each sum, in steps."""
        return noise_scale(epsilon=self.asked.epsilon, most_value=self._most_value)

    @property
    def sensitivity(self) -> int:
        """By how much one browser changes all sums together at most, in steps (L1)."""
        limits = self._limits
        of_an_epoch = min(Fraction(self._sites * limits.site_budget), Fraction(limits.global_budget, 2)) / MICRO
        # a deduction is computed in floating point, and may be a part in 10^15 too small
        return max(math.floor(Fraction(self.scale) * of_an_epoch * self.epochs * (1 + Fraction(1, 10**12))), 1)

    @property
    def epochs(self) -> int:
        """In how many epochs of one browser the impressions can lie at most."""
        return math.ceil(self.asked.days / self.asked.epoch_days) + 1

    @property
    def loss(self) -> Loss:
        """Of all its epochs together."""
        return Loss(
            made=mechanisms.discrete_laplace(scale=self.scale, sensitivity=self.sensitivity),
            epsilon=self.sensitivity / self.scale,
            distance=self.cells * laplace_distance(self.scale),
        )

    @property
    def law(self) -> str:
        """Discrete Laplace."""
        return laplace_law(self.scale, self.units)

    @property
    def limits_stated(self) -> Mapping[str, float]:
        """The budget of a site, and beside it that for all."""
        asked = self.asked
        return {
            "epsilon": asked.epsilon,
            "site_budget": asked.site_budget,
            "global_budget": asked.global_budget,
            "impression_site_quota": asked.impression_site_quota,
            "epochs": self.epochs,
        }

    @property
    def remedy(self) -> str:
        """Budgets of epochs."""
        return (
            f"{self.epochs} epochs have attribution.site_budget each, for each of {self._sites} sites, at most half of "
            "global_budget; lower these, or raise plan.epsilon"
        )

    def promise(self, unit: str) -> str:
        """Budgets on devices, by site and for all."""
        asked = self.asked
        return (
            f"by the browsers' own ledgers one site learns at most epsilon {asked.site_budget:g} of one browser in an "
            f"epoch of {asked.epoch_days} days, and all sites together {asked.global_budget:g}. A budget by site alone "
            "is no guarantee where sites act together or adapt to each other's answers (Big Bird, arXiv 2506.05290): "
            f"the one for all is. One {unit} here is one browser of up to {self.epochs} epochs, all of which are "
            "protected as below; who uses two browsers is two of them"
        )

    def check(self) -> None:
        """A histogram has a largest size, and is of one site."""
        asked = self.asked
        if asked.conversion_site is not None and asked.conversion_site not in asked.keys:
            raise ValueError(f"each site has its own sums: name those to be shown, keys.{asked.conversion_site}")
        size, most = self.cells // self._sites, self._limits.most_histogram_size
        if size > most:
            raise ValueError(f"a histogram has at most {most} cells, got {size}")

    def answered(
        self, shown: Shown, converted: Converted, *, randomness: Randomness, insecure_seed: int | None
    ) -> Answered:
        """Sums over browsers."""
        source = random.SystemRandom() if insecure_seed is None else random.Random(insecure_seed)
        conversion = Conversion(
            aggregation_service=_SERVICE,
            histogram_size=1,
            epsilon=self.asked.epsilon,
            most_value=self._most_value,
            credit=self.asked.credit,
            lookback_days=self.asked.lookback_days,
        )
        sums, devices = w3c_sums(
            shown, converted, cells=self.cells, asked=conversion, limits=self._limits, draw=source.random
        )
        seen = {
            "reports": devices.reports,
            "empty reports": devices.empty,
            "most spent of a site's budget": devices.most.site / MICRO,
            "most spent of the budget for all sites": devices.most.everyone / MICRO,
        }
        return with_laplace(sums[:, None], self.scale, seen, randomness)

    @property
    def _limits(self) -> Limits:
        asked = self.asked
        return Limits(
            aggregation_services=[_SERVICE],
            site_budget=round(asked.site_budget * MICRO),
            global_budget=round(asked.global_budget * MICRO),
            impression_site_quota=round(asked.impression_site_quota * MICRO),
            epoch_days=asked.epoch_days,
        )

    @property
    def _most_value(self) -> int:
        return 1 if self.asked.value is None else self.asked.value_steps

    @property
    def _sites(self) -> int:
        return 1 if self.asked.conversion_site is None else len(self.asked.keys[self.asked.conversion_site])


@dataclass(frozen=True, kw_only=True)
class EventLevel:
    """Event-level reports of the Attribution Reporting API: each source answers by randomized response."""

    asked: AttributionTable
    cells: int
    high: float
    neighbors: Neighbors = "replace-label"

    @cached_property
    def reports(self) -> EventReports:
        """Which reports a source may lead to; by default those of its type."""
        default = 3 if self.asked.source_type == "navigation" else 1
        return EventReports(windows=(len(self._windows),) * self._data, most=self.asked.reports or default)

    @property
    def units(self) -> Mapping[str, float]:
        """All reports; and where there are several kinds, those of each trigger datum in each window, both from 0."""
        of_kinds = [f"datum{d}_window{w}" for d in range(self._data) for w in range(len(self._windows))]
        return dict.fromkeys(["reports", *(of_kinds if len(of_kinds) > 1 else [])], 1.0)

    @property
    def loss(self) -> Loss:
        """Of one row's label, which decides two states at most."""
        p = self.reports.randomize_probability(self.asked.epsilon)
        answer = mechanisms.randomized_response(randomize_probability=p, categories=self.reports.states)
        return Loss(
            made=mechanisms.repeated(answer, 2),
            epsilon=2 * self.asked.epsilon,
            distance=2 * bernoulli(self.reports.states, self.asked.epsilon).distance,
        )

    @property
    def law(self) -> str:
        """Randomized response."""
        p = self.reports.randomize_probability(self.asked.epsilon)
        return f"randomized response of {self.reports.states} states, each replaced with probability {p:.6g}; debiased"

    @property
    def limits_stated(self) -> Mapping[str, float]:
        """What an answer tells, and may tell."""
        return {
            "epsilon": self.asked.epsilon,
            "capacity_bits": self.reports.capacity(self.asked.epsilon),
            "cap_bits": CAPS_BITS[self.asked.source_type],
        }

    @property
    def remedy(self) -> str:
        """Twice the interface's epsilon."""
        return "it is twice attribution.epsilon; lower that, or raise plan.epsilon"

    def promise(self, unit: str) -> str:
        """Epsilon for what one ad led to."""
        return (
            f"what one ad led to is answered with epsilon {self.asked.epsilon:g}: who saw n ads is n such units. Which "
            "ads were shown, and their keys, are not protected. A label that changes can take a conversion from one ad "
            f"and give it to another, so the label of one {unit} costs twice that"
        )

    def check(self) -> None:
        """An answer may tell so many bits."""
        asked, states, cap = self.asked, self.reports.states, CAPS_BITS[self.asked.source_type]
        if asked.value_edges and not 0 < asked.value_edges[0] <= asked.value_edges[-1] <= self.high:
            raise ValueError(f"value_edges must be above 0 and at most {self.high:g}, the end of the column's range")
        if self.cells * states > _MOST_SEEN:
            raise ValueError(f"{self.cells} cells of {states} states are too many: name fewer keys, windows or edges")
        told = self.reports.capacity(asked.epsilon)
        if told > cap:
            least = math.floor(largest_epsilon(states, bits=cap) * 1000) / 1000
            raise ValueError(
                f"an answer of {states} states tells {told:.2f} bits of its source, above the cap of {cap} for "
                f"source_type {asked.source_type!r}: lower attribution.epsilon to {least}, or windows, edges or reports"
            )

    def answered(
        self, shown: Shown, converted: Converted, *, randomness: Randomness, insecure_seed: int | None
    ) -> Answered:
        """Counts from answers."""
        reports, epsilon = self.reports, self.asked.epsilon
        ends, edges = [day * DAY for day in self._windows], [edge / self.high for edge in self.asked.value_edges]
        states = states_of(shown, converted, reports=reports, window_ends=ends, edges=edges)
        kinds = np.column_stack([reports.counts.sum(axis=1), reports.counts]).astype(np.float64)
        measures = kinds[:, : len(self.units)]
        exact, inside = np.zeros((self.cells, measures.shape[1])), shown.cells < self.cells
        np.add.at(exact, shown.cells[inside], measures[states[inside]])
        answers = reports.randomized(states, epsilon=epsilon, randomness=randomness)
        noisy, noise_std = estimated(
            shown.cells, answers, cells=self.cells, reports=reports, epsilon=epsilon, measures=measures
        )
        seen = {"sources": len(states), "reports": int(measures[states, 0].sum())}
        return Answered(exact=exact, noisy=noisy, noise_std=noise_std, seen=seen)

    @property
    def _data(self) -> int:
        return len(self.asked.value_edges) + 1

    @property
    def _windows(self) -> list[int]:
        """The ends of the windows in days; by default those of the source's type, up to its expiry."""
        asked = self.asked
        first = [2, 7] if asked.source_type == "navigation" else []
        return asked.windows_days or [*(day for day in first if day < asked.lookback_days), asked.lookback_days]


@dataclass(frozen=True, kw_only=True)
class Summaries:
    """Summary reports of the Attribution Reporting API: sums of contributions within sources' budgets, and noise."""

    asked: AttributionTable
    cells: int
    high: float
    neighbors: Neighbors = "add-remove"

    @property
    def units(self) -> Mapping[str, float]:
        """Conversions, and their value where there is one."""
        asked, count = self.asked, {"conversions": 1 / self._share}
        return count if asked.value is None else {**count, asked.value: self.high / self._share}

    @property
    def scale(self) -> float:
        """Of the noise on each sum, in steps."""
        return CONTRIBUTION_BUDGET / self.asked.epsilon

    @property
    def loss(self) -> Loss:
        """Of all sources that count of one unit."""
        sensitivity = CONTRIBUTION_BUDGET * self.asked.sources_per_unit
        return Loss(
            made=mechanisms.discrete_laplace(scale=self.scale, sensitivity=sensitivity),
            epsilon=sensitivity / self.scale,
            distance=self.cells * len(self.units) * laplace_distance(self.scale),
        )

    @property
    def law(self) -> str:
        """Discrete Laplace."""
        return laplace_law(self.scale, self.units)

    @property
    def limits_stated(self) -> Mapping[str, float]:
        """A source's budget, and how many reports it is divided into."""
        return {
            "epsilon": self.asked.epsilon,
            "contribution_budget": CONTRIBUTION_BUDGET,
            "reports_per_source": self.asked.reports or 1,
            "sources_per_unit": self.asked.sources_per_unit,
        }

    @property
    def remedy(self) -> str:
        """So many times the interface's epsilon."""
        return "it is attribution.epsilon times sources_per_unit; lower one of them, or raise plan.epsilon"

    def promise(self, unit: str) -> str:
        """A budget for one source."""
        return (
            f"one ad that was shown adds at most {CONTRIBUTION_BUDGET:,} to all sums together, epsilon "
            f"{self.asked.epsilon:g}: who saw n ads is n such units. Of one {unit} at most "
            f"{self.asked.sources_per_unit} ads add anything, and all of them together are protected as below"
        )

    def check(self) -> None:
        """Every column and key was checked."""

    def answered(
        self, shown: Shown, converted: Converted, *, randomness: Randomness, insecure_seed: int | None
    ) -> Answered:
        """Sums over sources."""
        asked, measures = self.asked, len(self.units)
        made = contributions_of(
            shown,
            converted,
            lookback=asked.lookback_days * DAY,
            sources_per_browser=asked.sources_per_unit,
            count=self._share,
            value=None if asked.value is None else self._share,
            cells=self.cells,
        )
        keys = range(self.cells * measures)
        sums = summed(made.sources, made.reports, made.keys, made.values, declared=keys)
        nulls = null_reports(made.source_days, source_time=asked.source_time, randomness=randomness)
        reported = int((made.source_days >= 0).sum())
        seen = {"conversions": len(made.source_days), "reports": reported, "null reports": int(nulls.sum())}
        return with_laplace(sums.reshape(measures, self.cells).T, self.scale, seen, randomness)

    @property
    def _share(self) -> int:
        return share_of_budget(self.asked.reports or 1, with_value=self.asked.value is not None)
