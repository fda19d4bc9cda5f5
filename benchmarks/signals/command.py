"""The command: which parts are measured, of how many users and seeds, and what is printed."""

import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Figure, announced, json_line, table
from benchmarks.signals import from_tables, labels, learning, speed
from benchmarks.signals.learning import Trial
from privads.signals.maximum_entropy_fit import CHAINS

QUICK_USERS, QUICK_SEEDS, QUICK_CHAINS = 1000, 2, 1000
NO_PIPELINE_DP = "it needs a Python of its own, with pipeline-dp and pyarrow: pass it as --pipeline-dp"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the options say. users, seeds: None where each part has its own."""

    quick: bool
    users: int | None
    seeds: int | None
    data: Path
    pipeline_dp: Path | None

    def sizes(self, users: int, seeds: int) -> dict[str, int]:
        """Returns users and seeds as they were asked for, else those of ``--quick``, else the given ones."""
        if self.quick:
            users, seeds = QUICK_USERS, QUICK_SEEDS
        return {"users": self.users or users, "seeds": self.seeds or seeds}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a part found. trials: one by one, where there is a table of them."""

    figures: Sequence[Figure]
    trials: Sequence[Trial] = ()


def main(
    data: Annotated[Path, typer.Option(help="The folder of the public data sets.")] = Path("../shared/data"),
    only: Annotated[str | None, typer.Option(help="Parts, with commas: speed, learning, tables, labels.")] = None,
    users: Annotated[int | None, typer.Option(help="Users of each simulated log.", min=100)] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of everything that has noise.", min=1)] = None,
    pipeline_dp: Annotated[Path | None, typer.Option(help="A Python that has PipelineDP, to compare with it.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, no real data: does it work?")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line, after the tables.")
    ] = False,
) -> None:
    """Measure releases of tables, and what models learned from reports are worth."""
    chosen = list(PARTS) if only is None else only.split(",")
    wrong = next((name for name in chosen if name not in PARTS), None)
    if wrong is not None:
        typer.echo(f"--only must be of {', '.join(PARTS)}, got {wrong!r}", err=True)
        raise typer.Exit(2)
    asked = Asked(quick=quick, users=users, seeds=seeds, data=data, pipeline_dp=pipeline_dp)
    left_out = _left_out(asked, chosen)
    for name, why in left_out.items():
        typer.echo(f"{name}: left out, {why}", err=True)
    console = Console(width=None if sys.stdout.isatty() else 140)
    figures: list[Figure] = []
    trials: list[Trial] = []
    for name in chosen:
        found = PARTS[name](asked)
        figures += found.figures
        trials += found.trials
        console.print(table(found.figures, title=f"privads.signals: {name}"))
        if found.trials:
            console.print(_beside(found.trials))
    if as_json:
        said: dict[str, Any] = {"quick": quick, "parts": chosen, "left_out": left_out}
        print(json_line("signals", figures, **said, trials=[one.as_dict() for one in trials]))


def _speed(asked: Asked) -> Measured:
    sizes = speed.QUICK if asked.quick else speed.Sizes()
    with tempfile.TemporaryDirectory() as folder:
        release = announced(speed.release_figures(Path(folder), sizes, pipeline_dp=asked.pipeline_dp))
    return Measured(figures=[*release, *announced(speed.noise_figures(sizes))])


def _learning(asked: Asked) -> Measured:
    sizes = asked.sizes(learning.USERS, learning.SEEDS)
    trials = list(learning.all_trials(_folder(asked), **sizes))
    return Measured(figures=[*learning.figures(trials), *announced(learning.noise_off_figures(**sizes))], trials=trials)


def _tables(asked: Asked) -> Measured:
    sizes = asked.sizes(from_tables.USERS, from_tables.SEEDS)
    chains = QUICK_CHAINS if asked.quick else CHAINS
    made: Iterable[Figure] = from_tables.simulated_figures(**sizes, pairs=not asked.quick, chains=chains)
    return Measured(
        figures=[*announced(made), *announced(from_tables.real_figures(_folder(asked), seeds=sizes["seeds"]))]
    )


def _labels(asked: Asked) -> Measured:
    sizes = asked.sizes(labels.USERS, labels.SEEDS)
    return Measured(figures=[*announced(labels.clicks(**sizes)), *announced(labels.windows(**sizes))])


PARTS: dict[str, Callable[[Asked], Measured]] = {
    "speed": _speed,
    "learning": _learning,
    "tables": _tables,
    "labels": _labels,
}


def _folder(asked: Asked) -> Path:
    return Path("none, as --quick measures no real data") if asked.quick else asked.data


def _left_out(asked: Asked, chosen: Sequence[str]) -> dict[str, str]:
    """Returns why something is not measured that could be."""
    found = {}
    if "speed" in chosen and asked.pipeline_dp is None:
        found["pipeline_dp"] = NO_PIPELINE_DP
    if {"learning", "tables"} & {*chosen}:
        for name, (path, *_) in from_tables.REAL.items():
            if asked.quick:
                found[name] = "--quick measures no real data"
            elif not (asked.data / path).exists():
                found[name] = f"there is no {asked.data / path}"
    return found


def _beside(trials: Sequence[Trial]) -> Table:
    """Returns what knowing the noise is worth at epsilon 1, seed by seed."""
    shown = Table("log", "unit", "seed", "constant", "granular", "noise modeled", "noise ignored", title="epsilon 1")
    for one in trials:
        if one.epsilon == 1 and one.ignorant is not None:
            values = (f"{value:.4f}" for value in (one.constant, one.granular, one.aware, one.ignorant))
            shown.add_row(one.data, f"{one.unit} {one.capped}".strip(), str(one.seed), *values)
    return shown
