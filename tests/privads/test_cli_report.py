"""`privads report`: what it prints of a run, and of two."""

import json
from pathlib import Path

import pytest

from accounting.report import schema
from tests.accounting.report.sample import guarantee, report, run
from tests.privads.test_cli import privads, refused

CLAIM = "epsilon <= 2.98 (delta 1e-06, user, add/remove, final model)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text(report().to_json(), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("form", ["markdown", "html", "json", "registry", "model-card"])
@pytest.mark.parametrize("verb", [(), ("show",)])
def test_it_prints_each_form_with_the_claim(folder: Path, form: str, verb: tuple[str, ...]) -> None:
    done = privads(folder, "report", *verb, "run", "--format", form)
    assert done.returncode == 0, done.stderr
    assert "delta 1e-06, user, add/remove, final model" in done.stdout
    assert privads(folder, "report", "--format", form, "run/report.json").stdout == done.stdout


def test_the_findings_say_where_the_report_is(folder: Path) -> None:
    (folder / "a run").mkdir()
    seeded = report(run=run(insecure_seed=3))
    (folder / "a run/report.json").write_text(seeded.to_json(), encoding="utf-8")
    whole = (folder / "a run/report.json").as_uri()
    for place, uri in (("a run", "a%20run/report.json"), (str(folder / "a run"), whole)):
        done = privads(folder, "report", place, "--format", "sarif")
        assert done.returncode == 0, done.stderr
        (found,) = json.loads(done.stdout)["runs"][0]["results"]
        assert found["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == uri
    refused(privads(folder, "report", "a run", "--format", "registry"), 2, "which this run cannot make")


def test_a_report_that_was_changed_is_refused_by_its_name(folder: Path) -> None:
    file = folder / "run/report.json"
    text = file.read_text(encoding="utf-8")
    for changed, why in (
        ("", "is not a report"),
        ("{}", "run: Field required"),
        (text.replace("2.98", "0.98"), "says"),
    ):
        file.write_text(changed, encoding="utf-8")
        refused(privads(folder, "report", "run"), 2, "run/report.json", why)


def test_it_refuses_what_is_no_run_folder(folder: Path) -> None:
    for place in (".", "nowhere"):
        refused(privads(folder, "report", place), 2, "not a run folder")
    refused(privads(folder, "report", "run", "--format", "pdf"), 2, "--format must be one of")
    refused(privads(folder, "report", "run", "again"), 2, "privads report show --help")


def test_it_prints_what_changed_between_two_runs(folder: Path) -> None:
    after = report(guarantee=guarantee(epsilon=1.5))
    (folder / "later.json").write_text(after.to_json(), encoding="utf-8")
    done = privads(folder, "report", "diff", "run", "later.json")
    assert done.returncode == 0, done.stderr
    assert "the second run promises more: epsilon <= 2.98" in done.stdout
    found = json.loads(privads(folder, "report", "diff", "run", "later.json", "--json").stdout)
    assert {"path": "guarantee.epsilon", "before": 2.9714, "after": 1.5} in found["changes"]
    assert found["second"]["headline"] == after.headline
    refused(privads(folder, "report", "diff", "run", "nowhere"), 2, "not a run folder")


def test_it_prints_the_schema(folder: Path) -> None:
    printed = privads(folder, "report", "schema").stdout
    assert printed == schema.published()
    assert json.loads(printed)["title"] == "Report"
