"""`privads evaluate`: how well a finished run predicts private rows, for a stated budget."""

from pathlib import Path
from typing import Annotated

import typer

from privads.cli_budget import Json, print_json


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    epsilon: Annotated[float, typer.Option(help="What the metrics may cost; charged in full before a row is read.")],
    delta: Annotated[float | None, typer.Option(help="By default the run's.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="The rows to judge by, all of them: a file, folder or pattern. By default what the run held out."
        ),
    ] = None,
    ledger: Annotated[str | None, typer.Option(help="Where the budget is kept; by default the run's ledger.")] = None,
    rows_per_unit: Annotated[
        int, typer.Option(help="Most rows counted of one unit; more rows need as many times the noise.", min=1)
    ] = 1,
    segment: Annotated[
        list[str] | None,
        typer.Option(help="COLUMN=VALUE,VALUE: judge the rows of these values apart too; all figures get more noise."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the figures to this file too, as JSON; it must not exist.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge a run by private rows: AUC, log loss, calibration, with noise, as an entry of their own in the ledger.

    The run folder is left as it is. To judge a run when it is trained, state evaluation.epsilon in run.toml.
    """
    from privads.config import ConfigError

    segments = _segments(segment or [])
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists already: choose another file with --out, or remove it")

    import json

    from accounting.report.summary import in_lines
    from privads.evaluation.held_out import as_records
    from privads.evaluation.of_run import Judging
    from privads.features.fitting import check_place

    if out is not None:
        check_place(out.absolute())
    judging = Judging.of(
        run,
        epsilon=epsilon,
        delta=delta,
        data=data,
        ledger=ledger,
        rows_per_unit=rows_per_unit,
        segments=segments,
    )
    found = judging.run()
    tasks, budget = as_records(found), found.budget
    figures = {
        "run": judging.report.run.id,
        "dataset": judging.rows.schema.dataset,
        "rows": f"{judging.rows.path}: {judging.rows.split_text}",
        "cost": found.cost,
        "epsilon": found.epsilon,
        "delta": budget.delta,
        "unit": budget.unit,
        "neighbors": budget.neighbors,
        "entry": found.entry,
        "rows_per_unit": found.rows_per_unit,
        "noise_std": found.noise_std,
        "metrics": [task.model_dump(mode="json") for task in tasks],
    }
    # Said before the file is written: a full disk must not lose what was paid for.
    if as_json:
        print_json(figures)
    else:
        several = len(tasks) > 1 or len(judging.rows.schema.labels) > 1
        for task in tasks:
            about = task.task if task.segment is None else f"{task.task}, {task.segment}"
            typer.echo("\n".join(in_lines(task, prefix=f"{about}: " if several else "")))
        typer.echo(found.cost)
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _segments(given: list[str]) -> dict[str, list[str]]:
    from privads.config import ConfigError

    found: dict[str, list[str]] = {}
    for one in given:
        column, separator, values = one.partition("=")
        if not (column and separator and values) or column in found:
            raise ConfigError(f"--segment takes COLUMN=VALUE,VALUE, each column once, got {one!r}")
        found[column] = values.split(",")
    return found
