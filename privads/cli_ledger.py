"""The command line's report of a whole ledger: `privads report LEDGER`."""

from pathlib import Path
from typing import Annotated

import typer

from privads.cli_budget import Json

SQLITE_MAGIC = b"SQLite format 3\x00"
"""What the file of a SQLite database begins with."""


def ledger(
    ledger: Annotated[str, typer.Argument(help="A ledger's file or URL: budget.db, postgresql+psycopg://HOST/DB.")],
    runs: Annotated[
        Path | None,
        typer.Option(help="A folder with run folders, somewhere below: whose reports tell who was audited."),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option("--public-key", help="Believe reports only if their run folder was signed with this key's pair."),
    ] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Report this data set only; may be repeated.")] = None,
    form: Annotated[str, typer.Option("--format", help="text, markdown or html.")] = "text",
    as_json: Json = False,
) -> None:
    """Print what was spent of each data set's budget, on what and when, what is left, and which runs nobody audited.

    The verb may be left out: `privads report budget.db`. Nothing is written to the ledger.
    """
    from datetime import UTC, datetime

    from accounting.ledger import Ledger
    from accounting.report import overview_pages as pages
    from accounting.report.overview import Reports, find_reports, overview
    from privads.config import ConfigError

    forms = {"text": pages.text, "markdown": pages.markdown, "html": pages.html}
    if form not in forms:
        raise ConfigError(f"--format must be one of {', '.join(forms)}, got {form!r}")
    if as_json and form != "text":
        raise ConfigError(f"--json and --format {form} both ask for standard output: leave one out")
    if public_key is not None and runs is None:
        raise ConfigError("--public-key is for the reports that --runs FOLDER finds: give both")
    whole = Ledger.open(url_of(ledger)).read()
    found = Reports() if runs is None else find_reports(runs, whole, public_key=public_key)
    made = overview(whole, found, read_at=datetime.now(UTC), only=dataset or ())
    typer.echo(made.to_json() if as_json else forms[form](made), nl=False)


def is_ledger(place: str) -> bool:
    """Says whether a word of the command line names a ledger, and not a run folder: a URL, or a database's file."""
    if "://" in place:
        return True
    path = Path(place)
    if not path.is_file():
        return path.suffix == ".db" and not path.exists()  # so that what is missed is said to be a ledger
    with path.open("rb") as file:
        return file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC


def url_of(place: str) -> str:
    """Returns the URL of a ledger that is named by its URL or by its file."""
    return place if "://" in place else f"sqlite:///{place}"
