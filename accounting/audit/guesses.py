"""Bounds on epsilon from one run in which many canaries were each included by the toss of a fair coin.

The run is scored once: a high score speaks for "included". Of m canaries, the ceil(r/2) with the highest scores are
guessed to be included, the floor(r/2) with the lowest not to be, and nothing is said of the others. Privacy limits how
many of these r guesses can be right, v, whatever the scores are and however the canaries disturb each other.

``guesses`` r is fixed before the scores are seen, so that nothing is paid for choosing it. By default it is the one, of
`SHARES` of m, with the least detectable epsilon: a function of m and the claim alone. Equal scores are put in an order
that is fixed, public and not that in which the canaries are given. Where guesses of both kinds rest on one score, as
where a run diverged or never began, they are tosses of a coin, and `Audit.detectable` is that of the others. Where far
less than half are right, the scores speak for the opposite of what they should, and nothing is detectable.

Data beside the canaries may be whatever they are, fixed. Each canary's coin decides between two neighbors, so that the
claim that is tested is that of the relation the game plays: included or not (add/remove), one label or the other
(replace-label: then ``included`` is the label's bit, as in label inference). Scores of membership inference on a final
model come here too: many examples of one run are not many runs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import bdtr, bdtrc, expit, ndtr, ndtri
from scipy.stats import binom

from accounting.audit import ideal
from accounting.audit.record import BACKWARDS, DETECTED, Audit, Flags, Floats, Method, as_coins, as_scores, check_claim

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Shares of the canaries that may be guessed by default."""

_TIES = 2026
"""Seed of the public order of equal scores."""

Rejects = Callable[[int, int, int, float, float, float], bool]
"""(canaries, guesses, correct, epsilon, delta, significance) -> whether so many right guesses contradict the claim."""


def one_run(
    scores: ArrayLike,
    included: ArrayLike,
    *,
    claimed_epsilon: float,
    delta: float,
    significance: float = 0.05,
    guesses: int | None = None,
) -> Audit:
    """Returns the audit of Steinke, Nasr and Jagielski (2023, arXiv 2305.08846, theorem 5.2): see `rejects`.

    scores, included: (canaries,), one number and one flag each; a higher score speaks for "included". claimed_epsilon,
    delta: the claim; delta is in [0, 1 / (2 canaries)]. guesses: in [1, canaries], fixed before the scores were seen.
    Raises ValueError for NaN, for shapes that differ, for coins that cannot have been fair, for terms out of range.

    >>> rng = np.random.default_rng(1)
    >>> included = rng.random(1000) < 0.5
    >>> found = one_run(rng.normal(size=1000) + 4 * included, included, claimed_epsilon=2.0, delta=1e-5)
    >>> found.verdict, f"{found.lower:.2f} {found.power:.2f}", found.correct, found.guesses
    ('violation', '3.47 0.65', 100, 100)
    """
    return _play("one-run", scores, included, claimed_epsilon, delta, significance, guesses)


def one_run_fdp(
    scores: ArrayLike,
    included: ArrayLike,
    *,
    claimed_epsilon: float,
    delta: float,
    significance: float = 0.05,
    guesses: int | None = None,
) -> Audit:
    """Returns the audit of Mahloujifar, Melis and Chaudhuri (2024, arXiv 2410.22235): see `rejects_gaussian`.

    It tests the trade-off curve of the Gaussian mechanism with the claimed (epsilon, delta), which says more than the
    pair, so that ``lower`` is higher than `one_run`'s. It is a bound for mechanisms that lose nowhere more than that
    Gaussian; where the claim's own curve crosses it, pass the epsilon of the least Gaussian above it
    (`accounting.explain.gaussian_dp`). Arguments and errors are `one_run`'s, but for delta, which is not 0.

    >>> rng = np.random.default_rng(1)
    >>> included = rng.random(1000) < 0.5
    >>> found = one_run_fdp(rng.normal(size=1000) + 4 * included, included, claimed_epsilon=2.0, delta=1e-5)
    >>> found.verdict, f"{found.lower:.2f} {found.power:.2f}", found.correct, found.guesses
    ('violation', '7.26 0.99', 200, 200)
    """
    return _play("one-run f-DP", scores, included, claimed_epsilon, delta, significance, guesses)


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Returns a bound on the chance that ``correct`` or more of ``guesses`` are right under (epsilon, delta)-DP.

    With W ~ Binomial(r, exp(epsilon) / (1 + exp(epsilon))) and ``f(v) = P[W >= v]``:
    ``p = min(1, f(v) + 2 m delta max_{1 <= i <= v} (f(v - i) - f(v)) / i)``. It grows with epsilon if 2 m delta <= 1,
    as each term is a mean of f(v) and f(v - i) then. It is a bound where it is at most 1/2, and no test has a larger
    significance: beyond, a mechanism may be right more often (of 2 canaries, one guess or more, say).
    """
    tails = bdtrc(np.arange(correct - 1, -2, -1, dtype=np.float64), guesses, float(expit(epsilon)))
    tails[-1] = 1.0  # W >= 0
    gained = (tails[1:] - tails[0]) / np.arange(1, correct + 1)
    return min(1.0, float(tails[0]) + 2 * canaries * delta * float(gained.max(initial=0.0)))


def rejects(canaries: int, guesses: int, correct: int, epsilon: float, delta: float, significance: float) -> bool:
    """Returns whether `p_value` is at most ``significance``."""
    return p_value(canaries, guesses, correct, epsilon, delta) <= significance


def rejects_gaussian(
    canaries: int, guesses: int, correct: int, epsilon: float, delta: float, significance: float
) -> bool:
    """Returns whether ``correct`` or more of ``guesses`` are rarer than ``significance`` for the Gaussian mechanism.

    Let p_n be the chance that n guesses are right, ``R_i = sum_{n >= i} p_n n / m`` and ``H_i = sum_{n >= i} p_n
    (r - n) / m``: the mean over canaries of the chance that the guess is right (wrong) and at least i guesses are.
    If a canary's coin falls the other way, a right guess, one of i + 1, turns into a wrong one beside i right ones:
    the curve ``g(x) = Phi(Phi^-1(x) + mu)``, being concave, gives ``R_{i+1} <= g(H_i)``. As ``p_i = (H_i - H_{i+1}) m
    / (r - i)``, the least R_0 and H_0 follow from the least that v or more right guesses of probability
    ``significance`` can have, ``R_v = significance v / m`` and ``H_v = significance (r - v) / m``. Together they are
    all chances, 1, times r / m: more than r / m contradicts the curve.
    """
    mu = ideal.gaussian_mu(epsilon, delta)
    right, wrong = significance * correct / canaries, significance * (guesses - correct) / canaries
    for i in range(correct - 1, -1, -1):
        least = float(ndtr(ndtri(right) - mu))
        if least <= wrong:  # neither changes from here on
            return False
        right, wrong = right + i / (guesses - i) * (least - wrong), least
        if right + wrong > guesses / canaries:
            return True
    return False


_TESTS: dict[Method, Rejects] = {"one-run": rejects, "one-run f-DP": rejects_gaussian}


@dataclass(frozen=True, kw_only=True)
class _Game:
    """What is known of the game before it is played."""

    guesses: int
    power: float
    ceiling: float
    detectable: float


def _play(
    method: Method,
    scores: ArrayLike,
    included: ArrayLike,
    claimed_epsilon: float,
    delta: float,
    significance: float,
    guesses: int | None,
) -> Audit:
    check_claim(claimed_epsilon, delta, significance, pure=method == "one-run")
    seen = as_scores("scores", scores)
    coins = as_coins(included, seen.size)
    if 2 * seen.size * delta > 1:
        raise ValueError(
            f"delta must be at most 1 / (2 canaries) = {1 / (2 * seen.size):.3g}, got {delta}: "
            "a larger one would allow a canary to be published outright"
        )
    if guesses is not None and (
        isinstance(guesses, bool) or not isinstance(guesses, int) or not 1 <= guesses <= seen.size
    ):
        raise ValueError(f"guesses must be a whole number from 1 to {seen.size} canaries, got {guesses}")
    game = _game(method, seen.size, claimed_epsilon, delta, significance, guesses)
    correct = right_guesses(seen, coins, game.guesses)
    blind, detectable = blind_guesses(seen, game.guesses), game.detectable
    if bdtr(correct, game.guesses, 0.5) < BACKWARDS:
        detectable = math.inf
    elif blind:
        claim = claimed_epsilon, delta, significance
        detectable = _detectable(_TESTS[method], seen.size, game.guesses, *claim, blind=blind)
    return Audit(
        method=method,
        claimed_epsilon=claimed_epsilon,
        delta=delta,
        significance=significance,
        lower=_lower(_TESTS[method], seen.size, game.guesses, correct, delta, significance),
        kind="bound",
        canaries=seen.size,
        guesses=game.guesses,
        correct=correct,
        power=game.power,
        ceiling=game.ceiling,
        detectable=detectable,
    )


def right_guesses(scores: Floats, included: Flags, guesses: int) -> int:
    """Returns how many are right: of the highest scores those that are included, of the lowest the others."""
    order = np.random.default_rng(_TIES).permutation(scores.size)
    ranked = included[order[np.argsort(scores[order], kind="stable")]]
    low = guesses // 2
    return int(ranked[scores.size - (guesses - low) :].sum() + low - ranked[:low].sum())


def blind_guesses(scores: Floats, guesses: int) -> int:
    """Returns how many rest on nothing: as many "included" as "not included" that are of one and the same score."""
    ranked, low = np.sort(scores), guesses // 2
    lowest, highest = ranked[: max(low, 1)], ranked[scores.size - (guesses - low) :]
    if highest[0] > lowest[-1]:
        return 0
    both = int((lowest == lowest[-1]).sum()), int((highest == lowest[-1]).sum())
    return min(guesses, 2 * min(both))


@lru_cache(maxsize=64)
def _game(
    method: Method, canaries: int, epsilon: float, delta: float, significance: float, guesses: int | None
) -> _Game:
    if guesses is None:
        options = sorted({max(1, round(share * canaries)) for share in SHARES})
        games = [_game(method, canaries, epsilon, delta, significance, option) for option in options]
        return min(games, key=lambda game: (game.detectable, -game.power))
    test, share = _TESTS[method], guesses / canaries
    usual = math.floor(guesses * ideal.precision(epsilon, delta, share))
    return _Game(
        guesses=guesses,
        power=_lower(test, canaries, guesses, usual, delta, significance),
        ceiling=_lower(test, canaries, guesses, guesses, delta, significance),
        detectable=_detectable(test, canaries, guesses, epsilon, delta, significance),
    )


def _detectable(
    test: Rejects, canaries: int, guesses: int, epsilon: float, delta: float, significance: float, *, blind: int = 0
) -> float:
    """Returns the epsilon whose ideal canaries have so many right, about Binomial(r, p), that 95 % contradict.

    Of those that are ``blind``, about Binomial(blind, 1 / 2) are right whatever epsilon is.
    """

    def contradicts(correct: int) -> bool:
        return test(canaries, guesses, correct, epsilon, delta, significance)

    if not contradicts(guesses):
        return math.inf
    low, high = -1, guesses  # high contradicts, low does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if contradicts(middle) else (middle, high)
    tossed, told = np.arange(blind + 1), guesses - blind
    chances = binom.pmf(tossed, blind, 0.5)

    def missed(right: float) -> float:
        """Returns by how much the chance of ``high`` or more falls short of 95 %."""
        return DETECTED - float(chances @ binom.sf(high - tossed - 1, told, right))

    if missed(1.0) > 0:
        return math.inf
    right = float(brentq(missed, 0.0, 1.0, xtol=1e-14))
    return ideal.epsilon_of_precision(right, delta, told / canaries)


def _lower(test: Rejects, canaries: int, guesses: int, correct: int, delta: float, significance: float) -> float:
    """Returns the largest epsilon that is rejected, rounded down by at most 10^-6; 0 where none is."""

    def rejected(epsilon: float) -> bool:
        return test(canaries, guesses, correct, epsilon, delta, significance)

    low, high = 0.0, 1.0
    while rejected(high):
        low, high = high, 2 * high
    while high - low > _WIDTH:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


_WIDTH = 1e-6
