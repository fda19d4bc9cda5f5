"""The plot of what a data set's charges spent of its limit over time. Needs matplotlib (the extra `report`)."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure

from accounting.ledger import Balance, Entry
from accounting.ledger.amounts import EPSILON_PLACES, at_least
from accounting.ledger.columns import Spent, measure_of

FORMATS = (".svg", ".png")


def draw(entries: Sequence[Entry], balance: Balance, file: Path) -> None:
    """Writes what the column of ``balance`` had spent at each time, beside its limit, as SVG or PNG.

    A step up is a reservation, a step down one that was given back before its rows were opened.
    """
    if file.suffix not in FORMATS:
        raise ValueError(f"a plot is written as {' or '.join(FORMATS)}, got {file.name!r}")
    changes, totals = spending(entries, balance)
    times = date2num(changes)
    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.step(times, totals, where="post", color="#2a6f97", label="spent")
    axes.plot(times, totals, ".", color="#2a6f97")
    axes.axhline(balance.loss_limit, color="#9b2226", linewidth=1, linestyle="--", label="limit")
    block = ", dearest block" if balance.by_block is not None else ""
    axes.set(
        ylim=(0, None),
        ylabel=f"{measure_of(balance.rule, balance.order)}{block}",
        xlabel="UTC" if changes else "nothing was charged",
        title=f"{balance.dataset}: limit {balance.limit}",
    )
    if changes:
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    else:
        axes.set_xticks([])  # without a time there is none to show
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def spending(entries: Sequence[Entry], balance: Balance) -> tuple[list[datetime], list[float]]:
    """Returns the times at which the column's spending changed, and the enforced total from then on.

    The total is in the measure of the column's rule, as `Balance.loss_spent`, with which it ends.
    """
    name = balance.limit.unit, balance.limit.neighbors
    changes = []
    for entry in entries:
        for cost in (cost for cost in entry.costs if cost.column == name):
            changes.append((datetime.fromisoformat(entry.reserved_at), cost.loss_units, entry.blocks))
            if entry.state == "aborted" and entry.closed_at is not None:
                changes.append((datetime.fromisoformat(entry.closed_at), -cost.loss_units, entry.blocks))
    spent = Spent(parallel=balance.by_block is not None)
    times, totals = [], []
    for at, loss_units, blocks in sorted(changes, key=lambda change: change[0]):
        spent.add(loss_units, 0, blocks)
        times.append(at)
        totals.append(at_least(spent.most()[0], EPSILON_PLACES))
    return times, totals
