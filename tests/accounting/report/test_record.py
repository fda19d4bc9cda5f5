import json
import math
import types
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError

from accounting.budget import Budget
from accounting.report.guarantee import ProfilePoint
from accounting.report.phrase import bound, round_up
from accounting.report.record import Mechanism, Report
from accounting.report.scores import Interval, Scores, TaskMetrics
from tests.accounting.report import sample
from tests.accounting.report.sample import (
    ASSERTED,
    CHECKED,
    ENFORCED,
    VIOLATED,
    WITHOUT_COST,
    data,
    guarantee,
    report,
    run,
    started_from,
)

CLAIM = "epsilon <= 2.98 (delta 1e-06, user, add/remove, final model)"


def mechanism(**fields: Any) -> Mechanism:
    return Mechanism(**{**sample.BLOCKS["mechanism"].model_dump(), **fields})


@pytest.mark.parametrize(
    ("epsilon", "printed"),
    [
        (2.98, "2.98"),
        (2.9801, "2.99"),
        (2.9714, "2.98"),
        (3, "3.00"),
        (0.101, "0.11"),
        (0.1, "0.10"),
        (0.09991, "0.1"),
        (0.012301, "0.0124"),
        (0.0123, "0.0123"),
        (0.00000123456, "1.24e-06"),
        (12345.678, "12345.68"),
        (1e300, "1" + "0" * 300 + ".00"),
        (0.0, "0"),
    ],
)
def test_a_printed_epsilon_is_rounded_up(epsilon: float, printed: str) -> None:
    assert round_up(epsilon) == printed


def test_a_printed_bound_is_never_below_the_number() -> None:
    for k in range(1, 4000):
        epsilon = k * 0.00137
        assert epsilon <= float(round_up(epsilon)) * (1 + 1e-15)
        assert float(round_up(epsilon)) - epsilon < max(0.01, 0.01 * epsilon) + 1e-12


def test_a_lower_end_and_what_is_left_are_rounded_down() -> None:
    terms = {"unit": "user", "neighbors": "add-remove", "released": "final model"}
    assert bound(2.9799, delta=1e-6, relation=">=", **terms).startswith("epsilon >= 2.97 (")
    assert bound(2.9799, delta=9.999e-7, relation="=", **terms).startswith("epsilon = 2.97 (delta 9.99e-07,")


def test_a_printed_delta_is_rounded_up() -> None:
    assert "(delta 1.01e-06, " in guarantee(delta=1.0004e-6).phrase()


def test_the_phrase_holds_epsilon_delta_unit_neighbors_and_what_was_released() -> None:
    assert guarantee(epsilon=2.98).phrase() == CLAIM
    assert guarantee(epsilon=2.9801).phrase() == CLAIM.replace("2.98", "2.99")


@pytest.mark.parametrize("delta", [1e-5, 1e-7, 0.001, 2.5e-9])
def test_the_phrase_states_the_terms_as_the_budget_does(delta: float) -> None:
    assert Budget(epsilon=3.0, delta=delta, unit="user").terms in guarantee(delta=delta).phrase()


def test_the_headline_is_the_phrase_when_every_assumption_holds() -> None:
    assert report(assumptions=[ENFORCED, CHECKED]).headline == CLAIM
    assert report(assumptions=[ENFORCED, CHECKED]).verdict == "private"


def test_the_headline_states_the_interval_of_epsilon_rounded_outwards() -> None:
    made = report(guarantee=guarantee(epsilon_lower=2.9388))
    assert made.headline == f"{CLAIM} — the exact figure is in [2.93, 2.98]"
    assert made.verdict == "private"


@pytest.mark.parametrize("assumptions", [[ENFORCED], [ASSERTED], [VIOLATED]])
def test_a_report_from_before_headlines_stated_intervals_is_still_read(assumptions: list[Any]) -> None:
    made = report(guarantee=guarantee(epsilon_lower=2.9388), assumptions=assumptions)
    before = report(assumptions=assumptions).headline
    fields = {**json.loads(made.to_json()), "headline": before}
    assert Report.from_json(json.dumps(fields)) == made
    with pytest.raises(ValueError, match="headline"):
        Report.from_json(json.dumps({**fields, "headline": before.replace("2.98", "2.97")}))


def test_an_asserted_assumption_changes_the_headline() -> None:
    made = report(assumptions=[ENFORCED, ASSERTED])
    assert made.headline == f"{CLAIM} — rests on 1 asserted assumption: {ASSERTED.text}"
    assert made.verdict == "conditional"


def test_every_asserted_assumption_stands_in_the_headline() -> None:
    other = ASSERTED.model_copy(update={"text": "nobody sees the losses"})
    headline = report(assumptions=[ASSERTED, other]).headline
    assert headline.endswith(f"rests on 2 asserted assumptions: {ASSERTED.text}; nobody sees the losses")


def test_a_violated_assumption_comes_first_in_the_headline() -> None:
    made = report(assumptions=[ENFORCED, VIOLATED])
    assert made.headline == f"VIOLATED: {CLAIM} — does not hold: 1 violated assumption: {VIOLATED.text}"
    assert made.verdict == "violated"


def test_a_promise_without_stated_assumptions_says_so() -> None:
    made = report(assumptions=[])
    assert made.headline == f"{CLAIM} — its assumptions are not stated"
    assert made.verdict == "conditional"


@pytest.mark.parametrize("seed", [0, 7])
def test_an_insecure_seed_is_in_the_headline(seed: int) -> None:
    made = report(run=run(insecure_seed=seed), data=data(public=True))
    assert made.headline == f"NOT PRIVATE TO ANYONE WHO KNOWS THE SEED: {CLAIM} — public data (ads-2026q4)"
    assert made.verdict == "not private"


def test_violation_and_insecure_seed_both_stand_in_the_headline() -> None:
    made = report(run=run(insecure_seed=0), assumptions=[VIOLATED])
    assert made.headline.startswith(f"VIOLATED: NOT PRIVATE TO ANYONE WHO KNOWS THE SEED: {CLAIM}")
    assert made.verdict == "violated"


def test_the_headline_says_that_an_earlier_run_is_in_the_weights_and_not_in_the_figure() -> None:
    note = "goes on from run 2026-11-21T10-30-00-77aa, which is not counted here"
    later = run(started_from=[started_from(), started_from(run="older")])
    assert report(run=later).headline == f"{CLAIM} — {note}"
    assert report(run=later).verdict == report().verdict
    assert f" — {note} — public data" in report(run=later, data=data(public=True)).headline
    assert report(guarantee=None, budget=None, run=later).headline.endswith(f"without differential privacy — {note}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epsilon": None}, "together or not at all"),
        ({"delta": None}, "together or not at all"),
        ({"unit": None}, "together or not at all"),
        ({"neighbors": None}, "together or not at all"),
        ({"entry": None}, "charged to no ledger"),
    ],
)
def test_an_earlier_run_is_stated_whole_or_not(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        started_from(**fields)
    assert started_from(**WITHOUT_COST, same_ledger=False).cost == "no privacy"


def test_a_report_from_before_runs_went_on_from_others_is_still_read() -> None:
    fields = json.loads(report().to_json())
    assert fields["run"].pop("started_from") == []
    assert Report.from_json(json.dumps(fields)) == report()


def test_a_report_from_before_the_blocks_of_today_is_still_read() -> None:
    fields = json.loads(report().to_json())
    for name in ("audit", "covered", "product", "setting", "security", "justification"):
        del fields[name]
    for block, names in {
        "guarantee": sample.IN_OTHER_TERMS,
        "run": ("library_commit", "author"),
        "mechanism": ("bounded_by", "implementation"),
        "budget": ("open_entries", "blocks", "refresh"),
    }.items():
        for name in names:
            del fields[block][name]
    assert Report.from_json(json.dumps(fields)) == report()


@pytest.mark.parametrize("public", [True, False])
def test_a_run_without_privacy_is_not_private(public: bool) -> None:
    made = report(guarantee=None, budget=None, data=data(public=public))
    note = " — public data (ads-2026q4)" if public else ""
    assert made.headline == f"NOT PRIVATE — trained without differential privacy{note}"
    assert made.verdict == "not private"


def test_accuracy_of_the_best_guess_is_the_definition_s() -> None:
    # randomized response that tells the truth with probability e^2 / (1 + e^2) = 88.08 % attains the bound
    assert "at most 88.1 % accuracy" in guarantee(epsilon=2.0, epsilon_lower=None, delta=1e-9).protects()
    assert "at most 50.1 % accuracy" in guarantee(epsilon=0.0, epsilon_lower=None, delta=1e-9).protects()
    assert "at most 100.0 % accuracy" in guarantee(epsilon=800.0).protects()


def test_json_round_trip_gives_the_same_report_and_the_same_bytes() -> None:
    later = run(started_from=[started_from()])
    full = report(audit=[sample.audit()], guarantee=guarantee(**sample.IN_OTHER_TERMS), **sample.STATED)
    bare = report(guarantee=None, budget=None)
    for made in (report(), bare, report(metrics=[], not_covered=[]), report(run=later), full):
        again = Report.from_json(made.to_json())
        assert again == made
        assert again.to_json() == made.to_json()


def test_json_is_canonical() -> None:
    made = report(run=run(config={"b": 1, "a": {"d": 2, "c": "é"}}))
    assert made.to_json() == report(run=run(config={"a": {"c": "é", "d": 2}, "b": 1})).to_json()
    text = made.to_json()
    assert '"é"' in text
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    assert json.loads(text)["run"]["created_at"] == "2026-11-22T10:31:07Z"
    assert json.loads(text)["report_version"] == "1"
    assert json.loads(text)["headline"] == made.headline


def test_time_is_written_in_utc_and_a_time_without_zone_is_refused() -> None:
    there = datetime(2026, 11, 22, 12, 31, 7, tzinfo=timezone(timedelta(hours=2)))
    assert run(created_at=there).created_at == datetime(2026, 11, 22, 10, 31, 7, tzinfo=UTC)
    assert '"2026-11-22T10:31:07Z"' in run(created_at=there).model_dump_json()
    with pytest.raises(ValidationError):
        run(created_at="2026-11-22T10:31:07")


@pytest.mark.parametrize(
    "path", [(), ("run",), ("guarantee", "accountant"), ("metrics", 0, "scores"), ("assumptions", 0)]
)
def test_an_unknown_key_is_refused(path: tuple[str | int, ...]) -> None:
    fields = json.loads(report().to_json())
    block = fields
    for key in path:
        block = block[key]
    block["epsilon_2"] = 1.0
    with pytest.raises(ValidationError, match="epsilon_2"):
        Report.from_json(json.dumps(fields))


def test_a_headline_that_the_facts_do_not_bear_is_refused() -> None:
    text = report().to_json()
    for changed in (
        text.replace("epsilon <= 2.98", "epsilon <= 0.98"),
        text.replace('"epsilon": 2.9714', '"epsilon": 5.0'),
        text.replace('"status": "checked"', '"status": "violated"'),
    ):
        assert changed != text
        with pytest.raises(ValueError, match="headline"):
            Report.from_json(changed)
    fields = json.loads(text)
    del fields["headline"]
    with pytest.raises(ValueError, match="headline"):
        Report.from_json(json.dumps(fields))
    with pytest.raises(ValueError, match="one JSON object"):
        Report.from_json("[]")


def test_another_report_version_is_refused() -> None:
    with pytest.raises(ValidationError, match="report_version"):
        Report.from_json(report().to_json().replace('"report_version": "1"', '"report_version": "2"'))


def test_a_report_is_frozen() -> None:
    with pytest.raises(ValidationError):
        report().guarantee = None  # type: ignore[misc]


@pytest.mark.parametrize("text", ["", " ", "two\nlines", "two\u2028lines", "\u202edesrever", "a\x85b"])
def test_blank_texts_and_texts_that_hide_something_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        guarantee(released=text)
    with pytest.raises(ValidationError):
        report(not_covered=[text])


def test_a_password_in_a_url_does_not_reach_the_report() -> None:
    text = report().to_json()
    assert "hunter2" not in text
    assert '"postgresql://trainer:***@budget.internal/ledger"' in text


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://ads:hunt/er2@host/db",
        'postgresql+psycopg://ads:hunt"er2@host/db',
        "postgresql+psycopg://ads:hunt er2@host/db",
        "postgresql+psycopg://ads:hunt:er2@host/db",
        "postgresql+psycopg://ads@host/db?password=hunter2",
        "postgresql+psycopg://ads:hunter2@host/db?sslPassword=hunter2&sslmode=require",
    ],
)
def test_no_password_that_a_url_can_hold_reaches_the_report(url: str) -> None:
    text = run(config={"ledger": [{"url": url}]}).model_dump_json()
    assert "er2" not in text
    assert "***" in text
    assert "postgresql+psycopg://ads" in text


def test_numbers_that_json_cannot_hold_are_refused_or_absent() -> None:
    for bad in (math.inf, math.nan):
        with pytest.raises(ValidationError):
            guarantee(epsilon=bad)
        with pytest.raises(ValidationError):
            run(config={"x": [bad]})
    assert guarantee(epsilon_without_amplification=math.inf).epsilon_without_amplification is None
    assert Interval(value=math.nan, low=math.nan, high=math.nan) == Interval(value=None)


def test_metrics_may_be_any_object_with_the_fields() -> None:
    """The evaluation's records have these names, and the accounting package may not import them."""
    known = sample.BLOCKS["metrics"][0]
    own = types.SimpleNamespace(
        **{n: types.SimpleNamespace(**dict(getattr(known.scores, n))) for n in Scores.model_fields},
        rows=known.rows,
    )
    made = TaskMetrics(
        task="click",
        released=False,
        rows=10_500,
        positives=662,
        scores=own,
        curve=known.curve,  # type: ignore[arg-type]
    )
    assert made.scores == known.scores


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise_std": 1.6}, "noise_std"),
        ({"noise_multiplier": 1.0, "noise_std": 1.5}, "noise_multiplier is 1.0, but the event says 1.1"),
        ({"sampling_rate": 0.1}, "sampling_rate"),
        ({"steps": 41}, "steps is 41, but the event says 40"),
    ],
)
def test_a_mechanism_that_contradicts_its_event_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        mechanism(**fields)


def test_a_guarantee_cannot_rest_on_an_event_without_privacy() -> None:
    open_run = mechanism(
        event={"event": "composed", "of": [{"event": "non-private"}]},
        clip_norm=None,
        noise_multiplier=None,
        noise_std=None,
    )
    assert report(mechanism=open_run, guarantee=None, budget=None).verdict == "not private"
    with pytest.raises(ValidationError, match="without privacy"):
        report(mechanism=open_run)


def test_guarantee_and_charge_must_be_about_the_same_unit() -> None:
    with pytest.raises(ValidationError, match="user-day"):
        report(guarantee=guarantee(unit="user-day"))


def test_a_charge_may_be_turned_into_another_units_cost() -> None:
    converted = sample.BLOCKS["budget"].model_copy(update={"unit": "user-day"})
    assert report(budget=converted).budget.unit == "user-day"


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="epsilon_lower"):
        guarantee(epsilon=1.0, epsilon_lower=1.1)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-6])
def test_a_delta_outside_its_range_is_refused(delta: float) -> None:
    with pytest.raises(ValidationError):
        guarantee(delta=delta)
    with pytest.raises(ValidationError):
        ProfilePoint(delta=delta, epsilon=1.0)


def test_the_schema_describes_the_file() -> None:
    schema = Report.model_json_schema()
    later = run(started_from=[started_from()])
    full = report(audit=[sample.audit()], guarantee=guarantee(**sample.IN_OTHER_TERMS), **sample.STATED)
    for made in (report(), report(run=later), full, report(guarantee=None, budget=None, metrics=[])):
        fields = json.loads(made.to_json())
        assert faults(fields, schema, schema) == []
    assert faults({**fields, "extra": 1}, schema, schema) == ["extra is unknown"]
    assert faults({k: v for k, v in fields.items() if k != "headline"}, schema, schema) == ["headline is missing"]
    assert faults({**fields, "run": {**fields["run"], "id": 3}}, schema, schema) == ["3 is no string"]


def test_the_schema_keeps_every_object_of_the_report_closed() -> None:
    schema = Report.model_json_schema()
    for name, definition in schema["$defs"].items():
        if "properties" in definition:
            assert definition["additionalProperties"] is False, name


TYPES = {
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
}


def faults(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> list[str]:
    """The part of JSON Schema that the report uses, read from the specification's section 6 and 10."""
    if "$ref" in schema:
        return faults(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        found = [faults(value, option, root) for option in schema["anyOf"]]
        return [] if [] in found else found[0]
    if "type" in schema and not isinstance(value, TYPES[schema["type"]]):
        return [f"{value} is no {schema['type']}"]
    if "const" in schema and value != schema["const"]:
        return [f"{value} is not {schema['const']}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{value} is none of {schema['enum']}"]
    if isinstance(value, list):
        return [fault for item in value for fault in faults(item, schema.get("items", {}), root)]
    if isinstance(value, dict):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
        result = [f"{key} is missing" for key in schema.get("required", []) if key not in value]
        for key, item in value.items():
            if key in known:
                result += faults(item, known[key], root)
            elif rest is False:
                result.append(f"{key} is unknown")
            elif isinstance(rest, dict):
                result += faults(item, rest, root)
        return result
    return []
