"""The step: noise on the sum, divide by a public number, then any torch optimizer."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from privads.noise import Randomness
from privads.training.plan import TrainPlan
from privads.training.tables import LazyTables, SparseSum


class PlanOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus's optimizer, with clipped sums from `UnitGradients` and noise from `privads.noise`.

    Each step gives the inner optimizer ``(sum of clipped gradients + N(0, (noise_multiplier clip_norm)^2)) / batch``
    for every parameter it holds, also for those that no row touched. ``take_sums`` hands over the sums and raises
    where they are not due. The tables in ``lazy`` take their step from it, and the inner optimizer does not see them.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        plan: TrainPlan,
        randomness: Randomness,
        take_sums: Callable[[], Mapping[Tensor, Tensor | SparseSum]],
        after_step: Callable[[], None],
        lazy: LazyTables | None = None,
    ) -> None:
        self._plan = plan
        super().__init__(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.clip_norm,
            expected_batch_size=plan.batch,
            loss_reduction="mean",
        )
        self._randomness, self._take_sums, self._after_step = randomness, take_sums, after_step
        self._lazy = lazy
        self._noised = [one for one in self.params if lazy is None or one not in lazy]

    @property
    def noise_multiplier(self) -> float:
        """The plan's; a scheduler that would change it is refused, because the plan's event would no longer hold."""
        return self._plan.noise_multiplier

    @noise_multiplier.setter
    def noise_multiplier(self, value: float) -> None:
        _only("noise_multiplier", value, self._plan.noise_multiplier)

    @property
    def max_grad_norm(self) -> float:
        """The plan's clip norm; a scheduler that would change it is refused."""
        return self._plan.clip_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float) -> None:
        _only("clip_norm", value, self._plan.clip_norm)

    @property
    def expected_batch_size(self) -> int:
        """The plan's batch: a public number."""
        return self._plan.batch

    @expected_batch_size.setter
    def expected_batch_size(self, value: int) -> None:
        _only("batch", value, self._plan.batch)

    @property
    def accumulated_iterations(self) -> int:
        """One backward pass a step: the divisor is the plan's batch alone."""
        return 1

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        """Noise the sums and divide them; True tells Opacus to go on with the inner step."""
        if closure is not None:
            raise ValueError("optimizer.step takes no closure: call engine.backward(loss) first")
        sums = self._take_sums()
        self.zero_grad()  # only what is noised below may reach the inner step, not what a loss.backward() left
        for parameter in self._noised:
            found = sums.get(parameter)
            if found is None:
                parameter.summed_grad = torch.zeros_like(parameter)
            else:
                parameter.summed_grad = found.dense() if isinstance(found, SparseSum) else found
        self.add_noise()
        self.scale_grad()
        for parameter in self._noised:
            parameter.summed_grad = None
        if self._lazy is not None:
            self._lazy.step(sums)
        return True

    def add_noise(self) -> None:
        """Add the plan's noise to the sum of every parameter that owes none."""
        noise_std = self.noise_multiplier * self.max_grad_norm if self.noise_multiplier else 0.0
        for parameter in self._noised:
            summed = parameter.summed_grad
            noise = self._randomness.normal_like(summed, noise_std=noise_std) if noise_std else 0.0
            parameter.grad = (summed + noise).view_as(parameter)

    def scale_grad(self) -> None:
        """Divide the noised sums by the plan's batch."""
        for parameter in self._noised:
            parameter.grad /= self.expected_batch_size * self.accumulated_iterations

    def step(self, closure: Any = None) -> None:
        """Take one private step; exactly one for each batch."""
        super().step(closure)
        self.zero_grad(set_to_none=True)
        self._after_step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the noised gradients."""
        self.original_optimizer.zero_grad(set_to_none)


def _only(name: str, value: float, planned: float) -> None:
    if value != planned:
        raise ValueError(
            f"{name} is {planned}, as the plan says; a plan that changes it from step to step cannot be made"
        )
