"""The findings of a report: SARIF's own rules for a file, and that a finding is neither lost nor made up."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from accounting.report.record import Assumption, Report
from accounting.report.sarif import sarif
from tests.accounting.report.sample import ASSERTED, CHECKED, ENFORCED, VIOLATED, audit, data, report, run

SCHEMA = Path(__file__).resolve().parents[3] / "build/sarif/sarif-2.1.0-rtm.5.json"
"""Fetched by `make sarif`."""
CONTRADICTION = audit(epsilon_lower=3.5, verdict="violation")
VARIANTS = {
    "sound": report(audit=[audit()]),
    "doubtful": report(assumptions=[ENFORCED, ASSERTED, VIOLATED], audit=[audit(), CONTRADICTION]),
    "seeded": report(assumptions=[], run=run(insecure_seed=3)),
    "without privacy": report(guarantee=None, budget=None),
    "public baseline": report(guarantee=None, budget=None, data=data(public=True)),
    "hostile": report(assumptions=[Assumption(text='[see](http://x) "{0}" é \\', status="asserted", by="a")]),
}
EXPECTED = {
    "sound": [],
    "doubtful": [("assumption-violated", "error"), ("audit-violation", "error"), ("assumption-asserted", "warning")],
    "seeded": [("not-private", "error"), ("assumptions-not-stated", "warning")],
    "without privacy": [("not-private", "error")],
    "public baseline": [("not-private", "note")],
    "hostile": [("assumption-asserted", "warning")],
}
variants = pytest.mark.parametrize("made", VARIANTS.values(), ids=VARIANTS.keys())

# What sections 3.13 to 3.49 of SARIF 2.1.0 name, of the objects used here; they are closed but for property bags.
ALLOWED = {
    "log": {"$schema", "version", "runs"},
    "run": {"tool", "automationDetails", "results", "properties"},
    "driver": {"name", "version", "rules"},
    "rule": {"id", "shortDescription", "help", "defaultConfiguration"},
    "result": {"ruleId", "ruleIndex", "kind", "level", "message", "locations", "partialFingerprints"},
}
LEVELS = {"none", "note", "warning", "error"}


def read(made: Report, uri: str = "runs/a/report.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sarif(made, source=made.to_json(), uri=uri))
    return found


@variants
def test_it_is_a_sarif_file_by_the_standards_rules(made: Report) -> None:
    log = read(made)
    assert log["version"] == "2.1.0"
    assert set(log) == ALLOWED["log"]
    (one,) = log["runs"]
    assert set(one) == ALLOWED["run"]
    driver = one["tool"]["driver"]
    assert set(driver) == ALLOWED["driver"]
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(ids) == len(set(ids)), "3.19.23: an id names one rule"
    for rule in driver["rules"]:
        assert set(rule) == ALLOWED["rule"]
        assert rule["defaultConfiguration"]["level"] in LEVELS
        assert rule["shortDescription"]["text"]
        assert rule["help"]["text"]
    for result in one["results"]:
        assert set(result) == ALLOWED["result"]
        assert ids[result["ruleIndex"]] == result["ruleId"], "3.27.6"
        assert result["level"] in LEVELS
        assert result["level"] != "none", "3.27.10: none is for results that are not failures"
        assert result["kind"] == "fail"
        assert result["message"]["text"]
        (location,) = result["locations"]
        assert set(location) == {"physicalLocation"}
        assert location["physicalLocation"]["region"]["startLine"] >= 1
        assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in result["partialFingerprints"].values())


@variants
def test_it_passes_the_published_json_schema(made: Report) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    if not SCHEMA.is_file():
        pytest.skip("SARIF's schema is not there: make sarif")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(schema).validate(read(made))


@pytest.mark.parametrize("name", VARIANTS)
def test_each_finding_is_there_once_and_at_its_level(name: str) -> None:
    results = read(VARIANTS[name])["runs"][0]["results"]
    assert [(one["ruleId"], one["level"]) for one in results] == EXPECTED[name]


def test_a_finding_points_to_its_line_of_the_file_as_it_is() -> None:
    made = VARIANTS["doubtful"]
    source = "\n\n" + made.to_json()  # as an older privads would have written it: other lines
    places = [
        one["locations"][0]["physicalLocation"]
        for one in json.loads(sarif(made, source=source, uri="runs/a/report.json"))["runs"][0]["results"]
    ]
    assert {place["artifactLocation"]["uri"] for place in places} == {"runs/a/report.json"}
    lines = [source.splitlines()[place["region"]["startLine"] - 1].strip() for place in places]
    assert lines == [f'"text": "{VIOLATED.text}"', '"method": "one-run audit",', f'"text": "{ASSERTED.text}"']


def test_an_audit_that_contradicts_the_claim_is_said_with_both_figures() -> None:
    message = read(VARIANTS["doubtful"])["runs"][0]["results"][1]["message"]["text"]
    assert "epsilon >= 3.50 (delta 1e-06, user, add/remove, what the attacker saw) at 95 % confidence" in message
    assert "the claim is epsilon <= 2.98 (delta 1e-06, user, add/remove, final model)" in message


def test_the_same_finding_of_a_later_run_has_the_same_fingerprint() -> None:
    def prints(made: Report) -> list[str]:
        return [one["partialFingerprints"]["finding/v1"] for one in read(made)["runs"][0]["results"]]

    first = report(assumptions=[ASSERTED, VIOLATED], run=run(insecure_seed=3))
    later = report(assumptions=[CHECKED, VIOLATED, ASSERTED], run=run(id="later"))
    other = report(assumptions=[ASSERTED], data=data(dataset="clicks"))
    assert prints(first) == prints(later)
    assert len(set(prints(first))) == 2
    assert not set(prints(other)) & set(prints(first))
    seeded = [report(assumptions=[], run=run(id=name, insecure_seed=3)) for name in ("a", "b")]
    assert prints(seeded[0]) == prints(seeded[1])


def test_what_a_message_says_is_no_link_and_no_placeholder() -> None:
    """Sections 3.11.5 and 3.11.6: braces are placeholders and `[text](target)` is a link, also in plain text."""
    message = read(VARIANTS["hostile"])["runs"][0]["results"][0]["message"]["text"]
    assert "{{0}}" in message
    assert "](" not in message.replace("\\](", "")
