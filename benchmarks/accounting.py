"""The accountant's figures and the ledger's endurance: `python -m benchmarks.accounting --json`.

Accountant: three published workloads, with the time beside each figure and dp-accounting at its default settings in
the same run. Ledger: the enforced total and the joint figure after many runs, many processes against one limit on
SQLite and on PostgreSQL, kills at random moments, and tampering.
"""

import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant
from rich.console import Console

from accounting import calibrate, mechanisms
from accounting.accountant import epsilon
from accounting.budget import Budget, BudgetExceeded
from accounting.ledger import Charge, Ledger, LedgerError
from benchmarks.harness import Figure, announced, json_line, table

DELTA = 1e-6
ADS = "ads"
UNIT = "user"
KILLS_PER_LEDGER = 20
SHARE = 1e-3
"""What one small charge costs, in epsilon."""

_Result = TypeVar("_Result")


def training_run(steps: int = 10_000) -> dp_event.DpEvent:
    """The workload of the field's tutorials: sampling rate 0.01, noise multiplier 1."""
    return mechanisms.dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=steps)


def long_run() -> dp_event.DpEvent:
    """What ads look like: tiny sampling rate, little noise, a million steps."""
    return mechanisms.dp_sgd(sampling_rate=1e-4, noise_multiplier=0.6, steps=1_000_000)


def phases(count: int = 20) -> dp_event.DpEvent:
    """A run whose sampling rate and noise change ``count`` times."""
    return mechanisms.composed(
        *[
            mechanisms.dp_sgd(sampling_rate=0.001 * (i + 1), noise_multiplier=0.8 + 0.05 * i, steps=500)
            for i in range(count)
        ]
    )


def accountant_figures(*, quick: bool) -> Iterator[Figure]:
    """Yields epsilon, its certified lower end and the time for each workload."""
    if quick:
        short = epsilon(training_run(100), delta=DELTA, certify=True)
        yield Figure(name="short_run_gap", value=short.upper - (short.lower or 0.0), unit="epsilon", at_most=0.05)
        return
    bounds, _ = timed(lambda: epsilon(training_run(), delta=DELTA))
    certified, seconds = timed(lambda: epsilon(training_run(), delta=DELTA, certify=True))
    yield Figure(name="training_run_upper", value=bounds.upper, unit="epsilon", at_least=6.906, at_most=6.915)
    yield Figure(name="training_run_lower", value=certified.lower or 0.0, unit="epsilon", at_least=6.89)
    yield Figure(name="training_run_certify_seconds", value=seconds, unit="s")

    bounds, seconds = timed(lambda: epsilon(long_run(), delta=DELTA))
    certified, certify_seconds = timed(lambda: epsilon(long_run(), delta=DELTA, certify=True))
    yield Figure(name="long_run_upper", value=bounds.upper, unit="epsilon", at_least=1.920, at_most=1.930)
    yield Figure(name="long_run_seconds", value=seconds, unit="s", at_most=3.0)
    yield Figure(name="long_run_lower", value=certified.lower or 0.0, unit="epsilon", at_least=1.900, at_most=1.9207)
    yield Figure(name="long_run_certify_seconds", value=certify_seconds, unit="s")

    bounds, seconds = timed(lambda: epsilon(phases(), delta=DELTA))
    theirs, their_seconds = timed(lambda: _library_epsilon(phases()))
    yield Figure(name="phases_upper", value=bounds.upper, unit="epsilon", at_least=4.628, at_most=4.640)
    yield Figure(name="phases_seconds", value=seconds, unit="s", at_most=5.0)
    yield Figure(name="phases_library_upper", value=theirs, unit="epsilon")
    yield Figure(name="phases_library_seconds", value=their_seconds, unit="s")


def calibration_figures(*, quick: bool) -> Iterator[Figure]:
    """Yields the least noise for epsilon 3, what it costs, and the time."""
    steps = 100 if quick else 10_000

    def make(noise: float) -> dp_event.DpEvent:
        return mechanisms.dp_sgd(sampling_rate=0.01, noise_multiplier=noise, steps=steps)

    budget = Budget(epsilon=3.0, delta=DELTA, unit="example")
    noise, seconds = timed(lambda: calibrate.noise_multiplier(make, budget))
    low, high = (None, None) if quick else (1.7083, 1.7095)
    yield Figure(name="calibrated_noise", value=noise, unit="noise multiplier", at_least=low, at_most=high)
    spent = epsilon(make(noise), delta=DELTA).upper
    yield Figure(name="calibrated_epsilon", value=spent, unit="epsilon", at_most=3.0)
    yield Figure(name="calibrate_seconds", value=seconds, unit="s", at_most=2.0)


def history_figures(folder: Path, *, runs: int, distinct: int) -> Iterator[Figure]:
    """Yields the time of the enforced total and of the joint figure after ``runs`` recorded runs."""
    url = f"sqlite:///{folder / 'history.db'}"
    ledger = Ledger.init(url, dataset=ADS, budget=Budget(epsilon=1e6, delta=9e-5, unit=UNIT))
    for number in range(runs):
        kind = number % distinct
        event = mechanisms.dp_sgd(sampling_rate=0.001, noise_multiplier=2.0 + 0.01 * kind, steps=100)
        entry = ledger.reserve(
            ADS, Charge(event=mechanisms.to_json(event), delta=1e-9, unit=UNIT, purpose=f"run {number}")
        )
        ledger.open_rows(entry)
        ledger.commit(entry)
    balance, seconds = timed(lambda: Ledger.open(url).balance(ADS))
    joint, cold = timed(lambda: Ledger.open(url).joint(ADS))
    _, cached = timed(lambda: Ledger.open(url).joint(ADS))
    yield Figure(name="history_runs", value=float(runs), unit="runs")
    yield Figure(name="enforced_total", value=balance.spent_epsilon, unit="epsilon")
    yield Figure(name="enforced_total_seconds", value=seconds, unit="s", at_most=1.0)
    yield Figure(name="joint_epsilon", value=joint.upper, unit="epsilon")
    yield Figure(name="joint_cold_seconds", value=cold, unit="s", at_most=30.0)
    yield Figure(name="joint_cached_seconds", value=cached, unit="s", at_most=1.0)


def concurrency_figures(name: str, url: str, *, processes: int, each: int) -> Iterator[Figure]:
    """Yields what ``processes`` x ``each`` reservations against one limit, which not all of them fit, left behind."""
    fit = processes * each * 9 // 10
    Ledger.init(url, dataset=ADS, budget=Budget(epsilon=round(fit * SHARE, 9), delta=9e-5, unit=UNIT))

    def reserve(say: Callable[[str], object]) -> None:
        ledger = Ledger.open(url)
        for number in range(each):
            with suppress(BudgetExceeded):
                say(ledger.reserve(ADS, small_charge(f"reservation {number}")).key)

    started = time.perf_counter()
    workers = [Worker(reserve) for _ in range(processes)]
    acknowledged = [key for worker in workers for key in worker.said()]
    seconds = time.perf_counter() - started
    ledger = Ledger.open(url)
    recorded = {entry.key for entry in ledger.history(ADS)}
    over = max(0.0, ledger.balance(ADS).spent_epsilon - ledger.balance(ADS).limit.epsilon)
    ledger.verify()
    lost = len(set(acknowledged) - recorded)
    yield Figure(name=f"{name}_over_the_limit", value=over, unit="epsilon", at_most=0.0)
    yield Figure(name=f"{name}_lost", value=float(lost), unit="reservations", at_most=0.0)
    accepted = float(len(recorded))
    yield Figure(name=f"{name}_accepted", value=accepted, unit="reservations", at_least=float(fit), at_most=float(fit))
    least = 100.0 if name == "postgresql" and each >= 100 else None
    yield Figure(name=f"{name}_rate", value=processes * each / seconds, unit="reservations/s", at_least=least)


def crash_figures(folder: Path, *, kills: int, within_seconds: float = 0.1, seed: int = 0) -> Iterator[Figure]:
    """Yields what ``kills`` of a process at random moments of reserve, open, commit and abort left behind."""
    moments, found = random.Random(seed), {"read": 0, "understated": 0, "unopenable": 0}
    for first in range(0, kills, KILLS_PER_LEDGER):
        url = f"sqlite:///{folder / f'crash-{first}.db'}"
        Ledger.init(url, dataset=ADS, budget=Budget(epsilon=1e6, delta=9e-5, unit=UNIT))
        read: set[str] = set()
        for _ in range(min(KILLS_PER_LEDGER, kills - first)):
            worker = Worker(partial(churn, url))
            time.sleep(moments.uniform(0.0, within_seconds))
            worker.kill()
            read |= set(worker.said())
            try:
                ledger = Ledger.open(url)
                ledger.verify()
            except LedgerError:
                found["unopenable"] += 1
                continue
            kept = {entry.key for entry in ledger.history(ADS) if entry.state in ("opened", "committed")}
            spent = ledger.balance(ADS).spent_epsilon
            found["understated"] += not read <= kept or spent < len(read) * SHARE * (1 - 1e-9)
        found["read"] += len(read)
    yield Figure(name="kills", value=float(kills), unit="kills")
    yield Figure(name="kills_executions", value=float(found["read"]), unit="executions that read rows")
    yield Figure(name="kills_understated", value=float(found["understated"]), unit="kills", at_most=0.0)
    yield Figure(name="kills_unopenable", value=float(found["unopenable"]), unit="kills", at_most=0.0)


def churn(url: str, say: Callable[[str], object]) -> None:
    """Reserves, aborts, opens and commits until it is killed; says which executions read rows."""
    ledger = Ledger.open(url)
    while True:
        ledger.abort(ledger.reserve(ADS, small_charge("to be aborted")))
        entry = ledger.open_rows(ledger.reserve(ADS, small_charge("to be read")))
        say(entry.key)  # from here on its rows were read, and something may have been released
        ledger.commit(entry)


class Worker:
    """A forked process that runs ``job(say)``; what it says is kept whole and in order, even if it is killed."""

    def __init__(self, job: Callable[[Callable[[str], object]], None]) -> None:
        self._lines, end = os.pipe()
        self._process = os.fork()
        if self._process == 0:
            try:
                job(lambda line: os.write(end, f"{line}\n".encode()))
            finally:
                os._exit(0)
        os.close(end)

    def kill(self) -> None:
        """Kills the process at once, as a crash does."""
        os.kill(self._process, signal.SIGKILL)

    def said(self) -> list[str]:
        """Returns what it said until it ended."""
        with os.fdopen(self._lines) as lines:
            found = lines.read().split()
        os.waitpid(self._process, 0)
        return found


def tamper_figures(folder: Path) -> Iterator[Figure]:
    """Yields how many ways of changing the file behind the ledger's back are found."""
    original = folder / "original.db"
    ledger = Ledger.init(f"sqlite:///{original}", dataset=ADS, budget=Budget(epsilon=1.0, delta=9e-5, unit=UNIT))
    for number in range(3):
        ledger.commit(ledger.open_rows(ledger.reserve(ADS, small_charge(f"run {number}"))))
    head = ledger.head()
    inner = {
        "changed": "UPDATE log SET body = replace(body, 'run 1', 'run 9') WHERE seq = 5",
        "removed": "DELETE FROM log WHERE seq = 5",
        "reordered": "UPDATE log SET seq = CASE seq WHEN 4 THEN 5 ELSE 4 END + 1000 WHERE seq IN (4, 5);"
        "UPDATE log SET seq = seq - 1000 WHERE seq > 1000",
    }
    named = sum("row" in refusal(tampered(original, folder / f"{how}.db", sql)) for how, sql in inner.items())
    cut = tampered(original, folder / "cut.db", "DELETE FROM log WHERE seq > 7")
    rewritten = f"sqlite:///{folder / 'rewritten.db'}"
    Ledger.init(rewritten, dataset=ADS, budget=Budget(epsilon=1.0, delta=9e-5, unit=UNIT))
    anchored = sum("broken" in refusal(url, head=head) for url in (cut, rewritten))
    unanchored = "not anchored" in str(Ledger.open(cut).verify())
    yield Figure(name="inner_entries_named", value=float(named), unit="of 3 tamperings", at_least=3.0)
    yield Figure(name="tails_found_by_head", value=float(anchored), unit="of 2 tamperings", at_least=2.0)
    yield Figure(name="tail_said_to_be_unanchored", value=float(unanchored), unit="of 1", at_least=1.0)


def tampered(original: Path, copy: Path, sql: str) -> str:
    """Returns the URL of a copy of the ledger that was changed behind its back."""
    with closing(sqlite3.connect(original)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        for (trigger,) in target.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            target.execute(f"DROP TRIGGER {trigger}")
        target.executescript(sql)
    return f"sqlite:///{copy}"


def refusal(url: str, *, head: str | None = None) -> str:
    """Returns what `verify` says against the file; nothing where it finds nothing."""
    try:
        Ledger.open(url).verify(head=head)
    except LedgerError as error:
        return str(error)
    return ""


def small_charge(purpose: str) -> Charge:
    """Returns a charge of 0.001 that costs no accounting."""
    event = mechanisms.approximate_dp(epsilon=SHARE, delta=1e-12)
    return Charge(event=mechanisms.to_json(event), delta=1e-12, unit=UNIT, purpose=purpose)


def timed(function: Callable[[], _Result]) -> tuple[_Result, float]:
    """Returns the result and the seconds it took."""
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def _library_epsilon(event: dp_event.DpEvent) -> float:
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    return float(accountant.compose(event).get_epsilon(DELTA))


@contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    """Keeps the joint figure's cache in ``folder``, so that the first one is computed."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


@contextmanager
def postgresql(given: str | None) -> Iterator[str | None]:
    """Lends the URL of an empty database: the given one, or one of a server that ends with the block; None without."""
    if given is not None or find_spec("psycopg") is None:
        yield given
        return
    from benchmarks.postgres import Server, binaries

    programs = binaries()
    if programs is None:
        yield None
        return
    server = Server(programs)
    try:
        server.empty("ledger")
        yield server.url("ledger")
    finally:
        server.remove()


def measure(folder: Path, *, quick: bool, postgres_url: str | None) -> Iterator[Figure]:
    """Yields all figures."""
    processes, each = (2, 5) if quick else (8, 200)
    yield from accountant_figures(quick=quick)
    yield from calibration_figures(quick=quick)
    with _own_cache(folder / "cache"):
        yield from history_figures(folder, runs=10 if quick else 1000, distinct=2 if quick else 50)
    yield from concurrency_figures("sqlite", f"sqlite:///{folder / 'many.db'}", processes=processes, each=each)
    if postgres_url is not None:
        yield from concurrency_figures("postgresql", postgres_url, processes=processes, each=each)
    yield from crash_figures(folder, kills=3 if quick else 200)
    yield from tamper_figures(folder)


def main(
    postgres_url: Annotated[
        str | None, typer.Option("--postgres", help="An empty PostgreSQL database; without it a server is started.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: does it work?")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Measure the accountant's figures and the ledger's endurance."""
    skipped: list[str] = []
    with tempfile.TemporaryDirectory() as name, postgresql(postgres_url) as url:
        if url is None:
            skipped.append("postgresql")
            typer.echo("postgresql: skipped, its server or psycopg is not installed", err=True)
        figures = announced(measure(Path(name), quick=quick, postgres_url=url))
    if as_json:
        print(json_line("accounting", figures, quick=quick, skipped=skipped))
        return
    Console(width=None if sys.stdout.isatty() else 140).print(table(figures, title="privads.accounting"))


if __name__ == "__main__":
    typer.run(main)
