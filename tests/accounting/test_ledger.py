"""What the ledger promises, one claim a test; expected figures are added up by hand."""

import hashlib
import json
import math
import multiprocessing
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from dp_accounting import dp_event

from accounting import ledger_store
from accounting.budget import Budget, BudgetExceeded
from accounting.ledger import Charge, Ledger, LedgerError
from accounting.ledger_rules import DELTA_PLACES, EPSILON_PLACES, at_least, at_most, to_units
from accounting.ledger_store import Step
from accounting.mechanisms import dp_sgd, non_private, to_json

ADS = "ads-2026q4"
EVENT = to_json(dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=100))
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([__name__])  # imported once, so a child starts in milliseconds


def charge(epsilon: float = 0.1, delta: float = 1e-8, **fields: Any) -> Charge:
    return Charge(**{"unit": "user", "event": EVENT, "purpose": "train dcn", **fields}, epsilon=epsilon, delta=delta)


def budget(epsilon: float = 1.0, delta: float = 1e-6, unit: str = "user") -> Budget:
    return Budget(epsilon=epsilon, delta=delta, unit=unit)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "budget.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
def ledger(url: str) -> Ledger:
    return Ledger.init(url, dataset=ADS, budget=budget())


def refusal(function: Callable[..., Any], *args: Any, **named: Any) -> str:
    """The message with which the ledger refuses; it is one line."""
    with pytest.raises((LedgerError, BudgetExceeded)) as caught:
        function(*args, **named)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def tamper(path: Path, *statements: str) -> None:
    """Changes the file behind the ledger's back."""
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


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


def test_refusal_names_asked_left_and_limit(ledger: Ledger) -> None:
    ledger.reserve(ADS, charge(epsilon=0.75, delta=2.5e-7))
    message = refusal(ledger.reserve, ADS, charge(epsilon=0.5, delta=1e-8))
    for figure in ("0.5", "1e-08", "0.25", "7.5e-07", "1.0", "1e-06", "user", "add-remove", ADS):
        assert figure in message


def test_refused_charge_changes_nothing(ledger: Ledger) -> None:
    ledger.reserve(ADS, charge())
    before = ledger.head(), ledger.balance(ADS), ledger.history(ADS)
    for refused in (
        charge(epsilon=5),
        charge(delta=0.5),
        charge(unit="example"),
        charge(event=to_json(non_private())),
    ):
        refusal(ledger.reserve, ADS, refused)
    refusal(ledger.reserve, "other", charge())
    assert (ledger.head(), ledger.balance(ADS), ledger.history(ADS)) == before


def test_whole_limit_can_be_charged_at_once(url: str) -> None:
    for number, (epsilon, delta) in enumerate([(0.1, 1e-7), (3.0, 1e-9), (1 / 3, 1 / 3e7), (2.2, 0.3e-6)]):
        ledger = Ledger.init(url, dataset=f"ads-{number}", budget=budget(epsilon, delta))
        limit = ledger.balance(f"ads-{number}").limit
        ledger.reserve(f"ads-{number}", charge(limit.epsilon, limit.delta))
    for epsilon, delta in [(0.1, 1e-7), (3.0, 1e-9), (2.2, 0.3e-6)]:  # short decimals: the very same floats
        ledger = Ledger.init(url, dataset=f"same-{epsilon}", budget=budget(epsilon, delta))
        ledger.reserve(f"same-{epsilon}", charge(epsilon, delta))


def test_what_is_left_can_be_charged_and_nothing_more(ledger: Ledger) -> None:
    ledger.reserve(ADS, charge(epsilon=0.1234567891, delta=1.23456789e-15))
    left = ledger.balance(ADS)
    ledger.reserve(ADS, charge(left.left_epsilon, left.left_delta))
    refusal(ledger.reserve, ADS, charge(1e-9, 1e-18))


def test_data_sets_have_limits_of_their_own(ledger: Ledger) -> None:
    ledger.reserve(ADS, charge(epsilon=1.0))
    Ledger.init(ledger.url, dataset="ads-2027q1", budget=budget(epsilon=2.0))
    ledger.reserve("ads-2027q1", charge(epsilon=1.5))
    assert ledger.datasets() == [ADS, "ads-2027q1"]
    assert ledger.balance(ADS).spent_epsilon == 1.0
    assert ledger.balance("ads-2027q1").spent_epsilon == 1.5


def test_limit_is_set_once(ledger: Ledger) -> None:
    message = refusal(Ledger.init, ledger.url, dataset=ADS, budget=budget(epsilon=50))
    assert "set once" in message
    assert str(budget()) in message
    assert ledger.balance(ADS).limit == budget()


@pytest.mark.parametrize("limit", [budget(epsilon=1e-10), budget(delta=1e-19), budget(epsilon=1e10)])
def test_limit_that_the_units_cannot_hold_is_refused(url: str, path: Path, limit: Budget) -> None:
    assert "a limit must be" in refusal(Ledger.init, url, dataset=ADS, budget=limit)
    assert not path.exists()


# --- rounding ----------------------------------------------------------------------------------------------


def test_charges_round_up_to_the_units(ledger: Ledger) -> None:
    ledger.reserve(ADS, charge(epsilon=1e-10, delta=1e-30))
    spent = ledger.balance(ADS)
    assert (spent.spent_epsilon, spent.spent_delta) == (1e-9, 1e-18)
    ledger.reserve(ADS, charge(epsilon=1.0000000001e-9, delta=2.1e-18))
    spent = ledger.balance(ADS)
    assert (spent.spent_epsilon, spent.spent_delta) == (3e-9, 4e-18)


def test_limits_round_down_to_the_units(url: str) -> None:
    ledger = Ledger.init(url, dataset=ADS, budget=budget(epsilon=1.0000000019, delta=2.9e-18))
    assert (ledger.balance(ADS).limit.epsilon, ledger.balance(ADS).limit.delta) == (1.000000001, 2e-18)


def test_ten_charges_of_a_tenth_fill_a_limit_of_one(ledger: Ledger) -> None:
    for _ in range(10):
        ledger.reserve(ADS, charge(epsilon=0.1, delta=1e-7))
    balance = ledger.balance(ADS)
    assert (balance.spent_epsilon, balance.left_epsilon) == (1.0, 0.0)
    assert (balance.spent_delta, balance.left_delta) == (1e-6, 0.0)
    refusal(ledger.reserve, ADS, charge(epsilon=1e-9, delta=1e-18))


def test_units_are_the_printed_decimal_rounded_as_asked() -> None:
    source = random.Random(17)
    for _ in range(2000):
        amount = source.random() * 10 ** source.uniform(-12, 3)
        exact = Fraction(repr(amount)) * 10**9
        up = to_units(amount, EPSILON_PLACES, math.ceil)
        assert up - 1 < exact <= up
        assert abs(exact - Fraction(amount) * 10**9) <= Fraction(math.ulp(amount)) * 10**9 / 2


def test_floats_of_units_never_flatter() -> None:
    source = random.Random(17)
    for _ in range(2000):
        units = source.randrange(2**63)
        for places in (EPSILON_PLACES, DELTA_PLACES):
            exact = Fraction(units, 10**places)
            assert Fraction(repr(at_most(units, places))) <= exact <= Fraction(repr(at_least(units, places)))
            assert at_least(units, places) - at_most(units, places) <= 2 * math.ulp(float(exact))


@pytest.mark.parametrize(
    "amount", [math.nan, math.inf, -math.inf, -0.1, 0.0, -0.0, 5e-324, 2.2e-308, True, "0.1", None]
)
def test_amounts_that_are_not_positive_finite_and_normal_are_refused(amount: Any) -> None:
    with pytest.raises(ValueError):
        charge(epsilon=amount)
    with pytest.raises(ValueError):
        charge(delta=amount)


def test_amount_beyond_64_bits_is_refused_not_wrapped(ledger: Ledger) -> None:
    for epsilon in (2**63 / 1e9, 2**64 / 1e9, 1e300):
        with pytest.raises(BudgetExceeded):
            ledger.reserve(ADS, charge(epsilon=epsilon))


# --- states ------------------------------------------------------------------------------------------------


def test_a_charge_goes_from_reserved_to_opened_to_committed(ledger: Ledger) -> None:
    entry = ledger.reserve(ADS, charge(purpose="train wide & deep"))
    assert (entry.state, entry.opened_at, entry.closed_at) == ("reserved", None, None)
    assert ledger.open_rows(entry).state == "opened"
    assert ledger.balance(ADS).open_entries == 1
    closed = ledger.commit(entry)
    assert closed.state == "committed"
    assert closed.reserved_at <= closed.opened_at <= closed.closed_at
    assert closed.reserved_at.endswith("Z")
    assert ledger.history(ADS) == [closed]
    assert (closed.purpose, closed.event, closed.epsilon, closed.id) == ("train wide & deep", EVENT, 0.1, 2)
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
    ledger.commit(entry)
    refusal(ledger.abort, entry)
    assert ledger.balance(ADS).spent_epsilon == 0.1


def test_wrong_transitions_are_refused(ledger: Ledger) -> None:
    reserved, opened, committed, aborted = (ledger.reserve(ADS, charge()) for _ in range(4))
    for entry in (opened, committed):
        ledger.open_rows(entry)
    ledger.commit(committed)
    ledger.abort(aborted)
    before = ledger.head()
    wrong = [
        (ledger.commit, reserved),
        (ledger.open_rows, opened),
        (ledger.abort, opened),
        *(
            (move, closed)
            for closed in (committed, aborted)
            for move in (ledger.open_rows, ledger.commit, ledger.abort)
        ),
    ]
    for move, entry in wrong:
        assert f"entry {entry.id}" in refusal(move, entry)
    assert ledger.head() == before


def test_stale_reservation_counts_as_spent(ledger: Ledger) -> None:
    ledger.reserve(ADS, charge(epsilon=0.6))
    again = Ledger.open(ledger.url)
    assert again.balance(ADS).spent_epsilon == 0.6
    assert again.balance(ADS).open_entries == 1
    refusal(again.reserve, ADS, charge(epsilon=0.5))


def test_entry_of_another_ledger_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger.init(f"sqlite:///{tmp_path}/other.db", dataset=ADS, budget=budget())
    entry, own = other.reserve(ADS, charge()), ledger.reserve(ADS, charge())
    assert entry.id == own.id
    assert "no entry" in refusal(ledger.abort, entry)


# --- what cannot be charged --------------------------------------------------------------------------------


def test_key_is_used_once(ledger: Ledger) -> None:
    entry = ledger.reserve(ADS, charge(key="run-7"))
    assert "used before" in refusal(ledger.reserve, ADS, charge(key="run-7"))
    ledger.abort(entry)
    assert "used before" in refusal(ledger.reserve, ADS, charge(key="run-7"))
    Ledger.init(ledger.url, dataset="other", budget=budget())
    assert "used before" in refusal(ledger.reserve, "other", charge(key="run-7"))


def test_keys_are_fresh_unless_given() -> None:
    assert len({charge().key for _ in range(100)}) == 100


def test_unknown_data_set_is_refused_with_the_command_that_adds_it(ledger: Ledger) -> None:
    command = f"privads budget init --ledger {ledger.url} --dataset new --epsilon E --delta D --unit user"
    for ask in (ledger.balance, ledger.history, ledger.export):
        assert command in refusal(ask, "new")
    assert command in refusal(ledger.reserve, "new", charge())


def test_weaker_unit_is_refused(ledger: Ledger) -> None:
    message = refusal(ledger.reserve, ADS, charge(unit="example"))
    assert "protects user" in message
    assert "example" in message


def test_other_neighbors_are_refused(ledger: Ledger) -> None:
    other = charge()
    object.__setattr__(other, "neighbors", "replace")  # no such relation in this release
    with pytest.raises((LedgerError, ValueError)):
        ledger.reserve(ADS, other)
    assert ledger.history(ADS) == []


@pytest.mark.parametrize(
    "event",
    [
        to_json(non_private()),
        to_json(dp_event.SelfComposedDpEvent(non_private(), 3)),
        '{"event": "composed", "of": [{"event": "gaussian"}, {"event": "non-private"}]}',
        '{"event": "non-private", "event": "gaussian"}',
    ],
)
def test_run_without_privacy_cannot_be_charged(ledger: Ledger, event: str) -> None:
    assert "a run without privacy cannot be charged" in refusal(ledger.reserve, ADS, charge(event=event))
    assert ledger.history(ADS) == []


@pytest.mark.parametrize("event", ["", "{", "gaussian", '{"a": NaN}', '{"a":\n1}', "[" * 100_000])
def test_event_must_be_one_line_of_json(event: str) -> None:
    with pytest.raises(ValueError, match="event"):
        charge(event=event)


@pytest.mark.parametrize("text", ["", "two\nlines", "\ud800", None])
def test_names_must_be_one_line_of_text(url: str, text: Any) -> None:
    for name in ("purpose", "key"):
        with pytest.raises(ValueError, match=name):
            charge(**{name: text})
    with pytest.raises(ValueError, match="dataset"):
        Ledger.init(url, dataset=text, budget=budget())


# --- durability and concurrency ----------------------------------------------------------------------------


def _spend_until_killed(url: str, report: Connection) -> None:
    ledger = Ledger.open(url)
    while True:
        entry = ledger.reserve(ADS, charge(epsilon=0.001, delta=1e-12))
        report.send(("reserved", entry.key))
        ledger.open_rows(entry)
        report.send(("opened", entry.key))
        ledger.commit(entry)
        report.send(("committed", entry.key))


def test_sigkill_loses_nothing_that_was_promised(url: str) -> None:
    ledger = Ledger.init(url, dataset=ADS, budget=budget(epsilon=100))
    source = random.Random(17)
    promised: dict[str, str] = {}
    order = ["reserved", "opened", "committed"]
    for _ in range(20):
        receiver, sender = processes.Pipe(duplex=False)
        child = processes.Process(target=_spend_until_killed, args=(url, sender))
        child.start()
        sender.close()
        state, key = receiver.recv()  # it runs
        promised[key] = state
        time.sleep(source.uniform(0, 0.03))
        child.kill()
        child.join()
        try:
            while True:
                state, key = receiver.recv()
                promised[key] = state
        except EOFError:
            pass
    assert child.exitcode == -9
    found = {entry.key: entry for entry in ledger.history(ADS)}
    for key, state in promised.items():
        assert order.index(found[key].state) >= order.index(state)
    assert ledger.verify().entries > 20
    assert ledger.balance(ADS).spent_epsilon >= round(0.001 * len(promised), 3)
    ledger.reserve(ADS, charge(epsilon=0.001))


def _reserve_many(url: str, times: int, start: Barrier, report: Connection) -> None:
    start.wait()
    keys = []
    for _ in range(times):
        try:
            keys.append(Ledger.open(url).reserve(ADS, charge(epsilon=0.1, delta=1e-12)).key)
        except BudgetExceeded:
            keys.append(None)
    report.send(keys)


def test_processes_together_keep_the_limit_and_lose_nothing(url: str) -> None:
    ledger = Ledger.init(url, dataset=ADS, budget=budget(epsilon=6.0))
    start = processes.Barrier(4)
    pipes = [processes.Pipe(duplex=False) for _ in range(4)]
    children = [processes.Process(target=_reserve_many, args=(url, 25, start, sender)) for _, sender in pipes]
    for child, (_, sender) in zip(children, pipes, strict=True):
        child.start()
        sender.close()  # so that a child that fails ends the wait for its answer
    answers = [key for receiver, _ in pipes for key in receiver.recv()]
    for child in children:
        child.join()
    accepted = [key for key in answers if key is not None]
    assert len(answers) == 100
    assert len(accepted) == 60  # sixty tenths fill the limit of six exactly
    assert {entry.key for entry in ledger.history(ADS)} == set(accepted)
    assert ledger.balance(ADS).spent_epsilon == 6.0
    assert ledger.verify().entries == 61


def _init(url: str, name: str, start: Barrier) -> None:
    start.wait()
    Ledger.init(url, dataset=name, budget=budget())


def test_processes_may_create_one_file_together(url: str) -> None:
    start = processes.Barrier(4)
    children = [processes.Process(target=_init, args=(url, f"ads-{number}", start)) for number in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    assert sorted(Ledger.open(url).datasets()) == ["ads-0", "ads-1", "ads-2", "ads-3"]


def test_every_write_is_synced_to_the_disk(ledger: Ledger) -> None:
    with ledger._store._session(write=True) as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_reading_waits_for_no_writer(ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_store, "BUSY_SECONDS", 0.05)
    entry = ledger.reserve(ADS, charge())
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert ledger.history(ADS) == [entry]
        assert ledger.balance(ADS).spent_epsilon == 0.1
        assert ledger.verify().entries == 2
        assert "locked" in refusal(ledger.reserve, ADS, charge())
        writer.execute("ROLLBACK")
    assert ledger.history(ADS) == [entry]


# --- the chain ---------------------------------------------------------------------------------------------


@pytest.fixture
def busy(ledger: Ledger) -> Ledger:
    """Rows: 1 init; 2 reserve, 3 open, 4 commit; 5 reserve, 6 abort; 7 reserve."""
    entry = ledger.reserve(ADS, charge(key="first"))
    ledger.open_rows(entry)
    ledger.commit(entry)
    ledger.abort(ledger.reserve(ADS, charge(key="second")))
    ledger.reserve(ADS, charge(key="third"))
    return ledger


def test_chain_of_an_untouched_log_verifies(busy: Ledger) -> None:
    free = busy.verify()
    assert (free.entries, free.head, free.anchored) == (7, busy.head(), False)
    assert "not anchored" in str(free)
    assert busy.verify(head=free.head).anchored


def test_hash_is_sha256_of_the_canonical_row(busy: Ledger) -> None:
    previous = "0" * 64
    for row in busy.export(ADS):
        assert row["prev_hash"] == previous
        previous = row.pop("hash")
        text = json.dumps(row, sort_keys=True, separators=(",", ":"))
        assert previous == hashlib.sha256(text.encode()).hexdigest()
    assert previous == busy.head()


CHANGES = {
    "at": "'2020-01-01T00:00:00Z'",
    "kind": "'init'",
    "dataset": "'other'",
    "key": "'fifth'",
    "epsilon": "1",
    "delta": "1",
    "unit": "'example'",
    "neighbors": "'replace'",
    "purpose": "x'00ff'",
    "event": "'{}'",
    "prev_hash": "'00'",
    "hash": "'00'",
}


@pytest.mark.parametrize("column", CHANGES)
def test_changed_row_is_found(busy: Ledger, path: Path, column: str) -> None:
    tamper(path, f"UPDATE log SET {column} = {CHANGES[column]} WHERE seq = 5")
    assert "row 5" in refusal(busy.verify)


def test_every_column_is_under_the_hash(busy: Ledger) -> None:
    assert {"seq", *CHANGES} == set(busy.export(ADS)[0])


@pytest.mark.parametrize("seq", [1, 4, 6])
def test_removed_row_is_found(busy: Ledger, path: Path, seq: int) -> None:
    tamper(path, f"DELETE FROM log WHERE seq = {seq}")
    assert f"row {seq}: it is missing" in refusal(busy.verify)


def test_changed_row_with_a_hash_of_its_own_is_found_at_the_next(busy: Ledger, path: Path) -> None:
    row = {**busy.export(ADS)[4], "epsilon": 1}
    del row["hash"]
    fitting = hashlib.sha256(json.dumps(row, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    tamper(path, f"UPDATE log SET epsilon = 1, hash = '{fitting}' WHERE seq = 5")
    assert "row 6:" in refusal(busy.verify)


def test_removed_row_is_found_when_the_rest_is_renumbered(busy: Ledger, path: Path) -> None:
    tamper(
        path,
        "DELETE FROM log WHERE seq = 4",
        *(f"UPDATE log SET seq = {n - 1} WHERE seq = {n}" for n in (5, 6, 7)),
    )
    assert "row 4:" in refusal(busy.verify)


def test_reordered_rows_are_found(busy: Ledger, path: Path) -> None:
    tamper(path, *(f"UPDATE log SET seq = {b} WHERE seq = {a}" for a, b in ((3, 99), (5, 3), (99, 5))))
    assert "row 3:" in refusal(busy.verify)


def test_cut_tail_is_found_by_a_head_noted_elsewhere(busy: Ledger, path: Path) -> None:
    head = busy.head()
    tamper(path, "DELETE FROM log WHERE seq >= 6")
    assert not busy.verify().anchored  # a cut tail alone looks like a younger log
    assert head in refusal(busy.verify, head=head)


def test_head_stays_valid_while_the_log_grows(busy: Ledger) -> None:
    head = busy.head()
    busy.reserve(ADS, charge())
    assert busy.verify(head=head).anchored
    assert busy.head() != head


def test_emptied_log_is_found(busy: Ledger, path: Path) -> None:
    tamper(path, "DELETE FROM log")
    assert "row 1:" in refusal(busy.verify)


def test_nothing_is_read_or_charged_on_a_broken_chain(busy: Ledger, path: Path) -> None:
    entry = busy.history(ADS)[-1]
    tamper(path, "UPDATE log SET epsilon = 1 WHERE seq = 2")
    for ask in (busy.balance, busy.history):
        assert "row 2:" in refusal(ask, ADS)
    assert "row 2:" in refusal(busy.reserve, ADS, charge())
    assert "row 2:" in refusal(busy.open_rows, entry)
    assert "row 2:" in refusal(busy.datasets)
    assert len(busy.export(ADS)) == 7  # the evidence can still be looked at


AMOUNTS: dict[str, Any] = {"epsilon": 1, "delta": 1, "unit": "user", "neighbors": "add-remove"}
FORGERIES = {
    "overspent": [Step(kind="reserve", key="a", dataset=ADS, **{**AMOUNTS, "epsilon": 2 * 10**9})],
    "negative": [Step(kind="reserve", key="a", dataset=ADS, **{**AMOUNTS, "epsilon": -5})],
    "no amount": [Step(kind="reserve", key="a", dataset=ADS, **{**AMOUNTS, "epsilon": None})],
    "limit raised": [Step(kind="init", dataset=ADS, **AMOUNTS)],
    "refund after opening": [
        Step(kind="open", key="third", dataset=ADS),
        Step(kind="abort", key="third", dataset=ADS),
    ],
    "entry of another data set": [Step(kind="open", key="third", dataset="other")],
    "unknown kind": [Step(kind="refund", key="third", dataset=ADS)],  # type: ignore[arg-type]
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_row_that_breaks_the_rules_is_found_although_its_hash_fits(busy: Ledger, forgery: str) -> None:
    for step in FORGERIES[forgery]:
        busy._store.append(step, lambda rows, row: None)  # chained correctly, but past the rules
    assert f"row {7 + len(FORGERIES[forgery])}:" in refusal(busy.verify)


# --- files that are no ledger ------------------------------------------------------------------------------


def test_missing_file_is_refused_with_the_command_and_not_created(path: Path, url: str) -> None:
    command = f"privads budget init --ledger {url} --dataset NAME --epsilon E --delta D --unit user"
    assert command in refusal(Ledger.open, url)
    assert list(path.parent.iterdir()) == []


def test_removed_file_is_refused_and_not_created_anew(ledger: Ledger, path: Path) -> None:
    path.unlink()
    assert "privads budget init" in refusal(ledger.reserve, ADS, charge())
    assert not path.exists()


@pytest.mark.parametrize(
    "url", ["postgresql://me:hunter2@host/db", "sqlite://", "sqlite:///", "sqlite:///:memory:", "budget.db"]
)
def test_other_urls_are_refused_without_their_password(url: str) -> None:
    for use in (Ledger.open, lambda where: Ledger.init(where, dataset=ADS, budget=budget())):
        message = refusal(use, url)
        assert "sqlite:///budget.db" in message
        assert "hunter2" not in message


def test_relative_url_survives_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = Ledger.init("sqlite:///odd name?#%.db", dataset=ADS, budget=budget())
    monkeypatch.chdir("/")
    ledger.reserve(ADS, charge())
    assert [found.name for found in tmp_path.iterdir()] == ["odd name?#%.db"]


def _foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE log (seq INTEGER)")


@pytest.mark.parametrize("make", [lambda path: path.write_text("user_id,click\n1,0\n"), _foreign_database])
def test_file_that_is_no_ledger_is_refused_and_left_as_it_is(path: Path, url: str, make: Callable[[Path], Any]) -> None:
    make(path)
    before = path.read_bytes()
    assert "not a ledger" in refusal(Ledger.open, url)
    assert "not a ledger" in refusal(Ledger.init, url, dataset=ADS, budget=budget())
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_empty_file_is_no_ledger_but_may_become_one(path: Path, url: str) -> None:
    path.touch()
    assert "privads budget init" in refusal(Ledger.open, url)
    assert Ledger.init(url, dataset=ADS, budget=budget()).datasets() == [ADS]


def test_directory_is_refused(tmp_path: Path) -> None:
    assert "cannot be opened" in refusal(Ledger.open, f"sqlite:///{tmp_path}")
    assert "cannot be opened" in refusal(Ledger.init, f"sqlite:///{tmp_path}/no/b.db", dataset=ADS, budget=budget())


def test_ledger_of_another_version_is_refused(ledger: Ledger, path: Path) -> None:
    tamper(path, "PRAGMA user_version = 2")
    for use in (Ledger.open, lambda url: Ledger.init(url, dataset="new", budget=budget())):
        assert "format 2" in refusal(use, ledger.url)
    assert "format 2" in refusal(ledger.reserve, ADS, charge())


def test_damaged_file_is_one_clear_line(ledger: Ledger, path: Path) -> None:
    header = path.read_bytes()[:4096]
    path.write_bytes(header + b"\xff" * (path.stat().st_size - 4096))
    refusal(ledger.reserve, ADS, charge())
    refusal(Ledger.open, ledger.url)


def test_full_disk_spends_nothing(ledger: Ledger) -> None:
    entry = ledger.reserve(ADS, charge())
    big = charge(purpose="x" * 100_000)
    engine = ledger._store._engine
    pages = ledger._store._path.stat().st_size // 4096

    def limit(connection: sqlite3.Connection, record: object) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}")

    sqlalchemy.event.listen(engine, "connect", limit)
    assert "no space left" in refusal(ledger.reserve, ADS, big)
    sqlalchemy.event.remove(engine, "connect", limit)
    assert ledger.history(ADS) == [entry]
    ledger.reserve(ADS, big)


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Root may write anything; permissions are tested as a user who may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that every user can reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


@pytest.mark.parametrize(
    ("file_mode", "directory_mode"), [(0o444, 0o777), (0o666, 0o555), (0o444, 0o555), (0o000, 0o777)]
)
def test_read_only_ledger_refuses_to_charge_in_one_clear_line(
    shared: Path, file_mode: int, directory_mode: int
) -> None:
    path = shared / "budget.db"
    ledger = Ledger.init(f"sqlite:///{path}", dataset=ADS, budget=budget())
    path.chmod(file_mode)
    shared.chmod(directory_mode)
    with _as_nobody():
        assert "writable" in refusal(ledger.reserve, ADS, charge())
        assert "writable" in refusal(Ledger.init, ledger.url, dataset="new", budget=budget())
    shared.chmod(0o755)
    path.chmod(0o644)
    assert ledger.history(ADS) == []
    assert ledger.verify().entries == 1


def test_read_only_file_can_be_read_where_its_directory_is_writable(shared: Path) -> None:
    path = shared / "budget.db"
    ledger = Ledger.init(f"sqlite:///{path}", dataset=ADS, budget=budget())
    entry = ledger.reserve(ADS, charge())
    path.chmod(0o444)
    shared.chmod(0o777)
    with _as_nobody():
        assert Ledger.open(ledger.url).history(ADS) == [entry]
