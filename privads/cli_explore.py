"""`privads explore`: what a log looks like, for a stated budget."""

from pathlib import Path
from typing import Annotated

import typer

from privads.cli_budget import Json


def explore(
    config: Annotated[Path, typer.Argument(help="run.toml, as for train; what it says of the model is not used.")],
    epsilon: Annotated[float, typer.Option(help="What looking may cost; charged in full before a row is read.")],
    delta: Annotated[float | None, typer.Option(help="By default plan.delta of the file.")] = None,
    label: Annotated[str | None, typer.Option(help="The label to explain; by default the first of yes or no.")] = None,
    rows_per_unit: Annotated[
        int, typer.Option(help="Most rows counted of one unit; more rows need as many times the noise.", min=1)
    ] = 1,
    setting: Annotated[list[str] | None, typer.Option("--set", help="TABLE.KEY=VALUE, over the file's.")] = None,
    out: Annotated[Path, typer.Option(help="The HTML page to write; it must not exist.")] = Path("explore.html"),
    as_json: Json = False,
) -> None:
    """Look at a log with a budget: counts, missing rates, quantiles, label rates, and which columns tell the most.

    With data.test_after or data.test_fraction in the file, only the rows for training are read.
    """
    from privads.config import ConfigError
    from privads.run_config import read_config

    read = read_config(config, setting or [])
    delta = read.plan.delta if delta is None else delta
    if delta is None:
        raise ConfigError("the privacy budget has no default: state --delta, or plan.delta in the file")
    if out.exists():
        raise ConfigError(f"{out} exists already: choose another file with --out, or remove it")

    from accounting.budget import Budget
    from privads.features.explore import Plan, in_words
    from privads.features.explore_page import check_extra, html
    from privads.features.fitting import check_place
    from privads.job import open_ledger, open_logs

    check_place(out.absolute())
    check_extra()
    train, _ = open_logs(read)
    ledger = open_ledger(read, train.source)
    budget = Budget(epsilon=epsilon, delta=delta, unit=read.plan.unit)
    found = Plan.of(train.source, budget, label=label, rows_per_unit=rows_per_unit).run(train, ledger=ledger)
    # Said before the page is written: a full disk must not lose what was paid for.
    typer.echo(found.model_dump_json(indent=2) if as_json else "\n".join(in_words(found)))
    out.write_text(html(found), encoding="utf-8")
    if not as_json:
        typer.echo(f"\npage: {out}")
