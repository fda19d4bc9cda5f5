"""What a run is refused for before its ledger is charged or a private row is read."""

import torch
from torch import nn

from accounting.ledger import Ledger
from privads.batch import Rows
from privads.charge import check_may_read
from privads.noise import Randomness
from privads.training.plan import TrainPlan
from privads.training.refusals import UnsupportedModel
from privads.training.selection import check_selectable
from privads.training.tables import check_plain_sgd, named_tables


def check_before(
    plan: TrainPlan,
    ledger: Ledger | None,
    randomness: Randomness,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
) -> None:
    """Raises ValueError where plan, data, ledger, model and optimizer do not go together."""
    if not all(hasattr(rows, name) for name in ("schema", "take")):  # asking for units would read rows
        raise ValueError(
            f"a {type(rows).__name__} is no source of rows that can be sampled as the plan says: its own batches, "
            "shuffled or in order, would cost several times the epsilon of the plan's; pass Logs, or your own "
            "privads.Rows"
        )
    schema = rows.schema
    check_may_read(schema, ledger, insecure_seed=randomness.insecure_seed, private=plan.private, doing="training on")
    if plan.budget is not None:
        schema.check_unit(plan.budget.unit)
        schema.check_history(plan.budget.unit, records=plan.records)
    if torch.get_float32_matmul_precision() != "highest":
        raise ValueError(
            "products of lower precision would loosen the bound on a unit's contribution: call "
            "torch.set_float32_matmul_precision('highest')"
        )
    mine = set(model.parameters())
    given = [one for group in optimizer.param_groups for one in group["params"]]
    if not given or any(one not in mine for one in given):
        raise UnsupportedModel("the optimizer must hold parameters of the model, and of nothing else")
    if plan.table_noise == "lazy":
        check_plain_sgd(model, optimizer)
    elif plan.table_noise != "dense":
        check_selectable(named_tables(model), optimizer)
    rows.check()
