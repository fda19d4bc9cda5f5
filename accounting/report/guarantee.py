"""What a run promises, and how that figure came about: the claim, its accountant, and the same loss in other terms."""

import math
from typing import Annotated, Self

from pydantic import Field, model_validator

from accounting.budget import Neighbors
from accounting.report.fields import Amount, AmountOrNone, Count, Delta, Positive, Record, Text
from accounting.report.phrase import NOT_STATED, bound, round_down, round_up

Share = Annotated[float, Field(ge=0, le=1)]


class Accountant(Record):
    """Who turned the event into an epsilon."""

    method: Text
    grid: Positive | None
    library: Text
    version: Text


class ProfilePoint(Record):
    """The same mechanism's epsilon at another delta."""

    delta: Delta
    epsilon: Amount


class AfterSteps(Record):
    """The epsilon of the first so many steps, at the claim's delta."""

    steps: Count
    epsilon: Amount


class RenyiPoint(Record):
    """An upper bound on the mechanism's Renyi divergence of one order."""

    order: Annotated[float, Field(gt=1)]
    divergence: Amount


class GaussianFit(Record):
    """The Gaussian mechanism of sensitivity ``mu`` and noise 1 that loses at least as much as the run, at deltas down
    to 1e-9: a figure to compare runs by, not a promise. ``error``: what the best tests of the two differ by at most,
    in the share of presences that they miss at one share of false alarms.
    """

    mu: Amount
    error: Share


class Detection(Record):
    """The largest share of a unit's presences that any test finds, if it is wrong about so many absences."""

    false_positive_rate: Share
    true_positive_rate: Share


class Guarantee(Record):
    """What the run promises: (epsilon, delta) for a unit and its neighbors, on what was released.

    ``zcdp_rho``, ``renyi``, ``gaussian``, ``detection``: the same loss in other terms, where they are known.
    ``public_quantities``: facts that neighbors share, and that were used and may be shown as they are; ``unprotected``:
    what of a unit's own data the promise leaves out. None: not stated; none of them is an empty list.
    """

    epsilon: Amount
    """An upper bound."""
    epsilon_lower: Amount | None = None
    """The accountant's certified lower end; None where none was computed."""
    delta: Delta
    unit: Text
    unit_columns: tuple[Text, ...]
    neighbors: Neighbors
    neighbors_definition: Text
    released: Text
    accountant: Accountant
    epsilon_without_amplification: AmountOrNone = None
    """The figure without trust in the sampler; None where there is no finite one."""
    profile: tuple[ProfilePoint, ...] = ()
    curve: tuple[ProfilePoint, ...] = ()
    """The same for a plot: many deltas, each a bound that is a little looser than one of ``profile``."""
    delta_reason: Text = NOT_STATED
    over_steps: tuple[AfterSteps, ...] = ()
    zcdp_rho: AmountOrNone = None
    renyi: tuple[RenyiPoint, ...] = ()
    gaussian: GaussianFit | None = None
    detection: tuple[Detection, ...] = ()
    public_quantities: tuple[Text, ...] | None = None
    unprotected: tuple[Text, ...] | None = None

    @model_validator(mode="after")
    def _ends_in_order(self) -> Self:
        if self.epsilon_lower is not None and self.epsilon_lower > self.epsilon:
            raise ValueError(f"epsilon_lower {self.epsilon_lower} is above epsilon {self.epsilon}")
        return self

    def phrase(self) -> str:
        """Returns the claim in one line; the command line and every report print this."""
        return self.phrase_of(self.epsilon)

    def phrase_of(self, epsilon: float, *, delta: float | None = None, relation: str = "<=") -> str:
        """Returns another figure of the same mechanism (a profile point, a lower end) with its terms."""
        return bound(
            epsilon,
            delta=self.delta if delta is None else delta,
            unit=self.unit,
            neighbors=self.neighbors,
            released=self.released,
            relation=relation,
        )

    def interval(self) -> str | None:
        """Returns the interval that the mechanism's least epsilon is in, each end rounded outwards; None if unknown."""
        if self.epsilon_lower is None:
            return None
        return f"[{round_down(self.epsilon_lower)}, {round_up(self.epsilon)}]"

    def protects(self) -> str:
        """Returns what the figure means, as one plain sentence.

        Whoever holds both cases equally likely is right with probability at most
        ``(exp(epsilon) + delta) / (exp(epsilon) + 1)``: error rates a, b of a test obey
        ``a + exp(epsilon) b >= 1 - delta`` and the same with a, b swapped (Kairouz et al. 2015, theorem 2.1).
        """
        right = (1 + self.delta * math.exp(-self.epsilon)) / (1 + math.exp(-self.epsilon))
        percent = min(math.ceil(right * 1000) / 10, 100.0)
        return (
            f"Someone who sees the {self.released}, knows the data of everyone else and holds it equally "
            f"likely that {self._one_unit} took part or did not, guesses which with at most "
            f"{percent:.1f} % accuracy (a coin toss: 50 %)."
        )

    @property
    def _one_unit(self) -> str:
        return "one row" if self.unit == "example" else f"all rows of one {self.unit}"
