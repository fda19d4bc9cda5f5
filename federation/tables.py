"""What a server does with tables of which a cohort touches few rows: noise that is owed, and rows that are selected.

Sending a row is a release. Under ``table_noise="lazy"`` every row that is sent has the noise of all rounds before it
(`settle`, before `sent`), and so has the whole table before it is sent or handed out (`flush`). A row that nobody asks
for owes its noise, and a round writes to what its cohort touched alone. The noise of a round is that of its own clip
norm. Needs plain SGD of the server on the tables (`privads.training.owed`); other parameters are noised in each round,
and any optimizer may step them.

Under ``"adafest"`` a round changes the rows that enough users of its cohort read by a noised count
(`privads.training.selection`), and no other. All rows may be sent at any time.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from federation.plan import FederatedPlan
from federation.sums import SentRows, UserSums, Weights
from privads.noise import Randomness
from privads.training.owed import Debt, OwingTable, is_plain, step_of
from privads.training.selection import SelectedTables, selection
from privads.training.tables import SparseSum, add_step


def owing(weights: Mapping[str, Tensor], rounds: int) -> dict[str, OwingTable]:
    """Returns the tables of ``weights``, of which nothing is owed yet.

    Sums and noise are rounded to a table's numbers one by one: coarse ones would swallow the noise and keep the sum.
    """
    for name, one in weights.items():
        if one.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"table_noise 'lazy' adds noise in the numbers of the table: {name!r} must be float32 or float64, got "
                f"{one.dtype}: use one of those, or plan with table_noise='dense'"
            )
    return {name: OwingTable.of(one, Debt(rounds)) for name, one in weights.items()}


def settle(owed: Mapping[str, OwingTable], named: Mapping[str, Tensor], randomness: Randomness) -> None:
    """Pay what the named rows owe. named: per table ids (n,), each once, ascending; of one that is missing none."""
    for name, ids in named.items():
        if name not in owed:
            raise ValueError(f"rows of {name!r} are named, which is no table: name those of {', '.join(owed)}")
        rows = len(owed[name].weight)
        if len(ids) and not (int(ids[0]) >= 0 and int(ids[-1]) < rows and bool((ids.diff() > 0).all())):
            raise ValueError(f"the named rows of {name!r} must rise, each once, from 0 to at most {rows - 1}")
    for name, ids in named.items():
        owed[name].settle(ids, randomness)


def flush(owed: Mapping[str, OwingTable], randomness: Randomness) -> None:
    """Pay what all rows owe, before a whole table leaves the server."""
    for table in owed.values():
        table.flush(randomness)


def sent(weights: Mapping[str, Tensor], owed: Mapping[str, OwingTable], named: Mapping[str, Tensor]) -> Weights:
    """Returns what a round's parties are sent: of tables that owe noise the named rows, which must be settled."""
    found: dict[str, Tensor | SentRows] = dict(weights)
    for name, table in owed.items():
        ids = named.get(name, torch.zeros(0, dtype=torch.int64))
        if bool((table.settled.index_select(0, ids) < table.debt.steps).any()) and table.debt.noised:
            raise RuntimeError("a row owes noise and cannot be sent: settle it first")
        found[name] = SentRows(ids, table.weight.index_select(0, ids), len(table.weight))
    return found


@contextmanager
def stepping(
    parameters: Mapping[str, nn.Parameter],
    owed: Mapping[str, OwingTable],
    sums: UserSums,
    plan: FederatedPlan,
    optimizer: torch.optim.Optimizer,
    *,
    noise_std: float,
    randomness: Randomness,
) -> Iterator[None]:
    """Within it the optimizer's ``step()`` steps the other parameters; tables are stepped as the plan says.

    parameters: the tables, which the optimizer holds too, none where the plan's noise is dense. owed: of lazy ones.
    noise_std: of the noise on each number of the sums.
    """
    if owed:
        _step_owing(parameters, owed, sums, optimizer, divisor=plan.cohort, noise_std=noise_std)
    if owed or not parameters:
        yield
        return
    names = {one: name for name, one in parameters.items()}
    select = selection(plan, sum(map(len, names)), randomness)
    selected = SelectedTables(names, optimizer, randomness, batch=plan.cohort, select=select)
    by_parameter: dict[Tensor, Tensor | SparseSum] = {one: sums.tables[name] for one, name in names.items()}
    touched: dict[Tensor, SparseSum] = {one: sums.touched[name] for one, name in names.items() if name in sums.touched}
    with selected.stepping(by_parameter, touched, noise_std=noise_std):
        yield


def _step_owing(
    parameters: Mapping[str, nn.Parameter],
    owed: Mapping[str, OwingTable],
    sums: UserSums,
    optimizer: torch.optim.Optimizer,
    *,
    divisor: float,
    noise_std: float,
) -> None:
    """Owe a round's noise to every row, then add its sums to the rows that were touched."""
    groups = {one: group for group in optimizer.param_groups for one in group["params"]}
    steps = {}
    for name, parameter in parameters.items():
        if parameter not in groups:
            raise ValueError(f"the server's optimizer must hold {name!r}: give it all parameters")
        if not is_plain(optimizer, groups[parameter]):
            raise ValueError(
                f"table_noise 'lazy' needs plain SGD of the server on {name!r}, without momentum, nesterov or "
                f"maximize, not {type(optimizer).__name__}: use torch.optim.SGD, or plan with table_noise='adafest' "
                "or 'dense'"
            )
        steps[name] = step_of(groups[parameter])
    for name, (lr, kept) in steps.items():
        owed[name].debt.add(kept=kept, noise_std=lr * noise_std / divisor)
    with torch.no_grad():
        for name, (lr, kept) in steps.items():
            add_step(owed[name].weight, sums.tables[name], lr=lr, kept=kept, divisor=divisor)
