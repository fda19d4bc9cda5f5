"""The command line's budget verbs: `privads budget ...`."""

import getpass
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from accounting.accountant import Bounds
    from accounting.budget import Budget
    from accounting.ledger import Balance, Entry

app = typer.Typer(help="The privacy budget of each data set.", no_args_is_help=True)

CONTRADICTED = 4
"""Exit code: what the ledger claims is below what its own events cost."""

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
        typer.Option(
            help="A second limit that every run is charged to: unit=user-day,epsilon=1,delta=1e-7. With "
            "neighbors=replace-label it is of labels alone, and nothing else is charged to it."
        ),
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
        print_json({"dataset": dataset, "columns": [_balance_data(one) for one in made.balances(dataset)]})
        return
    for column in made.balances(dataset):
        typer.echo("\n".join(_limit_lines(column)))
    typer.echo(f"ledger: {made.url}")


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
        print_json({"dataset": dataset, **found[0], "columns": found})
        return
    for one, bounds in zip(columns, together, strict=True):
        for line in _balance_lines(one, bounds):
            typer.echo(line)


@app.command("history")
def history(
    ledger: LedgerUrl,
    dataset: Dataset,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw what was spent of the first limit over time: a .svg or .png file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List a data set's charges, oldest first, and what they spent of each of its limits."""
    from accounting.ledger import Ledger

    book = Ledger.open(ledger)
    entries, columns = book.history(dataset), book.balances(dataset)
    if plot is not None:
        from accounting.report.spending import draw

        draw(entries, columns[0], plot)
    if as_json:
        print_json({"dataset": dataset, "entries": [_entry_data(one) for one in entries]})
        return
    _print_history(entries, columns)
    if plot is not None:
        typer.echo(f"plot: {plot}")


@app.command("verify")
def verify(
    ledger: LedgerUrl,
    head: Annotated[str | None, typer.Option(help="The ledger's head hash from an earlier report.")] = None,
    reaccount: Annotated[
        bool, typer.Option("--reaccount", help="Also compute every recorded event's cost anew; exit 4 if one was low.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check that no entry of a ledger was changed, removed or reordered."""
    from accounting.ledger import Ledger
    from privads.config import ConfigError

    if head is not None and not re.fullmatch(r"[0-9a-f]{64}", head):
        raise ConfigError(f"--head must be the 64 hexadecimal digits of a report's ledger head, got {head!r}")
    book = Ledger.open(ledger)
    found = book.verify(head=head)
    low = {name: book.reaccount(name) for name in book.datasets()} if reaccount else {}
    understated = [entry for entries in low.values() for entry in entries]
    if as_json:
        data: dict[str, Any] = {"entries": found.entries, "head": found.head, "anchored": found.anchored}
        if reaccount:
            data["understated"] = [_entry_data(one) for one in understated]
        print_json(data)
    else:
        tail = "it contains the given head" if found.anchored else "its tail is not anchored: give --head from a report"
        typer.echo(f"{found.entries} rows, unbroken; {tail}; head {found.head}")
        for one in understated:
            typer.echo(f"entry {one.id} of {one.dataset} was charged less than today's accountant finds: {one.purpose}")
        if reaccount and not understated:
            typer.echo("every charge covers what today's accountant finds")
    if understated:
        raise typer.Exit(CONTRADICTED)


@app.command("export")
def export(
    ledger: LedgerUrl,
    dataset: Dataset,
    form: Annotated[str, typer.Option("--format", help="json or csv.")] = "json",
    out: Annotated[Path | None, typer.Option(help="The file to write; standard output if left out.")] = None,
    as_json: Json = False,
) -> None:
    """Write a data set's log as it stands, for an auditor or another tool; it holds no rows of data."""
    from accounting.ledger import Ledger
    from privads.config import ConfigError

    if as_json and form != "json" and out is None:
        raise ConfigError("--json and --format csv both ask for standard output: leave one out, or give --out")
    book = Ledger.open(ledger)
    if form == "json":
        text = json.dumps({"dataset": dataset, "rows": book.export(dataset)}, indent=2, sort_keys=True) + "\n"
    elif form == "csv":
        text = book.export_csv(dataset)
    else:
        raise ConfigError(f"--format must be json or csv, got {form!r}")
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
        if as_json:
            print_json({"dataset": dataset, "format": form, "out": str(out)})
        else:
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
        print_json(_entry_data(released))
        return
    typer.echo(f"entry {released.id} of {dataset} released: {released.purpose}")


def _read_limit(text: str) -> "Budget":
    from accounting.budget import Budget
    from privads.config import ConfigError

    parts = [part.partition("=")[::2] for part in text.split(",")]
    pairs = dict(parts)
    known = {"unit", "epsilon", "delta"} <= set(pairs) <= {"unit", "epsilon", "delta", "neighbors"}
    if not known or len(pairs) < len(parts):  # a figure stated twice is a limit that nobody stated
        raise ConfigError(f"--also must read unit=NAME,epsilon=E,delta=D[,neighbors=NAME], got {text!r}")
    try:
        epsilon, delta = float(pairs["epsilon"]), float(pairs["delta"])
    except ValueError:
        raise ConfigError(f"--also: epsilon and delta must be numbers, got {text!r}") from None
    neighbors: Any = pairs.get("neighbors", "add-remove")
    return Budget(epsilon=epsilon, delta=delta, unit=pairs["unit"], neighbors=neighbors)


def _limit_lines(balance: "Balance") -> list[str]:
    from accounting.ledger.columns import measure_of

    limit = balance.limit
    kept_apart = " (labels only, kept apart)" if balance.label_only else ""
    lines = [f"limit: {_bound(balance, limit.epsilon, limit.delta, relation='=')}{kept_apart}"]
    if balance.rule != "basic":
        spent, most = f"{balance.loss_spent:.12g}", f"{balance.loss_limit:.12g}"
        measure = measure_of(balance.rule, balance.order)
        lines.append(f"rule:  {balance.rule}, {spent} of {most} spent of {measure}; it spends delta once")
    return lines


def _balance_lines(balance: "Balance", joint: "Bounds | None") -> list[str]:
    blocks, where = balance.by_block, ""
    if blocks:
        dearest = max(blocks, key=lambda name: blocks[name])
        where = f"; the most in one block, of {len(blocks)} with charges of their own: {dearest}"
    lines = [
        *_limit_lines(balance),
        f"spent: {_bound(balance, balance.spent_epsilon, balance.spent_delta)}{where}",
        f"left:  {_bound(balance, balance.left_epsilon, balance.left_delta, relation='=')}",
    ]
    if joint is not None:
        lines.append(
            f"joint: {_bound(balance, joint.upper, balance.limit.delta)}, "
            f"all runs together, reported and not enforced; method: {joint.method}"
        )
    if balance.open_entries:
        lines.append(f"open:  {balance.open_entries} of the charges; they count as spent")
    return lines


def _bound(balance: "Balance", epsilon: float, delta: float, *, relation: str = "<=") -> str:
    from accounting.report.phrase import bound

    limit, released = balance.limit, f"data set {balance.dataset}"
    return bound(epsilon, delta=delta, unit=limit.unit, neighbors=limit.neighbors, released=released, relation=relation)


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
        "epsilon": finite_or_none(bounds.upper),
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


def _print_history(entries: "list[Entry]", columns: "Sequence[Balance]") -> None:
    from rich.console import Console
    from rich.table import Table

    from accounting.report.phrase import round_up

    names = ("entry", "reserved (UTC)", "state", "epsilon", "delta", "unit", "neighbors")
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=True)
    table.add_column("purpose", overflow="fold")
    for one in entries:
        blocks = f" ({', '.join(one.blocks)})" if one.blocks else ""
        table.add_row(
            str(one.id),
            one.reserved_at[:16].replace("T", " "),
            one.state,
            round_up(one.epsilon),
            round_up(one.delta),
            one.unit,
            one.neighbors.replace("-", "/"),
            f"{one.purpose}{blocks}",
        )
    # a purpose is its author's text, not markup; in a pipe each charge is one line
    Console(width=None if _is_terminal() else 100_000, highlight=False, markup=False, emoji=False).print(table)
    typer.echo(f"{len(entries)} charge{'s' if len(entries) != 1 else ''}")
    for column in columns:
        typer.echo("\n".join(_balance_lines(column, None)))


def _is_terminal() -> bool:
    import sys

    return sys.stdout.isatty()


def finite_or_none(value: float) -> float | None:
    """Returns what JSON can hold: null stands for an epsilon that is not finite."""
    return value if math.isfinite(value) else None


def print_json(value: Any) -> None:
    """Print one JSON object, as every verb's `--json` does."""
    typer.echo(json.dumps(value, indent=2, sort_keys=True, allow_nan=False))
