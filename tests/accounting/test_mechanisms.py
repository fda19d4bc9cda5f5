"""Events: made by name, written as data, and refused unless they are exactly what privads writes."""

import doctest
import json
import math
import time
from collections.abc import Callable
from fractions import Fraction

import mpmath
import pytest
from dp_accounting import dp_event
from scipy.stats import binom

from accounting import event_json, mechanisms
from accounting.mechanisms import (
    ApproximateDpEvent,
    DiscreteGaussianDpEvent,
    UnknownEvent,
    approximate_dp,
    balls_in_bins_dp_sgd,
    composed,
    discrete_gaussian,
    discrete_laplace,
    dp_sgd,
    from_dict,
    from_json,
    gaussian,
    joint_dp_sgd,
    laplace,
    merged_noise,
    non_private,
    parts,
    private_selection,
    pure_epsilon,
    randomized_response,
    repeated,
    replaced,
    to_dict,
    to_json,
    truncated_dp_sgd,
    unsampled,
    user_dp_sgd,
    user_level,
    zcdp,
)

TRUNCATED = {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 5, "population": 1000, "largest_batch": 120}
BINS = {"noise_multiplier": 1.0, "bins": 1000, "epochs": 10}
ONE_OF_EACH: dict[str, dp_event.DpEvent] = {
    "gaussian": gaussian(noise_multiplier=0.7),
    "dp-sgd": dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=100),
    "full batch": dp_sgd(sampling_rate=1.0, noise_multiplier=0.1 + 0.2, steps=1),
    "joint": joint_dp_sgd(sampling_rate=0.01, noise_multipliers=[1.1, 9.0], steps=100),
    "truncated": truncated_dp_sgd(**TRUNCATED),  # type: ignore[arg-type]
    "balls in bins": balls_in_bins_dp_sgd(**BINS),
    "user": user_dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=100, records=3),
    "laplace": laplace(noise_multiplier=2.0),
    "discrete laplace": discrete_laplace(scale=3.0, sensitivity=2),
    "discrete gaussian": discrete_gaussian(noise_std=4.0, sensitivity=2),
    "randomized response": randomized_response(randomize_probability=0.5, categories=4),
    "approximate": approximate_dp(epsilon=0.5, delta=1e-7),
    "pure": approximate_dp(epsilon=0.5, delta=0),
    "zcdp": zcdp(rho=0.1),
    "selection": private_selection(zcdp(rho=0.1), mean_trials=10, shape=1),
    "poisson selection": private_selection(zcdp(rho=0.1), mean_trials=10, shape=math.inf),
    "mix": composed(zcdp(rho=0.1), repeated(laplace(noise_multiplier=2.0), 3), gaussian(noise_multiplier=1.0)),
    "repeated": repeated(gaussian(noise_multiplier=3.0), 7),
    "non-private": non_private(),
}
GAUSSIAN = {"event": "gaussian", "noise_multiplier": 1.0}
MIXTURE = {"event": "mixture-of-gaussians", "noise_multiplier": 1.0}


def test_doctests_run() -> None:
    assert doctest.testmod(mechanisms).failed == 0


def test_dp_sgd_is_a_composition_of_sampled_gaussians() -> None:
    expected = dp_event.SelfComposedDpEvent(dp_event.PoissonSampledDpEvent(0.25, dp_event.GaussianDpEvent(2.0)), 8)
    assert dp_sgd(sampling_rate=0.25, noise_multiplier=2.0, steps=8) == expected


def test_several_gaussians_of_one_step_see_one_sample() -> None:
    event = joint_dp_sgd(sampling_rate=0.25, noise_multipliers=[3.0, 4.0], steps=8)
    assert isinstance(event.event, dp_event.PoissonSampledDpEvent)
    assert [each.noise_multiplier for each in event.event.event.events] == [3.0, 4.0]
    # 1/9 + 1/16 = (5/12)^2
    assert merged_noise(event.event.event) == pytest.approx(12 / 5)


def test_a_truncated_batch_keeps_its_four_numbers() -> None:
    event = truncated_dp_sgd(**TRUNCATED)  # type: ignore[arg-type]
    assert event == dp_event.SelfComposedDpEvent(dp_event.TruncatedSubsampledGaussianDpEvent(1000, 0.1, 120, 1.0), 5)


def test_a_user_loses_a_binomial_mixture_of_gaussians() -> None:
    event = user_dp_sgd(sampling_rate=0.2, noise_multiplier=1.5, steps=9, records=2)
    assert event.count == 9
    assert event.event.standard_deviation == 1.5
    assert event.event.sensitivities == (0.0, 1.0, 2.0)
    assert event.event.sampling_probs == pytest.approx((0.64, 0.32, 0.04))


@pytest.mark.parametrize(
    ("make", "good", "wrong"),
    [
        (dp_sgd, {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10}, {"sampling_rate": 0.0}),
        (dp_sgd, {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10}, {"sampling_rate": 1.01}),
        (dp_sgd, {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10}, {"sampling_rate": math.nan}),
        (dp_sgd, {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10}, {"noise_multiplier": 0.0}),
        (dp_sgd, {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10}, {"noise_multiplier": -1.0}),
        (dp_sgd, {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10}, {"noise_multiplier": math.inf}),
        (dp_sgd, {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10}, {"noise_multiplier": math.nan}),
        (dp_sgd, {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10}, {"steps": 0}),
        (dp_sgd, {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10}, {"steps": -3}),
        (dp_sgd, {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10}, {"steps": 2.7}),
        (dp_sgd, {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10}, {"steps": math.inf}),
        (truncated_dp_sgd, TRUNCATED, {"population": 0}),
        (truncated_dp_sgd, TRUNCATED, {"largest_batch": 0}),
        (truncated_dp_sgd, TRUNCATED, {"largest_batch": 1001}),
        (user_dp_sgd, {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 1, "records": 2}, {"records": 0}),
        (user_dp_sgd, {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 1, "records": 2}, {"records": 1.5}),
        (balls_in_bins_dp_sgd, BINS, {"bins": 0}),
        (balls_in_bins_dp_sgd, BINS, {"bins": 1.5}),
        (balls_in_bins_dp_sgd, BINS, {"epochs": 0}),
        (balls_in_bins_dp_sgd, BINS, {"noise_multiplier": -1.0}),
        (laplace, {"noise_multiplier": 1.0}, {"noise_multiplier": 0.0}),
        (discrete_laplace, {"scale": 1.0, "sensitivity": 1}, {"scale": 0.0}),
        (discrete_laplace, {"scale": 1.0, "sensitivity": 1}, {"scale": math.nan}),
        (discrete_laplace, {"scale": 1.0, "sensitivity": 1}, {"sensitivity": 0.5}),
        (discrete_gaussian, {"noise_std": 1.0, "sensitivity": 1}, {"noise_std": -1.0}),
        (discrete_gaussian, {"noise_std": 1.0, "sensitivity": 1}, {"sensitivity": 0}),
        (randomized_response, {"randomize_probability": 0.5, "categories": 2}, {"randomize_probability": 0.0}),
        (randomized_response, {"randomize_probability": 0.5, "categories": 2}, {"categories": 1}),
        (approximate_dp, {"epsilon": 1.0, "delta": 0.0}, {"epsilon": -1.0}),
        (approximate_dp, {"epsilon": 1.0, "delta": 0.0}, {"epsilon": math.inf}),
        (approximate_dp, {"epsilon": 1.0, "delta": 0.0}, {"delta": 1.0}),
        (zcdp, {"rho": 1.0}, {"rho": 0.0}),
        # Fixed bugs: amounts whose squares are no floats, and counts above 2^53, ended in an OverflowError.
        (gaussian, {"noise_multiplier": 1.0}, {"noise_multiplier": 1e200}),
        (gaussian, {"noise_multiplier": 1.0}, {"noise_multiplier": 1e-200}),
        (gaussian, {"noise_multiplier": 1.0}, {"noise_multiplier": 10**400}),
        (laplace, {"noise_multiplier": 1.0}, {"noise_multiplier": 1e-310}),
        (discrete_laplace, {"scale": 1.0, "sensitivity": 1}, {"scale": 1e-310}),
        (discrete_gaussian, {"noise_std": 1.0, "sensitivity": 1}, {"sensitivity": 10**400}),
        (approximate_dp, {"epsilon": 1.0, "delta": 0.0}, {"epsilon": 1e308}),
        (dp_sgd, {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10}, {"steps": 2**53 + 1}),
        (dp_sgd, {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10}, {"steps": 10**400}),
    ],
)
def test_what_cannot_be_executed_is_refused(
    make: Callable[..., dp_event.DpEvent], good: dict[str, float], wrong: dict[str, float]
) -> None:
    (name,) = wrong
    make(**good)
    with pytest.raises(ValueError, match=f"{name} must be"):
        make(**{**good, **wrong})


@pytest.mark.parametrize(
    ("mean", "shape"),
    [(0.5, 1), (0.9, math.inf), (0.0, math.inf), (10, -1), (10, math.nan), (10, 1e308), (math.inf, 1)],
)
def test_a_number_of_trials_that_cannot_be_drawn_is_refused(mean: float, shape: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        private_selection(zcdp(rho=0.1), mean_trials=mean, shape=shape)


@pytest.mark.parametrize("event", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_json_and_event_are_an_inverse_pair(event: dp_event.DpEvent) -> None:
    assert from_json(to_json(event)) == event
    assert to_json(from_json(to_json(event))) == to_json(event)
    assert hash(event) == hash(from_json(to_json(event)))


def test_every_event_has_its_own_tag_and_is_in_these_tests() -> None:
    tags = {tag for event in ONE_OF_EACH.values() for tag in json.dumps(to_dict(event)).split('"')}
    assert set(event_json._KINDS) <= tags
    assert len(set(event_json._TAGS)) == len(event_json._KINDS)


def test_json_is_canonical() -> None:
    for event in ONE_OF_EACH.values():
        text = to_json(event)
        assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
        assert "\n" not in text
        assert "Infinity" not in text


@pytest.mark.parametrize(
    "event",
    [
        dp_event.NoOpDpEvent(),
        dp_event.ComposedDpEvent([]),
        dp_event.ComposedDpEvent([dp_event.NoOpDpEvent()]),
        dp_event.LaplaceDpEvent(0.0),
        dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(1.0), 2.7),  # a fixed bug: it was written as 2
        dp_event.PoissonSampledDpEvent(0.1, dp_event.LaplaceDpEvent(1.0)),
        dp_event.PoissonSampledDpEvent(0.1, dp_event.ComposedDpEvent([])),
        dp_event.SampledWithoutReplacementDpEvent(100, 10, dp_event.GaussianDpEvent(1.0)),
        dp_event.SingleEpochTreeAggregationDpEvent(1.0, 3),
        dp_event.ZCDpEvent(rho=1.0, xi=0.5),
        dp_event.MixtureOfGaussiansDpEvent(1.0, [0.0, 1.0], [0.5, 0.6]),
        dp_event.MixtureOfGaussiansDpEvent(1.0, [0.0], [1.0]),
        dp_event.MixtureOfGaussiansDpEvent(1.0, [1.0, 0.0], [0.5, 0.5]),
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
        {"event": "self-composed", "count": True, "of": GAUSSIAN},
        {"event": "composed", "of": []},
        {"event": "composed", "of": GAUSSIAN},
        {"event": "composed", "of": ["gaussian"]},
        # Fixed bugs: values out of range and fields of a later release were read as if they meant nothing.
        {**GAUSSIAN, "neighbors": "replace"},
        {"event": "non-private", "note": "but fine"},
        {"event": "gaussian", "noise_multiplier": "1e9"},
        {"event": "gaussian", "noise_multiplier": "infinity"},
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
        {"event": "approximate-dp", "epsilon": 1.0},
        {"event": "zcdp", "rho": 0.1, "xi": 0.0},
        {"event": "discrete-gaussian", "noise_std": 1.0, "sensitivity": 1.5},
        {"event": "randomized-response", "randomize_probability": 0.0, "categories": 2},
        {"event": "private-selection", "mean_trials": 0.5, "shape": 1.0, "of": {"event": "zcdp", "rho": 0.1}},
        {**MIXTURE, "sensitivities": [0.0, 1.0], "sampling_probs": [1.0]},
        {**MIXTURE, "sensitivities": [0.0, 1.0], "sampling_probs": [0.5, 0.4]},
        {**MIXTURE, "sensitivities": [-1.0, 1.0], "sampling_probs": [0.5, 0.5]},
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


def test_a_key_that_stands_twice_is_refused() -> None:
    """A fixed bug: of two counts the last one was read, so that two readers could take one text for two events."""
    with pytest.raises(UnknownEvent, match="twice"):
        from_json('{"count":2,"count":1,"event":"self-composed","of":{"event":"gaussian","noise_multiplier":1.0}}')


@pytest.mark.parametrize("depth", [40, 200, 5000])
def test_nested_events_take_no_time(depth: int) -> None:
    """A fixed bug: time doubled with each level, and beyond the interpreter's depth a RecursionError came out."""
    text = '{"count":1,"event":"self-composed","of":' * depth + json.dumps(GAUSSIAN) + "}" * depth
    event: dp_event.DpEvent = dp_event.GaussianDpEvent(1.0)
    for _ in range(depth):
        event = dp_event.SelfComposedDpEvent(event, 1)
    started = time.monotonic()
    if depth <= 40:
        assert json.loads(to_json(from_json(text))) == json.loads(text)
        assert parts(event) == [(gaussian(noise_multiplier=1.0), 1)]
    else:
        with pytest.raises(UnknownEvent, match="nested"):
            from_json(text)
        with pytest.raises(UnknownEvent, match="nested"):
            to_json(event)
    assert time.monotonic() - started < 2


def test_more_executions_than_floats_count_are_refused() -> None:
    """A fixed bug: they ended in an OverflowError of numpy's, or in a ValueError of the Fourier transform's."""
    many = repeated(repeated(gaussian(noise_multiplier=1e9), 2**30), 2**30)
    with pytest.raises(UnknownEvent, match="executions"):
        parts(many)


def test_reading_json_looks_up_no_class(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a name found in a file was looked up")

    for name in ("__import__", "eval", "exec", "globals"):
        monkeypatch.setattr(event_json, name, never, raising=False)
    with pytest.raises(UnknownEvent, match="unknown event tag"):
        from_json('{"event":"GaussianDpEvent","noise_multiplier":1.0}')


def test_parts_count_each_mechanism_once_however_it_is_nested() -> None:
    step = dp_sgd(sampling_rate=0.1, noise_multiplier=1.0, steps=1).event
    noisy = laplace(noise_multiplier=2.0)
    event = composed(repeated(composed(step, noisy, step), 5), repeated(repeated(noisy, 2), 3), step)
    assert {to_json(leaf): count for leaf, count in parts(event)} == {to_json(step): 11, to_json(noisy): 11}
    assert parts(event) == parts(composed(repeated(noisy, 11), repeated(step, 11)))


def test_a_group_moves_a_sum_by_as_many_sensitivities() -> None:
    assert user_level(gaussian(noise_multiplier=6.0), 3) == gaussian(noise_multiplier=2.0)
    assert user_level(laplace(noise_multiplier=6.0), 3) == laplace(noise_multiplier=2.0)
    assert user_level(discrete_gaussian(noise_std=2.0, sensitivity=2), 3) == DiscreteGaussianDpEvent(2.0, 6)
    assert user_level(discrete_laplace(scale=2.0, sensitivity=2), 3) == dp_event.DiscreteLaplaceDpEvent(0.5, 6)


def test_group_privacy_of_zcdp_is_quadratic_and_of_pure_dp_linear() -> None:
    assert user_level(zcdp(rho=0.1), 3).rho == pytest.approx(0.9)
    assert user_level(approximate_dp(epsilon=0.1, delta=0), 3) == ApproximateDpEvent(pytest.approx(0.3), 0.0)


def test_group_privacy_of_approximate_dp_adds_up_deltas_that_grow() -> None:
    # One unit after the other: delta, then e^eps delta, then e^(2 eps) delta.
    found = user_level(approximate_dp(epsilon=0.5, delta=1e-6), 3)
    assert found.epsilon == pytest.approx(1.5)
    assert found.delta == pytest.approx(1e-6 * (1 + math.exp(0.5) + math.exp(1.0)))
    assert user_level(approximate_dp(epsilon=0.0, delta=1e-6), 3).delta == pytest.approx(3e-6)
    assert user_level(approximate_dp(epsilon=9.0, delta=1e-6), 3) == non_private()


def test_each_record_answers_randomized_response_for_itself() -> None:
    answer = randomized_response(randomize_probability=0.5, categories=2)
    assert user_level(answer, 4) == repeated(answer, 4)


@pytest.mark.parametrize("records", [2, 5, 40])
def test_sampled_sums_become_a_mixture_over_a_binomial(records: int) -> None:
    event = joint_dp_sgd(sampling_rate=0.03, noise_multipliers=[3.0, 4.0], steps=8)
    found = user_level(composed(event, gaussian(noise_multiplier=1.0)), records)
    mixture, whole = found.events[0].event, found.events[1]
    assert mixture.standard_deviation == pytest.approx(2.4)
    assert mixture.sensitivities == tuple(range(records + 1))
    assert mixture.sampling_probs == pytest.approx(binom.pmf(range(records + 1), records, 0.03))
    assert whole == gaussian(noise_multiplier=1 / records)


@pytest.mark.parametrize("event", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_an_owner_of_one_record_loses_what_the_record_does(event: dp_event.DpEvent) -> None:
    assert user_level(event, 1) == event


@pytest.mark.parametrize("name", ["truncated", "balls in bins", "user", "selection"])
def test_what_has_no_known_group_guarantee_is_refused(name: str) -> None:
    with pytest.raises(UnknownEvent, match="no guarantee for an owner of 2 units is known"):
        user_level(ONE_OF_EACH[name], 2)


def test_a_replaced_unit_is_a_group_of_two_except_where_it_was_sampled_or_answered() -> None:
    for name in ("gaussian", "laplace", "discrete laplace", "discrete gaussian", "zcdp", "approximate", "pure"):
        event = ONE_OF_EACH[name]
        assert replaced(event, "add-remove") == event
        assert replaced(event, "replace") == replaced(event, "replace-label") == user_level(event, 2)
    for name in ("randomized response", "dp-sgd", "truncated", "balls in bins", "user"):
        leaf = parts(ONE_OF_EACH[name])[0][0]
        assert replaced(leaf, "replace") == leaf


def test_without_sampling_every_unit_is_in_every_batch() -> None:
    assert parts(unsampled(ONE_OF_EACH["dp-sgd"])) == [(gaussian(noise_multiplier=1.0), 100)]
    assert parts(unsampled(ONE_OF_EACH["user"])) == [(gaussian(noise_multiplier=1 / 3), 100)]
    assert parts(unsampled(ONE_OF_EACH["truncated"])) == [(gaussian(noise_multiplier=0.5), 5)]
    assert parts(unsampled(ONE_OF_EACH["balls in bins"])) == [(gaussian(noise_multiplier=1.0), 10)]
    both = parts(unsampled(ONE_OF_EACH["joint"]))
    assert both == [(gaussian(noise_multiplier=1.1), 100), (gaussian(noise_multiplier=9.0), 100)]
    assert unsampled(ONE_OF_EACH["laplace"]) == ONE_OF_EACH["laplace"]


@pytest.mark.parametrize("randomized", [0.0056, 0.0016013484, 0.0559935540, 0.37, 0.8145878])
@pytest.mark.parametrize("categories", [2, 3, 10, 1000])
def test_pure_epsilon_is_never_rounded_down(randomized: float, categories: int) -> None:
    """A fixed bug: an ulp too little was claimed with delta 0, or with a delta of 10^-15 that was seven times that."""
    p = Fraction(randomized)
    ratio = (1 - p + p / categories) / (p / categories)
    found = pure_epsilon(randomized_response(randomize_probability=randomized, categories=categories))
    with mpmath.workdps(40):
        exact = mpmath.log(mpmath.mpf(ratio.numerator) / ratio.denominator)
        assert exact <= found <= exact * (1 + mpmath.mpf(2e-15))


def test_pure_epsilon_is_the_largest_ratio_of_chances() -> None:
    # p/k = 1/8 for a wrong answer, 1/2 + 1/8 for the true one.
    assert pure_epsilon(ONE_OF_EACH["randomized response"]) == pytest.approx(math.log(5.0))
    assert pure_epsilon(ONE_OF_EACH["laplace"]) == pytest.approx(0.5)
    assert pure_epsilon(ONE_OF_EACH["discrete laplace"]) == pytest.approx(2 / 3)
    assert pure_epsilon(ONE_OF_EACH["pure"]) == 0.5
    assert pure_epsilon(ONE_OF_EACH["approximate"]) is None
    assert pure_epsilon(ONE_OF_EACH["gaussian"]) is None


def test_an_owner_of_too_many_rows_is_refused_at_once() -> None:
    """A fixed bug: a hundred thousand rows of one owner were accounted for without end."""
    with pytest.raises(UnknownEvent, match="clip all rows of an owner together"):
        user_dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=10, records=100_000)
