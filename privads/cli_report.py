"""The command line's verbs about reports: `privads report ...`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from click import Context
from typer.core import TyperGroup

from privads import cli_ledger, cli_sign
from privads.cli_budget import Json, print_json

if TYPE_CHECKING:
    from accounting.report.record import Report

REPORT = "report.json"


class _ShowsARun(TyperGroup):
    """A group that takes a run folder or a ledger in the place of a verb, `show` or `ledger`: `privads report RUN`."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Put in the verb that was left out."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["ledger" if any(map(cli_ledger.is_ledger, args)) else "show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(help="The privacy report of a run, or of a whole ledger.", no_args_is_help=True, cls=_ShowsARun)


@app.command("show")
def show(
    run: Annotated[Path, typer.Argument(help="A run folder, or its report.json.")],
    form: Annotated[str, typer.Option("--format", help="markdown, html, json, registry, sarif or model-card.")] = (
        "markdown"
    ),
) -> None:
    """Print the privacy report of a run. The verb may be left out: `privads report RUN`."""
    from accounting.report import render
    from accounting.report.model_card import model_card
    from accounting.report.record import Report
    from accounting.report.registry import registry_yaml
    from privads.config import ConfigError

    forms = {
        "markdown": render.markdown,
        "html": render.html,
        "json": Report.to_json,
        "registry": registry_yaml,
        "sarif": lambda report: _findings(report, run),
        "model-card": model_card,
    }
    if form not in forms:
        raise ConfigError(f"--format must be one of {', '.join(forms)}, got {form!r}")
    typer.echo(forms[form](read_report(run)).removesuffix("\n"))


@app.command("diff")
def diff(
    first: Annotated[Path, typer.Argument(help="A run folder, or its report.json.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: Json = False,
) -> None:
    """Print what changed from one run's report to another's: the promise, what it rests on, the plan, the metrics."""
    from accounting.report.compare import differences, in_words, verdict

    before, after = read_report(first), read_report(second)
    if as_json:
        runs = {"first": before, "second": after}
        about = {name: {"run": one.run.id, "headline": one.headline} for name, one in runs.items()}
        print_json(
            {
                **about,
                "verdict": verdict(before, after),
                "changes": [one._asdict() for one in differences(before, after)],
            }
        )
        return
    typer.echo(in_words(before, after))


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a report; it comes with the package, too, as accounting/report/report.schema.json."""
    from accounting.report.schema import schema_json

    typer.echo(schema_json(), nl=False)


app.command("ledger")(cli_ledger.ledger)
app.command("key")(cli_sign.key)
app.command("sign")(cli_sign.sign)
app.command("verify")(cli_sign.verify)


def read_report(place: Path) -> "Report":
    """Returns the report of a run folder, or in a file; refuses what is neither."""
    from accounting.report.reading import read_report as read
    from privads.config import ConfigError

    file = _file(place)
    if not file.is_file():
        from privads.signals.scoring import LEARNED, is_learned

        if is_learned(place):
            raise ConfigError(f"{place} holds a model learned from tables: what it cost stands in {place / LEARNED}")
        raise ConfigError(f"{place} is not a run folder: it has no {file.name}")
    return read(file)


def _file(place: Path) -> Path:
    return place / REPORT if place.is_dir() or not place.exists() else place


def _findings(report: "Report", place: Path) -> str:
    """Returns the report's SARIF, which says where its file is: by a path as it was typed, or by a whole URI."""
    from urllib.parse import quote

    from accounting.report.sarif import sarif

    file = _file(place)
    uri = file.as_uri() if file.is_absolute() else quote(file.as_posix())
    return sarif(report, source=file.read_text(encoding="utf-8"), uri=uri)
