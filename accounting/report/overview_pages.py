"""The report of a ledger as text for a terminal, as Markdown and as one self-contained HTML file.

All three show the same tables in the same order. HTML needs jinja2, the extra `report`.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from accounting.report import marks
from accounting.report.overview import DataSet, Group, LedgerReport, LedgerRun, Limit
from accounting.report.page import page
from accounting.report.phrase import bound, round_up

NAMED = 20
"""How many charges a sentence names, before it only counts the rest."""


class Table(NamedTuple):
    """A table: what it is, what must be known to read it, its header and rows. shares: of a bar beside each row."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    shares: tuple[float, ...] = ()


def text(report: LedgerReport) -> str:
    """Returns the report for a terminal: columns are aligned by spaces, a row is a line."""
    lines = [title(report), *(f"{name}: {value}" for name, value in _facts(report))]
    for one in report.datasets:
        lines += ["", f"data set {one.name}", *(f"  {name}: {value}" for name, value in facts(one))]
        for table in tables(one):
            lines += ["", f"  {table.title}", *([f"  ({table.note})"] if table.note else [])]
            lines += [f"    {line}" for line in _aligned([table.header, *table.rows])] if table.rows else ["    none"]
    return "\n".join(lines) + "\n"


def markdown(report: LedgerReport) -> str:
    """Returns the report as GitHub-flavored Markdown."""
    parts = [f"# {marks.escaped(title(report))}", marks.table(("", ""), _facts(report))]
    for one in report.datasets:
        parts += [f"## Data set {marks.escaped(one.name)}", marks.table(("", ""), facts(one))]
        for table in tables(one):
            parts += [f"### {table.title}", *([marks.escaped(table.note)] if table.note else [])]
            parts.append(marks.table(table.header, table.rows) if table.rows else "none")
    return "\n\n".join(parts) + "\n"


def html(report: LedgerReport) -> str:
    """Returns the report as one HTML file: no scripts, nothing loaded from elsewhere, every value escaped."""
    datasets = [
        {
            "name": one.name,
            "facts": facts(one),
            "tables": tables(one),
            "bars": [_bar(limit) for limit in one.limits],
            "never": never_audited(one),
        }
        for one in report.datasets
    ]
    values = {
        "report": report,
        "headline": headline(report),
        "read_at": report.read_at.isoformat(sep=" ", timespec="seconds"),
        "facts": _facts(report),
        "datasets": datasets,
    }
    return page("ledger.html", values)


def title(report: LedgerReport) -> str:
    """Returns what the report is about, and the worst of it, in one line."""
    return f"Ledger {report.ledger}: {headline(report)}"


def headline(report: LedgerReport) -> str:
    """Returns how many runs there are, and how many of them nobody audited."""
    unaudited = sum(len(one.never_audited) for one in report.datasets)
    runs = sum(one.audit != "no rows were opened" for data in report.datasets for one in data.runs)
    datasets = _counted(len(report.datasets), "data set")
    if not runs:
        return f"no runs yet on {datasets}"
    return f"{_counted(runs, 'run')} on {datasets}, {unaudited:,} of them without an audit on record"


def _facts(report: LedgerReport) -> list[tuple[str, str]]:
    rows = [
        ("read", report.read_at.isoformat(sep=" ", timespec="seconds")),
        ("log", f"{_counted(report.rows, 'row')}, unbroken, head {report.head}"),
    ]
    if report.runs_folder is None:
        return [*rows, ("reports", "none were looked for, so no audit is known: give --runs FOLDER")]
    found = sum(len(run.reports) for one in report.datasets for run in one.runs)
    rows.append(
        ("reports", f"{found} of these runs in {report.runs_folder}, {report.others} of other ledgers or of none")
    )
    rows += [("not believed", one) for one in report.refused]
    return [*rows, *(("not read", one) for one in report.unread)]


def facts(data: DataSet) -> list[tuple[str, str]]:
    """Returns limits, spending and what is left of a data set, and which runs were never audited, as rows."""
    rows = [row for limit in data.limits for row in _limit_rows(data.name, limit)]
    return [*rows, ("open charges", f"{len(data.open):,}"), ("never audited", never_audited(data))]


def _limit_rows(dataset: str, limit: Limit) -> Iterable[tuple[str, str]]:
    def amount(epsilon: float, delta: float, relation: str = "=") -> str:
        return bound(
            epsilon,
            delta=delta,
            unit=limit.unit,
            neighbors=limit.neighbors,
            released=f"data set {dataset}",
            relation=relation,
        )

    yield "limit", amount(limit.epsilon, limit.delta) + (" (labels only, kept apart)" if limit.label_only else "")
    if limit.rule != "basic":
        losses = f"{limit.loss_spent:.12g} of {limit.loss_limit:.12g} spent of {limit.measure}"
        yield "rule", f"{limit.rule}, {losses}; it spends delta once"
    dearest = "" if limit.dearest_block is None else f"; the most in one block: {limit.dearest_block}"
    yield "spent", amount(limit.spent_epsilon, limit.spent_delta, "<=") + dearest
    yield "left", amount(limit.left_epsilon, limit.left_delta)


def never_audited(data: DataSet) -> str:
    """Returns which runs have no audit on record, in words; long lists are cut, the tables have them all."""
    runs = [one for one in data.runs if one.audit != "no rows were opened"]
    never = data.never_audited
    if not never:
        return "none of its runs" if runs else "it has no runs"
    named = ", ".join(str(one.entry) for one in never[:NAMED])
    more = f" and {len(never) - NAMED:,} more" if len(never) > NAMED else ""
    which = "entry" if len(never) == 1 else "entries"
    return f"{len(never):,} of {_counted(len(runs), 'run')}: {which} {named}{more}"


def tables(data: DataSet) -> list[Table]:
    """Returns the tables of a data set, in reading order."""
    parallel = any(limit.parallel for limit in data.limits)
    note = "of each part by itself" + (
        ", to the dearest block: parts may add up to more than is spent" if parallel else ""
    )
    return [
        _spending("purpose", note, data.by_purpose, data.limits),
        _spending(
            "month",
            f"{note}; a charge counts in the month, UTC, in which it was reserved",
            data.by_month,
            data.limits,
        ),
        Table(
            "Open charges",
            "reserved or opened and not closed; they count as spent",
            ("entry", "state", "since (UTC)", "purpose"),
            tuple(
                (str(one.entry), one.state, _minute(one.opened_at or one.reserved_at), one.purpose) for one in data.open
            ),
        ),
        Table(
            "Runs",
            "",
            ("entry", "reserved (UTC)", "state", "epsilon", "delta", "unit", "neighbors", "purpose", "audit"),
            tuple(_run_row(one) for one in data.runs),
        ),
    ]


def _spending(by: str, note: str, groups: Sequence[Group], limits: Sequence[Limit]) -> Table:
    header = [by, "charges"]
    for limit in limits:
        whose = f"{limit.unit}, {limit.neighbors.replace('-', '/')}"
        header += [f"{limit.measure} ({whose})", *(["delta"] if limit.rule == "basic" else []), "of the limit"]
    rows = []
    for group in groups:
        row = [group.name, f"{group.charges:,}"]
        for limit, part in zip(limits, group.parts, strict=True):
            delta = [round_up(part.delta)] if limit.rule == "basic" else []
            row += [round_up(part.loss), *delta, f"{100 * part.share:.3g} %"]
        rows.append(tuple(row))
    return Table(
        f"Spending by {by}", note, tuple(header), tuple(rows), tuple(min(group.parts[0].share, 1.0) for group in groups)
    )


def _run_row(run: LedgerRun) -> tuple[str, ...]:
    blocks = f" ({', '.join(run.blocks)})" if run.blocks else ""
    return (
        str(run.entry),
        _minute(run.reserved_at),
        run.state,
        round_up(run.epsilon),
        round_up(run.delta),
        run.unit,
        run.neighbors.replace("-", "/"),
        f"{run.purpose}{blocks}",
        "; ".join(run.audits) or run.audit,
    )


class _Bar(NamedTuple):
    """How much of a limit is spent, in percent, and in words for those who cannot see it."""

    spent: float
    words: str
    of: str


def _bar(limit: Limit) -> _Bar:
    spent = min(limit.loss_spent / limit.loss_limit, 1.0)
    words = f"{spent:.0%} of the limit is spent, {1 - spent:.0%} is left"
    return _Bar(round(100 * spent, 2), words, f"{limit.unit}, {limit.neighbors.replace('-', '/')}")


def _minute(at: str) -> str:
    return at[:16].replace("T", " ")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
