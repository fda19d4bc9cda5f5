"""Many processes on one ledger: together they keep each limit, and nothing of what they were told is lost."""

import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from accounting.budget import BudgetExceeded
from accounting.ledger import Charge, Ledger, LedgerError
from tests.accounting.ledger.helpers import ADS, budget, charge

WORKERS = 8
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([__name__])  # imported once, so a child starts in milliseconds


def _reserve_many(url: str, times: int, start: Barrier, report: Connection) -> None:
    ledger = Ledger.open(url)
    start.wait()
    keys: list[str | None] = []
    for _ in range(times):
        try:
            keys.append(ledger.reserve(ADS, charge(epsilon=0.1, delta=1e-12)).key)
        except BudgetExceeded:
            keys.append(None)
    report.send(keys)


def _check(url: str, times: int, *, fit: int) -> None:
    ledger = Ledger.init(url, dataset=ADS, budget=budget(epsilon=fit / 10))
    start = processes.Barrier(WORKERS)
    pipes = [processes.Pipe(duplex=False) for _ in range(WORKERS)]
    children = [processes.Process(target=_reserve_many, args=(url, times, start, sender)) for _, sender in pipes]
    for child, (_, sender) in zip(children, pipes, strict=True):
        child.start()
        sender.close()  # so that a child that fails ends the wait for its answer
    answers = [key for receiver, _ in pipes for key in receiver.recv()]
    for child in children:
        child.join()
    accepted = [key for key in answers if key is not None]
    assert len(answers) == WORKERS * times
    assert len(accepted) == fit  # that many tenths fill the limit exactly
    assert {entry.key for entry in ledger.history(ADS)} == set(accepted)
    assert ledger.balance(ADS).spent_epsilon == fit / 10
    assert ledger.balance(ADS).left_epsilon == 0
    assert ledger.verify().entries == fit + 1


def test_processes_together_keep_the_limit_and_lose_nothing(url: str) -> None:
    _check(url, 20, fit=100)


@pytest.mark.slow
def test_eight_processes_of_two_hundred_reservations_keep_the_limit(url: str) -> None:
    _check(url, 200, fit=1200)


def _init(url: str, name: str, start: Barrier) -> None:
    start.wait()
    Ledger.init(url, dataset=name, budget=budget())


def test_processes_may_create_one_ledger_together(url: str) -> None:
    start = processes.Barrier(4)
    children = [processes.Process(target=_init, args=(url, f"ads-{number}", start)) for number in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    assert sorted(Ledger.open(url).datasets()) == ["ads-0", "ads-1", "ads-2", "ads-3"]


def _reserve_one(url: str, key: str, start: Barrier, report: Connection) -> None:
    ledger = Ledger.open(url)
    start.wait()
    try:
        report.send(ledger.reserve(ADS, charge(key=key)).key)
    except Exception as error:
        report.send(str(error))


def test_of_processes_with_one_key_a_single_one_may_run(url: str) -> None:
    ledger = Ledger.init(url, dataset=ADS, budget=budget())
    start = processes.Barrier(4)
    pipes = [processes.Pipe(duplex=False) for _ in range(4)]
    children = [processes.Process(target=_reserve_one, args=(url, "run-7", start, sender)) for _, sender in pipes]
    for child in children:
        child.start()
    answers = sorted(receiver.recv() for receiver, _ in pipes)
    for child in children:
        child.join()
    assert answers.count("run-7") == 1
    assert sum("used before" in answer for answer in answers) == 3
    assert ledger.balance(ADS).spent_epsilon == 0.1


def _open_one(url: str, asked: Charge, start: Barrier, report: Connection) -> None:
    ledger = Ledger.open(url)
    start.wait()
    try:
        report.send(ledger.open_rows(ledger.reserve(ADS, asked)).state)
    except LedgerError as error:
        report.send(str(error))


def test_of_processes_that_got_one_charge_a_single_one_may_run(url: str) -> None:
    """A charge that was handed to several workers, its secret with it, was a retry to each: all ran, and one paid."""
    ledger = Ledger.init(url, dataset=ADS, budget=budget())
    start, asked = processes.Barrier(3), charge()
    pipes = [processes.Pipe(duplex=False) for _ in range(3)]
    children = [processes.Process(target=_open_one, args=(url, asked, start, sender)) for _, sender in pipes]
    for child in children:
        child.start()
    answers = [receiver.recv() for receiver, _ in pipes]
    for child in children:
        child.join()
    assert answers.count("opened") == 1
    assert sum("reserve a new charge" in answer or "needs a new key" in answer for answer in answers) == 2
    assert ledger.balance(ADS).spent_epsilon == 0.1


def test_a_ledger_is_left_whole_by_processes_that_read_and_write_at_once(sqlite_url: str, path: Path) -> None:
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=budget(epsilon=100))
    start, pipes = processes.Barrier(3), [processes.Pipe(duplex=False) for _ in range(2)]
    children = [processes.Process(target=_reserve_many, args=(sqlite_url, 30, start, sender)) for _, sender in pipes]
    for child in children:
        child.start()
    start.wait()
    spent = [0.0]
    while any(child.is_alive() for child in children):
        spent.append(ledger.balance(ADS).spent_epsilon)  # each reading checks the chain
    assert spent == sorted(spent)
    assert ledger.balance(ADS).spent_epsilon == 6.0
    assert path.exists()
