"""Tables that are paid for: refused before the charge where they do not fit, and kept elsewhere after it."""

import errno
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from accounting.budget import Budget
from accounting.ledger import Ledger
from privads.config import ConfigError
from privads.signals import kept, saved
from privads.signals.kept import check_room, keep_tables, most_bytes
from privads.signals.query import Grid, OneOf, Query, Sum
from privads.signals.release import Release
from privads.signals.saved import load_tables, save_tables
from privads.signals.table import NoisyTable
from tests.privads.signals.samples import Made
from tests.privads.test_cli import simulated
from tests.privads.test_cli_release import RUN_TOML

POPULATION = 3000
SITE = OneOf(column="site", values=tuple(f"a site called {i}" for i in range(5000)))
BID = Grid(column="bid", edges=(0.0, 1.0, 5.0, 10.0))
QUERIES = (
    Query(by=("site",), label="click"),
    Query(by=(SITE,), label="click"),
    Query(by=(SITE, BID), label="click", sums=(Sum(column="bid", most=5.0, step=0.5),)),
    Query(by=(BID,)),
)
RELEASE = Release.of(QUERIES, Budget(epsilon=1.0, delta=1e-6, unit="user"), rows_per_unit=2)


@pytest.fixture(scope="module")
def tables() -> tuple[NoisyTable, ...]:
    users = [f"u{i}" for i in range(POPULATION)]
    source = Made(users=users, sites=["a", "b", None] * 1000, clicks=[0, 1, None] * 1000, bids=[2.0, 9.0] * 1500)
    return RELEASE.run(source, ledger=None, purpose="test").tables


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def full(monkeypatch: pytest.MonkeyPatch, *disks: Path) -> None:
    """After its first table, each of these folders takes nothing more."""
    write = saved.save_table

    def save_table(table: NoisyTable, file: Path) -> None:
        if any(file.absolute().is_relative_to(disk) for disk in disks) and list(file.parent.iterdir()):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(table, file)

    monkeypatch.setattr(saved, "save_table", save_table)


def place_in(error: pytest.ExceptionInfo[ConfigError]) -> Path:
    return Path(str(error.value).rpartition(" in ")[2])


def test_the_files_take_no_more_than_is_looked_for(tables: tuple[NoisyTable, ...], tmp_path: Path) -> None:
    save_tables(tables, tmp_path / "out")
    taken = sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert taken <= most_bytes(RELEASE, population=POPULATION) < 4 * taken


def test_where_keys_are_found_a_larger_population_takes_more_room() -> None:
    assert most_bytes(RELEASE, population=10**9) > most_bytes(RELEASE, population=POPULATION) + 10**9


def test_a_disk_without_room_is_refused_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = most_bytes(RELEASE, population=POPULATION)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=needed - 1))
    with pytest.raises(ConfigError, match=r"its tables take up to \d\.\d MB, and .* has \d\.\d MB left"):
        check_room(RELEASE, tmp_path / "out", population=POPULATION)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=needed))
    check_room(RELEASE, tmp_path / "out", population=POPULATION)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="there is no folder .*nowhere that this user may write to"):
        check_room(RELEASE, tmp_path / "nowhere" / "out", population=POPULATION)

    def refuse(**options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(ConfigError, match="Read-only file system"):
        check_room(RELEASE, tmp_path / "out", population=POPULATION)


def test_tables_that_a_full_disk_does_not_take_are_kept_elsewhere_and_the_error_says_where(
    tables: tuple[NoisyTable, ...], tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fixed bug: they were removed, and paid for."""
    disk = tmp_path / "disk"
    disk.mkdir()
    full(monkeypatch, disk)
    with pytest.raises(ConfigError, match="No space left on device.*paid for, and in") as refused:
        keep_tables(tables, disk / "out")
    assert place_in(refused).is_relative_to(elsewhere)
    assert len(load_tables(place_in(refused))) == len(tables)
    assert list(disk.iterdir()) == []  # half of a release would be in the way of the next


def test_a_second_full_disk_is_passed_over(
    tables: tuple[NoisyTable, ...], tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    full(monkeypatch, tmp_path / "disk", elsewhere)
    with pytest.raises(ConfigError, match="paid for, and in") as refused:
        keep_tables(tables, tmp_path / "disk" / "out")
    assert place_in(refused).is_relative_to(home)
    assert len(load_tables(place_in(refused))) == len(tables)
    assert list(elsewhere.iterdir()) == []


def test_where_nothing_can_be_written_that_is_said(
    tables: tuple[NoisyTable, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch, Path("/"))
    with pytest.raises(ConfigError, match=r"nor any other place \(No space left on device\).*what they cost is spent"):
        keep_tables(tables, tmp_path / "out")


def test_tables_are_kept_where_the_folder_came_meanwhile(
    tables: tuple[NoisyTable, ...], tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fixed bug: they were removed."""
    write = saved.save_table

    def and_another_process(table: NoisyTable, file: Path) -> None:
        write(table, file)
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / "theirs").touch()

    monkeypatch.setattr(saved, "save_table", and_another_process)
    with pytest.raises(ConfigError, match="paid for, and in") as refused:
        keep_tables(tables, tmp_path / "two")
    assert len(load_tables(place_in(refused))) == len(tables)
    assert [one.name for one in (tmp_path / "two").iterdir()] == ["theirs"]


def test_the_command_charges_nothing_without_room_and_loses_nothing_without_any_after(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from privads.cli_release import release

    folder = tmp_path / "work"
    folder.mkdir()
    simulated(folder, RUN_TOML, users=100, epsilon=5.0)
    monkeypatch.chdir(folder)
    ledger = Ledger.open("sqlite:///budget.db")
    with monkeypatch.context() as on_a_full_disk:
        on_a_full_disk.setattr(kept.shutil, "disk_usage", lambda place: SimpleNamespace(free=0))
        with pytest.raises(ConfigError, match=r"cannot write tables: its tables take up to .* has 0\.0 MB left"):
            release(Path("run.toml"))
    assert len(ledger.history("simulated-ads")) == 0
    full(monkeypatch, folder)
    with pytest.raises(ConfigError, match="cannot write tables .*paid for, and in") as refused:
        release(Path("run.toml"))
    assert len(ledger.history("simulated-ads")) == 1
    assert len(load_tables(place_in(refused))) == 2
