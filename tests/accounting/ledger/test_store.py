"""What the log promises whatever is written in it: a chain that shows tampering, one clear line for every failure."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy

from accounting.budget import LedgerError
from accounting.ledger import databases
from accounting.ledger.store import FORMAT_VERSION, GENESIS, Mark, Row, Step, Store, check_chain

if TYPE_CHECKING:
    from benchmarks.postgres import Server

ADS = "ads-2026q4"
Tamper = Callable[..., None]


def anything(rows: Sequence[Row], row: Row) -> None:
    """Rules that let every step in."""


def step(number: int = 0, dataset: str = ADS) -> Step:
    return Step(kind="reserve", dataset=dataset, key=f"run-{number}", body={"costs": [number, 2.5e-7], "unit": "user"})


def mark(row: Row) -> Mark:
    return Mark(seq=row.seq, hash=row.hash)


def filled(url: str, rows: int = 7) -> Store:
    store = Store(url, create=True)
    for number in range(rows):
        store.append(step(number), anything)
    return store


@pytest.fixture
def store(url: str) -> Store:
    """A log of seven rows."""
    return filled(url)


def refusal(function: Callable[..., Any], *args: Any, **named: Any) -> str:
    """The message with which the log refuses; it is one line, and neither it nor its causes show a password."""
    with pytest.raises(LedgerError) as caught:
        function(*args, **named)
    told = "".join(traceback.format_exception_only(caught.value))
    cause = caught.value.__cause__
    while cause is not None:
        told += "".join(traceback.format_exception_only(cause))
        cause = cause.__cause__
    assert "hunter2" not in told
    assert "tr0ub4dor" not in told
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def verdict(store: Store) -> str:
    """What checking the whole log says of it."""
    return refusal(lambda: check_chain(store.rows(), store.shown))


# --- the chain ---------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_appended(url: str) -> None:
    store = Store(url, create=True)
    steps = [
        Step(kind="init", dataset="anzeigen-käufe-広告", body={"columns": [{"unit": "user", "epsilon": 10**18}]}),
        Step(
            kind="reserve", dataset=ADS, key="a", body={"purpose": 'sämtlich "alles" 🙂', "x": None, "y": [0.1, 1e-300]}
        ),
    ]
    rows = [store.append(one, anything) for one in steps]
    assert [row.step for row in rows] == steps
    assert Store(url).rows() == rows
    assert [row.seq for row in rows] == [1, 2]
    assert all(row.at.endswith("Z") for row in rows)


def test_hash_is_sha256_of_the_canonical_row_and_names_the_row_before(store: Store) -> None:
    previous = GENESIS
    for row in store.rows():
        columns = row.as_dict()
        assert columns["prev_hash"] == previous
        previous = columns.pop("hash")
        text = json.dumps(columns, sort_keys=True, separators=(",", ":"))
        assert previous == hashlib.sha256(text.encode()).hexdigest()


def test_steps_that_json_cannot_hold_are_not_written(store: Store) -> None:
    for body in ({"x": float("nan")}, {"x": float("inf")}, {"x": {1, 2}}):
        with pytest.raises((ValueError, TypeError)):
            store.append(Step(kind="reserve", dataset=ADS, body=body), anything)
    assert len(store.rows()) == 7


CHANGES = {
    "at": "'2020-01-01T00:00:00Z'",
    "kind": "'init'",
    "dataset": "'other'",
    "key": "'fifth'",
    "body": """'{"costs":[1,2.5e-07],"unit":"user"}'""",
    "prev_hash": "'00'",
    "hash": "'00'",
}


@pytest.mark.parametrize("column", CHANGES)
def test_changed_row_is_named(store: Store, tamper: Tamper, column: str) -> None:
    check_chain(store.rows(), store.shown)
    tamper(f"UPDATE log SET {column} = {CHANGES[column]} WHERE seq = 5")
    assert "row 5:" in verdict(store)
    assert "row 5:" in refusal(store.append, step(8), anything)
    assert len(store.rows()) == 7  # the evidence can still be looked at, and nothing was added


def test_every_column_is_under_the_hash(store: Store) -> None:
    assert {"seq", *CHANGES} == set(store.rows()[0].as_dict())


@pytest.mark.parametrize("body", ['{"costs": [4,2.5e-07],"unit":"user"}', '{"a":1,"a":1}', "[]", "{", "[" * 100_000])
def test_body_that_is_not_as_privads_writes_it_is_found(store: Store, tamper: Tamper, body: str) -> None:
    tamper(f"UPDATE log SET body = '{body}' WHERE seq = 5")
    assert "row 5: its content was changed" in verdict(store)


@pytest.mark.parametrize("column", ["at", "kind", "dataset", "key", "body", "prev_hash", "hash"])
def test_planted_bytes_are_found_in_a_file_without_types(sqlite_url: str, path: Path, column: str) -> None:
    store = filled(sqlite_url)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TRIGGER log_refuses_update")
        connection.execute(f"UPDATE log SET {column} = x'00ff' WHERE seq = 5")
        connection.commit()
    assert "row 5:" in verdict(store)
    json.dumps(store.rows()[4].as_dict())  # it can still be exported


@pytest.mark.parametrize("seq", [1, 4, 6])
def test_removed_row_is_named(store: Store, tamper: Tamper, seq: int) -> None:
    tamper(f"DELETE FROM log WHERE seq = {seq}")
    assert f"row {seq}: it is missing" in verdict(store)


def test_removed_row_is_named_when_the_rest_is_renumbered(store: Store, tamper: Tamper) -> None:
    tamper("DELETE FROM log WHERE seq = 4", *(f"UPDATE log SET seq = {n - 1} WHERE seq = {n}" for n in (5, 6, 7)))
    assert "row 4:" in verdict(store)


def test_reordered_rows_are_named(store: Store, tamper: Tamper) -> None:
    tamper(*(f"UPDATE log SET seq = {b} WHERE seq = {a}" for a, b in ((3, 99), (5, 3), (99, 5))))
    assert "row 3:" in verdict(store)


def test_emptied_log_is_found(store: Store, tamper: Tamper) -> None:
    tamper("DELETE FROM log")
    assert "row 1: it is missing" in verdict(store)
    assert "row 1: it is missing" in refusal(store.append, step(), anything)


def test_changed_row_with_a_hash_of_its_own_is_found_at_the_next(store: Store, tamper: Tamper) -> None:
    row = {**store.rows()[4].as_dict(), "key": "fifth"}
    del row["hash"]
    fitting = hashlib.sha256(json.dumps(row, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    tamper(f"UPDATE log SET key = 'fifth', hash = '{fitting}' WHERE seq = 5")
    assert "row 6:" in verdict(store)


def test_the_database_itself_refuses_changes(store: Store, url: str, request: pytest.FixtureRequest) -> None:
    statements = ["UPDATE log SET key = 'x' WHERE seq = 5", "DELETE FROM log WHERE seq = 5"]
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(request.getfixturevalue("path"))) as connection:
            for statement in statements:
                with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                    connection.execute(statement)
    else:
        server: Server = request.getfixturevalue("postgres")
        with server.connect("ledger", search_path="privads_ledger") as owner:
            for statement in [*statements, "TRUNCATE log"]:
                with pytest.raises(Exception, match="append-only"):
                    owner.execute(statement)
    check_chain(store.rows(), store.shown)


# --- appending ---------------------------------------------------------------------------------------------


def test_rules_see_the_whole_checked_log_and_the_row_to_come(store: Store) -> None:
    seen: list[tuple[list[Row], Row]] = []
    row = store.append(step(7), lambda rows, row: seen.append((list(rows), row)))
    assert seen == [(store.rows()[:7], row)]


def test_rules_see_only_what_is_new_since_a_mark(store: Store) -> None:
    rows = store.rows()
    for first in (7, 5, 1):
        seen: list[Row] = []
        added = store.append(step(first), lambda found, row, seen=seen: seen.extend(found), mark(rows[first - 1]))
        assert seen == rows[first:]
        rows.append(added)
    check_chain(store.rows(), store.shown)
    assert [row.seq for row in store.rows()] == list(range(1, 11))


def test_what_the_rules_refuse_leaves_no_trace(store: Store) -> None:
    before = store.rows()

    def no(rows: Sequence[Row], row: Row) -> None:
        raise KeyError(row.seq)

    for since in (None, mark(before[-1])):
        with pytest.raises(KeyError):
            store.append(step(8), no, since)
    assert store.rows() == before
    assert store.append(step(8), anything).seq == 8


def test_refused_first_step_makes_no_ledger(url: str) -> None:
    def no(rows: Sequence[Row], row: Row) -> None:
        raise KeyError(row.seq)

    with pytest.raises(KeyError):
        Store(url, create=True).append(step(), no)
    assert "there is no ledger" in refusal(Store(url).rows)


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM log WHERE seq >= 5",
        "DELETE FROM log WHERE seq = 5",
        "UPDATE log SET key = 'x' WHERE seq = 5",
        "UPDATE log SET hash = 'x' WHERE seq = 5",
    ],
)
def test_row_at_the_mark_that_is_gone_or_changed_is_named(store: Store, tamper: Tamper, change: str) -> None:
    since = mark(store.rows()[4])
    tamper(change)
    assert "row 5:" in refusal(store.append, step(8), anything, since)


def test_mark_of_another_log_is_refused(store: Store, other_url: str) -> None:
    other = filled(other_url, rows=1)
    longer = other.append(step(99), anything)
    assert "row 2:" in refusal(store.append, step(8), anything, mark(longer))
    for number in range(8):
        longer = other.append(step(number), anything)
    assert "row 10: it is missing" in refusal(store.append, step(8), anything, mark(longer))


def test_new_rows_are_checked_from_the_mark_on(store: Store, tamper: Tamper) -> None:
    since = mark(store.rows()[3])
    tamper("UPDATE log SET key = 'x' WHERE seq = 6")
    assert "row 6:" in refusal(store.append, step(8), anything, since)


def test_reading_waits_for_no_writer_and_writers_wait_in_turn(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "BUSY_SECONDS", 0.05)

    def meanwhile(rows: Sequence[Row], row: Row) -> None:
        second = Store(url)
        assert len(second.rows()) == 7
        assert "is locked: another process has held it for 0.05 s" in refusal(second.append, step(9), anything)

    store.append(step(8), meanwhile)
    assert len(store.rows()) == 8


def test_threads_may_share_a_store(store: Store) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                store.append(step(100 * number + turn), anything)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    check_chain(store.rows(), store.shown)
    assert len(store.rows()) == 37


def test_forked_processes_may_share_a_store(store: Store) -> None:
    children = []
    for number in range(3):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for turn in range(5):
                    store.append(step(100 * number + turn), anything)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    for turn in range(5):
        store.append(step(1000 + turn), anything)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    check_chain(store.rows(), store.shown)
    assert len(store.rows()) == 27


# --- SQLite: every file that is no ledger, or cannot be written ----------------------------------------------


def test_every_write_is_synced_to_the_disk_by_sqlite(sqlite_url: str) -> None:
    with filled(sqlite_url)._session(write=True) as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_missing_ledger_is_refused_with_the_command_that_makes_it(url: str) -> None:
    store = Store(url)
    for use in (store.rows, lambda: store.append(step(), anything)):
        message = refusal(use)
        assert "there is no ledger at" in message
        assert "privads budget init --ledger" in message
        assert "--dataset NAME --epsilon E --delta D --unit user" in message


def test_missing_file_is_not_created(sqlite_url: str, path: Path) -> None:
    refusal(Store(sqlite_url).rows)
    refusal(Store(sqlite_url).append, step(), anything)
    last = filled(sqlite_url).rows()[-1]
    path.unlink()
    refusal(Store(sqlite_url).append, step(), anything)
    for create in (False, True):
        refusal(Store(sqlite_url, create=create).append, step(), anything, mark(last))
    path.unlink()  # empty, as SQLite makes it for whoever may create a ledger
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host/db",
        "postgresql+psycopg2://me:hunter2@host/db",
        "mysql://me:hunter2@host/db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "budget.db",
    ],
)
def test_other_urls_are_refused_without_their_password(url: str) -> None:
    for create in (False, True):
        message = refusal(Store, url, create=create)
        assert "sqlite:///budget.db" in message
        assert "postgresql+psycopg://user@host/database" in message


def test_relative_url_survives_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = filled("sqlite:///odd name?#%.db")
    monkeypatch.chdir("/")
    store.append(step(), anything)
    assert [found.name for found in tmp_path.iterdir()] == ["odd name?#%.db"]


def _foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE log (seq INTEGER)")


@pytest.mark.parametrize("make", [lambda path: path.write_text("user_id,click\n1,0\n"), _foreign_database])
def test_file_that_is_no_ledger_is_refused_and_left_as_it_is(
    path: Path, sqlite_url: str, make: Callable[[Path], Any]
) -> None:
    make(path)
    before = path.read_bytes()
    for create in (False, True):
        assert "not a ledger" in refusal(Store(sqlite_url, create=create).rows)
        assert "not a ledger" in refusal(Store(sqlite_url, create=create).append, step(), anything)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_empty_file_is_no_ledger_but_may_become_one(path: Path, sqlite_url: str) -> None:
    path.touch()
    assert "privads budget init" in refusal(Store(sqlite_url).rows)
    assert len(filled(sqlite_url, rows=1).rows()) == 1


def test_file_that_becomes_a_ledger_while_it_is_looked_at_is_not_taken_for_another_file(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two processes that create one ledger, one read the file's mark before the other set it, the rest after."""
    look = databases._pragma

    def look_slowly(connection: Any, name: str) -> int:
        found = look(connection, name)
        monkeypatch.undo()
        filled(sqlite_url, rows=1)
        return found

    monkeypatch.setattr(databases, "_pragma", look_slowly)
    assert Store(sqlite_url, create=True).append(step(1), anything).seq == 2


def test_process_that_creates_a_ledger_waits_for_another_that_does(sqlite_url: str, path: Path) -> None:
    """SQLite answers BUSY at once to a change to WAL while another one writes the first page of the file."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        end = threading.Timer(0.2, other.execute, ["COMMIT"])
        end.start()
        assert len(filled(sqlite_url, rows=1).rows()) == 1
        end.join()


def test_directory_is_refused(tmp_path: Path) -> None:
    assert "cannot be opened" in refusal(Store(f"sqlite:///{tmp_path}").rows)
    assert "cannot be opened" in refusal(Store(f"sqlite:///{tmp_path}/no/b.db", create=True).append, step(), anything)


def test_ledger_of_another_version_is_refused(store: Store, url: str, tamper: Tamper) -> None:
    later = FORMAT_VERSION + 1
    tamper(f"PRAGMA user_version = {later}" if url.startswith("sqlite") else f"UPDATE meta SET format = {later}")
    for create in (False, True):
        another = Store(url, create=create)
        assert f"format {later}, but this privads reads format {FORMAT_VERSION}" in refusal(another.rows)
        assert f"format {later}" in refusal(another.append, step(), anything)
    assert f"format {later}" in refusal(store.append, step(), anything)


def test_damaged_file_is_one_clear_line(sqlite_url: str, path: Path) -> None:
    store = filled(sqlite_url)
    header = path.read_bytes()[:4096]
    path.write_bytes(header + b"\xff" * (path.stat().st_size - 4096))
    refusal(store.append, step(), anything)
    refusal(store.rows)


def _big() -> Step:
    return Step(kind="reserve", dataset=ADS, body={"purpose": "x" * 1_000_000})


def test_file_that_may_not_grow_spends_nothing(sqlite_url: str, path: Path) -> None:
    store = filled(sqlite_url)
    before = store.rows()
    engine = store._database.engine
    pages = path.stat().st_size // 4096

    def limit(connection: sqlite3.Connection, record: object) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}")

    sqlalchemy.event.listen(engine, "connect", limit)
    assert "no space left" in refusal(store.append, _big(), anything)
    sqlalchemy.event.remove(engine, "connect", limit)
    assert store.rows() == before
    assert store.append(_big(), anything).seq == 8


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"only root may mount a small disk: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_full_disk_spends_nothing(small_disk: Path) -> None:
    store = filled(f"sqlite:///{small_disk}/budget.db")
    before = store.rows()
    assert "no space left" in refusal(store.append, _big(), anything)
    assert store.rows() == before
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(b"x" * 1_000_000)
    assert "no space left" in refusal(store.append, step(8), anything)
    filler.unlink()
    assert store.rows() == before
    assert store.append(step(8), anything).seq == 8
    check_chain(store.rows(), store.shown)


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
def test_read_only_file_refuses_to_be_written_in_one_clear_line(
    shared: Path, file_mode: int, directory_mode: int
) -> None:
    path = shared / "budget.db"
    store = filled(f"sqlite:///{path}")
    path.chmod(file_mode)
    shared.chmod(directory_mode)
    with _as_nobody():
        for create in (False, True):
            assert "writable" in refusal(Store(store.shown, create=create).append, step(), anything)
    shared.chmod(0o755)
    path.chmod(0o644)
    check_chain(store.rows(), store.shown)
    assert len(store.rows()) == 7


def test_read_only_file_can_be_read_where_its_directory_is_writable(shared: Path) -> None:
    path = shared / "budget.db"
    rows = filled(f"sqlite:///{path}").rows()
    path.chmod(0o444)
    shared.chmod(0o777)
    with _as_nobody():
        assert Store(f"sqlite:///{path}").rows() == rows


# --- PostgreSQL: the server, its settings and its rights -----------------------------------------------------


def test_message_shows_the_url_without_its_password(postgres_url: str) -> None:
    shown = Store(postgres_url).shown
    assert shown.startswith("postgresql+psycopg://privads:***@127.0.0.1:")
    assert shown in refusal(Store(postgres_url).rows)
    options = "password=hunter2&sslpassword=hunter2&passwd=hunter2&pwd=hunter2&sslmode=require"
    hidden = Store(f"postgresql+psycopg://me@host/db?{options}")
    assert "hunter2" not in hidden.shown
    assert "sslmode=require" in hidden.shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:hunter2@host:port/db",
        "postgresql+psycopg://me:x@hunter2@host/db",
        "postgresql+psycopg://me:hunter2@host",
        "postgresql+psycopg://",
    ],
)
def test_misspelled_postgres_url_is_refused_without_its_password(url: str) -> None:
    assert "postgresql+psycopg://user:password@host:5432/database" in refusal(Store, url)


def test_wrong_password_is_refused_and_not_shown(postgres: "Server") -> None:
    wrong = f"postgresql+psycopg://privads:hunter2@127.0.0.1:{postgres.port}/ledger"
    for given in (wrong, wrong.replace(":hunter2", "") + "?password=hunter2"):
        message = refusal(Store(given, create=True).append, step(), anything)
        assert "cannot be reached" in message
        assert "password authentication failed" in message
    assert "cannot be reached" in refusal(Store(postgres.url("no_such_database")).rows)


def test_bad_option_in_the_url_is_one_clear_line(postgres_url: str) -> None:
    assert "cannot be reached" in refusal(Store(postgres_url + "?hunter=2").rows)


def test_missing_psycopg_is_refused_with_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'privads[postgres]'" in refusal(Store, "postgresql+psycopg://me:hunter2@host/db")


def test_schema_that_is_no_ledger_is_refused_and_left_as_it_is(postgres: "Server", postgres_url: str) -> None:
    with postgres.connect("ledger") as owner:
        owner.execute("CREATE SCHEMA privads_ledger; CREATE TABLE privads_ledger.log (seq integer)")
        for create in (False, True):
            assert "is not a ledger" in refusal(Store(postgres_url, create=create).append, step(), anything)
            assert "is not a ledger" in refusal(Store(postgres_url, create=create).rows)
        owner.execute("DROP TABLE privads_ledger.log; CREATE TABLE privads_ledger.meta (format integer)")
        owner.execute(f"INSERT INTO privads_ledger.meta VALUES ({FORMAT_VERSION})")
        assert "is not a ledger" in refusal(Store(postgres_url).rows)


def test_settings_of_the_database_do_not_weaken_a_write(postgres: "Server", postgres_url: str) -> None:
    store = filled(postgres_url)
    weaker = {
        "synchronous_commit": "off",
        "lock_timeout": "0",
        "default_transaction_isolation": "serializable",
        "search_path": "nowhere",
    }
    with postgres.connect("ledger") as owner:
        try:
            for name, value in weaker.items():
                owner.execute(f"ALTER DATABASE ledger SET {name} = '{value}'")
            store = Store(postgres_url)
            with store._session(write=True) as connection:
                found = [
                    connection.exec_driver_sql(f"SHOW {name}").scalar_one()
                    for name in ("synchronous_commit", "lock_timeout", "transaction_isolation")
                ]
            assert found == ["on", "30s", "read committed"]
            assert store.append(step(8), anything).seq == 8
        finally:
            for name in weaker:
                owner.execute(f"ALTER DATABASE ledger RESET {name}")


def test_functions_of_others_do_not_weaken_a_write(postgres: "Server", postgres_url: str) -> None:
    """A search_path that names another schema first took the writers' lock and the sync of a commit away."""
    filled(postgres_url)
    with postgres.connect("ledger") as owner:
        try:
            owner.execute("CREATE SCHEMA other")
            owner.execute(
                "CREATE FUNCTION other.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT $2'"
            )
            owner.execute("CREATE FUNCTION other.pg_advisory_xact_lock(bigint) RETURNS void LANGUAGE sql AS 'SELECT'")
            owner.execute("ALTER DATABASE ledger SET search_path = other, pg_catalog")
            owner.execute("ALTER DATABASE ledger SET synchronous_commit = off")
            with Store(postgres_url)._session(write=True) as connection:
                assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
                assert owner.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (1,)
        finally:
            for name in ("search_path", "synchronous_commit"):
                owner.execute(f"ALTER DATABASE ledger RESET {name}")


def test_user_needs_no_right_to_change_or_delete(postgres: "Server", postgres_url: str) -> None:
    filled(postgres_url)
    with postgres.connect("ledger") as owner:
        owner.execute("CREATE ROLE trainer LOGIN PASSWORD 'hunter2'")
        try:
            url = f"postgresql+psycopg://trainer:hunter2@127.0.0.1:{postgres.port}/ledger"
            for create in (False, True):
                message = refusal(Store(url, create=create).append, step(8), anything)
                assert "refuses this user" in message
                assert "grant" in message
            owner.execute("GRANT USAGE ON SCHEMA privads_ledger TO trainer")
            owner.execute("GRANT SELECT ON ALL TABLES IN SCHEMA privads_ledger TO trainer")
            assert len(Store(url).rows()) == 7
            assert "refuses this user" in refusal(Store(url).append, step(8), anything)
            owner.execute("GRANT INSERT ON privads_ledger.log TO trainer")
            assert Store(url).append(step(8), anything).seq == 8
        finally:
            owner.execute("DROP OWNED BY trainer; DROP ROLE trainer")


def test_read_only_database_can_be_read_but_not_written(postgres: "Server", postgres_url: str) -> None:
    filled(postgres_url)
    with postgres.connect("ledger") as owner:
        owner.execute("ALTER DATABASE ledger SET default_transaction_read_only = on")
        try:
            assert len(Store(postgres_url).rows()) == 7
            assert "it is read-only" in refusal(Store(postgres_url).append, step(8), anything)
        finally:
            owner.execute("SET default_transaction_read_only = off")
            owner.execute("ALTER DATABASE ledger RESET default_transaction_read_only")


def test_server_that_may_lose_commits_is_refused(postgres: "Server", postgres_url: str) -> None:
    store = filled(postgres_url)
    postgres.stop()
    assert "cannot be reached" in refusal(store.append, step(8), anything)
    postgres.start("fsync=off")
    try:
        assert "fsync=off" in refusal(store.append, step(8), anything)
        assert len(store.rows()) == 7
    finally:
        postgres.stop()
        postgres.start()
    assert store.append(step(8), anything).seq == 8  # the store finds the server again by itself


def test_connection_lost_before_the_commit_writes_nothing(postgres: "Server", postgres_url: str) -> None:
    store = filled(postgres_url)

    def cut(rows: Sequence[Row], row: Row) -> None:
        with postgres.connect() as owner:
            who = "datname = 'ledger' AND application_name = 'privads'"
            owner.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {who}")

    message = refusal(store.append, step(8), cut)
    assert "nothing was charged" in message
    assert len(store.rows()) == 7
    assert store.append(step(8), anything).seq == 8


def test_connection_lost_in_the_commit_leaves_the_outcome_open(postgres: "Server", postgres_url: str) -> None:
    store = filled(postgres_url)
    with postgres.connect("ledger", search_path="privads_ledger") as owner:
        owner.execute(
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
        )
        owner.execute(
            "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON log DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION die()"
        )
        message = refusal(store.append, step(8), anything)
        assert "may or may not be on the ledger" in message
        assert "repeat it with the same charge" in message
        owner.execute("DROP TRIGGER die ON log")
    assert store.append(step(8), anything).seq == 8


def test_server_that_crashes_keeps_what_was_acknowledged(postgres: "Server", postgres_url: str) -> None:
    store = filled(postgres_url)
    rows = store.rows()
    postgres.stop(signal.SIGQUIT)
    postgres.start()
    assert store.rows() == rows
