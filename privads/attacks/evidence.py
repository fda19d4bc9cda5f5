"""What an audited run leaves behind: a score for each canary, and which of them had been put in."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from accounting.accountant import Bounds
from accounting.audit import Audit, one_run
from accounting.budget import Budget
from accounting.report.audits import AuditResult
from privads.attacks.canaries import Canaries, Kind

NOT_COVERED = (
    "What the audit's outcome tells beside what is released: its attacker may know the noise, or what all but the "
    "canaries added, and nothing is charged for its counts."
)
"""Of every audited run: with a released sum, what is known of its noise is known of the rows."""

_NULL = "tested on scores without a leak: wrong in at most 5 % of runs"


class Watching(Protocol):
    """What an audit has seen of a run."""

    @property
    def threat_model(self) -> str:
        """What the attacker sees and knows."""
        ...

    @property
    def blunt(self) -> bool:
        """Whether its canaries are known to show far less than ideal ones: passing them says nothing of the claim."""
        ...

    @property
    def included(self) -> NDArray[np.bool_]:
        """(canaries,) which were put in."""
        ...

    def scores(self, model: nn.Module) -> NDArray[np.float64]:
        """Returns (canaries,) how much speaks for each one's having been put in."""
        ...


class Claim(Protocol):
    """What a plan promises."""

    @property
    def budget(self) -> Budget | None:
        """What the run may cost; None where it promises nothing."""
        ...

    @property
    def spent(self) -> Bounds:
        """Bounds on the epsilon of the whole run."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """The outcome of the game that an audit plays with canaries, before anything is concluded from it.

    scores: (canaries,) the higher, the more speaks for a canary's having been put in. included: (canaries,) which were.
    epsilon, delta: the claim of the run. blunt: whether canaries like these show far less than ideal ones. tossed:
    whether they were put in by fair coins; False where the coins were given.
    """

    kind: Kind
    threat_model: str
    scores: NDArray[np.float64]
    included: NDArray[np.bool_]
    epsilon: float
    delta: float
    blunt: bool = False
    tossed: bool = True

    @classmethod
    def of(cls, watch: Watching, canaries: Canaries, plan: Claim, model: nn.Module) -> "Evidence":
        """Returns the evidence of a run that has ended with ``model``."""
        budget = plan.budget
        if budget is None:
            raise ValueError("a run without privacy makes no claim to audit")
        return cls(
            kind=canaries.kind,
            threat_model=watch.threat_model,
            blunt=watch.blunt,
            tossed=canaries.coins is None,
            scores=np.nan_to_num(watch.scores(model)),  # what is no number speaks for nothing
            included=watch.included,
            epsilon=plan.spent.upper,
            delta=budget.delta,
        )

    @cached_property
    def audit(self) -> Audit:
        """The one-run audit of the claim, with 95 % confidence."""
        return one_run(self.scores, self.included, claimed_epsilon=self.epsilon, delta=self.delta)

    def result(self) -> AuditResult:
        """Returns the audit as the report holds it: an estimate, where coins were given, as no bound holds of those."""
        found = self.audit
        verdict = found.verdict
        if not self.tossed or (self.blunt and verdict == "consistent"):
            verdict = "inconclusive"
        return AuditResult(
            method=f"{found.method} audit",
            threat_model=self.threat_model,
            canaries=found.canaries,
            canary_kind=self.kind if self.tossed else f"{self.kind}, put in by coins that were given",
            in_model=True,
            guesses=found.guesses,
            correct=found.correct,
            significance=found.significance,
            delta=found.delta,
            epsilon_lower=found.lower,
            kind=found.kind if self.tossed else "estimate",
            selection_correction="none needed: one method, and the number of guesses follows from public numbers",
            null_calibration=_NULL,
            verdict=verdict,
            power=None if self.blunt else found.power,
            detectable=None if self.blunt else found.detectable,
        )
