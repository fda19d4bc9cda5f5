"""`privads learn`: a model from released tables, alone or with the rows' features."""

from pathlib import Path
from typing import Annotated

import typer

from privads.cli_budget import Json, print_json


def learn(
    config: Annotated[Path, typer.Argument(help="run.toml, with the tables to learn from in its learn table.")],
    setting: Annotated[list[str] | None, typer.Option("--set", help="TABLE.KEY=VALUE, over the file's.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write; it must not exist. By default learn.out, else learned.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """Learn a model from noisy tables that were released; nothing more is charged.

    By default no row is read. With learn.features the rows' features are read as they are: with "unprotected" the
    model protects labels only, with "public" you say that features need no protection. learn.sample draws a synthetic
    log, free of cost. Where the schema says public = true and the file splits the rows, the model is judged on the
    held-out ones.
    """
    from privads.config import ConfigError
    from privads.run_config import read_config

    read = read_config(config, setting or [])
    if read.learn is None:
        raise ConfigError(f'{config} has no [learn]: name there the released tables, such as tables = ["tables"]')
    place = out if out is not None else Path(read.learn.out) if read.learn.out else Path("learned")
    if place.exists():
        raise ConfigError(f"{place} exists already: choose another folder with --out, or remove it")

    from privads.features.fitting import check_place
    from privads.progress import stages
    from privads.signals.learning_job import learn_from

    check_place(place.absolute())
    with stages(quiet=quiet) as stage:
        done = learn_from(read, read.learn, stage)
    done.save(place)
    if as_json:
        print_json({**done.as_dict(), "out": str(place)})
    else:
        typer.echo("\n".join(done.in_words()))
        typer.echo(f"model: {place / 'model.json'}")
        if done.sample is not None:
            schema = place / "ads.toml"
            typer.echo(
                f"synthetic log: {place / 'synthetic.parquet'}, {done.sample[0].num_rows:,} rows; schema: {schema}"
            )
