"""Events: made by name, written as data, and refused unless they are exactly what privads writes."""

import doctest
import json
import math

import pytest
from dp_accounting import dp_event

from accounting import mechanisms
from accounting.mechanisms import UnknownEvent, dp_sgd, from_dict, from_json, non_private, to_dict, to_json

EVENTS = [
    dp_event.GaussianDpEvent(0.7),
    dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=100),
    dp_sgd(sampling_rate=1.0, noise_multiplier=0.1 + 0.2, steps=1),
    dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(3.0), 7),
    non_private(),
]
GAUSSIAN = {"event": "gaussian", "noise_multiplier": 1.0}


def test_doctests_run() -> None:
    assert doctest.testmod(mechanisms).failed == 0


def test_dp_sgd_is_a_composition_of_sampled_gaussians() -> None:
    expected = dp_event.SelfComposedDpEvent(dp_event.PoissonSampledDpEvent(0.25, dp_event.GaussianDpEvent(2.0)), 8)
    assert dp_sgd(sampling_rate=0.25, noise_multiplier=2.0, steps=8) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.01},
        {"sampling_rate": math.nan},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": math.nan},
        {"steps": 0},
        {"steps": -3},
        {"steps": 2.7},
    ],
)
def test_dp_sgd_refuses_what_cannot_be_executed(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} must be"):
        dp_sgd(**{"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("event", EVENTS, ids=to_json)
def test_json_and_event_are_an_inverse_pair(event: dp_event.DpEvent) -> None:
    assert from_json(to_json(event)) == event
    assert to_json(from_json(to_json(event))) == to_json(event)


def test_json_is_canonical() -> None:
    text = to_json(EVENTS[1])
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert "\n" not in text


@pytest.mark.parametrize(
    "event",
    [
        dp_event.LaplaceDpEvent(1.0),
        dp_event.NoOpDpEvent(),
        dp_event.ComposedDpEvent([dp_event.GaussianDpEvent(1.0)]),
        dp_event.SelfComposedDpEvent(dp_event.LaplaceDpEvent(1.0), 3),
        dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(1.0), 2.7),  # a fixed bug: it was written as 2
        dp_event.PoissonSampledDpEvent(0.1, dp_event.LaplaceDpEvent(1.0)),
        dp_event.SampledWithoutReplacementDpEvent(100, 10, dp_event.GaussianDpEvent(1.0)),
        "gaussian",
    ],
    ids=str,
)
def test_an_event_that_privads_does_not_make_is_refused(event: dp_event.DpEvent) -> None:
    with pytest.raises(UnknownEvent):
        to_dict(event)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"event": "laplace", "scale": 1.0},
        {"event": "dp_accounting.dp_event.GaussianDpEvent", "noise_multiplier": 1.0},
        {"event": "os.system", "command": "true"},
        {"event": ["gaussian"], "noise_multiplier": 1.0},
        {"event": "gaussian"},
        {"event": "poisson-sampled", "of": GAUSSIAN},
        {"event": "poisson-sampled", "sampling_rate": 0.1},
        {"event": "self-composed", "of": GAUSSIAN},
        {"event": "self-composed", "count": 3},
        {"event": "self-composed", "count": 3, "of": "gaussian"},
        {"event": "self-composed", "count": 3, "of": [GAUSSIAN]},
        # Fixed bugs: values out of range and fields of a later release were read as if they meant nothing.
        {**GAUSSIAN, "neighbors": "replace"},
        {"event": "non-private", "note": "but fine"},
        {"event": "gaussian", "noise_multiplier": "1e9"},
        {"event": "gaussian", "noise_multiplier": -1.0},
        {"event": "gaussian", "noise_multiplier": 0.0},
        {"event": "gaussian", "noise_multiplier": math.nan},
        {"event": "gaussian", "noise_multiplier": math.inf},
        {"event": "poisson-sampled", "sampling_rate": 0.0, "of": GAUSSIAN},
        {"event": "poisson-sampled", "sampling_rate": 2.0, "of": GAUSSIAN},
        {"event": "self-composed", "count": 0, "of": GAUSSIAN},
        {"event": "self-composed", "count": -3, "of": GAUSSIAN},
        {"event": "self-composed", "count": 2.7, "of": GAUSSIAN},
        {"event": "self-composed", "count": math.inf, "of": GAUSSIAN},
        {"event": "self-composed", "count": 3, "of": {"event": "laplace"}},
        # Sampling a composition is another mechanism than composing samples.
        {
            "event": "poisson-sampled",
            "sampling_rate": 0.1,
            "of": {"event": "self-composed", "count": 3, "of": GAUSSIAN},
        },
        {"event": "poisson-sampled", "sampling_rate": 0.1, "of": {"event": "non-private"}},
    ],
    ids=str,
)
def test_data_that_privads_does_not_write_are_refused(data: dict[str, object]) -> None:
    with pytest.raises(UnknownEvent):
        from_dict(data)
    with pytest.raises(UnknownEvent):
        from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "not json", "[]", "null", "3", '"gaussian"', '[{"event":"non-private"}]'])
def test_text_that_is_no_event_is_refused(text: str) -> None:
    with pytest.raises(UnknownEvent, match="not an event of privads"):
        from_json(text)


def test_reading_json_looks_up_no_class(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a name found in a file was looked up")

    for name in ("__import__", "getattr", "eval", "exec"):
        monkeypatch.setattr(mechanisms, name, never, raising=False)
    with pytest.raises(UnknownEvent):
        from_json('{"event":"GaussianDpEvent","noise_multiplier":1.0}')
