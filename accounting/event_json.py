"""Which events there are, what their fields may be, and how they are written as JSON.

One table holds a row for each event: its tag, the class behind the tag, and a range for each field. Making an event,
writing it and reading it all go through that table, so what cannot be made cannot be read either. The tags are our
own: reading a file never looks up a class by a name found in it.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dp_accounting import dp_event

MOST_COUNT = 2**53
"""Whole numbers up to here have a float each; more executions are refused than can be counted."""

LEAST_AMOUNT, MOST_AMOUNT = 1e-100, 1e100
"""Amounts whose squares are still floats, with room for as many as `MOST_COUNT` of them."""

MOST_NESTED = 100
"""Levels of events within events."""


class UnknownEvent(ValueError):  # noqa: N818
    """The event, or a part of it, is none that privads makes or that can be accounted; it is refused, never guessed."""


@dataclass(frozen=True)
class ApproximateDpEvent(dp_event.DpEvent):  # type: ignore[misc]
    """Any mechanism of which nothing is known but that it is (epsilon, delta)-DP."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class DiscreteGaussianDpEvent(dp_event.DpEvent):  # type: ignore[misc]
    """The discrete Gaussian mechanism: a whole number plus z with ``P[z] ~ exp(-z^2 / (2 noise_std^2))``.

    One unit changes the number by at most ``sensitivity``.
    """

    noise_std: float
    sensitivity: int


@dataclass(frozen=True)
class BallsInBinsDpEvent(dp_event.DpEvent):  # type: ignore[misc]
    """One epoch of Gaussian sums over ``bins`` batches, of which each unit joins one, chosen uniformly by itself."""

    noise_multiplier: float
    bins: int


@dataclass(frozen=True)
class _Field:
    """One field of an event: its name here and in JSON, its name in the class, and how a value is checked."""

    name: str
    attribute: str
    check: Callable[[str, Any], Any]


@dataclass(frozen=True)
class _Kind:
    made: Callable[..., dp_event.DpEvent]
    fields: tuple[_Field, ...]


def build(tag: str, **values: Any) -> dp_event.DpEvent:
    """Returns the event with this tag; raises ValueError for a value out of its range."""
    event = _assembled(tag, values)
    to_dict(event)
    return event


def _assembled(tag: str, values: Mapping[str, Any]) -> dp_event.DpEvent:
    """Returns the event with its own fields checked, and not those of the events within it."""
    kind = _KINDS[tag]
    event = kind.made(**{field.attribute: field.check(field.name, values[field.name]) for field in kind.fields})
    _check_whole(event)
    return event


def to_dict(event: dp_event.DpEvent) -> dict[str, Any]:
    """Returns the event as tagged plain data; raises `UnknownEvent` for anything privads does not make."""
    return _written(event, MOST_NESTED)


def _written(event: dp_event.DpEvent, levels: int) -> dict[str, Any]:
    _check_levels(levels)
    tag = _TAGS.get(type(event))
    if tag is None:
        raise UnknownEvent(f"{type(event).__name__} is not a mechanism that privads executes")
    try:
        values = {f.name: f.check(f.name, getattr(event, f.attribute)) for f in _KINDS[tag].fields}
        _check_whole(event)
    except UnknownEvent:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise UnknownEvent(f"not a mechanism that privads executes: {tag}, {error}") from error
    return {"event": tag, **{name: _plain(value, levels - 1) for name, value in values.items()}}


def from_dict(data: Mapping[str, Any]) -> dp_event.DpEvent:
    """Returns the event that `to_dict` wrote; raises `UnknownEvent` for anything that it does not write.

    A field that is missing, out of range or not known here is refused too: a later release may mean something by it.
    """
    event = _made(data, MOST_NESTED)
    if to_dict(event) != data:
        raise UnknownEvent(f"not an event as privads writes it: {data!r}")
    return event


def _made(data: Mapping[str, Any], levels: int) -> dp_event.DpEvent:
    _check_levels(levels)
    try:
        kind = _KINDS.get(data["event"])
        if kind is None:
            raise UnknownEvent(f"unknown event tag {data['event']!r}")
        return _assembled(data["event"], {f.name: _read(data[f.name], levels - 1) for f in kind.fields})
    except UnknownEvent:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnknownEvent(f"not an event of privads: {data!r}") from error


def to_json(event: dp_event.DpEvent) -> str:
    """Returns the event as canonical JSON: sorted keys, no spaces."""
    return json.dumps(to_dict(event), sort_keys=True, separators=(",", ":"), allow_nan=False)


def from_json(text: str) -> dp_event.DpEvent:
    """Returns the event that `to_json` wrote."""
    try:
        data = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError:
        data = None
    except RecursionError:
        _check_levels(0)
    if not isinstance(data, dict):
        raise UnknownEvent(f"not an event of privads: {text!r}")
    return from_dict(data)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        raise UnknownEvent(f"a key stands twice among {[key for key, _ in pairs]}")
    return read


def _check_levels(levels: int) -> None:
    if levels <= 0:
        raise UnknownEvent(f"events are nested more than {MOST_NESTED} deep")


def _plain(value: Any, levels: int) -> Any:
    if isinstance(value, dp_event.DpEvent):
        return _written(value, levels)
    if isinstance(value, tuple):
        return [_plain(item, levels) for item in value]
    return "infinity" if value == math.inf else value


def _read(value: Any, levels: int) -> Any:
    if isinstance(value, dict):
        return _made(value, levels)
    if isinstance(value, list):
        _check_levels(levels)
        return tuple(_read(item, levels - 1) for item in value)
    return math.inf if value == "infinity" else value


def _number(accepts: Callable[[float], bool], range_name: str) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        if isinstance(value, str | bool) or not accepts(value):
            raise ValueError(f"{name} must be {range_name}, got {value}")
        return float(value)

    return check


def _whole(least: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if isinstance(value, str | bool) or not least <= value <= MOST_COUNT or value != int(value):
            raise ValueError(f"{name} must be a whole number from {least} to 2^53, got {value}")
        return int(value)

    return check


def _numbers(check: Callable[[str, Any], float]) -> Callable[[str, Any], tuple[float, ...]]:
    return lambda name, values: tuple(check(name, value) for value in values)


def _event(name: str, value: Any) -> dp_event.DpEvent:
    if type(value) not in _TAGS:
        raise UnknownEvent(f"{type(value).__name__} is not a mechanism that privads executes")
    return value


def _events(name: str, values: Any) -> tuple[dp_event.DpEvent, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ValueError("a composition needs at least one event")
    return tuple(_event(name, value) for value in values)


def _sampleable(name: str, value: Any) -> dp_event.DpEvent:
    """One Gaussian, or several on one sample. Sampling anything else is another mechanism than those accounted."""
    inner = value.events if isinstance(value, dp_event.ComposedDpEvent) else (value,)
    if not all(isinstance(each, dp_event.GaussianDpEvent) for each in inner):
        raise UnknownEvent(f"sampling is accounted for Gaussian mechanisms, not for {type(value).__name__}")
    return _event(name, value)


def _check_whole(event: dp_event.DpEvent) -> None:
    """Refuse fields that are in range one by one and not together."""
    match event:
        case dp_event.MixtureOfGaussiansDpEvent(sensitivities=shifts, sampling_probs=weights):
            if len(shifts) != len(weights) or not shifts or not math.isclose(math.fsum(weights), 1.0, rel_tol=1e-9):
                raise ValueError("sampling_probs must be one for each of sensitivities and sum to 1")
            if list(shifts) != sorted(set(shifts)) or max(shifts) <= 0:
                raise ValueError("sensitivities must rise and end above 0")
        case dp_event.RepeatAndSelectDpEvent(mean=mean):
            if mean < 1:  # so rarely does a Poisson number of them run that its theorem does not hold
                raise ValueError(f"mean_trials must be at least 1, got {mean}")
        case dp_event.ZCDpEvent(xi=xi):
            if xi != 0:
                raise ValueError(f"xi must be 0, got {xi}")
        case dp_event.TruncatedSubsampledGaussianDpEvent(dataset_size=population, truncated_batch_size=largest):
            if largest > population:
                raise ValueError(f"largest_batch must be at most population, {population}, got {largest}")


_POSITIVE = _number(lambda x: LEAST_AMOUNT <= x <= MOST_AMOUNT, f"from {LEAST_AMOUNT} to {MOST_AMOUNT}")
_NOT_NEGATIVE = _number(lambda x: 0 <= x <= MOST_AMOUNT, f"from 0 to {MOST_AMOUNT}")
_RATE = _number(lambda x: 0 < x <= 1, "in (0, 1]")
_CHANCE = _number(lambda x: 0 <= x <= 1, "in [0, 1]")
_FAILURE = _number(lambda x: 0 <= x < 1, "in [0, 1)")
_SHAPE = _number(lambda x: 0 <= x <= MOST_AMOUNT or x == math.inf, f"from 0 to {MOST_AMOUNT}, or infinity")
_ONCE, _TWICE = _whole(1), _whole(2)

_NOISE = _Field("noise_multiplier", "noise_multiplier", _POSITIVE)
_SAMPLED = _Field("sampling_rate", "sampling_probability", _RATE)
_SENSITIVITY = _Field("sensitivity", "sensitivity", _ONCE)

_ROWS: tuple[tuple[str, Callable[..., dp_event.DpEvent], tuple[_Field, ...]], ...] = (
    ("non-private", dp_event.NonPrivateDpEvent, ()),
    ("gaussian", dp_event.GaussianDpEvent, (_NOISE,)),
    ("laplace", dp_event.LaplaceDpEvent, (_NOISE,)),
    (
        "discrete-laplace",
        dp_event.DiscreteLaplaceDpEvent,
        (_Field("noise_parameter", "noise_parameter", _POSITIVE), _SENSITIVITY),
    ),
    ("discrete-gaussian", DiscreteGaussianDpEvent, (_Field("noise_std", "noise_std", _POSITIVE), _SENSITIVITY)),
    (
        "randomized-response",
        dp_event.RandomizedResponseDpEvent,
        (_Field("randomize_probability", "noise_parameter", _RATE), _Field("categories", "num_buckets", _TWICE)),
    ),
    (
        "approximate-dp",
        ApproximateDpEvent,
        (_Field("epsilon", "epsilon", _NOT_NEGATIVE), _Field("delta", "delta", _FAILURE)),
    ),
    ("zcdp", dp_event.ZCDpEvent, (_Field("rho", "rho", _POSITIVE),)),
    (
        "poisson-sampled",
        dp_event.PoissonSampledDpEvent,
        (_SAMPLED, _Field("of", "event", _sampleable)),
    ),
    (
        "truncated-poisson-gaussian",
        dp_event.TruncatedSubsampledGaussianDpEvent,
        (
            _SAMPLED,
            _NOISE,
            _Field("population", "dataset_size", _ONCE),
            _Field("largest_batch", "truncated_batch_size", _ONCE),
        ),
    ),
    (
        "mixture-of-gaussians",
        dp_event.MixtureOfGaussiansDpEvent,
        (
            _Field("noise_multiplier", "standard_deviation", _POSITIVE),
            _Field("sensitivities", "sensitivities", _numbers(_NOT_NEGATIVE)),
            _Field("sampling_probs", "sampling_probs", _numbers(_CHANCE)),
        ),
    ),
    ("balls-in-bins-gaussian", BallsInBinsDpEvent, (_NOISE, _Field("bins", "bins", _ONCE))),
    (
        "private-selection",
        dp_event.RepeatAndSelectDpEvent,
        (_Field("mean_trials", "mean", _POSITIVE), _Field("shape", "shape", _SHAPE), _Field("of", "event", _event)),
    ),
    ("composed", dp_event.ComposedDpEvent, (_Field("of", "events", _events),)),
    (
        "self-composed",
        dp_event.SelfComposedDpEvent,
        (_Field("count", "count", _ONCE), _Field("of", "event", _event)),
    ),
)
_KINDS: dict[str, _Kind] = {tag: _Kind(made, fields) for tag, made, fields in _ROWS}
_TAGS: dict[object, str] = {made: tag for tag, made, _ in _ROWS}
