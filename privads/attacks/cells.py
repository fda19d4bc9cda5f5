"""Canary units of a noisy table, each in a cell of its own: an audit of the code that makes tables, on made-up rows.

Nothing private is read: the log is made here, of canaries that are each put in by the toss of a fair coin and of others
whose cells are known, and `privads.signals.release` counts it like any log. A canary that is in brings as many rows to
its cell as a unit may, the most that it can move the counts by.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from accounting.audit import Audit, laws, likelihood_ratio, one_run_fdp
from accounting.budget import EXAMPLE, Budget
from privads.attacks.canaries import Canaries, entropy
from privads.logs.raw import Raw
from privads.logs.schema import Schema
from privads.signals.query import OneOf, Query
from privads.signals.release import Release

_COLUMN, _UNIT = "cell", "unit"

_STRAY = 6.0
"""Standard deviations by which a number of cells must be too large to be taken for noise that is missing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TableEvidence:
    """What a table showed of its canaries.

    residuals: (canaries,) each one's released cell, less what the others add to it. included: (canaries,) who was put
    in. shift: the rows that one brings. noise_std: of a cell, as the release states it. epsilon, delta: its claim.
    """

    residuals: NDArray[np.float64]
    included: NDArray[np.bool_]
    shift: int
    noise_std: float
    epsilon: float
    delta: float

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """(canaries,) what speaks for each one's having been put in.

        The residual, which is the best score for Gaussian noise of any size. But where far more cells hold exactly 0,
        or exactly ``shift``, than the value outside of it, their noise is missing, and they hold what was counted.
        """
        scores = self.residuals.copy()
        reach = float(np.abs(scores).max()) + 1
        for exact, certain in ((0, -reach), (self.shift, reach)):
            alike, beside = (int((self.residuals == one).sum()) for one in (exact, exact + np.sign(certain)))
            if alike > 2 * beside + _STRAY * np.sqrt(beside + 1):
                scores[self.residuals == exact] = certain
        return scores

    @cached_property
    def audit(self) -> Audit:
        """The one-run audit in its f-DP form, with 95 % confidence: a table's noise is one Gaussian."""
        return one_run_fdp(self.scores, self.included, claimed_epsilon=self.epsilon, delta=self.delta)

    @cached_property
    def by_law(self) -> Audit:
        """The audit by the law that the noise should have, with 95 % confidence, if cells' noises are independent."""
        return likelihood_ratio(
            self.residuals[~self.included],
            self.residuals[self.included],
            laws.gaussian(noise_std=self.noise_std, shift=float(self.shift)),
            claimed_epsilon=self.epsilon,
            delta=self.delta,
        )


def audit_table(
    budget: Budget, *, canaries: int = 1000, rows_per_unit: int = 1, insecure_seed: int | None = None
) -> TableEvidence:
    """Returns what one table with declared keys shows of its canaries, if it is released under ``budget``.

    rows_per_unit: of the release. Every other cell holds rows of others too, so that cells are seen both empty and not.
    insecure_seed: repeatable coins and noise. Charges nothing. Raises ValueError where the number of canaries does not
    fit, or the budget is none of a table's.

    >>> found = audit_table(Budget(epsilon=3.0, delta=1e-6, unit="unit"), canaries=300, insecure_seed=1)
    >>> found.audit.verdict, found.audit.lower < 3.0
    ('consistent', True)
    """
    generator = entropy(insecure_seed)
    included = Canaries(count=canaries).tossed(generator)
    others = np.where(np.arange(canaries) % 2 == 0, 0, generator.integers(1, 20, canaries))
    keys = tuple(f"c{number}" for number in range(canaries))
    query = Query(by=(OneOf(column=_COLUMN, values=keys),), keys=tuple((key,) for key in keys))
    release = Release.of([query], budget, rows_per_unit=rows_per_unit)
    schema = _schema(budget.unit, canaries + int(others.sum()))
    rows = _MadeUp(schema=schema, keys=keys, included=included, others=others, each=rows_per_unit)
    (table,) = release.run(rows, ledger=None, purpose="audit of made-up rows", insecure_seed=insecure_seed).tables
    return TableEvidence(
        residuals=table.rows - others,
        included=included,
        shift=rows_per_unit,
        noise_std=table.count_std,
        epsilon=release.spent.upper,
        delta=budget.delta,
    )


def _schema(unit: str, units: int) -> Schema:
    return Schema.load(
        {
            "dataset": "made-up rows of an audit",
            "unit": [_UNIT],
            "unit_name": _UNIT if unit == EXAMPLE else unit,
            "population": units,
            "public": True,
            "labels": {"click": "click"},
            "categorical": {_COLUMN: {"buckets": 2}},
        }
    )


@dataclass(frozen=True, kw_only=True)
class _MadeUp:
    """Rows of canaries and others as a `privads.signals.query.Source`."""

    schema: Schema
    keys: tuple[str, ...]
    included: NDArray[np.bool_]
    others: NDArray[np.int64]
    each: int
    features: None = None
    split_text: str = "all rows"

    def check(self) -> None:
        """Nothing can be missing."""

    def raw(self) -> Iterator[Raw]:
        """Yields the rows: of each canary that is in ``each``, of each other unit one."""
        canaries = np.repeat(np.flatnonzero(self.included), self.each)
        places = np.concatenate([canaries, np.repeat(np.arange(len(self.keys)), self.others)])
        units = np.concatenate([canaries, len(self.keys) + np.arange(int(self.others.sum()))])
        yield Raw(
            numbers={},
            texts={_COLUMN: (places, list(self.keys))},
            labels={"click": np.zeros(len(places), dtype=np.float32)},
            observed={"click": np.ones(len(places), dtype=bool)},
            units=[np.array([f"u{one}" for one in units], dtype=object)],
            times=np.zeros(len(places), dtype="datetime64[us]"),
        )
