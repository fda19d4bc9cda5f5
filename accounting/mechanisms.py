"""Every mechanism that privads executes, as an event an accountant can read.

An event is a frozen `DpEvent` of dp-accounting. It is made by a named function here, never by hand, so that what
a plan executes and what the ledger is charged for are one value. In all of them ``noise_multiplier`` is the noise's
standard deviation divided by the L2 bound on one unit's contribution (its sensitivity under add/remove).

Events are written as JSON with tags of our own: reading a file never looks up a class by a name found in it.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from dp_accounting import dp_event


class UnknownEvent(ValueError):  # noqa: N818
    """The event, or a part of it, is none that privads makes; it is refused, never guessed at."""


def dp_sgd(*, sampling_rate: float, noise_multiplier: float, steps: int) -> dp_event.DpEvent:
    """Returns the event of DP-SGD under Poisson sampling (Abadi et al. 2016, algorithm 1).

    Each of ``steps`` times: every unit joins the batch independently with probability ``sampling_rate`` = q;
    the released value is ``sum_u clip(g_u, C) + N(0, (noise_multiplier C)^2 I)``. Sensitivity C, neighbors add-remove.

    >>> print(to_json(dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=100)))
    {"count":100,"event":"self-composed","of":{"event":"poisson-sampled","of":{"event":"gaussian",\
"noise_multiplier":1.0},"sampling_rate":0.01}}
    """
    return _composed(_sampled(_gaussian(noise_multiplier), sampling_rate), steps)


def non_private() -> dp_event.DpEvent:
    """Returns the event of a run without privacy: its epsilon is infinite and every ledger refuses it."""
    return dp_event.NonPrivateDpEvent()


def to_dict(event: dp_event.DpEvent) -> dict[str, Any]:
    """Returns the event as tagged plain data; raises `UnknownEvent` for anything privads does not make."""
    match event:
        case dp_event.GaussianDpEvent(noise_multiplier=noise_multiplier):
            return {"event": "gaussian", "noise_multiplier": float(noise_multiplier)}
        case dp_event.PoissonSampledDpEvent(sampling_probability=rate, event=inner):
            return {"event": "poisson-sampled", "sampling_rate": float(rate), "of": to_dict(inner)}
        case dp_event.SelfComposedDpEvent(event=inner, count=count):
            if count != int(count):
                raise UnknownEvent(f"nothing is executed {count} times")
            return {"event": "self-composed", "count": int(count), "of": to_dict(inner)}
        case dp_event.NonPrivateDpEvent():
            return {"event": "non-private"}
    raise UnknownEvent(f"{type(event).__name__} is not a mechanism that privads executes")


def from_dict(data: Mapping[str, Any]) -> dp_event.DpEvent:
    """Returns the event that `to_dict` wrote; raises `UnknownEvent` for anything that it does not write.

    A field that is missing, out of range or not known here is refused too: a later release may mean something by it.
    """
    try:
        event = _read(data)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnknownEvent(f"not an event of privads: {data!r}") from error
    if event is None:
        raise UnknownEvent(f"unknown event tag {data['event']!r}")
    if to_dict(event) != data:
        raise UnknownEvent(f"not an event as privads writes it: {data!r}")
    return event


def to_json(event: dp_event.DpEvent) -> str:
    """Returns the event as canonical JSON: sorted keys, no spaces."""
    return json.dumps(to_dict(event), sort_keys=True, separators=(",", ":"))


def from_json(text: str) -> dp_event.DpEvent:
    """Returns the event that `to_json` wrote."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise UnknownEvent(f"not an event of privads: {text!r}")
    return from_dict(data)


def _read(data: Mapping[str, Any]) -> dp_event.DpEvent | None:
    match data["event"]:
        case "gaussian":
            return _gaussian(data["noise_multiplier"])
        case "poisson-sampled":
            return _sampled(from_dict(data["of"]), data["sampling_rate"])
        case "self-composed":
            return _composed(from_dict(data["of"]), data["count"])
        case "non-private":
            return non_private()
    return None


def _gaussian(noise_multiplier: float) -> dp_event.DpEvent:
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError(f"noise_multiplier must be positive and finite, got {noise_multiplier}")
    return dp_event.GaussianDpEvent(float(noise_multiplier))


def _sampled(event: dp_event.DpEvent, sampling_rate: float) -> dp_event.DpEvent:
    if not isinstance(event, dp_event.GaussianDpEvent):
        raise UnknownEvent(f"sampling is accounted for the Gaussian mechanism, not for {type(event).__name__}")
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"sampling_rate must be in (0, 1], got {sampling_rate}")
    return dp_event.PoissonSampledDpEvent(float(sampling_rate), event)


def _composed(event: dp_event.DpEvent, count: int) -> dp_event.DpEvent:
    if count != int(count) or count < 1:
        raise ValueError(f"steps must be a whole number, at least 1, got {count}")
    return dp_event.SelfComposedDpEvent(event, int(count))
