"""What attacks on a run proved, as a report holds it: a lower bound beside the claim, and what it could have proved."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from accounting.report.fields import Amount, AmountOrNone, Count, Record, Text
from accounting.report.phrase import NOT_STATED

AuditVerdict = Literal["consistent", "violation", "inconclusive"]
"""Whether the claim stands: nothing above it was proved; more than it was proved; or the attack could have proved
next to nothing.
"""


class AuditResult(Record):
    """One attack on a run. Canaries are data that were planted for it; it guesses of each whether it was trained on.

    ``epsilon_lower`` is at ``delta``, and holds with a confidence of ``1 - significance`` where ``kind`` is "bound"; an
    "estimate" proves nothing, and so contradicts nothing. ``power``: the figure that the same attack reaches on average
    on a correct run of the claimed epsilon with ideal canaries, which real ones fall short of: a bound far below the
    claim says little where even that is far below it. ``detectable``: the least true epsilon of ideal canaries that
    contradicts the claim in 95 % of runs; None where none does, too.
    ``null_calibration``: how often the method is wrong on runs that leak nothing.
    """

    method: Text
    threat_model: Text
    """What the attacker sees: every noised sum, the final model, what it answers."""
    canaries: Count
    canary_kind: Text
    in_model: bool = False
    """Whether the model that is handed out has learned from canaries."""
    guesses: Count | None = None
    correct: Count | None = None
    significance: Annotated[float, Field(gt=0, lt=1)]
    delta: Annotated[float, Field(ge=0, lt=1)]
    epsilon_lower: Amount
    kind: Literal["bound", "estimate"] = "bound"
    selection_correction: Text = NOT_STATED
    """What was paid for choosing among methods, thresholds or numbers of guesses after seeing the scores."""
    null_calibration: Text = NOT_STATED
    verdict: AuditVerdict
    power: AmountOrNone = None
    detectable: AmountOrNone = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        guesses, correct = self.guesses, self.correct
        if (guesses is None) != (correct is None) or (guesses is not None and not (correct or 0) <= guesses):
            raise ValueError(
                f"{correct} of {guesses} guesses cannot be correct: state both, the first at most the second"
            )
        if self.kind == "estimate" and self.verdict == "violation":
            raise ValueError("an estimate is no bound, and contradicts no claim: its verdict cannot be 'violation'")
        return self

    @property
    def confidence(self) -> str:
        """How sure the bound is, in words."""
        return f"{100 * (1 - self.significance):.4g} % confidence"
