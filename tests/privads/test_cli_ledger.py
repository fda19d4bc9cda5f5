"""`privads report LEDGER`: which word of a command line is a ledger, and what is printed of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from accounting.ledger import Ledger
from privads.cli_ledger import is_ledger
from tests.accounting.report import sample
from tests.accounting.report.charged import ADS, ledger, report_of, run
from tests.privads.test_cli import privads, refused

if TYPE_CHECKING:
    from benchmarks.postgres import Server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    book = ledger(f"sqlite:///{tmp_path / 'budget.db'}")
    ledger(book.url, "clicks")
    first, _ = run(book), run(book)
    (tmp_path / "runs/first").mkdir(parents=True)
    audited = report_of(book, first, audit=[sample.audit()])
    (tmp_path / "runs/first/report.json").write_text(audited.to_json(), encoding="utf-8")
    return tmp_path


def test_a_ledger_is_reported_by_its_file_or_its_url(folder: Path) -> None:
    for words in (("budget.db",), ("sqlite:///budget.db",), ("ledger", "budget.db"), ("--format", "text", "budget.db")):
        done = privads(folder, "report", *words)
        assert done.returncode == 0, done.stderr
        first, *lines = done.stdout.splitlines()
        assert first.endswith("2 runs on 2 data sets, 2 of them without an audit on record")
        assert {"data set ads-2026q4", "data set clicks"} <= set(lines)


def test_the_reports_in_a_folder_tell_who_was_audited(folder: Path) -> None:
    found = json.loads(privads(folder, "report", "budget.db", "--runs", "runs", "--json").stdout)
    assert [one["audit"] for one in found["datasets"][0]["runs"]] == ["audited", "no audit on record"]
    assert found["datasets"][0]["runs"][0]["reports"] == ["runs/first/report.json"]
    one = json.loads(privads(folder, "report", "budget.db", "--dataset", "clicks", "--json").stdout)
    assert [data["name"] for data in one["datasets"]] == ["clicks"]


@pytest.mark.parametrize(("form", "begins"), [("markdown", "# Ledger "), ("html", "<!DOCTYPE html>")])
def test_it_is_printed_in_each_form(folder: Path, form: str, begins: str) -> None:
    done = privads(folder, "report", "budget.db", "--format", form)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(begins)
    assert "epsilon = 47.00 (delta 8.8e-05, user, add/remove, data set ads-2026q4)" in done.stdout


def test_reporting_writes_nothing_to_the_ledger(folder: Path) -> None:
    book = Ledger.open(f"sqlite:///{folder / 'budget.db'}")
    before = book.export(ADS), book.head()
    privads(folder, "report", "budget.db", "--runs", "runs")
    assert (book.export(ADS), book.head()) == before


def test_a_ledger_on_postgresql_is_reported_by_its_url(folder: Path, postgres: "Server") -> None:
    postgres.empty("ledger")
    url = postgres.url("ledger")
    run(ledger(url))
    done = privads(folder, "report", url)
    assert done.returncode == 0, done.stderr
    assert "1 run on 1 data set, 1 of them without an audit on record" in done.stdout.splitlines()[0]


def test_what_is_no_ledger_is_refused_in_one_line(folder: Path) -> None:
    (folder / "notes.db").write_text("no database")
    refused(privads(folder, "report", "none.db"), 2, "there is no ledger at sqlite:///none.db")
    refused(privads(folder, "report", "notes.db"), 2, "notes.db")
    refused(privads(folder, "report", "mysql://host/db"), 2, "a ledger is one SQLite file")
    refused(
        privads(folder, "report", "budget.db", "--format", "pdf"), 2, "--format must be one of text, markdown, html"
    )
    refused(privads(folder, "report", "budget.db", "--json", "--format", "html"), 2, "leave one out")
    refused(privads(folder, "report", "budget.db", "--runs", "nowhere"), 2, "nowhere is not a folder of runs")
    refused(privads(folder, "report", "budget.db", "--public-key", "key.pub.pem"), 2, "give both")
    refused(privads(folder, "report", "budget.db", "--dataset", "sales"), 2, "has no data set 'sales'")


def test_a_run_folder_is_never_taken_for_a_ledger(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    named: Callable[[str], bool] = is_ledger
    (folder / "run.db").mkdir()
    assert [
        word for word in ("budget.db", "new.db", "sqlite:///x", "postgresql+psycopg://h/d") if not named(word)
    ] == []
    for word in ("run.db", "runs/first", "runs/first/report.json", "nowhere", "--format", "html"):
        assert not named(word), word
