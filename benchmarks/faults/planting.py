"""What a fault is: one place of the code put out of order for a while, and the check that must see it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from privads.logs.logs import Logs

Area = Literal["training", "signals", "federation"]


class Patch(Protocol):
    """Puts values in the place of others; pytest's monkeypatch is one."""

    def setattr(self, target: object, name: str, value: object) -> None:
        """Let ``target.name`` be ``value`` until the end."""
        ...


Plant = Callable[[Patch], None]
Check = Callable[[Logs, Patch], bool]
"""Whether a promise holds, by its definition and through the code that a user calls. It may also raise: a refusal."""

Seen = Literal["no", "fails", "refused"]
"""How a check sees a fault: not at all, by a promise that does not hold, or as the code under it refuses to run."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """What a fault does to a canary, in multiples of what was planned: the noise beside it and what it adds.

    rate: at which it is drawn, None for the planned one.
    """

    noise: float = 1.0
    amplitude: float = 1.0
    rate: float | None = None


HONEST = Law()


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault, what must see it, and what an audit is expected to make of it.

    plant: breaks one place of the code; its name is the fault's. check: the promise that it breaks. game: the audit by
    which it might be seen alone, by its name in `games.GAMES`; None where no audit that there is looks there. law: what
    canaries of that game meet, None where that is not known.
    """

    area: Area
    plant: Plant
    check: Check
    game: str | None = None
    law: Law | None = None

    @property
    def name(self) -> str:
        """In words."""
        return name_of(self.plant)


def name_of(one: Callable[..., Any]) -> str:
    """Returns a function's name in words.

    >>> name_of(name_of)
    'name of'
    """
    return one.__name__.replace("_", " ")


@dataclass(frozen=True, eq=False)
class Patches:
    """Attributes that were replaced, in order. Of a class, only its own are kept, as they stand in it."""

    _before: list[tuple[object, str, object]] = field(default_factory=list)

    def setattr(self, target: object, name: str, value: object) -> None:
        """Let ``target.name`` be ``value`` until `undo`; refuses a name that is not there."""
        was = getattr(target, name)
        if isinstance(target, type):
            was = vars(target)[name]  # a property or class method itself, not what it gives
        self._before.append((target, name, was))
        setattr(target, name, value)

    def undo(self) -> None:
        """Put everything back, the last first."""
        while self._before:
            setattr(*self._before.pop())


@contextmanager
def planted(plant: Plant | None = None) -> Iterator[Patches]:
    """Yields what further patches may be made with, while the fault is in the code; puts all back at the end."""
    patches = Patches()
    try:
        if plant is not None:
            plant(patches)
        yield patches
    finally:
        patches.undo()


def seen(check: Check, log: Logs, plant: Plant | None) -> Seen:
    """Returns how the check sees the fault; with None, the code as it is."""
    with planted(plant) as patches:
        try:
            return "no" if check(log, patches) else "fails"
        except (ValueError, RuntimeError):
            return "refused"
