"""The faults of a training run, each planted in one place."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.faults import training
from benchmarks.faults.made import USERS
from benchmarks.faults.planting import Fault, Law, Patch
from privads import noise
from privads.models import losses
from privads.noise import Randomness
from privads.training import batches, clipping, event, sampling
from privads.training.batches import Sampled
from privads.training.engine import PrivateEngine
from privads.training.event import Noises
from privads.training.optimizer import PlanOptimizer
from privads.training.sampling import Draw, Owned, PoissonSampler
from privads.training.tables import LazyTables


def _times(patch: Patch, factor: float) -> None:
    draw = Randomness.normal_like

    def scaled(self: Randomness, like: Tensor, *, noise_std: Any) -> Tensor:
        return draw(self, like, noise_std=noise_std) * factor

    patch.setattr(Randomness, "normal_like", scaled)


# Noise


def noise_halved(patch: Patch) -> None:
    """Twice the claim's epsilon, or somewhat more."""
    _times(patch, 0.5)


def a_tenth_of_the_noise(patch: Patch) -> None:
    """As where a standard deviation is taken for a variance."""
    _times(patch, 0.1)


def noise_forgotten(patch: Patch) -> None:
    """No noise on anything."""
    _times(patch, 0.0)


def noise_forgotten_on_the_table(patch: Patch) -> None:
    """Large parameters are left out."""
    noises = PlanOptimizer._noises

    def forgetful(self: PlanOptimizer) -> Iterator[Tensor | float]:
        for parameter, one in zip(self.noised, noises(self), strict=True):
            yield one * (0.0 if parameter.numel() > 1000 else 1.0)

    patch.setattr(PlanOptimizer, "_noises", forgetful)


def noise_after_the_step(patch: Patch) -> None:
    """The optimizer takes the exact sums, and the weights get the noise."""
    step = PlanOptimizer.step

    def late(self: PlanOptimizer, closure: Any = None) -> None:
        planned = self.noise_std
        with torch.no_grad():
            step(self, closure)
            for parameter in self.noised:
                parameter.data += self._randomness.normal_like(parameter, noise_std=planned / self.expected_batch_size)

    patch.setattr(PlanOptimizer, "step", late)
    patch.setattr(PlanOptimizer, "_noises", lambda self: iter([0.0] * len(self.noised)))


def the_same_noise_at_every_step(patch: Patch) -> None:
    """A seed that is used again."""
    drawn: dict[int, NDArray[np.uint64]] = {}
    words = Randomness._words
    patch.setattr(Randomness, "_words", lambda self, n: drawn.setdefault(n, words(self, n).copy()).copy())


def the_same_keys_after_a_resume(patch: Patch) -> None:
    """Keys that do not come from the operating system: whoever goes on draws what was drawn before."""

    def urandom(count: int) -> bytes:
        return b"k" * count

    patch.setattr(noise, "os", _Fixed(urandom))


@dataclasses.dataclass(frozen=True)
class _Fixed:
    urandom: Any


def flush_forgotten(patch: Patch) -> None:
    """Rows of lazy tables that nobody read again are handed out without the noise that they owe."""
    patch.setattr(LazyTables, "flush", lambda _: None)


# Sensitivity


def clip_skipped(patch: Patch) -> None:
    """Nobody is clipped, from the start of the run on: the probe before it has seen no fault."""
    factors, opened = clipping._factors, PrivateEngine._open_rows

    def start(self: PrivateEngine, standing: Any) -> None:
        patch.setattr(clipping, "_factors", lambda group, units, _, device: factors(group, units, 1e9, device))
        opened(self, standing)

    patch.setattr(PrivateEngine, "_open_rows", start)


def average_before_clip(patch: Patch) -> None:
    """The batch is clipped as one unit: what one of its units adds is whatever the others leave."""
    _regrouped(patch, lambda part: dataclasses.replace(part, owners=torch.zeros_like(part.owners), units=1, sampled=1))


def rows_clipped_one_by_one(patch: Patch) -> None:
    """Every row is a unit: a user of k rows moves the sum by up to k clip norms."""

    def apart(part: batches.Part) -> batches.Part:
        rows = len(part.owners)
        return dataclasses.replace(part, owners=torch.arange(rows), units=rows, sampled=rows)

    _regrouped(patch, apart)


def _regrouped(patch: Patch, change: Any) -> None:
    gathered = batches.Source._gathered

    def other(self: batches.Source, draw: Draw, *, last: bool) -> batches.Part:
        found: batches.Part = change(gathered(self, draw, last=last))
        return found

    patch.setattr(batches.Source, "_gathered", other)


def a_user_counted_as_two(patch: Patch) -> None:
    """As if the two halves of a user's rows were two users."""
    of = Sampled.of

    def halves(rows: Any, chosen: Any, **settings: Any) -> Sampled:
        found = of(rows, chosen, **settings)
        return Sampled(rows=rows, numbers=None, units=2 * found.units + np.arange(len(found.units)) % 2)

    patch.setattr(Sampled, "of", halves)


def records_of_a_user_unbounded(patch: Patch) -> None:
    """The event is composed over two rows of each user, and all are sampled from."""

    def everything(units: NDArray[np.int64], most_rows: int, generator: np.random.Generator) -> NDArray[np.int64]:
        owned = Owned(units)
        return owned.rows_of(np.arange(owned.units), len(units), generator)[0]

    patch.setattr(batches, "kept_rows", everything)


def batch_size_as_the_divisor(patch: Patch) -> None:
    """Noised sums are divided by how many users were drawn: 400, where everybody was."""
    scale = PlanOptimizer.scale_grad

    def by_users(self: PlanOptimizer) -> None:
        scale(self)
        for parameter in self.noised:
            parameter.grad *= self.expected_batch_size / USERS

    patch.setattr(PlanOptimizer, "scale_grad", by_users)


def not_a_number_passes(patch: Patch) -> None:
    """``min(1, nan)`` is 1: a gradient that is no number goes into the sum."""
    factors = clipping._factors

    def passing(group: Any, units: int, clip_norm: float, device: torch.device) -> tuple[Tensor, Tensor]:
        found, within = factors(group, units, clip_norm, device)
        squares = torch.stack([one.squared_norms() for one in group]).sum(0)
        return torch.where(squares.isnan(), 1.0, found), within

    patch.setattr(clipping, "_factors", passing)


def losses_of_all_pairs(patch: Patch) -> None:
    """(rows, 1) outputs beside (rows,) labels broadcast to (rows, rows): every row's loss is about all labels."""

    def pairs(outputs: Any, batch: Any, *_: Any, **__: Any) -> Tensor:
        found: Tensor = (torch.sigmoid(outputs["click"])[:, None] - batch.labels["click"]).square().mean(1)
        return found

    patch.setattr(losses, "per_row", pairs)


# Sampling and accounting


def everyone_in_every_batch(patch: Patch) -> None:
    """The event counts on a tenth of the users in each batch."""
    made = PoissonSampler.__init__

    def careless(self: PoissonSampler, units: Any, *, sampling_rate: float, **others: Any) -> None:
        made(self, units, sampling_rate=1.0, **others)

    patch.setattr(PoissonSampler, "__init__", careless)


def shuffling_accounted_as_poisson(patch: Patch) -> None:
    """Batches of one size are dealt from a shuffled epoch, and every unit is in exactly one of them."""

    def shuffled(self: PoissonSampler, steps: int) -> Iterator[Draw]:
        units, dealt = self._owned.units, np.zeros(0, dtype=np.int64)
        size = round(units * self.sampling_rate)
        for _ in range(steps):
            if len(dealt) < size:
                dealt = self.generator.permutation(units)
            chosen, dealt = np.sort(dealt[:size]), dealt[size:]
            rows, owners = self._owned.rows_of(chosen, self.rows_per_unit, self.generator)
            yield Draw(row_numbers=rows, owners=owners, units=size, sampled=size)

    patch.setattr(sampling.PoissonSampler, "draws", shuffled)


def adaptive_clip_uncharged(patch: Patch) -> None:
    """The noisy count that moves the clip norm is not in the event."""
    patch.setattr(Noises, "of_a_step", lambda self, *, selecting: (self.gradients,))


def one_step_charged(patch: Patch) -> None:
    """The event holds one step of the run's ten."""
    sampled = event._sampled
    patch.setattr(event, "_sampled", lambda chosen, noises, steps: sampled(chosen, noises, 1))


FAULTS = (
    Fault(
        area="training",
        plant=noise_halved,
        check=training.noise_is_as_large_as_planned,
        game="gradients",
        law=Law(noise=0.5),
    ),
    Fault(
        area="training",
        plant=a_tenth_of_the_noise,
        check=training.noise_is_as_large_as_planned,
        game="gradients",
        law=Law(noise=0.1),
    ),
    Fault(
        area="training",
        plant=noise_forgotten,
        check=training.noise_is_as_large_as_planned,
        game="gradients",
        law=Law(noise=0.0),
    ),
    Fault(
        area="training",
        plant=noise_forgotten_on_the_table,
        check=training.noise_is_on_the_tables_too,
        game="gradients",
        law=Law(noise=0.0),
    ),
    Fault(area="training", plant=noise_after_the_step, check=training.the_optimizer_sees_noise, game="gradients"),
    Fault(
        area="training",
        plant=the_same_noise_at_every_step,
        check=training.noise_of_steps_is_independent,
        game="gradients",
    ),
    Fault(area="training", plant=the_same_keys_after_a_resume, check=training.a_resumed_run_draws_fresh_noise),
    Fault(
        area="training",
        plant=flush_forgotten,
        check=training.the_model_is_handed_out_flushed,
        game="lazy rows",
        law=Law(noise=0.0),
    ),
    Fault(
        area="training",
        plant=clip_skipped,
        check=training.no_user_moves_the_sum_by_more_than_the_clip_norm,
        game="users",
    ),
    Fault(area="training", plant=average_before_clip, check=training.clipped_gradients_add_up, game="users"),
    Fault(
        area="training",
        plant=rows_clipped_one_by_one,
        check=training.no_user_moves_the_sum_by_more_than_the_clip_norm,
        game="users",
    ),
    Fault(
        area="training",
        plant=a_user_counted_as_two,
        check=training.no_user_moves_the_sum_by_more_than_the_clip_norm,
        game="users",
    ),
    Fault(
        area="training",
        plant=records_of_a_user_unbounded,
        check=training.a_user_has_no_more_records_than_are_charged,
    ),
    Fault(area="training", plant=batch_size_as_the_divisor, check=training.the_divisor_is_public, game="gradients"),
    Fault(area="training", plant=not_a_number_passes, check=training.a_gradient_that_is_no_number_adds_zero),
    Fault(area="training", plant=losses_of_all_pairs, check=training.a_row_has_a_loss_of_its_own, game="users"),
    Fault(
        area="training",
        plant=everyone_in_every_batch,
        check=training.users_are_drawn_independently,
        game="gradients",
        law=Law(rate=1.0),
    ),
    Fault(
        area="training",
        plant=shuffling_accounted_as_poisson,
        check=training.users_are_drawn_independently,
        game="gradients",
    ),
    Fault(area="training", plant=adaptive_clip_uncharged, check=training.every_noise_that_is_drawn_is_in_the_event),
    Fault(area="training", plant=one_step_charged, check=training.every_step_is_in_the_event),
)
"""Of the training loop; those without a game would show only in a run of another plan, or in several."""
