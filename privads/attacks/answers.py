"""Label inference on randomized answers: canary rows whose labels are fair coins, and guesses of them.

Nothing private is read: the rows are made here, and the plan's own code answers them. Randomized labels protect a row's
label under neighbors `replace-label`, so that each canary's coin is its label, and not whether it is there.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from accounting.audit import Audit, one_run
from privads.attacks.canaries import Canaries, entropy
from privads.batch import Batch, padding
from privads.noise import Randomness
from privads.signals.randomized_labels import LabelRelease


@dataclass(frozen=True, kw_only=True, eq=False)
class AnswerEvidence:
    """What answers showed. scores: (canaries,) what speaks for "yes". labels: (canaries,) what was answered of.

    states: that an answer may name, of which only two are asked for.
    """

    scores: NDArray[np.float64]
    labels: NDArray[np.bool_]
    epsilon: float
    states: int = 2

    @property
    def guesses(self) -> int:
        """How many canaries are guessed, from public numbers alone: those whose answer names one of the two states.

        It does so with chance ``(exp(epsilon) + 1) / (exp(epsilon) + states - 1)``, either state with half of that; of
        their numbers, two standard deviations less. A canary with another answer could only be guessed blindly.
        """
        either = (math.exp(-self.epsilon) + 1) / (1 + (self.states - 1) * math.exp(-self.epsilon)) / 2
        canaries = len(self.scores)
        each = canaries * either - 2 * math.sqrt(canaries * either * (1 - either))
        return 2 * max(1, math.floor(each))

    @cached_property
    def audit(self) -> Audit:
        """The one-run audit of the claim at delta 0, with 95 % confidence."""
        return one_run(self.scores, self.labels, claimed_epsilon=self.epsilon, delta=0.0, guesses=self.guesses)


def guesses(answers: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns (rows,) 1 for the answer "in the first window", or yes, -1 for "no", 0 for any other.

    The likelihood ratio of k-ary randomized response has no other values than ``exp(epsilon)``, its inverse and 1.
    """
    return np.select([answers == 1, answers == 0], [1.0, -1.0], 0.0)


def audit_answers(release: LabelRelease, *, canaries: int = 1000, insecure_seed: int | None = None) -> AnswerEvidence:
    """Returns what the answers of ``release`` tell of labels that are "no", or an event in the first window.

    insecure_seed: repeatable coins and answers. Charges nothing, and reads no row.
    """
    labels = Canaries(count=canaries).tossed(entropy(insecure_seed))
    answers = release.answers(_made_up(release, labels), Randomness(insecure_seed=insecure_seed))
    return AnswerEvidence(
        scores=guesses(answers), labels=labels, epsilon=release.budget.epsilon, states=release.reports.states
    )


def _made_up(release: LabelRelease, labels: NDArray[np.bool_]) -> Batch:
    """Returns rows with these labels, whose windows have all closed."""
    batch, yes = padding(release.source, len(labels)), torch.from_numpy(labels)
    hours = dict(batch.hours)
    if release.ends_hours:
        delay = torch.where(yes, 0.0, torch.inf)
        hours[release.task] = torch.stack([delay, torch.full_like(delay, release.ends_hours[-1])], dim=1)
    return replace(
        batch,
        labels={**batch.labels, release.task: yes.float()},
        observed={**batch.observed, release.task: torch.ones(len(labels), dtype=torch.bool)},
        hours=hours,
    )
