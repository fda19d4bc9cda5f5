"""Probability calibration: maps from a model's scores to probabilities that mean what they say.

    Platt      logit p' = a logit p + b            Platt 1999, with its targets, so that a fit is always finite
    isotonic   p' rises with p, and nothing else   pool adjacent violators (Zadrozny and Elkan 2002, KDD)
    segments   logit p' = a logit p + b + c_g      c_g shrunk to 0 by how sure it is (empirical Bayes)

A fit reads `Counts`: positives and negatives at some scores. Those of public rows cost nothing; those of a released
`ScoreHistogram` cost what the histogram did, and a `Calibration` carries that event. Fits from noisy counts use the
nearest counts without negative cells, and shrink what the noise explains: with v the variance that the noise of the
counts gives an estimate t of a deviation from "no change", t is taken for t · max(0, 1 − v / t²).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from dp_accounting import dp_event
from numpy.typing import ArrayLike
from scipy.optimize import brentq, isotonic_regression
from scipy.special import expit, logit

from accounting import mechanisms
from privads.evaluation.histogram import ScoreHistogram, joint_event, summed
from privads.evaluation.metrics import CLIP, Floats, _arrays

LEAST_ROWS = 10.0
"""Isotonic: noisy bins are joined until their rows are so many standard deviations of their noise."""

LEAST = 1e-12
"""In place of a curvature that rounds to 0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """Positives and negatives, (points,) >= 0, at scores whose log-odds rise, (points,), and the noise in each."""

    logits: Floats
    positives: Floats
    negatives: Floats
    noise_std: float = 0.0
    event: dp_event.DpEvent | None = None

    @classmethod
    def of_rows(cls, labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> Counts:
        """The exact counts of rows, a point for each distinct score. Free only where the rows are public."""
        label, score, weight = _arrays(labels, scores, weights)
        found, place = np.unique(_logits(score), return_inverse=True)
        positives = summed(place, weight * label, len(found))
        return cls(logits=found, positives=positives, negatives=summed(place, weight * (1 - label), len(found)))

    @classmethod
    def of_histogram(cls, histogram: ScoreHistogram) -> Counts:
        """The cleaned counts of a histogram at the middles of its bins, with its noise and its event."""
        clean = histogram.cleaned
        rows = clean.positives + clean.negatives
        used = rows > 0.0
        return cls(
            logits=clean.grid.middles[used],
            positives=clean.positives[used],
            negatives=clean.negatives[used],
            noise_std=histogram.noise_std,
            event=histogram.event,
        )


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A map from scores to probabilities; the value without arguments changes nothing.

    slope, intercept: on the log-odds. knots: of an isotonic map, (log-odds of the score, probability), both rising;
    it then replaces the line. segments: what each adds to the log-odds; others add 0. event_json: what it cost, None
    where it was fitted to public rows.

    >>> Calibration(intercept=math.log(2)).apply([0.2]).round(4).tolist()  # odds 1/4 become 1/2
    [0.3333]
    """

    slope: float = 1.0
    intercept: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()
    segments: Mapping[str, float] = field(default_factory=dict)
    event_json: str | None = None

    def __str__(self) -> str:
        if self.knots:
            return f"a rising map of {len(self.knots)} points"
        by_segment = f", and one more term for each of {len(self.segments)} segments" if self.segments else ""
        return f"logit p' = {self.slope:.3g} logit p {self.intercept:+.3g}{by_segment}"

    @property
    def event(self) -> dp_event.DpEvent | None:
        """What the data lost by the fit, the same event as the histogram's; None where nothing."""
        return None if self.event_json is None else mechanisms.from_json(self.event_json)

    def apply(self, scores: ArrayLike, segments: ArrayLike | None = None) -> Floats:
        """Returns the calibrated probabilities, (rows,), of scores (rows,) in [0, 1], in their segments (rows,)."""
        score = np.asarray(scores, dtype=np.float64)
        if not np.all((score >= 0.0) & (score <= 1.0)):
            raise ValueError("scores must be probabilities in [0, 1]")
        found = _logits(score)
        if self.knots:
            at, probability = np.array(self.knots).T
            return np.asarray(np.interp(found, at, probability))
        added = np.zeros_like(score)
        if segments is not None:
            names = np.asarray(segments).astype(str)
            if names.shape != score.shape:
                raise ValueError(f"segments must have shape {score.shape} as the scores have, got {names.shape}")
            for name, shift in self.segments.items():
                added[names == name] = shift
        return np.asarray(expit(self.slope * found + self.intercept + added))

    def to_json(self) -> str:
        """Returns the value as one line of JSON; `from_json` reads it."""
        return json.dumps(
            {
                "slope": self.slope,
                "intercept": self.intercept,
                "knots": self.knots,
                "segments": dict(self.segments),
                "event": self.event_json,
            },
            sort_keys=True,
        )

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Returns the value that `to_json` wrote.

        >>> Calibration.from_json(Calibration(slope=0.5).to_json()) == Calibration(slope=0.5)
        True
        """
        read = json.loads(text)
        if not isinstance(read, dict) or set(read) != {"slope", "intercept", "knots", "segments", "event"}:
            raise ValueError("this is not the JSON of a calibration")
        if read["event"] is not None:
            mechanisms.from_json(read["event"])  # refuses what privads does not write
        return cls(
            slope=float(read["slope"]),
            intercept=float(read["intercept"]),
            knots=tuple((float(at), float(probability)) for at, probability in read["knots"]),
            segments={str(name): float(shift) for name, shift in read["segments"].items()},
            event_json=read["event"],
        )


def platt(counts: Counts) -> Calibration:
    """Returns the logistic regression of the labels on the log-odds of the scores.

    Minimizes Σ_i −P_i ln p'_i − N_i ln(1 − p'_i); P_i and N_i with Platt's targets (N₊ + 1) / (N₊ + 2) and
    1 / (N₋ + 2) in place of 1 and 0. From noisy counts the slope is shrunk to 1 and then the intercept, fitted again,
    to 0. No rows of one class: nothing is changed. The predictions on the counts then add up to their positives.
    """
    event = _json(counts.event)
    if not (counts.positives.sum() > 0.0 and counts.negatives.sum() > 0.0):
        return Calibration(event_json=event)
    target = _targets(counts)
    slope = 1.0
    if len(counts.logits) > 1:
        slope, intercept = _fit(np.stack([counts.logits, np.ones_like(counts.logits)], axis=1), target)
        predicted = expit(slope * counts.logits + intercept)
        slope = 1.0 + _shrunk(slope - 1.0, _noise_variance(counts, predicted)[0])
    intercept, variance = _intercept(counts, slope * counts.logits)
    return Calibration(slope=slope, intercept=_shrunk(intercept, variance), event_json=event)


def isotonic(counts: Counts) -> Calibration:
    """Returns the rising map nearest to the shares of positives, by weighted least squares, linear between its points.

    Noisy points are first joined with their neighbors until their rows are 10 standard deviations of their noise.
    Needs many positives: a map that rises where it should is worth more than the freedom to bend with few.
    """
    event = _json(counts.event)
    blocks = _joined(counts)
    if not len(blocks):
        return Calibration(event_json=event)
    at, positives, rows = blocks.T
    fitted = np.clip(isotonic_regression(positives / rows, weights=rows).x, 0.0, 1.0)
    return Calibration(knots=tuple(zip(at.tolist(), fitted.tolist(), strict=True)), event_json=event)


def by_segment(segments: Mapping[str, Counts]) -> Calibration:
    """Returns one Platt map of all segments together, and an intercept for each, shrunk to 0.

    With t_g the maximum-likelihood intercept of segment g given the overall map and v_g its variance (of sampling and
    of noise), c_g = t_g τ² / (τ² + v_g), τ² = max(0, Σ_g w_g (t_g² − v_g) / Σ_g w_g), w_g = 1 / v_g²: the more the
    segments differ and the surer a segment is, the less it is shrunk (Efron and Morris 1975, JASA). A segment with few
    rows stays at the overall map.
    """
    if not segments:
        return Calibration()
    event = joint_event(one.event for one in segments.values())
    overall = platt(_together(segments, event))
    found = {}
    for name, counts in segments.items():
        if counts.positives.sum() > 0.0 and counts.negatives.sum() > 0.0:
            offset = overall.slope * counts.logits + overall.intercept
            shift, noise = _intercept(counts, offset)
            predicted = expit(offset + shift)
            rows = counts.positives + counts.negatives
            found[str(name)] = (shift, noise + 1.0 / max(float((rows * predicted * (1.0 - predicted)).sum()), LEAST))
    if not found:
        return overall
    shifts, variances = np.array(list(found.values())).T
    between = max(0.0, float(np.average(shifts**2 - variances, weights=variances**-2.0)))
    shrunk = shifts * between / (between + variances)
    return Calibration(
        slope=overall.slope,
        intercept=overall.intercept,
        segments=dict(zip(found, shrunk.tolist(), strict=True)),
        event_json=_json(event),
    )


def _together(segments: Mapping[str, Counts], event: dp_event.DpEvent | None) -> Counts:
    parts = list(segments.values())
    logits, place = np.unique(np.concatenate([one.logits for one in parts]), return_inverse=True)
    cells = len(place) / max(1, len(logits))  # so many noises are in a joint cell on average
    return Counts(
        logits=logits,
        positives=summed(place, np.concatenate([one.positives for one in parts]), len(logits)),
        negatives=summed(place, np.concatenate([one.negatives for one in parts]), len(logits)),
        noise_std=max(one.noise_std for one in parts) * math.sqrt(cells),
        event=event,
    )


def _intercept(counts: Counts, offset: Floats) -> tuple[float, float]:
    """The maximum-likelihood b of logit p = offset + b, and the variance that the noise of the counts gives it.

    At b the predictions add up to the positives. Their sum rises with b, and where offset + b is the log-odds of the
    base rate at its largest (smallest) offset, it is at most (at least) the positives.
    """
    positives, negatives = (float(one.sum()) for one in _targets(counts))
    rows = counts.positives + counts.negatives

    def excess(b: float) -> float:
        return float((rows * expit(offset + b)).sum()) - positives

    rate = math.log(positives / negatives)
    low, high = rate - float(offset.max()) - 1e-6, rate - float(offset.min()) + 1e-6
    found = float(brentq(excess, low, high, xtol=1e-12))
    return found, _noise_variance(counts, expit(offset + found))[1]


def _targets(counts: Counts) -> tuple[Floats, Floats]:
    """The counts with Platt's targets, whose sum of positives is nearly theirs."""
    up = (counts.positives.sum() + 1.0) / (counts.positives.sum() + 2.0)
    down = 1.0 / (counts.negatives.sum() + 2.0)
    positives = counts.positives * up + counts.negatives * down
    return positives, counts.positives + counts.negatives - positives


def _fit(design: Floats, target: tuple[Floats, Floats]) -> Floats:
    """Weighted logistic regression by Newton's method with halved steps; the loss is convex and has a minimum."""
    positives, negatives = target
    rows = positives + negatives

    def loss(at: Floats) -> float:
        linear = design @ at
        return float((rows * np.logaddexp(0.0, linear) - positives * linear).sum())

    found = np.zeros(design.shape[1])
    for _ in range(100):
        predicted = expit(design @ found)
        gradient = design.T @ (rows * predicted - positives)
        hessian = (design.T * (rows * predicted * (1.0 - predicted))) @ design
        step = np.linalg.solve(hessian + (1e-10 * np.trace(hessian) + LEAST) * np.eye(len(found)), gradient)
        scale = 1.0
        while loss(found - scale * step) > loss(found) and scale > 1e-8:
            scale /= 2.0
        found = found - scale * step
        if np.abs(scale * step).max() < 1e-10:
            break
    return found


def _noise_variance(counts: Counts, predicted: Floats) -> tuple[float, float]:
    """The variances that independent noise in each cell gives the slope (beside an intercept), and an intercept alone.

    Noise in P_i and N_i moves the gradient by (1 − p_i) x_i and −p_i x_i, and the minimum by H⁻¹ of that.
    """
    spread = counts.noise_std**2 * ((1.0 - predicted) ** 2 + predicted**2)
    curvature = (counts.positives + counts.negatives) * predicted * (1.0 - predicted)
    alone = float(spread.sum()) / max(float(curvature.sum()), LEAST) ** 2
    design = np.stack([counts.logits, np.ones_like(counts.logits)], axis=1)
    if len(design) < 2 or not counts.noise_std:
        return 0.0, alone
    inverse = np.linalg.pinv((design.T * curvature) @ design)
    return float((inverse @ ((design.T * spread) @ design) @ inverse)[0, 0]), alone


def _shrunk(deviation: float, variance: float) -> float:
    return 0.0 if deviation == 0.0 else deviation * max(0.0, 1.0 - variance / deviation**2)


def _joined(counts: Counts) -> Floats:
    """Points with enough rows against their noise: (log-odds, positives, rows) of each, the rest joined to the last."""
    blocks: list[list[float]] = []
    weighted = positives = rows = cells = 0.0
    for at, positive, negative in zip(counts.logits, counts.positives, counts.negatives, strict=True):
        weighted, positives = weighted + at * (positive + negative), positives + positive
        rows, cells = rows + positive + negative, cells + 2.0
        if rows > 0.0 and rows >= LEAST_ROWS * counts.noise_std * math.sqrt(cells):
            blocks.append([weighted / rows, positives, rows])
            weighted = positives = rows = cells = 0.0
    if rows > 0.0 and blocks:
        last = blocks[-1]
        whole = last[2] + rows
        blocks[-1] = [(last[0] * last[2] + weighted) / whole, last[1] + positives, whole]
    return np.array(blocks).reshape(-1, 3)


def _logits(scores: Floats) -> Floats:
    return np.asarray(logit(np.clip(scores, CLIP, 1.0 - CLIP)))


def _json(event: dp_event.DpEvent | None) -> str | None:
    return None if event is None else mechanisms.to_json(event)
