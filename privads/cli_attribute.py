"""`privads attribute`: what an attribution interface would report of a log, with its noise and its cost."""

from pathlib import Path
from typing import Annotated

import typer

from privads.cli_budget import Json, print_json


def attribute(
    config: Annotated[Path, typer.Argument(help="run.toml, with an attribution table; its model is not used.")],
    setting: Annotated[list[str] | None, typer.Option("--set", help="TABLE.KEY=VALUE, over the file's.")] = None,
    out: Annotated[Path, typer.Option(help="The report to write, .parquet or .json; it must not exist.")] = Path(
        "attribution.parquet"
    ),
    as_json: Json = False,
) -> None:
    """Report what a log's ads led to as browsers do it: W3C Attribution, or the Attribution Reporting API's two ways.

    plan.epsilon and plan.delta are the most it may cost one plan.unit, charged in full before a row is read. With
    data.test_after or data.test_fraction in the file, only the rows for training are read.
    """
    from privads.config import ConfigError
    from privads.run_config import read_config

    read = read_config(config, setting or [])
    if read.attribution is None:
        raise ConfigError(f'{config} has no table [attribution]: add it, with api = "w3c", "event" or "summary"')
    epsilon, delta = read.plan.epsilon, read.plan.delta
    if read.plan.without_privacy or epsilon is None or delta is None:
        raise ConfigError(
            "a report always has its noise: state plan.epsilon and plan.delta, without_privacy is no plan"
        )
    if out.exists():
        raise ConfigError(f"{out} exists already: choose another file with --out, or remove it")

    from privads.features.fitting import check_place
    from privads.job import open_ledger, open_logs
    from privads.signals.attribution import AttributionPlan
    from privads.signals.report import check_format

    check_format(out)
    check_place(out.absolute())
    train, _ = open_logs(read)
    ledger = open_ledger(read, train.source)
    plan = AttributionPlan.of(read.attribution, train.source, epsilon=epsilon, delta=delta, unit=read.plan.unit)
    found = plan.run(train, ledger=ledger, insecure_seed=read.run.insecure_seed)
    # Said before the file is written: a full disk must not lose what was paid for.
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo("\n".join(found.in_words()))
    found.save(out)
    if not as_json:
        typer.echo(f"report: {out}")
