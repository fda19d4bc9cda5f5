"""Tables that are paid for are not lost: room for them is looked for before the charge, and another place after it."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from privads.config import ConfigError
from privads.signals.query import Part, Query
from privads.signals.release import Release
from privads.signals.saved import in_words, save_tables
from privads.signals.table import NoisyTable

FACTS_BYTES = 20_000
"""Of a table's file, beside its cells and what its places are called: what it is, and Parquet's own."""

TIMES_NAMED = 3
"""How often a file has the name of a place: in its facts, and where people look for it."""

NUMBER_BYTES = 8
KEY_BYTES = 64
"""Of a value that is found in the log; one may be longer."""


def most_bytes(release: Release, *, population: int) -> int:
    """Returns about how many bytes the tables' files take at most, from public figures: noise cannot be compressed.

    A table has the cells that are declared; where keys are found, no more than fit above its threshold if no unit
    brings more rows than are counted.
    """
    total = 0
    for query, threshold in zip(release.queries, release.thresholds, strict=True):
        cells = _declared(query) if threshold is None else int(population * release.bounds.rows / threshold)
        of_key = sum(KEY_BYTES if isinstance(part, str) else NUMBER_BYTES for part in query.by)
        names = sum(len(name.encode()) + NUMBER_BYTES for part in query.by for name in _names(part))
        total += FACTS_BYTES + TIMES_NAMED * names + cells * (of_key + NUMBER_BYTES * len(query.measures))
    return total


def check_room(release: Release, folder: Path, *, population: int) -> None:
    """Refuse a folder that cannot be made where it is asked for, or whose tables do not fit on the disk. Charges
    nothing: a file is written beside it and removed.
    """
    place = folder.absolute().parent
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=f".{folder.name}.") as probe:
            probe.write(b"room?")
            probe.flush()
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise ConfigError(
            f"cannot write {folder}: there is no folder {place} that this user may write to ({error.strerror})"
        ) from None
    needed = most_bytes(release, population=population)
    if free < needed:
        raise ConfigError(
            f"cannot write {folder}: its tables take up to {_megabytes(needed)}, and {place} has "
            f"{_megabytes(free)} left"
        )


def keep_tables(tables: Sequence[NoisyTable], folder: Path) -> None:
    """Write tables that only this process holds. Where ``folder`` cannot be written, they go to another place, and the
    error, a `ConfigError`, says to which.
    """
    try:
        save_tables(tables, folder)
    except (OSError, ConfigError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        kept = _elsewhere(tables, folder.name)
        if kept is None:
            raise ConfigError(
                f"cannot write {folder}, nor any other place ({why}): the tables are lost, and what they cost is spent"
            ) from None
        raise ConfigError(f"cannot write {folder} ({why}): the tables are paid for, and in {kept}") from None


def _elsewhere(tables: Sequence[NoisyTable], name: str) -> Path | None:
    for place in _places():
        with suppress(OSError):
            own = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=place))
            try:
                save_tables(tables, own / "tables")
            except OSError:
                shutil.rmtree(own, ignore_errors=True)
                raise
            return own / "tables"
    return None


def _places() -> Iterator[Path]:
    with suppress(OSError):
        yield Path(tempfile.gettempdir())
    with suppress(RuntimeError):
        yield Path.home()
    with suppress(OSError):
        yield Path.cwd()


def _names(part: Part) -> list[str]:
    return [] if isinstance(part, str) else in_words(part)


def _declared(query: Query) -> int:
    return query.cells if query.keys is None else len(query.keys)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
