"""The kinds of values that a report is made of, and what its blocks have in common."""

import json
import math
from datetime import UTC
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
)

from accounting.report.passwords import without_passwords


def canonical(value: Any) -> str:
    """Returns the one form in which JSON is written: sorted keys, two spaces, UTF-8 as it is, a newline at the end."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


Verdict = Literal["private", "conditional", "violated", "not private"]
"""The headline in one word. `conditional`: it rests on assertions, or on assumptions that nobody stated."""

# Line breaks and control characters (the headline is one line), and marks that reorder what a reviewer sees.
_UNSEEN = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"


def _plain(values: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Returns a copy that JSON can write (NaN is refused), with passwords in URLs replaced by stars."""
    copy: dict[str, JsonValue] = json.loads(json.dumps(values, allow_nan=False))
    return {name: without_passwords(value) for name, value in copy.items()}


def _none_if_not_finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Text = Annotated[str, StringConstraints(pattern=rf"^[^\s{_UNSEEN}][^{_UNSEEN}]*$")]
Json = Annotated[dict[str, JsonValue], AfterValidator(_plain)]
Time = Annotated[AwareDatetime, AfterValidator(lambda time: time.astimezone(UTC))]
Amount = Annotated[float, Field(ge=0)]
AmountOrNone = Annotated[Amount | None, BeforeValidator(_none_if_not_finite)]
FiniteOrNone = Annotated[float | None, BeforeValidator(_none_if_not_finite)]
Delta = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A block of a report: frozen, and closed to keys that it does not know."""

    # from_attributes: a block may be given as any object with its fields, such as the evaluation's metrics
    # use_attribute_docstrings: what stands below a field is its description in the JSON Schema
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, from_attributes=True, use_attribute_docstrings=True
    )
