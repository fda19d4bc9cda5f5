"""What is wrong with a run's promise, as SARIF 2.1.0 (OASIS, errata 01): the file that CI viewers of findings read.

A finding is an assumption that is violated or that rests on a person's word, an audit that contradicts the claim, and
a run that protects nobody. A run without findings is an empty list of results.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from accounting.report.record import Report

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


class Rule(NamedTuple):
    """What is looked for: its id, how bad it is (SARIF's level), what it is in short, and what to do about it."""

    id: str
    level: str
    name: str
    help: str


RULES = (
    Rule(
        "assumption-violated", "error", "An assumption of the promise does not hold", "Nothing is promised: train anew."
    ),
    Rule("audit-violation", "error", "An audit proves more than the claim", "Look for the bug; do not use the model."),
    Rule("not-private", "error", "The run protects nobody", "Train with a budget, and without an insecure seed."),
    Rule(
        "assumption-asserted",
        "warning",
        "An assumption rests on a person's word",
        "Have it enforced or checked by code, or review whose word it is.",
    ),
    Rule("assumptions-not-stated", "warning", "The report states no assumptions", "State what the promise rests on."),
)


class Finding(NamedTuple):
    """One result. about: a text of the report that says where in it the finding is."""

    rule: str
    message: str
    about: str


def sarif(report: Report, *, source: str, uri: str) -> str:
    """Returns the findings of a report as the text of a SARIF file.

    source: the report's JSON as its file has it, for the line that each finding is in. uri: where that file is.
    """
    run = report.run
    driver = {"name": "privads", "version": run.library_version, "rules": [_described(rule) for rule in RULES]}
    log = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "automationDetails": {"id": f"privads/{report.data.dataset}/{run.id}"},
                "results": [_result(one, report, source, uri) for one in findings(report)],
                "properties": {"headline": report.headline, "verdict": report.verdict},
            }
        ],
    }
    return json.dumps(log, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def findings(report: Report) -> Iterator[Finding]:
    """Yields what is wrong, in the order of `RULES`."""
    for one in report.assumptions:
        if one.status == "violated":
            yield Finding("assumption-violated", f"Violated, found by {one.by}: {one.text}", one.text)
    for audit in report.contradictions:
        claim = "nothing" if report.guarantee is None else report.guarantee.phrase()
        yield Finding("audit-violation", f"{report.proved(audit)}; the claim is {claim}", audit.method)
    if report.verdict == "not private":
        yield Finding("not-private", report.headline, report.run.id)
    for one in report.assumptions:
        if one.status == "asserted":
            yield Finding("assumption-asserted", f"Asserted by {one.by}: {one.text}", one.text)
    if report.guarantee is not None and not report.assumptions:
        yield Finding("assumptions-not-stated", report.headline, report.run.id)


def _described(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.name},
        "help": {"text": rule.help},
        "defaultConfiguration": {"level": rule.level},
    }


def _result(finding: Finding, report: Report, source: str, uri: str) -> dict[str, Any]:
    number, rule = next((i, rule) for i, rule in enumerate(RULES) if rule.id == finding.rule)
    place = {"artifactLocation": {"uri": uri}, "region": {"startLine": _line(source, finding.about)}}
    # The same finding in the next run's report is the same to a viewer: neither run nor figures are in it.
    told_by = f"{report.data.dataset}/{finding.rule}/{'' if finding.about == report.run.id else finding.about}"
    return {
        "ruleId": rule.id,
        "ruleIndex": number,
        "kind": "fail",
        "level": "note" if rule.id == "not-private" and report.data.public else rule.level,
        "message": {"text": _plain(finding.message)},
        "locations": [{"physicalLocation": place}],
        "partialFingerprints": {"finding/v1": hashlib.sha256(told_by.encode()).hexdigest()},
    }


def _plain(text: str) -> str:
    """Returns ``text`` for where SARIF would read placeholders in braces and links (sections 3.11.5 and 3.11.6)."""
    return text.replace("{", "{{").replace("}", "}}").replace("](", "\\](")


def _line(source: str, text: str) -> int:
    """Returns the number of the first line of a report's JSON that holds ``text`` as a value."""
    value = json.dumps(text, ensure_ascii=False)
    lines = enumerate(source.splitlines(), start=1)
    return next((number for number, line in lines if line.rstrip(",").endswith(f": {value}")), 1)
