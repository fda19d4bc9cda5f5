"""The command line. Results go to stdout, progress and errors to stderr; `--json` gives one JSON object.

Exit codes: 0 done; 2 usage or bad input (one clear line); 3 budget exceeded; 4 a claim is contradicted;
130 interrupted.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer
from click import BadParameter, ClickException, UsageError

from privads import (
    cli_attribute,
    cli_budget,
    cli_calibrate,
    cli_evaluate,
    cli_explore,
    cli_learn,
    cli_release,
    cli_report,
)
from privads.cli_budget import Json

if TYPE_CHECKING:
    from accounting.report.record import Report
    from privads.training.fit import Checkpoint

app = typer.Typer(
    help="Train ads models with differential privacy, and say for every run what it cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
BAD_INPUT, BUDGET_EXCEEDED, INTERRUPTED = 2, 3, 130


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"privads {version('privads')}")
        raise typer.Exit


@app.callback()
def front(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Hold the options that belong to no verb; without it `--version` has no place."""


Audit = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="canaries=1000: plant so many made-up units in the log, and test the claim by them; kind=gradient, "
        "row or user says which (row: not with federate).",
    ),
]


def _settings(setting: list[str] | None, out: str | None, audit: list[str] | None) -> list[str]:
    """Returns what the options say as settings over the file's."""
    for one in audit or []:
        if "=" not in one:
            raise BadParameter(f"--audit takes KEY=VALUE, such as canaries=1000, got {one!r}")
    folder = [f"run.out={json.dumps(out)}"] if out else []
    return [*(setting or []), *folder, *(f"audit.{one}" for one in audit or [])]


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="run.toml: data, model and budget.")],
    setting: Annotated[list[str] | None, typer.Option("--set", help="TABLE.KEY=VALUE, over the file's.")] = None,
    out: Annotated[str | None, typer.Option(help="The run folder; it must not exist.")] = None,
    keep_cache: Annotated[
        bool, typer.Option("--keep-cache", help="Keep the encoded rows, which are private, for later runs.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the working checkpoint (run.checkpoint), if there is one.")
    ] = False,
    audit: Audit = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model on a log, within a budget, and write its run folder and report."""
    from privads.run_config import read_config

    settings = _settings(setting, out, audit)
    settings += ["data.keep_cache=true"] if keep_cache else []
    read = read_config(config, settings)  # before the slow imports: a typing error is answered at once

    from privads.job import prepare
    from privads.progress import bar

    job = prepare(read, resume=resume)
    with _interruptible(job):
        run = job.run(progress=None if quiet else bar)
    _print_run(run.report(), job.out, as_json=as_json)


@app.command()
def federate(
    config: Annotated[Path, typer.Argument(help="run.toml, as for train; its federation table may be left out.")],
    setting: Annotated[list[str] | None, typer.Option("--set", help="TABLE.KEY=VALUE, over the file's.")] = None,
    out: Annotated[str | None, typer.Option(help="The run folder; it must not exist.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last round kept (run.checkpoint), if there is one.")
    ] = False,
    audit: Audit = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    as_json: Json = False,
) -> None:
    """Train the same model by rounds among its users, in this process, and write its run folder and report.

    Each user trains alone on their own rows; clipped updates are summed, noised and divided by a planned number.
    Silos are files of their own: federation.silo_paths.
    """
    from federation.config import federation_table
    from privads.run_config import read_config

    read = read_config(config, _settings(setting, out, audit))
    table = federation_table(read, source=config)

    from accounting.budget import BudgetExceeded
    from federation.job import prepare, shown

    job = prepare(read, table, resume=resume)
    with _interruptible(job):
        run = job.run(progress=None if quiet else shown)
    _print_run(run.report(), job.out, as_json=as_json)
    if run.rounds_done < run.plan.rounds:
        raise BudgetExceeded(
            f"to go on cost more than is left: the run ended after {run.rounds_done} of {run.plan.rounds} rounds, and "
            f"its model is in {job.out}"
        )


class _Job(Protocol):
    """What is said of a job that was interrupted."""

    @property
    def out(self) -> Path: ...

    @property
    def ledger(self) -> object | None: ...

    @property
    def checkpoint(self) -> "Checkpoint | None": ...


@contextlib.contextmanager
def _interruptible(job: _Job) -> Iterator[None]:
    """Say what is kept where the user interrupts a job."""
    try:
        yield
    except KeyboardInterrupt:
        kept = "" if job.ledger is None else "; a charge that was made stays, see `privads budget show`"
        if job.checkpoint is not None and job.checkpoint.path.exists():
            kept += "; go on with --resume"
        saved = "the run was saved without metrics" if (job.out / "report.json").is_file() else "nothing was saved"
        typer.echo(f"privads: interrupted, {saved}{kept}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _print_run(report: "Report", out: Path, *, as_json: bool) -> None:
    from accounting.report.summary import summary

    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        typer.echo(summary(report))
        page = out / "report.html"
        typer.echo(f"report: {page if page.is_file() else out / 'report.json'}")
    if report.contradictions:
        typer.echo("privads: the audit contradicts the claim: do not hand out the model", err=True)
        raise typer.Exit(cli_budget.CONTRADICTED)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder, or one that the verb learn wrote.")],
    logs: Annotated[str, typer.Argument(help="The rows to score: a file, folder or pattern; labels are not needed.")],
    out: Annotated[Path, typer.Option(help="The Parquet file to write: one row of predictions for each row.")],
) -> None:
    """Score a log with the model of a folder, row by row, in the log's order."""
    from privads.signals.scoring import is_learned, score_log

    if is_learned(run):
        typer.echo(f"{score_log(run, logs, out)} rows scored: {out}")
        return

    from privads.training.checkpoint import load, load_calibrations, load_features
    from privads.training.scores import write_scores

    model, schema = load(run)
    maps = load_calibrations(run)
    rows = write_scores(model, schema, logs, out, features=load_features(run), calibrations=maps)
    typer.echo(f"{rows} rows scored: {out}")


@app.command()
def simulate(
    users: Annotated[int, typer.Option(help="How many users.", min=1)],
    out: Annotated[Path, typer.Option(help="The Parquet file to write; its schema goes to ads.toml beside it.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same log.")] = 0,
    public: Annotated[bool, typer.Option("--public", help="Declare the simulated rows public.")] = False,
) -> None:
    """Write a made-up ads log with a known Bayes-optimal predictor, and the schema to read it."""
    import pyarrow.parquet

    from privads.logs.convert import check_out
    from privads.logs.simulator import schema_toml, simulate

    schema = check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    table = simulate(users, seed=seed)
    pyarrow.parquet.write_table(table, out)
    schema.write_text(schema_toml(users, public=public), encoding="utf-8")
    typer.echo(f"{table.num_rows} impressions of {users} users: {out}; schema: {schema}")


@app.command()
def convert(
    name: Annotated[str, typer.Argument(metavar="FORMAT", help="alibaba, interactions, libfm or open-bandit.")],
    source: Annotated[Path, typer.Argument(help="The public data set's file, or the folder of those to be joined.")],
    out: Annotated[Path, typer.Option(help="The Parquet file to write; its schema goes to ads.toml beside it.")],
) -> None:
    """Turn a public data set that is no table into a Parquet log, and write the schema to read it."""
    from privads.logs.convert import convert as write

    rows = write(name, source, out)
    typer.echo(f"{rows} rows: {out}; schema: {out.parent / 'ads.toml'}")


app.command("attribute")(cli_attribute.attribute)
app.command("explore")(cli_explore.explore)
app.command("release")(cli_release.release)
app.command("learn")(cli_learn.learn)
app.command("evaluate")(cli_evaluate.evaluate)
app.command("calibrate")(cli_calibrate.calibrate)
app.add_typer(cli_budget.app, name="budget")
app.add_typer(cli_report.app, name="report")


def main() -> None:
    """Run the command line; every refusal is one line on stderr."""
    from accounting.budget import BudgetExceeded, LedgerError

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin for each other halt on a shared machine
    try:
        sys.exit(app(prog_name="privads", standalone_mode=False))
    except ClickException as error:
        _refuse_usage(error)
    except BudgetExceeded as error:
        _refuse(error, BUDGET_EXCEEDED)
    except (ValueError, LedgerError, ImportError, OSError) as error:
        _refuse(error, BAD_INPUT)


def _refuse(error: Exception, code: int) -> None:
    said = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        said = f"{error.filename}: {error.strerror}; see that the path is right, and this user's to read and write"
    lines = said.strip().splitlines() or [type(error).__name__]
    print(f"privads: {lines[0]}", file=sys.stderr)
    sys.exit(code)


def _refuse_usage(error: ClickException) -> None:
    said = error.format_message()
    if said:  # empty: no verb was given, and the help is the answer
        verb = error.ctx.command_path if isinstance(error, UsageError) and error.ctx else "privads"
        print(f"privads: {said.rstrip('.')}; see `{verb} --help`", file=sys.stderr)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
