"""The command: which parts are measured, at which sizes, and what is printed."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.federated import compare, speed, utility
from benchmarks.federated.recommending import FOLDERS
from benchmarks.harness import Figure, Kept, announced, json_line, table

PYTHONS = {"flower": "flwr[simulation] and torch", "pfl": "pfl and torch"}
"""What is compared with, and what its Python must have."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the options say."""

    quick: bool
    data: Path
    seeds: int | None
    epsilons: tuple[float | None, ...]
    out: Path | None
    pythons: dict[str, Path]


def main(
    only: Annotated[
        str | None, typer.Option(help="Parts, with commas: speed, memory, epsilon, utility, compare.")
    ] = None,
    data: Annotated[Path, typer.Option(help="The folder of the public data sets.")] = Path("../shared/data"),
    seeds: Annotated[int | None, typer.Option(help="Of utility, for each data set.", min=1)] = None,
    epsilons: Annotated[str | None, typer.Option(help="Of utility, with commas; none: without privacy.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON-lines file of utility's trials: none is run twice.")] = None,
    flower_python: Annotated[Path | None, typer.Option(help="A Python with flwr[simulation] and torch.")] = None,
    pfl_python: Annotated[Path | None, typer.Option(help="A Python with pfl and torch.")] = None,
    threads: Annotated[int, typer.Option(help="Torch's threads; on a shared machine one is the fastest.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, no real data: does it work?")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object as the last line, after the table.")] = False,
) -> None:
    """Measure federated training in one process."""
    torch.set_num_threads(threads)
    chosen = list(PARTS) if only is None else only.split(",")
    wrong = next((name for name in chosen if name not in PARTS), None)
    if wrong is not None:
        _refuse(f"--only must be of {', '.join(PARTS)}, got {wrong!r}")
    pythons = {"flower": flower_python, "pfl": pfl_python}
    asked = Asked(
        quick=quick,
        data=data,
        seeds=seeds,
        epsilons=_epsilons(epsilons),
        out=out,
        pythons={name: python for name, python in pythons.items() if python is not None},
    )
    left_out = _left_out(asked, chosen)
    for name, why in left_out.items():
        typer.echo(f"{name}: left out, {why}", err=True)
    figures = [figure for name in chosen for figure in announced(PARTS[name](asked))]
    Console(width=None if sys.stdout.isatty() else 140).print(table(figures, title="federation"))
    if as_json:
        said: dict[str, Any] = {"quick": quick, "parts": chosen, "left_out": left_out}
        print(json_line("federated", figures, **said))


def _sizes(asked: Asked) -> speed.Sizes:
    return speed.QUICK if asked.quick else speed.FULL


def _utility(asked: Asked) -> Iterator[Figure]:
    kept = Kept(utility.Trial, asked.out)
    if asked.quick:
        yield from utility.quick_figures(asked.epsilons, kept)
        return
    for name in utility.SEEDS:
        if (asked.data / FOLDERS[name]).is_dir():
            yield from utility.figures(utility.all_trials(name, asked.data, asked.epsilons, asked.seeds, kept))


def _compare(asked: Asked) -> Iterator[Figure]:
    return compare.figures(compare.QUICK if asked.quick else compare.Sizes(), asked.pythons)


PARTS: dict[str, Callable[[Asked], Iterator[Figure]]] = {
    "speed": lambda asked: speed.speed(_sizes(asked)),
    "memory": lambda asked: speed.memory(_sizes(asked)),
    "epsilon": lambda _: speed.epsilons(),
    "utility": _utility,
    "compare": _compare,
}


def _left_out(asked: Asked, chosen: list[str]) -> dict[str, str]:
    """Returns why something is not measured that could be."""
    found = {}
    if "compare" in chosen:
        for name, packages in PYTHONS.items():
            if name not in asked.pythons:
                found[name] = f"it needs a Python of its own, with {packages}: pass it as --{name}-python"
    if "utility" in chosen:
        for name, folder in FOLDERS.items():
            if asked.quick:
                found[name] = "--quick measures no real data"
            elif not (asked.data / folder).is_dir():
                found[name] = f"there is no {asked.data / folder}"
    return found


def _epsilons(text: str | None) -> tuple[float | None, ...]:
    if text is None:
        return utility.EPSILONS
    try:
        found = tuple(None if one == "none" else float(one) for one in text.split(","))
    except ValueError:
        found = ()
    if not found or any(one not in utility.EPSILONS for one in found):
        _refuse(f"--epsilons must be of 1, 3, 8 and none, with commas between, got {text!r}")
    return found


def _refuse(message: str) -> None:
    typer.echo(message, err=True)
    raise typer.Exit(2)
