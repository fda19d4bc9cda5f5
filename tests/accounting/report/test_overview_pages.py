"""The three forms of a ledger's report show the same, whole and escaped."""

import json
import re
from html import unescape
from pathlib import Path

import pytest

from accounting.ledger import Ledger
from accounting.report import overview_pages as pages
from accounting.report.overview import LedgerReport
from tests.accounting.ledger import helpers
from tests.accounting.report.charged import ADS, ledger, run
from tests.accounting.report.test_overview import cost, paid, told
from tests.accounting.report.test_page import DARK, PRINT
from tests.accounting.report.test_render import HOSTILE, Page
from tests.browser import draw

FORMS = (pages.text, pages.markdown, pages.html)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> LedgerReport:
    url = f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'budget.db'}"
    book = ledger(url, epsilon=8.0)
    ledger(url, HOSTILE)
    ledger(url, "many", rule="rdp", order=8.0)
    for _ in range(2):
        run(book)
    paid(book, cost(0.0625, HOSTILE))
    book.reserve(ADS, cost(0.25, "nightly"))
    return told(book)


def text_of(form: str, shown: str) -> str:
    """What a reader sees, in one line."""
    if form == "html":
        return " ".join(unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", shown, flags=re.DOTALL)).split())
    return " ".join(re.sub(r"\\(?=[^\w\s])", "", shown).replace("|", " ").split()) if form == "markdown" else shown


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_each_form_shows_every_fact_and_figure(made: LedgerReport, form: object) -> None:
    shown = form(made)  # type: ignore[operator]
    seen = " ".join(text_of(form.__name__, shown).split())  # type: ignore[attr-defined]
    for said in (
        "3 runs on 3 data sets, 3 of them without an audit on record",
        made.head,
        "epsilon = 8.00 (delta 9e-05, user, add/remove, data set ads-2026q4)",
        "epsilon <= 3.32 (delta 2.02e-06, user, add/remove, data set ads-2026q4)",
        "epsilon = 4.68 (delta 8.79e-05, user, add/remove, data set ads-2026q4)",
        "Renyi divergence of order 8",
        "3 of 3 runs: entries 4, 7, 10",
        "3.00 2e-06 37.5 %",
        "0.0625 1e-08 0.781 %",
        made.datasets[0].by_month[0].name,
        "nightly",
        "no rows were opened",
        "no audit is known",
    ):
        assert said in seen


def test_the_page_is_whole_loads_nothing_and_escapes_what_others_wrote(made: LedgerReport) -> None:
    shown = pages.html(made)
    page = Page(shown)
    assert page.problems == []
    assert HOSTILE in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe"}
    assert "http" not in shown
    assert {dict(attributes)["scope"] for tag, attributes in page.tags if tag == "th"} == {"col", "row"}


def test_a_browser_draws_the_page_without_complaint_and_everyone_can_read_it(
    made: LedgerReport, tmp_path: Path
) -> None:
    drawn = draw(pages.html(made), tmp_path)
    assert (drawn.complaints, drawn.loaded, drawn.overflow) == ([], [], 0)
    fields = json.loads(made.to_json())
    assert ("log", f"{fields['rows']} rows, unbroken, head {fields['head']}") in drawn.facts
    if drawn.violations is None:
        pytest.skip("axe-core is not there: make axe")
    assert drawn.violations == []


@pytest.mark.slow
def test_everyone_can_read_it_in_the_dark_in_print_and_on_a_narrow_screen(made: LedgerReport, tmp_path: Path) -> None:
    source = pages.html(made)
    for name, (shown, width) in {
        "dark": (source.replace(DARK, "@media screen"), 1000),
        "print": (source.replace(PRINT, "@media screen").replace(DARK, "@media print"), 1000),
        "narrow": (source, 500),
    }.items():
        (tmp_path / name).mkdir()
        drawn = draw(shown, tmp_path / name, width=width)
        assert (name, drawn.violations or [], drawn.complaints, drawn.overflow) == (name, [], [], 0)


def test_the_markdown_tables_keep_their_columns(made: LedgerReport) -> None:
    width = 0
    for line in pages.markdown(made).splitlines():
        cells = line.replace("\\|", "").count("|")
        if line.startswith("|"):
            assert width in (0, cells)
        width = cells if line.startswith("|") else 0


def test_a_long_list_of_runs_is_counted_in_words_and_whole_in_the_table(tmp_path: Path) -> None:
    book: Ledger = ledger(f"sqlite:///{tmp_path / 'budget.db'}")
    paid(book, cost(0.01))
    helpers.runs(book, 24)
    made = told(book)
    assert pages.never_audited(made.datasets[0]).endswith("50, 53, 56, 59 and 5 more")
    runs = next(table for table in pages.tables(made.datasets[0]) if table.title == "Runs")
    assert len(runs.rows) == 25


def test_a_ledger_without_runs_says_so_in_each_form(tmp_path: Path) -> None:
    made = told(ledger(f"sqlite:///{tmp_path / 'budget.db'}"))
    for form in FORMS:
        assert "no runs yet on 1 data set" in form(made)
        assert "none" in form(made)
