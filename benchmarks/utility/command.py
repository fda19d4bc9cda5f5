"""The command: which data sets, models, epsilons and seeds, where the trials are kept, and what is printed."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.harness import Kept, json_line
from benchmarks.utility import plot
from benchmarks.utility.datasets import (
    DATA_SETS,
    LEFT_OUT,
    QUICK_USERS,
    CannotMeasureError,
    DataSet,
    simulated_config,
)
from benchmarks.utility.results import distances, figures, results, tables
from benchmarks.utility.trials import Trial, trials
from privads.config import ConfigError
from privads.models import MODELS

EPSILONS: tuple[float | None, ...] = (1.0, 3.0, 8.0, None)  # None: without privacy
QUICK_EPSILONS: tuple[float | None, ...] = (3.0, None)
QUICK_EPOCHS = 5.0
QUICK = {
    "simulator": DataSet(
        config=lambda _, folder: simulated_config(folder, users=QUICK_USERS, epochs=QUICK_EPOCHS),
        models=("logistic", "fm"),
    )
}
"""What `--quick` measures: does it work?"""

Names = Annotated[str | None, typer.Option(help=f"Data sets, with commas: {', '.join(DATA_SETS)}.")]


def main(
    data: Annotated[Path, typer.Option(help="The folder of the public data sets.")] = Path("../shared/data"),
    only: Names = None,
    models: Annotated[str | None, typer.Option(help=f"Models, with commas: {', '.join(MODELS)}.")] = None,
    epsilons: Annotated[str | None, typer.Option(help="Epsilons, with commas; none: without privacy.")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Runs of each model at each epsilon; 5, on Avazu 20 of logistic.", min=1)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A JSON-lines file of trials: each is added as it is done, none is run twice.")
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Draw epsilon against entropy, .svg or .png.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small simulated log and one seed: does it work?")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line, after the tables.")
    ] = False,
) -> None:
    """Measure how well private models predict, with the library's defaults."""
    known = QUICK if quick else DATA_SETS
    try:
        chosen = _chosen("--only", only, known, " with --quick" * quick)
        asked = None if models is None else _chosen("--models", models, MODELS)
        levels = _epsilons(epsilons) or (QUICK_EPSILONS if quick else EPSILONS)
        if plot_file is not None:
            plot.check(plot_file)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    log, kept, skipped = Console(stderr=True), Kept(Trial, out), {}
    done: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            dataset = known[name]
            fitting = [one for one in dataset.models if asked is None or one in asked]
            runs = {one: seeds or (1 if quick else dataset.runs_of(one)) for one in fitting}
            wanted = [one for one in levels if dataset.epsilons is None or one in dataset.epsilons]
            try:
                config = dataset.config(data, Path(folder))
                done += trials(name, config, runs=runs, epsilons=wanted, kept=kept, log=log)
            except CannotMeasureError as error:
                typer.echo(f"{name}: skipped, {error}", err=True)
                skipped[name] = str(error)
    _show(done, plot_file)
    if as_json:
        found = results(done)
        said: dict[str, Any] = {"quick": quick, "skipped": list(skipped), "left_out": LEFT_OUT}
        closed = [one.as_dict() for one in distances(found)]
        print(json_line("utility", figures(found), **said, results=[one.as_dict() for one in found], distances=closed))


def _show(done: Sequence[Trial], plot_file: Path | None) -> None:
    found = results(done)
    console = Console(width=None if sys.stdout.isatty() else 140)
    for shown in tables(found):
        console.print(shown)
    for one in distances(found):
        print(
            f"{one.dataset}, {one.task}, epsilon {one.epsilon:g}: {one.private.first.model} closes {one.share:.1%} of"
            f" the distance from the constant to {one.without.first.model} without privacy"
        )
    for name, why in LEFT_OUT.items():
        print(f"{name}: left out, {why}")
    for figure in figures(found):
        if figure.holds is not None:
            end = "holds" if figure.holds else "MISSED"
            print(f"{figure.name}: {figure.value:.4f}, target at least {figure.at_least:g}: {end}")
    if plot_file is not None and found:
        plot.draw(found, plot_file)


def _chosen(option: str, text: str | None, known: Any, where: str = "") -> list[str]:
    if text is None:
        return list(known)
    names = text.split(",")
    wrong = next((name for name in names if name not in known), None)
    if wrong is not None:
        raise ConfigError(f"{option} must be of {', '.join(known)}{where}, got {wrong!r}")
    return names


def _epsilons(text: str | None) -> tuple[float | None, ...] | None:
    if text is None:
        return None
    try:
        return tuple(None if one == "none" else float(one) for one in text.split(","))
    except ValueError:
        raise ConfigError(f"--epsilons must be numbers or none, with commas between, got {text!r}") from None
