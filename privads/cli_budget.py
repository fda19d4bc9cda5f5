"""The command line's accounting verbs: `privads budget ...` and `privads calibrate`."""

import getpass
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from accounting.accountant import Bounds
    from accounting.budget import Budget
    from accounting.ledger import Balance, Entry

app = typer.Typer(help="The privacy budget of each data set.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
LedgerUrl = Annotated[
    str, typer.Option("--ledger", help="Where the budget is kept: sqlite:///budget.db or postgresql+psycopg://HOST/DB.")
]
Dataset = Annotated[str, typer.Option("--dataset", help="The data set's name, as its schema says.")]


@app.command("init")
def init(
    ledger: LedgerUrl,
    dataset: Dataset,
    epsilon: Annotated[float, typer.Option(help="The limit, once and for all.")],
    delta: Annotated[float, typer.Option(help="The limit on delta.")],
    unit: Annotated[str, typer.Option(help="Who is protected, as the schema calls it: user, example, ...")],
    neighbors: Annotated[str, typer.Option(help="add-remove, replace or replace-label.")] = "add-remove",
    also: Annotated[
        list[str] | None,
        typer.Option(help="A second limit that every run is charged to: unit=user-day,epsilon=1,delta=1e-7."),
    ] = None,
    rule: Annotated[str, typer.Option(help="How runs add up: basic (few runs), zcdp or rdp (many).")] = "basic",
    order: Annotated[float | None, typer.Option(help="The Rényi order of rule rdp; computed if left out.")] = None,
    block: Annotated[str | None, typer.Option(help="Time blocks: hour, day, week or month.")] = None,
    population: Annotated[int | None, typer.Option(help="Public number of units; delta must be below its inverse.")] = (
        None
    ),
    as_json: Json = False,
) -> None:
    """Set a data set's limit. It is set once; no run can go past it."""
    from accounting.budget import Budget
    from accounting.ledger import Ledger

    limit = Budget(epsilon=epsilon, delta=delta, unit=unit, neighbors=neighbors)  # type: ignore[arg-type]
    others = [_read_limit(text) for text in also or []]
    made = Ledger.init(
        ledger,
        dataset=dataset,
        budget=limit,
        also=others,
        rule=rule,  # type: ignore[arg-type]
        order=order,
        block=block,  # type: ignore[arg-type]
        population=population,
    )
    if as_json:
        _print_json({"dataset": dataset, "columns": [_balance_data(one) for one in made.balances(dataset)]})
        return
    for column in made.balances(dataset):
        typer.echo(f"{dataset}: limit {column.limit} in {made.url}")


@app.command("show")
def show(
    ledger: LedgerUrl,
    dataset: Dataset,
    joint: Annotated[bool, typer.Option(help="Also compute what all runs cost jointly; cached.")] = True,
    as_json: Json = False,
) -> None:
    """Show a data set's limit, what was spent and what is left."""
    from accounting.ledger import Ledger

    book = Ledger.open(ledger)
    columns = book.balances(dataset)
    together = [
        book.joint(dataset, unit=one.limit.unit, label_only=one.label_only) if joint else None for one in columns
    ]
    if as_json:
        found = [
            {**_balance_data(one), "joint": _bounds_data(bounds)} for one, bounds in zip(columns, together, strict=True)
        ]
        _print_json({"dataset": dataset, **found[0], "columns": found})
        return
    for one, bounds in zip(columns, together, strict=True):
        for line in _balance_lines(one, bounds):
            typer.echo(line)


@app.command("history")
def history(
    ledger: LedgerUrl,
    dataset: Dataset,
    plot: Annotated[Path | None, typer.Option(help="Also draw the spending over time: a .svg or .png file.")] = None,
    as_json: Json = False,
) -> None:
    """List a data set's charges, oldest first, with the running total."""
    from accounting.ledger import Ledger

    book = Ledger.open(ledger)
    entries, balance = book.history(dataset), book.balance(dataset)
    if plot is not None:
        from accounting.report.spending import draw

        draw(entries, balance, plot)
    if as_json:
        _print_json({"dataset": dataset, "entries": [_entry_data(one) for one in entries]})
        return
    _print_history(entries, balance)
    if plot is not None:
        typer.echo(f"plot: {plot}")


@app.command("verify")
def verify(
    ledger: LedgerUrl,
    head: Annotated[str | None, typer.Option(help="The ledger's head hash from an earlier report.")] = None,
    reaccount: Annotated[
        bool, typer.Option("--reaccount", help="Also compute every recorded event's cost anew; exit 3 if one was low.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check that no entry of a ledger was changed, removed or reordered."""
    from accounting.ledger import Ledger

    book = Ledger.open(ledger)
    found = book.verify(head=head)
    low = {name: book.reaccount(name) for name in book.datasets()} if reaccount else {}
    understated = [entry for entries in low.values() for entry in entries]
    if as_json:
        data: dict[str, Any] = {"entries": found.entries, "head": found.head, "anchored": found.anchored}
        if reaccount:
            data["understated"] = [_entry_data(one) for one in understated]
        _print_json(data)
    else:
        tail = "it contains the given head" if found.anchored else "its tail is not anchored: give --head from a report"
        typer.echo(f"{found.entries} rows, unbroken; {tail}; head {found.head}")
        for one in understated:
            typer.echo(f"entry {one.id} of {one.dataset} was charged less than today's accountant finds: {one.purpose}")
        if reaccount and not understated:
            typer.echo("every charge covers what today's accountant finds")
    if understated:
        raise typer.Exit(3)


@app.command("export")
def export(
    ledger: LedgerUrl,
    dataset: Dataset,
    form: Annotated[str, typer.Option("--format", help="json or csv.")] = ("json"),
    out: Annotated[Path | None, typer.Option(help="The file to write; standard output if left out.")] = None,
    as_json: Json = False,
) -> None:
    """Write a data set's log as it stands, for an auditor or another tool; it holds no rows of data."""
    from accounting.ledger import Ledger
    from privads.config import ConfigError

    book = Ledger.open(ledger)
    if as_json or form == "json":
        text = json.dumps({"dataset": dataset, "rows": book.export(dataset)}, indent=2, sort_keys=True) + "\n"
    elif form == "csv":
        text = book.export_csv(dataset)
    else:
        raise ConfigError(f"--format must be json or csv, got {form!r}")
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
        typer.echo(f"{dataset}: {out}")


@app.command("release-stale")
def release_stale(
    ledger: LedgerUrl,
    dataset: Dataset,
    entry: Annotated[int, typer.Option(help="The number of a reserved entry whose run is known to be dead.")],
    reason: Annotated[str, typer.Option(help="Why it is known to be dead; it is recorded.")],
    by: Annotated[str | None, typer.Option(help="Who decides; your login if left out. It is recorded.")] = None,
    as_json: Json = False,
) -> None:
    """Give back a reservation whose run died before it read a row. The log records who did it, and why."""
    from accounting.ledger import Ledger

    released = Ledger.open(ledger).release_stale(dataset, entry, by=by or getpass.getuser(), reason=reason)
    if as_json:
        _print_json(_entry_data(released))
        return
    typer.echo(f"entry {released.id} of {dataset} released: {released.purpose}")


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

    Give two of sampling rate, steps and noise multiplier.
    """
    from accounting import calibrate as search
    from accounting import mechanisms
    from accounting.accountant import epsilon as account
    from accounting.accountant import without_amplification
    from accounting.budget import Budget
    from accounting.report.phrase import bound
    from privads.config import ConfigError

    budget = Budget(epsilon=epsilon, delta=delta, unit=unit)
    rate = _one_of("--sampling-rate", sampling_rate, "--batch with --population", _rate(batch, population))
    if epochs is not None and rate is None:
        raise ConfigError("--epochs needs the sampling rate: give --batch with --population, or --steps")
    count = _one_of("--steps", steps, "--epochs", None if epochs is None or rate is None else round(epochs / rate))
    if [rate, count, noise_multiplier].count(None) != 1:
        raise ConfigError(
            "give two of sampling rate (or --batch with --population), --steps (or --epochs) and --noise-multiplier; "
            "the third is found"
        )
    other = None if beside is None else mechanisms.from_json(beside.read_text(encoding="utf-8"))

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
    values = {"sampling_rate": rate, "steps": count, "noise_multiplier": noise_multiplier}
    if as_json:
        _print_json(
            {
                "found": found,
                **values,
                "epsilon": spent.upper,
                "delta": delta,
                "unit": unit,
                "neighbors": budget.neighbors,
                "method": spent.method,
                "epsilon_without_amplification": plain.upper,
                "event": mechanisms.to_dict(made),
            }
        )
        return
    released = "every step's release" if other is None else "every step's release and what stands beside"
    say = partial(bound, delta=delta, unit=unit, neighbors=budget.neighbors, released=released)
    typer.echo(f"{found}: {values[found]:.6g}")
    typer.echo(say(spent.upper))
    typer.echo(f"without trust in the sampling: {say(plain.upper)}")


def _rate(batch: int | None, population: int | None) -> float | None:
    from privads.config import ConfigError

    if batch is None:
        return None
    if population is None or not 1 <= batch <= population:
        raise ConfigError("--batch needs --population, and must lie between 1 and it")
    return batch / population


def _one_of(first: str, one: Any, second: str, other: Any) -> Any:
    from privads.config import ConfigError

    if one is not None and other is not None:
        raise ConfigError(f"give {first} or {second}, not both")
    return other if one is None else one


def _read_limit(text: str) -> "Budget":
    from accounting.budget import Budget
    from privads.config import ConfigError

    pairs = dict(part.partition("=")[::2] for part in text.split(","))
    if not {"unit", "epsilon", "delta"} <= set(pairs) <= {"unit", "epsilon", "delta", "neighbors"}:
        raise ConfigError(f"--also must read unit=NAME,epsilon=E,delta=D[,neighbors=NAME], got {text!r}")
    try:
        epsilon, delta = float(pairs["epsilon"]), float(pairs["delta"])
    except ValueError:
        raise ConfigError(f"--also: epsilon and delta must be numbers, got {text!r}") from None
    neighbors: Any = pairs.get("neighbors", "add-remove")
    return Budget(epsilon=epsilon, delta=delta, unit=pairs["unit"], neighbors=neighbors)


def _balance_lines(balance: "Balance", joint: "Bounds | None") -> list[str]:
    from accounting.ledger.columns import MEASURES
    from accounting.report.phrase import bound

    limit = balance.limit
    say = partial(bound, unit=limit.unit, neighbors=limit.neighbors, released=f"data set {balance.dataset}")
    kept_apart = " (labels only, kept apart)" if balance.label_only else ""
    lines = [
        f"limit: {say(limit.epsilon, delta=limit.delta, relation='=')}{kept_apart}",
        f"spent: {say(balance.spent_epsilon, delta=balance.spent_delta)}",
        f"left:  {say(balance.left_epsilon, delta=balance.left_delta, relation='=')}",
    ]
    if balance.rule != "basic":
        order = "" if balance.order is None else f" of order {balance.order:g}"
        measure = f"{MEASURES[balance.rule]}{order}"
        lines.append(f"rule:  {balance.rule}, {measure} {balance.loss_spent:.6g} of {balance.loss_limit:.6g}")
    if joint is not None:
        lines.append(
            f"joint: {say(joint.upper, delta=limit.delta)} by {joint.method}; all runs together, "
            "reported and not enforced"
        )
    if balance.open_entries:
        lines.append(f"{balance.open_entries} of the charges are still open; they count as spent")
    return lines


def _balance_data(balance: "Balance") -> dict[str, Any]:
    return {
        "unit": balance.limit.unit,
        "neighbors": balance.limit.neighbors,
        "label_only": balance.label_only,
        "rule": balance.rule,
        "order": balance.order,
        "limit": {"epsilon": balance.limit.epsilon, "delta": balance.limit.delta, "loss": balance.loss_limit},
        "spent": {"epsilon": balance.spent_epsilon, "delta": balance.spent_delta, "loss": balance.loss_spent},
        "left": {"epsilon": balance.left_epsilon, "delta": balance.left_delta},
        "open_entries": balance.open_entries,
        "by_block": balance.by_block,
    }


def _bounds_data(bounds: "Bounds | None") -> dict[str, Any] | None:
    if bounds is None:
        return None
    return {
        "epsilon": bounds.upper,
        "epsilon_lower": bounds.lower,
        "delta": bounds.delta,
        "method": bounds.method,
        "grid": bounds.grid,
        "library": bounds.library,
    }


def _entry_data(entry: "Entry") -> dict[str, Any]:
    return {
        "id": entry.id,
        "state": entry.state,
        "epsilon": entry.epsilon,
        "delta": entry.delta,
        "unit": entry.unit,
        "neighbors": entry.neighbors,
        "records": dict(entry.records),
        "costs": [
            {"unit": cost.unit, "neighbors": cost.neighbors, "loss": cost.loss, "delta": cost.delta}
            for cost in entry.costs
        ],
        "blocks": list(entry.blocks),
        "purpose": entry.purpose,
        "reserved_at": entry.reserved_at,
        "opened_at": entry.opened_at,
        "closed_at": entry.closed_at,
        "released_by": entry.released_by,
        "released_because": entry.released_because,
        "key": entry.key,
        "event": json.loads(entry.event),
    }


def _print_history(entries: "list[Entry]", balance: "Balance") -> None:
    from rich.console import Console
    from rich.table import Table

    limit = balance.limit
    table = Table("entry", "reserved", "state", "epsilon", "delta", "unit", "neighbors", "purpose", box=None)
    for one in entries:
        blocks = f" ({', '.join(one.blocks)})" if one.blocks else ""
        table.add_row(
            str(one.id),
            one.reserved_at,
            one.state,
            f"{one.epsilon:.6g}",
            f"{one.delta:.3g}",
            one.unit,
            one.neighbors.replace("-", "/"),
            f"{one.purpose}{blocks}",
        )
    Console(width=None if _is_terminal() else 160, highlight=False).print(table)
    typer.echo(
        f"{len(entries)} charges; spent epsilon {balance.spent_epsilon:.6g} of {limit.epsilon:.6g} ({limit.terms})"
    )


def _is_terminal() -> bool:
    import sys

    return sys.stdout.isatty()


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, sort_keys=True))
