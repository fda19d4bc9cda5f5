"""What a model's outputs say of each kind of label: the negative log likelihood of a row, and what is predicted.

A `Head` reads the ``width`` columns that a model has for a task: (rows,) where there is one, else (rows, width). Each
function reads one row at a time, and its loss and gradient are finite for outputs and labels of ordinary size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from privads.logs.labels import DelayedLabel, EventLabel, Label, ValueLabel
from privads.logs.schema import Schema

MOST_LOG_HAZARD = 10.0
"""Log hazards are clamped to +- this, in the label's window: delays from a small part of it to all of it."""

LEVEL_WEIGHT = 0.5
"""Of a level's log loss, whose slope is that of two events: at weight 1 clipping made means 4 % too low."""

LEAST_GAP = 1e-3
"""Added between two thresholds of an ordinal value, so that no level has probability 0."""

SIGMAS = (0.3, 2.0)
"""The log-normal's sigma lies between these, so that no row's slope grows without bound where sigma shrinks."""

DENSITY_WEIGHT = 0.15
"""Of the log-normal's density beside the log loss. Larger ones lost more to clipping, smaller ones more to noise."""

WAITING_WEIGHT = 0.5
"""Of the losses of labels that wait: at weight 1 clipping made predictions 15 % (delays learned) and 20 % too low."""

LEAST_SHARE = 0.05
"""Shares of the events that have come by now are raised to this, which bounds the weight of an event by 20."""


class Head(Protocol):
    """What the outputs of one task mean."""

    @property
    def width(self) -> int:
        """How many columns it reads."""
        ...

    def loss(self, outputs: Tensor, label: Tensor, hours: Tensor | None) -> Tensor:
        """Returns (rows,) the loss. label: (rows,). hours: (rows, 2) as `Batch` has them, of a label that waits."""
        ...

    def read(self, outputs: Tensor) -> dict[str, Tensor]:
        """Returns {what it is: (rows,)}; the last is the prediction: a probability, or a mean."""
        ...


@dataclass(frozen=True)
class Event:
    """Yes or no: a logit a, with the log loss of ``sigmoid(a)``."""

    width: ClassVar[int] = 1

    def loss(self, outputs: Tensor, label: Tensor, hours: Tensor | None) -> Tensor:
        """Returns the log loss."""
        return F.binary_cross_entropy_with_logits(outputs, label, reduction="none")

    def read(self, outputs: Tensor) -> dict[str, Tensor]:
        """Returns the probability."""
        return {"probability": torch.sigmoid(outputs)}


EVENT = Event()


@dataclass(frozen=True)
class Count:
    """A count of at most N: ``mean = N sigmoid(z + logit(typical / N))``, fitted by the binomial's quasi-likelihood.

    Loss ``w N log loss(label / N, sigmoid(...))`` with ``w = 1 / (4 typical)`` (Papke and Wooldridge 1996, J. Applied
    Econometrics). Unlike Poisson's its slope is bounded, by ``w N``, and about that of an event where counts are
    typical: at the clip norm of events, clipping the larger slopes of a Poisson made means 18 % too low.
    """

    most: float
    typical: float
    width: ClassVar[int] = 1

    def loss(self, outputs: Tensor, label: Tensor, hours: Tensor | None) -> Tensor:
        """Returns the weighted quasi-likelihood."""
        log_loss = F.binary_cross_entropy_with_logits(self._logit(outputs), label / self.most, reduction="none")
        return self.most / (4 * self.typical) * log_loss

    def read(self, outputs: Tensor) -> dict[str, Tensor]:
        """Returns the mean."""
        return {"mean": self.most * torch.sigmoid(self._logit(outputs))}

    def _logit(self, outputs: Tensor) -> Tensor:
        return outputs + logit_of(self.typical / self.most)


@dataclass(frozen=True)
class Amount:
    """An amount from 0, zero-inflated log-normal (Wang et al. 2019, arXiv 1912.07753).

    Outputs: the logit of an amount above 0, ``mu - log(typical)``, and s, of which sigma is a sigmoid between
    `SIGMAS`. Loss: the log loss of an amount above 0, and for those ``w (((log label - mu) / sigma)^2 / 2 +
    log sigma)`` with ``w = DENSITY_WEIGHT``, so that its slope is about that of an event (w = 1: the likelihood, up to
    a constant). The mean is ``p min(exp(mu + sigma^2 / 2), most)``.
    """

    most: float
    typical: float
    width: ClassVar[int] = 3

    def loss(self, outputs: Tensor, label: Tensor, hours: Tensor | None) -> Tensor:
        """Returns the log loss, and above 0 the weighted density beside it."""
        logit, mu, sigma = self._parameters(outputs)
        above = label > 0
        log_label = torch.where(above, label, 1.0).log()  # log(0) would make the unused branch's gradient NaN
        density = DENSITY_WEIGHT * (0.5 * ((log_label - mu) / sigma) ** 2 + sigma.log())
        return F.softplus(torch.where(above, -logit, logit)) + torch.where(above, density, 0.0)

    def read(self, outputs: Tensor) -> dict[str, Tensor]:
        """Returns the probability of an amount above 0, and the mean of all."""
        logit, mu, sigma = self._parameters(outputs)
        p = torch.sigmoid(logit)
        return {"probability": p, "mean": p * (mu + sigma**2 / 2).exp().clamp(max=self.most)}

    def _parameters(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logit, mu, scale = outputs.unbind(1)
        least, most = SIGMAS
        return logit, mu + math.log(self.typical), least + (most - least) * torch.sigmoid(scale)


@dataclass(frozen=True)
class Levels:
    """A level from 1 to K under cumulative logits (McCullagh 1980, JRSS B).

    ``P(label > k) = sigmoid(t_k)`` with ``t_1 = z_1, t_k = t_(k-1) - softplus(z_k) - LEAST_GAP``: each row orders its
    own thresholds, so a linear head of width K - 1 needs no other parameters. The mean is ``1 + sum_k P(label > k)``.
    The loss is `LEVEL_WEIGHT` times minus the log probability.
    """

    levels: int

    @property
    def width(self) -> int:
        """K - 1."""
        return self.levels - 1

    def loss(self, outputs: Tensor, label: Tensor, hours: Tensor | None) -> Tensor:
        """Returns the weighted log loss of the level."""
        logits, gaps = self._thresholds(outputs)
        none = torch.zeros_like(label)[:, None]
        level = label.long().clamp(1, self.levels)[:, None] - 1  # one that is not observed may be any number
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)); the outer levels have one side only
        above = torch.cat([none, F.logsigmoid(logits)], dim=1)
        below = torch.cat([F.logsigmoid(-logits), none], dim=1)
        between = torch.cat([none, torch.log(-torch.expm1(-gaps)), none], dim=1)
        return -LEVEL_WEIGHT * (above + below + between).gather(1, level)[:, 0]

    def read(self, outputs: Tensor) -> dict[str, Tensor]:
        """Returns the mean level."""
        return {"mean": 1 + torch.sigmoid(self._thresholds(outputs)[0]).sum(dim=1)}

    def _thresholds(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        columns = outputs.reshape(len(outputs), self.width)
        gaps = F.softplus(columns[:, 1:]) + LEAST_GAP
        return torch.cat([columns[:, :1], columns[:, :1] - gaps.cumsum(dim=1)], dim=1), gaps


@dataclass(frozen=True)
class Delayed:
    """An event within a window of W hours that may still come, with its delay learned beside it (Chapelle 2014, KDD).

    Outputs: the logit of p = P(event within W), and log(h W). Delays are exponential with hazard h, cut off at W:
    ``F(d) = (1 - exp(-h d)) / (1 - exp(-h W))``. After d hours: ``-log p - log h + h d + log(1 - exp(-h W))``; none yet
    after e hours: ``-log(1 - p F(e))``, which is the log loss at e = W. The paper has W = infinity. All
    of it has the weight `WAITING_WEIGHT`.
    """

    within_hours: float
    width: ClassVar[int] = 2

    def loss(self, outputs: Tensor, label: Tensor, hours: Tensor | None) -> Tensor:
        """Returns minus the log likelihood of what was seen by now."""
        if hours is None:
            raise ValueError("a label that waits needs how long it has waited: Batch.hours")
        logit, log_hazard = outputs.unbind(1)
        hazard = log_hazard.clamp(-MOST_LOG_HAZARD, MOST_LOG_HAZARD).exp()  # per window
        part = hours[:, 0] / self.within_hours  # of the window
        log_whole = torch.log(-torch.expm1(-hazard))
        event = F.softplus(-logit) - hazard.log() + hazard * part + log_whole + math.log(self.within_hours)
        # 1 - p F = (1 - p) (1 + exp(logit) (1 - F)), and 1 - F = exp(-h e) (1 - exp(-h (W - e))) / (1 - exp(-h W))
        left = 1 - part
        open_ = left > 0  # at the end 1 - F is 0, whose logarithm would make the gradient NaN
        log_left = torch.log(-torch.expm1(-hazard * torch.where(open_, left, 1.0))) - hazard * part - log_whole
        still = torch.where(open_, F.softplus(logit + log_left), 0.0)
        return WAITING_WEIGHT * torch.where(label == 1, event, F.softplus(logit) - still)

    def read(self, outputs: Tensor) -> dict[str, Tensor]:
        """Returns the probability of the event within the window."""
        return {"probability": torch.sigmoid(outputs[:, 0])}


@dataclass(frozen=True)
class Weighted:
    """An event within a window of W hours that may still come, weighted by a stated distribution of delays.

    share: ``F(e)`` at the e hours since the impression, exponential, cut off at W, with half of the events within
    median_hours. An event weighs ``1 / F``, none yet ``(1 - p) / (1 - p F)`` with p the model's own, held fixed
    (Yasui et al. 2020, WWW; Ktena et al. 2019, RecSys). Shares below `LEAST_SHARE` are raised to it. All of it has the
    weight `WAITING_WEIGHT`.
    """

    within_hours: float
    median_hours: float
    width: ClassVar[int] = 1

    def loss(self, outputs: Tensor, label: Tensor, hours: Tensor | None) -> Tensor:
        """Returns the weighted log loss."""
        if hours is None:
            raise ValueError("a label that waits needs how long it has waited: Batch.hours")
        share = self.share(hours[:, 1])
        log_p, log_rest = F.logsigmoid(outputs.detach()), F.logsigmoid(-outputs.detach())
        log_weight = log_rest - torch.logaddexp(log_rest, log_p + torch.log1p(-share))
        none_yet = log_weight.exp() * F.softplus(outputs)
        return WAITING_WEIGHT * torch.where(label == 1, F.softplus(-outputs) / share, none_yet)

    def read(self, outputs: Tensor) -> dict[str, Tensor]:
        """Returns the probability of the event within the window."""
        return {"probability": torch.sigmoid(outputs)}

    def share(self, elapsed_hours: Tensor) -> Tensor:
        """Returns (rows,) the share of a window's events that have come by now."""
        part = elapsed_hours / self.within_hours
        hazard = _hazard(self.median_hours / self.within_hours)
        share = part if hazard == 0 else torch.expm1(-hazard * part) / math.expm1(-hazard)
        return share.clamp(LEAST_SHARE, 1.0)


def _hazard(median: float) -> float:
    """Returns the hazard per window of an exponential delay that is cut off at 1 and has this median, at most 1/2.

    ``1 - exp(-h m) = (1 - exp(-h)) / 2``, by bisection; 0 where delays are uniform.
    """
    if median >= 0.5:
        return 0.0
    low, high = 0.0, 1.0 / median  # where more than half come before m
    for _ in range(80):
        h = (low + high) / 2
        low, high = (h, high) if math.expm1(-h * median) > math.expm1(-h) / 2 else (low, h)
    return (low + high) / 2


def head_of(label: Label) -> Head:
    """Returns what a model's outputs for a label mean."""
    match label:
        case ValueLabel(kind="count"):
            return Count(label.most, label.typical or min(1.0, label.most / 2))
        case ValueLabel(kind="log-normal"):
            return Amount(label.most, label.typical or min(math.sqrt(label.most), label.most / 2))
        case ValueLabel():
            return Levels(int(label.most))
        case DelayedLabel(waiting=True, median_hours=None):
            return Delayed(label.within_hours)
        case DelayedLabel(waiting=True, median_hours=median_hours):
            return Weighted(label.within_hours, median_hours or 0.0)
    return EVENT


def heads_of(schema: Schema) -> dict[str, Head]:
    """Returns {task: what its outputs mean}."""
    return {task: head_of(label) for task, label in schema.labels.items()}


def prediction(head: Head, outputs: Tensor) -> Tensor:
    """Returns (rows,) what is predicted, in float64: the last of a head's readings."""
    *_, predicted = head.read(outputs.double()).values()
    return predicted


def rate_of(label: Label) -> float | None:
    """Returns how often an event is said to be; None where nothing is, or the label is a number."""
    return label.rate if isinstance(label, EventLabel | DelayedLabel) else None


def logit_of(rate: float) -> float:
    """Returns ``log(rate / (1 - rate))``."""
    return math.log(rate) - math.log1p(-rate)


def starts_of(label: Label) -> list[float]:
    """Returns where each output of a label begins: the first at the logit of an event's stated rate, and else at 0."""
    rate = rate_of(label)
    return [0.0 if rate is None else logit_of(rate), *[0.0] * (head_of(label).width - 1)]


class Outputs:
    """The columns of a model as the outputs of its schema's labels, side by side in the schema's order.

    Called with columns (rows, width) it returns {task: (rows,), or (rows, its width) where it has several}.
    """

    def __init__(self, schema: Schema) -> None:
        self.widths = {task: head.width for task, head in heads_of(schema).items()}
        self.width = sum(self.widths.values())
        self.starts = [start for label in schema.labels.values() for start in starts_of(label)]

    def __call__(self, columns: Tensor) -> dict[str, Tensor]:
        """Returns each task's columns."""
        parts: Sequence[Tensor] = torch.split(columns, list(self.widths.values()), dim=1)
        named = zip(self.widths, parts, strict=True)
        return {task: part[:, 0] if part.shape[1] == 1 else part for task, part in named}
