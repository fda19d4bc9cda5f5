"""Progress bars that show how far a run is and what it has cost, and nothing computed from rows."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Protocol

from dp_accounting import dp_event
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from accounting.accountant import COARSE_GRID, Bounds, epsilon
from accounting.budget import Budget
from accounting.report.phrase import bound
from privads.training.run import RELEASED

_UPDATES = 20


class Spending(Protocol):
    """A plan by what it costs: `privads.TrainPlan`, or `federation.FederatedPlan`, whose steps are rounds."""

    @property
    def budget(self) -> Budget | None:
        """What the run may cost; None without privacy."""
        ...

    @property
    def steps(self) -> int:
        """How many there are."""
        ...

    @property
    def spent(self) -> Bounds:
        """Bounds on the epsilon of all steps."""
        ...

    def event_after(self, steps: int) -> dp_event.DpEvent:
        """Returns what the first ``steps`` execute."""
        ...


@contextlib.contextmanager
def bar(plan: Spending, *, each: str = "steps", released: str = RELEASED) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the number of steps done; shows steps, epsilon so far (an upper bound), time left.

    Where stderr is no terminal it shows nothing. There is no training loss: it would be a release of its own.
    each: what steps are called. released: what epsilon is about.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = (
        BarColumn(bar_width=16, table_column=Column(no_wrap=True)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn(f"{each},"),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        # A narrow terminal breaks the claim alone over lines; kept whole, it would cut off the others.
        TextColumn("left, {task.fields[spent]}", table_column=Column(no_wrap=False)),
    )
    every = max(1, plan.steps // _UPDATES)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=plan.steps, spent=spent_after(plan, 0, released=released))

        def show(step: int) -> None:
            if step % every == 0 or step == plan.steps:
                progress.update(task, completed=step, spent=spent_after(plan, step, released=released))
            else:
                progress.update(task, completed=step)

        yield show


@contextlib.contextmanager
def stages(*, quiet: bool = False) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Gives a function to call with what is begun; it returns one to call with the steps done and how many there are.

    A stage whose steps are not told, as they would tell of rows, shows only for how long it has been at work. Where
    stderr is no terminal nothing is shown.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _: lambda _, __: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=None)

        def begin(doing: str) -> Callable[[int, int], None]:
            progress.reset(task, total=None, description=doing)
            return lambda done, of: progress.update(task, completed=done, total=of)

        yield begin


def spent_after(plan: Spending, steps: int, *, released: str = RELEASED) -> str:
    """Returns the epsilon of the first ``steps`` steps with its terms, as text."""
    if plan.budget is None:
        return "NOT PRIVATE"
    budget = plan.budget
    value = 0.0
    if steps:
        event = plan.event_after(steps)
        value = epsilon(event, delta=budget.delta, neighbors=budget.neighbors, grid=COARSE_GRID).upper
    return bound(
        min(value, plan.spent.upper),  # the coarse grid is an upper bound too, and at the end the looser one
        delta=budget.delta,
        unit=budget.unit,
        neighbors=budget.neighbors,
        released=released,
    )
