"""Every command line on docs/reports.md runs, and the page names every form and every check."""

import json
import re
from inspect import getsource
from pathlib import Path

import pytest
import yaml

from accounting.report import sign
from privads import cli_sign
from tests.accounting.report import sample
from tests.accounting.report.charged import ledger, report_of, run
from tests.privads.test_cli import privads

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "reports.md").read_text(encoding="utf-8")
LINES = [line for block in PAGE.split("```\n")[1::2] for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    book = ledger(f"sqlite:///{tmp_path / 'budget.db'}")
    (tmp_path / "runs/monday").mkdir(parents=True)
    written = report_of(book, run(book), audit=[sample.audit(epsilon_lower=0.3)])
    (tmp_path / "runs/monday/report.json").write_text(written.to_json(), encoding="utf-8")
    return tmp_path


def test_every_command_on_the_page_runs(folder: Path) -> None:
    assert len(LINES) == 9
    for line in LINES:
        words, _, file = line.partition(" > ")
        words, _, more = words.partition(" >> ")
        _, *arguments = words.split()
        done = privads(folder, *arguments)
        assert done.returncode == 0, (line, done.stderr)
        if file or more:
            (folder / (file or more)).write_text(done.stdout, encoding="utf-8")
    assert yaml.safe_load((folder / "entry.yaml").read_text(encoding="utf-8"))["status"] == "Draft"
    assert json.loads((folder / "findings.sarif").read_text(encoding="utf-8"))["version"] == "2.1.0"
    assert (folder / "card.md").read_text(encoding="utf-8").startswith("## Privacy\n")
    assert (folder / "ledger.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_page_names_every_form(folder: Path) -> None:
    said = privads(folder, "report", "runs/monday", "--format", "nonsense").stderr
    forms = said.partition("must be one of ")[2].partition(", got")[0].split(", ")
    assert len(forms) == 6
    for form in forms:
        assert f"`{form}`" in PAGE, form


def test_the_page_names_every_check() -> None:
    checks = {name for module in (sign, cli_sign) for name in re.findall(r'NotVerified\("(\w+)"', getsource(module))}
    part = PAGE.partition("## Signing")[2].partition("\n## ")[0]
    assert checks == set(re.findall(r"^\| `(\w+)` \|", part, flags=re.MULTILINE))
