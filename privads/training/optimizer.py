"""The step: noise on the sum, divide by a public number, then any torch optimizer."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from privads.attacks.watch import Watch
from privads.noise import Randomness
from privads.training.adaptive import ClipNorm
from privads.training.clipping import ClippedSums
from privads.training.plan import TrainPlan
from privads.training.selection import SelectedTables
from privads.training.tables import LazyTables, SparseSum

DRAWN_TOGETHER = 1 << 22
"""Numbers of noise that are drawn at once for several parameters; more would take memory beside the weights."""


class PlanOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus's optimizer, with clipped sums from `UnitGradients` and noise from `privads.noise`.

    Each step gives the inner optimizer ``(sum of clipped gradients + N(0, (noise_multiplier clip_norm)^2)) / batch``
    for every parameter it holds, also for those that no row touched. ``take_sums`` hands over the sums, None while
    parts of the batch are still to come, and raises where they are not due. ``tables`` takes its own tables' noise and
    step: the inner optimizer does not see the rows of lazy ones, and of selected ones only the selected rows. ``watch``
    is an audit's: it adds canaries to the sums and looks at them after the noise.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        plan: TrainPlan,
        randomness: Randomness,
        clip: ClipNorm,
        take_sums: Callable[[], ClippedSums | None],
        after_step: Callable[[], None],
        tables: LazyTables | SelectedTables | None = None,
    ) -> None:
        self._plan, self._clip = plan, clip
        super().__init__(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=clip.now,
            expected_batch_size=plan.batch,
            loss_reduction="mean",
        )
        self._randomness, self._take_sums, self._after_step = randomness, take_sums, after_step
        self._tables, self._drawn_together = tables, DRAWN_TOGETHER
        self.noised = [one for one in self.params if tables is None or one not in tables]
        self.watch: Watch | None = None

    @property
    def noise_multiplier(self) -> float:
        """The plan's; a scheduler that would change it is refused, because the plan's event would no longer hold."""
        return self._plan.noise_multiplier

    @noise_multiplier.setter
    def noise_multiplier(self, value: float) -> None:
        _only("noise_multiplier", value, self._plan.noise_multiplier)

    @property
    def max_grad_norm(self) -> float:
        """The clip norm of the next step; a scheduler that would change it is refused."""
        return self._clip.now

    @max_grad_norm.setter
    def max_grad_norm(self, value: float) -> None:
        _only("clip_norm", value, self._clip.now)

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
        """Noise the sums and divide them; False where parts of the batch are still to come."""
        if closure is not None:
            raise ValueError("optimizer.step takes no closure: call engine.backward(loss) first")
        found = self._take_sums()
        self.zero_grad()  # only what is noised below may reach the inner step, not what a loss.backward() left
        if found is None:
            return False
        for parameter in self.noised:
            one = found.sums.get(parameter)
            if one is None:
                parameter.summed_grad = torch.zeros_like(parameter)
            else:
                parameter.summed_grad = one.dense() if isinstance(one, SparseSum) else one
        if self.watch is not None:
            sums = [parameter.summed_grad for parameter in self.noised]
            added = self.watch.added(sums, found.apart, self.max_grad_norm)
            for parameter, one in zip(self.noised, added, strict=True):
                parameter.summed_grad = one
        self.add_noise()
        if self.watch is not None:
            self.watch.see([parameter.grad for parameter in self.noised])
        self.scale_grad()
        for parameter in self.noised:
            parameter.summed_grad = None
        self._found = found
        return True

    @property
    def noise_std(self) -> float:
        """Of the noise on each number of the sums."""
        return self.noise_multiplier * self.max_grad_norm if self.noise_multiplier else 0.0

    def add_noise(self) -> None:
        """Add the plan's noise to the sum of every parameter that is not a table with noise of its own."""
        for parameter, noise in zip(self.noised, self._noises(), strict=True):
            parameter.grad = (parameter.summed_grad + noise).view_as(parameter)

    def _noises(self) -> Iterator[Tensor | float]:
        """Yields the noise of each sum: small ones are drawn together, which takes a third of the time."""
        sums: list[Tensor] = [parameter.summed_grad for parameter in self.noised]
        if not (self.noise_std and sums):
            yield from [0.0] * len(sums)
            return
        alike = {(one.dtype, one.device) for one in sums}
        if len(alike) > 1 or sum(one.numel() for one in sums) > self._drawn_together:
            yield from (self._randomness.normal_like(one, noise_std=self.noise_std) for one in sums)
            return
        sizes = [one.numel() for one in sums]
        whole = self._randomness.normal_like(sums[0].new_empty(sum(sizes)), noise_std=self.noise_std)
        for one, noise in zip(sums, torch.split(whole, sizes), strict=True):
            yield noise.view_as(one)

    def scale_grad(self) -> None:
        """Divide the noised sums by the plan's batch."""
        for parameter in self.noised:
            parameter.grad /= self.expected_batch_size * self.accumulated_iterations

    def step(self, closure: Any = None) -> None:
        """Take one private step; exactly one for each batch, and nothing after a part that is not its last."""
        if not self.pre_step(closure):
            return
        found, self._found = self._found, ClippedSums(sums={})
        sums = found.sums if self.watch is None else self.watch.in_tables(found.sums, self.max_grad_norm)
        own = (
            contextlib.nullcontext()
            if self._tables is None
            else self._tables.stepping(sums, found.touched, noise_std=self.noise_std)
        )
        with own:
            self.original_optimizer.step()
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
