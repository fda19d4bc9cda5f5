"""Membership inference on a final model: was this row among those that it was trained on? For small data.

A likelihood-ratio attack with shadow models (Carlini et al. 2022, arXiv 2112.03570): models that the attacker trains,
each on a random half of the targets, tell how confident a model is of a target's label if it was trained on it, and if
not. Which targets the model under attack was trained on is decided by fair coins, so that `accounting.audit.one_run`
may count the guesses.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

M = TypeVar("M")
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

LEAST_SHADOWS = 4
_FEW = 64
"""Shadow models of either kind below which one variance is fitted for all targets: those of a few numbers are bad."""

_LEAST_CHANCE = 1e-12


def shadow_scores(
    model: M,
    train: Callable[[Flags], M],
    confidence: Callable[[M], Floats],
    *,
    targets: int,
    shadows: int,
    generator: np.random.Generator,
) -> Floats:
    """Returns (targets,) how much ``model`` speaks for each target's having been trained on: higher for "in".

    With ``f = log(p / (1 - p))`` for the chance p that a model gives to a target's true label, the score is

        log N(f; mean_in, var_in) - log N(f; mean_out, var_out)

    of the model under attack; means and variances are those of f over shadow models that were, and were not, trained on
    the target (the paper's section 5). With fewer than 64 of either, variances are those of all targets together.

    model: under attack, which ``train`` made on coins that nothing else here depends on. train: makes a model on the
    targets that are true in (targets,), with what else it trains on, noise and all. confidence: (targets,) the p of a
    model. shadows: models to train, an even number; each target is in exactly half of them. generator: of their halves.
    """
    if not isinstance(shadows, int) or shadows < LEAST_SHADOWS or shadows % 2:
        raise ValueError(f"shadows must be an even number of at least {LEAST_SHADOWS}, got {shadows!r}")
    included = halves(targets, shadows, generator)
    seen = np.stack([logits(confidence(train(one)), targets) for one in included])  # (shadows, targets)
    attacked = logits(confidence(model), targets)
    log_in = _log_likelihood(attacked, np.where(included, seen, np.nan), few=shadows // 2 < _FEW)
    return log_in - _log_likelihood(attacked, np.where(included, np.nan, seen), few=shadows // 2 < _FEW)


def halves(targets: int, shadows: int, generator: np.random.Generator) -> Flags:
    """Returns (shadows, targets) who is in each: a coin for each of a first half of them, and the others' opposite.

    >>> halves(3, 4, np.random.default_rng(1)).sum(axis=0).tolist()
    [2, 2, 2]
    """
    first = generator.integers(0, 2, (shadows // 2, targets)).astype(bool)
    return np.concatenate([first, ~first])


def logits(confidences: Floats, targets: int) -> Floats:
    """Returns (targets,) ``log(p / (1 - p))`` of a model's ``confidences``; raises ValueError where they are none."""
    p = np.asarray(confidences, dtype=np.float64)
    if p.shape != (targets,) or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"confidence must return {targets} numbers in [0, 1], one for each target, got {p.shape}")
    p = p.clip(_LEAST_CHANCE, 1 - _LEAST_CHANCE)
    return np.asarray(np.log(p) - np.log1p(-p))


def _log_likelihood(attacked: Floats, seen: Floats, *, few: bool) -> Floats:
    """Returns (targets,) the normal log density at ``attacked``, fitted to ``seen`` (shadows, targets) but for NaN."""
    mean = np.nanmean(seen, axis=0)
    variance = np.nanmean((seen - mean) ** 2, axis=None if few else 0) + _LEAST_CHANCE
    return np.asarray(-0.5 * (np.log(variance) + (attacked - mean) ** 2 / variance))
