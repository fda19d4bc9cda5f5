"""What a model's outputs for a value or a delay say: the negative log likelihood of each row, and the mean.

Each function reads one row at a time, and its loss and gradient are finite for outputs and labels of ordinary size.
No schema asks for them yet: they are for a loss of one's own, passed to `fit`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_LOG_HAZARD = 10.0
"""Log hazards per hour are clamped to +- this: delays from a fraction of a second to years."""

LEAST_GAP = 1e-3
"""Added between two thresholds of an ordinal value, so that no level has probability 0."""

LEAST_SIGMA = 1e-2
"""Added to the log-normal's scale, so that no row's loss grows without bound where sigma shrinks."""


def count_loss(logit: Tensor, label: Tensor, *, most: float) -> Tensor:
    """Returns (rows,) ``mean - label log(mean) + log(label!)``, Poisson with ``mean = exp(min(logit, log(most)))``."""
    log_mean = logit.clamp(max=math.log(most))
    return log_mean.exp() - label * log_mean + torch.lgamma(label + 1)


def count_mean(logit: Tensor, *, most: float) -> Tensor:
    """Returns (rows,) the mean of the Poisson distribution."""
    return logit.clamp(max=math.log(most)).exp()


def log_normal_loss(outputs: Tensor, label: Tensor) -> Tensor:
    """Returns (rows,) the zero-inflated log-normal's loss (Wang et al. 2019, arXiv 1912.07753).

    outputs: (rows, 3) the logit of a value above 0, mu, and s with ``sigma = softplus(s) + LEAST_SIGMA``.
    """
    logit, mu, sigma = outputs[:, 0], outputs[:, 1], F.softplus(outputs[:, 2]) + LEAST_SIGMA
    above = label > 0
    log_label = torch.where(above, label, 1.0).log()  # log(0) would make the unused branch's gradient NaN
    density = 0.5 * ((log_label - mu) / sigma) ** 2 + sigma.log() + log_label + 0.5 * math.log(2 * math.pi)
    return F.softplus(torch.where(above, -logit, logit)) + torch.where(above, density, 0.0)


def log_normal_mean(outputs: Tensor) -> Tensor:
    """Returns (rows,) ``p exp(mu + sigma^2 / 2)``."""
    sigma = F.softplus(outputs[:, 2]) + LEAST_SIGMA
    return torch.sigmoid(outputs[:, 0]) * (outputs[:, 1] + sigma**2 / 2).exp()


def delay_loss(logit: Tensor, log_hazard: Tensor, converted: Tensor, hours: Tensor) -> Tensor:
    """Returns (rows,) the loss of a delayed conversion (Chapelle 2014, KDD), stably in log space.

    Converted after d hours: ``-log p - log h + h d``; not after e hours: ``-log(1 - p + p exp(-h e))``.
    """
    log_hazard = log_hazard.clamp(-MOST_LOG_HAZARD, MOST_LOG_HAZARD)
    waited = log_hazard.exp() * hours
    event = F.softplus(-logit) - log_hazard + waited
    none_yet = -torch.logaddexp(F.logsigmoid(-logit), F.logsigmoid(logit) - waited)
    return torch.where(converted, event, none_yet)


def ordinal_loss(outputs: Tensor, label: Tensor) -> Tensor:
    """Returns (rows,) minus the log probability of the level ``label`` in 1 to K under cumulative logits.

    ``P(label > k) = sigmoid(t_k)`` (McCullagh 1980) with ``t_1 = z_1, t_k = t_(k-1) - softplus(z_k) - LEAST_GAP``:
    each row orders its own thresholds, so a linear head of width K - 1 needs no other parameters. outputs: (rows, K-1).
    """
    logits, gaps = _cumulative(outputs)
    none = torch.zeros_like(label)[:, None]
    level = label.long()[:, None] - 1
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)); the outer levels have one side only
    above = torch.cat([none, F.logsigmoid(logits)], dim=1)
    below = torch.cat([F.logsigmoid(-logits), none], dim=1)
    between = torch.cat([none, torch.log(-torch.expm1(-gaps)), none], dim=1)
    return -(above + below + between).gather(1, level)[:, 0]


def ordinal_mean(outputs: Tensor) -> Tensor:
    """Returns (rows,) the mean level, ``1 + sum over k of P(label > k)``."""
    return 1 + torch.sigmoid(_cumulative(outputs)[0]).sum(dim=1)


def _cumulative(outputs: Tensor) -> tuple[Tensor, Tensor]:
    gaps = F.softplus(outputs[:, 1:]) + LEAST_GAP
    logits = torch.cat([outputs[:, :1], outputs[:, :1] - gaps.cumsum(dim=1)], dim=1)
    return logits, gaps


def waiting_loss(logit: Tensor, converted: Tensor, share: Tensor, *, least_share: float = 0.05) -> Tensor:
    """Returns (rows,) the log loss weighted for conversions still to come (Yasui et al. 2020; Ktena et al. 2019).

    share: (rows,) the probability that a conversion has come by now, of a fixed distribution of delays at the time
    since the impression, for converted rows too. A conversion weighs ``1 / share``, none yet
    ``(1 - p) / (1 - p share)`` with p the model's own, held fixed. Shares below least_share are raised to it, which
    bounds the weight.
    """
    share = share.clamp(least_share, 1.0)
    log_p, log_rest = F.logsigmoid(logit.detach()), F.logsigmoid(-logit.detach())
    log_weight = log_rest - torch.logaddexp(log_rest, log_p + torch.log1p(-share))
    return torch.where(converted, F.softplus(-logit) / share, log_weight.exp() * F.softplus(logit))
