"""The report of a whole ledger, as data: what each data set spent, on what and when, what is left, who was audited.

The ledger knows charges; that a run was audited stands in its report, so run folders are looked through for reports
that this ledger bears out (`anchor`). Without them every run counts as one without an audit on record.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, computed_field

from accounting.budget import Neighbors
from accounting.ledger import Balance, Entry, Snapshot, State
from accounting.ledger.amounts import DELTA_PLACES, EPSILON_PLACES, at_least
from accounting.ledger.blocks import Block
from accounting.ledger.columns import Account, Column, Rule, Spent, measure_of
from accounting.report.anchor import NotAnchored, find_entries
from accounting.report.fields import Amount, Count, Delta, Positive, Record, Sha256, Time, canonical
from accounting.report.reading import REPORT, read_report
from accounting.report.record import Report
from accounting.report.sign import NotVerified, verify

Line = Annotated[
    str, AfterValidator(lambda text: "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text))
]
"""A text of the ledger or of a file's name; what would break a line or reorder what a reader sees is replaced."""


class Limit(Record):
    """One limit of a data set, what is spent and what is left of it, as `Balance` has them.

    ``loss``: in the measure of its rule, whose sums the rule keeps. ``dearest_block``: where blocks compose in
    parallel, the one that spent the most, which ``spent`` and ``left`` are then about.
    """

    unit: Line
    neighbors: Neighbors
    label_only: bool
    rule: Rule
    order: Positive | None
    epsilon: Positive
    delta: Delta
    spent_epsilon: Amount
    spent_delta: Amount
    left_epsilon: Amount
    left_delta: Amount
    loss_limit: Amount
    loss_spent: Amount
    parallel: bool
    dearest_block: Line | None

    @property
    def measure(self) -> str:
        """What losses of this limit are counted in."""
        return measure_of(self.rule, self.order)


class Part(Record):
    """What some of a data set's charges cost one limit by themselves. ``share``: of the limit's loss.

    Under blocks that is the cost to the dearest block, so that parts may add up to more than is spent.
    """

    loss: Amount
    delta: Amount
    share: Amount


class Group(Record):
    """The charges with one purpose, or of one month (UTC, when they were reserved); aborted ones cost nothing."""

    name: Line
    charges: Count
    parts: tuple[Part, ...]
    """One for each limit."""


class LedgerRun(Record):
    """One charge, and what reports say of the run that it paid for. ``audits``: in words, one for each attack."""

    entry: Count
    state: State
    purpose: Line
    epsilon: Amount
    delta: Amount
    unit: Line
    neighbors: Neighbors
    blocks: tuple[Line, ...]
    reserved_at: Line
    opened_at: Line | None
    closed_at: Line | None
    reports: tuple[Line, ...] = ()
    audits: tuple[Line, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether the charge is neither committed nor aborted; it counts as spent."""
        return self.state in ("reserved", "opened")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def audit(self) -> Literal["audited", "no audit on record", "no rows were opened"]:
        """Whether there is an audit, where there could be one."""
        if self.state not in ("opened", "committed"):
            return "no rows were opened"
        return "audited" if self.audits else "no audit on record"


class DataSet(Record):
    """All that the ledger holds of one data set."""

    name: Line
    block: Block | None
    limits: tuple[Limit, ...]
    by_purpose: tuple[Group, ...]
    by_month: tuple[Group, ...]
    runs: tuple[LedgerRun, ...]

    @property
    def open(self) -> tuple[LedgerRun, ...]:
        """The charges that are not closed."""
        return tuple(one for one in self.runs if one.is_open)

    @property
    def never_audited(self) -> tuple[LedgerRun, ...]:
        """The runs without an audit on record."""
        return tuple(one for one in self.runs if one.audit == "no audit on record")


class LedgerReport(Record):
    """The report of a ledger. ``others``: reports of other ledgers or of none that were found beside its own.

    ``refused``: why reports that name this ledger's head were not believed. ``unread``: why others were not read.
    """

    report_version: Literal["1"] = "1"
    ledger: Line
    read_at: Time
    head: Sha256
    rows: Count
    runs_folder: Line | None
    others: Count
    refused: tuple[Line, ...]
    unread: tuple[Line, ...]
    datasets: tuple[DataSet, ...]

    def to_json(self) -> str:
        """Returns the JSON: sorted keys, two spaces, UTF-8 as it is, one newline at the end."""
        fields = self.model_dump(mode="json")
        return canonical(fields)


@dataclass
class Reports:
    """The reports below a folder: of this ledger, by data set and entry; and what became of the rest."""

    folder: str | None = None
    of: dict[tuple[str, int], list[tuple[Path, Report]]] = field(default_factory=dict)
    others: int = 0
    refused: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def find_reports(folder: Path, ledger: Snapshot, *, public_key: Path | None = None) -> Reports:
    """Returns the reports in ``folder`` and all folders below it.

    public_key: reports of this ledger whose folder was not signed with it, or was changed since, are refused. Without
    one a report is believed as it is, its audits too.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of runs")
    found = Reports(str(folder))
    for file in sorted(folder.rglob(REPORT)):
        try:
            report = read_report(file)
        except (ValueError, OSError) as error:
            found.unread.append(str(error))
            continue
        if report.budget is None or report.budget.head not in ledger.rows:
            found.others += 1
            continue
        try:
            entries = find_entries(report, ledger)
            if public_key is not None:
                verify(file.parent, public_key=public_key)
        except (NotAnchored, NotVerified) as error:
            found.refused.append(f"{file}: {error}")
            continue
        for entry in entries:
            found.of.setdefault((entry.dataset, entry.id), []).append((file, report))
    return found


def overview(ledger: Snapshot, reports: Reports, *, read_at: datetime, only: Sequence[str] = ()) -> LedgerReport:
    """Returns the report of the ledger. only: the data sets that it is about; all, if none is named."""
    for name in only:
        if name not in ledger.accounts:
            raise ValueError(f"{ledger.shown} has no data set {name!r}; it has {', '.join(ledger.accounts)}")
    return LedgerReport(
        ledger=ledger.shown,
        read_at=read_at,
        head=ledger.head,
        rows=len(ledger.rows),
        runs_folder=reports.folder,
        others=reports.others,
        refused=tuple(reports.refused),
        unread=tuple(reports.unread),
        datasets=tuple(_data_set(name, ledger, reports) for name in ledger.accounts if not only or name in only),
    )


def _data_set(name: str, ledger: Snapshot, reports: Reports) -> DataSet:
    account, entries = ledger.accounts[name], ledger.entries[name]
    return DataSet(
        name=name,
        block=account.block,
        limits=tuple(_limit(one) for one in ledger.balances(name)),
        by_purpose=_groups(entries, account, lambda entry: entry.purpose),
        by_month=_groups(entries, account, lambda entry: entry.reserved_at[: len("2026-11")]),
        runs=tuple(_run(entry, reports.of.get((name, entry.id), ())) for entry in entries),
    )


def _limit(balance: Balance) -> Limit:
    blocks = balance.by_block
    return Limit(
        unit=balance.limit.unit,
        neighbors=balance.limit.neighbors,
        label_only=balance.label_only,
        rule=balance.rule,
        order=balance.order,
        epsilon=balance.limit.epsilon,
        delta=balance.limit.delta,
        spent_epsilon=balance.spent_epsilon,
        spent_delta=balance.spent_delta,
        left_epsilon=balance.left_epsilon,
        left_delta=balance.left_delta,
        loss_limit=balance.loss_limit,
        loss_spent=balance.loss_spent,
        parallel=blocks is not None,
        dearest_block=max(blocks, key=lambda name: blocks[name]) if blocks else None,
    )


def _groups(entries: Iterable[Entry], account: Account, key: Callable[[Entry], str]) -> tuple[Group, ...]:
    """Returns the groups of charges in the order of their names."""
    spent: dict[str, dict[tuple[str, str], Spent]] = {}
    charges: dict[str, int] = {}
    for entry in entries:
        if entry.state == "aborted":
            continue
        name = key(entry)
        if name not in spent:
            spent[name] = {of: Spent(parallel=one.parallel) for of, one in account.spent.items()}
        charges[name] = charges.get(name, 0) + 1
        for cost in entry.costs:
            spent[name][cost.column].add(cost.loss_units, cost.delta_units, entry.blocks)
    return tuple(
        Group(
            name=name,
            charges=charges[name],
            parts=tuple(_part(column, spent[name]) for column in account.columns),
        )
        for name in sorted(spent)
    )


def _part(column: Column, spent: Mapping[tuple[str, str], Spent]) -> Part:
    loss, delta, _ = spent[column.name].most()
    return Part(
        loss=at_least(loss, EPSILON_PLACES), delta=at_least(delta, DELTA_PLACES), share=loss / column.loss_limit
    )


def _run(entry: Entry, reports: Iterable[tuple[Path, Report]]) -> LedgerRun:
    reports = list(reports)
    said = [f"{audit.verdict}: {report.proved(audit)}" for _, report in reports for audit in report.audit]
    return LedgerRun(
        entry=entry.id,
        state=entry.state,
        purpose=entry.purpose,
        epsilon=entry.epsilon,
        delta=entry.delta,
        unit=entry.unit,
        neighbors=entry.neighbors,
        blocks=entry.blocks,
        reserved_at=entry.reserved_at,
        opened_at=entry.opened_at,
        closed_at=entry.closed_at,
        reports=tuple(str(file) for file, _ in reports),
        audits=tuple(dict.fromkeys(said)),  # a copy of a report says nothing new
    )
