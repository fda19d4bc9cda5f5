"""`privads release`: noisy tables of a log, as Parquet files that say what their noise is and what they cost."""

from pathlib import Path
from typing import Annotated

import typer

from privads.cli_budget import Json, print_json


def release(
    config: Annotated[Path, typer.Argument(help="run.toml: data, budget, and in its release table what to make.")],
    setting: Annotated[list[str] | None, typer.Option("--set", help="TABLE.KEY=VALUE, over the file's.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder of tables to write; it must not exist. By default release.out, else tables."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what noise the tables would have; nothing is charged or read.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Release noisy tables of a log within a budget, for dashboards and for learning from them.

    With data.test_after or data.test_fraction in the file, only the rows for training are counted.
    """
    from privads.config import ConfigError
    from privads.run_config import read_config

    read = read_config(config, setting or [])
    if read.release is None:
        raise ConfigError(f"{config} has no [release]: name there what the tables are by, such as columns = [...]")
    place = out if out is not None else Path(read.release.out) if read.release.out else Path("tables")
    if not dry_run and place.exists():
        raise ConfigError(f"{place} exists already: choose another folder with --out, or remove it")

    from privads.job import open_ledger, open_logs
    from privads.signals.consistency import check_consistent, consistent
    from privads.signals.kept import check_room, keep_tables
    from privads.signals.plan import plan_release
    from privads.signals.summary import lines, plan_lines, summary

    train, _ = open_logs(read)
    planned = plan_release(read.release, read.plan, train.source)
    train.source.check_unit(read.plan.unit)
    if read.release.consistent:
        check_consistent(planned.queries)
    if dry_run:
        if as_json:
            print_json(summary(planned))
        else:
            typer.echo("\n".join(plan_lines(planned)))
        return
    check_room(planned, place, population=train.source.population)
    ledger = open_ledger(read, train.source)
    found = planned.run(train, ledger=ledger, purpose="release tables", insecure_seed=read.run.insecure_seed)
    tables = consistent(found.tables) if read.release.consistent else found.tables
    keep_tables(tables, place)
    if as_json:
        print_json({**summary(planned, tables), "out": str(place), "entry": found.entry})
    else:
        typer.echo("\n".join(lines(planned, tables, found.entry)))
        typer.echo(f"\ntables: {place}")
