"""What a label may be, as a schema states it: a column of 0 and 1, an event that may come later, or a number."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

MOST_LEVELS = 100
"""An ordinal label has at most so many levels: each is an output of the model."""


class Facts(BaseModel):
    """Public facts, which nothing changes and where a key that is not known is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EventLabel(Facts):
    """A column of 0 and 1, with what is known of it. rate: about how often it is 1, where a model begins (by default
    one half): a public statement, worth it where events are rare.
    """

    column: str
    rate: float | None = Field(default=None, gt=0, lt=1)


class DelayedLabel(Facts):
    """A label that is 1 if the event at column ``time`` came within ``within_hours`` of the impression.

    rate: about how often it does, as for an `EventLabel`.
    waiting: rows whose window is still open take part in training too, with how long each has waited; else their label
    is unobserved. median_hours: half of the events come within so many hours, a public statement; without it the delays
    are learned beside the label (`privads.models.heads`).
    """

    time: str
    within_hours: float = Field(gt=0, le=1e6)
    rate: float | None = Field(default=None, gt=0, lt=1)
    waiting: bool = False
    median_hours: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.median_hours is not None and not (self.waiting and self.median_hours <= self.within_hours / 2):
            raise ValueError(
                "median_hours is about labels that wait, and at most half of within_hours: "
                "add waiting = true, or leave it out"
            )
        return self

    @property
    def column(self) -> str:
        """Where the label is made from."""
        return self.time


class ValueLabel(Facts):
    """A label that is the number in column ``value``: a count, an amount of money, or a level.

    kind: count, a whole number from 0; log-normal, an amount from 0; ordinal, a level from 1 to ``most``. most: larger
    numbers count as this one, of levels they are misfits. typical: about how large a number above 0 is, where a model
    begins; unless stated 1 for counts and the square root of ``most`` for amounts, but at most half of it. All are
    public statements.
    """

    value: str
    kind: Literal["count", "log-normal", "ordinal"]
    most: float = Field(gt=0, le=1e9)
    typical: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "ordinal" and not (self.most.is_integer() and 2 <= self.most <= MOST_LEVELS):
            raise ValueError(f"most must be the number of levels, from 2 to {MOST_LEVELS}, got {self.most:g}")
        if self.typical is not None and self.kind == "ordinal":
            raise ValueError("typical is about counts and amounts: levels have none")
        if self.typical is not None and self.typical >= self.most:
            raise ValueError(f"typical must be below most, {self.most:g}, got {self.typical:g}")
        return self

    @property
    def column(self) -> str:
        """Where the label is made from."""
        return self.value


def _kind_of_label(stated: Any) -> str:
    match stated:
        case ValueLabel():
            return "number"
        case Mapping() if {"value", "kind", "most", "typical"} & set(stated):
            return "number"
        case EventLabel():
            return "event"
        case Mapping() if "column" in stated:
            return "event"
        case DelayedLabel() | Mapping():
            return "delayed"
    return "column"


Label = Annotated[
    Annotated[str, Tag("column")]
    | Annotated[EventLabel, Tag("event")]
    | Annotated[DelayedLabel, Tag("delayed")]
    | Annotated[ValueLabel, Tag("number")],
    Discriminator(_kind_of_label),
]
"""A column of 0 and 1, an event that may come later, or a number. By what is stated, so that an error names its key."""
