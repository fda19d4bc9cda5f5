"""Made-up rows with a known logistic model, for learning from sums of their labels."""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from privads.signals.encoding import Encoding, Features, Floats

SIZES = {"device": 4, "hour": 12, "site": 60}


@dataclass(frozen=True, kw_only=True, eq=False)
class Clicks:
    rows: np.ndarray
    probabilities: Floats
    labels: Floats
    effects: Floats
    features: Features


def clicks(
    rows: int, *, seed: int, effect_std: float = 0.6, base: float = -1.5, encoding: Encoding | None = None
) -> Clicks:
    encoding = encoding or Encoding.of(SIZES)
    rng = np.random.default_rng(seed)
    values = np.stack([rng.choice(size, rows, p=_shares(size)) for size in SIZES.values()], axis=1)
    features = Features.of(encoding, values, public=False)
    effects = effect_std * rng.standard_normal(encoding.cells)
    logits = base + sum(effects[part][place] for part, place in zip(encoding.parts, features.places, strict=True))
    p = expit(logits)
    labels = (rng.random(rows) < p).astype(np.float64)
    return Clicks(rows=values, probabilities=p, labels=labels, effects=effects, features=features)


def log_loss(labels: Floats, p: Floats) -> float:
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return float(-np.mean(labels * np.log(p) + (1 - labels) * np.log1p(-p)))


def normalized(labels: Floats, p: Floats) -> float:
    """1 - log loss / entropy of the base rate: the normalized log-likelihood."""
    return 1 - log_loss(labels, p) / log_loss(labels, np.full(len(labels), labels.mean()))


def _shares(size: int) -> Floats:
    weight = 1.0 / np.arange(1, size + 1)
    return np.asarray(weight / weight.sum())
