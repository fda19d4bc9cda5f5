"""Whether to sample and clip whole units, or their rows one by one: which needs less noise, before any data are read.

Both protect a unit of k rows. With an expected B rows in a batch, of N units, the sampling rate is ``q = B / (k N)`` in
either case (Charles et al. 2024, arXiv 2407.07737):

- "unit": units are sampled, and the sum of a unit's rows is clipped whole. The noise multiplier is `dp_sgd`'s.
- "row": rows are sampled, each is clipped to C, and the owner of k of them is accounted for: `user_dp_sgd`'s.

A row's gradient has length C. If two rows of a unit have gradients with cosine rho on average, the unit's sum is ``C
sqrt(k + k (k - 1) rho)`` long, and has to be left that long to tell as much: so the noise is in proportion to it.
"""

import math
from dataclasses import dataclass
from typing import Literal

from accounting import calibrate, mechanisms
from accounting.budget import Budget

Level = Literal["unit", "row"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The noise of either level at the same budget, steps and expected number of rows.

    unit_noise_std, row_noise_std: of the noise in a batch's sum of gradients, as a multiple of a row's length C; those
    of the mean are these, divided by the expected number of rows. Neither knows what clipping does to the signal.
    """

    records: int
    similarity: float
    unit_noise_multiplier: float
    row_noise_multiplier: float

    @property
    def unit_noise_std(self) -> float:
        """``s_unit sqrt(k + k (k - 1) rho)``."""
        return self.unit_noise_multiplier * math.sqrt(max(0.0, _squared_length(self.records, self.similarity)))

    @property
    def row_noise_std(self) -> float:
        """``s_row``."""
        return self.row_noise_multiplier

    @property
    def crossover(self) -> float:
        """The similarity at which both are equal: ``((s_row / s_unit)^2 - k) / (k (k - 1))``.

        Below it units are better. Outside [-1 / (k - 1), 1], which k vectors can have, one level always is.
        """
        k = self.records
        return ((self.row_noise_multiplier / self.unit_noise_multiplier) ** 2 - k) / (k * (k - 1))

    @property
    def better(self) -> Level:
        """The level with less noise; "unit" where they are equal."""
        return "unit" if self.unit_noise_std <= self.row_noise_std else "row"


def compare(budget: Budget, *, sampling_rate: float, steps: int, records: int, similarity: float) -> Comparison:
    """Returns the comparison of both levels for units of ``records`` = k >= 2 rows.

    sampling_rate: ``B / (k N)``, in (0, 1]. similarity: the mean cosine rho of two rows' gradients of one unit, in
    [-1 / (k - 1), 1], assumed and not measured: measuring it on private rows costs privacy. Near 0 where a unit's rows
    have little in common, near 1 where they are copies. Raises ValueError for what is out of range, and where no noise
    keeps the budget.

    >>> budget = Budget(epsilon=1.0, delta=1e-6, unit="user")
    >>> found = compare(budget, sampling_rate=0.01, steps=1000, records=8, similarity=0.2)
    >>> found.better, f"{found.unit_noise_std:.2f} {found.row_noise_std:.2f} {found.crossover:.2f}"
    ('unit', '6.85 10.78 0.71')
    """
    if isinstance(records, bool) or not isinstance(records, int) or records < 2:
        raise ValueError(f"records must be a whole number of at least 2, got {records!r}: one row is its unit")
    if not -1 / (records - 1) <= similarity <= 1:
        raise ValueError(
            f"similarity must be in [-1 / (records - 1), 1] = [{-1 / (records - 1):.3g}, 1], got {similarity}"
        )
    if budget.neighbors != "add-remove":
        raise ValueError(f"both levels are accounted for neighbors 'add-remove', not {budget.neighbors!r}")
    return Comparison(
        records=records,
        similarity=similarity,
        unit_noise_multiplier=calibrate.noise_multiplier(
            lambda s: mechanisms.dp_sgd(sampling_rate=sampling_rate, noise_multiplier=s, steps=steps), budget
        ),
        row_noise_multiplier=calibrate.noise_multiplier(
            lambda s: mechanisms.user_dp_sgd(
                sampling_rate=sampling_rate, noise_multiplier=s, steps=steps, records=records
            ),
            budget,
        ),
    )


def _squared_length(records: int, similarity: float) -> float:
    return records + records * (records - 1) * similarity
