"""The command line's `privads calibrate`: what a budget allows, before any data are touched."""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privads.cli_budget import Json, finite_or_none, print_json

if TYPE_CHECKING:
    from dp_accounting import dp_event

    from accounting.budget import Budget


def calibrate(
    epsilon: Annotated[float, typer.Option(help="The budget.")],
    delta: Annotated[float, typer.Option(help="The budget's delta.")],
    unit: Annotated[str, typer.Option(help="Who is protected: user, example, ...")],
    sampling_rate: Annotated[float | None, typer.Option(help="Poisson sampling rate; or --batch, --population.")] = (
        None
    ),
    batch: Annotated[int | None, typer.Option(help="Expected units in a batch.")] = None,
    population: Annotated[int | None, typer.Option(help="Public number of units.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps; or --epochs.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the population.")] = None,
    noise_multiplier: Annotated[float | None, typer.Option(help="Noise std / clip norm.")] = None,
    records: Annotated[
        int, typer.Option(help="Rows of one unit that are sampled and clipped one by one; 1 clips a unit whole.", min=1)
    ] = 1,
    beside: Annotated[
        Path | None, typer.Option(help="A JSON event that the same budget pays for too, such as fitted features.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the one that is left out: the least noise, the most steps, or the largest sampling rate in a budget.

    Give two of sampling rate, steps and noise multiplier. Sampling is Poisson, neighbors are add/remove.

    With --records and nothing beside, least noise is compared with that of clipping whole units.
    """
    from accounting import calibrate as search
    from accounting import mechanisms
    from accounting.accountant import epsilon as account
    from accounting.accountant import without_amplification
    from accounting.budget import EXAMPLE, Budget
    from accounting.report.phrase import bound
    from privads.config import ConfigError

    budget = Budget(epsilon=epsilon, delta=delta, unit=unit)
    rate = _one_of("--sampling-rate", sampling_rate, "--batch with --population", _rate(batch, population))
    if epochs is not None and rate is None:
        raise ConfigError("--epochs needs the sampling rate: give --batch with --population, or --steps")
    if epochs is not None and not (math.isfinite(epochs) and epochs > 0):
        raise ConfigError(f"--epochs must be positive and finite, got {epochs}")
    count = _one_of("--steps", steps, "--epochs", None if epochs is None or rate is None else round(epochs / rate))
    if [rate, count, noise_multiplier].count(None) != 1:
        raise ConfigError(
            "give two of sampling rate (or --batch with --population), --steps (or --epochs) and --noise-multiplier; "
            "the third is found"
        )
    other = None if beside is None else _read_event(beside)

    def event(rate: float, noise: float, count: int) -> Any:
        if records == 1:
            return mechanisms.dp_sgd(sampling_rate=rate, noise_multiplier=noise, steps=count)
        return mechanisms.user_dp_sgd(sampling_rate=rate, noise_multiplier=noise, steps=count, records=records)

    found = "noise_multiplier"
    if noise_multiplier is None:
        noise_multiplier = search.noise_multiplier(lambda s: event(rate, s, count), budget, beside=other)
    elif count is None:
        found, count = "steps", search.most_steps(lambda n: event(rate, noise_multiplier, n), budget, beside=other)
    else:
        found = "sampling_rate"
        rate = search.largest_sampling_rate(lambda q: event(q, noise_multiplier, count), budget, beside=other)
    made = event(rate, noise_multiplier, count)
    whole = made if other is None else mechanisms.composed(other, made)
    spent, plain = account(whole, delta=delta), without_amplification(whole, delta=delta)
    compared = records > 1 and found == "noise_multiplier" and other is None and budget.unit != EXAMPLE
    whole_units = _whole_units(budget, rate, count, records) if compared else None
    values = {"sampling_rate": rate, "steps": count, "noise_multiplier": noise_multiplier}
    if as_json:
        print_json(
            {
                "found": found,
                **values,
                "epsilon": finite_or_none(spent.upper),
                "delta": delta,
                "unit": unit,
                "neighbors": budget.neighbors,
                "method": spent.method,
                "epsilon_without_amplification": finite_or_none(plain.upper),
                "whole_units": whole_units,
                "event": mechanisms.to_dict(made),
            }
        )
        return
    released = "every step's release" if other is None else "every step's release and what stands beside"
    say = partial(bound, delta=delta, unit=unit, neighbors=budget.neighbors, released=released)
    typer.echo(f"{found}: {values[found]}")  # every digit: a rounded one may cost more
    typer.echo(say(spent.upper))
    typer.echo(f"without trust in the sampling: {say(plain.upper)}")
    if whole_units is not None:
        typer.echo(
            f"clipping whole units instead: noise_multiplier {whole_units['noise_multiplier']}; less noise where the "
            f"gradients of a unit's rows have a mean cosine below {whole_units['less_noise_below_cosine']:.3f}"
        )


def _whole_units(budget: "Budget", rate: float, steps: int, records: int) -> dict[str, float]:
    """Returns what clipping whole units takes, and the similarity of their rows below which that is less noise."""
    from accounting.levels import compare

    found = compare(budget, sampling_rate=rate, steps=steps, records=records, similarity=0.0)
    return {"noise_multiplier": found.unit_noise_multiplier, "less_noise_below_cosine": found.crossover}


def _rate(batch: int | None, population: int | None) -> float | None:
    from privads.config import ConfigError

    if batch is None:
        if population is not None:
            raise ConfigError("--population belongs to --batch: give both, or neither")
        return None
    if population is None or not 1 <= batch <= population:
        raise ConfigError("--batch needs --population, and must lie between 1 and it")
    return batch / population


def _one_of(first: str, one: Any, second: str, other: Any) -> Any:
    from privads.config import ConfigError

    if one is not None and other is not None:
        raise ConfigError(f"give {first} or {second}, not both")
    return other if one is None else one


def _read_event(file: Path) -> "dp_event.DpEvent":
    from accounting import mechanisms
    from privads.config import ConfigError

    try:
        return mechanisms.from_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"--beside {file} holds no event as `accounting.mechanisms.to_json` writes it: {str(error)[:200]}"
        ) from None
