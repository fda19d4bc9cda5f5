"""The joint figure of all charges to a column: what they cost together, composed as one.

Tighter than any filter, and sound for a sequence that was fixed in advance; it is reported beside what the rule
enforces, and admits nothing. Equal events are composed once, with a count. What the accountant knows only under
different neighbors, or only as a figure of group privacy, is joined by basic composition at equal shares of delta.

Figures are kept in the user's cache folder under a hash of all they depend on: events, delta, neighbors, versions of
the libraries and this package's own source, so that a corrected accountant never shows a figure of the old one. A
file there that cannot be read, or says something else, is as good as none. No promise is made from it.
"""

import hashlib
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

from dp_accounting import dp_event

from accounting import accountant, mechanisms
from accounting.accountant import Bounds
from accounting.budget import Neighbors
from accounting.ledger.columns import Account, Column
from accounting.ledger.cost import Charged, View, seen_event, view, view_epsilon
from accounting.mechanisms import UnknownEvent


@dataclass(frozen=True, order=True)
class Part:
    """A `View` as a value that can be counted and sorted: its event as JSON."""

    event: str
    neighbors: Neighbors
    group: int
    pairs: bool

    def view(self) -> View:
        """Returns the view again."""
        return View(
            event=mechanisms.from_json(self.event), neighbors=self.neighbors, group=self.group, pairs=self.pairs
        )


Together = Counter[Part]
"""Which views one unit meets, each with how often."""


def joint_bounds(charges: Sequence[Charged], column: Column, account: Account) -> Bounds:
    """Returns bounds on what one unit of ``column`` loses by all ``charges`` together, at the column's delta.

    Where units lie in one block each, that is the most over the blocks.
    """
    found = [_cached(one, column.limit.delta, column.limit.neighbors) for one in _sets(charges, column, account)]
    return max(found, key=lambda bounds: bounds.upper)


def _sets(charges: Sequence[Charged], column: Column, account: Account) -> list[Together]:
    """Returns what the units of each block meet; a set that another one holds is left out."""
    whole, by_block = Together(), dict[str, Together]()
    for charge in charges:
        seen = view(charge, column, account)
        part = Part(mechanisms.to_json(seen.event), seen.neighbors, seen.group, seen.pairs)
        if account.spent[column.name].parallel and charge.blocks:
            for block in charge.blocks:
                by_block.setdefault(block, Together())[part] += 1
        else:
            whole[part] += 1
    least: list[Together] = []
    for one in sorted((whole + found for found in by_block.values()), key=lambda found: -found.total()):
        if not any(one <= other for other in least):
            least.append(one)
    return least or [whole]


def _cached(together: Together, delta: float, neighbors: Neighbors) -> Bounds:
    content = {
        "parts": [[*asdict(part).values(), count] for part, count in sorted(together.items())],
        "delta": delta,
        "neighbors": neighbors,
        "accountant": _fingerprint(),
    }
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path = _folder() / f"joint-{name}.json"
    found = _read(path, delta, neighbors)
    if found is None:
        found = _compose(together, delta, neighbors)
        _write(path, found)
    return found


def _compose(together: Together, delta: float, neighbors: Neighbors) -> Bounds:
    if not together:
        found = accountant.epsilon(mechanisms.gaussian(noise_multiplier=1.0), delta=delta)
        return replace(found, lower=0.0, upper=0.0, neighbors=neighbors, method="nothing was charged", grid=None)
    try:
        return _join(together, delta, neighbors, probe=False)
    except UnknownEvent:
        return _join(together, delta, neighbors, probe=True)


def _join(together: Together, delta: float, neighbors: Neighbors, *, probe: bool) -> Bounds:
    known, apart = _by_neighbors(together, delta if probe else None)
    share = delta / (len(known) + bool(apart))
    found = [
        accountant.epsilon(mechanisms.composed(*events), delta=share, neighbors=under)
        for under, events in known.items()
    ]
    if len(found) == 1 and not apart and found[0].neighbors == neighbors:
        return found[0]
    each = share / max(apart.total(), 1)
    group = math.fsum(count * view_epsilon(part.view(), each) for part, count in apart.items())
    methods = [bounds.method for bounds in found] + ["group privacy"] * bool(apart)
    return Bounds(
        lower=None,
        upper=math.nextafter(math.fsum([group, *(bounds.upper for bounds in found)]), math.inf),
        epsilon=None,
        delta=delta,
        neighbors=neighbors,
        method=" + ".join(methods) + (", joined by basic composition" if len(methods) > 1 else ""),
        grid=max((bounds.grid for bounds in found if bounds.grid is not None), default=None),
        library=accountant.LIBRARY,
    )


def _by_neighbors(
    together: Together, probe_delta: float | None
) -> tuple[dict[Neighbors, list[dp_event.DpEvent]], Together]:
    """Returns the events that the accountant composes, by the neighbors it must take, and the parts that it does not.

    probe_delta: at which the accountant is asked whether it knows an event at all; None takes it to know each.
    """
    known: dict[Neighbors, list[dp_event.DpEvent]] = {}
    apart = Together()
    for part, count in sorted(together.items()):
        try:
            event = seen_event(part.view())
            if probe_delta is not None:
                accountant.epsilon(event, delta=probe_delta, neighbors=part.neighbors)
        except UnknownEvent:
            apart[part] = count
            continue
        known.setdefault(part.neighbors, []).append(mechanisms.repeated(event, count))
    return known, apart


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "privads"


@cache
def _fingerprint() -> str:
    """Returns a hash of everything that decides a figure besides the events."""
    found = hashlib.sha256()
    for name in ("dp-accounting", "numpy", "scipy"):
        found.update(f"{name} {version(name)}\n".encode())
    for path in sorted(Path(accountant.__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def _read(path: Path, delta: float, neighbors: Neighbors) -> Bounds | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or set(found) != {field.name for field in fields(Bounds)}:
        return None
    if (found["delta"], found["neighbors"]) != (delta, neighbors):
        return None
    if not isinstance(found["upper"], float) or not found["upper"] >= 0:  # nor NaN
        return None
    return Bounds(**found)


def _write(path: Path, bounds: Bounds) -> None:
    """Keeps the figure if that is possible; whole or not at all, since another process may be reading."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder) / path.name
            whole.write_text(json.dumps(asdict(bounds)), encoding="utf-8")
            whole.replace(path)
