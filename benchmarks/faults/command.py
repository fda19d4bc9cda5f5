"""Faults that would break the promise of a run, and which audit and which check sees each.

Each fault is planted by itself, in one place. An audit looks at what a run shows and knows nothing of the fault; a
check tests one promise by its definition. Both are also run on the code as it is.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from accounting.audit import Audit
from benchmarks.faults import federated, signals, strength, training_faults
from benchmarks.faults.games import CLAIM, GAMES
from benchmarks.faults.made import made_log
from benchmarks.faults.planting import Fault, Seen, name_of, planted, seen
from benchmarks.harness import Figure, announced, json_line, table
from privads.logs.logs import Logs

FAULTS: tuple[Fault, ...] = (*training_faults.FAULTS, *signals.FAULTS, *federated.FAULTS)

GROSS, FLAGGED, MOST_VIOLATIONS, LEAST_FAULTS, MOST_SECONDS = 0.99, 0.95, 12, 20, 600.0
"""A fault is gross if its ideal game exceeds the claim in this share of plays; then it must be flagged in that one. So
many violations of 100 honest runs would be rarer than 0.2 % at 5 %."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How often each game is played: on honest code, with a gross fault, with another; ideally; repeats of others."""

    honest: int = 100
    gross: int = 100
    finer: int = 20
    ideal: int = 100
    repeats: int = 10


QUICK = Sizes(honest=2, gross=2, finer=1, ideal=20, repeats=1)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What saw a fault. ideal: the share of ideal plays above the claim, None where the fault's law is not known.

    plays, flagged, mean: how often the audit was played, said "violation", and its mean bound; refused: the code would
    not run. seen: by the check.
    """

    fault: Fault
    ideal: float | None
    plays: int
    flagged: int
    mean: float
    refused: bool
    seen: Seen

    @property
    def gross(self) -> bool:
        """Whether the audit alone must see it."""
        return self.ideal is not None and self.ideal >= GROSS

    @property
    def share(self) -> float:
        """Of the audits, how many flag it."""
        return self.flagged / self.plays if self.plays else 0.0

    @property
    def caught(self) -> bool:
        """Whether anything sees it."""
        return self.seen != "no" or self.refused or self.share >= FLAGGED

    def as_dict(self) -> dict[str, Any]:
        """Returns the outcome as it stands in the JSON line."""
        return {
            "area": self.fault.area,
            "fault": self.fault.name,
            "audit": self.fault.game,
            "ideal": self.ideal,
            "gross": self.gross,
            "plays": self.plays,
            "flagged": self.flagged,
            "mean_bound": self.mean,
            "refused": self.refused,
            "check": name_of(self.fault.check),
            "seen": self.seen,
        }

    @property
    def cells(self) -> tuple[str, ...]:
        """The outcome for people: fault, audit, whether it is gross, how often it was flagged, bound, and check."""
        check = f"{name_of(self.fault.check)}{': refused' if self.seen == 'refused' else ''}"
        if self.seen == "no":
            check = "NOT SEEN"
        name = f"{self.fault.area}: {self.fault.name}"
        if self.fault.game is None:
            return name, "-", "-", "-", "-", check
        if self.refused:
            return name, self.fault.game, "-", "does not run", "-", check
        gross = "-" if self.ideal is None else "yes" if self.gross else "no"
        return name, self.fault.game, gross, f"{self.flagged} of {self.plays}", f"{self.mean:.2f}", check


def outcome(fault: Fault, log: Logs, sizes: Sizes) -> Outcome:
    """Returns what the audit and the check of a fault make of it."""
    ideal, audits, refused = None, list[Audit](), False
    if fault.game is not None:
        game = GAMES[fault.game]
        if fault.law is not None:
            plays = [game.ideal(fault.law, np.random.default_rng([seed, 7])) for seed in range(sizes.ideal)]
            ideal = sum(one.lower > CLAIM for one in plays) / len(plays)
        try:
            for seed in range(sizes.gross if ideal is not None and ideal >= GROSS else sizes.finer):
                with planted(fault.plant):
                    audits.append(game.play(log, seed))
        except (ValueError, RuntimeError):
            refused = True
    return Outcome(
        fault=fault,
        ideal=ideal,
        plays=len(audits),
        flagged=sum(one.verdict == "violation" for one in audits),
        mean=float(np.mean([one.lower for one in audits])) if audits else 0.0,
        refused=refused,
        seen=seen(fault.check, log, fault.plant),
    )


def honest(log: Logs, sizes: Sizes) -> Iterator[Figure]:
    """Yields what checks and audits make of the code as it is."""
    failed = [check for check in dict.fromkeys(one.check for one in FAULTS) if seen(check, log, None) != "no"]
    yield Figure(name="honest_checks_failed", value=len(failed), unit="checks", at_most=0)
    flagged = 0
    for name, game in GAMES.items():
        audits = [game.play(log, seed) for seed in range(sizes.honest)]
        own = sum(one.verdict == "violation" for one in audits)
        flagged += own
        key = name.replace(" ", "_")
        yield Figure(name=f"honest_{key}_violations", value=own, unit="runs", at_most=MOST_VIOLATIONS)
        yield Figure(name=f"honest_{key}_bound", value=float(np.mean([one.lower for one in audits])), unit="epsilon")
        yield Figure(name=f"honest_{key}_power", value=audits[0].power, unit="epsilon")
    share = flagged / (sizes.honest * len(GAMES))
    yield Figure(name="honest_violations_share", value=share, unit="", at_most=0.05)


def found_figures(outcomes: Sequence[Outcome]) -> Iterator[Figure]:
    """Yields how many of the faults were seen, and how surely the audit alone sees gross ones."""
    gross = [one.share for one in outcomes if one.gross]
    yield Figure(name="faults", value=len(outcomes), unit="faults", at_least=LEAST_FAULTS)
    missed = sum(not one.caught for one in outcomes)
    yield Figure(name="faults_missed", value=missed, unit="faults", at_most=0)
    yield Figure(name="faults_seen_by_checks", value=sum(one.seen != "no" for one in outcomes), unit="faults")
    yield Figure(name="gross_faults", value=len(gross), unit="faults")
    yield Figure(name="gross_faults_least_flagged", value=min(gross, default=1.0), unit="", at_least=FLAGGED)


def shown(outcomes: Sequence[Outcome]) -> Table:
    """Returns the faults for people to read."""
    made = Table("fault", "audit", "gross", "flagged", "mean bound", "check", title=f"faults, at a claim of {CLAIM:g}")
    for one in outcomes:
        made.add_row(*one.cells)
    return made


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Few plays of each game: does it work?")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Plant faults one at a time, and say what sees each."""
    sizes, started = QUICK if quick else Sizes(), time.process_time()
    log_to = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        log = made_log(Path(folder))
        outcomes = []
        for fault in FAULTS:
            outcomes.append(outcome(fault, log, sizes))
            log_to.print(" | ".join(outcomes[-1].cells))
        figures = announced(found_figures(outcomes))
        figures += announced(honest(log, sizes))
        figures += announced(strength.canary_figures(log, runs=sizes.repeats, rare=not quick))
    figures += announced(strength.time_figures(repeats=sizes.repeats))
    seconds = time.process_time() - started
    figures += announced([Figure(name="seconds", value=seconds, unit="s of one core", at_most=MOST_SECONDS)])
    if as_json:
        print(json_line("faults", figures, quick=quick, claim=CLAIM, faults=[one.as_dict() for one in outcomes]))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(shown(outcomes))
    console.print(table(figures, title="faults"))
