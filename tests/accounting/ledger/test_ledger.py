"""What the ledger promises, one claim a test; expected figures are added up by hand."""

import csv
import io
import json
import math
import multiprocessing
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import pytest

from accounting import accountant
from accounting.budget import BudgetExceeded
from accounting.ledger import Charge, Entry, Ledger, LedgerError
from accounting.mechanisms import approximate_dp, composed, dp_sgd, gaussian, non_private, to_json
from tests.accounting.ledger.helpers import ADS, budget, charge, charge_of, refusal, runs, write


@pytest.fixture
def ledger(url: str) -> Ledger:
    return Ledger.init(url, dataset=ADS, budget=budget())


# --- the limit ---------------------------------------------------------------------------------------------


def test_epsilon_limit_is_enforced(ledger: Ledger) -> None:
    ledger.reserve(ADS, charge(epsilon=0.7))
    with pytest.raises(BudgetExceeded):
        ledger.reserve(ADS, charge(epsilon=0.300000001))
    ledger.reserve(ADS, charge(epsilon=0.3))
    assert ledger.balance(ADS).left_epsilon == 0


def test_delta_limit_is_enforced(ledger: Ledger) -> None:
    ledger.reserve(ADS, charge(delta=7e-7))
    with pytest.raises(BudgetExceeded):
        ledger.reserve(ADS, charge(delta=3.00000000001e-7))
    ledger.reserve(ADS, charge(delta=3e-7))
    assert ledger.balance(ADS).left_delta == 0


def test_refusal_names_asked_left_limit_and_remedy(ledger: Ledger) -> None:
    ledger.reserve(ADS, charge(epsilon=0.75, delta=2.5e-7))
    message = refusal(ledger.reserve, ADS, charge(epsilon=0.5, delta=1e-8))
    for figure in ("0.5", "1e-08", "0.25", "7.5e-07", "1.0", "1e-06", "user", "add-remove", "basic", ADS):
        assert figure in message
    assert "ask for an epsilon of at most 0.25" in message
    assert "a delta of at most 7.5e-07" in refusal(ledger.reserve, ADS, charge(epsilon=0.1, delta=9e-7))
    ledger.reserve(ADS, charge(epsilon=0.25))
    assert "nothing is left" in refusal(ledger.reserve, ADS, charge(epsilon=0.1))


def test_refused_charge_changes_nothing(ledger: Ledger) -> None:
    ledger.reserve(ADS, charge())
    before = ledger.head(), ledger.balance(ADS), ledger.history(ADS)
    for refused in (
        charge(epsilon=5),
        charge(delta=0.5),
        charge(unit="example"),
        charge(blocks=("2026-11-22",)),
        charge(neighbors="replace"),
        charge(neighbors="replace-label"),
        charge_of(non_private()),
    ):
        refusal(ledger.reserve, ADS, refused)
    refusal(ledger.reserve, "other", charge())
    assert (ledger.head(), ledger.balance(ADS), ledger.history(ADS)) == before
    ledger.reserve(ADS, charge())


def test_whole_limit_can_be_charged_at_once(sqlite_url: str) -> None:
    for number, (epsilon, delta) in enumerate([(0.1, 1e-7), (3.0, 1e-9), (1 / 3, 1 / 3e7), (2.2, 0.3e-6)]):
        ledger = Ledger.init(sqlite_url, dataset=f"ads-{number}", budget=budget(epsilon, delta))
        limit = ledger.balance(f"ads-{number}").limit
        ledger.reserve(f"ads-{number}", charge(limit.epsilon, limit.delta))
    for epsilon, delta in [(0.1, 1e-7), (3.0, 1e-9), (2.2, 0.3e-6)]:  # short decimals: the very same floats
        ledger = Ledger.init(sqlite_url, dataset=f"same-{epsilon}", budget=budget(epsilon, delta))
        ledger.reserve(f"same-{epsilon}", charge(epsilon, delta))


def test_what_is_left_can_be_charged_and_nothing_more(ledger: Ledger) -> None:
    ledger.reserve(ADS, charge(epsilon=0.1234567891, delta=1.23456789e-15))
    left = ledger.balance(ADS)
    ledger.reserve(ADS, charge(left.left_epsilon, left.left_delta))
    refusal(ledger.reserve, ADS, charge(1e-9, 1e-18))


def test_data_sets_have_limits_of_their_own(url: str, ledger: Ledger) -> None:
    ledger.reserve(ADS, charge(epsilon=1.0))
    Ledger.init(url, dataset="ads-2027q1", budget=budget(epsilon=2.0))
    ledger.reserve("ads-2027q1", charge(epsilon=1.5))
    assert ledger.datasets() == [ADS, "ads-2027q1"]
    assert ledger.balance(ADS).spent_epsilon == 1.0
    assert ledger.balance("ads-2027q1").spent_epsilon == 1.5


def test_limit_is_set_once(url: str, ledger: Ledger) -> None:
    message = refusal(Ledger.init, url, dataset=ADS, budget=budget(epsilon=50))
    assert "set once" in message
    assert str(budget()) in message
    assert ledger.balance(ADS).limit == budget()


def test_ten_charges_of_a_tenth_fill_a_limit_of_one(ledger: Ledger) -> None:
    for _ in range(10):
        ledger.reserve(ADS, charge(epsilon=0.1, delta=1e-7))
    balance = ledger.balance(ADS)
    assert (balance.spent_epsilon, balance.left_epsilon) == (1.0, 0.0)
    assert (balance.spent_delta, balance.left_delta) == (1e-6, 0.0)
    refusal(ledger.reserve, ADS, charge(epsilon=1e-9, delta=1e-18))


def test_charges_round_up_to_the_units(ledger: Ledger) -> None:
    ledger.reserve(ADS, charge(epsilon=1e-10, delta=1e-30))
    spent = ledger.balance(ADS)
    assert (spent.spent_epsilon, spent.spent_delta) == (1e-9, 1e-18)
    ledger.reserve(ADS, charge(epsilon=1.0000000001e-9, delta=2.1e-18))
    spent = ledger.balance(ADS)
    assert (spent.spent_epsilon, spent.spent_delta) == (3e-9, 4e-18)


# --- what is charged ---------------------------------------------------------------------------------------


def test_the_ledger_accounts_the_event_itself(ledger: Ledger) -> None:
    """A Gaussian's epsilon is the root of an equation of Balle and Wang (2018, theorem 8)."""
    entry = ledger.reserve(ADS, charge_of(gaussian(noise_multiplier=10.0), delta=1e-6))
    assert entry.epsilon == pytest.approx(_balle_wang(10.0, 1e-6), rel=1e-6)
    assert entry.costs[0].loss == entry.epsilon == ledger.balance(ADS).spent_epsilon


def _balle_wang(noise: float, delta: float) -> float:
    from scipy.optimize import brentq
    from scipy.stats import norm

    def excess(epsilon: float) -> float:
        shift = epsilon * noise
        return float(norm.cdf(0.5 / noise - shift) - math.exp(epsilon) * norm.cdf(-0.5 / noise - shift) - delta)

    return float(brentq(excess, 0.0, 20.0, xtol=1e-14))


def test_a_stated_epsilon_is_a_floor(ledger: Ledger) -> None:
    assert ledger.reserve(ADS, charge(epsilon=0.25, key="a")).epsilon == 0.25
    high = Charge(
        event=to_json(approximate_dp(epsilon=0.25, delta=1e-8)), delta=1e-8, unit="user", purpose="x", epsilon=0.5
    )
    assert ledger.reserve(ADS, high).epsilon == 0.5
    assert ledger.balance(ADS).spent_epsilon == 0.75


def test_a_charge_that_states_less_than_its_event_costs_is_refused(ledger: Ledger) -> None:
    low = Charge(
        event=to_json(approximate_dp(epsilon=0.25, delta=1e-8)), delta=1e-8, unit="user", purpose="x", epsilon=0.2
    )
    message = refusal(ledger.reserve, ADS, low)
    assert "costs epsilon 0.25" in message
    assert "states 0.2" in message
    assert ledger.history(ADS) == []


def test_a_sequence_fixed_in_advance_is_one_charge_of_its_joint_figure(url: str) -> None:
    ledger = Ledger.init(url, dataset=ADS, budget=budget(epsilon=2.5, delta=1e-5))
    day = gaussian(noise_multiplier=10.0)
    ledger.reserve(ADS, charge_of(composed(*[day] * 16), delta=1e-6))
    assert ledger.balance(ADS).spent_epsilon == pytest.approx(_balle_wang(2.5, 1e-6), rel=1e-6)  # 10 / sqrt(16)
    assert ledger.balance(ADS).spent_epsilon < 16 * _balle_wang(10.0, 1e-6) / 3


@pytest.mark.parametrize("rule", ["basic", "zcdp", "rdp"])
def test_run_without_privacy_cannot_be_charged(sqlite_url: str, rule: Any) -> None:
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=budget(), rule=rule)
    for event in (non_private(), composed(gaussian(noise_multiplier=1.0), non_private())):
        assert "a run without privacy cannot be charged" in refusal(ledger.reserve, ADS, charge_of(event))
    assert ledger.history(ADS) == []


def test_an_infinite_cost_is_refused(ledger: Ledger) -> None:
    message = refusal(ledger.reserve, ADS, charge_of(approximate_dp(epsilon=0.1, delta=1e-3), delta=1e-6))
    assert "no finite epsilon" in message
    assert ledger.history(ADS) == []


# --- states ------------------------------------------------------------------------------------------------


def test_a_charge_goes_from_reserved_to_opened_to_committed(ledger: Ledger) -> None:
    asked = charge(purpose="train wide & deep")
    entry = ledger.reserve(ADS, asked)
    assert (entry.state, entry.opened_at, entry.closed_at) == ("reserved", None, None)
    assert ledger.open_rows(entry).state == "opened"
    assert ledger.balance(ADS).open_entries == 1
    closed = ledger.commit(entry)
    assert closed.state == "committed"
    assert closed.reserved_at <= (closed.opened_at or "") <= (closed.closed_at or "")
    assert closed.reserved_at.endswith("Z")
    assert ledger.history(ADS) == [closed]
    assert (closed.purpose, closed.event, closed.epsilon, closed.id) == ("train wide & deep", asked.event, 0.1, 2)
    assert ledger.balance(ADS).open_entries == 0
    assert ledger.balance(ADS).spent_epsilon == 0.1


def test_abort_before_opening_gives_the_charge_back(ledger: Ledger) -> None:
    entry = ledger.reserve(ADS, charge(epsilon=1.0))
    assert ledger.abort(entry).state == "aborted"
    assert (ledger.balance(ADS).spent_epsilon, ledger.balance(ADS).spent_delta) == (0, 0)
    ledger.reserve(ADS, charge(epsilon=1.0))


def test_nothing_is_given_back_after_opening(ledger: Ledger) -> None:
    entry = ledger.reserve(ADS, charge())
    ledger.open_rows(entry)
    assert "nothing is given back" in refusal(ledger.abort, entry)
    release = {"by": "ana", "reason": "crashed"}
    assert "nothing is given back" in refusal(ledger.release_stale, ADS, entry.id, **release)
    ledger.commit(entry)
    refusal(ledger.abort, entry)
    refusal(ledger.release_stale, ADS, entry.id, **release)
    assert ledger.balance(ADS).spent_epsilon == 0.1


def test_wrong_transitions_are_refused(ledger: Ledger) -> None:
    reserved, opened, committed, aborted = (ledger.reserve(ADS, charge()) for _ in range(4))
    for entry in (opened, committed):
        ledger.open_rows(entry)
    ledger.commit(committed)
    ledger.abort(aborted)
    before = ledger.head()
    wrong: list[tuple[Callable[[Entry], Any], Entry]] = [
        (ledger.commit, reserved),
        (ledger.lease, reserved),
        (ledger.abort, opened),
        (ledger.open_rows, committed),
        (ledger.abort, committed),
        (ledger.lease, committed),
        (ledger.open_rows, aborted),
        (ledger.commit, aborted),
    ]
    for move, entry in wrong:
        assert f"entry {entry.id}" in refusal(move, entry)
    assert ledger.head() == before


def test_stale_reservation_counts_as_spent_until_someone_releases_it(url: str, ledger: Ledger) -> None:
    entry = ledger.reserve(ADS, charge(epsilon=0.6))
    again = Ledger.open(url)
    assert again.balance(ADS).spent_epsilon == 0.6
    assert again.balance(ADS).open_entries == 1
    refusal(again.reserve, ADS, charge(epsilon=0.5))
    released = again.release_stale(ADS, entry.id, by="ana@example.org", reason="the job was killed while it queued")
    assert (released.state, released.released_by) == ("aborted", "ana@example.org")
    assert again.history(ADS)[0].released_because == "the job was killed while it queued"
    assert again.balance(ADS).spent_epsilon == 0
    assert f"cannot open entry {entry.id}: it is aborted" in refusal(ledger.open_rows, entry)


def test_release_wants_a_known_entry_a_name_and_a_reason(url: str, ledger: Ledger) -> None:
    entry = ledger.reserve(ADS, charge())
    Ledger.init(url, dataset="other", budget=budget())
    assert "has no entry 9" in refusal(ledger.release_stale, ADS, 9, by="ana", reason="gone")
    assert "has no entry" in refusal(ledger.release_stale, "other", entry.id, by="ana", reason="gone")
    assert "by must be" in refusal(ledger.release_stale, ADS, entry.id, by="", reason="gone")
    assert "reason must be" in refusal(ledger.release_stale, ADS, entry.id, by="ana", reason="two\nlines")
    assert ledger.history(ADS)[0].state == "reserved"


def test_entry_of_another_ledger_is_refused(ledger: Ledger, other_url: str) -> None:
    other = Ledger.init(other_url, dataset=ADS, budget=budget())
    entry, own = other.reserve(ADS, charge()), ledger.reserve(ADS, charge())
    assert entry.id == own.id
    assert "no entry" in refusal(ledger.abort, entry)


# --- one key, one execution --------------------------------------------------------------------------------


def test_the_same_configuration_again_is_a_new_charge(ledger: Ledger) -> None:
    ledger.reserve(ADS, charge(epsilon=0.25))
    ledger.reserve(ADS, charge(epsilon=0.25))
    assert ledger.balance(ADS).spent_epsilon == 0.5
    assert len({charge().key for _ in range(100)}) == 100


def test_a_retry_of_reserve_open_commit_and_abort_changes_nothing(url: str, ledger: Ledger) -> None:
    asked, given_up = charge(epsilon=0.25), charge()
    for at in (ledger, Ledger.open(url)):  # in memory, and read anew
        first = at.reserve(ADS, asked)
        assert at.reserve(ADS, asked) == first
    assert ledger.balance(ADS).spent_epsilon == 0.25
    opened = ledger.open_rows(first)
    rows = ledger.verify().entries
    assert ledger.open_rows(first) == opened
    assert ledger.verify().entries == rows
    committed = ledger.commit(opened)
    assert ledger.commit(opened) == ledger.commit(committed) == committed
    assert ledger.verify().entries == rows + 1
    entry = ledger.reserve(ADS, given_up)
    assert ledger.abort(entry) == ledger.abort(entry)
    assert ledger.balance(ADS).spent_epsilon == 0.25


def test_an_answer_that_was_lost_is_asked_for_again(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is in the log, but the connection broke before the ledger heard of it."""
    append = ledger._store.append

    def lose(*terms: Any) -> Any:
        append(*terms)
        raise LedgerError("the connection was lost")

    def retried(move: Callable[..., Entry], *terms: Any) -> Entry:
        with monkeypatch.context() as patch:
            patch.setattr(ledger._store, "append", lose)
            assert "connection was lost" in refusal(move, *terms)
        return move(*terms)

    entry = retried(ledger.reserve, ADS, charge(epsilon=0.25))
    committed = retried(ledger.commit, retried(ledger.open_rows, entry))
    aborted = retried(ledger.abort, ledger.reserve(ADS, charge()))
    assert [committed, aborted] == ledger.history(ADS)
    assert [one.state for one in ledger.history(ADS)] == ["committed", "aborted"]
    assert ledger.balance(ADS).spent_epsilon == 0.25
    assert ledger.verify().entries == 6


def test_a_key_never_admits_a_second_execution(url: str, ledger: Ledger) -> None:
    asked = charge(key="run-7")
    entry = ledger.reserve(ADS, asked)
    twin = charge(key="run-7")  # as another process would make it: its secret is another
    assert "used before" in refusal(ledger.reserve, ADS, twin)
    changed = Charge(**{**vars(asked), "purpose": "train another"})
    assert "used before" in refusal(ledger.reserve, ADS, changed)
    Ledger.init(url, dataset="other", budget=budget())
    assert "used before" in refusal(ledger.reserve, "other", asked)
    ledger.open_rows(entry)
    assert "used before and is opened" in refusal(ledger.reserve, ADS, asked)
    ledger.commit(entry)
    assert "used before and is committed" in refusal(ledger.reserve, ADS, asked)
    given_up = charge(key="run-8")
    ledger.abort(ledger.reserve(ADS, given_up))
    assert "used before and is aborted" in refusal(ledger.reserve, ADS, given_up)
    assert ledger.balance(ADS).spent_epsilon == 0.1


def test_only_the_holder_moves_an_entry(url: str, ledger: Ledger) -> None:
    entry = ledger.reserve(ADS, charge())
    (read,) = ledger.history(ADS)
    assert read == entry
    assert read.holder is None
    forged = Entry(**{**vars(entry), "holder": "guessed"})
    for stranger in (read, forged):
        for move in (ledger.open_rows, ledger.abort):
            refusal(move, stranger)
    ledger.open_rows(entry)
    for stranger in (read, forged):
        for move in (ledger.open_rows, ledger.commit, ledger.lease):
            refusal(move, stranger)
    assert ledger.history(ADS)[0].state == "opened"


def test_secrets_are_neither_stored_nor_printed(ledger: Ledger) -> None:
    asked = charge()
    entry = ledger.open_rows(ledger.reserve(ADS, asked))
    lease = ledger.lease(entry)
    log = json.dumps(ledger.export(ADS))
    for secret in (asked.holder, entry.holder, lease):
        assert secret is not None
        assert len(secret) > 40
        assert secret not in log + repr(asked) + repr(entry) + repr(ledger.history(ADS))


# --- resuming ----------------------------------------------------------------------------------------------


def test_a_lease_resumes_once_and_ends_the_old_holder(url: str, ledger: Ledger) -> None:
    entry = ledger.open_rows(ledger.reserve(ADS, charge()))
    lease = ledger.lease(entry)
    elsewhere = Ledger.open(url)
    resumed = elsewhere.resume(ADS, lease)
    assert (resumed.id, resumed.state) == (entry.id, "opened")
    for move in (ledger.open_rows, ledger.commit, ledger.lease):
        assert "cannot" in refusal(move, entry)
    assert "used once" in refusal(ledger.resume, ADS, lease)
    assert elsewhere.commit(resumed).state == "committed"
    assert elsewhere.balance(ADS).spent_epsilon == 0.1  # charged once


def test_a_later_lease_takes_the_place_of_the_earlier(ledger: Ledger) -> None:
    entry = ledger.open_rows(ledger.reserve(ADS, charge()))
    early, late = ledger.lease(entry), ledger.lease(entry)
    assert "later lease" in refusal(ledger.resume, ADS, early)
    resumed = ledger.resume(ADS, late)
    again = ledger.lease(resumed)
    assert "used once" in refusal(ledger.resume, ADS, late)
    assert ledger.resume(ADS, again).id == entry.id


def test_no_resume_without_a_lease_or_after_the_commit(url: str, ledger: Ledger) -> None:
    entry = ledger.open_rows(ledger.reserve(ADS, charge()))
    assert "no entry" in refusal(ledger.resume, ADS, "made-up")
    assert "no entry" in refusal(ledger.resume, ADS, entry.holder)
    lease = ledger.lease(entry)
    Ledger.init(url, dataset="other", budget=budget())
    assert "no entry" in refusal(ledger.resume, "other", lease)
    ledger.commit(entry)
    assert "it is committed" in refusal(ledger.resume, ADS, lease)
    assert "lease must be" in refusal(ledger.resume, ADS, "")


def test_one_of_two_that_resume_at_once_gets_the_entry(url: str, ledger: Ledger) -> None:
    lease = ledger.lease(ledger.open_rows(ledger.reserve(ADS, charge())))
    start, found = threading.Barrier(2), []

    def resume() -> None:
        at = Ledger.open(url)
        start.wait()
        try:
            found.append(at.resume(ADS, lease).state)
        except LedgerError as error:
            found.append(str(error))

    threads = [threading.Thread(target=resume) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found)[1] == "opened"
    assert "used once" in sorted(found)[0]


# --- the log -----------------------------------------------------------------------------------------------


def test_unknown_data_set_is_refused_with_the_command_that_adds_it(ledger: Ledger) -> None:
    command = f"privads budget init --ledger {quote(ledger.url)} --dataset new --epsilon E --delta D --unit user"
    for ask in (ledger.balance, ledger.balances, ledger.history, ledger.export, ledger.joint, ledger.reaccount):
        assert command in refusal(ask, "new")
    assert command in refusal(ledger.reserve, "new", charge())
    assert command in refusal(ledger.resume, "new", "x") or "no entry" in refusal(ledger.resume, "new", "x")


def test_nothing_is_read_or_charged_on_a_broken_log(url: str, ledger: Ledger, tamper: Callable[..., None]) -> None:
    entry = ledger.reserve(ADS, charge())
    tamper("UPDATE log SET dataset = 'other' WHERE seq = 1")
    for ask in (ledger.balance, ledger.history):
        assert "row 1:" in refusal(ask, ADS)
    assert "row 1:" in refusal(ledger.datasets)
    assert "row 1:" in refusal(ledger.verify)
    fresh = Ledger.open(url)
    assert "row 1:" in refusal(fresh.reserve, ADS, charge())
    assert "row 1:" in refusal(fresh.open_rows, entry)
    assert len(ledger.export(ADS)) == 1  # the evidence can still be looked at


def test_a_ledger_sees_what_others_wrote_since(url: str, ledger: Ledger) -> None:
    other = Ledger.open(url)
    for number in range(5):
        (ledger, other)[number % 2].reserve(ADS, charge(epsilon=0.2))
    assert "0.0 " in refusal(ledger.reserve, ADS, charge(epsilon=0.1))
    assert "0.0 " in refusal(other.reserve, ADS, charge(epsilon=0.1))


def test_a_refusal_does_not_lose_count_of_what_others_wrote(url: str, ledger: Ledger) -> None:
    other = Ledger.open(url)
    ledger.reserve(ADS, charge(epsilon=0.25))
    for _ in range(2):
        entry = other.reserve(ADS, charge(epsilon=0.125))
        assert "at most 0.625" in refusal(ledger.reserve, ADS, charge(epsilon=0.75))  # reads the row, writes nothing
        other.abort(entry)
    assert ledger.reserve(ADS, charge(epsilon=0.75)).state == "reserved"


def test_a_write_that_failed_leaves_no_trace_in_memory(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.reserve(ADS, charge(epsilon=0.25))
    append = ledger._store.append

    def fail(step: Any, accept: Any, since: Any) -> Any:
        def then_break(rows: Any, row: Any) -> None:
            accept(rows, row)
            raise LedgerError("there is no space left")

        return append(step, then_break, since)

    monkeypatch.setattr(ledger._store, "append", fail)
    assert "no space left" in refusal(ledger.reserve, ADS, charge(epsilon=0.75))
    monkeypatch.undo()
    ledger.reserve(ADS, charge(epsilon=0.75))  # fits: the failed one was not counted


def test_an_older_copy_put_in_the_place_of_an_open_ledger_is_refused_ever_after(
    sqlite_url: str, path: Path, tmp_path: Path
) -> None:
    """The row that an open ledger saw last was forgotten with the first refusal, and the second charge was free."""
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=budget())
    shutil.copy(path, tmp_path / "older")
    ledger.reserve(ADS, charge(epsilon=0.75))
    shutil.copy(tmp_path / "older", path)
    for _ in range(2):
        assert "row 2:" in refusal(ledger.reserve, ADS, charge(epsilon=0.75))
        assert "row 2:" in refusal(ledger.balance, ADS)
        assert "row 2:" in refusal(ledger.verify)


def test_what_was_only_read_anchors_an_open_ledger_too(sqlite_url: str, path: Path, tmp_path: Path) -> None:
    Ledger.init(sqlite_url, dataset=ADS, budget=budget())
    shutil.copy(path, tmp_path / "older")
    Ledger.open(sqlite_url).reserve(ADS, charge(epsilon=0.75))
    reader = Ledger.open(sqlite_url)
    assert reader.balance(ADS).spent_epsilon == 0.75
    shutil.copy(tmp_path / "older", path)
    Ledger.open(sqlite_url).reserve(ADS, charge(epsilon=0.5))  # who saw nothing cannot know
    assert "row 2: it is not the row that was read before" in refusal(reader.balance, ADS)
    assert "row 2:" in refusal(reader.reserve, ADS, charge())


def test_a_process_forked_while_a_thread_writes_can_use_the_ledger(ledger: Ledger) -> None:
    """The child inherited a lock that no thread of its own would ever release."""
    with ledger._lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = multiprocessing.get_context("fork").Process(target=ledger.reserve, args=(ADS, charge()))
        child.start()
    child.join(10)
    child.kill()
    assert child.exitcode == 0
    assert ledger.balance(ADS).spent_epsilon == 0.1


def test_a_forked_child_cannot_run_what_its_parent_runs(url: str, ledger: Ledger) -> None:
    entry = ledger.reserve(ADS, charge())
    ledger.open_rows(entry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = multiprocessing.get_context("fork").Process(target=refusal, args=(ledger.open_rows, entry))
        child.start()
    child.join(10)
    assert child.exitcode == 0  # refused
    assert "another copy" in refusal(Ledger.open(url).open_rows, entry)
    assert ledger.open_rows(entry).state == "opened"  # a retry


def test_threads_share_a_ledger(ledger: Ledger) -> None:
    found: list[bool] = []

    def work() -> None:
        for _ in range(5):
            try:
                ledger.commit(ledger.open_rows(ledger.reserve(ADS, charge(epsilon=0.1))))
                found.append(True)
            except BudgetExceeded:
                found.append(False)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found.count(True), found.count(False)) == (10, 10)
    assert ledger.balance(ADS).spent_epsilon == 1.0
    assert ledger.verify().entries == 31


def test_head_anchors_the_log_and_stays_valid_while_it_grows(
    url: str, ledger: Ledger, tamper: Callable[..., None]
) -> None:
    ledger.reserve(ADS, charge())
    head = ledger.head()
    free = ledger.verify()
    assert (free.entries, free.head, free.anchored) == (2, head, False)
    assert "not anchored" in str(free)
    ledger.reserve(ADS, charge())
    assert ledger.verify(head=head).anchored
    tamper("DELETE FROM log WHERE seq >= 2")
    fresh = Ledger.open(url)
    assert not fresh.verify().anchored  # a cut tail alone looks like a younger log
    assert head in refusal(fresh.verify, head=head)


def test_export_is_the_whole_log_of_a_data_set_as_plain_data(url: str, ledger: Ledger) -> None:
    asked = charge(epsilon=0.25, delta=1e-8)
    Ledger.init(url, dataset="other", budget=budget())
    ledger.abort(ledger.reserve(ADS, asked))
    rows = json.loads(json.dumps(ledger.export(ADS)))
    assert [row["kind"] for row in rows] == ["init", "reserve", "abort"]
    assert rows[1]["body"]["costs"] == [
        {"unit": "user", "neighbors": "add-remove", "loss": 250_000_000, "delta": 10_000_000_000}
    ]
    assert json.loads(rows[1]["body"]["event"]) == json.loads(asked.event)
    table = list(csv.DictReader(io.StringIO(ledger.export_csv(ADS))))
    assert [row["hash"] for row in table] == [row["hash"] for row in rows]
    assert json.loads(table[1]["body"]) == rows[1]["body"]


def test_a_thousand_runs_are_totalled_within_a_second(sqlite_url: str) -> None:
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=budget(epsilon=100.0, delta=9e-5))
    ledger.commit(ledger.open_rows(ledger.reserve(ADS, charge(epsilon=0.05, delta=1e-9))))
    runs(ledger, 999)
    start = time.process_time()  # on one core, whatever else the machine does
    balance = Ledger.open(sqlite_url).balance(ADS)
    assert time.process_time() - start < 1.0
    assert balance.spent_epsilon == 50.0
    assert ledger.verify().entries == 3001


# --- bad input ---------------------------------------------------------------------------------------------

AMOUNTS = [math.nan, math.inf, -math.inf, -0.1, 0.0, -0.0, 5e-324, 2.2e-308, True, "0.1", None]


@pytest.mark.parametrize("amount", AMOUNTS)
def test_amounts_that_are_not_positive_finite_and_normal_are_refused(amount: Any) -> None:
    event = to_json(gaussian(noise_multiplier=1.0))
    with pytest.raises(ValueError):
        Charge(event=event, delta=amount, unit="user", purpose="x")
    if amount is not None:
        with pytest.raises(ValueError):
            Charge(event=event, delta=1e-6, unit="user", purpose="x", epsilon=amount)


@pytest.mark.parametrize("epsilon", [2**63 / 1e9, 2**64 / 1e9, 1e300])
def test_amount_beyond_64_bits_is_refused_not_wrapped(ledger: Ledger, epsilon: float) -> None:
    with pytest.raises((BudgetExceeded, LedgerError)):
        ledger.reserve(ADS, charge_of(gaussian(noise_multiplier=1.0), epsilon=epsilon))
    assert ledger.history(ADS) == []


@pytest.mark.parametrize(
    "event",
    [
        "",
        "{",
        "gaussian",
        '{"a": NaN}',
        '{"a":\n1}',
        "[" * 100_000,
        '{"event":"made-up"}',
        '{"event":"gaussian","noise_multiplier":1.0,"sigma":3}',
        '{"event":"gaussian","noise_multiplier":NaN}',
        '{"event":"gaussian","noise_multiplier":-1.0}',
        '{"event":"non-private","event":"gaussian"}',
    ],
)
def test_an_event_that_privads_did_not_write_is_refused(event: str) -> None:
    with pytest.raises(ValueError):
        Charge(event=event, delta=1e-6, unit="user", purpose="x")


@pytest.mark.parametrize("text", ["", "two\nlines", "\ud800", None])
def test_names_must_be_one_line_of_text(sqlite_url: str, text: Any) -> None:
    for name in ("purpose", "key", "holder"):
        with pytest.raises(ValueError, match=name):
            charge(**{name: text})
    with pytest.raises(ValueError, match="dataset"):
        Ledger.init(sqlite_url, dataset=text, budget=budget())


@pytest.mark.parametrize(
    "fields",
    [
        {"unit": "User"},
        {"unit": ""},
        {"neighbors": "nearby"},
        {"records": {"user": 0}},
        {"records": {"user": 2.0}},
        {"records": {"user": True}},
        {"records": {"No Unit": 2}},
        {"records": [("user", 2)]},
        {"records": None},
        {"blocks": "2026-11-22"},
        {"blocks": (20261122,)},
    ],
)
def test_malformed_terms_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        charge(**fields)


def test_terms_changed_past_the_constructor_are_refused(ledger: Ledger) -> None:
    asked = charge()
    object.__setattr__(asked, "neighbors", "nearby")  # past the checks of the constructor
    with pytest.raises((LedgerError, ValueError)):
        ledger.reserve(ADS, asked)
    assert ledger.history(ADS) == []


def test_a_dp_sgd_run_is_charged_what_its_plan_says(ledger: Ledger) -> None:
    event = dp_sgd(sampling_rate=0.01, noise_multiplier=2.0, steps=100)
    upper = accountant.epsilon(event, delta=1e-7, neighbors="add-remove").upper
    entry = ledger.reserve(ADS, charge_of(event, delta=1e-7, epsilon=upper))
    assert upper <= entry.epsilon <= upper + 1e-9


# --- accounting anew ---------------------------------------------------------------------------------------


def test_history_is_accounted_anew_after_a_bug_in_a_library(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = ledger.reserve(ADS, charge(epsilon=0.125))
    correct = accountant.epsilon
    monkeypatch.setattr(
        accountant, "epsilon", lambda *a, **k: replace(bounds := correct(*a, **k), upper=bounds.upper / 2)
    )
    wrong = ledger.reserve(ADS, charge(epsilon=0.5))
    ledger.abort(ledger.reserve(ADS, charge(epsilon=0.25)))
    assert wrong.epsilon == 0.25
    assert ledger.reaccount(ADS) == []
    monkeypatch.undo()
    assert ledger.reaccount(ADS) == [wrong]
    assert ledger.history(ADS)[0] == sound
    assert ledger.verify().entries == 5  # nothing was written


def test_a_stated_floor_needs_no_correction(ledger: Ledger) -> None:
    ledger.reserve(ADS, charge_of(approximate_dp(epsilon=0.25, delta=1e-8), delta=1e-8, epsilon=0.5))
    assert ledger.reaccount(ADS) == []


def test_an_event_that_is_no_longer_known_is_among_them(ledger: Ledger) -> None:
    ledger.commit(ledger.open_rows(ledger.reserve(ADS, charge())))
    step = ledger._store.rows()[1].step
    event = '{"event":"of-another-release"}'
    write(ledger, [replace(step, key="later", body={**step.body, "event": event})])
    assert [entry.event for entry in ledger.reaccount(ADS)] == [event]
