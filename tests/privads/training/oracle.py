"""The oracle of clipping: a loop over units, one backward pass each, clipped one by one and summed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from privads.training.clipping import ClippedSums, UnitGradients
from privads.training.tables import SparseSum

ROWS = 12
OWNERS = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 5])  # ragged: 1 to 4 rows a unit
UNITS = 6

Gradient = dict[nn.Parameter, Tensor]


class Case:
    """A model, its inputs and a (rows,) loss."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module], Tensor]) -> None:
        self.model, self.forward = model, forward


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [one for one in model.parameters() if one.requires_grad]


def unit_gradients(case: Case, owners: Tensor = OWNERS) -> list[Gradient]:
    """Each unit's gradient by plain autograd, one unit at a time."""
    parameters, found = trained(case.model), []
    for unit in range(int(owners.max()) + 1):
        values = case.forward(case.model)[owners == unit].sum()
        gradients = torch.autograd.grad(values, parameters, allow_unused=True)
        found.append({p: torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)})
    return found


def norm_of(gradient: Gradient) -> float:
    return float(torch.stack([one.detach().double().square().sum() for one in gradient.values()]).sum().sqrt())


def oracle(case: Case, clip_norm: float, owners: Tensor = OWNERS) -> Gradient:
    total = {p: torch.zeros_like(p) for p in trained(case.model)}
    for gradient in unit_gradients(case, owners):
        factor = min(1.0, clip_norm / max(norm_of(gradient), 1e-30))
        for parameter, value in gradient.items():
            total[parameter] += factor * value
    return total


def clipped(case: Case, clip_norm: float, owners: Tensor = OWNERS, *, per_group: bool = False) -> ClippedSums:
    gradients = UnitGradients(case.model)
    try:
        return gradients.clipped_sums(
            case.forward(case.model),
            owners,
            units=int(owners.max()) + 1,
            clip_norm=clip_norm,
            per_group=per_group,
            touching=len(owners),
        )
    finally:
        gradients.cleanup()


def ours(case: Case, clip_norm: float, owners: Tensor = OWNERS, *, per_group: bool = False) -> Gradient:
    found = clipped(case, clip_norm, owners, per_group=per_group)
    return {p: dense(found.sums, p) for p in trained(case.model)}


def dense(sums: dict[Tensor, Tensor | SparseSum], parameter: nn.Parameter) -> Tensor:
    found = sums.get(parameter, torch.zeros_like(parameter))
    return found.dense() if isinstance(found, SparseSum) else found


def same(left: Gradient, right: Gradient, *, tolerance: float = 5e-5) -> bool:
    """Whether they differ by little, beside the largest number and beside each number."""
    scale = max(float(one.abs().max()) for one in right.values())
    return all(torch.allclose(left[p], right[p], rtol=2 * tolerance, atol=tolerance * scale) for p in right)
