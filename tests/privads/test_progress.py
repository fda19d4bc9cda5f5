"""Progress shows steps, cost and time left; nothing that rows could change."""

import io
import re
import sys

import pytest

from privads import progress
from privads.training.plan import TrainPlan
from tests.federation.helpers import plan as federated
from tests.privads.training.helpers import small_plan


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar(small_plan()) as show:
        show(1)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_steps_and_epsilon_are_shown_with_its_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, plan = Terminal(), small_plan()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar(plan) as show:
        for step in range(1, 11):
            show(step)
    shown = terminal.getvalue()
    assert "10/10" in shown
    assert re.search(r"epsilon <= 5\.00 \(delta 1e-05, user, add/remove", shown)


def test_a_narrow_terminal_cuts_off_neither_the_steps_nor_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar(small_plan(), released="models of all rounds") as show:
        show(10)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "10/10" in shown
    assert re.search(r"\d:\d\d:\d\d", shown)
    assert "…" not in shown
    assert "rounds)" in shown


def test_epsilon_so_far_grows_to_the_plans_and_never_past_its_budget() -> None:
    plan = small_plan()
    values = [float(progress.spent_after(plan, steps).split()[2]) for steps in (0, 1, 5, 10)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[-1] == pytest.approx(plan.spent.upper, abs=0.01)


def test_a_run_without_privacy_shows_no_epsilon() -> None:
    assert progress.spent_after(TrainPlan.without_privacy(population=10), 1) == "NOT PRIVATE"


def test_a_federated_plan_is_shown_by_its_rounds_for_its_own_neighbors() -> None:
    """Of a local plan's 20 rounds a user sends in 5: after those nothing more is lost."""
    plan = federated(neighbors="replace", mechanism="local", rounds=20, participations=5)
    values = [float(progress.spent_after(plan, rounds).split()[2]) for rounds in (1, 5, 20)]
    assert values[0] < values[1] == values[2] == pytest.approx(plan.spent.upper, abs=0.01)
    assert "user, replace" in progress.spent_after(plan, 5)


def test_stages_are_shown_on_a_terminal_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.stages() as stage:
        stage("learning from the tables")(1, 2)
    assert capsys.readouterr() == ("", "")
    shown = {}
    for quiet in (False, True):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("TERM", "xterm")
        with progress.stages(quiet=quiet) as stage:
            stage("learning from the tables")(1, 2)
            stage("judging")
        shown[quiet] = terminal.getvalue()
    assert "judging" in shown[False]
    assert shown[True] == ""
