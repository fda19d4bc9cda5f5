"""What benchmarks share: figures, intervals over seeds, the machine, and the JSON line that ends their output."""

import dataclasses
import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy import stats

LEVEL = 0.95
PACKAGES = ("dp-accounting", "numpy", "opacus", "privads", "torch")
_DECIMALS = 6
_NUMBER = re.compile(r"\d+\.\d+(?:e[-+]?\d+)?")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of a benchmark, and where there is a target, whether it holds."""

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the value lies within the target; None where there is none."""
        if self.target is None:
            return None
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    @property
    def target(self) -> str | None:
        """The target as it is printed: a least value, a greatest one, or both."""
        ends = []
        if self.at_least is not None:
            ends.append(f">= {self.at_least:.7g}")
        if self.at_most is not None:
            ends.append(f"<= {self.at_most:.7g}")
        return " and ".join(ends) or None

    def as_dict(self) -> dict[str, Any]:
        """Returns the figure as it stands in the JSON line."""
        return {"name": self.name, "value": self.value, "unit": self.unit, "target": self.target, "holds": self.holds}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The mean over seeds, their standard deviation, and the t interval of the mean; nan where one seed says nothing.

    mean ± t std / sqrt(n), t the quantile (1 + LEVEL) / 2 of Student's distribution with n − 1 degrees of freedom.

    >>> Spread.of([1.0, 2.0, 3.0]).mean, round(Spread.of([1.0, 2.0, 3.0]).high, 3)
    (2.0, 4.484)
    """

    mean: float
    std: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Returns the spread of at least one value."""
        mean, n = float(np.mean(values)), len(values)
        if n < 2:
            return cls(mean=mean, std=math.nan, low=math.nan, high=math.nan)
        std = float(np.std(values, ddof=1))
        half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * std / math.sqrt(n)
        return cls(mean=mean, std=std, low=mean - half, high=mean + half)


def machine() -> dict[str, Any]:
    """Returns what the figures were measured on."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def json_line(benchmark: str, figures: Sequence[Figure], **others: Any) -> str:
    """Returns the benchmark's one line of JSON; numbers that are not finite are null."""
    report = {"benchmark": benchmark, "machine": machine(), "figures": [one.as_dict() for one in figures], **others}
    return json.dumps(_plain(report), allow_nan=False)


def announced(figures: Iterable[Figure]) -> list[Figure]:
    """Returns the figures, each said on stderr as soon as it is measured."""
    log, found = Console(stderr=True), []
    for figure in figures:
        found.append(figure)
        log.print(f"{figure.name}: {figure.value:.6g} {figure.unit}")
    return found


def name_of(*facts: Any) -> str:
    """Returns 32 digits that name what a trial was made of: privads' version, and ``facts`` as they are printed.

    Numbers count to nine digits: the last ones of a calibrated noise depend on how many threads calibrated it.
    """
    said = _NUMBER.sub(lambda found: f"{float(found[0]):.9g}", repr((version("privads"), *facts)))
    return hashlib.sha256(said.encode()).hexdigest()[:32]


class Keyed(Protocol):
    """A dataclass of which no two have the same key."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> Any:
        """What no two have in common."""
        ...


T = TypeVar("T", bound=Keyed)


class Kept(Generic[T]):
    """The trials that are there already, in a file that every new one is added to as soon as it is done.

    kind: of the trials. A line that is none is left out, such as a last one that was cut off when its writer was
    stopped; the next one is to stand by itself.
    """

    def __init__(self, kind: type[T], file: Path | None) -> None:
        self.file = file
        self.found = {trial.key: trial for trial in self._read(kind)}

    def add(self, trial: T) -> None:
        """Keeps ``trial``."""
        self.found[trial.key] = trial
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(dataclasses.asdict(trial)) + "\n")

    def _read(self, kind: type[T]) -> Iterator[T]:
        if self.file is None or not self.file.exists():
            return
        text = self.file.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write("\n")
        for line in text.splitlines():
            try:
                yield kind(**json.loads(line))
            except (json.JSONDecodeError, TypeError):
                continue


def table(figures: Sequence[Figure], *, title: str) -> Table:
    """Returns the figures for people to read."""
    shown = Table("figure", "value", "unit", "target", "holds", title=title)
    for one in figures:
        said = {True: "yes", False: "MISSED", None: ""}[one.holds]
        shown.add_row(one.name, f"{one.value:.6g}", one.unit, one.target or "", said)
    return shown


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return {key: _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case float():
            return _rounded(value) if math.isfinite(value) else None
    return value


def _rounded(value: float) -> float:
    """Returns ``value`` to six decimals, or to six digits where it is small, such as a delta."""
    return round(value, _DECIMALS) if abs(value) >= 1 else float(f"{value:.{_DECIMALS}g}")
