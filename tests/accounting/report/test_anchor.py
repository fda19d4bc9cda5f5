"""What a ledger bears out of a report, and each thing that it does not."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from accounting import mechanisms
from accounting.ledger import Charge, Entry, Ledger, LedgerError
from accounting.report.anchor import NotAnchored, executed_again, find_entries
from accounting.report.record import Report
from tests.accounting.report import sample
from tests.accounting.report.charged import ADS, RUN, changed, ledger, report_of, run


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return ledger(f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'budget.db'}")


@pytest.fixture(scope="module")
def entry(book: Ledger) -> Entry:
    run(book)
    return run(book)


def tampered(book: Ledger, folder: Path, trigger: str, statement: str) -> Ledger:
    """A copy of the ledger in which a statement was executed behind its back."""
    shutil.copy(book.url.removeprefix("sqlite:///"), folder / "budget.db")
    with closing(sqlite3.connect(folder / "budget.db")) as connection:
        connection.execute(f"DROP TRIGGER log_refuses_{trigger}")
        connection.execute(statement)
        connection.commit()
    return Ledger.open(f"sqlite:///{folder / 'budget.db'}")


def test_a_ledger_that_went_on_still_bears_an_old_report_out(book: Ledger, entry: Entry) -> None:
    written = report_of(book, entry)
    run(book, purpose="another")
    (found,) = find_entries(written, book.read())
    assert (found.id, found.epsilon, found.event) == (entry.id, entry.epsilon, mechanisms.to_json(RUN))


FORGERIES: dict[str, tuple[Callable[[Report], Report], str]] = {
    "an entry that is not there": (lambda one: changed(one, "budget", entry="99"), "has no entry 99"),
    "another run's entry": (lambda one: changed(one, "budget", entry="2", this_run_epsilon=0.5), "charged epsilon"),
    "a head that is not in the chain": (lambda one: changed(one, "budget", head="0" * 64), "no row of .* has the hash"),
    "another data set": (lambda one: changed(one, "budget", dataset="clicks"), "has no entry"),
    "a smaller charge": (lambda one: changed(one, "budget", this_run_epsilon=0.5), "charged epsilon"),
    "a smaller delta": (lambda one: changed(one, "budget", this_run_delta=1e-9), "charged delta"),
    "another unit": (lambda one: changed(one, "budget", charged_unit="example"), "charged unit"),
    "other neighbors": (lambda one: changed(one, "budget", charged_neighbors="replace"), "charged neighbors"),
    "a smaller claim": (lambda one: changed(one, "guarantee", epsilon=0.5), "the report claims epsilon 0.5"),
    "another event": (
        lambda one: changed(one, "mechanism", event={"event": "gaussian", "noise_multiplier": 9.0}),
        "charged for another event",
    ),
    "no entry at all": (lambda one: one.model_copy(update={"budget": None}), "names no entry"),
}


@pytest.mark.parametrize(("forge", "why"), FORGERIES.values(), ids=FORGERIES.keys())
def test_a_report_that_says_what_the_ledger_does_not_is_refused(
    book: Ledger, entry: Entry, forge: Callable[[Report], Report], why: str
) -> None:
    written = report_of(book, entry)
    find_entries(written, book.read())
    with pytest.raises(NotAnchored, match=why) as caught:
        find_entries(forge(written), book.read())
    assert "\n" not in str(caught.value)


def test_an_entry_later_than_the_head_that_was_noted_is_not_the_runs(book: Ledger, entry: Entry) -> None:
    early = report_of(book, entry).budget
    assert early is not None
    written = changed(report_of(book, run(book)), "budget", head=early.head)
    with pytest.raises(NotAnchored, match="up to that head"):
        find_entries(written, book.read())


@pytest.mark.parametrize("state", ["reserved", "aborted"])
def test_a_charge_under_which_no_rows_were_opened_is_no_runs(book: Ledger, state: str) -> None:
    charge = Charge(event=mechanisms.to_json(RUN), delta=1e-6, unit="user", purpose="train dcn")
    held = book.reserve(ADS, charge)
    if state == "aborted":
        held = book.abort(held)
    with pytest.raises(NotAnchored, match=f"is {state}: no rows were opened"):
        find_entries(report_of(book, held), book.read())


@pytest.fixture
def went_on(book: Ledger) -> tuple[Report, Entry, Entry]:
    """The report of a run whose last steps were executed and charged twice, with both charges."""
    event = mechanisms.to_json(RUN)
    whole = book.open_rows(book.reserve(ADS, Charge(event=event, delta=1e-6, unit="user", purpose="train dcn")))
    purpose = executed_again("train dcn", first=31, last=40, entry=whole.id)
    rest = mechanisms.to_json(mechanisms.approximate_dp(epsilon=0.5, delta=1e-6))
    again = book.reserve(ADS, Charge(event=rest, delta=1e-6, unit="user", purpose=purpose))
    again = book.commit(book.open_rows(again))
    written = report_of(book, again)
    mechanism = written.mechanism.model_copy(update={"event": json.loads(event)})
    return written.model_copy(update={"mechanism": mechanism, "guarantee": sample.guarantee(epsilon=1.5)}), whole, again


def test_a_run_that_went_on_is_paid_for_by_two_entries(book: Ledger, went_on: tuple[Report, Entry, Entry]) -> None:
    written, whole, again = went_on
    found = find_entries(written, book.read())
    assert [one.id for one in found] == [again.id, whole.id]
    for forged, why in (
        (changed(written, "guarantee", epsilon=0.5), "the report claims epsilon 0.5"),
        (changed(written, "mechanism", event=json.loads(again.event)), "charged for another event"),
        (changed(written, "budget", this_run_epsilon=1.5), "charged epsilon 0.5"),
    ):
        with pytest.raises(NotAnchored, match=why):
            find_entries(forged, book.read())


def test_an_entry_that_was_cut_off_the_ledger_is_missed(book: Ledger, entry: Entry, tmp_path: Path) -> None:
    cut = tampered(book, tmp_path, "delete", f"DELETE FROM log WHERE seq >= {entry.id}")
    cut.verify()  # an unbroken chain: it looks like a younger ledger
    with pytest.raises(NotAnchored, match="no row of .* has the hash"):
        find_entries(report_of(book, entry), cut.read())


def test_a_ledger_that_was_changed_bears_nothing_out(book: Ledger, entry: Entry, tmp_path: Path) -> None:
    late = tampered(book, tmp_path, "update", f"UPDATE log SET at = '2026-01-01T00:00:00Z' WHERE seq = {entry.id}")
    with pytest.raises(LedgerError, match=f"is broken at row {entry.id}: its content was changed"):
        late.read()
