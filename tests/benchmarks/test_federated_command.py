"""The benchmark of federated training runs, small, and says what it measured under the agreed names.

No test looks at how good or how fast it was.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from benchmarks.federated import command
from benchmarks.federated.command import main
from benchmarks.federated.speed import EVENTS, ITEMS, ItemNetwork, interactions
from benchmarks.harness import Figure

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def quick() -> dict[str, Any]:
    arguments = [sys.executable, "-m", "benchmarks.federated", "--quick", "--json", "--epsilons", "3,none"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_the_last_line_has_the_figures_and_their_targets(quick: dict[str, Any]) -> None:
    figures = {figure["name"]: figure for figure in quick["figures"]}
    assert len(figures) == len(quick["figures"])
    assert (quick["benchmark"], quick["quick"]) == ("federated", True)
    assert figures["local_backend"]["target"] == ">= 2000"
    assert figures["memory_of_ten_times_the_cohort"]["holds"]
    assert figures["epsilon_over_dp_accounting"]["holds"]
    anchors = {"silos_1": 2.13, "silos_2": 4.55, "silos_5": 13.0, "over_selection_30": 2.80}
    for name, expected in anchors.items():
        assert figures[f"epsilon_{name}"]["value"] == pytest.approx(expected, rel=0.004)
    for epsilon in ("epsilon_3", "none"):
        assert figures[f"made_up_{epsilon}_recall_federated_over_central"]["target"] == ">= 0.98"
        assert figures[f"made_up_{epsilon}_ndcg_federated_over_central"]["target"] == ">= 0.98"


def test_what_is_not_measured_is_said(quick: dict[str, Any]) -> None:
    assert set(quick["left_out"]) == {"flower", "pfl", "pinterest", "alibaba"}


def test_the_task_is_the_one_that_the_figures_speak_of() -> None:
    rows = interactions(2000)
    assert np.bincount(rows.units).mean() == pytest.approx(EVENTS, rel=0.05)
    assert tuple(ItemNetwork().table.weight.shape) == (ITEMS, 32)


def test_a_part_is_measured_only_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(command.PARTS, "memory", lambda _: iter([Figure(name="n", value=2.0, unit="MB", at_most=1.0)]))
    main(only="memory", quick=True, as_json=True)
    (figure,) = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert figure == {"name": "n", "value": 2.0, "unit": "MB", "target": "<= 1", "holds": False}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "sped"], "--only must be of speed, memory, epsilon, utility, compare, got 'sped'"),
        (["--epsilons", "2"], "--epsilons must be of 1, 3, 8 and none, with commas between, got '2'"),
        (["--epsilons", "much"], "--epsilons must be of 1, 3, 8 and none, with commas between, got 'much'"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()
    app.command()(main)
    with pytest.raises(SystemExit) as refused:
        app(arguments)
    assert refused.value.code == 2
    assert capsys.readouterr().err.splitlines() == [said]
