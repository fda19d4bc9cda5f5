"""The suite of planted faults says what it measured, puts everything back, and stands in the docs as it is."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.faults import command, federated, signals, training_faults
from benchmarks.faults.command import FAULTS, GROSS, QUICK, Outcome
from benchmarks.faults.games import CANARIES, CLAIM, GAMES, ideal_run, one_run
from benchmarks.faults.made import made_log
from benchmarks.faults.planting import HONEST, Fault, Law, Patch, Patches, name_of, planted, seen
from privads.logs.logs import Logs
from privads.noise import Randomness
from tests.accounting.audit.games import game, mu_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "auditing.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    return made_log(Path(tmp_path_factory.mktemp("log")))


@pytest.mark.slow
def test_the_last_line_has_every_fault_and_every_promise_holds() -> None:
    arguments = [sys.executable, "-m", "benchmarks.faults", "--quick", "--json"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert (report["benchmark"], report["quick"], report["claim"]) == ("faults", True, CLAIM)
    assert [one["fault"] for one in report["faults"]] == [one.name for one in FAULTS]
    figures = {one["name"]: one for one in report["figures"]}
    for name in ("faults", "faults_missed", "gross_faults_least_flagged", "honest_checks_failed"):
        assert figures[name]["holds"], name
    assert figures["canaries_one_run"]["target"] == ">= 0.9"
    assert figures["canaries_one_run_fdp"]["target"] == ">= 1.2"
    assert figures["audited_over_plain_time"]["target"] == "<= 1.5"


def test_there_are_faults_in_all_three_areas_and_each_has_a_name_of_its_own() -> None:
    assert len(FAULTS) >= 20
    assert {one.area for one in FAULTS} == {"training", "signals", "federation"}
    assert len({(one.area, one.name) for one in FAULTS}) == len(FAULTS)
    assert {one.game for one in FAULTS} - {None} <= set(GAMES)


def test_a_fault_is_gone_after_it_was_planted() -> None:
    """Of every class and module that faults are planted in, all attributes are the same objects as before."""
    touched: dict[int, tuple[Any, dict[str, Any]]] = {}
    was: Callable[..., None] = Patches.setattr

    class Noting(Patches):
        def setattr(self, target: object, name: str, value: object) -> None:
            touched.setdefault(id(target), (target, dict(vars(target))))
            was(self, target, name, value)

    for fault in FAULTS:
        patches = Noting()
        fault.plant(patches)
        assert touched
        patches.undo()
    for target, before in touched.values():
        assert all(vars(target)[name] is one for name, one in before.items()), target


def test_a_name_that_is_not_there_is_not_planted() -> None:
    with planted() as patches, pytest.raises(AttributeError):
        patches.setattr(Randomness, "no_such_thing", None)


def test_what_a_check_makes_of_a_fault_is_told_apart(log: Logs) -> None:
    def refuses(_: Logs, __: Patch) -> bool:
        raise ValueError("no")

    assert seen(lambda *_: True, log, None) == "no"
    assert seen(lambda *_: False, log, None) == "fails"
    assert seen(refuses, log, None) == "refused"


def test_ideal_canaries_show_what_those_of_a_gaussian_do() -> None:
    """One step of everybody is the Gaussian mechanism: bounds of 30 games each, with a standard error of about 0.05."""
    mu = mu_of(4.0)
    found, expected = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        found.append(ideal_run(HONEST, rng, noise_multiplier=1 / mu, rate=1.0, steps=1).lower)
        expected.append(one_run(*game(rng, CANARIES, mu=mu)).lower)
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.4)
    assert np.mean(found) > 1.0


def test_without_noise_every_canary_that_was_drawn_is_told() -> None:
    found = ideal_run(Law(noise=0.0), np.random.default_rng(0), noise_multiplier=5.0, rate=1.0, steps=1)
    assert found.lower == pytest.approx(found.ceiling)


@pytest.mark.parametrize("name", ["answers", "summaries"])
def test_ideal_draws_of_a_known_law_show_its_epsilon(name: str) -> None:
    """A third of the noise is three times the epsilon: of 1,000 draws each the bound is below it, and near."""
    found = [GAMES[name].ideal(Law(noise=1 / 3), np.random.default_rng(seed)).lower for seed in range(20)]
    assert 2.0 < np.mean(found) < 3.0


@pytest.mark.parametrize("name", ["answers", "summaries", "clients"])
def test_an_honest_game_does_not_accuse(name: str, log: Logs) -> None:
    """At 5 % each, 6 of 20 would be accused with probability below 4e-4."""
    assert stats.binom.sf(5, 20, 0.05) < 4e-4
    accused = sum(GAMES[name].play(log, seed).verdict == "violation" for seed in range(20))
    assert accused <= 5


@pytest.mark.parametrize(
    ("area", "plant"),
    [
        ("training", training_faults.noise_forgotten),
        ("signals", signals.keys_selected_by_true_counts),
        ("federation", federated.noise_forgotten),
    ],
    ids=["training", "signals", "federation"],
)
def test_a_gross_fault_is_flagged_by_the_audit_alone(area: str, plant: Callable[[Patch], None], log: Logs) -> None:
    (fault,) = (one for one in FAULTS if (one.area, one.plant) == (area, plant))
    found = command.outcome(fault, log, QUICK)
    assert found.gross
    assert (found.flagged, found.caught) == (QUICK.gross, True)


def test_what_nothing_sees_is_said(log: Logs) -> None:
    fault = Fault(area="training", plant=lambda _: None, check=lambda *_: True, game="answers")
    found = command.outcome(fault, log, QUICK)
    assert (found.caught, found.cells[-1]) == (False, "NOT SEEN")
    figures = {one.name: one for one in command.found_figures([found])}
    assert figures["faults_missed"].holds is False


def test_a_gross_fault_that_is_not_flagged_misses_its_target() -> None:
    fault = FAULTS[0]
    found = Outcome(fault=fault, ideal=GROSS, plays=100, flagged=94, mean=1.0, refused=False, seen="fails")
    figures = {one.name: one for one in command.found_figures([found])}
    assert figures["gross_faults_least_flagged"].holds is False


def test_the_page_names_every_fault_with_its_audit_and_its_check() -> None:
    section = PAGE.partition("## Faults that were planted")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    told = [(cells[0], cells[1], cells[5]) for cells in rows if cells[0].partition(":")[1]]
    assert told == [(f"{one.area}: {one.name}", one.game or "-", name_of(one.check)) for one in FAULTS]
    assert f"{CANARIES:,} canaries" in section
