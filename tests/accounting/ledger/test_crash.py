"""Whatever is killed, and whenever: the log opens, its chain holds, and no spending that was promised is missing."""

import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection

from accounting.ledger import Ledger, LedgerError
from accounting.ledger.store import Store
from tests.accounting.ledger.helpers import ADS, budget, charge, refusal

if TYPE_CHECKING:
    from benchmarks.postgres import Server

COST = 0.001
ORDER = ["reserved", "opened", "committed"]
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([__name__])  # imported once, so a child starts in milliseconds


def _spend_until_killed(url: str, turn: int, report: Pipe) -> None:
    """Turns charges over, two of three committed and one aborted, and tells each step after it was done."""
    ledger = Ledger.open(url)
    while True:
        turn += 1
        entry = ledger.reserve(ADS, charge(epsilon=COST, delta=1e-13))
        report.send((entry.key, "reserved"))
        if turn % 3 == 0:
            report.send((entry.key, "aborting"))
            ledger.abort(entry)
            continue
        ledger.open_rows(entry)
        report.send((entry.key, "opened"))  # from here on rows may be read
        ledger.commit(entry)
        report.send((entry.key, "committed"))


def _kill_one(url: str, turn: int, promised: dict[str, str], *, after: int, wait_seconds: float) -> None:
    """Runs a spender, kills it, and adds to ``promised`` the last step that each of its charges was told of.

    The kill comes ``wait_seconds`` after the message of number ``after``.
    """
    receiver, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=_spend_until_killed, args=(url, turn, sender))
    child.start()
    sender.close()
    for _ in range(after):
        key, state = receiver.recv()
        promised[key] = state
    time.sleep(wait_seconds)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    try:
        while True:
            key, state = receiver.recv()
            promised[key] = state
    except EOFError:
        pass


def _check(ledger: Ledger, promised: dict[str, str]) -> None:
    ledger.verify()
    found = {entry.key: entry.state for entry in ledger.history(ADS)}
    for key, state in promised.items():
        if state == "aborting":
            assert found[key] in ("reserved", "aborted")
        else:
            assert ORDER.index(found[key]) >= ORDER.index(state)
    spent = round(ledger.balance(ADS).spent_epsilon / COST)
    assert spent == sum(state != "aborted" for state in found.values())
    assert spent >= sum(state != "aborting" for state in promised.values())


def _kill(url: str, times: int) -> None:
    """Kills at random moments of reserve, open, commit and abort, so many times.

    A moment falls between a charge's first and last message with a probability above one half, so that the check for
    that fails by chance with a probability below 2^-20.
    """
    ledger = Ledger.init(url, dataset=ADS, budget=budget(epsilon=100))
    source, promised = random.Random(17), dict[str, str]()
    for number in range(times):
        _kill_one(url, number, promised, after=1 + number % 5, wait_seconds=source.uniform(0, 0.005))
        if number % 20 == 0:
            _check(Ledger.open(url), promised)
    _check(ledger, promised)
    assert {"aborting", "committed"} <= set(promised.values())
    assert {"reserved", "opened"} & set(promised.values())
    ledger.reserve(ADS, charge(epsilon=COST))


def test_sigkill_loses_nothing_that_was_promised(sqlite_url: str) -> None:
    _kill(sqlite_url, 40)


@pytest.mark.slow
def test_sigkill_at_200_moments_loses_nothing_that_was_promised(sqlite_url: str) -> None:
    _kill(sqlite_url, 200)


def test_sigkill_of_a_client_of_a_server_loses_nothing_that_was_promised(postgres_url: str) -> None:
    _kill(postgres_url, 20)


def _spend_through_crashes(url: str, report: Pipe) -> None:
    """Reserves until killed; a charge whose outcome is unknown is repeated, unchanged, until it is known."""
    ledger = Ledger.open(url)
    while True:
        one = charge(epsilon=COST, delta=1e-13)
        report.send((one.key, "asked"))
        while True:
            try:
                ledger.reserve(ADS, one)
                break
            except LedgerError as error:
                report.send((one.key, str(error)))
                time.sleep(0.05)
        report.send((one.key, "reserved"))


def test_server_that_crashes_in_the_middle_loses_nothing_and_charges_nothing_twice(
    postgres: "Server", postgres_url: str
) -> None:
    ledger = Ledger.init(postgres_url, dataset=ADS, budget=budget(epsilon=100))
    pipes = [processes.Pipe(duplex=False) for _ in range(3)]
    children = [processes.Process(target=_spend_through_crashes, args=(postgres_url, sender)) for _, sender in pipes]
    for child, (receiver, sender) in zip(children, pipes, strict=True):
        child.start()
        sender.close()
        assert receiver.poll(60)
    source = random.Random(17)
    for _ in range(3):
        time.sleep(source.uniform(0.1, 0.4))
        postgres.stop(signal.SIGQUIT)  # as `pg_ctl stop -m immediate`: without a checkpoint
        postgres.start()
    time.sleep(0.5)  # the spenders find the server again
    for child in children:
        child.kill()
        child.join()
    told = [message for receiver, _ in pipes for message in _drain(receiver)]
    found = [entry.key for entry in ledger.history(ADS)]
    acknowledged = {key for key, said in told if said == "reserved"}
    failures = {said for _, said in told if said not in ("asked", "reserved")}
    assert ledger.verify().entries == 1 + len(found)
    assert acknowledged <= set(found) <= {key for key, _ in told}
    assert round(ledger.balance(ADS).spent_epsilon / COST) == len(found) == len(set(found))
    assert len(acknowledged) > 3
    assert failures  # it crashed under them
    for failure in failures:
        assert "\n" not in failure
        assert "cannot be reached" in failure or "may or may not be on the ledger" in failure


def _drain(receiver: Pipe) -> list[tuple[str, str]]:
    found = []
    try:
        while True:
            found.append(receiver.recv())
    except EOFError:
        return found


def _lose_the_reply(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the next commit reach the disk and its reply get lost, as when the network fails just then."""
    real, left = Store._commit, [1]

    def lossy(store: Store, connection: Connection) -> None:
        real(store, connection)
        if left:
            left.pop()
            raise LedgerError("the reply was lost")

    monkeypatch.setattr(Store, "_commit", lossy)
    return lambda: left.append(1)


def test_step_whose_reply_was_lost_is_repeated_without_harm(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, one = Ledger.init(url, dataset=ADS, budget=budget()), charge()
    lose_next = _lose_the_reply(monkeypatch)
    assert refusal(ledger.reserve, ADS, one) == "the reply was lost"
    entry: Any = ledger.reserve(ADS, one)
    for move in (ledger.open_rows, ledger.commit):
        lose_next()
        assert refusal(move, entry) == "the reply was lost"
        entry = move(entry)
    assert entry.state == "committed"
    assert ledger.verify().entries == 4
    assert ledger.balance(ADS).spent_epsilon == 0.1
