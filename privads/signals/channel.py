"""`Channel`: what a label became on its way to us, and the losses that learn the label itself from what arrived.

A label is one of k states. Which answer arrives, again one of k, is drawn from the state's row of ``T[y, a] =
P(answer a | state y)``. A model gives probabilities p of the states, and its loss of a state is ``l_y = -log p_y``.

    forward    -log (T' p)_a         the likelihood of the answer (Patrini et al. 2017, CVPR, theorem 2)
    backward   (T^-1 l)_a            unbiased: sum_a T[y, a] (T^-1 l)_a = l_y (Natarajan et al. 2013, NeurIPS, lemma 1)

Forward is bounded below and is the one for deep models; its minimizer over all p is the clean conditional (theorem 2).
Backward may be negative and has no lower bound where a model can make one row's p_y as small as it likes; for a
logistic model it is convex, ``log(1 + e^z) - w_a z`` with ``w_a = (T^-1)[a, 1]``.

Not everything need have arrived. ``open_`` are the states of a row that cannot be told apart yet (no report so far, and
the windows that have not closed): an answer among them says only that it is one of them. Forward sums over what may
still arrive. Backward takes the loss of all open states together, ``-log sum_open p``; that is unbiased for the loss of
what a clean label would have said by now, where the channel is lumpable: states of one group give every group equally
often (Kemeny and Snell 1960, theorem 6.3.2). Randomized response is, whatever the groups.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from privads.signals.event_reports import EventReports

Correction = Literal["forward", "backward"]
"""How a loss accounts for the channel."""

YES_OR_NO = EventReports(windows=(1,), most=1)
"""The states of a label of 0 and 1."""

_SUM_ERROR = 1e-9
"""By so much a row of probabilities may miss 1."""

_LUMP_ERROR = 1e-12
_MOST_CONDITION = 1e9

Floats = NDArray[np.float64]
Groups = NDArray[np.int64]
"""(states,) the group of each state, numbered from 0."""


@dataclass(frozen=True, eq=False)
class Channel:
    """The probabilities of every answer. matrix: (states, states), a row for each state, a column for each answer.

    >>> Channel.binary(epsilon=math.log(3)).matrix.tolist()
    [[0.75, 0.25], [0.25, 0.75]]
    """

    matrix: Floats

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
            raise ValueError(f"matrix must be square, of at least two states, got shape {matrix.shape}")
        if not (np.isfinite(matrix).all() and (matrix >= 0).all()):
            raise ValueError("matrix must hold probabilities")
        if np.abs(matrix.sum(axis=1) - 1).max() > _SUM_ERROR:
            raise ValueError("every row of matrix must sum to 1: a row is a state, a column an answer")
        if not (matrix.sum(axis=0) > 0).all():
            raise ValueError("every answer of matrix must be possible")
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def of_reports(cls, reports: EventReports, *, epsilon: float, groups: Groups | None = None) -> "Channel":
        """Returns the channel of event-level reports, ``T = (1 - p) I + (p / k) 1 1'``, or of groups of their states.

        groups: (states,) what is to be learned of each state, such as `first_window`; by default the state itself. A
        group of n states is answered by chance with probability ``p n / k``, so that ``T = (1 - p) I + (p / k) 1 n'``
        whatever the states of a group are: nothing needs to be known of how often each of them is.
        """
        k = reports.states
        chance = reports.randomize_probability(epsilon) / k
        kept = math.expm1(epsilon) / (k + math.expm1(epsilon))
        sizes = np.ones(k) if groups is None else np.bincount(_checked(groups, k))
        return cls(kept * np.eye(len(sizes)) + chance * sizes)

    @classmethod
    def binary(cls, *, epsilon: float) -> "Channel":
        """Returns the channel of randomized response on 0 and 1: a flip has probability ``1 / (1 + e^epsilon)``."""
        return cls.of_reports(YES_OR_NO, epsilon=epsilon)

    @property
    def states(self) -> int:
        """How many states there are."""
        return len(self.matrix)

    @property
    def epsilon(self) -> float:
        """The largest log ratio of an answer's probabilities: what the channel by itself loses, at delta 0."""
        with np.errstate(divide="ignore"):
            log = np.log(self.matrix)
        return float((log.max(axis=0) - log.min(axis=0)).max())

    @cached_property
    def inverse(self) -> Floats:
        """(states, states) ``T^-1``, an answer's row: the weight of each state's loss. Rows sum to 1."""
        if np.linalg.cond(self.matrix) > _MOST_CONDITION:
            raise ValueError("these answers cannot tell the states apart: the channel has no usable inverse")
        return np.asarray(np.linalg.inv(self.matrix))

    def grouped(self, groups: ArrayLike) -> "Channel":
        """Returns the channel between groups of states, (states,) numbered from 0; it must be lumpable."""
        found = _checked(groups, self.states)
        member = np.eye(int(found.max()) + 1)[found]  # (states, groups)
        reached = self.matrix @ member
        first = reached[np.unique(found, return_index=True)[1]]
        if np.abs(reached - first[found]).max() > _LUMP_ERROR:
            raise ValueError("the channel cannot be grouped like this: states of one group are answered differently")
        return Channel(first)


def first_window(reports: EventReports) -> Groups:
    """Returns (states,) 0 where a source led to no report, else the first window in which it did, counted from 1."""
    window = np.concatenate([np.arange(1, count + 1) for count in reports.windows])
    none = window.max() + 1
    first = np.where(reports.counts > 0, window, none).min(axis=1)
    return np.asarray(np.where(first == none, 0, first), dtype=np.int64)


def report_count(reports: EventReports) -> Groups:
    """Returns (states,) how many reports a source led to."""
    return np.asarray(reports.counts.sum(axis=1), dtype=np.int64)


def converted(reports: EventReports) -> Groups:
    """Returns (states,) 1 where a source led to a report, else 0."""
    return np.asarray(reports.counts.any(axis=1), dtype=np.int64)


def forward_loss(
    log_probabilities: Tensor, answers: Tensor, channel: Channel, *, open_: Tensor | None = None
) -> Tensor:
    """Returns (rows,) ``-log sum_y p_y P(what was seen | y)``, where an open answer may still become any open one.

    log_probabilities: (rows, states), of each row's states. answers: (rows,) whole numbers from 0.
    open_: (rows, states) bool, see the module's text; by default everything has arrived.
    """
    _check_rows(log_probabilities, answers, channel, open_)
    matrix = _like(channel.matrix, log_probabilities)
    if open_ is None:
        reached = matrix.T[answers]  # (rows, states): P(answer | state)
    else:
        arrived = torch.nn.functional.one_hot(answers, channel.states).bool()
        possible = torch.where(open_.gather(1, answers[:, None]), open_, arrived)
        reached = possible.to(matrix.dtype) @ matrix.T
    return -torch.logsumexp(log_probabilities + reached.log(), dim=1)


def backward_loss(
    log_probabilities: Tensor, answers: Tensor, channel: Channel, *, open_: Tensor | None = None
) -> Tensor:
    """Returns (rows,) ``sum_y (T^-1)[a, y] l_y``, where the open states of a row have one loss together.

    Takes what `forward_loss` takes. The inverse of the whole channel serves every row: with E the matrix of which state
    is in which group, a lumpable T has ``T E = E T_g``, so that ``T^-1 E l_g = E T_g^-1 l_g``.
    """
    _check_rows(log_probabilities, answers, channel, open_)
    loss = -log_probabilities
    if open_ is not None:
        for together in torch.unique(open_, dim=0).numpy(force=True):
            if not together.all():  # all states in one group are answered alike in any channel
                channel.grouped(_merged(together))
        waiting = open_.any(dim=1, keepdim=True)  # the others have nothing open, whose logarithm has no gradient
        log_open = torch.where(open_ | ~waiting, log_probabilities, -math.inf).logsumexp(dim=1, keepdim=True)
        loss = -torch.where(open_, log_open, log_probabilities)
    return (_like(channel.inverse, log_probabilities)[answers] * loss).sum(dim=1)


def corrected_loss(
    correction: Correction,
    log_probabilities: Tensor,
    answers: Tensor,
    channel: Channel,
    *,
    open_: Tensor | None = None,
) -> Tensor:
    """Returns (rows,) the loss of this name."""
    if correction not in ("forward", "backward"):
        raise ValueError(f"correction must be 'forward' or 'backward', got {correction!r}")
    loss = forward_loss if correction == "forward" else backward_loss
    return loss(log_probabilities, answers, channel, open_=open_)


def _merged(open_: NDArray[np.bool_]) -> Groups:
    """Returns the groups in which all open states are one and every other is by itself."""
    own = np.cumsum(~open_)  # of the others, from 1
    return np.unique(np.where(open_, 0, own), return_inverse=True)[1]


def _checked(groups: ArrayLike, states: int) -> Groups:
    found = np.asarray(groups)
    if found.shape != (states,) or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"groups must be {states} whole numbers, one for each state, got shape {found.shape}")
    if found.min() < 0 or not np.bincount(found).all():
        raise ValueError("groups must be numbered from 0, without gaps")
    if found.max() == 0:
        raise ValueError("groups must be at least two")
    return found.astype(np.int64)


def _check_rows(log_probabilities: Tensor, answers: Tensor, channel: Channel, open_: Tensor | None) -> None:
    shape = (len(answers), channel.states)
    if log_probabilities.shape != shape:
        raise ValueError(f"log_probabilities must have shape {shape}, got {tuple(log_probabilities.shape)}")
    if len(answers) and not (answers.min() >= 0 and answers.max() < channel.states):
        raise ValueError(f"answers must be numbers from 0 to {channel.states - 1}")
    if open_ is not None and (open_.shape != shape or open_.dtype != torch.bool):
        raise ValueError(f"open_ must be bool of shape {shape}, got {open_.dtype} of shape {tuple(open_.shape)}")


def _like(values: Floats, reference: Tensor) -> Tensor:
    return torch.tensor(values, dtype=reference.dtype, device=reference.device)
