"""The report of a ledger: its figures are sums that can be done by hand, and no run counts as audited that was not."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from accounting import mechanisms
from accounting.budget import Budget
from accounting.ledger import Charge, Entry, Ledger
from accounting.ledger import store as log
from accounting.report.overview import DataSet, Group, LedgerReport, Reports, find_reports, overview
from accounting.report.record import Report
from accounting.report.sign import make_key, sign
from tests.accounting.ledger import helpers
from tests.accounting.report import sample
from tests.accounting.report.charged import ADS, changed, ledger, report_of, run

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'budget.db'}"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the time at which the ledger writes."""

    def set_to(at: str) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> "Clock":
                return cls.fromisoformat(at).replace(tzinfo=tz)

        monkeypatch.setattr(log, "datetime", Clock)

    return set_to


def cost(epsilon: float, purpose: str = "train", **fields: Any) -> Charge:
    event = mechanisms.to_json(mechanisms.approximate_dp(epsilon=epsilon, delta=1e-8))
    return Charge(**{"event": event, "delta": 1e-8, "unit": "user", "purpose": purpose, **fields})


def paid(book: Ledger, charge: Charge, dataset: str = ADS) -> Entry:
    return book.commit(book.open_rows(book.reserve(dataset, charge)))


def told(book: Ledger, folder: Path | None = None) -> LedgerReport:
    found = book.read()
    return overview(found, Reports() if folder is None else find_reports(folder, found), read_at=NOW)


def only(book: Ledger, folder: Path | None = None) -> DataSet:
    (found,) = told(book, folder).datasets
    return found


def parts(groups: tuple[Group, ...], limit: int = 0) -> dict[str, tuple[int, float, float]]:
    return {one.name: (one.charges, one.parts[limit].loss, one.parts[limit].share) for one in groups}


def saved(folder: Path, name: str, report: Report) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "report.json").write_text(report.to_json(), encoding="utf-8")


def test_spending_by_purpose_and_by_month_adds_up_to_what_is_spent(url: str, clock: Callable[[str], None]) -> None:
    book = ledger(url, epsilon=2.0)
    clock("2026-10-31T23:59:59")
    paid(book, cost(0.1))
    held = book.reserve(ADS, cost(0.5))
    clock("2026-11-01T00:00:00")
    book.open_rows(held)  # of the month in which it was reserved
    paid(book, cost(0.2, "explore"))
    book.abort(book.reserve(ADS, cost(0.7, "explore")))
    clock("2027-01-05T00:00:00")
    book.reserve(ADS, cost(0.3))
    one = only(book)
    assert parts(one.by_purpose) == {"explore": (1, 0.2, 0.1), "train": (3, 0.9, 0.45)}
    assert parts(one.by_month) == {"2026-10": (2, 0.6, 0.3), "2026-11": (1, 0.2, 0.1), "2027-01": (1, 0.3, 0.15)}
    assert [group.parts[0].delta for group in one.by_month] == [2e-8, 1e-8, 1e-8]
    (limit,) = one.limits
    assert (limit.spent_epsilon, limit.spent_delta, limit.left_epsilon, limit.loss_spent) == (1.1, 4e-8, 0.9, 1.1)
    assert [(run.entry, run.state) for run in one.open] == [(held.id, "opened"), (one.runs[-1].entry, "reserved")]


def test_under_blocks_a_part_is_what_its_dearest_block_pays(url: str) -> None:
    book = Ledger.init(url, dataset=ADS, budget=Budget(epsilon=2.0, delta=9e-5, unit="user-day"), block="day")
    monday, tuesday = ("2026-11-23",), ("2026-11-24",)
    for charge in (
        cost(0.1, unit="user-day", blocks=monday),
        cost(0.3, unit="user-day", blocks=tuesday),
        cost(0.4, "explore", unit="user-day", blocks=monday),
    ):
        paid(book, charge)
    one = only(book)
    assert parts(one.by_purpose) == {"explore": (1, 0.4, 0.2), "train": (2, 0.3, 0.15)}
    (limit,) = one.limits
    assert (limit.spent_epsilon, limit.dearest_block) == (0.5, "2026-11-23")


def test_each_limit_has_its_own_part_in_its_own_measure(url: str) -> None:
    days = Budget(epsilon=3.0, delta=1e-7, unit="user-day")
    book = ledger(url, also=[days], rule="rdp", order=8.0, epsilon=8.0)
    event = mechanisms.to_json(mechanisms.gaussian(noise_multiplier=4.0))
    entry = paid(book, Charge(event=event, delta=1e-7, unit="user", purpose="train"))
    one = only(book)
    for limit, part, spent in zip(one.limits, one.by_month[0].parts, entry.costs, strict=True):
        assert (limit.rule, limit.measure) == ("rdp", "Renyi divergence of order 8")
        assert part.loss == spent.loss == limit.loss_spent
        assert part.share == pytest.approx(part.loss / limit.loss_limit, rel=1e-9)
        assert part.delta == 0
    assert one.by_month[0].parts[0].loss == pytest.approx(8 / (2 * 4.0**2), abs=1e-8), "order / (2 sigma^2)"


def test_a_ledger_without_runs_has_nothing_to_add_up(url: str) -> None:
    one = only(ledger(url))
    assert (one.runs, one.by_purpose, one.by_month, one.open, one.never_audited) == ((), (), (), (), ())
    assert one.limits[0].left_epsilon == 50.0


def test_every_run_is_there_once_whatever_their_number(url: str) -> None:
    book = ledger(url, epsilon=20_000.0)
    paid(book, cost(1.5))
    helpers.runs(book, 500)
    one = only(book)
    assert [found.entry for found in one.runs] == list(range(2, 2 + 3 * 501, 3))
    assert parts(one.by_purpose) == {"train": (501, 751.5, 751.5 / 20_000)}
    assert len(one.never_audited) == 501


class TestAudits:
    """Three runs; reports in a folder say who was audited."""

    @pytest.fixture
    def book(self, url: str) -> Ledger:
        book = ledger(url)
        for _ in range(3):
            run(book)
        return book

    @pytest.fixture
    def entries(self, book: Ledger) -> list[Entry]:
        return book.history(ADS)

    def test_only_a_run_whose_own_report_holds_an_audit_was_audited(
        self, book: Ledger, entries: list[Entry], tmp_path: Path
    ) -> None:
        runs = tmp_path / "runs"
        audited = report_of(book, entries[0], audit=[sample.audit()])
        saved(runs, "one", audited)
        saved(runs, "deep/below/copy", audited)
        saved(runs, "two", report_of(book, entries[1]))
        assert [one.audit for one in only(book).runs] == ["no audit on record"] * 3
        first, second, third = only(book, runs).runs
        assert first.audits == (f"consistent: {audited.proved(audited.audit[0])}",)
        assert len(first.reports) == 2
        assert (second.audit, len(second.reports)) == ("no audit on record", 1)
        assert (third.audit, third.reports) == ("no audit on record", ())
        assert told(book, runs).others == 0

    def test_another_ledgers_report_of_the_same_entry_audits_nothing(
        self, book: Ledger, entries: list[Entry], tmp_path: Path
    ) -> None:
        other = ledger(f"sqlite:///{tmp_path / 'other.db'}")
        theirs = run(other)
        run(other)
        assert (theirs.id, theirs.dataset, theirs.epsilon) == (entries[0].id, ADS, entries[0].epsilon)
        saved(tmp_path / "runs", "theirs", report_of(other, theirs, audit=[sample.audit()]))
        saved(tmp_path / "runs", "public", sample.report(budget=None))
        found = told(book, tmp_path / "runs")
        assert (found.others, found.refused) == (2, ())
        assert len(found.datasets[0].never_audited) == 3

    def test_a_report_that_the_ledger_does_not_bear_out_audits_nothing_and_is_named(
        self, book: Ledger, entries: list[Entry], tmp_path: Path
    ) -> None:
        true = report_of(book, entries[0], audit=[sample.audit()])
        forged = changed(changed(true, "budget", this_run_epsilon=0.5), "guarantee", epsilon=0.5)
        saved(tmp_path / "runs", "forged", forged)
        found = told(book, tmp_path / "runs")
        assert len(found.datasets[0].never_audited) == 3
        (why,) = found.refused
        assert "forged/report.json: entry" in why
        assert "charged epsilon 1.5, the report says 0.5" in why

    def test_with_a_public_key_only_signed_reports_are_believed(
        self, book: Ledger, entries: list[Entry], tmp_path: Path
    ) -> None:
        runs = tmp_path / "runs"
        for name, entry in zip(("signed", "changed", "unsigned"), entries, strict=True):
            saved(runs, name, report_of(book, entry))
        make_key(tmp_path / "key.pem")
        for name in ("signed", "changed"):
            sign(runs / name, tmp_path / "key.pem")
        audited = report_of(book, entries[1], audit=[sample.audit()])
        (runs / "changed/report.json").write_text(audited.to_json(), encoding="utf-8")
        whole = book.read()
        assert len(find_reports(runs, whole).of) == 3
        found = find_reports(runs, whole, public_key=tmp_path / "key.pub.pem")
        assert list(found.of) == [(ADS, entries[0].id)]
        first, second = found.refused
        assert first.endswith("changed/report.json was changed after it was signed")
        assert "unsigned is not signed" in second
        make_key(tmp_path / "other.pem")
        assert find_reports(runs, whole, public_key=tmp_path / "other.pub.pem").of == {}

    def test_a_file_that_is_no_report_is_named_and_stops_nothing(
        self, book: Ledger, entries: list[Entry], tmp_path: Path
    ) -> None:
        saved(tmp_path / "runs", "a", report_of(book, entries[0], audit=[sample.audit()]))
        for name, content in {"b": "{}", "c": "not JSON", "d": "[1]"}.items():
            (tmp_path / "runs" / name).mkdir()
            (tmp_path / "runs" / name / "report.json").write_text(content)
        found = told(book, tmp_path / "runs")
        assert [f"/{name}/report.json" in why for name, why in zip("bcd", found.unread, strict=True)] == [True] * 3
        assert len(found.datasets[0].never_audited) == 2
        with pytest.raises(ValueError, match="is not a folder of runs"):
            told(book, tmp_path / "nowhere")

    def test_a_charge_under_which_no_rows_were_opened_needs_no_audit(self, book: Ledger) -> None:
        book.abort(book.reserve(ADS, cost(0.1)))
        book.reserve(ADS, cost(0.1))
        book.open_rows(book.reserve(ADS, cost(0.1)))
        states = [(one.state, one.audit) for one in only(book).runs[3:]]
        assert states == [
            ("aborted", "no rows were opened"),
            ("reserved", "no rows were opened"),
            ("opened", "no audit on record"),
        ]


def test_the_json_holds_everything_and_reads_back(url: str) -> None:
    book = ledger(url)
    run(book)
    made = told(book)
    fields = json.loads(made.to_json())
    assert fields["head"] == book.head()
    assert fields["datasets"][0]["runs"][0].pop("audit") == "no audit on record"
    assert LedgerReport.model_validate_json(json.dumps(fields), strict=True) == made
    assert told(book).to_json() == made.to_json()


def test_a_report_may_be_about_some_data_sets_only(url: str) -> None:
    book = ledger(url)
    for name in ("clicks", "views"):
        ledger(url, name)
    found = overview(book.read(), Reports(), read_at=NOW, only=["views", ADS])
    assert [one.name for one in found.datasets] == [ADS, "views"]
    with pytest.raises(ValueError, match="has no data set 'sales'; it has ads-2026q4, clicks, views"):
        overview(book.read(), Reports(), read_at=NOW, only=["sales"])


def test_what_somebody_wrote_into_the_log_breaks_no_line(url: str, tmp_path: Path) -> None:
    """A purpose of privads is one printable line; a log that another program chained may hold anything."""
    book = ledger(url)
    run(book)
    (step,) = [row.step for row in book._store.rows() if row.step.kind == "reserve"]
    odd = {**step.body, "purpose": " two\nlines \u202egnp.exe"}
    helpers.write(book, [log.Step(kind="reserve", dataset=ADS, key="odd", body=odd)])
    assert only(book).runs[-1].purpose == " two\N{REPLACEMENT CHARACTER}lines \N{REPLACEMENT CHARACTER}gnp.exe"
    with closing(sqlite3.connect(tmp_path / "budget.db")) as connection:
        assert connection.execute("SELECT count(*) FROM log").fetchone() == (5,), "and nothing was written"
