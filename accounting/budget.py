"""What a run may cost, and whom the promise protects.

A privacy figure means nothing alone. `Budget` therefore holds epsilon, delta, unit and neighbors together,
and its text form prints all four.
"""

import re
import sys
from dataclasses import dataclass
from typing import Literal, get_args

Neighbors = Literal["add-remove", "replace", "replace-label"]
"""Which pairs of data sets must look alike.

`add-remove`: one has all rows of one unit more than the other. `replace`: all rows of one unit are replaced by others.
`replace-label`: they differ in the label of one row and nothing else is protected; never added to the other two.
"""

PrivacyUnit = str
"""Who is protected: `example` (one row), or the name that the schema gives to its unit columns (`user`, `user-day`)."""

EXAMPLE: PrivacyUnit = "example"
_UNIT_NAME = re.compile(r"[a-z][a-z0-9-]*")


class BudgetExceeded(RuntimeError):  # noqa: N818 - the name that users catch reads as a state, not as an error
    """A charge does not fit under the limit of its data set; nothing was charged and no row was read."""


class LedgerError(RuntimeError):
    """The ledger refuses or cannot be used; the message is one line and names the remedy."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The privacy budget (epsilon, delta) for one unit under one neighboring relation.

    A mechanism M keeps it if for all neighboring data sets D ~ D' and all sets S of outputs
    ``Pr[M(D) in S] <= exp(epsilon) Pr[M(D') in S] + delta`` (Dwork and Roth 2014, definition 2.4).

    epsilon: in (0, inf). delta: in (0, 1). unit: `example`, or the unit name of the schema.
    None of the three has a default, because no value of them is right for everyone.

    >>> print(Budget(epsilon=1.0, delta=1e-7, unit="user"))
    epsilon 1 (delta 1e-07, user, add/remove)
    """

    epsilon: float
    delta: float
    unit: PrivacyUnit
    neighbors: Neighbors = "add-remove"

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_delta(self.delta)
        if not isinstance(self.unit, str) or not _UNIT_NAME.fullmatch(self.unit):
            raise ValueError(f"unit must be a name such as 'user' or 'example', got {self.unit!r}")
        if self.neighbors not in get_args(Neighbors):
            raise ValueError(f"neighbors must be one of {get_args(Neighbors)}, got {self.neighbors!r}")

    def __str__(self) -> str:
        return f"epsilon {self.epsilon:.4g} ({self.terms})"

    def check_population(self, population: int) -> None:
        """Refuse a delta that allows one of so many units to be published outright: 1 / population or more."""
        if self.delta >= 1 / population:
            raise ValueError(
                f"delta must be below 1 / population = {1 / population:.3g}, got {self.delta}: "
                "a larger one would allow one unit to be published outright"
            )

    @property
    def terms(self) -> str:
        """What must stand beside every epsilon: delta, unit and neighbors, as one phrase."""
        return f"delta {self.delta:.3g}, {self.unit}, {self.neighbors.replace('-', '/')}"


def check_epsilon(epsilon: float) -> None:
    """Refuse an epsilon that is not a positive, finite, normal number."""
    _check_amount("epsilon", epsilon)


def check_delta(delta: float) -> None:
    """Refuse a delta outside (0, 1)."""
    _check_amount("delta", delta)
    if delta >= 1:
        raise ValueError(f"delta must be less than 1, got {delta}")


def _check_amount(name: str, value: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 2.3e-308 <= value <= sys.float_info.max:  # from the smallest normal float64
        shown = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a number beyond all others"
        raise ValueError(f"{name} must be a positive finite number, got {shown}")
